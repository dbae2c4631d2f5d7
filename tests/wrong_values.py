"""Every parameter of every public name, given what does not belong there. A harness for the tests and the benches.

    python tests/wrong_values.py [NAME ...] [--every N] [--show]

Each call has one parameter wrong and all others right. It must end in a right result or in one error that ivlens raises
itself, which names the parameter and says what was expected. It runs in a process of its own, so that arguments are as
users have them: the tests' type checks would catch them first.
"""

import argparse
import collections
import contextlib
import inspect
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from conftest import byte_level_tokenizer, tiny_task
from families import hf_model
from fuzz_inputs import make_suite
from fuzzing import PACKAGE, Hang, silence, time_limit

import ivlens
from ivlens.analysis.attention import AblationOptions, AttentionOptions, ScoreOptions
from ivlens.analysis.dynamics import TrackOptions, measure_stage
from ivlens.analysis.forgetting import ProbeOptions, answers_said, general_scores, probe
from ivlens.analysis.inside import LensOptions, PlaceOptions
from ivlens.analysis.transplant import SpliceOptions, TransplantOptions
from ivlens.out import export_vector
from ivlens.steering.summary import Judged, accuracy_only
from ivlens.tasks import check_task
from ivlens.tuning import Along, TuneOptions

# options that are no names of `ivlens` itself
OPTIONS = (Along, TuneOptions, ProbeOptions, TrackOptions, AttentionOptions, ScoreOptions, AblationOptions)
OPTIONS += (TransplantOptions, SpliceOptions)
LONGEST, SECONDS, GROWTH_GB = 250, 10.0, 2.0
MOST_USED = {  # of README and the first pages of the documentation
    "load_model", "load_task", "head_effects", "measure_again", "find_prompts", "evaluate_intervention", "steer", "lab",
    "finetune", "build_prompts", "sweep_settings", "mean_head_outputs", "list_tasks", "EffectOptions", "JudgeOptions",
    "Grid", "PromptRecipe", "PromptTemplate", "Task", "TaskExample", "Setting", "InstructionVector.from_effects",
    "InstructionVector.load", "InstructionVector.save", "HeadEffects.load", "HeadEffects.save", "HeadEffects.top_heads",
    "TuneOptions", "probe", "measure_stage", "train_vector", "TrainedOptions",
}  # fmt: skip


@dataclass
class Things:
    """What right calls are made of: a model of two layers, a task, its effects and vector, files, folders."""

    root: Path
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        plain = hf_model("llama", n_ctx=64)
        plain.save_pretrained(self.root / "model")
        self.tokenizer = byte_level_tokenizer()
        self.model = ivlens.load_model(hf_model=plain, tokenizer=self.tokenizer)
        self.copy = ivlens.load_model(hf_model=hf_model("llama", n_ctx=64), tokenizer=self.tokenizer)
        self.tokenizer.save_pretrained(self.root / "model")
        for step in ("step-1", "step-2"):
            shutil.copytree(self.root / "model", self.root / "series" / step)
        self.task, self.other = tiny_task(), tiny_task("synonym", "Give a synonym.", 2)
        told = {"instruction": "Say it."}
        records = [told | {"input": one.input, "output": one.answer} for one in self.task.examples]
        (self.root / "task.json").write_text(json.dumps(records))
        self.suite = make_suite("func", self.root / "suite")
        quick = ivlens.EffectOptions(n_mean_prompts=4, n_check_prompts=0)
        self.effects = ivlens.head_effects(self.model, self.task, n_prompts=4, corruption="drop", options=quick)
        self.iv = ivlens.InstructionVector.from_effects(self.effects, k=2)
        self.scores = ivlens.head_scores(self.model, ScoreOptions(length=4, n_sequences=2))
        self.effects.save(self.root / "effects.safetensors")
        self.iv.save(self.root / "vector.safetensors")
        self.setting = ivlens.Setting(0, 1.0, "resid_post")
        self.batch = ivlens.build_prompts(self.tokenizer, self.task, self.task.examples[:3])
        self.search = ivlens.find_prompts(self.model, self.task, templates=["plain"], shots=[0], n_prompts=2)
        self.judge = ivlens.JudgeOptions(other_vectors=(), means=self.effects)
        self.evaluation = ivlens.evaluate_intervention(
            self.model, self.task, self.iv, at=self.setting, n_prompts=2, n_draws=1, options=self.judge
        )
        self.lesson: dict[str, Any] = {"steps": 1, "layers": (0,), "norms": (1.0,), "n_fit": 2, "n_select": 2}
        self.trained = ivlens.train_vector(self.model, self.task, options=ivlens.TrainedOptions(**self.lesson))
        self.judged = Judged("iv", accuracy_only(torch.ones(3)), ("x",), (self.setting,), has_probs=False)


def wrong_values(things: Things) -> dict[str, Callable[[], Any]]:
    """By name; each is made anew for every call."""
    array, plain = np.array, torch.tensor
    return {
        "None": lambda: None, "object": object, "empty": str, "blank": lambda: " ", "text": lambda: "no such thing",
        "control": lambda: "a\0b\n", "long text": lambda: "x" * 100_000, "bytes": lambda: b"bytes",
        "True": lambda: True, "False": lambda: False, "nan": lambda: float("nan"), "inf": lambda: float("inf"),
        "-inf": lambda: -float("inf"),
        "-1": lambda: -1, "0": lambda: 0, "2": lambda: 2, "1e9": lambda: 10**9, "10**400": lambda: 10**400,
        "2.5": lambda: 2.5, "complex": lambda: 1j, "int64": lambda: np.int64(2), "float32": lambda: np.float32(0.5),
        "float64 nan": lambda: np.float64("nan"), "bool_": lambda: np.bool_(True), "tensor 2": lambda: plain(2),
        "tensor 0.5": lambda: plain(0.5), "tensor": lambda: torch.zeros(3), "array": lambda: array([1.0, 2.0]),
        "array of text": lambda: array(["a", "b"]), "list": list, "dict": dict, "tuple": tuple, "nested": lambda: [[1]],
        "list of None": lambda: [None], "list of text": lambda: ["a", "b"], "list of bools": lambda: [True],
        "list of nan": lambda: [float("nan")], "mapping": lambda: {"a": 1}, "set": lambda: {1, 2},
        "generator": lambda: (n for n in range(3)), "range": lambda: range(3), "function": lambda: len,
        "class": lambda: int, "error": lambda: ValueError("x"), "nowhere": lambda: Path("nowhere/at/all"),
        "folder": lambda: things.root / "suite", "model": lambda: things.model,
        "plain": lambda: things.model.original_model,
        "task": lambda: things.task, "vector": lambda: things.iv, "effects": lambda: things.effects,
        "setting": lambda: things.setting, "recipe": ivlens.PromptRecipe, "tokens": lambda: things.batch.tokens,
    }  # fmt: skip


Call = tuple[Callable[..., Any], Callable[[], dict[str, Any]]]


def calls(the: Things) -> dict[str, Call]:
    """By public name: what is called with right arguments, and a maker of these.

    Options are tried where they are used: making them may succeed, and the call that takes them fail.
    """
    model, task, effects, iv, at = the.model, the.task, the.effects, the.iv, the.setting
    quick: dict[str, Any] = {"n_mean_prompts": 4, "n_check_prompts": 0}

    def effects_with(**options: Any) -> Any:
        return ivlens.head_effects(
            model, task, corruption="drop", n_prompts=2, options=ivlens.EffectOptions(**quick | options)
        )

    def judged_with(**options: Any) -> Any:
        return ivlens.evaluate_intervention(
            model, task, iv, at=at, n_prompts=2, n_draws=1,
            options=ivlens.JudgeOptions(**{"other_vectors": (), "means": effects} | options),
        )  # fmt: skip

    def more_with(**options: Any) -> Any:
        few = {"rows": ("necessity", "by_k"), "ks": (1,), "n_draws": 1, "n_mean_prompts": 2, "n_others": 1}
        return judged_with(more=ivlens.MoreRows(**few | options))

    def searched_with(**options: Any) -> Any:
        grid = ivlens.Grid(**{"layers": [0], "alphas": (1.0,), "sites": ("resid_post",)} | options)
        return ivlens.sweep_settings(model, task, iv, grid=grid, n_prompts=2)

    def trained_with(**options: Any) -> Any:
        return ivlens.train_vector(model, task, options=ivlens.TrainedOptions(**the.lesson | options))

    def asked_with(**options: Any) -> Any:
        return ivlens.build_prompts(the.tokenizer, task, task.examples[:2], ivlens.PromptRecipe(**options))

    def written_with(**options: Any) -> Any:
        template = ivlens.PromptTemplate(**{"name": "mine"} | options)
        return ivlens.build_prompts(the.tokenizer, task, task.examples[:2], ivlens.PromptRecipe(template=template))

    def task_with(**options: Any) -> Any:
        made = ivlens.Task(**{"name": "mine", "examples": task.examples, "instructions": ("Do it.",)} | options)
        made.content_hash(), made.full_hash(), made.find("big"), made.split("fit")
        return ivlens.build_prompts(the.tokenizer, made, made.examples[:2], corruption="none")

    def example_with(**options: Any) -> Any:
        one = ivlens.TaskExample(**{"input": "big", "answers": ("small",)} | options)
        made = ivlens.Task("mine", (one, *task.examples[1:]), ("Do it.",))
        made.content_hash(), made.full_hash()
        return ivlens.build_prompts(the.tokenizer, made, [one])

    def steered(**options: Any) -> Any:
        with ivlens.steer(**options):
            return model(the.batch.tokens, attention_mask=the.batch.attention_mask)

    def steered_rows(**options: Any) -> Any:
        with ivlens.steer_rows(**options):
            return model(the.batch.tokens, attention_mask=the.batch.attention_mask)

    def steered_at(**options: Any) -> Any:
        return steered(
            model=model, iv=iv, at=ivlens.Setting(**{"layer": 0, "alpha": 1.0, "site": "resid_post"} | options)
        )

    def shown(shown: Any = True) -> Any:
        with ivlens.showing_progress(shown):
            return None

    def tuned(**options: Any) -> Any:
        short = TuneOptions(steps=1, batch_size=2, n_samples=2, n_prompts=2, lr=1e-3)
        return ivlens.finetune(**{"options": short, "method": "full"} | options)

    def tuned_with(**options: Any) -> Any:
        short: dict[str, Any] = {"steps": 1, "batch_size": 2, "n_samples": 2, "n_prompts": 2, "lr": 1e-3}
        return ivlens.finetune(model, task, method="full", options=TuneOptions(**short | options))

    def along_with(**options: Any) -> Any:
        return tuned(model=model, task=task, along=Along(**options))

    def probed_with(**options: Any) -> Any:
        return probe(model, [task], ProbeOptions(**{"n_prompts": 2} | options))

    def tracked_with(**options: Any) -> Any:
        return measure_stage(model, [task], TrackOptions(**{"n_prompts": 2, "k": 1, "n_judge_prompts": 2} | options))

    def watched_with(**options: Any) -> Any:
        few: dict[str, Any] = {"scores": None, "corruptions": ()}
        return ivlens.head_attention(model, task, [(0, 1)], n_prompts=2, options=AttentionOptions(**few | options))

    def scored_with(**options: Any) -> Any:
        return ivlens.head_scores(model, ScoreOptions(**{"length": 4, "n_sequences": 2} | options))

    def read_with(**options: Any) -> Any:
        return ivlens.logit_lens(model, "big", options=LensOptions(**options))

    def placed_with(**options: Any) -> Any:
        return ivlens.patch_places(model, task, layers=[0], n_prompts=1, options=PlaceOptions(**options))

    def ablated_with(**options: Any) -> Any:
        few: dict[str, Any] = {"k": 2, "n_draws": 1, "n_mean_prompts": 2, "corruption": "drop"}
        return ivlens.ablate_heads(
            model, task, effects, scores=the.scores, n_prompts=2, options=AblationOptions(**few | options)
        )

    def transplanted_with(**options: Any) -> Any:
        few: dict[str, Any] = {"ks": (1,), "n_draws": 1}
        chosen = TransplantOptions(**few | options)
        return ivlens.transplant(model, the.copy, task, effects, n_prompts=2, options=chosen)

    def spliced_with(**options: Any) -> Any:
        return ivlens.splice(model, the.copy, task, n_prompts=2, options=SpliceOptions(**options))

    def picked(k: Any = 10) -> Any:
        # as in a notebook, without one
        with patch("ivlens.show.picking.opening._is_notebook", lambda: True), patch("panel.extension"):
            return effects.pick(k)

    own = {"model": model, "task": task}
    prompts = {"model": model, "tokens": the.batch.tokens, "attention_mask": the.batch.attention_mask}
    vector, found = ivlens.InstructionVector, ivlens.HeadEffects
    of_effects = {name: getattr(effects, name) for name in inspect.signature(found).parameters}
    of_vector = {name: getattr(iv, name) for name in inspect.signature(vector).parameters}
    of_search = {name: getattr(the.search, name) for name in inspect.signature(ivlens.PromptSearch).parameters}
    of_trained = {name: getattr(the.trained, name) for name in inspect.signature(ivlens.TrainedVector).parameters}
    recipe = ivlens.PromptRecipe()

    def used(made: Any) -> Any:
        """A result that was made by hand, looked at."""
        return repr(made), str(made)

    return {
        "load_model": (ivlens.load_model, lambda: {"name": the.root / "model"}),
        "load_model, in memory": (ivlens.load_model, lambda: {
            "hf_model": hf_model("llama", n_ctx=64), "tokenizer": the.tokenizer
        }),
        "load_task": (ivlens.load_task, lambda: {"name_or_path": the.root / "task.json"}),
        "check_task": (check_task, lambda: {"name_or_path": the.root / "task.json"}),
        "list_tasks": (ivlens.list_tasks, dict),
        "load_suite": (ivlens.load_suite, lambda: {"name": "func", "folder": the.suite, "partial": True}),
        "pocket_path": (ivlens.pocket_path, dict),
        "showing_progress": (shown, dict),
        "head_effects": (ivlens.head_effects, lambda: {
            **own, "corruption": "drop", "n_prompts": 2, "options": ivlens.EffectOptions(**quick)
        }),
        "EffectOptions": (effects_with, dict),
        "head_attention": (ivlens.head_attention, lambda: {**own, "heads": ["L0H1"], "n_prompts": 2}),
        "AttentionOptions": (watched_with, dict),
        "head_scores": (ivlens.head_scores, lambda: {"model": model}),
        "ScoreOptions": (scored_with, dict),
        "logit_lens": (ivlens.logit_lens, lambda: {"model": model, "prompts": ["big", "small"], "iv": iv, "at": at}),
        "LensOptions": (read_with, dict),
        "patch_places": (ivlens.patch_places, lambda: {
            **own, "layers": [0], "heads": ["L0H1"], "n_prompts": 1
        }),
        "PlaceOptions": (placed_with, dict),
        "ablate_heads": (ivlens.ablate_heads, lambda: {
            **own, "heads": effects, "scores": the.scores, "n_prompts": 2,
            "options": AblationOptions(k=2, n_draws=1, n_mean_prompts=2, corruption="drop"),
        }),
        "AblationOptions": (ablated_with, dict),
        "HeadEffects.pick": (picked, dict),
        "transplant": (ivlens.transplant, lambda: {
            "before": model, "after": the.copy, "task": task, "heads": effects, "n_prompts": 2,
            "options": TransplantOptions(ks=(1,), n_draws=1),
        }),
        "TransplantOptions": (transplanted_with, dict),
        "splice": (ivlens.splice, lambda: {
            "before": model, "after": the.copy, "task": task, "n_prompts": 2, "options": SpliceOptions(layers=(1,)),
        }),
        "SpliceOptions": (spliced_with, dict),
        "compare_heads": (ivlens.compare_heads, lambda: {"first": effects, "second": effects, "k": 2}),
        "measure_again": (ivlens.measure_again, lambda: {"effects": effects, "task": task, "model": model, "heads": 1}),
        "find_prompts": (ivlens.find_prompts, lambda: {
            **own, "templates": ["plain"], "shots": [0], "n_prompts": 2
        }),
        "evaluate_intervention": (ivlens.evaluate_intervention, lambda: {
            **own, "iv": iv, "at": at, "n_prompts": 2, "n_draws": 1, "options": the.judge
        }),
        "JudgeOptions": (judged_with, dict),
        "MoreRows": (more_with, dict),
        "MoreRows.recorded": (ivlens.MoreRows().recorded, dict),
        "sweep_settings": (ivlens.sweep_settings, lambda: {
            **own, "vectors": iv, "grid": ivlens.Grid.only(at), "n_prompts": 2
        }),
        "Grid": (searched_with, dict),
        "Grid.only": (ivlens.Grid.only, lambda: {"setting": at}),
        "Grid.settings": (ivlens.Grid().settings, lambda: {"model": model}),
        "Setting": (steered_at, dict),
        "steer": (steered, lambda: {"model": model, "iv": iv, "layer": 0, "alpha": 1.0, "site": "resid_post"}),
        "steer_rows": (steered_rows, lambda: {"model": model, "vectors": [iv, None, iv], "at": at}),
        "build_prompts": (ivlens.build_prompts, lambda: {
            "tokenizer": the.tokenizer, "task": task, "examples": task.examples[:2]
        }),
        "PromptRecipe": (asked_with, dict),
        "PromptRecipe.texts": (recipe.texts, lambda: {"task": task}),
        "PromptRecipe.shots": (recipe.shots, lambda: {"task": task}),
        "PromptRecipe.resolved": (recipe.resolved, lambda: {"task": task}),
        "PromptRecipe.corruption": (recipe.corruption, lambda: {"task": task}),
        "PromptRecipe.for_other_tasks": (recipe.for_other_tasks, dict),
        "PromptRecipe.check_for": (recipe.check_for, lambda: {"tasks": [task]}),
        "PromptRecipe.alike": (recipe.alike, lambda: {"other": recipe, "task": task}),
        "PromptRecipe.to_dict": (recipe.to_dict, dict),
        "PromptRecipe.from_dict": (ivlens.PromptRecipe.from_dict, lambda: {"values": recipe.to_dict()}),
        "PromptRecipe.recorded": (ivlens.PromptRecipe.recorded, lambda: {"settings": effects.settings}),
        "PromptTemplate": (written_with, dict),
        "Task": (task_with, dict),
        "Task.find": (task.find, lambda: {"input": "big"}),
        "Task.split": (task.split, lambda: {"name": "fit"}),
        "Task.content_hash": (task.content_hash, dict),
        "Task.full_hash": (task.full_hash, dict),
        "TaskExample": (example_with, dict),
        "causal_indirect_effect": (ivlens.causal_indirect_effect, lambda: {
            **prompts, "answer_tokens": the.batch.answer_tokens, "mean_z": effects.mean_z
        }),
        "mean_head_outputs": (ivlens.mean_head_outputs, lambda: dict(prompts)),
        "finetune": (tuned, lambda: dict(own)),
        "TuneOptions": (tuned_with, dict),
        "Along": (along_with, dict),
        "probe": (probe, lambda: {"model": model, "tasks": [task], "options": ProbeOptions(n_prompts=2)}),
        "ProbeOptions": (probed_with, dict),
        "answers_said": (
            answers_said,
            lambda: {"model": model, "tasks": [task], "new": [the.other], "options": ProbeOptions(n_prompts=2)},
        ),
        "general_scores": (general_scores, lambda: {"model": model, "tasks": [task], "n_prompts": 2, "seed": 0}),
        "measure_stage": (measure_stage, lambda: {
            "model": model, "tasks": [task], "options": TrackOptions(n_prompts=2, k=1, n_judge_prompts=2)
        }),
        "TrackOptions": (tracked_with, dict),
        "export_vector": (export_vector, lambda: {
            "model": model, "iv": iv, "path": the.root / "vector.py", "format": "python", "at": at
        }),
        "lab": (ivlens.lab, lambda: {
            "model": model, "tasks": [task], "effects": [effects], "n_prompts": 2, "n_search": 2
        }),
        "HeadEffects": (lambda **values: used(found(**values)), lambda: dict(of_effects)),
        "HeadEffects.contrasted": (lambda: None, dict),
        "HeadEffects.interval": (effects.interval, lambda: {"simultaneous": True, "n_resamples": 20}),
        "HeadEffects.top_heads": (effects.top_heads, lambda: {"k": 1}),
        "HeadEffects.to_frame": (effects.to_frame, dict),
        "HeadEffects.plot": (effects.plot, dict),
        "HeadEffects.save": (effects.save, lambda: {"path": the.root / "e.safetensors"}),
        "HeadEffects.load": (found.load, lambda: {"path": the.root / "effects.safetensors"}),
        "HeadEffects.to": (effects.to, lambda: {"device": "cpu"}),
        "HeadEffects.check_task": (effects.check_task, lambda: {"task": the.task}),
        "InstructionVector": (lambda **values: used(vector(**values)), lambda: dict(of_vector)),
        "InstructionVector.from_effects": (vector.from_effects, lambda: {"effects": effects, "k": 2}),
        "InstructionVector.cosine": (iv.cosine, lambda: {"other": iv}),
        "InstructionVector.derived": (iv.derived, lambda: {"theta": iv.theta, "task": "x", "settings": {}}),
        "InstructionVector.random_like": (iv.random_like, lambda: {"seed": 0}),
        "InstructionVector.decode": (iv.decode, lambda: {"model": model, "k": 2}),
        "InstructionVector.plot": (iv.plot, dict),
        "InstructionVector.save": (iv.save, lambda: {"path": the.root / "v.safetensors"}),
        "InstructionVector.load": (vector.load, lambda: {"path": the.root / "vector.safetensors"}),
        "InstructionVector.for_model": (iv.for_model, lambda: {"model": model}),
        "Evaluation": (lambda **values: used(ivlens.Evaluation(**values)), lambda: {
            "table": the.evaluation.table, "best": at, "settings": {}
        }),
        "Evaluation.of": (ivlens.Evaluation.of, lambda: {"judged": [the.judged], "settings": {}}),
        "Evaluation.accuracy": (the.evaluation.accuracy, dict),
        "Evaluation.by_vector": (the.evaluation.by_vector, dict),
        "Evaluation.plot": (the.evaluation.plot, dict),
        "train_vector": (ivlens.train_vector, lambda: {**own, "options": ivlens.TrainedOptions(**the.lesson)}),
        "TrainedOptions": (trained_with, dict),
        "TrainedOptions.tried": (ivlens.TrainedOptions().tried, lambda: {"model": model}),
        "TrainedVector": (lambda **values: used(ivlens.TrainedVector(**values)), lambda: dict(of_trained)),
        "PromptSearch": (lambda **values: used(ivlens.PromptSearch(**values)), lambda: dict(of_search)),
    }  # fmt: skip


def public_calls() -> set[str]:
    """Every public name that can be called, and every public method of those that are classes."""
    found = set()
    for name in ivlens.__all__:
        value = getattr(ivlens, name)
        found |= {name} if callable(value) else set()
        for method, given in vars(value).items() if inspect.isclass(value) else ():
            if not method.startswith("_") and (inspect.isfunction(given) or isinstance(given, classmethod)):
                found.add(f"{name}.{method}")
    return found


def parameters(name: str, function: Callable[..., Any]) -> list[str]:
    """Names of the parameters of a public name (or of what stands beside it in `calls`)."""
    value: Any = {each.__name__: each for each in OPTIONS}.get(name, ivlens)
    if value is ivlens:
        for part in name.partition(",")[0].split("."):
            value = getattr(value, part, None)
    signature = inspect.signature(function if value is None else value)
    kinds = inspect.Parameter
    return [
        each.name
        for each in signature.parameters.values()
        if each.name != "self" and each.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
    ]


@dataclass(frozen=True)
class Outcome:
    """What one call ended in: `result`, `clear`, `unclear` or `foreign`, and the words for it."""

    kind: str
    said: str
    seconds: float
    grown_gb: float

    @property
    def is_bad(self) -> bool:
        return self.kind in ("unclear", "foreign") or self.seconds > SECONDS or self.grown_gb > GROWTH_GB


def outcome(call: Callable[[], Any], parameter: str) -> Outcome:
    """Make one call, and judge how it ended."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def ended(kind: str, said: str) -> Outcome:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (
            2**30 if sys.platform == "darwin" else 2**20
        )
        return Outcome(kind, said, time.process_time() - started, grown)

    try:
        with time_limit(), silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call()
        return ended("result", type(found).__name__)
    except Hang:
        return ended("foreign", "not finished in time")
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} of {Path(frame.filename).name}:{frame.lineno}: {error!s:.300}"
        ours = PACKAGE in frame.filename and "raise" in (frame.line or "")
        if not ours or not isinstance(error, ValueError | TypeError | OSError | RuntimeError | KeyError | ImportError):
            return ended("foreign", where)
        return ended("clear" if is_clear(str(error), parameter) else "unclear", where)


CALLED = {"progress", "keep", "on_step", "record"}  # functions of the caller's, whose errors are theirs
WORK = {
    ("TuneOptions", "steps"),
    ("TuneOptions", "warmup"),
    ("TrainedOptions", "steps"),
}  # a thousand million steps are what was asked for
LISTING = {"order", "name_or_path", "tasks", "general"}  # an error may name what is there, or all that is missing
SUBJECTS = {  # other words for a parameter, which its error may use
    "name": ("model", "split"), "name_or_path": ("task", "one data file"), "path": ("file",),
    "attention_mask": ("mask",), "iv": ("vector",), "input": ("example",), "at": ("setting", "layer"),
    "folder": ("suite",), "judged": ("condition",), "order": ("suite",), "general": ("task", "suite"),
    "tasks": ("one data file",), "hf_model": ("model",),
    "lr": ("model",), "compare": ("model",), "first": ("model",), "values": ("recipe",), "other": ("vectors",),
}  # fmt: skip


def is_clear(text: str, parameter: str) -> bool:
    """Whether a message names the parameter and says what was expected or what to do, in one short line."""
    subjects = (parameter, parameter.replace("_", " "), parameter.removesuffix("s"), *SUBJECTS.get(parameter, ()))
    longest = 2 * LONGEST if parameter in LISTING else LONGEST
    says = "expected" in text or ";" in text
    return says and "\n" not in text and len(text) <= longest and any(one in text.lower() for one in subjects)


def cases(
    things: Things, only: list[str], every: int = 1, start: int = 0
) -> Iterator[tuple[str, str, str, Callable[[], Any]]]:
    """Yield public name, parameter, name of the wrong value, and the call; of all of them each `every`-th."""
    wrong, number = wrong_values(things), start
    for name, (function, right) in calls(things).items():
        if only and name not in only:
            continue
        for parameter in parameters(name, function):
            for label, make in wrong.items():
                number += 1
                if parameter in CALLED and callable(make()) or label == "1e9" and (name, parameter) in WORK:
                    continue
                if number % every == 0:
                    yield name, parameter, label, lambda f=function, r=right, p=parameter, m=make: f(**r() | {p: m()})


@contextlib.contextmanager
def workplace() -> Iterator[Things]:
    """A folder to work in, with everything that right calls need; nothing is fetched."""
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    logging.getLogger("ivlens").setLevel(logging.CRITICAL)
    here = Path.cwd()
    # labs that were opened may still be writing
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        (Path(folder) / "things").mkdir()
        (Path(folder) / "here").mkdir()
        os.environ["IVLENS_CACHE"] = str(Path(folder) / "cache")
        os.chdir(Path(folder) / "here")
        try:
            with silence():
                things = Things(Path(folder) / "things")
            yield things
        finally:
            os.chdir(here)


def limited() -> None:
    """From now on, 2 GB more of memory than are in use are a MemoryError rather than a full machine."""
    status = Path("/proc/self/status")
    if status.exists():
        used = int(status.read_text().split("VmSize:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + int(GROWTH_GB * 2**30), resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--show", choices=["bad", "result", "all", "none"], default="bad")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    counts: dict[str, collections.Counter[str]] = {}
    n_bad, slowest, grown = 0, 0.0, 0.0
    with workplace() as things:
        limited()
        assert public_calls() <= calls(things).keys(), public_calls() - calls(things).keys()
        for name, parameter, label, call in cases(things, asked.names, asked.every, asked.start):
            found = outcome(call, parameter)
            counts.setdefault(name, collections.Counter())[found.kind] += 1
            n_bad += found.is_bad
            slowest, grown = max(slowest, found.seconds), max(grown, found.grown_gb)
            shown = {"bad": found.is_bad, "all": True, "result": found.kind == "result", "none": False}[asked.show]
            if shown:
                print(f"{name}({parameter}={label}): {found.kind}, {found.seconds:.1f} s: {found.said!r}", flush=True)
    total = sum(counts.values(), collections.Counter())
    most = sum((count for name, count in counts.items() if name.partition(",")[0] in MOST_USED), collections.Counter())
    about = {"bad": n_bad, "slowest_s": round(slowest, 2), "grown_gb": round(grown, 2)}
    print(json.dumps({"all": total, "most used": most, **about}))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # labs that were opened may still be measuring, which the end of the interpreter would cut short
