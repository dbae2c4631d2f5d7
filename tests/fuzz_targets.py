"""Folders and command lines that others wrote, and with FileTargets all that is tried."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_files import FileTargets
from fuzz_inputs import GRID, RECORDS, SUITES, files_of, make_suite, used_suite
from fuzzing import (
    AGAIN,
    NAMES,
    PATIENCE,
    SECONDS,
    Case,
    Hang,
    Sandbox,
    Tally,
    as_json,
    broken,
    edited,
    edits,
    fraction,
    mutations,
    safetensors_file,
    safetensors_parts,
    silence,
    time_limit,
)
from hypothesis import strategies as st

COMMANDS = [
    ("effects", "--task", "antonym"), ("vector", "vector.safetensors"), ("vector", "--effects", "effects.safetensors"),
    ("steer", "--text", "big", "--vector", "vector.safetensors"), ("tune", "--task", "task.json", "--out", "tuned"),
    ("bench", "--out", "bench"), ("sweep", "grid.toml", "--store", "new", "--dry-run"), ("store", "ls", "store"),
    ("store", "verify", "store"), ("store", "gc", "store"), ("store", "export", "store", "--out", "all.csv"),
    ("figures", "store"), ("pocket",), ("tasks",), ("tasks", "check", "task.json"), ("tasks", "show", "antonym"), (),
]  # fmt: skip
TRICKS = ["link", "folder", "gone", "name", "fifo"]


class Targets(FileTargets):
    """Everything that reads what others wrote, each as a strategy of inputs and a function that tries one.

    Args:
        sandbox: Where.
        store: A store with some results, copied for every case.
        checkpoint: Folder of a small model.
        adapters: Folder of adapters that belong to it.
        files: Of `FileTargets`.
    """

    def __init__(self, sandbox: Sandbox, store: Path, *, checkpoint: Path, adapters: Path, **files: Any) -> None:
        super().__init__(sandbox, **files)
        self._store, self._checkpoint, self._adapters = store, checkpoint, adapters

    def all(self) -> dict[str, tuple[st.SearchStrategy[Any], Case]]:
        """By name."""
        word = st.one_of(st.sampled_from(self._words()), st.text(max_size=8), st.sampled_from(NAMES))
        words = st.tuples(
            st.one_of(st.sampled_from(COMMANDS), word.map(lambda one: (one,))), st.lists(word, max_size=6)
        )
        files = st.sampled_from(sorted(path.relative_to(self._store).as_posix() for path in files_of(self._store)))
        tricks, suites = st.sampled_from(TRICKS), st.sampled_from(sorted(SUITES))
        parts, weights = (st.sampled_from(names) for names in (_parts(self._checkpoint), _parts(self._adapters)))
        some, whole = st.one_of(mutations, edits), st.booleans()
        return self.files() | {
            "suite, bytes": (st.tuples(suites, fraction, mutations, whole), self.suite_bytes),
            "suite, content": (st.tuples(suites, fraction, edits, whole), self.suite_content),
            "suite, tricks": (st.tuples(suites, fraction, tricks, st.sampled_from(NAMES)), self.suite_tricks),
            "store, bytes": (st.tuples(files, mutations), self.store_bytes),
            "store, content": (st.tuples(files, edits), self.store_content),
            "store, tricks": (st.tuples(files, tricks, st.sampled_from(NAMES)), self.store_tricks),
            "checkpoint": (st.tuples(parts, some), self.checkpoint),
            "adapters": (st.tuples(weights, some, whole), self.adapters),
            "command line": (words, self.command_line),
        }

    def suite_bytes(self, drawn: tuple[str, float, Any, bool]) -> None:
        suite, which, how, partial = drawn
        path = self._suite_file(suite, which)
        path.write_bytes(broken(path.read_bytes(), how))
        self._tried("suite, bytes", lambda: used_suite(suite, self._sandbox.target / "suite", partial=partial))

    def suite_content(self, drawn: tuple[str, float, Any, bool]) -> None:
        suite, which, how, partial = drawn
        path = self._suite_file(suite, which)
        path.write_bytes(as_json(edited(json.loads(path.read_bytes()), how)))
        self._tried("suite, content", lambda: used_suite(suite, self._sandbox.target / "suite", partial=partial))

    def suite_tricks(self, drawn: tuple[str, float, str, str]) -> None:
        suite, which, trick, other = drawn
        self._played(self._suite_file(suite, which), trick, other)
        self._tried("suite, tricks", lambda: used_suite(suite, self._sandbox.target / "suite", partial=False))

    def _suite_file(self, suite: str, which: float) -> Path:
        self._sandbox.empty()
        files = files_of(make_suite(suite, self._sandbox.target / "suite"))
        return files[int(which * len(files))]

    def _played(self, path: Path, trick: str, other: str) -> None:
        """Something else in a file's place, or a file of a strange name beside it."""
        path.unlink()
        with contextlib.suppress(OSError, ValueError):
            if trick == "link":
                path.symlink_to(self._sandbox.root / "sentinel")
            elif trick == "folder":
                path.mkdir()
            elif trick == "fifo":
                os.mkfifo(path)
            elif trick == "name":
                (path.parent / other).write_text("x")

    def store_bytes(self, drawn: tuple[str, Any]) -> None:
        path = self._copied_store() / drawn[0]
        path.write_bytes(broken(path.read_bytes(), drawn[1]))
        self._used_store("store, bytes")

    def store_content(self, drawn: tuple[str, Any]) -> None:
        from ivlens.common.store.entries import _seal

        path = self._copied_store() / drawn[0]
        manifest = path.parent / "manifest.json"
        if not manifest.exists():
            path.write_bytes(as_json(edited(json.loads(path.read_text()), drawn[1])))
        else:
            about = edited(json.loads(manifest.read_text()), drawn[1])
            if isinstance(about, dict):
                about.pop("seal", None)
                with contextlib.suppress(ValueError):
                    about["seal"] = _seal(about)  # as someone would who knows how
            manifest.write_bytes(as_json(about))
        self._used_store("store, content")

    def store_tricks(self, drawn: tuple[str, str, str]) -> None:
        self._played(self._copied_store() / drawn[0], *drawn[1:])
        self._used_store("store, tricks")

    def _copied_store(self) -> Path:
        self._sandbox.empty()
        return Path(shutil.copytree(self._store, self._sandbox.target / "store"))

    def _used_store(self, name: str) -> None:
        from ivlens.common.store import Store, collect_garbage, verify

        good = {path.name for path in (self._store / "entries").glob("*/*")}

        def use() -> Any:
            store = Store(self._sandbox.target / "store")
            whole, findings = verify(store)
            assert whole + sum(finding.what.startswith("damaged") for finding in findings) == len(store.places())
            served = {entry.key for entry in store.entries()}
            store.frame()
            store.failures()
            collect_garbage(store)
            assert verify(store) == (len(served), []) and len(good & served) >= len(good) - 1
            return None if good <= served else AGAIN

        self._tried(name, use)

    def checkpoint(self, drawn: tuple[str, Any]) -> None:
        from ivlens.models import load_model

        folder = self._broken_copy(self._checkpoint, *drawn)
        self._tried("checkpoint", lambda: load_model(folder))

    def adapters(self, drawn: tuple[str, Any, bool]) -> None:
        import torch

        from ivlens.models import load_model

        folder = self._broken_copy(self._adapters, *drawn[:2])

        def use() -> None:
            model = load_model(folder, base=self._checkpoint if drawn[2] else None)
            assert model(torch.tensor([[1, 2, 3]])).isfinite().all()

        self._tried("adapters", use)

    def _broken_copy(self, good: Path, name: str, how: Any) -> Path:
        self._sandbox.empty()
        folder = Path(shutil.copytree(good, self._sandbox.target / "model"))
        path = folder / name
        if isinstance(how[0][0], str):
            path.write_bytes(broken(path.read_bytes(), how))
        elif path.suffix == ".json":
            path.write_bytes(as_json(edited(json.loads(path.read_bytes()), how)))
        else:
            header, tensors = safetensors_parts(path.read_bytes())
            path.write_bytes(safetensors_file(edited(header, how), tensors))
        return folder

    def _words(self) -> list[str]:
        here = self._sandbox.target
        files = [str(here / name) for name in ("task.json", "vector.safetensors", "grid.toml", "store", "nowhere")]
        options = [
            "--task", "--model", "--out", "--store", "--json", "--k", "--n-prompts", "--score", "--layer", "--alpha",
            "--kind", "--dry-run", "--method", "--guidance", "--seed", "--help", "--version", "--debug", "--lr=nan",
            "--effects", "--vector", "--text", "--workers", "--scheduler", "--suite", "--data", "--top", "-1", "1e999",
        ]  # fmt: skip
        # a model that is not there: nothing is computed, all that is before that is reached
        return [*files, *options, str(here / "no-model"), "./no-model", "antonym"]

    def command_line(self, words: tuple[tuple[str, ...], list[str]]) -> None:
        from ivlens.cli.main import main

        self._copied_store()
        self._write("task.json", as_json(RECORDS))
        self._write("grid.toml", GRID.encode())
        self._write("vector.safetensors", self._safetensors["vector"])
        self._write("effects.safetensors", self._safetensors["effects"])
        command = [
            word for word in (*words[0], *words[1]) if word not in ("doctor", "--debug", "demo", "train", "card")
        ]
        if command[:1] in (["effects"], ["steer"], ["tune"], ["bench"]) or "--effects" in command:
            command += ["--model", str(self._sandbox.target / "no-model")]

        def use() -> None:
            os.chdir(self._sandbox.target)
            status = main(command)
            assert status in (0, 1, 2), f"status {status}"
            if status:
                raise ValueError(f"status {status} of the command line")

        here = Path.cwd()
        try:
            self._tried_command(use)
        finally:
            os.chdir(here)

    def _tried_command(self, use: Callable[[], None]) -> None:
        """As `_tried`; an error that gets out of `main` is a fault whoever raises it."""
        tally = self.tallies.setdefault("command line", Tally())
        try:
            with time_limit(), silence():
                use()
            tally.results += 1
        except Hang:
            raise AssertionError(f"not finished after {SECONDS} s of computing, or {PATIENCE} s") from None
        except ValueError as error:
            assert "of the command line" in str(error), f"{error!r:.300}"
            tally.refused["status"] += 1
        self._sandbox.check()


def _parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
