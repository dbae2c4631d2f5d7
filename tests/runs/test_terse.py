"""The terse model: what it is taught and what is kept from it, the training, and the card."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import unchecked

import ivlens.runs.terse.build as build
import ivlens.runs.terse.plan as plan
from ivlens.common.files import STATE
from ivlens.models import load_model
from ivlens.models.adapters import named_base
from ivlens.runs.terse import HELD_OUT, TAUGHT, TerseOptions, build_terse, terse_card
from ivlens.runs.terse.build import lessons
from ivlens.runs.terse.plan import kept_instructions, taught_instructions
from ivlens.tasks.bank import load_bank
from ivlens.tuning.finetuning import MODEL

FEW = ("antonym", "singular_plural")


@pytest.fixture
def model(new_model, byte_level):
    return new_model("llama", byte_level, n_ctx=512)


def texts_of(model, tokens, attention_mask):
    return [model.tokenizer.decode(row[mask == 1]) for row, mask in zip(tokens, attention_mask, strict=True)]


@pytest.fixture
def few(monkeypatch):
    """Two taught tasks, so that lessons are made in a second."""
    for module in (build, plan):
        monkeypatch.setattr(module, "TAUGHT", FEW)


def test_half_of_the_tasks_and_a_fifth_of_the_instructions_are_kept_from_it():
    bank = load_bank()
    assert len(TAUGHT) == len(HELD_OUT) == 16 and not {*TAUGHT} & {*HELD_OUT}
    assert {*TAUGHT, *HELD_OUT} == {task.name for task in bank.values() if task.in_training}
    for name in TAUGHT:
        task = bank[name]
        taught, kept = taught_instructions(task), kept_instructions(task)
        assert {*taught, *kept} == {*task.instructions} and not {*taught} & {*kept}
        assert 0.15 < len(kept) / len(task.instructions) <= 0.2


def test_lessons_have_fit_inputs_and_taught_instructions_alone(model, few):
    options = TerseOptions(steps=30, batch_size=4)
    data = lessons(model, options)
    assert len(data) == 120
    texts = texts_of(model, data.tokens, data.attention_mask)
    bank, seen = load_bank(), {name: 0 for name in FEW}
    for text, answer in zip(texts, data.answers, strict=True):
        (name,) = [name for name in FEW if any(told in text for told in taught_instructions(bank[name]))]
        task = bank[name]
        assert not any(told in text for told in kept_instructions(task))
        said = model.tokenizer.decode(answer[answer >= 0][:-1]).strip()
        assert int(answer[answer >= 0][-1]) == model.tokenizer.eos_token_id, "the text ends behind the answer"
        fit = [one for one in task.split("fit", 0) if one.input in text and said in one.answers]
        assert fit, text
        seen[name] += 1
    assert seen == {name: 60 for name in FEW}


def test_a_training_that_was_interrupted_ends_with_the_same_adapter(model, few, tmp_path):
    options = TerseOptions(steps=6, batch_size=4, r=2, save_every=2)
    whole = build_terse(tmp_path / "whole", options, model=model)

    def interrupt(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_terse(tmp_path / "parts", options, model=model, on_step=interrupt)
    assert (tmp_path / "parts" / STATE).exists() and not (tmp_path / "parts" / MODEL).exists()
    steps = []
    parts = build_terse(tmp_path / "parts", options, model=model, on_step=lambda row: steps.append(row["step"]))
    assert steps[0] == 3, "it goes on from the state of step 2"
    files = [folder.folder / "adapter_model.safetensors" for folder in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(files[0]).values()} == {torch.float16}
    assert named_base(whole.folder) == "smollm2", "by the name that every machine knows"
    record = json.loads((tmp_path / "parts" / "record.json").read_text())
    assert record["options"]["steps"] == 6 and len(record["log"]) == 6


def test_all_weights_may_be_taught(model, few, tmp_path):
    """The folder holds a whole model, which opens by itself and is no longer the first one everywhere."""
    options = TerseOptions(steps=3, batch_size=4, method="full", lr=1e-2)
    built = build_terse(tmp_path, options, model=model)
    taught = load_model(built.folder)
    assert not (built.folder / "adapter_config.json").exists() and taught.tokenizer is not None
    first, last = (dict(one.original_model.named_parameters()) for one in (model, taught))
    moved = [name for name in first if not torch.allclose(first[name], last[name].float(), atol=1e-3)]
    assert any("embed" in name for name in moved) and any("mlp" in name for name in moved)
    assert json.loads((tmp_path / "record.json").read_text())["options"]["method"] == "full"
    assert TerseOptions(method="full").tune.lr == 1e-4 and TerseOptions().tune.lr == 5e-4
    with pytest.raises(ValueError, match="method is 'ia3', expected one of lora, full"):
        unchecked(TerseOptions, method="ia3")


def test_the_card_asks_each_condition_on_inputs_of_the_split(model, monkeypatch):
    asked = []

    def correct(model, batch):
        asked.append(batch)
        right = torch.arange(len(batch)) % 2 == 0
        return SimpleNamespace(accuracy=right, exact=torch.zeros_like(right))

    monkeypatch.setattr("ivlens.runs.terse.card.greedy_correct", correct)
    card = terse_card(model, tasks=("antonym", "synonym"), n_prompts=4)
    table = card.table
    assert list(zip(table["task"], table["condition"], strict=True)) == [
        ("antonym", "taught"), ("antonym", "kept"), ("antonym", "bare"), ("antonym", "shots"),
        ("synonym", "kept"), ("synonym", "bare"), ("synonym", "shots"),
    ]  # fmt: skip
    assert set(table["accuracy"]) == {0.5} and set(table["exact"]) == {0.0} and set(table["n"]) == {4}
    bank = load_bank()
    test = {one.input for one in bank["antonym"].split("test", 0)}
    for batch, told in zip(asked, (taught_instructions, kept_instructions), strict=False):
        assert {one.input for one in batch.examples} <= test
        texts = [
            model.tokenizer.decode(row[mask == 1]) for row, mask in zip(batch.tokens, batch.attention_mask, strict=True)
        ]
        assert all(any(each in text for each in told(bank["antonym"])) for text in texts)
    bare = [
        model.tokenizer.decode(row[mask == 1])
        for row, mask in zip(asked[2].tokens, asked[2].attention_mask, strict=True)
    ]
    assert not any(each in text for text in bare for each in bank["antonym"].instructions)
    means = card.means().set_index(["role", "condition"])
    assert means.loc[("held out", "kept"), "accuracy"] == 0.5 and means.loc[("taught", "taught"), "n_tasks"] == 1
