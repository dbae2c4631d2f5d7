import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ivlens.effects import HeadEffects
from ivlens.models import ModelIdentity
from ivlens.show.figures import (
    DARK,
    LIGHT,
    Theme,
    condition_plot,
    head_heatmap,
    head_maps,
    similarity_matrix,
    similarity_order,
    strength_curves,
    strength_map,
    write_figure,
)
from ivlens.show.figures.conditions import LOOKS
from ivlens.show.figures.images import find_browser, image, one_browser
from ivlens.show.figures.theme import colour_at, readable_on
from ivlens.vectors import InstructionVector

IDENTITY = ModelIdentity("tiny", None, "LlamaForCausalLM", 3, 4, 16, 4, 50, "0" * 64)
THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)


def effects(score: str = "prob", measured: int = 12) -> HeadEffects:
    """L2H3 strongest, L1H0 second, L0H0 negative."""
    cie = 0.001 * torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    cie[:, 2, 3] += 0.4
    cie[:, 1, 0] += 0.2
    cie[:, 0, 0] -= 0.3
    cie.flatten(1)[:, measured:] = torch.nan
    return HeadEffects(
        cie=cie,
        mean_z=torch.zeros(3, 4, 4),
        mean_z_corrupted=torch.zeros(3, 4, 4),
        write_scale=torch.ones(3, 16),
        base_scores=torch.zeros(6),
        corruptions=("drop",) * 6,
        inputs=tuple("abcdef"),
        task="antonym",
        model=IDENTITY,
        settings={"score": score},
    )


def holding(cie: torch.Tensor) -> HeadEffects:
    """Effects of a model of another shape, or on other prompts."""
    n, n_layers, n_heads = cie.shape
    return replace(
        effects(), cie=cie, mean_z=torch.zeros(n_layers, n_heads, 4), mean_z_corrupted=None,
        write_scale=torch.ones(n_layers, 16), base_scores=torch.zeros(n), corruptions=("drop",) * n,
        inputs=tuple(map(str, range(n))),
    )  # fmt: skip


def vector(task: str, *direction: float) -> InstructionVector:
    return InstructionVector(torch.tensor(direction, dtype=torch.float32), (), torch.zeros(0, 4), task, IDENTITY, {})


VECTORS = [vector("a", 1, 0, 0), vector("b", 0, 1, 0), vector("c", 0.9, 0.1, 0), vector("d", -0.1, 0.9, 0)]


def swept(sites: tuple[str, ...] = ("resid_post", "attn_out")) -> pd.DataFrame:
    rows = [
        {"layer": layer, "alpha": alpha, "site": site, "accuracy": layer / 10 + alpha / 100, "prob": 0.5, "n": 20}
        for site in sites
        for alpha in (1.0, 2.0, 4.0)
        for layer in range(3)
    ]
    return pd.DataFrame(rows)


def judged(tasks: tuple[str, ...] = ("x", "y")) -> pd.DataFrame:
    values = {"clean": 0.9, "bare": 0.1, "iv": 0.8, "random": 0.1, "constant": 0.0}
    rows = [
        {"task": task, "condition": name, "accuracy": value, "accuracy_lo": value - 0.1, "accuracy_hi": value + 0.1}
        for task in tasks
        for name, value in values.items()
    ]
    return pd.DataFrame(rows)


@THEMES
def test_heatmap_shows_every_head_and_ranks_the_strongest(theme: Theme) -> None:
    found = effects()
    figure = head_heatmap(found, top=2, theme=theme)
    heat, covered, lines, ranks, *entries = figure.data
    assert np.allclose(heat.z, found.aie)
    assert heat.zmin == -heat.zmax and heat.zmax == pytest.approx(float(found.aie.abs().max()))
    assert [(y, x, text) for x, y, text in zip(ranks.x, ranks.y, ranks.text, strict=True)] == [(2, 3, "1"), (1, 0, "2")]
    assert lines.x[:5] == (2.5, 3.5, 3.5, 2.5, 2.5) and lines.y[:5] == (1.5, 1.5, 2.5, 2.5, 1.5)
    assert lines.x[5] is None and len(lines.x) == 12
    for ink, effect in zip(ranks.textfont.color, (0.4, 0.2), strict=True):
        assert contrast(ink, colour_at(theme.diverging, (effect / heat.zmax + 1) / 2)) > 4
    assert [entry.name for entry in entries] == [
        "the 2 strongest heads, by rank", f"{found.interval(simultaneous=True).kind} interval includes 0"
    ]  # fmt: skip
    assert figure.layout.xaxis.title.text == "head" and figure.layout.yaxis.title.text == "layer"
    assert figure.layout.paper_bgcolor == theme.surface


@THEMES
def test_heads_whose_interval_includes_zero_are_grey_and_no_others(theme: Theme) -> None:
    found = effects()
    low, high = found.interval(simultaneous=True)
    covered = head_heatmap(found, theme=theme).data[1]
    assert (np.isfinite(np.asarray(covered.z, dtype=float)) == ((low <= 0) & (high >= 0)).numpy()).all()
    assert covered.colorscale[0][1] == theme.unsure and covered.hoverinfo == "skip"
    assert not np.isfinite(np.asarray(covered.z, dtype=float))[[2, 1, 0], [3, 0, 0]].any(), "the three true ones"
    one = holding(found.cie[:1])
    assert [trace.type for trace in head_heatmap(one).data].count("heatmap") == 1, "one prompt says nothing of spread"


def test_ranks_keep_off_heads_and_ranks_where_cells_are_small() -> None:
    cie = 0.001 * torch.randn(8, 32, 32, generator=torch.Generator().manual_seed(0))
    for rank, head in enumerate([(20, 5), (20, 6), (21, 5), (31, 31), (0, 0), (20, 31), (14, 24), (16, 20), (15, 19)]):
        cie[:, head[0], head[1]] += 0.4 - 0.02 * rank
    figure = head_heatmap(holding(cie))
    *_, lines, ranks, _, _ = figure.data
    heads = list(zip(lines.x[::6], lines.y[::6], strict=True))
    places = list(zip(ranks.x, ranks.y, strict=True))
    assert ranks.text == tuple(map(str, range(1, 11)))
    for number, (x, y) in enumerate(places):
        assert -0.5 < x < 31.5 and -0.5 < y < 31.5
        assert not any(left < x < left + 1 and low < y < low + 1 for left, low in heads), "on a head"
        assert not any(abs(x - u) < 1 and abs(y - v) < 0.7 for u, v in places[:number]), "on another rank"
        left, low = heads[number]
        assert abs(x - left - 0.5) < 2.2 and abs(y - low - 0.5) < 2.2, "far from its head"


@pytest.mark.parametrize("kept", [True, False])
def test_maps_of_several_tasks_mark_as_one_map_does(kept: bool) -> None:
    one, other = effects(), replace(effects(), task="synonym", cie=-effects().cie)
    frame = pd.concat([one.to_frame(), other.to_frame()])
    figure = head_maps(frame if kept else [one, other], top=2)
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(heats) == 4 and len({trace.zmax for trace in heats[::2]}) == 1
    low, high = one.interval(simultaneous=True)
    for covered in heats[1::2]:
        assert (np.isfinite(np.asarray(covered.z, dtype=float)) == ((low <= 0) & (high >= 0)).numpy()).all()
    ranks = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "text"]
    assert [trace.text for trace in ranks] == [("1", "2")] * 2
    assert "interval includes 0" in figure.data[-1].name and figure.layout.showlegend
    bare = head_maps(frame.drop(columns=["low", "high"]))
    assert len([trace for trace in bare.data if trace.type == "heatmap"]) == 2, "nothing is grey without intervals"


@pytest.mark.parametrize(("score", "unit"), [("prob", "probability"), ("logprob", "nats"), ("logit_diff", "logits")])
def test_heatmap_names_the_unit(score: str, unit: str) -> None:
    assert head_heatmap(effects(score)).data[0].colorbar.title.text == f"AIE ({unit})"


def test_heatmap_leaves_unmeasured_heads_blank_and_shares_a_scale() -> None:
    figure = head_heatmap(effects(measured=5), top=10, limit=0.5, show_scale=False)
    heat, covered, _, ranks, entry, _ = figure.data
    assert np.isnan(np.asarray(heat.z)[2]).all() and len(ranks.x) == 5 and "the 5 strongest" in entry.name
    assert np.isnan(np.asarray(covered.z, dtype=float)[2]).all(), "what was not measured is blank, not grey"
    assert (heat.zmin, heat.zmax, heat.showscale) == (-0.5, 0.5, False)
    assert [trace.type for trace in head_heatmap(effects(), top=0).data] == ["heatmap", "heatmap", "scatter"]


def test_alike_vectors_stand_side_by_side() -> None:
    order = [VECTORS[index].task for index in similarity_order(VECTORS)]
    assert abs(order.index("a") - order.index("c")) == 1 and abs(order.index("b") - order.index("d")) == 1
    figure = similarity_matrix(VECTORS)
    assert list(figure.data[0].x) == list(figure.data[0].y) == order
    assert np.allclose(np.diag(np.asarray(figure.data[0].z)), 1.0)
    assert np.allclose(figure.data[0].z, np.asarray(figure.data[0].z).T, atol=1e-6)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-1, 1)
    texts = [note.text for note in figure.layout.annotations]
    assert len(texts) == 16 and texts.count("1.00") == 4 and "−0.11" in texts


def test_similarity_refuses_one_vector_and_repeated_names() -> None:
    with pytest.raises(ValueError, match="expected two or more with distinct names"):
        similarity_matrix(VECTORS[:1])
    with pytest.raises(ValueError, match="expected two or more with distinct names"):
        similarity_matrix([VECTORS[0], VECTORS[0]])


def test_names_below_the_similarity_are_slanted_only_where_they_need_room() -> None:
    assert similarity_matrix(VECTORS[:2]).layout.xaxis.tickangle == 0
    long = [replace(vector, task=f"{vector.task} of a rather long name") for vector in VECTORS[:2]]
    assert similarity_matrix(long).layout.xaxis.tickangle == -45


def test_curves_have_a_line_for_each_strength_and_a_panel_for_each_site() -> None:
    figure = strength_curves(swept())
    assert [trace.name for trace in figure.data] == ["strength 1", "strength 2", "strength 4"] * 2
    assert [trace.showlegend for trace in figure.data] == [True] * 3 + [False] * 3
    assert list(figure.data[2].y) == pytest.approx([0.04, 0.14, 0.24])
    assert figure.layout.yaxis.title.text == "accuracy (share of prompts)"
    assert figure.layout.xaxis.title.text == "layer · resid_post"
    assert figure.layout.xaxis2.title.text == "layer · attn_out"
    assert "20 prompts" in figure.layout.title.text
    assert not figure.layout.shapes


@THEMES
def test_the_map_of_settings_outlines_the_best(theme: Theme) -> None:
    frame = pd.concat([swept(), swept().assign(accuracy=lambda rows: rows["accuracy"] + 0.2)])
    frame = pd.concat([frame, swept().assign(alpha=0.0, accuracy=0.9)])
    figure = strength_map(frame, theme=theme)
    first, second = figure.data
    assert list(first.x) == ["0", "1", "2"] and list(first.y) == ["1", "2", "4"], "without a vector: no row of the map"
    assert np.asarray(first.z)[2, 1] == pytest.approx(0.1 + 0.04 + 0.1), "the mean of both tables"
    assert (first.zmin, first.zmax) == (0, 1) and first.colorbar.title.text == "accuracy" and len(second.z) == 3
    assert "outlined: the best, layer 2, strength 4, resid_post: 0.34" in figure.layout.title.text
    frames = [(shape.x0, shape.y0, shape.xref) for shape in figure.layout.shapes]
    assert frames == [(1.5, 1.5, "x")] * 2 and figure.layout.yaxis.title.text == "strength α"
    assert (figure.layout.xaxis.title.text, figure.layout.xaxis2.title.text) == (
        "layer · resid_post",
        "layer · attn_out",
    )
    lacking = strength_map(swept(("resid_post",)).query("not (layer == 0 and alpha == 1)"), metric="prob", theme=theme)
    assert np.isnan(np.asarray(lacking.data[0].z)[0, 0])
    for wrong, said in (("speed", "metric is 'speed'"), ("logprob", "lacks the columns logprob")):
        with pytest.raises(ValueError, match=said):
            strength_map(swept(), metric=wrong)


def test_curves_average_tasks_and_draw_strength_zero_as_a_dashed_line() -> None:
    other = swept().assign(accuracy=1.0)
    none = pd.DataFrame([{"layer": 0, "alpha": 0.0, "site": "resid_post", "accuracy": 0.25, "prob": 0.0, "n": 20}])
    figure = strength_curves(pd.concat([swept(), other, none], ignore_index=True))
    assert list(figure.data[0].y) == pytest.approx([0.505, 0.555, 0.605])
    assert {shape.y0 for shape in figure.layout.shapes} == {0.25}
    assert figure.data[-1].name == "no vector" and figure.data[-1].line.dash == "dash"


def test_curves_say_what_a_wrong_table_lacks() -> None:
    with pytest.raises(ValueError, match="lacks the columns site"):
        strength_curves(swept().drop(columns="site"))
    with pytest.raises(ValueError, match="has no rows"):
        strength_curves(swept().head(0))
    with pytest.raises(ValueError, match="metric is 'speed', expected one of accuracy"):
        strength_curves(swept(), metric="speed")


def test_conditions_put_the_mean_first_and_carry_intervals() -> None:
    figure = condition_plot(judged())
    assert list(figure.layout.yaxis.ticktext) == ["y", "x", "mean of tasks"]
    iv = next(trace for trace in figure.data if trace.name == LOOKS["iv"].label)
    assert list(iv.x) == pytest.approx([0.8, 0.8, 0.8]) and iv.text[0] == "mean of tasks"
    assert list(iv.error_x.array) == pytest.approx([0.0, 0.1, 0.1])
    assert list(iv.error_x.arrayminus) == pytest.approx([0.0, 0.1, 0.1])
    assert figure.layout.xaxis.title.text == "accuracy (share of prompts)"
    left_out = judged(("x",)).replace({"accuracy": {0.0: float("nan")}})
    assert LOOKS["constant"].label not in condition_plot(left_out).layout.yaxis.ticktext, "no row without a value"


def test_conditions_of_one_task_are_rows_with_names() -> None:
    figure = condition_plot(judged(("x",)).drop(columns="task"))
    assert list(figure.layout.yaxis.ticktext)[-1] == LOOKS["clean"].label
    assert len(figure.layout.yaxis.ticktext) == 5 and figure.layout.showlegend is False
    # the row's name and the mark stand at the same height
    places = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    assert all(trace.y[0] == pytest.approx(places[trace.name]) for trace in figure.data)


def test_conditions_say_what_a_wrong_table_lacks() -> None:
    with pytest.raises(ValueError, match="lacks the columns accuracy_lo"):
        condition_plot(judged().drop(columns="accuracy_lo"))
    with pytest.raises(ValueError, match="has no rows"):
        condition_plot(judged().head(0))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _apart(one: str, other: str) -> float:
    """The distance of two colours in RGB, each channel from 0 to 255."""
    parts = [[int(each[at : at + 2], 16) for at in (1, 3, 5)] for each in (one, other)]
    return sum((a - b) ** 2 for a, b in zip(*parts, strict=True)) ** 0.5


@THEMES
def test_colours_are_legible_and_ordered_in_grey(theme: Theme) -> None:
    assert contrast(theme.text, theme.surface) > 7 and contrast(theme.muted, theme.surface) > 4.5
    assert min(contrast(colour, theme.surface) for colour in (theme.accent, theme.control)) > 4.5
    steps = [colour_at(theme.steps, at / 4) for at in range(5)]
    assert min(contrast(colour, theme.surface) for colour in steps) > 2
    assert contrast(theme.text, theme.unsure) > 7, "ranks of grey heads"
    assert min(_apart(theme.unsure, colour_at(theme.diverging, at / 20)) for at in range(21)) > 10
    greys = [luminance(colour) for colour in steps]
    assert greys == sorted(greys, reverse=theme is LIGHT)
    for at in range(21):
        colour = colour_at(theme.diverging, at / 20)
        assert contrast(readable_on(colour), colour) > 4


def test_a_figure_is_the_same_every_time() -> None:
    assert head_heatmap(effects()).to_json() == head_heatmap(effects()).to_json()


def test_written_html_works_offline_and_json_is_the_figure(tmp_path: Path) -> None:
    figure = head_heatmap(effects())
    text = write_figure(figure, tmp_path / "deep" / "map.html").read_text(encoding="utf-8")
    assert "<script src=" not in text and "Plotly.newPlot" in text
    assert json.loads(write_figure(figure, tmp_path / "map.json").read_text())["layout"]["title"]["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "map.json"]


def test_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix '.bmp', expected one of .html"):
        write_figure(head_heatmap(effects()), tmp_path / "map.bmp")


def test_image_without_kaleido_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ImportError, match=r"ivlens\[export\]"):
        write_figure(head_heatmap(effects()), tmp_path / "map.png")
    assert not list(tmp_path.iterdir())


def program(folder: Path, *lines: str) -> str:
    """The path of a shell script, which stands for a browser."""
    path = folder / "browser"
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return str(path)


def alive(mark: str) -> list[str]:
    """Command lines of processes that hold `mark`."""
    found = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in found if mark in line]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "none works here .*no-browser-there"),
        (["exit 1"], "none works here .*BROWSER_PATH"),
        (["echo nonsense >&4", "exit 0"], "none works here .*BROWSER_PATH"),
        (["exec sleep 987654"], "did not answer within 4 s; .*BROWSER_PATH"),
        (["trap '' TERM INT HUP PIPE", "while true; do sleep 0.1; done"], "did not answer within 4 s"),
        (["setsid sleep 9.87 &", "exit 1"], "none works here"),
        (["yes >&4"], "(did not answer|none works here)"),
    ],
    ids=["missing", "ends", "talks nonsense", "hangs", "does not hear", "leaves a child", "floods"],
)
def test_a_browser_that_does_not_work_is_one_error_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str] | None, said: str
) -> None:
    pytest.importorskip("kaleido")
    browser = str(tmp_path / "no-browser-there") if lines is None else program(tmp_path, *lines)
    monkeypatch.setenv("BROWSER_PATH", browser)
    monkeypatch.setattr("ivlens.show.figures.images.SECONDS", 4.0)
    began, out = time.monotonic(), tmp_path / "out"
    with one_browser():
        for _ in range(3):  # the second and the third are told at once
            with pytest.raises((FileNotFoundError, TimeoutError), match=f"images need Chrome.*{said}"):
                write_figure(head_heatmap(effects()), out / "map.png")
    assert time.monotonic() - began < 20
    assert not out.exists()
    assert not alive("sleep 987654") and not alive(browser)


def test_an_image_needs_a_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="none can be written to .*set TMPDIR"):
        image(head_heatmap(effects()), "png", 1.0)


def test_images_asked_for_in_several_threads_are_not_mixed_up(browser: str) -> None:
    figures = {n: head_heatmap(effects()).update_layout(width=300 + n, height=200) for n in range(4)}
    with ThreadPoolExecutor(4) as pool:
        drawn = dict(zip(figures, pool.map(lambda figure: image(figure, "png", 1.0), figures.values()), strict=True))
    widths = {n: int.from_bytes(content[16:20], "big") for n, content in drawn.items()}
    assert widths == {n: 300 + n for n in range(4)}


@pytest.fixture
def browser() -> str:
    pytest.importorskip("kaleido")
    return find_browser() or pytest.skip("needs Chromium")
