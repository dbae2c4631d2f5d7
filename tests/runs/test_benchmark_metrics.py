"""The numbers of a sequence by hand, verdicts at their borders, texts scored in any script."""

import inspect
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest

from ivlens.runs.suites.metrics import Interval, forget_verdict, paired_interval, sequence_metrics, verdict
from ivlens.runs.suites.rouge import mean_score, metric_of, normalised, rouge_l, suite_accuracy, tokens
from ivlens.tasks import Task, TaskExample

NAN = float("nan")


def rows(*values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=float)


# --- a sequence in numbers -------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    scores = rows([0.9, NAN, NAN], [0.6, 0.8, NAN], [0.3, 0.7, 0.7])
    found = sequence_metrics(scores)
    assert found.ap == pytest.approx(0.8)
    assert found.fp == pytest.approx(1.7 / 3)
    assert found.forget == pytest.approx(0.8 - 1.7 / 3)
    assert found.bwt == pytest.approx((-0.6 - 0.1) / 2)
    assert (found.gp, found.gp_change, found.ip, found.ip_change) == (None, None, None, None)


def test_forget_and_bwt_say_the_same() -> None:
    for n in (2, 3, 8):
        found = sequence_metrics(np.random.default_rng(n).random((n, n)))
        assert found.forget == pytest.approx(-found.bwt * (n - 1) / n, abs=1e-12)


def test_one_task_has_nothing_to_forget() -> None:
    found = sequence_metrics(rows([0.5]))
    assert (found.ap, found.fp, found.forget) == (0.5, 0.5, 0.0) and np.isnan(found.bwt)


def test_tasks_to_come_do_not_count() -> None:
    halfway = rows([0.9, 0.1, 0.2], [0.5, 0.7, 0.3])
    assert sequence_metrics(halfway) == sequence_metrics(halfway[:, :2])


def test_general_tasks_after_and_their_change() -> None:
    scores = rows([1.0, 0.0], [0.5, 1.0])
    zero_shot, few_shot = rows([0.8, 0.6], [0.1, NAN], [0.5, 0.3]), rows([0.9], [1.0])
    found = sequence_metrics(scores, gp=zero_shot, ip=few_shot)
    assert (found.gp, found.gp_change) == (pytest.approx(0.4), pytest.approx(-0.3))
    assert (found.ip, found.ip_change) == (pytest.approx(1.0), pytest.approx(0.1))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (rows([0.5, 0.5], [NAN, 0.5]), "holds nan for task 0 after training task 1, expected numbers on and below"),
        (rows([0.5], [0.5]), r"scores: has shape \(2, 1\), expected \(n_trained, n_tasks\)"),
        (np.zeros((0, 2)), r"scores: has shape \(0, 2\)"),
        (rows([50, 10], [40, 60]), "goes from 10 to 60, expected shares from 0 to 1; divide percents by 100"),
        (rows([0.5, 0.5], [-0.1, 0.5]), "goes from -0.1 to 0.5"),
    ],
)
def test_unusable_scores(scores: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence_metrics(scores)


@pytest.mark.parametrize(
    ("general", "message"),
    [
        (rows([0.5, 0.5]), r"gp: has shape \(1, 2\), .*one after; score the general tasks before training too"),
        (rows([0.5, NAN], [0.5, 0.5]), "gp: has gaps in its first or last row"),
        (rows([50], [60]), "gp: goes from 50 to 60"),
    ],
)
def test_unusable_general_scores(general: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence_metrics(rows([0.5]), gp=general)


# --- intervals and verdicts ------------------------------------------------------------------------------------------


def test_interval_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    ease = rng.normal(size=40)  # what runs share cancels out
    a, b = ease + 0.1 + 0.01 * rng.normal(size=40), ease
    found = paired_interval(a, b)
    assert found.estimate == pytest.approx(float((a - b).mean()))
    spread = 2.0227 * (a - b).std(ddof=1) / np.sqrt(40)
    assert found.low == pytest.approx(found.estimate - spread, rel=0.001)
    assert found.high == pytest.approx(found.estimate + spread, rel=0.001)
    assert paired_interval(b, a).estimate == pytest.approx(-found.estimate)


def test_interval_agrees_with_scipy() -> None:
    from scipy.stats import ttest_rel

    a, b = np.random.default_rng(1).exponential(size=(2, 12))
    ours, theirs = paired_interval(a, b), ttest_rel(a, b).confidence_interval()
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_interval_narrows_with_its_level() -> None:
    a, b = np.random.default_rng(2).random((2, 9))
    narrow = paired_interval(a, b, level=0.5)
    assert paired_interval(a, b).low < narrow.low < narrow.high < paired_interval(a, b).high


def test_one_run_decides_nothing() -> None:
    found = paired_interval(rows([0.0])[0], rows([0.9])[0])
    assert found == Interval(-0.9, -float("inf"), float("inf"))
    assert forget_verdict(np.array([0.9]), np.array([0.0])).verdict == "undecided"


def test_unusable_pairs() -> None:
    two, three = np.zeros(2), np.zeros(3)
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\), expected one value for each run"):
        inspect.unwrap(paired_interval)(two, three)  # under pytest the shapes are checked before
    with pytest.raises(ValueError, match="one value for each run"):
        paired_interval(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="not finite"):
        paired_interval(two, np.array([0.0, NAN]))
    with pytest.raises(ValueError, match="level: is 95"):
        paired_interval(two, two, level=95.0)
    with pytest.raises(ValueError, match="forget_guided: goes up to 30, .*divide percents"):
        forget_verdict(two, np.array([30.0, 2.0]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.1, 0.02, "holds"), (-0.1, 0.021, "undecided"), (0.02, 0.1, "undecided"), (0.021, 0.1, "does not hold")],
)
def test_verdict_at_its_borders(low: float, high: float, expected: str) -> None:
    assert verdict(Interval(0.0, low, high), 0.02) == expected


def noise(n: int = 20, size: float = 0.01) -> np.ndarray:
    return np.random.default_rng(7).normal(scale=size, size=n)


@pytest.mark.parametrize(
    ("plain", "guided", "half", "expected"),
    [
        (0.4, 0.1, True, "holds"),
        (0.4, 0.3, True, "does not hold"),
        (0.4, 0.2, True, "undecided"),
        (0.03, 0.02, False, "holds"),  # less forgetting than the threshold: no harm is enough
        (0.03, 0.08, False, "does not hold"),
        (0.03, 0.05, False, "undecided"),
        (0.051, 0.051, False, "holds"),  # above the threshold, but not with its interval
        (-0.2, -0.2, False, "holds"),
    ],
)
def test_forget_verdict(plain: float, guided: float, half: bool, expected: str) -> None:
    wobble = noise()
    found = forget_verdict(plain + wobble - wobble.mean(), guided + wobble[::-1] - wobble.mean())
    assert ("at most half" in found.claim, found.verdict) == (half, expected)
    assert found.margin == (0.0 if half else 0.02) and found.n_runs == 20
    assert found.estimate == pytest.approx(guided - plain / 2 if half else guided - plain)
    assert found.low < found.estimate < found.high


def test_forget_verdict_is_not_decided_by_rounding() -> None:
    plain = np.array([0.2, 0.3, 0.7, 0.1] * 3)
    assert forget_verdict(plain, plain / 2).verdict == "holds"
    assert forget_verdict(np.zeros(3), np.full(3, 0.02)).verdict == "holds"


def test_forget_verdict_takes_other_bounds() -> None:
    plain, guided = 0.1 + noise(), 0.08 + noise()
    assert forget_verdict(plain, guided).verdict == "does not hold"
    relaxed = forget_verdict(plain, guided, halved_above=0.2, margin=0.0)
    assert (relaxed.verdict, relaxed.margin) == ("holds", 0.0)


# --- texts -----------------------------------------------------------------------------------------------------------


def plain_lcs(a: Sequence[str], b: Sequence[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l_equals_the_plain_table() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = (rng.choices("abcde", k=rng.randint(1, 90)) for _ in range(2))
        expected = 2 * plain_lcs(a, b) / (len(a) + len(b))
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)


def test_rouge_l_of_the_paper() -> None:
    # Lin (2004), section 3.1: LCS of 3 and of 2 in sentences of 4 words
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == 0.75
    assert rouge_l("the gunman kill police", reference) == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World! it's 3.5", ["hello", "world", "it", "s", "3", "5"]),
        ("snake_case", ["snake", "case"]),
        ("猫が好き。", ["猫", "が", "好", "き"]),
        ("我爱Python3编程", ["我", "爱", "python3", "编", "程"]),
        ("한국어 책", ["한", "국", "어", "책"]),
        ("ﾊﾟﾝ ＡＢＣ１", ["パ", "ン", "abc1"]),
        ("Straße ÉCOLE e\u0301cole", ["strasse", "école", "école"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("葛\U000e0100城 ❤\ufe0f", ["葛", "城"]),
        ("1\ufe0f a\ufe01b", ["1", "ab"]),
        ("co\u00adoperate a\u200bb", ["cooperate", "a", "b"]),
        ("\U00020000\U00030000", ["\U00020000", "\U00030000"]),
        ("Ελλάς ΕΛΛΑΣ", ["ελλάσ", "ελλασ"]),
        ("... — \u0301 🙂 _", []),
        ("", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_chinese_and_german_count() -> None:
    assert rouge_l("今天天气很好", "今天天气不好") == pytest.approx(5 / 6)
    assert rouge_l("Die Bäder öffnen", "die bader offnen") == pytest.approx(1 / 3)


def test_rouge_l_takes_the_best_reference() -> None:
    assert rouge_l("a b c", ["x", "a b d", "a"]) == pytest.approx(2 / 3)
    assert rouge_l("a b c", ("a b c", "x")) == 1.0


def test_rouge_l_of_nothing() -> None:
    assert rouge_l("", "a") == rouge_l("?!", "a") == rouge_l("a", "?!") == 0.0
    assert rouge_l("", "") == rouge_l(" + ", "+") == 1.0
    assert rouge_l("+", "-") == 0.0
    for score in (rouge_l, suite_accuracy):
        with pytest.raises(ValueError, match="references: are empty"):
            score("a", [])


def test_rouge_l_is_quick() -> None:
    rng = random.Random(1)
    long = [
        [" ".join(rng.choices("abcdefghij", k=2000)), "".join(rng.choices("天地玄黄宇宙洪荒", k=2000))] for _ in "ab"
    ]
    for a, b in zip(*long, strict=True):
        start = time.process_time()
        assert 0 < rouge_l(a, b) < 1
        assert time.process_time() - start < 0.1


@pytest.mark.parametrize(
    ("said", "known", "expected"),
    [
        (" positive.\n", "Positive", 1.0),
        ("Ａ", "a", 1.0),
        ("New  York", ["Paris", "new york"], 1.0),
        ("答案。", "答案", 1.0),
        ("-5", "5", 0.0),
        ("C++", "C", 0.0),
        ("!", "?", 0.0),
        ("positive review", "positive", 0.0),
        ("", "positive", 0.0),
    ],
)
def test_suite_accuracy(said: str, known: str | list[str], expected: float) -> None:
    assert suite_accuracy(said, known) == expected


def test_case_can_be_the_answer() -> None:
    assert suite_accuracy("happy", "Happy") == 1.0
    assert suite_accuracy("happy", "Happy", keep_case=True) == 0.0
    assert suite_accuracy("Happy.", "Happy", keep_case=True) == 1.0
    assert normalised("St. John's.") == "st. john's"


def test_mean_score() -> None:
    assert mean_score("suite_accuracy", ["a", "b"], ["A", ["x", "y"]]) == 0.5
    assert mean_score("rouge_l", ["a b", "b"], ["a c", "b"]) == 0.75
    with pytest.raises(ValueError, match="got 1 predictions and 2 references"):
        mean_score("suite_accuracy", ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="got 0 predictions"):
        mean_score("suite_accuracy", [], [])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["yes", "no"] * 10, "suite_accuracy"),
        ([str(i % 20) for i in range(40)], "suite_accuracy"),
        ([str(i % 21) for i in range(60)], "rouge_l"),
        ([f"sentence {i}" for i in range(10)], "rouge_l"),
        (["a very long answer that is no label of any kind", "no"] * 10, "rouge_l"),
    ],
)
def test_metric_of_a_task(answers: list[str], expected: str) -> None:
    examples = tuple(TaskExample(f"input {i}", (answer,)) for i, answer in enumerate(answers))
    assert metric_of(Task("t", examples)) == expected
