"""One recipe, the same prompts: effects, judgements, probes, exams, trainings and the lab ask a model in one way."""

import json
from dataclasses import replace

import pytest
import warm
from hypothesis import given, settings
from hypothesis import strategies as st

from ivlens import EffectOptions, InstructionVector, PromptRecipe, Setting, head_effects, load_model, load_task, steer
from ivlens.analysis.forgetting import ProbeOptions, probabilities, probe
from ivlens.effects import plan
from ivlens.forward.asking import prompts_for
from ivlens.forward.completions import complete
from ivlens.prompts import TASK, PromptTemplate, build_prompts
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.state import LabState
from ivlens.steering.prompt_sets import PromptSets
from ivlens.tuning.exams import make_exam
from ivlens.tuning.training.data import training_set

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
        seen.append(prompts_for(*args, **options))
        return seen[-1]

    def clean(examples, corruption=None):
        return build_prompts(pocket.tokenizer, task, examples, recipe, corruption=corruption)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "prompts_for", watched)
        patch.setattr(probabilities, "prompts_for", watched)
        few = EffectOptions(n_mean_prompts=2, layers=[0], heads=[0])
        corruption = None if recipe.n_shots != 1 or recipe.instruction is not None else "drop"  # one cannot be shuffled
        effects = head_effects(pocket, task, recipe=recipe, corruption=corruption, n_prompts=2, options=few)
        measured, corrupted, asked = seen[:3]  # of the same examples; then those of the means
        seen.clear()
        probe(pocket, [task], ProbeOptions(n_prompts=2, n_clozes=1, recipe=recipe))
        probed = next(batch for batch in seen if len(batch) <= 2)
    assert effects.recipe == recipe
    assert asked.texts == clean(asked.examples).texts and measured.texts == clean(measured.examples).texts
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


ELSEWHERE = """
import contextlib, io, json, sys
import ivlens
from ivlens.forward.completions import complete
from ivlens.prompts import build_prompts
from ivlens.show.lab.measures import EngineOptions
from ivlens.show.lab.opening import open_engines
from ivlens.show.lab.session import Session

model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
iv = ivlens.InstructionVector.load(sys.argv[1], model)
at, alone = ivlens.Setting(0, 2.0, "resid_post"), ivlens.JudgeOptions(other_vectors=())
judged = ivlens.evaluate_intervention(model, task, iv, at=at, n_prompts=4, n_draws=1, options=alone)
(bare,) = build_prompts(model.tokenizer, task, task.split("test")[:1], iv.recipe, corruption="drop").texts
with ivlens.steer(model, iv, at=at):
    steered = complete(model, [bare], max_new_tokens=3)
opened = open_engines(model, ["antonym"], None, (), EngineOptions(n_prompts=2, n_search=0))
session = Session(opened.engines, opened.state(text="big", max_new_tokens=3), lambda channel, value: None)
session.load(sys.argv[1])
session.change(layer=0, alpha=2.0, site="resid_post")
shown, code = session.engines[0].prompt(session.chosen.resolved(session.state)), session.code()
with contextlib.redirect_stdout(io.StringIO()) as said:
    exec(code, {})
found = {"recipe": iv.recipe.to_dict(), "judged": judged.recipe.to_dict(), "bare": bare, "steered": steered}
print(json.dumps(found | {"shown": shown, "said": said.getvalue().splitlines()}), flush=True)
session.close()
"""


def test_a_saved_vector_takes_its_recipe_along(pocket, tmp_path):
    """In a new process it is judged, steered, shown in the lab and copied as Python with the recipe it was made by."""
    recipe = PromptRecipe("qa", instruction=None, n_shots=2)
    task = load_task("antonym")
    effects = head_effects(pocket, task, recipe=recipe, n_prompts=4, options=EffectOptions(n_mean_prompts=4))
    vector = InstructionVector.from_effects(effects, k=3)
    path = vector.save(tmp_path / "iv.safetensors")
    done = warm.run(["-c", ELSEWHERE, str(path)], timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["recipe"] == found["judged"] == recipe.to_dict()
    assert found["bare"].startswith("Q: ") and found["bare"].count("Q: ") == 1
    assert found["shown"].count("Q: ") == 3 and found["shown"].endswith("Q: big\nA:")
    with steer(pocket, vector, at=Setting(0, 2.0, "resid_post")):
        assert complete(pocket, [found["bare"]], max_new_tokens=3) == found["steered"]
        (patched,) = complete(pocket, [found["shown"]], max_new_tokens=3)
    (plain,) = complete(pocket, [found["shown"]], max_new_tokens=3)
    assert found["said"] == [repr([plain]), repr([patched])]  # what the copied code prints
