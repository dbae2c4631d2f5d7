"""One recipe, the same prompts: effects, judgements, probes, exams, trainings and the lab ask a model in one way."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivlens import EffectOptions, PromptRecipe, head_effects, load_model, load_task
from ivlens.analysis.forgetting import ProbeOptions, probabilities, probe
from ivlens.effects import measure
from ivlens.prompts import TASK, PromptTemplate, build_prompts
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.state import LabState
from ivlens.steering.prompt_sets import PromptSets
from ivlens.tuning.data import training_set
from ivlens.tuning.exams import make_exam

MINE = PromptTemplate("mine", "{instruction} {input} =", "{input} =", "{input} = {answer}\n")
TASKS = ("antonym", "english_french", "country_capital", "first_of_three", "next_item", "noun_article")
RECIPES = st.builds(
    PromptRecipe,
    st.sampled_from(["plain", "after", "qa", MINE]),
    st.sampled_from([TASK, None, "Do it."]),
    st.integers(0, 3),
    st.integers(0, 3),
).filter(lambda recipe: recipe.instruction is not None or recipe.n_shots)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


def texts_of(pocket, tokens, mask):
    return [
        pocket.tokenizer.decode(row[kept == 1], skip_special_tokens=True)
        for row, kept in zip(tokens, mask, strict=True)
    ]


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(TASKS), recipe=RECIPES)
def test_whoever_asks_makes_the_same_prompts(pocket, name, recipe):
    task = load_task(name)
    seen = []

    def watched(*args, **options):
        seen.append(build_prompts(*args, **options))
        return seen[-1]

    def clean(examples, corruption=None):
        return build_prompts(pocket.tokenizer, task, examples, recipe, corruption=corruption)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "build_prompts", watched)
        patch.setattr(probabilities, "build_prompts", watched)
        few = EffectOptions(n_mean_prompts=2, layers=[0], heads=[0])
        corruption = None if recipe.n_shots != 1 or recipe.instruction is not None else "drop"  # one cannot be shuffled
        effects = head_effects(pocket, task, recipe=recipe, corruption=corruption, n_prompts=2, options=few)
        corrupted, asked = seen
        probe(pocket, [task], ProbeOptions(n_prompts=2, n_clozes=1, recipe=recipe))
        probed = seen[2] if len(seen[2]) <= 2 else next(batch for batch in seen[2:] if len(batch) <= 2)
    assert effects.recipe == recipe
    assert asked.texts == clean(asked.examples).texts
    kind = recipe.corruption(task) if corruption is None else corruption
    assert set(corrupted.texts) <= set(clean(corrupted.examples, kind).texts)
    assert probed.texts == clean(probed.examples).texts

    sets = PromptSets(pocket, task, recipe, n_prompts=2)
    judged, bare = sets.batch("test", corrupted=False), sets.batch("test")
    assert judged.texts == clean(judged.examples).texts
    assert bare.texts == clean(bare.examples, "drop").texts

    examples = task.split("select", recipe.seed)[:2]
    one = [replace(example, answers=example.answers[:1]) for example in examples]
    exam = make_exam(pocket, [(task, one)], recipe=recipe)
    wanted = sorted(texts_of(pocket, *(getattr(clean(one), part) for part in ("tokens", "attention_mask"))))
    assert sorted(texts_of(pocket, exam.data.tokens, exam.data.attention_mask)) == wanted

    engine = Engine(pocket, {task.name: task})
    for example, text, instruction in zip(examples, clean(examples).texts, clean(examples).instructions, strict=True):
        shown = LabState(
            task=task.name,
            text=example.input,
            instruction=instruction or "",
            template=recipe.template,
            n_shots=recipe.n_shots,
        )
        assert engine.prompt(shown, recipe.seed) == text


def test_a_training_asks_as_its_recipe_says(pocket):
    task = load_task("antonym")
    for recipe in (PromptRecipe("qa"), PromptRecipe(instruction=None, n_shots=2), PromptRecipe(MINE, "Do it.", 1)):
        data = training_set(pocket, task, task.split("fit")[:4], recipe=recipe)
        for text in texts_of(pocket, data.tokens, data.attention_mask):
            assert text.count("=" if recipe.template == MINE else "Q:" if recipe.template == "qa" else "Input:") == (
                1 + recipe.n_shots if recipe.n_shots else 1
            )
            assert ("Do it." in text) == (recipe.instruction == "Do it.")
