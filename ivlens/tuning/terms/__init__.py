"""The terms of guidance, one file each. `term.py` says what a term is; CONTRIBUTING.md says how to add one."""

from ivlens.tuning.terms.heads import HeadConsistency
from ivlens.tuning.terms.kl import IVKL
from ivlens.tuning.terms.progressive import Progressive, strength
from ivlens.tuning.terms.rehearsal import Rehearsal
from ivlens.tuning.terms.rehearsal_plan import Rehearse
from ivlens.tuning.terms.term import Term

__all__ = ["IVKL", "HeadConsistency", "Progressive", "Rehearsal", "Rehearse", "Term", "strength"]
