"""The part of a result's settings that says which prompts and packages made it."""

from collections import Counter
from importlib.metadata import version
from typing import Any

from ivlens.common.version import __version__
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch


def provenance(model: TransformerBridge, corrupted: PromptBatch, clean: PromptBatch) -> dict[str, Any]:
    """Facts about the measured prompts and the prompts of the means, the model's dtype and the versions of packages.

    `kept_answers` is the mean share of demonstrations whose answer `shuffle` left in its place; `n_too_long` and
    `n_mean_too_long` count the examples whose prompts did not fit the model's context.
    """
    packages = ("ivlens", "torch", "transformers", "transformer-lens")
    kept = [share for share in corrupted.kept_answers if share is not None]
    return {
        "counterfactual_tasks": dict(sorted(Counter(filter(None, corrupted.counterfactuals)).items())),
        **({"kept_answers": sum(kept) / len(kept)} if kept else {}),
        "n_prompts": len(corrupted),
        "n_mean_prompts": len(clean),
        "n_too_long": corrupted.n_too_long,
        "n_mean_too_long": clean.n_too_long,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "versions": {package: _version(package) for package in packages},
    }


def _version(package: str) -> str:
    # our own from the code: an installed ivlens may be another one than the one that runs
    return __version__ if package == "ivlens" else version(package)
