"""The accepted answers of many prompts, in groups of one length, so that each group fits in one pass."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.steering.summary import Scores


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a prompt (its number) and the tokens given after it."""

    prompts: Int[Tensor, " rows"]
    given: Int[Tensor, "rows given"]


@dataclass(frozen=True, eq=False)
class AnswerRows(Rows):
    """The answers of one length: rows of a prompt and the tokens given after it, and what would be right after each.

    `targets` is padded with -1; where `first` holds, the task's first answer stands first among them; `has_next` says
    which answers leave a place for one more token.
    """

    targets: Int[Tensor, "rows answers answer_len"]
    first: Bool[Tensor, " rows"]
    has_next: Bool[Tensor, "rows answers"]

    @cached_property
    def whole(self) -> Rows:
        """A row for every answer with a place behind it, given to its last token, to see what is written there."""
        rows, answers = self.has_next.nonzero(as_tuple=True)
        return Rows(self.prompts[rows], self.targets[rows, answers])

    @cached_property
    def number(self) -> Int[Tensor, "rows answers"]:
        """The row of `whole` that each answer has, -1 for none."""
        rows = self.has_next.flatten().cumsum(0).reshape(self.has_next.shape) - 1
        return rows.masked_fill(~self.has_next, -1)


def answer_rows(alternatives: Sequence[Sequence[tuple[int, ...]]], places: Int[Tensor, " prompts"]) -> list[AnswerRows]:
    """One group for every length that an answer has.

    Args:
        places: How many tokens fit behind each prompt.
    """
    # answers that differ in their last token only share a row; most are one token long and share it all
    by_length: dict[int, dict[tuple[int, tuple[int, ...]], list[tuple[int, ...]]]] = defaultdict(dict)
    for prompt, answers in enumerate(alternatives):
        for answer in answers:
            by_length[len(answer)].setdefault((prompt, answer[:-1]), []).append(answer)
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


def enter(
    scores: Scores,
    group: AnswerRows,
    chosen: Int[Tensor, " rows"],
    rows: Int[Tensor, " rows"],
    logits: Float[Tensor, "rows answer_len d_vocab"],
) -> Int[Tensor, " rows"]:
    """Put the probabilities of these rows into `scores`, in place; which answer greedy decoding writes, -1 for none."""
    targets, prompts, first = group.targets[rows], group.prompts[rows], group.first[rows]
    logits = logits.float()
    top = logits.argmax(-1, keepdim=True)
    wanted, peak = logits.gather(2, targets[:, :1].transpose(1, 2).to(logits.device)), logits.gather(2, top)
    # of logits with a NaN the argmax is that NaN, which is no answer
    chosen_tokens = top.masked_fill(~peak.isfinite(), -2)[..., 0].cpu()
    is_written = (chosen_tokens[:, None] == targets).all(2)
    # in place: logits are by far the largest tensor here, and nobody else has them
    total = logits.sub_(peak).exp_().sum(2, keepdim=True).log_().add_(peak)
    log_probs = (wanted - total)[..., 0].cpu()
    scores.prob[chosen[first], prompts[first]] = log_probs[first, 0].exp()
    scores.logprob[chosen[first], prompts[first]] = log_probs[first].sum(1)
    return torch.where(is_written.any(1), is_written.int().argmax(1), -1)
