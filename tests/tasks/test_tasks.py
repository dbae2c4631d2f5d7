import json
import logging
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ivlens.tasks import Task, TaskExample, hash_of_tasks, list_tasks, load_bank, load_task, split_of


def make_task(n: int = 40, **fields: object) -> Task:
    return replace(Task("toy", tuple(TaskExample(f"in {i}", (f"out {i}",)) for i in range(n))), **fields)


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# --- examples and tasks ----------------------------------------------------------------------------------------------


def test_the_first_answer_is_the_answer() -> None:
    assert TaskExample("happy", ("sad", "unhappy")).answer == "sad"


@pytest.mark.parametrize("answers", [(), ("",), ("sad", "  ")])
def test_an_example_needs_answers(answers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="'happy' has answers .* expected one or more"):
        TaskExample("happy", answers)


def test_a_task_needs_distinct_examples() -> None:
    with pytest.raises(ValueError, match="'toy' has no examples"):
        Task("toy", ())
    with pytest.raises(ValueError, match="'toy' lists 1 inputs twice.*merge"):
        Task("toy", (TaskExample("a", ("b",)), TaskExample("a", ("c",))))


def test_find_takes_the_exact_input() -> None:
    task = make_task()
    assert task.find("in 7") is task.examples[7]
    assert task.find("In 7") is None
    assert pickle.loads(pickle.dumps(task)).find("in 7") == task.examples[7]


def test_repr_is_short() -> None:
    assert repr(make_task()) == "Task('toy', 40 examples, 0 instructions)"


# --- splits ----------------------------------------------------------------------------------------------------------


def test_splits_partition_the_examples() -> None:
    task = make_task(400)
    sides = [task.split(name) for name in ("fit", "select", "test")]
    assert sorted(e.input for side in sides for e in side) == sorted(e.input for e in task.examples)
    assert [round(len(side) / 400, 1) for side in sides] == [0.5, 0.2, 0.3]


def test_the_side_depends_on_seed_and_input_alone() -> None:
    task = make_task(60)
    other = Task("other", tuple(TaskExample(e.input, ("another answer",)) for e in reversed(task.examples[:50])))
    for seed in (0, 1):
        assert {e.input for e in other.split("test", seed)} <= {e.input for e in task.split("test", seed)}
    assert task.split("fit", 0) == task.split("fit", 0) != task.split("fit", 1)
    # Written down: saved results name their split by the seed alone.
    assert [split_of(word) for word in ("big", "small", "tall", "happy")] == ["fit", "fit", "fit", "select"]


def test_a_wrong_or_empty_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="Split 'train' is unknown, expected one of fit, select, test"):
        make_task().split("train")
    task = make_task(1)
    empty = next(name for name in ("select", "test") if name != split_of("in 0"))
    with pytest.raises(ValueError, match=f"'{empty}' of task 'toy' is empty: none of its 1 examples"):
        task.split(empty)


# --- content hash ----------------------------------------------------------------------------------------------------


def test_content_hash_covers_what_enters_prompts() -> None:
    task = make_task(instructions=("Do it.",))
    same = replace(
        task,
        name="renamed",
        source="elsewhere",
        skipped=("record 3",),
        held_out_instructions=("Do it now.",),
        clozes=("The {x} is",),
        prose=("{x} is {y}.",),
        examples=tuple(replace(example, part="train") for example in task.examples),
        demonstrations=task.examples[:1],
    )
    assert task.content_hash() == same.content_hash() == make_task(instructions=("Do it.",)).content_hash()
    changed = [
        replace(task, instructions=("Do that.",)),
        replace(task, fused=True),
        replace(task, examples=task.examples[::-1]),
        replace(task, examples=(TaskExample("in 0", ("other",)), *task.examples[1:])),
    ]
    assert len({task.content_hash(), *(other.content_hash() for other in changed)}) == 5
    full = [
        replace(task, **{name: getattr(same, name)}) for name in ("name", "held_out_instructions", "clozes", "prose")
    ]
    full += [replace(task, **{name: getattr(same, name)}) for name in ("examples", "demonstrations")]
    assert len({task.full_hash(), *(other.full_hash() for other in (*full, *changed))}) == 11
    assert replace(task, source="elsewhere", skipped=("record 3",)).full_hash() == task.full_hash()


def test_hash_of_tasks() -> None:
    one, two = make_task(), replace(make_task(), name="two")
    assert hash_of_tasks([one, two]) == hash_of_tasks(iter([two, one]))
    others = [[one], [one, replace(two, fused=True)], [one, replace(two, in_training=True)]]
    assert len({hash_of_tasks(tasks) for tasks in ([one, two], *others)}) == 4


# --- the bank by name ------------------------------------------------------------------------------------------------


def test_bank_tasks_load_by_name() -> None:
    task = load_task("antonym")
    assert task is load_bank()["antonym"]
    assert task.examples[0] == task.find("big") and task.examples[0].answer == "small"
    assert task.source == "ivlens bank: antonym"
    assert task.in_training and task.inputs == "words" and len(task.held_out_instructions) == 2


def test_list_tasks_filters() -> None:
    names = list_tasks()
    assert names == sorted(names) == list(load_bank())
    assert "antonym" in list_tasks(group="words", in_training=True)
    assert set(list_tasks(in_training=True)) | set(list_tasks(in_training=False)) == set(names)
    with pytest.raises(ValueError, match="Group 'word' is unknown, expected one of .*words"):
        list_tasks(group="word")


def test_the_bank_cannot_be_changed_through_what_load_bank_returns() -> None:
    load_bank().clear()
    assert "antonym" in load_bank()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("antonim", "did you mean 'antonym'"),
        ("Antonym", "did you mean 'antonym'"),
        ("zzz", r"list_tasks\(\) names all"),
    ],
)
def test_an_unknown_name_suggests_a_near_one(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"Task '{name}' is unknown, expected a built-in name.*{hint}"):
        load_task(name)


def test_a_bank_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'antonym' does not exist.*by its name as a string"):
        load_task(Path("antonym"))
    write(tmp_path / "antonym", {"one": "1", "two": "2"})
    assert len(load_task("antonym")) > 100
    assert len(load_task("./antonym")) == len(load_task(Path("antonym"))) == 2


def test_a_bank_task_has_no_columns() -> None:
    with pytest.raises(ValueError, match="options, which built-in tasks do not have.*'./antonym'"):
        load_task("antonym", part="test")


# --- cleaning --------------------------------------------------------------------------------------------------------


def test_records_without_answer_are_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [{"input": f"w{i}", "output": answer} for i, answer in enumerate(["a", "", None, [], ["", "b"], "  "])]
    path = write(tmp_path / "t.json", [*records, {"input": " ", "output": "c"}])
    with caplog.at_level(logging.WARNING, logger="ivlens"):
        task = load_task(path)
    assert [(e.input, e.answers) for e in task.examples] == [("w0", ("a",)), ("w4", ("b",))]
    assert len(task.skipped) == 5
    assert task.skipped[0] == "record 1: no answer ('w1')" and "no input" in task.skipped[-1]
    assert len(caplog.records) == 1 and "5 of 7 records left out" in caplog.text and "record 1" in caplog.text


def test_all_empty_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", [{"input": "a", "output": ""}, {"input": "b", "output": None}])
    with pytest.raises(
        ValueError, match="all 2 records lack an answer.*record 0.*expected at least one.*output_column="
    ):
        load_task(path)


def test_reading_leaves_the_garbage_collector_as_it_was(tmp_path: Path) -> None:
    import gc

    path = write(tmp_path / "t.json", {"a": "b"})
    for broken in (False, True):
        for is_running in (True, False):
            gc.enable() if is_running else gc.disable()
            try:
                load_task(tmp_path / "none.json" if broken else path)
            except FileNotFoundError:
                pass
            finally:
                was_running = gc.isenabled()
                gc.enable()
            assert was_running == is_running


def test_repeated_inputs_become_alternatives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [("happy", "sad"), ("big", "small"), ("happy", ["unhappy", "sad"]), ("big", "small")]
    path = write(tmp_path / "t.json", [{"input": x, "output": y} for x, y in pairs])
    with caplog.at_level(logging.INFO, logger="ivlens"):
        task = load_task(path)
    assert [(e.input, e.answers) for e in task.examples] == [("happy", ("sad", "unhappy")), ("big", ("small",))]
    assert "2 repeated inputs merged" in caplog.text
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING], "nothing is lost"


def test_tasks_need_neither_torch_nor_datasets() -> None:
    code = "import sys, ivlens.tasks as t; t.load_bank(); print({'torch', 'datasets', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
