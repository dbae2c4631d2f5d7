"""The long work behind one page: measuring what a state needs, completing its prompt, and filling the open view."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ivlens.common.progress import heard_by
from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.maps import effects_maps
from ivlens.show.lab.measures import Client
from ivlens.show.lab.plain import ability_facts, results, task_facts
from ivlens.show.lab.running import Running
from ivlens.show.lab.state import LabState
from ivlens.show.lab.views import VIEW_WORK, view_facts, view_key
from ivlens.show.lab.worker import Cancelled

Show = Callable[[str, Any], None]
_EVERY = 0.15  # seconds between two signs of progress
_N_FILLED = 20  # views that are kept, so that going back to one takes no time
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
        formed: Called with the job before anything is measured; returns it in the form of prompt that is to be used.
        settled: Called with the job and the layer, strength and site that were found; returns whether they count.
        running, number: Where the work is announced to other pages, and this page's number there.
    """

    show: Show
    formed: Callable[[Job], Job]
    settled: Callable[[Job, Mapping[str, Any]], bool]
    running: Running
    number: int
    _written: tuple[Any, ...] | None = field(default=None, init=False)
    _filled: dict[Any, list[dict[str, Any]]] = field(default_factory=dict, init=False)  # views by their keys

    def run(self, job: Job) -> None:
        """Do everything that a state needs; parts that are there already are only shown."""
        try:
            with self._stopping(job, job.unneeded):
                first = self._first(job)
                job = self.formed(job)
                self._measure(job)
            if job.cancelled():
                return
            with self._stopping(job, job.cancelled):
                resolved = self._settle(job)
                if resolved is not None:
                    first = self._complete(job, resolved, first)
                    self._view(job, resolved)
                    if not job.cancelled():
                        said = "" if first is None else f"{first:.2f} s to the first tokens, "
                        self.say(done=f"{said}{time.perf_counter() - job.began:.2f} s in all")
        finally:
            self.show("progress", {})
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

    def _first(self, job: Job) -> float | None:
        """Where heads have yet to be measured: the inputs to choose from, and the completion without a vector.

        Returns the seconds until its first tokens; None where nothing was shown.
        """
        state, engine = job.state, job.chosen.engines[0]
        if not state.text.strip() or all(each.knows(state) for each in job.chosen.engines):
            return None
        seed = job.chosen.seed(state)
        self.show("task", {**task_facts(engine.tasks[state.task], seed), "maps": []})
        if job.cancelled():
            return None
        self._do("Writing …")
        prompt = engine.prompt(state, seed)
        self._written, first = None, None
        for shown in results(job.chosen.engines, state, None, prompt, engine.shots(state, seed)):
            if job.cancelled():
                return first
            first = first or time.perf_counter() - job.began
            self.show("result", shown)
        return first

    def _measure(self, job: Job) -> None:
        """Measure what the state needs: first the ability, which takes little time and may bring a warning."""
        state, engines, shown = job.state, job.chosen.engines, []
        client = Client(job.unneeded, partial(self._do, f"Waiting to measure {state.task} …"))
        for engine in engines:
            with self.step(1, 3, f"Asking whether {engine.facts()['name']} can do {state.task}", engine.knows(state)):
                engine.ability(state, client)
            shown.append(ability_facts(engine, state))
        self.show("ability", shown)
        for engine in engines:
            about = engine.facts()
            what = f"Measuring {about['n_layers'] * about['n_heads']} heads of {about['name']} on {state.task}"
            with self.step(2, 3, what, engine.knows(state)) as listen:
                # the engine tells its own steps; other parts of the measurement are heard
                engine.effects(state, replace(client, progress=partial(listen, "heads")))

    @contextmanager
    def step(self, step: int, of: int, what: str, is_done: bool = False) -> Iterator[Callable[[str, int, int], None]]:
        """Show a bar during the body, with the time left as soon as it can be told; yields what is called on the way.

        Args:
            is_done: Whether nothing has to be done; then nothing is shown.
        """
        if is_done:
            yield lambda part, done, total: None
            return
        self._do(f"{what} …")
        listen = self._listener(what, step, of)
        with heard_by(listen):
            yield listen

    def _listener(self, what: str, step: int, of: int) -> Callable[[str, int, int], None]:
        """A function that shows how far a step is, with the time left, some times in each second."""
        facts = {"what": what, "part": "", "step": step, "of": of, "share": None, "left": None}
        self.show("progress", facts)
        part_now, began, last = "", 0.0, 0.0

        def listen(part: str, done: int, total: int) -> None:
            nonlocal part_now, began, last
            now, share = time.perf_counter(), done / total
            if part != part_now:
                part_now, began = part, now
            if now - last > _EVERY:
                last = now
                left = (now - began) * (1 - share) / share if share and now > began else None
                self.show("progress", {**facts, "part": part.rpartition(": ")[2], "share": share, "left": left})

        return listen

    def _settle(self, job: Job) -> LabState | None:
        """Show the maps, and find layer, strength and site; None where a newer change has come meanwhile."""
        state, chosen = job.state, job.chosen
        task = chosen.engines[0].tasks[state.task]
        self.show("task", {**task_facts(task, chosen.seed(state)), "maps": effects_maps(chosen.engines, state)})
        is_known = None not in (state.layer, state.alpha, state.site)
        with self.step(3, 3, "Looking for layer and strength on inputs that are not judged", is_known):
            resolved = chosen.resolved(state)
        self.show("progress", {})
        found = {name: getattr(resolved, name) for name in ("layer", "alpha", "site")}
        return resolved if self.settled(job, found) else None

    def _complete(self, job: Job, state: LabState, first: float | None) -> float | None:
        """Show the completions token by token, if they are not on the page already.

        Returns the seconds until the first tokens, `first` if they came before; None where nothing was to be written.
        """
        chosen, began = job.chosen, job.began
        written = (replace(state, **_BESIDE), chosen.loaded)
        if written == self._written:
            return first
        self._written = None
        self._do("Writing …")
        engine, seed = chosen.engines[0], chosen.seed(state)
        prompt, shots = engine.prompt(state, seed), engine.shots(state, seed)
        for shown in results(chosen.engines, state, chosen.vectors(state), prompt, shots):
            if job.cancelled():
                return first
            first = first or time.perf_counter() - began  # only the first tokens set it
            self.show("result", shown)
        self.show("code", chosen.code(state))
        self._written = written
        return first

    def _view(self, job: Job, state: LabState) -> None:
        """Fill the view that is open beside the completions, or show again what fills it."""
        self.show("view", {"view": state.view, "busy": True})
        key = view_key(job.chosen, state)
        if key in self._filled:
            for shown in self._filled[key]:
                self.show("view", shown)
            return
        last: dict[Any, dict[str, Any]] = {}  # of several models, a table of each stays
        filling = view_facts(job.chosen, state)
        slow = VIEW_WORK.get(state.view)
        with heard_by(self._listener(slow, 0, 0)) if slow else nullcontext():
            for shown in filling:
                if job.cancelled():
                    return
                if "busy" in shown:
                    self._do(f"{shown['busy']} …")
                last[shown.get("model")] = {"view": state.view, **shown}
                self.show("view", last[shown.get("model")])
        if not any("error" in shown for shown in last.values()):
            self._filled = {**dict(list(self._filled.items())[-_N_FILLED:]), key: list(last.values())}
