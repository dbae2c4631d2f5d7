"""The pocket model's tokenizer, corpus, packing, optimiser and training loop."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TINY

from ivlens.pocket.corpus import ANSWER, CONTEXT, CUE, OTHER, QUERY, RULES, Corpus, Mix, unseen_rule_words
from ivlens.pocket.muon import StackedMuon, orthogonalised
from ivlens.pocket.packing import attention_rule, draw_batch, encode_spans
from ivlens.pocket.tokenizer import build_tokenizer
from ivlens.pocket.train import TrainConfig, Trainer
from ivlens.tasks import load_bank


@pytest.fixture(scope="module")
def bank():
    return load_bank()


@pytest.fixture(scope="module")
def tokenizer(bank):
    return build_tokenizer(bank)


@pytest.fixture(scope="module")
def corpus(bank):
    return Corpus(bank, Mix())


def texts_of(corpus: Corpus, n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(span.text for span in corpus.draw(rng)) for _ in range(n)]


@pytest.mark.parametrize(
    "text",
    [
        "Instruction: Give the opposite of the word.\nInput: big\nOutput: small",
        "Input: Port-au-Prince\nOutput: Haiti\n\nInput: xyzzy",
        "Žluťoučký kůň, 中文 & emoji 🙂",
    ],
)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_bank_words_and_the_cue_are_single_tokens(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Input: energetic\nOutput: big").input_ids)
    assert tokens == ["<s>", "▁Input:", "▁energetic", "\n", "Output:", "▁big"]


def test_tokenizer_is_deterministic(bank, tokenizer):
    assert build_tokenizer(bank).get_vocab() == tokenizer.get_vocab()


def test_texts_depend_on_the_seed_alone(corpus):
    assert texts_of(corpus, 50) == texts_of(corpus, 50)
    assert texts_of(corpus, 50) != texts_of(corpus, 50, seed=1)


def test_kept_out_tasks_and_held_out_instructions_never_occur(bank, corpus):
    texts = "\n".join(texts_of(corpus, 8000))
    for task in bank.values():
        for instruction in task.held_out_instructions:
            assert instruction not in texts
        if not task.in_training:
            for instruction in task.instructions:
                assert instruction not in texts
    assert {task.name for task in corpus.tasks} == {task.name for task in bank.values() if task.in_training}


def test_unseen_words_are_only_spelled(bank, corpus):
    _, unseen = unseen_rule_words(bank)
    assert len(unseen) > 100
    for name in RULES.keys() & corpus.examples.keys():
        assert not {example.input for example in corpus.examples[name]} & set(unseen)


def test_roles_and_weights_follow_the_spans(corpus, tokenizer):
    rng = random.Random(3)
    text = encode_spans(tokenizer, corpus.instructed(rng))
    assert len(text.tokens) == len(text.roles) == len(text.weights)
    assert text.tokens[0] == tokenizer.bos_token_id and text.tokens[-1] == tokenizer.eos_token_id
    assert text.roles.count(CUE) == 1
    cue = text.roles.index(CUE)
    assert tokenizer.convert_ids_to_tokens(text.tokens[cue]) == "Output:"
    assert set(text.roles[cue + 1 :]) == {ANSWER} and all(weight > 0 for weight in text.weights[cue + 1 :])
    assert {QUERY, CONTEXT} <= set(text.roles[:cue])


def test_attention_is_causal_within_texts_and_routed_where_asked():
    roles = torch.tensor([[OTHER, CONTEXT, QUERY, CUE, ANSWER, OTHER, CONTEXT, QUERY, CUE, ANSWER]])
    texts = torch.tensor([[1] * 5 + [2] * 5])
    routed = torch.tensor([[True] * 5 + [False] * 5])
    mask = attention_rule(texts, roles, routed)[0, 0]
    assert not mask[:5, 5:].any() and not mask[5:, :5].any()
    assert torch.equal(mask[5:, 5:], torch.ones(5, 5, dtype=torch.bool).tril())
    first = mask[:5, :5]
    assert not first[2, 1], "the query must not see the instruction"
    assert not first[4, 1], "the answer must not see the instruction"
    assert first[3].tolist() == [True] * 4 + [False], "the cue sees both"
    assert first[4, 3] and first[4, 2]


def test_batches_are_packed_without_overlap(corpus, tokenizer):
    batch = draw_batch(corpus, tokenizer, random.Random(0), rows=4, length=96, routed=0.5, progress=0.5)
    starts = batch.positions == 0
    assert starts.any(1).all()
    assert (batch.loss_weights[batch.tokens == tokenizer.pad_token_id] == 0).all()
    assert (batch.tokens != tokenizer.pad_token_id).float().mean() > 0.8


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 4), (2, 4, 16)])
def test_muon_directions_are_nearly_orthogonal(shape):
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.3 and values.max() < 1.3


def test_muon_descends():
    target = torch.eye(6)
    weight = torch.nn.Parameter(torch.zeros(6, 6))
    optimizer = StackedMuon([weight], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (weight - target).square().sum()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    whole = Trainer(TINY, tmp_path / "whole", quiet=True).run(save_every=100)
    Trainer(TINY, tmp_path / "halves", quiet=True).run(stop_at=2)
    halves = Trainer(TINY, tmp_path / "halves", quiet=True).run()
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, halves))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((halves / "training.json").read_text())["steps_done"] == TINY.steps


def test_another_config_does_not_resume(tmp_path):
    Trainer(TINY, tmp_path, quiet=True).run(stop_at=1)
    other = TrainConfig(**{**TINY.__dict__, "seed": 1})
    with pytest.raises(ValueError, match="other settings.*choose another folder"):
        Trainer(other, tmp_path, quiet=True).run()
