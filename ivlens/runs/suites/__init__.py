"""Benchmarks of continual learning: suites of tasks, scores of answers, and what training on a sequence forgets."""

from ivlens.runs.suites.cells import BenchOptions, run_cell
from ivlens.runs.suites.drills import drilled
from ivlens.runs.suites.metrics import (
    Interval,
    SequenceMetrics,
    Verdict,
    forget_verdict,
    paired_interval,
    sequence_metrics,
    verdict,
)
from ivlens.runs.suites.report import latex, markdown, summary, write_report
from ivlens.runs.suites.results import Cell, CellResult
from ivlens.runs.suites.rouge import Metric, mean_score, metric_of, rouge_l, suite_accuracy
from ivlens.runs.suites.runner import Grid, all_cells
from ivlens.runs.suites.suite import Suite, load_suite, n_orders, split_examples, suite_names

__all__ = [
    "BenchOptions",
    "Cell",
    "CellResult",
    "Grid",
    "Interval",
    "Metric",
    "SequenceMetrics",
    "Suite",
    "Verdict",
    "all_cells",
    "drilled",
    "forget_verdict",
    "latex",
    "load_suite",
    "markdown",
    "mean_score",
    "metric_of",
    "n_orders",
    "paired_interval",
    "rouge_l",
    "run_cell",
    "sequence_metrics",
    "split_examples",
    "suite_accuracy",
    "suite_names",
    "summary",
    "verdict",
    "write_report",
]
