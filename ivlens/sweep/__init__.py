"""Grids of cells that survive: kept one by one, resumed, in this process or on a cluster."""

from ivlens.sweep.cells import Cell, ModelSpec, Survey
from ivlens.sweep.cluster import ClusterExecutor
from ivlens.sweep.grid import SweepGrid, read_grid
from ivlens.sweep.kinds import KINDS, Kind, Making
from ivlens.sweep.local import LocalExecutor
from ivlens.sweep.options import Setting
from ivlens.sweep.runner import Estimate, Outcome, Plan, Progress, make_plan, run_sweep
from ivlens.sweep.workshop import Report, Workshop

__all__ = [
    "KINDS",
    "Cell",
    "ClusterExecutor",
    "Estimate",
    "Kind",
    "LocalExecutor",
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
