"""Saves of several files over older ones, killed at every system call that matters and at random moments.

For the tests and for benches/stress.py: `run(n, seed)` gives counts, and fails at the first save that is neither
the old one nor the new one.
"""

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from ivlens.common.files import UNFINISHED
from ivlens.common.saves import LIST, READY, replacing, whole

CALLS = ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "open", "fsync")
NAMES = ("config.json", "adapter_config.json", "model.safetensors", "adapter_model.safetensors", "tokenizer.json")
NAMES += ("task0/adapter_config.json", "task0/adapter_model.safetensors", "task1/adapter_model.safetensors")
FOREIGN = {"notes.txt": "mine", "task1/notes.txt": "mine too"}

Files = Mapping[str, str]


def killed_at_call(number: int, job: Callable[[], object]) -> bool:
    """Run `job` in a fork that is killed before its so-manieth call; whether it came so far."""
    process = os.fork()
    if process == 0:
        n_calls = 0

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def made(*args: object, **more: object) -> object:
                nonlocal n_calls
                n_calls += 1
                if n_calls > number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **more)

            return made

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        _ended(job)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def killed_after(seconds: float, job: Callable[[], object]) -> bool:
    """Run `job` in a fork that is killed some time later; whether it was still at work."""
    process = os.fork()
    if process == 0:
        _ended(job)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def _ended(job: Callable[[], object]) -> None:
    try:
        job()
    finally:
        os._exit(0)


def save(folder: Path, files: Files) -> None:
    """Put files into a folder as a model is saved."""
    with replacing(folder) as scratch:
        for name, text in files.items():
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    """What is saved in a folder, without what was never saved and the lists."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    shown = {name: path for name, path in found.items() if not any(part[0] == "." for part in Path(name).parts)}
    return {name: path.read_text() for name, path in shown.items() if name not in FOREIGN and name != LIST}


def check(folder: Path, old: Files, new: Files) -> str:
    """Which of the two saves is there; an error if that is neither of them."""
    found = read(whole(folder))
    assert found in (dict(old), dict(new)), f"neither the old nor the new save: {found}"
    seen = set(read(folder).values())
    assert len({text.split()[0] for text in seen}) <= 1, f"old and new files side by side: {seen}"
    assert all((folder / name).read_text() == text for name, text in FOREIGN.items())
    return "old" if found == old else "new"


def is_clean(folder: Path) -> bool:
    """Whether nothing of a save that was cut short is left."""
    return not [path for path in folder.rglob("*") if path.name == READY or path.name.startswith(UNFINISHED)]


def run(n: int, seed: int, folder: Path | None = None) -> dict[str, int]:
    """`n` kills, half of them at system calls in turn; each is followed by another, or by a save that ends.

    Returns:
        `killed`, `old` and `new` (which save was there after a kill), `ended` (saves that came to their end before it),
        `mixed` (always 0: it would be an error).
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return run(n, seed, Path(temporary))
    draw, counts = random.Random(seed), Counter[str](killed=0, old=0, new=0, ended=0, mixed=0)
    for name, text in FOREIGN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    now, number, call = _drawn(draw, 0), 0, 0
    save(folder, now)
    while counts["killed"] < n:
        number += 1
        then = _drawn(draw, number)
        if draw.random() < 0.5:
            was_killed = killed_at_call(call, lambda: save(folder, then))  # noqa: B023 - called at once
            call = call + 1 if was_killed else 0
        else:
            was_killed = killed_after(draw.uniform(0, 0.01), lambda: save(folder, then))  # noqa: B023
        which = check(folder, now, then)
        now = then if which == "new" else now
        counts["killed" if was_killed else "ended"] += 1
        if was_killed:
            counts[which] += 1
        if draw.random() < 0.3:
            number += 1
            now = _drawn(draw, number)
            save(folder, now)
            assert read(folder) == now and is_clean(folder), "a save that ends leaves something of one that was killed"
    return dict(counts)


def _drawn(draw: random.Random, number: int) -> dict[str, str]:
    """Some of the names, all with the number of their save, which is what tells saves apart."""
    names = draw.sample(NAMES, draw.randint(1, len(NAMES)))
    return {name: f"{number} {name}" for name in sorted(names)}


if __name__ == "__main__":
    print(run(400, 0))
