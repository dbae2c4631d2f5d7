"""How much of a score is rounding, where a model computes in half precision."""

import logging
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.precision import HALF
from ivlens.effects.taken import scores_of
from ivlens.forward.hooks import added, model_lock
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch

logger = logging.getLogger(__name__)

# Two roundings: each has the variance 1/12, in last places squared, as has a move by a whole place with that chance.
_MOVED = 2 / 12


def rounding_noise(
    model: TransformerBridge, batch: PromptBatch, score: str, base: Float[Tensor, " batch"], batch_size: int, seed: int
) -> float | None:
    """How far an effect of one head on one prompt is off by rounding, in the score's unit; None: not in half precision.

    The prompts' scores are computed once more with every block's output moved as two more roundings would (a block adds
    to its stream twice); the result is the root mean square of the change. An effect is a difference of two scores,
    each off by as much, that have the roundings below the patched layer in common: on average half of them.

    Args:
        base: The scores of these prompts as they are.
        seed: Draws what is moved.

    Source: docs/method.md, section 4; compared with real errors by benches/precision.py.
    """
    dtype = next(model.parameters()).dtype
    if dtype not in HALF:
        return None
    draw = torch.Generator().manual_seed(seed)

    def rounded(stream: Tensor) -> Tensor:
        chance = torch.rand(stream.shape, generator=draw).to(stream.device)
        moved = (chance < _MOVED / 2).float() - (chance > 1 - _MOVED / 2).float()
        _, exponent = torch.frexp(stream.float())
        return (stream.float() + torch.ldexp(moved * torch.finfo(dtype).eps, exponent - 1)).to(dtype)

    with model_lock(model), ExitStack() as stack:
        for layer in range(model.cfg.n_layers):
            stack.enter_context(added(model, layer, "resid_post", rounded))
        again = scores_of(model, batch, score, batch.foil_tokens, batch_size)
    return float((again.double() - base.double().cpu()).square().mean().sqrt())


def warn_of_noise(cie: Float[Tensor, "batch n_layers n_heads"], noise: float, dtype: str, task: str) -> None:
    """Say so in the log where rounding makes more of the effects than the heads do."""
    measured = cie[~cie.isnan()].double()
    size = float(measured.square().mean().sqrt())
    if size < 2**0.5 * noise:  # what is measured is both together: its square is the sum of theirs
        logger.warning(
            "%s: rounding in %s (%.2g) makes more of the effects of one head on one prompt (%.2g in all, root mean "
            "square) than the heads do; measure in float32.",
            task, dtype, noise, size,
        )  # fmt: skip
