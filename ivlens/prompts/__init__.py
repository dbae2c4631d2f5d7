"""From a task to tokens: recipes and templates of prompts, corruptions, the tokens of answers."""

from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts
from ivlens.prompts.corruptions import CORRUPTIONS, Corruption
from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.prompts.templates import PromptTemplate

__all__ = [
    "CORRUPTIONS",
    "TASK",
    "Corruption",
    "PromptBatch",
    "PromptRecipe",
    "PromptTemplate",
    "build_prompts",
]
