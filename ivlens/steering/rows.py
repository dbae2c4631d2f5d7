"""`steer_rows`: runs a live model on a batch whose rows have vectors, layers and strengths of their own."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.forward.hooks import check_layers, check_site
from ivlens.forward.writes import added_to_stream, attention_factor
from ivlens.models.boot import TransformerBridge
from ivlens.steering.edits import addition
from ivlens.steering.positions import Chosen, check_positions, expanded
from ivlens.steering.prompt_ends import PromptEnds, followed
from ivlens.steering.summary import Setting
from ivlens.vectors.vector import InstructionVector, check_belongs


@contextmanager
@checked
def steer_rows(
    model: TransformerBridge,
    vectors: Sequence[InstructionVector | None],
    *,
    at: Setting | Sequence[Setting | None],
    positions: Chosen = "prompt",
) -> Iterator[None]:
    """Run the body with a vector of its own added to each row of the batch: `h[row] <- h[row] + alpha * theta`.

        >>> prompts = ["Input: big\\nOutput:", "Input: cat\\nOutput:", "Input: hot\\nOutput:"]
        >>> with ivlens.steer_rows(model, [antonym, plural, None], at=[(1, 4, "attn_out"), (2, 3, "resid_post"), None]):
        ...     model.generate(prompts, do_sample=False)

    One batch so serves many vectors. Each row is written as it would be alone inside `steer`, in every way of decoding
    that `steer` follows. Where a generation repeats rows (beams, several returned sequences), all copies of a row have
    its vector. Contexts nest with those of `steer`, and with each other.

    Args:
        vectors: The vector of each row, in their order; None: nothing is added to this row.
        at: Layer, strength and site of each row, or one setting for all; of a row without a vector it may be None.
        positions: As in `steer`, for all rows.

    Raises:
        ValueError: no rows; another number of settings than of vectors; a vector of another model; no such layer, site
            or positions; a strength that is not finite; a vector without a setting. In the body: a batch of another
            number of rows, or what `steer` raises there.
        RuntimeError: as in `steer`.

    Source: docs/method.md, 6 Intervention and its controls.
    """
    check_positions(positions)
    moves = _moves(model, vectors, at)
    if any(site == "attn_out" for _, site in moves):
        attention_factor(model, 0)  # measured now, for all layers: its passes have rows of their own
    with ExitStack() as stack:
        ends = stack.enter_context(followed(model))
        for (layer, site), deltas in moves.items():
            stack.enter_context(added_to_stream(model, layer, site, _edit(deltas, ends, positions)))
        yield


def _moves(
    model: TransformerBridge, vectors: Sequence[InstructionVector | None], at: Setting | Sequence[Setting | None]
) -> dict[tuple[int, str], Float[Tensor, "rows d_model"]]:
    """What is added to each row, by layer and site, in ascending order; 0 in rows that have nothing there."""
    settings = [at] * len(vectors) if isinstance(at, Setting) else list(at)
    if not vectors or len(settings) != len(vectors):
        raise ValueError(
            f"steer_rows got {len(vectors)} vectors and {len(settings)} settings, expected one or more rows, with one "
            "vector and one setting for each."
        )
    checked_ones: set[int] = set()
    found: dict[tuple[int, str], Tensor] = {}
    for row, (vector, setting) in enumerate(zip(vectors, settings, strict=True)):
        if vector is None:
            continue
        if setting is None:
            raise ValueError(f"row {row} of steer_rows has a vector but no setting, expected (layer, alpha, site).")
        if id(vector) not in checked_ones:  # to check a vector takes a look at the model
            check_belongs(vector, model)
            checked_ones.add(id(vector))
        if not math.isfinite(setting.alpha):
            raise ValueError(f"alpha of row {row} is {setting.alpha}, expected a finite number; 0.5 to 8 are usual.")
        check_layers(model, [setting.layer])
        place = setting.layer, check_site(setting.site)
        if place not in found:
            found[place] = torch.zeros(len(vectors), len(vector.theta))
        found[place][row] = setting.alpha * vector.theta
    return dict(sorted(found.items()))


def _edit(deltas: Float[Tensor, "rows d_model"], ends: PromptEnds, positions: Chosen) -> Callable[[Tensor], Tensor]:
    """The edit of a pass at one place."""

    def edit(resid: Tensor) -> Tensor:
        own = expanded(deltas, len(resid), f"steer_rows for {len(deltas)} prompts")
        return addition(own, lambda: ends.columns(positions))(resid)

    return edit
