"""The state and the work behind one page, without the page itself: events come in, values to be shown go out."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ivlens.prompts.templates import PromptTemplate
from ivlens.show.lab.code import Listing, python_code
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.plain import ability_facts, as_file, effects_map, inputs_of, results, sentence, task_facts
from ivlens.show.lab.state import LabState, Limits, values_of
from ivlens.show.lab.worker import Cancelled, Worker
from ivlens.vectors.vector import InstructionVector, base_task

Show = Callable[[str, Any], None]
_FRESH: Mapping[str, Any] = dict.fromkeys(("heads", "layer", "alpha", "site")) | {"instruction": "", "source": "heads"}
MAX_FILE = 16_000_000  # bytes of a vector's file


class Session:
    """The lab for one page, with one model or two that are compared; several sessions may share their engines.

    `show(channel, value)` is called from any thread, with values that JSON can hold. The channels are `state`,
    `ability`, `task` (with the `maps` of effects), `result` (completions, after every token), `code`, `status`, and
    `running` (what is being done for which page).
    """

    def __init__(self, engines: Sequence[Engine], state: LabState, show: Show) -> None:
        self.engines, self._show = tuple(engines), show
        about = self.engines[0].identity
        self.limits = Limits(tuple(self.engines[0].tasks), about.n_layers, about.n_heads)
        self._guard = threading.RLock()  # methods that hold it call one another
        self._worker = Worker(lambda error: self._say(error=sentence(error)))
        self._running = self.engines[0].running
        self.number = self._running.join(self._hear)
        self._loaded: InstructionVector | None = None
        self._file, self._is_closed = "", False
        self._own_templates: dict[str, PromptTemplate] = {}
        self.state = self._with_text(self.limits.changed(state, vars(state)))

    def refresh(self) -> None:
        """Show everything again, measuring and completing what the present state needs."""
        with self._guard:
            state, began = self.state, time.perf_counter()
            self._say(busy="Writing …")  # before the state, by which the page knows that its event arrived
            self._show("state", self._shown_state())
            self._worker.submit(lambda cancelled: self._work(state, cancelled, began))

    def change(self, **values: Any) -> None:
        """Set some of the state's values; what follows from them is shown as soon as it is computed.

        Raises:
            ValueError: a value that is not allowed; the state stays as it was.
        """
        with self._guard:
            if isinstance(template := values.get("template"), str) and template in self._own_templates:
                values["template"] = self._own_templates[template]
            before, after = self.state, self.limits.changed(self.state, values)
            if after.task != before.task:
                fresh = {name: value for name, value in self._fresh(after).items() if name not in values}
                after = self._with_text(replace(after, **fresh))
            if after.source == "file" and self._loaded is None:
                raise ValueError("source is 'file', but no vector was loaded; load one first.")
            if "k" in values and "heads" not in values:
                after = replace(after, heads=None)  # the `k` strongest heads, whatever was chosen by hand before
            if after.heads != before.heads or after.k != before.k:
                after = replace(after, source="heads")
            self.state = after
            self.refresh()

    def _fresh(self, state: LabState) -> dict[str, Any]:
        """The values that a newly chosen task begins with: its own heads and setting, and not the old instruction."""
        given = self.engines[0].given.get(state.task)
        recipe = {} if given is None else values_of(given.recipe, self.engines[0].tasks[state.task])
        told = {"told": state.told if isinstance(state.told, str) else "task"}
        return {**_FRESH, **told, **recipe}

    def toggle(self, head: Any) -> None:
        """Take a head into the vector, or out of it; nothing happens as long as the effects are not measured."""
        with self._guard:
            if self.engines[0].knows(self.state):
                self.change(heads=self.limits.toggled(self.engines[0].heads(self.state), head))

    def search(self) -> None:
        """Go to the layer, strength and site at which the vector works best on *select* prompts."""
        self.change(layer=None, alpha=None, site=None)

    def vectors(self, state: LabState | None = None) -> list[InstructionVector | None]:
        """The vector that is added to each model; None where no head is chosen."""
        state = state or self.state
        if state.source == "file":
            return [self._loaded] * len(self.engines)
        if len(self.engines) == 1 or state.donor == "first":
            return [self.engines[0].vector(state)] * len(self.engines)
        # the same heads in both models, each with its own mean outputs
        named = replace(state, heads=self.engines[0].heads(state))
        return [engine.vector(named) for engine in self.engines]

    def resolved(self, state: LabState | None = None) -> LabState:
        """The state with its heads, layer, strength and site filled in, searched for where it has none."""
        state = state or self.state
        heads = self.engines[0].heads(state)
        if None in (state.layer, state.alpha, state.site):
            found = self.engines[0].setting(state, self.vectors(state)[0])._asdict()
            missing = {name: value for name, value in found.items() if getattr(state, name) is None}
            state = replace(state, **missing)
        return replace(state, heads=heads)

    def code(self) -> str:
        """A Python script that prints the completions that are shown."""
        return self._code(self.resolved())

    def load(self, path: str | Path, name: str = "") -> None:
        """Use a saved vector, of these weights or others of the same shape, and make prompts by its recipe.

        Raises:
            FileNotFoundError, ValueError: no such file, or the file holds no vector for a model of this shape.
        """
        loaded = InstructionVector.load(path, self.engines[0].model, allow_other_weights=True)
        with self._guard:
            task, recipe = self.engines[0].tasks[self.state.task], loaded.recipe
            values = {} if recipe is None else values_of(recipe, task, own=base_task(loaded) == task.name)
            before = self._loaded, self._file
            self._loaded, self._file = loaded, name or str(path)
            try:
                self.change(source="file", **values)
            except ValueError:
                self._loaded, self._file = before
                raise

    def load_bytes(self, name: str, content: bytes) -> None:
        """Use a saved vector whose file was sent by a browser, as `load` does."""
        if len(content) > MAX_FILE:
            raise ValueError(f"{name} has {len(content)} bytes, expected a vector of at most {MAX_FILE}.")
        with as_file(content) as path:
            try:
                self.load(path, name)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), name)) from None  # the user knows the file by its name

    def saved(self) -> tuple[str, bytes]:
        """The name and the bytes of a file that holds the first model's vector.

        Raises:
            ValueError: no head is chosen, or the heads are not yet measured.
        """
        if self.state.source == "heads" and not self.engines[0].knows(self.state):
            raise ValueError("the heads are still being measured, expected a vector to save; wait until it is there.")
        vector = self.vectors()[0]
        if vector is None:
            raise ValueError("there is no vector to save, expected at least one head; choose some.")
        with as_file(b"") as path:
            vector.save(path)
            plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in vector.task)
            return f"{plain}.safetensors", path.read_bytes()

    def wait(self, timeout: float | int = 60) -> bool:
        """Wait for at most `timeout` seconds; return whether everything that was asked for is shown."""
        return self._worker.wait(timeout)

    @property
    def is_over(self) -> bool:
        """Whether this session is closed and none of its work runs any longer."""
        return self._is_closed and self._worker.wait(0)

    def close(self) -> None:
        """Stop all work, because the page is closed."""
        self._is_closed = True
        self._worker.close()
        self._running.leave(self.number)

    def say_error(self, error: Exception) -> None:
        """Show an error that an event caused, and the state, which the event did not change."""
        self._show("state", self._shown_state())
        self._say(error=sentence(error))

    def _work(self, state: LabState, cancelled: Cancelled, began: float) -> None:
        def unneeded() -> bool:
            # a newer request that needs the same effects waits for them, so measuring goes on
            return cancelled() and (self._is_closed or not self._needs_the_same(state))

        try:
            with self._stopping(unneeded):
                self._measure(state, unneeded)
            if not cancelled():
                with self._stopping(cancelled):
                    self._complete(state, cancelled, began)
        finally:
            self._running.say(self.number, "")

    @contextmanager
    def _stopping(self, unwanted: Cancelled) -> Iterator[None]:
        """End forward passes of all engines during the body once `unwanted()` is True."""
        with ExitStack() as stack:
            for engine in self.engines:
                stack.enter_context(engine.stopping(unwanted))
            yield

    def _measure(self, state: LabState, unneeded: Cancelled) -> None:
        """Measure what the state needs: first the ability, which takes little time and may bring a warning."""
        waiting, shown = partial(self._do, f"Waiting to measure {state.task} …"), []
        for engine in self.engines:
            if not engine.knows(state):
                self._do(f"Asking whether the model can do {state.task} …")
            engine.ability(state, unneeded, waiting)
            shown.append(ability_facts(engine, state))
        self._show("ability", shown)
        for engine in self.engines:
            if not engine.knows(state):
                self._do(f"Measuring all heads of {engine.facts()['name']} on {state.task} …")
            engine.effects(state, unneeded, waiting)

    def _complete(self, state: LabState, cancelled: Cancelled, began: float) -> None:
        """Show the effects, find the setting, and write the completions; `began`: when the event came."""
        about = task_facts(self.engines[0].tasks[state.task], self._seed(state))
        self._show("task", {**about, "maps": [effects_map(engine, state) for engine in self.engines]})
        if None in (state.layer, state.alpha, state.site):
            self._do("Looking for layer and strength on inputs that are not judged …")
        resolved = self.resolved(state)
        with self._guard:
            if cancelled():  # a newer change may have set layer, strength or site
                return
            found = {name: getattr(resolved, name) for name in ("layer", "alpha", "site")}
            self.state = replace(self.state, **found)
            self._show("state", self._shown_state())
        self._do("Writing …")
        first = self._stream(resolved, cancelled, began)
        if not cancelled():
            self._show("code", self._code(resolved))
            self._say(done=f"{first:.2f} s to the first tokens, {time.perf_counter() - began:.2f} s in all")

    def _hear(self, at_work: list[dict[str, Any]]) -> None:
        self._show("running", {"page": self.number, "at_work": at_work})

    def _needs_the_same(self, state: LabState) -> bool:
        return self.engines[0].needs(self.state) == self.engines[0].needs(state)

    def _stream(self, state: LabState, cancelled: Cancelled, began: float) -> float:
        """Show the completions token by token; return the seconds from `began` to the first tokens."""
        prompt, first = self.engines[0].prompt(state, self._seed(state)), 0.0
        for shown in results(self.engines, state, self.vectors(state), prompt):
            if cancelled():
                break
            first = first or time.perf_counter() - began  # only the first tokens set it
            self._show("result", shown)
        return first

    def _with_text(self, state: LabState) -> LabState:
        """The state with an input of its task: its own text, or one of *test*, which chose no heads or settings."""
        task = self.engines[0].tasks[state.task]
        if state.text and task.find(state.text) is not None:
            return state
        return replace(state, text=inputs_of(task, self._seed(state))[0])

    def _seed(self, state: LabState) -> int:
        """The seed of the splits and demonstrations with which the vector was made."""
        loaded = self._loaded.recipe if self._loaded is not None and state.source == "file" else None
        return (loaded or self.engines[0].recipe(state)).seed

    def _shown_state(self) -> dict[str, Any]:
        """The state as the page gets it: with the list of heads, the template's name and the vector's file."""
        state, known = self.state, self.engines[0].knows(self.state)
        heads = [list(head) for head in (self.engines[0].heads(state) if known else state.heads or ())]
        template = self._template_name(state.template)
        return {**vars(state), "heads": heads, "template": template, "file": self._file}

    def _template_name(self, template: str | PromptTemplate) -> str:
        """The name by which the page shows a template and chooses it; templates of one name get numbers."""
        if isinstance(template, str):
            return template
        name, number = template.name, 1
        while name in self.limits.templates or self._own_templates.get(name, template) != template:  # name is taken
            number += 1
            name = f"{template.name} {number}"
        self._own_templates[name] = template
        return name

    def _code(self, state: LabState) -> str:
        from_file = state.source == "file"
        listing = Listing(
            models=[each.identity.name for each in self.engines],
            task=self.engines[0].tasks[state.task],
            prompt=self.engines[0].prompt(state, self._seed(state)),
            effects=[] if from_file else [engine.effects(state).settings for engine in self.engines],
            file=self._file if from_file else None,
        )
        return python_code(state, listing)

    def _say(self, *, busy: str = "", done: str = "", error: str = "") -> None:
        self._show("status", {"busy": busy, "done": done, "error": error})

    def _do(self, what: str) -> None:
        """Show what begins now, on this page and on all others of the lab."""
        self._say(busy=what)
        self._running.say(self.number, what)
