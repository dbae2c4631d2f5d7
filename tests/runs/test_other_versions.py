"""What another version of ivlens began is never gone on from silently."""

import sys
from dataclasses import replace

import pytest
from conftest import tiny_task

from ivlens import load_model
from ivlens.analysis.dynamics import Recorder, TrackOptions, track
from ivlens.analysis.forgetting import ProbeOptions, probe_series
from ivlens.cli._options import ModelOptions
from ivlens.cli.tune import tune
from ivlens.common.kept import KEY, digest, kept_table
from ivlens.models.checkpoints import checkpoint_series
from ivlens.runs.study.results import UNFINISHED, _clear
from ivlens.runs.suites import BenchOptions, Cell, CellResult, Grid, Suite
from ivlens.tuning import Along, TuneOptions, finetune

OPTIONS = TuneOptions(lr=1e-2, steps=4, batch_size=4, save_every=2, n_prompts=4)
REFUSED = r"was made by ivlens 0\.0\.9, expected ivlens .*; go on with that version, use another folder, or remove"


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture
def earlier():
    """Runs something as ivlens 0.0.9."""

    def run(job):
        with pytest.MonkeyPatch.context() as patch:
            for name, module in list(sys.modules.items()):
                if name.startswith("ivlens") and "__version__" in vars(module):
                    patch.setattr(module, "__version__", "0.0.9")
            return job()

    return run


def interrupted(llama, folder):
    def stop(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(llama, tiny_task(), options=OPTIONS, along=Along(folder, on_step=stop))


def test_a_training(llama, tmp_path, earlier, monkeypatch):
    earlier(lambda: interrupted(llama, tmp_path))
    steps = []
    with pytest.raises(ValueError, match=REFUSED):
        finetune(llama, tiny_task(), options=OPTIONS, along=Along(tmp_path, on_step=steps.append))
    monkeypatch.setattr(ModelOptions, "load", lambda self: pytest.fail("nothing is opened or measured before that"))
    with pytest.raises(ValueError, match=REFUSED):
        tune(task="antonym", out=tmp_path)
    assert not steps
    (tmp_path / "state.safetensors").unlink()
    finetune(llama, tiny_task(), options=OPTIONS, along=Along(tmp_path, on_step=steps.append))
    assert len(steps) == 4


def test_a_benchmark_before_any_cell_is_run(llama, tmp_path, earlier):
    tasks = (tiny_task("antonym", kind="lexical"), tiny_task("second", "Say another.", 2, kind="lexical"))
    suite = Suite("pocket", tasks, dict.fromkeys(("antonym", "second"), "suite_accuracy"), ())
    told = []
    grid = Grid(llama, lambda order: suite, BenchOptions(), tmp_path, on_cell=told.append)
    cells = [Cell("full"), Cell("lora")]
    rows = [{"step": 2, "new": 0.5, "old": float("nan")}]
    result = CellResult(cells[1], ("antonym", "second"), [[0.0, 0.5]] * 3, [], [], [rows, []], 2.5)
    earlier(lambda: grid.keep(result))
    with pytest.raises(ValueError, match=REFUSED):
        grid.run(cells)
    assert not told


def test_a_series_before_anything_is_measured(pocket, tmp_path, earlier, monkeypatch):
    series, tasks = checkpoint_series({"first": pocket, "second": pocket}), [tiny_task()]
    options, probed = TrackOptions(n_prompts=2, k=2, n_judge_prompts=2), ProbeOptions(n_prompts=2, n_clozes=1)
    earlier(lambda: track(series, tasks, options, folder=tmp_path / "stages"))
    earlier(lambda: probe_series(series, tasks, probed, folder=tmp_path / "probes"))
    for kept in ("stages/first.safetensors", "probes/first.parquet"):
        (tmp_path / kept).unlink()
    for measure in ("analysis.dynamics.recording.measure_stage", "analysis.forgetting.series.probe"):
        monkeypatch.setattr(f"ivlens.{measure}", lambda *args, **more: pytest.fail("it was measured"))
    with pytest.raises(ValueError, match=REFUSED):
        track(series, tasks, options, folder=tmp_path / "stages")
    with pytest.raises(ValueError, match=REFUSED):
        probe_series(series, tasks, probed, folder=tmp_path / "probes")
    (tmp_path / "stages" / "second.safetensors").rename(tmp_path / "stages" / "step-000002.safetensors")
    with pytest.raises(ValueError, match=REFUSED):
        Recorder(pocket, tasks, options, folder=tmp_path / "stages")


def test_a_table_without_a_version(tmp_path):
    import pandas as pd

    table = pd.DataFrame({"x": [1.0]})
    table.attrs[KEY] = digest({"n": 1})
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="was made by an older ivlens, expected ivlens"):
        kept_table(tmp_path / "t.parquet", {"n": 1}, lambda: table)


def test_a_study_clears_what_studies_kept_and_nothing_else(tmp_path):
    folder, outside = tmp_path / UNFINISHED, tmp_path / "outside"
    for place in (folder / ("0" * 16), folder / "mine", outside):
        place.mkdir(parents=True)
        (place / "file").write_text("")
    (folder / ("1" * 16)).symlink_to(outside)
    _clear(folder)
    assert {path.name for path in folder.iterdir()} == {"mine", "1" * 16} and (outside / "file").exists()
    (tmp_path / "link").symlink_to(folder)
    _clear(tmp_path / "link")
    assert (folder / "mine" / "file").exists()


def test_an_unfinished_study_of_another_version_begins_anew(pocket, tmp_path, earlier, monkeypatch):
    from ivlens.runs.study import running
    from ivlens.runs.study.plan import StudyOptions

    class Begun(Exception):
        pass

    places = []

    def begun(*args, folder=None, **more):
        places.append(folder.parent.name)
        raise Begun

    monkeypatch.setattr(running, "Recorder", begun)
    for run in (earlier, lambda job: job(), lambda job: job()):
        with pytest.raises(Begun):
            run(lambda: running.run_study(StudyOptions(), model=pocket, folder=tmp_path))
    assert places[0] != places[1] == places[2]
    with pytest.raises(Begun):
        running.run_study(replace(StudyOptions(), steps=7), model=pocket, folder=tmp_path)
    assert len(set(places)) == 3
