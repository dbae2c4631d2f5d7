"""Options that several commands share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from ivlens.effects.results import HeadEffects
    from ivlens.models.boot import TransformerBridge
    from ivlens.tasks.task import Task

FigureSuffix = Literal["html", "png", "svg", "pdf", "json"]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object instead of text.")]


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """Which model.

    Attributes:
        model: "pocket" (the built-in model, and the default), a checkpoint folder, or a Hugging Face Hub name.
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto (as stored), float32, bfloat16 or float16.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    def load(self) -> "TransformerBridge":
        """Open it."""
        from ivlens.models.load import load_model

        quiet_libraries()
        return load_model(self.model or "pocket", device=self.device, dtype=self.dtype)


@Parameter(name="*")
@dataclass(frozen=True)
class MeasureOptions:
    """How effects are measured.

    Attributes:
        n_prompts: Corrupted prompts to measure on.
        corruption: What a prompt loses; by default what suits the task.
        score: What an effect is a difference of.
        method: exact (or the next slower way that is right for the model), cached, reference (one pass for every head),
            or attribution, an estimate from one gradient.
        template: How instruction and input become a prompt: plain, after, qa or chat.
        seed: Of everything that is drawn.
    """

    n_prompts: int = 32
    corruption: Literal["counterfactual", "drop", "shuffle", "none"] | None = None
    score: Literal["prob", "logprob", "logit_diff"] = "prob"
    method: Literal["exact", "cached", "reference", "attribution"] = "exact"
    template: str = "plain"
    seed: int = 0

    def measure(self, model: "TransformerBridge", task: "Task", *, progress: bool) -> "HeadEffects":
        """Measure every head on `task`."""
        from ivlens.effects.measure import head_effects

        return head_effects(
            model,
            task,
            n_prompts=self.n_prompts,
            corruption=self.corruption,
            score=self.score,
            method=self.method,
            template=self.template,
            seed=self.seed,
            progress=progress,
        )


def quiet_libraries() -> None:
    """No bars and no advice from the libraries: stderr is for this program's own."""
    import warnings

    from transformers.utils import logging

    for package in ("transformers", "peft"):  # deprecations that only these two can act on
        warnings.filterwarnings("ignore", category=FutureWarning, module=package)
        warnings.filterwarnings("ignore", category=UserWarning, module=package)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
