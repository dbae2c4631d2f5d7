"""`Lab`: one session on a page, the same class in a notebook cell and in the browser."""

import base64
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import panel as pn
import param
from panel.custom import JSComponent

from ivlens.show.figures.theme import DARK, LIGHT
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.session import MAX_FILE, Session
from ivlens.show.lab.state import LabState, Limits, with_template

if TYPE_CHECKING:
    from ivlens.effects.results import HeadEffects
    from ivlens.vectors.vector import InstructionVector

_PAGE = Path(__file__).parent / "page"
_N_PAGES = 64
_LONGEST_NAME, _MOST_EVENTS = 200, 2**53


class LabView(JSComponent):
    """The page itself. Every value is a JSON text: the browser's side and this one never guess at types."""

    facts = param.String(doc="What never changes: models, tasks, templates, colours.")
    state = param.String(doc="The controls.")
    ability = param.String(doc="Whether the model can do the task at all.")
    task = param.String(doc="Inputs and instructions of the task, effects of all heads.")
    result = param.String(doc="Completions as far as they have come.")
    code = param.String(doc="The Python that gives them.")
    status = param.String(doc="What is being done, or what went wrong.")
    running = param.String(doc="What is being done for which page.")

    _esm = (_PAGE / "lab.js").read_text(encoding="utf-8")
    _stylesheets = [(_PAGE / "lab.css").read_text(encoding="utf-8")]


class Lab(pn.viewable.Viewer):
    """Heads, vector and completions, to be looked at and changed by hand or from Python.

        >>> lab = ivlens.lab("pocket")
        >>> lab                                # the last line of a notebook cell shows it
        >>> lab.set(task="synonym", alpha=2)   # as if by hand
        >>> lab.iv, lab.texts                  # what is shown

    Showing it twice gives two views of the same lab.
    """

    def __init__(self, engines: Sequence[Engine], state: LabState, *, page: bool = False) -> None:
        super().__init__()
        self._document = pn.state.curdoc if page else None
        self._showing = threading.RLock()
        self._seen: dict[str, int] = {}
        self._last: dict[str, Any] = {}
        self._waiting: dict[str, None] = {}
        self._scheduled, self._count, self._begun = False, 0, not page
        self._view = LabView(sizing_mode="stretch_width", facts=json.dumps(_facts(engines, page)))
        self._view.on_msg(lambda event: self._hear(event.data))
        self.session = Session(engines, state, self._show)
        if not page:
            self.session.refresh()

    def __panel__(self) -> LabView:
        return self._view

    @property
    def state(self) -> LabState:
        """What the controls hold."""
        return self.session.state

    @property
    def iv(self) -> "InstructionVector | None":
        """The vector that is added (to the first model); None where no head is chosen."""
        return self.session.vectors()[0]

    @property
    def effects(self) -> "HeadEffects":
        """The effects of the task's heads, measured on the first model."""
        return self.session.engines[0].effects(self.state)

    @property
    def texts(self) -> list[dict[str, str]]:
        """The completions of each model, once they are complete: `plain`, `patched`, `random`."""
        self.wait()
        models = self._last.get("result", {"models": []})["models"]
        return [{column["name"]: column["text"] for column in model["columns"]} for model in models]

    def set(self, **values: Any) -> None:
        """Change the state by its names: task, text, template, n_shots, instruction, heads, k, layer, alpha, site ...

        `template` may also be a JSON file or a `PromptTemplate`.

        Raises:
            ValueError: no such name, or a value that is not allowed.
            FileNotFoundError: no such file of a template.
        """
        self.session.change(**with_template(values))

    def load(self, path: str | Path) -> None:
        """Use a saved vector instead of that of the heads, and make prompts by its recipe."""
        self.session.load(path)

    def code(self) -> str:
        """The Python that gives what is shown."""
        return self.session.code()

    def wait(self, timeout: float | int = 60) -> bool:
        """Whether all that was asked for is shown, at most `timeout` seconds from now."""
        return self.session.wait(timeout)

    def _show(self, channel: str, value: Any) -> None:
        """Put a value on the page, from any thread; of several that follow quickly only the last may be seen."""
        with self._showing:
            self._last[channel] = value
            self._waiting[channel] = None
            if self._document is None:
                self._flush()
            elif not self._scheduled:
                # a server's document belongs to the server's thread
                self._scheduled = True
                self._document.add_next_tick_callback(self._flush)

    def _flush(self) -> None:
        with self._showing:
            self._scheduled = False
            channels, self._waiting = list(self._waiting), {}
            for channel in channels:
                value = self._last[channel]
                if channel == "state":
                    value = {**value, "seen": self._seen}
                self._count += 1
                # numbered, so that a value said twice is sent twice: the first time it may have missed the page
                setattr(self._view, channel, json.dumps({"number": self._count, "value": value}))

    def _begin(self) -> None:
        """A page is there: begin the work, or say everything again, as what was said meanwhile may have missed it."""
        if not self._begun:
            self._begun = True
            self.session.refresh()
            return
        for channel in list(self._last):
            self._show(channel, self._last[channel])

    def _hear(self, message: Any) -> None:
        """One event of a page; whatever is wrong with it is shown there."""
        try:
            event = json.loads(message)
            kind, page, seq = event["kind"], str(event["page"])[:_LONGEST_NAME], min(int(event["seq"]), _MOST_EVENTS)
        except (TypeError, ValueError, KeyError, OverflowError, RecursionError):
            self.session.say_error(ValueError(f"the page sent {message!r:.60}, expected an event; reload it."))
            return
        if kind == "here":  # a page asks whether anyone is there
            self._view._send_msg(json.dumps({"here": True}))
            return
        with self._showing:
            self._seen = dict([*((k, v) for k, v in self._seen.items() if k != page), (page, seq)][-_N_PAGES:])
        try:
            self._do(kind, event)
        except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
            self.session.say_error(error)
        with self._showing:
            if "state" in self._last:
                self._show("state", self._last["state"])  # with the event's number, also where nothing changed

    def _do(self, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "hello":
            self._begin()
        elif kind == "set":
            self.session.change(**event["values"])
        elif kind == "toggle":
            self.session.toggle(event["head"])
        elif kind == "search":
            self.session.search()
        elif kind == "load":
            self.session.load_bytes(str(event["name"])[:_LONGEST_NAME], base64.b64decode(event["content"]))
        elif kind == "save":
            # in a thread of its own: it may have to wait for the model, and other pages are served meanwhile
            threading.Thread(target=self._save, name="ivlens-lab-save", daemon=True).start()
        else:
            raise ValueError(f"the page asked for {kind!r:.40}, expected an event it knows; reload it.")

    def _save(self) -> None:
        try:
            name, content = self.session.saved()
        except (ValueError, OSError) as error:
            self.session.say_error(error)
            return
        message = json.dumps({"name": name, "content": base64.b64encode(content).decode()})
        if self._document is None:
            self._view._send_msg(message)
        else:
            self._document.add_next_tick_callback(lambda: self._view._send_msg(message))


def _facts(engines: Sequence[Engine], page: bool) -> dict[str, Any]:
    first = engines[0]
    limits = Limits(tuple(first.tasks), first.identity.n_layers, first.identity.n_heads)
    chat = getattr(first.model.tokenizer, "chat_template", None)
    return {
        "models": [engine.facts() for engine in engines],
        "tasks": list(limits.tasks),
        "templates": [name for name in limits.templates if name != "chat" or chat],
        "scales": {theme.name: theme.diverging for theme in (LIGHT, DARK)},
        "page": page,
        "max_file": MAX_FILE,
    }
