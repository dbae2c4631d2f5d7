"""What is drawn and written of where heads look."""

import json
import re

import pandas as pd
import pytest

import ivlens
from ivlens import PromptRecipe, head_attention
from ivlens.analysis.attention import AttentionOptions
from ivlens.show.figures.attention import LOOKS, attention_bars
from ivlens.show.figures.found import find_results
from ivlens.show.figures.kinds import draw_all
from ivlens.show.figures.theme import DARK
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
    figure = some.plot()
    assert figure.layout.yaxis.ticktext == ("L5H2", "L0H1") and not figure.layout.annotations
    assert figure.layout.title.text.startswith("<b>Where heads look: antonym</b>")


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
