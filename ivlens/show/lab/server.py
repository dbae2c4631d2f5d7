"""The lab as a local page: on this machine only, and only for whoever has its address with the token."""

import hmac
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import panel as pn
from panel.io.server import get_server
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule
from tornado.web import Application, RequestHandler

from ivlens.show.lab.engine import Engine
from ivlens.show.lab.state import LabState
from ivlens.show.lab.view import Lab

ADDRESS = "127.0.0.1"
TITLE = "ivlens lab"


@dataclass(frozen=True)
class LabServer:
    """A server that listens; `run` serves until `stop` is called from another thread, or until Ctrl-C."""

    url: str
    port: int
    server: Any

    def run(self) -> None:
        """Serve."""
        self.server.start()
        try:
            self.server.io_loop.start()
        finally:
            self.server.stop()

    def stop(self) -> None:
        """End `run`."""
        loop = self.server.io_loop
        loop.add_callback(loop.stop)


def open_server(engines: tuple[Engine, ...], state: LabState, *, port: int = 0, token: str | None = None) -> LabServer:
    """Listen on 127.0.0.1, every page with a session of its own, all of them with the same engines.

    A request needs the token, in its address or in the cookie that the first page sets; others get 403, whatever they
    ask for. A websocket must come from a page of this server.

    Args:
        port: 0: any that is free.
        token: None: drawn.

    Raises:
        OSError: the port is taken, or not allowed.
        ValueError: there is no such port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, expected 1 to 65535, or 0 for any that is free.")
    token = token or secrets.token_urlsafe(24)

    def page() -> Lab:
        lab = Lab(engines, state, page=True)
        pn.state.on_session_destroyed(lambda context: lab.session.close())
        return lab

    with _said_of(port):
        server = get_server(
            {"/": page}, port=port, address=ADDRESS, title=TITLE, location=False, keep_alive_milliseconds=20_000
        )
    # the server knows its port only now; nothing is served before `run`
    assert server.port is not None
    port = server.port
    origins = server._tornado.websocket_origins
    origins.clear()
    origins.update(f"{host}:{port}" for host in (ADDRESS, "localhost"))
    _guard(server._tornado, token, f"ivlens-lab-{port}")
    return LabServer(f"http://{ADDRESS}:{port}/?token={token}", port, server)


@contextmanager
def _said_of(port: int) -> Iterator[None]:
    """What the system says about the port, with the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"port {port} cannot be used ({error.strerror}), expected a free one; choose another, or 0."
        ) from None


def _guard(application: Application, token: str, cookie: str) -> None:
    """Ask for the token before any handler of the application is reached."""

    def same(given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), token.encode())

    def has_cookie(request: HTTPServerRequest) -> bool:
        return cookie in request.cookies and same(request.cookies[cookie].value)

    def has_token(request: HTTPServerRequest) -> bool:
        return request.path == "/" and same(request.arguments.get("token", [b""])[-1].decode("utf-8", "replace"))

    # the page with the token in its address hands out the cookie and sends on to an address without it, so that the
    # token stays out of bookmarks and screenshots
    application.default_router.rules[:0] = [
        Rule(_When(has_token), _Enter, {"name": cookie, "value": token}),
        Rule(_When(lambda request: not has_cookie(request)), _Refuse),
    ]


class _When(Matcher):
    def __init__(self, test: Callable[[HTTPServerRequest], bool]) -> None:
        self.test = test

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        return {} if self.test(request) else None


class _Enter(RequestHandler):
    def initialize(self, name: str, value: str) -> None:
        self.name, self.value = name, value

    def get(self) -> None:
        self.set_cookie(self.name, self.value, httponly=True, samesite="Lax", path="/")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.redirect("/")


class _Refuse(RequestHandler):
    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("This lab opens with the address that `ivlens lab` printed, token included.\n")
