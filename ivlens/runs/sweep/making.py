"""For each kind of cells, the function that makes a cell's files and the estimate of its cost: the table `MAKERS`."""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ivlens.analysis.dynamics.recording import STAGE_FILE
from ivlens.analysis.dynamics.stages import TrackOptions, measure_stage
from ivlens.analysis.forgetting.probabilities import ProbeOptions, probe
from ivlens.common.files import STATE
from ivlens.common.store.entries import TABLE, Entry
from ivlens.effects.measure import head_effects
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.models.mixers import head_labels
from ivlens.runs.suites.cells import run_cell
from ivlens.runs.suites.keeping import write_cell
from ivlens.runs.suites.results import Cell as SuiteCell
from ivlens.runs.sweep import cost
from ivlens.runs.sweep.cells import Cell, Survey
from ivlens.runs.sweep.tasks import suite_of_cell
from ivlens.steering.evaluate import JudgeOptions, evaluate_intervention
from ivlens.tasks.task import Task
from ivlens.tuning.builder import guidance_by_name
from ivlens.tuning.finetuning import Along, finetune
from ivlens.vectors.vector import InstructionVector

logger = logging.getLogger("ivlens")

EFFECTS_FILE, VECTOR_FILE, LOG_FILE = "effects.safetensors", "vector.safetensors", "log.parquet"


@dataclass(frozen=True)
class Making:
    """Everything that is needed to make one cell.

    Attributes:
        cell: The cell to make.
        model: The cell's model, loaded.
        open_task: Opens a task by its name in the grid.
        entry: Gives the store's result of another cell, and makes it if it is not there.
        work: A folder for the state of a long training. It stays when the process is killed, and is removed once the
            cell is done.
    """

    cell: Cell
    model: TransformerBridge
    open_task: Callable[[str], Task]
    entry: Callable[[Cell], Entry]
    work: Path


@dataclass(frozen=True)
class Maker:
    """How cells of one kind are made, and what they cost.

    Attributes:
        run: Writes the files of a cell's result into a folder, `table.parquet` among them; the same cell always gives
            the same bytes.
        cost: Estimates the floating-point operations of a cell.
    """

    run: Callable[[Making, Path], None]
    cost: Callable[[Cell, Survey], float]


def _effects(making: Making, folder: Path) -> None:
    """Measure the effects of all heads."""
    cell, options = making.cell, making.cell.options
    found = head_effects(
        making.model,
        making.open_task(cell.task),
        recipe=cell.recipe,
        corruption=options.corruption,
        score=options.score,
        n_prompts=options.n_prompts,
        options=options.effects(cell.setting.max_memory),
    )
    found.save(folder / EFFECTS_FILE)
    found.to_frame().drop(columns="task").to_parquet(folder / TABLE, index=False)


def _vectors(making: Making, folder: Path) -> None:
    """Make the Instruction Vector, from the effects of another cell."""
    import pandas as pd

    options = making.cell.options
    made = InstructionVector.from_effects(_measured(making), options.k, model=making.model, contrast=options.contrast)
    made.save(folder / VECTOR_FILE)
    heads = " ".join(head_labels(made.heads, made.model.n_heads))
    tokens = " ".join(token.strip() for token, _ in made.decode(making.model, k=5))
    pd.DataFrame([{"norm": made.norm, "heads": heads, "tokens": tokens}]).to_parquet(folder / TABLE, index=False)


def _measured(making: Making) -> HeadEffects:
    """The effects of the cell's own task."""
    return HeadEffects.load(making.entry(making.cell.needs("effects")).path(EFFECTS_FILE), making.model)


def _vector(making: Making, task: str) -> InstructionVector:
    """The vector of a task, the cell's own or another one of the grid."""
    entry = making.entry(making.cell.needs("vectors", task))
    return InstructionVector.load(entry.path(VECTOR_FILE), making.model)


def _interventions(making: Making, folder: Path) -> None:
    """Judge the vector beside its controls."""
    cell, options = making.cell, making.cell.options
    task = making.open_task(cell.task)
    judge = JudgeOptions(
        seed=cell.seed,
        corruption=options.judged_on,
        other_vectors=[_vector(making, name) for name in cell.others],
        means=_measured(making),
    )
    found = evaluate_intervention(
        making.model,
        task,
        _vector(making, cell.task),
        recipe=cell.recipe,
        at=options.grid,
        n_prompts=options.n_judge_prompts,
        n_draws=options.n_draws,
        options=judge,
    )
    found.table.to_parquet(folder / TABLE, index=False)


def _tuning(making: Making, folder: Path) -> None:
    """Fine-tune, from the state of an interrupted training if it can be used; otherwise from the start."""
    state = making.work / STATE
    is_resumed = state.exists()
    try:
        _trained(making, folder)
    except ValueError as error:
        if not is_resumed or not state.exists():
            raise
        logger.warning("%s cannot go on from its saved state (%s); it begins anew.", making.cell.name, error)
        shutil.rmtree(making.work)
        _trained(making, folder)


def _trained(making: Making, folder: Path) -> None:
    """Fine-tune to the end, with the state of the training in `making.work`, and write log, scores and model."""
    cell, options = making.cell, making.cell.options
    task, watch = making.open_task(cell.task), [making.open_task(name) for name in options.watch]
    recipe, seed = cell.recipe, cell.seed
    result = finetune(
        making.model,
        task,
        method=options.method,
        guidance=guidance_by_name(options.guidance, making.model, task, seed=seed, recipe=recipe, earlier=watch),
        options=options.training(seed),
        recipe=recipe,
        watch=watch,
        along=Along(making.work),
    )
    # without seconds: the same cell gives the same bytes
    result.log.drop(columns="seconds").to_parquet(folder / LOG_FILE, index=False)
    result.scores.rename(columns={"task": "judged"}).to_parquet(folder / TABLE, index=False)
    if options.keep_model:
        # without scratch folders, which a process that was killed while it wrote the model may have left there
        shutil.copytree(making.work / "model", folder / "model", ignore=shutil.ignore_patterns(".*"))


def _sequences(making: Making, folder: Path) -> None:
    """Run the cell of a benchmark."""
    cell, options = making.cell, making.cell.options
    suite = suite_of_cell(cell.task, *options.suite).suite
    own = SuiteCell(options.method, options.guidance, options.order, cell.seed)
    write_cell(run_cell(making.model, suite, own, options.bench(cell.seed)), folder)


def _forgetting(making: Making, folder: Path) -> None:
    """Measure instruction and knowledge probability."""
    cell, asked = making.cell, making.cell.options
    options = ProbeOptions(n_prompts=asked.n_prompts, n_clozes=asked.n_clozes, recipe=cell.recipe)
    found = probe(making.model, [making.open_task(making.cell.task)], options)
    # `kind` and `n_prompts` are labels of the cell too, which columns of these names would hide in the store's table
    renamed = found.drop(columns="task").rename(columns={"kind": "probe", "n_prompts": "n_asked"})
    renamed.to_parquet(folder / TABLE, index=False)


def _dynamics(making: Making, folder: Path) -> None:
    """Measure all that comparisons with other checkpoints need."""
    import pandas as pd

    task, asked, recipe = making.open_task(making.cell.task), making.cell.options, making.cell.recipe
    options = TrackOptions(asked.n_prompts, asked.k, n_judge_prompts=asked.n_judge_prompts, recipe=recipe)
    # NaN: the cell knows no first model, and a distance of 0 would say that its weights are those of the first model
    stage = replace(measure_stage(making.model, [task], options), distance=math.nan)
    stage.save(folder / STAGE_FILE)
    found = stage.tasks[task.name]
    scores = {name: float(getattr(found, name).mean()) for name in ("accuracy", "prob", "logprob")}
    norm = float(found.theta(found.top_heads(options.k)).norm())
    row = scores | {"split_half": float(found.split_half), "norm": norm}
    pd.DataFrame([row]).to_parquet(folder / TABLE, index=False)


MAKERS: dict[str, Maker] = {
    "effects": Maker(_effects, cost.effects),
    "vectors": Maker(_vectors, cost.vectors),
    "interventions": Maker(_interventions, cost.interventions),
    "forgetting": Maker(_forgetting, cost.forgetting),
    "dynamics": Maker(_dynamics, cost.dynamics),
    "tuning": Maker(_tuning, cost.tuning),
    "sequences": Maker(_sequences, cost.sequences),
}
