"""A task is what it holds: two of one name are told apart, or an error says so."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_task

import ivlens
from ivlens.effects import EffectOptions, head_effects
from ivlens.prompts import PromptRecipe, build_prompts
from ivlens.show.lab.code import Listing, _task, python_code
from ivlens.show.lab.state import LabState
from ivlens.steering.controls import other_task_vectors, true_others
from ivlens.tasks import Task, TaskExample, load_task
from ivlens.tasks.task import tasks_of
from ivlens.tuning import finetune
from ivlens.tuning.builder import iv_guidance
from ivlens.vectors import InstructionVector

TASK, OTHER = tiny_task("antonym"), tiny_task("antonym", shift=2, instruction="Give the one after.")
CLASH = "two different tasks are called 'antonym', expected one task of each name"


def test_tasks_of_one_name():
    again = replace(TASK, source="elsewhere", skipped=("line 3",))
    assert tasks_of("watch", [TASK, again]) == (TASK,)
    assert tasks_of("watch", [again, tiny_task("other")], beside=[TASK]) == (tiny_task("other"),)
    for given, beside in (([TASK, OTHER], []), ([OTHER], [TASK]), ({"a": TASK, "b": OTHER}, [])):
        with pytest.raises(ValueError, match=CLASH):
            tasks_of("watch", given, beside=beside)


def test_a_watched_task_is_not_dropped_in_silence(llama):
    with pytest.raises(ValueError, match=f"watch: {CLASH}"):
        finetune(llama, TASK, watch=[OTHER])
    with pytest.raises(ValueError, match=f"earlier: {CLASH}"):
        iv_guidance(llama, TASK, earlier=[OTHER])


def test_other_tasks_are_told_apart(llama, byte_level):
    with pytest.raises(ValueError, match=f"others: {CLASH}"):
        build_prompts(byte_level, TASK, TASK.examples[:2], corruption="counterfactual", others=[OTHER])
    prompts = build_prompts(
        byte_level, TASK, TASK.examples[:2], corruption="counterfactual", others=[TASK, replace(OTHER, name="after")]
    )
    assert set(prompts.counterfactuals) == {"after"}
    effects = head_effects(llama, TASK, n_prompts=2, corruption="drop", options=EffectOptions(n_check_prompts=0))
    iv = InstructionVector.from_effects(effects, k=2)
    with pytest.raises(ValueError, match=f"tasks: {CLASH}"):
        other_task_vectors(llama, TASK, iv, [OTHER])
    theirs = head_effects(llama, OTHER, n_prompts=2, corruption="drop", options=EffectOptions(n_check_prompts=0))
    other = InstructionVector.from_effects(theirs, k=2)
    assert true_others([iv], iv, TASK) == []
    with pytest.raises(ValueError, match="other_vectors has one of another task called 'antonym'"):
        true_others([other], iv, TASK)
    with pytest.raises(ValueError, match="effects of 'antonym' were measured on another task of that name"):
        iv_guidance(llama, tiny_task("new", shift=3), earlier=[TASK], effects={"antonym": theirs})
    theirs.check_task(OTHER)


def code_of(task):
    state = LabState(task=task.name, text="big", layer=1, alpha=1.0, site="resid_post", heads=())
    return python_code(state, Listing(["pocket"], task, "Input: big\nOutput:", [{}]))


def rebuilt(task):
    line = next(line for line in code_of(task).splitlines() if line.startswith("task = "))
    scope = {"ivlens": ivlens}
    exec(line, scope)
    return scope["task"]


def test_the_code_of_the_lab_opens_the_very_task(tmp_path, monkeypatch):
    built_in = load_task("antonym")
    assert _task(built_in) == "ivlens.load_task('antonym')"
    for task in (
        TASK,  # another one of a built-in name
        replace(built_in, clozes=()),
        replace(built_in, name="opposites"),
        Task("quotes", TaskExample("TaskExample('a')", ("\"'\n", "b"), "train"), fused=True),
    ):
        assert rebuilt(task).full_hash() == task.full_hash()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "antonym").write_text('[{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]')
    own = load_task("./antonym")
    assert "load_task(" in _task(own) and rebuilt(own).full_hash() == own.full_hash() != built_in.full_hash()
    (tmp_path / "antonym").write_text('[{"input": "a", "output": "x"}]')  # since it was read
    assert rebuilt(own).full_hash() == own.full_hash()


def test_engines_of_the_lab_refuse_effects_of_another_task(llama):
    from ivlens.show.lab.engine import Engine
    from ivlens.show.lab.measures import EngineOptions

    effects = head_effects(llama, OTHER, n_prompts=2, corruption="drop", options=EffectOptions(n_check_prompts=0))
    with pytest.raises(ValueError, match="effects of 'antonym' were measured on another task of that name"):
        Engine(llama, {"antonym": TASK}, EngineOptions(2, 0, 0), [effects])
    Engine(llama, {"antonym": OTHER}, EngineOptions(2, 0, 0), [effects])


def test_recipes_carry_what_they_say_not_a_name():
    other = ivlens.PromptTemplate("plain", bare="{input} =", instructed="{instruction} {input} =")
    assert PromptRecipe(other) != PromptRecipe("plain") and torch.is_grad_enabled()
