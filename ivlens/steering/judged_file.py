"""How rows of a judgement are written to a file with their scores on every prompt, and read from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ivlens.common.precision import FULL
from ivlens.models.artefacts import Artefact
from ivlens.models.fingerprint import ModelIdentity
from ivlens.steering.summary import METRICS, Judged, Scores, Setting

FILE = Artefact("ivlens.Judged/1", "ivlens evaluate")
_AS_THEY_ARE = ("condition", "names", "has_probs", "on_select", "variant", "against")


def write_judged(path: str | Path, judged: Sequence[Judged], model: ModelIdentity) -> Path:
    """Write rows of a judgement into one safetensors file; the same rows give the same bytes.

    What was done to passes (`edits`) is not written, as it holds the model.
    """
    tensors = {  # copies: metrics of a condition may be one tensor, which safetensors refuses
        f"{number}/{metric}": getattr(one.scores, metric).cpu().clone()
        for number, one in enumerate(judged)
        for metric in METRICS
    }
    # details as pairs, which keep their order: it is that of the table's columns
    rows = [
        {name: getattr(one, name) for name in _AS_THEY_ARE}
        | {
            "settings": [list(setting) for setting in one.settings],
            "details": [list(pair) for pair in one.details.items()],
        }
        for one in judged
    ]
    return FILE.write(path, tensors, {"model": model, "rows": rows})


def read_judged(path: str | Path) -> list[Judged]:
    """The rows that `write_judged` wrote, without edits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, or a damaged one.
    """
    tensors, about = FILE.read(path)
    try:
        return [_row(number, row, tensors) for number, row in enumerate(about["rows"])]
    except (KeyError, TypeError, ValueError) as error:
        FILE.refuse(path, f"is incomplete ({type(error).__name__}: {error})")


def _row(number: int, row: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Judged:
    scores = Scores(**{metric: tensors[f"{number}/{metric}"] for metric in METRICS})
    shape = scores.accuracy.shape
    for metric in METRICS:
        values = getattr(scores, metric)
        if values.shape != shape or len(shape) != 2 or values.dtype not in FULL:
            raise ValueError(f"{metric} of {row['condition']} has another shape or dtype")
    settings = tuple(Setting(int(layer), float(alpha), str(site)) for layer, alpha, site in row["settings"])
    if settings and len(settings) != shape[0]:
        raise ValueError(f"{row['condition']} has {len(settings)} settings for {shape[0]} vectors")
    return Judged(
        str(row["condition"]),
        scores,
        tuple(row["names"]),
        settings,
        bool(row["has_probs"]),
        tuple(row["on_select"]),
        str(row["variant"]),
        str(row["against"]),
        dict(row["details"]),
    )
