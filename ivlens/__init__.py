"""Instruction Vectors: find the heads that carry an instruction, build the vector, steer with it.

    >>> import ivlens
    >>> model = ivlens.load_model("pocket")
    >>> effects = ivlens.head_effects(model, ivlens.load_task("antonym"), n_prompts=32)
    >>> iv = ivlens.InstructionVector.from_effects(effects, k=10)
    >>> evaluation = ivlens.evaluate_intervention(model, ivlens.load_task("antonym"), iv)
    >>> with ivlens.steer(model, iv, at=evaluation.best):
    ...     model.generate("Input: big\\nOutput:")

Names are imported on first use, so that `import ivlens` is fast and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ivlens.common.version import __version__

_MODULE_OF = {  # for each public name the module under `ivlens` that it is imported from
    "EffectOptions": "effects",
    "Evaluation": "steering.evaluation",
    "Grid": "steering.search",
    "HeadEffects": "effects",
    "InstructionVector": "vectors",
    "JudgeOptions": "steering.evaluate",
    "MoreRows": "steering.more_rows",
    "PromptRecipe": "prompts",
    "PromptSearch": "forward.finding",
    "PromptTemplate": "prompts",
    "Setting": "steering.summary",
    "Task": "tasks",
    "TaskExample": "tasks",
    "TrainedOptions": "steering.climb",
    "TrainedVector": "steering.trained",
    "ablate_heads": "analysis.attention",
    "build_prompts": "prompts",
    "causal_indirect_effect": "effects",
    "compare_heads": "effects",
    "evaluate_intervention": "steering.evaluate",
    "find_prompts": "forward.finding",
    "finetune": "tuning",
    "head_attention": "analysis.attention",
    "head_effects": "effects",
    "head_scores": "analysis.attention",
    "lab": "show.lab",
    "list_tasks": "tasks",
    "load_model": "models",
    "load_suite": "runs.suites",
    "load_task": "tasks",
    "logit_lens": "analysis.inside",
    "mean_head_outputs": "forward.means",
    "measure_again": "effects",
    "patch_places": "analysis.inside",
    "pocket_path": "models",
    "showing_progress": "common.progress",
    "splice": "analysis.transplant",
    "steer": "steering.steer",
    "steer_rows": "steering.rows",
    "sweep_settings": "steering.search",
    "train_vector": "steering.trained",
    "transplant": "analysis.transplant",
}

if TYPE_CHECKING:  # editors and type checkers read the names here; a running program gets them by `__getattr__`
    from ivlens.analysis.attention import ablate_heads, head_attention, head_scores
    from ivlens.analysis.inside import logit_lens, patch_places
    from ivlens.analysis.transplant import splice, transplant
    from ivlens.common.progress import showing_progress
    from ivlens.effects import (
        EffectOptions,
        HeadEffects,
        causal_indirect_effect,
        compare_heads,
        head_effects,
        measure_again,
    )
    from ivlens.forward.finding import PromptSearch, find_prompts
    from ivlens.forward.means import mean_head_outputs
    from ivlens.models import load_model, pocket_path
    from ivlens.prompts import PromptRecipe, PromptTemplate, build_prompts
    from ivlens.runs.suites import load_suite
    from ivlens.show.lab import lab
    from ivlens.steering.climb import TrainedOptions
    from ivlens.steering.evaluate import JudgeOptions, evaluate_intervention
    from ivlens.steering.evaluation import Evaluation
    from ivlens.steering.more_rows import MoreRows
    from ivlens.steering.rows import steer_rows
    from ivlens.steering.search import Grid, sweep_settings
    from ivlens.steering.steer import steer
    from ivlens.steering.summary import Setting
    from ivlens.steering.trained import TrainedVector, train_vector
    from ivlens.tasks import Task, TaskExample, list_tasks, load_task
    from ivlens.tuning import finetune
    from ivlens.vectors import InstructionVector

__all__ = [
    "EffectOptions",
    "Evaluation",
    "Grid",
    "HeadEffects",
    "InstructionVector",
    "JudgeOptions",
    "MoreRows",
    "PromptRecipe",
    "PromptSearch",
    "PromptTemplate",
    "Setting",
    "Task",
    "TaskExample",
    "TrainedOptions",
    "TrainedVector",
    "__version__",
    "ablate_heads",
    "build_prompts",
    "causal_indirect_effect",
    "compare_heads",
    "evaluate_intervention",
    "find_prompts",
    "finetune",
    "head_attention",
    "head_effects",
    "head_scores",
    "lab",
    "list_tasks",
    "load_model",
    "load_suite",
    "load_task",
    "logit_lens",
    "mean_head_outputs",
    "measure_again",
    "patch_places",
    "pocket_path",
    "showing_progress",
    "splice",
    "steer",
    "steer_rows",
    "sweep_settings",
    "train_vector",
    "transplant",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ivlens' has no attribute {name!r}; its public names are {', '.join(_MODULE_OF)}")
    value = getattr(import_module(f"ivlens.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # from now on Python finds the name without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
