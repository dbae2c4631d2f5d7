"""Which positions of a pass are edited: by a word, by a slice of the prompt's tokens, or by a mask."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ivlens.steering.edits import POSITIONS, Positions

# a slice counts the prompt's own tokens, from the first real one; a mask has the columns of the prompt as it was given
Chosen = Positions | slice | Bool[Tensor, "rows prompt_len"]


@dataclass(frozen=True, eq=False)
class PromptPlace:
    """Where the prompt lies in one pass. Columns are counted over the whole text, cached ones and padding included.

    Attributes:
        columns: The column of every position of the pass.
        last: The column of each row's last prompt token; -1 where the pass follows a prompt that is not known.
        width: Columns of the prompt; those behind it are generated.
        starts: The column of the first real token of each row, or of each row that the call was given, which several
            rows of a pass may continue; None where it cannot be known.
    """

    columns: Int[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    width: int
    starts: Int[Tensor, " rows"] | None

    def chosen(self, positions: Chosen) -> Bool[Tensor, "batch pos"]:
        """The positions that are edited.

        Raises:
            ValueError: a mask of another shape than the prompt; a slice, where it is not known where rows begin.
        """
        if isinstance(positions, str):
            if positions == "all":
                return torch.ones_like(self.columns, dtype=torch.bool)
            is_last = self.columns == self.last[:, None]
            return is_last if positions == "prompt" else is_last | (self.columns >= self.width)
        nothing = torch.zeros_like(self.columns, dtype=torch.bool)
        # slices and masks are of the prompt alone, which passes of one new token each have behind them
        if bool((self.last < 0).all()) or int(self.columns.min()) >= self.width:
            return nothing
        return self._of_mask(positions) if isinstance(positions, Tensor) else self._of_slice(positions, nothing)

    def _of_slice(self, positions: slice, found: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        if self.starts is None:
            raise ValueError(
                "positions is a slice, but the pass has no mask [batch, pos] that shows where each row begins; give "
                "generate the attention_mask, or another kind of cache."
            )
        starts = expanded(self.starts, len(self.columns), "a slice of positions")
        for row, (start, last) in enumerate(zip(starts.tolist(), self.last.tolist(), strict=True)):
            own = torch.tensor(range(start, last + 1)[positions], dtype=torch.long, device=self.columns.device)
            found[row] = torch.isin(self.columns[row], own)
        return found

    def _of_mask(self, positions: Bool[Tensor, "rows prompt_len"]) -> Bool[Tensor, "batch pos"]:
        if positions.shape[1] != self.width:
            raise ValueError(
                f"positions is a mask of shape {tuple(positions.shape)}, expected {self.width} columns, as the prompt "
                "has, padding and cached ones included."
            )
        mask = expanded(positions.to(self.columns.device), len(self.columns), "the mask of positions")
        return mask.gather(1, self.columns.clamp(max=self.width - 1)) & (self.columns < self.width)


def expanded(rows: Tensor, batch: int, what: str) -> Tensor:
    """One entry for each row of a pass: beams and several returned sequences repeat each row of the call.

    Raises:
        ValueError: the pass has another number of rows, and no multiple of it.
    """
    n_times, rest = divmod(batch, len(rows))
    if rest or not n_times:
        raise ValueError(
            f"{what} has {len(rows)} rows, but {batch} rows run, expected as many, or a multiple (beams, several "
            "returned sequences); give it one row for each prompt."
        )
    return rows if n_times == 1 else rows.repeat_interleave(n_times, 0)


def first_columns(mask: Any) -> Int[Tensor, " rows"] | None:
    """The column of the first real token in each row of a mask `[rows, pos]`; None where the mask does not show it."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not bool((real := mask != 0).any(1).all()):
        return None
    return real.int().argmax(1)


def check_positions(positions: Chosen) -> None:
    """Refuse an unknown word, and slices that choose nothing anywhere.

    Raises:
        ValueError, TypeError: the positions make no sense.
    """
    if isinstance(positions, Tensor):
        if positions.ndim != 2 or positions.dtype != torch.bool:
            raise ValueError(
                f"positions is a {positions.dtype} tensor of shape {tuple(positions.shape)}, expected a mask "
                "[rows, prompt_len] of bools."
            )
    elif isinstance(positions, slice):
        parts = positions.start, positions.stop, positions.step
        if any(part is not None and (isinstance(part, bool) or not isinstance(part, int)) for part in parts):
            raise TypeError(f"positions is {positions}, expected a slice of whole numbers, such as slice(-3, None).")
        if positions.step == 0:
            raise ValueError(f"positions is {positions}, expected a step other than 0.")
    elif positions not in POSITIONS:
        raise ValueError(f"positions is {positions!r}, expected one of {', '.join(POSITIONS)}.")
