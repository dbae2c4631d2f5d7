"""The figure of what a model says: bars that add up to all prompts, and tables that it refuses."""

import pandas as pd
import pytest

from ivlens.analysis.forgetting import SAID
from ivlens.show.figures import DARK, LIGHT, answers_plot
from ivlens.show.figures.answers import LABELS
from ivlens.show.figures.found import Found
from ivlens.show.figures.study_kinds import _is_answers


def table(**kinds: str) -> pd.DataFrame:
    """Answers of tasks, for instance `{"big__before": "right own"}`: two answers of *big* before the training."""
    rows = [
        {"run": run, "task": task, "input": str(n), "said": "", "kind": kind}
        for (task, run), given in ((name.split("__"), given) for name, given in kinds.items())
        for n, kind in enumerate(given.split())
    ]
    return pd.DataFrame(rows)


ANSWERS = table(
    big__before="right right right own", big__none="new new copied other", hot__before="right", hot__none="earlier",
    hot__iv="other",
)  # fmt: skip


def test_every_kind_has_a_label():
    assert set(LABELS) == set(SAID)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_bars_are_the_shares_of_each_kind_and_add_up_to_one(theme):
    figure = answers_plot(ANSWERS, theme=theme)
    places = [*zip(*figure.data[0].y, strict=True)]
    assert places[-2:] == [("big", "after"), ("big", "before")] and len(places) == 4  # the first task on top
    assert [sum(shares) for shares in zip(*(bar.x for bar in figure.data), strict=True)] == pytest.approx([1.0] * 4)
    shares = {bar.name: dict(zip(places, bar.x, strict=True)) for bar in figure.data}
    assert shares["a new task's answer"]["big", "after"] == 0.5 and shares["right"]["big", "before"] == 0.75
    assert shares["anything else"]["hot", "after"] == 0.0  # what other guidance leaves is not shown
    assert len({bar.marker.color for bar in figure.data}) == len(SAID)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (ANSWERS.drop(columns="kind"), "lacks the columns kind"),
        (ANSWERS[:0], "has no rows"),
        (ANSWERS.assign(run="few-order0"), "has the runs few-order0, expected before or none among them"),
        (ANSWERS.assign(kind="odd"), "has the kinds odd, expected those of right"),
    ],
)
def test_tables_without_such_answers_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        answers_plot(wrong)


def test_a_table_of_several_studies_is_not_drawn_as_that_of_one(tmp_path):
    for name, frame, is_one in (("one", ANSWERS, True), ("many", ANSWERS.assign(run="few-order0"), False)):
        frame.to_parquet(path := tmp_path / f"{name}.parquet")
        assert _is_answers(Found(path, "", frozenset(frame))) == is_one
