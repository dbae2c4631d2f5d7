"""The rules of the built-in task bank, held for every file; read here from the files, not through the library."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ivlens
from ivlens.tasks import Task, list_tasks, load_bank, split_of

FOLDER = Path(ivlens.__file__).parent / "data" / "bank"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
RAW: dict[str, dict[str, Any]] = {name: json.loads(path.read_text("utf-8")) for name, path in FILES.items()}
KINDS = {"lexical", "rule", "fact", "morphology", "sequence", "choice"}
KEPT_OUT = {"second_letter", "first_and_last_letter", "middle_of_three", "shortest_of_three", "swap_pair"}
FEWER_PAIRS = {"element_symbol": 118}  # the world has no more
FUNCTION_WORDS = set(
    "a an the this that these those it its is are was be been being do does did can could would should will may might "
    "must of in on at to for from by with without as into out up off about between after before and or but not no so "
    "than then what which who whom whose when where how why if you your i me my we us one ones them they here there "
    "just only please each every all any some such other same very own have has had".split()
)

each_task = pytest.mark.parametrize("name", list(FILES))


def words(text: str) -> set[str]:
    """Distinct lower-case words, punctuation stripped."""
    return {word for token in text.lower().split() if (word := token.strip(".,;:!?()[]'\"-"))}


def answers(record: dict[str, Any]) -> list[str]:
    output = record["output"]
    return [output] if isinstance(output, str) else output


def texts(raw: dict[str, Any]) -> Iterator[str]:
    for key in ("instructions", "held_out_instructions", "clozes", "prose"):
        yield from raw[key]


# --- the bank as a whole ---------------------------------------------------------------------------------------------


def test_there_are_enough_tasks() -> None:
    trained = [raw for raw in RAW.values() if raw["in_training"]]
    assert len(trained) >= 24
    assert sum(raw["inputs"] == "words" for raw in trained) >= 10
    assert {raw["kind"] for raw in trained} == KINDS


def test_five_tasks_are_kept_out_and_most_are_rules() -> None:
    kept_out = {name for name, raw in RAW.items() if not raw["in_training"]}
    assert kept_out == KEPT_OUT
    assert len(kept_out & RULES.keys()) >= 3


def test_tasks_of_a_group_have_identical_inputs() -> None:
    groups: dict[str, dict[str, list[str]]] = {}
    for name, raw in RAW.items():
        groups.setdefault(raw["inputs"], {})[name] = [record["input"] for record in raw["examples"]]
    for group, inputs in groups.items():
        first = next(iter(inputs.values()))
        different = [name for name, own in inputs.items() if sorted(own) != sorted(first)]
        assert not different, f"{group}: {different}"


def test_at_least_three_tasks_have_answers_of_several_words() -> None:
    several = [
        name
        for name, raw in RAW.items()
        if raw["in_training"]
        and sum(" " in answers(record)[0] for record in raw["examples"]) > len(raw["examples"]) / 2
    ]
    assert len(several) >= 3, several


def test_no_two_tasks_share_a_cloze_an_instruction_or_a_sentence() -> None:
    for key in ("clozes", "prose", "instructions", "held_out_instructions"):
        counts = Counter(text.lower().strip(" .?!") for raw in RAW.values() for text in raw[key])
        assert not [text for text, count in counts.items() if count > 1], key
    held = {text.lower() for raw in RAW.values() for text in raw["held_out_instructions"]}
    assert not held & {text.lower() for raw in RAW.values() for text in raw["instructions"]}


def test_no_cloze_is_the_beginning_of_another_tasks() -> None:
    clozes = [(name, cloze) for name, raw in RAW.items() for cloze in raw["clozes"]]
    for name, one in clozes:
        assert not [two for other, two in clozes if name != other and f"{two} ".startswith(f"{one} ")], one


# --- every file ------------------------------------------------------------------------------------------------------


@each_task
def test_file_is_laid_out_for_reading(name: str) -> None:
    text = FILES[name].read_text("utf-8")
    raw = RAW[name]
    assert raw["name"] == name
    assert raw["kind"] in KINDS
    assert text.endswith("}\n") and "\\u" not in text
    lines = text.splitlines()
    assert sum('"input"' in line for line in lines) == len(raw["examples"])
    for instruction in raw["instructions"]:
        assert sum(json.dumps(instruction, ensure_ascii=False) in line for line in lines) == 1, instruction


@each_task
def test_counts(name: str) -> None:
    raw = RAW[name]
    assert len(raw["examples"]) >= FEWER_PAIRS.get(name, 120)
    assert len(raw["instructions"]) >= 16
    assert len(raw["held_out_instructions"]) == 2
    assert len(raw["clozes"]) >= 4
    assert len(raw["prose"]) >= 3


@each_task
def test_pairs_are_clean(name: str) -> None:
    records = RAW[name]["examples"]
    inputs = Counter(record["input"] for record in records)
    assert max(inputs.values()) == 1, inputs.most_common(3)
    for record in records:
        listed = answers(record)
        assert listed and len(set(listed)) == len(listed), record
        for text in [record["input"], *listed]:
            assert isinstance(text, str) and text == " ".join(text.split()) and text, record
        assert set(record) == {"input", "output"}, record


@pytest.mark.parametrize("name", ["antonym", "synonym"])
def test_no_word_answers_itself(name: str) -> None:
    assert not [record for record in RAW[name]["examples"] if record["input"] in answers(record)]


def test_no_synonym_is_an_antonym() -> None:
    opposite = {record["input"]: set(answers(record)) for record in RAW["antonym"]["examples"]}
    both = [r["input"] for r in RAW["synonym"]["examples"] if opposite[r["input"]] & set(answers(r))]
    assert not both


@each_task
def test_instructions_read_naturally(name: str) -> None:
    raw = RAW[name]
    for instruction in raw["instructions"] + raw["held_out_instructions"]:
        assert instruction.isascii() and instruction == " ".join(instruction.split()), instruction
        assert instruction[0].isupper() and instruction[-1] in ".?!", instruction
        assert 3 <= len(instruction.split()) <= 14, instruction
        assert not words(instruction) & {"below", "above", "following"}, instruction
        assert not set('{}:="') & set(instruction), instruction


@each_task
def test_running_text_looks_like_no_task_format(name: str) -> None:
    raw = RAW[name]
    for text in raw["clozes"] + raw["prose"]:
        assert text.isascii() and text == " ".join(text.split()), text
        assert not re.search(r"\b(input|output|instruction|answer)\b|Q:|A:|[\":=]|->", text, flags=re.IGNORECASE), text
    for cloze in raw["clozes"]:
        assert cloze.count("{x}") == 1 and "{y}" not in cloze and cloze[-1] not in ".?!", cloze
        assert cloze not in ("{x} is", "The {x} is"), cloze
    for sentence in raw["prose"]:
        assert "{x}" in sentence and sentence.count("{y}") >= 1 and sentence[-1] in ".!?", sentence


@each_task
def test_held_out_instructions_are_new_combinations(name: str) -> None:
    raw = RAW[name]
    for held in raw["held_out_instructions"]:
        for seen in raw["instructions"]:
            assert len(words(held) & words(seen)) <= len(words(held)) / 2, (held, seen)


@each_task
def test_held_out_instructions_are_made_of_known_words(name: str) -> None:
    raw = RAW[name]
    counts = Counter(word for seen in raw["instructions"] for word in words(seen))
    anywhere = {
        word for other in RAW.values() if other["in_training"] for seen in other["instructions"] for word in words(seen)
    }
    for held in raw["held_out_instructions"]:
        content = words(held) - FUNCTION_WORDS
        assert not {word for word in content if counts[word] < 2}, held
        if raw["in_training"]:
            assert words(held) <= anywhere, held


# --- what can be computed is right -----------------------------------------------------------------------------------

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_words(text: str) -> str:
    n = int(text)
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{ONES[n // 100]} hundred" + (f" {number_words(str(n % 100))}" if n % 100 else "")
    return f"{number_words(str(n // 1000))} thousand" + (f" {number_words(str(n % 1000))}" if n % 1000 else "")


def by_length(text: str, last: int) -> str:
    """The one longest (-1) or shortest (0) word, or nothing where two are equally long."""
    ordered = sorted(text.split(), key=len)
    return ordered[last] if len(ordered[last]) != len(ordered[1]) else ""


RULES: dict[str, Callable[[str], str]] = {
    "capitalize": lambda x: x[0].upper() + x[1:],
    "uppercase": str.upper,
    "first_letter": lambda x: x[0],
    "second_letter": lambda x: x[1],
    "last_letter": lambda x: x[-1],
    "first_and_last_letter": lambda x: f"{x[0]} {x[-1]}",
    "length": lambda x: str(len(x)),
    "double": lambda x: f"{x} {x}",
    "spell": " ".join,
    "first_of_three": lambda x: x.split()[0],
    "middle_of_three": lambda x: x.split()[1],
    "last_of_three": lambda x: x.split()[2],
    "longest_of_three": lambda x: by_length(x, -1),
    "shortest_of_three": lambda x: by_length(x, 0),
    "swap_pair": lambda x: " ".join(reversed(x.split())),
    "number_word": number_words,
}


@pytest.mark.parametrize("name", list(RULES))
def test_rule_tasks_follow_their_rule(name: str) -> None:
    for record in RAW[name]["examples"]:
        computed = RULES[name](record["input"])
        assert computed.replace("-", " ") == answers(record)[0].replace("-", " ").replace(" and ", " "), record


@pytest.mark.parametrize(("group", "n_words"), [("words", 1), ("triples", 3), ("pairs", 2), ("verbs", 1), ("nouns", 1)])
def test_inputs_have_their_number_of_words(group: str, n_words: int) -> None:
    for name in list_tasks(group=group):
        for record in RAW[name]["examples"]:
            parts = record["input"].split()
            assert len(parts) == n_words == len(set(parts)), (name, record)


def test_next_and_previous_undo_each_other() -> None:
    ahead = {record["input"]: answers(record) for record in RAW["next_item"]["examples"]}
    back = {record["input"]: answers(record) for record in RAW["previous_item"]["examples"]}
    for item, following in ahead.items():
        if following[0] in back:
            assert item in back[following[0]], item


def test_capitals_agree_in_both_directions() -> None:
    capital = {record["input"]: answers(record) for record in RAW["country_capital"]["examples"]}
    for record in RAW["capital_country"]["examples"]:
        country = answers(record)[0]
        if country in capital:
            assert record["input"] in capital[country], record


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("present_gerund", r"[a-z]+ing"),
        ("third_person", r"[a-z]+s"),
        ("noun_article", r"an? [a-z]+"),
        ("comparative", r"more [a-z-]+|[a-z]+(er|se|ss)|further"),
        ("element_symbol", r"[A-Z][a-z]?"),
        ("length", r"[0-9]+"),
    ],
)
def test_answers_have_the_form_of_their_task(name: str, pattern: str) -> None:
    wrong = [record for record in RAW[name]["examples"] if not re.fullmatch(pattern, answers(record)[0])]
    assert not wrong


def test_articles_follow_the_sound() -> None:
    silent_h = dict.fromkeys(("hour", "heir", "honor"), "an")
    spoken_y = dict.fromkeys(("university", "uniform", "unicorn", "unicycle", "ukulele", "ewe", "euro", "utensil"), "a")
    for record in RAW["noun_article"]["examples"]:
        noun = record["input"]
        article = (silent_h | spoken_y).get(noun, "an" if noun[0] in "aeiou" else "a")
        assert answers(record)[0] == f"{article} {noun}", record


# --- what the library makes of it ------------------------------------------------------------------------------------


def test_the_library_reads_every_file_whole() -> None:
    bank = load_bank()
    assert list(bank) == list(FILES) == list_tasks()
    for name, task in bank.items():
        raw = RAW[name]
        assert [(e.input, list(e.answers)) for e in task.examples] == [
            (r["input"], answers(r)) for r in raw["examples"]
        ]
        assert list(texts(raw)) == [*task.instructions, *task.held_out_instructions, *task.clozes, *task.prose]
        assert (task.kind, task.inputs, task.in_training) == (raw["kind"], raw["inputs"], raw["in_training"])
        assert not task.skipped and not task.fused


@each_task
def test_splits_are_sane_and_disjoint(name: str) -> None:
    task: Task = load_bank()[name]
    fit, select, test = (task.split(side) for side in ("fit", "select", "test"))
    assert sorted(e.input for e in fit + select + test) == sorted(e.input for e in task.examples)
    assert 0.38 <= len(fit) / len(task) <= 0.62
    assert 0.15 <= len(select) / len(task) <= 0.36
    assert 0.15 <= len(test) / len(task) <= 0.36


def test_tasks_that_share_an_input_have_it_on_the_same_side() -> None:
    for task in load_bank().values():
        assert all(split_of(example.input) == "test" for example in task.split("test"))
