"""Rows that enter a pass at blocks of their own have the logits of whole passes."""

import pytest
import torch
from conftest import random_prompts
from families import hf_model

from ivlens.forward.joining import blocks_joined, entered_by
from ivlens.forward.prefix import SharedPrefix
from ivlens.models import load_model

JOINING = ("gpt2", "neox", "llama", "mistral", "gemma2", "gemma3", "qwen3", "phi3", "opt", "olmo2", "mpt")


def test_how_many_rows_have_entered():
    assert entered_by(4, torch.tensor([1, 1, 3, 4])) == [0, 2, 2, 3]
    assert entered_by(2, torch.tensor([0, 0])) == [2, 2] and entered_by(2, torch.tensor([2])) == [0, 0]


@pytest.mark.parametrize("family", JOINING)
@pytest.mark.parametrize("n_rows", [6, 4])  # as many as heads, too
def test_each_row_is_as_in_a_pass_of_its_own(family, n_rows):
    model = load_model(hf_model=hf_model(family))
    tokens, mask = random_prompts((5, 3, 6, 4))
    prefix, prompts = SharedPrefix(model, tokens, mask, 1), torch.tensor([0, 1, 2, 3, 0, 2])[:n_rows]
    given = torch.randint(1, 200, (n_rows, 1))
    streams = prefix.streams(prompts, given, 512)
    assert streams is not None and prefix.joins(given.shape[1])
    n = model.cfg.n_layers
    starts = torch.tensor([1, 1, 2, n - 1, n, n]).sort().values[:n_rows]
    changed = streams[starts - 1, torch.arange(n_rows)] + torch.randn(n_rows, 2, model.cfg.d_model)
    together = prefix.logits(prompts, given, changed, starts)
    for row, start in enumerate(starts.tolist()):
        one = [row]
        alone = prefix.logits(prompts[one], given[one], changed[one], start)
        torch.testing.assert_close(together[one], alone, atol=2e-4, rtol=1e-4)


def test_blocks_are_as_they_were_whatever_happens(new_model):
    model = new_model("llama")
    stream = torch.zeros(2, 1, model.cfg.d_model)
    with pytest.raises(KeyboardInterrupt), blocks_joined(model, torch.tensor([1, 2]), stream, 0):
        assert "forward" in model.blocks[1].__dict__
        raise KeyboardInterrupt
    assert not any("forward" in block.__dict__ for block in model.blocks)
