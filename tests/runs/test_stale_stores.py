"""What was measured before a model or a task changed under its name is not what a store shows afterwards."""

import json
import os
import shutil
from pathlib import Path

import pytest
from sweeping import write_grid

from ivlens.common.store import Store, verify
from ivlens.models import pocket_path
from ivlens.runs.sweep import LocalExecutor, make_plan, read_grid, run_sweep

FEW = "[effects]\nn_prompts = 4\nn_mean_prompts = 8\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(pocket_path(), tmp_path / "model"))


def swept(folder: Path, store: str, task: str = "antonym") -> tuple[int, list[float]]:
    """How many cells a sweep makes, and the effects that the store then shows."""
    grid = write_grid(folder.parent, f'models = ["{folder}"]\ntasks = ["{task}"]\n{FEW}')
    opened = Store(folder.parent / store)
    executor = LocalExecutor(opened)
    n_made = run_sweep(make_plan(read_grid(grid), opened, executor), executor).n_made
    return n_made, opened.frame("effects")["aie"].tolist()


def edited(path: Path, **values: object) -> None:
    """Other content at the same time and, for the weights, of the same size."""
    about = path.stat()
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


CHANGES = {
    "config.json": {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
    "tokenizer.json": {"normalizer": {"type": "Replace", "pattern": {"String": "Output"}, "content": "Result"}},
    "model.safetensors": {},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "model.safetensors" else pytest.mark.slow) for name in CHANGES]
)
def test_a_changed_model_is_measured_anew(folder, name):
    n_made, before = swept(folder, "store")
    assert n_made == 1 and swept(folder, "store") == (0, before)
    original = (folder / name).read_bytes()
    edited(folder / name, **CHANGES[name])
    n_made, after = swept(folder, "store")
    assert n_made == 1 and after == swept(folder, "fresh")[1] and after != before
    (folder / name).write_bytes(original)
    assert swept(folder, "store") == (0, before), "the model is what it was, and so is the table"
    assert verify(Store(folder.parent / "store")) == (2, [])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_model_that_changed_while_it_was_warm_is_opened_anew(folder, name):
    """One process, one executor: as in a notebook."""
    grid = write_grid(folder.parent, f'models = ["{folder}"]\ntasks = ["antonym"]\n{FEW}')
    opened = Store(folder.parent / "store")
    executor = LocalExecutor(opened)
    made = []
    for _ in range(2):
        made.append(run_sweep(make_plan(read_grid(grid), opened, executor), executor).n_made)
        edited(folder / name, **CHANGES[name])
    assert made == [1, 1]


def test_a_changed_task_is_measured_anew(folder):
    task = folder.parent / "mine.json"
    rows = [{"input": word, "output": f"{word}s"} for word in "cat dog house tree car bird hand road".split() * 1]
    task.write_text(json.dumps({"instructions": ["Give the plural."], "examples": rows}))
    _, before = swept(folder, "store", str(task))
    task.write_text(json.dumps({"instructions": ["Say it twice."], "examples": rows}))
    n_made, after = swept(folder, "store", str(task))
    assert n_made == 1 and after != before and after == swept(folder, "fresh", str(task))[1]
