"""How much of an effect is rounding, for models that compute in half precision."""

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

# Chance that a number is moved by one unit in the last place (ulp). The error of one rounding has a variance of 1/12
# ulp², and so has a move by 1 ulp that happens with a chance of 1/12; a block rounds twice.
_MOVED = 2 / 12


def rounding_noise(
    model: TransformerBridge, batch: PromptBatch, score: str, base: Float[Tensor, " batch"], batch_size: int, seed: int
) -> float | None:
    """The error that rounding makes in the effect of one head on one prompt, in the unit of the score.

    The prompts' scores are computed once more with every block's output moved as two more roundings would move it (a
    block adds to its stream twice). The result is the root mean square of the change. It holds for an effect, too: an
    effect is the difference of two scores with this error each, but the roundings below the patched layer, on average
    half of all, are the same in both and cancel.

    Args:
        base: The scores of these prompts as they are.
        seed: Draws which numbers are moved.

    Returns:
        None for a model in full precision.

    Source: docs/method.md, 3 Scores and accuracy; compared with real errors by benches/precision.py.
    """
    dtype = next(model.parameters()).dtype
    if dtype not in HALF:
        return None
    draw = torch.Generator().manual_seed(seed)  # on the CPU, so that every device gets the same draws

    def rounded(stream: Tensor) -> Tensor:
        """The stream, with some numbers drawn at random and moved up or down by 1 ulp."""
        chance = torch.rand(stream.shape, generator=draw).to(stream.device)
        moved = (chance < _MOVED / 2).float() - (chance > 1 - _MOVED / 2).float()
        _, exponent = torch.frexp(stream.float())  # a mantissa from 0.5 to 1, hence `exponent - 1` for the last place
        return (stream.float() + torch.ldexp(moved * torch.finfo(dtype).eps, exponent - 1)).to(dtype)

    with model_lock(model), ExitStack() as stack:
        for layer in range(model.cfg.n_layers):
            stack.enter_context(added(model, layer, "resid_post", rounded))
        again = scores_of(model, batch, score, batch.foil_tokens, batch_size)
    return float((again.double() - base.double().cpu()).square().mean().sqrt())


def warn_of_noise(cie: Float[Tensor, "batch n_layers n_heads"], noise: float, dtype: str, task: str) -> None:
    """Warn in the log where the measured effects consist of rounding more than of what the heads do."""
    measured = cie[~cie.isnan()].double()
    size = float(measured.square().mean().sqrt())
    # measured effects are true effects plus noise, and squares add up: so true effects are smaller than the noise where
    # the sum is below twice the noise's square
    if size < 2**0.5 * noise:
        logger.warning(
            "%s: rounding in %s (%.2g) makes more of the effects of one head on one prompt (%.2g in all, root mean "
            "square) than the heads do; measure in float32.",
            task, dtype, noise, size,
        )  # fmt: skip
