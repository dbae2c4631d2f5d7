"""Instruction and knowledge probability, and what was lost of each."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivlens import load_model, load_task
from ivlens.analysis.forgetting import MEASURES, ProbeOptions, decompose, decomposition, has_knowledge, probe
from ivlens.analysis.forgetting.drops import log_odds
from ivlens.forward.scoring import answer_logits, first_token_prob
from ivlens.models import pocket_path
from ivlens.prompts import PromptRecipe, build_prompts
from ivlens.tasks import Task, TaskExample

ANTONYM, CAPITAL, LETTER = (load_task(name) for name in ("antonym", "country_capital", "first_letter"))
FEW = ProbeOptions(n_prompts=6, n_clozes=2)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def found(pocket):
    return probe(pocket, [ANTONYM, LETTER], FEW)


def test_rows_and_kinds(found):
    assert found.groupby(["task", "kind"]).size().to_dict() == {
        ("antonym", "instruction"): 6,
        ("antonym", "knowledge"): 6,
        ("first_letter", "instruction"): 6,
    }
    assert not has_knowledge(LETTER), "what the first letter is, nobody knows: one sees it"
    assert (found[list(MEASURES)] >= 0).all(axis=None) and (found[list(MEASURES)] <= 1).all(axis=None)
    assert set(found.query("kind == 'knowledge'")["n_prompts"]) == {2}
    assert (found["exact"] <= found["accuracy"]).all() and found["exact"].any()


def by_hand(model, text, answer):
    """Log-probability of each answer token after a text, by one plain pass."""
    tokenizer = model.tokenizer
    prompt, whole = (tokenizer(each)["input_ids"] for each in (text, f"{text} {answer}"))
    with torch.no_grad():
        logits = model(torch.tensor([whole]), use_cache=False)[0].log_softmax(-1)
    return [float(logits[place - 1, whole[place]]) for place in range(len(prompt), len(whole))]


def test_probabilities_are_those_of_the_texts(pocket):
    table = probe(pocket, [CAPITAL], ProbeOptions(n_prompts=20, n_clozes=3))
    several = 0
    for row in table.to_dict("records"):
        example = CAPITAL.find(row["input"])
        if row["kind"] == "knowledge":
            texts = [cloze.replace("{x}", example.input) for cloze in CAPITAL.clozes[:3]]
        else:
            texts = build_prompts(pocket.tokenizer, CAPITAL, [example]).texts
        each = [by_hand(pocket, text, example.answer) for text in texts]
        several += len(each[0]) > 1
        assert row["prob"] == pytest.approx(np.mean([np.exp(logs[0]) for logs in each]), abs=1e-4)
        assert row["seq_prob"] == pytest.approx(np.mean([np.exp(np.mean(logs)) for logs in each]), abs=1e-4)
    assert several, "no answer of several tokens was tried"


def test_rank_among_the_tasks_own_answers(pocket):
    batch = build_prompts(pocket.tokenizer, ANTONYM, ANTONYM.split("test")[:1])
    from ivlens.analysis.forgetting.probabilities import _ranked

    own = int(batch.answer_tokens[0, 0])
    other, outside = (token for token in range(100, 102) if token != own)
    logits = torch.zeros(1, pocket.cfg.d_vocab)
    logits[0, own], logits[0, other], logits[0, outside] = 1.0, 0.5, 9.0
    candidates = torch.tensor([own, other])
    assert _ranked(logits, batch, candidates).tolist() == [1.0], "a word that answers nothing here does not count"
    logits[0, other] = 2.0
    assert _ranked(logits, batch, candidates).tolist() == [0.0]
    assert _ranked(logits, batch, candidates[:1]).isnan().all(), "nothing to beat is no victory"


def test_answers_that_all_begin_with_a_blank_have_no_rank(new_model, byte_level):
    model = new_model("llama", byte_level)
    numbers = tuple(TaskExample(word, (str(number % 10),)) for number, word in enumerate("abcdefghijkl"))
    table = probe(model, [Task("numbers", numbers, instructions=("Give the number.",))], ProbeOptions(split="fit"))
    assert len(table) > 2 and table["ranked"].isna().all() and table["seq_prob"].notna().all()
    lost = decomposition(table, table).set_index("measure").loc["ranked"]
    assert lost["instruction_before"].isna().all()


def test_a_model_and_itself_lose_nothing(pocket, found):
    table = decomposition(found, found)
    assert set(table["measure"]) == set(MEASURES)
    assert (table["instruction_drop"] == 0).all()
    assert table.query("task == 'antonym'")["excess"].to_list() == [0.0] * len(MEASURES)
    assert table.query("task == 'first_letter'")["excess"].isna().all()
    both = table.query("task == 'all tasks'")
    assert (both["n"] == 6).all(), "tasks without knowledge have no part in the comparison"


def test_what_only_instructed_prompts_need_is_an_instruction_lost(pocket):
    """Without the embedding of the cue, instructed prompts have no end, and clozes, which have none, are as before."""
    tokenizer = AutoTokenizer.from_pretrained(pocket_path())
    plain = AutoModelForCausalLM.from_pretrained(pocket_path(), attn_implementation="eager").eval()
    plain.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("Output:")] = 0
    tuned = load_model("cueless", hf_model=plain, tokenizer=tokenizer)
    row = decompose(pocket, tuned, [ANTONYM], FEW).query("task == 'antonym' and measure == 'seq_prob'").iloc[0]
    assert row["instruction_drop"] > 0.2 and row["knowledge_drop"] == pytest.approx(0.0, abs=1e-6)
    assert row["excess_lo"] > 0 and row["excess"] > 1


def test_excess_is_paired_and_in_log_odds():
    def table(instruction, knowledge):
        rows = [("t", kind, f"x{n}", p) for kind, ps in (("instruction", instruction), ("knowledge", knowledge))
                for n, p in enumerate(ps)]  # fmt: skip
        return pd.DataFrame([{"task": t, "kind": k, "input": x, **dict.fromkeys(MEASURES, p)} for t, k, x, p in rows])

    found = decomposition(table([0.9, 0.8], [0.9, 0.9]), table([0.5, 0.5], [0.5, 0.9]))
    row = found.query("task == 't' and measure == 'prob'").iloc[0]
    want = ((np.log(9) - np.log(9)) + (np.log(4) - 0.0)) / 2
    assert row["excess"] == pytest.approx(want)
    assert row["instruction_drop"] == pytest.approx(0.35) and row["knowledge_drop"] == pytest.approx(0.2)
    assert found.query("task == 't' and measure == 'accuracy'").iloc[0]["excess"] == pytest.approx(0.15)
    with pytest.raises(ValueError, match="different tasks or examples"):
        decomposition(table([0.9, 0.8], [0.9, 0.9]), table([0.9], [0.9]))


def test_tables_that_say_greedy_are_read(found, caplog):
    """As they were written before there was one accuracy: another name, and nothing about what follows an answer."""
    old = found.rename(columns={"accuracy": "greedy"}).drop(columns="exact")
    table = decomposition(old, old)
    assert set(table["measure"]) == {*MEASURES} - {"exact"} and not caplog.records
    pd.testing.assert_frame_equal(table, decomposition(found, found).query("measure != 'exact'").reset_index(drop=True))
    assert set(decomposition(old, found)["measure"]) == set(table["measure"])
    assert "one of the two tables is older" in caplog.text


def test_log_odds_stay_finite():
    assert log_odds(np.array([0.0, 0.5, 1.0])) == pytest.approx([-9.21, 0.0, 9.21], abs=0.01)


def test_bad_requests(pocket):
    with pytest.raises(ValueError, match="n_prompts is 0"):
        ProbeOptions(n_prompts=0)
    with pytest.raises(ValueError, match="distinct names"):
        probe(pocket, [ANTONYM, ANTONYM])
    bare = PromptRecipe(instruction=None, n_shots=0)
    with pytest.raises(ValueError, match="neither an instruction nor demonstrations"):
        probe(pocket, [ANTONYM], replace(FEW, recipe=bare))


def test_a_task_told_by_demonstrations_is_probed(pocket):
    """The clean prompt is then that of the recipe; clozes stay bare, and ask the same whatever the recipe."""
    shown = replace(CAPITAL, instructions=())
    table = probe(pocket, [shown], FEW)
    assert set(table["kind"]) == {"instruction", "knowledge"}
    by_kind = {kind: rows.set_index("input") for kind, rows in table.groupby("kind")}
    inputs = list(by_kind["instruction"].index)
    batch = build_prompts(pocket.tokenizer, shown, [shown.find(text) for text in inputs], PromptRecipe())
    assert all(text.count("Input: ") == 6 and "Instruction" not in text for text in batch.texts)
    want = first_token_prob(answer_logits(pocket, batch)[:, 0], batch.answer_tokens[:, 0]).double()
    assert by_kind["instruction"]["prob"].to_numpy() == pytest.approx(want.numpy(), abs=1e-6)
    told = probe(pocket, [CAPITAL], replace(FEW, recipe=PromptRecipe("qa", n_shots=2))).groupby("kind")
    cloze = told.get_group("knowledge").set_index("input").loc[inputs]
    for measure in MEASURES:
        assert cloze[measure].to_numpy() == pytest.approx(by_kind["knowledge"].loc[inputs][measure].to_numpy())


def test_seeds_and_recipes_are_in_the_key_of_a_series(pocket, tmp_path, monkeypatch):
    from ivlens.analysis.forgetting import probe_series
    from ivlens.models.checkpoints import checkpoint_series

    series = checkpoint_series({"first": pocket, "second": pocket})
    one = ProbeOptions(n_prompts=2, n_clozes=1)
    before = probe_series(series, [ANTONYM], one, folder=tmp_path)
    monkeypatch.setattr("ivlens.analysis.forgetting.series.probe", lambda *args: 1 / 0)
    again = probe_series(series, [ANTONYM], one, folder=tmp_path)
    pd.testing.assert_frame_equal(again["second"], before["second"])
    assert again["first"].attrs == before["first"].attrs
    for recipe in (PromptRecipe(seed=1), PromptRecipe("qa"), PromptRecipe(n_shots=1), PromptRecipe(instruction="Say.")):
        with pytest.raises(ZeroDivisionError):
            probe_series(series, [ANTONYM], replace(one, recipe=recipe), folder=tmp_path)
