"""What is read of the logits a part of the vocabulary at a time is what all logits say."""

import pytest
import torch
from families import hf_model
from torch import nn

from ivlens.forward import vocabulary
from ivlens.forward.scoring import SCORES, score_answers, score_streams
from ivlens.forward.vocabulary import Read, keeping_stream, plain_unembedding
from ivlens.models import load_model

N_TOKENS, WIDTH = 5_000, 16  # several parts, the last one shorter


@pytest.fixture(params=[True, False])
def linear(request) -> nn.Linear:
    return nn.Linear(WIDTH, N_TOKENS, bias=request.param)


def logits_of(stream: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    with torch.no_grad():
        return linear.double()(stream.double())


@pytest.mark.parametrize("n_logits", [1, 4096, 2**30])
def test_parts_say_what_the_whole_says(linear, n_logits, monkeypatch):
    monkeypatch.setitem(vocabulary._LOGITS_AT_ONCE, "cpu", n_logits)
    stream, tokens = 3 * torch.randn(7, WIDTH), torch.randint(N_TOKENS, (7, 3))
    with torch.no_grad():
        found = Read.of_stream(stream, linear, tokens)
    want = logits_of(stream, linear)
    assert torch.equal(found.top, want.argmax(-1)) and found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, want.logsumexp(-1).float(), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.peak, want.amax(-1).float(), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.logprobs, want.log_softmax(-1).gather(1, tokens).float(), atol=1e-5, rtol=1e-5)


def test_ties_and_numbers_that_are_none():
    linear = nn.Linear(WIDTH, N_TOKENS, bias=False)
    nn.init.zeros_(linear.weight)
    stream = torch.ones(3, WIDTH)
    stream[1] = torch.nan
    with torch.no_grad():
        linear.weight[[3, 4_000]] = 1.0  # equal logits in the first part and in the last one
        found = Read.of_stream(stream, linear, torch.zeros((3, 0), dtype=torch.long))
    assert found.top[[0, 2]].tolist() == [3, 3] and bool(found.peak.isnan()[1]) and bool(found.total.isnan()[1])


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_streams_are_scores_of_their_logits(linear, score):
    stream = torch.randn(4, 3, WIDTH)
    answers = torch.tensor([[1, 2, 3], [4, -100, -100], [4_999, 0, -100], [7, 7, 7]])
    foils = torch.tensor([5, 6, 7, 8])
    with torch.no_grad():
        found = score_streams(score, stream, linear, answers, foils)
        want = score_answers(score, linear(stream), answers, foils)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma3"])
def test_logits_that_a_linear_layer_gives_are_read_in_parts(family):
    model = load_model(hf_model=hf_model(family))
    linear = plain_unembedding(model)
    assert linear is model.unembed.original_component
    tokens = torch.randint(1, 200, (2, 5))
    with torch.no_grad():
        want = model(tokens, use_cache=False)
        with keeping_stream(linear) as kept:
            assert model(tokens, use_cache=False).shape == (2, 5, 1)
        torch.testing.assert_close(linear(kept[0]), want)
        assert torch.equal(model(tokens, use_cache=False), want), "the layer is as it was"


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_logits_that_are_scaled_or_capped_are_not(family):
    assert plain_unembedding(load_model(hf_model=hf_model(family))) is None


def test_a_hook_on_the_logits_is_honoured(new_model):
    model = new_model("llama")
    assert plain_unembedding(model) is not None
    handles = [
        model.unembed.register_forward_hook(lambda module, given, out: 2 * out),
        model.original_model.register_forward_hook(lambda module, given, out: out),
    ]
    for handle in handles:
        assert plain_unembedding(model) is None
        handle.remove()
    with model.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: logits * 0)]):
        assert plain_unembedding(model) is None
    assert plain_unembedding(model) is not None
