"""The package from outside: what importing costs, what the commands say, what the wheel holds."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import pytest

import ivlens
from ivlens.cli import main as cli

ROOT = Path(__file__).parent.parent
PACKAGE = Path(ivlens.__file__).parent


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, **options)


def fastest(*command: str, times: int = 4) -> float:
    """Computing seconds of the fastest run: what the command costs, rather than what else the machine was doing."""
    seconds = []
    for _ in range(times):
        before = os.times()
        assert run(*command).returncode == 0
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    return min(seconds)


def test_import_is_quick():
    probe = "import time; start = time.process_time(); import ivlens; print(time.process_time() - start)"
    assert min(float(run("-c", probe).stdout) for _ in range(4)) < 0.3


def test_import_loads_nothing_heavy():
    probe = "import sys, ivlens; dir(ivlens); print(*sys.modules)"
    loaded = set(run("-c", probe).stdout.split())
    assert "ivlens" in loaded
    assert not loaded & {"torch", "transformers", "transformer_lens", "numpy", "pandas", "plotly", "cyclopts"}


@pytest.mark.parametrize("name", ivlens.__all__)
def test_public_name_is_there(name: str):
    assert getattr(ivlens, name) is not None
    assert name in dir(ivlens)


def test_public_names_are_told_to_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == {name: f"ivlens.{module}" for name, module in ivlens._MODULE_OF.items()}
    assert set(ivlens.__all__) == {*declared, "__version__"}


def test_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match="no attribute 'load_modle'.*load_model"):
        ivlens.load_modle  # noqa: B018


def test_version_is_the_same_everywhere():
    assert f"version: {ivlens.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {ivlens.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert run("-m", "ivlens", "--version").stdout.strip() == f"ivlens {ivlens.__version__}"


def test_help_is_quick_and_lists_every_command():
    assert fastest("-m", "ivlens", "--help") < 1.0
    page = run("-m", "ivlens", "--help").stdout
    assert all(re.search(rf"\b{name}\b", page) for name in cli.COMMANDS)


GROUPS = (
    "pocket train", "pocket card", "store ls", "store verify", "store gc", "store export", "tasks show", "tasks check",
    "terse train", "terse card",
)  # fmt: skip


@pytest.mark.parametrize("words", [*(name for name in cli.COMMANDS if f"{name} " not in " ".join(GROUPS)), *GROUPS])
def test_command_help_has_an_example(words: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main([*words.split(), "--help"]) == 0
    usage, page = capsys.readouterr().out.split("\n", 1)
    assert usage.startswith(f"Usage: ivlens {words}")
    assert f"ivlens {words}" in " ".join(page.split()), "no example in the docstring"


def test_unknown_command_and_option(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["docter"]) == 2
    assert capsys.readouterr().err == "ivlens: there is no command 'docter'; did you mean 'doctor'?\n"
    assert cli.main(["xyzzy"]) == 2
    assert "expected one of demo, tasks, prompts" in capsys.readouterr().err
    assert cli.main(["doctor", "--jsn"]) == 2
    assert "--json" in capsys.readouterr().err


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str = "ivlens.cli.doctor.survey") -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(where, fail)


@pytest.mark.parametrize("error", [ValueError("k is 0,\n  expected 1"), FileNotFoundError(2, "No such file", "iv.x")])
def test_expected_error_is_one_line(error, monkeypatch, capsys):
    fail_with(monkeypatch, error)
    assert cli.main(["doctor"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"ivlens: {' '.join(str(error).split())}\n"
    with pytest.raises(type(error)):
        cli.main(["doctor", "--debug"])


def test_bug_is_one_line_and_keeps_its_traceback(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fail_with(monkeypatch, KeyError("not the user's fault"))
    assert cli.main(["doctor"]) == 70
    err = capsys.readouterr().err
    (report,) = tmp_path.iterdir()
    assert err.count("\n") == 1 and err.startswith("ivlens: ") and str(report) in err and "please report it" in err
    assert "Traceback" in report.read_text() and "not the user's fault" in report.read_text()
    with pytest.raises(KeyError):
        cli.main(["doctor", "--debug"])


def test_missing_package_is_named(monkeypatch, capsys):
    fail_with(monkeypatch, ModuleNotFoundError("No module named 'peft'", name="peft"))
    assert cli.main(["doctor"]) == 2
    assert "pip install peft" in capsys.readouterr().err


def test_interrupt(monkeypatch, capsys):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "ivlens: interrupted"
    fail_with(monkeypatch, KeyboardInterrupt(), "ivlens.common.disk.check_folder")
    assert cli.main(["study"]) == 130
    assert capsys.readouterr().err.strip() == "ivlens: interrupted; the same command goes on from what it has kept"


def test_interrupt_by_signal():
    probe = (
        "import sys, time; from ivlens.cli import doctor, main\n"
        "doctor.survey = lambda: (print('up', flush=True), time.sleep(60))\n"
        "sys.exit(main.main(['doctor']))"
    )
    pipe = subprocess.PIPE
    # a shell starts what it puts in the background with SIGINT ignored, and that is inherited
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([sys.executable, "-c", probe], stdout=pipe, stderr=pipe, text=True, preexec_fn=hear) as job:
        assert job.stdout and job.stdout.readline() == "up\n"
        job.send_signal(signal.SIGINT)
        _, complaint = job.communicate(timeout=20)
    assert (job.returncode, complaint.strip()) == (130, "ivlens: interrupted")


def test_reader_that_leaves():
    probe = (
        "import sys; from ivlens.cli import doctor, main\n"
        "doctor.survey = lambda: {'ok': True, 'remedies': {}, 'a fact': 1}\n"
        "sys.exit(main.main(['doctor']))"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", probe], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_doctor(capsys: pytest.CaptureFixture[str]):
    import torch

    status = cli.main(["doctor", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert status == (0 if facts["ok"] else 1)
    assert facts["ivlens"] == ivlens.__version__
    assert facts["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert facts["torch"] == torch.__version__
    assert (facts["torch_build"] == "CPU") == (torch.version.cuda is None and torch.version.hip is None)
    assert facts["cores"] >= 1 and facts["memory_gib"] > 0
    assert {"transformer-lens", "transformers", "gpu", "chrome", "pocket"} <= set(facts)
    assert set(facts["remedies"]) <= {name for name, value in facts.items() if value is None}

    assert cli.main(["doctor"]) == status
    table = capsys.readouterr().out
    shown = {line.split()[0] for line in table.splitlines() if line}
    assert set(facts) - {"ok", "remedies"} <= shown


def test_doctor_without_chrome(monkeypatch, capsys):
    monkeypatch.setattr("ivlens.cli.doctor._BROWSERS", ())
    monkeypatch.setattr("ivlens.cli.doctor._MAC_CHROME", "")
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    cli.main(["doctor"])
    assert "chrome is missing: install Chrome or Chromium" in capsys.readouterr().out


def test_requirements_leave_torch_free():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.6" in project["dependencies"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "==" not in " ".join([*project["dependencies"], *sum(project["optional-dependencies"].values(), [])])
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_wheel_holds_everything(tmp_path: Path):
    built = run("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("ivlens-")}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    there = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there
    assert {"ivlens/py.typed", "ivlens/data/bank/antonym.json", "ivlens/data/pocket/model.safetensors"} <= held
    assert (PACKAGE / "data/pocket/model.safetensors").stat().st_size <= 12_000_000
    assert wheel.stat().st_size < 20_000_000
