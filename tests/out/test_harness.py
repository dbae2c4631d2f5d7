"""Tasks of lm-evaluation-harness under a vector: as `steer` by hand, and at every position as the harness' own hook."""

import functools
import importlib.util
from dataclasses import replace

import pytest
import torch
from elsewhere import missing
from harness_tasks import PAIRS, TEXTS, write_tasks

import ivlens
from ivlens import InstructionVector, load_model, pocket_path, steer
from ivlens.forward.completions import complete
from ivlens.out import HarnessOptions, export_vector, lm_eval_model, lm_eval_table
from ivlens.steering.summary import Setting

AT = Setting(1, 4.0, "attn_out")
POST = Setting(2, 3.0, "resid_post")
needs_harness = pytest.mark.skipif(missing("lm_eval"), reason="lm-evaluation-harness is not here: run `make harness`")


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def vector(pocket):
    return InstructionVector.from_effects(ivlens.head_effects(pocket, ivlens.load_task("antonym"), n_prompts=8))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return HarnessOptions(include_path=write_tasks(tmp_path_factory.mktemp("tasks")), batch_size=5)


@pytest.fixture(autouse=True, scope="module")
def _one_index():
    """The harness reads all its task files for every index, which takes five seconds."""
    if importlib.util.find_spec("lm_eval") is None:
        yield
        return
    from lm_eval import tasks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TaskManager", functools.cache(tasks.TaskManager))
        yield


def asked(*pairs):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def by_hand(model, lm, iv, at, positions, context, continuation):
    """The log-probability of a continuation in two passes under `steer`, the second one from the cache of the first."""
    before, after = lm._encode_pair(context, continuation)
    with steer(model, iv, at=at, positions=positions), torch.no_grad():
        logits, cache = model(torch.tensor([before]), use_cache=True, return_type="logits_and_cache")
        parts = [logits[0, -1:]]
        if len(after) > 1:
            parts.append(model(torch.tensor([after[:-1]]), past_key_values=cache)[0])
    logprobs = torch.cat(parts).log_softmax(-1)
    wanted = torch.tensor(after)
    return float(logprobs.gather(1, wanted[:, None]).sum()), bool((logprobs.argmax(-1) == wanted).all())


REQUESTS = [(f"Input: {word}\nOutput:", f" {end}") for word, _ in PAIRS for end in ("small", "the big house", "cold")]


@needs_harness
@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
@pytest.mark.parametrize("at", [AT, POST], ids=lambda at: at.site)
def test_log_likelihoods_are_those_of_steer_by_hand(pocket, vector, at, positions):
    lm = lm_eval_model(pocket, vector, at=at, positions=positions, batch_size=7)
    found = lm.loglikelihood(asked(*REQUESTS), disable_tqdm=True)
    for (context, continuation), (logprob, is_greedy) in zip(REQUESTS, found, strict=True):
        want, greedy = by_hand(pocket, lm, vector, at, positions, context, continuation)
        assert logprob == pytest.approx(want, abs=2e-3) and is_greedy == greedy
    plain = lm_eval_model(pocket, None).loglikelihood(asked(*REQUESTS), disable_tqdm=True)
    assert max(abs(one - other) for (one, _), (other, _) in zip(found, plain, strict=True)) > 0.5
    alone = lm_eval_model(pocket, vector, at=at, positions=positions, batch_size=1)
    one_by_one = alone.loglikelihood(asked(*REQUESTS), disable_tqdm=True)
    assert [value for value, _ in one_by_one] == pytest.approx([value for value, _ in found], abs=2e-3)


@needs_harness
def test_without_a_vector_it_is_the_harness_own_model(pocket):
    from lm_eval.models.huggingface import HFLM

    own = HFLM(pretrained=str(pocket_path()), device="cpu", dtype="float32", batch_size=3)
    requests = asked(*REQUESTS, ("", "Input: big"), ("Input: " + "big " * 400, " small"))
    found = lm_eval_model(pocket, None).loglikelihood(requests, disable_tqdm=True)
    for (one, greedy), (other, own_greedy) in zip(found, own.loglikelihood(requests, disable_tqdm=True), strict=True):
        assert one == pytest.approx(other, abs=2e-3) and greedy == own_greedy


@needs_harness
def test_rows_of_a_pass_fit_the_context_together(pocket):
    """A long context beside a long continuation: each fits, their padded batch does not."""
    lm = lm_eval_model(pocket, None, batch_size=8)
    pairs = ("Input: " + "big " * 200, " small"), ("Input: big", " small cold" * 100)
    shapes = []
    handle = pocket.blocks[0].register_forward_hook(lambda block, given, out: shapes.append(given[0].shape[:2]))
    lm.loglikelihood(asked(*pairs), disable_tqdm=True)
    handle.remove()
    assert [tuple(shape)[0] for shape in shapes] == [1, 1] and all(shape[1] <= pocket.cfg.n_ctx for shape in shapes)


@needs_harness
@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
def test_a_task_is_scored_and_written_as_under_steer(pocket, vector, tasks, positions):
    lm = lm_eval_model(pocket, vector, at=AT, positions=positions, batch_size=5)
    results = tasks.run(lm, ["iv_choice", "iv_written", "iv_rolling"])
    for one in results["samples"]["iv_choice"]:
        likely = [by_hand(pocket, lm, vector, AT, positions, *request)[0] for request in _arguments(one)]
        assert [value for value, _ in one["filtered_resps"]] == pytest.approx(likely, abs=2e-3)
    prompts = [f"Input: {word}\nOutput:" for word, _ in PAIRS]
    with steer(pocket, vector, at=AT, positions=positions):
        texts = complete(pocket, prompts, max_new_tokens=4)
    written = [one["filtered_resps"][0] for one in results["samples"]["iv_written"]]
    assert written == [text.split("\n")[0] for text in texts]
    right = sum(text.strip().lower() == answer for text, (_, answer) in zip(written, PAIRS, strict=True))
    assert results["results"]["iv_written"]["exact_match,none"] == right / len(PAIRS)
    rolling = [one["filtered_resps"][0] for one in results["samples"]["iv_rolling"]]
    for text, value in zip(TEXTS, rolling, strict=True):
        before, after = [lm.prefix_token_id], lm.tok_encode(text)
        want = _rolled(pocket, vector, positions, before, after)
        assert (value[0] if isinstance(value, tuple | list) else value) == pytest.approx(want, abs=5e-3)


def _arguments(sample):
    arguments = sample["arguments"]
    found = arguments.values() if isinstance(arguments, dict) else arguments
    return [tuple(one.values()) if isinstance(one, dict) else tuple(one) for one in found]


def _rolled(model, iv, positions, before, after):
    with steer(model, iv, at=AT, positions=positions), torch.no_grad():
        logits, cache = model(torch.tensor([before]), use_cache=True, return_type="logits_and_cache")
        logits = torch.cat([logits[0, -1:], model(torch.tensor([after[:-1]]), past_key_values=cache)[0]])
    return float(logits.log_softmax(-1).gather(1, torch.tensor(after)[:, None]).sum())


@needs_harness
@pytest.mark.parametrize("at", [AT, POST], ids=lambda at: at.site)
def test_at_every_position_it_is_the_harness_own_steered_model(pocket, vector, tasks, tmp_path, at):
    """The exported file, read by the harness itself, gives the numbers of ivlens."""
    from lm_eval.models.hf_steered import SteeredModel

    path = export_vector(pocket, vector, tmp_path / "antonym.pt", format="lm-eval", at=at, positions="all")
    theirs = SteeredModel(str(pocket_path()), str(path), device="cpu", dtype="float32", batch_size=4)
    names = ["iv_choice", "iv_written", "iv_rolling"]
    found, want = (
        tasks.run(lm, names)["samples"] for lm in (lm_eval_model(pocket, vector, at=at, positions="all"), theirs)
    )
    plain = tasks.run(lm_eval_model(pocket, None), names)["samples"]
    for one, other, unsteered in zip(found["iv_choice"], want["iv_choice"], plain["iv_choice"], strict=True):
        ours, own, bare = ([value for value, _ in each["filtered_resps"]] for each in (one, other, unsteered))
        assert ours == pytest.approx(own, abs=2e-3) and ours != pytest.approx(bare, abs=0.1)
    for name in ("iv_written", "iv_rolling"):
        texts = [[each["filtered_resps"][0] for each in samples[name]] for samples in (found, want)]
        assert texts[0] == (texts[1] if name == "iv_written" else pytest.approx(texts[1], abs=5e-3))


@needs_harness
def test_the_table_pairs_documents(pocket, vector, tasks):
    found = lm_eval_table(pocket, vector, ["iv_choice", "iv_rolling"], at=AT, options=tasks)
    rows = found.table.set_index("task")
    assert rows.columns.tolist()[:1] == ["metric"] and rows["n"].tolist() == [8, 3]
    for name, lm in (("plain", lm_eval_model(pocket, None)), ("steered", lm_eval_model(pocket, vector, at=AT))):
        results = tasks.run(lm, ["iv_choice", "iv_rolling"])["results"]
        assert rows.loc["iv_choice", name] == results["iv_choice"]["acc,none"]
        assert rows.loc["iv_rolling", name] == results["iv_rolling"]["word_perplexity,none"]
    choice = rows.loc["iv_choice"]
    assert choice["difference"] == choice["steered"] - choice["plain"]
    assert choice["difference_lo"] < choice["difference"] < choice["difference_hi"]
    assert rows.loc["iv_rolling", ["difference_lo", "difference_hi"]].isna().all()  # no mean over documents
    assert "iv_choice" in str(found) and "<table" in found._repr_html_()
    assert found.settings["at"] == AT._asdict() and found.settings["positions"] == "prompt"
    alone = lm_eval_table(pocket, vector, "iv_choice", at=AT, options=tasks).table  # a text is one item
    assert alone.equals(found.table[:1])


@needs_harness
def test_what_cannot_be_asked_is_refused(pocket, vector, tasks, new_model):
    with pytest.raises(ValueError, match=r"a vector and no place \(at=\), expected both"):
        lm_eval_model(pocket, vector)
    with pytest.raises(ValueError, match="without a tokenizer"):
        lm_eval_model(new_model("llama"), None)
    with pytest.raises(RuntimeError, match="steer context open"), steer(pocket, vector, at=AT):
        pocket(torch.tensor([[5, 6]]))
        lm_eval_model(pocket, vector, at=AT)
    lm = lm_eval_model(pocket, vector, at=AT)
    with pytest.raises(RuntimeError, match="steer context open"), steer(pocket, vector, at=AT):
        pocket(torch.tensor([[5, 6]]))
        lm.loglikelihood(asked(REQUESTS[0]), disable_tqdm=True)
    with pytest.raises(NotImplementedError, match="without a border"):
        lm._model_call(torch.tensor([[5, 6]]))
    with pytest.raises(ValueError, match="got no tasks"):
        lm_eval_table(pocket, vector, [], at=AT)
    with pytest.raises(ValueError, match=r"no task 'iv_choise' \(did you mean 'iv_choice'\?\), expected one of"):
        lm_eval_table(pocket, vector, ["iv_rolling", "iv_choise"], at=AT, options=tasks)
    with pytest.raises(ValueError, match="include_path is '/nowhere', which is no folder"):
        lm_eval_table(pocket, vector, "iv_choice", at=AT, options=HarnessOptions(include_path="/nowhere"))


def test_without_the_harness_one_sentence_says_what_to_install(pocket, vector, monkeypatch):
    monkeypatch.setattr("ivlens.out.harness.importlib.util.find_spec", lambda name: None)
    for call in (
        lambda: lm_eval_model(pocket, vector, at=AT),
        lambda: lm_eval_table(pocket, vector, "piqa", at=AT),
    ):
        with pytest.raises(ImportError, match=r"lm_eval, which is not installed; pip install 'ivlens\[eval\]'"):
            call()


@needs_harness
@pytest.mark.real
def test_the_real_model_is_steered_alike(tasks, tmp_path):
    from lm_eval.models.hf_steered import SteeredModel
    from real import smollm2

    from ivlens.models.known import KNOWN

    model, at = smollm2(), Setting(12, 6.0, "resid_post")
    quick = ivlens.EffectOptions(n_mean_prompts=8, n_check_prompts=0)
    effects = ivlens.head_effects(model, ivlens.load_task("antonym"), n_prompts=2, corruption="drop", options=quick)
    iv = InstructionVector.from_effects(effects)
    for positions in ("prompt", "every", "all"):
        lm = lm_eval_model(model, iv, at=at, positions=positions)
        for request, (value, _) in zip(
            REQUESTS[:3], lm.loglikelihood(asked(*REQUESTS[:3]), disable_tqdm=True), strict=True
        ):
            assert value == pytest.approx(by_hand(model, lm, iv, at, positions, *request)[0], abs=5e-3)
    path = export_vector(model, iv, tmp_path / "antonym.pt", format="lm-eval", at=at, positions="all")
    theirs = SteeredModel(str(KNOWN["smollm2"].folder), str(path), device="cpu", dtype="float32", batch_size=4)
    few = replace(tasks, limit=3)
    found, want = (few.run(one, ["iv_choice", "iv_written"])["samples"] for one in (lm, theirs))
    for one, other in zip(found["iv_choice"], want["iv_choice"], strict=True):
        ours, own = ([value for value, _ in each["filtered_resps"]] for each in (one, other))
        assert ours == pytest.approx(own, abs=5e-3)
    texts = [[each["filtered_resps"][0] for each in samples["iv_written"]] for samples in (found, want)]
    assert texts[0] == texts[1]
