"""Who comes in to the lab's server, and what it does with whoever should not."""

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import running
from warm import Warm

pytest.importorskip("panel")

LAB = ("ivlens", "lab", "--no-browser", "--task", "antonym", "--layer", "1", "--alpha", "4", "--site", "resid_post")


@dataclass
class Lab:
    """A lab that runs, and its cookie."""

    base: str
    place: str
    token: str
    port: int
    cookie: str = ""

    def ask(self, path: str, **headers: str) -> tuple[int, Message, str]:
        """Status, headers and text of an answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.base + path, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode("utf-8", "replace")

    def status(self, path: str, **headers: str) -> int:
        return self.ask(path, **headers)[0]

    @property
    def page(self) -> str:
        return f"{self.place}/"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    before = os.environ.get("BOKEH_ALLOW_WS_ORIGIN")
    os.environ["BOKEH_ALLOW_WS_ORIGIN"] = "*"  # bokeh would let every origin in
    try:
        with running(*LAB, warm=False) as url:
            parts = urlsplit(url)
            found = Lab(
                f"http://{parts.netloc}", parts.path.rstrip("/"), parts.query.removeprefix("token="), parts.port
            )
            status, headers, _ = found.ask(f"{found.page}?token={found.token}")
            assert status == 200
            (morsel,) = SimpleCookie(headers["Set-Cookie"]).values()
            found.cookie = f"{morsel.key}={morsel.value}"
            yield found
    finally:
        os.environ.pop("BOKEH_ALLOW_WS_ORIGIN")
        if before is not None:
            os.environ["BOKEH_ALLOW_WS_ORIGIN"] = before


def test_without_the_token_everything_is_refused(lab):
    paths = ("", "?token=wrong", "?token=", "ws", "static/js/bokeh.min.js", "nothing", f"ws?token={lab.token}")
    for path in (*(lab.page + each for each in paths), "/", f"/?token={lab.token}", "/favicon.ico", "//", "/../etc"):
        assert lab.status(path) == 403, path
    name = lab.cookie.split("=")[0]
    for wrong in ("wrong", "", lab.token[:-1], lab.token + "x", "\xe9"):
        assert lab.status(lab.page, Cookie=f"{name}={wrong}") == 403
    assert lab.status(lab.page, Cookie=lab.cookie) == 200
    assert lab.status(f"{lab.page}favicon.ico", Cookie=lab.cookie) == 200


def test_the_cookie_is_for_this_lab_alone(lab):
    _, headers, text = lab.ask(f"{lab.page}?token={lab.token}", Sec_Fetch_Site="cross-site")
    (morsel,) = SimpleCookie(headers["Set-Cookie"]).values()
    assert morsel["samesite"] == "Strict" and morsel["httponly"] and morsel["path"] == lab.place
    assert str(lab.port) in morsel.key and lab.place.strip("/") in morsel.key
    assert headers["Cache-Control"] == "no-store" and lab.token not in text and f"url={lab.page}" in text


@pytest.mark.parametrize("path", ["", "?token={token}", "static/js/bokeh.min.js", "nothing", "favicon.ico"])
@pytest.mark.parametrize("cookie", [True, False])
def test_every_answer_forbids_foreign_frames(lab, path, cookie):
    headers = {"Cookie": lab.cookie} if cookie else {}
    _, answered, _ = lab.ask(lab.page + path.format(token=lab.token), **headers)
    assert answered["Content-Security-Policy"] == "frame-ancestors 'self'"
    assert answered["X-Frame-Options"] == "SAMEORIGIN" and answered["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answered["X-Content-Type-Options"] == "nosniff"


def test_names_and_pages_of_others_do_not_come_in(lab):
    for host in (
        "evil.example",
        f"evil.example:{lab.port}",
        f"127.0.0.1.evil.example:{lab.port}",
        "127.0.0.1",
        "[::1]",
    ):
        assert lab.status(lab.page, Cookie=lab.cookie, Host=host) == 403, host
        assert lab.status(f"{lab.page}?token={lab.token}", Host=host) == 403, host
    for origin in ("http://evil.example", "http://127.0.0.1:1", f"https://127.0.0.1:{lab.port}", "null", ""):
        assert lab.status(lab.page, Cookie=lab.cookie, Origin=origin) == 403, origin
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert lab.status(lab.page, Cookie=lab.cookie, Sec_Fetch_Site=site) == status


def test_only_its_own_page_opens_a_websocket(lab):
    own, name = f"http://127.0.0.1:{lab.port}", f"http://localhost:{lab.port}"
    expected = {own: 101, name: 101, "http://127.0.0.1:1": 403, "http://evil.example": 403, "null": 403, "": 403}
    for origin, status in expected.items():
        assert upgraded(lab, lab.cookie, origin) == status, origin
    assert upgraded(lab, "", own) == 403
    assert upgraded(lab, lab.cookie, "http://evil.example", "Sec-Fetch-Site: same-origin") == 403


def upgraded(lab: Lab, cookie: str, origin: str, *more: str) -> int:
    """The status that a request to open a websocket gets."""
    lines = [f"GET {lab.page}ws HTTP/1.1", f"Host: 127.0.0.1:{lab.port}", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    lines += [f"Origin: {origin}", f"Cookie: {cookie}", "Sec-WebSocket-Protocol: bokeh, e30", *more, "", ""]
    with socket.create_connection(("127.0.0.1", lab.port), timeout=20) as client:
        client.sendall("\r\n".join(lines).encode())
        return int(client.recv(4096).split()[1])


POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
BROKEN = [
    b"",
    b"\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    POST + b"Content-Length: 99999999999\r\n\r\n" + b"x" * 100_000,
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
    b"GET /%ff%fe%00?token=%ff HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"GET /?token=" + b"%41" * 9_000 + b" HTTP/1.1\r\nHost: x\r\nCookie: " + b"a=b;" * 2_000 + b"\r\n\r\n",
]


def test_broken_requests_are_survived(lab):
    for request in BROKEN:
        with socket.create_connection(("127.0.0.1", lab.port), timeout=20) as client:
            try:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(4096)
            except OSError:
                continue  # hung up on
            assert not answer or answer.split()[1] in (b"400", b"403", b"405", b"413", b"431"), (request[:60], answer)
    assert lab.status(lab.page, Cookie=lab.cookie) == 200


@pytest.mark.slow
def test_a_flood_of_connections_is_hung_up_on_and_ends_by_itself(lab):
    clients = []
    try:
        for number in range(600):
            client = socket.create_connection(("127.0.0.1", lab.port), timeout=20)
            clients.append(client)
            if number % 2:
                client.sendall(b"GET / HT")  # and never the rest
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if lab.status(lab.page, Cookie=lab.cookie) == 200:
                    break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("the flood kept everyone else out")
    finally:
        for client in clients:
            client.close()


def talked(lab: Lab, *messages: str | bytes) -> str:
    """What becomes of a websocket of the lab's own page on which these messages are sent."""
    from tornado.httpclient import HTTPRequest
    from tornado.websocket import WebSocketClosedError, websocket_connect

    status, _, text = lab.ask(lab.page, Cookie=lab.cookie)
    assert status == 200
    token = re.search(r'"token":\s*"([^"]+)"', text)[1]

    async def talk() -> str:
        headers = {"Cookie": lab.cookie, "Origin": lab.base}
        request = HTTPRequest(f"ws://127.0.0.1:{lab.port}{lab.page}ws", headers=headers)
        client = await websocket_connect(request, subprotocols=["bokeh", token], max_message_size=2**28)
        await client.read_message()
        try:
            for message in messages:
                await client.write_message(message, binary=isinstance(message, bytes))
            while await asyncio.wait_for(client.read_message(), 3) is not None:
                pass
            return f"closed: {client.close_code}"
        except WebSocketClosedError:
            return "closed"
        except TimeoutError:
            return "open"
        finally:
            client.close()

    return asyncio.run(talk())


@pytest.mark.parametrize(
    "messages",
    [
        ("{",), ("[" * 100_000,), ("null", "null", "null"), (b"\x00" * 1000,), ("{}", "{}", "{}"), ("x" * 30_000_000,),
        (json.dumps({"msgid": "1", "msgtype": "PATCH-DOC"}), "{}", json.dumps({"events": [{"kind": "X"}]})),
        (json.dumps({"msgid": "1", "msgtype": "NO-SUCH"}), "{}", "{}"),
        (json.dumps({"msgid": "1", "msgtype": "PATCH-DOC", "num_buffers": 10**9}), "{}", "{}"),
    ],
    ids=["half", "nested", "null", "bytes", "empty", "30 MB", "odd patch", "odd type", "buffers"],
)  # fmt: skip
def test_messages_that_no_page_sends_are_survived(lab, messages):
    talked(lab, *messages)
    assert lab.status(lab.page, Cookie=lab.cookie) == 200


def test_the_token_is_not_among_the_arguments_of_the_browser(tmp_path):
    seen, cache = tmp_path / "seen", tmp_path / "cache"
    browser = tmp_path / "browser"
    lines = ["#!/bin/sh", f"echo $$ > {seen}.id", f'printf "%s" "$*" > {seen}.part', f"mv {seen}.part {seen}"]
    browser.write_text("\n".join([*lines, "exec sleep 600 >&- 2>&-", ""]))
    browser.chmod(0o755)
    command = ["-m", *(word for word in LAB if word != "--no-browser")]
    given = os.environ | {"BROWSER": str(browser), "IVLENS_CACHE": str(cache)}
    with Warm(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=given) as job:
        try:
            url = next(found[1] for line in job.stdout if (found := re.search(r"ivlens lab: (http://\S+)", line)))
            token, until = url.split("token=")[1], time.monotonic() + 60
            while not seen.exists() and time.monotonic() < until:
                time.sleep(0.05)
            shown = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
            assert seen.read_text().startswith("file://") and token not in shown + seen.read_text()
            file = Path(unquote(urlsplit(seen.read_text()).path))
            assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
            assert url.replace("&", "&amp;") in file.read_text()
            # a browser that stays in the terminal does not keep the page from being served
            assert urllib.request.urlopen(url, timeout=20).status == 200
        finally:
            job.terminate() if not seen.exists() else job.send_signal(signal.SIGINT)
            job.communicate(timeout=60)
            os.kill(int((tmp_path / "seen.id").read_text()), signal.SIGKILL)
    assert job.returncode == 130 and not file.exists()
