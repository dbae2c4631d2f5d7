"""What a model says in place of the right answer: kinds of answers, by examples written here and by pocket's own."""

from dataclasses import replace

import pytest

from ivlens import PromptRecipe, Task, TaskExample, load_model, load_task
from ivlens.analysis.forgetting import SAID, ProbeOptions, answers_said, general_scores, shares_said
from ivlens.analysis.forgetting.answers import _kind


def task(name, **answers):
    return Task(name, [TaskExample(asked.replace("_", " "), given) for asked, given in answers.items()], ("Do it.",))


OPPOSITE = task("opposite", big="small", hot="cold")
LETTER = task("letter", big="i", tall="a")
FRENCH = task("french", big="grand", hot="chaud")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("i", "new"),  # the new task's answer to this input
        ("big", "copied"),
        ("cold", "own"),  # an answer of the task, to another input
        ("grand", "earlier"),  # another earlier task's, to this input
        ("chaud", "other"),  # ... which knows this input, and answers otherwise
        ("a", "other"),
        ("ink", "other"),  # begins with a longer word
        ("grand!", "earlier"),
        ("", "other"),
    ],
)
def test_kinds(said, kind):
    assert _kind(said, "big", OPPOSITE, [LETTER], [FRENCH]) == kind


def test_a_new_task_that_does_not_know_the_input_may_give_any_of_its_answers():
    assert _kind("a", "hot", OPPOSITE, [LETTER], [FRENCH]) == "new"
    assert _kind("hot", "hot", OPPOSITE, [task("copies", cold="hot")], []) == "copied"  # sooner than any new answer
    assert _kind("red", "red, blue", OPPOSITE, [], []) == "copied"  # the first word


def test_words_end_as_they_do_for_accuracy():
    """After a full stop a letter begins a word, Han has no spaces, and a mark belongs to the letter before it."""
    other = task("other", a="U.S.", b="大", c="cafe")
    assert _kind("U.S.A", "x", other, [], []) == _kind("大学", "x", other, [], []) == "own"
    assert _kind("cafe\u0301", "x", other, [], []) == "other"
    assert _kind("anything", "... and more", other, [], []) == "other"  # the first word without its marks is empty


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


def test_a_model_that_knows_its_tasks_says_the_right_answers(pocket):
    tasks = [load_task("antonym"), load_task("country_capital")]
    found = answers_said(pocket, tasks, [load_task("second_letter")], ProbeOptions(n_prompts=8))
    assert list(found.columns) == ["task", "input", "said", "kind"] and len(found) == 16
    by_input = {(one.name, example.input): example.answers for one in tasks for example in one.examples}
    for row in found.to_dict("records"):
        right = any(row["said"].startswith(answer) for answer in by_input[row["task"], row["input"]])
        assert right == (row["kind"] == "right")
    shares = shares_said(found)
    assert list(shares.columns) == list(SAID) and shares.sum(axis=1).to_numpy() == pytest.approx(1)
    assert shares.loc["country_capital", "right"] > 0.8


def test_another_instruction_gives_the_other_tasks_answers(pocket):
    """Told to give first letters, pocket answers the inputs of *antonym* with letters."""
    told = PromptRecipe(instruction="Give the first letter of the word.")
    found = answers_said(
        pocket, [load_task("antonym")], [load_task("first_letter")], ProbeOptions("test", 16, recipe=told)
    )
    assert (found["kind"] == "new").mean() > 0.8


def test_names_must_be_distinct(pocket):
    with pytest.raises(ValueError, match="distinct names"):
        answers_said(pocket, [load_task("antonym")], [load_task("antonym")])
    with pytest.raises(ValueError, match="empty"):
        answers_said(pocket, [])


def test_general_scores_are_those_of_the_two_forms(pocket):
    tasks = [load_task("synonym"), load_task("first_letter")]
    found = general_scores(pocket, tasks, n_prompts=6).set_index(["measure", "task"])["value"]
    assert found.index.tolist() == [
        ("perplexity", "plain text"), *((measure, one.name) for measure in ("gp", "ip") for one in tasks)
    ]  # fmt: skip
    assert found["gp", "first_letter"] == 1.0 and found["perplexity", "plain text"] > 1
    shorter = general_scores(pocket, [], text="the cat is big\nthe dog is small\n")
    assert shorter["measure"].tolist() == ["perplexity"]
    assert shorter["value"][0] != pytest.approx(found["perplexity", "plain text"])
    with pytest.raises(ValueError, match="text is '', which has too few words"):
        general_scores(pocket, [], text="")


def test_general_tasks_have_to_be_told_by_an_instruction(pocket):
    """Otherwise `gp` would be asked by demonstrations, as `ip` is."""
    untold = replace(load_task("antonym"), instructions=())
    with pytest.raises(ValueError, match="neither an instruction nor demonstrations"):
        general_scores(pocket, [untold], n_prompts=2)


def test_no_answers_have_no_shares(pocket):
    found = answers_said(pocket, [load_task("antonym")], options=ProbeOptions(n_prompts=2))
    assert shares_said(found[:0]).empty and list(shares_said(found[:0]).columns) == list(SAID)
