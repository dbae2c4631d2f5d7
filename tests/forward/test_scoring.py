"""Scores: by hand on small logits, and the passes that make logits, whatever the padding."""

import math

import pytest
import torch

from ivlens.forward import hooks, scoring
from ivlens.prompts import PromptBatch, build_prompts
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


def test_greedy_accuracy_is_what_generate_writes(llama, batch):
    """Answers are set to what greedy decoding writes, or to something else: the verdict must follow."""
    written = []
    for row in range(len(batch)):
        prompt = batch.tokens[row][batch.attention_mask[row] == 1][None]
        out = llama.generate(prompt, max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False)
        written.append(tuple(out[0, prompt.shape[1] :].tolist()))
    wrong = tuple((first + 1) % 300 for first in written[0])
    alternatives = ((written[0],), (wrong, written[1]), (written[2][:2], wrong))
    answers = torch.full((3, 3), -100)
    for row, options in enumerate(alternatives):
        answers[row, : len(options[0])] = torch.tensor(options[0])
    fields = {name: getattr(batch, name) for name in ("tokens", "attention_mask", "texts", "examples", "corruptions")}
    made = PromptBatch(
        **fields, answer_tokens=answers, foil_tokens=None, alternatives=alternatives, instructions=batch.instructions
    )
    assert scoring.greedy_accuracy(llama, made, batch_size=2).tolist() == [True, True, True]
    worse = PromptBatch(
        **fields,
        answer_tokens=answers,
        foil_tokens=None,
        alternatives=((wrong,), (wrong, (*written[1][:2], wrong[0])), (written[2][:2],)),
        instructions=batch.instructions,
    )
    assert scoring.greedy_accuracy(llama, worse).tolist() == [False, False, True]


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
