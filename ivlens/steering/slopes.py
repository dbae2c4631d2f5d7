"""How the log-probability of answers changes with the vectors that are added: passes forwards and backwards.

What lies before the last prompt token is run once (see `Trials`), so a pass goes forwards and backwards through the
blocks above the vector alone, over the last prompt token and the answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.common.memory import memory_budget
from ivlens.forward.prefix import block_floats
from ivlens.forward.scoring import sequence_logprob
from ivlens.models.boot import TransformerBridge
from ivlens.steering.additions import Additions
from ivlens.steering.portions import Portion


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """In the body no parameter of the model requires a gradient; afterwards those do that did before."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def slopes(
    portion: Portion, every: Additions, prompts: Int[Tensor, " some"]
) -> tuple[Float[Tensor, "n prompts"], Float[Tensor, "n d_model"]]:
    """The log-probability (nats) of each prompt's answer under each vector, and the gradients of the sums over prompts.

    The caller holds the model's lock.

    Args:
        portion: Prompts with one answer each.
        every: The vectors, in ascending order of the blocks that they enter at.
        prompts: The numbers of the prompts to run.

    Returns:
        NaN for prompts that were not run.
    """
    model = portion.model
    values = torch.full((len(every.deltas), len(portion.batch)), torch.nan)
    total = torch.zeros_like(every.deltas)
    with torch.enable_grad():
        # rows of different vectors do not influence each other: the gradient of one sum holds all of them
        tracked = replace(every, deltas=every.deltas.detach().clone().requires_grad_())
        passes = portion.answer_passes(tracked, prompts, lambda *size: _rows_per_pass(model, *size))
        for chosen, asked, answers, logits in passes:
            found = sequence_logprob(logits, answers.to(logits.device))
            total += torch.autograd.grad(found.sum(), tracked.deltas)[0]
            values[chosen, asked] = found.detach().float().cpu()
    return values, total


def _rows_per_pass(model: TransformerBridge, n_positions: int, n_answer: int) -> int:
    """The rows of one pass whose activations fit in memory until the pass back, which needs those of all blocks."""
    parameter = next(model.parameters())
    logits = 4 * n_answer * model.cfg.d_vocab  # these, their softmax, and the gradients of both
    floats = model.cfg.n_layers * block_floats(model.cfg, n_positions) + logits
    return max(1, memory_budget("auto", parameter.device) // (floats * parameter.element_size()))
