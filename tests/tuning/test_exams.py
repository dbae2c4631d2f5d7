"""Exams: what counts as a right answer of a model in training."""

import pytest
from conftest import byte_level_tokenizer, chained

from ivlens.tasks import Task, TaskExample
from ivlens.tuning.exams import make_exam

NUMBERS = Task(
    "numbers",
    (TaskExample("big", ("1",)), TaskExample("small", ("2", "1")), TaskExample("hot", ("2",))),
    instructions=("Give the number.",),
)
AFTER_ONE = {"2": (0, 0), ".": (2 / 3, 0), "Ċ": (2 / 3, 2 / 3), "<|endoftext|>": (2 / 3, 2 / 3)}


@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize(("piece", "expected"), AFTER_ONE.items())
def test_an_answer_may_be_followed_but_not_go_on(new_model, piece, expected, has_end):
    tokenizer = byte_level_tokenizer()
    if not has_end:
        tokenizer.pad_token, tokenizer.eos_token = "<|endoftext|>", None
    links = tokenizer.convert_tokens_to_ids([":", "Ġ", "1", piece])
    model = chained(new_model("llama", tokenizer, n_layers=2), dict(zip(links, links[1:], strict=False)))
    exam = make_exam(model, [(NUMBERS, NUMBERS.examples)])
    plain = model.original_model
    assert exam.sit(plain, batch_size=2) == {"numbers": pytest.approx(expected[0])}
    assert exam.sit(plain, exact=True) == {"numbers": pytest.approx(expected[1])}
    both = [(NUMBERS, NUMBERS.examples[:1]), (Task("other", NUMBERS.examples[2:], ("Do it.",)), NUMBERS.examples[2:])]
    assert make_exam(model, both).sit(plain) == {"numbers": float(expected[0] > 0), "other": 0.0}


def test_an_answer_that_fills_the_context_has_ended(new_model, byte_level):
    links = byte_level.convert_tokens_to_ids([":", "Ġ", "1", "2"])
    for more, expected in ((0, 1.0), (1, 0.0)):
        free = chained(new_model("llama", byte_level, n_layers=2), dict(zip(links, links[1:], strict=False)))
        exam = make_exam(free, [(NUMBERS, NUMBERS.examples[:1])])
        n_tokens = int(exam.data.attention_mask.sum()) + 2
        tight = new_model("llama", byte_level, n_layers=2, n_ctx=n_tokens + more)
        chained(tight, dict(zip(links, links[1:], strict=False)))
        exam = make_exam(tight, [(NUMBERS, NUMBERS.examples[:1])])
        assert exam.sit(tight.original_model) == exam.sit(tight.original_model, exact=True) == {"numbers": expected}
