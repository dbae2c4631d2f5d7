"""Vectors at every token, at a slice or a mask of the prompt, and another vector in each row of a batch."""

from itertools import pairwise

import pytest
import torch
from conftest import random_prompts
from test_steering import N_NEW, run, vector_for, write

from ivlens import load_model, steer, steer_rows
from ivlens.forward.hooks import captured_residual
from ivlens.steering.summary import Setting

SLICES = [slice(None), slice(2), slice(-2, None), slice(1, -1), slice(0, None, 2), slice(None, None, -1), slice(20, 30)]


def moved(model, iv, positions, tokens, mask):
    """Which positions the vector was added to, in one pass."""
    with captured_residual(model, 1) as plain:
        run(model, tokens, mask)
    with steer(model, iv, layer=1, positions=positions), captured_residual(model, 1) as steered:
        run(model, tokens, mask)
    difference = steered[1] - plain[1]
    found = difference.abs().amax(-1) > 0
    torch.testing.assert_close(difference[found], iv.theta.expand(int(found.sum()), -1), atol=1e-4, rtol=1e-4)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", SLICES, ids=str)
def test_a_slice_counts_each_rows_own_tokens(llama, positions, side):
    tokens, mask = random_prompts(side=side)
    found = moved(llama, vector_for(llama), positions, tokens, mask)
    expected = torch.zeros_like(found)
    for row in range(len(tokens)):
        own = mask[row].nonzero()[:, 0].tolist()
        expected[row, own[positions]] = True
    assert torch.equal(found, expected)
    assert found.any() or positions.start == 20


def test_all_is_every_column_and_a_mask_is_its_own(model):
    tokens, mask = random_prompts()
    iv = vector_for(model)
    assert bool(moved(model, iv, "all", tokens, mask).all())
    chosen = torch.rand(mask.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    assert torch.equal(moved(model, iv, chosen, tokens, mask), chosen)
    # one row for all of a batch
    assert torch.equal(moved(model, iv, chosen[:1], tokens, mask), chosen[:1].expand_as(chosen))


def test_the_last_token_as_a_slice_is_prompt(llama):
    tokens, mask = random_prompts()
    texts = []
    for positions in ("prompt", slice(-1, None), mask.bool() & (torch.arange(9) == 8)):
        with steer(llama, vector_for(llama), layer=1, positions=positions):
            texts.append([write(llama, tokens, mask, cache=cache) for cache in (True, False)])
    assert all(torch.equal(one, other) for one, other in pairwise(text for pair in texts for text in pair))


@pytest.mark.parametrize("positions", [slice(3), slice(-3, None), "all"], ids=str)
def test_padded_rows_are_written_as_alone_with_and_without_a_cache(llama, positions):
    tokens, mask = random_prompts()
    with steer(llama, vector_for(llama), layer=1, positions=positions):
        together = write(llama, tokens, mask)
        assert torch.equal(write(llama, tokens, mask, cache=False), together)
        for row, length in enumerate(mask.sum(1).tolist()):
            assert torch.equal(write(llama, tokens[row : row + 1, -length:])[0], together[row, -length - N_NEW :])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("never", "positions is 'never', expected one of prompt, every, all"),
        (slice(None, None, 0), "expected a step other than 0"),
        (slice("a"), "expected a slice of whole numbers"),
        (torch.ones(2, 3), "positions is"),
        (torch.ones(3, dtype=torch.bool), "positions is"),
        (3, "positions is 3"),
    ],
    ids=str,
)
def test_positions_that_make_no_sense_are_refused(llama, positions, message):
    for opened in (
        lambda: steer(llama, vector_for(llama), layer=1, positions=positions),
        lambda: steer_rows(llama, [vector_for(llama)], at=(1, 1.0, "resid_post"), positions=positions),
    ):
        with pytest.raises((ValueError, TypeError), match=message), opened():
            run(llama, *random_prompts())


def test_masks_and_rows_that_do_not_fit_the_batch_are_refused(llama):
    tokens, mask = random_prompts()
    iv = vector_for(llama)
    with pytest.raises(ValueError, match="expected 9 columns"), steer(llama, iv, layer=1, positions=mask[:, :5] > 0):
        write(llama, tokens, mask)
    with pytest.raises(ValueError, match="3 rows, but 4 rows run"), steer(llama, iv, layer=1, positions=mask[:3] > 0):
        write(llama, tokens, mask)
    with pytest.raises(ValueError, match="3 prompts has 3 rows, but 4"), steer_rows(llama, [iv] * 3, at=[AT[0]] * 3):
        write(llama, tokens, mask)


AT = [Setting(1, 2.0, "resid_post"), Setting(2, -3.0, "attn_out"), None, Setting(1, 0.0, "resid_post")]


def of_rows(model):
    """A vector for each row of four; the third has none, the last one's strength is 0."""
    return [vector_for(model, size=6.0), vector_for(model, seed=1, size=6.0), None, vector_for(model, seed=2)]


@pytest.mark.parametrize("positions", ["prompt", "every", "all", slice(2)], ids=str)
def test_each_row_is_written_as_with_its_own_vector_alone(model, positions):
    tokens, mask = random_prompts()
    vectors = of_rows(model)
    plain = write(model, tokens, mask)
    with steer_rows(model, vectors, at=AT, positions=positions):
        together = write(model, tokens, mask)
        assert torch.equal(write(model, tokens, mask, cache=False), together)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone, own = tokens[row : row + 1, -length:], together[row, -length - N_NEW :]
        if AT[row] is None or not AT[row].alpha:
            assert torch.equal(own, plain[row, -length - N_NEW :])
            continue
        with steer(model, vectors[row], at=AT[row], positions=positions):
            assert torch.equal(write(model, alone)[0], own)
    assert positions == slice(2) or not torch.equal(together[0], plain[0])


def test_rows_without_a_vector_keep_every_bit(llama):
    tokens, mask = random_prompts()
    plain = run(llama, tokens, mask)
    with steer_rows(llama, of_rows(llama), at=AT):
        found = run(llama, tokens, mask)
    assert torch.equal(found[2:], plain[2:])
    assert (found[:2] - plain[:2]).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("way", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True}])
def test_beams_and_returned_sequences_keep_their_rows_vector(llama, way):
    """Each row's beams are those of the row alone; what is sampled at top 1 is what is likeliest."""
    tokens, mask = random_prompts((6, 6, 6, 6))
    vectors, n = of_rows(llama), way.get("num_return_sequences", 2 if "do_sample" in way else 1)
    options = {"max_new_tokens": N_NEW, "eos_token_id": None, "pad_token_id": 0, "do_sample": False, "top_k": 1, **way}
    options["num_return_sequences"] = n
    with steer_rows(llama, vectors, at=AT, positions="every"):
        together = llama.original_model.generate(tokens, attention_mask=mask, **options)
    for row in (0, 1):
        with steer(llama, vectors[row], at=AT[row], positions="every"):
            alone = llama.original_model.generate(tokens[row : row + 1], attention_mask=mask[:1], **options)
        assert torch.equal(alone, together[n * row : n * (row + 1)])


def test_contexts_of_rows_nest(llama):
    tokens, mask = random_prompts()
    one, two = vector_for(llama), vector_for(llama, seed=1)
    with (
        steer_rows(llama, [one, None, one, None], at=(1, 1.0, "resid_post")),
        steer_rows(llama, [None, two, two, None], at=(1, 2.0, "resid_post")),
    ):
        nested = run(llama, tokens, mask)
    both = [one, 2 * two, one + 2 * two, None]
    with steer_rows(llama, both, at=(1, 1.0, "resid_post")):
        torch.testing.assert_close(run(llama, tokens, mask), nested, atol=1e-4, rtol=1e-4)


def test_one_batch_serves_vectors_of_several_tasks():
    model = load_model("pocket")
    one, two = vector_for(model, size=30.0), vector_for(model, seed=1, size=30.0)
    prompts = ["Input: big\nOutput:", "Input: a very small house\nOutput:", "Input: hot\nOutput:"]
    options = {"max_new_tokens": 4, "do_sample": False, "verbose": False}
    at = [Setting(2, 2.0, "resid_post"), Setting(1, 1.0, "attn_out"), None]
    with steer_rows(model, [one, two, None], at=at):
        together = model.generate(prompts, **options)
    with steer(model, one, at=at[0]):
        alone = [model.generate(prompts[0], **options)]
    with steer(model, two, at=at[1]):
        alone.append(model.generate(prompts[1], **options))
    assert together == [*alone, model.generate(prompts[2], **options)]
    assert together[0] != model.generate(prompts[0], **options)


@pytest.mark.parametrize(
    ("vectors", "at", "message"),
    [
        (0, AT[:1], "got 0 vectors"),
        (2, AT[:1], "2 vectors and 1 settings"),
        (1, [None], "has a vector but no setting"),
        (1, [(1, float("inf"), "resid_post")], "alpha"),
        (1, [(3, 1.0, "resid_post")], "layer 3 does not exist"),
        (1, [(1, 1.0, "z")], "site is 'z'"),
    ],
)
def test_wrong_rows_are_refused(llama, vectors, at, message):
    with pytest.raises(ValueError, match=message), steer_rows(llama, [vector_for(llama)] * vectors, at=at):
        pass


def test_a_vector_of_another_model_is_refused_by_its_row(llama, new_model):
    other = vector_for(new_model("llama", seed=5))
    with pytest.raises(ValueError, match="compute it anew"), steer_rows(llama, [vector_for(llama), other], at=AT[0]):
        pass
