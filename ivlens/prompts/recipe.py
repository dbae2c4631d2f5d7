"""`PromptRecipe`: how the prompts of a task are made, for everything that asks a model: effects, training, the lab."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from operator import index
from typing import Any, Final, SupportsIndex

from ivlens.common.arguments import checked
from ivlens.common.html import facts, titled
from ivlens.prompts.templates import TEMPLATES, PromptTemplate, find_template
from ivlens.tasks.task import Task

DEFAULT_SHOTS = 5  # demonstrations where nothing else tells the task, see `PromptRecipe.shots`


class _FromTask(Enum):
    """The type of `TASK`: an enum of one member, which stays the same object when it is copied or sent elsewhere."""

    TASK = "task"

    def __repr__(self) -> str:
        return "TASK"


TASK: Final = _FromTask.TASK


@checked
@dataclass(frozen=True)
class PromptRecipe:
    """How prompts are made: the template, what tells the model its task, and the seed of every draw.

    A prompt tells the model its task by an instruction, by demonstrations, or by both. Effects and vectors carry the
    recipe of their prompts, and functions that use a vector follow it.

        >>> PromptRecipe(n_shots=10, instruction=None)          # demonstrations alone
        >>> PromptRecipe("qa", instruction="Give the plural.")  # this instruction, in another form

    Attributes:
        template: `plain`, `after` (instruction after the input), `qa`, `chat` (the tokenizer's chat template), a JSON
            file with the fields of a `PromptTemplate`, or a `PromptTemplate`.
        instruction: `TASK`: one of the task's instructions, drawn for each prompt. A text: this one. Several texts: one
            of them, drawn for each prompt. None: no instruction.
        n_shots: The number of demonstrations, which come from the task's *fit* split and never have the queried input.
            None: 5 (or as many as there are) where nothing else tells the task, otherwise 0.
        seed: The seed of instructions, demonstrations and corruptions, and of the splits.

    Raises:
        ValueError: no such template, an empty instruction, a number of shots below 0, or shots for a template without
            demonstrations.
        TypeError: a field of another type.

    Source: docs/method.md, 2 Prompts and corruptions.
    """

    template: str | PromptTemplate = "plain"
    instruction: "_FromTask | str | Sequence[str] | None" = TASK
    n_shots: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        found = find_template(self.template)
        # a template from a file is kept by its content, as the file may change
        object.__setattr__(self, "template", found.name if TEMPLATES.get(found.name) == found else found)
        object.__setattr__(self, "instruction", _checked_instruction(self.instruction))
        if self.n_shots is not None:
            object.__setattr__(self, "n_shots", _whole("n_shots", self.n_shots))
            if self.n_shots < 0:
                raise ValueError(f"n_shots is {self.n_shots}, expected 0 or more.")
            _check_demonstrates(found, self.n_shots)
        object.__setattr__(self, "seed", _whole("seed", self.seed))

    def texts(self, task: Task) -> tuple[str, ...]:
        """The instructions from which a prompt of `task` gets one; empty where instruction and input are one text.

        Raises:
            ValueError: an instruction for a task whose inputs carry their own.
        """
        if task.fused:
            if self.instruction not in (TASK, None):
                raise ValueError(
                    f"task {task.name!r} has its instruction and input in one text, but the recipe has an instruction "
                    "of its own; leave it out."
                )
            return ()
        if self.instruction is TASK:
            return task.instructions
        if self.instruction is None:
            return ()
        return (self.instruction,) if isinstance(self.instruction, str) else tuple(self.instruction)

    def shots(self, task: Task) -> int:
        """The number of demonstrations in a clean prompt of `task`: `n_shots`, or what None means for this task.

        Raises:
            ValueError: `n_shots` is None, the task needs demonstrations, and the template has none.
        """
        if self.n_shots is not None:
            return self.n_shots
        if task.fused or self.texts(task):
            return 0
        # one example less than there are: the queried input is never among its demonstrations
        n_shots = max(0, min(DEFAULT_SHOTS, len(task.split("fit", self.seed)) - 1))
        _check_demonstrates(find_template(self.template), n_shots)
        return n_shots

    def resolved(self, task: Task) -> "PromptRecipe":
        """The same recipe, with `n_shots` as the number of demonstrations that prompts of `task` have."""
        return replace(self, n_shots=self.shots(task))

    def corruption(self, task: Task) -> str:
        """The default corruption for prompts of `task`.

        It is `counterfactual` where there is an instruction, `shuffle` where there are demonstrations alone, `none`
        where instruction and input are one text without demonstrations to shuffle.
        """
        if self.texts(task):
            return "counterfactual"
        return "none" if task.fused and self.shots(task) < 2 else "shuffle"

    def for_other_tasks(self) -> "PromptRecipe":
        """The same recipe for other tasks: each is asked by its own instruction, if the recipe has instructions at all.

        Where the recipe has no demonstrations, tasks without an instruction get the default number of them.
        """
        if self.instruction is None:
            return self
        return replace(self, instruction=TASK, n_shots=self.n_shots or None)

    def check_for(self, tasks: Sequence[Task]) -> None:
        """Refuse a recipe with an instruction of its own for more than one task.

        Raises:
            ValueError: the recipe has such an instruction, and there are several tasks.
        """
        if len(tasks) > 1 and self.instruction not in (TASK, None):
            raise ValueError(
                f"the recipe has an instruction of its own, {str(self.instruction)!r:.60}, for the tasks "
                f"{', '.join(task.name for task in tasks)[:80]}, expected one task; leave the instruction out, so that "
                "each is asked by its own."
            )

    def alike(self, other: "PromptRecipe", task: Task) -> bool:
        """Whether both recipes make the same prompts of `task`."""
        return self.resolved(task) == other.resolved(task)

    def to_dict(self) -> dict[str, Any]:
        """The recipe in plain JSON values, which `from_dict` reads."""
        given = self.instruction
        texts = {"task": True} if given is TASK else [given] if isinstance(given, str) else given and list(given)
        # a chat template with all its fields, because prompts depend on its `date`
        found = find_template(self.template)
        template = asdict(found) if found.chat or not isinstance(self.template, str) else self.template
        return {"template": template, "instruction": texts, "n_shots": self.n_shots, "seed": self.seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PromptRecipe":
        """Make a recipe of the plain JSON values that `to_dict` gives.

        Raises:
            ValueError, TypeError: the values are no recipe.
        """
        missing = [name for name in ("template", "instruction", "n_shots", "seed") if name not in values]
        if missing:
            raise ValueError(f"a recipe lacks {', '.join(missing)}, expected what PromptRecipe.to_dict gives.")
        given = values["instruction"]
        told = (
            TASK if isinstance(given, Mapping) else given if given is None or isinstance(given, str) else tuple(given)
        )
        return cls(_recorded_template(values["template"]), told, values["n_shots"], values["seed"])

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> "PromptRecipe | None":
        """The recipe that the settings of effects record, or None.

        Settings of older versions have no recipe, but single options from which one is made.

        Raises:
            ValueError, TypeError: the values are no recipe.
        """
        if "recipe" in settings:
            return cls.from_dict(settings["recipe"])
        template = settings.get("template", "plain")
        is_file = isinstance(template, str) and template not in TEMPLATES  # older versions recorded the path
        if is_file or not settings.keys() & {"template", "n_shots", "seed"}:
            return None
        return cls(
            _recorded_template(template),
            # in older versions, prompts whose demonstrations were shuffled never had an instruction
            None if settings.get("corruption") == "shuffle" else TASK,
            settings.get("n_shots"),
            settings.get("seed", 0),
        )

    def __str__(self) -> str:
        template = self.template if isinstance(self.template, str) else self.template.name
        given = self.instruction
        told = "the task's instruction" if given is TASK else "no instruction" if given is None else "own instruction"
        shots = "default" if self.n_shots is None else str(self.n_shots)
        return f"template {template}, {told}, {shots} demonstrations, seed {self.seed}"

    def _repr_html_(self) -> str:
        return titled("PromptRecipe", facts(vars(self)))


def plain_options(options: Any) -> dict[str, Any]:
    """The fields of an options object in plain JSON values, with those of its recipes, for keys and settings."""
    recipes = {name: value for name, value in vars(options).items() if isinstance(value, PromptRecipe)}
    return asdict(options) | {name: recipe.to_dict() for name, recipe in recipes.items()}


def _checked_instruction(given: Any) -> Any:
    """A valid instruction of a recipe; a list of one text becomes the text."""
    if given is TASK or given is None:
        return given
    texts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"instruction is {given!r:.60}, expected TASK, a text, several texts, or None for none.")
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"instruction is {given!r:.60}, expected texts that are not empty; None means none.")
    return texts[0] if len(texts) == 1 else texts


def _check_demonstrates(template: PromptTemplate, n_shots: int) -> None:
    """Refuse demonstrations for a template that has none."""
    if n_shots and not template.demonstrates:
        raise ValueError(
            f"n_shots is {n_shots}, but template {template.name!r} has no demonstration, expected one with {{input}} "
            "and {answer}; add it to the template, or use n_shots = 0 with an instruction."
        )


def _whole(name: str, value: Any) -> int:
    """A whole number as a plain int, also one of numpy; True and False are refused."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is {value!r:.60}, expected a whole number.")
    return index(value)


def _recorded_template(value: Any) -> str | PromptTemplate:
    """The template in recorded settings: a built-in name, or its fields; the path of a file is never opened."""
    if isinstance(value, Mapping):
        return PromptTemplate(**value)
    if value not in TEMPLATES:
        raise ValueError(f"template is {value!r:.60}, expected one of {', '.join(TEMPLATES)}, or its fields.")
    return value
