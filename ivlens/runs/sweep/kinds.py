"""The kinds of cells. To add a kind, write its options, a line in `KINDS`, and a function in `making.py`."""

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
        options: Dataclass of the options that a grid can vary, all with defaults.
        format: A number that is part of every key. Raise it when cells are made in another way: then older results
            count as absent.
        made_from: Kinds whose results the cells are made from, directly or through another kind.
        uses_others: Whether the cells depend on the grid's other tasks with the same inputs.
        over: The list in the grid's file that the cells run through: `tasks`, or `suites` of tasks.
        facts: For a name in that list and the options, everything about the task or suite that a result depends on.
    """

    options: type[Any]
    format: int = 1
    made_from: tuple[str, ...] = ()
    uses_others: bool = False
    over: str = "tasks"
    facts: Callable[[str, Any], Any] = lambda name, options: task_facts(name)


# in the order in which cells are made: a kind comes after the kinds that it is made from
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
