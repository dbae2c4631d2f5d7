"""`ivlens vector`: build, save, judge or inspect an Instruction Vector."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ColumnOptions, MeasureOptions, ModelOptions
from ivlens.cli._output import one_line, p_note, p_text, print_json, print_table

if TYPE_CHECKING:
    from ivlens.effects.results import HeadEffects
    from ivlens.models.boot import TransformerBridge
    from ivlens.steering.evaluation import Evaluation
    from ivlens.tasks.task import Task
    from ivlens.vectors.vector import InstructionVector

N_DRAWS = 19  # random controls of each kind: with fewer of them p could not reach 0.05


@Parameter(name="*")
@dataclass(frozen=True)
class BuildOptions(ColumnOptions):
    """How the vector is built.

    Attributes:
        task: Name of a built-in task, or a path.
        effects: File of effects that `ivlens effects --out x.safetensors` wrote, instead of a new measurement.
        k: Number of heads in the vector.
        contrast: Subtract the mean outputs of the same heads on corrupted prompts.
    """

    task: str | None = None
    effects: Path | None = None
    k: int = 10
    contrast: Annotated[bool, Parameter(negative="")] = False


def vector(
    file: Path | None = None,
    /,
    *,
    build: BuildOptions | None = None,
    where: ModelOptions | None = None,
    how: MeasureOptions | None = None,
    judge: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Build the Instruction Vector of a task, or inspect a vector in a file.

    With `--judge`, the vector is added to bare prompts, without instruction and demonstrations, and compared with its
    controls on *test* inputs; layer and strength are the best ones on *select* inputs. Unless options say otherwise,
    prompts are made as for the vector or its effects.

    Example: `ivlens vector --task antonym --k 10 --out antonym.safetensors --judge`, later
    `ivlens vector antonym.safetensors --model pocket`

    Args:
        file: File of a vector to inspect, instead of building one; with --model it must belong to that model.
        judge: Judge the vector beside its controls; needs --task.
        out: File for the vector: .safetensors, with the settings that made it.
    """
    build, where, how = build or BuildOptions(), where or ModelOptions(), how or MeasureOptions()
    _check(file, build, judge, out)
    task = build.load_if_given(build.task)
    how.recipe()  # refuses wrong options before the model is loaded
    model = where.load() if file is None or judge or where.model else None
    made, found = (_load(file, model), None) if file else _build(model, task, build, how)
    if out is not None:
        made.save(out)  # before judging, which takes long and may fail
    evaluation = _judge(model, task, made, found, how) if judge else None
    facts = describe(made, model) | _asked(found)
    if as_json:
        print_json({**facts, **_judged(evaluation), "out": out and str(out)})
        return
    _print(made, facts, evaluation)
    if out is not None:
        print(f"\nwritten: {out}")


def describe(made: "InstructionVector", model: "TransformerBridge | None") -> dict[str, Any]:
    """Facts about a vector as plain values; with a model also the tokens that the vector makes most likely."""
    from ivlens.models.mixers import head_labels

    return {
        "task": made.task,
        "model": asdict(made.model),
        "norm": made.norm,
        "heads": head_labels(made.heads, made.model.n_heads),
        "recipe": made.recipe and made.recipe.to_dict(),
        "settings": dict(made.settings),
        "tokens": [list(pair) for pair in made.decode(model)] if model is not None else None,
    }


def _load(file: Path, model: "TransformerBridge | None") -> "InstructionVector":
    from ivlens.vectors.vector import InstructionVector

    return InstructionVector.load(file, model)


def _build(
    model: "TransformerBridge | None", task: "Task | None", build: BuildOptions, how: MeasureOptions
) -> "tuple[InstructionVector, HeadEffects]":
    """The vector, and the effects by which its heads were chosen."""
    from ivlens.effects.results import HeadEffects
    from ivlens.vectors.vector import InstructionVector

    if build.effects is not None:
        found = HeadEffects.load(build.effects)
        if build.contrast and found.mean_z_corrupted is None:
            raise ValueError(
                f"{build.effects} holds no means over corrupted prompts, which --contrast subtracts; measure them with "
                "ivlens effects --contrast."
            )
    else:
        assert task is not None and model is not None
        found = how.measure(model, task, contrast=build.contrast)
    return InstructionVector.from_effects(found, build.k, model=model, contrast=build.contrast), found


def _judge(
    model: "TransformerBridge | None",
    task: "Task | None",
    made: "InstructionVector",
    found: "HeadEffects | None",
    how: MeasureOptions,
) -> "Evaluation":
    """The vector and its controls, judged on the task's *test* inputs."""
    from ivlens.forward.ability import measure_ability
    from ivlens.steering.evaluate import JudgeOptions, evaluate_intervention

    assert model is not None and task is not None
    recipe = how.recipe(made.recipe)
    if found is None:
        # warns before the long part if the model cannot do the task; measuring effects has warned already
        measure_ability(model, task, recipe)
    # random heads write their means on this task, which the effects have; a file may be of another task
    means = found if found is not None and found.task == task.name else None
    options = JudgeOptions(seed=recipe.seed, means=means)
    return evaluate_intervention(model, task, made, recipe=recipe, n_draws=N_DRAWS, options=options)


def _asked(found: "HeadEffects | None") -> dict[str, Any]:
    """The accuracies on clean and bare prompts, measured with the effects; empty for a vector from a file."""
    if found is None:
        return {}
    return {"clean_accuracy": found.clean_accuracy, "bare_accuracy": found.bare_accuracy}


def _judged(evaluation: "Evaluation | None") -> dict[str, Any]:
    """The results of `--judge` as plain values."""
    if evaluation is None:
        return {}
    return {
        "conditions": evaluation.table.to_dict("records"),
        "best": evaluation.best._asdict(),
        "judged": evaluation.settings,
    }


def _print(made: "InstructionVector", facts: dict[str, Any], evaluation: "Evaluation | None") -> None:
    print(f"{made.task} on {made.model}")
    print(f"norm    {made.norm:.3f}")
    print(f"heads   {' '.join(facts['heads']) or 'none: trained or computed'}")
    print(f"prompts {made.recipe or 'of several recipes, or not recorded'}")
    if facts["tokens"]:
        tokens = " | ".join(one_line(token).strip() or repr(token) for token, _ in facts["tokens"])
        print(f"says    {tokens} (tokens that it makes most likely, unembedded alone)")
    if evaluation is None:
        return
    layer, alpha, site = evaluation.best
    print(f"\nAccuracy on bare test inputs; the vector is added at layer {layer}, alpha {alpha:g}, {site}\n")
    rows = [
        [row["condition"], float(row["accuracy"]), f"{row['accuracy_lo']:.2f} to {row['accuracy_hi']:.2f}", _of(row),
         p_text(row.get("p"))]
        for row in evaluation.table.dropna(subset=["accuracy"]).to_dict("records")
    ]  # fmt: skip
    print_table(["condition", "accuracy", "Wilson 95 %", "mean of", "p"], rows)
    print(p_note(N_DRAWS))
    print(f"\nprompts: {evaluation.recipe}")


def _of(row: dict[Any, Any]) -> str:
    """How many vectors a row is the mean of, if more than one."""
    return f"{row['n_vectors']} vectors" if row["n_vectors"] > 1 else ""


def _check(file: Path | None, build: BuildOptions, judge: bool, out: Path | None) -> None:
    """Refuse options that do not go together, or a file that cannot be written, before anything is loaded."""
    from ivlens.common.disk import check_file

    if file is None and build.task is None and build.effects is None:
        raise ValueError("ivlens vector got neither a file nor --task, expected one; try --task antonym.")
    if file is not None and (build.effects is not None or out is not None):
        raise ValueError(f"ivlens vector got the file {file} and options to build one; leave --effects and --out out.")
    if judge and build.task is None:
        raise ValueError("--judge got no --task, expected the task whose prompts to judge on; add --task.")
    if out is not None:
        check_file(out, (".safetensors",))
