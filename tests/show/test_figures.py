import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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
    similarity_matrix,
    similarity_order,
    strength_curves,
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
    heat, marks = figure.data
    assert np.allclose(heat.z, found.aie)
    assert heat.zmin == -heat.zmax and heat.zmax == pytest.approx(float(found.aie.abs().max()))
    assert [(y, x, text) for x, y, text in zip(marks.x, marks.y, marks.text, strict=True)] == [(2, 3, "1"), (1, 0, "2")]
    assert figure.layout.xaxis.title.text == "head" and figure.layout.yaxis.title.text == "layer"
    assert figure.layout.paper_bgcolor == theme.surface


@pytest.mark.parametrize(("score", "unit"), [("prob", "probability"), ("logprob", "nats"), ("logit_diff", "logits")])
def test_heatmap_names_the_unit(score: str, unit: str) -> None:
    assert head_heatmap(effects(score)).data[0].colorbar.title.text == f"AIE ({unit})"


def test_heatmap_leaves_unmeasured_heads_blank_and_shares_a_scale() -> None:
    figure = head_heatmap(effects(measured=5), top=10, limit=0.5, show_scale=False)
    heat, marks = figure.data
    assert np.isnan(np.asarray(heat.z)[2]).all() and len(marks.x) == 5
    assert (heat.zmin, heat.zmax, heat.showscale) == (-0.5, 0.5, False)
    assert len(head_heatmap(effects(), top=0).data) == 1


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


def test_curves_have_a_line_for_each_strength_and_a_panel_for_each_site() -> None:
    figure = strength_curves(swept())
    assert [trace.name for trace in figure.data] == ["1", "2", "4"] * 2
    assert [trace.showlegend for trace in figure.data] == [True] * 3 + [False] * 3
    assert list(figure.data[2].y) == pytest.approx([0.04, 0.14, 0.24])
    assert figure.layout.yaxis.title.text == "accuracy (share of prompts)"
    assert figure.layout.xaxis.title.text == "layer · resid_post"
    assert figure.layout.xaxis2.title.text == "layer · attn_out"
    assert "20 prompts" in figure.layout.title.text
    assert not figure.layout.shapes


def test_curves_average_tasks_and_draw_strength_zero_as_a_dashed_line() -> None:
    other = swept().assign(accuracy=1.0)
    none = pd.DataFrame([{"layer": 0, "alpha": 0.0, "site": "resid_post", "accuracy": 0.25, "prob": 0.0, "n": 20}])
    figure = strength_curves(pd.concat([swept(), other, none], ignore_index=True))
    assert list(figure.data[0].y) == pytest.approx([0.505, 0.555, 0.605])
    assert {shape.y0 for shape in figure.layout.shapes} == {0.25}
    assert "dashed: no vector" in figure.layout.title.text


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


@THEMES
def test_colours_are_legible_and_ordered_in_grey(theme: Theme) -> None:
    assert contrast(theme.text, theme.surface) > 7 and contrast(theme.muted, theme.surface) > 4.5
    assert min(contrast(colour, theme.surface) for colour in (theme.accent, theme.control)) > 4.5
    steps = [colour_at(theme.steps, at / 4) for at in range(5)]
    assert min(contrast(colour, theme.surface) for colour in steps) > 2
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
