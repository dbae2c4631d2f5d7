"""What a term of guidance promises: log, cost, command line and documentation follow from the term itself."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import tiny_task, unchecked

from ivlens import tuning
from ivlens.cli._guidance import GuidanceOptions
from ivlens.cli.main import main
from ivlens.forward.hooks import captured_residual
from ivlens.prompts import PromptRecipe, build_prompts
from ivlens.prompts.build import sampled_prompts
from ivlens.tuning import (
    IVKL,
    RECIPES,
    Guidance,
    GuidanceRecipe,
    HeadConsistency,
    Learner,
    Progressive,
    Rehearse,
    Term,
    TuneOptions,
    control,
    iv_guidance,
)
from ivlens.tuning.builder import term_kinds
from ivlens.tuning.terms.mean_difference import MeanDifferenceKL
from ivlens.tuning.terms.rehearsal import Rehearsal
from ivlens.tuning.terms.rehearsal_prompts import RehearsalOptions, instruction_rehearsal, vector_rehearsal
from ivlens.tuning.terms.term import unique_names
from ivlens.tuning.training.asking import InTraining
from ivlens.tuning.training.data import training_set

QUICK = TuneOptions(steps=2, batch_size=4, lr=1e-2)
OF_THE_VECTOR = {"layer", "site", "alpha", "k"}  # options of the whole guidance, not of one term


@dataclass(frozen=True)
class Pull(Term):
    """A term of one's own: `weight · mean of the squared logits` at the last prompt token."""

    name: ClassVar[str] = "pull"
    weight: float = 0.01

    def loss(self, student, asked, model):
        return self.weight * student.answer.logits[:, 0].square().mean(-1).sum() / student.totals.rows


@pytest.fixture(scope="module")
def data(llama):
    task = tiny_task()
    return training_set(llama, task, list(task.examples)[:8])


def test_a_term_of_ones_own_is_trained_on_and_logged(llama, data):
    """Nothing but the term has to be written: it is in the log under its name, and in the loss."""
    log = Learner(llama, "full").learn(data, QUICK, Guidance((Pull(weight=0.5),)))
    assert (log.pull > 0).all() and log.loss.tolist() == pytest.approx((log.lm + log.pull).tolist(), rel=1e-5)
    alone = Learner(llama, "full").learn(data, QUICK)
    assert alone.lm[0] == pytest.approx(log.lm[0], rel=1e-5) and alone.lm[1] != pytest.approx(log.lm[1], rel=1e-3)


def test_two_terms_of_one_name_have_columns_of_their_own(llama, data):
    log = Learner(llama, "full").learn(data, QUICK, Guidance((Pull(0.5), Pull(1.0))))
    assert log.pull_2[0] == pytest.approx(2 * log.pull[0], rel=1e-5)
    assert unique_names([Pull(), IVKL(), Pull(), Pull()]) == ["pull", "kl", "pull_2", "pull_3"]


def test_rehearsals_of_one_training_draw_other_prompts(llama, data):
    task, old = tiny_task(), tiny_task("synonym", "Give a synonym.", 2)
    one = instruction_rehearsal(llama, task, task.examples, [old], options=RehearsalOptions(n=40))
    log = Learner(llama, "full").learn(data, QUICK, Guidance((one, one)))
    assert log.rehearsal[1] != pytest.approx(log.rehearsal_2[1], rel=1e-4) and log.rehearsal_2[1] > 0


def test_the_frozen_model_is_asked_when_training_starts(llama, data, monkeypatch):
    """Not while the training is put together: its model may still change, and nothing is spent on one never run."""
    asked = []
    monkeypatch.setattr(HeadConsistency, "ask", lambda self, frozen: asked.append(frozen) or None)
    monkeypatch.setattr(HeadConsistency, "loss", lambda self, student, known, model: None)
    task, old = tiny_task(), tiny_task("synonym", "Give a synonym.", 2)
    rehearsal = instruction_rehearsal(llama, task, task.examples, [old], options=RehearsalOptions(n=6))
    monkeypatch.setattr(type(rehearsal), "ask", lambda self, frozen: asked.append(frozen) or None)
    monkeypatch.setattr(type(rehearsal), "passes", lambda self, step, known, model: iter(()))
    trainer = Learner(llama, "full").trainer(data, QUICK, Guidance((HeadConsistency(((0, 1),)), rehearsal)))
    assert not asked
    trainer.run()
    assert len(asked) == 2


def test_heads_that_nobody_chose_are_refused_before_training(llama, data):
    with pytest.raises(ValueError, match="HeadConsistency has no heads yet"):
        Learner(llama, "full").learn(data, QUICK, Guidance((HeadConsistency(),)))


def test_what_is_no_term_is_named():
    with pytest.raises(TypeError, match="terms are such as IVKL"):
        unchecked(Guidance, terms=[torch.zeros(3)])
    assert unchecked(Guidance, terms=Pull()).terms == (Pull(),) == unchecked(Guidance, terms=[Pull()]).terms


def test_a_vector_is_held_in_mixed_precision_too(llama, data):
    """Heads put out bfloat16 there, and the projection keeps its own precision."""
    options = TuneOptions(steps=2, batch_size=4, lr=1e-2, precision="bfloat16")
    log = Learner(llama, "full").learn(data, options, Guidance((HeadConsistency(((0, 1), (2, 3)), as_vector=True),)))
    assert log.heads.notna().all() and log.heads[1] > 0


def test_options_of_the_command_line_are_those_of_the_terms():
    flags = {flag for kind in term_kinds() for flag in kind.flags}
    assert flags == {option.name for option in fields(GuidanceOptions)} - OF_THE_VECTOR - {"set_option"}
    for kind in term_kinds():
        assert not kind.flags or kind.lacks, f"{kind.__name__} has no words for a guidance without it"


def test_every_term_and_recipe_is_documented():
    root = Path(__file__).parents[2]
    method, api = (root / "docs" / "method.md").read_text(), (root / "docs" / "api" / "index.md").read_text()
    assert not [name for name in RECIPES if f"`{name}`" not in method and name != "none"]
    assert not [kind.__name__ for kind in term_kinds() if kind.__name__ not in method]
    handed_on = [
        name for name in tuning.__all__ if isinstance(term := getattr(tuning, name), type) and issubclass(term, Term)
    ]
    assert handed_on and not [name for name in handed_on if f"   {name}\n" not in api]


def test_an_unknown_name_lists_every_recipe(tmp_path, capsys):
    assert main(["tune", "--task", "antonym", "--out", str(tmp_path), "--guidance", "nosuch"]) == 2
    shown = capsys.readouterr().err
    assert not [name for name in RECIPES if not re.search(rf"\b{name}\b", shown)]
    assert main(["tune", "--help"]) == 0 and "for an unknown name lists all" in " ".join(
        capsys.readouterr().out.split()
    )


def test_every_option_of_a_term_can_be_set():
    """Also of terms that have no option of their own in the command."""
    asked = GuidanceOptions(kl_weight=0.5, set_option=("kl.top_n=512", "heads.weight=0.25", "kl.direction=reverse"))
    kl, heads = (next(t for t in asked.plan("iv")[0].terms if t.name == name) for name in ("kl", "heads"))
    assert (kl.weight, kl.top_n, kl.direction, heads.weight) == (0.5, 512, "reverse", 0.25)
    for name, text, message in (
        ("kl", "kl.weight=a", "kl.weight is 'a', expected a finite number"),
        ("kl", "kl.weight=-1.0", "weight is -1.0"),
        ("kl", "kl.weight", "expected TERM.OPTION=VALUE with one of kl.weight, kl.direction"),
        ("kl", "heads.weight=1", "--set got 'heads.weight=1', expected TERM.OPTION=VALUE with one of kl"),
        ("kl", "weight=1", "expected TERM.OPTION=VALUE"),
        ("heads", "heads.heads=[[0, 1]]", "expected TERM.OPTION=VALUE with one of heads.weight"),
        ("kl", "kl.direction=sideways", "kl.direction is 'sideways'"),
        ("none", "kl.weight=1", "--set is given, but --guidance is none"),
    ):
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            GuidanceOptions(set_option=(text,)).plan(name)


def test_costs_follow_from_the_terms():
    """Rehearsal runs prompts of its own; heads and vectors have to be measured, instructions have not."""
    rehearsed, held = Rehearse(), Rehearse(heads=HeadConsistency())
    assert rehearsed.n_own_prompts == held.n_own_prompts == 32 and IVKL().n_own_prompts == 0
    assert (rehearsed.n_measured(6), held.n_measured(6), Rehearse("vectors").n_measured(6)) == (0, 6, 6)
    assert (Progressive().n_measured(6), HeadConsistency().n_measured(6), HeadConsistency(((0, 1),)).n_measured(6)) == (
        1,
        6,
        0,
    )


def test_the_difference_of_means_is_what_the_prompt_adds_to_the_stream(llama):
    """`Δ` against a mean by hand over the same prompts; its teacher is the frozen model with `α Δ` in it."""
    task, recipe = tiny_task(), PromptRecipe()
    plan = GuidanceRecipe((MeanDifferenceKL(weight=0.3),), layer=1, alpha=2.0, n_prompts=5)
    made = iv_guidance(llama, task, plan, recipe=recipe)
    (term,) = made.terms
    told = sampled_prompts(llama.tokenizer, task, task.split("fit"), recipe, n=5, seed=0)
    by_hand = []
    for example in told.examples:
        for kind in (None, "drop"):
            batch = build_prompts(llama.tokenizer, task, [example], recipe, corruption=kind)
            with captured_residual(llama, 1) as kept, torch.no_grad():
                llama(batch.tokens)
            by_hand.append(kept[1][0, -1])
    stream = torch.stack(by_hand)
    torch.testing.assert_close(term.shifted.delta, 2 * (stream[::2] - stream[1::2]).mean(0), atol=1e-4, rtol=1e-4)
    learner, data = Learner(llama, "full"), training_set(llama, task, list(task.examples)[:8])
    log = learner.learn(data, QUICK, made)
    same = IVKL(weight=0.3)
    other = Learner(llama, "full").learn(data, QUICK, Guidance((same,), theta=term.shifted.delta, layer=1))
    assert log.mean_kl.tolist() == pytest.approx(other.kl.tolist(), rel=1e-5) and log.mean_kl[0] > 1e-4
    (zero,) = control(made, "zero_vector", llama).terms
    assert not zero.shifted.delta.any()


@dataclass(frozen=True)
class StreamNorm(Term):
    """A term of one's own that reads the residual stream: its norm after one layer."""

    name: ClassVar[str] = "stream_norm"
    layer: int = 1
    weight: float = 1.0

    @property
    def streams_read(self):
        return [self.layer]

    def norms(self, answer):
        return answer.stream[self.layer].norm(dim=-1)

    def ask(self, frozen):
        return Rows(torch.cat(frozen.ask(frozen.own, self.norms, streams=self.streams_read)))

    def loss(self, student, asked, model):
        apart = self.norms(student.answer) - asked.rows(student.index).values
        return self.weight * apart.square().sum() / student.totals.rows


@dataclass(frozen=True)
class Rows:
    values: torch.Tensor

    def rows(self, index):
        return Rows(self.values[index])

    @property
    def n_bytes(self):
        return self.values.nbytes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_term_of_ones_own_can_hold_the_residual_stream(llama, data, checkpointing):
    """Against the bridge's own stream; it is in the log, it holds what it says, and weight 0 changes nothing."""
    options = TuneOptions(steps=20, batch_size=4, accumulate=2, lr=1e-2, gradient_checkpointing=checkpointing)
    apart, logs = {}, {}
    for weight in (None, 0.0, 100.0):
        learner, term = Learner(llama, "full"), StreamNorm()
        model = InTraining(learner.trained, learner.sites, QUICK, data)
        before = term.ask(model).values
        with captured_residual(llama, 1) as kept, torch.no_grad():
            llama(data.tokens, attention_mask=data.attention_mask)
        torch.testing.assert_close(before, kept[1][:, -1].norm(dim=-1), atol=1e-4, rtol=1e-4)
        guidance = None if weight is None else Guidance((StreamNorm(weight=weight),))
        logs[weight] = learner.learn(data, options, guidance)
        apart[weight] = float((term.ask(model).values - before).square().mean())
    assert logs[None].lm.tolist() == logs[0.0].lm.tolist() and not logs[0.0].stream_norm.any()
    held = logs[100.0]
    assert held.stream_norm[0] == pytest.approx(0, abs=1e-6) and held.stream_norm[1] > 0
    assert held.loss.tolist() == pytest.approx((held.lm + held.stream_norm).tolist(), rel=1e-5)
    assert apart[100.0] < 0.1 * apart[None]


def counted_rows(learner):
    """A list that gets the number of prompts of every pass of the model."""
    seen = []
    learner.trained.register_forward_pre_hook(
        lambda module, args, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("by", ["instructions", "vectors", "translations"])
def test_the_frozen_model_is_asked_about_no_more_than_the_steps_read(llama, monkeypatch, by):
    """Two steps of four read 8 of 60 examples; the log is the same as if all had been asked about."""
    task, old = tiny_task(), tiny_task("synonym", "Give a synonym.", 2)
    data = training_set(llama, task, list(task.examples), n_samples=60)
    kl = IVKL(weight=1.0, answers=1.0)
    plan = RehearsalOptions(n=300, kl=kl, n_tokens=3, heads=HeadConsistency(((1, 1),), weight=2.0))
    draw = torch.Generator().manual_seed(0)
    theta, deltas = torch.randn(llama.cfg.d_model, generator=draw), torch.randn(1, llama.cfg.d_model, generator=draw)
    if by == "vectors":
        many = torch.randn(50, llama.cfg.d_model, generator=draw)
        rehearsal = vector_rehearsal(llama, task, task.examples, many, options=plan)
    else:
        told = deltas if by == "translations" else None
        rehearsal = instruction_rehearsal(llama, task, task.examples, [old], deltas=told, options=plan)
    guidance = Guidance((IVKL(weight=1.0), HeadConsistency(((0, 1), (2, 3)), 5.0), rehearsal), theta)
    logs, asked, ask, long = {}, {}, Rehearsal.ask, TuneOptions(steps=1000, batch_size=4)
    for way in ("read", "all"):
        with monkeypatch.context() as patch:
            if way == "all":
                patch.setattr("ivlens.tuning.loop.read_by", lambda steps, size, n, seed: torch.arange(n))
                patch.setattr(Rehearsal, "ask", lambda self, frozen: ask(self, replace(frozen, options=long)))
            learner = Learner(llama, "full")
            seen = counted_rows(learner)
            learner.trainer(data, QUICK, guidance).ask_frozen()
            asked[way] = sum(seen)
            logs[way] = learner.learn(data, QUICK, guidance)
    # at the first step the student still is the frozen model, which was told otherwise in translations alone
    assert logs["read"]["rehearsal"][0] == pytest.approx(0.0, abs=1e-4) or by == "translations"
    columns = ["lm", "kl", "heads", "rehearsal"]
    torch.testing.assert_close(
        torch.tensor(logs["read"][columns].to_numpy()),
        torch.tensor(logs["all"][columns].to_numpy()),
        rtol=1e-4,
        atol=1e-6,
    )
    # 8 examples for each of two terms; at most 64 prompts of the rehearsal, four times
    assert 16 < asked["read"] <= 16 + 4 * 64
    assert 120 + 2 * 290 < asked["all"]
