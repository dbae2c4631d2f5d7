"""`iv_guidance`: guidance for one task, measured in the model before that task, and the controls that it must beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ivlens.common.checks import set_items
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import Site
from ivlens.models.attention import all_heads
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
    """The terms and options of a guidance, from which `iv_guidance` makes the guidance for one model and task.

        >>> GuidanceRecipe((IVKL(weight=0.3), HeadConsistency(weight=1.0)), layer=8)

    Attributes:
        terms: The terms. What must be measured in the model, such as the heads of `HeadConsistency()`, stays open.
        layer, site: The layer where vectors are added, and the place in that layer.
        alpha: The strength of vectors.
        k: Number of heads in every vector, and in `S`, the heads that are held.
        n_prompts: Prompts from the `fit` split on which effects are measured.
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
        """Every option as plain values, for the keys of stored results."""
        return vars(self) | {"terms": [[term.name, term.describe()] for term in self.terms]}

    def changed(self, option: str, value: Any) -> "GuidanceRecipe | None":
        """The recipe with this option changed in every term that has it; None where no term has it."""
        new = [term.changed(option, value) for term in self.terms]
        if not any(new):
            return None
        return replace(self, terms=tuple(n or term for n, term in zip(new, self.terms, strict=True)))


def _rehearsed(kl: float | None, n_tokens: int = 1, heads: HeadConsistency | None = None) -> GuidanceRecipe:
    """A recipe that rehearses earlier instructions, and compares answers with weight `kl`, or `heads`, or both."""
    answers = None if kl is None else replace(REHEARSED, weight=kl, answers=float(n_tokens > 1))
    return GuidanceRecipe((Rehearse("instructions", answers, heads, n_tokens),))


# The papers leave weights, sites and the sign open: these were chosen on the built-in model (docs/tuning.md).
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
    """The classes of terms in `RECIPES`, each once, in the order of the recipes."""
    return list(dict.fromkeys(type(term) for plan in RECIPES.values() if plan is not None for term in plan.terms))


def find_guidance(name: str) -> tuple[GuidanceRecipe | None, str]:
    """The recipe of a name such as `iv/zero_vector` (None for `none`), and its control, "" where it names none.

    Raises:
        ValueError: there is no such recipe or control.
    """
    known, _, other = name.partition("/")
    if known not in RECIPES or other not in ("", *CONTROLS) or name.endswith("/") or (known == "none" and other):
        raise ValueError(
            f"guidance is {name!r}, expected one of {', '.join(RECIPES)}, or one of them with a control: "
            f"NAME/{', NAME/'.join(CONTROLS)}."
        )
    return RECIPES[known], other


def guidance_by_name(name: str, model: TransformerBridge, task: Task, *, seed: int = 0, **more: Any) -> Guidance | None:
    """The guidance that `iv_guidance` makes from a named recipe, or a control of it; None for the name `none`.

    Args:
        name: A recipe, such as `iv`, or a control of one, such as `iv/zero_vector`.
        more: Further options of `iv_guidance`.

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
    """Measure the model before a task, and make the guidance for its training on that task.

    `θ` is the Instruction Vector of `task` in `model`, from prompts of the `fit` split. `S` are the heads whose outputs
    are held: the `k` heads with the largest effect averaged over `earlier` tasks; if there are none, the `k` heads with
    the largest effect on `task`. See docs/method.md, section 9 Guided fine-tuning.

    Args:
        model: The model as it is before the training; for a `Learner`, its `bridge()`.
        plan: Terms and options of the guidance; None: `RECIPES["iv"]`, all parts of the paper.
        recipe: How prompts are made, with the seed of the splits; None: each task's instruction, or demonstrations
            where it has none. Earlier tasks have instructions of their own.
        earlier: Tasks that the model should not forget. Their heads, vectors and instructions (or demonstrations) are
            used; their examples are never trained on.
        examples: Examples whose inputs are used in rehearsals; None: the task's `fit` split.
        effects: Effects of earlier tasks by name, measured at any earlier stage of the model; `S` is chosen by them.
            Vectors are always measured in `model`.
        seed: Draws the pairs of inputs and earlier tasks that are rehearsed.

    Raises:
        ValueError: an option that does not exist, a task whose effects cannot be measured, or rehearsal without earlier
            tasks.
    """
    plan = plan or RECIPES["iv"]
    assert plan is not None
    earlier = tasks_of("earlier", earlier)
    # refuses an earlier task with the new one's name: measurements are stored by names
    tasks_of("earlier", earlier, beside=[task])
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
    # effects of the new task are expensive: they are measured only where a term uses its vector
    theta = before.vector(task) if any(term.needs_vector for term in terms) else None
    return Guidance(terms, theta, plan.layer, plan.site, plan.alpha)


def control(guidance: Guidance, kind: Control | str, model: TransformerBridge, *, seed: int = 0) -> Guidance:
    """The same guidance with its vectors or heads replaced; if this works as well, vectors or heads are not what helps.

    Args:
        kind: `zero_vector`: zeros for vectors. `random_vector`: random directions of the same norms. `random_heads`: as
            many heads, drawn from those outside `S`. `all_heads`: every head, at the same total weight.

    Raises:
        ValueError: there is no such control, or the guidance has no vectors or heads that the control could replace.
    """
    if kind not in CONTROLS:
        raise ValueError(f"control is {kind!r}, expected one of {', '.join(CONTROLS)}.")
    generator, about_vectors = torch.Generator().manual_seed(seed), kind.endswith("vector")
    n_changed = 0

    def other(was: Any) -> Any:
        """The control's vectors or heads in place of these; counts how often it was asked."""
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
    """Zeros, or random directions with the norms of these vectors."""
    if kind == "zero_vector":
        return torch.zeros_like(vectors)
    # equal vectors get the same random one: a rehearsal repeats the vector of a task for each of its prompts
    distinct, which = vectors.reshape(-1, vectors.shape[-1]).unique(dim=0, return_inverse=True)
    drawn = torch.randn(distinct.shape, generator=generator).to(vectors)
    drawn = drawn * (distinct.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
    return drawn[which].reshape(vectors.shape)


def _other_heads(
    heads: HeadConsistency, kind: str, model: TransformerBridge, generator: torch.Generator
) -> HeadConsistency:
    """The same term with all heads of the model, or with as many random heads outside `S`."""
    every = all_heads(model)
    if kind == "all_heads":
        # the loss is a sum over heads, so more heads get less weight each; the vector they write counts as one
        weight = heads.weight if heads.as_vector else heads.weight * len(heads.chosen) / len(every)
        return replace(heads, heads=tuple(every), weight=weight)
    free = [place for place in every if place not in heads.chosen]
    drawn = torch.randperm(len(free), generator=generator)[: len(heads.chosen)].tolist()
    if not drawn:
        raise ValueError("control 'random_heads' has no heads left to draw from: S holds all of them; use fewer.")
    return replace(heads, heads=tuple(free[n] for n in drawn))
