"""HTTP/1.1 on the gRPC port: in memory with virtual time, and curl over real sockets."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rpc.http1 import HttpRequest, HttpResponse
from rpc.server import Limits, Server
from rpc.testing import MemoryLink
from rpc.tls import server_context
from tests.rpc.raw import settle
from tests.rpc.support import Certificates, echo, run


class Browser(asyncio.Protocol):
    """Sends bytes, keeps what comes."""

    def __init__(self, server: Server) -> None:
        self.received = b""
        self.closed = False
        self.link = MemoryLink(asyncio.get_running_loop(), self, server.connection())

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True

    async def say(self, data: bytes) -> bytes:
        """Sends `data` and returns what comes at once."""
        before = len(self.received)
        self.link.client.write(data)
        await settle()
        return self.received[before:]


def hello(request: HttpRequest) -> HttpResponse:
    assert request.peer == "memory-client"
    return HttpResponse(b"hello " + request.query.encode(), content_type="text/html")


def broken(request: HttpRequest) -> HttpResponse:
    raise LookupError(request.path)


def browse(test: Any, limits: Limits | None = None) -> Server:
    made: list[Server] = []

    async def main() -> None:
        server = Server({b"/a/b": echo}, http1={"/hello": hello, "/broken": broken}, limits=limits)
        made.append(server)
        browser = Browser(server)
        await test(browser)
        browser.link.client.close()
        await settle()
        await server.close()
        assert server.stats.connections == 0

    run(main)
    return made[0]


def get(path: str, method: str = "GET", more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


def test_get_and_keep_alive() -> None:
    async def test(browser: Browser) -> None:
        for i in range(3):
            answer = await browser.say(get(f"/hello?{i}"))
            assert answer == (
                b"HTTP/1.1 200 \r\ncontent-type: text/html\r\ncontent-length: 7\r\n\r\nhello %d" % i
            )
        assert not browser.closed

    assert browse(test).stats.http1_requests == 3


def test_head_has_no_body() -> None:
    async def test(browser: Browser) -> None:
        answer = await browser.say(get("/hello", "HEAD"))
        assert answer == b"HTTP/1.1 200 \r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n"
        assert b"hello" in await browser.say(get("/hello"))

    browse(test)


def test_pipelining_and_fragments() -> None:
    async def test(browser: Browser) -> None:
        answer = await browser.say(get("/hello?1") + get("/none") + get("/hello?2")[:-5])
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404"]
        for byte in get("/hello?2")[-5:]:
            answer = await browser.say(bytes([byte]))
        assert answer.endswith(b"hello 2")

    browse(test)


@pytest.mark.parametrize(
    ("request_bytes", "status", "closes"),
    [
        (get("/none"), 404, False),
        (get("/hello", "POST", "Content-Length: 3\r\n") + b"abc", 405, True),
        (get("/hello", "DELETE"), 405, False),
        (get("/hello", more="Content-Length: 3\r\n") + b"abc", 200, True),
        (get("/hello", more="Connection: close\r\n"), 200, True),
        (b"GET /hello HTTP/1.0\r\n\r\n", 200, True),
        (get("/hello", more="Upgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: AA\r\n"), 200, False),
        (get("/hello", more="X: y\r\n" * 200), 431, False),
        (get("/hello", more="X: " + "y" * 20_000 + "\r\n"), 431, False),
        (get("/" + "y" * 20_000), 431, False),
        (b"GET /" + b"y" * 20_000, 431, True),  # and no end in sight
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, True),
        (b"GET / HTTX/1.1\r\n\r\n", 400, True),
        (b"GET  /\r\n\r\n", 400, True),
        (b"GET /hello HTTP/1.1\r\n\r\n", 400, True),  # no Host
    ],
)  # fmt: skip
def test_what_is_answered(request_bytes: bytes, status: int, closes: bool) -> None:
    async def test(browser: Browser) -> None:
        answer = await browser.say(request_bytes)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert browser.closed == closes

    browse(test)


def test_a_mistake_in_a_handler() -> None:
    async def test(browser: Browser) -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        assert (await browser.say(get("/broken"))).startswith(b"HTTP/1.1 500 ")
        assert [type(context["exception"]) for context in reported] == [LookupError]
        assert b"200" in await browser.say(get("/hello"))

    browse(test)


def test_a_slow_head_and_an_idle_connection() -> None:
    async def slow(browser: Browser) -> None:
        for byte in get("/hello", more="X: y\r\n" * 50):
            await browser.say(bytes([byte]))
            await settle(0.5)
            if browser.closed:
                break
        assert browser.closed

    assert browse(slow).stats.limits == {"preface_seconds": 1}

    async def slow_second(browser: Browser) -> None:
        await browser.say(get("/hello"))
        await browser.say(b"GET")
        await settle(11)
        assert browser.closed

    assert browse(slow_second).stats.limits == {"preface_seconds": 1}

    async def idle(browser: Browser) -> None:
        await browser.say(get("/hello"))
        await settle(290)
        assert not browser.closed
        await browser.say(get("/hello"))
        await settle(290)
        assert not browser.closed
        await settle(20)
        assert browser.closed

    assert browse(idle).stats.limits == {"idle_seconds": 1}


def test_a_client_that_does_not_read() -> None:
    """It pipelines without end; reading stops when answers pile up."""

    async def test(browser: Browser) -> None:
        browser.link.client.pause_reading()
        for _ in range(40):
            browser.link.client.write(get("/hello") * 200)
            await settle()
        assert browser.link.server.get_write_buffer_size() < 300_000
        assert browser.link.client.get_write_buffer_size() > 100_000  # what the server does not read
        browser.link.client.resume_reading()
        await settle(1)
        assert browser.received.count(b"HTTP/1.1 200") == 8000

    browse(test)


def test_draining_closes_idle_connections() -> None:
    async def main() -> None:
        server = Server({}, http1={"/hello": hello})
        browser, silent = Browser(server), Browser(server)
        await browser.say(get("/hello"))
        start = asyncio.get_running_loop().time()
        await server.drain(30)
        assert asyncio.get_running_loop().time() - start < 2  # the silent one might just be about to speak
        await settle()
        assert browser.closed
        assert silent.closed

    run(main)


def test_draining_serves_connections_that_nobody_has_accepted() -> None:
    """The kernel has shaken hands with them: to their clients they look like any other."""

    async def main() -> None:
        server = Server({}, http1={"/health": lambda request: HttpResponse(b"true")})
        port = await server.listen_tcp("127.0.0.1", 0)
        early, late = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
        early.sendall(get("/health"))
        draining = asyncio.ensure_future(server.drain(30))  # the loop has not turned yet
        with early, late:
            for client in (early, late):
                client.setblocking(False)
            loop = asyncio.get_running_loop()
            assert (await loop.sock_recv(early, 1000)).endswith(b"true")
            await loop.sock_sendall(late, get("/health"))
            assert (await loop.sock_recv(late, 1000)).endswith(b"true")
            for client in (early, late):
                assert await loop.sock_recv(client, 1000) == b""
        assert await draining == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    run(main, virtual=False)


# -- curl --------------------------------------------------------------------------------------------------


async def curl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "30", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def test_curl(short_dir: Path) -> None:
    async def main() -> None:
        path = short_dir / "s.sock"
        server = Server({b"/a/b": echo}, http1={"/health": lambda request: HttpResponse(b"true")})
        port = await server.listen_tcp("127.0.0.1", 0)
        await server.listen_unix(path)
        url = f"http://127.0.0.1:{port}/health"
        assert await curl(url) == "true"
        assert await curl(url, url) == "truetrue"
        assert await curl("--http2", url) == "true"  # asks for an upgrade, which is not given
        assert "content-length: 4" in await curl("--head", url)
        assert await curl("--unix-socket", str(path), "http://x/health") == "true"
        assert await curl("--http2-prior-knowledge", f"{url}?a=b") == "true"
        assert "content-length: 4" in await curl("--http2-prior-knowledge", "--head", url)
        code = await curl("--http2-prior-knowledge", "-w", "%{http_code}", f"{url}/none")
        assert code == "415"
        assert server.stats.connections_total == 8
        assert server.stats.http1_requests == 8
        await server.close()
        assert not path.exists()

    run(main, virtual=False)


def test_curl_over_tls(certificates: Certificates) -> None:
    async def main() -> None:
        context = server_context(certificates.server, certificates.server_key)
        server = Server({}, http1={"/health": lambda request: HttpResponse(b"true")}, tls=context)
        port = await server.listen_tcp("127.0.0.1", 0)
        url = f"https://localhost:{port}/health"
        resolve = f"localhost:{port}:127.0.0.1"
        assert await curl("--http1.1", "--cacert", str(certificates.ca), "--resolve", resolve, url) == "true"
        await server.close()

    run(main, virtual=False)
