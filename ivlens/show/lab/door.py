"""Access to the lab's page: a request needs the token, must name this machine, and may not come from another page.

A browser sends a host's cookies to every port of that host, and another user of this machine may listen on one. So the
lab lies under a path that is drawn at random, and its cookie is sent to that path alone.
"""

import hmac
import html
import json
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
MOST_CONNECTIONS = 256  # at the same time; each is an open file, and systems often allow 1,024 per program
LIMITS = {
    "idle_connection_timeout": 15.0,  # seconds; also the time that a request's headers may take
    "body_timeout": 15.0,
    "max_body_size": 2**16,  # bytes, like the next limit
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
# leads on to the address without the token, and keeps the part of the address behind "#", which holds a state and never
# reaches the server. It is a page, not a redirection: after a link from another site, browsers
# follow redirections without the cookie, which is for requests from this site alone (SameSite=Strict)
_FORWARD = (
    '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>ivlens lab</title>'
    "<script>location.replace({script} + location.hash)</script>"
    '<noscript><meta http-equiv="refresh" content="0;url={}"></noscript>\n'
)
_REFUSAL = "This lab opens with the address that `ivlens lab` printed, token included.\n"


@dataclass(frozen=True)
class Door:
    """The secrets of one lab, and the rules by which its server lets requests in.

    Attributes:
        token: The secret that a request needs: in the address that opens the lab, later in the cookie.
        place: The path under which all pages of the lab lie, drawn at random.
    """

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    place: str = field(default_factory=lambda: f"/lab-{secrets.token_hex(8)}")

    def address(self, port: int) -> str:
        """The address that opens the lab, with the token."""
        return f"http://{HOSTS[0]}:{port}{self.place}/?token={self.token}"

    def cookie(self, port: int) -> str:
        """The cookie's name; every lab on this machine has another one, so that several can be open in one browser."""
        return f"ivlens{self.place.replace('/', '-')}-{port}"

    def hang(self, application: Application, server: HTTPServer, port: int) -> None:
        """Check every request before any handler of the application sees it, and limit the number of connections."""
        cookie, names = self.cookie(port), {f"{host}:{port}" for host in HOSTS}

        def comes_in(request: HTTPServerRequest) -> bool:
            # every request after the first one: the cookie holds the token
            given = request.cookies[cookie].value if cookie in request.cookies else None
            return _is_own(request, names) and self._fits(given)

        def enters(request: HTTPServerRequest) -> bool:
            # the first request: the address holds the token
            given = request.arguments.get("token", [b""])[-1].decode("utf-8", "replace")
            return request.host in names and request.path == f"{self.place}/" and self._fits(given)

        facts = {"name": cookie, "value": self.token, "path": self.place}
        application.default_router.rules[:0] = [
            Rule(_When(enters), _Enter, facts),
            Rule(_When(lambda request: not comes_in(request)), _Refuse),
            # bokeh would serve its icon outside of the lab's path
            Rule(_When(lambda request: request.path == f"{self.place}/favicon.ico"), IcoHandler, {"app": application}),
        ]
        application.add_transform(_Headers)
        _limit(server)

    def _fits(self, given: str | None) -> bool:
        """Whether this is the token; the comparison takes equally long however many letters are right."""
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _is_own(request: HTTPServerRequest, names: set[str]) -> bool:
    """Whether a request comes from the lab's page or was typed by the user, judging by the browser's headers."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    if request.host not in names or (origin is not None and origin not in {f"http://{name}" for name in names}):
        return False
    # browsers differ in the Sec-Fetch-Site of a websocket, but always send its Origin, which was checked above
    return site in ("none", "same-origin") or (origin is not None and "Upgrade" in request.headers)


def _limit(server: Any) -> None:
    """Close every new connection at once while `MOST_CONNECTIONS` are open."""
    accept = server.handle_stream

    def handle(stream: IOStream, address: tuple[Any, ...]) -> Any:
        if len(server._connections) >= MOST_CONNECTIONS:
            stream.close()
            return None
        return accept(stream, address)

    server.handle_stream = handle


class _When(Matcher):
    """A rule of tornado's router that applies to the requests for which `test` is true."""

    def __init__(self, test: Callable[[HTTPServerRequest], bool]) -> None:
        self.test = test

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        return {} if self.test(request) else None


class _Headers(OutputTransform):
    """Adds the security headers to every response."""

    def __init__(self, request: HTTPServerRequest) -> None:
        pass

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        for name, value in _HEADERS.items():
            headers[name] = value
        return status_code, headers, chunk


class _Enter(RequestHandler):
    """Answers the first request: sets the cookie and leads on to the address without the token."""

    def initialize(self, name: str, value: str, path: str) -> None:
        self.name, self.value, self.place = name, value, path

    def get(self) -> None:
        self.set_cookie(self.name, self.value, httponly=True, samesite="Strict", path=self.place)
        self.set_header("Cache-Control", "no-store")
        address = f"{self.place}/"  # drawn by this program: letters, digits, a dash and slashes
        self.finish(_FORWARD.format(html.escape(address), script=json.dumps(address)))


class _Refuse(RequestHandler):
    """Answers every request that may not come in, with status 403."""

    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(_REFUSAL)
