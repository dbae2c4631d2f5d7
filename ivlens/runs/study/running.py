"""`run_study` measures every claim: training, forgetting, causal tests, and training again with guidance."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from ivlens.analysis.dynamics.causal import causal_tests
from ivlens.analysis.dynamics.predict import predictors
from ivlens.analysis.dynamics.recording import Recorder
from ivlens.analysis.dynamics.stages import Stage, measure_stage
from ivlens.analysis.forgetting.answers import answers_said
from ivlens.analysis.forgetting.drops import decomposition
from ivlens.analysis.forgetting.general import general_scores
from ivlens.analysis.forgetting.probabilities import probe
from ivlens.analysis.forgetting.series import probed
from ivlens.analysis.transplant.heads import transplant
from ivlens.analysis.transplant.several import tables_below
from ivlens.analysis.transplant.splicing import splice
from ivlens.common.names import path_of
from ivlens.common.progress import ticking
from ivlens.common.store.keys import content_key, versions
from ivlens.common.store.store import KEPT, Store
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.models.load import load_model
from ivlens.runs.study.frontier import COLUMNS, equal_evidence
from ivlens.runs.study.plan import PLAIN, StudyOptions, study_tasks
from ivlens.runs.study.results import StudyResult, below, evidence, label_of, study_facts, training_key
from ivlens.runs.suites.suite import for_training, split_examples
from ivlens.tasks.task import Task, TaskExample
from ivlens.tuning.builder import find_guidance, guidance_by_name
from ivlens.tuning.exams import Exam, make_exam, mean_score
from ivlens.tuning.learner import Learner
from ivlens.tuning.terms.measuring import effects_before
from ivlens.tuning.training.data import training_set
from ivlens.vectors.vector import InstructionVector

Say = Callable[[str], None]
_N_TEST = 64  # prompts of each new task at the end of a training


def run_study(
    options: StudyOptions | None = None,
    *,
    model: TransformerBridge | None = None,
    folder: str | Path | None = None,
    say: Say = lambda text: None,
) -> StudyResult:
    """Measure every claim of the paper on one model and one sequence of new tasks.

    1. Train on the new tasks without guidance; on the way measure vectors, heads and performance of the earlier tasks.
    2. Measure what was forgotten, the instruction or the knowledge, what the model says instead, and what it keeps of
       general abilities.
    3. Run the causal tests between the first model and the last one: write, read, re-injection, and subtraction of the
       new task's vector.
    4. Put outputs of the first model's heads into the last one and the other way round, and splice their blocks.
    5. Train again with each kind of guidance, and measure what it keeps.

    Args:
        model: A model that is open; None: `options.model` is loaded.
        folder: A store in this folder keeps trainings and measurements until `write_study` has written the result
            there. An interrupted study of the same model and options goes on from them. None: nothing is kept.
        say: Called with one line of text when a part of the work begins.

    Raises:
        ValueError: a task is unknown or cannot be measured, or an option does not suit the model.
    """
    start = time.perf_counter()
    options = options or StudyOptions()
    first = load_model(options.model) if model is None else model
    tasks = study_tasks(options)  # before the store, which makes its folder
    store = None if folder is None else Store(path_of(folder, "folder") / KEPT)
    run = _Run(first, *tasks, options, store)
    say("the model before training")
    kept = None if store is None else store.folder
    training = {"study": run.facts, "new": [task.full_hash() for task in run.new]}
    recorder = Recorder(first, run.earlier, options.track, folder=kept, training=training)
    run.ask("before", first)  # before the long part: a task that cannot be asked is found here
    tuned = run.train(PLAIN, recorder, say)
    dynamics = recorder.dynamics()
    say("instruction and knowledge")
    run.ask(PLAIN, tuned)
    say("causal tests")
    stages = dynamics.stages[0], dynamics.stages[-1]
    causal = run.tested(tuned, stages)
    say("heads and blocks of one model in the other")
    swapped, spliced = run.transplanted(tuned, stages[0])
    for name in options.guidance[1:]:
        run.ask(name, run.train(name, None, say))
    probes, said = run.asked["probes"], run.asked["answers"]
    frontier = pd.concat(run.judged, ignore_index=True)
    found = evidence(dynamics, probes, causal, swapped, said[PLAIN], options.guidance)
    return StudyResult(
        options=options,
        model=model_identity(first),
        dynamics=dynamics,
        probes=below(probes),
        answers=below(said),
        general=below(run.asked["general"]),
        forgetting=decomposition(probes["before"], probes[PLAIN]),
        causal=causal,
        transplants=swapped,
        splices=spliced,
        predictors=predictors(_after_the_start(dynamics.tasks)),
        new_scores=pd.DataFrame([{"guidance": name, **row} for name, row in run.scores.items()]),
        frontier=frontier,
        evidence=pd.concat([found, equal_evidence(frontier)], ignore_index=True),
        seconds=time.perf_counter() - start,
    )


def _after_the_start(tasks: pd.DataFrame) -> pd.DataFrame:
    """Rows of all checkpoints but the first model, which has cosine 1 and full performance by construction."""
    return tasks.loc[tasks["step"].to_numpy() > 0]


@dataclass
class _Run:
    """Trains and measures one model: a training on all new tasks for each kind of guidance.

    Attributes:
        asked: The tables of what every model was asked: `probes`, `answers` and `general`, each by the model's run.
        scores: Accuracy on each new task at the end, on *test*, by the guidance of the training.
        judged: A table for each training on a new task, see `StudyResult.frontier`.
        effects: Effects of the earlier tasks in the first model, by the number of prompts that guidance asks for.
    """

    model: TransformerBridge
    earlier: list[Task]
    new: list[Task]
    general: list[Task]
    options: StudyOptions
    store: Store | None
    asked: dict[str, dict[str, pd.DataFrame]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    judged: list[pd.DataFrame] = field(default_factory=list)
    effects: dict[int, dict[str, HeadEffects]] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the study depends on."""
        return study_facts(model_identity(self.model), self.options)

    @property
    def content(self) -> str:
        """A key of what the tasks hold, which the options do not say: a file may be edited before a study goes on."""
        return content_key({"tasks": [task.full_hash() for task in (*self.earlier, *self.new, *self.general)]})

    def ask(self, name: str, model: TransformerBridge) -> None:
        """Measure what a model knows, says and keeps; what is in the store already is read from there."""
        options, known = self.options, {"model": model_identity(model).key}
        n, seed = options.n_exam_prompts, options.recipe.seed
        found = {
            "probes": self._kept(
                probed(known, self.earlier, options.probe), lambda: probe(model, self.earlier, options.probe)
            )
        }
        ways: dict[str, Callable[[], pd.DataFrame]] = {
            "answers": lambda: answers_said(model, self.earlier, self.new, options.probe),
            "general": lambda: general_scores(model, self.general, n_prompts=n, seed=seed),
        }
        for kind, way in ways.items():
            found[kind] = self._kept(self._own(kind) | known, way)
        for part, table in found.items():
            self.asked.setdefault(part, {})[name] = table

    def _kept(self, what: Mapping[str, Any], made: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table of this description in the store; where there is none, it is made and kept."""
        return made() if self.store is None else self.store.table(what, made, label_of(self.facts))

    def _own(self, kind: str) -> dict[str, Any]:
        """What every description in the store of a table begins with that is made for this study alone."""
        return {"kind": kind, "study": self.facts, "tasks": self.content, **versions()}

    def tested(self, tuned: TransformerBridge, stages: tuple[Stage, Stage]) -> pd.DataFrame:
        """The table of all causal tests between the first model and the tuned one, each task kept once it is done."""
        options, last = self.options, self.new[-1]

        @cache
        def new() -> InstructionVector:
            return measure_stage(tuned, [for_training(last)], options.track, first=self.model).vector(last.name)

        def test(task: Task) -> pd.DataFrame:
            found = causal_tests(self.model, tuned, stages, [task], new=new(), options=options.causal)
            return tables_below([one.frame() for one in found])

        known = self._own("causal") | {"model": model_identity(tuned).key}
        return tables_below(
            [
                self._kept(known | {"task": task.name}, partial(test, task))
                for task in ticking(self.earlier, "causal tests", "tasks")
            ]
        )

    def transplanted(self, tuned: TransformerBridge, first: Stage) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The tables of transplants and of splices between the first model and the tuned one, for all earlier tasks."""
        options = self.options
        blocks = options.splice(self.model.cfg.n_layers)
        asked = {"recipe": options.recipe, "n_prompts": options.n_judge_prompts}
        known = {kind: self._own(kind) | {"model": model_identity(tuned).key} for kind in ("transplant", "splice")}

        def swap(task: Task) -> pd.DataFrame:
            vector = first.vector(task.name)
            return transplant(self.model, tuned, task, vector, **asked, options=options.transplant).table

        def join(task: Task) -> pd.DataFrame:
            return splice(self.model, tuned, task, **asked, options=blocks).table

        found: dict[str, list[pd.DataFrame]] = {"transplant": [], "splice": []}
        for task in ticking(self.earlier, "transplants", "tasks"):
            for kind, made in (("transplant", swap), ("splice", join)):
                table = self._kept(known[kind] | {"task": task.name}, partial(made, task))
                found[kind].append(table.assign(task=task.name))
        return tables_below(found["transplant"]), tables_below(found["splice"])

    def _state(self, name: str, number: int) -> Path | None:
        """The folder for the state of the training on one new task; None without a store.

        Its key has all options, as the training depends on all trainings before it, and all tasks, as it is judged.
        """
        if self.store is None:
            return None
        return self.store.work(training_key(self.facts, name)) / self.content / str(number)

    def train(self, name: str, recorder: Recorder | None, say: Say) -> TransformerBridge:
        """Train on all new tasks with one guidance, and note how each of them went; returns the model."""
        options = self.options
        learner = Learner(self.model, options.method)
        every = max(1, options.steps // options.n_records)  # steps between two records
        for number, task in enumerate(self.new):
            say(f"training on {task.name}, guidance {name}")
            guidance = None
            own, before = for_training(task), [for_training(one) for one in self.new[:number]]
            if find_guidance(name)[0] is not None:
                guidance = guidance_by_name(
                    name,
                    learner.bridge(),
                    own,
                    recipe=options.recipe,
                    earlier=[*self.earlier, *before],
                    # before the first new task the model is the same for all kinds of guidance
                    effects=self._effects_for(name) if number == 0 else None,
                    seed=options.seed,
                )
            data = training_set(
                self.model, own, own.examples, recipe=options.told, n_samples=options.n_samples, seed=options.seed
            )
            if recorder is not None:
                recorder.offset = number * options.steps

            # the recorder opens the model as a bridge, which is slow, so only at steps that it records
            def record(row: dict[str, float | int]) -> None:
                if recorder is not None and int(row["step"]) % every == 0:
                    recorder(int(row["step"]), learner.bridge())

            state, judge = self._state(name, number), self._judge(task)
            log = learner.learn(data, options.tune, guidance, on_step=record, folder=state, judge=judge)
            steps = log.loc[log["new"].notna(), ["step", "new", "old"]]
            self.judged.append(steps.assign(guidance=name, task=own.name)[list(COLUMNS)])
        asked = [(for_training(task), split_examples(task, "test")) for task in self.new]
        self.scores[name] = self._exam(asked, _N_TEST).sit(learner.trained)
        return learner.bridge()

    def _effects_for(self, guidance: str) -> dict[str, HeadEffects]:
        """Effects of the earlier tasks in the first model, if the guidance chooses heads by them; measured once."""
        plan, _ = find_guidance(guidance)
        if plan is None or not any(term.needs_heads for term in plan.terms):
            return {}
        if plan.n_prompts not in self.effects:
            self.effects[plan.n_prompts] = {
                task.name: effects_before(self.model, task, self.options.recipe.for_other_tasks(), plan.n_prompts)
                for task in self.earlier
            }
        return self.effects[plan.n_prompts]

    def _judge(self, task: Task) -> Callable[[nn.Module], dict[str, float]]:
        """A function that gives a model's accuracy on a new task and its mean one on the earlier tasks, on *select*."""
        old = [(one, one.split("select", self.options.recipe.seed)) for one in self.earlier]
        new = (for_training(task), split_examples(task, "select"))
        exam = self._exam([new, *old], self.options.n_exam_prompts)

        def judge(model: nn.Module) -> dict[str, float]:
            found = exam.sit(model)
            return {"new": found.pop(task.name), "old": mean_score(found)}

        return judge

    def _exam(self, asked: Sequence[tuple[Task, Sequence[TaskExample]]], n_prompts: int) -> Exam:
        recipe, new = self.options.recipe, {task.name for task in self.new}
        recipes = {task.name: self.options.told if task.name in new else recipe for task, _ in asked}
        return make_exam(self.model, asked, recipe=recipes, n_prompts=n_prompts, seed=recipe.seed)
