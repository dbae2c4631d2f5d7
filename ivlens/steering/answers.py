"""The accepted answers of many prompts, grouped by length, so that each group runs without padding in one pass."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ivlens.forward.vocabulary import Read
from ivlens.steering.summary import Scores


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a pass: for each the number of its prompt, and the tokens that are given after the prompt."""

    prompts: Int[Tensor, " rows"]
    given: Int[Tensor, "rows given"]


@dataclass(frozen=True, eq=False)
class AnswerRows(Rows):
    """The rows of all answers of one length, and the tokens that would be right in each row.

    Answers of one prompt share a row if only their last tokens differ, since the last token is predicted, not given.

    Attributes:
        targets: All tokens of the answers in each row; -1 where a row has fewer answers than the widest one.
        first: Whether the prompt's first accepted answer, by which `prob` and `logprob` are scored, is in this row; it
            then stands first among the targets.
        has_next: Whether the context has room for one more token after the answer.
    """

    targets: Int[Tensor, "rows answers answer_len"]
    first: Bool[Tensor, " rows"]
    has_next: Bool[Tensor, "rows answers"]

    @cached_property
    def whole(self) -> Rows:
        """One row for every answer with room behind it: the whole answer is given, and the next token is predicted."""
        rows, answers = self.has_next.nonzero(as_tuple=True)
        return Rows(self.prompts[rows], self.targets[rows, answers])

    @cached_property
    def number(self) -> Int[Tensor, "rows answers"]:
        """For each answer the number of its row in `whole`; -1 where it has none."""
        rows = self.has_next.flatten().cumsum(0).reshape(self.has_next.shape) - 1
        return rows.masked_fill(~self.has_next, -1)


def answer_rows(alternatives: Sequence[Sequence[tuple[int, ...]]], places: Int[Tensor, " prompts"]) -> list[AnswerRows]:
    """The answers of all prompts in groups, one group for each length in tokens.

    Args:
        alternatives: For each prompt its accepted answers, the first one first.
        places: The number of tokens that fit behind each prompt.
    """
    # keys: a prompt and an answer without its last token; so all answers of one token share one row of their prompt
    by_length: dict[int, dict[tuple[int, tuple[int, ...]], list[tuple[int, ...]]]] = defaultdict(dict)
    for prompt, answers in enumerate(alternatives):
        for answer in answers:
            by_length[len(answer)].setdefault((prompt, answer[:-1]), []).append(answer)  # keeps the order of answers
    groups = []
    for length, rows in sorted(by_length.items()):
        most = max(map(len, rows.values()))
        targets = torch.full((len(rows), most, length), -1)
        for row, answers in enumerate(rows.values()):
            targets[row, : len(answers)] = torch.tensor(answers)
        first = [alternatives[prompt][0] in answers for (prompt, _), answers in rows.items()]
        given = torch.tensor([prefix for _, prefix in rows], dtype=torch.long).reshape(len(rows), length - 1)
        prompts = torch.tensor([prompt for prompt, _ in rows])
        has_next = (targets[..., 0] >= 0) & (length < places[prompts])[:, None]
        groups.append(AnswerRows(prompts, given, targets, torch.tensor(first), has_next))
    return groups


def wanted_tokens(group: AnswerRows, rows: Int[Tensor, " rows"]) -> Int[Tensor, "positions 1"]:
    """The tokens whose probabilities `enter` writes: those of each row's first answer, position by position."""
    return group.targets[rows, 0].reshape(-1, 1)


def enter(
    scores: Scores,
    group: AnswerRows,
    chosen: Int[Tensor, " rows"],
    rows: Int[Tensor, " rows"],
    read: Read,
) -> Int[Tensor, " rows"]:
    """Write the probabilities of these rows into `scores`, and return the answer that greedy decoding gives in each.

    Args:
        chosen: For each row the number of its intervention, a row of `scores`.
        rows: The rows of `group`.
        read: What `wanted_tokens` of these rows asked for, at each position of each row.

    Returns:
        For each row the number of the answer among its targets; -1 where greedy decoding writes none of them.
    """
    targets, prompts, first = group.targets[rows], group.prompts[rows], group.first[rows]
    # among logits with a NaN, that is the largest; -2 is no token and no padding, so such a row has no answer
    chosen_tokens = read.top.masked_fill(~read.peak.isfinite(), -2).reshape(len(rows), -1).cpu()
    is_written = (chosen_tokens[:, None] == targets).all(2)
    log_probs = read.logprobs.float().reshape(len(rows), -1).cpu()
    scores.prob[chosen[first], prompts[first]] = log_probs[first, 0].exp()
    scores.logprob[chosen[first], prompts[first]] = log_probs[first].sum(1)
    return torch.where(is_written.any(1), is_written.int().argmax(1), -1)
