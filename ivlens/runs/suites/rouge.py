"""Scores of answers as texts: Rouge-L for generation, exact match for classification; in any script.

The package `rouge-score` is not used: its tokenizer drops every letter that is not ASCII, so that Chinese scores 0,
and with a tokenizer of one's own only the longest common subsequence is left of it, which is eight lines here, while
nltk and absl would come with it.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

from ivlens.common.checks import as_items
from ivlens.tasks.records import wrong
from ivlens.tasks.task import Task

Metric = Literal["suite_accuracy", "rouge_l"]
# A task with at most so many different answers, none longer than this, each given twice on average, has labels.
MAX_LABELS, MAX_LABEL_LENGTH = 20, 40

# Ideographs, kana and hangul syllables: scripts without spaces, or (hangul) with words too long to match as one.
_EACH_ALONE = (
    (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
_VARIATION = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_ZERO_WIDTH_SPACE = 0x200B


class _Spacing(dict[int, str]):
    """What `str.translate` makes of a character, found out at its first use: itself, between blanks, a blank, nothing.

    Joiners, soft hyphens and variation selectors vanish without ending a word; marks belong to their word.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if (category == "Cf" and code != _ZERO_WIDTH_SPACE) or code in _VARIATION:
            spaced = ""
        elif category[0] not in "LMN":
            spaced = " "
        else:
            spaced = f" {char} " if any(first <= code <= last for first, last in _EACH_ALONE) else char
        self[code] = spaced
        return spaced


_SPACING = _Spacing()


def tokens(text: str) -> list[str]:
    """The words of a text, without case, punctuation and width: what Rouge-L compares.

    After NFKC and case folding every CJK ideograph, kana and hangul syllable is a token, and so is every other run of
    letters, digits and marks. Scripts without spaces beside those (Thai, Khmer) come out as long runs.

    Example:
        `tokens("Zürich's 2 Bäder") == ["zürich", "s", "2", "bäder"]`
        `tokens("猫が 好き。") == ["猫", "が", "好", "き"]`
    """
    spaced = _folded(text).translate(_SPACING)
    return [token for token in spaced.split() if any(map(str.isalnum, token))]


def normalised(text: str, *, keep_case: bool = False) -> str:
    """A text as exact match compares it: NFKC, case folded, single blanks, no full stop or other mark at its end.

    Other punctuation stays, unlike in `tokens`: -5 is not 5, and C++ is not C.

    Args:
        keep_case: for tasks whose answer is a matter of case, such as capitalising.
    """
    words = " ".join((unicodedata.normalize("NFKC", text) if keep_case else _folded(text)).split())
    return words.rstrip(".!?。 ") or words


def rouge_l(prediction: str, references: str | Sequence[str]) -> float:
    """Rouge-L F1: the share of tokens in the longest common subsequence, against the best of the references.

    `F1 = 2 · LCS / (n_prediction + n_reference)`, the harmonic mean of `LCS / n_prediction` and `LCS / n_reference`,
    over the whole texts (not by sentence). An empty prediction scores 0. Where neither text has a token (both empty,
    or only punctuation), the score is 1 if they are the same after `normalised`, else 0.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: no references.

    Source:
        Lin, *ROUGE: A Package for Automatic Evaluation of Summaries* (2004), with beta = 1. Departure: the tokens.
    """
    said = tokens(prediction)
    return max(_f1(prediction, said, reference) for reference in _listed(references))


def suite_accuracy(prediction: str, references: str | Sequence[str], *, keep_case: bool = False) -> float:
    """1 where the whole prediction is one of the references after `normalised`, else 0: the suites' own accuracy.

    Raises:
        ValueError: no references.
    """
    said = normalised(prediction, keep_case=keep_case)
    return float(any(said == normalised(reference, keep_case=keep_case) for reference in _listed(references)))


SCORERS: dict[Metric, Callable[[str, str | Sequence[str]], float]] = {
    "suite_accuracy": suite_accuracy,
    "rouge_l": rouge_l,
}


def mean_score(metric: Metric, predictions: str | Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Mean of a metric over predictions, each with its reference or references.

    Raises:
        ValueError: an unknown metric, nothing to score, or not as many references as predictions.
    """
    if metric not in SCORERS:
        raise wrong("metric", f"is {metric!r}", f"one of {', '.join(SCORERS)}", "name one of them")
    predictions = as_items("predictions", predictions)
    references = (references,) if isinstance(references, str) else references
    if not predictions or len(predictions) != len(references):
        got = f"got {len(predictions)} predictions and {len(references)} references"
        raise wrong(f"mean_score({metric!r})", got, "one or more, as many of each", "give each prediction its own")
    scores = [SCORERS[metric](said, known) for said, known in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)


def metric_of(task: Task) -> Metric:
    """`suite_accuracy` for a task with labels (at most 20 different short answers, each given twice on average)."""
    answers = {answer for example in task.examples for answer in example.answers}
    has_labels = len(answers) <= MAX_LABELS and 2 * len(answers) <= len(task)
    return "suite_accuracy" if has_labels and max(map(len, answers)) <= MAX_LABEL_LENGTH else "rouge_l"


def _folded(text: str) -> str:
    # folding takes some characters apart that NFKC had joined
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _listed(references: str | Sequence[str]) -> Sequence[str]:
    listed = [references] if isinstance(references, str) else references
    if not listed:
        raise wrong("references", "are empty", "one text or several", "leave out what has no answer")
    return listed


def _f1(prediction: str, said: Sequence[str], reference: str) -> float:
    known = tokens(reference)
    if not said and not known:
        return float(normalised(prediction) == normalised(reference))
    return 2 * _lcs(said, known) / (len(said) + len(known))


def _lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one integer.

    Source:
        Hyyrö, *Bit-parallel LCS-length computation revisited* (2004).
    """
    at: dict[str, int] = {}
    for position, token in enumerate(a):
        at[token] = at.get(token, 0) | 1 << position
    full = row = (1 << len(a)) - 1
    for token in b:
        matched = row & at.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()
