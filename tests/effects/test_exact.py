"""The exact engine: portions, refusals and fallbacks. That it is right in every family is in test_parity.py."""

import dataclasses
import logging
import threading

import pytest
import torch
from conftest import random_prompts
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ivlens.common import memory
from ivlens.effects import (
    EffectOptions,
    HeadEffects,
    causal_indirect_effect,
    copies,
    exact,
    head_effects,
    own_attention,
    together,
)
from ivlens.effects.checks import Check
from ivlens.effects.chunks import ChunkSize, chunk_size, prompt_bytes
from ivlens.effects.engines import METHODS, run_engine
from ivlens.effects.request import PatchOptions, Unsuitable, make_request
from ivlens.forward.means import mean_head_outputs

TOKENS, MASK = random_prompts()
ANSWERS = torch.tensor([[5, -100, -100], [6, 7, -100], [8, 9, 10], [11, -100, -100]])


def request_for(model, lengths=(7, 4, 9, 5), score="logprob", seed=3, foil_tokens=None, **options):
    tokens, mask = random_prompts(lengths)
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randint(3, 400, (len(lengths), 3), generator=generator)
    answers[0, 1:] = -100
    mean_z = torch.randn(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, generator=generator)
    patch = PatchOptions(score=score, **options)
    return make_request(model, tokens, mask, answers, mean_z, foil_tokens=foil_tokens, options=patch)


@pytest.fixture
def fresh(new_model):
    """A model that no test has measured, so that nothing is known about it."""
    return new_model("llama")


def storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self):
        super().__init__()
        self.peak, self._live = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def peak_of(run):
    with PeakMemory() as memory:
        run()
    return memory.peak


SIZES = [ChunkSize(4, 4, 10_000), ChunkSize(1, 4, 7), ChunkSize(3, 1, 1), ChunkSize(2, 3, 5)]


@pytest.mark.parametrize("score", ["prob", "logprob", "logit_diff"])
def test_the_sizes_of_portions_change_nothing_but_the_last_digits(model, score, monkeypatch):
    request = request_for(model, score=score, foil_tokens=torch.tensor([20, 21, 22, 23]))
    results = []
    for size in SIZES:
        monkeypatch.setattr(exact, "chunk_size", lambda *_, size=size, **how: size)
        results.append(exact.measure(model, request))
        assert results[-1].record["chunk"] == dataclasses.asdict(size)
        again = exact.measure(model, request)
        assert bool((results[-1].cie == again.cie).all()), "other bits"
    for found in results:
        # weights are scaled up six-fold here, so nats and logits are of the order of ten
        torch.testing.assert_close(found.cie, results[0].cie, atol=1e-6 if score == "prob" else 2e-5, rtol=0)
        torch.testing.assert_close(found.base, results[0].base, atol=2e-5, rtol=0)


def test_only_what_was_asked_for_is_measured(llama):
    everything = exact.measure(llama, request_for(llama)).cie
    some = exact.measure(llama, request_for(llama, layers=[2, 1], heads=[3, 0])).cie
    asked = torch.zeros(3, 4, dtype=torch.bool)
    asked[1:, [0, 3]] = True
    assert torch.equal(~some.isnan(), asked.expand_as(some))
    torch.testing.assert_close(some[:, asked], everything[:, asked], atol=2e-5, rtol=0)


def test_a_prompt_of_one_token(model):
    request = request_for(model, (1, 1))
    torch.testing.assert_close(
        exact.measure(model, request).cie, METHODS["reference"](model, request).cie, atol=1e-4, rtol=0
    )


# ---- memory


def test_a_budget_does_not_depend_on_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 24 * 2**30)
    assert memory.memory_budget("auto", torch.device("cpu")) == 384 * 2**20
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**40)
    assert memory.memory_budget("auto", torch.device("cpu")) == 2**30
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**30)
    assert memory.memory_budget("auto", torch.device("cpu")) == 2**27
    assert memory.memory_budget(123, torch.device("cpu")) == 123


def test_a_container_has_what_its_limit_says(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2**20}\n")
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(limit)))
    assert memory.machine_memory() == 2**20
    limit.write_text("max\n")
    assert memory.machine_memory() > 2**20


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_peak_stays_within_the_budget(family, new_model):
    model = new_model(family)
    request = request_for(model, (40,) * 12)
    exact.measure(model, request)  # the first pass is also checked, which takes the reference's passes
    one_head = 2 * prompt_bytes(model, request, 1)
    whole = peak_of(lambda: exact.measure(model, request))
    for budget in (one_head, 8 * one_head):
        small = dataclasses.replace(request, max_memory=budget)
        size = chunk_size(model, small, is_split=(torch.float32, False) not in exact._FIRST[model])
        assert size.n_prompts < 12 or size.n_heads < 4
        exact.measure(model, small)
        assert peak_of(lambda small=small: exact.measure(model, small)) <= min(budget, whole)


@pytest.mark.parametrize("is_split", [True, False])
def test_chunks_grow_with_the_budget(llama, is_split):
    request = request_for(llama, (9,) * 40)
    budgets = [dataclasses.replace(request, max_memory=4**power) for power in range(1, 16)]
    sizes = [chunk_size(llama, budget, is_split=is_split) for budget in budgets]
    assert sizes[0] == ChunkSize(1, 1, 1) and sizes[-1].n_prompts == 40 and sizes[-1].n_heads == 4
    for less, more in zip(sizes, sizes[1:], strict=False):
        assert less.n_prompts * less.n_heads <= more.n_prompts * more.n_heads
        assert less.n_logit_rows <= more.n_logit_rows


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_portion_and_goes_on(fresh, error, monkeypatch):
    request = request_for(fresh)
    want, run, seen = exact.measure(fresh, request), exact._Pass._run, []

    def scarce(self):
        seen.append(self._rows)
        if self._rows.stop - self._rows.start > 1 or self._size.n_heads > 2:
            raise error
        return run(self)

    monkeypatch.setattr(exact._Pass, "_run", scarce)
    found = exact.measure(fresh, request)
    torch.testing.assert_close(found.cie, want.cie, atol=2e-5, rtol=0)
    assert found.record["chunk"]["n_prompts"] == 1 and found.record["chunk"]["n_heads"] == 2
    assert [rows.stop - rows.start for rows in seen] == [4, 2, 1, 1, 1, 1, 1]


def test_out_of_memory_for_one_head_of_one_prompt(fresh, monkeypatch):
    def never(self):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(exact._Pass, "_run", never)
    with pytest.raises(MemoryError, match="one prompt and one head at a time do not fit in memory; use shorter"):
        exact.measure(fresh, request_for(fresh))


def test_other_errors_of_a_pass_are_not_taken_for_a_lack_of_memory(fresh, monkeypatch):
    def broken(self):
        raise RuntimeError("a hook of yours failed")

    monkeypatch.setattr(exact._Pass, "_run", broken)
    with pytest.raises(RuntimeError, match="a hook of yours failed"):
        exact.measure(fresh, request_for(fresh))


def test_the_mean_of_many_prompts_needs_no_more_memory_than_that_of_few(llama):
    def peak(n):
        tokens, mask = random_prompts((30,) * n)
        return peak_of(lambda: mean_head_outputs(llama, tokens, mask, batch_size=4))

    few, many = peak(8), peak(256)
    assert many <= few + 256 * 30 * 8 * 8  # the tokens themselves, masks and their ranks


# ---- refusals and fallbacks


def see_each_other(self, mask):
    """A plain causal mask: each copy sees the prompt, itself, and all copies before it."""
    queries, keys = self._queries, self._keys
    wide = mask[..., queries, :][..., keys]
    n = len(queries)
    later = torch.ones(n, n).triu(1).bool()
    wide[..., self._n_shared :].masked_fill_(later, torch.finfo(mask.dtype).min)
    wide[..., self._n_shared :].masked_fill_(~later, 0.0)
    return wide


@pytest.mark.parametrize("fault", ["own keys", "shared keys", "mask"])
def test_a_broken_attention_of_copies_is_refused_and_a_mask_takes_over(fresh, fault, monkeypatch):
    """With an attention of their own, copies that miss a key or see one too many have other logits."""
    request = request_for(fresh, score="logprob")
    attend = own_attention._attend

    def broken(module, query, key, value, attention_mask, **told):
        if fault == "own keys":
            key = key.roll(1, -2)
        if fault == "shared keys":
            own_attention._SHARED.get().keys[..., 1, :] = 0
        if fault == "mask":
            attention_mask = attention_mask * 0
        return attend(module, query, key, value, attention_mask, **told)

    monkeypatch.setitem(own_attention.AttentionInterface._global_mapping, own_attention._NAME, broken)
    with pytest.raises(Unsuitable, match="an unpatched copy's logits are off by"):
        exact._measured(fresh, request, "own attention")
    exact._FIRST[fresh] = {(torch.float32, False): "own attention"}
    found = exact.measure(fresh, request)
    assert found.record["copies"] == "one mask"
    torch.testing.assert_close(found.cie, METHODS["reference"](fresh, request).cie, atol=1e-4, rtol=0)


def test_a_broken_mask_is_refused_and_the_next_engine_takes_over(fresh, monkeypatch, caplog):
    monkeypatch.setattr(copies.BlockArguments, "_wide_mask", see_each_other)
    exact._FIRST[fresh] = {(torch.float32, False): "one mask"}
    request = request_for(fresh)
    with pytest.raises(Unsuitable, match="an unpatched copy's logits are off by"):
        exact.measure(fresh, request)
    fresh_request = request_for(fresh, layers=[0, 1])
    with caplog.at_level(logging.WARNING, "ivlens"):
        found = run_engine(fresh, fresh_request, "exact")
    (line,) = caplog.messages
    assert line.startswith("LlamaForCausalLM: method 'exact' cannot be used: an unpatched copy's logits are off by")
    assert line.endswith("using 'cached'.") and found.method == "cached"
    torch.testing.assert_close(
        found.cie, METHODS["reference"](fresh, fresh_request).cie, atol=1e-4, rtol=0, equal_nan=True
    )


def test_the_unpatched_row_alone_would_not_have_seen_it(fresh, monkeypatch):
    """Why the check's copy stands last: under a broken mask the first copy is right all the same."""
    monkeypatch.setattr(copies.BlockArguments, "_wide_mask", see_each_other)
    exact._FIRST[fresh] = {(torch.float32, False): "one mask"}
    monkeypatch.setattr(Check, "is_due", lambda self: False)
    monkeypatch.setattr(Check, "plain", lambda self, copied, plain: None)
    zeros = torch.zeros(3, 4, 12)
    request = dataclasses.replace(request_for(fresh), mean_z=zeros, mode="add")
    cie = exact.measure(fresh, request).cie.abs()
    assert cie[:, 0, 0].max() < 1e-4 and cie[:, -1, -1].max() > 1e-2


def test_a_refusal_is_told_once(fresh, monkeypatch, caplog):
    monkeypatch.setattr(copies.BlockArguments, "_wide_mask", see_each_other)
    exact._FIRST[fresh] = {(torch.float32, False): "one mask"}
    request = request_for(fresh)
    with caplog.at_level(logging.WARNING, "ivlens"):
        assert run_engine(fresh, request, "exact").method == "cached"
        monkeypatch.undo()
        assert run_engine(fresh, request, "exact").method == "cached"
    assert len(caplog.messages) == 1


def test_both_fast_engines_broken(fresh, monkeypatch, caplog):
    monkeypatch.setattr(Check, "patched", lambda self, rows, logits_of: (_ for _ in ()).throw(Unsuitable("it is so")))
    request = request_for(fresh)
    with caplog.at_level(logging.WARNING, "ivlens"):
        found = run_engine(fresh, request, "exact")
    assert found.method == "reference"
    assert [line.split("using ")[1] for line in caplog.messages] == ["'cached'.", "'reference'."]


def test_an_argument_nobody_knows_is_refused(fresh, monkeypatch):
    monkeypatch.delitem(copies.INDEXED, "position_embeddings")
    with pytest.raises(Unsuitable, match="its blocks take 'position_embeddings', which copies have no version of"):
        exact.measure(fresh, request_for(fresh))
    assert not any(block._forward_hooks for block in fresh.blocks), "a refusal left hooks behind"


def test_what_a_block_says_to_copies_is_passed_on(fresh, monkeypatch):
    layer = type(fresh.blocks[1].original_component)
    forward = layer.forward

    def picky(self, hidden_states, *args, **kwargs):
        if hidden_states.shape[1] > 11:
            raise ValueError("too long\nfor me")
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", picky)
    with pytest.raises(Unsuitable, match=r"it does not take what this engine passes \(ValueError: too long\)$"):
        exact.measure(fresh, request_for(fresh))


def test_a_model_is_checked_once_for_each_shape(fresh, monkeypatch):
    checked = []
    monkeypatch.setattr(Check, "patched", lambda self, rows, logits_of: checked.append(self.key))
    for lengths in [(7, 4), (7, 5, 3), (8, 2)]:
        exact.measure(fresh, request_for(fresh, lengths))
    assert len(checked) == 2, "the first two are of one shape"


def test_a_users_hook_is_honoured(fresh):
    """It edits the last position of a pass, which is the last token of the prompts in whole passes only."""
    request = request_for(fresh, score="prob")
    assert run_engine(fresh, request, "exact").method == "exact"

    def doubled(z, hook):
        z = z.clone()
        z[:, -1] *= 2
        return z

    with fresh.hooks(fwd_hooks=[("blocks.1.attn.hook_z", doubled)]):
        found = run_engine(fresh, request, "exact")
        want = METHODS["reference"](fresh, request)
    assert found.method == "reference" and torch.equal(found.cie, want.cie)
    assert run_engine(fresh, request, "exact").method == "exact"


@pytest.mark.parametrize("where", ["hook point", "module", "plain model", "its base"])
def test_hooks_at_a_fixed_position_or_for_each_prompt(fresh, where):
    """Positions and rows are other ones in copies, so that such a model is measured by the reference."""
    request = request_for(fresh, score="logprob")
    METHODS["exact"](fresh, request)  # a shape that is known to be right without the hooks
    rows = torch.randn(len(request.tokens), 1, fresh.cfg.d_model)

    def edited(x):
        x = x.clone()
        x[:, 3] = 0
        return x + rows if len(x) == len(rows) else x

    def changed(out, name):
        doubled = out[name].clone()
        doubled[1] *= 2
        out[name] = doubled
        return out

    request = dataclasses.replace(request, max_memory=2**40)
    handle = None
    if where == "module":
        handle = fresh.blocks[1].mlp.register_forward_hook(lambda module, args, out: edited(out))
        hooks = []
    elif where == "plain model":
        handle = fresh.original_model.register_forward_hook(lambda module, args, out: changed(out, "logits"))
        hooks = []
    elif where == "its base":
        base = fresh.original_model.base_model
        handle = base.register_forward_hook(lambda module, args, out: changed(out, "last_hidden_state"))
        hooks = []
    else:
        hooks = [("blocks.1.hook_out", lambda x, hook: edited(x))]
    with fresh.hooks(fwd_hooks=hooks):
        found, want = run_engine(fresh, request, "exact"), METHODS["reference"](fresh, request)
    assert found.method == "reference" and torch.equal(found.cie, want.cie)
    if handle is not None:
        handle.remove()
    assert run_engine(fresh, request, "exact").method == "exact"


def test_the_hooks_of_another_threads_pass_are_no_hooks_of_the_user(fresh, monkeypatch):
    request, patch = request_for(fresh), together.Together._patch
    inside, go_on, found = threading.Event(), threading.Event(), []

    def waits(self, *given):
        inside.set()
        go_on.wait(30)
        patch(self, *given)

    monkeypatch.setattr(together.Together, "_patch", waits)
    threads = [threading.Thread(target=lambda: found.append(run_engine(fresh, request, "exact"))) for _ in range(2)]
    threads[0].start()
    inside.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for thread in threads:
        thread.join()
    assert [each.method for each in found] == ["exact", "exact"]


def test_a_model_in_train_mode_is_refused(fresh):
    fresh.train()
    try:
        with pytest.raises(ValueError, match=r"in train mode, expected eval mode.*model.eval"):
            request_for(fresh)
    finally:
        fresh.eval()


def test_a_model_whose_logits_are_nan_is_refused(fresh):
    request = request_for(fresh)
    for method in METHODS:
        with torch.no_grad():
            kept = fresh.ln_final.weight.clone()
            fresh.ln_final.weight.fill_(torch.nan)
        try:
            with pytest.raises(ValueError, match="logits are NaN on"):
                run_engine(fresh, request, method)
        finally:
            with torch.no_grad():
                fresh.ln_final.weight.copy_(kept)


@pytest.mark.parametrize("method", METHODS)
def test_every_engine_tells_how_far_it_is(llama, method):
    told = []
    request = dataclasses.replace(request_for(llama, layers=[1, 2]), progress=lambda *at: told.append(at))
    METHODS[method](llama, request)
    done, totals = zip(*told, strict=True)
    assert set(totals) == {done[-1]} and list(done) == sorted(set(done))


def test_effects_say_which_engine_ran(llama, monkeypatch, tmp_path):
    from test_effects import OTHERS, TASK

    effects = head_effects(llama, TASK, n_prompts=3, options=EffectOptions(n_mean_prompts=4, others=OTHERS))
    assert effects.method == effects.settings["method_asked"] == "exact"
    assert effects.settings["chunk"]["n_prompts"] == 3 and effects.settings["max_memory"] > 2**20
    monkeypatch.setitem(METHODS, "exact", lambda model, request: (_ for _ in ()).throw(Unsuitable("it is so")))
    effects = head_effects(llama, TASK, n_prompts=3, options=EffectOptions(n_mean_prompts=4, others=OTHERS))
    again = HeadEffects.load(effects.save(tmp_path / "effects.safetensors"))
    assert again.method == "cached" and again.settings["method_asked"] == "exact"


# ---- attribution


def test_attribution_is_the_derivative(model):
    """For a small enough patch it is the effect itself, for every score."""
    own = mean_head_outputs(model, TOKENS[:1], MASK[:1])
    step = 1e-3 * torch.randn_like(own)
    for score in ("prob", "logprob", "logit_diff"):
        options = {"score": score, "foil_tokens": torch.tensor([20])}
        inputs = model, TOKENS[:1], MASK[:1], ANSWERS[2:3], own + step
        estimate = causal_indirect_effect(*inputs, method="attribution", **options)
        effect = causal_indirect_effect(*inputs, method="reference", **options)
        assert (estimate - effect).abs().max() <= 0.05 * effect.abs().max()
        assert torch.corrcoef(torch.stack([estimate.flatten(), effect.flatten()]))[0, 1] > 0.99


def test_attribution_of_adding_is_linear_in_the_mean(llama):
    request = request_for(llama, mode="add")
    once = METHODS["attribution"](llama, request).cie
    twice = METHODS["attribution"](llama, dataclasses.replace(request, mean_z=2 * request.mean_z)).cie
    torch.testing.assert_close(twice, 2 * once)
    small = dataclasses.replace(request, max_memory=1)
    torch.testing.assert_close(METHODS["attribution"](llama, small).cie, once, atol=1e-4, rtol=1e-3)


def test_attribution_in_a_context_without_gradients(llama):
    request = request_for(llama)
    want = METHODS["attribution"](llama, request).cie
    with torch.no_grad():
        assert torch.equal(METHODS["attribution"](llama, request).cie, want)
    with torch.inference_mode():
        assert torch.equal(METHODS["attribution"](llama, request).cie, want)
    assert not want.requires_grad


def test_hidden_states_that_were_collected_before_leave_the_engine_its_way(fresh):
    """transformers keeps hooks on the layers of a model that was once asked for its hidden states."""
    before = run_engine(fresh, request_for(fresh), "exact")
    with torch.no_grad():
        fresh.original_model(TOKENS, output_hidden_states=True, output_attentions=True)
    after = run_engine(fresh, request_for(fresh), "exact")
    assert (before.method, after.method) == ("exact", "exact") and torch.equal(after.cie, before.cie)


def test_under_autocast_nothing_has_no_effect(fresh):
    """Base and patched scores are made of logits of one kind."""
    request = dataclasses.replace(request_for(fresh), mode="add", mean_z=torch.zeros(3, 4, 12))
    with torch.autocast("cpu", torch.bfloat16):
        found = exact.measure(fresh, request)
    assert found.cie.abs().max() < 1e-6
    assert exact.measure(fresh, request).record["copies"] == "with the prompts", "outside of it nothing was refused"


def test_models_of_one_configuration_do_not_meet(new_model):
    one, other = new_model("llama"), new_model("llama")
    for block in other.blocks:
        block.attn.original_component.config = one.blocks[0].attn.original_component.config
    with own_attention.own_attention(one, 0, torch.zeros(1, 4, 1, 12), torch.zeros(1, 4, 1, 12), 1):
        inside = one.blocks[0].attn.original_component.config._attn_implementation
        assert inside == own_attention._NAME
        assert other.blocks[0].attn.original_component.config._attn_implementation == "eager"
        own_attention._SHARED.get().was_read = True
    assert one.blocks[0].attn.original_component.config._attn_implementation == "eager"
