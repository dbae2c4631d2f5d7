"""The kinds of cells: to add one, write its options, a line here, and what makes it in `making`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ivlens.runs.sweep.options import (
    DynamicsOptions,
    EffectsOptions,
    ForgettingOptions,
    InterventionOptions,
    SequenceOptions,
    TuningOptions,
    VectorOptions,
)
from ivlens.runs.sweep.tasks import suite_of_cell, task_facts


@dataclass(frozen=True)
class Kind:
    """One kind of cells.

    Attributes:
        options: Dataclass of what can be varied, all with defaults.
        format: Part of every key: another number, and results made before it count as absent.
        made_from: Kinds whose results its cells are made from, directly or not.
        uses_others: Whether its cells depend on the grid's other tasks with the same inputs.
        over: What its cells are about, as the grid's file lists it: `tasks`, or `suites` of tasks.
        facts: What a result depends on of that: from its name and the options.
    """

    options: type[Any]
    format: int = 1
    made_from: tuple[str, ...] = ()
    uses_others: bool = False
    over: str = "tasks"
    facts: Callable[[str, Any], Any] = lambda name, options: task_facts(name)


# in the order in which they are made: what others are made from comes first
KINDS: dict[str, Kind] = {
    "effects": Kind(EffectsOptions, format=2),
    "vectors": Kind(VectorOptions, format=2, made_from=("effects",)),
    "interventions": Kind(InterventionOptions, format=2, made_from=("effects", "vectors"), uses_others=True),
    "forgetting": Kind(ForgettingOptions),
    "dynamics": Kind(DynamicsOptions, format=3),
    "tuning": Kind(TuningOptions, format=2),
    "sequences": Kind(
        SequenceOptions,
        over="suites",
        facts=lambda name, options: suite_of_cell(name, *options.suite).facts,
    ),
}
