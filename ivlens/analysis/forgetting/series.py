"""Instruction and knowledge probability in every checkpoint of a series; a store keeps the table of each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.analysis.forgetting.drops import check_same_shape
from ivlens.analysis.forgetting.probabilities import SHAPE, ProbeOptions, probe, shape_of
from ivlens.common.progress import ticking
from ivlens.common.store.keys import versions
from ivlens.common.store.store import Store
from ivlens.models.checkpoints import Checkpoint, CheckpointSeries
from ivlens.prompts.recipe import plain_options
from ivlens.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd


def probe_series(
    series: CheckpointSeries,
    tasks: Sequence[Task],
    options: ProbeOptions | None = None,
    *,
    folder: str | Path | None = None,
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> "dict[str, pd.DataFrame]":
    """`probe` every checkpoint of a series; returns the tables by the checkpoints' names, for `decomposition`.

    One model is open at a time.

    Args:
        folder: A store (`ivlens.common.store`) that keeps the table of each checkpoint as soon as it is made. The same
            call goes on where it stopped, and opens no model whose table is there. None: nothing is kept.
        on_checkpoint: Called with each checkpoint before it is measured.

    Raises:
        ValueError: as for `probe`; a checkpoint has another shape than the first; the folder holds other things.
    """
    options = options or ProbeOptions()
    store = None if folder is None else Store(folder)
    found: dict[str, pd.DataFrame] = {}
    for checkpoint in ticking(list(series), "checkpoints", "checkpoints"):
        on_checkpoint(checkpoint)
        first = found[series.first.name].attrs.get(SHAPE) if found else None

        # the defaults keep this round's values; without them a function made in a loop uses the latest ones
        def measure(checkpoint: Checkpoint = checkpoint, first: str | None = first) -> "pd.DataFrame":
            model = checkpoint.open()
            check_same_shape(first, shape_of(model), f"checkpoint {checkpoint.name!r}")
            return probe(model, tasks, options)

        if store is None:
            found[checkpoint.name] = measure()
        else:
            what = probed(checkpoint.key(), tasks, options)
            found[checkpoint.name] = store.table(what, measure, {"checkpoint": checkpoint.name})
    return found


def probed(model: Mapping[str, Any], tasks: Sequence[Task], options: ProbeOptions) -> dict[str, Any]:
    """The description in a store of a table of `probe`: everything that the table depends on.

    Args:
        model: What tells this model from others (`Checkpoint.key`).
    """
    hashes = [task.full_hash() for task in tasks]
    return {"kind": "probe", "model": dict(model), "tasks": hashes, "options": plain_options(options), **versions()}
