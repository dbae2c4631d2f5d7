"""Prompts run once without their last token, so that the last one can be run many times under other interventions."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ivlens.common.memory import memory_budget, pass_on_shortage
from ivlens.forward.hooks import captured_residual
from ivlens.forward.unembedding import full_logits, last_logits_only
from ivlens.models.boot import TransformerBridge
from ivlens.models.opening import first_line
from ivlens.models.selfcheck import off_by

# what the prompts of one prefix may hold at once: 1 GB of float32, or what one pass may use on a GPU
_FLOATS_PER_PREFIX = 2**28

# layers of a cache that hold keys, values and their number alone, so that restoring these restores everything
_RESTORED = (DynamicLayer, DynamicSlidingWindowLayer)

# what the witness found for each shape: nothing, or why prompts of that shape cannot be continued
_FOUND: WeakKeyDictionary[TransformerBridge, dict[tuple[object, ...], str | None]] = WeakKeyDictionary()


def prompts_that_fit(model: TransformerBridge, n_columns: int, n_answer_tokens: int) -> int:
    """How many prompts may share a `SharedPrefix`, so that their cache and one block's activations fit in memory.

    Args:
        n_columns: tokens of the longest prompt.
        n_answer_tokens: the most tokens that all answers of one prompt have together.
    """
    cfg, parameter = model.cfg, next(model.parameters())
    cache = 2 * cfg.n_layers * cfg.n_heads * cfg.d_head * n_columns
    streams = cfg.n_layers * cfg.d_model * n_answer_tokens
    free = _FLOATS_PER_PREFIX
    if parameter.is_cuda:
        free = memory_budget("auto", parameter.device) // parameter.element_size()
    return max(1, free // (cache + _block_floats(cfg, n_columns) + streams))


def _block_floats(cfg: Any, n_columns: int) -> int:
    """Numbers that one block holds at once for one row: scores of attention, and what its parts hand on."""
    return 3 * cfg.n_heads * n_columns**2 + (4 * cfg.d_model + 3 * (cfg.d_mlp or 4 * cfg.d_model)) * n_columns


def cache_fault(cache: Any) -> str | None:
    """Why a cache is not keys and values alone; None where it is."""
    if cache is None:
        return "it keeps no cache of keys and values"
    unknown = [type(cache)] * (type(cache) is not DynamicCache)
    unknown += [type(layer) for layer in getattr(cache, "layers", ()) if type(layer) not in _RESTORED]
    return f"its cache holds more than keys and values ({unknown[0].__name__})" if unknown else None


class SharedPrefix:
    """The KV cache of `tokens[:, :-1]`, from which any number of rows may continue, each with tokens of its own.

    What stands before the last prompt token is the same under every intervention at that token, and is most of the
    work; so are the blocks below the place of the intervention, which may be left out. Both are exact up to rounding.

    A witness, two of the prompts, is continued twice and compared with a pass over everything. Where it is not the
    same, or the cache holds more than keys and values (a recurrent state changes with every pass), nothing is shared:
    every pass then runs over whole prompts, and gives the same logits, more slowly.

    Args:
        tokens, attention_mask: left-padded prompts, on the model's device.
        n_given: the most tokens that will follow a prompt.

    Attributes:
        fault: Why nothing is shared; None where the prefix is.
        is_known: Whether that was found before, for another prefix of this model and shape.
        n_before: Columns before the last prompt token in every pass, in which hooks must not act.
    """

    def __init__(
        self,
        model: TransformerBridge,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        n_given: int = 1,
    ) -> None:
        self._model, self._tokens, self._mask = model, tokens, attention_mask
        self._form = 0
        self._cache: Any = None
        self._kept: list[tuple[Tensor, Tensor, Any]] = []
        self.n_before = 0
        n_given = max(0, min(n_given, model.cfg.n_ctx - tokens.shape[1]))
        at, parameter = tokens.device.type, next(model.parameters())
        key = (tokens.shape[1], n_given, bool(attention_mask.all()), parameter.dtype, torch.is_autocast_enabled(at))
        found = _FOUND.setdefault(model, {})
        self.is_known = key in found
        self.fault: str | None = found.get(key)
        if tokens.shape[1] > 1 and self.fault is None:
            try:
                self.fault = self._filled()
                if self.fault is None and not self.is_known:
                    self.fault = self._witnessed(n_given)
            except Exception as error:  # whatever a model says to a cache that it does not take
                pass_on_shortage(error)
                self.fault = f"it cannot go on from a cache ({type(error).__name__}: {first_line(error):.80})"
        found[key] = self.fault
        if self.fault is not None:
            self._cache, self._kept, self.n_before = None, [], tokens.shape[1] - 1

    def _filled(self) -> str | None:
        """Fill the cache; the reason if it cannot be restored."""
        with torch.no_grad(), last_logits_only(self._model):
            _, cache = self._model(
                self._tokens[:, :-1],
                attention_mask=self._mask[:, :-1],
                use_cache=True,
                return_type="logits_and_cache",
            )
        if (fault := cache_fault(cache)) is not None:
            return fault
        self._cache = cache
        self._kept = [(at.keys, at.values, getattr(at, "cumulative_length", None)) for at in cache.layers]
        return None

    def _witnessed(self, n_given: int) -> str | None:
        """Continue the longest and the shortest prompt, twice; the reason if that is not as without a cache."""
        lengths = self._mask.sum(1)
        rows = torch.stack([lengths.argmax(), lengths.argmin()])
        given = self._tokens[rows, -1:].expand(-1, n_given)
        want = self._whole(rows, given, n_given + 1)
        # once more with nothing after the prompt: a state that changed on the way shows now
        for n, wanted in ((n_given, want), (0, want[:, :1])):
            # as exact as the model's blocks: its logits are float32 in half precision too
            error, within = off_by(self.logits(rows, given[:, :n]), wanted, 2e-4, next(self._model.parameters()).dtype)
            if not error <= within:
                return f"from a cache of the prompt its logits are off by {error:.3g}"
        return None

    @property
    def floats_per_row(self) -> int:
        """Size of one row's share of the cache, or of one block's activations where nothing is shared."""
        if self.fault is None:
            return sum(keys[0].numel() + values[0].numel() for keys, values, _ in self._kept)
        return _block_floats(self._model.cfg, self._tokens.shape[1])

    def logits(
        self,
        prompts: Int[Tensor, " rows"],
        answers: Int[Tensor, "rows given"],
        stream: Float[Tensor, "rows given+1 d_model"] | None = None,
        start: int = 0,
        *,
        last_only: bool = False,
    ) -> Float[Tensor, "rows kept d_vocab"]:
        """Logits at the last prompt token of each row's prompt and at the tokens that follow it (none may follow).

        Args:
            prompts: which prompt each row continues.
            answers: the tokens that follow.
            stream: the residual stream that enters block `start`, whose predecessors are left out.
            last_only: logits at the last token alone.
        """
        prompts, answers = prompts.to(self._tokens.device), answers.to(self._tokens.device)
        if self.fault is not None:
            return self._whole(prompts, answers, 1 if last_only else answers.shape[1] + 1)
        following = torch.cat([self._tokens[prompts, -1:], answers], dim=1)
        mask = torch.cat([self._mask[prompts], torch.ones_like(answers)], dim=1)
        fewer = last_logits_only(self._model) if last_only else nullcontext()
        with torch.no_grad(), blocks_left_out(self._model, start, stream, self._form), fewer, full_logits(self._model):
            if self._cache is None:
                return self._model(following, attention_mask=mask, use_cache=False)
            # a pass lengthens the cache, so every pass gets fresh rows; blocks left out need the length only
            for number, (layer, kept) in enumerate(zip(self._cache.layers, self._kept, strict=True)):
                keys, values, length = kept
                layer.keys, layer.values = (keys, values) if number < start else (keys[prompts], values[prompts])
                if length is not None:
                    layer.cumulative_length = length
            return self._model(following, attention_mask=mask, past_key_values=self._cache)

    def _whole(
        self, prompts: Int[Tensor, " rows"], answers: Int[Tensor, "rows given"], n_kept: int
    ) -> Float[Tensor, "rows kept d_vocab"]:
        """The last logits of a pass over everything, without a cache."""
        tokens = torch.cat([self._tokens[prompts], answers], dim=1)
        mask = torch.cat([self._mask[prompts], torch.ones_like(answers)], dim=1)
        with torch.no_grad(), full_logits(self._model):
            return self._model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=n_kept)

    def streams(
        self, prompts: Int[Tensor, " rows"], answers: Int[Tensor, "rows given"], rows_per_pass: int
    ) -> Float[Tensor, "n_layers rows given+1 d_model"] | None:
        """The residual stream after every block, or None if this model does not run right with blocks left out."""
        if self.fault is not None:
            return None
        parts: list[Tensor] = []
        for prompt_rows, answer_rows in zip(prompts.split(rows_per_pass), answers.split(rows_per_pass), strict=True):
            stacked, plain = self._captured(prompt_rows, answer_rows)
            if not parts and not self._resumes(prompt_rows, answer_rows, stacked, plain):
                return None
            parts.append(stacked)
        return torch.cat(parts, 1)

    def _captured(self, prompts: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after every block, and the logits."""
        layers = range(self._model.cfg.n_layers)
        forms: list[int] = []
        watch = self._model.blocks[0].register_forward_hook(lambda block, given, out: forms.append(output_form(out)))
        try:
            with captured_residual(self._model, layers) as kept:
                plain = self.logits(prompts, answers)
        finally:
            watch.remove()
        self._form = forms[-1]
        return torch.stack([kept[layer] for layer in layers]), plain

    def _resumes(self, prompts: Tensor, answers: Tensor, stacked: Tensor, plain: Tensor) -> bool:
        """Whether a pass from the middle gives what the whole pass gave."""
        middle = max(1, len(stacked) // 2)
        try:
            resumed = self.logits(prompts, answers, stacked[middle - 1], middle)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False  # a family whose blocks hand on more than the stream
        off = (resumed - plain).abs()  # of NaN nothing is within bounds, and allclose would raise
        return bool((off <= 1e-3 * (plain.abs() + plain.abs().max())).all())


def output_form(out: Tensor | tuple[Any, ...]) -> int:
    """0 for a tensor, otherwise the length of the tuple whose first entry is the stream."""
    return len(out) if isinstance(out, tuple) else 0


@contextmanager
def blocks_left_out(model: TransformerBridge, start: int, stream: Tensor | None, form: int) -> Iterator[None]:
    """Blocks below `start` put out `stream` without running, in the `output_form` of that model's blocks."""
    blocks = [model.blocks[layer] for layer in range(start)]
    out = (stream, *[None] * (form - 1)) if form else stream
    for block in blocks:
        block.__dict__["forward"] = lambda *args, **kwargs: out
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]
