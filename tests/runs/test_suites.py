"""Every suite from folders as they are published, and one error that says all that is missing."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import ivlens.tasks.readers
from ivlens.runs.suites.suite import Suite, load_suite, split_examples, suite_names
from ivlens.tasks import Task, TaskExample, load_bank, split_of

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
real_files = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published task files are not at {SHARED}")

TRACE = ["C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"]
# as in O-LoRA's CL_Benchmark
LONG = {
    "Yelp": "SC/yelp", "Amazon": "SC/amazon", "DBpedia": "TC/dbpedia", "Yahoo": "TC/yahoo", "AG News": "TC/agnews",
    "MNLI": "NLI/MNLI", "QQP": "QQP/QQP", "RTE": "NLI/RTE", "SST-2": "SC/SST-2", "WiC": "WiC/WiC", "CB": "NLI/CB",
    "COPA": "COPA/COPA", "BoolQ": "BoolQA/BoolQA", "MultiRC": "MultiRC/MultiRC", "IMDB": "SC/IMDB",
}  # fmt: skip
NI = {
    "ni-c1": [195, 1343, 1310, 1292, 363],
    "ni-g1": [618, 1290, 589, 511, 1357],
    "ni-m1": [360, 363, 1290, 339, 1510],
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def trace_folder(root: Path, names: Iterable[str] = TRACE) -> Path:
    for name in names:
        for part in ("train", "eval", "test"):
            write(root / name / f"{part}.json", [{"prompt": f"{name} {part} {i}", "answer": "A"} for i in range(4)])
    return root


def long_folder(root: Path, names: Iterable[str] = LONG) -> Path:
    for name in names:
        for part in ("train", "test"):
            rows = [{"label": "good", "sentence": f"{name} {part} {i}"} for i in range(8)]
            write(root / LONG[name] / f"{part}.json", rows)
        write(root / LONG[name] / "labels.json", ["good", "bad"])
    return root


def ni_file(root: Path, number: int, answers: list[str]) -> Path:
    instances = [{"id": str(i), "input": f"input {i}", "output": [answer]} for i, answer in enumerate(answers)]
    return write(root / f"task{number}_some_name.json", {"Definition": ["Do it."], "Instances": instances})


def names_of(suite: Suite) -> list[str]:
    return [task.name for task in suite.tasks]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    read, paths = ivlens.tasks.readers.read_text, []
    monkeypatch.setattr(ivlens.tasks.readers, "read_text", lambda path: (paths.append(path), read(path))[1])
    return paths


# --- the built-in suite ----------------------------------------------------------------------------------------------


def test_pocket_has_each_task_once_at_each_place() -> None:
    bank = load_bank()
    kept_out = {name for name, task in bank.items() if not task.in_training}
    orders = [names_of(load_suite("pocket", order=at)) for at in range(5)]
    assert len(kept_out) == 5 and all(set(order) == kept_out for order in orders)
    assert all(set(place) == kept_out for place in zip(*orders, strict=True))
    followed = {pair for order in orders for pair in zip(order, order[1:], strict=False)}
    assert len(followed) == 15  # of 20; plain rotations have 5
    with pytest.raises(ValueError, match="got order=5, expected 0 to 4, or a list of task names"):
        load_suite("pocket", order=5)


def test_pocket_watches_what_its_model_was_trained_on() -> None:
    suite = load_suite("pocket")
    trained = {name for name, task in load_bank().items() if task.in_training}
    assert {task.name for task in suite.general} == trained and not suite.missing
    assert set(suite.metrics) == set(load_bank()) and set(suite.metrics.values()) == {"suite_accuracy"}
    assert [task.name for task in load_suite("pocket", general=["antonym"]).general] == ["antonym"]
    with pytest.raises(ValueError, match="has swap_pair twice, expected general tasks that are not trained"):
        load_suite("pocket", general=["swap_pair"])
    with pytest.raises(ValueError, match="got folder='somewhere', expected none, it is built in"):
        load_suite("pocket", "somewhere")


def test_case_counts_where_it_is_the_answer(tmp_path: Path) -> None:
    suite = load_suite("pocket")
    assert suite.score("uppercase", "happy", "HAPPY") == 0.0 and suite.score("uppercase", "HAPPY", ("HAPPY",)) == 1.0
    trace = load_suite("trace", trace_folder(tmp_path), n=3, general=["uppercase"])
    assert trace.score("C-STANCE", "a.", "A") == 1.0 and trace.score("uppercase", "happy", "HAPPY") == 0.0
    assert trace.score("MeetingBank", "a b", ["a c", "x"]) == 0.5
    with pytest.raises(ValueError, match="got task 'Py150', expected one of C-STANCE, FOMC, MeetingBank, uppercase"):
        trace.score("Py150", "a", "b")


# --- TRACE -----------------------------------------------------------------------------------------------------------


def test_trace_in_order_with_its_metrics(tmp_path: Path) -> None:
    suite = load_suite("trace", trace_folder(tmp_path))
    assert names_of(suite) == TRACE and suite.order == 0 and suite.source == str(tmp_path) and not suite.general
    whole, rouge = "suite_accuracy", "rouge_l"
    assert [suite.metrics[name] for name in TRACE] == [whole, whole, rouge, rouge, whole, whole, whole, rouge]
    for task in suite.tasks:
        assert task.fused
        for split, part in (("train", "train"), ("select", "eval"), ("test", "test")):
            assert [example.part for example in split_examples(task, split)] == [part] * 4


def test_folders_may_be_spelled_otherwise_and_lie_deeper(tmp_path: Path) -> None:
    trace_folder(tmp_path / "TRACE" / "LLM-CL-Benchmark_5000", TRACE[3:])
    trace_folder(tmp_path / "TRACE" / "LLM-CL-Benchmark_5000", ["c_stance", "Fomc", "meeting bank"])
    suite = load_suite("trace", str(tmp_path))
    assert names_of(suite) == TRACE
    trace_folder(tmp_path, ["FOMC"])
    assert load_suite("trace", tmp_path).tasks[1].source == str(tmp_path / "FOMC"), "the nearest of several"
    assert suite.tasks[1].source != str(tmp_path / "FOMC")


def test_deeper_than_three_levels_is_not_searched(tmp_path: Path) -> None:
    trace_folder(tmp_path / "a" / "b")
    assert len(load_suite("trace", tmp_path).tasks) == 8
    (tmp_path / "a" / "c").mkdir()
    (tmp_path / "a" / "b").rename(tmp_path / "a" / "c" / "b")
    with pytest.raises(FileNotFoundError, match="8 of 8 tasks are missing"):
        load_suite("trace", tmp_path)


def test_one_error_lists_all_that_is_missing(tmp_path: Path, opened: list[Path]) -> None:
    trace_folder(tmp_path, TRACE[:5])
    (tmp_path / "FOMC" / "eval.json").unlink()
    (tmp_path / "Py150" / "train.json").unlink()
    (tmp_path / "Py150" / "test.json").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_suite("trace", tmp_path)
    message = str(caught.value)
    assert message.startswith("Suite 'trace': 5 of 8 tasks are missing: ")
    assert f"FOMC ({tmp_path / 'FOMC'} lacks eval.json), " in message
    assert f"Py150 ({tmp_path / 'Py150'} lacks train.json, test.json), " in message
    for name in TRACE[5:]:
        assert f"{name} (no folder {name})" in message
    assert "C-STANCE" not in message and "ScienceQA" not in message
    assert f"looked in {tmp_path} and 3 levels of folders below" in message
    assert "train.json, eval.json and test.json" in message and "partial=True" in message and "\n" not in message
    assert not opened


def test_partial_takes_what_is_there(tmp_path: Path) -> None:
    trace_folder(tmp_path, ["Py150", "C-STANCE", "20Minuten"])
    suite = load_suite("trace", tmp_path, partial=True)
    assert names_of(suite) == ["C-STANCE", "Py150", "20Minuten"]
    assert list(suite.missing) == ["FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds"]
    assert suite.missing["FOMC"] == "no folder FOMC" and set(suite.metrics) == set(names_of(suite))
    assert not load_suite("trace", trace_folder(tmp_path), partial=True).missing


def test_a_damaged_file_is_not_a_missing_one(tmp_path: Path) -> None:
    (trace_folder(tmp_path) / "FOMC" / "eval.json").write_text('[{"prompt": "a"')
    with pytest.raises(ValueError, match="eval.json: line 1.*not JSON"):
        load_suite("trace", tmp_path, partial=True)


def test_two_copies_are_not_chosen_between(tmp_path: Path) -> None:
    for size in ("500", "5000"):
        trace_folder(tmp_path / f"LLM-CL-Benchmark_{size}", TRACE)
    both = f"{tmp_path / 'LLM-CL-Benchmark_500' / 'FOMC'} and {tmp_path / 'LLM-CL-Benchmark_5000' / 'FOMC'}"
    with pytest.raises(FileNotFoundError) as caught:
        load_suite("trace", tmp_path, partial=True)
    assert f"FOMC ({f'more than one: {both}':.200})" in str(caught.value)


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no folder .working directory.*expected a folder for each"):
        load_suite("trace", tmp_path / "nowhere", partial=True)
    with pytest.raises(FileNotFoundError, match="8 of 8 tasks are missing.*file.json is no folder"):
        load_suite("trace", write(tmp_path / "file.json", []))
    with pytest.raises(ValueError, match="Suite 'long': got folder=None, expected one with a folder for each set"):
        load_suite("long")
    with pytest.raises(ValueError, match="Suite 'trcae': is unknown, expected one of trace, func, long, ni-c1"):
        load_suite("trcae", tmp_path)
    assert suite_names() == ["trace", "func", "long", *NI, "pocket"]


def test_only_what_is_needed_is_read(tmp_path: Path, opened: list[Path]) -> None:
    trace_folder(tmp_path, ["C-STANCE", "FOMC", "ScienceQA"])
    (tmp_path / "ScienceQA" / "train.json").write_text("damaged")
    assert names_of(load_suite("trace", tmp_path, n=2)) == TRACE[:2]
    assert {path.parent.name for path in opened} == {"C-STANCE", "FOMC"}


def test_an_order_of_ones_own(tmp_path: Path) -> None:
    trace_folder(tmp_path, ["C-STANCE", "FOMC"])
    suite = load_suite("trace", tmp_path, order=["fomc", "C-STANCE"])
    assert names_of(suite) == ["FOMC", "C-STANCE"] and suite.order is None
    assert names_of(load_suite("trace", tmp_path, order=["fomc", "C-STANCE"], n=1)) == ["FOMC"]
    assert names_of(load_suite("trace", tmp_path, order="fomc")) == ["FOMC"]
    for wrong, message in (
        (["FOMC", "fomc"], "expected a list of different names out of C-STANCE"),
        (["FOMC", "CB"], r"got order=\('FOMC', 'CB'\) with CB, expected"),
        ([], "expected a list"),
        (1, "got order=1, expected 0, or a list"),
        (-1, "got order=-1, expected 0, or a list"),
    ):
        with pytest.raises(ValueError, match=message):
            load_suite("trace", tmp_path, order=wrong)
    for n in (0, 9):
        with pytest.raises(ValueError, match=f"got n={n}, expected 1 to 8"):
            load_suite("trace", tmp_path, n=n)


# --- LONG ------------------------------------------------------------------------------------------------------------


def test_long_as_published(tmp_path: Path) -> None:
    suite = load_suite("long", long_folder(tmp_path))
    assert names_of(suite) == list(LONG)
    assert set(suite.metrics.values()) == {"suite_accuracy"} and not suite.keep_case
    assert suite.tasks[12].name == "BoolQ" and suite.tasks[12].source == str(tmp_path / "BoolQA" / "BoolQA")
    assert all(task.instructions == ("Choose the label that fits the text: good or bad.",) for task in suite.tasks)


def test_long_orders(tmp_path: Path) -> None:
    long_folder(tmp_path)
    orders = [names_of(load_suite("long", tmp_path, order=at)) for at in range(1, 7)]
    assert orders[:3] == [
        ["DBpedia", "Amazon", "Yahoo", "AG News"],
        ["DBpedia", "Amazon", "AG News", "Yahoo"],
        ["Yahoo", "Amazon", "AG News", "DBpedia"],
    ]
    assert all(sorted(order) == sorted(LONG) for order in orders[3:])
    ends = [(order[0], order[7], order[14]) for order in orders[3:]]
    assert ends == [("MNLI", "IMDB", "Yahoo"), ("MultiRC", "RTE", "Yahoo"), ("Yelp", "IMDB", "WiC")]


def test_long_orders_of_four_need_four(tmp_path: Path, opened: list[Path]) -> None:
    long_folder(tmp_path, ["DBpedia", "Amazon", "Yahoo", "AG News", "CB"])
    assert len(load_suite("long", tmp_path, order=1).tasks) == 4
    assert "CB" not in {path.parent.name for path in opened}
    with pytest.raises(
        FileNotFoundError, match=r"10 of 15 .*BoolQ \(no folder BoolQ or boolqa\), .*no folder Yelp or yelp_"
    ):
        load_suite("long", tmp_path, order=4)


@real_files
def test_long_real() -> None:
    suite = load_suite("long", SHARED / "long", partial=True)
    assert names_of(suite) == ["CB"] and len(suite.missing) == 14
    train, select, test = (split_examples(suite.tasks[0], split) for split in ("train", "select", "test"))
    assert len(train) + len(select) == 250 and len(test) == 56 and 40 < len(select) < 85
    with pytest.raises(FileNotFoundError, match="14 of 15 tasks are missing"):
        load_suite("long", SHARED / "long")


@real_files
def test_real_folder_of_something_else() -> None:
    with pytest.raises(FileNotFoundError, match="8 of 8 tasks are missing"):
        load_suite("trace", SHARED / "trace")


# --- Natural-Instructions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(NI))
def test_natural_instructions(tmp_path: Path, name: str, opened: list[Path]) -> None:
    for number in {number for numbers in NI.values() for number in numbers} | {36, 3630, 1951}:
        ni_file(tmp_path / "natural-instructions" / "tasks", number, ["yes", "no", "yes", "no"])
    suite = load_suite(name, tmp_path)
    assert names_of(suite) == [f"task{number}" for number in NI[name]]
    assert [path.stem for path in opened] == [f"task{number}_some_name" for number in NI[name]]
    reverse = [f"task{number}" for number in reversed(NI[name])]
    assert names_of(load_suite(name, tmp_path, order=reverse)) == reverse


def test_natural_instructions_metric_by_data(tmp_path: Path) -> None:
    for number in NI["ni-m1"]:
        labels = ["POS", "NEG"] * 5 if number in (363, 1510) else [f"a text about {i}" for i in range(10)]
        ni_file(tmp_path, number, labels)
    metrics = load_suite("ni-m1", tmp_path).metrics
    assert {name for name, metric in metrics.items() if metric == "suite_accuracy"} == {"task363", "task1510"}
    (tmp_path / "task360_some_name.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 tasks are missing: task360 \(no file task360_\*.json\)"):
        load_suite("ni-m1", tmp_path)


@real_files
def test_natural_instructions_real() -> None:
    suite = load_suite("ni-c1", SHARED / "ni", partial=True)
    assert suite.metrics == {"task363": "suite_accuracy"} and len(suite.missing) == 4
    assert suite.tasks[0].instructions[0].startswith("In this task, you are given sentences")


# --- FUNC ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    for name in ("abstractive/b", "abstractive/a", "extractive/c"):
        write(tmp_path / f"{name}.json", [{"input": f"{name} {i}", "output": f"Out {i}"} for i in range(8)])
    return tmp_path


def test_func_by_name_or_as_given(functions: Path, opened: list[Path]) -> None:
    assert names_of(load_suite("func", functions)) == ["a", "b", "c"]
    assert names_of(load_suite("func", functions / "abstractive")) == ["a", "b"]
    opened.clear()
    suite = load_suite("func", functions, order=["c", "a"])
    assert names_of(suite) == ["c", "a"] and suite.order is None
    assert {path.stem for path in opened} == {"a", "c"}
    assert suite.score("a", "Out 1", "Out 1") == 1.0 and suite.score("a", "out 1", "Out 1") == 0.0


def test_func_missing(functions: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"2 of 3 tasks are missing: x \(no file x.json\), y \(no file y.json\)"
    ):
        load_suite("func", functions, order=["x", "a", "y"])
    assert list(load_suite("func", functions, order=["x", "a", "y"], partial=True).missing) == ["x", "y"]
    (functions / "empty").mkdir()
    for options in ({}, {"partial": True}, {"n": 1}):
        with pytest.raises(
            FileNotFoundError, match="no task is there; looked in .*empty, expected a JSON file for each"
        ):
            load_suite("func", functions / "empty", **options)
    write(functions / "extractive" / "a.json", {"x": "y"})
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 .* a \(more than one: .*abstractive.a.json and .*extractive.a"
    ):
        load_suite("func", functions)


@real_files
def test_func_real() -> None:
    suite = load_suite("func", SHARED / "function_vectors", n=2, general=[SHARED / "long" / "CB"])
    assert names_of(suite) == ["antonym", "choose_first_of_3"]
    assert suite.metrics == {"antonym": "suite_accuracy", "choose_first_of_3": "suite_accuracy", "CB": "suite_accuracy"}
    assert suite.keep_case == {"antonym", "choose_first_of_3"}


# --- given splits ----------------------------------------------------------------------------------------------------


def in_parts(**counts: int) -> Task:
    examples = [TaskExample(f"{part} {i}", ("x",), part) for part, count in counts.items() for i in range(count)]
    return Task("t", tuple(examples))


def test_given_splits_are_kept() -> None:
    task = in_parts(train=40, dev=5, test=6)
    assert [{e.part for e in split_examples(task, split)} for split in ("train", "select", "test")] == [
        {"train"}, {"dev"}, {"test"}
    ]  # fmt: skip
    assert [len(split_examples(task, split, seed=9)) for split in ("train", "select", "test")] == [40, 5, 6]


@pytest.mark.parametrize("part", ["test", "eval", "validation"])
def test_two_parts_select_on_a_quarter_of_training(part: str) -> None:
    task = in_parts(train=200, **{part: 7})
    train, select, test = (split_examples(task, split) for split in ("train", "select", "test"))
    assert {e.part for e in test} == {part} and len(test) == 7
    assert set(train) | set(select) == set(task.examples) - set(test) and not set(train) & set(select)
    assert 30 < len(select) < 70 and all(split_of(e.input) == "select" for e in select)
    assert set(select) != set(split_examples(task, "select", seed=1))


@pytest.mark.parametrize("counts", [{"": 60}, {"train": 60}, {"test": 60}])
def test_without_given_splits_the_seeded_ones_hold(counts: dict[str, int]) -> None:
    task = in_parts(**counts)
    for split, own in (("train", "fit"), ("select", "select"), ("test", "test")):
        assert split_examples(task, split, seed=3) == task.split(own, 3)


def test_a_test_file_that_repeats_another_does_not_leak(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [{"input": f"t{i}", "output": "x"} for i in range(40)])
    held = [{"input": f"h{i}", "output": "x"} for i in range(5)]
    for part in ("dev", "test"):
        write(tmp_path / f"{part}.json", [*held, {"input": "t0", "output": "x"}])
    task = ivlens.tasks.load_task(tmp_path)
    parts = [{e.input for e in split_examples(task, split)} for split in ("train", "select", "test")]
    assert parts[2] == {f"h{i}" for i in range(5)} and parts[1] < {f"t{i}" for i in range(40)}
    assert len(parts[0]) + len(parts[1]) == 40 and not parts[0] & parts[1]


def test_splits_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="got split 'fit', expected one of train, select, test"):
        split_examples(in_parts(train=4, test=4), "fit")
    seeds = {split_of("train 0", seed) == "select": seed for seed in range(20)}
    with pytest.raises(ValueError, match="has nothing for 'select' among 5 examples of test, train"):
        split_examples(in_parts(train=1, test=4), "select", seeds[False])
    with pytest.raises(ValueError, match="has nothing for 'train' among 5 examples"):
        split_examples(in_parts(train=1, test=4), "train", seeds[True])
