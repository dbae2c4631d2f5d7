"""`Lab`: a session shown on a page, in a notebook cell or in a browser."""

import base64
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import panel as pn
import param
from panel.custom import JSComponent

from ivlens.common.files import read_small, write_whole
from ivlens.show.figures.theme import DARK, LIGHT
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.limits import Limits
from ivlens.show.lab.session import MAX_FILE, Session
from ivlens.show.lab.share import MAX_SHARED, template_text
from ivlens.show.lab.state import LabState, with_template

if TYPE_CHECKING:
    from ivlens.effects.results import HeadEffects
    from ivlens.vectors.vector import InstructionVector

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("base", "map", "card", "many", "inside", "more", "page")  # in this order: each uses what stands before it
# bounds on what a page may send: 2**53 is the largest whole number that JavaScript can count to
_N_PAGES = 64
_LONGEST_NAME, _MOST_EVENTS = 200, 2**53


class LabView(JSComponent):
    """The page itself. Every value is a JSON text, so that no types are converted between Python and the browser."""

    facts = param.String(doc="Facts that never change: models, tasks, templates, colours.")
    state = param.String(doc="The state of the controls.")
    ability = param.String(doc="Clean and bare accuracy, which tell whether the model can do the task at all.")
    task = param.String(doc="Inputs and instructions of the task, effects of all heads.")
    result = param.String(doc="The completions, as far as they have come.")
    view = param.String(doc="What is shown beside the completions: a head's card, many inputs, ...")
    code = param.String(doc="The Python script that gives the completions.")
    status = param.String(doc="What is being done, or what went wrong.")
    progress = param.String(doc="How far a measurement has come; null while nothing is measured.")
    shared = param.String(doc="The state as a text, which another lab on the same model opens.")
    running = param.String(doc="What is being done for which page.")
    remark = param.String(doc="A sentence on a state that was opened.")

    # one script: panel serves no files beside it, and nothing may be fetched from elsewhere
    _esm = "\n".join((_PAGE / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    _stylesheets = [(_PAGE / "lab.css").read_text(encoding="utf-8")]


class Lab(pn.viewable.Viewer):
    """The lab: heads, vector and completions of a model, which can be changed on the page or from Python.

        >>> lab = ivlens.lab("pocket")
        >>> lab                                # the last line of a notebook cell shows it
        >>> lab.set(task="synonym", alpha=2)   # the same as on the page
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
        self._scheduled, self._count, self._begun, self._is_closed = False, 0, not page, False
        self._view = LabView(sizing_mode="stretch_width", facts=json.dumps(_facts(engines, page)))
        self._view.on_msg(lambda event: self._hear(event.data))
        self.session = Session(engines, state, self._show)
        if not page:
            self.session.refresh()

    def __panel__(self) -> LabView:
        return self._view

    @property
    def state(self) -> LabState:
        """The state of the controls."""
        return self.session.state

    @property
    def iv(self) -> "InstructionVector | None":
        """The vector that is added to the (first) model; None where no head is chosen."""
        return self.session.vectors()[0]

    @property
    def effects(self) -> "HeadEffects":
        """The effects of the task's heads, measured on the first model."""
        return self.session.engines[0].effects(self.state)

    @property
    def texts(self) -> list[dict[str, str]]:
        """The completions of each model by name (`plain`, `patched`, `random`); waits until they are complete."""
        self.wait()
        models = self._last.get("result", {"models": []})["models"]
        return [{column["name"]: column["text"] for column in model["columns"]} for model in models]

    def set(self, **values: Any) -> None:
        """Change values of the state, such as `task`, `text`, `template`, `heads`, `layer` or `alpha`; see `LabState`.

        `template` may also be a JSON file or a `PromptTemplate`.

        Raises:
            ValueError: no such name, or a value that is not allowed.
            FileNotFoundError: the template's file does not exist.
        """
        self.session.change(**with_template(values))

    def load(self, path: str | Path) -> None:
        """Use a saved vector instead of one made from heads, and make prompts by its recipe."""
        self.session.load(path)

    def save_session(self, path: str | Path) -> Path:
        """Write the state of the controls to a file, which a lab on the same model opens."""
        target = Path(path)
        write_whole(target, lambda partial: partial.write_text(self.session.shared(), encoding="utf-8"))
        return target

    def open_session(self, path: str | Path) -> None:
        """Go to the state in a file of `save_session`, or of the page's button.

        Raises:
            FileNotFoundError, ValueError: no such file, or it holds no session of this model and these tasks.
        """
        self.session.remark(self.session.open(read_small(Path(path), MAX_SHARED).decode("utf-8", "replace")))

    def code(self) -> str:
        """A Python script that prints the completions that are shown."""
        return self.session.code()

    def wait(self, timeout: float | int = 60) -> bool:
        """Wait for at most `timeout` seconds; return whether everything that was asked for is shown."""
        return self.session.wait(timeout)

    def close(self) -> None:
        """End the work, because the page is closed; nothing is shown any more."""
        self._is_closed = True
        self.session.close()

    def _show(self, channel: str, value: Any) -> None:
        """Show a value on the page, from any thread; of several in quick succession only the last may be shown."""
        with self._showing:
            if self._is_closed:  # the server has taken the page apart
                return
            self._last[channel] = value
            self._waiting[channel] = None
            if self._document is None:
                self._flush()
            elif not self._scheduled:
                # a page of the server may only be changed in the server's thread
                self._scheduled = True
                self._document.add_next_tick_callback(self._flush)

    def _flush(self) -> None:
        """Send the waiting values to the page."""
        with self._showing:
            self._scheduled = False
            channels, self._waiting = list(self._waiting), {}
            for channel in channels:
                value = self._last[channel]
                if channel == "state":
                    value = {**value, "seen": self._seen}
                self._count += 1
                # numbered, since panel does not send a value that has not changed, and the page may have missed it
                setattr(self._view, channel, json.dumps({"number": self._count, "value": value}))

    def _begin(self, text: Any = None) -> None:
        """Begin the work for a page that has opened, or show everything again, since it may have missed values.

        Args:
            text: the state in the page's address, if it has one.
        """
        if not self._begun:
            self._begun = True
            self._open(text) if text else self.session.refresh()
            return
        for channel in list(self._last):
            self._show(channel, self._last[channel])

    def _hear(self, message: Any) -> None:
        """Carry out one event of a page; an error is shown on the page."""
        try:
            event = json.loads(message)
            kind, page, seq = event["kind"], str(event["page"])[:_LONGEST_NAME], min(int(event["seq"]), _MOST_EVENTS)
        except (TypeError, ValueError, KeyError, OverflowError, RecursionError):
            self.session.say_error(ValueError(f"the page sent {message!r:.60}, expected an event; reload it."))
            return
        if kind == "here":  # the page asks whether the connection still works
            self._view._send_msg(json.dumps({"here": True}))
            return
        # of each page only its last event, and of pages only the latest ones, are remembered
        with self._showing:
            self._seen = dict([*((k, v) for k, v in self._seen.items() if k != page), (page, seq)][-_N_PAGES:])
        if self._last.get("remark") and kind not in ("hello", "open"):
            self.session.remark("")
        try:
            self._do(kind, event)
        except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
            self.session.say_error(error)
        with self._showing:
            if "state" in self._last:
                self._show("state", self._last["state"])  # with the event's number, so that the page knows it arrived

    def _do(self, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "hello":
            self._begin(event.get("shared"))
        elif kind == "set":
            self.session.change(**event["values"])
        elif kind == "toggle":
            self.session.toggle(event["head"])
        elif kind == "search":
            self.session.search()
        elif kind == "form":
            self.session.find_form()
        elif kind == "open":
            self._open(event["content"])
        elif kind == "template":
            self.session.change(template=template_text(str(event["name"])[:_LONGEST_NAME], event["content"]))
        elif kind == "load":
            self.session.load_bytes(str(event["name"])[:_LONGEST_NAME], base64.b64decode(event["content"]))
        elif kind == "save":
            # in a thread of its own: it may have to wait for the model, while other pages have to be served
            threading.Thread(target=self._save, name="ivlens-lab-save", daemon=False).start()
        else:
            raise ValueError(f"the page asked for {kind!r:.40}, expected an event it knows; reload it.")

    def _open(self, text: Any) -> None:
        """Go to the state in a text; what is wrong with it is said, and the page then shows its own state."""
        try:
            said = self.session.open(text)
        except ValueError as error:
            self.session.refresh()
            self.session.remark(str(error))
            return
        self.session.remark(said)

    def _save(self) -> None:
        """Send the vector to the browser as a file."""
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
    """What the page has to know once: models, tasks, templates, colours and limits."""
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
        "max_shared": MAX_SHARED,
    }
