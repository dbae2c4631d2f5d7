"""What is drawn and written of where heads look."""

import json
import re
from dataclasses import replace
from html import escape

import pandas as pd
import pytest
import torch

import ivlens
from ivlens import PromptRecipe, head_attention
from ivlens.analysis.attention import AttentionOptions
from ivlens.analysis.attention.looked import LookedAt
from ivlens.show.figures.attention import LOOKS, attention_bars
from ivlens.show.figures.found import find_results
from ivlens.show.figures.kinds import draw_all
from ivlens.show.figures.theme import DARK, LIGHT, colour_at
from ivlens.show.figures.tokens import attention_tokens
from ivlens.show.pages.attention import page, write_page


@pytest.fixture(scope="module")
def found():
    model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
    return head_attention(model, task, recipe=PromptRecipe(n_shots=3), n_prompts=6)


def test_each_bar_is_one_head_and_kind_and_sums_to_one(found):
    figure = attention_bars(found.frame(), top=99)
    assert [trace.name for trace in figure.data] == [LOOKS[name].label for name in LOOKS if name != "sink"]
    assert sum(sum(trace.x) for trace in figure.data) == pytest.approx(2 * 48, abs=1e-3)
    assert figure.layout.yaxis.ticktext[:3] == ("L0H0 · clean", "L0H0 · shuffle", "L0H1 · clean")
    answers = next(trace for trace in figure.data if trace.name == "demonstrations' answers")
    share, low, high = found.share("L0H1", "answers", "shuffle")
    assert answers.x[3] == pytest.approx(share) and answers.customdata[3] == pytest.approx((low, high))
    assert figure.layout.annotations[1].text == "induction {:.2f}, previous {:.2f}".format(*found.scores.of((0, 1)))
    assert figure.layout.annotations[1].y == 2, "scores stand beside the head's first bar"
    assert "attention from the last prompt token · 6 prompts of each kind" in figure.layout.title.text


def test_of_many_heads_those_that_look_at_the_task_are_drawn(found):
    figure = attention_bars(found.frame(), top=3, theme=DARK)
    frame = found.frame()
    told = frame[(frame["prompts"] == "clean") & frame["segment"].isin(["instruction", "inputs", "answers"])]
    best = told.groupby("label")["share"].sum().sort_values(ascending=False).index[:3]
    assert [text.split(" ")[0] for text in figure.layout.yaxis.ticktext[::2]] == list(best)
    assert "the 3 of 48 heads that look most at what tells the task" in figure.layout.title.text
    assert figure.layout.paper_bgcolor == DARK.surface


def test_a_few_heads_stay_in_their_order(found):
    some = head_attention(
        ivlens.load_model("pocket"), ivlens.load_task("antonym"), ["L5H2", "L0H1"], n_prompts=4,
        options=AttentionOptions(scores=None),
    )  # fmt: skip
    figure = some.plot_shares()
    assert figure.layout.yaxis.ticktext == ("L5H2", "L0H1") and not figure.layout.annotations
    assert figure.layout.title.text.startswith("<b>Where heads look: antonym</b>")


def texts_of(figure) -> list:
    """The traces with the tokens of each head."""
    return [trace for trace in figure.data if trace.mode == "text"]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_tokens_are_shaded_by_weight_and_lined_by_segment(found, theme):
    figure = attention_tokens(found, ["L0H1"], prompts="shuffle", theme=theme)
    (trace,) = texts_of(figure)
    tokens = found.tokens("L0H1", 0, "shuffle")
    assert len(trace.text) == len(tokens) == len(figure.layout.shapes) / 2
    assert [text.replace("⏎", "").strip("␣") for text in trace.text] == [
        escape(text.replace("\n", "").strip(" ")) for text in tokens["token"]
    ]  # fmt: skip
    assert [weight for _, weight in trace.customdata] == pytest.approx(tokens["weight"].tolist())
    most = max(tokens["weight"][1:])
    for token, ground, line in zip(
        tokens.to_dict("records"), figure.layout.shapes[::2], figure.layout.shapes[1::2], strict=True
    ):
        assert ground.fillcolor == colour_at(((0.0, theme.surface), (1.0, theme.accent)), token["weight"] / most)
        look = LOOKS[token["segment"]]
        assert line.fillcolor == (look.light if theme is LIGHT else look.dark) and line.x0 == ground.x0
    inside = [
        shape.x0 <= x <= shape.x1 and shape.y0 <= y <= shape.y1
        for x, y, shape in zip(trace.x, trace.y, figure.layout.shapes[::2], strict=True)
    ]
    assert all(inside), "texts stand on their own ground"
    named = {entry.name for entry in figure.data if entry.name}
    assert named == {LOOKS[name].label for name in set(tokens["segment"])}
    bar = figure.data[-1].marker
    assert (bar.cmin, bar.cmax, bar.colorbar.title.text) == (0, pytest.approx(most), "attention (share)")


def test_one_result_draws_the_heads_that_look_at_the_task(found):
    drawn = [note.text[3:].split("<")[0] for note in found.plot().layout.annotations]
    frame = found.frame()
    told = frame[(frame["prompts"] == "clean") & frame["segment"].isin(["instruction", "inputs", "answers"])]
    assert drawn == list(told.groupby("label")["share"].sum().sort_values(ascending=False).index[:3])
    assert len(texts_of(found.plot((0, 1)))) == len(texts_of(found.plot("l0h1"))) == 1
    assert len(texts_of(found.plot(["L0H1", (5, 2)], prompt=1))) == 2
    with pytest.raises(ValueError, match="heads is empty, expected one head or more"):
        found.plot([])
    assert attention_tokens(found, "L0H1").to_json() == attention_tokens(found, ["L0H1"]).to_json()
    with pytest.raises(ValueError, match="head is 'L99H0', expected one of the heads that were watched"):
        found.plot("L99H0")
    with pytest.raises(ValueError, match="prompt is 6, expected a number below 6"):
        found.plot("L0H1", 6)


def test_short_prompts_stand_beside_one_another_and_long_ones_below(found):
    clean = found.looked["clean"]
    short = replace(clean.shown[0], texts=tuple("ab\n"[at % 3] for at in range(len(clean.shown[0].texts))))
    beside = texts_of(replace(found, looked={"clean": replace(clean, shown=(short,))}).plot())
    assert len({min(trace.y) for trace in beside}) == 1 and min(beside[1].x) > max(beside[0].x)
    long = replace(clean.shown[0], texts=tuple(f" {text}{'x' * 20}" for text in clean.shown[0].texts))
    below = texts_of(replace(found, looked={"clean": replace(clean, shown=(long,))}).plot())
    assert len(below) == 3 and max(below[1].y) < min(below[0].y)
    assert max(max(trace.x) for trace in below) < 84, "lines end where they are full"


def test_of_a_very_long_prompt_its_end_is_drawn_and_html_stays_text(found):
    clean, n = found.looked["clean"], 1000
    many = LookedAt(
        tuple(range(n)), tuple(f"<b>{number}</b>" for number in range(n)), ("query",) * n, torch.ones(48, n) / n
    )
    figure = replace(found, looked={"clean": replace(clean, shown=(many,))}).plot("L0H0")
    (trace,) = texts_of(figure)
    assert len(trace.text) == 400 and trace.text[-1] == "&lt;b&gt;999&lt;/b&gt;"
    assert "the last 400 of 1000 tokens" in figure.layout.title.text


def test_a_saved_result_is_drawn_by_the_command_with_scores_beside_the_bars(found, tmp_path):
    found.save(tmp_path / "x.safetensors")
    found.frame().to_parquet(tmp_path / "attention.parquet")
    drawings, unknown = draw_all(find_results(tmp_path))
    assert [drawing.name for drawing in drawings] == ["attention", "attention-clean", "attention-shuffle"]
    assert not unknown, "the table shows less than the file"
    printed = drawings[0].printed()
    longest = max(len(note.text) for note in printed.layout.annotations)
    assert printed.layout.margin.r > 4.5 * longest, "scores need room beside the bars"


def test_wrong_tables_are_refused(found):
    with pytest.raises(ValueError, match=r"lacks the columns segment, .*expected what HeadAttention.frame\(\) returns"):
        attention_bars(found.frame().drop(columns="segment"))
    frame = found.frame()
    with pytest.raises(ValueError, match="the table has 2 tasks, expected one; draw each by itself"):
        attention_bars(pd.concat([frame, frame.assign(task="other")]))


def test_the_page_shows_tables_prompts_and_the_figure_in_both_themes(found, tmp_path):
    path = write_page(found, tmp_path / "index.html", files=("attention.parquet",))
    text = path.read_text(encoding="utf-8")
    assert "$" not in re.sub(r"<script.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1])
    assert set(figures["attention"]) == {"light", "dark"}
    assert text.count("<tr><th>L") == 2 * 20 and '<a href="attention.parquet">' in text
    assert text.count('<div class="card below"><h3>L') == 6
    share, low, high = found.share("L0H7", "instruction")
    assert f"<td class=n>{share:.2f}<small>{low:.2f} to {high:.2f}</small></td>" in text
    chips = re.findall(r'--share:([\d.]+)" title="([^"]+)">([^<]*)<', text)
    assert max(float(strength) for strength, _, _ in chips) == pytest.approx(2.2, abs=1e-3)
    assert any("instruction: 0." in title for _, title, _ in chips) and any("⏎" in token for _, _, token in chips)


def test_texts_of_others_are_escaped_on_the_page():
    from dataclasses import replace

    task = replace(ivlens.load_task("antonym"), name="<b>x</b>", instructions=("Say <script>alert(1)</script> it.",))
    some = head_attention(ivlens.load_model("pocket"), task, ["L0H1"], n_prompts=2)
    assert (
        "<script>alert" not in page(some) and "<b>x</b>" not in page(some) and "<script>alert" not in some._repr_html_()
    )


def test_kept_tables_are_drawn_by_their_columns(found, tmp_path):
    found.frame().to_parquet(tmp_path / "attention.parquet")
    drawings, unknown = draw_all(find_results(tmp_path))
    assert [drawing.name for drawing in drawings] == ["attention"] and not unknown
    assert "6 prompts" in drawings[0].caption and len(drawings[0].figure.data) == 6
