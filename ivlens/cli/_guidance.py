"""Options that change what a named guidance is made of."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    from ivlens.models.boot import TransformerBridge
    from ivlens.prompts.recipe import PromptRecipe
    from ivlens.tasks.task import Task
    from ivlens.tuning.builder import GuidanceRecipe
    from ivlens.tuning.guidance import Guidance


@Parameter(name="*")
@dataclass(frozen=True)
class GuidanceOptions:
    """What the guidance is made of, where it shall differ from what its name says.

    Attributes:
        schedule: How much of the vector is in the student, over training.
        sign: 1 adds the vector to the student, -1 subtracts it.
        layer: Where vectors enter.
        site: Where in that layer.
        alpha: Strength of vectors.
        direction: KL of teacher and student (forward), or of student and teacher.
        temperature: That both are softened by.
        top_n: Tokens of the teacher that are kept for each position.
        kl_weight: Of the divergence on the task's own prompts.
        last_weight: In it, of the last prompt token.
        answers_weight: In it, of the answer tokens.
        heads_weight: Of the heads that are held.
        rehearsal_weight: Of the divergence on rehearsed prompts.
        k: Heads in every vector, and heads that are held.
    """

    schedule: Literal["staircase", "linear", "cosine", "constant", "off"] | None = None
    sign: int | None = None
    layer: int | None = None
    site: Literal["resid_post", "attn_out"] | None = None
    alpha: float | None = None
    direction: Literal["forward", "reverse"] | None = None
    temperature: float | None = None
    top_n: int | None = None
    kl_weight: float | None = None
    last_weight: float | None = None
    answers_weight: float | None = None
    heads_weight: float | None = None
    rehearsal_weight: float | None = None
    k: int | None = None

    def plan(self, name: str) -> "tuple[GuidanceRecipe | None, str]":
        """What the guidance of that name is made of, with the options that were given; and the control behind a slash.

        Raises:
            ValueError: there is none, it has no part that an option is about, or a value is impossible.
        """
        from ivlens.tuning.builder import find_guidance

        plan, control = find_guidance(name)
        for option in fields(self):
            value = getattr(self, option.name)
            if value is None:
                continue
            if plan is None:
                raise ValueError(f"{_flag(option.name)} is given, but --guidance is none; name one, or leave it out.")
            plan = _changed(plan, name, option.name, value)
        return plan, control

    def guidance(
        self,
        name: str,
        model: "TransformerBridge",
        task: "Task",
        *,
        recipe: "PromptRecipe",
        earlier: "list[Task]",
        seed: int,
    ) -> "Guidance | None":
        """For one model and task; None for `none`.

        Raises:
            ValueError: as `plan`, or the model has no such layer or too few heads.
        """
        from ivlens.tuning.builder import control, iv_guidance

        plan, other = self.plan(name)
        if plan is None:
            return None
        n_heads = model.cfg.n_layers * model.cfg.n_heads
        for flag, value, least, most in (
            ("--layer", plan.layer, 0, model.cfg.n_layers - 1),
            ("--k", plan.k, 1, n_heads),
        ):
            if not least <= value <= most:
                raise ValueError(f"{flag} is {value}, expected {least} to {most} for this model; choose one of these.")
        made = iv_guidance(model, task, plan, recipe=recipe, earlier=earlier, seed=seed)
        return control(made, other, model, seed=seed) if other else made


def _changed(plan: "GuidanceRecipe", name: str, option: str, value: Any) -> "GuidanceRecipe":
    """The plan with one option at another value: of its terms, or of its vectors."""
    from ivlens.tuning.builder import term_kinds

    having = [kind for kind in term_kinds() if option in kind.flags]
    if having:
        key = having[0].flags[option]
        changed = _checked(option, key, lambda: plan.changed(option, value))
        if changed is None:
            raise _lacks(option, name, having[0].lacks)
        return changed
    has_vector = any(term.uses_vectors for term in plan.terms)
    if not has_vector and not (option == "k" and any(term.needs_heads for term in plan.terms)):
        raise _lacks(option, name, "no vector")
    return replace(plan, **{option: value})


def _checked(option: str, key: str, make: "Callable[[], GuidanceRecipe | None]") -> "GuidanceRecipe | None":
    """What `make` makes; its complaint about `key` is one about the flag."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{_flag(option)} {str(error).removeprefix(f'{key} ')}") from error


def _lacks(option: str, name: str, what: str) -> ValueError:
    return ValueError(
        f"{_flag(option)} is given, but --guidance {name} has {what} that it could change; leave it out, or "
        "use another guidance."
    )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
