"""The cached engine: the prompt is run once, and its last token once for every head, from the patched layer upward.

It is slower than the exact engine, but every pass is the model's own: nothing is rebuilt, neither masks nor positions.
So it works for every model that can continue a prompt from its cache of keys and values.
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

_MOST_PROMPTS = 64  # whose caches are held at once, however much memory there is


def measure(model: TransformerBridge, request: EffectRequest) -> Measured:
    """CIE of each asked head on each prompt, and the scores of the unpatched prompts.

    Progress is counted in layers times prompts.

    Raises:
        Unsuitable: a model with hooks of its own, or one that gives other logits with a cache than without.
    """
    found = Measured.nothing_yet(model, request, "cached")
    # numbers in the cache of one prompt (keys and values); with 4 bytes each, prompts get half of the budget
    cache = 2 * model.cfg.n_layers * model.cfg.n_heads * model.cfg.d_head * request.tokens.shape[1]
    n_prompts = request.max_memory // (2 * (4 * cache + prompt_bytes(model, request)))
    n_prompts = max(1, min(_MOST_PROMPTS, n_prompts))
    # a row of a pass holds its share of the cache, a block's activations and logits; 8: 4 bytes, and half of the budget
    row = cache + prompt_bytes(model, request) // 4 + 3 * request.answers.shape[1] * model.cfg.d_vocab
    n_rows = max(1, request.max_memory // (8 * row))
    found.record["chunk"] = {"n_prompts": n_prompts, "n_rows": n_rows}
    with model_lock(model):
        check_unhooked(model)
        for rows in row_slices(len(request.tokens), n_prompts):
            _Portion(model, request, rows, n_rows).enter_into(found)
    return found


class _Portion:
    """The prompts whose caches are in memory at the same time."""

    def __init__(self, model: TransformerBridge, request: EffectRequest, rows: slice, n_rows: int) -> None:
        self._model, self._request, self._rows, self._n_rows = model, request, rows, n_rows
        # teacher forcing: all answer tokens but the last, which is predicted and never read; padding as token 0
        self._given = request.answers[rows, :-1].clamp(min=0)
        prompts = request.tokens[rows], request.attention_mask[rows]
        self._prefix = SharedPrefix(model, *prompts, n_given=self._given.shape[1])
        if self._prefix.fault is not None:
            raise Unsuitable(self._prefix.fault, known=self._prefix.is_known)
        with refusals_explained():
            # the stream after every block, from which patched passes start; None where they must start at the bottom
            self._streams = self._prefix.streams(torch.arange(len(self._given)), self._given, n_rows)

    def enter_into(self, found: Measured) -> None:
        """Check the engine on these prompts, then put their effects and base scores into `found`."""
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
        """Scores of all prompts with each asked head of one layer patched, prompt by prompt."""
        heads = torch.tensor(self._request.heads).repeat(len(self._given))
        prompts = torch.arange(len(self._given)).repeat_interleave(len(self._request.heads))
        parts = zip(prompts.split(self._n_rows), heads.split(self._n_rows), strict=True)
        return torch.cat([self._scores(rows, layer, some) for rows, some in parts])

    def _scores(
        self, prompts: Int[Tensor, " rows"], layer: int | None = None, heads: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, " rows"]:
        """Scores of these prompts, each with its own head of `layer` patched."""
        return self._request.scores(self._logits(prompts, layer, heads), prompts + self._rows.start)

    def _patched(
        self, layer: int, head: int, prompts: Int[Tensor, " prompts"]
    ) -> Float[Tensor, "prompts answer_len d_vocab"]:
        """Logits of some prompts with the same head patched, for the check against the reference."""
        return self._logits(prompts, layer, torch.full((len(prompts),), head))

    def _logits(
        self, prompts: Int[Tensor, " rows"], layer: int | None = None, heads: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows answer_len d_vocab"]:
        """Logits of these prompts, each with its own head of `layer` patched; without a layer, unpatched."""
        if layer is None or heads is None:
            return self._prefix.logits(prompts, self._given[prompts])
        start, stream = 0, None
        # a patch in `layer` changes nothing below it: enter there with the stream that leaves the block before
        if self._streams is not None and layer > 0:
            start, stream = layer, self._streams[layer - 1, prompts]
        with patched_heads(self._model, self._edit(heads), [layer], mixers=self._request.is_wide):
            return self._prefix.logits(prompts, self._given[prompts], stream, start)

    def _edit(self, heads: Int[Tensor, " rows"]) -> Callable[[Tensor, int], Tensor]:
        """An edit that patches in each row its own head, at the last prompt token."""

        def edit(z: Tensor, layer: int) -> Tensor:
            z = z.clone()
            # position 0: a pass that continues a cache begins with the last prompt token
            where = torch.arange(len(z), device=z.device), 0, heads.to(z.device)
            z[where] = self._request.patched(z[where], self._request.mean_z[layer, heads].to(z.device))
            return z

        return edit
