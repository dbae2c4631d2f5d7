"""Answers as rows of passes: how they are grouped, numbered and padded."""

import pytest
import torch

from ivlens.steering.answers import AnswerTable, alike

ANSWERS = [((5,), (6, 7)), ((5, 8, 9),), ((4,), (4,))]  # the last prompt has the same answer twice


def rows(group):
    return list(zip(group.whole.tolist(), group.prompts.tolist(), group.given.tolist(), strict=True))


def test_whole_answers_stand_in_one_padded_group_where_there_is_room():
    table = AnswerTable.of(ANSWERS, torch.tensor([9, 9, 9]), 9)
    (whole,) = table.whole
    assert rows(whole) == [(0, 0, [5, 0, 0]), (1, 0, [6, 7, 0]), (2, 1, [5, 8, 9]), (3, 2, [4, 0, 0])]
    assert whole.answers.tolist() == [[5, -1, -1], [6, 7, -1], [5, 8, 9], [4, -1, -1]]
    assert whole.n_read.tolist() == [2, 3, 4, 2] and table.most_given == 3
    assert table.openings.targets.tolist() == [[[5], [6]], [[5], [-1]], [[4], [-1]]]
    assert [group.targets.shape[2] for group in table.by_length] == [1, 2, 3]
    for group in (table.openings, *table.by_length):
        for number, prompt, given in rows(group):
            assert whole.prompts[number] == prompt and whole.given[number, : len(given)].tolist() == given
    named = [whole.answers[number][whole.answers[number] >= 0].tolist() for group in table.by_length
             for number in group.wholes[group.wholes >= 0]]  # fmt: skip
    assert sorted(named) == sorted([[5], [6, 7], [5, 8, 9], [4]])


def test_whole_answers_that_fill_the_context_are_not_given_their_last_tokens():
    table = AnswerTable.of(ANSWERS, torch.tensor([2, 3, 9]), 2)  # no room for three tokens behind every prompt
    (one,) = [group for group in AnswerTable.of(ANSWERS, torch.tensor([2, 3, 9]), 3).whole]
    assert one.has_next.tolist() == [True, False, False, True] and one.n_read.tolist() == [2, 2, 3, 2]
    assert rows(one) == [(0, 0, [5, 0]), (1, 0, [6, 0]), (2, 1, [5, 8]), (3, 2, [4, 0])]
    assert len(table.whole) == 1, "without their last tokens, two are enough"
    by_given = AnswerTable.of(ANSWERS, torch.tensor([9, 9, 9]), 2).whole
    assert [rows(group) for group in by_given] == [
        [(0, 0, [5]), (1, 2, [4])], [(2, 0, [6, 7])], [(3, 1, [5, 8, 9])],
    ]  # fmt: skip


def test_pairs_are_all_answers_of_the_asked_prompts():
    table = AnswerTable.of(ANSWERS, torch.tensor([9, 9, 9]), 9)
    chosen, numbers = table.of_pairs(torch.tensor([[True, False, True], [False, True, False]]))
    assert list(zip(chosen.tolist(), numbers.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 3), (1, 2)]


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([2, 3, 2, 3], [[0, 2], [1, 3]]),
        ([3, 2, 3, 4], [[0, 1, 2], [3]]),  # one row alone goes with longer ones, the last ones by themselves
        ([2], [[0]]),
        ([], []),
    ],
)
def test_rows_of_one_length_share_passes_where_there_are_enough(lengths, parts):
    assert [part.tolist() for part in alike(torch.tensor(lengths, dtype=torch.long), fewest=2)] == parts
