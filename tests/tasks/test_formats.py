"""Every format as people have it: the same records written in all ways are read back, and what is left out is said."""

import csv
import gzip
import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writers import HOLDERS, ROWS, as_lines, can_hold

from ivlens.tasks import Task, check_task, load_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
real_files = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published task files are not at {SHARED}")
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "data.md"

CASES = [(holder, rows) for holder in HOLDERS for rows in ROWS if can_hold(holder, rows)]
letters = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
texts = st.text(letters, min_size=1, max_size=12).map(str.strip).filter(bool)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=6, unique_by=lambda pair: pair[0])


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def found(task: Task) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.input, example.answers) for example in task.examples]


# --- the same records in every format --------------------------------------------------------------------------------


@pytest.mark.parametrize(("holder", "rows"), CASES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=pairs)
def test_records_are_read_back(tmp_path: Path, holder: str, rows: str, records: list[tuple[str, str]]) -> None:
    path = tmp_path / "task"  # no ending: the content alone says what it is
    path.write_bytes(HOLDERS[holder](ROWS[rows].rows(records)))
    task = load_task(path)
    assert found(task) == [(ROWS[rows].input(text, answer), (answer,)) for text, answer in records]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.tuples(st.text('ab"', min_size=1, max_size=6), st.text("xy'", min_size=1, max_size=4)),
        min_size=1, max_size=6, unique_by=lambda pair: pair[0],
    )
)  # fmt: skip
def test_lone_quotes_in_a_table_with_tabs_are_letters(tmp_path: Path, records: list[tuple[str, str]]) -> None:
    """Written without any quoting, as by hand; a lone mark in the last line says that marks are letters."""
    records = [*records, ('5" nail', "iron")]
    path = write(tmp_path / "t", "input\toutput\n" + "".join(f"{x}\t{y}\n" for x, y in records))
    assert found(load_task(path)) == [(x, (y,)) for x, y in records]


def test_the_formats_of_the_guide(tmp_path: Path) -> None:
    """Every example of the table is what it says, and none has more than five lines."""
    text = GUIDE.read_text(encoding="utf-8")
    examples = re.findall(r"\n  - ```(json|text|sh)\n(.*?)    ```\n", text, re.DOTALL)
    assert len(examples) == text.count("\n* - ") - 1 >= 17, "each row has an example"
    n_read = 0
    for number, (language, indented) in enumerate(examples):
        content = re.sub("^    ", "", indented, flags=re.MULTILINE)
        assert content.count("\n") <= 5
        if language == "sh" or "CB/" in content:
            continue
        task = load_task(write(tmp_path / f"{number}", content))
        assert [example.answer for example in task.examples] == ["small", "cold"], content
        assert all(word in example.input for example, word in zip(task.examples, ("big", "hot"), strict=True))
        assert set(task.instructions) <= {"Say the opposite."} and ("Say" in content) == bool(task.instructions)
        n_read += 1
    assert n_read >= 14


# --- chats -----------------------------------------------------------------------------------------------------------


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in said]}


def test_a_system_text_is_the_instruction_where_all_have_one(tmp_path: Path) -> None:
    records = [turns(("system", f"Say {n % 2}."), ("user", f"q{n}"), ("assistant", "a")) for n in range(4)]
    task = load_task(write(tmp_path / "t.json", records))
    assert task.instructions == ("Say 0.", "Say 1.") and not task.fused
    some = [*records, turns(("user", "q9"), ("assistant", "a"))]
    task = load_task(write(tmp_path / "u.json", some))
    assert task.fused and not task.instructions
    assert [example.input for example in task.examples][::4] == ["Say 0.\nq0", "q9"]


def test_a_question_without_a_system_text_is_the_whole_prompt_to_the_letter(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t.json", [turns(("user", " What? \n"), ("assistant", " This. "))]))
    assert task.fused and found(task) == [(" What? \n", ("This.",))]


def test_what_is_left_out_of_chats_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    records = [
        turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
        turns(("assistant", "Hello."), ("user", parts), ("assistant", "e")),
        turns(("user", "f")),
        turns(("user", image), ("assistant", "g")),
        turns(("user", "h"), ("assistant", None)),
        turns(("user", "i"), ("tool", "j"), ("assistant", "k")),
        turns(("system", "s")),
        {"messages": []},
        turns(("user", "l"), ("user", "m"), ("assistant", "n"), ("assistant", "o")),
    ]
    path = write(tmp_path / "t.json", records)
    with caplog.at_level(logging.WARNING, "ivlens"):
        task = load_task(path)
    assert [answers for _, answers in found(task)] == [("b",), ("e",), ("n\no",)]
    assert [text for text, _ in found(task)] == ["a", "one\ntwo", "l\nm"]
    assert "1 of 9 conversations go on after the first reply: 2 turns left out, 1 of them replies, which" in caplog.text
    assert "1 of 9 conversations begin with the assistant" in caplog.text
    about = check_task(path)
    reasons = {(reason.n, reason.why, reason.first) for reason in about.left_out}
    assert reasons == {
        (1, "no reply", "record 2"), (2, "a turn that is no text", "record 3"),
        (1, "no reply, but a turn of 'tool'", "record 5"), (2, "no question of the user", "record 6"),
    }  # fmt: skip
    assert len(task.skipped) == 6 == about.n_records - len(task)
    # of a record that is left out as a whole, nothing else is counted
    called = turns(("user", "a"), ("assistant", None), ("tool", "b"), ("assistant", "c"))
    about = check_task(write(tmp_path / "u.json", [called, turns(("user", "a"), ("assistant", "b"))]))
    assert not about.losses and about.left_out == ((1, "a turn that is no text", "record 0"),)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ("hello", "'messages', turn 1: is 'hello', expected who speaks"),
        ({"text": "x"}, "turn 1: has the keys 'text', expected who speaks .role or from."),
        ({"role": ["user"], "content": "x"}, "turn 1, 'role': got a list"),
        ({"role": "assistant", "content": {"a": 1}}, "turn 1, 'content': got a dict, expected text"),
        ({"role": "assistant", "content": ["\ud800"]}, "turn 1, 'content', part 0: holds half a surrogate"),
    ],
)
def test_a_broken_turn_is_one_clear_error(tmp_path: Path, turn: Any, message: str) -> None:
    records = [turns(("user", "a"), ("assistant", "b")), {"messages": [{"role": "user", "content": "a"}, turn]}]
    with pytest.raises(ValueError, match=f"t.json, record 1, {message if 'messages' in message else '.*' + message}"):
        load_task(write(tmp_path / "t.json", records))
    records[1]["messages"] = "no list"
    with pytest.raises(ValueError, match="record 1, 'messages': got 'no list', expected a list of turns, or its JSON"):
        load_task(write(tmp_path / "t.json", records))


def test_turns_in_the_cells_of_a_table(tmp_path: Path) -> None:
    rows = [[json.dumps(turns(("user", text), ("assistant", "b"))["messages"]), "x"] for text in ("a", "c")]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages", "id"], *rows])
    assert found(load_task(tmp_path / "t.csv")) == [("a", ("b",)), ("c", ("b",))]
    preferred = [{"prompt": "a", "chosen": "[b]", "rejected": "c"}]
    with pytest.raises(
        ValueError, match="'prompt', 'chosen', 'rejected', expected exactly one usual name for the output"
    ):
        load_task(write(tmp_path / "u.json", preferred))
    assert found(load_task(tmp_path / "u.json", output_column="chosen")) == [("a", ("[b]",))]


def test_one_conversation_is_a_record_and_columns_win_over_turns(tmp_path: Path) -> None:
    one = turns(("user", "a"), ("assistant", "b")) | {"title": "t", "topic": "u"}
    assert found(load_task(write(tmp_path / "t.json", one))) == [("a", ("b",))]
    path = write(tmp_path / "u.json", [one])
    assert found(load_task(path, input_column="title", output_column="topic")) == [("t", ("u",))]


# --- multiple choice -------------------------------------------------------------------------------------------------


def mc(choices: Any, *answers: Any, question: str = "Which?") -> list[dict[str, Any]]:
    return [{"question": f"{question} {n}", "choices": choices, "answer": answer} for n, answer in enumerate(answers)]


COLOURS = ["red", "green", "blue"]
LABELLED = {"text": COLOURS, "label": ["1", "2", "3"]}


@pytest.mark.parametrize(
    ("choices", "answers", "right", "way"),
    [
        (COLOURS, (2, 0), ("blue", "red"), "a number that counts from 0"),
        (COLOURS, (3, 1), ("blue", "red"), "a number that counts from 1"),
        (COLOURS, ("C", "A"), ("blue", "red"), "its letter"),
        (COLOURS, ("(c)", "a."), ("blue", "red"), "its letter"),
        (COLOURS, ("blue", "red"), ("blue", "red"), "its text"),
        (COLOURS, ("2", "0"), ("blue", "red"), "a number that counts from 0"),
        (COLOURS, (2.0, 0.0), ("blue", "red"), "a number that counts from 0"),
        (COLOURS, ([2, 0], [1]), ("blue", "green"), "a number that counts from 0"),
        (LABELLED, ("3", "1"), ("blue", "red"), "its label"),
        ({"A": "red", "B": "green", "C": "blue"}, ("C", "A"), ("blue", "red"), "its label"),
        ([{"label": "x", "text": "red"}, {"label": "y", "text": "blue"}], ("y", "x"), ("blue", "red"), "its label"),
        (["1", "2", "0"], (2, 0), ("0", "1"), "a number that counts from 0"),  # a number, so no text
        (["1", "2", "0"], ("2", "0"), ("2", "0"), "its text"),  # a text
        ([True, False], (1, 0), ("false", "true"), "a number that counts from 0"),
    ],
)
def test_the_answer_is_the_text_of_the_right_choice(
    tmp_path: Path, choices: Any, answers: Any, right: tuple[str, str], way: str
) -> None:
    path = write(tmp_path / "t.json", mc(choices, *answers))
    about = check_task(path)
    assert tuple(example.answer for example in about.task.examples) == right
    assert f"names the right one by {way}," in about.notes[0]
    listed = about.task.examples[0].input.split("\n")
    assert listed[0] == "Which? 0" and set(right) <= {line.removeprefix("- ") for line in listed[1:]}


def test_choices_in_cells_context_and_records_without_a_label(tmp_path: Path) -> None:
    rows = 'passage,question,options,answerKey\nA text.,Which?,"[""x"", 2]",B\nA text.,What?,"[""x"", 2]",\n'
    task = load_task(write(tmp_path / "t.csv", rows))
    assert found(task) == [("A text.\nWhich?\n- x\n- 2", ("2",))] and len(task.skipped) == 1
    unlabelled = mc(COLOURS, 1, -1, None)
    assert len(load_task(write(tmp_path / "u.json", unlabelled))) == 1


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (mc(COLOURS, 2, 1, 7), "record 2 has the answer '7', which is none of its 3 choices, expected a number that "
         "counts from 0 as in 2 other records of one of them"),
        (mc(COLOURS, "x"), "record 0 has the answer 'x', which is none of its 3 choices, expected a label, letter"),
        (mc([], 0, 1), r"'choices': got \[\], expected a list of choices"),
        (mc("a or b", "a"), "'choices': got 'a or b', expected a list of choices; write the choices as a JSON list"),
        (mc([["a"]], 0), "'choices', choice 0: got a list, expected one text"),
        (mc(COLOURS, {"a": 1}), "'answer': got a dict, expected text"),
        ([{"stem_text": "q", "choices": COLOURS, "answer": 1}], "expected the question and the right answer of a mult"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_read_are_refused(tmp_path: Path, records: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(write(tmp_path / "t.json", records))


def test_columns_of_choices_can_be_named(tmp_path: Path) -> None:
    records = [{"stem_text": "q", "choices": COLOURS, "gold": 1, "shown": "green!"}]
    path = write(tmp_path / "t.json", records)
    task = load_task(path, input_column="stem_text", output_column="gold")
    assert found(task) == [("q\n- red\n- green\n- blue", ("green",))]
    table = write(tmp_path / "t.csv", "question,options,answer\nq,none,a\n")
    assert found(load_task(table, input_column="question", output_column="answer")) == [("q", ("a",))]


@pytest.mark.parametrize(
    ("row", "right", "way", "begins"),
    [
        ({"question": "q", "A": "red", "B": "blue", "answer": "B"}, "blue", "its label", "q\n- red"),
        ({"Question": "q", "Option (a)": "red", "Option (b)": "blue", "Answer": "B"}, "blue", "its label", "q"),
        ({"question": "q", "opa": "red", "opb": "blue", "opc": "", "cop": 1}, "blue", "a number that counts from 0",
         "q"),
        ({"sentence": "q", "option1": "red", "option2": "blue", "answer": "2"}, "blue", "its label", "q"),
        ({"goal": "q", "sol1": "red", "sol2": "blue", "label": 0}, "red", "a number that counts from 0", "q"),
        ({"context": "c", "question": "q", "answerA": "red", "answerB": "blue", "label": "2"}, "blue",
         "a number that counts from 1", "c\nq\n"),
        ({"premise": "p", "question": "effect", "choice1": "red", "choice2": "blue", "label": 0}, "red",
         "a number that counts from 0", "p\neffect\n"),
        ({"question": "q", "option_a": "red", "option_b": "blue", "correct_option": "option_b"}, "blue",
         "the name of its column", "q"),
        ({"question": "q", "ending0": "red", "ending1": "blue", "gold": "blue"}, "blue", "its text", "q"),
        ({"question": {"stem": "q", "choices": [{"text": "red", "label": "A"}, {"text": "blue", "label": "B"}]},
          "answerKey": "B"}, "blue", "its label", "q\n- red"),
    ],
)  # fmt: skip
def test_choices_in_columns_of_their_own(
    tmp_path: Path, row: dict[str, Any], right: str, way: str, begins: str
) -> None:
    about = check_task(write(tmp_path / "t.json", [row]))
    ((text, answers),) = found(about.task)
    assert answers == (right,) and text.startswith(begins) and text.endswith("\n- red\n- blue")
    assert about.format == "multiple choice in a JSON list" and f"by {way}," in about.notes[0]


def test_columns_that_are_no_choices(tmp_path: Path) -> None:
    """The answer must mean one of them, and a column of choices that the caller names is read as it is."""
    sums = write(tmp_path / "t.csv", "question,a,b,answer\nsum,1,2,3\n")
    assert found(load_task(sums)) == [("sum", ("3",))]
    more = [{"question": "q", "answer": "Paris", "answer_1": "Paris", "answer_2": "the city of Paris"}]
    assert found(load_task(write(tmp_path / "u.json", more))) == [("q", ("Paris",))]
    path = write(tmp_path / "v.csv", "question,A,B,C,answer\nq,x,y,,B\nr,x,y,z,C\n,,,,\n")
    assert found(load_task(path)) == [("q\n- x\n- y", ("y",)), ("r\n- x\n- y\n- z", ("z",))]
    assert found(load_task(path, output_column="A")) == [("q", ("x",)), ("r", ("x",))]
    path.write_text("question,A,B,C,answer\nq,x,,z,C\n")
    with pytest.raises(ValueError, match="line 2: 'B' is empty, expected a choice in it"):
        load_task(path)
    held = [{"question": {"stem": "q", "choices": COLOURS}, "answer": 0}, {"question": "r", "answer": 0}]
    with pytest.raises(ValueError, match="record 1, 'question': got 'r', expected a question with its choices"):
        load_task(write(tmp_path / "w.json", held))


# --- questions about texts, instructions, answers --------------------------------------------------------------------


def test_squad_as_rows_and_as_its_own_file(tmp_path: Path) -> None:
    answer = {"text": "Paris", "answer_start": 0}
    asked = {"question": "Where?", "id": "1", "answers": [answer, answer], "is_impossible": False}
    without = {"question": "When?", "id": "2", "answers": [], "is_impossible": True}
    tree = {
        "version": "v2.0",
        "data": [{"title": "T", "paragraphs": [{"context": "In Paris.", "qas": [asked, without]}]}],
    }
    for content in (tree, [{"context": "In Paris.", **one} for one in (asked, without)]):
        path = write(tmp_path / "t.json", content)
        assert found(load_task(path)) == [("In Paris.\nWhere?", ("Paris",))]
        assert [reason.why for reason in check_task(path).left_out] == ["no answer"]
    tree["data"][0]["paragraphs"][0]["qas"] = "none"
    with pytest.raises(
        ValueError, match=r"data\[0\].paragraphs\[0\]: 'qas' is 'none', expected 'qas', a list of records"
    ):
        load_task(write(tmp_path / "t.json", tree))


def test_a_text_beside_a_question_is_in_the_prompt_whatever_they_are_called(tmp_path: Path) -> None:
    records = [{"passage": "It rains.", "question": "Is it wet", "answer": True}]
    path = write(tmp_path / "t.json", records)
    assert found(load_task(path)) == [("It rains.\nIs it wet", ("true",))]
    assert found(load_task(path, input_column="question")) == [("Is it wet", ("true",))]
    aliases = [{"question": "Who?", "answer": {"value": "A. B.", "aliases": ["B", "A. B."], "type": "x"}}]
    assert found(load_task(write(tmp_path / "u.json", aliases))) == [("Who?", ("A. B.", "B"))]
    own = {"Data": [{"Question": "Who?", "Answer": {"Value": "A. B.", "Aliases": ["B"]}}], "Version": 1.0}
    assert found(load_task(write(tmp_path / "v.json", own))) == [("Who?", ("A. B.", "B"))]


def test_instructions_of_few_rows_are_told_from_paraphrases(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a colour.", "input": "", "output": "red"},
        {"instruction": "Translate.", "input": "cat", "output": "chat"},
        {"instruction": "Count.", "output": "1 2 3"},
    ]
    task = load_task(write(tmp_path / "t.json", rows))
    assert task.fused and [example.input for example in task.examples] == [
        "Name a colour.",
        "Translate.\ncat",
        "Count.",
    ]
    same = [{"instruction": "Say it.", "input": f"w{n}" if n else "", "output": "y"} for n in range(4)]
    task = load_task(write(tmp_path / "u.json", same))
    assert not task.fused and task.instructions == ("Say it.",) and len(task) == 3


# --- what holds the records ------------------------------------------------------------------------------------------


def test_parts_of_one_file(tmp_path: Path) -> None:
    content = {"train": [{"input": "a", "output": "b"}], "Test": [{"input": "c", "output": "d"}]}
    path = write(tmp_path / "both.json", content)
    assert [(e.input, e.part) for e in load_task(path).examples] == [("a", "train"), ("c", "Test")]
    assert load_task(path).name == "both" and found(load_task(path, part="Test")) == [("c", ("d",))]
    with pytest.raises(ValueError, match="part='dev', expected one of train, Test"):
        load_task(path, part="dev")
    columnar = {"train": {"text": ["a", "e"], "label": ["b", "f"]}, "test": [{"text": "c", "label": "d"}]}
    assert len(load_task(write(tmp_path / "u.json", columnar))) == 3
    # a dict of words is none of parts
    assert found(load_task(write(tmp_path / "v.json", {"train": "trains", "test": "tests"})))[0] == (
        "train",
        ("trains",),
    )


def test_what_stands_beside_the_records_is_said(tmp_path: Path) -> None:
    rows = [{"input": "a", "output": "b"}]
    about = check_task(
        write(tmp_path / "t.json", {"version": "1", "schema": {"x": 1}, "instruction": "Say.", "data": rows})
    )
    assert found(about.task) == [("a", ("b",))]
    assert about.notes == ("not read: what stands beside the records, under 'schema', 'instruction'",)
    with pytest.raises(ValueError, match="holds lists of records under 'rows', 'features', expected one such list"):
        load_task(write(tmp_path / "u.json", {"rows": rows, "features": [{"name": "input"}]}))


def test_many_columns_are_no_dict_of_answers(tmp_path: Path) -> None:
    more = {name: name for name in ("id", "url", "date", "author", "licence")}
    one = {"question": "a", "answer": "b", **more}
    for content in (one, {name: [value] for name, value in one.items()}):
        assert found(load_task(write(tmp_path / "t.json", content))) == [("a", ("b",))]
    wide = {name: [name] * 20 for name in (*one, *(f"c{n}" for n in range(9)))}
    assert found(load_task(write(tmp_path / "t.json", wide))) == [("question", ("answer",))]
    doubtful = {name: [value] * 2 for name, value in {**one, "source": "x"}.items()}
    with pytest.raises(ValueError, match="'question', 'source' could all be the input"):
        load_task(write(tmp_path / "t.json", doubtful))
    words = {f"w{n}": f"v{n}" for n in range(11)} | {"question": "answer", "answer": "reply"}
    assert len(load_task(write(tmp_path / "u.json", words))) == 13
    several = {word: [answer, "etc."] for word, answer in words.items()}
    assert len(load_task(write(tmp_path / "v.json", several))) == 13


def test_cells_of_any_length(tmp_path: Path) -> None:
    """Longer than the 131,072 letters that `csv` allows, in two threads at once, and without a trace."""
    before, wide = csv.field_size_limit(), "x" * 300_000
    paths = [write(tmp_path / f"{n}.csv", f'input,output\n"{wide}{n}",b\n') for n in range(4)]
    read: list[str] = []
    threads = [threading.Thread(target=lambda p=path: read.append(load_task(p).examples[0].input)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read) == [f"{wide}{n}" for n in range(4)] and csv.field_size_limit() == before


def test_tables_with_tabs(tmp_path: Path) -> None:
    lone = write(tmp_path / "t", 'input\toutput\n"hello\tworld\nsay "hi"\tthere"\n')
    assert found(load_task(lone)) == [('"hello', ("world",)), ('say "hi"', ('there"',))]
    quoted = write(tmp_path / "u", 'input\toutput\n"a ""b"""\t"c"\n"d\ne"\tf\n')
    assert found(load_task(quoted)) == [('a "b"', ("c",)), ("d\ne", ("f",))]
    index = write(tmp_path / "v", "\tinput\toutput\n0\ta\tb\n1\tc\td\n")
    assert found(load_task(index)) == [("a", ("b",)), ("c", ("d",))]
    ragged = write(tmp_path / "w", 'input\toutput\n"hello\tworld\nx\n')
    with pytest.raises(ValueError, match=r"line 3: has 1 cells, expected 2 \(input, output\)"):
        load_task(ragged)


def test_tables_as_excel_writes_them(tmp_path: Path) -> None:
    rows = 'input;output;note\r\nbig;small;"a;b"\r\nhot;cold;c,d,e,f\r\n'
    for text in (rows, f"sep=;\r\n{rows}", f"SEP=;\n{rows}"):
        path = tmp_path / "t.csv"
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_bytes(text.encode(encoding))
            assert found(load_task(path)) == [("big", ("small",)), ("hot", ("cold",))]
    path.write_text("sep=;\ninput;output\na\n")
    with pytest.raises(ValueError, match="line 3: has 1 cells, expected 2"):
        load_task(path)
    path.write_bytes(rows.encode("utf-16-le"))
    with pytest.raises(ValueError, match="it looks like a text in UTF-16 without a mark.*save it as UTF-8"):
        load_task(path)
    path.write_bytes(rows.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="is not UTF-16, expected a text file in UTF-16; save it as UTF-8"):
        load_task(path)
    path.write_bytes("in\0put,output\na,b".encode("utf-16"))
    with pytest.raises(ValueError, match="binary data"):
        load_task(path)


def test_packed_files(tmp_path: Path) -> None:
    rows = as_lines(ROWS["records"].rows([("big", "small"), ("hot", "cold")]))
    (tmp_path / "folder").mkdir()
    packed = tmp_path / "folder" / "train.jsonl.gz"
    packed.write_bytes(gzip.compress(rows[:40]) + gzip.compress(rows[40:]))  # two members, as gzip itself appends
    assert load_task(packed).name == "train" and len(load_task(packed)) == 2
    assert {example.part for example in load_task(tmp_path / "folder").examples} == {"train"}
    assert check_task(packed).format == "records in JSON Lines, packed by gzip"
    for data in (packed.read_bytes()[:-9], packed.read_bytes()[:30], b"\x1f\x8b", b"\x28\xb5\x2f\xfd\x00"):
        (tmp_path / "cut").write_bytes(data)
        with pytest.raises(ValueError, match="cut: is not a whole (gzip|zstd) file .*it may be cut off"):
            load_task(tmp_path / "cut")
    (tmp_path / "twice").write_bytes(gzip.compress(gzip.compress(rows)))
    with pytest.raises(ValueError, match="its format is unknown .it looks like packed twice"):
        load_task(tmp_path / "twice")


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_what_unfolds_to_far_more_than_its_size_is_refused(tmp_path: Path, packing: str, monkeypatch: Any) -> None:
    import pyarrow

    def packed(data: bytes) -> Path:
        path = tmp_path / "bomb"
        path.write_bytes(gzip.compress(data) if packing == "gzip" else pyarrow.compress(data, packing, asbytes=True))
        return path

    begin = b'[{"input": "a", "output": "b"}'
    with pytest.raises(
        ValueError, match=r"unfolds from [\d,]+ bytes to more than [\d,]+, expected at most 128 MiB, and"
    ):
        load_task(packed(begin + b" " * 10**8 + b"]"))
    assert len(load_task(packed(begin + b" " * 10**5 + b"]"))) == 1  # as many times as much, but little
    monkeypatch.setattr("ivlens.tasks.formats.contents.LARGEST_FILE", 10**4)
    with pytest.raises(ValueError, match="unfolds from .* to more than 10,000"):
        load_task(packed(begin + b" " * 10**5 + b"]"))


UNKNOWN = {
    "toml": ('[tool]\na = [1, 2]\nname = "x"\n', "TOML"),
    "toml like a table": ("a = [1, 2]\nb = [3, 4]\n", "TOML"),
    "grid": ('tasks = ["antonym"]\n[effects]\nn_prompts = 4\n', "TOML"),
    "yaml": ("input: a\noutput: b\n", "YAML or plain text"),
    "xml": ("<a>\n<b/>\n</a>\n", "XML or HTML"),
    "python": ("[{'input': 'a', 'output': 'b'}]", "a value printed by Python"),
    "jinja": ("{% for m in messages %}{{ m }}{% endfor %}", "plain text"),
    "prose": ("A text, of one sentence.\nAnother sentence.\n", "plain text"),
    "zip": ("PK\x03\x04...", "a zip archive"),
    "pickle": (b"\x80\x04\x95...", "a pickle, which may run code"),
    "png": (b"\x89PNG\r\n\x1a\n", "an image"),
    "sqlite": ("SQLite format 3\x00", "an SQLite database"),
    "arrow": ("ARROW1\x00\x00", "an Arrow file"),
    "zeros": (b"\x01\x00\x02\x00", "binary data"),
}


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_an_unknown_format_is_called_unknown(tmp_path: Path, name: str) -> None:
    content, looks_like = UNKNOWN[name]
    path = tmp_path / "t.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = f"t.json: its format is unknown .it looks like {looks_like}.*, expected JSON, JSON Lines, CSV or TSV"
    with pytest.raises(ValueError, match=message):
        load_task(path)


def test_what_is_nearly_json_is_still_called_json(tmp_path: Path) -> None:
    for content in ('[{"a": 1', '{"a": tru', "[1, 2", '[\n  "a",', "[[[", "{"):
        with pytest.raises(ValueError, match="is not JSON"):
            load_task(write(tmp_path / "t", content))


# --- Hugging Face datasets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["messages", "squad", "choices", "choices with labels", "alpaca"])
def test_records_of_every_kind_in_a_folder_that_datasets_saved(tmp_path: Path, rows: str) -> None:
    import datasets

    records = [("big", "small"), ("hot", "cold")]
    written = [{**row, "unread": n} for n, row in enumerate(ROWS[rows].rows(records))]
    dataset = datasets.Dataset.from_list(written)
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(str(tmp_path / "saved"))
    expected = [(ROWS[rows].input(text, answer), (answer,)) for text, answer in records]
    assert found(load_task(tmp_path / "saved", part="train")) == expected
    about = check_task(tmp_path / "saved", part="test")
    assert "unread" in about.columns and ("--input-column", "unread", None) in about.others


def test_a_copy_of_a_dataset_has_its_files_in_data(tmp_path: Path) -> None:
    (tmp_path / "copy" / "data").mkdir(parents=True)
    write(tmp_path / "copy" / "README.md", "# about")
    rows = ROWS["records"].rows([("big", "small")])
    (tmp_path / "copy" / "data" / "train-00000-of-00001.parquet").write_bytes(HOLDERS["parquet"](rows))
    task = load_task(tmp_path / "copy")
    assert task.name == "copy" and found(task) == [("big", ("small",))]


# --- check_task ------------------------------------------------------------------------------------------------------


def test_check_says_how_a_file_was_read(tmp_path: Path) -> None:
    rows = "id,question,gold,answer\n1,big,small,no\n2,hot,cold,no\n3,,x,no\n4,hot,icy,no\n"
    about = check_task(write(tmp_path / "t.csv", rows), output_column="gold")
    assert about.format == "records in a table with commas" and about.columns == ("id", "question", "gold", "answer")
    assert about.uses == (("input", "question"), ("answer", "gold"))
    assert (about.n_records, len(about.task), about.n_merged) == (4, 2, 1)
    assert about.left_out == ((1, "no input", "line 4"),)
    assert set(about.others) == {
        ("--input-column", "id", "1"), ("--input-column", "answer", "no"),
        ("--answer-column", "id", "1"), ("--answer-column", "answer", "no"),
    }  # fmt: skip
    said = str(about)
    assert about.unread == ("id", "answer") and "not read: 'id', 'answer'" in said
    for line in (
        "t: records in a table with commas", "read: input from 'question', answer from 'gold'",
        "4 records, 2 examples, 0 instructions", "  'big' -> 'small'", "  'hot' -> 'cold' / 'icy'",
        "  1 of 4 records: no input (first: line 4)", "  1 repeated inputs: their answers were added to those of the "
        "first", "  --answer-column answer: the first answer would be 'no'",
    ):  # fmt: skip
        assert line in said.splitlines()
    assert json.loads(json.dumps(about.to_dict()))["others"][0] == {
        "option": "--input-column",
        "column": "id",
        "text": "1",
    }


def test_options_are_said_as_they_are_typed(tmp_path: Path) -> None:
    rows = "-h,my column,,input,output\na,b,c,d,e\n"
    said = str(check_task(write(tmp_path / "t.csv", rows)))
    assert "  --input-column=-h: the first input would be 'a'\n" in said
    assert "  --answer-column 'my column': the first answer would be 'b'" in said
    assert "would be 'c'" not in said and "not read: '-h', 'my column', ''\n" in said, "no name, no option"
    wide = ",".join(["input", "output", *(f"c{n}" for n in range(30))])
    assert str(check_task(write(tmp_path / "u.csv", f"{wide}\n{wide}\n"))).endswith("\n  and 10 more")


def test_columns_that_cannot_be_told_are_named_together(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "Word,Source,Gegenteil\nbig,me,small\n")
    with pytest.raises(
        ValueError, match="'Word', 'Source' could all be the input, expected exactly one usual name for"
    ):
        load_task(path)
    with pytest.raises(ValueError, match="name them with input_column= .--input-column. and output_column= .--answer"):
        load_task(path)
    with pytest.raises(ValueError, match="usual name for the output .*; name it with output_column="):
        load_task(path, input_column="Word")


def test_check_of_what_is_no_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    about = check_task(write(tmp_path / "t.json", {"a": ["b", "c"], "d": None}))
    assert about.format == "a JSON dict of inputs and their answers" and not about.uses and not about.others
    assert about.left_out == ((1, "no answer", "key 'd'"),) and not caplog.text, "the answer says it, not the log"
    assert check_task("antonym").format == "a built-in task"
    with pytest.raises(ValueError, match="expected exactly one usual name for the input .*--input-column"):
        check_task(write(tmp_path / "u.json", [{"stem": 1, "gold": 2}]))


@real_files
def test_check_of_published_files() -> None:
    expected = {
        "function_vectors/abstractive/antonym.json": "records in a JSON list",
        "ni/task363_sst2_polarity_classification.json": "a Natural-Instructions task",
        "long/CB": "records in a JSON list; a file for each part (train.json, test.json)",
    }
    assert {name: check_task(SHARED / name).format for name in expected} == expected
