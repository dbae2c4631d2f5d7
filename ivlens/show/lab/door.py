"""Who may come in to the lab's page: whoever has its token, from this machine's own names, through no other page.

A browser sends cookies to every port of a host, and another user of this machine can listen on one. So the lab lies
under a path that is drawn, and the cookie is for that path alone.
"""

import hmac
import html
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bokeh.server.views.ico_handler import IcoHandler
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.iostream import IOStream
from tornado.routing import Matcher, Rule
from tornado.web import Application, OutputTransform, RequestHandler

HOSTS = ("127.0.0.1", "localhost")
MOST_CONNECTIONS = 256  # at once; a program may have a thousand files open
LIMITS = {
    "idle_connection_timeout": 15.0,  # seconds, for the head of a request too
    "body_timeout": 15.0,
    "max_body_size": 2**16,
    "max_header_size": 2**15,
}
_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# to an address without the token, by a page and not by a redirection: a cookie that is for this site alone does not go
# along where another site's link began the way here
_ON = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={}"><link rel="icon" href="data:,">'
    "<title>ivlens lab</title>\n"
)
_NO = "This lab opens with the address that `ivlens lab` printed, token included.\n"


@dataclass(frozen=True)
class Door:
    """What a request needs to come in.

    Attributes:
        token: It stands in the first address, and in the cookie.
        place: The path under which everything lies.
    """

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    place: str = field(default_factory=lambda: f"/lab-{secrets.token_hex(8)}")

    def address(self, port: int) -> str:
        """What opens the lab."""
        return f"http://{HOSTS[0]}:{port}{self.place}/?token={self.token}"

    def cookie(self, port: int) -> str:
        """The cookie's name, another one for every lab on this machine."""
        return f"ivlens{self.place.replace('/', '-')}-{port}"

    def hang(self, application: Application, server: HTTPServer, port: int) -> None:
        """Ask every request, before any handler of the application is reached, and limit how many there are at once."""
        cookie, names = self.cookie(port), {f"{host}:{port}" for host in HOSTS}

        def comes_in(request: HTTPServerRequest) -> bool:
            given = request.cookies[cookie].value if cookie in request.cookies else None
            return _is_own(request, names) and self._fits(given)

        def enters(request: HTTPServerRequest) -> bool:
            given = request.arguments.get("token", [b""])[-1].decode("utf-8", "replace")
            return request.host in names and request.path == f"{self.place}/" and self._fits(given)

        facts = {"name": cookie, "value": self.token, "path": self.place}
        application.default_router.rules[:0] = [
            Rule(_When(enters), _Enter, facts),
            Rule(_When(lambda request: not comes_in(request)), _Refuse),
            # bokeh has its icon outside of the path
            Rule(_When(lambda request: request.path == f"{self.place}/favicon.ico"), IcoHandler, {"app": application}),
        ]
        application.add_transform(_Headers)
        _limit(server)

    def _fits(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _is_own(request: HTTPServerRequest, names: set[str]) -> bool:
    """Whether a request was made by the lab's page or typed by its user, as far as a browser tells."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    if request.host not in names or (origin is not None and origin not in {f"http://{name}" for name in names}):
        return False
    # browsers do not agree on what they say of a websocket, which always has an Origin
    return site in ("none", "same-origin") or (origin is not None and "Upgrade" in request.headers)


def _limit(server: Any) -> None:
    """Hang up at once on whoever comes when there are too many."""
    accept = server.handle_stream

    def handle(stream: IOStream, address: tuple[Any, ...]) -> Any:
        if len(server._connections) >= MOST_CONNECTIONS:
            stream.close()
            return None
        return accept(stream, address)

    server.handle_stream = handle


class _When(Matcher):
    def __init__(self, test: Callable[[HTTPServerRequest], bool]) -> None:
        self.test = test

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        return {} if self.test(request) else None


class _Headers(OutputTransform):
    def __init__(self, request: HTTPServerRequest) -> None:
        pass

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        for name, value in _HEADERS.items():
            headers[name] = value
        return status_code, headers, chunk


class _Enter(RequestHandler):
    def initialize(self, name: str, value: str, path: str) -> None:
        self.name, self.value, self.place = name, value, path

    def get(self) -> None:
        self.set_cookie(self.name, self.value, httponly=True, samesite="Strict", path=self.place)
        self.set_header("Cache-Control", "no-store")
        self.finish(_ON.format(html.escape(f"{self.place}/")))


class _Refuse(RequestHandler):
    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(_NO)
