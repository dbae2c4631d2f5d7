"""A real model that was taught to answer instructions tersely, so that forgetting can be studied by instructions."""

from ivlens.runs.terse.build import Built, build_terse
from ivlens.runs.terse.card import TerseCard, terse_card
from ivlens.runs.terse.plan import HELD_OUT, TAUGHT, TerseOptions

__all__ = ["HELD_OUT", "TAUGHT", "Built", "TerseCard", "TerseOptions", "build_terse", "terse_card"]
