"""Where several texts may stand, one text is one item, whoever takes them."""

import inspect
from importlib import import_module

import pandas as pd
import pytest
from conftest import tiny_task

import ivlens
from ivlens.analysis.dynamics import predictors
from ivlens.common.checks import as_items
from ivlens.forward.completions import complete
from ivlens.runs.study import StudyOptions
from ivlens.runs.suites import all_cells, mean_score, rouge_l, suite_accuracy
from ivlens.runs.sweep.options import InterventionOptions
from ivlens.show.demo.run import DemoOptions
from ivlens.show.figures.training import forgetting_against_learning
from ivlens.steering.summary import corrected
from ivlens.tasks import Task, TaskExample
from ivlens.tasks.task import tasks_of
from ivlens.tuning.methods import Lora

ROOMS = (
    "tasks prompts models effects vectors tuning analysis.attention analysis.dynamics analysis.forgetting runs.study "
    "runs.suites runs.sweep out show.figures show.lab common.store"
).split()
EXAMPLES = (TaskExample("big", ("small",)),)

# (name, parameter) -> what it makes of a text, and of a list of one
ONE = {
    ("TaskExample", "answers"): lambda given: TaskExample("big", given("small")),
    **{
        ("Task", name): lambda given, name=name: Task("t", EXAMPLES, **{name: given("Give the opposite.")}).full_hash()
        for name in ("instructions", "held_out_instructions", "clozes", "prose")
    },
    ("Task", "skipped"): lambda given: Task("t", EXAMPLES, skipped=given("line 3")),
    ("PromptRecipe", "instruction"): lambda given: ivlens.PromptRecipe(instruction=given("Give the opposite.")),
    ("Grid", "sites"): lambda given: ivlens.Grid(sites=given("attn_out")),
    ("load_suite", "order"): lambda given: ivlens.load_suite("pocket", order=given("second_letter")).tasks,
    ("load_suite", "general"): lambda given: ivlens.load_suite("pocket", general=given("antonym")).general,
    ("MoreRows", "rows"): lambda given: ivlens.MoreRows(given("by_k")),
    ("MoreRows", "templates"): lambda given: ivlens.MoreRows(templates=given("qa")),
    ("StudyOptions", "general"): lambda given: StudyOptions(general=given("rhyme")),
    ("StudyOptions", "new"): lambda given: StudyOptions(new=given("rhyme")),
    ("StudyOptions", "guidance"): lambda given: StudyOptions(guidance=given("none")),
    ("all_cells", "methods"): lambda given: all_cells(given("lora"), ["none"], [0], [0]),
    ("all_cells", "guidance"): lambda given: all_cells(["lora"], given("none"), [0], [0]),
    ("mean_score", "predictions"): lambda given: mean_score("rouge_l", given("a dog"), ["a dog"]),
    ("mean_score", "references"): lambda given: mean_score("rouge_l", ["a dog"], given("a dog")),
    ("rouge_l", "references"): lambda given: rouge_l("a dog", given("a dog")),
    ("suite_accuracy", "references"): lambda given: suite_accuracy("a dog", given("a dog")),
}
# these give one error, which says so, in place of letters
REFUSED = {
    ("EffectOptions", "others"),
    ("build_prompts", "others"),
    ("measure_again", "others"),
    ("JudgeOptions", "other_vectors"),
    ("steer_rows", "vectors"),
    ("sweep_settings", "vectors"),
    ("similarity_matrix", "vectors"),
    ("similarity_order", "vectors"),
    ("find_prompts", "templates"),
    ("StudyOptions", "earlier"),  # two or more
}
ELSEWHERE = {
    ("head_attention", "heads"),
    ("attention_tokens", "heads"),
    ("logit_lens", "prompts"),
    ("patch_places", "heads"),
    ("lab", "tasks"),
    ("causal_tests", "tests"),
    ("lm_eval_table", "tasks"),  # in tests/out/test_harness.py, which has the harness
    ("predictors", "names"),
    ("forgetting_against_learning", "kinds"),
}
# what only ivlens itself makes
MADE = {
    "HeadEffects",
    "HeadComparison",
    "HeadAttention",
    "PromptBatch",
    "TaskCheck",
    "Exam",
    "CausalTest",
    "Claim",
    "CellResult",
    "Cell",
    "Kind",
    "Outcome",
    "Theme",
    "Entry",
}


def parameters():
    for room in ("ivlens", *(f"ivlens.{room}" for room in ROOMS)):
        module = import_module(room)
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            made = getattr(module, name)
            if not callable(made) or name in MADE:
                continue
            for parameter in signature_of(made):
                hint = str(parameter.annotation)
                if "Callable[" in hint:
                    continue
                if "str" in hint and any(word in hint for word in ("Sequence[", "Iterable[", "tuple[", "list[")):
                    yield name, parameter.name


def signature_of(made):
    try:
        return inspect.signature(made).parameters.values()
    except ValueError:  # of a type that is no function: a Literal, a dict
        return ()


def test_every_public_list_of_texts_is_tried():
    assert set(parameters()) == ONE.keys() | REFUSED | ELSEWHERE


@pytest.mark.parametrize("about", ONE, ids=lambda about: ".".join(about))
def test_a_text_is_one_item(about):
    assert ONE[about](lambda text: text) == ONE[about](lambda text: [text]) == ONE[about](lambda text: (text,))


def test_the_only_answer_and_instruction_are_whole():
    assert TaskExample("big", "small").answer == "small"
    assert Task("t", TaskExample("big", "small"), "Give the opposite.").instructions == ("Give the opposite.",)
    assert Task("t", EXAMPLES, ["One.", "Two."]).instructions == ("One.", "Two.")
    with pytest.raises(TypeError, match="TaskExample"):
        TaskExample("big", (1,))


def test_elsewhere(llama):
    assert complete(llama, "Input: big", max_new_tokens=2) == complete(llama, ["Input: big"], max_new_tokens=2)
    assert DemoOptions(tasks="antonym").tasks == ("antonym",)
    assert InterventionOptions(sites=("attn_out",)).sites == ("attn_out",)
    assert Lora(targets="q_proj").targets == "q_proj"
    table = pd.DataFrame({"task": ["a", "b"], "condition": ["x", "x"], "p": [0.01, 0.04]})
    assert corrected(table, by="condition").equals(corrected(table, by=["condition"]))
    points = pd.DataFrame(
        {"step": [1.0, 2.0, 3.0], "task": ["a", "b", "c"], "prob": [0.1, 0.2, 0.4], "cosine": [0.3, 0.2, 0.1]}
    )
    assert predictors(points, names="step").equals(predictors(points, names=["step"]))
    curves = pd.DataFrame({"guidance": ["iv", "none"], "new": 0.5, "old": 0.5, "step": 1})
    drawn = [forgetting_against_learning(curves, kinds=given).to_json() for given in ("iv", ["iv"])]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("make", [lambda: ivlens.Grid(alphas="12"), lambda: ivlens.Grid(layers="12")])
def test_a_text_is_no_list_of_numbers(make):
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize("given", ["synonym", ["synonym"], {"a": "synonym"}, 3, None])
def test_a_name_in_the_place_of_a_task_is_named(given):
    with pytest.raises(TypeError, match="watch: got .*expected one Task.*load_task|TypeCheck|Type-check"):
        tasks_of("watch", given)
    assert tasks_of("watch", tiny_task()) == (tiny_task(),) == tasks_of("watch", {"x": tiny_task()})


@pytest.mark.parametrize("given", [b"small", {"small": 1}, 3, [["small"]], ["small", None]])
def test_what_is_no_text_is_refused(given):
    with pytest.raises(TypeError, match="answers: got .*expected one text, or several in a list"):
        as_items("answers", given)
