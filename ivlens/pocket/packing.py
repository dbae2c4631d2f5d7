"""Packs several texts into each row of a batch, and makes the mask that says which tokens attend to which."""

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

EOS_WEIGHT = 0.3  # of the end-of-text token in the loss: easy to learn, and in every text


@dataclass(frozen=True)
class EncodedText:
    """One tokenised text. `weights[i]` is the weight in the loss of predicting token `i` from the tokens before it."""

    tokens: list[int]
    roles: list[int]
    weights: list[float]


@dataclass(frozen=True)
class PackedBatch:
    """One batch: rows of several texts each. `mask` is True where a token may attend to another."""

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
    """Tokenise the spans as one text; every token gets the role and weight of the span in which it starts."""
    text = "".join(span.text for span in spans)
    encoding = tokenizer(text, return_offsets_mapping=True)
    ends, total = [], 0
    for span in spans:
        total += len(span.text)
        ends.append(total)
    roles, weights, at = [OTHER], [0.0], 0  # the BOS token, which no span contains
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
    """A batch of `rows` rows of `length` tokens, filled with drawn texts.

    Args:
        corpus: where texts are drawn.
        tokenizer: the pocket model's tokenizer.
        rng: decides every draw.
        rows: number of rows.
        length: tokens in a row.
        routed: share of the texts in which instruction and input meet only at the cue.
        progress: share of the training that is done, from 0 to 1.
    """
    tokens = torch.full((rows, length), token_id(tokenizer, "pad_token"))
    positions, text_ids, roles = (torch.zeros(rows, length, dtype=torch.long) for _ in range(3))
    weights = torch.zeros(rows, length)
    is_routed = torch.zeros(rows, length, dtype=torch.bool)
    used, misses, text_id = [0] * rows, 0, 0
    while misses < 3:  # three texts that fit nowhere: the batch is as good as full
        text = encode_spans(tokenizer, corpus.draw(rng, progress))
        n, route = len(text.tokens), rng.random() < routed
        row = next((r for r in range(rows) if used[r] + n <= length), None)
        if row is None:
            misses += 1
            continue
        text_id += 1
        at = slice(used[row], used[row] + n)
        tokens[row, at] = torch.tensor(text.tokens)
        # every text begins at position 0, as prompts do
        positions[row, at] = torch.arange(n)
        roles[row, at] = torch.tensor(text.roles)
        weights[row, at] = torch.tensor(text.weights)
        # texts count from 1: 0 stays for padding, which attends to padding alone, so that no softmax is over nothing
        text_ids[row, at], is_routed[row, at] = text_id, route
        used[row] += n
    return PackedBatch(tokens, positions, attention_rule(text_ids, roles, is_routed), weights)


def attention_rule(
    text_ids: Int[Tensor, "row pos"], roles: Int[Tensor, "row pos"], routed: Bool[Tensor, "row pos"]
) -> Bool[Tensor, "row 1 pos pos"]:
    """The attention mask: causal within each text, and with fewer connections inside routed texts.

    In a routed text neither query nor context sees the other, and the answer does not see the context. So instruction
    and input meet only at the cue, and answer tokens can read the task only from there.

    Args:
        text_ids: which text a token belongs to; 0 for padding.
        roles: role of each token (`CONTEXT`, `QUERY` ...).
        routed: whether the token's text is routed.
    """
    pos = text_ids.shape[1]
    causal = torch.ones(pos, pos, dtype=torch.bool).tril()
    same = text_ids[:, :, None] == text_ids[:, None, :]
    query, context, answer = (roles == role for role in (QUERY, CONTEXT, ANSWER))
    apart = (query[:, :, None] & context[:, None, :]) | (context[:, :, None] & query[:, None, :])
    apart |= answer[:, :, None] & context[:, None, :]
    return (causal & same & ~(apart & routed[:, :, None]))[:, None]
