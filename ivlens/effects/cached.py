"""The cached engine: the prompt is run once, and its last token once for every head, from the patched layer upward.

Slower than the exact engine, but every pass is the model's own: it works wherever a cache of keys and values does.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.effects.checks import Check, check_unhooked, refusals_explained
from ivlens.effects.chunks import prompt_bytes
from ivlens.effects.request import EffectRequest, Measured, Unsuitable
from ivlens.forward.hooks import model_lock, patched_heads
from ivlens.forward.inputs import row_slices
from ivlens.forward.prefix import SharedPrefix
from ivlens.forward.sharing import give_way
from ivlens.models.boot import TransformerBridge

_MOST_PROMPTS = 64


def measure(model: TransformerBridge, request: EffectRequest) -> Measured:
    """CIE of each asked head on each prompt, and the scores of the unpatched prompts. Progress: layers of a prompt.

    Raises:
        Unsuitable: a model with hooks of its own; or with a cache, the model gives something else than without.
    """
    found = Measured.nothing_yet(model, request, "cached")
    cache = 2 * model.cfg.n_layers * model.cfg.n_heads * model.cfg.d_head * request.tokens.shape[1]
    n_prompts = request.max_memory // (2 * (4 * cache + prompt_bytes(model, request)))
    n_prompts = max(1, min(_MOST_PROMPTS, n_prompts))
    # a row holds a share of the cache, a block's activations and its logits
    row = cache + prompt_bytes(model, request) // 4 + 3 * request.answers.shape[1] * model.cfg.d_vocab
    n_rows = max(1, request.max_memory // (8 * row))
    found.record["chunk"] = {"n_prompts": n_prompts, "n_rows": n_rows}
    with model_lock(model):
        check_unhooked(model)
        for rows in row_slices(len(request.tokens), n_prompts):
            _Portion(model, request, rows, n_rows).enter_into(found)
    return found


class _Portion:
    """Prompts whose caches are held at once."""

    def __init__(self, model: TransformerBridge, request: EffectRequest, rows: slice, n_rows: int) -> None:
        self._model, self._request, self._rows, self._n_rows = model, request, rows, n_rows
        self._given = request.answers[rows, :-1].clamp(min=0)
        prompts = request.tokens[rows], request.attention_mask[rows]
        self._prefix = SharedPrefix(model, *prompts, n_given=self._given.shape[1])
        if self._prefix.fault is not None:
            raise Unsuitable(self._prefix.fault, known=self._prefix.is_known)
        with refusals_explained():
            self._streams = self._prefix.streams(torch.arange(len(self._given)), self._given, n_rows)

    def enter_into(self, found: Measured) -> None:
        check = Check(self._model, self._request, "cached", len(self._request.heads))
        if check.is_due():
            with refusals_explained():
                check.patched(self._rows, self._patched)
            check.passed()
        n_prompts, n_layers = len(self._given), len(self._request.layers)
        everyone = torch.arange(n_prompts)
        base = [
            self._request.scores(self._logits(part), part + self._rows.start) for part in everyone.split(self._n_rows)
        ]
        found.base[self._rows] = torch.cat(base)
        for place, layer in enumerate(self._request.layers):
            scores = self._layer(layer).unflatten(0, (n_prompts, 1, -1))
            found.enter(self._rows, [layer], self._request.heads, scores - found.base[self._rows, None, None])
            done = self._rows.start * n_layers + n_prompts * (place + 1)
            self._request.progress(done, len(self._request.tokens) * n_layers)
            give_way(self._model)

    def _layer(self, layer: int) -> Float[Tensor, " prompts_and_heads"]:
        """Scores of all prompts with each of the heads patched."""
        heads = torch.tensor(self._request.heads).repeat(len(self._given))
        prompts = torch.arange(len(self._given)).repeat_interleave(len(self._request.heads))
        parts = zip(prompts.split(self._n_rows), heads.split(self._n_rows), strict=True)
        return torch.cat([self._scores(rows, layer, some) for rows, some in parts])

    def _scores(
        self, prompts: Int[Tensor, " rows"], layer: int | None = None, heads: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, " rows"]:
        return self._request.scores(self._logits(prompts, layer, heads), prompts + self._rows.start)

    def _patched(
        self, layer: int, head: int, prompts: Int[Tensor, " prompts"]
    ) -> Float[Tensor, "prompts answer_len d_vocab"]:
        return self._logits(prompts, layer, torch.full((len(prompts),), head))

    def _logits(
        self, prompts: Int[Tensor, " rows"], layer: int | None = None, heads: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows answer_len d_vocab"]:
        """Logits of these prompts, each with its head of `layer` patched."""
        if layer is None or heads is None:
            return self._prefix.logits(prompts, self._given[prompts])
        start, stream = 0, None
        if self._streams is not None and layer > 0:
            start, stream = layer, self._streams[layer - 1, prompts]
        with patched_heads(self._model, self._edit(heads), [layer]):
            return self._prefix.logits(prompts, self._given[prompts], stream, start)

    def _edit(self, heads: Int[Tensor, " rows"]) -> Callable[[Tensor, int], Tensor]:
        def edit(z: Tensor, layer: int) -> Tensor:
            z = z.clone()
            where = torch.arange(len(z), device=z.device), 0, heads.to(z.device)
            z[where] = self._request.patched(z[where], self._request.mean_z[layer, heads].to(z.device))
            return z

        return edit
