"""The model card: its arithmetic, and that the shipped card belongs to the shipped weights."""

import json

import pandas as pd
import pytest

from ivlens.common.intervals import wilson
from ivlens.models import load_model, model_identity, pocket_path
from ivlens.pocket.card import BARS, Bar, Card, _judge_task, _measures, mean_over_tasks
from ivlens.pocket.cardfile import write_card
from ivlens.pocket.corpus import bank_hash
from ivlens.pocket.tokenizer import build_tokenizer
from ivlens.tasks import load_bank

_BY_PROMPT = ("seen_instructions", "held_out_instructions", "few_shot", "cloze", "unseen_rule_inputs", "baseline")


@pytest.mark.parametrize(
    ("bar", "value", "verdict"),
    [
        (Bar("x", at_least=0.9), 0.9, "holds"),
        (Bar("x", at_least=0.9), 0.899, "FAILED"),
        (Bar("x", at_most=0.2), 0.2, "holds"),
        (Bar("x", at_most=0.2), 0.201, "FAILED"),
        (Bar("x"), 0.5, ""),
    ],
)
def test_a_bar_judges_its_value(bar, value, verdict):
    assert bar.verdict(value) == verdict


def judged(group: str, task: str, correct: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(group, task, x, value) for x, values in correct.items() for value in values]
    return pd.DataFrame(rows, columns=["group", "task", "input", "correct"])


def test_means_are_over_tasks_not_over_prompts():
    many = judged("words", "a", {f"x{i}": [1.0, 1.0] for i in range(50)})
    few = judged("verbs", "b", {"y": [0.0]})
    value, low, high = mean_over_tasks(pd.concat([many, few]))
    assert value == 0.5 and (low, high) == wilson(1.5, 3)  # a task of one input says little


def test_intervals_resample_inputs_not_prompts():
    once = judged("words", "a", {f"x{i}": [float(i % 2)] for i in range(40)})
    value, low, high = mean_over_tasks(once)
    assert value == 0.5 and 0.3 < low < 0.4 and 0.6 < high < 0.7
    assert mean_over_tasks(judged("words", "a", {f"x{i}": [1.0] for i in range(40)})) == (1.0, *wilson(40, 40))
    # the same inputs asked four times over, and by a second task, teach nothing new
    more = pd.concat([judged("words", task, {f"x{i}": [float(i % 2)] * 4 for i in range(40)}) for task in "ab"])
    assert mean_over_tasks(more) == pytest.approx((value, low, high))


def test_measures_have_accuracy_and_exact_answers_beside_it():
    bridge, bank = load_model("pocket"), load_bank()
    rows = _judge_task(bridge, bank, bank["antonym"], "select", 0)
    assert (rows["exact"] <= rows["correct"]).all() and rows["exact"].any()
    judged = pd.concat([rows.assign(condition=name) for name in BARS if name in _BY_PROMPT])
    named = {"accuracy": 0.75, "accuracy_lo": 0.5, "accuracy_hi": 1.0, "exact": 0.25}
    vectors = pd.DataFrame([{"condition": name, **named} for name in BARS])
    measures = _measures(judged.assign(correct=0.5, exact=0.125), vectors)
    for row in measures.to_dict("records"):
        by_prompt = row["name"] in _BY_PROMPT
        assert (row["value"], row["exact"]) == pytest.approx((0.5, 0.125) if by_prompt else (0.75, 0.25))


def test_a_card_is_written_as_page_and_json(tmp_path):
    measures = pd.DataFrame(
        [
            {"name": "iv", "title": "IV", "value": 0.95, "low": 0.9, "high": 1.0, "exact": 0.925}
            | {"bar": "≥ 0.90", "verdict": "holds"}
        ]
    )
    tasks = pd.DataFrame([{"task": "antonym", "cloze": 1.0, "baseline": float("nan")}])
    interventions = pd.DataFrame([{"task": "antonym", "condition": "iv", "accuracy": 0.95, "layer": 3}])
    write_card(Card(measures, tasks, interventions, {"split": "test"}), tmp_path)
    page = (tmp_path / "MODEL_CARD.md").read_text()
    assert "| IV | 0.950 | 0.900 – 1.000 | 0.925 | ≥ 0.90 | holds |" in page and "| antonym | 1.000 |  |" in page
    data = json.loads((tmp_path / "card.json").read_text(), parse_constant=pytest.fail)
    assert data["measures"][0]["value"] == 0.95 and data["tasks"][0]["baseline"] is None


def test_the_shipped_card_describes_the_shipped_model():
    card = json.loads((pocket_path() / "card.json").read_text())
    assert card["about"]["weights_hash"] == model_identity(load_model("pocket")).weights_hash
    assert card["about"]["split"] == "test" and card["about"]["bank_hash"] == bank_hash(load_bank())
    assert [row["name"] for row in card["measures"]] == list(BARS)
    for row in card["measures"]:
        assert row["verdict"] == BARS[row["name"]].verdict(row["value"])
    assert json.loads((pocket_path() / "training.json").read_text())["bank"] == bank_hash(load_bank())


def test_the_shipped_tokenizer_knows_the_bank():
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(pocket_path())
    assert shipped.get_vocab() == build_tokenizer(load_bank()).get_vocab()


def test_the_shipped_model_opens_in_plain_transformers_and_is_small():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket_path())
    model = AutoModelForCausalLM.from_pretrained(pocket_path())
    prompt = tokenizer("Instruction: Give the opposite of the word.\nInput: big\nOutput:", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == "small"
    assert (pocket_path() / "model.safetensors").stat().st_size <= 12_000_000
