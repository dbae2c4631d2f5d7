"""Prompts and copies in one sequence: the reference's numbers, refusals, and a model that is left as it was."""

import dataclasses
import os
import sys
import threading

import pytest
import torch
from torch import nn

from ivlens.effects import exact, together
from ivlens.effects.checks import Check
from ivlens.effects.engines import METHODS
from ivlens.effects.request import PatchOptions, Unsuitable, make_request
from ivlens.forward.norms import _kind, fused_norms
from ivlens.forward.unwrapped import parts_agree, unwrapped

TOGETHER = "with the prompts"


@pytest.fixture
def fresh(new_model):
    return new_model("llama")


def request_for(model, lengths=(7, 4, 9, 5), score="logprob", **options):
    generator = torch.Generator().manual_seed(3)
    width = max(lengths)
    tokens = torch.randint(3, 400, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    answers = torch.randint(3, 400, (len(lengths), 3), generator=generator)
    answers[0, 1:] = -100
    mean_z = torch.randn(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, generator=generator)
    return make_request(model, tokens, mask, answers, mean_z, options=PatchOptions(score=score, **options))


def parts(model):
    """Everything about a model that a pass changes on its way."""
    modules = [
        (name, id(module), id(getattr(module, "config", None)), module.__dict__.get("forward"))
        for name, module in model.original_model.named_modules()
    ]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return modules, hooks


@pytest.mark.parametrize(
    "options",
    [
        {}, {"layers": [1]}, {"layers": [0, 2], "heads": [1, 3]}, {"heads": [2]}, {"mode": "add"},
        {"mode": "add", "heads": [0]},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("score", ["prob", "logprob"])
def test_it_gives_what_the_reference_gives(fresh, score, options):
    request = request_for(fresh, score=score, **options)
    found, want = exact.measure(fresh, request), METHODS["reference"](fresh, request)
    assert found.record["copies"] == TOGETHER and want.cie.nan_to_num().abs().max() > 1e-3
    torch.testing.assert_close(found.cie, want.cie, atol=1e-4, rtol=0, equal_nan=True)
    torch.testing.assert_close(found.base, want.base, atol=1e-4, rtol=0)


def test_the_model_is_left_as_it_was(fresh, monkeypatch):
    request, before = request_for(fresh), parts(fresh)
    exact.measure(fresh, request)
    assert parts(fresh) == before

    def interrupted(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(together.Together, "attend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exact.measure(fresh, request)
    assert parts(fresh) == before and together._RUNNING.get() is None


@pytest.mark.filterwarnings("ignore:.*fold_ln:UserWarning")
@pytest.mark.parametrize("change", ["compatibility mode", "query matrix"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "phi3"])
def test_matrices_that_the_bridge_has_cut_and_that_differ_now(new_model, family, change):
    """Plain blocks would give effects of other weights than all hooked passes."""
    model = new_model(family)
    request = request_for(model)
    assert exact.measure(model, request).record["copies"] == TOGETHER, "the shape is known to be right"
    if change == "compatibility mode":
        model.enable_compatibility_mode(disable_warnings=True)
    else:
        with torch.no_grad():
            model.blocks[1].attn.q.original_component.weight.mul_(1.5)
    found, want = exact.measure(model, request), METHODS["reference"](model, request)
    is_shared = change == "query matrix" and family != "neox"  # the parts are views of the family's own matrix
    assert found.record["copies"] == (TOGETHER if is_shared else "one mask")
    torch.testing.assert_close(found.cie, want.cie, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.base, want.base, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cut_matrices_are_compared_with_the_whole_ones(new_model, dtype):
    model = new_model("neox").to(dtype)
    weight = model.blocks[2].attn.v.original_component.weight
    assert parts_agree(model)
    with torch.no_grad():
        weight.zero_()
        assert not parts_agree(model)
        model.blocks[2].attn.qkv.original_component.weight.unflatten(0, (4, 3, -1))[:, 2] = 0
        assert parts_agree(model)
        weight.fill_(torch.nan)
        assert not parts_agree(model)


def test_a_wrapper_with_a_forward_of_its_own_keeps_it(fresh):
    request, part = request_for(fresh), fresh.blocks[1].mlp
    exact.measure(fresh, request)
    forward = part.forward
    part.__dict__["forward"] = lambda *args, **kwargs: 2 * forward(*args, **kwargs)
    found, want = exact.measure(fresh, request), METHODS["reference"](fresh, request)
    torch.testing.assert_close(found.cie, want.cie, atol=1e-4, rtol=0)


def test_blocks_that_keep_a_state_beside_attention_are_refused(new_model):
    """Not by the check alone: in half precision a weak recurrence is within its bounds."""
    model = new_model("falcon_h1")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mamba.out_proj" in name or "mamba._original_component.out_proj" in name:
                parameter.mul_(0.1)
    model = model.to(torch.bfloat16)
    request = request_for(model, (20,) * 4, score="prob")
    with pytest.raises(Unsuitable, match="block 0 keeps a state"):
        exact._measured(model, request, TOGETHER)
    assert exact.measure(model, request).record["copies"] == "own attention"


def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(new_model):
    """The exception is raised by a trace function, at every line of the module in turn."""
    model = new_model("llama", n_layers=2)
    request = request_for(model, (5, 3), score="prob")
    exact.measure(model, request)  # with the check
    before, number, lines = parts(model), 0, None
    while lines is None or number < lines:
        number, lines = number + 1, interrupted_at(number + 1, lambda: exact.measure(model, request))
        assert parts(model) == before and together._RUNNING.get() is None, number
    assert number > 50


def interrupted_at(number, run):
    """Interrupt `run` at so-manieth line of the module; returns how many lines it has run, None if there are more."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code.co_filename != together.__file__:
            return None
        seen += event == "line"
        if event == "line" and seen == number:
            raise KeyboardInterrupt
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        return None
    finally:
        sys.settrace(outer)
    return seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_measures_leaves_nothing_behind(fresh, monkeypatch):
    request, patch, before = request_for(fresh), together.Together._patch, parts(fresh)
    inside, go_on = threading.Event(), threading.Event()

    def waits(self, *given):
        inside.set()
        go_on.wait(30)
        patch(self, *given)

    monkeypatch.setattr(together.Together, "_patch", waits)
    thread = threading.Thread(target=lambda: exact.measure(fresh, request))
    thread.start()
    inside.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(0 if parts(fresh) == before else 1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0 and parts(fresh) == before


@pytest.mark.parametrize("fault", ["mask", "own values", "positions", "another head", "own keys"])
def test_what_goes_wrong_is_refused_and_another_way_takes_over(fresh, fault, monkeypatch):
    request, attend, patch = request_for(fresh), together.Together.attend, together.Together._patch

    def broken(self, query, key, value, mask, *told):
        if fault == "mask":
            mask = mask * 0
        if fault == "own values":
            value = torch.cat([value[:, :, : self.n_tokens], value[:, :, self.n_tokens :].roll(1, -2)], -2)
        if fault == "own keys":
            key = torch.cat([key[:, :, : self.n_tokens], key[:, :, self.n_tokens :].roll(1, -2)], -2)
        return attend(self, query, key, value, mask, *told)

    def at_another(self, layer, projection, args):
        patch(self, layer, projection, (args[0].roll(12, -1),))  # what is patched is thrown away

    if fault == "positions":
        monkeypatch.setattr(together.Together, "columns", property(lambda self: torch.arange(200) % self.n_tokens))
    elif fault == "another head":
        monkeypatch.setattr(together.Together, "_patch", at_another)
    else:
        monkeypatch.setattr(together.Together, "attend", broken)
    with pytest.raises(Unsuitable, match="logits are off by"):
        exact._measured(fresh, request, TOGETHER)
    found = exact.measure(fresh, request)
    assert found.record["copies"] == "own attention"
    torch.testing.assert_close(found.cie, METHODS["reference"](fresh, request).cie, atol=1e-4, rtol=0)


def test_without_its_check_a_fault_would_go_through(fresh, monkeypatch):
    """Why the check is there: nothing but the reference tells that a head was patched at the wrong place."""
    request = request_for(fresh)
    monkeypatch.setattr(together.Together, "_patch", lambda self, layer, projection, args: None)
    monkeypatch.setattr(Check, "is_due", lambda self: False)
    assert exact._measured(fresh, request, TOGETHER).cie.abs().max() < 1e-4


def test_little_memory_means_portions_behind_the_prompts(fresh):
    request = request_for(fresh)
    found = exact.measure(fresh, dataclasses.replace(request, max_memory=1))
    assert found.record["copies"] == "own attention" and found.record["chunk"]["n_heads"] == 1
    whole = exact.measure(fresh, request)
    assert whole.record["copies"] == TOGETHER, "nothing was refused"
    torch.testing.assert_close(found.cie, whole.cie, atol=2e-5, rtol=0)


def test_a_layer_takes_far_fewer_calls_of_torch(new_model):
    """What a GPU launches. A norm counts as six here; a GPU has one kernel for it."""

    def calls(way, n_layers):
        model = new_model("llama", n_layers=n_layers)
        request = request_for(model, (30,) * 2, score="prob")
        exact._measured(model, request, way)  # with the check
        with Launches() as seen:
            exact._measured(model, request, way)
        return seen.n

    apart, beside = ((calls(way, 6) - calls(way, 3)) / 3 for way in ("own attention", TOGETHER))
    assert beside <= 50 and apart / beside > 2.4, (apart, beside)


# what only says how memory is read, or takes some
_NO_WORK = {"aten::_unsafe_view", "aten::detach", "aten::new_empty", "aten::empty", "aten::empty_strided"}


class Launches(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        self.n += not is_view and func._schema.name not in _NO_WORK
        return func(*args, **(kwargs or {}))


# ---- the parts


def test_plain_blocks_give_the_same_bits(new_model):
    model = new_model("qwen3")
    tokens = torch.randint(3, 400, (2, 9))
    with torch.no_grad():
        want, inside = model(tokens, use_cache=False), []
        with unwrapped(model, [1]) as plain:
            model.blocks[1].__dict__["forward"] = lambda *a, **k: inside.append(1) or plain[1].forward(*a, **k)
            got = model(tokens, use_cache=False)
            del model.blocks[1].__dict__["forward"]
    assert torch.equal(got, want) and inside == [1]


class PlainRMSNorm(nn.Module):
    def __init__(self, width=8, offset=0.0, eps=1e-5):
        super().__init__()
        self.weight, self.eps, self.offset = nn.Parameter(torch.randn(width)), eps, offset

    def forward(self, stream):
        full = stream.float()
        full = full * (full.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (full * (self.weight + self.offset)).to(stream.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms_in_one_call_give_the_same(offset, dtype):
    block = nn.Sequential(PlainRMSNorm(offset=offset)).to(dtype)
    stream = torch.randn(3, 8, dtype=dtype) * 5
    want = block(stream)
    with fused_norms([block]) as n:
        got = block(stream)
        assert n == 1 and "forward" in block[0].__dict__
    assert got.dtype == dtype and "forward" not in block[0].__dict__
    torch.testing.assert_close(got, want)


def test_an_epsilon_that_is_changed_later_counts():
    block, stream = nn.Sequential(PlainRMSNorm()), torch.randn(3, 8)
    with fused_norms([block]):
        pass
    block[0].eps = 0.5
    with fused_norms([block]) as n:
        got = block(stream)
    assert n == 1
    torch.testing.assert_close(got, block(stream))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_with_small_weights_are_told_apart(dtype):
    """Many real ones have weights of a hundredth, where a difference counts as much as anywhere."""

    class OtherRMSNorm(PlainRMSNorm):
        def forward(self, stream):
            return super().forward(stream) * 1.5

    class OtherEpsilonRMSNorm(PlainRMSNorm):
        variance_epsilon = 1e-6  # not the one that it reads

    for kind, want in ((PlainRMSNorm, ("eps", 0.0)), (OtherRMSNorm, None), (OtherEpsilonRMSNorm, None)):
        norm = kind()
        with torch.no_grad():
            norm.weight.mul_(1e-3)
        assert _kind(norm.to(dtype)) == want, kind


def test_norms_that_are_none_of_these_stay_as_they_are():
    class OtherRMSNorm(PlainRMSNorm):
        def forward(self, stream):
            return super().forward(stream) * 2

    class NoRMSNorm(nn.Module):
        pass

    in_single = PlainRMSNorm().double()  # in float64 it is less exact than torch's own
    for module in (OtherRMSNorm(), PlainRMSNorm(offset=0.5), in_single, NoRMSNorm(), nn.LayerNorm(8), nn.Linear(8, 8)):
        assert _kind(module) is None
