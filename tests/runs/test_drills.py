"""The pocket suite's further training inputs."""

import json
from importlib import resources

import pytest

from ivlens.runs.suites import load_suite, split_examples
from ivlens.runs.suites.drills import RULES, drilled
from ivlens.tasks import load_task


@pytest.mark.parametrize("name", list(RULES))
def test_the_rule_gives_every_answer_of_the_bank(name: str) -> None:
    bank = json.loads((resources.files("ivlens") / "data" / "bank" / f"{name}.json").read_text("utf-8"))
    assert all(RULES[name](one["input"].split()) == one["output"] for one in bank["examples"])


@pytest.mark.parametrize("name", list(RULES))
def test_what_is_judged_is_the_banks_and_never_trained(name: str) -> None:
    bank, more = load_task(name), drilled(load_task(name))
    for side in ("select", "test"):
        assert [one.input for one in split_examples(more, side)] == [one.input for one in bank.split(side)]
    trained = {one.input for one in split_examples(more, "train")}
    assert trained >= {one.input for one in bank.split("fit")} and len(trained) > 500
    assert not trained & {one.input for side in ("select", "test") for one in bank.split(side)}


def test_lists_are_drawn_by_the_seed_from_words_of_the_training_inputs() -> None:
    bank = load_task("swap_pair")
    one, two = drilled(bank, n_lists=50), drilled(bank, n_lists=50, seed=1)
    assert one == drilled(bank, n_lists=50) and one != two
    known = {word for example in bank.split("fit") for word in example.input.split()}
    added = one.examples[len(bank) :]
    assert len(added) > 40 and {word for example in added for word in example.input.split()} <= known


def test_the_suite_has_them() -> None:
    assert all(len(task) > 600 for task in load_suite("pocket", general=[]).tasks)
