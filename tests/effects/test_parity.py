"""The parity matrix: on every family the fast engines give what one hooked forward pass for every head gives.

The most used families run every time; `make parity` runs all.
"""

import dataclasses

import pytest
import torch
from families import CONFIGS, N_WORDS, WINDOW, hf_model

from ivlens.effects import copies, exact
from ivlens.effects.engines import METHODS, run_engine
from ivlens.effects.reference import patched_logits
from ivlens.effects.request import EffectRequest, PatchOptions, Unsuitable, make_request
from ivlens.models import TransformerBridge, load_model
from ivlens.models.plain import module_paths

MOST_USED = ("gpt2", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3")
LENGTHS = (9, 4, 7)  # longer than the window, and shorter
FAMILIES = [
    pytest.param(family, marks=() if family in MOST_USED else pytest.mark.families, id=family) for family in CONFIGS
]

# families whose blocks cannot take copies; GPT-Neo's local layers read a window out of a table of their own, and GPT-1
# keeps no cache; blocks of Zamba 2 read the stream of the first one as well
NOT_EXACT = {"gptneo": "cached", "openai_gpt": "reference", "zamba2": "cached"}

# from a state they continue by one token alone, which is enough for the exact engine
ONE_BY_ONE = {"jamba"}

LARGEST_ERROR = 1e-4  # nats
SMALLEST_EFFECT = 1.0  # nats


@pytest.fixture(scope="module")
def bridges():
    made: dict[str, TransformerBridge] = {}
    return lambda family: made.setdefault(family, load_model(hf_model=hf_model(family)))


def request_on(model: TransformerBridge, n_answer: int = 3, lengths: tuple[int, ...] = LENGTHS, **options):
    """Padded prompts whose first answer token is one that a patch moves by a nat or more."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, N_WORDS, (len(lengths), max(lengths)), generator=generator)
    mask = torch.stack([(torch.arange(max(lengths)) >= max(lengths) - length).long() for length in lengths])
    answers = torch.randint(3, N_WORDS, (len(lengths), n_answer), generator=generator)
    answers[-1, 2:] = -100
    size = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    mean_z = 6 * torch.randn(size, generator=generator)
    request = make_request(
        model, tokens, mask, answers, mean_z, foil_tokens=options.pop("foil_tokens", None),
        options=PatchOptions(**({"score": "logprob"} | options)),
    )  # fmt: skip
    moved = _moved(model, request)
    request.answers[:, 0] = moved.argmax(-1)
    return request


def _moved(model: TransformerBridge, request: EffectRequest) -> torch.Tensor:
    """How far patching L1H2 moves the log-probability of every token."""
    everyone = torch.arange(len(request.tokens))
    nothing = dataclasses.replace(request, mode="add", mean_z=request.mean_z * 0)
    after, before = (patched_logits(model, each, everyone, 1, 2)[:, 0] for each in (request, nothing))
    return (after.log_softmax(-1) - before.log_softmax(-1)).abs()


def check_equal(found: torch.Tensor, want: torch.Tensor) -> None:
    """The bar of the matrix."""
    known = ~want.isnan()  # layers without attention have no heads
    assert torch.equal(known, ~found.isnan()), "measured in other places"
    found, want = found[known], want[known]
    assert want.abs().max() >= SMALLEST_EFFECT, f"no effect is large enough to see: {want.abs().max():.3g} nats"
    assert (found - want).abs().max() <= LARGEST_ERROR, f"off by {(found - want).abs().max():.3g} nats"


def suits(family: str, method: str) -> bool:
    slowest = NOT_EXACT.get(family, "exact")
    if method == "cached" and family in ONE_BY_ONE:
        return False
    return slowest == "exact" or method == slowest


@pytest.mark.parametrize("n_answer", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_fast_engines_give_what_the_reference_gives(bridges, family, n_answer):
    model = bridges(family)
    request = request_on(model, n_answer)
    want = METHODS["reference"](model, request)
    for method in ("exact", "cached"):
        if suits(family, method):
            found = METHODS[method](model, request)
            check_equal(found.cie, want.cie)
            torch.testing.assert_close(found.base, want.base, atol=LARGEST_ERROR, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_path_that_the_docs_say(bridges, family):
    model = bridges(family)
    assert run_engine(model, request_on(model), "exact").method == NOT_EXACT.get(family, "exact")


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_and_other_scores(bridges, family):
    model = bridges(family)
    foils = torch.tensor([20, 21, 22])
    method = NOT_EXACT.get(family, "exact")
    for options in ({"mode": "add"}, {"score": "prob"}, {"score": "logit_diff", "foil_tokens": foils}):
        request = request_on(model, **options)
        want = METHODS["reference"](model, request).cie.nan_to_num(0.0)
        assert (METHODS[method](model, request).cie.nan_to_num(0.0) - want).abs().max() <= LARGEST_ERROR
        assert options.get("score") == "prob" or want.abs().max() >= SMALLEST_EFFECT


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_company_change_nothing(bridges, family):
    model = bridges(family)
    method = NOT_EXACT.get(family, "exact")
    request = request_on(model)
    together = METHODS[method](model, request).cie
    for row, length in enumerate(LENGTHS):
        alone = dataclasses.replace(
            request,
            tokens=request.tokens[row : row + 1, -length:],
            attention_mask=request.attention_mask[row : row + 1, -length:],
            answers=request.answers[row : row + 1],
        )
        found = METHODS[method](model, alone).cie[0]
        torch.testing.assert_close(found, together[row], atol=LARGEST_ERROR, rtol=0, equal_nan=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_answer_is_the_shortest(bridges, family):
    """What stands in the last column of the first row is padding then."""
    model = bridges(family)
    request = request_on(model)
    request.answers[0, 1:] = -100
    method = NOT_EXACT.get(family, "exact")
    check_equal(METHODS[method](model, request).cie, METHODS["reference"](model, request).cie)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_one_token(bridges, family):
    model = bridges(family)
    request = request_on(model, lengths=(1, 1))
    method = "exact" if family == "gptneo" else NOT_EXACT.get(family, "exact")
    check_equal(METHODS[method](model, request).cie, METHODS["reference"](model, request).cie)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_gives_what_plain_hooks_on_the_unwrapped_model_give(bridges, family):
    model = bridges(family)
    request = request_on(model)
    want = patched_logits(model, request, torch.arange(len(LENGTHS)), 1, 2)
    plain = hf_model(family)
    projection = plain.get_submodule(module_paths(model).projections[1])
    for row, length in enumerate(LENGTHS):
        answers = request.answers[row][request.answers[row] != -100]
        tokens = torch.cat([request.tokens[row, -length:], answers[:-1]])[None]

        def patch(module, given, length=length):
            z = given[0].clone().unflatten(-1, (model.cfg.n_heads, model.cfg.d_head))
            z[:, length - 1, 2] = request.mean_z[1, 2]
            return (z.flatten(-2), *given[1:])

        handle = projection.register_forward_pre_hook(patch)
        with torch.no_grad():
            got = plain(tokens, use_cache=False).logits[0, length - 1 :]
        handle.remove()
        torch.testing.assert_close(got, want[row, : len(answers)], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "gemma2", pytest.param("gpt_oss", marks=pytest.mark.families)])
def test_answers_that_cross_the_window(bridges, family):
    """The prompt is within the window, and its answer's last tokens no longer see its beginning."""
    model = bridges(family)
    request = request_on(model, n_answer=5, lengths=(WINDOW - 1, WINDOW - 2, WINDOW))
    for method in ("exact", "cached"):
        check_equal(METHODS[method](model, request).cie, METHODS["reference"](model, request).cie)


def test_an_engine_that_returns_zeros_fails_the_matrix(bridges):
    want = METHODS["reference"](bridges("llama"), request_on(bridges("llama"))).cie
    with pytest.raises(AssertionError, match="off by"):
        check_equal(torch.zeros_like(want), want)
    with pytest.raises(AssertionError, match="no effect is large enough to see"):
        check_equal(want * 0, want * 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wrong_positions_are_refused(family, monkeypatch):
    def at_the_beginning(value, queries, keys):
        return value[:, queries * 0]

    model = load_model(hf_model=hf_model(family))
    monkeypatch.setitem(copies.INDEXED, "position_embeddings", at_the_beginning)
    monkeypatch.setitem(copies.INDEXED, "position_ids", at_the_beginning)
    if family == "gpt2":  # adds positions before its blocks, so that nothing can go wrong in them
        check_equal(METHODS["exact"](model, request_on(model)).cie, METHODS["reference"](model, request_on(model)).cie)
    else:
        with pytest.raises(Unsuitable, match="an unpatched copy's logits are off by"):
            METHODS["exact"](model, request_on(model))


@pytest.mark.parametrize("family", MOST_USED)
def test_copies_that_see_each_other_are_refused(family, monkeypatch):
    def see_all_before(self, mask):
        wide = mask[..., self._queries, :][..., self._keys]
        later = torch.ones(len(self._queries), len(self._queries)).triu(1).bool()
        wide[..., self._n_shared :] = torch.where(later, torch.finfo(mask.dtype).min, 0.0)
        return wide

    model = load_model(hf_model=hf_model(family))
    monkeypatch.setattr(copies.BlockArguments, "_wide_mask", see_all_before)
    exact._FIRST[model] = {(torch.float32, False): "one mask"}
    with pytest.raises(Unsuitable, match="an unpatched copy's logits are off by"):
        METHODS["exact"](model, request_on(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_half_precision(family, dtype):
    """As far from the reference as rounding takes it, which a change of the batch alone does as well."""
    model = load_model(hf_model=hf_model(family), dtype=dtype)
    request = request_on(model)
    want = METHODS["reference"](model, request).cie
    found = METHODS["exact"](model, request)
    assert want.abs().max() >= SMALLEST_EFFECT
    error = (found.cie - want).abs()
    assert error.median() <= (0.1 if dtype == torch.bfloat16 else 0.01)
    assert torch.corrcoef(torch.stack([found.cie.flatten(), want.flatten()]))[0, 1] > 0.99
    assert found.cie.dtype == torch.float32
    if family == "mixtral":
        flips, decisions = found.record["router_flips"].split(" of ")
        assert int(decisions) == 3 * len(LENGTHS) * 3 and 0 <= int(flips) < int(decisions) / 2
    else:
        assert "router_flips" not in found.record


# families whose attention, as the bridge has wrapped it, has no place for another attention function
MASKED = {"gpt2"}


@pytest.mark.parametrize("family", MOST_USED)
def test_all_ways_of_copies_agree(family):
    """With the prompts, behind them with an attention of their own, and behind a mask."""
    model = load_model(hf_model=hf_model(family))
    for n_answer in (3, 1):
        request = request_on(model, n_answer)
        found = METHODS["exact"](model, request)
        assert found.record["copies"] == "with the prompts"
        for way in exact.WAYS[1:]:
            exact._FIRST[model] = {(torch.float32, False): way}
            other = METHODS["exact"](model, request)
            assert other.record["copies"] == ("one mask" if family in MASKED else way)
            check_equal(found.cie, other.cie)
        del exact._FIRST[model]
