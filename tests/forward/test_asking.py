"""Prompts that outgrow a model's context: left out and counted, or refused with what would fit."""

import itertools
import logging
import re
from dataclasses import replace

import pytest
import torch
from conftest import tiny_task
from hypothesis import given, settings
from hypothesis import strategies as st

from ivlens import (
    EffectOptions,
    InstructionVector,
    JudgeOptions,
    PromptRecipe,
    Setting,
    evaluate_intervention,
    find_prompts,
    head_effects,
    measure_again,
)
from ivlens.analysis.forgetting import ProbeOptions, probe
from ivlens.forward.asking import Room, most_shots, prompt_pairs, prompts_for, rows_that_fit, same_examples
from ivlens.prompts import PromptBatch, build_prompts
from ivlens.prompts.tokens import padded
from ivlens.steering.prompt_sets import PromptSets
from ivlens.tasks import Task, TaskExample, split_of
from ivlens.tuning.exams import make_exam
from ivlens.tuning.training.data import training_set

TASK = tiny_task()
LONG = PromptRecipe(instruction=None, n_shots=8)


@pytest.fixture(scope="module")
def short(new_model, byte_level):
    """A model with room for some demonstrations, not for eight."""
    return new_model("llama", byte_level, n_layers=1, n_ctx=64)


def longest(model, n_shots):
    batch = build_prompts(model.tokenizer, TASK, TASK.examples, PromptRecipe(instruction=None, n_shots=n_shots))
    answer = max(len(answer) for answers in batch.alternatives for answer in answers)
    return int(batch.attention_mask.sum(1).max()) + answer - 1


def test_the_largest_number_that_fits_is_the_largest(short):
    most = most_shots(short, TASK, TASK.examples, LONG)
    assert 0 < most < 8 and longest(short, most) <= 64 < longest(short, most + 1)
    message = f"expected at most 64 together .* n_shots is 8, and at most n_shots = {most} fits; ask for that"
    with pytest.raises(ValueError, match=message):
        prompts_for(short, TASK, TASK.examples, LONG)
    assert len(prompts_for(short, TASK, TASK.examples, PromptRecipe(instruction=None, n_shots=most))) == len(TASK)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: head_effects(model, TASK, recipe=LONG),
        lambda model: PromptSets(model, TASK, LONG).batch("test", corrupted=False),
        lambda model: training_set(model, TASK, TASK.split("fit"), recipe=LONG),
        lambda model: make_exam(model, [(TASK, TASK.examples)], recipe=LONG),
    ],
    ids=["effects", "judgement", "training", "exam"],
)
def test_whoever_asks_says_so(short, ask):
    with pytest.raises(ValueError, match=r"prompt \d+ has \d+ tokens .* n_shots is 8, and at most n_shots = \d fits"):
        ask(short)


def test_what_does_not_fit_at_all(new_model, byte_level):
    tiny = new_model("llama", byte_level, n_layers=1, n_ctx=4)
    with pytest.raises(ValueError, match="does not fit without demonstrations either; use another model"):
        prompts_for(tiny, TASK, TASK.examples, LONG)
    with pytest.raises(ValueError, match=re.escape("(the model's n_ctx); use shorter inputs, or another model.")):
        prompts_for(tiny, TASK, TASK.examples, PromptRecipe())


# --- some prompts are too long ---------------------------------------------------------------------------------------

FEW = PromptRecipe(instruction=None, n_shots=1)


def with_long_inputs(n_long=4, n_short=20, answer="cold"):
    """A task of which some inputs fit no context, each between short ones."""
    short = [TaskExample(f"w{n}", (answer if n % 2 else "hot",)) for n in range(n_short)]
    long = [TaskExample("x" * 90 + str(n), (answer,)) for n in range(n_long)]
    step = max(1, n_short // max(1, n_long))
    mixed = []
    for number, example in enumerate(short):
        mixed.append(example)
        if number % step == 0 and long:
            mixed.append(long.pop())
    return Task("mixed", (*mixed, *long), instructions=("Say it.",))


def is_long(text):
    return text.startswith("xxx")


MIXED = with_long_inputs()


def test_prompts_that_are_too_long_are_left_out_counted_and_said(short, caplog):
    with caplog.at_level(logging.WARNING, "ivlens"):
        batch = prompts_for(short, MIXED, MIXED.examples, PromptRecipe())
    assert len(batch) == 20 and batch.n_too_long == 4 and not any(is_long(one.input) for one in batch.examples)
    whole = build_prompts(short.tokenizer, MIXED, [one for one in MIXED.examples if not is_long(one.input)])
    assert batch.texts == whole.texts and torch.equal(batch.tokens, whole.tokens)  # no column more, either
    assert caplog.messages == [
        "mixed: 4 of 24 prompts are left out: with their answers they are longer than the model's context (64 tokens)."
    ]
    assert batch.rows([0, 1]).n_too_long == 4
    # of the first examples one is too long: the next one takes its place
    first = prompts_for(short, MIXED, MIXED.examples, PromptRecipe(), n=3)
    assert is_long(MIXED.examples[1].input) and first.texts == whole.texts[:3]


@pytest.fixture(scope="module")
def tiny(new_model, byte_level):
    return new_model("llama", byte_level, n_layers=1, n_ctx=12)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=8), n_more=st.integers(0, 2)
)
def test_as_many_rows_are_kept_as_can_be(tiny, sizes, n_more):
    """Beside a search of all subsets, and every kept row with every other's answer fits."""

    def fits(rows):
        return not rows or max(sizes[r][0] for r in rows) + max(sizes[r][1] for r in rows) - 1 + n_more <= 12

    tokens = [[1] * prompt for prompt, _ in sizes]
    tokens, answers = padded(tokens, 0, left=True), padded([[1] * a for _, a in sizes], -100, left=False)
    batch = PromptBatch(
        tokens, tokens, answers, None, tuple(((1,) * a,) for _, a in sizes), ("",) * len(sizes),
        (TASK.examples[0],) * len(sizes),
        ("clean",) * len(sizes), (None,) * len(sizes),
    )  # fmt: skip
    for reads in ("answer", "all"):
        rows = rows_that_fit(tiny, batch, Room(reads, n_more))
        every = (c for k in range(len(sizes) + 1) for c in itertools.combinations(range(len(sizes)), k))
        assert fits(rows) and len(rows) == max(len(chosen) for chosen in every if fits(chosen))
    assert rows_that_fit(tiny, batch, Room("first", n_more)) == [
        r for r, (p, _) in enumerate(sizes) if p + n_more <= 12
    ]


def test_effects_are_those_of_the_task_without_its_long_inputs(short):
    """Clean and corrupted prompts are of the same inputs, and the result says how many there were not."""
    quick = EffectOptions(n_check_prompts=4, n_mean_prompts=30)
    effects = head_effects(short, MIXED, corruption="drop", n_prompts=30, options=quick)
    fit = [one.input for one in MIXED.split("fit")]
    n_long = sum(map(is_long, fit))
    assert 0 < n_long < len(fit)
    assert effects.settings["n_too_long"] == n_long == effects.settings["n_mean_too_long"]
    assert effects.settings["n_prompts"] == len(fit) - n_long == effects.settings["n_mean_prompts"]
    # the long inputs in the middle of the split change no number
    alone = replace(MIXED, examples=tuple(one for one in MIXED.examples if not is_long(one.input)))
    again = head_effects(short, alone, corruption="drop", n_prompts=30, options=quick)
    assert sorted(effects.inputs) == sorted(again.inputs)
    order = [again.inputs.index(text) for text in effects.inputs]
    assert torch.allclose(effects.cie, again.cie[order], atol=1e-6) and torch.allclose(
        effects.mean_z, again.mean_z, atol=1e-5
    )
    assert torch.allclose(effects.clean_scores, again.clean_scores[order], atol=1e-6)
    few = head_effects(short, MIXED, corruption="drop", n_prompts=5, options=quick)
    assert len(few.inputs) == 5, "others take the place of long ones"
    again = measure_again(effects, MIXED, model=short, heads=2)
    assert not any(map(is_long, again.again.inputs))


def test_a_corrupted_prompt_that_fits_needs_a_clean_one_that_fits(new_model, byte_level):
    """All bare prompts fit; with demonstrations some do not, and no clean score could stand beside them."""
    model = new_model("llama", byte_level, n_layers=1, n_ctx=100)
    task = with_long_inputs()
    recipe = PromptRecipe(instruction=None, n_shots=2)
    bare = build_prompts(model.tokenizer, task, task.examples, recipe, corruption="drop")
    assert int(bare.attention_mask.sum(1).max()) < 100
    clean, changed = prompt_pairs(model, task, task.examples, recipe, corruption="drop")
    assert [one.input for one in clean.examples] == [one.input for one in changed.examples]
    assert clean.n_too_long == changed.n_too_long == 24 - len(clean) >= 4
    assert int(clean.attention_mask.sum(1).max()) <= 100
    # the other way round, too: where only some can be corrupted, the clean prompts are cut to these
    some = build_prompts(model.tokenizer, task, clean.examples[1::2], recipe, corruption="drop")
    cut, same = same_examples(clean, some)
    assert cut.texts == clean.texts[1::2] and same.texts == some.texts and cut.n_too_long == clean.n_too_long


def test_the_whole_answer_has_to_fit_where_the_score_reads_it(new_model, byte_level):
    model = new_model("llama", byte_level, n_layers=1, n_ctx=64)
    task = Task("t", [TaskExample(f"w{n}", ("hot " * (60 if n % 4 == 0 else 1),)) for n in range(24)], ("Say it.",))
    quick = EffectOptions(n_check_prompts=0, n_mean_prompts=4)
    counts = {
        score: head_effects(model, task, corruption="drop", score=score, n_prompts=30, options=quick).settings[
            "n_too_long"
        ]
        for score in ("prob", "logprob")
    }
    assert counts["prob"] == 0 < counts["logprob"]


def test_judgements_probes_exams_trainings_and_searches_leave_them_out(short, caplog):
    sets = PromptSets(short, MIXED, PromptRecipe())
    with caplog.at_level(logging.WARNING, "ivlens"):
        clean, bare = (sets.batch("fit", corrupted=corrupted) for corrupted in (False, True))
    n_long = sum(is_long(one.input) for one in MIXED.split("fit"))
    assert [one.input for one in clean.examples] == [one.input for one in bare.examples]
    assert clean.n_too_long == bare.n_too_long == n_long and len(caplog.messages) == 1, "said once"
    table = probe(short, [MIXED], ProbeOptions(split="fit"))
    assert set(table["input"]) == {one.input for one in clean.examples}
    exam = make_exam(short, [(MIXED, MIXED.examples)])
    assert len(exam.question) == 20
    data = training_set(short, MIXED, MIXED.examples, n_samples=50)
    assert len(data) == 50 and data.tokens.shape[1] < 64
    assert len(training_set(short, MIXED, MIXED.examples)) == 20
    assert len(training_set(short, MIXED, MIXED.examples, n_samples=20)) == 20
    search = find_prompts(short, MIXED, templates=["plain"], shots=[0, 1], n_prompts=50)
    n_select = sum(not is_long(one.input) for one in MIXED.split("select"))
    assert n_select < len(MIXED.split("select")) and search.table["n"].max() == n_select


def test_an_evaluation_records_how_many_there_were(short):
    effects = head_effects(short, MIXED, corruption="drop", n_prompts=4, options=EffectOptions(n_check_prompts=0))
    vector = InstructionVector.from_effects(effects, k=1)
    judged = evaluate_intervention(
        short, MIXED, vector, at=Setting(0, 1.0, "resid_post"), n_draws=1, options=JudgeOptions(other_vectors=())
    )
    sides = MIXED.split("test")
    assert judged.settings["n_too_long"] == sum(is_long(one.input) for one in sides) > 0
    assert set(judged.table["n"]) == {sum(not is_long(one.input) for one in sides)}


def test_all_too_long_is_refused_with_what_fits(short):
    long = Task("long", [TaskExample("x" * 90 + str(n), ("y",)) for n in range(4)], ("Say it.",))
    message = r"none of 4 prompts of task 'long' fits; the shortest: prompt 0 has \d+ tokens and its answer up to 2, "
    with pytest.raises(ValueError, match=message + ".*use shorter inputs, or another model"):
        prompts_for(short, long, long.examples, PromptRecipe())
    # long inputs, which fit with nothing, do not hide how many demonstrations the others have room for
    task = Task("two", [*TASK.examples, *long.examples], TASK.instructions)
    recipe = PromptRecipe(instruction=None, n_shots=8)
    kept = [one for one in task.examples if not is_long(one.input) or split_of(one.input) != "fit"]
    task = replace(task, examples=tuple(kept))
    most = most_shots(short, task, task.examples, recipe)
    assert 0 < most < 8 and most == most_shots(short, TASK, TASK.examples, recipe)
    with pytest.raises(ValueError, match=f"n_shots is 8, and at most n_shots = {most} fits"):
        prompts_for(short, task, task.examples, recipe)
    batch = prompts_for(short, task, task.examples, replace(recipe, n_shots=most))
    assert len(batch) == len(TASK) and batch.n_too_long == len(task) - len(TASK) > 0
    # where some demonstrations are long themselves, no number suits all prompts
    assert most_shots(short, MIXED, MIXED.examples, recipe) > 0
