"""Serve the lab as a page on this machine only, and only to someone who has the address with the token."""

import html
import signal
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import panel as pn
from panel.io.resources import LOCAL_DIST
from panel.io.server import get_server

from ivlens.common.cache import ready_cache
from ivlens.show.lab.door import HOSTS, LIMITS, Door
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.session import MAX_FILE
from ivlens.show.lab.state import LabState
from ivlens.show.lab.view import Lab

TITLE = "ivlens lab"
MOST_SECONDS = 20.0  # how long work may take to stop when the server ends
_LARGEST_MESSAGE = MAX_FILE * 4 // 3 + 2**20  # bytes; base64 makes a file a third longer
# a page that leads on to the lab's address at once
_FORWARD = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={0}"><title>ivlens lab</title>\n'
    '<a href="{0}">ivlens lab</a>\n'
)


@dataclass(frozen=True)
class LabServer:
    """A listening server of the lab. `run` serves until `stop` is called from another thread, or until Ctrl-C.

    Attributes:
        url: the address that opens the lab, with the token.
        port: the port it listens on.
        server: the server of panel.
        pages: the labs of all open pages.
    """

    url: str
    port: int
    server: Any
    pages: list[Lab] = field(default_factory=list)

    def run(self) -> bool:
        """Serve until the end; return whether all work has stopped then.

        Work may be left over, since a thread that computes cannot be ended from outside.
        """
        self.server.start()
        try:
            self.server.io_loop.start()
        finally:
            if threading.current_thread() is threading.main_thread():
                # the server's own handler needs its loop, which has ended
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self.server.stop()
            until = time.monotonic() + MOST_SECONDS
            for page in self.pages:
                page.close()
        return all([page.wait(max(0.0, until - time.monotonic())) for page in list(self.pages)])

    def stop(self) -> None:
        """End `run`; may be called from any thread."""
        loop = self.server.io_loop
        loop.add_callback(loop.stop)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Open the page in the user's browser.

        The browser is given a file that only this user can read and that leads on to the address. The address itself,
        with its token, would be visible to all users of this machine in the list of processes.
        """
        with TemporaryDirectory(prefix="open-", dir=ready_cache("lab"), ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "lab.html"
            file.touch(mode=0o600)
            file.write_text(_FORWARD.format(html.escape(self.url)), encoding="utf-8")
            # in a thread of its own: a browser that runs in the terminal would keep the server from serving
            threading.Thread(target=webbrowser.open, args=(file.as_uri(),), daemon=True).start()
            yield


def open_server(engines: tuple[Engine, ...], state: LabState, *, port: int = 0, door: Door | None = None) -> LabServer:
    """Listen on 127.0.0.1. Every page has a session of its own; all pages share the engines.

    A request needs the token, in its address or in the cookie that the first page sets. Every other request gets status
    403, and so do requests that come from scripts or frames of other pages, or under another name of this machine.

    Args:
        engines: one for each model.
        state: what every new page begins with.
        port: the port to listen on; 0: any that is free.
        door: the token and the path of the lab; None: drawn at random.

    Raises:
        OSError: the port is taken, or not allowed.
        ValueError: there is no such port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, expected 1 to 65535, or 0 for any that is free.")
    door, pages = door or Door(), list[Lab]()

    def page() -> Lab:
        # otherwise a page so slow that its session was dropped gets a new one whose styles come from panel's own host
        assert pn.state.curdoc is not None  # the server makes a document before it asks for what is in it
        pn.state.curdoc.template_variables["dist_url"] = f"{door.place}/{LOCAL_DIST}"
        lab = Lab(engines, state, page=True)
        # pages whose work is over are forgotten; a closed page that still computes is waited for at the end
        pages[:] = [*(one for one in pages if not one.session.is_over), lab]
        pn.state.on_session_destroyed(lambda context: lab.close())
        return lab

    with _port_error(port):
        server = get_server(
            {"/": page}, port=port, address=HOSTS[0], title=TITLE, location=False, keep_alive_milliseconds=20_000,
            prefix=door.place, websocket_max_message_size=_LARGEST_MESSAGE, http_server_kwargs=dict(LIMITS),
            # sessions of closed pages end soon, so that their work keeps nobody waiting; a slow page gets a new one
            unused_session_lifetime_milliseconds=4_000, check_unused_sessions_milliseconds=1_000,
        )  # fmt: skip
    # only now the port is known, where any free one was asked for; nothing is served before `run`
    assert server.port is not None
    port = server.port
    origins = server._tornado.websocket_origins
    origins.clear()
    origins.update(f"{host}:{port}" for host in HOSTS)
    door.hang(server._tornado, server._http, port)
    return LabServer(door.address(port), port, server, pages)


@contextmanager
def _port_error(port: int) -> Iterator[None]:
    """Turn a system error of the body into one that names the port and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"port {port} cannot be used ({error.strerror}), expected a free one; choose another, or 0."
        ) from None
