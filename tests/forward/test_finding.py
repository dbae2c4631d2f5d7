"""The search for the form in which a model answers a task: against counts by hand, ties, stopping, what is left out."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import tiny_task

import ivlens
from ivlens.forward import finding
from ivlens.forward.finding import Trial, find_prompts, right_answers, search_forms
from ivlens.forward.forms import Form, all_forms, told_by, tried_examples
from ivlens.forward.scoring import greedy_correct
from ivlens.prompts import TASK, PromptBatch, PromptRecipe, PromptTemplate, build_prompts
from ivlens.tasks import TaskExample
from ivlens.tasks.task import split_of

COLUMNS = ["template", "n_shots", "instruction", "clean", "bare", "n"]


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


def by_hand(model, task, recipe, inputs, corruption=None):
    """Accuracy on these inputs, one by one."""
    right = []
    for text in inputs:
        batch = build_prompts(model.tokenizer, task, [task.find(text)], recipe, corruption=corruption)
        right.append(bool(greedy_correct(model, batch).accuracy[0]))
    return sum(right) / len(right)


def test_a_task_without_select_examples_is_asked_on_fit(pocket, caplog):
    """A file of twelve pairs has an empty *select* with one seed in thirty; *test* stays unopened then."""
    whole = ivlens.load_task("antonym")
    tiny = replace(whole, examples=tuple(each for each in whole.examples if split_of(each.input, 0) != "select")[:12])
    assert {split_of(each.input, 0) for each in tiny.examples} == {"fit", "test"}
    with caplog.at_level("WARNING", logger="ivlens"):
        tried = tried_examples(pocket, tiny, 12, 0)
    assert tried and {split_of(each.input, 0) for each in tried} == {"fit"}
    assert "chosen on 'fit'" in caplog.text


def test_every_row_is_what_a_count_by_hand_gives(pocket):
    task = ivlens.load_task("antonym")  # with several accepted answers
    search = find_prompts(pocket, task, shots=(0, 5), n_prompts=12, seed=1)
    assert list(search.table.columns[:6]) == COLUMNS and search.n_forms == len(search.recipes) == 8
    inputs = [example.input for example in tried_examples(pocket, task, 12, 1)]
    assert len(inputs) == 12 and all(ivlens.tasks.task.split_of(text, 1) == "select" for text in inputs)
    for row, (recipe, *_) in zip(search.table.to_dict("records"), search.recipes, strict=True):
        assert (row["template"], row["n_shots"], row["instruction"]) == (
            recipe.template,
            recipe.n_shots,
            told_by(recipe),
        )
        asked = inputs[: row["n"]]
        assert row["clean"] == by_hand(pocket, task, recipe, asked)
        assert row["bare"] == by_hand(pocket, task, recipe, asked, "drop")
        assert row["clean_lo"] < row["clean"] <= row["clean_hi"] or row["clean"] == row["clean_lo"] == 0
    best = search.table.iloc[0]
    assert best["n"] == 12 and search.best == search.recipes[0][0] == PromptRecipe("plain", TASK, 0, 1)
    assert search.warning == "" and "antonym: template plain, 0 demonstrations, the task's instruction" in str(search)
    assert "best of 8 forms" in str(search) and "<table>" in search._repr_html_()


def test_several_accepted_answers_count_as_greedy_correct_counts_them(pocket):
    task = ivlens.load_task("synonym")
    for recipe, least, most in ((PromptRecipe(), 20, 40), (PromptRecipe("qa", None, 2), 0, 39)):
        batch = build_prompts(pocket.tokenizer, task, task.examples[:40], recipe)
        right = right_answers(pocket, batch)
        assert right == greedy_correct(pocket, batch).accuracy.tolist() and least <= sum(right) <= most


def test_the_same_search_twice_is_the_same(llama):
    task = tiny_task()
    first, again = (find_prompts(llama, task, shots=(0, 2), seed=3) for _ in range(2))
    assert first.table.equals(again.table) and first.recipes == again.recipes
    other = find_prompts(llama, task, shots=(0, 2), seed=4)
    assert [each.seed for row in other.recipes for each in row] == [4] * sum(map(len, other.recipes))


def names(forms):
    return {(form.recipes[0].template, form.recipes[0].n_shots, told_by(form.recipes[0])) for form in forms}


def forms_of(model, task, templates=("plain", "after", "qa"), shots=(0, 2)):
    return all_forms(model, task, tried_examples(model, task, 4, 0), list(templates), shots, 0)


def test_which_forms_there_are(llama):
    plain = forms_of(llama, tiny_task())
    # `after` without an instruction is the text of `plain`, and without both nothing tells the task
    zero = {(name, 0, "task") for name in ("plain", "after", "qa")}
    two = {("plain", 2, "task"), ("plain", 2, "none"), ("after", 2, "task"), ("qa", 2, "task"), ("qa", 2, "none")}
    assert names(plain) == zero | two
    assert [form.n_tokens for form in plain] == sorted(form.n_tokens for form in plain)
    (both,) = [form for form in plain if form.recipes[0] == PromptRecipe("plain", None, 2)]
    assert both.recipes[1:] == (PromptRecipe("after", None, 2),)
    assert len({id(form.bare) for form in plain}) == 2  # `plain` and `after` share theirs
    told = replace(tiny_task(), instructions=())
    assert names(forms_of(llama, told)) == {("plain", 2, "none"), ("qa", 2, "none")}
    fused = replace(tiny_task(), fused=True)
    assert names(forms_of(llama, fused)) == {("plain", 0, "task"), ("plain", 2, "task")}


def test_a_fused_task_is_compared_with_itself_alone(llama):
    search = find_prompts(llama, replace(tiny_task(), fused=True), shots=(0, 2))
    alone = search.table[search.table["n_shots"] == 0].iloc[0]
    assert alone["clean"] == alone["bare"]


def test_the_built_in_templates_and_chat_where_there_is_one(llama, byte_level):
    assert finding.templates_of(byte_level, None) == ["plain", "after", "qa"]
    spoken = type("Spoken", (), {"chat_template": "{{ messages }}"})()
    assert finding.templates_of(spoken, None) == ["plain", "after", "qa", "chat"]
    one, several = (find_prompts(llama, tiny_task(), templates=given, n_prompts=2) for given in ("qa", ["qa"]))
    assert one.recipes == several.recipes and {recipe.template for row in one.recipes for recipe in row} == {"qa"}


def test_a_chat_template_that_cannot_be_used_is_left_out(llama, monkeypatch, caplog):
    monkeypatch.setattr(llama.tokenizer, "chat_template", "{{ raise_exception('never') }}")
    with caplog.at_level("INFO"):
        search = find_prompts(llama, tiny_task(), shots=[0, 1], n_prompts=2)
    assert "chat" not in set(search.table["template"])
    assert "chat template cannot be used (never)" in caplog.text


def batch_of(name, n):
    """Prompts of which only the texts say anything."""
    return PromptBatch(
        tokens=torch.zeros(n, 1, dtype=torch.long),
        attention_mask=torch.ones(n, 1, dtype=torch.long),
        answer_tokens=torch.zeros(n, 1, dtype=torch.long),
        foil_tokens=None,
        alternatives=(((0,),),) * n,
        texts=tuple(f"{name} {row}" for row in range(n)),
        examples=(TaskExample("x", ("y",)),) * n,
        corruptions=("clean",) * n,
        instructions=(None,) * n,
    )


def planted(shares, n=24, seed=0):
    """Forms with one set of bare prompts, who answers what, and a list of all that was asked."""
    chance = random.Random(seed)
    right = {f"bare {row}": chance.random() < 0.1 for row in range(n)}
    bare, forms, asked = batch_of("bare", n), [], []
    for number, share in enumerate(shares):
        right |= {f"{number} {row}": chance.random() < share for row in range(n)}
        forms.append(Form((PromptRecipe(n_shots=number),), batch_of(number, n), bare, float(number)))

    def ask(batch):
        asked.extend(batch.texts)
        return [right[text] for text in batch.texts]

    return forms, ask, asked


def searched(forms, ask, **options):
    return search_forms(forms, ask, lambda done, total: None, **options)


def outcome(trials: list[Trial]):
    return trials[0].form.recipes, trials[0].clean, trials[0].bare


@pytest.mark.parametrize("seed", range(60))
def test_stopping_never_changes_the_winner(seed):
    chance = random.Random(f"{seed} gains")
    gains = [chance.choice([0.0, 0.4, 0.5, 0.6, 0.7]) for _ in range(chance.randint(1, 14))]
    n = chance.choice([3, 8, 13, 24])
    forms, ask, asked = planted(gains, n, seed)
    quick, n_quick = outcome(searched(forms, ask)), len(asked)
    assert len(set(asked)) == len(asked)  # nothing is asked twice
    asked.clear()
    slow = outcome(searched(forms, ask, stop=False))
    assert quick == slow and n_quick <= len(asked)
    # and the winner by the rule: eight prompts each, the best four on all, ties to the cheaper
    first = min(8, n)
    gain = {order: gains_of(ask, form) for order, form in enumerate(forms)}
    four = sorted(gain, key=lambda order: (-sum(gain[order][:first]), order))[:4]
    best = max(four, key=lambda order: (sum(gain[order]), -order))
    assert quick[0] == forms[best].recipes


def gains_of(ask, form):
    clean, bare = ask(form.clean), ask(form.bare)
    return [int(a) - int(b) for a, b in zip(clean, bare, strict=True)]


def test_of_equals_the_cheaper_wins_and_hopeless_forms_are_stopped():
    forms, ask, asked = planted([1.0] * 6)
    trials = searched(forms, ask)
    assert trials[0].form is forms[0] and [len(trial.clean) for trial in trials] == [24, 8, 8, 8, 4, 4]
    assert Counter(text.split()[0] for text in asked) == {"bare": 24, "0": 24, "1": 8, "2": 8, "3": 8, "4": 4, "5": 4}
    told = []
    search_forms(forms, ask, lambda done, total: told.append((done, total)))
    done = [each for each, _ in told]
    assert done == sorted(done) and done[-1] <= told[0][1] and len({total for _, total in told}) == 1


def test_a_form_that_may_still_win_is_asked_to_the_end():
    forms, _, _ = planted([0.0, 0.0])
    wrong = {"0 22", "0 23", "1 0"}  # ahead after eight, behind after all

    def ask(batch):
        return [not (text.startswith("bare") or text in wrong) for text in batch.texts]

    assert [trial.form for trial in searched(forms, ask)] == [forms[1], forms[0]]
    wrong.add("1 20")  # as many as the cheaper one
    assert searched(forms, ask)[0].form is forms[0]


def test_shots_that_cannot_be_had_are_left_out(llama, caplog):
    caplog.set_level("INFO", "ivlens")
    task = tiny_task()
    most = len(task.split("fit")) - 1
    search = find_prompts(llama, task, templates=["plain"], shots=(2, 500), n_prompts=4)
    assert set(search.table["n_shots"]) == {2}
    assert f"n_shots is 500, but task {task.name!r} has examples for at most n_shots = {most}: left out" in caplog.text
    with pytest.raises(ValueError, match=f"no form to ask task .* at most n_shots = {most}"):
        find_prompts(llama, task, shots=(500,))
    with pytest.raises(ValueError, match="nothing tells the task: no instruction, and shots are all 0"):
        find_prompts(llama, replace(task, instructions=()), shots=(0,))


def test_prompts_that_outgrow_the_context_are_left_out(new_model, byte_level, caplog):
    caplog.set_level("INFO", "ivlens")
    short = new_model("llama", byte_level, n_layers=1, n_ctx=64)
    search = find_prompts(short, tiny_task(), templates=["plain"], shots=(0, 8), n_prompts=4)
    assert set(search.table["n_shots"]) == {0}
    assert "the model's context has 64 (at most n_shots = " in caplog.text
    with pytest.raises(ValueError, match="but the model's context has 64 .at most n_shots = [1-7] fits"):
        find_prompts(short, tiny_task(), templates=["plain"], shots=(8,), n_prompts=4)


def test_a_template_without_demonstration_is_tried_without(llama):
    mine = PromptTemplate("mine", "{instruction} {input} =", "{input} =", demonstration="")
    search = find_prompts(llama, tiny_task(), templates=[mine], shots=(0, 2), n_prompts=4)
    assert search.recipes == ((PromptRecipe(mine, TASK, 0),),) and search.table["template"].tolist() == ["mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": ()}, "shots is empty"),
        ({"shots": (-1,)}, "n_shots is -1"),
        ({"templates": []}, "templates is empty"),
        ({"templates": ["fancy"]}, "template is 'fancy', expected one of plain"),
        ({"n_prompts": 0}, "n_prompts is 0, expected a whole number, 1 or more"),
    ],
)
def test_bad_options(llama, options, message):
    with pytest.raises(ValueError, match=message):
        find_prompts(llama, tiny_task(), **options)


def test_a_model_that_answers_nothing_is_warned_of(llama):
    search = find_prompts(llama, tiny_task(), shots=(0,), n_prompts=4)
    assert search.ability.clean == 0 and "no vector can carry what the model does not do" in search.warning
    assert search.table["n_tokens"].iloc[0] == search.table["n_tokens"].min()  # of equals the cheapest
