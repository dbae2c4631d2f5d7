"""How many prompts, heads and rows of logits the exact engine takes at once, from shapes and a budget alone."""

from dataclasses import dataclass

from ivlens.effects.request import EffectRequest
from ivlens.models.boot import TransformerBridge

_MOST_PROMPTS = 64


@dataclass(frozen=True)
class ChunkSize:
    """`n_prompts` in one pass, copies of `n_heads` heads in one sequence, `n_logit_rows` through the unembedding."""

    n_prompts: int
    n_heads: int
    n_logit_rows: int

    def halved(self) -> "ChunkSize":
        """Half as many prompts and rows of logits; of a single prompt, half as many heads.

        Raises:
            MemoryError: there is nothing left to halve.
        """
        if max(self.n_prompts, self.n_heads) == 1:
            raise MemoryError("one prompt and one head at a time do not fit in memory; use shorter prompts.")
        n_heads = self.n_heads if self.n_prompts > 1 else self.n_heads // 2
        return ChunkSize(max(1, self.n_prompts // 2), n_heads, max(1, self.n_logit_rows // 2))


def chunk_size(model: TransformerBridge, request: EffectRequest) -> ChunkSize:
    """The largest sizes whose estimated activations stay within `request.max_memory`.

    A sequence of copies is no longer than makes its attention scores, which grow with the square of its length, as
    large as its other activations.
    """
    n_layers, n_answer = len(request.layers), request.answers.shape[1]
    per_head = n_layers * n_answer
    at_most = max(1, _linear(model) // (3 * model.cfg.n_heads * per_head))
    n_heads = _even(len(request.heads), at_most)
    usable = request.max_memory * 3 // 4  # logits are made when the rest is gone; what is left is slack
    while n_heads > 1 and prompt_bytes(model, request, n_heads) > usable:
        n_heads //= 2
    n_prompts = max(1, min(_MOST_PROMPTS, usable // prompt_bytes(model, request, n_heads)))
    n_logit_rows = usable // (_logit_bytes(model) * n_answer)
    return ChunkSize(_even(len(request.tokens), n_prompts), n_heads, max(1, n_logit_rows))


def _even(n: int, at_most: int) -> int:
    """The size of equal parts of `n` that are as large as they may be: 4 in parts of at most 3 makes 2 and 2."""
    return -(-n // -(-n // at_most))


def prompt_bytes(model: TransformerBridge, request: EffectRequest, n_heads: int = 0) -> int:
    """Estimate of what one prompt needs in one block, with copies for `n_heads` heads of every layer beside it."""
    cfg, n_answer = model.cfg, request.answers.shape[1]
    n_columns = request.tokens.shape[1] + n_answer - 1
    n_copied = len(request.layers) * n_heads * n_answer
    own = n_columns * (_linear(model) + 3 * cfg.n_heads * n_columns) + 2 * n_answer * cfg.d_vocab
    attended = n_columns + n_copied
    copied = n_copied * (_linear(model) + 3 * cfg.n_heads * attended + attended)
    copied += 4 * cfg.n_heads * cfg.d_head * attended if n_heads else 0
    waiting = len(request.layers) * len(request.heads) * n_answer * cfg.d_model if n_heads else 0
    return 4 * (own + copied + waiting)


def _linear(model: TransformerBridge) -> int:
    """Numbers that one token keeps alive in one block, apart from attention scores."""
    cfg = model.cfg
    return 8 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head + 4 * (getattr(cfg, "d_mlp", None) or 4 * cfg.d_model)


def _logit_bytes(model: TransformerBridge) -> int:
    return 6 * model.cfg.d_vocab  # float32, and a part of it once more
