"""Ways to measure the effects of all heads, from the reference codes' to the engine, on one request."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ivlens.effects.engines import METHODS
from ivlens.effects.request import EffectRequest
from ivlens.forward.hooks import patched_heads

Place = tuple[int, int]


def plain(model: Any, request: EffectRequest, last: bool = False) -> Tensor:
    """One forward pass over all prompts."""
    with torch.inference_mode():
        return _forward(model, request.tokens, last, request.attention_mask)


def per_head(model: Any, request: EffectRequest, places: Sequence[Place], last: bool = False) -> Tensor:
    """One hooked forward pass for each head and each prompt, as the reference codes do; `[batch, places]`."""
    scores = []
    with torch.inference_mode():
        for row in range(len(request.tokens)):
            for layer, head in places:
                with patched_heads(model, _edit(request, [head]), [layer]):
                    logits = _forward(model, _prompt(request, row), last)
                scores.append(_score(request, logits, torch.tensor([row])))
    return torch.cat(scores).reshape(len(request.tokens), -1)


def per_layer(model: Any, request: EffectRequest, layers: Sequence[int], last: bool = False) -> Tensor:
    """One hooked forward pass for all heads of a layer, as rows of a batch, and each prompt; `[batch, places]`."""
    scores = []
    with torch.inference_mode():
        for row in range(len(request.tokens)):
            for layer in layers:
                rows = torch.full((len(request.heads),), row)
                with patched_heads(model, _edit(request, request.heads), [layer]):
                    logits = _forward(model, _prompt(request, row).expand(len(rows), -1), last)
                scores.append(_score(request, logits, rows))
    return torch.cat(scores).reshape(len(request.tokens), -1)


def engine(model: Any, request: EffectRequest, method: str = "exact") -> Tensor:
    """What users get, without falling back to another engine."""
    return METHODS[method](model, request).cie


def spread(model: Any, n: int) -> list[Place]:
    """`n` heads, from the first layer to the last."""
    layers = torch.linspace(0, model.cfg.n_layers - 1, n).round().long().tolist()
    return [(layer, (5 * number) % model.cfg.n_heads) for number, layer in enumerate(layers)]


def all_places(model: Any) -> Iterator[Place]:
    return ((layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads))


def _prompt(request: EffectRequest, row: int) -> Tensor:
    return request.tokens[row : row + 1, request.attention_mask[row] == 1]


def _forward(model: Any, tokens: Tensor, last: bool, mask: Tensor | None = None) -> Tensor:
    return model(tokens, attention_mask=mask, use_cache=False, **({"logits_to_keep": 1} if last else {}))


def _edit(request: EffectRequest, heads: Sequence[int]) -> Any:
    def edit(z: Tensor, layer: int) -> Tensor:
        z = z.clone()
        rows = torch.arange(len(z))
        z[rows, -1, torch.tensor(heads)] = request.mean_z[layer, list(heads)]
        return z

    return edit


def _score(request: EffectRequest, logits: Tensor, rows: Tensor) -> Tensor:
    return request.scores(logits[:, -1:], rows)
