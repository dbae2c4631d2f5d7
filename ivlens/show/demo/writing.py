"""Write the results of a demo to files, or give them as plain values."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ivlens.common.files import file_name
from ivlens.common.names import path_of
from ivlens.common.saves import filling
from ivlens.show.demo.run import DemoResult


def write_demo(result: DemoResult, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> list[Path]:
    """Write tables as parquet, effects and vectors as safetensors, and return the paths.

    All files are written to a scratch folder first and moved into `folder` together at the end.

    Args:
        also: called with the scratch folder, to add files such as the demo's page.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    root = path_of(folder, "folder")
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
    """The main results as plain values, for `ivlens demo --json`."""
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
