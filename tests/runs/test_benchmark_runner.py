"""Cells and grids: what they measure, that they are kept, and that they go on where they stopped."""

import errno
import json
import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import WORDS, chained, tiny_task
from pickles import assert_no_pickle

from ivlens.common.store import Store, StoreError, content_key, verify
from ivlens.common.store.entries import MANIFEST, _seal
from ivlens.runs.suites import (
    BenchOptions,
    Cell,
    CellResult,
    Grid,
    Suite,
    all_cells,
    latex,
    markdown,
    run_cell,
    summary,
)
from ivlens.runs.suites.keeping import write_cell
from ivlens.runs.suites.report import write_report
from ivlens.tasks import Task, TaskExample
from ivlens.tuning import TuneOptions, find_guidance

OPTIONS = BenchOptions(
    tune=TuneOptions(lr=1e-2, steps=4, batch_size=4, judge_every=2, n_samples=8, n_prompts=4), n_general=4, n_earlier=1
)


@pytest.fixture(scope="module")
def suite():
    tasks = (
        tiny_task("antonym", "Give the opposite of the word.", 1, kind="lexical"),
        tiny_task("second", "Give another word.", 2, kind="lexical"),
    )
    general = (tiny_task("third", "Give a third word.", 3, kind="lexical"),)
    return Suite("pocket", tasks, dict.fromkeys(("antonym", "second", "third"), "suite_accuracy"), general)


def test_a_cell_measures_every_task_at_every_stage(llama, suite):
    result = run_cell(llama, suite, Cell("lora"), OPTIONS)
    assert np.array(result.scores).shape == (3, 2)
    assert [row["step"] for row in result.curves[0]] == [2, 4]
    assert [sorted(rows) for rows in (result.gp[0], result.ip[-1])] == [["third"], ["third"]]
    assert result.metrics.forget == pytest.approx(result.metrics.ap - result.metrics.fp)
    assert CellResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(
    "guidance",
    [
        "iv",
        "kl/zero_vector",
        "heads/random_heads",
        "vectors/random_vector",
        "instructions",
        "instruction_heads/all_heads",
    ],
)
def test_every_guidance_runs_and_changes_the_training(llama, suite, guidance):
    result = run_cell(llama, suite, Cell("full", guidance), OPTIONS)
    assert len(result.curves) == 2


@pytest.mark.parametrize("target", [-0.1, 1.5, float("nan")])
def test_a_target_that_is_no_score_is_refused(target):
    with pytest.raises(ValueError, match=r"target is .*, expected a score from 0 to 1"):
        BenchOptions(target=target)


def test_training_ends_at_the_target(llama, suite):
    result = run_cell(llama, suite, Cell("full"), replace(OPTIONS, target=0.0))
    assert [len(curve) for curve in result.curves] == [1, 1]


def test_training_ends_when_patience_does(llama, suite):
    tune = replace(OPTIONS.tune, steps=12, lr=1e-12, patience=2)  # which learns nothing
    result = run_cell(llama, suite, Cell("full"), replace(OPTIONS, tune=tune))
    assert [[row["step"] for row in curve] for curve in result.curves] == [[2, 4, 6], [2, 4, 6]]


def test_with_patience_the_step_that_forgets_least_at_the_target_is_kept(llama, suite, monkeypatch):
    """Of all judgements the best new score counts below the target, and only the old score above it."""
    from ivlens.runs.suites import cells

    rows = iter([(0.2, 1.0), (0.6, 0.1), (0.5, 0.7), (0.9, 0.3), (0.8, 0.2), (0.3, 0.9), (0.9, 0.1), (0.6, 0.7)])
    monkeypatch.setattr(cells.Scorer, "scores", lambda self, learner: {"one": next(values)})
    values = (score for row in rows for score in row)
    options = replace(OPTIONS, tune=replace(OPTIONS.tune, steps=20, patience=4), target=0.5)
    run = cells._Run(llama, suite, Cell("full"), options, {})
    curve = run.learn(1, suite.tasks[1], lambda row: None)
    # four at the target after the third, which is kept
    assert [row["new"] for row in curve] == [0.2, 0.6, 0.5, 0.9, 0.8, 0.3, 0.9, 0.6]
    assert not options.ends_at(0.9) and replace(options, tune=OPTIONS.tune).ends_at(0.5)


def test_a_task_scored_by_rouge_is_judged_by_rouge_on_the_way(llama, monkeypatch):
    """Target, patience and curves see what the suite scores, and the other tasks' answers are not written out."""
    from ivlens.runs.suites import rouge_l, scores, split_examples

    names = ("summary", "labels", "bank")
    tasks = [tiny_task(name, f"Do {name}.", shift) for shift, name in enumerate(names, 1)]
    tasks[2] = replace(tasks[2], kind="lexical")
    suite = Suite(
        "trace",
        tuple(tasks[:2]),
        dict(zip(names, ("rouge_l", "suite_accuracy", "suite_accuracy"), strict=True)),
        (tasks[2],),
    )

    inputs = {side: split_examples(tasks[0], side) for side in ("select", "test")}
    text, asked = " ".join(one.answer for one in inputs["select"][:3]), []

    def written(bridge, prompts, **options):
        asked.extend(prompts)
        return [text] * len(prompts)

    monkeypatch.setattr(scores, "complete", written)
    options = replace(OPTIONS, tune=replace(OPTIONS.tune, n_prompts=50))
    result = run_cell(llama, suite, Cell("lora"), options)
    want = {side: np.mean([rouge_l(text, one.answers) for one in listed]) for side, listed in inputs.items()}
    assert 0 < want["select"] < 1
    assert [row["new"] for row in result.curves[0]] == pytest.approx([want["select"]] * 2)
    assert result.scores[1][0] == pytest.approx(want["test"])
    assert not any("Do bank" in prompt for prompt in asked)
    labelled = {one.input for one in split_examples(tasks[1], "select")}
    assert not any("Do labels" in prompt and f"Input: {word}\n" in prompt for prompt in asked for word in labelled)
    stopped = run_cell(llama, suite, Cell("lora"), replace(options, target=want["select"] - 1e-6))
    assert len(stopped.curves[0]) == 1


def test_the_suites_metric_wants_nothing_behind_an_answer(new_model, byte_level):
    """By tokens as by text: `suite_accuracy` is about the whole line, whatever `accuracy` says elsewhere."""
    from ivlens.runs.suites.scores import Scorer
    from ivlens.tuning import Learner, make_exam

    task = Task("number", tuple(TaskExample(word, ("1",)) for word in WORDS), ("Give it.",), kind="lexical")
    for piece, expected in ((".", 0.0), ("Ċ", 1.0)):
        links = byte_level.convert_tokens_to_ids([":", "Ġ", "1", piece])
        model = chained(new_model("llama", byte_level, n_layers=2), dict(zip(links, links[1:], strict=False)))
        suite = Suite("pocket", (task,), {"number": "suite_accuracy"})
        learner = Learner(model, "full")
        assert Scorer(model, suite, suite.tasks, n_prompts=5).scores(learner) == {"number": expected}
        assert make_exam(model, [(task, task.examples)]).sit(learner.trained) == {"number": 1.0}
    assert suite.score("number", "1", ("1",)) == 1.0 and suite.score("number", "1 dog", ("1",)) == 0.0


def test_what_a_result_depends_on(llama, suite, tmp_path, monkeypatch):
    from ivlens.prompts import PromptRecipe
    from ivlens.tuning.builder import RECIPES, find_guidance

    def key(cell=None, suite=suite, **changed):
        grid = Grid(llama, lambda order: suite, replace(OPTIONS, **changed), tmp_path)
        return content_key(grid.what(cell or Cell("lora")))

    first, more = suite.tasks
    shown = replace(first, examples=first.examples[:-1])
    keys = [
        key(),
        key(Cell("lora", seed=1)),
        key(Cell("lora", "iv")),
        key(Cell("full")),
        key(tune=replace(OPTIONS.tune, patience=2)),
        key(few_shots=OPTIONS.few_shots + 1),
        *(key(recipe=one) for one in (PromptRecipe(seed=1), PromptRecipe("qa"), PromptRecipe(n_shots=2))),
        key(suite=replace(suite, metrics={**suite.metrics, first.name: "rouge_l"})),
        key(suite=replace(suite, tasks=(more, first))),
        key(suite=replace(suite, tasks=(shown, more))),
        key(suite=replace(suite, tasks=(replace(first, instructions=("Say.",)), more))),
    ]
    assert len(set(keys)) == len(keys)
    # where files lie is no part of it, and what a guidance's name means is
    assert key(suite=replace(suite, source="elsewhere")) == keys[0]
    before, plan = key(Cell("lora", "iv")), find_guidance("iv")[0]
    monkeypatch.setitem(RECIPES, "iv", replace(plan, n_prompts=plan.n_prompts + 1))
    assert key(Cell("lora", "iv")) != before


def test_a_suite_of_tasks_that_demonstrations_tell(llama, monkeypatch):
    """Function vectors have no instructions: they are trained on, judged and kept by demonstrations of training."""
    from ivlens.runs.suites import split_examples
    from ivlens.runs.suites.cells import training_set

    def parted(task):
        parts = ["train"] * 12 + ["eval"] * 4 + ["test"] * (len(task.examples) - 16)
        examples = tuple(replace(one, part=part) for one, part in zip(task.examples, parts, strict=True))
        return replace(task, examples=examples, instructions=())

    tasks = [parted(tiny_task(f"task{n}", shift=n, kind="lexical")) for n in (1, 2, 3)]
    metrics = dict.fromkeys(("task1", "task2", "task3"), "suite_accuracy")
    suite = Suite("func", tuple(tasks[:2]), metrics, tuple(tasks[2:]))
    held = {one.input for one in tasks[0].examples} - {one.input for one in split_examples(tasks[0], "train")}
    texts = []

    def watched(model, task, examples, **more):
        data = training_set(model, task, examples, **more)
        texts.extend(
            model.tokenizer.decode(row[mask == 1]) for row, mask in zip(data.tokens, data.attention_mask, strict=True)
        )
        return data

    monkeypatch.setattr("ivlens.runs.suites.cells.training_set", watched)
    result = run_cell(llama, suite, Cell("lora", "answers"), replace(OPTIONS, few_shots=2))
    assert len(result.scores) == 3 and len(result.ip) == 2 and len(texts) == 16
    assert all(text.count("Input: ") > 2 and "Instruction" not in text for text in texts)
    assert not any(f"Input: {word}\n" in text for text in texts for word in held), "what is judged is shown in training"


def test_unknown_guidance_is_named():
    with pytest.raises(ValueError, match="guidance is 'vi', expected one of none, iv"):
        find_guidance("vi")
    with pytest.raises(ValueError, match="guidance is 'none/zero_vector'"):
        find_guidance("none/zero_vector")


def test_a_grid_is_kept_cell_by_cell_and_goes_on(llama, suite, tmp_path):
    cells = all_cells(["full", "lora"], ["none"], [0], [0])
    first = Grid(llama, lambda order: suite, OPTIONS, tmp_path)
    with pytest.raises(KeyboardInterrupt):

        def interrupt(cell, row):
            if cell.method == "lora":
                raise KeyboardInterrupt

        Grid(llama, lambda order: suite, OPTIONS, tmp_path, on_step=interrupt).run(cells)
    assert first.kept(cells[0]) is not None and first.kept(cells[1]) is None
    steps = []
    again = Grid(llama, lambda order: suite, OPTIONS, tmp_path, on_step=lambda cell, row: steps.append(cell.method))
    results = again.run(cells)
    assert set(steps) == {"lora"} and len(results) == 2
    write_report(results, tmp_path)
    assert_no_pickle(tmp_path, "scores.parquet", "table.tex")
    listed = Store(tmp_path / "store").entries("sequences")
    assert [entry.labels["method"] for entry in listed] == ["full", "lora"]
    assert_no_pickle(listed[0].folder, "result.json", "table.parquet", "manifest.json")
    assert len(grid_frame := Store(tmp_path / "store").frame()) == 2 * 6 and set(grid_frame["stage"]) == {0, 1, 2}
    alone = run_cell(llama, suite, cells[1], OPTIONS)
    assert results[1].scores == alone.scores and results[1].curves == alone.curves


def test_another_benchmark_in_the_same_folder_is_run_beside_it(llama, suite, tmp_path):
    steps = []
    for _ in range(2):
        for options in (OPTIONS, replace(OPTIONS, few_shots=2)):
            grid = Grid(llama, lambda order: suite, options, tmp_path, on_step=lambda cell, row: steps.append(row))
            grid.run([Cell("full")])
    assert len(Store(tmp_path / "store").entries()) == 2 and len(steps) == 2 * 2 * OPTIONS.tune.steps


RESULT = CellResult(Cell("full"), ("antonym", "second"), [[0.0, 0.5]] * 3, [], [], [[], []], 2.5)


def put(grid: Grid, result: CellResult) -> Path:
    """Keep a result as if it had been run; its file."""
    entry = grid.store.put(grid.what(result.cell), lambda folder: write_cell(result, folder))
    return entry.path("result.json")


def resealed(entry: Path) -> None:
    """Write the manifest anew for files that were changed, as someone would who knows how."""
    about = json.loads((entry / MANIFEST).read_text())
    about.pop("seal")
    data = (entry / "result.json").read_bytes()
    about["files"]["result.json"] = [sha256(data).hexdigest(), len(data)]
    (entry / MANIFEST).write_text(json.dumps(about | {"seal": _seal(about)}))


@pytest.mark.parametrize("change", ["cut", "changed", "lost", "nested", "a folder"])
def test_a_damaged_result_is_run_again(llama, suite, tmp_path, caplog, monkeypatch, change):
    grid = Grid(llama, lambda order: suite, OPTIONS, tmp_path)
    rows = [{"step": 2, "new": 0.5, "old": float("nan")}]
    path = put(grid, replace(RESULT, curves=[rows, []]))
    before, text = grid.kept(RESULT.cell), path.read_text()
    assert before is not None and before.seconds == grid.store.entries()[0].made["seconds"]
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change != "lost":
        changes = {"cut": text[:100], "changed": text.replace('"step": 2', '"step": 3'), "nested": "[" * 100_000}
        path.write_text(changes[change])
    monkeypatch.setattr("ivlens.runs.suites.runner.run_cell", lambda *args, **more: RESULT)
    assert grid.kept(RESULT.cell) is None and "it is set aside" in caplog.text
    assert grid.run([RESULT.cell])[0].scores == RESULT.scores and verify(grid.store)[0] == 1


def test_values_that_no_cell_comes_to_are_not_served(llama, suite, tmp_path, caplog):
    """Even where the manifest says that the file is whole."""
    grid = Grid(llama, lambda order: suite, OPTIONS, tmp_path)
    faults = [("scores", [[0.0, 2.0]] * 3), ("scores", ["ab"] * 3), ("gp", [{"a": 1.0}]), ("curves", [[{}], []])]
    for name, value in [*faults, ("tasks", ["a", "a"]), ("cell", {"method": 3})]:
        path = put(grid, RESULT)
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {name: value}))
        resealed(path.parent)
        assert grid.kept(RESULT.cell) is None, (name, value)
    assert caplog.text.count("is no result of a cell") == len(faults) + 2
    put(grid, RESULT)
    assert grid.kept(RESULT.cell).scores == RESULT.scores


def test_two_processes_run_no_cell_twice(llama, suite, tmp_path, monkeypatch):
    """The second one comes while the first is at it, waits, and takes its result."""
    monkeypatch.setattr("ivlens.runs.suites.runner.run_cell", lambda *args, **more: pytest.fail("run twice"))
    grid = Grid(llama, lambda order: suite, OPTIONS, tmp_path)
    held = threading.Event()

    def first() -> None:
        what = grid.what(RESULT.cell)
        with grid.store.alone(content_key(what)):
            held.set()
            time.sleep(0.5)
            grid.store.put(what, lambda folder: write_cell(RESULT, folder))

    other = threading.Thread(target=first)
    other.start()
    held.wait()
    assert [one.scores for one in grid.run([RESULT.cell])] == [RESULT.scores]
    other.join()


def test_a_full_disk_ends_a_grid_and_loses_nothing(llama, suite, tmp_path, monkeypatch):
    import ivlens.common.store.entries as entries

    grid = Grid(llama, lambda order: suite, OPTIONS, tmp_path)
    put(grid, RESULT)
    monkeypatch.setattr("ivlens.runs.suites.runner.run_cell", lambda *args, **more: replace(RESULT, cell=Cell("lora")))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(entries, "flush", full)
    with pytest.raises(StoreError, match="cannot be written to .*free some room"):
        grid.run([RESULT.cell, Cell("lora")])
    assert verify(grid.store) == (1, []) and not grid.failed


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(llama, suite, tmp_path):
    grid = Grid(llama, lambda order: suite, OPTIONS, tmp_path)
    results = grid.run([Cell("no such method"), Cell("full")])
    assert len(results) == 1 and list(grid.failed) == [Cell("no such method")]
    assert "method is 'no such method'" in grid.failed[Cell("no such method")]
    (about,) = grid.store.failures().values()
    assert about["cell"] == "no such method-none-order0-seed0" and "Traceback" in about["traceback"]


def result_of(method, guidance, seed, forget, gp_lost):
    scores = [[0.0, 0.0], [0.9, 0.0], [0.9 - 2 * forget, 0.9]]
    gp = [{"a": 1.0}, {"a": 1.0 - gp_lost}]
    return CellResult(Cell(method, guidance, seed=seed), ("x", "y"), scores, gp, gp, [[], []], 1.0)


def test_the_summary_judges_guidance_run_by_run():
    results = [result_of("lora", "none", seed, 0.2 + 0.01 * seed, 0.4) for seed in range(3)]
    results += [result_of("lora", "heads", seed, 0.05, 0.1) for seed in range(3)]
    results += [result_of("lora", "kl", seed, 0.3, 0.4) for seed in range(3)]
    table = summary(results).set_index("guidance")
    assert table.loc["none", "forget"] == pytest.approx(0.21)
    assert table.loc["heads", "forget_verdict"] == "holds" and table.loc["heads", "gp_verdict"] == "holds"
    assert table.loc["kl", "forget_verdict"] == "does not hold" and table.loc["kl", "gp_verdict"] == "does not hold"
    assert pd.isna(table.loc["none", "forget_verdict"])


def test_reports_hold_the_whole_matrix(tmp_path):
    results = [result_of("lora", kind, 0, 0.1, 0.1) for kind in ("none", "iv/zero_vector")]
    table = write_report(results, tmp_path)
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert len(scores) == 2 * 3 * 2 and set(scores.stage) == {0, 1, 2}
    assert len(pd.read_parquet(tmp_path / "cells.parquet")) == 2
    assert markdown(table).count("\n") == 4 and r"lora + iv/\allowbreak{}zero\_\allowbreak{}vector" in latex(table)
    assert (tmp_path / "table.tex").read_text() == latex(table)


def test_a_result_of_another_cell_is_not_taken_for_this_one(llama, suite, tmp_path):
    grid, other = Grid(llama, lambda order: suite, OPTIONS, tmp_path), Cell("full", seed=1)
    path = put(grid, RESULT)
    place = grid.store.place(content_key(grid.what(other)))
    place.parent.mkdir(parents=True, exist_ok=True)
    path.parent.rename(place)
    assert grid.kept(other) is None and grid.kept(RESULT.cell) is None


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_of_test_enters_guidance(llama, monkeypatch, seed):
    """Neither by the hash of a seed's own splits, nor from a test file."""
    from ivlens.runs.suites import cells, split_examples
    from ivlens.tuning.terms import measuring

    def parted(task):
        parts = ["train"] * 12 + ["eval"] * 4 + ["test"] * (len(task.examples) - 16)
        examples = tuple(replace(one, part=part) for one, part in zip(task.examples, parts, strict=True))
        return replace(task, examples=examples)

    tasks = [parted(tiny_task(f"task{n}", f"Do {n}.", n, kind="lexical")) for n in (1, 2, 3)]
    metrics = dict.fromkeys(("task1", "task2", "task3"), "suite_accuracy")
    suite = Suite("pocket", tuple(tasks[:2]), metrics, tuple(tasks[2:]))
    tested = {one.input for task in tasks for one in split_examples(task, "test")}
    seen = []

    def watched(model, task, **options):
        seen.extend(one.input for one in task.examples)
        return head_effects(model, task, **options)

    from ivlens.effects import head_effects

    for module in (cells, measuring):
        monkeypatch.setattr(module, "head_effects", watched)
    run_cell(llama, suite, Cell("full", "iv", seed=seed), OPTIONS)
    assert seen and not tested & set(seen)
