"""Causal tests of `ivlens dynamics` are read from the store only for the same models, tasks and options."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd

from ivlens import load_task
from ivlens.analysis.dynamics.causal import CausalOptions
from ivlens.analysis.dynamics.stages import TrackOptions
from ivlens.cli.dynamics import _causal
from ivlens.common.store import Store


def test_causal_tests_are_made_again_for_other_splits_of_a_task(tmp_path, monkeypatch):
    made = []
    frame = pd.DataFrame({"test": ["write"], "condition": ["iv"], "p": [0.5]})

    def measured(*given, **options):
        made.append(given)
        return [SimpleNamespace(frame=lambda: frame)]

    monkeypatch.setattr("ivlens.analysis.dynamics.causal.causal_tests", measured)
    monkeypatch.setattr("ivlens.steering.summary.corrected", lambda table, by: table)
    one: Any = SimpleNamespace(open=lambda: None, key=lambda: {"files": "abc"})
    series: Any = SimpleNamespace(first=one, later=[one])
    task = load_task("antonym")
    other = replace(task, examples=tuple(replace(example, part="test") for example in task.examples))
    stage = SimpleNamespace(settings={"tasks": [["antonym", task.content_hash()]]})
    found: Any = SimpleNamespace(stages=[stage, stage])
    for tasks in ([task], [task], [other]):
        _causal(series, found, tasks, None, CausalOptions(), TrackOptions(), Store(tmp_path / "store"))
    assert task.content_hash() == other.content_hash() and len(made) == 2
