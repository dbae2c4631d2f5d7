"""Guidance built from a model, its controls, and rehearsal of old tasks."""

import dataclasses

import pytest
import torch
from conftest import tiny_task, unchecked

from ivlens.forward.hooks import output_projection
from ivlens.tuning import (
    IVKL,
    RECIPES,
    Guidance,
    GuidanceRecipe,
    HeadConsistency,
    Learner,
    Rehearse,
    TuneOptions,
    control,
    iv_guidance,
)
from ivlens.tuning.methods import Lora
from ivlens.tuning.terms.kl import iv_kl
from ivlens.tuning.terms.rehearsal_prompts import RehearsalOptions, instruction_rehearsal, vector_rehearsal
from ivlens.tuning.training.asking import InTraining, Shift
from ivlens.tuning.training.data import answer_logits, last_column, training_set
from ivlens.vectors import InstructionVector


@pytest.fixture(scope="module")
def task():
    return tiny_task()


@pytest.fixture(scope="module")
def made(llama, task):
    old = tiny_task("synonym", "Give a synonym.", 2)
    return iv_guidance(llama, task, dataclasses.replace(RECIPES["iv"], k=3, n_prompts=6), earlier=[old])


def test_theta_is_the_vector_of_the_task_in_the_model_before(llama, task, made):
    from ivlens.effects import head_effects

    effects = head_effects(llama, task, n_prompts=6)
    torch.testing.assert_close(made.theta, InstructionVector.from_effects(effects, 3, model=llama).theta)


def test_s_are_the_heads_of_the_earlier_tasks(llama, made):
    from ivlens.effects import head_effects

    old = tiny_task("synonym", "Give a synonym.", 2)
    assert made.find(HeadConsistency).heads == tuple(head_effects(llama, old, n_prompts=6).top_heads(3))


def test_parts_can_be_left_out(llama, task):
    only_heads = iv_guidance(llama, task, GuidanceRecipe((HeadConsistency(weight=1.0),), k=2, n_prompts=4))
    assert only_heads.theta is None and len(only_heads.find(HeadConsistency).heads) == 2
    only_vector = iv_guidance(llama, task, GuidanceRecipe((IVKL(),), k=2, n_prompts=4))
    assert only_vector.theta is not None and only_vector.find(HeadConsistency) is None


def test_controls_replace_what_should_work_and_nothing_else(llama, made):
    zero = control(made, "zero_vector", llama)
    assert not zero.theta.any() and zero.terms == made.terms
    random = control(made, "random_vector", llama, seed=1)
    torch.testing.assert_close(random.theta.norm(), made.theta.norm())
    assert abs(torch.cosine_similarity(random.theta, made.theta, 0)) < 0.9
    own = made.find(HeadConsistency)
    heads = control(made, "random_heads", llama).find(HeadConsistency)
    assert len(heads.heads) == 3 and not set(heads.heads) & set(own.heads)
    everyone = control(made, "all_heads", llama).find(HeadConsistency)
    assert len(everyone.heads) == llama.cfg.n_layers * llama.cfg.n_heads
    assert everyone.weight * len(everyone.heads) == pytest.approx(own.weight * 3)


def test_controls_are_refused_where_there_is_nothing_to_replace(llama):
    with pytest.raises(ValueError, match="control is 'none', expected one of zero_vector"):
        control(Guidance(theta=torch.zeros(32)), "none", llama)
    with pytest.raises(ValueError, match="replaces heads, but this guidance has none"):
        control(Guidance(theta=torch.zeros(32)), "all_heads", llama)
    everyone = tuple((layer, head) for layer in range(3) for head in range(4))
    with pytest.raises(ValueError, match="has no heads left to draw from"):
        control(Guidance((HeadConsistency(everyone),)), "random_heads", llama)


def rehearsal_terms(llama, task, rehearsal, steps=3):
    learner = Learner(llama, "full")
    data = training_set(llama, task, list(task.examples)[:8])
    options = TuneOptions(steps=steps, batch_size=4, lr=1e-2, decay="constant", warmup=0.0)
    return learner, learner.learn(data, options, Guidance((rehearsal,)))


def test_controls_reach_into_rehearsal(llama, task):
    old = [tiny_task("synonym", "Give a synonym.", 2), tiny_task("third", "Give a third.", 3)]
    plan = GuidanceRecipe((Rehearse("vectors", heads=HeadConsistency(weight=1.0)),), k=3, n_prompts=4)
    made = iv_guidance(llama, task, plan, earlier=old)
    (before,) = made.terms
    (zero,) = control(made, "zero_vector", llama).terms
    assert not zero.deltas.any() and zero.heads == before.heads
    (random,) = control(made, "random_vector", llama).terms
    torch.testing.assert_close(random.deltas.norm(dim=-1), before.deltas.norm(dim=-1))
    assert len(random.deltas.unique(dim=0)) == 2
    (other,) = control(made, "random_heads", llama).terms
    assert not set(other.heads.heads) & set(before.heads.heads)
    with pytest.raises(ValueError, match="rehearsal of vectors got no earlier tasks"):
        iv_guidance(llama, task, GuidanceRecipe((Rehearse("vectors"),)))
    with pytest.raises(ValueError, match="by is 'vector', expected instructions, vectors, translations"):
        unchecked(Rehearse, by="vector")


def test_rehearsal_begins_at_zero_and_grows_as_the_model_moves(llama, task):
    deltas = torch.randn(2, llama.cfg.d_model, generator=torch.Generator().manual_seed(0))
    rehearsal = vector_rehearsal(llama, task, task.examples, deltas, options=RehearsalOptions(layer=1, n=20))
    _, log = rehearsal_terms(llama, task, rehearsal)
    assert log.rehearsal[0] == pytest.approx(0.0, abs=1e-5)
    assert log.rehearsal[2] > 1e-4


def test_rehearsal_holds_the_answers_under_the_vectors(llama, task):
    """With a large weight the model's answers under the vectors move less than without it."""
    deltas = torch.randn(2, llama.cfg.d_model, generator=torch.Generator().manual_seed(0))
    moved = {}
    for weight in (1e-6, 100.0):
        kl = IVKL(weight=weight, answers=0.0)
        rehearsal = vector_rehearsal(llama, task, task.examples, deltas, options=RehearsalOptions(layer=1, n=20, kl=kl))
        _, log = rehearsal_terms(llama, task, rehearsal, steps=12)
        moved[weight] = log.rehearsal.iloc[-1] / weight
    assert moved[100.0] < moved[1e-6] / 2


def test_each_pair_is_asked_with_its_own_vector(llama, task):
    """The teacher's answer to a pair is what the model says with that vector added by hand."""
    from ivlens.tuning.terms.rehearsal import Rehearsal

    learner = Learner(llama, "full")
    deltas = 3 * torch.randn(2, llama.cfg.d_model, generator=torch.Generator().manual_seed(0))
    both = vector_rehearsal(llama, task, task.examples, deltas, options=RehearsalOptions(layer=1, n=6))
    asked = InTraining(learner.trained, learner.sites, TuneOptions(), both.prompts)
    (together,) = both._ask_frozen(asked, lambda answer: answer.logits)
    for n in range(6):
        alone = both.prompts.rows(torch.tensor([n]))
        with learner.sites.shifted(learner.trained, 1, "resid_post", last_column(alone), both.deltas[n]):
            torch.testing.assert_close(answer_logits(learner.trained, alone)[0], together[n], atol=1e-4, rtol=1e-4)
    assert isinstance(both, Rehearsal)


def test_instruction_rehearsal_asks_old_tasks_about_new_inputs(llama, task):
    old = tiny_task("synonym", "Give a synonym.", 2)
    rehearsal = instruction_rehearsal(llama, task, task.examples, [old], options=RehearsalOptions(n=6))
    text = llama.tokenizer.decode(rehearsal.prompts.tokens[0], skip_special_tokens=True)
    assert "Give a synonym." in text and rehearsal.deltas is None


@pytest.mark.parametrize("ends", [True, False])
def test_whole_answers_are_those_that_the_frozen_model_writes(llama, task, ends):
    """The answers compared at are greedy ones, ended by the end-of-text token; nothing is compared behind it."""
    old = tiny_task("synonym", "Give a synonym.", 2)
    rehearsal = instruction_rehearsal(
        llama, task, task.examples, [old], options=RehearsalOptions(n=6, kl=IVKL(), n_tokens=4)
    )
    learner = Learner(llama, "full")
    plain, prompts = learner.trained, rehearsal.prompts
    ask = {"attention_mask": prompts.attention_mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    want = plain.generate(prompts.tokens, eos_token_id=None, **ask)[:, -4:]
    plain.config.eos_token_id = int(want[0, 1]) if ends else None
    got = rehearsal._answered(InTraining(plain, learner.sites, TuneOptions(), prompts)).prompts.answers
    for mine, theirs in zip(got.tolist(), want.tolist(), strict=True):
        stop = theirs.index(plain.config.eos_token_id) + 1 if plain.config.eos_token_id in theirs else 4
        assert mine == theirs[:stop] + [-100] * (4 - stop)
    assert (got == -100).any() == ends


def test_whole_answers_are_held_beyond_their_first_token(llama, task):
    """With the later tokens alone in the loss the model still stays where it was."""
    old = tiny_task("synonym", "Give a synonym.", 2)
    moved = {}
    for weight in (1e-6, 100.0):
        kl = IVKL(weight=weight, last=0.0)
        rehearsal = instruction_rehearsal(
            llama, task, task.examples, [old], options=RehearsalOptions(n=20, kl=kl, n_tokens=3)
        )
        _, log = rehearsal_terms(llama, task, rehearsal, steps=12)
        assert log.rehearsal[0] == pytest.approx(0.0, abs=1e-5 * weight)
        moved[weight] = log.rehearsal.iloc[-1] / weight
    assert moved[100.0] < moved[1e-6] / 2
    with pytest.raises(ValueError, match="n_tokens is 0, expected 1 or more"):
        dataclasses.replace(rehearsal, n_tokens=0)
    with pytest.raises(ValueError, match="n_tokens is 3, but kl gives the tokens after the first no weight"):
        dataclasses.replace(rehearsal, kl=IVKL(answers=0.0))


def test_rehearsal_can_hold_heads_alone(llama, task):
    old = tiny_task("synonym", "Give a synonym.", 2)
    moved = {}
    for weight in (1e-6, 100.0):
        heads = HeadConsistency(((0, 1), (2, 3)), weight)
        rehearsal = instruction_rehearsal(
            llama, task, task.examples, [old], options=RehearsalOptions(n=20, kl=None, heads=heads)
        )
        _, log = rehearsal_terms(llama, task, rehearsal, steps=12)
        assert log.rehearsal[0] == pytest.approx(0.0, abs=1e-4 * weight)
        moved[weight] = log.rehearsal.iloc[-1] / weight
    assert moved[100.0] < moved[1e-6] / 2
    with pytest.raises(ValueError, match="neither kl nor heads"):
        dataclasses.replace(rehearsal, heads=None)


def test_a_vector_at_a_place_that_does_not_exist(llama, task):
    rehearsal = vector_rehearsal(
        llama, task, task.examples, torch.zeros(1, llama.cfg.d_model), options=RehearsalOptions(n=4)
    )
    with pytest.raises(ValueError, match="layer 9"):
        rehearsal_terms(llama, task, dataclasses.replace(rehearsal, layer=9))


def test_progressive_and_kl_describe_themselves(made):
    said = made.describe()
    assert [name for name, _ in said["terms"]] == ["progressive", "kl", "heads"]
    assert [options for _, options in said["terms"]][:2] == [vars(term) for term in RECIPES["iv"].terms[:2]]


def test_a_held_vector_is_what_the_heads_write_together(llama, task):
    """`as_vector` reads Σ z W_O, on projections that are linear layers."""
    learner = Learner(llama, "full")
    data = training_set(llama, task, list(task.examples)[:4])
    heads = ((0, 1), (2, 3))
    with learner.sites.head_outputs(learner.trained, [0, 2], data.tokens.shape[1] - 1) as kept:
        answer_logits(learner.trained, data)
    each = learner.sites.held(learner.trained, kept, heads)
    written = learner.sites.held(learner.trained, kept, heads, as_vector=True)
    by_hand = sum(each[:, n] @ llama.blocks[layer].attn.W_O[head] for n, (layer, head) in enumerate(heads))
    torch.testing.assert_close(written[:, 0], by_hand, atol=1e-5, rtol=1e-5)


def test_a_held_vector_follows_the_projection_that_is_trained(llama, task):
    """A head of the first layer puts out the same whatever the projection learns; what it writes does not stay."""
    learner = Learner(llama, Lora(targets=("o_proj",)))
    data = training_set(llama, task, list(task.examples)[:4])
    held = HeadConsistency(((0, 1),), weight=1e-3, as_vector=True)
    log = learner.learn(data, TuneOptions(steps=3, batch_size=4, lr=1e-2), Guidance((held,)))
    assert log.heads[0] == pytest.approx(0.0, abs=1e-9) and (log.heads[1:] > 1e-9).all()
    with learner.sites.head_outputs(learner.trained, [0], data.tokens.shape[1] - 1) as kept:
        answer_logits(learner.trained, data)
    written = learner.sites.held(learner.trained, kept, held.heads, as_vector=True)[:, 0]
    by_hand = kept[0][:, 1] @ output_projection(learner.bridge(), 0)[1]
    torch.testing.assert_close(written, by_hand, atol=1e-5, rtol=1e-5)
    assert (written - kept[0][:, 1] @ output_projection(llama, 0)[1]).abs().max() > 1e-4
    written.sum().backward()  # it can be learned from


def test_holding_the_vector_leaves_heads_free(llama, task):
    """All heads of a layer may change as long as what they write together does not."""
    old = tiny_task("synonym", "Give a synonym.", 2)
    moved = {}
    for weight in (1e-6, 100.0):
        held = HeadConsistency(((0, 1), (2, 3)), weight, as_vector=True)
        rehearsal = instruction_rehearsal(
            llama, task, task.examples, [old], options=RehearsalOptions(n=20, kl=None, heads=held)
        )
        _, log = rehearsal_terms(llama, task, rehearsal, steps=12)
        assert log.rehearsal[0] == pytest.approx(0.0, abs=1e-4 * weight)
        moved[weight] = log.rehearsal.iloc[-1] / weight
    assert moved[100.0] < moved[1e-6] / 2


def test_a_translation_asks_by_vector_what_the_model_in_training_is_asked_in_words(llama, task):
    old = [tiny_task("synonym", "Give a synonym.", 2), tiny_task("third", "Give a third.", 3)]
    deltas = 3 * torch.randn(2, llama.cfg.d_model, generator=torch.Generator().manual_seed(0))
    made = instruction_rehearsal(llama, task, task.examples, old, deltas=deltas, options=RehearsalOptions(n=6, layer=1))
    learner = Learner(llama, "full")
    asked = InTraining(learner.trained, learner.sites, TuneOptions(), made.prompts)
    texts = [llama.tokenizer.decode(rows.tokens[0], skip_special_tokens=True) for rows in (made.prompts, made.teacher)]
    assert "Give a synonym." in texts[0] and texts[0].endswith(texts[1])
    taught = asked.ask(made.teacher, lambda answer: answer.logits, shift=Shift(1, "resid_post", made.deltas))[0]
    student = asked.ask(made.prompts, lambda answer: answer.logits)[0]
    known = made.ask(asked)
    torch.testing.assert_close(known.soft.log_probs, (taught / 2).log_softmax(-1), atol=1e-5, rtol=1e-5)
    want = iv_kl(student, known.soft, made.prompts.answers, made.kl)
    (share,) = dataclasses.replace(made, per_step=600).passes(0, known, asked)  # so many draws are the mean of all
    assert float(share.detach()) == pytest.approx(float(want), rel=0.1) and float(want) > 0.01
    last = last_column(made.teacher)
    with learner.sites.shifted(learner.trained, 1, "resid_post", last, deltas.repeat_interleave(3, 0)):
        torch.testing.assert_close(answer_logits(learner.trained, made.teacher), taught, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer_logits(learner.trained, made.prompts), student, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="got 3 earlier tasks and 2 deltas"):
        instruction_rehearsal(llama, task, task.examples, [*old, task], deltas=deltas, options=RehearsalOptions(n=6))
    with pytest.raises(ValueError, match="got 0 earlier tasks"):
        instruction_rehearsal(llama, task, task.examples, [], options=RehearsalOptions(n=6))
    with pytest.raises(ValueError, match="got 2 deltas, expected 6, one for each prompt"):
        dataclasses.replace(made, deltas=deltas)
    with pytest.raises(ValueError, match="got 2 prompts for its teacher, expected 6"):
        dataclasses.replace(made, teacher=made.teacher.rows(torch.arange(2)))
