"""Options that several commands share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from ivlens.effects.results import HeadEffects
    from ivlens.models.boot import TransformerBridge
    from ivlens.prompts.recipe import PromptRecipe
    from ivlens.tasks.task import Task

FigureSuffix = Literal["html", "png", "svg", "pdf", "json"]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object instead of text.")]


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """The model that a command opens.

    Attributes:
        model: "pocket" (the built-in model, and the default), "smollm2" (after `ivlens get smollm2`), a checkpoint
            folder, a GGUF file, or a name on the Hugging Face Hub.
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto (as stored), float32, bfloat16 or float16.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    def load(self) -> "TransformerBridge":
        """Open the model, without messages of the libraries."""
        from ivlens.models.load import load_model

        quiet_libraries()
        return load_model("pocket" if self.model is None else self.model, device=self.device, dtype=self.dtype)


@Parameter(name="*")
@dataclass(frozen=True)
class ColumnOptions:
    """What is read of a task's file.

    Attributes:
        input_column: Column or key of the inputs in the task's file; by default the one with a usual name.
        answer_column: Column or key of the answers; by default the one with a usual name.
        instruction_column: Column or key of instructions; by default the one with a usual name, if there is any.
        part: The file of a folder, or the split of a dataset, to read alone, such as train; by default all of them.
    """

    input_column: str | None = None
    answer_column: str | None = None
    instruction_column: str | None = None
    part: str | None = None

    def names(self) -> dict[str, str | None]:
        """The columns and the part as `load_task` takes them."""
        return {
            "input_column": self.input_column,
            "output_column": self.answer_column,
            "instruction_column": self.instruction_column,
            "part": self.part,
        }

    def load(self, task: str) -> "Task":
        """Open a task by its name or path, with these columns."""
        from ivlens.tasks.bank import load_task

        return load_task(task, **self.names())

    def load_all(self, tasks: "Sequence[str]") -> "list[Task]":
        """Open several tasks by name or path; the columns are read of all that are not built in.

        Raises:
            ValueError, FileNotFoundError: as `load_task`; or columns are named, and all tasks are built in.
        """
        from ivlens.tasks.bank import bank_names, load_task

        given, built_in = self.names(), bank_names()
        if any(given.values()) and all(task in built_in for task in tasks):
            raise ValueError(
                f"columns or a part are named, but {', '.join(tasks)[:80]} are built-in tasks, expected the path of a "
                "file that has them; leave them out."
            )
        return [load_task(task, **({} if task in built_in else given)) for task in tasks]

    def load_if_given(self, task: str | None) -> "Task | None":
        """As `load`; None where no task is given, which columns would need."""
        if task is not None:
            return self.load(task)
        if any(self.names().values()):
            raise ValueError("columns or a part are named, but no task that has them, expected --task; add it.")
        return None


@Parameter(name="*")
@dataclass(frozen=True)
class PromptOptions:
    """How prompts are made.

    Attributes:
        template: plain, after (instruction after the input), qa, chat, or a JSON file with the fields of a template.
            Without template, n_shots and instruction the command looks for the form of prompt in which the model
            answers best (as `ivlens prompts` does), and remembers it. For the built-in model nothing is looked for: its
            prompts have the task's instruction in plain. A file of effects or of a vector brings its own form.
        n_shots: Demonstrations in each prompt. By default, if the template or the instruction is given: 5 without an
            instruction, none with one.
        instruction: task (one of the task's own), none (demonstrations alone), or the text of an instruction. By
            default, if the template or n_shots is given: task.
        seed: Seed of splits, instructions, demonstrations and all other draws. By default 0, or the seed of a file.
    """

    template: str | None = None
    n_shots: int | None = None
    instruction: str | None = None
    seed: int | None = None

    def recipe(self, recorded: "PromptRecipe | None" = None) -> "PromptRecipe":
        """The recipe of a file, or the default recipe, with the given options applied.

        Args:
            recorded: The recipe in a file of effects or of a vector.

        Raises:
            ValueError, FileNotFoundError: an option that no recipe can have.
        """
        from ivlens.prompts.recipe import TASK, PromptRecipe

        given = {name: value for name in ("template", "n_shots", "seed") if (value := getattr(self, name)) is not None}
        if self.instruction is not None:
            if not self.instruction.strip():
                raise ValueError("--instruction is empty, expected a text, 'task' for one of the task's, or 'none'.")
            given["instruction"] = {"task": TASK, "none": None}.get(self.instruction, self.instruction)
            if recorded is not None and self.n_shots is None:
                given["n_shots"] = None  # the file's demonstrations belong to its own instruction, not to a new one
        return replace(recorded or PromptRecipe(), **given)

    @property
    def is_open(self) -> bool:
        """Whether no option fixes the form of prompt, so that a form must be looked for."""
        return self.template is None and self.n_shots is None and self.instruction is None

    def chosen(
        self,
        model: "TransformerBridge | Callable[[], TransformerBridge]",
        tasks: "Sequence[Task]",
    ) -> "PromptRecipe":
        """`recipe()`, or, where no option fixes the form of prompt, the form in which the model answers the tasks best.

        The form that was found is printed on stderr. The built-in model is asked as it was trained.

        Args:
            model: The model, or a function that opens it, which is called only where a form must be looked for.

        Raises:
            ValueError, FileNotFoundError: as `recipe`; or there is no form for the tasks.
        """
        from ivlens.forward.remembered import auto_recipe
        from ivlens.models.boot import TransformerBridge
        from ivlens.models.fingerprint import is_built_in

        recipe = self.recipe()
        if not self.is_open or not tasks:
            return recipe
        opened = model if isinstance(model, TransformerBridge) else model()
        if is_built_in(opened):
            return recipe
        return auto_recipe(opened, tasks, seed=recipe.seed)


@Parameter(name="*")
@dataclass(frozen=True)
class MeasureOptions(PromptOptions):
    """How effects are measured, and on which prompts.

    Attributes:
        n_prompts: Number of corrupted prompts to measure on.
        corruption: What is taken away from prompts; by default the corruption that suits the task.
        score: The score whose gain is the effect; by default prob, or logprob where answers share their first tokens.
        method: exact (or the next slower method, if a check finds exact wrong for the model), cached, reference (one
            pass for every head), or attribution (an estimate from one gradient).
        mixer: attention (its heads alone), or all (in hybrid models also the heads of recurrent mixers, L3M7).
    """

    n_prompts: int = 32
    corruption: Literal["counterfactual", "counterfactual_inputs", "drop", "shuffle", "none"] | None = None
    score: Literal["prob", "logprob", "logit_diff"] | None = None
    method: Literal["exact", "cached", "reference", "attribution"] = "exact"
    mixer: Literal["attention", "all"] = "attention"

    def measure(self, model: "TransformerBridge", task: "Task", *, contrast: bool = False) -> "HeadEffects":
        """Measure the effect of every head on `task`; the form of prompt is looked for first where no option fixes it.

        Args:
            contrast: Also measure the means that a vector with `contrast` subtracts.
        """
        from ivlens.effects.measure import EffectOptions, head_effects

        return head_effects(
            model,
            task,
            recipe=self.chosen(model, [task]),
            corruption=self.corruption,
            score=self.score,
            n_prompts=self.n_prompts,
            options=EffectOptions(method=self.method, contrast=contrast, mixer=self.mixer),
        )


@Parameter(name="*")
@dataclass(frozen=True)
class FileOptions(MeasureOptions, ColumnOptions):
    """How effects are measured, and what is read of the task's file."""


def quiet_libraries() -> None:
    """Turn off progress bars and advice of the libraries, so that stderr has only the messages of ivlens."""
    import warnings

    from transformers.utils import logging

    for package in ("transformers", "peft"):  # warnings of these two about each other, which a user cannot act on
        warnings.filterwarnings("ignore", category=FutureWarning, module=package)
        warnings.filterwarnings("ignore", category=UserWarning, module=package)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
