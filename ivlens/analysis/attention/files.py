"""How `HeadAttention` is written to a file and read from it; whatever does not fit together is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ivlens.analysis.attention.looked import SEGMENTS, Looked, LookedAt
from ivlens.analysis.attention.scores import SCORES, HeadScores
from ivlens.common.precision import FULL
from ivlens.models.artefacts import Artefact
from ivlens.models.fingerprint import ModelIdentity
from ivlens.prompts.recipe import PromptRecipe

FILE = Artefact("ivlens.HeadAttention/1", "HeadAttention.save")


def write_attention(
    path: str | Path, looked: Mapping[str, Looked], scores: HeadScores | None, about: Mapping[str, Any]
) -> Path:
    """Write the file: shares, weights of single tokens and scores as tensors, everything else as metadata.

    Args:
        looked: By the kind of prompts, what was measured.
        scores: Both scores of all heads, if they were measured.
        about: Task, model, heads and settings.
    """
    tensors, kinds = dict[str, Tensor](), []
    for number, (kind, one) in enumerate(looked.items()):
        tensors[f"shares.{number}"] = one.shares
        # cloned, since a file cannot hold two tensors that share memory
        tensors |= {f"weights.{number}.{place}": each.weights.clone() for place, each in enumerate(one.shown)}
        shown = [{"ids": each.ids, "texts": each.texts, "segments": each.segments} for each in one.shown]
        kinds.append({"prompts": kind, "inputs": one.inputs, "shown": shown})
    if scores is not None:
        tensors |= {name: getattr(scores, name) for name in SCORES}
    settings = None if scores is None else dict(scores.settings)
    return FILE.write(path, tensors, {**about, "kinds": kinds, "scores": settings})


def read_attention(path: str | Path) -> dict[str, Any]:
    """The fields of the `HeadAttention` that was saved in this file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a damaged one.
    """
    tensors, about = FILE.read(path)
    try:
        model: ModelIdentity = about["model"]
        heads = tuple((int(layer), int(head)) for layer, head in about["heads"])
        if not heads or not all(0 <= layer < model.n_layers and 0 <= head < model.n_heads for layer, head in heads):
            raise ValueError("it names no heads, or heads that the model does not have")
        looked = {
            _text(kind["prompts"]): _looked(number, kind, tensors, len(heads))
            for number, kind in enumerate(about["kinds"])
        }
        if not looked or len(looked) < len(about["kinds"]):
            raise ValueError("it has no prompts, or two kinds of one name")
        scores = _scores(about["scores"], tensors, model)
        PromptRecipe.from_dict(about["settings"]["recipe"])  # refused here, and not at its first use
        task = _text(about["task"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        FILE.refuse(path, f"does not fit together ({type(error).__name__}: {error})")
    if tensors:
        FILE.refuse(path, f"has tensors that its metadata do not know ({', '.join(sorted(tensors)):.80})")
    fields = {"heads": heads, "looked": looked, "scores": scores, "task": task}
    return fields | {"model": model, "settings": about["settings"]}


def _looked(number: int, kind: Mapping[str, Any], tensors: dict[str, Tensor], n_heads: int) -> Looked:
    """What was measured on one kind of prompts; its tensors are taken out of `tensors`."""
    inputs = tuple(map(_text, kind["inputs"]))
    shares = _taken(tensors, f"shares.{number}", (len(inputs), n_heads, len(SEGMENTS)))
    shown = []
    for place, one in enumerate(kind["shown"]):
        ids, texts, segments = tuple(map(int, one["ids"])), tuple(map(_text, one["texts"])), tuple(one["segments"])
        if len({len(ids), len(texts), len(segments)}) > 1 or not set(segments) <= set(SEGMENTS):
            raise ValueError(f"prompt {place} has tokens, texts and segments that do not belong together")
        shown.append(LookedAt(ids, texts, segments, _taken(tensors, f"weights.{number}.{place}", (n_heads, len(ids)))))
    if len(shown) > len(inputs):
        raise ValueError(f"it shows {len(shown)} of {len(inputs)} prompts")
    return Looked(shares, inputs, tuple(shown))


def _scores(settings: Any, tensors: dict[str, Tensor], model: ModelIdentity) -> HeadScores | None:
    """Both scores of all heads; None where the file has none."""
    if settings is None:
        return None
    n = len(tensors[SCORES[0]])
    induction, previous = (_taken(tensors, name, (n, model.n_layers, model.n_heads)) for name in SCORES)
    return HeadScores(induction, previous, model, dict(settings))


def _taken(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of this name, of this shape and in full precision, taken out of `tensors`."""
    found = tensors.pop(name)
    if tuple(found.shape) != shape or found.dtype not in FULL:
        raise ValueError(f"{name} is {tuple(found.shape)} in {found.dtype}, not {shape} in float32 or float64")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value
