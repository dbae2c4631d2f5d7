"""Every method by the property that defines it."""

import dataclasses

import pytest
import torch
from conftest import hf_model, tiny_task

from ivlens.models import load_model
from ivlens.models.plain import plain_model
from ivlens.tuning import IVKL, METHODS, Guidance, HeadConsistency, Learner, TuneOptions, new_method
from ivlens.tuning.methods import EWC, IncLora, OLora, Replay, diagonal_fisher, lora_targets
from ivlens.tuning.training.asking import InTraining
from ivlens.tuning.training.data import answer_logits, training_set

TASKS = [tiny_task(f"task{shift}", f"Do number {shift}.", shift=shift) for shift in (1, 2, 3)]
OPTIONS = TuneOptions(lr=1e-2, steps=4, batch_size=4)


@pytest.fixture(scope="module")
def calm(byte_level):
    """Smaller weights than in other tests: training needs gradients that do not explode."""
    hf = hf_model("llama")
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(1 / 3 if parameter.ndim > 1 else 1.0)
    return load_model(hf_model=hf, tokenizer=byte_level)


def data_of(model, task, n=8):
    return training_set(model, task, task.examples, n_samples=n, seed=1)


def learned(model, method, n_tasks=2, options=OPTIONS, guidance=None):
    learner = Learner(model, method)
    for task in TASKS[:n_tasks]:
        learner.learn(data_of(model, task), options, guidance)
    return learner


def snapshot(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_two_tasks_guided_or_not(calm, method):
    theta = torch.randn(32, generator=torch.Generator().manual_seed(5))
    guidance = Guidance((IVKL(), HeadConsistency(((0, 1),))), theta, layer=1)
    options = dataclasses.replace(OPTIONS, steps=12)
    for guide in (None, guidance):
        learner = Learner(calm, method)
        for task in TASKS[:2]:
            log = learner.learn(data_of(calm, task), options, guide)
            assert log.lm.iloc[-3:].mean() < log.lm.iloc[:3].mean(), "it did not learn"
            assert ("kl" in log and "heads" in log) == (guide is not None or False) or method == "lwf"
        assert learner.bridge().cfg.n_layers == 3


def test_full_moves_every_weight(calm):
    learner = learned(calm, "full", 1)
    before, after = snapshot(plain_model(calm)), snapshot(learner.trained)
    assert moved(before, after) == set(before)


def test_lora_moves_its_one_adapter_only(calm):
    learner = Learner(calm, "lora")
    learner.learn(data_of(calm, TASKS[0]), OPTIONS)
    first = snapshot(learner.trained)
    learner.learn(data_of(calm, TASKS[1]), OPTIONS)
    second = snapshot(learner.trained)
    assert set(first) == set(second)
    assert moved(first, second) == {name for name in first if "lora_" in name}
    assert {name.split(".")[-4] for name in first if "lora_" in name} == {"q_proj", "v_proj"}


def test_earlier_adapters_stand_still_and_stay_in_use(calm):
    learner = Learner(calm, IncLora())
    learner.learn(data_of(calm, TASKS[0]), OPTIONS)
    first, data = snapshot(learner.trained), data_of(calm, TASKS[2])
    with torch.no_grad():
        one = answer_logits(learner.trained, data)
    learner.learn(data_of(calm, TASKS[1]), dataclasses.replace(OPTIONS, lr=1e-12))
    second = snapshot(learner.trained)
    assert not moved(first, second), "an earlier adapter moved"
    assert {name for name in second if ".task1." in name}
    with torch.no_grad():  # the new adapter is as good as zero, so this is what the first one does
        torch.testing.assert_close(answer_logits(learner.trained, data), one, atol=1e-4, rtol=1e-4)
        assert (one - answer_logits(plain_model(calm), data)).abs().max() > 0.05


def test_o_lora_keeps_its_subspaces_apart(calm):
    def overlap(weight):
        learner = learned(
            calm, OLora(weight=weight), 3, dataclasses.replace(OPTIONS, steps=60, lr=2e-2, decay="constant")
        )
        method = learner.method
        pairs = method.subspaces(learner.trained)
        cosines = [
            torch.nn.functional.normalize(old, dim=1) @ torch.nn.functional.normalize(new, dim=1).T
            for old, new in pairs
        ]
        assert len(pairs) == 2 * 2 * 3, "two earlier tasks, two projections, three layers"
        return torch.stack(cosines).abs().mean()

    with torch.no_grad():
        apart, free = overlap(50.0), overlap(0.0)
    assert apart < 0.02 < 0.08 < free


def test_the_penalty_of_o_lora_by_hand(calm):
    learner = learned(calm, OLora(weight=0.5), 2)
    want = sum(((old @ new.T) ** 2).sum() for old, new in learner.method.subspaces(learner.trained)) / 2
    torch.testing.assert_close(learner.method.penalty(learner.trained), want)


class Softmax(torch.nn.Module):
    """A softmax over four words whose logits are weights: its Fisher information is known."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.5, 0.0]))

    def forward(self, input_ids, attention_mask, use_cache, logits_to_keep):
        logits = self.w.expand(*input_ids.shape[:1], logits_to_keep, 4)
        return type("Out", (), {"logits": logits})


def test_the_fisher_information_of_a_model_where_it_is_known():
    """`E[(∂ log p / ∂w_i)²] = E[(1{y=i} - p_i)²]`, and for answers drawn from the model itself `p_i (1 - p_i)`."""
    from ivlens.tuning.training.data import TrainingSet

    model = Softmax()
    p = model.w.detach().softmax(0)
    drawn = torch.multinomial(p, 4000, replacement=True, generator=torch.Generator().manual_seed(0))[:, None]
    data = TrainingSet(torch.zeros_like(drawn), torch.ones_like(drawn), drawn)
    fisher = diagonal_fisher(model, data)["w"]
    hits = torch.nn.functional.one_hot(drawn[:, 0], 4)
    torch.testing.assert_close(fisher, (hits - p).square().mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fisher, p * (1 - p), atol=0.02, rtol=0)
    method = EWC(weight=3.0)
    method.finish(model, data.rows(torch.arange(200)), 0)
    anchor = model.w.detach().clone()
    assert float(method.penalty(model).detach()) == 0
    with torch.no_grad():
        model.w += torch.tensor([0.1, -0.2, 0.0, 0.4])
    want = 1.5 * (method.fisher["w"] * (model.w - anchor) ** 2).sum()
    torch.testing.assert_close(method.penalty(model), want)


def test_ewc_holds_what_mattered(calm):
    def drift(weight):
        learner = Learner(calm, EWC(weight=weight))
        learner.learn(data_of(calm, TASKS[0]), dataclasses.replace(OPTIONS, steps=20))
        before = snapshot(learner.trained)
        learner.learn(data_of(calm, TASKS[1]), dataclasses.replace(OPTIONS, steps=20))
        after, fisher = snapshot(learner.trained), learner.method.fisher
        return sum(float((fisher[name] * (after[name] - before[name]) ** 2).sum()) for name in before if name in fisher)

    assert drift(1e6) < 0.1 * drift(0.0)


def test_lwf_asks_the_model_before_the_task_without_a_vector(calm):
    learner = Learner(calm, "lwf")
    _, (own, shift) = learner._terms(None)  # after its penalty
    assert isinstance(own, IVKL) and own.weight == learner.method.weight > 0 and not shift.delta.any()
    data = data_of(calm, TASKS[0])
    with torch.no_grad():
        want = (answer_logits(plain_model(calm), data) / 2).log_softmax(-1)
    torch.testing.assert_close(
        own.ask(InTraining(learner.trained, learner.sites, OPTIONS, data, shift)).log_probs, want
    )
    log = learner.learn(data, OPTIONS, Guidance((IVKL(), HeadConsistency(((0, 1),))), torch.zeros(calm.cfg.d_model)))
    assert {"heads", "kl_2"} <= set(log), "guidance and the method's own teacher at once"


def test_replay_keeps_what_it_says_and_mixes_it_in(calm):
    method = Replay(n_kept=3, share=0.5)
    learner = Learner(calm, method)
    assert not method.buffer
    sets = [data_of(calm, task) for task in TASKS]
    for data in sets[:2]:
        learner.learn(data, OPTIONS)
    kept = learner.method.buffer
    assert [len(part) for part in kept] == [3, 3] and not method.buffer, "the caller's object is left alone"
    for part, source in zip(kept, sets, strict=False):
        rows = {tuple(row) for row in source.tokens.tolist()}
        assert all(tuple(row) in rows for row in part.tokens.tolist())
    mixed = learner.method.data(sets[2], seed=0)
    assert len(mixed) == 12 and torch.equal(mixed.tokens[:8, -sets[2].tokens.shape[1] :], sets[2].tokens)
    seen = {
        tuple(row[mask == 1].tolist()) for row, mask in zip(mixed.tokens[8:], mixed.attention_mask[8:], strict=True)
    }
    allowed = {
        tuple(row[mask == 1].tolist())
        for part in kept
        for row, mask in zip(part.tokens, part.attention_mask, strict=True)
    }
    assert seen <= allowed


def test_projections_are_found_in_every_family():
    found = {
        family: lora_targets(hf_model(family)) for family in ("llama", "gpt2", "neox", "gemma2", "olmo2", "granite")
    }
    assert found["llama"] == found["gemma2"] == found["olmo2"] == found["granite"] == ("q_proj", "v_proj")
    assert found["gpt2"] == ("c_attn",) and found["neox"] == ("query_key_value",)
    with pytest.raises(ValueError, match="Linear has no module named q_proj.*; name the modules"):
        lora_targets(torch.nn.Linear(2, 2))


def test_a_method_nobody_knows():
    with pytest.raises(
        ValueError, match="method is 'sgd', expected one of full, lora, inclora, ewc, olora, lwf, replay"
    ):
        new_method("sgd")
