"""What keeps a training whole: one owner of a folder, one sort of files in it, guidance where it belongs, patience."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_task
from families import hf_model
from killed_saves import is_clean, killed_at_call

from ivlens.common.files import held
from ivlens.common.saves import replacing, whole
from ivlens.forward import hooks
from ivlens.forward.inputs import forced
from ivlens.models import load_model
from ivlens.models.adapters import adapter_folders
from ivlens.models.checkpoints import checkpoint_series
from ivlens.models.plain import plain_model
from ivlens.tuning import IVKL, Along, Guidance, HeadConsistency, Learner, Progressive, TuneOptions, finetune
from ivlens.tuning.methods import Replay
from ivlens.tuning.terms.kl import SoftTargets
from ivlens.tuning.terms.rehearsal_prompts import RehearsalOptions, instruction_rehearsal
from ivlens.tuning.training.data import TrainingSet, answer_logits, last_column, training_set
from ivlens.tuning.training.sites import Sites

OPTIONS = TuneOptions(lr=1e-2, steps=4, batch_size=4)
OWNER = "import sys, time; from pathlib import Path; from ivlens.common.files import held\n"
OWNER += "with held(Path(sys.argv[1]), 'a training'): print('up', flush=True); time.sleep(60)"


def data_of(model, task=None, n=8):
    task = task or tiny_task()
    return training_set(model, task, task.examples, n_samples=n, seed=1)


def weights_of(learner):
    return {name: weight.detach().clone() for name, weight in learner.trained.named_parameters()}


# ---- one owner


def test_a_second_training_in_a_folder_is_kept_out(llama, tmp_path):
    second = Learner(llama)

    def meanwhile(row):
        for train in (
            lambda: second.learn(data_of(llama), OPTIONS, folder=tmp_path),
            lambda: finetune(llama, tiny_task(), options=OPTIONS, along=Along(tmp_path)),
        ):
            with pytest.raises(BlockingIOError, match=f"'{tmp_path}' is in use by a training that is still running"):
                train()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Learner(llama).learn(data_of(llama), OPTIONS, folder=tmp_path, on_step=meanwhile)
    assert len(second.learn(data_of(llama), OPTIONS, folder=tmp_path)) == 4, "the lock outlived its owner"


def test_a_folder_stays_held_until_the_model_is_written(llama, tmp_path, monkeypatch):
    def save(self, folder):
        with pytest.raises(BlockingIOError, match="is in use"):
            Learner(llama).learn(data_of(llama), OPTIONS, folder=tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "save", save)
    with pytest.raises(KeyboardInterrupt):
        finetune(llama, tiny_task(), options=OPTIONS, along=Along(tmp_path))


def test_an_owner_that_is_killed_lets_go(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdout and owner.stdout.readline() == "up\n"
        with pytest.raises(BlockingIOError, match="is in use by a training"), held(tmp_path, "a training"):
            pass
        owner.send_signal(signal.SIGKILL)
    with held(tmp_path, "a training"):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def unknown(file):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("ivlens.common.files._hold", unknown)
    with held(tmp_path, "a training"):
        pass
    assert "cannot be locked (Function not implemented)" in caplog.text


# ---- one sort of files


def test_a_folder_holds_the_model_that_was_saved_last(llama, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    learners = {method: Learner(llama, method) for method in ("full", "lora", "inclora")}
    for learner in learners.values():
        learner.learn(data_of(llama), OPTIONS)
    for method, sort in (("full", "model"), ("inclora", "task0/adapter_model"), ("lora", "adapter_model")) * 2:
        learners[method].save(tmp_path)
        weights = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")]
        assert weights == [f"{sort}.safetensors"], method
        assert not any(path.is_dir() for path in tmp_path.iterdir()) or method == "inclora"
    assert not (tmp_path / "config.json").exists() and (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_that_was_not_written_so_is_removed(tmp_path):
    outside = tmp_path / "outside.txt"
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (outside, folder / "base.safetensors"):
        path.write_text("")
    (folder / "ivlens.json").write_text('{"files": ["gone"]}')
    for name in ("one", "two"):
        with replacing(folder) as scratch:
            (scratch / name).write_text(name)
    assert outside.exists()
    assert {path.name for path in folder.iterdir()} == {"base.safetensors", "two", "ivlens.json"}


@pytest.mark.parametrize("place", ["model", "step-000002"])
@pytest.mark.parametrize("names", [["link/precious"], ["../precious"], {"link/precious": "0" * 64}])
def test_a_list_that_leads_elsewhere_is_refused_before_training(llama, tmp_path, place, names):
    folder, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (folder / place).mkdir(parents=True)
    for mine in (outside / "precious", folder / "precious"):
        mine.write_text("mine")
    (folder / place / "link").symlink_to(outside)
    (folder / place / "ivlens.json").write_text(json.dumps({"files": names}))
    steps = []
    with pytest.raises(ValueError, match="expected names of files that were saved in its folder"):
        finetune(llama, tiny_task(), options=OPTIONS, along=Along(folder, on_step=steps.append))
    with pytest.raises(ValueError, match="expected names of files"):
        Learner(llama).save(folder / place)
    assert not steps and (outside / "precious").exists() and (folder / "precious").exists()


def files_of(folder):
    places = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in places.items() if name[0] != "." and name != "ivlens.json"}


def test_models_that_are_killed_while_they_are_saved_are_the_old_one_or_the_new_one(llama, tmp_path):
    """One sort of model over another, of which some were read while they were on their way."""
    learners = [Learner(llama, method) for method in ("lora", "lora", "inclora", "full")]
    for number, learner in enumerate(learners):
        learner.learn(data_of(llama), dataclasses.replace(OPTIONS, steps=1, seed=number))
    want = [files_of(learner.save(tmp_path / f"{number}")) for number, learner in enumerate(learners)]
    folder, found, opened = tmp_path / "model", [], 0
    learners[0].save(folder)
    for old, new in ((0, 1), (1, 2), (2, 3), (3, 0)):
        call = old
        while killed_at_call(call, lambda: learners[new].save(folder)):  # noqa: B023 - called at once
            here = whole(folder)
            found.append([want[old], want[new]].index(files_of(here)))
            if here != folder and not opened:
                opened = 1
                probe = torch.arange(12)[None]
                torch.testing.assert_close(load_model(folder, base=llama)(probe), learners[new].bridge()(probe))
            if found[-1]:
                learners[old].save(folder)
                assert is_clean(folder)
            call += 5
        assert is_clean(folder) and files_of(folder) == want[new]
    assert set(found) == {0, 1} and opened


def test_a_training_that_was_killed_while_its_model_was_saved_ends_with_one_that_loads(llama, tmp_path):
    def train():
        finetune(llama, tiny_task(), options=OPTIONS, along=Along(tmp_path, checkpoint_every=2))

    folder = tmp_path / "model"
    (folder / ".writing-old").mkdir(parents=True)
    left = Learner(llama)
    left._begin(0)
    left.trained.save_pretrained(folder / ".writing-old")
    train()
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    load_model(folder, base=llama)
    assert [one.name for one in checkpoint_series(tmp_path, first=llama)] == [
        "before",
        "step-000002",
        "step-000004",
        "model",
    ]


def test_a_leftover_of_a_save_is_no_adapter(llama, tmp_path):
    learner = Learner(llama)
    learner._begin(0)
    learner.save(tmp_path)
    for name in (".writing-x", ".writing-y/new", ".other"):
        (tmp_path / name).mkdir(parents=True)
        for path in tmp_path.glob("adapter*"):
            shutil.copy(path, tmp_path / name)
    assert adapter_folders(tmp_path) == {"default": tmp_path}
    load_model(tmp_path, base=llama)


# ---- guidance acts on the new task


ALL = (Progressive("constant", -1), IVKL(weight=0.5), HeadConsistency(((0, 1), (2, 3)), 2.0))


def guide(model, *terms):
    theta = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(5))
    return Guidance(terms, theta, layer=0)


def test_guidance_acts_on_the_new_tasks_prompts_alone(llama):
    """One step over new and replayed examples: guidance's terms are those of a step over the new ones alone."""
    new, old = data_of(llama), data_of(llama, tiny_task("second", "Give another word.", 2), 4)
    method = Replay(share=0.5, buffer=[old])
    options = TuneOptions(lr=1e-2, steps=1, batch_size=12, weight_decay=0.0)
    mixed = Learner(llama, method).learn(new, options, guide(llama, *ALL)).iloc[0]
    alone = Learner(llama).learn(new, dataclasses.replace(options, batch_size=8), guide(llama, *ALL)).iloc[0]
    assert mixed.kl == pytest.approx(alone.kl, rel=1e-4) and mixed.heads == pytest.approx(alone.heads, rel=1e-4)
    assert mixed.kl > 0.01 and mixed.heads > 0.001


def test_the_vector_is_not_added_to_replayed_prompts(llama):
    """The loss of a step is that of new prompts under the vector and of replayed ones without it."""
    new, old = data_of(llama), data_of(llama, tiny_task("second", "Give another word.", 2), 4)
    learner, guidance = Learner(llama, Replay(share=0.5, buffer=[old])), guide(llama, Progressive())
    options = TuneOptions(lr=1e-2, steps=1, batch_size=12)
    trainer = learner.trainer(new, options, guidance)
    both = trainer.data
    with torch.no_grad():
        plain = answer_logits(learner.trained, both)
        with learner.sites.shifted(learner.trained, 0, "resid_post", last_column(both), guidance.delta):
            moved = answer_logits(learner.trained, both)
    wanted = torch.cat([moved[:8], plain[8:]])
    loss = torch.nn.functional.cross_entropy(wanted.flatten(0, 1), both.answers.flatten())
    assert trainer.run()[0]["lm"] == pytest.approx(float(loss), rel=1e-4)


def test_a_pass_of_replayed_prompts_only_has_no_guidance(llama):
    old = data_of(llama, tiny_task("second", "Give another word.", 2), 8)
    method = Replay(share=1.0, buffer=[old])
    options = TuneOptions(lr=1e-2, steps=8, batch_size=2, accumulate=2)
    log = Learner(llama, method).learn(data_of(llama), options, guide(llama, *ALL))
    assert log.loss.notna().all() and log.kl.isna().any() and log.kl.notna().any()


# ---- rehearsal in passes


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_rehearsal_is_divided_into_as_many_passes(llama, accumulate, monkeypatch):
    task, old = tiny_task(), tiny_task("synonym", "Give a synonym.", 2)
    heads = HeadConsistency(((0, 1),), 3.0)
    part = instruction_rehearsal(llama, task, task.examples, [old], options=RehearsalOptions(n=40, heads=heads))
    part = dataclasses.replace(part, per_step=14)
    sizes: list[int] = []

    def watched(plain, data: TrainingSet):
        if torch.is_grad_enabled() and data.answers.shape[1] == 1:  # of rehearsed prompts, not of the task's own
            sizes.append(len(data))
        return answer_logits(plain, data)

    monkeypatch.setattr("ivlens.tuning.training.asking.answer_logits", watched)
    logs = []
    for passes in (1, accumulate):
        sizes.clear()
        options = TuneOptions(lr=1e-3, steps=3, batch_size=6, accumulate=passes)
        logs.append(Learner(llama, "full").learn(data_of(llama), options, Guidance((part,))))
        assert len(sizes) == 3 * passes and sum(sizes) == 3 * 14 and max(sizes) - min(sizes) <= 1
    for name in ("rehearsal", "grad_norm"):
        assert logs[1][name].tolist() == pytest.approx(logs[0][name].tolist(), rel=1e-3, abs=1e-6)


# ---- what the teacher takes


def test_the_teachers_memory_is_said(llama, caplog):
    data, term = data_of(llama), IVKL(top_n=10)
    with caplog.at_level(logging.INFO, logger="ivlens"):
        Learner(llama).learn(data, OPTIONS, guide(llama, term))
    n_bytes = data.answers.numel() * (8 * 10 + 4)
    assert (
        f"the frozen model's targets take {n_bytes / 1e6:.1f} MB for 8 examples ({n_bytes / 8e3:.1f} kB each)"
        in caplog.text
    )
    logits = torch.randn(2, 3, 50)
    assert SoftTargets.of(logits, term).n_bytes == 6 * 84 and SoftTargets.of(logits, IVKL()).n_bytes == 6 * (200 + 4)


# ---- Granite scales what attention adds


def test_on_granite_the_stream_is_moved_where_the_bridge_moves_it(byte_level):
    model = load_model(hf_model=hf_model("granite"), tokenizer=byte_level)
    data, plain, sites = data_of(model, n=4), plain_model(model), Sites(model)
    sites.check(1, "attn_out")
    delta, column = torch.randn(model.cfg.d_model), last_column(data)
    inputs = forced(data.tokens, data.attention_mask, data.answers)

    def edit(stream):
        stream = stream.clone()
        stream[:, column] += delta
        return stream

    with hooks.added(model, 1, "attn_out", edit):
        want = inputs.logits(model)
    with torch.no_grad(), sites.shifted(plain, 1, "attn_out", column, delta):
        got = answer_logits(plain, data)
    real = data.answers != -100
    torch.testing.assert_close(got[real], want[real], atol=1e-4, rtol=1e-4)
    assert (inputs.logits(model) - want).abs().max() > 0.1


# ---- patience


SCORES = [0.1, 0.5, 0.3, 0.5, 0.4, 0.9, 0.9]  # of steps 2, 4, ...: the second is the best until the sixth


def judged(seen=None):
    """A judge whose scores are those above, by the step that the model is in."""
    step = [0]

    def on_step(row):
        step[0] = row["step"]

    def judge(plain):
        return {"new": SCORES[(step[0] + 1) // 2 - 1]}

    return {"judge": judge, "on_step": on_step}


PATIENT = TuneOptions(lr=1e-2, steps=14, batch_size=4, judge_every=2, save_every=3, patience=3)


def test_training_ends_when_patience_does_and_the_best_weights_are_kept(llama):
    data = data_of(llama)
    log = Learner(llama).learn(data, PATIENT, **judged())
    assert len(log) == 10 and log.kept.notna().tolist() == [step == 4 for step in range(1, 11)]
    # a constant rate does not depend on where the training ends
    options = dataclasses.replace(PATIENT, decay="constant", warmup=0.0)
    learner, best = Learner(llama), Learner(llama)
    learner.learn(data, options, **judged())
    best.learn(data, dataclasses.replace(options, steps=4, patience=None))
    want, got = weights_of(best), weights_of(learner)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_more_patience_finds_the_later_best(llama):
    log = Learner(llama).learn(data_of(llama), dataclasses.replace(PATIENT, patience=4), **judged())
    assert len(log) == 14 and log.kept.notna().tolist() == [step == 12 for step in range(1, 15)]


def test_merit_decides_where_the_judge_gives_one(llama):
    watch = judged()
    falling = {**watch, "judge": lambda plain: watch["judge"](plain) | {"merit": 1 - watch["judge"](plain)["new"]}}
    log = Learner(llama).learn(data_of(llama), PATIENT, **falling)
    assert log.kept.notna().tolist() == [step == 2 for step in range(1, 9)]


@pytest.mark.parametrize("stop", [3, 5, 8, 10])
def test_patience_is_resumed_to_the_same_weights(llama, stop, tmp_path):
    data, whole, resumed = data_of(llama), Learner(llama), Learner(llama)
    log = whole.learn(data, PATIENT, **judged())
    watch = judged()

    def interrupt(row):
        watch["on_step"](row)
        if row["step"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Learner(llama).learn(data, PATIENT, folder=tmp_path, judge=watch["judge"], on_step=interrupt)
    again = judged()
    again["on_step"]({"step": stop - stop % 3})
    got = resumed.learn(data, PATIENT, folder=tmp_path, **again)
    assert got.drop(columns="seconds").equals(log.drop(columns="seconds"))
    finished = Learner(llama)
    finished.learn(data, PATIENT, folder=tmp_path, **judged())
    for learner in (resumed, finished):
        want, have = weights_of(whole), weights_of(learner)
        assert all(torch.equal(want[name], have[name]) for name in want)


def test_patience_needs_a_score(llama):
    with pytest.raises(ValueError, match="patience is 3, but nothing judges the training, expected judge= with"):
        Learner(llama).learn(data_of(llama), PATIENT)
    with pytest.raises(ValueError, match="patience is 3, but the judge gives no score `new`"):
        Learner(llama).learn(data_of(llama), PATIENT, judge=lambda plain: {"old": 1.0})
    with pytest.raises(ValueError, match="patience is 0, expected a whole number, 1 or more"):
        TuneOptions(patience=0)
