"""Sweeps: every cell once, the same bytes wherever it was made, and nothing lost whatever happens meanwhile."""

import errno
import io
import json
import logging
import math
import os
import pickle
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pickles import assert_no_pickle, pickles_in
from sweeping import GRID, digests, kill_in_the_middle, of_cells, start, write_grid

import ivlens.common.store.entries
from ivlens.analysis.dynamics import Stage
from ivlens.cli.main import main
from ivlens.common.progress import say
from ivlens.common.store import Store, StoreError, content_key, verify
from ivlens.effects import HeadEffects
from ivlens.models import load_model, pocket_path
from ivlens.prompts import TASK, PromptRecipe
from ivlens.runs.sweep import KINDS, Cell, LocalExecutor, ModelSpec, Setting, Survey, make_plan, read_grid, run_sweep
from ivlens.runs.sweep.cluster import ClusterExecutor, _Dispatch, pins, visible_gpus
from ivlens.runs.sweep.making import MAKERS
from ivlens.runs.sweep.runner import _asked_to_stop
from ivlens.runs.sweep.tasks import forget_tasks
from ivlens.tasks import load_task
from ivlens.vectors import InstructionVector

SMALL = """
tasks = ["antonym", "synonym"]
[effects]
n_prompts = [2, 4]
n_mean_prompts = 8
"""


def swept(grid: Path, store: Path):
    opened = Store(store)
    executor = LocalExecutor(opened)
    return run_sweep(make_plan(read_grid(grid), opened, executor), executor)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all of GRID, made without interruption in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    job = start(write_grid(folder), folder / "store", warm=False)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert out.startswith("8 made")
    return folder / "store"


# --- what there is ---------------------------------------------------------------------------------------------------


def test_a_grid_is_multiplied_out(tmp_path: Path):
    grid = read_grid(write_grid(tmp_path))
    kinds = [cell.kind for cell in grid.cells]
    assert kinds == ["effects"] * 4 + ["interventions"] * 2 + ["tuning"] * 2
    assert {cell.options.guidance for cell in grid.cells if cell.kind == "tuning"} == {"none", "heads"}
    assert [cell.others for cell in grid.cells if cell.kind == "interventions"] == [("synonym",), ("antonym",)]
    assert all(Cell.from_json(cell.to_json()) == cell for cell in grid.cells)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no table of cells, expected one of"),
        ("[effects", "is not TOML"),
        ("[effect]", "has 'effect', expected some of models"),
        ('effects = 3\ntasks = ["antonym"]', "write .effects. on a line of its own"),
        ("[effects]", "tasks is missing, expected a list of names"),
        ('tasks = "antonym"\n[effects]', "tasks is 'antonym', expected a list"),
        ('tasks = ["antonym"]\n[effects]\nn_promts = 3', "did you mean 'n_prompts'"),
        ('tasks = ["antonym"]\n[effects]\nn_prompts = "3"', "n_prompts is '3', expected a whole number"),
        ('tasks = ["antonym"]\n[effects]\nn_prompts = true', "n_prompts is True, expected a whole number"),
        ('tasks = ["antonym"]\n[effects]\nn_prompts = 0', "n_prompts is 0, expected a whole number"),
        ('tasks = ["antonym"]\n[effects]\nn_prompts = []', "makes 0 cells"),
        ('tasks = ["antonym"]\n[effects]\nscore = "bits"', "score is 'bits', expected one of"),
        ('tasks = ["antonym"]\n[interventions]\nsites = ["mlp"]', "site is 'mlp', expected one of"),
        ('tasks = ["antonym"]\n[interventions]\nalphas = [nan]', "alphas.0. is nan, expected"),
        ('tasks = ["antonym"]\n[tuning]\nguidance = "kl/zero"', "guidance is 'kl/zero', expected"),
        ('tasks = ["antonym"]\n[tuning]\nlr = nan', "lr is nan, expected"),
        ('tasks = ["antonym"]\n[tuning]\nmethod = "sft"', "method is 'sft', expected one of full"),
        ('tasks = ["antnym"]\n[effects]', "Task 'antnym' is unknown.*did you mean 'antonym'"),
        ('tasks = ["./nowhere.json"]\n[effects]', "does not exist"),
        ('tasks = ["antonym"]\nseeds = [-1]\n[effects]', "seeds is .-1., expected a list of whole numbers"),
        ('tasks = ["antonym"]\nthreads = 0\n[effects]', "threads is 0, expected a whole number"),
        (f'tasks = ["antonym"]\nseeds = {[*range(400)]}\n[effects]\nn_prompts = {[*range(1, 400)]}', "159,600 cells"),
    ],
)
def test_a_wrong_grid_is_refused(tmp_path: Path, text: str, message: str, capsys):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_grid(write_grid(tmp_path, text))
    assert main(["sweep", str(tmp_path / "grid.toml"), "--store", str(tmp_path / "store")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_paths_are_those_of_the_grid(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.json").write_text(json.dumps([{"input": f"w{n}", "output": "x"} for n in range(40)]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (cell,) = read_grid(write_grid(tmp_path, 'tasks = ["mine.json"]\n[effects]')).cells
    assert cell.task == str((tmp_path / "mine.json").resolve())


def test_the_grid_of_the_docs(tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text().split("```toml")[1].split("```")[0]
    for step in (2, 10, 9):
        (tmp_path / "runs" / f"step-{step}").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my-task.json").write_text(json.dumps([{"input": f"w{n}", "output": "x"} for n in range(9)]))
    grid = read_grid(write_grid(tmp_path, text))
    names = [Path(spec.name).name for spec in grid.models]
    assert names == ["pocket", "step-2", "step-9", "step-10", "Llama-2-7b-hf"] and len(grid.models[-1].revision) == 40
    assert len(grid.cells) == 5 * 3 * 3 * (2 + 3) + 3 * 2 * 4 * 3 + 3 * 3 * 2
    with pytest.raises(FileNotFoundError, match="no folder is 'runs/end-.'"):
        read_grid(write_grid(tmp_path, text.replace("step-*", "end-*")))


def test_adapters_are_models(whole: Path, tmp_path: Path):
    adapters = Store(whole).entries("tuning")[0].folder / "model"
    store = Store(tmp_path / "store")
    text = f'models = ["pocket", {json.dumps(str(adapters))}]\ntasks = ["antonym"]\n[effects]\nn_prompts = 2\n'
    grid, executor = read_grid(write_grid(tmp_path, text)), LocalExecutor(store)
    assert all(not survey.weights_hash for _, survey in make_plan(grid, store, executor, load=False).todo)
    assert run_sweep(make_plan(grid, store, executor), executor).n_made == 2
    assert len({entry.what["model"][0] for entry in store.entries()}) == 2


# --- keys ------------------------------------------------------------------------------------------------------------


def test_whatever_matters_is_in_the_key(tmp_path: Path, monkeypatch):
    data = tmp_path / "mine.json"
    data.write_text(json.dumps([{"input": f"w{n}", "output": "x"} for n in range(40)]))
    (cell,) = read_grid(write_grid(tmp_path, 'tasks = ["mine.json"]\n[effects]')).cells
    model = Survey("0" * 64, None, "Llama", "cpu", 10, 1, 1, 1, 1)
    base = cell.what(model)
    assert cell.what(replace(model, n_params=11)) == base
    others = [
        cell.what(replace(model, weights_hash="1" * 64)),
        cell.what(replace(model, revision="abc")),
        cell.what(replace(model, device="cuda")),
        replace(cell, setting=Setting(threads=2)).what(model),
        replace(cell, setting=Setting(max_memory=2**29)).what(model),
        replace(cell, seed=1).what(model),
        replace(cell, others=("antonym",)).what(model),
        replace(cell, options=replace(cell.options, n_prompts=31)).what(model),
        cell.needs("effects").what(model) | {"kind": "vectors"},
    ]
    monkeypatch.setattr("ivlens.common.store.keys.__version__", "99")
    others.append(cell.what(model))
    monkeypatch.undo()
    data.write_text(json.dumps([{"input": f"w{n}", "output": "y"} for n in range(40)]))
    forget_tasks()
    others.append(cell.what(model))
    assert base not in others and len({json.dumps(one, sort_keys=True) for one in others}) == len(others)


# --- results ---------------------------------------------------------------------------------------------------------


def test_results_can_be_used(whole: Path):
    store = Store(whole)
    assert verify(store) == (10, [])  # two vectors are there for the interventions
    effects = next(entry for entry in store.entries("effects"))
    assert HeadEffects.load(effects.path("effects.safetensors")).aie.shape == (6, 8)
    vector = next(entry for entry in store.entries("vectors"))
    assert InstructionVector.load(vector.path("vector.safetensors")).k == 10
    table = store.frame("interventions")
    assert {"iv", "random", "other_tasks", "clean"} <= set(table["condition"]) and set(table["n_draws"]) == {1}
    tuned = store.frame("tuning")
    assert set(tuned["judged"]) == {"antonym", "middle_of_three"} and set(tuned["guidance"]) == {"none", "heads"}
    adapters = store.entries("tuning")[0].path("model/adapter_model.safetensors")
    assert any("lora" in name for name in safetensors.torch.load_file(adapters))


def test_twice_the_same_bytes_whatever_the_order(whole: Path, tmp_path: Path):
    """Effects, vectors, interventions and trainings: in another process, in reverse order, after other random draws."""
    grid, store = read_grid(write_grid(tmp_path)), Store(tmp_path / "store")
    torch.manual_seed(99)
    executor = LocalExecutor(store)
    plan = make_plan(grid, store, executor)
    plan.todo.reverse()
    outcome = run_sweep(plan, executor)
    assert not outcome.failed and digests(store.folder) == digests(whole)
    again = make_plan(grid, store, executor)
    assert (again.todo, again.n_done) == ([], 8)
    assert all(estimate.measured and estimate.seconds == 0 for estimate in again.estimates)


@pytest.mark.slow
def test_no_order_of_a_set_is_in_the_bytes(tmp_path: Path, monkeypatch):
    """Python orders sets of texts differently in every process; peft keeps some in its description of adapters.

    That of a training without a sweep is compared in test_determinism.py.
    """
    text = GRID[GRID.index("[[tuning]]") :].replace("steps = 12", "steps = 1").replace('"none", "heads"', '"none"')
    for seed in ("1", "3"):  # with which the sets that matter are ordered differently
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        job = start(write_grid(tmp_path, text), tmp_path / seed, warm=False)
        _, err = job.communicate(timeout=120)
        assert job.returncode == 0, err
    assert digests(tmp_path / "1") == digests(tmp_path / "3")


def test_dry_run_loads_and_makes_nothing(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(
        "ivlens.runs.sweep.workshop.load_model", lambda *args, **more: pytest.fail("weights were loaded")
    )
    command = ["sweep", str(write_grid(tmp_path)), "--store", str(tmp_path / "store"), "--dry-run", "--json"]
    assert main(command) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["cells"], plan["done"]) == (8, 0) and plan["seconds"] > 0
    assert not any((tmp_path / "store").rglob("*.parquet"))
    assert [kind["kind"] for kind in plan["kinds"]] == ["effects", "interventions", "tuning"]


def test_estimates_come_from_what_was_measured(tmp_path: Path):
    store = Store(tmp_path / "store")
    executor = LocalExecutor(store)
    run_sweep(make_plan(read_grid(write_grid(tmp_path, SMALL)), store, executor), executor)
    plan = make_plan(read_grid(write_grid(tmp_path, SMALL.replace("[2, 4]", "[2, 4, 6]"))), store, executor)
    (estimate,) = plan.estimates
    assert estimate.measured and (estimate.n_cells, estimate.n_done) == (6, 4)
    assert 0.001 < estimate.seconds < 60


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_failing_cell_costs_no_other(tmp_path: Path, capsys):
    text = SMALL + "[vectors]\nk = [3, 999]\nn_prompts = 2\nn_mean_prompts = 8\n"
    command = ["sweep", str(write_grid(tmp_path, text)), "--store", str(tmp_path / "store")]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "6 made, 0 were there, 2 failed, 0 left" in out and "k is 999, expected 1 to 48" in out
    assert err.count("left\n") == 8  # a line with the time that is left for every cell
    failures = Store(tmp_path / "store").failures()
    assert len(failures) == 2 and all("Traceback" in about["traceback"] for about in failures.values())
    assert main(command) == 1  # tried again, and nothing else is
    assert "0 made, 6 were there, 2 failed" in capsys.readouterr().out


def test_a_damaged_result_is_made_again(whole: Path, tmp_path: Path):
    grid = write_grid(tmp_path, SMALL)
    swept(grid, tmp_path / "store")
    good = digests(tmp_path / "store")
    victim = Store(tmp_path / "store").entries()[0]
    data = bytearray(victim.path("effects.safetensors").read_bytes())
    data[-3] ^= 4
    victim.path("effects.safetensors").write_bytes(data)
    outcome = swept(grid, tmp_path / "store")
    assert (outcome.n_made, outcome.n_done) == (1, 3) and digests(tmp_path / "store") == good
    assert good.items() <= digests(whole).items()


def test_a_full_disk_ends_the_sweep_and_harms_nothing(tmp_path: Path, monkeypatch):
    grid, real, n = write_grid(tmp_path, SMALL), ivlens.common.store.entries.flush, 0

    def full(path: Path) -> None:
        nonlocal n
        n += "surveys" not in path.parts  # what is known of the model is kept before any result
        if n > 5:  # in the second result
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(ivlens.common.store.entries, "flush", full)
    with pytest.raises(StoreError, match="No space left.*free some"):
        swept(grid, tmp_path / "store")
    monkeypatch.undo()
    assert verify(Store(tmp_path / "store")) == (1, [])
    assert (swept(grid, tmp_path / "store").n_made, len(digests(tmp_path / "store"))) == (3, 4)


def test_weights_that_change_meanwhile_are_noticed(tmp_path: Path):
    shutil.copytree(pocket_path(), tmp_path / "model")
    grid = read_grid(write_grid(tmp_path, 'models = ["model"]\n' + SMALL))
    store = Store(tmp_path / "store")
    plan = make_plan(grid, store, LocalExecutor(store))
    weights = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    next(iter(weights.values()))[0, 0] += 1
    safetensors.torch.save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    outcome = run_sweep(plan, LocalExecutor(store))
    assert len(outcome.failed) == 4 and "as when the sweep began" in outcome.failed[0][1]
    executor = LocalExecutor(store)
    assert not run_sweep(make_plan(grid, store, executor), executor).failed


def test_a_damaged_training_state_begins_anew(whole: Path, tmp_path: Path, monkeypatch):
    grid, store = read_grid(write_grid(tmp_path)), Store(tmp_path / "store")
    executor = LocalExecutor(store)
    plan = make_plan(grid, store, executor)
    plan.todo = [job for job in plan.todo if job[0].kind == "tuning"][:1]
    cell, survey = plan.todo[0]
    state = store.work(content_key(cell.what(survey))) / "state.safetensors"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"no state")
    assert run_sweep(plan, executor).n_made == 1
    assert digests(store.folder).items() <= digests(whole).items() and not state.exists()


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_kills_lose_nothing(whole: Path, tmp_path: Path):
    """Among effects, wherever it happens, and in a training."""
    grid, store, draw = write_grid(tmp_path), tmp_path / "store", random.Random(0)
    n_killed = sum(kill_in_the_middle(grid, store, draw, until=what) for what in ("", "/scratch/", "state.safetensors"))
    assert n_killed >= 2
    before = digests(store)
    out, err = (job := start(grid, store)).communicate(timeout=300)
    assert job.returncode == 0, err
    assert digests(store) == digests(whole) and before.items() <= digests(whole).items()
    n_there = len([key for key, kind in _kinds(store).items() if key in before and kind != "vectors"])
    assert f"{8 - n_there} made, {n_there} were there" in out


def _kinds(folder: Path) -> dict[str, str]:
    return {entry.key: entry.kind for entry in Store(folder).entries()}


def test_interrupt_finishes_the_cell(whole: Path, tmp_path: Path):
    grid, store = write_grid(tmp_path), tmp_path / "store"
    job = start(grid, store)
    assert job.stderr and job.stdout
    line = job.stderr.readline()
    while "1 of 8" not in line and job.poll() is None:
        line = job.stderr.readline()
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130 and "stopping after the cells that were begun" in err, err
    n_made = int(out.split(" made")[0])
    assert 1 <= n_made < 8 and f"{8 - n_made} left" in out
    assert verify(Store(store))[1] == [] and digests(store).items() <= digests(whole).items()


def test_an_interrupt_may_come_while_a_line_is_written(monkeypatch: pytest.MonkeyPatch):
    written = []

    class Interrupted(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            written.append(bytes(data))
            if len(written) == 1:
                signal.raise_signal(signal.SIGINT)
            return len(data)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
    heard = logging.StreamHandler(sys.stderr)
    logging.getLogger("ivlens").addHandler(heard)
    try:
        with _asked_to_stop() as stop:
            say("a line")
            assert stop()
    finally:
        logging.getLogger("ivlens").removeHandler(heard)
    assert b"a line" in b"".join(written) and b"stopping after" in b"".join(written)


def test_two_sweeps_share_one_store(whole: Path, tmp_path: Path):
    grid, store = write_grid(tmp_path), tmp_path / "store"
    jobs = [start(grid, store) for _ in range(2)]
    texts = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], texts
    assert digests(store) == digests(whole) and verify(Store(store)) == (10, [])
    lines = [line for _, err in texts for line in err.splitlines() if ": made in" in line]
    assert len(lines) == 8, "some cell was made twice"


@pytest.mark.slow  # five processes begin
def test_a_worker_is_killed_and_nothing_is_lost(whole: Path, tmp_path: Path):
    pytest.importorskip("distributed")
    import psutil

    grid, store = write_grid(tmp_path), tmp_path / "store"
    job = start(grid, store, "--workers", "2", warm=False)
    me = psutil.Process(job.pid)
    limit = time.monotonic() + 300  # a busy machine takes a minute to import torch three times
    while job.poll() is None and len([p for p in of_cells(store) if "/scratch/" in p]) == 0:
        assert time.monotonic() < limit
        time.sleep(0.02)
    workers = [child for child in me.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
    assert workers
    addresses = {c.laddr.ip for p in (me, *workers) for c in p.net_connections() if c.status == "LISTEN"}
    assert addresses == {"127.0.0.1"}, "reachable from other machines"
    for worker in workers:
        worker.kill()
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert "died with" in err and "0 failed" in out
    assert digests(store) == digests(whole)


def test_workers_keep_their_model_warm(tmp_path: Path):
    """Cells of three models on two workers: no worker changes its model more often than it must."""
    cells = [
        cell
        for name in ("a", "b", "c")
        for cell in read_grid(write_grid(tmp_path, SMALL.replace("[2, 4]", "[2, 4, 6]"))).cells
        for cell in [replace(cell, model=ModelSpec(name))]
    ]
    survey = Survey("0" * 64, None, "Llama", "cpu", 10, 1, 1, 1, 1)
    dispatch = _Dispatch(None, "", [(cell, survey) for cell in cells], lambda: None)
    seen: dict[str, list[str]] = {"w1": [], "w2": []}
    while dispatch._queue:
        for worker, models in seen.items():
            if dispatch._queue:
                job = dispatch._pick(worker)
                dispatch._warm[worker] = job[0].model
                models.append(job[0].model.name)
    changes = sum(one != other for models in seen.values() for one, other in zip(models, models[1:], strict=False))
    assert seen["w1"][0] != seen["w2"][0] and changes == 2 and len(cells) == 18


def test_one_gpu_for_each_worker(monkeypatch):
    assert [env["CUDA_VISIBLE_DEVICES"] for env in pins(3, ["0", "GPU-5"])] == ["0", "GPU-5", "0"]
    assert all("CUDA_VISIBLE_DEVICES" not in env for env in pins(2, []))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert visible_gpus() == ["3", "1"]


def test_no_scheduler_there(tmp_path: Path):
    pytest.importorskip("distributed")
    store = Store(tmp_path / "store")
    with pytest.raises(ConnectionError, match="does not answer.*dask scheduler"):
        ClusterExecutor(store, scheduler="nonsense")


def test_no_file_of_a_sweep_is_a_pickle(whole: Path):
    assert pickles_in(whole) == []


def test_pickles_are_found(tmp_path: Path):
    """By the scan that the test above relies on."""
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(3)}, tmp_path / "b.json", _use_new_zipfile_serialization=False)
    for protocol in range(6):
        (tmp_path / f"c{protocol}").write_bytes(pickle.dumps({"a": Path("x")}, protocol))
        (tmp_path / f"d{protocol}").write_bytes(b"some bytes" + pickle.dumps(Path("x"), protocol) + b"and more")
    found = {line.split(":")[0].rsplit("/", 1)[1] for line in pickles_in(tmp_path)}
    assert found == {"a.safetensors", "b.json", *(f"c{n}" for n in range(6)), *(f"d{n}" for n in range(2, 6))}
    with pytest.raises(AssertionError, match="an archive"):
        assert_no_pickle(tmp_path, "a.safetensors")
    with pytest.raises(AssertionError, match="nothing.* not among"):
        assert_no_pickle(tmp_path, "nothing")


def test_options_stand_in_the_place_of_the_grid_s(tmp_path: Path):
    text = 'tasks = ["antonym"]\ndtype = "bfloat16"\n[effects]\ntemplate = ["qa", "plain"]\n[tuning]\n'
    given = {"template": "after", "n_shots": 3, "instruction": "none", "dtype": "float32"}
    cells = read_grid(write_grid(tmp_path, text), instead=given).cells
    assert [cell.kind for cell in cells] == ["effects", "tuning"]
    assert {cell.recipe for cell in cells} == {PromptRecipe("after", None, 3)}
    assert {cell.setting.dtype for cell in cells} == {"float32"}
    with pytest.raises(ValueError, match="n_shots is -1"):
        read_grid(write_grid(tmp_path, text), instead={"n_shots": -1})


def test_prompts_are_made_as_the_grid_says(tmp_path: Path):
    """By the names of a recipe's parts, in every kind."""
    (tmp_path / "mine.json").write_text(
        json.dumps({"bare": "Word: {input} ->", "instructed": "{instruction} {input} ->"})
    )
    varied = 'template = ["plain", "mine.json"]\ninstruction = ["task", "none", "Say it."]\nn_shots = 2\n'
    grid = read_grid(write_grid(tmp_path, f'tasks = ["antonym"]\nseeds = [3]\n[effects]\n{varied}'))
    recipes = [cell.recipe for cell in grid.cells]
    assert len({*recipes}) == 6 and {recipe.seed for recipe in recipes} == {3}
    assert {recipe.instruction for recipe in recipes} == {TASK, None, "Say it."}
    assert {getattr(recipe.template, "name", recipe.template) for recipe in recipes} == {"plain", "mine"}
    model = Survey("0" * 64, None, "Llama", "cpu", 10, 1, 1, 1, 1)
    before = [cell.what(model) for cell in grid.cells]
    assert len({json.dumps(one, sort_keys=True) for one in before}) == 6
    (tmp_path / "mine.json").write_text(
        json.dumps({"bare": "A word: {input} ->", "instructed": "{instruction} {input} ->"})
    )
    changed = [one != cell.what(model) for one, cell in zip(before, grid.cells, strict=True)]
    assert changed == [cell.options.template != "plain" for cell in grid.cells], "a template's content is in the key"
    for kind in KINDS:
        text = f'tasks = ["antonym"]\n[{kind}]\ntemplate = "qa"\ninstruction = "none"\nn_shots = 1\n'
        (cell,) = read_grid(write_grid(tmp_path, text)).cells
        assert cell.recipe == PromptRecipe("qa", instruction=None, n_shots=1)
        assert Cell.from_json(cell.to_json()) == cell


def test_other_tasks_keep_their_own_instructions(tmp_path: Path):
    text = 'tasks = ["antonym", "synonym"]\n[interventions]\ninstruction = "Say the opposite."\n'
    cell = read_grid(write_grid(tmp_path, text)).cells[0]
    assert cell.needs("vectors").recipe.instruction == "Say the opposite."
    assert cell.needs("vectors", "synonym").recipe.instruction is TASK


def test_a_contrast_is_measured_where_a_vector_needs_it(tmp_path: Path):
    few = "n_prompts = 2\nn_mean_prompts = 4"
    text = f'tasks = ["antonym"]\n[effects]\n{few}\n[vectors]\n{few}\nk = 3\ncontrast = [false, true]\n'
    outcome = swept(write_grid(tmp_path, text), tmp_path / "store")
    assert (outcome.n_made, outcome.failed) == (3, [])
    store = Store(tmp_path / "store")
    measured = [HeadEffects.load(entry.path("effects.safetensors")) for entry in store.entries("effects")]
    assert sorted(one.mean_z_corrupted is not None for one in measured) == [False, True]
    vectors = [InstructionVector.load(entry.path("vector.safetensors")) for entry in store.entries("vectors")]
    assert sorted(one.settings["contrast"] for one in vectors) == [False, True]


@pytest.mark.slow
def test_cells_of_tasks_that_demonstrations_tell(tmp_path: Path):
    """Every kind: effects, vectors, interventions, trainings, probes and stages."""
    (tmp_path / "mine.json").write_text(
        json.dumps([{"input": one.input, "output": one.answer} for one in load_task("antonym").examples[:60]])
    )
    few = "n_prompts = 2\nn_mean_prompts = 4"
    text = f"""
tasks = ["mine.json"]
[effects]
{few}
[vectors]
{few}
k = 3
[interventions]
{few}
k = 3
n_draws = 1
n_judge_prompts = 4
layers = [1]
alphas = [2.0]
sites = ["resid_post"]
[tuning]
watch = ["mine.json"]
guidance = "answers"
steps = 2
n_samples = 4
n_prompts = 2
batch_size = 4
[forgetting]
n_prompts = 2
[dynamics]
n_prompts = 2
n_judge_prompts = 2
"""
    outcome = swept(write_grid(tmp_path, text), tmp_path / "store")
    assert (outcome.n_made, outcome.failed) == (6, [])
    effects = Store(tmp_path / "store").entries("effects")[0]
    assert HeadEffects.load(effects.path("effects.safetensors")).recipe.n_shots == 5


def test_what_is_asked_of_single_checkpoints(tmp_path: Path):
    """`forgetting` and `dynamics`: no first model is there, so nothing is said of the distance to it."""
    grid = tmp_path / "grid.toml"
    forgetting, dynamics = "n_prompts = 2\nn_clozes = 1", "n_prompts = 2\nk = 3\nn_judge_prompts = 4"
    grid.write_text(f'tasks = ["antonym"]\n[forgetting]\n{forgetting}\n[dynamics]\n{dynamics}\n')
    outcome = swept(grid, tmp_path / "store")
    assert (outcome.n_made, outcome.failed) == (2, [])
    store = Store(tmp_path / "store")
    assert set(store.frame("forgetting")["probe"]) == {"instruction", "knowledge"}
    (entry,) = store.entries("dynamics")
    stage = Stage.load(entry.path("stage.safetensors"))
    assert list(stage.tasks) == ["antonym"] and math.isnan(stage.distance)


SEQUENCES = """
[sequences]
n_tasks = 2
steps = 2
n_samples = 4
batch_size = 4
n_prompts = 2
judge_every = 1
n_general = 1
n_earlier = 1
few_shots = 0
"""


@pytest.mark.slow
def test_cells_of_a_benchmark(tmp_path: Path):
    """They are what `run_cell` gives, and are the same to the byte in another process."""
    from ivlens.runs.suites import Cell, load_suite, run_cell
    from ivlens.runs.suites.keeping import kept_cells

    grid = write_grid(tmp_path, 'tasks = ["antonym"]\n' + SEQUENCES + 'guidance = ["none", "instructions"]\n')
    outcome = swept(grid, tmp_path / "store")
    assert (outcome.n_made, outcome.failed) == (2, [])
    store = Store(tmp_path / "store")
    frame = store.frame("sequences")
    assert set(frame["suite"]) == {"pocket"} and len(frame) == 2 * 3 * 2 and set(frame["stage"]) == {0, 1, 2}
    results = {one.cell.guidance: one for one in kept_cells(store.folder)}
    options = next(cell.options for cell in read_grid(grid).cells)
    alone = run_cell(load_model("pocket"), load_suite("pocket", n=2), Cell("lora"), options.bench(0))
    assert results["none"].scores == alone.scores and results["none"].curves == alone.curves
    other = start(write_grid(tmp_path, SEQUENCES), tmp_path / "other")
    assert other.wait() == 0
    assert digests(tmp_path / "other").items() <= digests(store.folder).items()


def test_a_benchmark_is_over_suites(tmp_path: Path):
    faults = {
        '[sequences]\ntasks = ["antonym"]': "has 'tasks', expected 'suites'; \\[sequences\\] is about those",
        'tasks = ["antonym"]\n[effects]\nsuites = ["pocket"]': "has 'suites', expected 'tasks'",
        '[sequences]\nsuites = ["trace"]': "Suite 'trace': got folder=None, expected one with",
        '[sequences]\nsuites = ["trance"]': "Suite 'trance': is unknown",
        "[sequences]\norder = 9": "order",
        '[sequences]\nsuites = ["trace"]\ndata = "nowhere"': "8 of 8 tasks are missing|no task is there",
        "[sequences]\npatience = 0": "patience is 0",
    }
    for text, message in faults.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_grid(write_grid(tmp_path, text))


def test_kinds_say_what_they_are_made_from():
    order = list(KINDS)
    assert list(MAKERS) == order
    for name, kind in KINDS.items():
        assert all(order.index(other) < order.index(name) for other in kind.made_from)
