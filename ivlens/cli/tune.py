"""`ivlens tune`: teach a model one task, and see what it forgets."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ivlens.cli._guidance import GuidanceOptions
from ivlens.cli._options import AsJson, ColumnOptions, ModelOptions, PromptOptions
from ivlens.cli._output import print_json, print_table

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ivlens.prompts.recipe import PromptRecipe
    from ivlens.tuning.finetuning import TuneResult
    from ivlens.tuning.training.options import TuneOptions
    from ivlens.tuning.training.processes import Processes

MethodName = Literal["full", "lora", "inclora", "ewc", "olora", "lwf", "replay"]


@Parameter(name="*")
@dataclass(frozen=True)
class TrainOptions:
    """How a task is trained.

    Attributes:
        lr: Learning rate after warm-up.
        steps: Number of optimiser steps.
        batch_size: Examples in a step.
        accumulate: Passes into which the examples of a step are divided, to save memory; in every process.
        decay: How the learning rate falls to 0 after warm-up.
        precision: bfloat16: passes are computed in bfloat16, and weights keep their dtype. float32: passes are computed
            in the dtype of the weights.
        judge_every: Steps between two judgements on *select*.
        n_samples: Number of training prompts; by default one for every training input.
        n_prompts: Prompts of each task in a judgement.
        patience: The training ends after so many judgements without a better score on the new task, and keeps the best
            weights. By default all steps are made.
        gradient_checkpointing: Save memory by computing activations a second time in the backward pass.
    """

    lr: float = 1e-4
    steps: int = 200
    batch_size: int = 16
    accumulate: int = 1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    precision: Literal["float32", "bfloat16"] = "float32"
    judge_every: int = 20
    n_samples: int | None = None
    n_prompts: int = 32
    patience: int | None = None
    gradient_checkpointing: Annotated[bool, Parameter(negative="")] = False

    def options(self, **more: Any) -> "TuneOptions":
        """The options as `finetune` takes them."""
        from ivlens.tuning.training.options import TuneOptions

        return TuneOptions(
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            decay=self.decay,
            precision=self.precision,
            judge_every=self.judge_every,
            n_samples=self.n_samples,
            n_prompts=self.n_prompts,
            patience=self.patience,
            gradient_checkpointing=self.gradient_checkpointing,
            **more,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class TuneWays(ColumnOptions):
    """The method, the guidance, and the tasks that are watched.

    Attributes:
        method: full (fine-tuning of all weights), or one of the methods with low-rank adapters.
        guidance: none; iv (all parts of the paper), or one part of it: progressive, kl, heads; mean_kl (as kl, with the
            difference of means for a vector). Or a rehearsal of earlier tasks on the new inputs: instructions, the same
            with less weight (instructions_light, best with full; instructions_lighter, best with adapters), answers and
            answers_light (whole answers), instruction_heads, instruction_vector, vectors, translations. A control
            follows after a slash: iv/zero_vector, iv/random_vector, heads/random_heads, heads/all_heads. The error
            for an unknown name lists all. The options --schedule to --set change parts of the guidance.
        watch: Tasks that are judged along the training, and that guidance should keep. By default, with the built-in
            model, six of the tasks it was trained on.
        checkpoint_every: Also write the model every so many steps.
    """

    method: MethodName = "lora"
    guidance: str = "none"
    watch: list[str] | None = None
    checkpoint_every: int | None = None


def tune(
    *,
    task: str,
    out: Path,
    where: ModelOptions | None = None,
    what: TuneWays | None = None,
    how: TrainOptions | None = None,
    prompts: PromptOptions | None = None,
    made_of: GuidanceOptions | None = None,
    as_json: AsJson = False,
) -> None:
    """Teach a model one task, with or without guidance, and see what it forgets.

    By default the new task is taught with its instruction. Watched tasks are asked in the same form of prompt; where no
    option fixes a form, in the one in which the model answers them best.

    An interrupted run goes on where it stopped when the same command is given again. Several GPUs share the examples of
    every step, with one process for each: `torchrun --nproc-per-node 4 -m ivlens tune ...`.

    Example: `ivlens tune --model pocket --task second_letter --guidance instructions --out out/second_letter`, or
    `ivlens tune --task second_letter --guidance kl --layer 2 --direction reverse --kl-weight 0.3 --out out/kl`

    Args:
        task: Name of a built-in task, or the path of a file or folder that holds a task.
        out: Folder for the state of the training, the log (log.csv), the scores (scores.csv) and the model (model/:
            adapters in peft's format, or the whole model with `--method full`).
    """
    from ivlens.common.disk import check_folder
    from ivlens.common.files import STATE
    from ivlens.tasks.bank import load_task
    from ivlens.tuning.finetuning import Along, check_training, finetune

    check_folder(out)
    ways, parts, train = what or TuneWays(), made_of or GuidanceOptions(), how or TrainOptions()
    parts.plan(ways.guidance)  # refuses wrong options before anything is loaded
    asked = prompts or PromptOptions()
    recipe = asked.recipe()
    options = train.options(seed=recipe.seed)
    loaded = ways.load(task)
    chosen = where or ModelOptions()
    check_training(out)  # before minutes in which guidance is measured
    watched = [load_task(name) for name in (_default_watch(chosen) if ways.watch is None else ways.watch)]
    with _processes() as processes:  # opened before the model, which then goes to this process's own GPU
        model = chosen.load()
        guides = parts.guidance(ways.guidance, model, loaded, recipe=recipe, earlier=watched, seed=recipe.seed)
        if processes.is_first and (out / STATE).exists():
            print(f"ivlens: {out} has the state of a training; going on from it", file=sys.stderr)
        result = finetune(
            model,
            loaded,
            method=ways.method,
            guidance=guides,
            options=options,
            recipe=recipe,
            watch=watched,
            along=Along(folder=out, checkpoint_every=ways.checkpoint_every, watch_recipe=asked.chosen(model, watched)),
        )
        if processes.is_first:
            _write(result, out)
            _tell(result, recipe, out, as_json)


def _processes() -> "AbstractContextManager[Processes]":
    """All processes that torchrun has started, or this one alone."""
    from contextlib import nullcontext

    from ivlens.tuning.training.processes import current, data_parallel, under_torchrun

    return data_parallel() if under_torchrun() else nullcontext(current())


def _tell(result: "TuneResult", recipe: "PromptRecipe", out: Path, as_json: bool) -> None:
    rows = result.scores.to_dict("records")
    if as_json:
        print_json({"scores": rows, "recipe": recipe.to_dict(), "out": str(out)})
        return
    columns = ("task", "role", "before", "after")
    print_table(columns, [[row[name] for name in columns] for row in rows])
    print(f"\naccuracy on test inputs; written: {out}")


def _default_watch(chosen: ModelOptions) -> list[str]:
    """Six tasks that the built-in model was trained on; none for other models."""
    from ivlens.tasks.bank import list_tasks

    # every sixth name of the alphabetical list: tasks of different kinds
    return list_tasks(in_training=True)[::6][:6] if chosen.model in (None, "pocket") else []


def _write(result: "TuneResult", out: Path) -> None:
    """Write the log and the scores, both or neither."""
    from ivlens.common.saves import filling

    with filling(out) as scratch:
        result.log.to_csv(scratch / "log.csv", index=False)
        result.scores.to_csv(scratch / "scores.csv", index=False)
