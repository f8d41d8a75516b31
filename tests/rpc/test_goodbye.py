"""The end of a connection takes no answer with it, whatever the client still says, and does not last for ever."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from rpc.calls import ServerCall
from rpc.hpack import Encoder
from rpc.http2 import PREFACE
from rpc.server import Server
from rpc.testing import run_virtual
from tests.rpc.raw import (
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    SETTINGS,
    WINDOW_UPDATE,
    RawClient,
    frame,
    message,
    settle,
)
from tests.rpc.support import Holder, run, until

HOLD = b"/test.Echo/Hold"
LARGE = 3 << 20
_WINDOW = (16 << 20).to_bytes(4, "big")
FIELDS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", HOLD),
    (b":authority", b"x"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def request() -> bytes:
    """One on stream 1, of a client that has just come."""
    return frame(HEADERS, Encoder().encode(FIELDS), flags=4, stream=1) + frame(
        DATA, message(b"x"), flags=1, stream=1
    )


def slow_reader(port: int) -> int:
    """Reads until the end, and gives windows back as it does. Returns how much came. Raises OSError."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        hello = frame(SETTINGS, b"\0\4" + _WINDOW) + frame(WINDOW_UPDATE, _WINDOW) + frame(SETTINGS, flags=1)
        client.sendall(PREFACE + hello + request())
        size = 0
        while data := client.recv(1 << 16):
            size += len(data)
            if b"draining" in data:
                client.sendall(frame(PING, b"draining", flags=1))
            time.sleep(0.001)  # the server has given all to the kernel long before
            client.sendall(frame(WINDOW_UPDATE, (1 << 16).to_bytes(4, "big")))
        return size


def test_a_drain_gives_a_client_that_reads_slowly_all_of_its_answer() -> None:
    """A socket that is closed at once answers window updates with a reset, which costs what was not read."""

    async def main() -> None:
        calls: list[ServerCall] = []
        server = Server({HOLD: calls.append})
        port = await server.listen_tcp("127.0.0.1", 0)
        reading = asyncio.get_running_loop().run_in_executor(None, slow_reader, port)
        await until(lambda: bool(calls))
        draining = asyncio.ensure_future(server.drain(30.0))
        calls[0].respond(bytes(LARGE))
        assert await draining == 0
        assert await reading > LARGE

    run(main, virtual=False)


@pytest.mark.parametrize("when", ["before", "in the turn", "in the turn, after a ping"])
def test_a_client_that_leaves_gets_the_answer_of_the_same_turn(when: str) -> None:
    async def main() -> None:
        holder = Holder()
        server = Server({HOLD: holder})
        client = RawClient(server)
        client.hello()
        client.write(request())
        await settle()
        inside = client.link.server.get_protocol()
        assert isinstance(inside, asyncio.Protocol)
        if when == "before":
            client.write(frame(GOAWAY, bytes(8)))
            await settle()
        holder.calls[0].respond(b"the answer")
        if when != "before":
            inside.data_received(frame(PING, bytes(8)) * (when != "in the turn") + frame(GOAWAY, bytes(8)))
        await settle()
        assert b"the answer" in client.received
        assert client.closed
        await server.close()

    run(main)


class Deaf(RawClient):
    """A client that does not mind the end."""

    def eof_received(self) -> bool:
        return True


def test_a_client_that_does_not_go_is_cut_off_in_the_end() -> None:
    async def main() -> float:
        server = Server({})
        client = Deaf(server)
        client.hello()
        client.write(frame(SETTINGS, flags=1))
        await settle()
        client.write(frame(GOAWAY, bytes(8)))
        await settle()
        began = asyncio.get_running_loop().time()
        assert not client.closed
        while server.stats.connections:
            client.write(frame(PING, bytes(8)))
            await asyncio.sleep(0.5)
        assert client.closed
        await server.close()
        return asyncio.get_running_loop().time() - began

    assert 5 <= run_virtual(main) <= 7
