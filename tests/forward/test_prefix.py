"""Passes from a shared prefix give what passes over everything give, and where they do not, nothing is shared."""

import pytest
import torch
from families import N_WORDS, WINDOW, hf_model
from transformers.cache_utils import DynamicLayer

from ivlens.forward import kept
from ivlens.forward.hooks import added
from ivlens.forward.prefix import SharedPrefix
from ivlens.models import load_model
from ivlens.prompts import PromptBatch
from ivlens.steering.edits import addition
from ivlens.steering.trials import Trials
from ivlens.tasks import TaskExample

GIVEN = torch.tensor([[7, 30], [51, 8], [120, 33], [9, 9]])
PROMPTS = torch.tensor([0, 2, 1, 0])


def prompts(lengths=(9, 4, 7)):
    generator = torch.Generator().manual_seed(1)
    mask = torch.stack([(torch.arange(max(lengths)) >= max(lengths) - length).long() for length in lengths])
    return torch.randint(3, N_WORDS, mask.shape, generator=generator) * mask, mask


def by_hand(plain, tokens, mask, given):
    """Logits of the unwrapped model at the last prompt token and after, each row alone and without padding."""
    rows = []
    for row, end in zip(PROMPTS.tolist(), given.tolist(), strict=True):
        ids = torch.tensor([tokens[row][mask[row] == 1].tolist() + end])
        with torch.no_grad():
            rows.append(plain(ids, use_cache=False).logits[0, -1 - len(end) :])
    return torch.stack(rows)


SHARING = ["llama", "gpt2", "mistral", "gemma2", "gpt_oss", "llama4_text", "qwen3_5", "falcon_h1", "nemotron_h", "lfm2"]


@pytest.mark.parametrize("family", SHARING)
def test_caches_of_keys_values_and_states_are_shared(family):
    plain, model = hf_model(family), load_model(hf_model=hf_model(family))
    tokens, mask = prompts()
    prefix = SharedPrefix(model, tokens, mask, 2)
    assert prefix.fault is None and prefix.n_before == 0 and WINDOW < tokens.shape[1]
    for given in (GIVEN, GIVEN[:, :0], GIVEN):
        want = by_hand(plain, tokens, mask, given)
        torch.testing.assert_close(prefix.logits(PROMPTS, given), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "mixtral"])
def test_rounding_in_half_precision_is_no_fault(family, dtype):
    model = load_model(hf_model=hf_model(family), dtype=dtype)
    assert SharedPrefix(model, *prompts(), 2).fault is None


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("openai_gpt", "it keeps no cache of keys and values"),
    ],
)
def test_what_keeps_another_state_is_run_whole(family, reason):
    plain, model = hf_model(family), load_model(hf_model=hf_model(family))
    tokens, mask = prompts()
    prefix = SharedPrefix(model, tokens, mask, 2)
    assert prefix.fault == reason and prefix.n_before == tokens.shape[1] - 1 and not prefix.is_known
    assert prefix.streams(PROMPTS, GIVEN, 4) is None and prefix.floats_per_row > 0
    for given in (GIVEN, GIVEN[:, :0], GIVEN):
        want = by_hand(plain, tokens, mask, given)
        torch.testing.assert_close(prefix.logits(PROMPTS, given), want, atol=2e-5, rtol=0)
    assert SharedPrefix(model, tokens, mask, 2).is_known


class Forgetful(DynamicLayer):
    """Looks like a layer of keys and values, and keeps something else as well."""


@pytest.mark.parametrize("what", ["changes in place", "is another class", "raises"])
def test_the_witness_sees_caches_that_go_wrong(what, monkeypatch):
    model = load_model(hf_model=hf_model("llama"))
    update = DynamicLayer.update

    def in_place(self, keys, values, *args, **kwargs):
        if keys.shape[-2] <= 3 and hasattr(self, "counted"):  # the second pass that continues
            keys = keys * 2
        if self.is_initialized and self.keys.numel():
            self.counted = True
        return update(self, keys, values, *args, **kwargs)

    def raising(self, keys, values, *args, **kwargs):
        if keys.shape[-2] <= 3:
            raise NotImplementedError("only once")
        return update(self, keys, values, *args, **kwargs)

    if what == "is another class":
        monkeypatch.setattr(kept, "_RESTORED", (Forgetful,))
        expected = r"its cache holds more than keys, values and states \(DynamicLayer\)"
    else:
        monkeypatch.setattr(DynamicLayer, "update", in_place if what == "changes in place" else raising)
        expected = {"raises": r"it cannot go on from a cache \(NotImplementedError: only once\)"}.get(
            what, "from a cache of the prompt its logits are off by"
        )
    tokens, mask = prompts()
    prefix = SharedPrefix(model, tokens, mask, 2)
    assert prefix.fault is not None
    with pytest.raises(ValueError, match=expected):
        raise ValueError(prefix.fault)
    monkeypatch.undo()
    want = by_hand(hf_model("llama"), tokens, mask, GIVEN)
    torch.testing.assert_close(prefix.logits(PROMPTS, GIVEN), want, atol=2e-5, rtol=0)


def batch():
    tokens, mask = prompts()
    alternatives = [((5, 6, 7),), ((8,), (9, 10)), ((11, 12),)]
    first = torch.full((3, 3), -100)
    for row, answers in enumerate(alternatives):
        first[row, : len(answers[0])] = torch.tensor(answers[0])
    examples = tuple(TaskExample(f"input {n}", ("answer",)) for n in range(3))
    none = ("",) * 3
    return PromptBatch(tokens, mask, first, None, tuple(alternatives), none, examples, none, (None,) * 3)


@pytest.mark.parametrize("family", ["llama", "falcon_h1", "jamba"])
def test_trials_are_the_same_every_time_and_alpha_0_is_no_vector(family, caplog):
    plain, model = hf_model(family), load_model(hf_model=hf_model(family))
    trials = Trials(model, batch())
    want = []
    for row, (answer, *_) in enumerate(batch().alternatives):
        ids = torch.tensor([[*batch().tokens[row][batch().attention_mask[row] == 1].tolist(), *answer]])
        with torch.no_grad():
            logits = plain(ids, use_cache=False).logits[0, -1 - len(answer) : -1].log_softmax(-1)
        want.append(logits[range(len(answer)), list(answer)].sum())
    zeros = torch.zeros(2, model.cfg.d_model)
    for scores in (trials.unsteered(), trials.unsteered(), trials.added(zeros, 0, "resid_post")):
        torch.testing.assert_close(scores.logprob[0], torch.stack(want), atol=1e-4, rtol=0)
    told = [record.message for record in caplog.records if "over whole prompts" in record.message]
    assert len(told) == (family == "jamba")


@pytest.mark.parametrize("positions", ["prompt", "every"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_vectors_land_on_the_same_tokens_without_a_shared_prefix(positions, site, monkeypatch):
    delta = 20 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for shared in (True, False):
        model = load_model(hf_model=hf_model("llama"))
        if not shared:
            monkeypatch.setattr(kept, "_RESTORED", ())
        scores = Trials(model, batch(), positions=positions).added(delta, 1, site)
        found.append(scores.logprob)
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)
    assert (found[0][0] - found[0][1]).abs().max() > 0.1


def test_added_vectors_of_a_recurrent_family_by_hand():
    model = load_model(hf_model=hf_model("falcon_h1"))
    delta = 20 * torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    found = Trials(model, batch()).added(delta, 1, "resid_post").logprob[0]
    for row, (answer, *_) in enumerate(batch().alternatives):
        prompt = batch().tokens[row][batch().attention_mask[row] == 1]
        tokens = torch.cat([prompt, torch.tensor(answer)])[None]
        where = (torch.arange(tokens.shape[1]) == len(prompt) - 1)[None]
        with torch.no_grad(), added(model, 1, "resid_post", addition(delta, lambda where=where: where)):
            logits = model(tokens, use_cache=False)[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert abs(logits[range(len(answer)), list(answer)].sum() - found[row]) < 1e-4
