"""Every command and option with wrong values, on bad streams, short of disk and memory: one line each, in time."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lines
import pytest
import torch
from conftest import WORDS, hf_model
from lines import DISK, STREAMS, Case, Lines, all_commands, options_of
from warm import Warm

from ivlens.cli.main import main
from ivlens.common.disk import DiskError, check_file, check_folder, writing
from ivlens.common.files import write_whole
from ivlens.common.memory import is_out_of_memory, pass_on_shortage
from ivlens.models import load_model
from ivlens.models.boot import _check_heads
from ivlens.models.merging import with_adapters

TORCH = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes."


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    return Lines(tmp_path_factory.mktemp("lines"))


@pytest.fixture(scope="module")
def cases(tried: Lines) -> list[Case]:
    return [case for cases in tried.all().values() for case in cases]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, byte_level) -> Path:
    """A checkpoint (gpt2) and a task file (next.json)."""
    folder = tmp_path_factory.mktemp("cli")
    hf_model("gpt2", n_ctx=512).save_pretrained(folder / "gpt2")
    byte_level.save_pretrained(folder / "gpt2")
    pairs = [{"input": word, "output": WORDS[(n + 1) % len(WORDS)]} for n, word in enumerate(WORDS)]
    (folder / "next.json").write_text(json.dumps(pairs))
    return folder


# --- the walk --------------------------------------------------------------------------------------------------------


def test_every_command_and_option_is_walked(tried: Lines):
    assert len(all_commands()) >= 21 and all(tried.good(command) for command in all_commands())
    assert {"--k", "--task", "--out", "--json", "--n-prompts", "--seed"} <= {one.name for one in options_of("vector")}
    walked = {(case.words[0], case.words[-1].partition("=")[0]) for case in tried.wrong_values()}
    for command in all_commands():
        flags = {one.name for one in options_of(command) if one.name.startswith("--")}
        assert flags <= {flag for name, flag in walked if name == command.split()[0]}
    assert len([*tried.wrong_values()]) > 4000


@pytest.mark.parametrize("kind", ["wrong_values", "bad_streams", "odd_screens", "shortages"])
def test_some_of_every_kind(tried: Lines, kind: str):
    cases = tried.all()[kind]
    for case in cases[:: max(1, len(cases) // 40)]:
        tried.attempt(case)


@pytest.mark.slow
@pytest.mark.parametrize("command", all_commands())
def test_all_of_a_command(tried: Lines, cases: list[Case], command: str):
    words = tuple(command.split())
    for case in cases:
        if case.words[: len(words)] == words:
            tried.attempt(case)


def test_cases_are_counted():
    found = lines.run(30, seed=3)
    assert found["cases"] == 30 and found["refused"] > 0 and found["slowest"] < 10


def test_what_is_not_one_line_is_seen(tried: Lines, monkeypatch: pytest.MonkeyPatch):
    """Of the walk itself: it must see tracebacks, bugs, second lines and what is taken though it is wrong."""
    monkeypatch.setattr("tempfile.tempdir", str(tried.folder))
    bug = Case(("effects", "--task", "antonym"), " [bug]")
    monkeypatch.setitem(lines.SHORT, "bug", lambda: KeyError("x"))
    with pytest.raises(AssertionError, match="status 70"):
        tried.attempt(bug)
    with pytest.raises(AssertionError, match="the model was reached"):
        tried.attempt(Case(("effects", "--task", "antonym")))
    monkeypatch.setattr(lines, "main", lambda words: print("ivlens: one\nivlens: two", file=sys.stderr) or 2)
    with pytest.raises(AssertionError, match="two"):
        tried.attempt(Case(("effects",)))


# --- streams ---------------------------------------------------------------------------------------------------------


def shell(command: str, **more: str) -> subprocess.CompletedProcess[str]:
    ivlens = f"{sys.executable} -m ivlens"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('ivlens', ivlens, 1)}"], capture_output=True, text=True,
        timeout=60, env={**os.environ, **more},
    )  # fmt: skip


@pytest.mark.parametrize(
    "command, status, err",
    [
        ("ivlens --help >&-", 2, "ivlens: stdout is closed"),
        ("ivlens --help 2>&- >/dev/null", 0, ""),
        ("ivlens --help <&- >/dev/null", 0, ""),
        ("ivlens nope >&- 2>&- <&-", 2, ""),
        ("ivlens --help >/dev/full", 2, "ivlens: stdout cannot be written to (No space left on device)"),
        ("ivlens nope 2>/dev/full", 2, ""),
        ("ivlens --help | true", 141, ""),
        ("COLUMNS=1 ivlens tune --help >/dev/null", 0, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_of_a_shell(command: str, status: int, err: str, unbuffered: str):
    done = shell(command, PYTHONUNBUFFERED=unbuffered)
    may_end = {status, 0} if status == 141 else {status}  # of a pipe's reader nobody knows when it goes
    assert done.returncode in may_end and done.stderr.startswith(err) and done.stderr.count("\n") == bool(err), done


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("name, more", [("wörter", {"PYTHONIOENCODING": "ascii"}), ("words", C_LOCALE)])
def test_letters_that_stdout_lacks(place: Path, tmp_path: Path, name: str, more: dict[str, str]):
    """As a table and as JSON, by two commands in one process: its start takes longer than both."""
    (tmp_path / f"{name}.json").write_text(json.dumps({f"ä{n}": f"ß{n}" for n in range(20)}), encoding="utf-8")
    words = f"vector --task {tmp_path}/w*.json --model {place / 'gpt2'} --n-prompts 2 --k 2 --n-shots 2"
    code = "import sys; from ivlens.cli.main import main as run; words = sys.argv[1:]"
    line = f"{sys.executable} -c \"{code}; sys.exit(run(words) or run([*words, '--json']))\" {words}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, env={**os.environ, **more})
    table, brace, found = done.stdout.partition("{\n")
    assert done.returncode == 0 and done.stdout.isascii() and "\\x" in table, done
    assert json.loads(brace + found)["task"] == name


def test_work_goes_on_where_nobody_reads_stderr_any_more(place: Path, tmp_path: Path):
    words = f"--model {place / 'gpt2'} --task {place / 'next.json'} --n-prompts 2 --out {tmp_path / 'e.safetensors'}"
    read, write = os.pipe()
    os.close(read)
    with Warm(["-m", "ivlens", "effects", *words.split()], stdout=subprocess.DEVNULL, stderr=write) as job:
        os.close(write)
        assert job.wait(timeout=60) == 0 and (tmp_path / "e.safetensors").is_file()


# --- the disk --------------------------------------------------------------------------------------------------------


def with_limit(n_bytes: int, words: list[str], err: Path) -> int:
    """The status of a command in a process that can write no file of more than so many bytes."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = open(2, "w", closefd=False)
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
            code = main(words)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "command, limit, named",
    [
        ("effects --n-prompts 2 --out", 5000, "out.html"),
        ("effects --n-prompts 2 --out", 100, "out.safetensors"),
        ("vector --n-prompts 2 --k 3 --out", 100, "out.safetensors"),
        ("tune --steps 1 --out", 5000, "out.safetensors/state.safetensors"),
        ("tune --steps 1 --out", 100, "out.safetensors"),
        ("tune --method full --steps 1 --out", 600_000, "out.safetensors"),
    ],
)
def test_a_full_disk(place: Path, tmp_path: Path, command: str, limit: int, named: str):
    name, *more = command.split()
    model = ["--model", str(place / "gpt2"), "--task", str(place / "next.json"), "--template", "plain"]
    out = tmp_path / named.partition("/")[0]
    # stderr is a file here, too, and short of room alike: it has only the lines that fit
    status = with_limit(limit, [name, *model, *more, str(out)], tmp_path / "err")
    err = [line for line in (tmp_path / "err").read_text().splitlines() if "accuracy" not in line]
    assert status == 2 and not out.is_file()
    if limit > 1000:
        assert len(err) == 1 and err[0].startswith("ivlens: ") and named in err[0] and "free some room" in err[0], err
    assert [path.name for path in tmp_path.rglob(".writing-*")] == []


@pytest.mark.parametrize("number", DISK)
def test_errors_of_the_disk_name_path_and_remedy(tmp_path: Path, number: int):
    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(DiskError, match=r"/x\.csv' cannot be written to .*name another place.* is whole") as caught:
        write_whole(tmp_path / "x.csv", fail)
    assert caught.value.errno == number and os.strerror(number) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_errors_of_other_files_and_kinds_stay_as_they_are(tmp_path: Path):
    for error in (
        PermissionError(errno.EACCES, "no", "/etc/shadow"),
        ValueError("(os error 28)"),
        FileNotFoundError(2, "x"),
    ):
        with pytest.raises(type(error)) as caught, writing(tmp_path / "a" / "b"):
            raise error
        assert caught.value is error


def test_places_are_tried_before_the_work(tmp_path: Path):
    check_file(tmp_path / "new" / "deep" / "x.csv", (".csv",))
    check_folder(tmp_path / "new" / "deep")
    assert not list(tmp_path.iterdir()), "nothing is left there"
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file" / "x.csv", Path("/proc/x/y.csv"), tmp_path / f"{'n' * 300}.csv"):
        with pytest.raises(DiskError, match="cannot be written to"):
            check_file(path, (".csv",))
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(DiskError, match="is no file"):
        check_file(tmp_path / "x.csv", (".csv",))
    for path in (tmp_path / "file", Path("/dev/full"), tmp_path / "file" / "x", tmp_path / "link" / "x"):
        with pytest.raises(DiskError):
            check_folder(path)


# --- memory ----------------------------------------------------------------------------------------------------------


def ran_out(*args: object, **more: object) -> None:
    raise RuntimeError(TORCH)


@pytest.mark.parametrize("short", [lambda: RuntimeError(TORCH), lambda: torch.OutOfMemoryError("20 GiB"), MemoryError,
                                   lambda: OSError(errno.ENOMEM, "Cannot allocate memory")])  # fmt: skip
def test_memory_that_ran_out_is_told_from_the_rest(short: Callable[[], BaseException]):
    assert is_out_of_memory(short())
    with pytest.raises(type(short())):
        pass_on_shortage(short())


def test_what_only_quotes_it_is_something_else():
    for error in (ValueError("task 'out of memory' is unknown"), KeyError("out of memory"), RuntimeError("no")):
        assert not is_out_of_memory(error)
        pass_on_shortage(error)


def test_a_model_is_not_unfit_because_memory_ran_out(llama, place: Path, tmp_path: Path, monkeypatch):
    class Block(torch.nn.Module):
        @property
        def attn(self) -> object:
            return self

        W_O = property(ran_out)

    class Model(torch.nn.Module):
        cfg, blocks = llama.cfg, [Block()]

    with pytest.raises(RuntimeError, match="allocate"):
        _check_heads(Model(), "m")
    monkeypatch.setattr("transformer_lens.model_bridge.TransformerBridge.boot_transformers", ran_out)
    with pytest.raises(RuntimeError, match="allocate"):
        load_model(place / "gpt2")
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(hf_model("llama"), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    monkeypatch.setattr("peft.PeftModel.from_pretrained", ran_out)
    with pytest.raises(RuntimeError, match="allocate"):
        with_adapters(hf_model("llama"), tmp_path)


@pytest.mark.parametrize("command", ["demo", "study", "effects", "evaluate"])
def test_memory_that_runs_out_in_the_work_is_one_line(command: str, tried: Lines, tmp_path: Path, monkeypatch, capsys):
    working = ("show.demo.run.run_demo", "runs.study.running.run_study", "runs.evaluation.running.evaluate_tasks")
    for target in (*working, "effects.measure.head_effects"):
        monkeypatch.setattr(f"ivlens.{target}", ran_out)
    monkeypatch.setattr("ivlens.cli._options.ModelOptions.load", lambda self: None)
    monkeypatch.setattr("ivlens.cli._options.PromptOptions.chosen", lambda self, *args: self.recipe())
    assert main(tried.good(command)) == 2
    err = capsys.readouterr().err
    assert err.startswith("ivlens: memory ran out (") and err.count("\n") == 1 and "use a smaller model" in err


def test_every_stream_is_walked(tried: Lines):
    assert {case.stream.strip(" []") for case in tried.bad_streams()} == set(STREAMS)
