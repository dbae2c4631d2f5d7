"""Draw the figures of this folder from the results of `ivlens demo`: `make figures` runs both."""

import sys
from pathlib import Path

import pandas as pd

from ivlens.effects import HeadEffects
from ivlens.figures import condition_plot, head_heatmap, write_figure


def main(results: Path, folder: Path) -> None:
    """Conditions of all tasks, and the head map of the first one."""
    conditions = pd.read_parquet(results / "conditions.parquet")
    first = conditions["task"].iloc[0]
    effects = HeadEffects.load(results / "effects" / f"{first}.safetensors")
    for name, figure in {"conditions": condition_plot(conditions), f"heads-{first}": head_heatmap(effects)}.items():
        print(write_figure(figure, folder / f"{name}.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
