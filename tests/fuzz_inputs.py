"""Good input, to be broken: task files, grids, folders of suites."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from fuzzing import DEEP, as_json

sys.path += [str(Path(__file__).parent / "runs"), str(Path(__file__).parent / "tasks")]
from test_suites import long_folder, ni_file, trace_folder
from writers import HOLDERS, ROWS, can_hold

RECORDS = [{"input": f"word{n}", "output": [f"answer{n}", "other"]} for n in range(5)]
NATURAL = {
    "Definition": ["Say the opposite."],
    "Positive Examples": [{"input": "big", "output": "small", "explanation": ""}],
    "Negative Examples": [],
    "Instances": [{"id": f"task-{n}", "input": f"in {n}", "output": [f"out {n}"]} for n in range(4)],
}
BANK = {
    "name": "mine", "kind": "rule", "inputs": "words", "in_training": False, "instructions": ["Do it.", "Do it now."],
    "clozes": ["{x} is"], "examples": [{"input": f"w{n}", "output": "x"} for n in range(4)],
}  # fmt: skip
TASK_FILES: dict[str, Any] = {
    "records.json": RECORDS,
    "pairs.json": {"big": "small", "hot": "cold", "a": ["b", "c"]},
    "natural.json": NATURAL,
    "bank.json": BANK,
    "labels.json": [{"label": "yes", "sentence": f"text {n}"} for n in range(4)],
    "prompts.json": [{"prompt": f"Do {n}", "answer": "x"} for n in range(4)],
}
PAIRS = [("big", "small"), ("hot", "cold"), ('a "b"', "c, d"), ("ä\u202e", "1")]
FORMATS = [(holder, rows) for holder in HOLDERS for rows in ROWS if can_hold(holder, rows)]
TASK_FILES |= {f"{name}.json": written.rows(PAIRS) for name, written in ROWS.items()}
TASK_FILES |= {
    "parts.json": {"train": RECORDS[:2], "test": RECORDS[2:]},
    "columns.json": {"text": ["a", "b"], "label": ["c", True]},
    "wrapped.json": {"version": 1, "data": RECORDS},
    "squad tree.json": {
        "version": "2.0",
        "data": [{"title": "T", "paragraphs": [{"context": "C.", "qas": [
            {"question": "Q?", "id": "1", "answers": [{"text": "A", "answer_start": 0}], "is_impossible": False},
        ]}]}],
    },
}  # fmt: skip
GRID = """models = ["pocket"]
tasks = ["antonym"]
seeds = [0, 1]
threads = 1
[effects]
n_prompts = [4, 8]
score = "prob"
[[interventions]]
alphas = [1.0, 2.0]
layers = [0]
[[tuning]]
watch = ["antonym"]
lr = 1e-3
guidance = "kl"
"""


SUITES = {  # names, and the tasks that a folder has
    "trace": ["FOMC", "NumGLUE-cm"],
    "long": ["CB", "AG News"],
    "func": ["pairs", "records"],
    "ni-c1": ["task195", "task363"],
}


def make_suite(suite: str, root: Path) -> Path:
    """Two of its tasks, as they are published."""
    root.mkdir(parents=True)
    if suite == "trace":
        return trace_folder(root, SUITES[suite])
    if suite == "long":
        return long_folder(root, SUITES[suite])
    for name in SUITES[suite]:
        if suite == "func":
            (root / f"{name}.json").write_bytes(as_json(RECORDS))
        else:
            ni_file(root, int(name[4:]), ["yes", "no", "yes", "no"])
    return root


def used_suite(suite: str, root: Path, *, partial: bool) -> None:
    """Load it, divide its tasks, score an answer."""
    from ivlens.runs.suites import load_suite, split_examples

    loaded = load_suite(suite, root, order=SUITES[suite], partial=partial)
    assert partial or len(loaded.tasks) == len(SUITES[suite])
    for task in loaded.tasks:
        for side in ("train", "select", "test"):
            for example in split_examples(task, side):
                assert 0 <= loaded.score(task.name, example.answer, example.answers) <= 1


def files_of(folder: Path) -> list[Path]:
    """All that may be broken, sorted."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]


def table_of(kind: str) -> bytes:
    """A small task as a table."""
    import pandas as pd

    frame = pd.DataFrame({"input": [f"w{n}" for n in range(6)], "output": [f"a, {n}" for n in range(6)]})
    if kind == "csv":
        return frame.to_csv(index=False).encode()
    if kind == "jsonl":
        return frame.to_json(orient="records", lines=True).encode()
    return frame.to_parquet(index=False)


def format_of(holder: str, rows: str) -> bytes:
    """A small task in one of all formats."""
    return HOLDERS[holder](ROWS[rows].rows(PAIRS))


def used_task(path: Path) -> Any:
    """Load it, look at it, and return its examples."""
    from ivlens.tasks import check_task

    found = check_task(path)
    task = found.task
    repr((task, task.content_hash(), str(found), json.dumps(found.to_dict())))
    assert all(example.answers and example.input.strip() for example in task.examples)
    assert found.n_merged >= 0 and len(task) + found.n_merged + len(task.skipped) == found.n_records
    return task.examples


def as_toml(values: dict[str, Any]) -> str:
    """Plain values as TOML, as far as it can hold them."""
    plain, tables = [], []
    for key, value in values.items():
        name = json.dumps(key)
        if isinstance(value, dict):
            tables.append(f"[{name}]\n{as_toml({k: v for k, v in value.items() if not isinstance(v, dict)})}")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            tables += [f"[[{name}]]\n{as_toml(item)}" for item in value]
        else:
            plain.append(f"{name} = {_toml_value(value)}")
    return "\n".join([*plain, *tables]) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}[str(value)]
    if value == DEEP:
        return "[" * 5000 + "]" * 5000
    return '""' if value is None else json.dumps(value)
