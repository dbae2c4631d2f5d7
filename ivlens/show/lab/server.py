"""The lab as a local page: on this machine only, and only for whoever has its address with the token."""

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
from panel.io.server import get_server

from ivlens.common.cache import ready_cache
from ivlens.show.lab.door import HOSTS, LIMITS, Door
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.session import MAX_FILE
from ivlens.show.lab.state import LabState
from ivlens.show.lab.view import Lab

TITLE = "ivlens lab"
MOST_SECONDS = 20.0  # that work may take to stop when the server ends
_LARGEST_MESSAGE = MAX_FILE * 4 // 3 + 2**20  # a file is sent in base64, which is a third longer
_OPENS = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={0}"><title>ivlens lab</title>\n'
    '<a href="{0}">ivlens lab</a>\n'
)


@dataclass(frozen=True)
class LabServer:
    """A server that listens; `run` serves until `stop` is called from another thread, or until Ctrl-C."""

    url: str
    port: int
    server: Any
    pages: list[Lab] = field(default_factory=list)

    def run(self) -> bool:
        """Serve; at the end, whether all work has stopped (a thread that computes cannot be ended from outside)."""
        self.server.start()
        try:
            self.server.io_loop.start()
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.default_int_handler)  # the server's own needs its loop
            self.server.stop()
            until = time.monotonic() + MOST_SECONDS
            for page in self.pages:
                page.session.close()
        return all([page.wait(max(0.0, until - time.monotonic())) for page in list(self.pages)])

    def stop(self) -> None:
        """End `run`."""
        loop = self.server.io_loop
        loop.add_callback(loop.stop)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Open the page in the user's browser, without telling its address to whoever lists this machine's processes.

        The browser is given a file that only this user can read, and that leads on to the address.
        """
        with TemporaryDirectory(prefix="open-", dir=ready_cache("lab"), ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "lab.html"
            file.touch(mode=0o600)
            file.write_text(_OPENS.format(html.escape(self.url)), encoding="utf-8")
            # in a thread that nothing waits for: a browser in the terminal would keep the server from serving
            threading.Thread(target=webbrowser.open, args=(file.as_uri(),), daemon=True).start()
            yield


def open_server(engines: tuple[Engine, ...], state: LabState, *, port: int = 0, door: Door | None = None) -> LabServer:
    """Listen on 127.0.0.1, every page with a session of its own, all of them with the same engines.

    A request needs the token, in its address or in the cookie that the first page sets; others get 403, whatever they
    ask for, and so does what another page's scripts, frames or names of this machine bring.

    Args:
        port: 0: any that is free.
        door: None: drawn.

    Raises:
        OSError: the port is taken, or not allowed.
        ValueError: there is no such port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, expected 1 to 65535, or 0 for any that is free.")
    door, pages = door or Door(), list[Lab]()

    def page() -> Lab:
        lab = Lab(engines, state, page=True)
        pages[:] = [*(one for one in pages if not one.session.is_over), lab]
        pn.state.on_session_destroyed(lambda context: lab.session.close())
        return lab

    with _said_of(port):
        server = get_server(
            {"/": page}, port=port, address=HOSTS[0], title=TITLE, location=False, keep_alive_milliseconds=20_000,
            prefix=door.place, websocket_max_message_size=_LARGEST_MESSAGE, http_server_kwargs=dict(LIMITS),
            # a page that is gone must not keep others waiting; one that takes longer to load gets a new session
            unused_session_lifetime_milliseconds=4_000, check_unused_sessions_milliseconds=1_000,
        )  # fmt: skip
    # the server knows its port only now; nothing is served before `run`
    assert server.port is not None
    port = server.port
    origins = server._tornado.websocket_origins
    origins.clear()
    origins.update(f"{host}:{port}" for host in HOSTS)
    door.hang(server._tornado, server._http, port)
    return LabServer(door.address(port), port, server, pages)


@contextmanager
def _said_of(port: int) -> Iterator[None]:
    """What the system says about the port, with the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"port {port} cannot be used ({error.strerror}), expected a free one; choose another, or 0."
        ) from None
