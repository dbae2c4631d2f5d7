"""Scores of prompts with several accepted answers, from passes with a row for each answer."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.forward.borders import Borders
from ivlens.forward.scoring import AnswerPass, first_token_prob, judged_rows, sequence_logprob


class AcceptedAnswers:
    """A prompt is right if any of its answers is written; its first answer gives the probabilities.

    Args:
        n_prompts: The number of prompts.
        source: The prompt of each row, in ascending order, as `PromptBatch.expanded` gives it.
        borders: Which tokens of the model's tokenizer end or continue a word.

    Attributes:
        right: 1 where the text begins with an accepted answer, and where it also ends there (`Correct`), else 0.
        prob: Probability of the first token of each prompt's first answer; NaN where it was not entered yet.
        logprob: Log-probability of all its tokens, in nats.
    """

    right: Float[Tensor, "2 prompts"]
    prob: Float[Tensor, " prompts"]
    logprob: Float[Tensor, " prompts"]

    def __init__(self, n_prompts: int, source: Int[Tensor, " rows"], borders: Borders) -> None:
        self._source, self._borders = source.cpu(), borders
        self._is_first = self._source.diff(prepend=self._source.new_tensor([-1])) > 0
        self.right = torch.zeros((2, n_prompts), dtype=torch.double)
        self.prob, self.logprob = torch.full((2, n_prompts), torch.nan, dtype=torch.double)

    def firsts(self, rows: slice) -> tuple[Bool[Tensor, " rows"], Int[Tensor, " firsts"]]:
        """Which of these rows have the first answer of a prompt, and the prompts of those that have."""
        is_first = self._is_first[rows]
        return is_first, self._source[rows][is_first]

    def enter(self, rows: slice, one: AnswerPass) -> None:
        """Enter a pass over these rows."""
        found = judged_rows(one.logits, one.answers, one.is_full, self._borders)
        for kept, is_right in zip(self.right, found, strict=True):
            kept[self._source[rows][is_right.cpu()]] = 1.0
        is_first, prompts = self.firsts(rows)
        first = first_token_prob(one.logits[:, 0], one.answers[:, 0])
        whole = sequence_logprob(one.logits[:, : one.answers.shape[1]], one.answers)
        for kept, values in ((self.prob, first), (self.logprob, whole)):
            kept[prompts] = values.double().cpu()[is_first]
