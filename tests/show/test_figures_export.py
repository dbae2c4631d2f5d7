"""`ivlens figures`: results recognised by content, drawn at printed size, written in every format."""

import json
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from test_evaluation_figures import two
from test_figures import IDENTITY, effects, judged, swept, vector

from ivlens.analysis.attention import HeadAttention
from ivlens.analysis.attention.looked import Looked, LookedAt
from ivlens.cli.main import main
from ivlens.common.store.store import MARK
from ivlens.prompts.recipe import PromptRecipe
from ivlens.show.figures.causal import guidance_plot
from ivlens.show.figures.export import write_set
from ivlens.show.figures.forgetting import forgetting_plot
from ivlens.show.figures.found import find_results
from ivlens.show.figures.images import find_browser
from ivlens.show.figures.interventions import intervention_curves
from ivlens.show.figures.kinds import KINDS_OF_RESULTS, draw_all
from ivlens.show.figures.knowledge import drift_of_table, knowledge_curves
from ivlens.show.figures.maps import head_maps
from ivlens.show.figures.metadata import PX_PER_INCH, sized, titled
from ivlens.show.figures.paper import INCHES, SMALLEST, Paper, for_paper
from ivlens.show.figures.tables import claims_table, condition_table
from ivlens.show.figures.training import forgetting_against_learning, front

BENCH = {"method": "lora", "order": 0, "seed": 0, "lr": 0.001}


def swept_beside_controls() -> pd.DataFrame:
    """Strength 4 is the best one of the vector, 1 that of its control."""
    values = {"iv": {1.0: 0.5, 4.0: 0.9}, "random": {1.0: 0.2, 4.0: 0.1}}
    rows = [
        {
            "task": "antonym", "condition": name, "vector": name, "layer": layer, "alpha": alpha, "site": "resid_post",
            "accuracy": value, "n": 20,
        }
        for name, by_alpha in values.items()
        for alpha, value in by_alpha.items()
        for layer in range(3)
    ]  # fmt: skip
    none = {**rows[0], "alpha": 0.0, "accuracy": 0.25, "layer": 0}
    return pd.DataFrame([*rows, none])


def cells() -> pd.DataFrame:
    kept = {"ap": 0.9, "bwt": -0.4, "gp_change": -0.2, "ip_change": -0.1}
    rows = [
        {**BENCH, "guidance": name, "seed": seed, **kept, "fp": fp + seed / 50, "forget": 0.9 - fp}
        for name, fp in (("none", 0.5), ("kl", 0.8))
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


def scores() -> pd.DataFrame:
    rows = [
        {**BENCH, "guidance": "none", "stage": stage, "trained": "", "task": task, "score": 0.1 * stage}
        for stage in range(3)
        for task in ("first_of_three", "last")
    ]
    return pd.DataFrame(rows)


def moments() -> pd.DataFrame:
    points = {"none": [(0.2, 0.9), (0.8, 0.1), (0.5, 0.05)], "iv": [(0.1, 1.0), (0.4, 0.8)]}
    rows = [
        {**BENCH, "guidance": name, "task": "new one", "step": 10, "new": new, "old": old}
        for name, listed in points.items()
        for new, old in listed
    ]
    return pd.DataFrame(rows)


def looks() -> pd.DataFrame:
    """Where two heads look, in two kinds of prompts."""
    rows = [
        {"task": "one", "prompts": kind, "label": f"L0H{head}", "layer": 0, "head": head, "segment": segment, "n": 4}
        | {"share": share, "low": share - 0.1, "high": share + 0.1}
        for kind in ("clean", "corrupted") for head in range(2)
        for segment, share in (("answers", 0.5), ("query", 0.3), ("template", 0.2))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def watched() -> HeadAttention:
    """Where one head looks in one prompt."""
    shown = LookedAt(
        (0, 1, 2), ("Say", " it", ":"), ("start", "instruction", "template"), torch.tensor([[0.2, 0.7, 0.1]])
    )
    shares = torch.tensor([[[0.2, 0.7, 0.0, 0.0, 0.0, 0.1, 0.0]]])
    settings = {"recipe": PromptRecipe().to_dict()}
    return HeadAttention(((1, 2),), {"clean": Looked(shares, ("big",), (shown,))}, None, "one", IDENTITY, settings)


def study_tables() -> dict[str, pd.DataFrame]:
    """What `ivlens forget`, `dynamics` and `study` write, two checkpoints and two tasks."""
    tasks, kinds = ("one", "two", "all tasks"), ("instruction", "knowledge")
    lost = [
        {"task": task, "measure": "seq_prob", "n": 8, "checkpoint": name}
        | {"excess": 0.5, "excess_lo": 0.1, "excess_hi": 1.0}
        | {f"{kind}_before": 0.9 for kind in kinds}
        | {f"{kind}_after": after for kind in kinds} | {f"{kind}_drop": 0.9 - after for kind in kinds}
        | {f"{kind}_drop_lo": 0.8 - after for kind in kinds} | {f"{kind}_drop_hi": 1.0 - after for kind in kinds}
        for name, after in (("step-10", 0.7), ("step-20", 0.4)) for task in tasks
    ]  # fmt: skip
    lost += [row | {"measure": "greedy"} for row in lost]  # as older tables call it
    stages = [{"checkpoint": f"step-{step}", "step": step, "task": task} for step in (0, 20) for task in tasks[:2]]
    measured = {"accuracy": 0.5, "prob": 0.5, "iv_cosine_fixed": 0.9, "split_half": 0.99, "between_mean": 0.1}
    heads = [
        {**stage, "layer": layer, "head": head, "drift": stage["step"] * (layer + head) / 100}
        for stage in stages for layer in range(2) for head in range(3)
    ]  # fmt: skip
    tests = [
        {"test": test, "task": task, "condition": name, "accuracy": 0.5, "accuracy_lo": 0.4, "accuracy_hi": 0.6}
        for test in ("write", "read") for task in tasks[:2] for name in ("baseline", "iv", "random")
    ]  # fmt: skip
    numbers = {"accuracy": 0.5, "accuracy_lo": 0.4, "accuracy_hi": 0.6, "interval": "Wilson 95 %"}
    received = [
        {"task": task, "into": into, "heads": heads, "k": k, "gain": 0.1, **numbers}
        for task in tasks[:2] for into in ("after", "before")
        for heads, k in (("own", 0), ("vector", 1), ("random", 1), ("vector", 5), ("every", 48))
    ]  # fmt: skip
    spliced = [
        {"task": task, "lower": lower, "layer": layer, **numbers}
        for task in tasks[:2] for lower in ("before", "after") for layer in range(4)
    ]  # fmt: skip
    said = [
        {"run": run, "task": task, "input": "big", "said": "small", "kind": kind}
        for run, kinds in (("before", ("right", "right")), ("none", ("new", "copied"))) for task in tasks[:2]
        for kind in kinds
    ]  # fmt: skip
    claim = {"claim": "a", "text": "It falls_more.", "paper": "5 %", "value": 0.7, "low": 0.5, "high": 0.9}
    return {
        "l": pd.DataFrame(lost), "m": pd.DataFrame([{**stage, **measured} for stage in stages]),
        "n": pd.DataFrame(heads), "o": pd.DataFrame(tests), "s": pd.DataFrame(received), "t": pd.DataFrame(spliced),
        "u": pd.DataFrame(said),
        "q": pd.DataFrame([{**claim, "margin": 0.5, "verdict": "seen"}]),
        "p": pd.DataFrame([{"name": f"instruction_{kind}", "task": "one", "value": 0.5} for kind in ("none", "iv")]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of every kind, under names that say nothing."""
    root = tmp_path_factory.mktemp("results")
    effects().save(root / "effects" / "a.safetensors")
    for place, task in enumerate("abc"):
        vector(task, *(float(at in (place, 3)) for at in range(16))).save(root / "vectors" / f"{place}.safetensors")
    log = pd.DataFrame({"step": [10, 20], "loss": [2.0, 1.0], "new": [0.1, 0.6], "watched": [0.9, 0.5], "judged": 1})
    tables = {
        "b": effects().to_frame(), "c": swept_beside_controls(), "d": judged(), "e": swept(), "f": cells(),
        "g": scores(), "h": moments(), "i": log,
        "j": pd.DataFrame({"task": ["x_y"], "role": ["new"], "before": [0.1], "after": [0.75]}),
        "k": pd.DataFrame({"something": ["else"]}), "r": looks(), **study_tables(),
    }  # fmt: skip
    watched().save(root / "watched" / "x.safetensors")
    evaluation = root / "judged"
    evaluation.mkdir()
    two().to_parquet(evaluation / "rows.parquet")
    vectors = two()[["task", "condition", "variant", "accuracy", "accuracy_lo", "accuracy_hi", "interval"]]
    vectors.assign(vector=["x", "y"] * (len(vectors) // 2)).to_parquet(evaluation / "by_vector.parquet")
    (root / "run").mkdir()
    for name, table in tables.items():
        path = root / "run" / name
        table.to_csv(f"{path}.csv", index=False) if name in "ij" else table.to_parquet(f"{path}.parquet")
    return root


def figures_of(folder: Path) -> dict[str, go.Figure]:
    return {one.name: one.printed() for one in draw_all(find_results(folder))[0] if one.figure is not None}


def test_every_kind_of_file_is_known_by_its_content(folder: Path) -> None:
    found = find_results(folder)
    matched = {kind.name for kind in KINDS_OF_RESULTS for file in found if kind.holds(file)}
    assert matched == {kind.name for kind in KINDS_OF_RESULTS}
    drawings, unknown = draw_all(found)
    assert [file.path.name for file in unknown] == ["k.parquet"]
    assert {one.name for one in drawings if one.figure is not None} == {
        "heads", "similarity", "run-heads", "run-intervention", "run-conditions", "run-strengths", "run-methods",
        "run-scores", "run-forgetting", "run-training", "run-forgotten", "run-forgotten-along", "run-dynamics",
        "run-drift", "run-causal", "run-guidance", "run-attention", "judged-conditions", "judged-conditions-by_k",
        "judged-conditions-necessity", "judged-conditions-vectors", "judged-matrix", "watched-attention",
        "watched-attention-clean", "run-strengths-map", "run-transplant", "run-splices", "run-answers",
    }  # fmt: skip
    assert {one.name for one in drawings if one.table} == {
        "run-conditions", "run-methods", "run-tuning", "run-claims", "judged-conditions"
    }  # fmt: skip
    assert all(one.caption.endswith(".") for one in drawings)


def test_maps_in_several_units_have_a_figure_each_and_none_is_lost(tmp_path: Path) -> None:
    found = effects()
    nats = replace(found, settings={**found.settings, "score": "logprob"})
    prob = replace(found, settings={**found.settings, "score": "prob"})
    for name, one in {"a": nats, "b": nats, "c": prob}.items():
        one.save(tmp_path / f"{name}.safetensors")
    drawings = {one.name: one for one in draw_all(find_results(tmp_path))[0]}
    assert set(drawings) == {"heads-logprob", "heads-prob"}
    assert "on one task in 2 maps" in drawings["heads-logprob"].caption
    titles = [note.text for note in drawings["heads-logprob"].printed().layout.annotations]
    assert titles[:2] == [found.task, f"{found.task} (2)"]
    both = pd.concat([nats.to_frame(), prob.to_frame()])
    with pytest.raises(ValueError, match="nats and probability, expected one score"):
        head_maps(both)
    (tmp_path / "table").mkdir()
    both.to_parquet(tmp_path / "table" / "heads.parquet")
    assert {one.name for one in draw_all(find_results(tmp_path / "table"))[0]} == {"heads-logprob", "heads-prob"}


def test_a_table_of_heads_is_left_out_beside_the_effects_themselves(folder: Path, tmp_path: Path) -> None:
    effects().save(tmp_path / "effects" / "a.safetensors")
    effects().to_frame().to_parquet(tmp_path / "effects.parquet")
    drawings, unknown = draw_all(find_results(tmp_path))
    assert [one.name for one in drawings] == ["heads"] and not unknown


def test_a_file_of_several_tables_is_not_taken_for_one_of_them(tmp_path: Path) -> None:
    heads, judged = effects().to_frame(), pd.DataFrame([{"condition": "iv", "accuracy": 0.5, "accuracy_lo": 0.4}])
    mixed = pd.concat([heads.assign(table="heads"), judged.assign(table="rows")])
    mixed.to_parquet(tmp_path / "cells.parquet")
    drawings, unknown = draw_all(find_results(tmp_path))
    assert not drawings and [file.path.name for file in unknown] == ["cells.parquet"]


def test_a_whole_disk_is_no_folder_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ivlens.show.figures.found._MOST_FILES", 30)
    for hidden in (".git/objects", "store/entries"):
        (tmp_path / hidden).mkdir(parents=True)
        for number in range(40):
            (tmp_path / hidden / f"{number}.csv").write_text("a\n1\n")
    (tmp_path / "store" / MARK).touch()
    (tmp_path / "seen.csv").write_text("a\n1\n")
    assert [each.path.name for each in find_results(tmp_path)] == ["seen.csv"]
    for number in range(40):
        (tmp_path / f"{number}.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="has more than 30 files, expected the folder of a result; name that folder"):
        find_results(tmp_path)


def test_figures_are_the_same_every_time(folder: Path) -> None:
    first, second = figures_of(folder), figures_of(folder)
    assert len(first) == 28
    assert {name: figure.to_json() for name, figure in first.items()} == {
        name: figure.to_json() for name, figure in second.items()
    }


def fonts(node: object, inside: str = "") -> Iterator[float]:
    if isinstance(node, dict):
        if inside.endswith("font") and "size" in node:
            yield node["size"]
        for key, part in node.items():
            yield from fonts(part, key)
    elif isinstance(node, list | tuple):
        for part in node:
            yield from fonts(part, inside)


def test_printed_figures_have_their_size_no_title_and_legible_fonts(folder: Path) -> None:
    widths = {round(PX_PER_INCH * inches) for inches in INCHES.values()}
    for name, figure in figures_of(folder).items():
        content = figure.to_plotly_json()
        assert figure.layout.width in widths and figure.layout.title.text is None, name
        assert min(fonts(content)) >= SMALLEST, name
        heat_only = {trace.type for trace in figure.data} == {"heatmap"}
        unseen = figure.layout.xaxis.visible is False
        assert heat_only or unseen or figure.layout.xaxis.title.text, f"{name}: no title on its axis"


def test_the_figure_for_screens_is_left_alone() -> None:
    figure = intervention_curves(swept_beside_controls())
    before = figure.to_json()
    assert for_paper(figure).layout.title.text is None
    assert figure.to_json() == before and figure.layout.title.text


def test_every_vector_is_shown_at_its_own_best_strength() -> None:
    figure = intervention_curves(swept_beside_controls())
    lines = {trace.name: list(trace.y) for trace in figure.data if trace.name}
    assert lines == {"Instruction Vector": [0.9] * 3, "random vectors": [0.2] * 3, "no vector": [None]}
    assert [shape.y0 for shape in figure.layout.shapes] == [0.25]
    low, high = figure.data[1].customdata[0]
    assert (round(low, 2), round(high, 2)) == (0.70, 0.97)  # Wilson's interval of 18 in 20


def test_vectors_of_one_task_do_not_add_prompts() -> None:
    frame = swept_beside_controls()
    twice = pd.concat([frame, frame.assign(vector="second")], ignore_index=True)
    assert intervention_curves(twice).data[1].customdata == intervention_curves(frame).data[1].customdata


def test_curves_refuse_conditions_they_do_not_know() -> None:
    with pytest.raises(ValueError, match=r"conditions \['mine'\].*expected some of iv, random_heads"):
        intervention_curves(swept_beside_controls().assign(condition="mine"))


def test_the_front_leaves_out_what_another_point_beats() -> None:
    assert front([(0.2, 0.9), (0.5, 0.05), (0.8, 0.1), (0.1, 0.9)]) == [(0.2, 0.9), (0.8, 0.1)]
    figure = forgetting_against_learning(moments())
    lines = {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data}
    assert lines["no guidance"] == [(0.2, 0.9), (0.8, 0.1)] and lines["IV guidance"] == [(0.1, 1.0), (0.4, 0.8)]


def test_one_training_is_drawn_as_the_way_it_took() -> None:
    once = moments().assign(step=[10, 20, 30, 10, 20])
    figure = forgetting_against_learning(once)
    assert list(figure.data[0].x) == [0.2, 0.8, 0.5] and "one training each" in figure.layout.title.text


def test_a_caption_names_the_split_that_was_judged_on(tmp_path: Path) -> None:
    for attrs, said in (({}, "on test inputs"), ({"tasks": [{"split": "select"}]}, "on select inputs")):
        table = judged()
        table.attrs = attrs
        table.to_parquet(tmp_path / "table.parquet")
        assert all(said in one.caption for one in draw_all(find_results(tmp_path))[0])


def test_tables_escape_names_and_carry_an_interval() -> None:
    table = condition_table(judged(("a_b&c",)))
    assert r"{\raggedright a\_\allowbreak{}b\&c\par} & 0.90 & 0.80 {\scriptsize [0.70, 0.90]}" in table
    assert table.count("\\\\\n") == 2 and "mean" not in table
    assert r"\midrule" + "\nmean & 0.90" in condition_table(judged())


def test_the_study_in_figures() -> None:
    tables = study_tables()
    curves = {trace.name: list(trace.y) for trace in knowledge_curves(tables["l"]).data if trace.name}
    assert curves == {"with the instruction": [0.9, 0.7, 0.4], "in clozes without it": [0.9, 0.7, 0.4]}
    with pytest.raises(ValueError, match="measure is 'speed', expected one of accuracy, seq_prob"):
        knowledge_curves(tables["l"], measure="speed")
    assert knowledge_curves(tables["l"], measure="accuracy").data, "which this table calls greedy"
    assert forgetting_plot(tables["l"], measure="accuracy").data
    with pytest.raises(ValueError, match="no rows of the measure 'exact'"):
        forgetting_plot(tables["l"], measure="exact")
    moved = drift_of_table(tables["n"]).data[0].z
    assert moved.shape == (2, 3) and moved[1, 2] == pytest.approx(0.6) and moved[0, 0] == 0
    tables["n"].loc[tables["n"]["step"] > 0, "step"] = -1  # as of a checkpoint whose name has no number
    assert drift_of_table(tables["n"]).data[0].z[1, 2] == pytest.approx(0.6), "another one than the last is drawn"
    table = claims_table(tables["q"])
    assert r"falls\_\allowbreak{}more.\par} & {\raggedright 5 \%\par} & 0.70 {\scriptsize [0.50, 0.90]} & 0.50" in table


def test_a_damaged_file_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    effects().save(tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 40)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "empty.csv").write_text("")
    with caplog.at_level(logging.WARNING, logger="ivlens"):
        found = find_results(tmp_path)
    assert [file.path.name for file in found] == ["good.safetensors"]
    assert sorted(record.args[0].name for record in caplog.records) == ["bad.parquet", "bad.safetensors", "empty.csv"]  # type: ignore[index,union-attr]


def test_what_a_command_keeps_for_going_on_is_no_result(folder: Path, tmp_path: Path) -> None:
    from ivlens.common.store import Store

    table = pd.DataFrame({"method": ["lora"], "guidance": "none", "order": 0, "stage": 1, "trained": "a", "task": "a"})
    kept = Store(tmp_path / "bench" / "store")
    kept.put({"kind": "x"}, lambda place: table.assign(score=0.5).to_parquet(place / "table.parquet"))
    assert find_results(tmp_path) == []
    assert len(find_results(kept.folder)) == 1, "a store that is asked for is read"
    own = tmp_path / "mine" / "store"  # a folder that is only called so
    own.mkdir(parents=True)
    table.to_parquet(own / "scores.parquet")
    assert [found.path.name for found in find_results(tmp_path)] == ["scores.parquet"]


def test_command_writes_html_that_works_offline(folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["figures", "--from", str(folder), "--out", str(tmp_path), "--format", "html,json", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(told["files"]) == sorted(map(str, tmp_path.iterdir())) and told["trouble"] is None
    text = (tmp_path / "run-intervention.html").read_text()
    assert 'src="plotly.min.js"' in text and "https://cdn" not in text and len(text) < 100_000
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000
    assert "`run-tuning.tex`: Accuracy on test inputs" in (tmp_path / "captions.md").read_text()
    assert r"x\_\allowbreak{}y\par} & new & 0.10 & 0.75" in (tmp_path / "run-tuning.tex").read_text()


@pytest.mark.parametrize("browser", ["/bin/false", "no-browser-there", "stuck"])
def test_without_chrome_one_message_and_html(browser: str, folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("kaleido")
    if browser == "stuck":
        script = tmp_path.with_suffix(".sh")
        script.write_text("#!/bin/sh\nexec sleep 600\n")
        script.chmod(0o755)
        browser = str(script)
        monkeypatch.setattr("ivlens.show.figures.images.SECONDS", 3.0)
    monkeypatch.setenv("BROWSER_PATH", browser)
    assert main(["figures", "--from", str(folder), "--out", str(tmp_path), "--format", "pdf,png"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("images need Chrome") == 1 and "apt-get install" in complaint
    assert complaint.rstrip().endswith("HTML was written instead.") and complaint.count("\n") == 1
    suffixes = {path.suffix for path in tmp_path.iterdir()}
    assert suffixes == {".html", ".tex", ".md", ".js"}


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, folder: Path, capsys) -> None:
    assert main(["figures", "--from", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder, expected one with results" in capsys.readouterr().err
    assert main(["figures", "--from", str(tmp_path)]) == 2
    assert "has 0 tables or artefacts, none of a known kind" in capsys.readouterr().err
    assert main(["figures", "--from", str(folder), "--out", str(tmp_path), "--format", "pdf,gif"]) == 2
    assert "formats are gif, expected some of pdf, png, svg, html, json" in capsys.readouterr().err
    assert main(["figures", "--from", str(folder), "--from", str(folder)]) == 2
    assert "expected distinct names" in capsys.readouterr().err


def test_several_folders_start_names(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    effects().save(other / "a.safetensors")
    names = {one.name for one in draw_all(find_results(folder, other))[0]}
    assert f"{folder.name}-run-training" in names and "other-heads" in names


def objects_of(pdf: bytes) -> tuple[bytes, dict[int, int]]:
    """The last trailer of a PDF and where each object begins, read as the format says, from its end."""
    places, last, at = dict[int, int](), b"", int(re.findall(rb"startxref\n(\d+)\n%%EOF\n?$", pdf)[0])
    while at:
        table = re.match(
            rb"xref\n((?:\d+ \d+ ?\n(?:\d{10} \d{5} [nf] ?\n)+)+)trailer\n(<<.*?>>)\nstartxref", pdf[at:], re.DOTALL
        )
        assert table is not None, "a table of objects stands where the file says"
        for first, rows in re.findall(rb"(\d+) \d+ ?\n((?:\d{10} \d{5} [nf] ?\n)+)", table[1]):
            for number, (place, kind) in enumerate(re.findall(rb"(\d{10}) \d{5} ([nf])", rows), int(first)):
                if kind == b"n":
                    places.setdefault(number, int(place))
        last = last or table[2]
        before = re.search(rb"/Prev (\d+)", table[2])
        at = int(before[1]) if before else 0
    return last, places


def test_pdf_has_the_printed_size_its_fonts_and_a_title_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    if not find_browser():
        pytest.skip("needs Chromium (Debian: apt-get install --no-install-recommends chromium fonts-dejavu-core)")
    effects().save(tmp_path / "a.safetensors")
    drawings = draw_all(find_results(tmp_path, names={"antonym": "Gegenteile – 反义词"}))[0]
    files, trouble = write_set(drawings, tmp_path / "out", ["pdf", "png"], Paper(column=3.0, page=6.0))
    assert not trouble and [path.name for path in files] == ["captions.md", "heads.pdf", "heads.png"]
    content = (tmp_path / "out" / "heads.pdf").read_bytes()
    assert b"/FontFile2" in content and b"CreationDate" not in content
    width = float(content.split(b"/MediaBox [0 0 ")[1].split()[0])
    assert abs(width / 72 - 3.0) < 0.05
    trailer, places = objects_of(content)
    for number, place in places.items():
        assert content[place:].startswith(b"%d 0 obj" % number), "every object is where the tables say"
    told = int(re.search(rb"/Info (\d+) 0 R", trailer)[1])
    title = re.match(rb"\d+ 0 obj\n<</Title <FEFF([0-9A-F]+)>", content[places[told] :])[1]
    assert bytes.fromhex(title.decode()).decode("utf-16-be") == "Effect of each head: Gegenteile – 反义词"
    assert int(re.search(rb"/Size (\d+)", trailer)[1]) == max(places) + 1
    png = (tmp_path / "out" / "heads.png").read_bytes()
    assert struct.unpack(">II", png[16:24])[0] == 900
    at = png.index(b"pHYs")
    assert struct.unpack(">IIB", png[at + 4 : at + 13]) == (11811, 11811, 1), "300 pixels per inch"
    assert struct.unpack(">I", png[at + 13 : at + 17])[0] == zlib.crc32(png[at : at + 13]) and at == 37


def test_files_that_are_built_otherwise_stay_as_they_are() -> None:
    assert titled(b"%PDF-1.7\nstream without a table", "x") == b"%PDF-1.7\nstream without a table"
    assert sized(b"no png", 2.0) == b"no png"


def test_papers_have_widths_and_a_font_of_their_own(folder: Path, tmp_path: Path, capsys) -> None:
    ask = ["figures", "--from", str(folder), "--out", str(tmp_path), "--format", "json", "--json"]
    assert main([*ask, "--width", "3.03,6.3", "--font", "Times New Roman", "--rename", "x=The X & co."]) == 0
    shown = json.loads((tmp_path / "judged-conditions.json").read_text())
    assert shown["layout"]["width"] == round(96 * 6.3) and "The X & co." in shown["layout"]["yaxis"]["ticktext"]
    assert shown["layout"]["font"]["family"].startswith("Times New Roman, Helvetica")
    assert json.loads((tmp_path / "heads.json").read_text())["layout"]["width"] == round(96 * 3.03)
    assert r"The X \& co." in (tmp_path / "judged-conditions.tex").read_text()
    capsys.readouterr()
    for wrong, said in {
        ("--width", "wide"): "--width is 'wide', expected one or two numbers of inches, such as 3.25,6.75",
        ("--width", "1,2,3"): "--width is '1,2,3', expected one or two numbers",
        ("--width", "300"): "column is 300 inches, expected 1.5 to 20",
        ("--font", "<script>"): "font is '<script>', expected names of fonts",
        ("--rename", "x"): "--rename is 'x', expected a task and its label",
        ("--rename", "zzz=a"): "renamed is 'zzz', expected a task of these results: ",
    }.items():
        assert main([*ask, *wrong]) == 2 and said in capsys.readouterr().err, wrong


@pytest.mark.parametrize("name", ["/home/me/models/tuned", "owner/tuned", r"C:\models\tuned", "tuned"])
def test_captions_hold_no_paths(name: str, tmp_path: Path) -> None:
    replace(effects(), model=replace(IDENTITY, name=name)).save(tmp_path / "x.safetensors")
    caption = draw_all(find_results(tmp_path))[0][0].caption
    assert "every head of tuned on" in caption and "/" not in caption


def test_every_colour_has_its_name_and_no_text_stands_on_a_curve(folder: Path) -> None:
    """In the legend, on the axis or at a colour bar: colours of marks and lines that several conditions have."""
    for name, figure in figures_of(folder).items():
        marks = [trace for trace in figure.data if trace.type == "scatter"]
        dashes = {shape.line.dash for shape in figure.layout.shapes} & {"dash", "dot"}
        assert dashes <= {trace.line.dash for trace in marks if trace.name}, f"{name}: a line without a name"
        if any("lines" in (trace.mode or "") and trace.name for trace in marks):
            inside = [note for note in figure.layout.annotations if not str(note.yref).startswith("paper")]
            assert not inside, f"{name}: {[note.text for note in inside]} among curves"
            colours = {trace.line.color for trace in marks if trace.line.color}
            shown = {trace.line.color for trace in marks if trace.name and trace.showlegend is not False}
            assert colours <= shown, f"{name}: a colour without a name"


def test_what_guides_is_told_from_what_it_is_compared_with() -> None:
    found = guidance_plot(study_tables()["p"])
    by_name = {trace.name: trace for trace in found.data if trace.showlegend}
    assert list(by_name["guidance"].x) == list(by_name["no guidance, or without its content"].x) == [0.5]
    assert by_name["guidance"].marker.color != by_name["no guidance, or without its content"].marker.color
