"""Scores: by hand on small logits, and the passes that make logits, whatever the padding."""

import math

import pytest
import torch
from conftest import chained, random_prompts, tiny_task

import ivlens
from ivlens.forward import hooks, scoring
from ivlens.forward.completions import complete
from ivlens.prompts import PromptBatch, build_prompts
from ivlens.steering.trials import Trials
from ivlens.tasks import Task, TaskExample

# probabilities 1/2, 1/4, 1/4 and 1/10, 1/10, 8/10
LOGITS = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]).log()


def test_scores_by_hand():
    answers = torch.tensor([[1, 2]])
    assert scoring.first_token_prob(LOGITS[:, 0], answers[:, 0]).item() == pytest.approx(0.25)
    assert scoring.sequence_logprob(LOGITS, answers).item() == pytest.approx(math.log(0.25 * 0.8))
    assert scoring.sequence_logprob(LOGITS, torch.tensor([[1, -100]])).item() == pytest.approx(math.log(0.25))
    assert scoring.logit_diff(LOGITS[:, 0], answers[:, 0], torch.tensor([0])).item() == pytest.approx(-math.log(2))
    assert scoring.score_answers("prob", LOGITS, answers).item() == pytest.approx(0.25)
    assert scoring.score_answers("logprob", LOGITS, answers).item() == pytest.approx(math.log(0.2))
    assert scoring.score_answers("logit_diff", LOGITS, answers, torch.tensor([2])).item() == pytest.approx(0.0)


def test_greedy_match_and_rank_by_hand():
    assert scoring.greedy_match(LOGITS, torch.tensor([[0, 2]])).item()
    assert not scoring.greedy_match(LOGITS, torch.tensor([[0, 1]])).item()
    assert not scoring.greedy_match(LOGITS, torch.tensor([[1, 2]])).item()
    assert scoring.greedy_match(LOGITS, torch.tensor([[0, -100]])).item()
    assert scoring.answer_rank(LOGITS[:, 0], torch.tensor([0])).item() == 1
    assert scoring.answer_rank(LOGITS[:, 0], torch.tensor([1])).item() == 3


def test_half_precision_logits_are_scored_in_single():
    logits = torch.tensor([[[10.0, 9.0, 0.0]]]).bfloat16()
    assert scoring.score_answers("prob", logits, torch.tensor([[1]])).dtype == torch.float32


def test_score_names():
    with pytest.raises(ValueError, match="score is 'bleu', expected one of prob, logprob, logit_diff"):
        scoring.check_score("bleu")
    with pytest.raises(ValueError, match="score 'logit_diff' got no foil_tokens"):
        scoring.score_answers("logit_diff", LOGITS, torch.tensor([[1, 2]]))


@pytest.fixture(scope="module")
def batch(byte_level) -> PromptBatch:
    """Prompts of several lengths whose answers have one to five tokens, some with several answers."""
    texts = [("big", ("small", "New York")), ("New York is high", ("hot",)), ("sad", ("i", "y", "walked Paris"))]
    task = Task("mixed", tuple(TaskExample(x, y) for x, y in texts), instructions=("Do it.", "Do it at once."))
    batch = build_prompts(byte_level, task, task.examples)
    assert (batch.answer_tokens == -100).any() and (batch.attention_mask == 0).any()
    return batch


def test_answer_logits_are_those_of_each_text_alone(model, batch):
    got = scoring.answer_logits(model, batch, batch_size=2)
    for row in range(len(batch)):
        prompt = batch.tokens[row][batch.attention_mask[row] == 1]
        answer = batch.answer_tokens[row][batch.answer_tokens[row] != -100]
        with torch.no_grad():
            alone = model(torch.cat([prompt, answer])[None], use_cache=False)[0]
        want = alone[len(prompt) - 1 : len(prompt) - 1 + len(answer)]
        torch.testing.assert_close(got[row, : len(answer)], want, atol=2e-3, rtol=1e-3)


def written_by(model, batch, n):
    """What greedy decoding writes after each prompt on its own, in tokens."""
    written = []
    for tokens, mask in zip(batch.tokens, batch.attention_mask, strict=True):
        prompt = tokens[mask == 1][None]
        out = model.generate(prompt, max_new_tokens=n, do_sample=False, verbose=False, stop_at_eos=False)
        written.append(tuple(out[0, prompt.shape[1] :].tolist()))
    return written


def answered(tokens, mask, alternatives):
    """Prompts with these lists of answers, each a tuple of tokens."""
    first = torch.full((len(tokens), max(len(answers[0]) for answers in alternatives)), -100)
    for row, answers in enumerate(alternatives):
        first[row, : len(answers[0])] = torch.tensor(answers[0])
    example, n = TaskExample("input", ("answer",)), len(tokens)
    return PromptBatch(
        tokens, mask, first, None, tuple(alternatives), ("",) * n, (example,) * n, ("",) * n, (None,) * n
    )


def one_word(tokenizer, tokens, n):
    """Whether the text of the first tokens goes on without a border."""
    text, more = (tokenizer.decode(list(tokens[:length]), skip_special_tokens=True) for length in (n, n + 1))
    border = text[-1:] + (more[len(text) :] if more.startswith(text) else "\ufffd")[:1]
    return len(border) == 2 and all(char.isalnum() or char == "\ufffd" for char in border)


@pytest.mark.parametrize("tokenized", [False, True])
def test_greedy_accuracy_is_what_generate_writes(new_model, byte_level, tokenized):
    """Answers are what greedy decoding writes, longer and shorter, or something else: the verdict must follow."""
    model = new_model("llama", byte_level if tokenized else None)
    prompts = random_prompts((7, 4, 9, 5, 6, 8, 3, 5, 4, 9))
    written = written_by(model, answered(*prompts, [((1,),)] * 10), 4)
    wrong = (395, 396)
    rows = [(row, length) for row in range(10) for length in (1, 2, 3)]
    alternatives = [((wrong,) * (row % 2) + (written[row][:length],)) for row, length in rows]
    wide = [part[[row for row, _ in rows]] for part in prompts]
    found = scoring.greedy_correct(model, answered(*wide, alternatives), batch_size=7)
    expected = [not one_word(byte_level, written[row], length) for row, length in rows]
    assert set(expected) == {True, False}
    assert found.accuracy.tolist() == (expected if tokenized else [True] * 30)
    assert (found.exact <= found.accuracy).all() and (tokenized or not found.exact.any())
    others = [((*written[row][: length - 1], 399),) for row, length in rows]
    assert not scoring.greedy_accuracy(model, answered(*wide, others)).any()


AFTER_ONE = {"2": (0, 0), "a": (0, 0), ".": (1, 0), "Ġ": (1, 0), "Ċ": (1, 1), "<|endoftext|>": (1, 1)}


@pytest.mark.parametrize(("piece", "expected"), AFTER_ONE.items())
def test_a_model_that_writes_12_is_wrong_about_1(new_model, byte_level, piece, expected):
    colon, space, one, comma, following = byte_level.convert_tokens_to_ids([":", "Ġ", "1", ",", piece])
    # Ġ is followed by 1, so that a second one cannot be written after it
    links = {colon: space, space: one, one: following} if piece != "Ġ" else {colon: one, one: following}
    model = chained(new_model("llama", byte_level, n_layers=2), links | {following: comma})
    answer = (space, one) if piece != "Ġ" else (one,)
    tokens = torch.tensor([[5, 9, colon], [3, 9, colon]])
    found = scoring.greedy_correct(model, answered(tokens, torch.ones_like(tokens), [(answer,), ((399,), answer)]))
    assert [each.int().tolist() for each in found] == [[expected[0]] * 2, [expected[1]] * 2]
    longer = ((*answer, following),)
    both = scoring.greedy_accuracy(model, answered(tokens, torch.ones_like(tokens), [(answer, *longer), longer]))
    assert both.all(), "what goes on may be another accepted answer"


@pytest.mark.parametrize("n_ctx", [9, 10, 11])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptneo"])
def test_answers_that_fill_the_context(new_model, byte_level, family, n_ctx):
    """Long prompts beside long answers, as much as fits: each row is judged as on its own."""
    model = new_model(family, byte_level, n_ctx=n_ctx)
    tokens, mask = random_prompts((8, 6, 7, 3, 8, 5, 4))
    lengths, numbers = mask.sum(1).tolist(), list(range(7))
    written = written_by(model, answered(tokens, mask, [((1,),)] * 7), n_ctx - 7)
    alternatives = [tuple(each[:n] for n in range(1, n_ctx - 6)) for each in written]
    rows = [(row, (answer,)) for row in numbers for answer in alternatives[row]]
    at = [row for row, _ in rows]
    batch = answered(tokens[at], mask[at], [answers for _, answers in rows])
    found = scoring.greedy_correct(model, batch)
    alone = [scoring.greedy_correct(model, batch.rows([number])) for number in range(len(batch))]
    for name in ("accuracy", "exact"):
        assert getattr(found, name).tolist() == [bool(getattr(one, name)) for one in alone]
    is_full = [lengths[row] + len(answers[0]) >= n_ctx for row, answers in rows]
    assert any(is_full) and all(found.exact[torch.tensor(is_full)]) and not found.exact.all()


def test_scores_of_a_batch_do_not_depend_on_its_size(llama, batch):
    small, large = (scoring.answer_logits(llama, batch, batch_size=size) for size in (1, 9))
    for score in ("prob", "logprob"):
        one, other = (scoring.score_answers(score, logits, batch.answer_tokens) for logits in (small, large))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_steered_model_is_not_scored(llama, batch):
    with hooks.steering(llama):
        for score in (scoring.answer_logits, scoring.greedy_accuracy):
            with pytest.raises(RuntimeError, match="steer context open on the model, expected none: the vector would"):
                score(llama, batch)
    assert len(scoring.greedy_accuracy(llama, batch)) == 3


def test_prompts_that_do_not_fit_the_model(new_model, byte_level):
    task = Task(
        "long", (TaskExample("big " * 60, ("New York",)), TaskExample("big", ("hot",))), instructions=("Do it.",)
    )
    batch = build_prompts(byte_level, task, task.examples)
    with pytest.raises(
        ValueError, match=r"prompt 0 has [0-9]+ tokens and its answer up to [0-9]+, expected at most 64"
    ):
        scoring.answer_logits(new_model("gpt2", n_ctx=64), batch)
    assert len(scoring.answer_logits(new_model("gpt2", n_ctx=256), batch)) == 2


def test_a_batch_size_below_one(llama, batch):
    with pytest.raises(ValueError, match="batch_size is 0, expected 1 or more"):
        scoring.answer_logits(llama, batch, batch_size=0)


@pytest.mark.parametrize("of", [lambda model: model, lambda model: model.original_model, lambda model: model.blocks[1]])
def test_nothing_is_measured_while_dropout_may_be_on(new_model, byte_level, of):
    model, task = new_model("gpt2", byte_level), tiny_task()
    batch = build_prompts(byte_level, task, task.examples)
    want = scoring.answer_logits(model, batch)
    of(model).train()
    for measure in (
        scoring.answer_logits,
        scoring.greedy_accuracy,
        Trials,
        lambda model, _: ivlens.head_effects(model, task),
    ):
        with pytest.raises(ValueError, match=r"in train mode, expected eval mode.*model.eval"):
            measure(model, batch)
    with pytest.raises(ValueError, match="in train mode"):
        complete(model, ["a"])
    model.eval()
    torch.testing.assert_close(scoring.answer_logits(model, batch), want)
