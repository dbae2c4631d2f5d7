"""`iv_guidance`: guidance for a task from the model as it is before it, and the controls that it has to beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ivlens.common.checks import set_items
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import Site
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample, tasks_of
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.terms.heads import HeadConsistency
from ivlens.tuning.terms.kl import IVKL
from ivlens.tuning.terms.mean_difference import MeanDifferenceKL
from ivlens.tuning.terms.measuring import Before
from ivlens.tuning.terms.progressive import Progressive
from ivlens.tuning.terms.rehearsal import REHEARSED
from ivlens.tuning.terms.rehearsal_plan import Rehearse
from ivlens.tuning.terms.term import Term

Control = Literal["zero_vector", "random_vector", "random_heads", "all_heads"]
CONTROLS: tuple[str, ...] = get_args(Control)


@dataclass(frozen=True)
class GuidanceRecipe:
    """What guidance is made of; `iv_guidance` makes it for one model and task.

        >>> GuidanceRecipe((IVKL(weight=0.3), HeadConsistency(weight=1.0)), layer=8)

    Attributes:
        terms: Its terms; what has to be measured in the model, such as the heads of `HeadConsistency()`, is left open.
        layer, site, alpha: Where vectors enter, and how strongly.
        k: Heads in every vector, and in `S`.
        n_prompts: Prompts that effects are measured on, from the `fit` split.
    """

    terms: tuple[Term, ...] = ()
    layer: int = 0
    site: Site = "resid_post"
    alpha: float = 1.0
    k: int = 10
    n_prompts: int = 32

    def __post_init__(self) -> None:
        set_items(self, "terms", kind=Term, meant="terms are such as IVKL() or HeadConsistency()")

    def describe(self) -> dict[str, Any]:
        """Every option, as it goes into the keys of kept results."""
        return vars(self) | {"terms": [[term.name, term.describe()] for term in self.terms]}

    def changed(self, option: str, value: Any) -> "GuidanceRecipe | None":
        """With an option of its terms at another value, in all that have it; None where none has."""
        new = [term.changed(option, value) for term in self.terms]
        if not any(new):
            return None
        return replace(self, terms=tuple(n or term for n, term in zip(new, self.terms, strict=True)))


def _rehearsed(kl: float | None, n_tokens: int = 1, heads: HeadConsistency | None = None) -> GuidanceRecipe:
    """Rehearsal of instructions."""
    answers = None if kl is None else replace(REHEARSED, weight=kl, answers=float(n_tokens > 1))
    return GuidanceRecipe((Rehearse("instructions", answers, heads, n_tokens),))


# Weights, sites and the sign are choices, made on the built-in model: the papers leave them open.
RECIPES: dict[str, GuidanceRecipe | None] = {
    "none": None,
    "iv": GuidanceRecipe((Progressive(sign=-1), IVKL(weight=0.1), HeadConsistency(weight=1.0))),
    "progressive": GuidanceRecipe((Progressive(),)),
    "kl": GuidanceRecipe((IVKL(weight=0.1),)),
    "mean_kl": GuidanceRecipe((MeanDifferenceKL(weight=0.1),)),
    "heads": GuidanceRecipe((HeadConsistency(weight=1.0),)),
    "vectors": GuidanceRecipe((Rehearse("vectors"),), alpha=2.0),
    "instructions": _rehearsed(1.0),
    "instructions_light": _rehearsed(0.3),
    "instructions_lighter": _rehearsed(0.1),
    "answers": _rehearsed(0.3, n_tokens=4),
    "answers_light": _rehearsed(0.1, n_tokens=4),
    "instruction_heads": _rehearsed(None, heads=HeadConsistency(weight=10.0)),
    "instruction_vector": _rehearsed(None, heads=HeadConsistency(weight=1.0, as_vector=True)),
    "translations": GuidanceRecipe((Rehearse("translations"),), alpha=2.0),
}


def term_kinds() -> list[type[Term]]:
    """The kinds of terms that the recipes are made of, each once, in the order of the recipes."""
    return list(dict.fromkeys(type(term) for plan in RECIPES.values() if plan is not None for term in plan.terms))


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
    plan = plan or RECIPES["iv"]
    assert plan is not None
    earlier = tasks_of("earlier", earlier)
    tasks_of("earlier", earlier, beside=[task])  # refuses another task of its name: measurements are kept by names
    recipe = recipe or PromptRecipe()
    before = Before(
        model,
        task,
        recipe,
        earlier=earlier,
        inputs=list(task.split("fit", recipe.seed) if examples is None else examples),
        layer=plan.layer,
        site=plan.site,
        alpha=plan.alpha,
        k=plan.k,
        n_prompts=plan.n_prompts,
        known=effects or {},
        seed=seed,
    )
    terms = tuple(term.made(before) for term in plan.terms)
    theta = before.vector(task) if any(term.needs_vector for term in terms) else None
    return Guidance(terms, theta, plan.layer, plan.site, plan.alpha)


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
    generator, about_vectors = torch.Generator().manual_seed(seed), kind.endswith("vector")
    n_changed = 0

    def other(was: Any) -> Any:
        nonlocal n_changed
        n_changed += 1
        if about_vectors:
            return _other_vectors(was, kind, generator)
        return _other_heads(was, kind, model, generator)

    terms = tuple(term.with_vectors(other) if about_vectors else term.with_heads(other) for term in guidance.terms)
    theta = other(guidance.theta) if about_vectors and guidance.theta is not None else guidance.theta
    if not n_changed:
        what = "vectors" if about_vectors else "heads"
        raise ValueError(f"control {kind!r} replaces {what}, but this guidance has none; use another control.")
    return replace(guidance, terms=terms, theta=theta)


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
        weight = heads.weight if heads.as_vector else heads.weight * len(heads.chosen) / len(everyone)
        return replace(heads, heads=tuple(everyone), weight=weight)
    free = [place for place in everyone if place not in heads.chosen]
    drawn = torch.randperm(len(free), generator=generator)[: len(heads.chosen)].tolist()
    if not drawn:
        raise ValueError("control 'random_heads' has no heads left to draw from: S holds all of them; use fewer.")
    return replace(heads, heads=tuple(free[n] for n in drawn))
