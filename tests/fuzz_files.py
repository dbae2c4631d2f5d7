"""Files that others wrote, one at a time: tasks, vectors, effects, grids, states of trainings, kept cells."""

import gzip
import json
import math
import shutil
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from fuzz_inputs import FORMATS, GRID, TASK_FILES, as_toml, format_of, table_of, used_task
from fuzzing import (
    AGAIN,
    NAMES,
    NUMBERS,
    Case,
    Sandbox,
    Tally,
    as_json,
    attempt,
    broken,
    edited,
    edits,
    fraction,
    mutations,
    safetensors_file,
    safetensors_parts,
)
from hypothesis import strategies as st

from ivlens.common.store.entries import MANIFEST, _seal
from ivlens.runs.suites.keeping import RESULT_FILE


def zstd(content: bytes) -> bytes:
    """Packed by zstd."""
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


class FileTargets:
    """Everything that reads one file, each as a strategy of inputs and a function that tries one.

    Args:
        sandbox: Where.
        vector, effects, stage: Files that ivlens wrote.
        grid: A grid of a benchmark, with `cell` kept in its folder.
    """

    def __init__(self, sandbox: Sandbox, *, vector: Path, effects: Path, stage: Path, grid: Any, cell: Any) -> None:
        self._sandbox, self._stage = sandbox, stage.read_bytes()
        self._safetensors = {"vector": vector.read_bytes(), "effects": effects.read_bytes()}
        self._grid, self._cell = grid, cell
        entry = grid.store.find(grid.what(cell))
        self._kept, self._whole, self._place = entry.path(RESULT_FILE).read_bytes(), grid.kept(cell), entry.folder
        self._saved = Path(shutil.copytree(entry.folder, grid.folder / "saved"))
        self.tallies: dict[str, Tally] = {}

    def files(self) -> dict[str, tuple[st.SearchStrategy[Any], Case]]:
        """By name."""
        names = st.sampled_from(sorted(TASK_FILES))
        kinds, numbers = st.sampled_from(sorted(self._safetensors)), st.sampled_from(NUMBERS)
        return {
            "task file, bytes": (st.tuples(names, mutations), self.task_bytes),
            "task file, content": (st.tuples(names, edits), self.task_content),
            "task table, bytes": (st.tuples(st.sampled_from(["csv", "jsonl", "parquet"]), mutations), self.task_table),
            "task formats, bytes": (st.tuples(st.sampled_from(FORMATS), mutations), self.task_formats),
            "task formats, packed": (st.tuples(names, edits, mutations, st.booleans()), self.task_packed),
            "task folder": (st.tuples(names, mutations, st.booleans(), edits), self.task_folder),
            "task and model names": (st.one_of(st.text(), st.sampled_from(NAMES)), self.names),
            "vector and effects, bytes": (st.tuples(kinds, mutations), self.artefact_bytes),
            "vector and effects, header": (st.tuples(kinds, edits), self.artefact_header),
            "vector and effects, content": (st.tuples(kinds, edits), self.artefact_content),
            "vector and effects, numbers": (st.tuples(kinds, numbers, fraction), self.artefact_numbers),
            "grid, bytes": (mutations, self.grid_bytes),
            "grid, content": (edits, self.grid_content),
            "training state": (st.one_of(mutations, edits), self.training_state),
            "stage": (st.one_of(mutations, edits), self.stage),
            "kept cell, bytes": (mutations, self.cell_bytes),
            "kept cell, content": (edits, self.cell_content),
        }

    def _tried(self, name: str, call: Callable[[], Any]) -> None:
        attempt(call, self.tallies.setdefault(name, Tally()))
        self._sandbox.check()

    def _write(self, name: str, data: bytes) -> Path:
        path = self._sandbox.target / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)
        return path

    def task_bytes(self, drawn: tuple[str, Any]) -> None:
        path = self._write("task.json", broken(as_json(TASK_FILES[drawn[0]]), drawn[1]))
        self._tried("task file, bytes", lambda: used_task(path))

    def task_content(self, drawn: tuple[str, Any]) -> None:
        path = self._write("task.json", as_json(edited(TASK_FILES[drawn[0]], drawn[1])))
        self._tried("task file, content", lambda: used_task(path))

    def task_table(self, drawn: tuple[str, Any]) -> None:
        path = self._write(f"task.{drawn[0]}", broken(table_of(drawn[0]), drawn[1]))
        self._tried("task table, bytes", lambda: used_task(path))

    def task_formats(self, drawn: tuple[tuple[str, str], Any]) -> None:
        path = self._write("task", broken(format_of(*drawn[0]), drawn[1]))
        self._tried("task formats, bytes", lambda: used_task(path))

    def task_packed(self, drawn: tuple[str, Any, Any, bool]) -> None:
        """What is packed is broken, not how; it gives the same task as without the packing."""
        name, edit, accident, is_whole = drawn
        content = as_json(edited(TASK_FILES[name], edit))
        content = content if is_whole else broken(content, accident)
        path = self._write("task", (gzip.compress if is_whole else zstd)(content))
        plain = self._write("plain", content)

        def use() -> None:
            assert used_task(path) == used_task(plain)

        self._tried("task formats, packed", use)

    def task_folder(self, drawn: tuple[str, Any, bool, Any]) -> None:
        self._sandbox.empty()
        good = TASK_FILES[drawn[0]]
        self._write("task/train.json", as_json(good) if drawn[2] else broken(as_json(good), drawn[1]))
        self._write("task/test.json", as_json(edited(good, drawn[3]) if drawn[2] else good))
        self._write("task/labels.json", as_json(["yes", "no"]))
        self._tried("task folder", lambda: used_task(self._sandbox.target / "task"))

    def names(self, name: str) -> None:
        from ivlens.models import load_model
        from ivlens.tasks import load_task

        self._tried("task and model names", lambda: load_task(name))
        if name != "pocket":
            self._tried("task and model names", lambda: load_model(name))

    def artefact_bytes(self, drawn: tuple[str, Any]) -> None:
        self._artefact("vector and effects, bytes", drawn[0], broken(self._safetensors[drawn[0]], drawn[1]))

    def artefact_header(self, drawn: tuple[str, Any]) -> None:
        header, tensors = safetensors_parts(self._safetensors[drawn[0]])
        self._artefact("vector and effects, header", drawn[0], safetensors_file(edited(header, drawn[1]), tensors))

    def artefact_content(self, drawn: tuple[str, Any]) -> None:
        header, tensors = safetensors_parts(self._safetensors[drawn[0]])
        about = edited(json.loads(header["__metadata__"]["ivlens"]), drawn[1])
        header["__metadata__"]["ivlens"] = as_json(about).decode()
        self._artefact("vector and effects, content", drawn[0], safetensors_file(header, tensors))

    def artefact_numbers(self, drawn: tuple[str, Any, float]) -> None:
        header, tensors = safetensors_parts(self._safetensors[drawn[0]])
        try:
            number = struct.pack("<f", float(drawn[1]))
        except OverflowError:
            number = struct.pack("<f", math.inf)
        at = int(drawn[2] * len(tensors)) // 4 * 4
        data = tensors[:at] + number + tensors[at + 4 :]
        self._artefact("vector and effects, numbers", drawn[0], safetensors_file(header, data))

    def _artefact(self, name: str, kind: str, data: bytes) -> None:
        from ivlens.effects import HeadEffects
        from ivlens.vectors import InstructionVector

        path = self._write(f"{kind}.safetensors", data)

        def use() -> None:
            if kind == "vector":
                made = InstructionVector.load(path)
                made.save(self._sandbox.target / "again.safetensors")
                repr((2.0 * made, made.norm, made.random_like(0)))
            else:
                found = HeadEffects.load(path)
                repr((found, found.to_frame()))

        self._tried(name, use)

    def grid_bytes(self, drawn: Any) -> None:
        from ivlens.runs.sweep import read_grid

        path = self._write("grid.toml", broken(GRID.encode(), drawn))
        self._tried("grid, bytes", lambda: read_grid(path))

    def grid_content(self, drawn: Any) -> None:
        import tomllib

        from ivlens.runs.sweep import read_grid

        value = edited(tomllib.loads(GRID), drawn)
        path = self._write(
            "grid.toml", as_toml(value if isinstance(value, dict) else {"x": value}).encode("utf-8", "replace")
        )
        self._tried("grid, content", lambda: read_grid(path))

    def training_state(self, drawn: Any) -> None:
        import torch

        from ivlens.tuning.training.state import TrainingState

        self._sandbox.empty()
        weight = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = torch.optim.AdamW([weight])
        weight.grad = torch.ones(3, 2)
        optimizer.step()
        state = TrainingState(self._sandbox.target, {"seed": 0}, {"w": weight}, optimizer)
        state.save([{"step": 1, "loss": 0.5}])
        path = self._sandbox.target / "state.safetensors"
        data = path.read_bytes()
        if isinstance(drawn[0][0], str):
            path.write_bytes(broken(data, drawn))
        else:
            header, tensors = safetensors_parts(data)
            header["__metadata__"]["ivlens"] = as_json(
                edited(json.loads(header["__metadata__"]["ivlens"]), drawn)
            ).decode()
            path.write_bytes(safetensors_file(header, tensors))
        self._tried("training state", state.restore)

    def stage(self, drawn: Any) -> None:
        from ivlens.analysis.dynamics import Stage

        if isinstance(drawn[0][0], str):
            data = broken(self._stage, drawn)
        else:
            header, tensors = safetensors_parts(self._stage)
            about = edited(json.loads(header["__metadata__"]["ivlens"]), drawn)
            header["__metadata__"]["ivlens"] = as_json(about).decode()
            data = safetensors_file(header, tensors)
        path = self._write("stage.safetensors", data)
        self._tried("stage", lambda: [Stage.load(path).vector(name) for name in Stage.load(path).tasks])

    def cell_bytes(self, drawn: Any) -> None:
        """The file alone is changed."""
        self._used_cell("kept cell, bytes", broken(self._kept, drawn), None)

    def cell_content(self, drawn: Any) -> None:
        """The file is changed, and its checksum in the manifest, as someone would who knows how."""
        data = as_json(edited(json.loads(self._kept), drawn))
        about = json.loads((self._saved / MANIFEST).read_text())
        about.pop("seal")
        about["files"][RESULT_FILE] = [sha256(data).hexdigest(), len(data)]
        self._used_cell("kept cell, content", data, about | {"seal": _seal(about)})

    def _used_cell(self, name: str, data: bytes, manifest: dict[str, Any] | None) -> None:
        from ivlens.runs.suites import summary
        from ivlens.runs.suites.report import cell_frame, curve_frame, score_frame

        shutil.rmtree(self._place, ignore_errors=True)
        shutil.rmtree(self._grid.store.folder / "damaged", ignore_errors=True)
        shutil.copytree(self._saved, self._place)
        (self._place / RESULT_FILE).write_bytes(data)
        if manifest is not None:
            (self._place / MANIFEST).write_text(json.dumps(manifest))

        def use() -> Any:
            kept = self._grid.kept(self._cell)
            if kept is None:
                return AGAIN
            assert kept.cell == self._cell and (name != "kept cell, bytes" or kept == self._whole), "a wrong result"
            for frame in (cell_frame, score_frame, summary):
                assert len(frame([kept]))
            assert len(curve_frame([kept])) == sum(map(len, kept.curves))
            return kept

        self._tried(name, use)
