"""Sweeps: make every result of a grid, in this process or on a cluster; an interrupted sweep goes on."""

from ivlens.runs.sweep.cells import Cell, ModelSpec, Survey
from ivlens.runs.sweep.cluster import ClusterExecutor
from ivlens.runs.sweep.grid import SweepGrid, read_grid
from ivlens.runs.sweep.kinds import KINDS, Kind
from ivlens.runs.sweep.local import LocalExecutor
from ivlens.runs.sweep.making import MAKERS, Maker, Making
from ivlens.runs.sweep.options import Setting
from ivlens.runs.sweep.runner import Estimate, Outcome, Plan, Progress, make_plan, run_sweep
from ivlens.runs.sweep.workshop import Report, Workshop

__all__ = [
    "KINDS",
    "MAKERS",
    "Cell",
    "ClusterExecutor",
    "Estimate",
    "Kind",
    "LocalExecutor",
    "Maker",
    "Making",
    "ModelSpec",
    "Outcome",
    "Plan",
    "Progress",
    "Report",
    "Setting",
    "Survey",
    "SweepGrid",
    "Workshop",
    "make_plan",
    "read_grid",
    "run_sweep",
]
