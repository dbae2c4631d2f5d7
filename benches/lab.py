"""How long the lab takes to answer: from an event to the first tokens, and to the last ones.

    python benches/lab.py [--rounds 30]

Prints seconds on the built-in model: the first look at a task (effects of all heads, search for layer and strength),
and after that every change of strength, each with three completions of 12 tokens (plain, patched, random). The way to
the browser and back comes on top.
"""

import argparse
import statistics
import time

import torch

import ivlens
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.session import Session
from ivlens.show.lab.state import LabState


class Clock:
    """Takes the time of the first and the last result after `start`."""

    def __init__(self) -> None:
        self.began = self.first = self.last = 0.0

    def start(self) -> None:
        self.began, self.first = time.perf_counter(), 0.0

    def __call__(self, channel: str, value: object) -> None:
        if channel == "result":
            self.last = time.perf_counter() - self.began
            self.first = self.first or self.last


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    model, names = ivlens.load_model("pocket"), ("antonym", "english_french", "capitalize", "last_letter")
    clock = Clock()
    engine = Engine(model, {name: ivlens.load_task(name) for name in names})
    session = Session([engine], LabState(names[0], random=True), clock)
    visits = []
    for name in names:
        clock.start()
        session.change(task=name)
        session.wait()
        visits.append(clock.last)
    firsts, lasts = [], []
    for index in range(rounds):
        clock.start()
        session.change(alpha=float(index % 8))
        session.wait()
        firsts.append(clock.first)
        lasts.append(clock.last)
    print(f"pocket, torch {torch.__version__}, {torch.get_num_threads()} threads; seconds, median (largest)")
    for what, values in {
        "first look at a task": visits, "first tokens after a change": firsts, "all tokens after it": lasts
    }.items():  # fmt: skip
        print(f"{what:30}{statistics.median(values):6.3f}  ({max(values):.3f}, n = {len(values)})")


if __name__ == "__main__":
    main()
