"""How many prompts, heads and rows of logits the exact engine takes at once.

The sizes follow from shapes and a budget, not from the memory that happens to be free: the same budget gives the same
portions, and so the same bits.
"""

from dataclasses import dataclass

from ivlens.effects.request import EffectRequest
from ivlens.models.boot import TransformerBridge

_MOST_PROMPTS = 64  # in one pass, however much memory there is: between passes other threads get their turn


@dataclass(frozen=True)
class ChunkSize:
    """Sizes of the portions in which the exact engine works.

    Attributes:
        n_prompts: Prompts in one pass.
        n_heads: Heads whose copies stand in one sequence.
        n_logit_rows: Copies that are unembedded at once.
    """

    n_prompts: int
    n_heads: int
    n_logit_rows: int

    def halved(self) -> "ChunkSize":
        """Half as many prompts and rows of logits; where there is one prompt already, half as many heads.

        Raises:
            MemoryError: one prompt and one head are left.
        """
        if max(self.n_prompts, self.n_heads) == 1:
            raise MemoryError("one prompt and one head at a time do not fit in memory; use shorter prompts.")
        n_heads = self.n_heads if self.n_prompts > 1 else self.n_heads // 2
        return ChunkSize(max(1, self.n_prompts // 2), n_heads, max(1, self.n_logit_rows // 2))


def chunk_size(model: TransformerBridge, request: EffectRequest, *, is_split: bool) -> ChunkSize:
    """The largest sizes whose estimated activations stay within `request.max_memory`.

    Where a mask keeps copies apart, attention scores grow with the square of a sequence's length. So a sequence of
    copies is limited to the length at which its scores are as large as its other activations.

    Args:
        is_split: Whether copies attend to their own tokens alone, without a mask over all others.
    """
    n_layers, n_answer = len(request.layers), request.answers.shape[1]
    per_head = n_layers * n_answer  # positions that one head has in the sequence after the last layer
    at_most = max(1, _linear(model) // (3 * model.cfg.n_heads * per_head))
    n_heads = len(request.heads) if is_split else _even(len(request.heads), at_most)
    # a quarter is slack, as sizes are estimates; the rest serves twice: logits are made when activations are freed
    usable = request.max_memory * 3 // 4
    while n_heads > 1 and prompt_bytes(model, request, n_heads, is_split=is_split) > usable:
        n_heads //= 2
    n_prompts = max(1, min(_MOST_PROMPTS, usable // prompt_bytes(model, request, n_heads, is_split=is_split)))
    n_logit_rows = usable // (_logit_bytes(model) * n_answer)
    return ChunkSize(_even(len(request.tokens), n_prompts), n_heads, max(1, n_logit_rows))


def _even(n: int, at_most: int) -> int:
    """The size of the fewest equal parts of `n`, each at most `at_most`: 4 in parts of at most 3 gives 2 and 2."""
    return -(-n // -(-n // at_most))


def prompt_bytes(model: TransformerBridge, request: EffectRequest, n_heads: int = 0, *, is_split: bool = False) -> int:
    """Estimate of the bytes that one prompt needs in one block, with copies for `n_heads` heads of every layer."""
    cfg, n_answer = model.cfg, request.answers.shape[1]
    n_columns = request.tokens.shape[1] + n_answer - 1
    n_copied = len(request.layers) * n_heads * n_answer
    # the prompt: activations, three times its attention scores (before and after mask and softmax), two sets of logits
    own = n_columns * (_linear(model) + 3 * cfg.n_heads * n_columns) + 2 * n_answer * cfg.d_vocab
    # the copies: activations, scores, one row of the mask; then the shared keys and values, joined with the copies' own
    attended = n_columns + (n_answer if is_split else n_copied)
    copied = n_copied * (_linear(model) + 3 * cfg.n_heads * attended + attended)
    copied += 4 * cfg.n_heads * cfg.d_head * attended if n_heads else 0
    # streams of the other heads' copies, which wait between two blocks
    waiting = len(request.layers) * len(request.heads) * n_answer * cfg.d_model if n_heads else 0
    return 4 * (own + copied + waiting)  # as float32, so that half precision has room to spare


def _linear(model: TransformerBridge) -> int:
    """Numbers that one token keeps alive in one block, apart from attention scores."""
    cfg = model.cfg
    return 8 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head + 4 * (getattr(cfg, "d_mlp", None) or 4 * cfg.d_model)


def _logit_bytes(model: TransformerBridge) -> int:
    """Bytes that the logits of one position need."""
    return 6 * model.cfg.d_vocab  # float32, and a part of it once more
