"""What an engine is asked to measure, checked once for all engines."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens._inputs import check_answers, check_length, check_prompts
from ivlens.hooks import check_layers, check_unsteered, whole_numbers
from ivlens.models import TransformerBridge, check_model
from ivlens.scoring import check_score, scored_columns

MODES = ("replace", "add")

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class EffectRequest:
    """Left-padded corrupted prompts, what to patch into them, and what to score.

    `answers` holds the columns that the score looks at; `max_memory` is in bytes, for each pass. An engine calls
    `progress(done, total)` in units of its own.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch answer_len"]
    foils: Int[Tensor, " batch"] | None
    mean_z: Float[Tensor, "n_layers n_heads d_head"]
    mode: str
    score: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    max_memory: int
    progress: Progress = lambda done, total: None


def make_request(
    model: TransformerBridge,
    tokens: Tensor,
    attention_mask: Tensor,
    answer_tokens: Tensor,
    mean_z: Tensor,
    *,
    foil_tokens: Tensor | None = None,
    mode: str = "replace",
    layers: Iterable[SupportsIndex] | None = None,
    heads: Iterable[SupportsIndex] | None = None,
    score: str = "prob",
    max_memory: int | str = "auto",
    progress: Progress = lambda done, total: None,
) -> EffectRequest:
    """A request, or the error that `causal_indirect_effect` documents."""
    check_unsteered(check_model(model))
    check_mode(mode)
    check_score(score, has_foils=foil_tokens is not None)
    chosen_layers, chosen_heads = check_selection(model, layers, heads)
    tokens, mask = check_prompts(model, tokens, attention_mask)
    answers = scored_columns(score, check_answers(model, answer_tokens, len(tokens)))
    check_length(model, mask, answers.shape[1])
    return EffectRequest(
        tokens=tokens,
        attention_mask=mask,
        answers=answers,
        foils=_check_foils(foil_tokens, answers, model) if score == "logit_diff" else None,
        mean_z=_check_mean_z(model, mean_z),
        mode=mode,
        score=score,
        layers=chosen_layers,
        heads=chosen_heads,
        max_memory=_memory(max_memory, tokens.device),
        progress=progress,
    )


def _check_mean_z(model: TransformerBridge, mean_z: Any) -> Float[Tensor, "n_layers n_heads d_head"]:
    cfg = model.cfg
    want = (cfg.n_layers, cfg.n_heads, cfg.d_head)
    if not isinstance(mean_z, Tensor):
        raise TypeError(f"mean_z is {type(mean_z).__name__}, expected a tensor of shape {want}.")
    if tuple(mean_z.shape) != want:
        raise ValueError(
            f"mean_z has shape {tuple(mean_z.shape)}, expected {want} from model.cfg; recompute it with "
            "mean_head_outputs(model, tokens, attention_mask)."
        )
    if not bool(mean_z.isfinite().all()):
        raise ValueError("mean_z contains NaN or infinite values, expected finite ones; compute it in float32.")
    parameter = next(model.parameters())
    return mean_z.detach().to(parameter.device, parameter.dtype)


def _check_foils(foils: Any, answers: Int[Tensor, "batch answer_len"], model: TransformerBridge) -> Tensor:
    if not isinstance(foils, Tensor) or foils.numel() != len(answers) or foils.shape[0] != len(answers):
        got = tuple(foils.shape) if isinstance(foils, Tensor) else type(foils).__name__
        raise ValueError(f"foil_tokens has shape {got}, expected ({len(answers)},), one token for each prompt.")
    if foils.is_floating_point() or foils.dtype == torch.bool:
        raise TypeError(f"foil_tokens have dtype {foils.dtype}, expected token ids (torch.long).")
    foils = foils.reshape(-1).to(answers.device).long()
    if int(foils.min()) < 0 or int(foils.max()) >= model.cfg.d_vocab:
        row = int(((foils < 0) | (foils >= model.cfg.d_vocab)).nonzero()[0])
        raise ValueError(
            f"foil_tokens row {row} is {int(foils[row])}, expected a token id from 0 to {model.cfg.d_vocab - 1}; leave "
            "out rows whose counterfactual fell back to 'drop'."
        )
    return foils


def check_mode(mode: str) -> None:
    """Raise ValueError if there is no such mode."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}.")


def check_selection(
    model: TransformerBridge, layers: Iterable[SupportsIndex] | None, heads: Iterable[SupportsIndex] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers and heads to measure, all of them for None; ValueError if one does not exist, or none is left."""
    chosen = check_layers(model, range(model.cfg.n_layers) if layers is None else layers)
    wanted = whole_numbers("heads", range(model.cfg.n_heads) if heads is None else heads)
    for head in wanted:
        if not 0 <= head < model.cfg.n_heads:
            raise ValueError(
                f"head {head} does not exist: the model has {model.cfg.n_heads} heads in a layer, 0 to "
                f"{model.cfg.n_heads - 1}; choose some of them."
            )
    if not chosen or not wanted:
        raise ValueError("no layers or no heads were chosen, expected at least one of each; None means all.")
    return chosen, wanted


def _memory(max_memory: int | str, device: torch.device) -> int:
    """Bytes a pass may use: a quarter of what is free, 2 GiB at most on a CPU."""
    if isinstance(max_memory, int) and not isinstance(max_memory, bool) and max_memory > 0:
        return max_memory
    if max_memory != "auto":
        raise ValueError(f"max_memory is {max_memory!r}, expected 'auto' or a positive number of bytes.")
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        free = 2**33
    return min(free // 4, 2**31)
