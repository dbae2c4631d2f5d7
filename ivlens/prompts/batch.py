"""`PromptBatch`: several prompts as tokens, with the tokens of their answers."""

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
        tokens: The prompts' tokens, left-padded: the last prompt token of every row is in the last column.
        attention_mask: 1 for tokens, 0 for padding.
        answer_tokens: The tokens of each row's first accepted answer, padded on the right with -100.
        foil_tokens: The first answer token of the other task in a counterfactual row, -100 in rows without one; None in
            batches of other corruptions.
        alternatives: The tokens of all accepted answers of each row, the first one first.
        texts: The prompts' texts.
        examples: The example of each row.
        corruptions: How each row was corrupted, which may differ from the corruption that was asked for; `clean`: not
            at all.
        instructions: The instruction in each prompt, None where it has none.
        counterfactuals: The name of the other task of each counterfactual row, None for other rows. May be empty in a
            batch made by hand.
        kept_answers: The share of demonstration answers that `shuffle` left in their places, None for other rows. May
            be empty in a batch made by hand.
        n_too_long: How many examples were left out because their prompts did not fit the model's context.
        shots: Input and answer of each demonstration in each prompt. May be empty in a batch made by hand.
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
    n_too_long: int = 0
    shots: tuple[tuple[tuple[str, str], ...], ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def to(self, device: str | torch.device) -> "PromptBatch":
        """The same batch on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device))

    def rows(self, index: slice | Iterable[int]) -> "PromptBatch":
        """A batch of some of the rows, in the given order; its width stays the same."""
        chosen = list(range(len(self))[index] if isinstance(index, slice) else index)
        at = torch.tensor(chosen, dtype=torch.long, device=self.tokens.device)
        names = ("alternatives", "texts", "examples", "corruptions", "instructions", "counterfactuals", "kept_answers",
                 "shots")  # fmt: skip
        # optional lists that are empty stay empty
        listed = {name: tuple(each[row] for row in chosen) for name in names if (each := getattr(self, name))}
        return replace(self._with_tensors(lambda tensor: tensor[at]), **listed)

    def narrowed(self) -> "PromptBatch":
        """The same rows without columns that are all padding, which rows that were left out may have needed."""
        width = int(self.attention_mask.sum(1).max())
        answer_len = int((self.answer_tokens != -100).sum(1).max())
        return replace(
            self,
            tokens=self.tokens[:, -width:],
            attention_mask=self.attention_mask[:, -width:],
            answer_tokens=self.answer_tokens[:, :answer_len],
        )

    def rows_of_one_kind(self, kind: str | None = None) -> list[int]:
        """The numbers of the rows with the corruption `kind`; None: with the most frequent one."""
        counts = Counter(self.corruptions)
        # between equally frequent kinds the name decides, so that the choice never depends on the order of rows
        wanted = kind or max(counts, key=lambda each: (counts[each], each))
        return [row for row, each in enumerate(self.corruptions) if each == wanted]

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "PromptBatch":
        """The same batch with `change` applied to every tensor in it."""
        names = ("tokens", "attention_mask", "answer_tokens", "foil_tokens")
        tensors = {name: change(tensor) for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **tensors)

    def expanded(self) -> tuple["PromptBatch", Int[Tensor, " rows"]]:
        """A batch with one row for every accepted answer, and for each new row the number of its row in this batch."""
        source = [row for row, answers in enumerate(self.alternatives) for _ in answers]
        answers = [answer for row in self.alternatives for answer in row]
        wide = replace(
            self.rows(source),
            answer_tokens=padded(answers, -100, left=False).to(self.tokens.device),
            alternatives=tuple((answer,) for answer in answers),
        )
        return wide, torch.tensor(source, device=self.tokens.device)
