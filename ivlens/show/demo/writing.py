"""A demo's result as files and as plain values."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ivlens.common.files import file_name
from ivlens.common.saves import filling
from ivlens.show.demo.run import DemoResult


def write_demo(result: DemoResult, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> list[Path]:
    """Write tables as parquet, effects and vectors as safetensors; return the paths.

    Everything is written beside its place first and moved there at the end.

    Args:
        also: called with the folder that is being filled, to add files of its own (the page).

    Raises:
        OSError: the folder cannot be made or written to.
    """
    root = Path(folder)
    with filling(root) as scratch:
        for name in ("conditions", "sweep", "curves", "examples"):
            getattr(result, name).to_parquet(scratch / f"{name}.parquet")
        if result.tuning is not None:
            result.tuning.scores.to_parquet(scratch / "tuning.parquet")
            result.tuning.curves.to_parquet(scratch / "tuning_curves.parquet")
        heads = pd.concat([found.to_frame() for found in result.effects], ignore_index=True)
        heads.to_parquet(scratch / "effects.parquet")
        for found, vector in zip(result.effects, result.vectors, strict=True):
            found.save(scratch / "effects" / file_name(found.task, ".safetensors"))
            vector.save(scratch / "vectors" / file_name(vector.task, ".safetensors"))
        if also is not None:
            also(scratch)
        files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    return [root / file for file in files]


def summary(result: DemoResult) -> dict[str, Any]:
    """What a script wants to know, as plain values."""
    options, plan = result.options, result.options.plan
    measured = {"tasks": list(plan.tasks), "n_prompts": plan.n_prompts, "n_draws": plan.n_draws}
    return {
        "model": asdict(result.model),
        "options": asdict(options) | measured | {"recipe": options.recipe and options.recipe.to_dict()},
        "recipes": {found.task: found.recipe.to_dict() for found in result.effects},
        "seconds": round(result.seconds, 1),
        "tasks": result.table().to_dict("records"),
        "able": list(result.able),
        "tuning": None if result.tuning is None else result.tuning.scores.to_dict("records"),
    }
