"""Scores of answers as texts, in any script: Rouge-L for long answers, equality (`suite_accuracy`) for labels.

The package `rouge-score` is not used. Its tokenizer drops every letter that is not ASCII, so that Chinese scores 0.
With another tokenizer only its longest common subsequence would be used, which is eight lines here, and nltk and absl
would have to be installed.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

from ivlens.common.checks import as_items
from ivlens.tasks.formats.records import wrong
from ivlens.tasks.task import Task

Metric = Literal["suite_accuracy", "rouge_l"]
# a task has labels if it has at most 20 different answers, each of at most 40 letters and on average given twice
MAX_LABELS, MAX_LABEL_LENGTH = 20, 40

# ideographs, kana and hangul syllables: scripts without spaces, or (hangul) whose words are too long to match as one
_EACH_ALONE = (
    (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
# selectors of a form of the character before them
_VARIATION = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_ZERO_WIDTH_SPACE = 0x200B


class _Spacing(dict[int, str]):
    """For `str.translate`: what each character becomes before a text is split into tokens.

    Letters, digits and marks stay. Characters that are tokens of their own get blanks around them. Joiners, soft
    hyphens and variation selectors vanish, and do not end a word. Everything else becomes a blank. The replacement of
    a character is computed when it is first met.
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
    """The tokens of a text that Rouge-L compares: words without case, punctuation and width.

    After NFKC normalisation and case folding, every CJK ideograph, kana and hangul syllable is a token, and so is every
    other run of letters, digits and marks. In other scripts without spaces (Thai, Khmer) a whole run is one token.

    Example:
        `tokens("Zürich's 2 Bäder") == ["zürich", "s", "2", "bäder"]`
        `tokens("猫が 好き。") == ["猫", "が", "好", "き"]`
    """
    spaced = _folded(text).translate(_SPACING)
    return [token for token in spaced.split() if any(map(str.isalnum, token))]


def normalised(text: str, *, keep_case: bool = False) -> str:
    """A text as `suite_accuracy` compares it: NFKC, case folded, single blanks, no full stop or the like at its end.

    Other punctuation stays, unlike in `tokens`: -5 is not 5, and C++ is not C.

    Args:
        keep_case: Do not fold case: for tasks whose answer is a matter of case, such as capitalising.
    """
    words = " ".join((unicodedata.normalize("NFKC", text) if keep_case else _folded(text)).split())
    return words.rstrip(".!?。 ") or words  # an answer of such marks alone stays


def rouge_l(prediction: str, references: str | Sequence[str]) -> float:
    """Rouge-L F1 of a prediction: how much of it is in the same order in the best of the references, from 0 to 1.

    `F1 = 2 · LCS / (n_prediction + n_reference)`, the harmonic mean of `LCS / n_prediction` and `LCS / n_reference`.
    `LCS` is the length of the longest common subsequence of tokens over the whole texts, not by sentence. An empty
    prediction scores 0. If neither text has a token (both are empty, or only punctuation), the score is 1 if they are
    equal after `normalised`, else 0. See docs/method.md, 10 Sequences of tasks.

    Raises:
        ValueError: there are no references.

    Source:
        Lin, *ROUGE: A Package for Automatic Evaluation of Summaries* (2004), with beta = 1; the tokens differ.
    """
    predicted = tokens(prediction)
    return max(_f1(prediction, predicted, reference) for reference in _listed(references))


def suite_accuracy(prediction: str, references: str | Sequence[str], *, keep_case: bool = False) -> float:
    """1 if the whole prediction equals one of the references after `normalised`, else 0.

    Raises:
        ValueError: there are no references.
    """
    predicted = normalised(prediction, keep_case=keep_case)
    return float(any(predicted == normalised(reference, keep_case=keep_case) for reference in _listed(references)))


SCORERS: dict[Metric, Callable[[str, str | Sequence[str]], float]] = {
    "suite_accuracy": suite_accuracy,
    "rouge_l": rouge_l,
}


def mean_score(metric: Metric, predictions: str | Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Mean score of predictions by a metric, each against its own reference or references.

    Raises:
        ValueError: the metric is unknown, there are no predictions, or there are not as many references.
    """
    if metric not in SCORERS:
        raise wrong("metric", f"is {metric!r}", f"one of {', '.join(SCORERS)}", "name one of them")
    predictions = as_items("predictions", predictions)
    references = (references,) if isinstance(references, str) else references
    if not predictions or len(predictions) != len(references):
        got = f"got {len(predictions)} predictions and {len(references)} references"
        raise wrong(f"mean_score({metric!r})", got, "one or more, as many of each", "give each prediction its own")
    scores = [SCORERS[metric](predicted, known) for predicted, known in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)


def metric_of(task: Task) -> Metric:
    """`suite_accuracy` for a task with labels (at most 20 short answers, on average given twice), else `rouge_l`."""
    answers = {answer for example in task.examples for answer in example.answers}
    has_labels = len(answers) <= MAX_LABELS and 2 * len(answers) <= len(task)
    return "suite_accuracy" if has_labels and max(map(len, answers)) <= MAX_LABEL_LENGTH else "rouge_l"


def _folded(text: str) -> str:
    """A text in NFKC and without case."""
    # normalised twice, as case folding takes some characters apart that NFKC has joined
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _listed(references: str | Sequence[str]) -> Sequence[str]:
    """References as a list; an empty one is an error."""
    listed = [references] if isinstance(references, str) else references
    if not listed:
        raise wrong("references", "are empty", "one text or several", "leave out what has no answer")
    return listed


def _f1(prediction: str, predicted: Sequence[str], reference: str) -> float:
    """Rouge-L F1 of one prediction, with its tokens, and one reference."""
    known = tokens(reference)
    if not predicted and not known:
        return float(normalised(prediction) == normalised(reference))
    return 2 * _lcs(predicted, known) / (len(predicted) + len(known))


def _lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence; each row of its table is one integer, a bit for each token of `a`.

    Source:
        Hyyrö, *Bit-parallel LCS-length computation revisited* (2004).
    """
    at: dict[str, int] = {}  # for each token, the bits of its positions in `a`
    for position, token in enumerate(a):
        at[token] = at.get(token, 0) | 1 << position
    full = row = (1 << len(a)) - 1
    for token in b:
        matched = row & at.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()  # the last row has as many zeros as the subsequence has tokens
