"""`PromptBatch`: prompts as tokens, with the tokens of their answers."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from ivlens.prompts.tokens import padded
from ivlens.tasks.task import TaskExample


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Tokenised prompts, left-padded, with the tokens of their answers.

    Attributes:
        tokens: Left-padded, so the last prompt token is in the last column of every row.
        attention_mask: 1 for tokens, 0 for padding.
        answer_tokens: Tokens of the first listed answer, padded on the right with -100.
        foil_tokens: First answer token of the counterfactual task, -100 where there is none; None elsewhere.
        alternatives: Tokens of every accepted answer of each row, *the* answer first.
        texts: The prompts.
        examples: The example of each row.
        corruptions: What was done to each row, which may be another corruption than was asked for. `clean`: nothing.
        instructions: The instruction each prompt carries, None where it carries none.
        counterfactuals: Name of the task that a counterfactual row is told instead, None elsewhere; may be left empty
            in a batch made by hand.
        kept_answers: Share of demonstration answers that `shuffle` left where they were, None for other rows; may be
            left empty in a batch made by hand.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    answer_tokens: Int[Tensor, "batch answer_len"]
    foil_tokens: Int[Tensor, " batch"] | None
    alternatives: tuple[tuple[tuple[int, ...], ...], ...]
    texts: tuple[str, ...]
    examples: tuple[TaskExample, ...]
    corruptions: tuple[str, ...]
    instructions: tuple[str | None, ...]
    counterfactuals: tuple[str | None, ...] = ()
    kept_answers: tuple[float | None, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def to(self, device: str | torch.device) -> "PromptBatch":
        """The same batch on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device))

    def rows(self, index: slice | Iterable[int]) -> "PromptBatch":
        """Some of the rows, in the order asked for; columns stay as they are."""
        chosen = list(range(len(self))[index] if isinstance(index, slice) else index)
        at = torch.tensor(chosen, dtype=torch.long, device=self.tokens.device)
        names = ("alternatives", "texts", "examples", "corruptions", "instructions", "counterfactuals", "kept_answers")
        listed = {name: tuple(each[row] for row in chosen) for name in names if (each := getattr(self, name))}
        return replace(self._with_tensors(lambda tensor: tensor[at]), **listed)

    def rows_of_one_kind(self, kind: str | None = None) -> list[int]:
        """Numbers of the rows with this corruption; None: with the one that most rows have."""
        counts = Counter(self.corruptions)
        wanted = kind or max(counts, key=lambda each: (counts[each], each))
        return [row for row, each in enumerate(self.corruptions) if each == wanted]

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "PromptBatch":
        names = ("tokens", "attention_mask", "answer_tokens", "foil_tokens")
        tensors = {name: change(tensor) for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **tensors)

    def expanded(self) -> tuple["PromptBatch", Int[Tensor, " rows"]]:
        """One row for every accepted answer, and the row of this batch that each was made from."""
        source = [row for row, answers in enumerate(self.alternatives) for _ in answers]
        answers = [answer for row in self.alternatives for answer in row]
        wide = replace(
            self.rows(source),
            answer_tokens=padded(answers, -100, left=False).to(self.tokens.device),
            alternatives=tuple((answer,) for answer in answers),
        )
        return wide, torch.tensor(source, device=self.tokens.device)
