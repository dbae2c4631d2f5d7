"""Pack texts into rows of fixed length and say who may attend to whom."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.pocket.corpus import ANSWER, CONTEXT, OTHER, QUERY, Corpus, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS_WEIGHT = 0.3


@dataclass(frozen=True)
class EncodedText:
    """One tokenised text. `weights[i]` is the weight of predicting token i from the ones before it."""

    tokens: list[int]
    roles: list[int]
    weights: list[float]


@dataclass(frozen=True)
class PackedBatch:
    """Rows of several texts each. `mask` is True where attention is allowed."""

    tokens: Int[Tensor, "row pos"]
    positions: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row 1 pos pos"]
    loss_weights: Float[Tensor, "row pos"]


def token_id(tokenizer: "PreTrainedTokenizerFast", name: str) -> int:
    """The id of a special token such as `pad_token`."""
    found = tokenizer.convert_tokens_to_ids(getattr(tokenizer, name))
    assert isinstance(found, int)
    return found


def encode_spans(tokenizer: "PreTrainedTokenizerFast", spans: Sequence[Span]) -> EncodedText:
    """Tokenise a text whole, then give every token the role and weight of the span in which it starts."""
    text = "".join(span.text for span in spans)
    encoding = tokenizer(text, return_offsets_mapping=True)
    ends, total = [], 0
    for span in spans:
        total += len(span.text)
        ends.append(total)
    roles, weights, at = [OTHER], [0.0], 0
    for start, _ in encoding["offset_mapping"][1:]:
        while start >= ends[at]:
            at += 1
        roles.append(spans[at].role)
        weights.append(spans[at].weight)
    tokens = list(encoding["input_ids"])
    if spans[-1].ends:
        tokens.append(token_id(tokenizer, "eos_token"))
        roles.append(spans[-1].role)
        weights.append(EOS_WEIGHT)
    return EncodedText(tokens, roles, weights)


def draw_batch(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerFast",
    rng: random.Random,
    *,
    rows: int,
    length: int,
    routed: float,
    progress: float,
) -> PackedBatch:
    """Fill `rows` rows of `length` tokens with texts; a share `routed` of the texts is routed through the cue."""
    tokens = torch.full((rows, length), token_id(tokenizer, "pad_token"))
    positions, text_ids, roles = (torch.zeros(rows, length, dtype=torch.long) for _ in range(3))
    weights = torch.zeros(rows, length)
    is_routed = torch.zeros(rows, length, dtype=torch.bool)
    used, misses, text_id = [0] * rows, 0, 0
    while misses < 3:
        text = encode_spans(tokenizer, corpus.draw(rng, progress))
        n, route = len(text.tokens), rng.random() < routed
        row = next((r for r in range(rows) if used[r] + n <= length), None)
        if row is None:
            misses += 1
            continue
        text_id += 1
        at = slice(used[row], used[row] + n)
        tokens[row, at] = torch.tensor(text.tokens)
        positions[row, at] = torch.arange(n)
        roles[row, at] = torch.tensor(text.roles)
        weights[row, at] = torch.tensor(text.weights)
        text_ids[row, at], is_routed[row, at] = text_id, route
        used[row] += n
    return PackedBatch(tokens, positions, attention_rule(text_ids, roles, is_routed), weights)


def attention_rule(
    text_ids: Int[Tensor, "row pos"], roles: Int[Tensor, "row pos"], routed: Bool[Tensor, "row pos"]
) -> Bool[Tensor, "row 1 pos pos"]:
    """Causal within each text; in routed texts query and context are blind to each other, the answer to the context.

    The cue is then the only place where instruction and input meet; later answer tokens read the task from there.
    """
    pos = text_ids.shape[1]
    causal = torch.ones(pos, pos, dtype=torch.bool).tril()
    same = text_ids[:, :, None] == text_ids[:, None, :]
    query, context, answer = (roles == role for role in (QUERY, CONTEXT, ANSWER))
    apart = (query[:, :, None] & context[:, None, :]) | (context[:, :, None] & query[:, None, :])
    apart |= answer[:, :, None] & context[:, None, :]
    return (causal & same & ~(apart & routed[:, :, None]))[:, None]
