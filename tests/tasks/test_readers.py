"""Every format by its content, and one clear error for every kind of bad input."""

import datetime
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ivlens.tasks import Task, load_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
real_files = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published task files are not at {SHARED}")


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pairs(task: Task) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.input, example.answers) for example in task.examples]


# --- files that others published -------------------------------------------------------------------------------------


@real_files
@pytest.mark.parametrize(
    ("name", "n", "first"),
    [
        ("abstractive/antonym", 2398, ("flawed", ("perfect",))),
        ("abstractive/country-capital", 197, ("Afghanistan", ("Kabul",))),
        ("abstractive/english-french", 4698, ("dependent", ("dépendant",))),
        ("abstractive/present-past", None, ("accelerate", ("accelerated",))),
        ("abstractive/singular-plural", None, ("wallet", ("wallets",))),
        ("extractive/choose_first_of_3", 1000, ("ostrich, since, out", ("ostrich",))),
    ],
)
def test_function_vectors(name: str, n: int | None, first: tuple[str, tuple[str, ...]]) -> None:
    path = SHARED / "function_vectors" / f"{name}.json"
    task = load_task(str(path))
    assert task.name == path.stem and task.source == str(path)
    assert pairs(task)[0] == first
    assert len(task) == (n or len(json.loads(path.read_text("utf-8"))))
    assert not task.instructions and not task.fused and not task.skipped


@real_files
def test_natural_instructions() -> None:
    task = load_task(SHARED / "ni" / "task363_sst2_polarity_classification.json")
    assert task.name == "task363_sst2_polarity_classification"
    assert len(task.instructions) == 1 and task.instructions[0].startswith("In this task, you are given sentences")
    assert {e.answers for e in task.examples} == {("POS",), ("NEG",)}
    assert task.demonstrations[0].input.startswith("It 's a lovely film")
    assert not {e.input for e in task.demonstrations} & {e.input for e in task.examples}


@real_files
def test_long_folder() -> None:
    task = load_task(SHARED / "long" / "CB")
    assert task.name == "CB"
    assert task.instructions == ("Choose the label that fits the text: entailment, contradiction or neutral.",)
    assert {e.part for e in task.examples} == {"train", "test"}
    assert {e.answer for e in task.examples} == {"entailment", "contradiction", "neutral"}
    assert len(load_task(SHARED / "long" / "CB", part="test")) == 56


@real_files
def test_trace_folder_without_answers() -> None:
    with pytest.raises(ValueError, match=r"Alpaca: all 150 records lack an answer.*train.json record 0"):
        load_task(SHARED / "trace" / "Alpaca")


@real_files
def test_a_folder_of_separate_tasks_is_not_one_task() -> None:
    with pytest.raises(ValueError, match="abstractive: holds antonym.json, .*expected train.*name one file"):
        load_task(SHARED / "function_vectors" / "abstractive")


# --- the same formats, generated -------------------------------------------------------------------------------------


def test_detection_ignores_the_file_name(tmp_path: Path) -> None:
    assert pairs(load_task(write(tmp_path / "a.csv", [{"input": "x", "output": "y"}]))) == [("x", ("y",))]
    assert pairs(load_task(write(tmp_path / "b.json", "input,output\nx,y\n"))) == [("x", ("y",))]
    assert pairs(load_task(write(tmp_path / "c", {"x": "y"}))) == [("x", ("y",))]


def test_numbers_and_truth_values_are_answers_as_they_are_spelled(tmp_path: Path) -> None:
    huge = "9" * 6000
    answers = {"3": '[1, "one", 1.50]', '"b"': huge, '"c"': "true"}
    text = ", ".join(f'{{"input": {x}, "output": {y}}}' for x, y in answers.items())
    assert pairs(load_task(write(tmp_path / "t.json", f"[{text}]"))) == [
        ("3", ("1", "one", "1.50")),
        ("b", (huge,)),
        ("c", ("true",)),
    ]


def test_answers_of_several_words_stay_whole_and_lose_only_outer_blanks(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", [{"input": " Andorra\n", "output": " Andorra la Vella "}])
    assert pairs(load_task(path)) == [("Andorra", ("Andorra la Vella",))]


def test_natural_instructions_definition_as_text(tmp_path: Path) -> None:
    content = {"Definition": "Do it.", "Instances": [{"id": 1, "input": "a", "output": ["b", "c"]}]}
    task = load_task(write(tmp_path / "t.json", content))
    assert task.instructions == ("Do it.",) and pairs(task) == [("a", ("b", "c"))] and not task.demonstrations


def test_trace_folder_is_fused_and_keeps_prompts_to_the_letter(tmp_path: Path) -> None:
    for part in ("train", "eval", "test"):
        write(tmp_path / "FOMC" / f"{part}.json", [{"prompt": f"Classify. {part}\nAnswer: ", "answer": "A"}])
    task = load_task(tmp_path / "FOMC")
    assert task.name == "FOMC" and task.fused and not task.instructions
    assert [(e.part, e.input) for e in task.examples][0] == ("train", "Classify. train\nAnswer: ")
    assert [e.part for e in load_task(tmp_path / "FOMC", part="eval").examples] == ["eval"]
    with pytest.raises(ValueError, match="part='dev', expected one of eval, test, train"):
        load_task(tmp_path / "FOMC", part="dev")


def test_the_label_list_is_known_by_its_content(tmp_path: Path) -> None:
    write(tmp_path / "names.json", ["good", "bad"])
    write(tmp_path / "README.md", "not data")
    write(tmp_path / "train.json", [{"label": "good", "sentence": "fine"}])
    assert load_task(tmp_path).instructions == ("Choose the label that fits the text: good or bad.",)
    write(tmp_path / "test.json", [{"label": "ok", "sentence": "well"}])
    with pytest.raises(ValueError, match="test.json record 0 has the label 'ok', expected one of good, bad"):
        load_task(tmp_path)


def test_bank_format_of_ones_own(tmp_path: Path) -> None:
    content = {
        "name": "mine", "kind": "rule", "inputs": "things", "in_training": False, "instructions": ["Do it."],
        "held_out_instructions": ["Please."], "clozes": ["The {x} is"], "prose": ["{x} and {y}."],
        "examples": [{"input": "a", "output": ["b", "c"]}],
    }  # fmt: skip
    task = load_task(write(tmp_path / "t.json", content))
    assert (task.name, task.kind, task.inputs, task.in_training) == ("mine", "rule", "things", False)
    assert (task.instructions, task.held_out_instructions) == (("Do it.",), ("Please.",))
    assert (task.clozes, task.prose, pairs(task)) == (("The {x} is",), ("{x} and {y}.",), [("a", ("b", "c"))])
    content["in_training"] = "yes"
    with pytest.raises(ValueError, match="in_training: got 'yes', expected true or false"):
        load_task(write(tmp_path / "t.json", content))


def test_dict_of_pairs_keeps_the_answers_of_a_repeated_key(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t.json", '{"happy": "sad", "big": ["small", "tiny"], "happy": "unhappy"}'))
    assert pairs(task) == [("happy", ("sad", "unhappy")), ("big", ("small", "tiny"))]


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_csv_with_any_usual_delimiter(tmp_path: Path, delimiter: str) -> None:
    rows = [["Text", "Label", "id"], ["a fine, day", "good", "1"], ['line\none "quoted"', "bad", "2"]]
    quoted = ["\r\n".join(delimiter.join(f'"{cell.replace(chr(34), 2 * chr(34))}"' for cell in row) for row in rows)]
    task = load_task(write(tmp_path / "t", "\ufeff" + quoted[0] + "\r\n\r\n"))
    assert [e.answer for e in task.examples] == ["good", "bad"]
    assert task.examples[0].input == "a fine, day" and '"quoted"' in task.examples[1].input


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "premise,hypothesis,gold\nit rains,it is wet,yes\n")
    with pytest.raises(ValueError, match="'premise', 'hypothesis', 'gold', expected exactly one usual.*input_column="):
        load_task(path)
    with pytest.raises(ValueError, match="'gold', expected 'premiss'; name it with input_column="):
        load_task(path, input_column="premiss", output_column="gold")
    with pytest.raises(ValueError, match="got 'gold' for two columns"):
        load_task(path, input_column="gold", output_column="gold")
    assert pairs(load_task(path, input_column="premise", output_column="gold")) == [("it rains", ("yes",))]


def test_an_ambiguous_column_is_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "question,text,answer\nwho?,a text,me\n")
    with pytest.raises(ValueError, match="expected exactly one usual name for the input"):
        load_task(path)
    path = write(tmp_path / "u.csv", "text,input,answer\na text,who?,me\n")
    assert load_task(path).examples[0].input == "who?"


def test_jsonl_with_instructions(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i % 2}.", "question": f"q{i}", "answer": [i]} for i in range(4)]
    task = load_task(write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n"))
    assert task.instructions == ("Say 0.", "Say 1.") and pairs(task)[3] == ("q3", ("3",)) and not task.fused


def test_one_line_of_jsonl_is_a_record(tmp_path: Path) -> None:
    assert pairs(load_task(write(tmp_path / "t.jsonl", '{"input": "a", "output": "b"}\n'))) == [("a", ("b",))]


def test_an_instruction_per_row_makes_whole_prompts(tmp_path: Path) -> None:
    rows = [{"instruction": f"Task {i}.", "input": "x" if i else "", "output": "y"} for i in range(30)]
    task = load_task(write(tmp_path / "t.json", rows))
    assert task.fused and not task.instructions
    assert [e.input for e in task.examples[:2]] == ["Task 0.", "Task 1.\nx"]


def test_a_prompt_column_is_a_whole_prompt(tmp_path: Path) -> None:
    assert load_task(write(tmp_path / "t.jsonl", '{"prompt": "a", "completion": "b"}\n')).fused
    with_instruction = '[{"prompt": "a", "completion": "b", "instruction": "Do."}]'
    assert not load_task(write(tmp_path / "u.json", with_instruction)).fused


# --- Hugging Face datasets -------------------------------------------------------------------------------------------


@pytest.fixture
def dataset() -> Any:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": ["bad", "good", "unknown"], "label": [0, 1, -1]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_saved_dataset_with_class_names(tmp_path: Path, dataset: Any) -> None:
    dataset.save_to_disk(str(tmp_path / "saved"))
    task = load_task(tmp_path / "saved")
    assert task.name == "saved" and pairs(task) == [("bad", ("neg",)), ("good", ("pos",))] and len(task.skipped) == 1
    with pytest.raises(ValueError, match="part='train', expected no part"):
        load_task(tmp_path / "saved", part="train")


def test_a_saved_dataset_that_names_files_elsewhere(tmp_path: Path, dataset: Any) -> None:
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.save_to_disk(str(tmp_path / "other"))
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    file = state["_data_files"][0]["filename"]
    for name in (f"../other/{file}", str(tmp_path / "other" / file)):
        write(tmp_path / "saved" / "state.json", state | {"_data_files": [{"filename": name}]})
        with pytest.raises(ValueError, match="expected names of files directly in its folder"):
            load_task(tmp_path / "saved")
    write(tmp_path / "both" / "dataset_dict.json", {"splits": ["../other"]})
    with pytest.raises(ValueError, match="expected names of files directly in its folder"):
        load_task(tmp_path / "both")


def test_saved_dataset_with_splits(tmp_path: Path, dataset: Any) -> None:
    import datasets

    both = datasets.DatasetDict({"train": dataset.select([0]), "test": dataset.select([1])})
    both.save_to_disk(str(tmp_path / "saved"))
    assert [(e.input, e.part) for e in load_task(tmp_path / "saved").examples] == [("bad", "train"), ("good", "test")]
    assert pairs(load_task(tmp_path / "saved", part="test")) == [("good", ("pos",))]
    with pytest.raises(ValueError, match="part='dev', expected one of train, test"):
        load_task(tmp_path / "saved", part="dev")


def test_parquet_file_and_folder(tmp_path: Path, dataset: Any) -> None:
    dataset.to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    task = load_task(tmp_path / "train-00000-of-00001.parquet")
    assert pairs(task) == [("bad", ("neg",)), ("good", ("pos",))]
    assert {e.part for e in load_task(tmp_path).examples} == {"train"}


def test_exact_numbers_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.table({"input": ["a"], "output": [Decimal("1.50")]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert pairs(load_task(tmp_path / "t.parquet")) == [("a", ("1.50",))]


def test_damaged_datasets(tmp_path: Path, dataset: Any) -> None:
    import pyarrow.parquet

    write(tmp_path / "cut.parquet", "PAR1 and no more")
    with pytest.raises(ValueError, match="cut.parquet: is not valid parquet"):
        load_task(tmp_path / "cut.parquet")
    twice = pyarrow.table([["a"], ["b"], ["c"]], names=["input", "output", "input"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="twice.parquet: has several columns called 'input', expected distinct names"):
        load_task(tmp_path / "twice.parquet")
    times = pyarrow.table({"input": ["a"], "output": [datetime.datetime(2020, 1, 1)]})
    pyarrow.parquet.write_table(times, tmp_path / "times.parquet")
    with pytest.raises(ValueError, match="'output': got a datetime, expected text, a number, .*; write it as text"):
        load_task(tmp_path / "times.parquet")
    pyarrow.parquet.write_table(times.slice(1), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="empty.parquet: holds no records, expected at least one; check how"):
        load_task(tmp_path / "empty.parquet")
    dataset.save_to_disk(str(tmp_path / "saved"))
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be opened as a saved dataset"):
        load_task(tmp_path / "saved")


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch, dataset: Any) -> None:
    import datasets

    calls = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return dataset if options["split"] else datasets.DatasetDict({"train": dataset})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("ivlens.common.hub.hub_answers", lambda: True)
    task = load_task("owner/sentiment", config="binary", part="train[:3]")
    assert calls == [(("owner/sentiment", "binary"), {"split": "train[:3]"})]
    assert task.name == "owner/sentiment/binary" and {e.part for e in task.examples} == {"train"}
    assert load_task("hf://sentiment").name == "sentiment" and calls[-1][0] == ("sentiment", None)


def test_hub_name_without_network_is_one_error_and_no_retries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ivlens.common.hub.hub_answers", lambda: False)
    with pytest.raises(FileNotFoundError, match="'owner/name' is no local path and cannot be opened.*save_to_disk"):
        load_task("owner/name")
    assert constants.HF_HUB_OFFLINE == (os.environ.get("HF_HUB_OFFLINE", "0") in ("1", "true"))


def test_hub_refusal_of_a_config_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ValueError("Config name is missing.\nPick one among ['a', 'b']")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("ivlens.common.hub.hub_answers", lambda: True)
    with pytest.raises(ValueError, match=r"Config name is missing. Pick one among \['a', 'b'\].*config= and part="):
        load_task("owner/name")


# --- bad input -------------------------------------------------------------------------------------------------------

NESTED = "[" * 100_000
BAD = {
    "empty": (" \n", "is empty, expected records"),
    "no records": ("[]", "holds no records"),
    "empty dict": ("{}", "holds no records"),
    "a list of texts": ('["a", "b"]', "record 0 is a str, expected a record with named columns"),
    "null record": ('[{"input": "a", "output": "b"}, null]', "record 1 is null"),
    "keys change": (
        '[{"input": "a", "output": "b"}, {"input": "c"}]',
        "record 1 has the keys 'input', expected also 'output'",
    ),
    "no known keys": ('[{"a": 1, "b": 2}]', "has the columns 'a', 'b', expected exactly one usual name for the input"),
    "cut off": ('[{"input": "a",\n "output": "b"},\n {"inp', "line 3, column 3 is not JSON .*complete JSON"),
    "cut off jsonl": ('{"input": "a", "output": "b"}\n{"input": "c", "out', "line 2, column 16 is not JSON"),
    "nested": (NESTED + "]" * 100_000, "is nested too deeply"),
    "nested answer": ('[{"input": "a", "output": [["b"]]}]', "record 0, 'output': got a list, expected text"),
    "dict answer": ('{"a": {"b": "c"}}', "key 'a', 'output': got a dict, expected text"),
    "list input": ('[{"input": ["a"], "output": "b"}]', "record 0, 'input': got a list, expected one text"),
    "surrogate": ('[{"input": "a", "output": "\\ud800"}]', "record 0, 'output': holds half a surrogate pair"),
    "nan only": ('[{"input": "a", "output": NaN}]', "all 1 records lack an answer"),
    "one column": (
        "hello\nworld\n",
        "its format is unknown .it looks like plain text., expected JSON, JSON Lines, CSV",
    ),
    "ragged": ("input,output\n\na,b\nc\n", r"line 4: has 1 cells, expected 2 \(input, output\)"),
    "open quote": ('input,output\na,"b\nc,d\n', "line 3 is not CSV .unexpected end of data"),
    "instances": ('{"Definition": "x", "Instances": {"input": "a"}}', "'Instances' is a dict, expected a list"),
    "bad instance": ('{"Definition": "x", "Instances": [{"input": "a"}]}', "columns 'input', expected 'output'"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_content_is_one_clear_value_error(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(ValueError, match=f"t.json.*{message}") as caught:
        load_task(write(tmp_path / "t.json", content))
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        '[{"input": "a", "output": ["b", 1]}, {"input": "c", "output": null}]',
        '{"Definition": ["x"], "Instances": [{"input": "a", "output": ["b"]}]}',
        '{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n',
        'input,output\na,b\n"c, d",e\n',
    ],
)
def test_a_file_cut_anywhere_loads_or_is_one_clear_error(tmp_path: Path, content: str) -> None:
    for end in range(len(content)):
        path = write(tmp_path / "t", content[:end])
        try:
            assert load_task(path).examples
        except ValueError as error:
            assert str(path) in str(error) and "expected" in str(error), content[:end]


def test_nan_beside_answers_is_skipped(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t.json", '{"a": NaN, "b": "c", "d": [Infinity, "e"]}'))
    assert pairs(task) == [("b", ("c",)), ("d", ("e",))] and len(task.skipped) == 1


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("input,output\nété,summer\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t.csv: byte 13 \(0xe9\) is not UTF-8, expected .*; save it as UTF-8"):
        load_task(path)


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "capitals.json", {"a": "b"})
    with pytest.raises(
        FileNotFoundError, match="capitls.json' does not exist, expected a task's file.*did you mean capitals"
    ):
        load_task(tmp_path / "capitls.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(FileNotFoundError, match="link.json' is a link to .*gone.json', where nothing is, expected a t"):
        load_task(tmp_path / "link.json")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data").symlink_to(tmp_path / "data")
    with pytest.raises(ValueError, match="/data: holds data, expected train"):
        load_task(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for name in ("data/x.json", "./nothing", "a\0b.json", "x" * 5000 + ".json"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_task(name)
    for name in ("", Path("nothing")):
        with pytest.raises((ValueError, FileNotFoundError), match="expected a"):
            load_task(name)


def test_a_folder_with_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds nothing, expected train, eval or test files"):
        load_task(tmp_path)
    write(tmp_path / "README.md", "hello")
    with pytest.raises(ValueError, match="holds README.md, expected"):
        load_task(tmp_path)
    write(tmp_path / "pairs.json", {"a": "b"})
    assert load_task(tmp_path).name == "pairs"


def test_a_damaged_part_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [{"prompt": "a", "answer": "b"}])
    write(tmp_path / "test.json", '[{"prompt": "c"')
    with pytest.raises(ValueError, match="test.json: line 1"):
        load_task(tmp_path)
    write(tmp_path / "test.json", [{"input": "c", "output": "d"}])
    with pytest.raises(ValueError, match="parts with and without fused prompts.*part="):
        load_task(tmp_path)


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", {"a": "b", "c": "d"})
    with pytest.raises(ValueError, match="part='test' for a single file"):
        load_task(path, part="test")
    with pytest.raises(ValueError, match="config='x' for a local path"):
        load_task(path, config="x")
    with pytest.raises(ValueError, match="is one dict with the keys 'a', 'c', expected a list of records"):
        load_task(path, input_column="a")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no regular file"):
        load_task(tmp_path / "pipe")


@pytest.mark.parametrize("number", [2, 7, -2])
def test_a_class_number_out_of_range_is_one_sentence(tmp_path, number):
    import datasets
    import pyarrow
    import pyarrow.parquet

    classes = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"input": datasets.Value("string"), "output": classes})
    columns = {"input": ["a", "b", "c"], "output": pyarrow.array([0, 1, number], type=pyarrow.int64())}
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=features.arrow_schema), tmp_path / "l.parquet")
    with pytest.raises(ValueError, match=rf"record 2: output is {number}, expected -1 to 1, one of its 2 classes"):
        load_task(tmp_path / "l.parquet")
