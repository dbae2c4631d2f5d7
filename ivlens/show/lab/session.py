"""The state and the work behind one page, without the page itself: events come in, values to be shown go out."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivlens.prompts.templates import PromptTemplate, find_template
from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.limits import Limits
from ivlens.show.lab.measures import Client
from ivlens.show.lab.plain import as_file, inputs_of, sentence
from ivlens.show.lab.share import opened, shared
from ivlens.show.lab.state import RAW, LabState, values_of
from ivlens.show.lab.work import Job, Show, Work
from ivlens.show.lab.worker import Cancelled, Worker, is_ending
from ivlens.vectors.vector import InstructionVector, base_task

_FRESH: Mapping[str, Any] = dict.fromkeys(("heads", "layer", "alpha", "site")) | {"instruction": "", "source": "heads"}
MAX_FILE = 16_000_000  # bytes of a vector's file


class Session:
    """The lab for one page, with one model or two that are compared; several sessions may share their engines.

    `show(channel, value)` is called from any thread, with values that JSON can hold. The channels are `state`,
    `ability`, `task` (with the `maps` of effects), `result` (completions, after every token), `view` (what is shown
    beside them), `code`, `status`, `progress` (of a measurement), and `running` (what is being done for which page).
    """

    def __init__(self, engines: Sequence[Engine], state: LabState, show: Show) -> None:
        self.engines, self._show = tuple(engines), show
        about = self.engines[0].identity
        self.limits = Limits(tuple(self.engines[0].tasks), about.n_layers, about.n_heads)
        self._guard = threading.RLock()  # methods that hold it call one another
        self._worker = Worker(lambda error: self._work.say(error=sentence(error)))
        self._running = self.engines[0].running
        self.number = self._running.join(self._hear)
        self._work = Work(show, self._formed, self._settled, self._running, self.number)
        self._seeks = self.engines[0].options.auto
        self.chosen, self._is_closed = Chosen(self.engines), False
        self._own_templates: dict[str, PromptTemplate] = {}
        state = self.limits.changed(state, vars(state))
        self.state = state if state.text.strip() else self._with_text(state)

    def refresh(self) -> None:
        """Show everything that the present state needs, measuring and completing what is not there yet."""
        with self._guard:
            began = time.perf_counter()
            self._work.say(busy="Writing …")  # before the state, by which the page knows that its event arrived
            self._show("state", self._shown_state())
            self._worker.submit(lambda cancelled: self._work.run(self._job(cancelled, began)))

    def _job(self, cancelled: Cancelled, began: float) -> Job:
        with self._guard:  # the state of now: an earlier job may have changed its form
            state, chosen = self.state, self.chosen

        def unneeded() -> bool:
            # a newer request that needs the same effects waits for them, so measuring goes on
            return cancelled() and (self._is_closed or is_ending() or not self._needs_the_same(state))

        return Job(state, chosen, cancelled, unneeded, began)

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
            if after.source == "file" and self.chosen.loaded is None:
                raise ValueError("source is 'file', but no vector was loaded; load one first.")
            if "k" in values and "heads" not in values:
                after = replace(after, heads=None)  # the `k` strongest heads, whatever was chosen by hand before
            if "source" not in values and values.keys() & {"heads", "k"}:
                after = replace(after, source="heads")
            if after.n_shots != before.n_shots and "demos" not in values:
                after = replace(after, demos=None)  # drawn anew, in the number that was asked for
            self._seeks &= not values.keys() & {"template", "n_shots", "told"}  # the user has chosen a form
            self.state = after
            self.refresh()

    def _fresh(self, state: LabState) -> dict[str, Any]:
        """The values that a newly chosen task begins with: its own heads and setting, and not the old instruction."""
        given = self.engines[0].given.get(state.task)
        recipe = {} if given is None else values_of(given.recipe, self.engines[0].tasks[state.task])
        told = {"told": state.told if isinstance(state.told, str) else "task"}
        return {**_FRESH, **told, **recipe}

    def toggle(self, head: Any) -> None:
        """Take a head into the shown vector, or out of it; nothing happens as long as its heads are not known."""
        with self._guard:
            if self.chosen.is_ready(self.state):
                self.change(heads=self.limits.toggled(self.chosen.heads(self.state), head))

    def search(self) -> None:
        """Go to the layer, strength and site at which the vector works best on *select* prompts."""
        self.change(layer=None, alpha=None, site=None)

    def vectors(self, state: LabState | None = None) -> list[InstructionVector | None]:
        """The vector that is added to each model; None where no head is chosen."""
        return self.chosen.vectors(state or self.state)

    def find_form(self) -> None:
        """Go to the form of prompt in which the model answers the task best; the search is remembered."""
        with self._guard:
            self._seeks = True
            self.refresh()

    def _formed(self, job: Job) -> Job:
        """The same job in the best form of prompt, where that has been asked for."""
        if not self._seeks:
            return job
        engine, task = self.engines[0], self.engines[0].tasks[job.state.task]
        with self._work.step(0, 3, f"Looking for the form of prompt in which the model answers {task.name} best"):
            recipe = engine.search(task.name, Client(job.unneeded)).best
        with self._guard:
            self._seeks = False
            values = values_of(recipe, task)
            # bare: beside demonstrations the model answers without the vector
            self.state = replace(self.state, **values, demos=None, bare=bool(values["n_shots"]))
            self._show("state", self._shown_state())
            return replace(job, state=self.state)

    def shared(self) -> str:
        """The state as a text, which `open` reads in this lab or in another one on the same model."""
        return shared(self.chosen, self.state)

    def open(self, text: Any) -> str:
        """Go to a state that `shared` wrote; return a sentence on what is not as it was, if anything.

        Raises:
            ValueError: as `opened`.
        """
        state, said = opened(text, self.chosen, self.limits)
        with self._guard:
            self.state, self._seeks = state if state.text.strip() else self._with_text(state), False
            self.refresh()
        return said

    def code(self) -> str:
        """A Python script that prints the completions that are shown."""
        return self.chosen.code(self.chosen.resolved(self.state))

    def load(self, path: str | Path, name: str = "") -> None:
        """Use a saved vector, of these weights or others of the same shape, and make prompts by its recipe.

        Raises:
            FileNotFoundError, ValueError: no such file, or the file holds no vector for a model of this shape.
        """
        loaded = InstructionVector.load(path, self.engines[0].model, allow_other_weights=True)
        with self._guard:
            task, recipe = self.engines[0].tasks[self.state.task], loaded.recipe
            values = {} if recipe is None else values_of(recipe, task, own=base_task(loaded) == task.name)
            before, self.chosen = self.chosen, Chosen(self.engines, loaded, name or str(path))
            try:
                self.change(source="file", **values)
            except ValueError:
                self.chosen = before
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

    def remark(self, text: str) -> None:
        """Show a sentence beside the status, until the next event; an empty one shows nothing."""
        self._show("remark", text)

    def say_error(self, error: Exception) -> None:
        """Show an error that an event caused, and the state, which the event did not change."""
        self._show("state", self._shown_state())
        self._work.say(error=sentence(error))

    def _settled(self, job: Job, found: Mapping[str, Any]) -> bool:
        """Take over the layer, strength and site that were found, unless a newer change may have set them."""
        with self._guard:
            if job.cancelled():
                return False
            self.state = replace(self.state, **found)
            self._show("state", self._shown_state())
            return True

    def _hear(self, at_work: list[dict[str, Any]]) -> None:
        self._show("running", {"page": self.number, "at_work": at_work})

    def _needs_the_same(self, state: LabState) -> bool:
        return self.engines[0].needs(self.state) == self.engines[0].needs(state)

    def _with_text(self, state: LabState) -> LabState:
        """The state with an input of its task: its own text, or one of *test*, which chose no heads or settings."""
        task = self.engines[0].tasks[state.task]
        if state.text and task.find(state.text) is not None:
            return state
        return replace(state, text=inputs_of(task, self.chosen.seed(state))[0])

    def _shown_state(self) -> dict[str, Any]:
        """The state as the page gets it: with the list of heads, the template's name and the vector's file."""
        state, chosen = self.state, self.chosen
        self._show("shared", shared(chosen, state))
        heads = [list(head) for head in (chosen.heads(state) if chosen.is_ready(state) else ())]
        template = self._template_name(state.template)
        is_chat = find_template("plain" if state.template == RAW else state.template).chat
        return {**vars(state), "heads": heads, "template": template, "chat": is_chat, "file": chosen.file}

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
