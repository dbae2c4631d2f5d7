"""The accepted answers of many prompts, as rows of passes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ivlens.forward.borders import Borders
from ivlens.forward.vocabulary import Read
from ivlens.steering.summary import Scores

Alternatives = Sequence[Sequence[tuple[int, ...]]]  # for each prompt its accepted answers, the first one first
_NO_TOKEN = -2  # where logits are not finite: neither a token nor padding


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a pass: for each the number of its prompt, and the tokens that are given after the prompt.

    Attributes:
        whole: A whole answer of this prompt which begins with the given tokens: its number in `AnswerTable.whole`.
    """

    prompts: Int[Tensor, " rows"]
    given: Int[Tensor, "rows given"]
    whole: Int[Tensor, " rows"]


@dataclass(frozen=True, eq=False)
class AnswerRows(Rows):
    """The rows of all answers of one length, and the tokens that would be right in each row.

    Answers of one prompt share a row if only their last tokens differ, since the last token is predicted, not given.

    Attributes:
        targets: All tokens of the answers in each row; -1 where a row has fewer answers than the widest one.
        first: Whether the prompt's first accepted answer, by which `prob` and `logprob` are scored, is in this row; it
            then stands first among the targets.
        wholes: The number of each answer in `AnswerTable.whole`; -1 where there is none.
    """

    targets: Int[Tensor, "rows answers answer_len"]
    first: Bool[Tensor, " rows"]
    wholes: Int[Tensor, "rows answers"]


@dataclass(frozen=True, eq=False)
class WholeAnswers(Rows):
    """A row for each answer: all of it is given, and the token after it is predicted too.

    Where the context has no room for that token, the answer's last one is not given, and nothing follows it.

    Attributes:
        answers: The tokens of each answer, padded with -1. `given` is padded too, with tokens that nothing looks at.
        has_next: Whether the context has room for one more token after the answer.
    """

    answers: Int[Tensor, "rows answer_len"]
    has_next: Bool[Tensor, " rows"]

    @property
    def n_read(self) -> Int[Tensor, " rows"]:
        """The number of positions that are read in each row, from the last prompt token on."""
        return (self.answers >= 0).sum(1) + self.has_next


@dataclass(frozen=True, eq=False)
class AnswerTable:
    """All rows that the answers of some prompts can need.

    Attributes:
        openings: The first tokens alone.
        by_length: The answers without their last tokens, one group for each length, so that no row is padded.
        whole: The whole answers, numbered through all groups. They are one group, padded, if the context has room for
            the longest answer behind every prompt; otherwise a group has one number of given tokens.
    """

    openings: AnswerRows
    by_length: list[AnswerRows]
    whole: list[WholeAnswers]

    @classmethod
    def of(cls, alternatives: Alternatives, places: Int[Tensor, " prompts"], room: int) -> "AnswerTable":
        """The rows of these answers.

        Args:
            places: The number of tokens that fit behind each prompt; 0: nothing is asked behind its answers.
            room: The number of tokens that fit behind all of them, where they are padded to one length.
        """
        whole, numbers = _whole(alternatives, places.tolist(), room)
        (openings,) = _by_length(alternatives, numbers, cut=1)
        return cls(openings, _by_length(alternatives, numbers), whole)

    @property
    def most_given(self) -> int:
        """The largest number of tokens that are given in a row."""
        return max(group.given.shape[1] for group in self.whole)

    def of_pairs(self, begun: Bool[Tensor, "n prompts"]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """All whole answers of the prompts that are begun under each intervention: its number, and the answer's."""
        prompts = torch.cat([group.prompts for group in self.whole])
        chosen, numbers = begun[:, prompts].nonzero(as_tuple=True)
        return chosen, numbers


_Row = tuple[int, tuple[int, ...]]  # a prompt and one of its answers


def _whole(alternatives: Alternatives, places: Sequence[int], room: int) -> tuple[list[WholeAnswers], dict[_Row, int]]:
    """The whole answers in their groups, and the number of each."""
    rows = {(prompt, answer): len(answer) < places[prompt] for prompt, own in enumerate(alternatives) for answer in own}
    n_given = {row: len(row[1]) - (not has_next) for row, has_next in rows.items()}
    is_one = max(n_given.values()) <= room
    groups: dict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[0 if is_one else n_given[row]].append(row)
    found: list[WholeAnswers] = []
    numbers: dict[_Row, int] = {}
    for _, own in sorted(groups.items()):
        answers = _padded([answer for _, answer in own], -1)
        given = _padded([answer[: n_given[prompt, answer]] for prompt, answer in own], 0)
        prompts, has_next = torch.tensor([prompt for prompt, _ in own]), torch.tensor([rows[row] for row in own])
        whole = torch.arange(len(numbers), len(numbers) + len(own))
        numbers |= dict(zip(own, whole.tolist(), strict=True))
        found.append(WholeAnswers(prompts, given, whole, answers, has_next))
    return found, numbers


def _padded(answers: Sequence[tuple[int, ...]], fill: int) -> Int[Tensor, "rows answer_len"]:
    padded = torch.full((len(answers), max(map(len, answers))), fill)
    for row, answer in enumerate(answers):
        padded[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
    return padded


def _by_length(alternatives: Alternatives, numbers: dict[_Row, int], cut: int | None = None) -> list[AnswerRows]:
    """The first `cut` tokens of all answers (None: all of them), in groups of one length."""
    # keys: a prompt and an answer without its last token; so all answers of one token share one row of their prompt
    found: dict[int, dict[_Row, dict[tuple[int, ...], int]]] = defaultdict(dict)
    for prompt, answers in enumerate(alternatives):
        for answer in answers:
            shown = answer[:cut]
            row = found[len(shown)].setdefault((prompt, shown[:-1]), {})
            row.setdefault(shown, numbers[prompt, answer])  # keeps the order of answers
    groups = []
    for length, rows in sorted(found.items()):
        size = len(rows), max(map(len, rows.values()))
        targets, whole = torch.full((*size, length), -1), torch.full(size, -1)
        for row, answers in enumerate(rows.values()):
            targets[row, : len(answers)] = torch.tensor(list(answers))
            whole[row, : len(answers)] = torch.tensor(list(answers.values()))
        first = torch.tensor([alternatives[prompt][0][:cut] in answers for (prompt, _), answers in rows.items()])
        given = torch.tensor([prefix for _, prefix in rows], dtype=torch.long).reshape(len(rows), length - 1)
        prompts = torch.tensor([prompt for prompt, _ in rows])
        groups.append(AnswerRows(prompts, given, whole[:, 0], targets, first, whole))
    return groups


def alike(lengths: Int[Tensor, " rows"], fewest: int = 64) -> list[Int[Tensor, " some"]]:
    """The rows in parts of one length each; parts of fewer rows are joined with longer rows."""
    parts: list[Tensor] = []
    waiting = torch.zeros(0, dtype=torch.long)
    for length in lengths.unique().tolist():
        waiting = torch.cat([waiting, (lengths == length).nonzero()[:, 0]])
        if len(waiting) >= fewest:
            parts, waiting = [*parts, waiting], waiting[:0]
    return [part.sort().values for part in [*parts, waiting] if len(part)]


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
    is_written = (_likeliest(read).reshape(len(rows), -1)[:, None] == targets).all(2)
    log_probs = read.logprobs.float().reshape(len(rows), -1).cpu()
    scores.prob[chosen[first], prompts[first]] = log_probs[first, 0].exp()
    scores.logprob[chosen[first], prompts[first]] = log_probs[first].sum(1)
    return torch.where(is_written.any(1), is_written.int().argmax(1), -1)


def enter_whole(
    scores: Scores,
    group: WholeAnswers,
    chosen: Int[Tensor, " rows"],
    rows: Int[Tensor, " rows"],
    read: Read,
    borders: Borders,
) -> None:
    """Write into `scores` which of these whole answers are right, and which of them end the text or the line.

    Args:
        chosen, rows: As of `enter`.
        read: The likeliest tokens at the positions of `WholeAnswers.n_read`.
    """
    answers, n_read, has_next = group.answers[rows], group.n_read[rows], group.has_next[rows]
    tops = torch.full((len(rows), answers.shape[1] + 1), -1)
    tops[torch.arange(tops.shape[1]) < n_read[:, None]] = _likeliest(read)
    is_written = ((tops[:, :-1] == answers) | (answers < 0)).all(1)
    following = tops.gather(1, (n_read - 1)[:, None])[:, 0]
    # a pass that overflows behind the answer has no next token, and its answer counts as wrong
    for row in (is_written & ~(has_next & (following == _NO_TOKEN))).nonzero()[:, 0].tolist():
        answer = tuple(token for token in answers[row].tolist() if token >= 0)
        after = int(following[row]) if has_next[row] else None
        place = chosen[row], group.prompts[rows[row]]
        if not borders.goes_on(answer, after):
            scores.accuracy[place] = 1.0
            if borders.tokenizer is not None and borders.ends(answer, after):
                scores.exact[place] = 1.0


def _likeliest(read: Read) -> Int[Tensor, " positions"]:
    """The likeliest token at each position; no token where a logit is NaN, which would be the largest one."""
    return read.top.masked_fill(~read.peak.isfinite(), _NO_TOKEN).cpu()
