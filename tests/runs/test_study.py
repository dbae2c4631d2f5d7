"""The study end to end in miniature, the rules of its verdicts, its page, and the commands over checkpoints."""

import html
import json
import re
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from ivlens import PromptRecipe, load_model, load_task
from ivlens.analysis.forgetting import ProbeOptions, decomposition, probe
from ivlens.cli._options import PromptOptions
from ivlens.cli.main import main
from ivlens.cli.study import StudyAmounts, _options
from ivlens.common.store import Store, verify
from ivlens.runs.study import StudyOptions, claim_table, run_study, running, write_study
from ivlens.runs.study.frontier import equal_evidence, equal_scores
from ivlens.runs.study.results import TABLES, iv_place, study_facts, training_key
from ivlens.show.pages.study import _general as page_general
from ivlens.show.pages.study import about, page, write_page
from ivlens.steering.search import Grid
from ivlens.tuning import Along, TuneOptions, finetune

TINY = StudyOptions(
    earlier=("antonym", "country_capital"),
    new=("middle_of_three",),
    general=("synonym", "antonym", "noun_kind"),
    guidance=("none", "iv", "iv/zero_vector"),
    steps=2,
    n_records=2,
    n_samples=32,
    batch_size=8,
    n_prompts=3,
    n_judge_prompts=4,
    n_exam_prompts=3,
    n_draws=2,
    k=4,
    grid=Grid(layers=(1,), alphas=(2.0,), sites=("resid_post",)),
)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def result(pocket):
    said = []
    found = run_study(TINY, model=pocket, say=said.append)
    assert said[0] == "the model before training" and said[-1] == "training on middle_of_three, guidance iv/zero_vector"
    return found


# ---- what it measures


def test_every_part_is_there(result):
    assert [stage.step for stage in result.dynamics.stages] == [0, 1, 2]
    assert set(result.causal["test"]) == {"write", "read", "reinjection", "subtraction"}
    assert set(result.probes["run"]) == {"before", "none", "iv", "iv/zero_vector"}
    assert list(result.new_scores["guidance"]) == list(TINY.guidance)
    names = set(result.evidence["name"])
    assert {
        "excess",
        "iv_cosine",
        "reinjection_lead",
        "write_lead",
        "read_lead",
        "kept_iv",
        "instruction_none",
    } <= names
    sizes, equal = result.evidence.groupby("name").size(), {"equal", "equal_vector"}
    per_new = [name for name in sizes.index if name in equal or name.startswith(("old_", "reached_"))]
    assert sizes.drop(per_new).eq(2).all(), "one value for each old task"
    assert len(per_new) >= 6 and sizes[per_new].eq(1).all(), "and one for each new task"


def test_what_is_said_and_kept_of_every_model(result):
    runs = {"before", *TINY.guidance}
    assert set(result.answers["run"]) == set(result.general["run"]) == runs
    counts = result.answers.groupby(["run", "task"]).size()
    assert counts.eq(TINY.n_judge_prompts).all() and len(counts) == 8
    right = result.evidence[result.evidence["name"].str.startswith("said_")].groupby("task")["value"].sum()
    assert right.to_numpy() == pytest.approx(1)  # the kinds are all answers
    after = result.probes.query("run == 'none' and kind == 'instruction'").groupby("task")["accuracy"].mean()
    said = result.answers.query("run == 'none'").groupby("task")["kind"].agg(lambda kinds: (kinds == "right").mean())
    assert said.to_dict() == pytest.approx(after.to_dict())
    general = [name for name in TINY.general if name not in (*TINY.earlier, *TINY.new)]
    assert set(result.general["task"]) == {"plain text", *general}


def test_every_training_is_judged_at_the_same_steps(result):
    steps = result.frontier.groupby(["guidance", "task"])["step"].agg(tuple)
    assert len(steps) == 3 and set(steps) == {(1, 2)}
    assert result.frontier[["new", "old"]].to_numpy().min() >= 0


def test_new_tasks_may_be_told_in_another_form_than_earlier_ones(pocket, monkeypatch):
    seen, shots = {}, PromptRecipe(instruction=None, n_shots=2)

    def exam(model, asked, *, recipe, **more):
        seen.update(recipe)
        raise InterruptedError

    made = running.training_set
    monkeypatch.setattr(
        running, "training_set", lambda *args, **more: seen.update(data=more["recipe"]) or made(*args, **more)
    )
    monkeypatch.setattr(running, "make_exam", exam)
    with pytest.raises(InterruptedError):
        run_study(replace(TINY, recipe=shots, training=PromptRecipe()), model=pocket)
    assert seen == {"data": PromptRecipe(), "middle_of_three": PromptRecipe()} | dict.fromkeys(TINY.earlier, shots)
    assert replace(TINY, recipe=shots).told == shots


def test_options_of_the_command():
    amounts = StudyAmounts(general=("synonym",), instructed=True, guidance=("heads",))
    options = _options("pocket", ("antonym", "country_capital"), (), amounts, PromptOptions(n_shots=5, seed=2))
    assert options.general == ("synonym",) and options.guidance == ("none", "heads") and options.seed == 2
    assert options.recipe == PromptRecipe(n_shots=5, seed=2)
    assert options.training == PromptRecipe(seed=2) and options.new == StudyOptions().new
    assert _options("pocket", (), (), StudyAmounts(), PromptOptions(n_shots=5)).training is None


def frontier(**courses):
    rows = [
        {"guidance": name.replace("_zero", "/zero_vector"), "task": "new", "step": 10 * step, "new": new, "old": old}
        for name, course in courses.items()
        for step, (new, old) in enumerate(course, 1)
    ]
    return pd.DataFrame(rows)


def test_equal_scores_take_the_first_step_that_is_good_enough():
    found = frontier(none=[(0.2, 0.9), (0.6, 0.5), (0.8, 0.1)], iv=[(0.1, 0.9), (0.5, 0.8), (0.7, 0.7)])
    equal = equal_scores(found).set_index("guidance")
    assert equal["wanted"].tolist() == pytest.approx([0.6, 0.6])  # 0.75 of plain training's best
    assert equal["step"].tolist() == [20, 30] and equal["old"].tolist() == [0.5, 0.7]
    assert equal_evidence(found).set_index("name")["value"]["equal"] == pytest.approx(0.2)


def test_held_heads_are_compared_with_random_ones_at_equal_scores():
    found = frontier(none=[(0.8, 0.1)], heads=[(0.3, 0.9), (0.7, 0.6)])
    assert "equal_heads" not in set(equal_evidence(found)["name"])
    other = frontier(random=[(0.65, 0.2)]).assign(guidance="heads/random_heads")
    value = equal_evidence(pd.concat([found, other])).set_index("name")["value"]
    assert value["equal_heads"] == pytest.approx(0.4) and value["reached_heads"] == 1.0


def test_a_training_that_never_gets_there_has_failed():
    found = frontier(none=[(0.8, 0.3)], iv=[(0.5, 0.9)], iv_zero=[(0.5, 0.9)])
    values = equal_evidence(found).set_index("name")["value"]
    assert values["equal"] == pytest.approx(-0.3) and values["reached_iv"] == 0.0 and values["old_iv"] == 0.0
    assert "equal_vector" not in values  # its control failed: there is nothing to compare
    assert equal_evidence(frontier(none=[(0.0, 0.5)], iv=[(0.0, 0.5)])).query("name == 'equal'").empty


def test_the_place_of_a_cosine():
    assert iv_place(0.9, 0.8, 1.0) == pytest.approx(0.5)
    assert iv_place(0.7, 0.8, 1.0) < 0 and iv_place(0.9, 1.0, 1.0) != iv_place(0.9, 1.0, 1.0)  # NaN


def test_studies_of_older_versions_lack_claims_and_get_no_verdict_on_them():
    assert "equal" not in claims(FELL) and "cosine" not in claims(FELL)
    found = claims({**FELL, "reached_none": [0.0] * 8, "iv_place": [0.9] * 8})
    assert found["cosine"] == "seen" and found["equal"] == "not testable here"


@pytest.mark.slow
def test_a_study_leaves_what_others_keep_in_its_store(pocket, tmp_path, monkeypatch):
    """Neither are records of an interrupted study with other options read, nor is anything else removed at the end."""
    from ivlens.analysis.dynamics import Recorder

    one = replace(TINY, guidance=("none",))
    other, record = replace(one, n_records=1), Recorder.__call__

    def interrupted(recorder, step, model):
        record(recorder, step, model)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recorder, "__call__", interrupted)
        run_study(one, model=pocket, folder=tmp_path)
    store = Store(tmp_path / "store")
    store.put({"kind": "cell"}, lambda folder: pd.DataFrame({"x": [1]}).to_parquet(folder / "table.parquet"))
    found = run_study(other, model=pocket, folder=tmp_path)
    assert [stage.step for stage in found.dynamics.stages] == [0, 2]
    write_study(found, tmp_path)
    kept = [(entry.kind, entry.what.get("step")) for entry in store.entries()]
    others = [("answers", None), ("cell", None), ("general", None), ("probe", None), ("stage", 0), ("stage", 1)]
    assert sorted(kept, key=str) == others, "of the study with other options, and the cell"
    assert not store.work(training_key(study_facts(found.model, other), "none")).exists()


@pytest.mark.slow
def test_an_interrupted_study_goes_on_to_the_same_result(pocket, result, tmp_path, monkeypatch):
    """Interrupted before its last training, it repeats neither the others nor what was measured between them."""
    from ivlens.tuning.loop import Trainer

    said, steps, probed, tested = [], [], [], []
    trained, measured = Trainer._step, running.probe
    for name in ("causal_tests", "transplant", "splice", "measure_stage"):
        own = getattr(running, name)
        monkeypatch.setattr(
            running, name, lambda *args, _own=own, _name=name, **more: tested.append(_name) or _own(*args, **more)
        )
    monkeypatch.setattr(Trainer, "_step", lambda *given: steps.append(1) or trained(*given))
    monkeypatch.setattr(running, "probe", lambda *given: probed.append(1) or measured(*given))

    def interrupt(text):
        said.append(text)
        if text.endswith("iv/zero_vector") and len(steps) < 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(TINY, model=pocket, folder=tmp_path, say=interrupt)
    assert len(steps) == 4 and len(probed) == 3  # of `none` and `iv`; of the model before, too
    assert Counter(tested) == dict(causal_tests=2, transplant=2, splice=2, measure_stage=1)  # for each earlier task
    steps.append(0)
    found = run_study(TINY, model=pocket, folder=tmp_path, say=interrupt)
    assert len(steps) == 1 + 3 * 2 and len(probed) == 4 and len(tested) == 7
    tables = ("causal", "transplants", "splices", "evidence", "answers", "general", "frontier", "new_scores")
    for name in tables:  # read from the store, or from logs
        pd.testing.assert_frame_equal(getattr(found, name), getattr(result, name))
    write_study(found, tmp_path)
    assert not (tmp_path / "unfinished").exists() and (tmp_path / "evidence.parquet").exists()


def test_evidence_agrees_with_the_tables(result):
    value = result.evidence.set_index(["name", "task"])["value"]
    table = result.forgetting.query("measure == 'seq_prob'").set_index("task")
    for task in TINY.earlier:
        assert value["excess", task] == pytest.approx(table.loc[task, "excess"])
        assert value["instruction_drop", task] == pytest.approx(table.loc[task, "instruction_drop"])
        causal = result.causal.query("test == 'read' and task == @task").set_index("condition")
        assert value["read_iv", task] == pytest.approx(causal.loc["iv", "accuracy"])
        strongest = causal.index[causal["strongest"]][0]
        assert value["read_lead", task] == pytest.approx(
            causal.loc["iv", "accuracy"] - causal.loc[strongest, "accuracy"], abs=1e-6
        )
        assert value["kept_none", task] == 0.0
        for into, what, sign in (("after", "restored", 1), ("before", "destroyed", -1)):
            rows = result.transplants
            own = rows[(rows["into"] == into) & (rows["task"] == task)].set_index("heads")["accuracy"]
            assert {heads: value[f"{what}_{heads}", task] for heads in own.index} == own.to_dict()
            assert value[f"{what}_lead", task] == pytest.approx(sign * (own["vector"] - own["random"]))


def test_heads_and_blocks_are_exchanged_between_the_first_and_the_tuned_model(result, pocket):
    first = result.dynamics.stages[0]
    for task in TINY.earlier:
        swapped = result.transplants.query("task == @task")
        (vector,) = set(swapped.loc[swapped["heads"] == "vector", "of"])
        assert vector == " ".join(f"L{layer}H{head}" for layer, head in first.vector(task).heads)
        assert set(swapped["k"]) == {0, TINY.k, 48} and set(swapped.loc[swapped["heads"] == "random", "n_sets"]) == {2}
        spliced = result.splices.query("task == @task and lower == 'after'").set_index("layer")
        assert [*spliced.index] == [*range(pocket.cfg.n_layers + 1)]
        own = swapped.query("into == 'before' and heads == 'own'")
        assert spliced.loc[0, "prob"] == pytest.approx(float(own["prob"].iloc[0]), abs=1e-5)


def test_files(result, tmp_path):
    paths = write_study(result, tmp_path, also=lambda folder: write_page(result, folder / "index.html"))
    assert {"evidence.parquet", "dynamics_heads.parquet", "index.html", "step-000002.safetensors"} <= {
        path.name for path in paths
    }
    assert pd.read_parquet(tmp_path / "causal.parquet").equals(result.causal)
    assert pd.read_parquet(tmp_path / "transplants.parquet").equals(result.transplants)
    json.dumps(about(result))


def test_page_needs_nothing_else(result):
    text = page(result)
    scripts = sorted(re.findall(r"<script[^>]*>.*?</script>", text, flags=re.DOTALL), key=len)
    own = text.replace(scripts[-1], "")
    assert not re.search(r"https?://|<link|@import|url\(|\ssrc=", own)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', own, flags=re.DOTALL)[1])
    assert set(figures) == set(re.findall(r'data-figure="([\w-]+)"', own))
    assert all(set(themes) == {"light", "dark"} for themes in figures.values())
    assert "no evidence about large models" in own and "cover one base model" in own
    assert "$" not in re.sub(r"<script.*?</script>", "", own, flags=re.DOTALL)
    assert own.count("<td class=verdict>") == 14
    linked = set(re.findall(r'href="([^"]+)[.]parquet"', own))
    assert linked == {"claims", *TABLES, "dynamics_tasks", "dynamics_heads"}


def test_the_page_says_in_which_form_the_model_was_trained(result):
    shown = PromptRecipe(instruction=None, n_shots=2)
    other = replace(result, options=replace(result.options, training=shown))
    assert "trained and judged on new tasks with" not in page(result)
    assert f"trained and judged on new tasks with {shown}" in html.unescape(page(other))


def test_a_general_task_without_a_number_does_not_hide_the_others(result):
    blank = result.general.assign(value=lambda table: table["value"].where(table["task"] != "noun_kind"))
    assert blank["value"].isna().sum() == 8 and "nan" not in page_general(replace(result, general=blank))
    alone = blank[blank["task"] != "synonym"]
    assert page_general(replace(result, general=alone)).count("–") == 8  # two measures of four models


# ---- verdicts


def claims(values, r2=(0.1, 0.0, 0.2), column="verdict"):
    rows = [
        {"name": name, "task": f"t{n}", "value": value} for name, each in values.items() for n, value in enumerate(each)
    ]
    names = ("activation_cosine", "step", "distance")
    scores = zip(names, (r2, (0.3, 0.2, 0.4), (0.2, 0.1, 0.3)), strict=True)
    predictors = pd.DataFrame(
        [
            {"predictor": name, "r2": r[0], "r2_lo": r[1], "r2_hi": r[2], "r2_in_sample": r[0], "n": 9}
            for name, r in scores
        ]
    )
    return claim_table({"run": pd.DataFrame(rows)}, predictors).set_index("claim")[column]


FELL = {"accuracy_drop": [0.5, 0.6] * 4, "instruction_drop": [0.5, 0.6] * 4}


@pytest.mark.parametrize(
    "name, quantity, values, verdict",
    [
        ("instruction", "excess", [1.0, 2.0], "seen"),
        ("instruction", "excess", [0.4, 2.0], "undecided"),
        ("instruction", "excess", [0.1, 0.4], "not seen"),
        ("cosine", "iv_place", [0.62, 0.65], "seen"),
        ("cosine", "iv_place", [0.3, 0.4], "not seen"),
        ("equal", "equal", [0.06, 0.1], "seen"),
        ("equal_vector", "equal_vector", [-0.1, 0.04], "not seen"),
        ("equal_rehearsal", "equal_rehearsal", [0.0, 0.3], "undecided"),
        ("equal_heads", "equal_heads", [0.06, 0.2], "seen"),
        ("reinjection", "reinjection_lead", [0.04, 0.2], "undecided"),
        ("guidance", "kept_iv", [0.6, 0.7], "seen"),
    ],
)
def test_margins(name, quantity, values, verdict):
    assert (
        claims({**FELL, "reached_none": [1.0] * 8, "reached_heads": [1.0] * 8, quantity: values * 4})[name] == verdict
    )


def test_two_tasks_decide_nothing():
    assert claims({**FELL, "excess": [1.0, 2.0]})["instruction"] == "undecided"
    assert claims({**FELL, "excess": [1.0, 2.0] * 3})["instruction"] == "seen"


def test_nothing_to_see_where_nothing_was_lost():
    kept = {
        "accuracy_drop": [0.0, 0.1],
        "instruction_drop": [0.0, 0.05],
        "iv_place": [0.99, 0.98],
        "excess": [1.0, 1.0],
    }
    found = claims(kept)
    assert found["cosine"] == found["instruction"] == found["reinjection"] == "not testable here"
    assert found["large"] == "not testable here"
    why = claims(kept, column="why")
    assert why["cosine"] == why["prediction"] == "accuracy drop 0.05, needed 0.2"
    assert why["instruction"] == "instruction drop 0.03, needed 0.1" and why["large"] == "it is about other models"
    why = claims(FELL | {"excess": [1.0, 1.0]}, column="why")
    assert why["instruction"] == "" and why["vector"] == "not measured, or not reached"


def test_overlaid_needs_both_tests():
    assert claims({**FELL, "write_lead": [0.5, 0.6] * 4, "read_lead": [0.5, 0.6] * 4})["overlaid"] == "seen"
    assert claims({**FELL, "write_lead": [0.5, 0.6] * 4, "read_lead": [0.0, 0.01] * 4})["overlaid"] == "not seen"
    assert claims({**FELL, "write_lead": [0.5, 0.6] * 4, "read_lead": [0.0, 0.6] * 4})["overlaid"] == "undecided"


def test_the_vector_itself_is_compared_with_its_control():
    found = {**FELL, "kept_iv": [3.0, 3.0], "kept_iv/zero_vector": [3.0, 3.0]}
    verdicts = claims(found)
    assert (verdicts["guidance"], verdicts["vector"]) == ("seen", "not seen")


def test_a_rival_that_predicts_better():
    assert claims(FELL, r2=(0.9, 0.8, 0.95))["prediction"] == "seen"
    assert claims(FELL, r2=(0.2, 0.1, 0.3))["prediction"] == "not seen"
    assert claims(FELL, r2=(0.6, 0.4, 0.7))["prediction"] == "undecided"


def test_what_no_study_can_be_made_of():
    with pytest.raises(ValueError, match="two or more earlier ones"):
        StudyOptions(earlier=("antonym",))
    with pytest.raises(ValueError, match="others that are new"):
        StudyOptions(new=("antonym",))
    with pytest.raises(ValueError, match="expected none first"):
        StudyOptions(guidance=("iv",))
    with pytest.raises(ValueError, match="n_records is 0"):
        StudyOptions(n_records=0)
    for name, given in (
        ("earlier", ("antonym", "antonym", "comparative")),
        ("new", ("second_letter", "second_letter")),
        ("general", ("synonym", "synonym")),
        ("guidance", ("none", "iv", "iv")),
    ):
        with pytest.raises(ValueError, match=f"{name} is .*expected each name once; leave out the second"):
            StudyOptions(**{name: given})


def test_tasks_that_cannot_be_measured_are_refused_before_the_training(pocket, tmp_path):
    def refused(**options):
        said = []
        with pytest.raises(ValueError) as error:
            run_study(replace(TINY, **options), model=pocket, say=said.append)
        assert not any("training" in text.split() and "on" in text.split() for text in said)
        return str(error.value)

    rows = [{"input": one.input, "output": list(one.answers)} for one in load_task("antonym").examples]
    (tmp_path / "antonym.json").write_text(json.dumps(rows[:60]))
    (tmp_path / "untold.json").write_text(json.dumps(rows[:60]))
    (tmp_path / "tiny.json").write_text(json.dumps(rows[:2]))
    assert "'nosuch' is unknown" in refused(general=("nosuch",))
    assert "antonym" in refused(earlier=("antonym", str(tmp_path / "antonym.json")))
    twice = (str(tmp_path / "untold.json"), str(tmp_path / "../" / tmp_path.name / "untold.json"))
    assert "holds a task twice" in refused(earlier=twice)
    assert "neither an instruction nor demonstrations" in refused(general=(str(tmp_path / "untold.json"),))
    assert "is empty" in refused(general=(str(tmp_path / "tiny.json"),))


def test_a_task_that_was_edited_is_measured_again(pocket, tmp_path, monkeypatch):
    """The options of a study name its tasks; what it keeps also depends on what the tasks hold."""
    asked = []
    for name in ("probe", "answers_said", "general_scores"):
        table = pd.DataFrame({"asked": [name]})
        monkeypatch.setattr(running, name, lambda *_, name=name, table=table, **__: asked.append(name) or table)
    store, places = Store(tmp_path / "store"), []
    antonym, other, new = load_task("antonym"), load_task("country_capital"), load_task("middle_of_three")
    for task in (antonym, antonym, replace(antonym, examples=antonym.examples[:100])):
        run = running._Run(pocket, [task, other], [new], [load_task("synonym")], TINY, store)
        run.ask("before", pocket)
        places.append(run._state("none", 0))
    assert asked == ["probe", "answers_said", "general_scores"] * 2
    assert places[0] == places[1] != places[2]


def test_too_many_heads_are_refused_before_anything_is_measured(pocket):
    said = []
    with pytest.raises(ValueError, match="k is 49, expected 1 to 48"):
        run_study(replace(TINY, k=49), model=pocket, say=said.append)
    assert said == ["the model before training"]


# ---- commands over a folder of checkpoints


@pytest.fixture(scope="module")
def checkpoints(pocket, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    options = TuneOptions(lr=5e-3, steps=4, batch_size=8, judge_every=4, n_prompts=2)
    finetune(pocket, load_task("second_letter"), options=options, along=Along(folder, checkpoint_every=2))
    return folder


def test_forget_command(checkpoints, tmp_path, capsys, monkeypatch):
    command = ["forget", str(checkpoints), "--task", "antonym", "--n-prompts", "3", "--out", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["rows"]
    assert [row["checkpoint"] for row in rows if row["task"] == "antonym"] == ["step-000002", "step-000004", "model"]
    last, end = (row for row in rows if row["task"] == "antonym" and row["checkpoint"] != "step-000002")
    assert last["instruction_after"] == pytest.approx(end["instruction_after"])  # the model is the last step's
    assert (tmp_path / "forgetting.html").exists()

    def probed(*args):
        raise ValueError("it is measured anew")

    monkeypatch.setattr("ivlens.analysis.forgetting.series.probe", probed)  # everything is kept
    assert main(command) == 0
    assert "knowledge before" in capsys.readouterr().out
    names = {"before", *(row["checkpoint"] for row in rows)}
    assert set(pd.read_parquet(tmp_path / "probes.parquet")["checkpoint"]) == names
    assert len(Store(tmp_path / "store").entries("probe")) == 3  # the model is the last step's
    assert main([*command, "--split", "select"]) == 2 and "measured anew" in capsys.readouterr().err


def test_a_difference_between_two_models_is_no_forgetting(pocket, checkpoint, tmp_path, capsys):
    command = ["forget", str(checkpoint), "--before", "pocket", "--task", "antonym", "--n-prompts", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "checkpoint 'checkpoint' is LlamaForCausalLM of 3 layers x 4 heads" in said
    assert "expected LlamaForCausalLM of 6 layers x 8 heads, d_model 128 as the model before" in said
    tables = [probe(pocket, [load_task("antonym")], ProbeOptions(n_prompts=2)) for _ in range(2)]
    tables[1].attrs["ivlens_shape"] = "another"
    with pytest.raises(ValueError, match="the model after is another, expected LlamaForCausalLM of 6 layers"):
        decomposition(*tables)


@pytest.mark.slow
def test_dynamics_command(checkpoints, tmp_path, capsys):
    command = ["dynamics", str(checkpoints), "--task", "antonym", "--task", "capitalize", "--n-prompts", "3"]
    command += ["--n-judge-prompts", "4", "--k", "4", "--causal", "--n-draws", "2", "--new", "second_letter", "--out"]
    assert main([*command, str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["checkpoint"] for row in found["tasks"]} == {"before", "step-000002", "step-000004", "model"}
    assert {row["test"] for row in found["causal"]} == {"write", "read", "reinjection", "subtraction"}
    names = ("tasks", "heads", "layers", "similarity", "causal")
    assert all((tmp_path / f"{name}.parquet").exists() for name in names)
    assert all((tmp_path / f"{name}.html").exists() for name in ("curves", "drift", "similarity", "causal"))
    kept = Store(tmp_path / "store")
    assert len(kept.entries("stage")) == 4 and len(kept.entries("causal")) == 1 and verify(kept)[0] == 5


def test_commands_say_what_is_missing(tmp_path, capsys):
    assert main(["forget", str(tmp_path / "nowhere")]) == 2
    assert "is no folder, expected one with checkpoints" in capsys.readouterr().err
    assert main(["dynamics", str(tmp_path)]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err
    (tmp_path / "state.safetensors").write_bytes(b"")
    assert main(["forget", str(tmp_path)]) == 2
    assert "holds a training that has not ended (no model/ yet)" in capsys.readouterr().err
    assert main(["dynamics", str(tmp_path), "--new", "second_letter"]) == 2
    assert "--new is 'second_letter' without --causal" in capsys.readouterr().err
    for command in (["forget", "x"], ["dynamics", "x"], ["study"]):
        assert main([*command, "--figures", "gif"]) == 2
        assert "gif" in capsys.readouterr().err, "a suffix is refused before anything is measured"
    assert main(["study", "--earlier", "antonym", "--out", str(tmp_path)]) == 2
    assert "two or more earlier ones" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        ("study --n-draws 0", "n_draws is 0, expected a whole number, 1 or more"),
        ("study --n-draws -1", "--n-draws is -1, expected 0 or more"),
        ("study --k 0", "k is 0, expected a whole number, 1 or more"),
        ("study --n-prompts 0", "n_prompts is 0, expected a whole number, 1 or more"),
        ("study --steps 2", "steps is 2 and n_records 3, expected no more records than steps"),
        ("study --lr nan", "lr is nan, expected a finite number"),
        ("study --method magic", "method is 'magic', expected one of full"),
        ("study --n-exam-prompts 0", "n_exam_prompts is 0, expected a whole number, 1 or more"),
        ("study --earlier antonym --earlier antonym", "earlier is antonym, antonym, expected each name once"),
        ("study --new nosuch", "Task 'nosuch' is unknown"),
        ("dynamics CHECKPOINTS --k 0", "--k is 0, expected a whole number, 1 or more"),
        ("dynamics CHECKPOINTS --n-prompts 0", "--n-prompts is 0, expected a whole number, 1 or more"),
        ("dynamics CHECKPOINTS --causal --n-draws 0", "n_draws is 0, expected a whole number, 1 or more"),
        ("dynamics CHECKPOINTS --causal --new nosuch", "Task 'nosuch' is unknown"),
        ("dynamics CHECKPOINTS --new second_letter", "without --causal, expected both"),
    ],
)
def test_commands_refuse_before_they_measure(checkpoints, words, said, tmp_path, capsys):
    command = [str(checkpoints) if word == "CHECKPOINTS" else word for word in words.split()]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err, err
    assert not (tmp_path / "out").exists()


def test_no_more_heads_than_the_model_has(checkpoints, tmp_path, capsys):
    command = ["dynamics", str(checkpoints), "--task", "antonym", "--k", "49", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "k is 49, expected 1 to 48 for this model" in capsys.readouterr().err
