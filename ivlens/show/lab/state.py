"""The state of the lab's controls as one immutable value, and the recipes of prompts that it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.prompts.templates import PromptTemplate, find_template
from ivlens.tasks.task import Task

RAW = "raw"  # the template of a prompt that is the text itself
# the words that the fields `told`, `donor` and `source` of `LabState` may have
TOLD = ("task", "none")
DONORS = ("own", "first")
SOURCES = ("heads", "file")
# the parts of the page of which one is shown beside the completions, see `LabState.view`
VIEWS = ("head", "many", "layers", "places", "vector", "code")

Head = tuple[int, int]


@dataclass(frozen=True)
class LabState:
    """The values of all controls of the lab; the same state gives the same texts.

    There are two kinds of prompts. The *measured* prompts are those on which effects are measured. The *shown* prompt
    is the one that is completed.

    Attributes:
        task: the name of the task whose heads and vector are shown.
        text: the input in the shown prompt.
        instruction: the instruction in the shown prompt; empty: none, so that the vector has something to add.
        template: the template of measured prompts and of the shown one. With `raw` the shown prompt is the text itself,
            and measured prompts are made by `plain`.
        n_shots: demonstrations in each measured prompt and in the shown one. None: no demonstrations in the shown
            prompt, and the recipe's default in measured ones (5 without an instruction, 0 with one).
        bare: whether to leave instruction and demonstrations out of the shown prompt.
        told: the instruction in measured prompts: `task` (one of the task's own), `none`, or these texts.
        heads: the heads of the vector; None: the `k` heads of largest effect.
        k: how many heads the vector has if `heads` is None.
        layer, alpha, site: the layer, strength and site at which the vector is added; None: to be searched for.
        positions: the tokens at which it is added, `prompt`, `every` or `all`, as in `steer`.
        random: whether the completion with a random vector of equal norm is shown too, at the same layer, strength and
            site. This is a first look, not a control: a control would be searched for its own best setting.
        seed: draws the random vector.
        max_new_tokens: the length of the completions.
        source: where the vector comes from: the `heads`, or a loaded `file`.
        donor: where two models are compared, the vector that each gets: its `own`, or that of the `first`.
        demos: input and answer of each demonstration in the shown prompt, written by hand; None: `n_shots` drawn ones.
        demo_seed: draws the demonstrations of the shown prompt; None: the seed of the measured prompts.
        system: the system text, for templates that are a chat; empty: the template's own.
        begins: the beginning of every answer, in measured prompts and the shown one; empty: the template's own.
        head: the head whose card is shown; None: the one of largest effect.
        view: what is shown beside the completions: a `head`, `many` inputs, the next token by `layers`, where patching
            matters (`places`), the `vector`, or the `code`. Nothing else depends on it.
    """

    task: str
    text: str = ""
    instruction: str = ""
    template: str | PromptTemplate = "plain"
    n_shots: int | None = None
    bare: bool = False
    told: str | tuple[str, ...] = "task"
    heads: tuple[Head, ...] | None = None
    k: int = 10
    layer: int | None = None
    alpha: float | int | None = None
    site: str | None = None
    positions: str = "prompt"
    random: bool = False
    seed: int = 0
    max_new_tokens: int = 12
    source: str = "heads"
    donor: str = "own"
    demos: tuple[tuple[str, str], ...] | None = None
    demo_seed: int | None = None
    system: str = ""
    begins: str = ""
    head: Head | None = None
    view: str = "head"

    def measured(self, seed: int) -> PromptRecipe:
        """The recipe of the prompts on which the effects of the task's heads are measured."""
        told = {"task": TASK, "none": None}[self.told] if isinstance(self.told, str) else self.told
        return PromptRecipe(self.form(), told, self.n_shots, seed)

    def shown(self, task: Task, seed: int) -> PromptRecipe:
        """The recipe of the prompt that is completed; not to be used with the template `raw`."""
        told = None if self.bare or task.fused else self.instruction.strip() or None
        return PromptRecipe(self.form(), told, 0 if self.bare else self.n_shots or 0, seed)

    def form(self) -> str | PromptTemplate:
        """The template with the system text and the beginning of answers that the state has."""
        name = "plain" if self.template == RAW else self.template
        found, begins = find_template(name), _plain(self.begins.strip())
        if found.chat:
            changes = {"system": _plain(self.system.strip()), "answer_start": begins}
            changes = {part: text for part, text in changes.items() if text}
            # in a chat the text between the beginning and the answer is the template's own, which may be none
            if begins:
                changes["separator"] = found.separator or " "
        elif begins:
            start = found.separator + begins
            changes = {
                "instructed": found.instructed + start,
                "bare": found.bare + start,
                "demonstration": found.demonstration.replace("{answer}", f"{begins}{found.separator}{{answer}}"),
            }
        else:
            changes = {}
        return replace(found, name=f"{found.name}, changed", **changes) if changes else name


def _plain(text: str) -> str:
    """A text that a template writes as it is, braces included."""
    return text.replace("{", "{{").replace("}", "}}")


def with_template(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the template read, if it is the name of a JSON file.

    This is for values that a user gives; a page may not name files.

    Raises:
        ValueError, FileNotFoundError: as `find_template`.
    """
    template = values.get("template")
    if isinstance(template, str) and template.lower().endswith(".json"):
        return {**values, "template": find_template(template)}
    return dict(values)


def values_of(recipe: PromptRecipe, task: Task, *, own: bool = True) -> dict[str, Any]:
    """The values of a state that makes its prompts by `recipe`.

    Args:
        own: whether the recipe was made for this task, so that its instruction is used as well.
    """
    recipe = recipe if own else recipe.for_other_tasks()
    told: Any = recipe.instruction
    texts = (told,) if isinstance(told, str) else told if isinstance(told, tuple) else ()
    # None leaves a recipe's default open, which here gives no demonstrations either
    default = recipe.n_shots == replace(recipe, n_shots=None).shots(task) == 0
    values = {"template": recipe.template, "n_shots": None if default else recipe.n_shots}
    if not own:
        return values
    values["told"] = texts or ("none" if told is None else "task")
    # TASK draws one of the task's instructions for each prompt, so no single text can be shown in the field
    return values if told is TASK else {**values, "instruction": texts[0] if texts else ""}
