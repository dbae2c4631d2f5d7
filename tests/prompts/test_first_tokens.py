"""Where an answer and its foil begin, and answers that begin with a token that says nothing."""

import pytest
import torch
from conftest import WORDS

from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.forward.scoring import fitting_score
from ivlens.prompts.build import build_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.templates import PromptTemplate
from ivlens.tasks.task import Task, TaskExample

SPACED = PromptTemplate(
    "spaced", "Instruction: {instruction}\nInput: {input}\nOutput: ", "Input: {input}\nOutput: ", separator=""
)


def numbers(name: str, add: int) -> Task:
    examples = (TaskExample(word, (str(n + add),)) for n, word in enumerate(WORDS))
    return Task(name, tuple(examples), instructions=(f"{name}!",))


def test_a_foil_is_what_would_be_written_where_the_answer_begins(byte_level):
    words = Task("opposite", (TaskExample("big", ("small",)),), instructions=("Give the opposite.",))
    number = Task("number", (TaskExample("big", ("7",)),), instructions=("Give the number.",))
    for template in (SPACED, PromptTemplate("joined")):
        recipe = PromptRecipe(template)
        batch = build_prompts(byte_level, words, words.examples, recipe, corruption="counterfactual", others=[number])
        foil = "7" if template is SPACED else " 7"
        whole = byte_level(batch.texts[0] + foil)["input_ids"]
        n = batch.tokens.shape[1]
        assert batch.tokens[0].tolist() == whole[:n] and batch.foil_tokens.tolist() == [whole[n]]
        assert byte_level.convert_ids_to_tokens(whole[n - 1]).endswith(":")


def test_a_foil_that_runs_into_the_cue_is_none(byte_level):
    def goes_on(begun, rest):
        alone = byte_level.tokenize(f" {begun}")
        return byte_level.tokenize(f" {begun}{rest}")[: len(alone)] == alone

    # the begun word and its rest are one token: nobody writes the rest after the beginning
    begun = ((word[:n], word[n:]) for word in WORDS for n in range(1, len(word)))
    cue, merging = next((first, rest) for first, rest in begun if goes_on(first, " small") and not goes_on(first, rest))
    template = PromptTemplate("open", f"{{instruction}} {{input}} {cue}", f"{{input}} {cue}", separator="")
    task = Task("opposite", (TaskExample("big", (" small",)),), instructions=("Give the opposite.",))
    other = Task("rest", (TaskExample("big", (merging,)),), instructions=("Rest.",))
    recipe = PromptRecipe(template)
    batch = build_prompts(byte_level, task, task.examples, recipe, corruption="counterfactual", others=[other])
    assert batch.corruptions == ("drop",)


def test_numbers_after_a_lone_space_have_counterfactuals(metaspace):
    task, other = numbers("plus", 11), numbers("minus", 40)
    batch = build_prompts(metaspace, task, task.examples[:6], corruption="counterfactual", others=[other])
    assert metaspace.convert_ids_to_tokens(batch.answer_tokens[:, 0].tolist()) == ["\u2581"] * 6
    assert set(batch.corruptions) == {"counterfactual"} and set(batch.foil_tokens.tolist()) == {-100}
    same = build_prompts(metaspace, task, task.examples[:6], corruption="counterfactual", others=[numbers("again", 11)])
    assert set(same.corruptions) == {"drop"}
    # a task whose answers begin otherwise comes first: it has a foil
    word = Task("word", tuple(TaskExample(each, ("small",)) for each in WORDS), instructions=("Word!",))
    batch = build_prompts(metaspace, task, task.examples[:6], corruption="counterfactual", others=[other, word])
    assert set(batch.counterfactuals) == {"word"} and -100 not in batch.foil_tokens.tolist()


def test_the_score_that_tells_answers_apart():
    firsts = torch.tensor([[5, 1], [5, 2], [5, 3]])
    assert fitting_score(firsts) == "logprob" and fitting_score(firsts.flip(1)) == "prob"
    assert fitting_score(torch.tensor([[5, 1], [5, 1]])) == "prob"  # one answer: nothing to tell apart
    assert fitting_score(torch.tensor([[5, -100], [6, -100], [5, 7]])) == "prob"


def test_effects_of_numbers_are_of_the_whole_answer(llama, caplog):
    task, other = numbers("plus", 11), numbers("minus", 40)
    options = EffectOptions(others=[other], n_check_prompts=0, n_mean_prompts=4)
    with caplog.at_level("INFO"):
        chosen = head_effects(llama, task, n_prompts=4, options=options)
    assert chosen.settings["score"] == "logprob" and "answers share their first tokens" in caplog.text
    asked = head_effects(llama, task, score="logprob", n_prompts=4, options=options)
    assert torch.equal(chosen.cie, asked.cie)
    caplog.clear()
    assert head_effects(llama, task, score="prob", n_prompts=4, options=options).settings["score"] == "prob"
    assert "score 'prob' says little here; use 'logprob'" in caplog.text
    with pytest.raises(ValueError, match="score 'logit_diff' found no counterfactual for any"):
        head_effects(llama, task, score="logit_diff", n_prompts=4, options=options)
