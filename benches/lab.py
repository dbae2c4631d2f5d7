"""How long the lab takes to answer: from an event to the first tokens, and to the last ones.

    python benches/lab.py [--rounds 30]
    python benches/lab.py --real

Prints seconds on the built-in model: the first look at a task (effects of all heads, search for layer and strength),
and after that every change of strength, each with three completions of 12 tokens (plain, patched, random). With --real
the first look and every view on SmolLM2, prompts with five demonstrations, and the computing seconds of each, which a
busy machine does not change. Nothing is taken from the cache. The way to the browser and back comes on top.
"""

import argparse
import statistics
import time

import torch

import ivlens
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.session import Session
from ivlens.show.lab.state import LabState

VIEWS = {"head": "head's card", "many": "many inputs (32)", "layers": "by layer", "places": "by place"}
PATIENCE = 900.0  # seconds, for a view on a busy machine


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
    parser.add_argument("--real", action="store_true", help="the views on SmolLM2 (`ivlens get smollm2` fetches it)")
    given = parser.parse_args()
    if given.real:
        real()
    else:
        built_in(given.rounds)


def built_in(rounds: int) -> None:
    """The first look at a task, and changes of strength, on the built-in model."""
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


def real() -> None:
    """The first look at a task and every view, on SmolLM2."""
    clock, task = Clock(), ivlens.load_task("third_person")
    engine = Engine(ivlens.load_model("smollm2"), {task.name: task})
    session = Session([engine], LabState(task.name, text="catch", told="none", n_shots=5, bare=True), clock)
    print(f"smollm2, torch {torch.__version__}, {torch.get_num_threads()} threads; seconds, and seconds of computing")
    clock.start()
    for view, name in {"vector": "first look at a task", **VIEWS}.items():
        began, computed = time.perf_counter(), time.process_time()
        session.change(view=view)
        session.wait(PATIENCE)
        print(f"{name:30}{time.perf_counter() - began:7.1f}{time.process_time() - computed:7.1f}", flush=True)
    print(f"{'first tokens of the first look':30}{clock.first:7.1f}")


if __name__ == "__main__":
    main()
