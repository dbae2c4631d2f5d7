"""What a folder is, told by its files: for the errors of whoever expected something else in it."""

from pathlib import Path
from typing import NamedTuple

from ivlens.common.files import STATE
from ivlens.common.store.store import KEPT, MARK


class Kind(NamedTuple):
    """One kind of folder.

    Attributes:
        files: The files that tell it; all of them must be there.
        what: What it is, in words.
        by: What opens it; empty where no command does.
    """

    files: tuple[str, ...]
    what: str
    by: str = ""


_MODEL, _DRAWN = "--model (load_model)", "ivlens figures --from"
KINDS = (  # the first that fits
    Kind((MARK,), "a store of results", "ivlens store"),
    Kind((STATE,), "the folder of a training", f"{_MODEL}, ivlens forget and ivlens dynamics"),
    Kind(("adapter_config.json",), "an adapter of peft", _MODEL),
    Kind(("config.json", "tokenizer_config.json"), "a model", _MODEL),
    Kind(("evidence.parquet", "predictors.parquet"), "a result of ivlens study", _DRAWN),
    Kind(("rows.parquet", "settings.parquet"), "a result of ivlens evaluate", _DRAWN),
    Kind(("transplant.parquet",), "a result of ivlens transplant", _DRAWN),
    Kind(("forgetting.parquet", "probes.parquet"), "a result of ivlens forget", _DRAWN),
    Kind(("similarity.parquet", "layers.parquet"), "a result of ivlens dynamics", _DRAWN),
    Kind(("attention.parquet", "index.html"), "a result of ivlens attention", _DRAWN),
    Kind(("conditions.parquet", "sweep.parquet"), "a result of ivlens demo", _DRAWN),
    Kind(("cells.parquet", "curves.parquet"), "a result of ivlens bench", _DRAWN),
    Kind(("captions.md",), "a folder of figures for a paper"),
    Kind(("card.json", "MODEL_CARD.md"), "a model card"),
    Kind((f"{KEPT}/{MARK}",), "what an interrupted command keeps", "the same command"),
)


def kind_of(folder: Path) -> Kind | None:
    """What a folder is; None for one of no kind that is known."""
    return next((kind for kind in KINDS if all((folder / name).is_file() for name in kind.files)), None)


def said_of(folder: Path) -> str:
    """What a folder is and what opens it, in words: "a store of results, opened by ivlens store"; or an empty text."""
    kind = kind_of(folder)
    return "" if kind is None else ", opened by ".join(filter(None, (kind.what, kind.by)))
