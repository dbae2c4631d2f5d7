"""`Stage`: all measurements of one checkpoint, enough to compare it with any other without opening a model again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.checks import as_items, check_counts
from ivlens.common.progress import ticking
from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import check_unsteered
from ivlens.forward.means import mean_head_outputs
from ivlens.models.artefacts import Artefact
from ivlens.models.attention import all_heads
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.prompts.recipe import PromptRecipe, plain_options
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.heads import Heads, head_writes
from ivlens.vectors.vector import InstructionVector

FILE = Artefact("ivlens.Stage/1", "ivlens.analysis.dynamics.track")


@checked
@dataclass(frozen=True)
class TrackOptions:
    """How every checkpoint is measured.

    Attributes:
        n_prompts: Number of corrupted prompts of each task for the effects, from *fit*.
        k: Number of heads in a vector.
        split: The split for performance and hidden states.
        n_judge_prompts: At most so many prompts of that split; None: all.
        recipe: How clean prompts are made, with the seed of the splits and of all draws.
    """

    n_prompts: int = 24
    k: int = 10
    split: SplitName = "select"
    n_judge_prompts: int | None = None
    recipe: PromptRecipe = PromptRecipe()

    def __post_init__(self) -> None:
        check_counts(self, n_prompts=1, k=1, n_judge_prompts=1)


@dataclass(frozen=True, eq=False)
class TaskStage:
    """The measurements of one task at one checkpoint.

    Attributes:
        aie: The average indirect effect of every head.
        mean_z: `z̄`, the mean output of every head on clean prompts.
        writes: What every head adds to the residual stream on average, `(z̄ W_O) · write_scale`.
        write_scale: The scale of a head's write in each layer, see `HeadEffects`.
        directions: For each layer, the hidden state at the last prompt token scaled to length 1, averaged over clean
            prompts. Its product with a unit vector is the mean cosine of hidden state and vector.
        accuracy, prob, logprob: Scores of each clean prompt of the split.
        split_half: Cosine between the vectors of two halves of the prompts; NaN where it was not measured.
    """

    aie: Float[Tensor, "n_layers n_heads"]
    mean_z: Float[Tensor, "n_layers n_heads d_head"]
    writes: Float[Tensor, "n_layers n_heads d_model"]
    write_scale: Float[Tensor, "n_layers d_model"]
    directions: Float[Tensor, "n_layers d_model"]
    accuracy: Float[Tensor, " n"]
    prob: Float[Tensor, " n"]
    logprob: Float[Tensor, " n"]
    split_half: Float[Tensor, ""]

    def top_heads(self, k: int) -> Heads:
        """The `k` heads of largest effect, largest first."""
        # stable: ties in the map's order; layers without heads are NaN, and go last
        order = self.aie.nan_to_num(-torch.inf).flatten().argsort(descending=True, stable=True)[:k].tolist()
        return tuple(divmod(index, self.aie.shape[1]) for index in order)

    def theta(self, heads: Heads) -> Float[Tensor, " d_model"]:
        """The vector `θ` that these heads write together."""
        layers, numbers = (list(part) for part in zip(*heads, strict=True))
        return self.writes[layers, numbers].sum(0)


@dataclass(frozen=True, eq=False)
class Stage:
    """All measurements of one checkpoint.

    Attributes:
        name, step: Name and step of the checkpoint in its series; step -1 where it is not known.
        model: The identity of the measured model.
        tasks: The measurements of each task, by its name.
        distance: `‖W - W_0‖ / ‖W_0‖` over all weights, the distance from the first model of the series; 0 for the first
            model, NaN where it is not known.
        settings: Options of the measurement, with those of each task's effects under `effects`.
    """

    name: str
    step: int
    model: ModelIdentity
    tasks: Mapping[str, TaskStage]
    distance: float
    settings: Mapping[str, Any]

    def vector(self, task: str, heads: Heads | None = None) -> InstructionVector:
        """The task's Instruction Vector at this checkpoint, from the strongest heads there or from the given heads.

        Raises:
            KeyError: the stage has no such task.
        """
        found = self.tasks[task]
        k = int(self.settings["k"])
        heads = heads or found.top_heads(k)
        layers, numbers = (list(part) for part in zip(*heads, strict=True))
        settings = {"k": k, "contrast": False, "universal": False, "effects": self.settings["effects"][task]}
        return InstructionVector(found.theta(heads), heads, found.mean_z[layers, numbers], task, self.model, settings)

    def save(self, path: str | Path) -> Path:
        """Write all measurements of this checkpoint to one safetensors file, and return its path."""
        tensors = {f"{task}/{name}": value for task, found in self.tasks.items() for name, value in vars(found).items()}
        content = {name: getattr(self, name) for name in ("name", "step", "model", "distance")}
        return FILE.write(path, tensors, content | {"settings": dict(self.settings)})

    @classmethod
    def load(cls, path: str | Path) -> "Stage":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no stage, or is damaged.
        """
        tensors, about = FILE.read(path)
        try:
            parts = [part.name for part in fields(TaskStage)]
            tasks = {
                task: TaskStage(**{part: tensors[f"{task}/{part}"] for part in parts})
                for task, _ in about["settings"]["tasks"]
            }
            values = {name: about[name] for name in ("name", "step", "model", "distance")}
            found = cls(tasks=tasks, settings=_as_now(about["settings"]), **values)
            for task in tasks:
                found.vector(task)  # fails here, not in an analysis, where parts of the file do not fit each other
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            FILE.refuse(path, f"is incomplete ({type(error).__name__}: {error})")
        return found


@checked
def measure_stage(
    model: TransformerBridge,
    tasks: Sequence[Task],
    options: TrackOptions | None = None,
    *,
    name: str = "",
    step: int | None = None,
    first: TransformerBridge | None = None,
) -> Stage:
    """Measure effects, head outputs, hidden states and performance of every task in one model.

    Args:
        name, step: Name and step of the stage; by default the model's name, and no step.
        first: The first model of the series, for the distance. None: `model` is the first one, in which `split_half` is
            measured too.

    Raises:
        ValueError: tasks whose effects cannot be measured, two tasks of one name, or a model of another shape than
            `first`.
        RuntimeError: called inside a `steer` context.
    """
    options = options or TrackOptions()
    check_unsteered(model)
    check_k(model, options.k)
    tasks = as_items("tasks", tasks, Task, meant="ivlens.load_task opens one by its name")
    options.recipe.check_for(tasks)
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ValueError(f"tasks are {names}, expected one or more with distinct names.")
    distance = 0.0 if first is None else weight_distance(first, model)
    measured, made_by = {}, {}
    # only the first model is checked for being able to do its tasks: later ones may have forgotten them
    effects = EffectOptions() if first is None else EffectOptions(n_check_prompts=0)
    for task in ticking(tasks, "measuring tasks", "tasks"):
        found = head_effects(model, task, recipe=options.recipe, n_prompts=options.n_prompts, options=effects)
        measured[task.name] = _task_stage(model, task, found, options, halves=first is None)
        made_by[task.name] = dict(found.settings)
    settings = {
        **plain_options(options),
        "tasks": [[task.name, task.content_hash()] for task in tasks],
        "effects": made_by,
    }
    identity = model_identity(model)
    return Stage(name or identity.name, -1 if step is None else step, identity, measured, distance, settings)


def _as_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file, under today's names where the file was written before there were recipes."""
    recipe = PromptRecipe.recorded(settings) or PromptRecipe()
    before = {"template", "seed", "n_scored"}
    kept = {name: value for name, value in settings.items() if name not in before}
    n_judge_prompts = settings["n_scored"] if "n_scored" in settings else settings["n_judge_prompts"]
    return kept | {"recipe": recipe.to_dict(), "n_judge_prompts": n_judge_prompts}


def check_k(model: TransformerBridge, k: int) -> None:
    """Refuse vectors of more heads than the model has.

    Raises:
        ValueError: the model has fewer than `k` heads.
    """
    n_heads = len(all_heads(model))
    if k > n_heads:
        raise ValueError(f"k is {k}, expected 1 to {n_heads} for this model, which has no more heads.")


def weight_distance(first: TransformerBridge, model: TransformerBridge) -> float:
    """The distance `‖W - W_0‖ / ‖W_0‖` of two models over all weights.

    Raises:
        ValueError: models of different shapes.
    """
    moved = total = 0.0  # summed up tensor by tensor: a second copy of all weights might not fit into memory
    theirs = dict(model.named_parameters())
    for name, weight in check_model(first).named_parameters():
        if name not in theirs or theirs[name].shape != weight.shape:
            raise ValueError(
                f"the models differ in shape at {name!r}, expected checkpoints of one model; give the one that they "
                "came from."
            )
        before = weight.detach().double().cpu()
        moved += float((theirs[name].detach().double().cpu() - before).square().sum())
        total += float(before.square().sum())
    return (moved / total) ** 0.5


def _task_stage(
    model: TransformerBridge, task: Task, found: HeadEffects, options: TrackOptions, *, halves: bool
) -> TaskStage:
    """The measurements of one task, from its effects and from passes on its clean prompts."""
    source = PromptSets(model, task, options.recipe, n_prompts=options.n_judge_prompts, seed=options.recipe.seed)
    writes = head_writes(model, found.mean_z, found.write_scale)
    trials = source.trials(options.split, corrupted=False)
    scores = trials.unsteered()
    stage = TaskStage(
        aie=found.aie.float().cpu(),
        mean_z=found.mean_z.float().cpu(),
        writes=writes,
        write_scale=found.write_scale.float().cpu(),
        directions=_directions(trials),
        accuracy=scores.accuracy[0],
        prob=scores.prob[0],
        logprob=scores.logprob[0],
        split_half=torch.tensor(torch.nan),
    )
    if not halves:  # a reference from the first model: measured once
        return stage
    return replace(stage, split_half=_split_half(source, found, stage.top_heads(options.k)))


def _directions(trials: Trials) -> Float[Tensor, "n_layers d_model"]:
    """For each layer, the mean of hidden states of length 1 at the last prompt token."""
    # at length 1 before the mean, so that prompts with long hidden states do not count more
    return _unit(trials.streams().double().cpu()).mean(1).float()


def _unit(rows: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)  # zeros stay zeros


def _split_half(source: PromptSets, found: HeadEffects, heads: Heads) -> Float[Tensor, ""]:
    """Cosine between the vectors of the same heads on the even and on the odd prompts: 1 without any noise."""
    batch = source.batch("fit", corrupted=False)
    if len(batch) < 2:
        return torch.tensor(torch.nan)
    layers, numbers = (list(part) for part in zip(*heads, strict=True))
    thetas = []
    for half in (slice(0, None, 2), slice(1, None, 2)):  # in turn, so that the order of prompts makes no difference
        rows = batch.rows(half)
        mean_z = mean_head_outputs(source.model, rows.tokens, rows.attention_mask)
        thetas.append(head_writes(source.model, mean_z, found.write_scale)[layers, numbers].sum(0))
    return torch.cosine_similarity(*thetas, dim=0)
