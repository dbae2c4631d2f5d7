"""`head_scores`: how much of an induction head, and of a previous-token head, each head is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.analysis.attention.chosen import label
from ivlens.common.arguments import checked
from ivlens.common.checks import check_count, check_counts
from ivlens.common.intervals import LEVEL, named_of, t_reach
from ivlens.common.progress import ticking
from ivlens.forward.hooks import captured_patterns, check_unsteered, model_lock
from ivlens.forward.inputs import Inputs, check_prompts, row_slices
from ivlens.models.attention import attention_layers
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.prompts.tokens import Encoder
from ivlens.vectors.heads import Heads

if TYPE_CHECKING:
    import pandas as pd

LENGTH = 50  # tokens, where the context has room for two copies
MOST_SEQUENCES = 10_000
SCORES = ("induction", "previous")


@checked
@dataclass(frozen=True)
class ScoreOptions:
    """On which sequences heads are scored.

    Attributes:
        length: Number of random tokens, which are written twice. None: 50, or fewer where the context or the vocabulary
            has no room for them.
        n_sequences: Number of sequences.
        seed: Draws the tokens.
        batch_size: Sequences in each pass.
    """

    length: int | None = None
    n_sequences: int = 16
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_counts(self, length=2, n_sequences=1, seed=0, batch_size=1)
        check_count("n_sequences", self.n_sequences, 1, MOST_SEQUENCES)


@checked
@dataclass(frozen=True, eq=False)
class HeadScores:
    """Induction and previous-token score of every head, on each sequence.

    Attributes:
        induction: Mean attention, from the second copy of random tokens, to the token after the same one in the first.
        previous: Mean attention to the token before. Both are NaN in layers without attention heads.
        model: Identity of the model.
        settings: What else made these numbers, in plain JSON values.
    """

    induction: Float[Tensor, "n_sequences n_layers n_heads"]
    previous: Float[Tensor, "n_sequences n_layers n_heads"]
    model: ModelIdentity
    settings: Mapping[str, Any]

    def of(self, head: tuple[int, int]) -> tuple[float, float]:
        """Induction and previous-token score of one head, means over sequences."""
        layer, number = head
        return float(self.induction[:, layer, number].mean()), float(self.previous[:, layer, number].mean())

    def induction_heads(self, threshold: float | int) -> Heads:
        """The heads whose induction score is at least `threshold`, largest first."""
        mean = self.induction.mean(0)
        order = mean.nan_to_num(-torch.inf).flatten().argsort(descending=True, stable=True).tolist()
        found = [divmod(index, mean.shape[1]) for index in order]
        return tuple(head for head in found if float(mean[head]) >= threshold)

    def frame(self, heads: Sequence[tuple[int, int]] | None = None) -> "pd.DataFrame":
        """One row for each head: `label`, `layer`, `head`, both scores with 95 % intervals over sequences, `n`.

        Args:
            heads: The heads in the table; None: all, in their order.
        """
        import pandas as pd

        n, n_layers, n_heads = self.induction.shape
        every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
        every = [head for head in every if not self.induction[:, *head].isnan().any()]  # layers without heads
        means, reaches = {}, {}
        for name in SCORES:
            values = getattr(self, name).double()
            means[name] = values.mean(0)
            spread = values.std(0) if n > 1 else torch.full_like(means[name], torch.nan)
            reaches[name] = spread * (t_reach(n) / sqrt(n) if n > 1 else torch.nan)
        rows = []
        for layer, head in every if heads is None else heads:
            row: dict[str, Any] = {"label": label((layer, head)), "layer": layer, "head": head}
            for name in SCORES:
                mean, reach = float(means[name][layer, head]), float(reaches[name][layer, head])
                row |= {name: mean, f"{name}_lo": mean - reach, f"{name}_hi": mean + reach}
            rows.append(row | {"interval": named_of(n, "t", LEVEL), "n": n})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        best = self.induction_heads(-1.0)[0]
        induction, _ = self.of(best)
        return f"HeadScores({self.model.name!r}, {len(self.induction)} sequences, most {label(best)} {induction:.2f})"


@checked
def head_scores(model: TransformerBridge, options: ScoreOptions | None = None) -> HeadScores:
    """Measure, on random tokens that are written twice, the induction and the previous-token score of every head.

        >>> ivlens.head_scores(model).frame().sort_values("induction").tail()

    A sequence is BOS, if the tokenizer has one, and twice the same `length` different random tokens, none of them
    special. The scores are means over positions, then over sequences:

    - `induction`: attention from each token of the second copy to the token *after* the same token in the first copy;
    - `previous`: attention to the token before. Positions whose previous token is the first one, to which many heads
      attend whatever it is, are left out.

    Args:
        model: From `load_model`. Without a tokenizer all tokens count as ordinary ones.
        options: Which sequences.

    Raises:
        ValueError: two copies do not fit the model's context, or there are too few tokens.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 15 Where heads look; arXiv 2209.11895 (prefix matching), here with two copies.
    """
    check_unsteered(check_model(model))
    options = options or ScoreOptions()
    start, usable = _vocabulary(model)
    length = _length(model, options.length, len(start), len(usable))
    drawn = torch.Generator().manual_seed(options.seed)
    copies = [usable[torch.randperm(len(usable), generator=drawn)[:length]] for _ in range(options.n_sequences)]
    tokens = torch.stack([torch.cat([torch.tensor(start, dtype=torch.long), copy, copy]) for copy in copies])
    tokens, mask = check_prompts(model, tokens, torch.ones_like(tokens))
    found, layers = [], list(attention_layers(model))
    for rows in ticking(list(row_slices(len(tokens), options.batch_size)), "induction scores", "pass"):
        with model_lock(model), captured_patterns(model, select=_diagonals(len(start), length)) as kept:
            Inputs(tokens[rows], mask[rows], last=tokens.shape[1] - 1, n_answer=1).logits(model)
            check_seen(model, kept)
        found.append(torch.stack([kept[layer].cpu() for layer in layers], 2))
    seen = torch.cat(found, 1)
    every = seen.new_full((*seen.shape[:2], model.cfg.n_layers, seen.shape[3]), torch.nan)
    every[:, :, layers] = seen
    induction, previous = every
    settings = asdict(options) | {"length": length, "n_start": len(start)}
    return HeadScores(induction, previous, model_identity(model), settings)


def check_seen(model: TransformerBridge, kept: Mapping[int, Tensor], layers: Sequence[int] | None = None) -> None:
    """Refuse a pass in which a layer's attention gave no weights.

    Raises:
        ValueError: it gave none, as fused kernels do.
    """
    for layer in attention_layers(model) if layers is None else layers:
        if layer not in kept:
            raise ValueError(
                f"the model's attention in layer {layer} gives no weights, expected eager attention; call "
                "model.original_model.set_attn_implementation('eager'), or load it with load_model."
            )


def _vocabulary(model: TransformerBridge) -> tuple[list[int], Int[Tensor, " usable"]]:
    """The tokens that begin every text, and the ordinary ones among all tokens."""
    if model.tokenizer is None:
        return [], torch.arange(model.cfg.d_vocab)
    special = {*model.tokenizer.all_special_ids, *model.tokenizer.get_added_vocab().values()}
    n_tokens = min(model.cfg.d_vocab, len(model.tokenizer))
    return Encoder(model.tokenizer).start, torch.tensor([one for one in range(n_tokens) if one not in special])


def _length(model: TransformerBridge, asked: int | None, n_start: int, n_usable: int) -> int:
    """The number of random tokens in a copy."""
    most = min((model.cfg.n_ctx - n_start) // 2, n_usable)
    length = min(LENGTH, most) if asked is None else asked
    if not 2 <= length <= most:
        raise ValueError(
            f"length is {length}, expected 2 to {most}: the model has a context of {model.cfg.n_ctx} tokens, which "
            f"must hold two copies, and {n_usable} ordinary tokens."
        )
    return length


def _diagonals(n_start: int, length: int) -> Any:
    """What is kept of each pattern: mean weights on both diagonals, `[2, batch, n_heads]`."""
    second = n_start + length + torch.arange(length)
    # from the second token after BOS, or the third token of a text without one
    later = torch.arange(max(n_start + 1, 2), n_start + 2 * length)

    def select(pattern: Float[Tensor, "batch n_heads pos keys"]) -> Float[Tensor, "2 batch n_heads"]:
        pairs = (second, second - length + 1), (later, later - 1)
        return torch.stack([pattern[:, :, at, to].float().mean(-1) for at, to in pairs])

    return select
