"""Hooks read and change what they say, leave nothing behind, and never do nothing in silence."""

import threading

import pytest
import torch
from conftest import hf_model, output_bias, random_prompts

from ivlens.forward import hooks

TOKENS = torch.randint(3, 400, (2, 6), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(TOKENS, use_cache=False)


def test_heads_times_output_projection_plus_bias_is_the_projection(model):
    with hooks.captured_heads(model) as z, hooks.captured_projection(model) as projected:
        logits(model)
    w_o = hooks.output_projection(model)
    assert w_o.shape == (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, model.cfg.d_model)
    for layer in range(model.cfg.n_layers):
        assert z[layer].shape == (2, 6, model.cfg.n_heads, model.cfg.d_head)
        summed = torch.einsum("bphd,hdm->bpm", z[layer], w_o[layer]) + output_bias(model, layer)
        assert torch.equal(hooks.output_projection(model, layer), w_o[layer])
        torch.testing.assert_close(summed, projected[layer], atol=1e-4, rtol=1e-4)


def test_attn_out_is_what_attention_adds_to_the_residual_stream(model):
    names = [f"blocks.{layer}.{name}" for layer in range(3) for name in ("hook_in", "hook_mlp_out")]
    with (
        hooks.captured_residual(model, range(3), "attn_out") as written,
        hooks.captured_residual(model, range(3), "resid_post") as after,
        torch.no_grad(),
    ):
        _, cache = model.run_with_cache(TOKENS, names_filter=names)
    for layer in range(3):
        total = cache[f"blocks.{layer}.hook_in"] + written[layer] + cache[f"blocks.{layer}.hook_mlp_out"]
        torch.testing.assert_close(total, after[layer], atol=1e-4, rtol=1e-4)


def test_captured_residual_is_what_the_next_block_reads(model):
    with hooks.captured_residual(model, range(model.cfg.n_layers)) as stream:
        before = logits(model)
    with hooks.added(model, 1, "resid_post", lambda resid: stream[1]):
        torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    with hooks.added(model, 1, "resid_post", lambda resid: torch.zeros_like(resid)):
        assert not torch.allclose(logits(model), before, atol=1e-2)


@pytest.mark.parametrize("site", hooks.SITES)
def test_adding_zero_changes_no_bit_and_adding_more_changes_a_lot(model, site):
    before = logits(model)
    with hooks.added(model, 1, site, lambda resid: resid + 0.0):
        assert torch.equal(logits(model), before)
    with hooks.added(model, 1, site, lambda resid: resid + 3.0 * torch.arange(resid.shape[-1]).cos()):
        assert not torch.allclose(logits(model), before, atol=1e-2)
    assert torch.equal(logits(model), before)


def test_select_keeps_only_what_is_asked_for(model):
    with hooks.captured_heads(model, [2]) as whole:
        logits(model)
    with hooks.captured_heads(model, [2], select=lambda z: z[:, -1]) as last:
        logits(model)
    assert list(last) == [2]
    assert torch.equal(last[2], whole[2][:, -1])


def test_contexts_nest_and_the_inner_one_sees_the_edit(llama):
    with hooks.patched_heads(llama, lambda z, layer: z * 0, [1]), hooks.captured_heads(llama, [1]) as z:
        logits(llama)
    assert not z[1].any()
    before = logits(llama)
    with (
        hooks.patched_heads(llama, lambda z, layer: z * 2, [0, 1]),
        hooks.patched_heads(llama, lambda z, _: z / 2, [0, 1]),
    ):
        torch.testing.assert_close(logits(llama), before, atol=1e-5, rtol=1e-5)


def test_hooks_are_gone_after_an_exception(model):
    before = logits(model)
    with pytest.raises(KeyError, match="mine"), hooks.patched_heads(model, lambda z, layer: z * 0, [0]):
        raise KeyError("mine")
    assert torch.equal(logits(model), before)
    with pytest.raises(ZeroDivisionError), hooks.added(model, 0, "resid_post", lambda resid: 1 / 0):
        logits(model)
    assert torch.equal(logits(model), before)
    assert hooks.model_lock(model).acquire(blocking=False)
    hooks.model_lock(model).release()


@pytest.mark.parametrize(
    "context",
    [
        lambda model: hooks.captured_heads(model),
        lambda model: hooks.captured_residual(model, 0, "attn_out"),
        lambda model: hooks.patched_heads(model, lambda z, layer: z, [0]),
        lambda model: hooks.added(model, 0, "resid_post", lambda resid: resid),
    ],
)
def test_a_hook_that_no_pass_reached_is_an_error(llama, context):
    with pytest.raises(RuntimeError, match="no forward pass reached"), context(llama):
        pass


def test_a_pass_that_stops_early_is_an_error(llama):
    with pytest.raises(RuntimeError, match=r"no forward pass reached .*blocks\.2"), hooks.captured_heads(llama):
        with torch.no_grad():
            llama.run_with_hooks(TOKENS, stop_at_layer=1)


def test_edits_must_keep_the_shape(llama):
    with pytest.raises(ValueError, match=r"edit at blocks\.0.* returned \(2, 1, 4, 12\), expected .*\(2, 6, 4, 12\)"):
        with hooks.patched_heads(llama, lambda z, layer: z[:, -1:], [0]):
            logits(llama)
    with pytest.raises(ValueError, match="returned NoneType"), hooks.added(llama, 0, "attn_out", lambda resid: None):
        logits(llama)


def test_unknown_layers_and_sites(llama):
    with pytest.raises(ValueError, match="layer 3 does not exist: the model has 3 layers, 0 to 2"):
        with hooks.captured_heads(llama, [3]):
            pass
    with pytest.raises(ValueError, match="layer -1 does not exist"), hooks.added(llama, -1, "resid_post", lambda r: r):
        pass
    with pytest.raises(ValueError, match="site is 'resid_mid', expected one of resid_post, attn_out"):
        with hooks.captured_residual(llama, 0, "resid_mid"):
            pass


def in_thread(function):
    """Run `function` in a thread of its own; its result, or the error it raised."""
    result: list = []

    def run() -> None:
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return result[0]


def test_a_second_thread_inside_a_context_is_refused(llama):
    with pytest.raises(ZeroDivisionError), hooks.patched_heads(llama, lambda z, layer: z * 0, [0]):
        logits(llama)
        error = in_thread(lambda: logits(llama))
        assert isinstance(error, RuntimeError) and "a second thread ran the model" in str(error)
        raise ZeroDivisionError


def test_a_thread_started_inside_may_be_the_one_that_runs(llama):
    """As with a TextIteratorStreamer: the context is opened here, generate runs there."""
    before = logits(llama)
    with hooks.patched_heads(llama, lambda z, layer: z * 0, [0]):
        there = in_thread(lambda: logits(llama))
    assert not torch.allclose(there, before, atol=1e-3)


def test_threads_that_hook_wait_for_each_other(llama):
    def edited(factor):
        with hooks.patched_heads(llama, lambda z, layer: z * factor, [0, 1]):
            return logits(llama)

    factors = [0.0, 0.5, 2.0, 3.0] * 3
    want = [edited(factor) for factor in factors]
    got: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda n=n, factor=factor: got.update({n: edited(factor)}))
        for n, factor in enumerate(factors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(torch.equal(got[n], want[n]) for n in range(len(factors)))


def test_one_lock_for_each_model(llama, new_model):
    assert hooks.model_lock(llama) is hooks.model_lock(llama)
    assert hooks.model_lock(llama) is not hooks.model_lock(new_model("gpt2"))


def test_edits_work_in_generate_with_and_without_cache(llama):
    prompt = random_prompts((6,))[0]
    written = []
    for cached in (True, False):
        with hooks.patched_heads(llama, lambda z, layer: z * 0.5, range(3)):
            out = llama.generate(
                prompt, max_new_tokens=4, do_sample=False, use_past_kv_cache=cached, verbose=False, stop_at_eos=False
            )
        written.append(out)
    plain = llama.generate(prompt, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
    assert torch.equal(*written)
    assert not torch.equal(written[0], plain)


def test_gradients_flow_through_an_edit(new_model):
    model = new_model("llama")
    vector = torch.zeros(model.cfg.d_model, requires_grad=True)
    with hooks.added(model, 1, "resid_post", lambda resid: resid + vector):
        model(TOKENS, use_cache=False)[:, -1, 5].sum().backward()
    assert vector.grad is not None and vector.grad.abs().sum() > 0


def test_a_model_that_is_no_bridge():
    plain = hf_model("llama")
    for call in (hooks.model_lock, hooks.output_projection, hooks.check_unsteered):
        with pytest.raises(TypeError, match="model is LlamaForCausalLM, expected the TransformerBridge .*load_model"):
            call(plain)
    with pytest.raises(TypeError, match="expected the TransformerBridge"):
        hooks.check_layers(plain, [0])


def test_marks_of_steering_nest_and_end(llama):
    with hooks.steering(llama):
        with pytest.raises(KeyError), hooks.steering(llama):
            raise KeyError
        assert hooks.is_steered(llama)
        with pytest.raises(RuntimeError, match="this thread has a steer context open on the model, expected none"):
            hooks.check_unsteered(llama)
        waited = []
        other = threading.Thread(target=lambda: waited.append(hooks.check_unsteered(llama)))
        other.start()
        other.join(0.2)
        assert not waited
    other.join(20)
    assert waited == [None] and not hooks.is_steered(llama)


@pytest.mark.parametrize("values", [[1.9], "12", [True], ["1"], [torch.tensor(1.5)]])
def test_layers_and_heads_are_whole_numbers(values):
    with pytest.raises(TypeError, match="expected whole numbers"):
        hooks.whole_numbers("layers", values)


def test_whole_numbers_of_any_kind_pass():
    assert hooks.whole_numbers("layers", (1, torch.tensor(2), range(4)[3])) == (1, 2, 3)
