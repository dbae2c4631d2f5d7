"""`Picked`: a clickable map of head effects, and the heads that are chosen on it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import panel as pn
import param
from panel.custom import JSComponent

from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.show.figures.heads import short_name, unit_of
from ivlens.show.figures.marks import strongest, unsure
from ivlens.show.figures.theme import DARK, LIGHT, Theme, colour_at, readable_on
from ivlens.vectors.vector import InstructionVector

_HERE = Path(__file__).parent
_RANKED = 10  # heads whose rank stands in the map

Head = tuple[int, int]


class PickView(JSComponent):
    """The map itself. Both values are JSON texts, so that no types are converted between Python and the browser."""

    facts = param.String(doc="The map, which never changes: effects, intervals and colours of all heads.")
    chosen = param.String(doc="The chosen heads as pairs of layer and head.")

    _esm = (_HERE / "pick.js").read_text(encoding="utf-8")
    _stylesheets = [(_HERE / "pick.css").read_text(encoding="utf-8")]


class Picked(pn.viewable.Viewer):
    """The heads that are chosen on a map, as they are at the moment.

    >>> picked = effects.pick()   # the last line of a cell shows the map
    >>> picked.heads              # after some clicks, in another cell
    >>> iv = picked.vector()
    """

    def __init__(self, effects: HeadEffects, heads: Sequence[Head]) -> None:
        super().__init__()
        self.effects = effects
        self._view = PickView(sizing_mode="stretch_width", facts=json.dumps(facts(effects)))
        self.choose(heads)

    def __panel__(self) -> PickView:
        return self._view

    def __repr__(self) -> str:
        named = ", ".join(f"L{layer}H{head}" for layer, head in self.heads)
        return f"Picked({self.effects.task!r}: {named or 'no heads'})"

    @property
    def heads(self) -> list[Head]:
        """The chosen heads as `(layer, head)`, largest effect first."""
        return self._known(self._view.chosen)

    def choose(self, heads: Sequence[Head]) -> None:
        """Choose exactly these heads; the map shows it.

        Raises:
            ValueError: a head that was not measured, or the same one twice.
        """
        wanted = [(int(layer), int(head)) for layer, head in heads]
        strange = [head for head in wanted if head not in self._order()]
        if strange or len(set(wanted)) < len(wanted):
            what = f"L{strange[0][0]}H{strange[0][1]} among them" if strange else "one of them twice"
            raise ValueError(f"heads have {what}, expected different heads that were measured, as (layer, head).")
        self._view.chosen = json.dumps(wanted)

    def vector(self, model: TransformerBridge | None = None, *, contrast: bool = False) -> InstructionVector:
        """The Instruction Vector of the chosen heads, see `InstructionVector.from_effects`.

        Args:
            model: the bridge that was measured; needed only where it is no longer in memory.
            contrast: subtract the same sum over corrupted prompts.

        Raises:
            ValueError: no head is chosen, or as `from_effects`.
        """
        if not self.heads:
            raise ValueError("no heads are chosen on the map, expected one or more; click some.")
        return InstructionVector.from_effects(self.effects, heads=self.heads, model=model, contrast=contrast)

    def _order(self) -> list[Head]:
        """All measured heads, largest effect first."""
        return strongest(self.effects.aie.cpu().numpy(), self.effects.aie.numel())

    def _known(self, text: str) -> list[Head]:
        """The heads that a page named, in order of their effects; whatever is no measured head is passed over."""
        try:
            named = {(layer, head) for layer, head in json.loads(text)}
        except (ValueError, TypeError, RecursionError):
            return []
        return [head for head in self._order() if head in named]


def facts(effects: HeadEffects) -> dict[str, Any]:
    """The map as values that JSON can hold: for each head its effect, its interval, its rank and its colours."""
    aie = effects.aie.cpu().numpy()
    shown = effects.interval(simultaneous=True)
    low, high = (end.cpu().numpy() for end in shown)
    limit = max((abs(float(value)) for value in aie.flatten() if math.isfinite(value)), default=0.0) or 1.0
    ranks = {head: rank for rank, head in enumerate(strongest(aie, aie.size), start=1)}
    grey = unsure(low, high)

    def cell(head: Head) -> Mapping[str, Any] | None:
        if head not in ranks:
            return None
        value = float(aie[head])
        ends = "" if math.isnan(low[head]) else f", {shown.kind} {low[head]:+.2g} to {high[head]:+.2g}"
        grounds = [_ground(value / limit, bool(grey[head]), theme) for theme in (LIGHT, DARK)]
        text = f"Layer {head[0]}, head {head[1]}: {value:+.2g}{ends}; rank {ranks[head]}"
        rank = str(ranks[head]) if ranks[head] <= _RANKED else ""
        return {"text": text, "rank": rank, "grounds": grounds, "inks": [readable_on(one) for one in grounds]}

    n_layers, n_heads = aie.shape
    return {
        "title": f"Effect of each head: {effects.task}",
        "note": f"{short_name(effects)}, {len(effects.cie)} corrupted prompts",
        "cells": [[cell((layer, head)) for head in range(n_heads)] for layer in range(n_layers)],
        "strongest": [list(head) for head in strongest(aie, _RANKED)],
        "ends": [f"{sign}{limit:.2g}" for sign in "−+"],
        "unit": f"AIE ({unit_of(effects)})",
        "scales": [[colour for _, colour in theme.diverging] for theme in (LIGHT, DARK)],
        "greys": [theme.unsure for theme in (LIGHT, DARK)],
        "unsure": f"{shown.kind} interval includes 0" if grey.any() else "",
    }


def _ground(share: float, is_grey: bool, theme: Theme) -> str:
    """The colour of a cell in a theme; `share` is its effect as a share of the largest one."""
    return theme.unsure if is_grey else colour_at(theme.diverging, (share + 1) / 2)
