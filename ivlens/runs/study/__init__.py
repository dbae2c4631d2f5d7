"""The study: every claim of the Instruction Vector paper, measured on one model with all controls."""

from ivlens.runs.study.claims import CLAIMS, Claim, claim_table
from ivlens.runs.study.plan import EARLIER_TASKS, NEW_TASKS, StudyOptions
from ivlens.runs.study.results import StudyResult, write_study
from ivlens.runs.study.running import run_study

__all__ = [
    "CLAIMS",
    "EARLIER_TASKS",
    "NEW_TASKS",
    "Claim",
    "StudyOptions",
    "StudyResult",
    "claim_table",
    "run_study",
    "write_study",
]
