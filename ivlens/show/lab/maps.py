"""The maps of effects that the page draws: one for each model, and where two are compared, their difference."""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ivlens.effects.bands import MapInterval
from ivlens.effects.results import HeadEffects
from ivlens.show.figures.heads import unit_of
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.state import LabState

N_RANKED = 10  # heads of largest effect, whose ranks stand on the map


_INTERVALS: WeakKeyDictionary[HeadEffects, MapInterval] = WeakKeyDictionary()


def whole_map(effects: HeadEffects) -> MapInterval:
    """The interval of all heads at once, resampled once for each map."""
    if effects not in _INTERVALS:
        _INTERVALS[effects] = effects.interval(simultaneous=True)
    return _INTERVALS[effects]


def effects_maps(engines: Sequence[Engine], state: LabState) -> list[Mapping[str, Any]]:
    """The map of each engine's effects, and for two of them the map of second minus first."""
    found = [engine.effects(state) for engine in engines]
    maps = [{**engine.facts(), **_map(effects)} for engine, effects in zip(engines, found, strict=True)]
    return [*maps, *([_difference(engines, found)] if len(found) == 2 else [])]


def _map(effects: HeadEffects) -> dict[str, Any]:
    """Effects of all heads, their interval, the strongest heads, and what was taken from the prompts."""
    shown = whole_map(effects)
    strongest = effects.top_heads(min(N_RANKED, int(effects.aie.isfinite().sum())))
    return {
        "kind": "effect",
        "aie": _rows(effects.aie),
        "low": _rows(shown.low),
        "high": _rows(shown.high),
        "interval": shown.kind,
        "ranked": [list(head) for head in strongest if float(effects.aie[head]) > 0],
        "unit": unit_of(effects),
        "n_prompts": len(effects.cie),
        "taken": str(effects.taken or ""),
        "warning": effects.taken_warning,
    }


def _difference(engines: Sequence[Engine], found: Sequence[HeadEffects]) -> dict[str, Any]:
    """Second minus first: paired over prompts where both were asked about the same inputs, without interval else."""
    first, second = found
    names = [engine.facts()["name"] for engine in engines]
    if names[0] == names[1]:  # two checkpoints in folders of one name are told apart by their weights
        names = [f"{engine.facts()['name']} {engine.facts()['weights']}" for engine in engines]
    paired = first.inputs == second.inputs and first.settings.get("score") == second.settings.get("score")
    change = second.aie - first.aie
    shown = MapInterval.of(second.cie - first.cie, simultaneous=True) if paired else MapInterval.of(first.cie[:1])
    n_heads = change.shape[1]
    order = change.abs().nan_to_num(-1).flatten().argsort(descending=True, stable=True)[:N_RANKED].tolist()
    return {
        **engines[0].facts(),
        "kind": "difference",
        "name": f"{names[1]} − {names[0]}",
        "aie": _rows(change),
        "low": _rows(shown.low),
        "high": _rows(shown.high),
        "interval": shown.kind,
        "ranked": [list(divmod(index, n_heads)) for index in order],
        "unit": unit_of(first),
        "n_prompts": len(first.cie),
        "taken": "",
        "warning": "" if paired else "the two models were asked about different inputs, so there is no interval",
    }


def _rows(values: Tensor) -> list[list[float | None]]:
    """The values of all heads for JSON, which has no NaN: a missing value becomes None."""
    return [[float(f"{x:.4g}") if math.isfinite(x) else None for x in row] for row in values.tolist()]
