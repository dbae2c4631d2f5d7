"""A lab without a page, for tests: what its session shows, and the texts that its code prints."""

import contextlib
import io

from ivlens.show.lab.session import Session
from ivlens.show.lab.state import LabState

STATE = LabState("antonym", text="big", layer=2, alpha=4.0, site="resid_post")


class Screen(dict):
    """What a session has shown last on every channel, and everything on the way."""

    def __init__(self):
        self.history = []

    def __call__(self, channel, value):
        self[channel] = value
        self.history.append((channel, value))

    def texts(self, model=0):
        return {column["name"]: column["text"] for column in self["result"]["models"][model]["columns"]}


def opened(engines, state=STATE):
    """A session that shows a state, and its screen."""
    screen = Screen()
    session = Session(engines, state, screen)
    session.refresh()
    assert session.wait()
    return session, screen


def assert_code_prints_what_is_shown(screen: Screen) -> None:
    """Run the code on the screen, and compare what it prints with the texts of all models."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(screen["code"], {})
    shown = [screen.texts(number) for number in range(len(screen["result"]["models"]))]
    assert printed.getvalue().splitlines() == [str([text]) for texts in shown for text in texts.values()]
