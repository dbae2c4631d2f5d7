"""Scores and accuracy of answers: functions of logits, and the forward passes that make these logits.

Every function computes in float32 at least. `-100` in answer tokens is padding. Formulas: docs/method.md, 3 Scores and
accuracy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ivlens.common.progress import ticking
from ivlens.forward.borders import Borders
from ivlens.forward.hooks import check_unsteered, model_lock
from ivlens.forward.inputs import check_answers, check_length, check_prompts, forced, row_slices
from ivlens.forward.vocabulary import Read, logits_at
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch

Score = Literal["prob", "logprob", "logit_diff"]
SCORES: tuple[str, ...] = get_args(Score)

_NUMBERS_AT_ONCE = 2**22  # logits of which log-probabilities are made at one time (16 MB)


def first_token_prob(logits: Float[Tensor, "batch d_vocab"], answer: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Probability of the first answer token, 0 to 1."""
    return _log_probs(logits, answer[:, None])[:, 0].exp()


def sequence_logprob(
    logits: Float[Tensor, "batch answer_len d_vocab"], answers: Int[Tensor, "batch answer_len"]
) -> Float[Tensor, " batch"]:
    """Sum of the log-probabilities (nats) of all answer tokens, each given the ones before it."""
    each = _log_probs(logits, answers.clamp(min=0)[..., None])[..., 0]  # padding: as token 0, set to 0 below
    return each.masked_fill(answers == -100, 0.0).sum(-1)


def logit_diff(
    logits: Float[Tensor, "batch d_vocab"], answer: Int[Tensor, " batch"], foil: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Logit of the first answer token minus that of the foil (nats)."""
    # no softmax: its denominator is the same for both tokens
    pair = _float32(logits.gather(-1, torch.stack([answer, foil], -1)))
    return pair[:, 0] - pair[:, 1]


def greedy_match(
    logits: Float[Tensor, "batch answer_len d_vocab"], answers: Int[Tensor, "batch answer_len"]
) -> Bool[Tensor, " batch"]:
    """Whether every answer token is the most likely one given those before it: what greedy decoding would write.

    Rows whose largest logit is not finite count as wrong.
    """
    top = logits.argmax(-1, keepdim=True)  # among logits with a NaN, argmax gives that NaN
    is_right = (top[..., 0] == answers) & logits.gather(-1, top)[..., 0].isfinite()
    return (is_right | (answers == -100)).all(-1)


def answer_rank(logits: Float[Tensor, "batch d_vocab"], answer: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Rank of the first answer token among all tokens: 1 is the most likely; equal logits count as ahead of it."""
    own = logits.gather(-1, answer[:, None])
    return (logits >= own).sum(-1)


def check_score(score: str, *, has_foils: bool = True) -> str:
    """`score` itself, if it is the name of a score and foils are there where it needs them.

    Raises:
        ValueError: an unknown score, or `logit_diff` without foils.
    """
    if score not in SCORES:
        raise ValueError(f"score is {score!r:.60}, expected one of {', '.join(SCORES)}.")
    if score == "logit_diff" and not has_foils:
        raise ValueError(
            "score 'logit_diff' got no foil_tokens, expected the counterfactual task's first answer token for each "
            "prompt; use corruption='counterfactual', or score='prob'."
        )
    return score


def score_answers(
    score: str,
    logits: Float[Tensor, "batch answer_len d_vocab"],
    answers: Int[Tensor, "batch answer_len"],
    foils: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """The score of each row: `prob` (0 to 1), `logprob` (nats, all tokens) or `logit_diff` (nats)."""
    check_score(score, has_foils=foils is not None)
    if score == "logprob":
        return sequence_logprob(logits, answers)
    if foils is None or score == "prob":
        return first_token_prob(logits[:, 0], answers[:, 0])
    return logit_diff(logits[:, 0], answers[:, 0], foils)


def score_streams(
    score: str,
    stream: Float[Tensor, "batch answer_len d_model"],
    linear: nn.Linear,
    answers: Int[Tensor, "batch answer_len"],
    foils: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """`score_answers` of the logits that `linear` makes of each position's stream, without holding all of them."""
    check_score(score, has_foils=foils is not None)
    if score == "logit_diff" and foils is not None:  # no other token is read
        pair = logits_at(stream[:, 0], linear, torch.stack([answers[:, 0], foils], -1))
        return pair[:, 0] - pair[:, 1]
    read = answers if score == "logprob" else answers[:, :1]
    tokens = read.clamp(min=0).reshape(-1, 1)  # padding: as token 0, set to 0 below
    each = Read.of_stream(stream[:, : read.shape[1]].flatten(0, 1), linear, tokens).logprobs.reshape(read.shape)
    return each.masked_fill(read == -100, 0.0).sum(-1) if score == "logprob" else each[:, 0].exp()


def fitting_score(answers: Int[Tensor, "batch answer_len"]) -> Score:
    """The score that suits these answers: `prob`, or `logprob` where many answers share their first token.

    "Many" means: at least twice as many answers as first tokens, for example numbers whose first token is a lone space.
    `prob` would then measure a space or an article, not the answer.
    """
    n_answers, n_firsts = len(answers.unique(dim=0)), len(answers[:, 0].unique())
    return "logprob" if 1 < n_answers >= 2 * n_firsts else "prob"


def scored_columns(score: str, answers: Int[Tensor, "batch answer_len"]) -> Int[Tensor, "batch scored_len"]:
    """The answer tokens that a score reads; passes over the other columns would be wasted."""
    return answers if score == "logprob" else answers[:, :1]


def _log_probs(logits: Float[Tensor, "*rows d_vocab"], ids: Int[Tensor, "*rows ids"]) -> Float[Tensor, "*rows ids"]:
    """Log-probabilities of the given tokens at each position."""
    # a few rows at a time: logits are the largest tensors there are, and a copy of all would double the memory
    rows = max(1, _NUMBERS_AT_ONCE // logits[0].numel())
    parts = zip(logits.split(rows), ids.split(rows), strict=True)
    return torch.cat([_float32(part).log_softmax(-1).gather(-1, chosen) for part, chosen in parts])


def _float32(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 where they have it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def answer_passes(
    model: TransformerBridge, batch: PromptBatch, *, batch_size: int = 64
) -> Iterator[tuple[slice, Float[Tensor, "rows answer_len d_vocab"]]]:
    """Logits that predict each answer token (teacher-forced), a few rows at a time, each with its slice of rows.

    Raises:
        ValueError: a prompt that does not fit the model, or unusable tokens.
        RuntimeError: inside a `steer` context, whose vector would be added to answer tokens here.
    """
    tokens, mask = check_prompts(model, batch.tokens, batch.attention_mask)
    answers = check_answers(model, batch.answer_tokens, len(batch))
    check_length(model, mask, answers.shape[1])
    for rows in ticking(list(row_slices(len(batch), batch_size)), "scoring answers", "pass"):
        with model_lock(model):  # for one pass at a time: between passes other threads may run the model
            check_unsteered(model)
            logits = forced(tokens[rows], mask[rows], answers[rows]).logits(model)
        yield rows, logits


def answer_logits(
    model: TransformerBridge, batch: PromptBatch, *, batch_size: int = 64
) -> Float[Tensor, "batch answer_len d_vocab"]:
    """Logits that predict each answer token, of all prompts in one tensor (see `answer_passes`)."""
    return torch.cat([logits for _, logits in answer_passes(model, batch, batch_size=batch_size)])


class Correct(NamedTuple):
    """For each row whether greedy decoding gets it right, by two definitions.

    Attributes:
        accuracy: The decoded text begins with an accepted answer and does not go on inside the answer's last word: "12"
            is not "1", "small dog" is "small".
        exact: The decoded text is an accepted answer, and then the text or the line ends.
    """

    accuracy: Bool[Tensor, " rows"]
    exact: Bool[Tensor, " rows"]


def judged_rows(
    logits: Float[Tensor, "rows positions d_vocab"],
    answers: Int[Tensor, "rows answer_len"],
    is_full: Bool[Tensor, " rows"],
    borders: Borders,
) -> Correct:
    """Which rows greedy decoding gets right, from the logits at each answer token and at the one after the last.

    Args:
        is_full: where prompt and answer fill the model's context. No token can follow, so the answer counts as ended.
    """
    accuracy = greedy_match(logits[:, : answers.shape[1]], answers)
    exact = torch.zeros_like(accuracy)
    matched = accuracy.nonzero()[:, 0]  # the next token matters in these rows only
    # the position of the last answer token predicts the next one; full rows lack it, and are masked with -1
    behind = (answers[matched] != -100).sum(1).clamp(max=logits.shape[1] - 1)
    following = logits[matched, behind].argmax(-1).masked_fill(is_full[matched], -1).tolist()
    for row, given, token in zip(matched.tolist(), answers[matched].tolist(), following, strict=True):
        answer, after = tuple(each for each in given if each != -100), None if token < 0 else token
        accuracy[row], exact[row] = not borders.goes_on(answer, after), borders.ends(answer, after)
    return Correct(accuracy, exact)


@dataclass(frozen=True, eq=False)
class AnswerPass:
    """One pass over whole answers, which also predicts the token after each of them.

    Attributes:
        rows: The rows of the batch.
        answers: Their answers, padded with -100.
        is_full: Where prompt and answer fill the context, so that nothing is predicted behind the answer.
        logits: At each answer token, and at the token after the last one.
    """

    rows: slice
    answers: Int[Tensor, "rows answer_len"]
    is_full: Bool[Tensor, " rows"]
    logits: Float[Tensor, "rows positions d_vocab"]


def whole_answer_passes(model: TransformerBridge, wide: PromptBatch, *, batch_size: int = 64) -> Iterator[AnswerPass]:
    """Passes over prompts with the first answer of each row, all of it given, a few rows at a time.

    Raises:
        ValueError, RuntimeError: as `answer_passes`.
    """
    tokens, mask = check_prompts(model, wide.tokens, wide.attention_mask)
    answers = check_answers(model, wide.answer_tokens, len(wide))
    check_length(model, mask, answers.shape[1])
    n_answer = (answers != -100).sum(1)
    is_full = mask.sum(1) + n_answer >= model.cfg.n_ctx
    # one column more, so that the answer's last token is read too and predicts the token after it
    given, n_given = torch.nn.functional.pad(answers, (0, 1), value=-100), n_answer - is_full.long()
    # a long prompt and another one's long answer, padded to one width, may be wider than the context though each row
    # fits: then row by row
    size = batch_size if tokens.shape[1] + answers.shape[1] <= model.cfg.n_ctx else min(batch_size, 1)
    for rows in ticking(list(row_slices(len(wide), size)), "asking the model", "pass"):
        targets, followed = answers[rows, : int(n_answer[rows].max())], given[rows, : int(n_given[rows].max()) + 1]
        with model_lock(model):
            check_unsteered(model)
            # checked once more, which cuts the padding that these rows do not need
            logits = forced(*check_prompts(model, tokens[rows], mask[rows]), followed).logits(model)
        yield AnswerPass(rows, targets, is_full[rows], logits)


def greedy_correct(model: TransformerBridge, batch: PromptBatch, *, batch_size: int = 64) -> Correct:
    """Whether greedy decoding gives any of a row's accepted answers, and whether its text ends there.

    No text is generated: the answer is given to the model, each of its tokens has to be the most likely one, and the
    token after it decides whether the word goes on. Where prompt and answer fill the context, the answer counts as
    ended. Without a tokenizer no answer is seen to go on or to end (see `Borders`).

    Raises:
        ValueError, RuntimeError: as `answer_passes`.
    """
    wide, source = batch.expanded()  # a row for every accepted answer, and the row of `batch` that it belongs to
    borders, right = Borders(model.tokenizer), Correct(*torch.zeros((2, len(batch)), dtype=torch.bool))
    for one in whole_answer_passes(model, wide, batch_size=batch_size):
        for kept, found in zip(right, judged_rows(one.logits, one.answers, one.is_full, borders), strict=True):
            kept[source[one.rows][found.cpu()]] = True
    device = next(model.parameters()).device
    return Correct(*(each.to(device) for each in right))


def greedy_accuracy(model: TransformerBridge, batch: PromptBatch, *, batch_size: int = 64) -> Bool[Tensor, " batch"]:
    """Whether greedy decoding begins with one of the row's accepted answers, and not with a longer word.

    Raises:
        ValueError, RuntimeError: as `answer_passes`.
    """
    return greedy_correct(model, batch, batch_size=batch_size).accuracy
