"""The recipe: one way to say how prompts are made, its defaults, its file, and the same prompts for whoever asks."""

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import tiny_task
from hypothesis import given, settings
from hypothesis import strategies as st

from ivlens import load_model, load_task
from ivlens.prompts import CORRUPTIONS, TASK, PromptRecipe, PromptTemplate, build_prompts
from ivlens.prompts.corruptions import check_corruption
from ivlens.prompts.templates import TEMPLATES

MINE = PromptTemplate("mine", "{instruction} {input} =", "{input} =", "{input} = {answer}\n")
SPOKEN = PromptTemplate("spoken", "{instruction} {input}", "{input}", chat=True, system="Be brief.", answer_start="A:")


@pytest.mark.parametrize(
    ("task", "recipe", "n_shots", "corruption"),
    [
        (tiny_task(), PromptRecipe(), 0, "counterfactual"),
        (tiny_task(), PromptRecipe(instruction=None), 5, "shuffle"),
        (tiny_task(), PromptRecipe(instruction="Do it.", n_shots=2), 2, "counterfactual"),
        (replace(tiny_task(), instructions=()), PromptRecipe(), 5, "shuffle"),
        (replace(tiny_task(), fused=True), PromptRecipe(), 0, "none"),
        (replace(tiny_task(), fused=True), PromptRecipe(n_shots=1), 1, "none"),
        (replace(tiny_task(), fused=True), PromptRecipe(n_shots=3), 3, "shuffle"),
        (replace(tiny_task(), instructions=(), examples=tiny_task().examples[:4]), PromptRecipe(), None, "shuffle"),
    ],
)
def test_defaults_follow_from_what_tells_the_task(task, recipe, n_shots, corruption):
    if n_shots is None:  # as many as there are beside the query
        n_shots = len(task.split("fit")) - 1
    assert recipe.shots(task) == n_shots == recipe.resolved(task).n_shots
    assert recipe.corruption(task) == corruption


RECIPES = st.builds(
    PromptRecipe,
    st.sampled_from([*TEMPLATES, MINE, SPOKEN]),
    st.one_of(st.sampled_from([TASK, None, "Do it.", ("A.", "B.")]), st.lists(st.text(min_size=3), min_size=1)).filter(
        lambda given: not isinstance(given, list) or all(text.strip() for text in given)
    ),
    st.one_of(st.none(), st.integers(0, 9)),
    st.integers(0, 2**40),
)


@given(RECIPES)
def test_a_recipe_survives_json(recipe):
    assert PromptRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert PromptRecipe.recorded({"recipe": recipe.to_dict(), "score": "prob"}) == recipe


def test_what_older_files_record():
    old = {"template": "qa", "n_shots": 3, "seed": 7, "corruption": "counterfactual"}
    assert PromptRecipe.recorded(old) == PromptRecipe("qa", n_shots=3, seed=7)
    assert PromptRecipe.recorded(old | {"corruption": "shuffle"}) == PromptRecipe("qa", None, 3, 7)
    assert PromptRecipe.recorded({"score": "prob"}) is None
    assert PromptRecipe.recorded(old | {"template": "mine.json"}) is None  # a file that another file names is not read
    with pytest.raises(ValueError, match="expected one of plain, after, qa, chat, or its fields"):
        PromptRecipe.from_dict(PromptRecipe().to_dict() | {"template": "mine.json"})


def test_a_recipe_in_a_file_is_read_as_it_is_meant():
    values = PromptRecipe("qa", "Give it.").to_dict()
    assert PromptRecipe.from_dict(values | {"instruction": "Give it."}) == PromptRecipe("qa", "Give it.")  # one text
    with pytest.raises(ValueError, match="a recipe lacks instruction"):
        PromptRecipe.from_dict({name: value for name, value in values.items() if name != "instruction"})


def test_other_tasks_are_asked_by_their_own_instructions():
    own = PromptRecipe("qa", "Give the opposite.", 0, seed=3)
    assert own.for_other_tasks() == PromptRecipe("qa", TASK, None, seed=3)
    assert PromptRecipe(instruction=None, n_shots=0).for_other_tasks() == PromptRecipe(instruction=None, n_shots=0)
    own.check_for([tiny_task()])
    PromptRecipe().check_for([tiny_task(), tiny_task("synonym")])
    with pytest.raises(
        ValueError, match="an instruction of its own, 'Give the opposite.', for the tasks antonym, synonym"
    ):
        own.check_for([tiny_task(), tiny_task("synonym")])


def test_a_template_may_be_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"instructed": MINE.instructed, "bare": MINE.bare, "demonstration": MINE.demonstration}))
    recipe = PromptRecipe(str(path))
    assert recipe.template == replace(MINE, separator=" ") == MINE
    path.unlink()
    assert PromptRecipe.from_dict(recipe.to_dict()) == recipe  # the content is kept, not the path
    with pytest.raises(FileNotFoundError, match="does not exist, expected a JSON file"):
        PromptRecipe(str(path))
    for text, message in (("[1]", "holds no template"), ("{", "holds no template"), ('{"bare": 3}', "bare is 3")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            PromptRecipe(str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "fancy"}, "template is 'fancy', expected one of plain, after, qa, chat"),
        ({"n_shots": -1}, "n_shots is -1, expected 0 or more"),
        ({"instruction": ""}, "expected texts that are not empty; None means none"),
        ({"instruction": ()}, "expected texts that are not empty"),
        ({"instruction": "one", "template": "after", "n_shots": True}, "n_shots is True, expected a whole number"),
    ],
)
def test_what_no_recipe_has(options, message):
    with pytest.raises((ValueError, TypeError), match=f"{message}|annotation"):
        PromptRecipe(**options)


def test_an_instruction_for_a_task_that_carries_its_own():
    with pytest.raises(ValueError, match="instruction and input in one text, but the recipe has an instruction"):
        PromptRecipe(instruction="Do it.").texts(replace(tiny_task(), fused=True))


def test_it_reads_well():
    assert str(PromptRecipe("qa", None, 3)) == "template qa, no instruction, 3 demonstrations, seed 0"
    assert "&lt;b&gt;" in PromptRecipe(instruction="<b>")._repr_html_()


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


NAMES = ("antonym", "english_french", "country_capital", "first_of_three", "next_item")


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(["plain", "after", "qa", MINE]),
    st.integers(0, 3),
    st.sampled_from([TASK, None, "Do it."]),
    st.sampled_from([None, *CORRUPTIONS]),
    st.integers(0, 3),
)
def test_a_corruption_takes_away_what_tells_the_task_and_nothing_else(
    pocket, name, template, n_shots, instruction, corruption, seed
):
    task = load_task(name)
    recipe = PromptRecipe(template, instruction, n_shots, seed)
    examples = task.split("select", seed)[:3]
    if not n_shots and instruction is None and corruption not in (None, "none"):
        with pytest.raises(ValueError):
            check_corruption(corruption, task, 0, 0)
    try:
        check_corruption(corruption, task, len(recipe.texts(task)), n_shots)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            build_prompts(pocket.tokenizer, task, examples, recipe, corruption=corruption)
        return
    clean = build_prompts(pocket.tokenizer, task, examples, recipe)
    other = build_prompts(pocket.tokenizer, task, examples, recipe, corruption=corruption)
    assert other.examples == clean.examples and torch.equal(other.answer_tokens, clean.answer_tokens)
    assert torch.equal(other.tokens[:, -1], clean.tokens[:, -1])  # the same cue
    for row, example in enumerate(examples):
        kind = other.corruptions[row]
        same = other.texts[row] == clean.texts[row]
        assert same == (kind in ("clean", "none"))
        assert example.input in other.texts[row]
        if kind == "drop":
            bare = replace(recipe, instruction=None, n_shots=0)
            assert other.texts[row] == build_prompts(pocket.tokenizer, task, [example], bare).texts[0]
        if kind in ("counterfactual", "counterfactual_inputs"):
            assert (other.instructions[row] is None) == (instruction is None)
            assert other.counterfactuals[row] not in (None, task.name)
        if kind == "shuffle":
            assert other.instructions[row] is None
    again = build_prompts(pocket.tokenizer, task, examples, recipe, corruption=corruption)
    assert again.texts == other.texts


def test_a_counterfactual_is_never_the_clean_prompt(pocket):
    """Another task may have the same answers to the demonstrations' inputs: then it is no counterfactual."""
    task = load_task("first_of_three")
    for seed in range(3):
        recipe = PromptRecipe("plain", None, 1, seed)
        examples = task.split("select", seed)[:8]
        clean = build_prompts(pocket.tokenizer, task, examples, recipe)
        other = build_prompts(pocket.tokenizer, task, examples, recipe, corruption="counterfactual")
        assert not {*clean.texts} & {*other.texts}
