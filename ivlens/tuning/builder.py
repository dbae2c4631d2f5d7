"""`iv_guidance`: guidance for a task from the model as it is before it, and the controls that it has to beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import Site
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample, tasks_of
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.rehearsal import REHEARSED, Rehearsal
from ivlens.tuning.rehearsed import RehearsalOptions, instruction_rehearsal, vector_rehearsal
from ivlens.tuning.terms import IVKL, HeadConsistency, Progressive
from ivlens.vectors.heads import choose_heads
from ivlens.vectors.vector import InstructionVector

Control = Literal["zero_vector", "random_vector", "random_heads", "all_heads"]
RehearsedBy = Literal["", "instructions", "vectors", "translations"]
CONTROLS: tuple[str, ...] = get_args(Control)
REHEARSALS: tuple[str, ...] = get_args(RehearsedBy)[1:]


@dataclass(frozen=True)
class GuidanceRecipe:
    """What guidance is made of; `iv_guidance` makes it for one model and task.

    Attributes:
        progressive, kl: Act through the vector of the task in training; None leaves one out.
        heads_weight: Of head consistency on the task's own prompts; 0 leaves it out.
        rehearse: Ask the new inputs for earlier tasks: by their `instructions`, by their `vectors`, or by instructions
            that the frozen model gets as vectors (`translations`); empty for neither.
        rehearse_kl: Weight of the answers there; None leaves them out.
        rehearse_heads: Weight of the heads there; 0 leaves them out.
        rehearse_tokens: Of the frozen model's own answers that are rehearsed.
        as_vector: Where heads are held, hold the vector that they write together instead of each.
        layer, site, alpha: Where vectors enter, and how strongly.
        k: Heads in every vector, and in `S`.
        n_prompts: Prompts that effects are measured on, from the `fit` split.
    """

    progressive: Progressive | None = None
    kl: IVKL | None = None
    heads_weight: float = 0.0
    rehearse: RehearsedBy = ""
    rehearse_kl: IVKL | None = REHEARSED
    rehearse_heads: float = 0.0
    rehearse_tokens: int = 1
    as_vector: bool = False
    layer: int = 0
    site: Site = "resid_post"
    alpha: float = 1.0
    k: int = 10
    n_prompts: int = 32

    def __post_init__(self) -> None:
        if self.rehearse not in ("", *REHEARSALS):
            raise ValueError(f"rehearse is {self.rehearse!r}, expected {', '.join(REHEARSALS)}, or '' for neither.")


# Weights, sites and the sign are choices, made on the built-in model: the papers leave them open.
RECIPES: dict[str, GuidanceRecipe | None] = {
    "none": None,
    "iv": GuidanceRecipe(progressive=Progressive(sign=-1), kl=IVKL(weight=0.1), heads_weight=1.0),
    "progressive": GuidanceRecipe(progressive=Progressive()),
    "kl": GuidanceRecipe(kl=IVKL(weight=0.1)),
    "heads": GuidanceRecipe(heads_weight=1.0),
    "vectors": GuidanceRecipe(rehearse="vectors", alpha=2.0),
    "instructions": GuidanceRecipe(rehearse="instructions"),
    "instructions_light": GuidanceRecipe(rehearse="instructions", rehearse_kl=replace(REHEARSED, weight=0.3)),
    "instructions_lighter": GuidanceRecipe(rehearse="instructions", rehearse_kl=replace(REHEARSED, weight=0.1)),
    "answers": GuidanceRecipe(rehearse="instructions", rehearse_kl=IVKL(weight=0.3), rehearse_tokens=4),
    "answers_light": GuidanceRecipe(rehearse="instructions", rehearse_kl=IVKL(weight=0.1), rehearse_tokens=4),
    "instruction_heads": GuidanceRecipe(rehearse="instructions", rehearse_kl=None, rehearse_heads=10.0),
    "instruction_vector": GuidanceRecipe(rehearse="instructions", rehearse_kl=None, rehearse_heads=1.0, as_vector=True),
    "translations": GuidanceRecipe(rehearse="translations", alpha=2.0),
}


def find_guidance(name: str) -> tuple[GuidanceRecipe | None, str]:
    """What is behind a name (None for `none`), and the control behind its slash (`iv/zero_vector`), "" for none.

    Raises:
        ValueError: there is none of that name.
    """
    known, _, other = name.partition("/")
    if known not in RECIPES or other not in ("", *CONTROLS) or name.endswith("/") or (known == "none" and other):
        raise ValueError(
            f"guidance is {name!r}, expected one of {', '.join(RECIPES)}, or one of them with a control: "
            f"NAME/{', NAME/'.join(CONTROLS)}."
        )
    return RECIPES[known], other


def guidance_by_name(name: str, model: TransformerBridge, task: Task, *, seed: int = 0, **more: Any) -> Guidance | None:
    """`iv_guidance` by the name of a recipe, with a control where one is named; None for `none`.

    Raises:
        ValueError: as `find_guidance`, `iv_guidance` and `control`.
    """
    plan, other = find_guidance(name)
    if plan is None:
        return None
    made = iv_guidance(model, task, plan, seed=seed, **more)
    return control(made, other, model, seed=seed) if other else made


def iv_guidance(
    model: TransformerBridge,
    task: Task,
    plan: GuidanceRecipe | None = None,
    *,
    recipe: PromptRecipe | None = None,
    earlier: Sequence[Task] = (),
    examples: Sequence[TaskExample] | None = None,
    effects: Mapping[str, HeadEffects] | None = None,
    seed: int = 0,
) -> Guidance:
    """Guidance for training `model` on `task`.

    `θ` is the Instruction Vector of `task` in the model before training, from its training prompts. `S`, the heads that
    are held where they are, are the `k` with the largest effect averaged over `earlier` tasks; without any, those of
    `task` itself.

    Args:
        model: The model as it is now: of a `Learner`, its `bridge()`.
        plan: What the guidance is made of; None: `RECIPES["iv"]`, all parts of the paper.
        recipe: How prompts are made, and the seed of the splits; None: each task's instruction, or demonstrations
            where it has none. Earlier tasks have instructions of their own.
        earlier: Tasks that shall be kept. Of these only heads are used, and what tells them (instructions, or
            demonstrations); their examples are never learned.
        examples: Whose inputs are rehearsed on; None: the task's `fit` split.
        effects: Of earlier tasks, by name, where they have been measured before, of whatever stage of the model: `S` is
            chosen by them. Vectors are always those of `model`.
        seed: Draws what is rehearsed.

    Raises:
        ValueError: an option that does not exist, a task that effects cannot be measured on, or rehearsal without
            earlier tasks.
    """
    plan, earlier = plan or RECIPES["iv"], tasks_of("earlier", earlier)
    tasks_of("earlier", earlier, beside=[task])  # what is measured of each is kept by its name
    assert plan is not None
    if plan.rehearse and not earlier:
        raise ValueError(f"rehearsal of {plan.rehearse} got no earlier tasks, expected those that shall be kept.")
    measure = _Measure(model, plan, task, recipe or PromptRecipe())
    heads = None
    if plan.heads_weight or (plan.rehearse and plan.rehearse_heads):
        known = effects or {}
        heads = choose_heads([_known_of(one, known) or measure.effects(one) for one in earlier or [task]], plan.k)
    inputs = list(task.split("fit", measure.recipe.seed) if examples is None else examples)
    return Guidance(
        theta=measure.vector(task) if plan.progressive or plan.kl else None,
        layer=plan.layer,
        site=plan.site,
        alpha=plan.alpha,
        progressive=plan.progressive,
        kl=plan.kl,
        heads=HeadConsistency(heads, plan.heads_weight, plan.as_vector) if heads and plan.heads_weight else None,
        rehearsal=(_rehearsal(measure, inputs, earlier, heads, seed),) if plan.rehearse else (),
    )


@dataclass
class _Measure:
    """Effects and vectors in the model before the task, each task measured once."""

    model: TransformerBridge
    plan: GuidanceRecipe
    task: Task
    recipe: PromptRecipe
    found: dict[str, HeadEffects] = field(default_factory=dict)

    def effects(self, task: Task) -> HeadEffects:
        if task.name not in self.found:
            recipe = self.recipe if task.name == self.task.name else self.recipe.for_other_tasks()
            # what the model can do is judged along the training
            options = EffectOptions(n_check_prompts=0)
            n_prompts = self.plan.n_prompts
            self.found[task.name] = head_effects(self.model, task, recipe=recipe, n_prompts=n_prompts, options=options)
        return self.found[task.name]

    def vector(self, task: Task) -> Tensor:
        return InstructionVector.from_effects(self.effects(task), self.plan.k, model=self.model).theta


def _known_of(task: Task, known: Mapping[str, HeadEffects]) -> HeadEffects | None:
    """What was measured of a task before, and not of another one of its name."""
    found = known.get(task.name)
    if found is not None:
        found.check_task(task)
    return found


def _rehearsal(
    measure: _Measure,
    inputs: Sequence[TaskExample],
    earlier: Sequence[Task],
    heads: tuple[tuple[int, int], ...] | None,
    seed: int,
) -> Rehearsal:
    model, task, plan = measure.model, measure.task, measure.plan
    options = RehearsalOptions(
        layer=plan.layer,
        site=plan.site,
        kl=plan.rehearse_kl,
        heads=HeadConsistency(heads, plan.rehearse_heads, plan.as_vector) if heads and plan.rehearse_heads else None,
        n_tokens=plan.rehearse_tokens,
        recipe=measure.recipe,
    )
    if plan.rehearse == "instructions":
        return instruction_rehearsal(model, task, inputs, earlier, options=options, seed=seed)
    deltas = plan.alpha * torch.stack([measure.vector(one) for one in earlier])
    if plan.rehearse == "vectors":
        return vector_rehearsal(model, task, inputs, deltas, options=options, seed=seed)
    return instruction_rehearsal(model, task, inputs, earlier, deltas=deltas, options=options, seed=seed)


def control(guidance: Guidance, kind: Control | str, model: TransformerBridge, *, seed: int = 0) -> Guidance:
    """The same guidance without what should make it work.

    Args:
        kind: `zero_vector`: vectors are zeros; `random_vector`: random directions of the same norms; `random_heads`: as
            many heads, drawn from those not in `S`; `all_heads`: every head, at the same total weight.

    Raises:
        ValueError: there is no such control, or the guidance lacks what it replaces.
    """
    if kind not in CONTROLS:
        raise ValueError(f"control is {kind!r}, expected one of {', '.join(CONTROLS)}.")
    generator = torch.Generator().manual_seed(seed)
    if kind.endswith("vector"):
        if guidance.theta is None and all(part.deltas is None for part in guidance.rehearsal):
            raise ValueError(f"control {kind!r} replaces vectors, but this guidance has none; use another control.")

        def other(vectors: Tensor | None) -> Tensor | None:
            return None if vectors is None else _other_vectors(vectors, kind, generator)

        rehearsal = tuple(replace(part, deltas=other(part.deltas)) for part in guidance.rehearsal)
        return replace(guidance, theta=other(guidance.theta), rehearsal=rehearsal)
    if guidance.heads is None and all(part.heads is None for part in guidance.rehearsal):
        raise ValueError(f"control {kind!r} replaces heads, but this guidance has none; use another control.")

    def others(heads: HeadConsistency | None) -> HeadConsistency | None:
        return None if heads is None else _other_heads(heads, kind, model, generator)

    rehearsal = tuple(replace(part, heads=others(part.heads)) for part in guidance.rehearsal)
    return replace(guidance, heads=others(guidance.heads), rehearsal=rehearsal)


def _other_vectors(vectors: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    if kind == "zero_vector":
        return torch.zeros_like(vectors)
    # of vectors that are the same the random ones are the same too
    distinct, which = vectors.reshape(-1, vectors.shape[-1]).unique(dim=0, return_inverse=True)
    drawn = torch.randn(distinct.shape, generator=generator).to(vectors)
    drawn = drawn * (distinct.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
    return drawn[which].reshape(vectors.shape)


def _other_heads(
    heads: HeadConsistency, kind: str, model: TransformerBridge, generator: torch.Generator
) -> HeadConsistency:
    everyone = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    if kind == "all_heads":
        # one vector weighs the same whatever writes it
        weight = heads.weight if heads.as_vector else heads.weight * len(heads.heads) / len(everyone)
        return replace(heads, heads=tuple(everyone), weight=weight)
    free = [place for place in everyone if place not in heads.heads]
    drawn = torch.randperm(len(free), generator=generator)[: len(heads.heads)].tolist()
    if not drawn:
        raise ValueError("control 'random_heads' has no heads left to draw from: S holds all of them; use fewer.")
    return replace(heads, heads=tuple(free[n] for n in drawn))
