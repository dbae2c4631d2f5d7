"""The probabilities of every checkpoint of a series, each kept as soon as it is there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivlens.analysis.forgetting.drops import check_same_shape
from ivlens.analysis.forgetting.probabilities import SHAPE, ProbeOptions, probe, shape_of
from ivlens.common.files import file_name
from ivlens.common.kept import find_table, make_table
from ivlens.common.progress import ticking
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
    """`probe` of every checkpoint, one model in memory at a time; by name, for `decomposition`.

    Args:
        folder: Keeps each table (`<name>.parquet`): the same call goes on where it stopped, and opens no model whose
            table is there.
        on_checkpoint: Told of each checkpoint before it is measured.

    Raises:
        ValueError: as `probe`; a checkpoint of another shape than the first; measurements of something else in the
            folder.
    """
    options = options or ProbeOptions()
    about = {"options": plain_options(options), "tasks": [task.full_hash() for task in tasks]}
    places = {one.name: None if folder is None else Path(folder) / file_name(one.name, ".parquet") for one in series}
    keys = {} if folder is None else {one.name: {"model": one.key(), **about} for one in series}
    # what cannot be gone on from is said before anything is measured
    there = {name: find_table(places[name], key) for name, key in keys.items()}
    found: dict[str, pd.DataFrame] = {}
    for checkpoint in ticking(list(series), "checkpoints", "checkpoints"):
        on_checkpoint(checkpoint)
        first = found[series.first.name].attrs.get(SHAPE) if found else None

        def measured(checkpoint: Checkpoint = checkpoint, first: str | None = first) -> "pd.DataFrame":
            model = checkpoint.open()
            check_same_shape(first, shape_of(model), f"checkpoint {checkpoint.name!r}")
            return probe(model, tasks, options)

        kept, key = there.get(checkpoint.name), keys.get(checkpoint.name, {})
        found[checkpoint.name] = make_table(places[checkpoint.name], key, measured) if kept is None else kept
    return found
