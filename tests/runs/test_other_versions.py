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
from ivlens.common.store import Store
from ivlens.models.checkpoints import checkpoint_series
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


def test_a_benchmark_begins_anew(llama, tmp_path, earlier, monkeypatch):
    tasks = (tiny_task("antonym", kind="lexical"), tiny_task("second", "Say another.", 2, kind="lexical"))
    suite = Suite("pocket", tasks, dict.fromkeys(("antonym", "second"), "suite_accuracy"), ())
    result = CellResult(Cell("full"), ("antonym", "second"), [[0.0, 0.5]] * 3, [], [], [[], []], 2.5)
    made = []
    monkeypatch.setattr("ivlens.runs.suites.runner.run_cell", lambda *args, **more: made.append(1) or result)
    grid = Grid(llama, lambda order: suite, BenchOptions(), tmp_path)
    for run, n_made in ((earlier, 1), (lambda job: job(), 2), (lambda job: job(), 2), (earlier, 2)):
        assert len(run(lambda: grid.run([Cell("full")]))) == 1 and len(made) == n_made
    assert len(grid.store.entries()) == 2


def test_a_series_begins_anew(pocket, tmp_path, earlier, monkeypatch, caplog):
    series, tasks = checkpoint_series({"first": pocket, "second": pocket}), [tiny_task()]
    options, probed = TrackOptions(n_prompts=2, k=2, n_judge_prompts=2), ProbeOptions(n_prompts=2, n_clozes=1)

    def measured() -> None:
        track(series, tasks, options, folder=tmp_path)
        probe_series(series, tasks, probed, folder=tmp_path)

    def n_kept() -> list[int]:
        return [len(Store(tmp_path).entries(kind)) for kind in ("stage", "probe")]

    earlier(measured)
    assert n_kept() == [2, 2 - 1]  # a probe is of a model, whatever it is called
    measured()
    assert n_kept() == [4, 2]
    for measure in ("analysis.dynamics.recording.measure_stage", "analysis.forgetting.series.probe"):
        monkeypatch.setattr(f"ivlens.{measure}", lambda *args, **more: pytest.fail("it was measured"))
    measured()
    earlier(measured)
    recorder = Recorder(pocket, tasks, options, folder=tmp_path)
    assert "has 2 records of another model or training, other tasks, options or versions" in caplog.text
    assert len(recorder._records()) == 2


@pytest.mark.slow
def test_an_unfinished_study_of_another_version_begins_anew(pocket, tmp_path, earlier, monkeypatch):
    from ivlens.runs.study import running
    from ivlens.runs.study.plan import StudyOptions

    class Begun(Exception):
        pass

    places = []

    def begun(self, data, options, guidance, *, on_step, folder, judge):
        places.append(folder)
        raise Begun

    monkeypatch.setattr(running, "Recorder", lambda *args, **more: None)
    monkeypatch.setattr(running.Learner, "learn", begun)
    for run in (earlier, lambda job: job(), lambda job: job()):
        with pytest.raises(Begun):
            run(lambda: running.run_study(StudyOptions(), model=pocket, folder=tmp_path))
    assert places[0] != places[1] == places[2]
    with pytest.raises(Begun):
        running.run_study(replace(StudyOptions(), steps=7), model=pocket, folder=tmp_path)
    assert len({*places}) == 3
    assert len(set(places)) == 3
