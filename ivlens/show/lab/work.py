"""The long work behind one page: measuring what a state needs, completing its prompt, and filling the open view."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.maps import effects_maps
from ivlens.show.lab.measures import Client
from ivlens.show.lab.plain import ability_facts, results, task_facts
from ivlens.show.lab.running import Running
from ivlens.show.lab.state import LabState
from ivlens.show.lab.views import view_facts
from ivlens.show.lab.worker import Cancelled

Show = Callable[[str, Any], None]
_EVERY = 0.15  # seconds between two signs of progress
# a change of these alone leaves the completions as they are
_BESIDE = {"view": "head", "head": None}


@dataclass
class Job:
    """One state to be shown.

    Attributes:
        state: The state.
        chosen: Its vector.
        cancelled: Whether a newer state has come.
        unneeded: Whether what is measured for this state is needed by nobody.
        began: When the event came, by `time.perf_counter`.
    """

    state: LabState
    chosen: Chosen
    cancelled: Cancelled
    unneeded: Cancelled
    began: float


@dataclass
class Work:
    """Carries out the jobs of one page, one after the other, and shows what they give.

    Attributes:
        show: Shows a value on a channel of the page.
        settled: Called with the job and the layer, strength and site that were found; returns whether they count.
        running, number: Where the work is announced to other pages, and this page's number there.
    """

    show: Show
    settled: Callable[[Job, Mapping[str, Any]], bool]
    running: Running
    number: int
    _written: tuple[Any, ...] | None = field(default=None, init=False)

    def run(self, job: Job) -> None:
        """Do everything that a state needs; parts that are there already are only shown."""
        try:
            with self._stopping(job, job.unneeded):
                self._first(job)
                self._measure(job)
            if job.cancelled():
                return
            with self._stopping(job, job.cancelled):
                resolved = self._settle(job)
                if resolved is not None:
                    first = self._complete(job, resolved)
                    self._view(job, resolved)
                    if not job.cancelled():
                        self.say(done=f"{first}{time.perf_counter() - job.began:.2f} s in all")
        finally:
            self.running.say(self.number, "")

    def again(self) -> None:
        """Forget what is on the page, so that the next job shows everything anew."""
        self._written = None

    def say(self, *, busy: str = "", done: str = "", error: str = "") -> None:
        """Show what is being done, what was done, or what went wrong."""
        self.show("status", {"busy": busy, "done": done, "error": error})

    def _do(self, what: str) -> None:
        """Show what begins now, on this page and on all others of the lab."""
        self.say(busy=what)
        self.running.say(self.number, what)

    @contextmanager
    def _stopping(self, job: Job, unwanted: Cancelled) -> Iterator[None]:
        """End forward passes of all engines during the body once `unwanted()` is True."""
        with ExitStack() as stack:
            for engine in job.chosen.engines:
                stack.enter_context(engine.stopping(unwanted))
            yield

    def _first(self, job: Job) -> None:
        """Where heads have yet to be measured: the inputs to choose from, and the completion without a vector."""
        state, engine = job.state, job.chosen.engines[0]
        if not state.text.strip() or all(each.knows(state) for each in job.chosen.engines):
            return
        seed = job.chosen.seed(state)
        self.show("task", {**task_facts(engine.tasks[state.task], seed), "maps": []})
        if job.cancelled():
            return
        self._do("Writing …")
        prompt = engine.prompt(state, seed)
        self._written = None
        for shown in results(job.chosen.engines, state, None, prompt):
            if job.cancelled():
                return
            self.show("result", shown)

    def _measure(self, job: Job) -> None:
        """Measure what the state needs: first the ability, which takes little time and may bring a warning."""
        state, engines, shown = job.state, job.chosen.engines, []
        waiting = partial(self._do, f"Waiting to measure {state.task} …")
        for engine in engines:
            if not engine.knows(state):
                self._step(job, 1, f"Asking whether {engine.facts()['name']} can do {state.task}")
            engine.ability(state, Client(job.unneeded, waiting))
            shown.append(ability_facts(engine, state))
        self.show("ability", shown)
        for engine in engines:
            if not engine.knows(state):
                about = engine.facts()
                what = f"Measuring all {about['n_layers'] * about['n_heads']} heads of {about['name']} on {state.task}"
                self._step(job, 2, what)
                engine.effects(state, Client(job.unneeded, waiting, self._reporter(job, what)))

    def _step(self, job: Job, step: int, what: str, **progress: Any) -> None:
        self._do(f"{what} …")
        self.show("progress", {"what": what, "step": step, "of": 3, "share": None, "left": None, **progress})

    def _reporter(self, job: Job, what: str) -> Callable[[int, int], None]:
        """Shows the share that is done and the time left, a few times each second."""
        began, last = time.perf_counter(), 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if total and (now - last > _EVERY or done == total):
                last, share = now, done / total
                left = (now - began) * (1 - share) / share if share else None
                self.show("progress", {"what": what, "step": 2, "of": 3, "share": share, "left": left})

        return report

    def _settle(self, job: Job) -> LabState | None:
        """Show the maps, and find layer, strength and site; None where a newer change has come meanwhile."""
        state, chosen = job.state, job.chosen
        task = chosen.engines[0].tasks[state.task]
        self.show("task", {**task_facts(task, chosen.seed(state)), "maps": effects_maps(chosen.engines, state)})
        if None in (state.layer, state.alpha, state.site):
            self._step(job, 3, "Looking for layer and strength on inputs that are not judged")
        resolved = chosen.resolved(state)
        self.show("progress", {})
        found = {name: getattr(resolved, name) for name in ("layer", "alpha", "site")}
        return resolved if self.settled(job, found) else None

    def _complete(self, job: Job, state: LabState) -> str:
        """Show the completions token by token, if they are not on the page already; say when the first tokens came."""
        chosen, began = job.chosen, job.began
        written = (replace(state, **_BESIDE), chosen.loaded)
        if written == self._written:
            return ""
        self._written, first = None, 0.0
        self._do("Writing …")
        prompt = chosen.engines[0].prompt(state, chosen.seed(state))
        for shown in results(chosen.engines, state, chosen.vectors(state), prompt):
            if job.cancelled():
                return ""
            first = first or time.perf_counter() - began  # only the first tokens set it
            self.show("result", shown)
        self.show("code", chosen.code(state))
        self._written = written
        return f"{first:.2f} s to the first tokens, "

    def _view(self, job: Job, state: LabState) -> None:
        """Fill the view that is open beside the completions."""
        self.show("view", {"view": state.view, "busy": True})
        for shown in view_facts(job.chosen, state):
            if job.cancelled():
                return
            if "busy" in shown:
                self._do(f"{shown['busy']} …")
            self.show("view", {"view": state.view, **shown})
