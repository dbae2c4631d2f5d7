"""Controls have the norm of the vector they stand beside, and nothing of its heads."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_task

import ivlens.steering.controls
from ivlens.forward.means import HeadMeans
from ivlens.models import model_identity
from ivlens.steering.controls import (
    best_constant,
    constant_accuracy,
    other_task_vectors,
    random_head_vectors,
    random_vectors,
    some_other_vectors,
    true_others,
)
from ivlens.tasks import TaskExample
from ivlens.vectors import InstructionVector
from ivlens.vectors.heads import head_writes

HEADS = ((0, 1), (1, 0), (1, 3))


@pytest.fixture
def iv(llama):
    means = torch.randn(3, llama.cfg.d_head)
    return InstructionVector(torch.randn(32), HEADS, means, "antonym", model_identity(llama), {})


@pytest.fixture
def means():
    return HeadMeans(torch.randn(3, 4, 12), torch.ones(3, 32))


def test_random_vectors_have_the_norm_and_differ(iv):
    vectors = random_vectors(iv, 4, seed=1)
    assert [vector.norm for vector in vectors] == pytest.approx([iv.norm] * 4, rel=1e-5)
    assert max(abs(one.cosine(two)) for one in vectors for two in vectors if one is not two) < 0.8
    assert [torch.equal(a.theta, b.theta) for a, b in zip(vectors, random_vectors(iv, 4, seed=1), strict=True)] == [
        True
    ] * 4
    assert not torch.equal(vectors[0].theta, random_vectors(iv, 1, seed=2)[0].theta)


def test_random_heads_are_other_heads_scaled_to_the_norm(llama, iv, means):
    writes = head_writes(llama, means.mean_z, means.write_scale)
    for vector in random_head_vectors(llama, iv, means, 5, seed=3):
        heads = vector.settings["heads"]
        assert len(set(heads)) == 3 and not set(heads) & set(HEADS)
        assert vector.norm == pytest.approx(iv.norm, rel=1e-5)
        assert vector.cosine(torch.stack([writes[head] for head in heads]).sum(0)) == pytest.approx(1, abs=1e-5)
    again = [random_head_vectors(llama, iv, means, 2, seed=3) for _ in range(2)]
    assert torch.equal(again[0][1].theta, again[1][1].theta)


def test_as_many_random_heads_as_are_left(llama, iv, means):
    every = tuple((layer, head) for layer in range(3) for head in range(4))
    most = replace(iv, heads=every[:10], head_means=torch.zeros(10, 12))
    assert random_head_vectors(llama, most, means, 1)[0].settings["heads"].__len__() == 2
    assert random_head_vectors(llama, replace(iv, heads=every, head_means=torch.zeros(12, 12)), means, 3) == []
    assert random_head_vectors(llama, iv + iv, means, 3) == []


def test_draws_of_two_tasks_are_independent(llama, iv, means):
    other = replace(iv, task="synonym")
    for one, two in zip(random_vectors(iv, 3), random_vectors(other, 3), strict=True):
        assert abs(one.cosine(two)) < 0.9
    heads = [[v.settings["heads"] for v in random_head_vectors(llama, at, means, 3)] for at in (iv, other)]
    assert heads[0] != heads[1]


def test_random_heads_of_a_contrast_are_contrasts(llama, iv, means):
    contrast = replace(iv, settings={"contrast": True})
    with pytest.raises(ValueError, match="no mean_z_corrupted"):
        random_head_vectors(llama, contrast, means, 1)
    both = replace(means, mean_z_corrupted=torch.randn(3, 4, 12))
    writes = head_writes(llama, both.mean_z - both.mean_z_corrupted, both.write_scale)
    (vector,) = random_head_vectors(llama, contrast, both, 1)
    wanted = torch.stack([writes[head] for head in vector.settings["heads"]]).sum(0)
    assert vector.cosine(wanted) == pytest.approx(1, abs=1e-5)


def test_vectors_that_hold_the_judged_task_are_no_other_tasks(iv):
    synonym, third = replace(iv, task="synonym"), replace(iv, task="third")
    given = [iv, 2 * iv, synonym, -synonym, synonym + iv, third - 2 * iv, third]
    task = tiny_task("antonym")
    assert [at.task for at in true_others(given, iv, task)] == ["synonym", "-1 * synonym", "third"]
    assert [at.task for at in true_others(given, 2 * iv, task)] == ["synonym", "-1 * synonym", "third"]
    assert [at.task for at in true_others(given, synonym, task)] == ["third"]  # another task's vector on this task
    assert [at.task for at in true_others(given, synonym - third, task)] == ["synonym", "-1 * synonym", "third"]


def test_vectors_of_the_tasks_that_share_the_inputs_are_made_alike(llama, iv, monkeypatch):
    task, near = tiny_task("antonym"), tiny_task("near", "Give another word.", shift=2)
    far = replace(tiny_task("far", "Give a number."), examples=(TaskExample("one", ("two",)),))
    monkeypatch.setattr(ivlens.steering.controls, "load_bank", lambda: {at.name: at for at in (task, near, far)})
    made = replace(iv, settings={"contrast": True, "effects": {"seed": 3, "n_prompts": 2, "score": "logprob"}})
    (other,) = other_task_vectors(llama, task, made)
    assert other.task == "near" and other.k == made.k and other.settings["contrast"]
    assert other.recipe.seed == 3
    assert {name: other.settings["effects"][name] for name in ("n_prompts", "score")} == {
        "n_prompts": 2, "score": "logprob",
    }  # fmt: skip
    assert [at.task for at in some_other_vectors(llama, task, made, n=5)] == ["near"]
    with pytest.raises(ValueError, match="shares the inputs of 'far'"):
        other_task_vectors(llama, far, made)


def test_the_best_constant_counts_every_accepted_answer():
    examples = [
        TaskExample("a", ("x", "y")),
        TaskExample("b", ("y",)),
        TaskExample("c", ("x",)),
        TaskExample("d", ("y",)),
    ]
    assert best_constant(examples) == "y"
    assert constant_accuracy("y", examples).tolist() == [1, 1, 0, 1]
    assert best_constant(examples[:1]) == "x"
