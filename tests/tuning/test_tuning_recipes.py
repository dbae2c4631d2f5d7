"""Training prompts by a recipe: what is sampled, what is tokenised, and tasks that demonstrations alone tell."""

import dataclasses

import pytest
import torch
from conftest import WORDS, tiny_task

from ivlens.models import load_model
from ivlens.prompts import PromptRecipe, build_prompts
from ivlens.prompts.tokens import Encoder
from ivlens.tasks import load_task
from ivlens.tuning import (
    Along,
    GuidanceRecipe,
    Rehearse,
    TuneOptions,
    finetune,
    guidance_by_name,
    iv_guidance,
    make_exam,
)
from ivlens.tuning.terms.rehearsal_prompts import RehearsalOptions, instruction_rehearsal
from ivlens.tuning.training.data import TrainingSet, training_set

TASK = tiny_task()
SHOWN = tiny_task("shown", shift=2)
SHOWN = dataclasses.replace(SHOWN, instructions=())  # nothing but demonstrations tells it
QUICK = TuneOptions(lr=1e-2, steps=4, batch_size=4, judge_every=2, n_prompts=3)


def texts_of(model, data: TrainingSet) -> list[str]:
    return [model.tokenizer.decode(row[mask == 1]) for row, mask in zip(data.tokens, data.attention_mask, strict=True)]


def shown_inputs(text: str) -> set[str]:
    """Inputs of the demonstrations of a prompt in the template `plain`."""
    return {part.split("\n")[0] for part in text.split("Input: ")[1:-1]}


# ---- what is sampled


@pytest.mark.parametrize("n", [3, 8, len(WORDS), 50])
@pytest.mark.parametrize("seed", [0, 2])
def test_samples_are_the_first_examples_with_instructions_of_each_round(llama, n, seed):
    """As they were drawn when all examples were tokenised first: round by round, each with a seed of its own."""
    rows = []
    for first in range(0, n, len(WORDS)):
        recipe = PromptRecipe(seed=seed * 1_000_003 + first // len(WORDS))
        batch = build_prompts(llama.tokenizer, TASK, TASK.examples[: n - first], recipe)
        rows += [(text, answers[0]) for text, answers in zip(batch.texts, batch.alternatives, strict=True)]
    data = training_set(llama, TASK, TASK.examples, n_samples=n, seed=seed)
    assert texts_of(llama, data) == [text for text, _ in rows]
    end = llama.tokenizer.eos_token_id
    assert [[token for token in row if token != -100] for row in data.answers.tolist()] == [
        [*answer, end] for _, answer in rows
    ]


def test_only_what_is_sampled_is_tokenised(llama, monkeypatch):
    n, real = 0, Encoder.split

    def counted(self, text, answers):
        nonlocal n
        n += 1
        return real(self, text, answers)

    monkeypatch.setattr(Encoder, "split", counted)
    training_set(llama, TASK, TASK.examples, n_samples=3)
    assert n == 3
    training_set(llama, TASK, TASK.examples, n_samples=len(WORDS) + 2)
    assert n == 3 + len(WORDS) + 2


def test_an_answer_that_cannot_be_spelled_gives_its_place_to_the_next(words):
    model = load_model("calm", hf_model=plain(), tokenizer=words)
    strange = [dataclasses.replace(one, answers=("xylophone",)) for one in TASK.examples[:3:2]]
    examples = [strange[0], TASK.examples[1], strange[1], *TASK.examples[3:6]]
    assert len(training_set(model, TASK, examples, n_samples=3)) == 3
    with pytest.raises(ValueError, match="2 of 2 examples have an answer that is not in the tokenizer's vocabulary"):
        training_set(model, TASK, strange, n_samples=1)


def plain():
    from families import hf_model

    return hf_model("llama")


def test_demonstrations_come_from_the_recipes_fit_split_in_every_round(llama):
    """Draws are anew in a second round; the splits are not, or what is judged later would be shown in training."""
    recipe = PromptRecipe(n_shots=3, seed=1)
    fit = [example.input for example in TASK.split("fit", 1)]
    data = training_set(llama, TASK, TASK.split("fit", 1), recipe=recipe, n_samples=len(fit) + 3, seed=5)
    texts = texts_of(llama, data)
    assert all(len(shown_inputs(text)) == 3 and shown_inputs(text) <= {*fit} for text in texts)
    assert all(text.split("Input: ")[-1].split("\n")[0] not in shown_inputs(text) for text in texts)
    assert texts[:3] != texts[len(fit) :], "the same inputs with other draws"
    assert texts != texts_of(llama, training_set(llama, TASK, TASK.split("fit", 1), recipe=recipe, seed=6))


# ---- tasks that demonstrations alone tell


@pytest.mark.parametrize(
    "asked", [{"task": SHOWN}, {"task": TASK, "recipe": PromptRecipe(n_shots=3, instruction=None)}]
)
def test_a_task_told_by_demonstrations_is_trained_judged_and_watched(llama, asked, tmp_path, monkeypatch):
    seen = {}

    def watched(model, questions, **options):
        exam = make_exam(model, questions, **options)
        names = [exam.names[number] for number in exam.task[exam.question].tolist()]
        for name, text in zip(names, texts_of(model, exam.data), strict=True):
            seen.setdefault(name, []).append(text)
        return exam

    monkeypatch.setattr("ivlens.tuning.finetuning.make_exam", watched)
    other = dataclasses.replace(tiny_task("other", shift=3), instructions=())
    options = dataclasses.replace(QUICK, n_samples=6)
    told = asked["task"], asked.get("recipe")
    result = finetune(llama, told[0], options=options, recipe=told[1], watch=[other], along=Along(tmp_path))
    assert list(result.scores["task"]) == [told[0].name, "other"] and result.log["judged"].sum() == 2
    n_shots = 3 if told[1] else 5
    assert all(len(shown_inputs(text)) == n_shots and "Instruction" not in text for text in seen[told[0].name])
    assert all(len(shown_inputs(text)) == n_shots and "Instruction" not in text for text in seen["other"])


def test_watched_tasks_keep_their_own_instructions(llama, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ivlens.tuning.finetuning.make_exam",
        lambda model, questions, **more: seen.append(made := make_exam(model, questions, **more)) or made,
    )
    recipe = PromptRecipe("qa", instruction="Say it.")
    finetune(llama, TASK, options=QUICK, recipe=recipe, watch=[tiny_task("other", "Do the other.", 3)])
    texts = texts_of(llama, seen[0].data)
    assert {text.split("\n")[0] for text in texts} == {"Q: Say it.", "Q: Do the other.", "Q: Do the other. Now."}


@pytest.mark.slow
def test_pocket_learns_from_demonstrations_alone():
    """On inputs that were not trained on, and without a word of instruction."""
    torch.set_num_threads(1)
    model, task = load_model("pocket"), load_task("first_and_last_letter")
    bare = dataclasses.replace(task, instructions=())
    options = TuneOptions(lr=4e-3, steps=60, batch_size=32, n_samples=400, n_prompts=24)
    scores = finetune(model, bare, options=options, recipe=PromptRecipe(n_shots=2)).scores.iloc[0]
    assert scores["before"] < 0.1 and scores["after"] > 0.5


# ---- guidance


def test_earlier_tasks_without_instructions_are_rehearsed_by_their_demonstrations(llama):
    options = RehearsalOptions(n=6, recipe=PromptRecipe(seed=1))
    made = instruction_rehearsal(llama, TASK, list(TASK.examples), [SHOWN, TASK], options=options)
    texts = texts_of(llama, made.prompts)
    fit = {example.input: example.answer for example in SHOWN.split("fit", 1)}
    for text in texts[:3]:
        shown = dict(part.split("\nOutput: ") for part in text.split("Input: ")[1:-1])
        assert len(shown) == 5 and all(fit[word] == answer.strip() for word, answer in shown.items())
    assert all(text.startswith("Instruction: ") and not shown_inputs(text) for text in texts[3:])


@pytest.mark.parametrize("name", ["iv", "vectors", "answers", "translations", "instruction_heads"])
def test_guidance_for_and_from_tasks_without_instructions(llama, name):
    made = guidance_by_name(name, llama, SHOWN, earlier=[dataclasses.replace(SHOWN, name="other")], seed=1)
    options = dataclasses.replace(QUICK, steps=2, n_samples=4)
    assert len(finetune(llama, SHOWN, guidance=made, options=options).log) == 2


def test_guidance_is_made_by_the_recipe(llama):
    plan = GuidanceRecipe((Rehearse("vectors"),), k=2, n_prompts=4)
    (part,) = iv_guidance(llama, TASK, plan, recipe=PromptRecipe("qa", seed=3), earlier=[SHOWN]).terms
    assert all(text.startswith("Q: ") and text.endswith("\nA:") for text in texts_of(llama, part.prompts))
    inputs = {text.removeprefix("Q: ").removesuffix("\nA:") for text in texts_of(llama, part.prompts)}
    assert inputs <= {example.input for example in TASK.split("fit", 3)}


# ---- what is on disk


def test_states_of_earlier_versions_are_gone_on_from():
    """A state says what its training was under the names that options had first."""
    kept = TuneOptions(steps=7, seed=3, n_samples=5, n_prompts=6).kept()
    assert kept["n_steps"] == 7 and not kept.keys() & {"steps", "seed", "n_samples", "n_prompts"}


def test_along_is_refused_early(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every is 2, expected a folder beside it"):
        Along(checkpoint_every=2)
    with pytest.raises(ValueError, match="checkpoint_every is 0, expected a whole number, 1 or more"):
        Along(tmp_path, checkpoint_every=0)
    with pytest.raises(ValueError, match="n_samples is 0"):
        TuneOptions(n_samples=0)
