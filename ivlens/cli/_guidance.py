"""Options that change the parts of a named guidance, such as the weight of one of its terms."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

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
    """Options that change parts of a named guidance; an option that is not given changes nothing.

    Attributes:
        schedule: How the strength of the vector in the student falls along the training.
        sign: 1 adds the vector to the student, -1 subtracts it.
        layer: The layer where vectors are added.
        site: The place in that layer: resid_post (after the block) or attn_out (what attention adds).
        alpha: Strength of vectors.
        direction: forward: KL(teacher, student); reverse: KL(student, teacher).
        temperature: Temperature by which the logits of teacher and student are divided in the KL.
        top_n: The teacher's likeliest tokens that are stored for each position; all others count as one.
        kl_weight: Weight of the KL on the task's own prompts.
        last_weight: Weight of the last prompt token in that KL.
        answers_weight: Weight of the answer tokens in that KL.
        heads_weight: Weight of the term that holds heads.
        rehearsal_weight: Weight of the KL on rehearsed prompts.
        k: Number of heads in every vector, and of heads that are held.
        set_option: Any option of one of the guidance's terms, as TERM.OPTION=VALUE, once for each:
            --set kl.top_n=512. It reaches terms that have no option of their own here.
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
    set_option: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = ()

    def plan(self, name: str) -> "tuple[GuidanceRecipe | None, str]":
        """The recipe of a named guidance with the given options applied, and the control that the name ends in.

        Raises:
            ValueError: there is no such guidance, the guidance has no part that a given option could change, or a value
                is impossible.
        """
        from ivlens.tuning.builder import find_guidance

        plan, control = find_guidance(name)
        for option in fields(self):
            value = getattr(self, option.name)
            if value in (None, ()):
                continue
            if plan is None:
                flag = "--set" if option.name == "set_option" else _flag(option.name)
                raise ValueError(f"{flag} is given, but --guidance is none; name one, or leave it out.")
            if option.name == "set_option":
                for text in value:
                    plan = _set(plan, text)
            else:
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
        """The named guidance, measured for one model and task; None for the name `none`.

        Raises:
            ValueError: as `plan`; or the model lacks the layer, or has too few heads.
        """
        from ivlens.models.attention import all_heads
        from ivlens.tuning.builder import control, iv_guidance

        plan, other = self.plan(name)
        if plan is None:
            return None
        # checked here, where the error can name the flag
        n_heads = len(all_heads(model))
        for flag, value, least, most in (
            ("--layer", plan.layer, 0, model.cfg.n_layers - 1),
            ("--k", plan.k, 1, n_heads),
        ):
            if not least <= value <= most:
                raise ValueError(f"{flag} is {value}, expected {least} to {most} for this model; choose one of these.")
        made = iv_guidance(model, task, plan, recipe=recipe, earlier=earlier, seed=seed)
        return control(made, other, model, seed=seed) if other else made


def _changed(plan: "GuidanceRecipe", name: str, option: str, value: Any) -> "GuidanceRecipe":
    """The recipe with one option changed, in its terms or in the place and number of its vectors."""
    from ivlens.tuning.builder import term_kinds

    # options of terms come from the terms' own `flags`; the others are fields of the recipe
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


def _set(plan: "GuidanceRecipe", text: str) -> "GuidanceRecipe":
    """The recipe with an option of one of its terms set, from a text TERM.OPTION=VALUE."""
    import json

    from ivlens.common.arguments import fitted
    from ivlens.common.fitting import hints_of

    place, is_whole, given = text.partition("=")
    name, _, option = place.strip().partition(".")
    terms = {term.name: term for term in plan.terms}
    # only options that a command line can hold: a term may also hold vectors, heads, or a term of its own
    known = {f"{term.name}.{key}": hint for term in plan.terms for key, hint in hints_of(type(term)).items()}
    plain = [key for key, hint in known.items() if _is_plain(hint)]
    if not is_whole or place.strip() not in plain:
        raise ValueError(f"--set got {text!r:.80}, expected TERM.OPTION=VALUE with one of {', '.join(plain)}.")
    try:
        value = json.loads(given)
    except (ValueError, RecursionError):
        value = given  # a text needs no quotes
    try:
        term: Any = terms[name]  # a dataclass, like all of them
        changed = replace(term, **{option: fitted(place, value, known[place.strip()])})
    except (TypeError, ValueError) as error:
        raise ValueError(f"--set {text:.80}: {error}") from None
    return replace(plan, terms=tuple(changed if term.name == name else term for term in plan.terms))


def _is_plain(hint: Any) -> bool:
    """Whether every value of a type is a number, a text, or None."""
    from ivlens.common.fitting import sides

    plain = (int, float, str, bool, type(None))
    return all(side in plain or get_origin(side) is Literal for side in sides(hint))


def _checked(option: str, key: str, make: "Callable[[], GuidanceRecipe | None]") -> "GuidanceRecipe | None":
    """The result of `make`; an error about the field `key` becomes one about the option's flag."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{_flag(option)} {str(error).removeprefix(f'{key} ')}") from error


def _lacks(option: str, name: str, what: str) -> ValueError:
    """The error for an option that no part of the named guidance has."""
    return ValueError(
        f"{_flag(option)} is given, but --guidance {name} has {what} that it could change; leave it out, or "
        "use another guidance."
    )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
