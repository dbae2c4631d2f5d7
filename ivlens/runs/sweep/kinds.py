"""The kinds of cells: to add one, write its options, a line here, and what makes it in `making`."""

from dataclasses import dataclass
from typing import Any

from ivlens.runs.sweep.options import (
    DynamicsOptions,
    EffectsOptions,
    ForgettingOptions,
    InterventionOptions,
    TuningOptions,
    VectorOptions,
)


@dataclass(frozen=True)
class Kind:
    """One kind of cells.

    Attributes:
        options: Dataclass of what can be varied, all with defaults.
        format: Part of every key: another number, and results made before it count as absent.
        made_from: Kinds whose results its cells are made from, directly or not.
        uses_others: Whether its cells depend on the grid's other tasks with the same inputs.
    """

    options: type[Any]
    format: int = 1
    made_from: tuple[str, ...] = ()
    uses_others: bool = False


# in the order in which they are made: what others are made from comes first
KINDS: dict[str, Kind] = {
    "effects": Kind(EffectsOptions, format=2),
    "vectors": Kind(VectorOptions, format=2, made_from=("effects",)),
    "interventions": Kind(InterventionOptions, format=2, made_from=("effects", "vectors"), uses_others=True),
    "forgetting": Kind(ForgettingOptions),
    "dynamics": Kind(DynamicsOptions, format=3),
    "tuning": Kind(TuningOptions, format=2),
}
