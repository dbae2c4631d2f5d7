"""From a task to tokens: templates, corruptions, answer tokens."""

from ivlens.prompts.build import CORRUPTIONS, Corruption, PromptBatch, build_prompts
from ivlens.prompts.templates import PromptTemplate

__all__ = [
    "CORRUPTIONS",
    "Corruption",
    "PromptBatch",
    "PromptTemplate",
    "build_prompts",
]
