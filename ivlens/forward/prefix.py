"""Prompts run once up to their last token, so that the last token can be run many times with different edits."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.memory import memory_budget, pass_on_shortage
from ivlens.forward.hooks import captured_residual
from ivlens.forward.joining import blocks_joined, blocks_left_out, entered_by, forms_seen
from ivlens.forward.kept import KeptLayer, cache_fault
from ivlens.forward.unembedding import full_logits, last_logits_only
from ivlens.models.boot import TransformerBridge
from ivlens.models.opening import first_line
from ivlens.models.selfcheck import off_by

# numbers that the prompts of one prefix may hold at once: 1 GB in float32. On a GPU its free memory decides instead.
_FLOATS_PER_PREFIX = 2**28
_FLOATS_PER_PASS = 2**27  # logits that one pass may make
_FEW = 4  # rows on which it is seen whether blocks can be left out

# for each shape of prompts: None where they can be continued from a cache, otherwise why they cannot
_FOUND: WeakKeyDictionary[TransformerBridge, dict[tuple[object, ...], str | None]] = WeakKeyDictionary()
# for each shape of prompts and answers: whether blocks can be left out, and whether each row can enter at its own
_RESUMED: WeakKeyDictionary[TransformerBridge, dict[tuple[object, ...], tuple[bool, bool]]] = WeakKeyDictionary()


def prompts_that_fit(model: TransformerBridge, n_columns: int, n_answer_tokens: int) -> int:
    """How many prompts one `SharedPrefix` may hold, so that their cache and one block's activations fit in memory.

    Args:
        n_columns: tokens of the longest prompt.
        n_answer_tokens: tokens of all answers of one prompt together, for the prompt that has most.
    """
    cfg, parameter = model.cfg, next(model.parameters())
    # keys and values of all heads: too much for models whose heads share keys, and never too little
    cache = 2 * cfg.n_layers * cfg.n_heads * cfg.d_head * n_columns
    streams = cfg.n_layers * cfg.d_model * n_answer_tokens
    free = _FLOATS_PER_PREFIX
    if parameter.is_cuda:
        free = memory_budget("auto", parameter.device) // parameter.element_size()
    return max(1, free // (cache + block_floats(cfg, n_columns) + streams))


def block_floats(cfg: Any, n_columns: int) -> int:
    """Numbers that one block holds at once for one row: attention scores, and the activations between its parts."""
    # three times the scores: before the mask, after it, and after the softmax
    return 3 * cfg.n_heads * n_columns**2 + (4 * cfg.d_model + 3 * (cfg.d_mlp or 4 * cfg.d_model)) * n_columns


class SharedPrefix:
    """The cache of prompts without their last token, from which any number of rows may continue.

    Each row continues one prompt, with tokens of its own. An intervention at the last prompt token of one layer changes
    nothing before that token and nothing in lower layers. So the cache, which is most of the work, is made once, and
    lower blocks may be left out of a pass. Up to rounding, the logits are those of a whole pass.

    A recurrent layer has a state in the place of keys and values, which every pass changes: each row gets a copy.

    To make sure, two of the prompts (the witness) are continued twice and compared with a pass over everything. Where
    their logits differ, or the cache holds something else, nothing is shared: every pass runs over whole prompts and
    gives the same logits, more slowly.

    Args:
        tokens, attention_mask: left-padded prompts, on the model's device.
        n_given: the largest number of tokens that will follow a prompt.
        unshared: why nothing may be shared, where the caller knows a reason, such as edits before the last token.

    Attributes:
        fault: Why nothing is shared; None where the cache is shared.
        is_known: Whether the outcome was known already, from another prefix of this model and shape.
        n_before: Columns of every pass that stand before the last prompt token; hooks must not edit them.
    """

    def __init__(
        self,
        model: TransformerBridge,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        n_given: int = 1,
        unshared: str | None = None,
    ) -> None:
        self._model, self._tokens, self._mask = model, tokens, attention_mask
        self._form = 0  # the `output_form` of blocks, once `streams` has seen it
        self._cache: Any = None
        self._kept: list[KeptLayer] = []
        self.n_before = 0 if unshared is None else tokens.shape[1] - 1
        self.fault, self.is_known = unshared, True
        # the witness, too, has to fit in the context
        n_given = max(0, min(n_given, model.cfg.n_ctx - tokens.shape[1]))
        at, parameter = tokens.device.type, next(model.parameters())
        key = (tokens.shape[1], n_given, bool(attention_mask.all()), parameter.dtype, torch.is_autocast_enabled(at))
        self._key = key
        if unshared is not None:
            return
        found = _FOUND.setdefault(model, {})
        self.fault, self.is_known = found.get(key), key in found
        if tokens.shape[1] > 1 and self.fault is None:  # prompts of one token have nothing before it to share
            try:
                self.fault = self._filled()
                if self.fault is None and not self.is_known:
                    self.fault = self._witnessed(n_given)
            except Exception as error:  # families refuse a cache with errors of any kind
                pass_on_shortage(error)
                self.fault = f"it cannot go on from a cache ({type(error).__name__}: {first_line(error):.80})"
        found[key] = self.fault
        if self.fault is not None:
            self._cache, self._kept, self.n_before = None, [], tokens.shape[1] - 1

    def _filled(self) -> str | None:
        """Run the prompts without their last token and keep the cache; returns why it cannot be restored, or None."""
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
        self._kept = [KeptLayer.of(layer) for layer in cache.layers]
        return None

    def _witnessed(self, n_given: int) -> str | None:
        """Continue two prompts from the cache; returns how their logits differ from those of a whole pass, or None."""
        # the longest prompt has no padding, the shortest one most of it: faults of masks and positions show in these
        lengths = self._mask.sum(1)
        rows = torch.stack([lengths.argmax(), lengths.argmin()])
        given = self._tokens[rows, -1:].expand(-1, n_given)  # any tokens do: the prompt's last one, repeated
        want = self._whole(rows, given)
        # a second time, with no token after the prompt: if the first pass changed the kept tensors, logits differ now
        for n, wanted in ((n_given, want), (0, want[:, :1])):
            # tolerance by the parameters' dtype: the logits of a model in half precision are float32 (`full_logits`)
            error, within = off_by(self.logits(rows, given[:, :n]), wanted, 2e-4, next(self._model.parameters()).dtype)
            if not error <= within:  # also true for NaN
                return f"from a cache of the prompt its logits are off by {error:.3g}"
        return None

    @property
    def floats_per_row(self) -> int:
        """Numbers that one row of a pass needs: its share of the cache, or without one the activations of a block."""
        if self.fault is None:
            return sum(kept.floats for kept in self._kept)
        return block_floats(self._model.cfg, self._tokens.shape[1])

    def logits(
        self,
        prompts: Int[Tensor, " rows"],
        answers: Int[Tensor, "rows given"],
        stream: Float[Tensor, "rows given+1 d_model"] | None = None,
        start: int | Int[Tensor, " rows"] = 0,
        with_grad: bool = False,
    ) -> Float[Tensor, "rows given+1 d_vocab"]:
        """Logits at the last prompt token of every row, and at each token that follows it.

        Args:
            prompts: the number of the prompt that each row continues.
            answers: the tokens that follow the prompt in each row; may have no columns.
            stream: the residual stream that enters block `start`; the blocks below `start` are left out.
            start: one block for all rows, or the block of each row, in ascending order.
            with_grad: whether gradients flow back to `stream`, and to what hooks add.
        """
        prompts, answers = prompts.to(self._tokens.device), answers.to(self._tokens.device)
        if self.fault is not None:
            return self._whole(prompts, answers, with_grad)
        following = torch.cat([self._tokens[prompts, -1:], answers], dim=1)
        mask = torch.cat([self._mask[prompts], torch.ones_like(answers)], dim=1)
        n_entered = entered_by(self._model.cfg.n_layers, torch.as_tensor(start).expand(len(prompts)).contiguous())
        if isinstance(start, int) or stream is None:
            shorter = blocks_left_out(self._model, int(start), stream, self._form)
        else:
            shorter = blocks_joined(self._model, start, stream, self._form)
        with torch.set_grad_enabled(with_grad), shorter, full_logits(self._model):
            if self._cache is None:
                return self._model(following, attention_mask=mask, use_cache=False)
            # a pass changes the cache, so each one starts from the kept tensors
            for n, layer, kept in zip(n_entered, self._cache.layers, self._kept, strict=True):
                kept.put_back(layer, prompts[:n])
            return self._model(following, attention_mask=mask, past_key_values=self._cache)

    def _whole(
        self, prompts: Int[Tensor, " rows"], answers: Int[Tensor, "rows given"], with_grad: bool = False
    ) -> Float[Tensor, "rows given+1 d_vocab"]:
        """The same logits of a pass over whole prompts and answers, without a cache."""
        tokens = torch.cat([self._tokens[prompts], answers], dim=1)
        mask = torch.cat([self._mask[prompts], torch.ones_like(answers)], dim=1)
        with torch.set_grad_enabled(with_grad), full_logits(self._model):
            return self._model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=answers.shape[1] + 1)

    def streams(
        self, prompts: Int[Tensor, " rows"], answers: Int[Tensor, "rows given"], rows_per_pass: int
    ) -> Float[Tensor, "n_layers rows given+1 d_model"] | None:
        """The residual stream after every block; None if this model gives other logits with blocks left out."""
        if self.fault is not None:
            return None
        parts: list[Tensor] = []
        # these passes make all logits, at every position
        most = _FLOATS_PER_PASS // (self._model.cfg.d_vocab * (answers.shape[1] + 1))
        rows_per_pass = max(1, min(rows_per_pass, most))
        for prompt_rows, answer_rows in zip(prompts.split(rows_per_pass), answers.split(rows_per_pass), strict=True):
            stacked, plain = self._captured(prompt_rows, answer_rows)
            # whether blocks can be left out depends on the model alone, so the first rows are enough to see it
            if not parts and not self.resumes(prompt_rows, answer_rows, stacked, plain):
                return None
            parts.append(stacked)
        return torch.cat(parts, 1)

    def _captured(self, prompts: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream after every block, and the logits, of one pass."""
        layers = range(self._model.cfg.n_layers)
        with forms_seen(self._model) as forms, captured_residual(self._model, layers) as kept:
            plain = self.logits(prompts, answers)
        self._form = forms[-1]
        return torch.stack([kept[layer] for layer in layers]), plain

    def resumes(
        self,
        prompts: Int[Tensor, " rows"],
        answers: Int[Tensor, "rows given"],
        stacked: Float[Tensor, "n_layers rows given+1 d_model"],
        plain: Float[Tensor, "rows given+1 d_vocab"] | None = None,
    ) -> bool:
        """Whether blocks can be left out of passes of this shape; it is tried once, and `joins` with it.

        Args:
            stacked, plain: the residual stream of these rows after every block, and their logits if they are known.
        """
        seen, key = _RESUMED.setdefault(self._model, {}), (self._key, answers.shape[1])
        if key not in seen:
            prompts, answers, stacked = prompts[:_FEW], answers[:_FEW], stacked[:, :_FEW]
            plain = self.logits(prompts, answers) if plain is None else plain[:_FEW]
            # a pass that starts at the middle block
            middle = max(1, len(stacked) // 2)
            resumes = self._gives(plain, prompts, answers, stacked[middle - 1], middle)
            seen[key] = resumes, resumes and self._joined(prompts, answers, stacked, plain)
        return seen[key][0]

    def joins(self, n_given: int) -> bool:
        """Whether the rows of a pass with so many given tokens may enter at different blocks; `resumes` tries it."""
        return _RESUMED.get(self._model, {}).get((self._key, n_given), (False, False))[1]

    def _joined(self, prompts: Tensor, answers: Tensor, stacked: Tensor, plain: Tensor) -> bool:
        """Whether a pass whose rows enter at three different blocks gives the logits of the whole pass."""
        rows, n_layers = [0, len(prompts) - 1, 0], len(stacked)
        starts = torch.tensor([max(1, n_layers // 2), max(1, n_layers - 1), n_layers])
        entered = torch.stack([stacked[start - 1, row] for start, row in zip(starts.tolist(), rows, strict=True)])
        return self._gives(plain[rows], prompts[rows], answers[rows], entered, starts)

    def _gives(self, plain: Tensor, prompts: Tensor, answers: Tensor, stream: Tensor, start: int | Tensor) -> bool:
        try:
            resumed = self.logits(prompts, answers, stream, start)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            pass_on_shortage(error)
            return False  # a family whose blocks hand on more than the stream
        off = (resumed - plain).abs()  # NaN is within no bound
        return bool((off <= 1e-3 * (plain.abs() + plain.abs().max())).all())
