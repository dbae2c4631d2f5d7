"""Figures of further rows: where marks stand, which controls belong to what, and what is said of a wrong table."""

import numpy as np
import pandas as pd
import pytest

from ivlens.show.figures import DARK, LIGHT, by_k_plot, condition_plot, matrix_plot, necessity_plot, other_vectors_plot
from ivlens.show.figures.conditions import LOOKS
from ivlens.show.judged_tables import groups

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)


def row(condition: str, accuracy: float, variant: str = "", **more: object) -> dict:
    ends = {"accuracy_lo": accuracy - 0.1, "accuracy_hi": accuracy + 0.1}
    given = {
        "accuracy_best": accuracy + 0.05,
        "n_vectors": 1,
        "layer": 2.0,
        "alpha": 4.0,
        "site": "resid_post",
        "n": 20,
    }
    return {
        "condition": condition,
        "variant": variant,
        "accuracy": accuracy,
        **ends,
        "interval": "Wilson 95 %",
        **given,
        **more,
    }


def lost(condition: str, variant: str, value: float, **more: object) -> dict:
    ends = {"lost_lo": value - 0.3, "lost_hi": value + 0.3}
    return row(condition, 0.9 - value, variant, lost=value, **ends | more)


def rows(task: str = "x") -> pd.DataFrame:
    """A judgement with all further rows, trained vectors too."""
    drawn = {"n_vectors": 5, "p": 1 / 6, "n_as_good": 0}
    found = [
        row("clean", 0.9), row("bare", 0.05), row("iv", 0.7, kl=0.5, kl_lo=0.4, kl_hi=0.6, perplexity=30.0,
                                                  perplexity_plain=20.0),
        row("random", 0.1, **drawn), row("random_heads", 0.2, **drawn), row("other_tasks", 0.15, **drawn),
        row("iv_heads", 0.4), row("constant", 0.02),
        *(lost("necessity", source, 0.6) for source in ("corrupted", "other_tasks", "bare")),
        *(lost("necessity_random_heads", source, 0.0, **drawn) for source in ("corrupted", "other_tasks", "bare")),
        *(lost("necessity_next_heads", source, 0.1) for source in ("corrupted", "other_tasks", "bare")),
        row("by_k", 0.3, "k=1"), row("by_k_random_heads", 0.1, "k=1", **drawn),
        row("by_k", 0.8, "k=20"), row("by_k", 0.6, "k=5"), row("by_k_random_heads", 0.2, "k=20", **drawn),
        row("mean_difference", 0.75, "corrupted"), row("mean_difference_random", 0.12, "corrupted", **drawn),
        row("mean_difference", 0.85, "bare"), row("mean_difference_random", 0.13, "bare", **drawn),
        row("distributed", 0.65, "mean"), row("distributed_random_heads", 0.04, "mean", **drawn),
        row("trained", 0.95), row("trained_permuted", 0.01),
        row("other_template", 0.5, "qa"), row("other_template_bare", 0.0, "qa"), row("other_template_clean", 0.8, "qa"),
    ]  # fmt: skip
    return pd.DataFrame(found).assign(task=task)


def two() -> pd.DataFrame:
    return pd.concat([rows("x"), rows("y")], ignore_index=True)


def named(figure, name: str):
    (trace,) = [one for one in figure.data if one.name == name]
    return trace


# --- numbers of heads ------------------------------------------------------------------------------------------------


@THEMES
def test_accuracy_goes_along_the_number_of_heads(theme) -> None:
    figure = by_k_plot(rows(), theme=theme)
    vector, drawn = named(figure, "vector of the k strongest heads"), named(figure, "vectors of k random heads")
    assert (list(vector.x), list(vector.y)) == (["1", "5", "20"], [0.3, 0.6, 0.8])
    assert (list(drawn.x), list(drawn.y)) == (["1", "20"], [0.1, 0.2])
    assert list(named(figure, "the best of these draws").y) == pytest.approx([0.15, 0.25])
    assert figure.layout.xaxis.type == "category" and list(figure.layout.xaxis.categoryarray) == ["1", "5", "20"]
    assert figure.layout.paper_bgcolor == theme.surface and vector.line.color == theme.accent
    (band,) = [one for one in figure.data if one.fill == "toself" and len(one.x) == 6]
    assert list(band.y) == pytest.approx([0.4, 0.7, 0.9, 0.7, 0.5, 0.2]), "upper ends there, lower ends back"
    assert {(shape.y0, shape.line.dash) for shape in figure.layout.shapes} == {(0.9, "dot"), (0.05, "dash")}
    assert {shape.layer for shape in figure.layout.shapes} == {"above"}, "above the grid, which hides a level of 1"
    assert "Wilson 95 %" in figure.layout.title.text and figure.data[-3].name == vector.name, "drawn on top"
    assert {(one.name, one.line.dash) for one in figure.data[-2:]} == {("bare input", "dash"), ("clean prompt", "dot")}


def test_every_task_has_a_panel_and_the_legend_each_name_once() -> None:
    for draw in (by_k_plot, necessity_plot, other_vectors_plot):
        figure = draw(two())
        assert [note.text for note in figure.layout.annotations][:2] == ["x", "y"]
        shown = [trace.name for trace in figure.data if trace.showlegend is not False]
        assert len(shown) == len(set(shown)) > 1, draw
        assert {trace.xaxis for trace in figure.data} == {"x", "x2"}
        assert figure.layout.xaxis.title.text == figure.layout.xaxis2.title.text


def test_a_variant_that_is_no_number_of_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="by_k has the variant 'many', expected k= and a number"):
        by_k_plot(pd.DataFrame([row("by_k", 0.5, "many")]))


# --- necessity -------------------------------------------------------------------------------------------------------


@THEMES
def test_losses_stand_by_kind_of_means(theme) -> None:
    figure = necessity_plot(rows(), theme=theme)
    own, drawn = named(figure, "the vector's heads"), named(figure, "random heads of the same layers")
    assert list(own.x) == pytest.approx([0.6] * 3) and list(drawn.x) == pytest.approx([0.0] * 3)
    assert [label.replace("<br>", " ") for label in figure.layout.yaxis.ticktext] == [
        "bare inputs", "corrupted prompts", "other tasks' prompts"
    ]  # fmt: skip
    # rows of the table are in the order corrupted, other tasks, bare
    assert list(np.round(own.y)) == [1, 2, 0] and list(own.y) == pytest.approx([1.2, 2.2, 0.2])
    assert list(own.error_x.array) == pytest.approx([0.3] * 3)
    assert figure.layout.xaxis.range[0] == pytest.approx(-0.33)
    assert figure.layout.xaxis.title.text == "accuracy lost on clean prompts"


def test_intervals_do_not_leave_what_is_possible() -> None:
    wide = pd.DataFrame(
        [lost("necessity", "bare", 0.9, lost_lo=-1.5, lost_hi=1.6), lost("necessity", "corrupted", 0.5)]
    )
    wide.loc[1, ["lost_lo", "lost_hi"]] = np.nan
    own = named(necessity_plot(wide), "the vector's heads")
    assert list(own.error_x.array) == pytest.approx([0.1, 0.0]) and list(own.error_x.arrayminus) == pytest.approx(
        [1.9, 0]
    )


# --- other ways to a vector ------------------------------------------------------------------------------------------


@THEMES
def test_every_way_stands_beside_its_own_controls(theme) -> None:
    figure = other_vectors_plot(rows(), theme=theme)
    vector = named(figure, "the vector")
    labels = [label.replace("<br>", " ") for label in figure.layout.yaxis.ticktext][::-1]
    assert labels == ["sum of the heads' means", "each head in its layer: mean", "mean stream: clean − corrupted",
                      "mean stream: clean − bare", "trained by gradient"]  # fmt: skip
    assert list(vector.x) == [0.7, 0.65, 0.75, 0.85, 0.95]
    assert list(named(figure, "random directions").x) == [0.1, 0.12, 0.13]
    assert list(named(figure, "random heads").x) == [0.2, 0.04]
    assert list(named(figure, "trained on permuted answers").x) == [0.01]
    places = [y for trace in figure.data for y in trace.y or () if y is not None]
    assert len(places) == len(set(places)) == 12, "no mark hides another"
    assert list(vector.y) == sorted(vector.y, reverse=True)
    assert {shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1} == {0.9, 0.05}


def test_ways_that_were_not_measured_are_left_out() -> None:
    table = rows()
    some = table[~table["condition"].str.startswith(("trained", "mean_difference"))]
    figure = other_vectors_plot(some)
    assert len(figure.layout.yaxis.ticktext) == 2 and "trained on permuted answers" not in {
        t.name for t in figure.data if t.showlegend
    }
    assert other_vectors_plot(table[table["condition"] == "trained"]).data
    with pytest.raises(ValueError, match="expected some of distributed, mean_difference, trained"):
        other_vectors_plot(table[table["condition"] == "iv"])


# --- the matrix ------------------------------------------------------------------------------------------------------


@THEMES
def test_the_matrix_has_tasks_in_both_directions(theme) -> None:
    cells = [("b", "b", 0.8), ("b", "a", 0.1), ("a", "a", 0.9), ("a", "stranger", 0.3)]
    figure = matrix_plot(pd.DataFrame(cells, columns=["task", "vector", "accuracy"]), theme=theme)
    heat = figure.data[0]
    assert (list(heat.y), list(heat.x)) == (["b", "a"], ["b", "a", "stranger"])
    assert np.allclose(heat.z, [[0.8, 0.1, np.nan], [np.nan, 0.9, 0.3]], equal_nan=True) and (heat.zmin, heat.zmax) == (
        0,
        1,
    )
    texts = {(note.y, note.x): note.text for note in figure.layout.annotations}
    assert texts == {
        ("b", "b"): "<b>0.80</b>",
        ("b", "a"): "0.10",
        ("a", "a"): "<b>0.90</b>",
        ("a", "stranger"): "0.30",
    }
    assert figure.layout.paper_bgcolor == theme.surface


def test_numbers_are_left_out_where_they_do_not_fit() -> None:
    names = [f"t{n}" for n in range(13)]
    big = pd.DataFrame([(one, other, 0.5) for one in names for other in names], columns=["task", "vector", "accuracy"])
    assert len(matrix_plot(big).data[0].z) == 13 and not matrix_plot(big).layout.annotations


# --- what all of them say, and the main figure -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw, lacks, said",
    [
        (by_k_plot, "accuracy_lo", "lacks the columns accuracy_lo, expected what ivlens.evaluate_intervention with"),
        (necessity_plot, "lost", "lacks the columns lost"),
        (other_vectors_plot, "variant", "lacks the columns variant"),
        (matrix_plot, "accuracy", "lacks the columns vector, accuracy, expected what ivlens evaluate returns"),
    ],
)
def test_a_wrong_table_is_refused(draw, lacks: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw(rows().drop(columns=lacks))
    with pytest.raises(ValueError, match="has no rows"):
        draw(rows().assign(vector="x").iloc[:0])


@pytest.mark.parametrize("draw", [by_k_plot, necessity_plot])
def test_a_table_without_these_rows_is_refused(draw) -> None:
    table = rows()
    with pytest.raises(ValueError, match=r"the table has the conditions bare, clean.* expected some of"):
        draw(table[table["variant"] == ""])


def test_the_main_figure_is_about_the_main_conditions() -> None:
    table = rows()
    figure = condition_plot(table)
    plain = condition_plot(table[table["condition"].isin(list(LOOKS))])
    assert figure.to_json() == plain.to_json() and len(figure.data) == 8
    assert condition_plot(two()).to_json() == condition_plot(two()[two()["condition"].isin(list(LOOKS))]).to_json()
    with pytest.raises(ValueError, match=r"conditions by_k, by_k_random_heads, expected some of clean, iv"):
        condition_plot(table[table["condition"].str.startswith("by_k")])


# --- tables for readers ----------------------------------------------------------------------------------------------


def test_rows_that_belong_together_stand_together() -> None:
    found = {group.name: group for group in groups(rows())}
    assert [*found] == ["controls", "necessity", "by_k", "vectors", "side_effects", "templates"]
    assert all(len(line) == len(group.head) for group in found.values() for line in group.rows)
    controls = {line[0]: line[1:] for line in found["controls"].rows}
    assert controls["Instruction Vector added"] == [0.7, "0.60 to 0.80", "", "layer 2, alpha 4", ""]
    assert controls["random vectors"][2:] == ["5, best 0.15", "layer 2, alpha 4", "0.167"]
    assert [line[:2] for line in found["necessity"].rows][:3] == [
        ["other tasks' prompts", "the vector's heads"],
        ["other tasks' prompts", "the heads next in strength"],
        ["other tasks' prompts", "random heads of the same layers"],
    ]
    assert found["necessity"].rows[0][4:6] == [0.6, "0.30 to 0.90"] and found["necessity"].rows[2][6:] == ["5", "0.167"]
    assert [line[0] for line in found["by_k"].rows] == ["k=1", "k=20", "k=5"]
    assert found["by_k"].rows[2][4:] == ["", "", "", ""], "without random heads"
    assert [line[0] for line in found["vectors"].rows] == [
        "sum of the heads' means", "each head in its layer", "random heads in their layers",
        "difference of mean streams", "random directions", "difference of mean streams", "random directions",
        "trained by gradient", "trained on permuted answers",
    ]  # fmt: skip
    assert found["side_effects"].rows == [["Instruction Vector added", "", 0.5, "0.40 to 0.60", 30.0, 20.0]]
    assert found["templates"].rows == [["qa", "0.00 (-0.10 to 0.10)", "0.50 (0.40 to 0.60)", "0.80 (0.70 to 0.90)"]]


def test_a_correction_for_tasks_stands_in_place_of_p() -> None:
    table = rows().assign(p_holm=lambda frame: 2 * frame["p"])
    line = next(line for line in groups(table)[0].rows if line[0] == "random vectors")
    assert line[-1] == "0.333"


def test_a_judgement_without_further_rows_has_one_table() -> None:
    table = rows()
    assert [
        group.name
        for group in groups(
            table[(table["variant"] == "") & ~table["condition"].str.startswith("trained")].drop(columns="kl")
        )
    ] == ["controls"]
