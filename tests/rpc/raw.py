"""A client that may do anything: HTTP/2 frames without the manners of a channel."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    Event,
    GoAwayReceived,
    NGH2Error,
    ResponseReceived,
    Role,
    StreamReset,
    TrailersReceived,
)

from rpc.http2 import PREFACE
from rpc.server import Server
from rpc.testing import MemoryLink, MemoryTransport

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


class RawClient(asyncio.Protocol):
    """A connection to `server` in memory. Nothing is sent before `flush` or `write`."""

    def __init__(self, server: Server, settings: dict[int, int] | None = None, *, window: int = 0) -> None:
        self.codec = Connection(
            Role.CLIENT,
            Configuration(peer_max_concurrent_streams=2**31, max_send_header_block_length=2**30),
        )
        self.codec.initiate_connection(settings or {})
        if window:
            self.codec.set_local_window_size(window)
        self.events: list[Event] = []
        self.received = b""
        self.manual = False
        """True: the codec has no part in it any more."""
        self.closed = False
        self.link = MemoryLink(asyncio.get_running_loop(), self, server.connection())

    @property
    def transport(self) -> MemoryTransport:
        return self.link.client

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.manual:
            return
        try:
            self.codec.receive_data(data)
        except NGH2Error:
            return  # hand-made GOAWAYs of the server come outside of the session's order
        finally:
            self.events += self.codec.events()
        self.flush()
        if not (self.codec.want_read or self.codec.want_write):
            self.transport.close()  # as all clients with nghttp2: it has heard GOAWAY, and waits for nothing

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True

    def flush(self) -> None:
        data = self.codec.data_to_send()
        self.events += self.codec.events()
        if data:
            self.transport.write(data)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def hello(self) -> None:
        """Sends the preface and SETTINGS without the codec, for tests that go on with frames by hand."""
        self.manual = True
        self.write(PREFACE + frame(SETTINGS))

    def request(
        self,
        path: bytes = b"/test.Echo/Echo",
        body: bytes | None = b"x",
        *,
        end: bool = True,
        extra: Sequence[tuple[bytes, bytes]] = (),
        replace: dict[bytes, bytes | None] | None = None,
    ) -> int:
        """Queues a request with `body` as its one message (None: no body at all). Returns the stream."""
        fields: dict[bytes, bytes | None] = {
            b":method": b"POST",
            b":scheme": b"http",
            b":path": path,
            b":authority": b"x",
            b"te": b"trailers",
            b"content-type": b"application/grpc",
        }
        fields |= replace or {}
        headers = [(name, value) for name, value in fields.items() if value is not None]
        stream = self.codec.send_request([*headers, *extra], end_stream=end and body is None)
        if body is not None:
            self.codec.send_data(stream, message(body), end_stream=end)
        return stream

    def answer(self, stream: int) -> dict[bytes, bytes]:
        """Headers and trailers that came for `stream`, as one mapping; empty if there are none."""
        found: dict[bytes, bytes] = {}
        for event in self.events:
            if isinstance(event, ResponseReceived | TrailersReceived) and event.stream_id == stream:
                found |= dict(cast(Any, event.headers))
        return found

    def status(self, stream: int) -> int | None:
        value = self.answer(stream).get(b"grpc-status")
        return None if value is None else int(value)

    def resets(self) -> list[int]:
        return [event.error_code for event in self.events if isinstance(event, StreamReset)]

    @property
    def goaway(self) -> tuple[int, bytes] | None:
        """Code and text of the last GOAWAY, also of one that came after the codec had failed."""
        found = None
        for event in self.events:
            if isinstance(event, GoAwayReceived | ConnectionClosed):
                found = (event.error_code, event.debug_data)
        return found


class Ends:
    """Two codecs and the bytes between them. Subclasses say what they make of events."""

    client: Any
    server: Any
    chunks: Callable[[], int]
    """How many bytes come at once, each time."""

    def run(self) -> None:
        """Carries bytes both ways, in pieces, until there are none."""
        while True:
            out = self.client.data_to_send(50_000)
            back = self.server.data_to_send(50_000)
            if not out and not back:
                return
            self._carry(out, self.server.receive_data, self.serve)
            self._carry(back, self.client.receive_data, self.hear)
            self.serve()
            self.hear()

    def _carry(self, data: bytes, to: Callable[[bytes], None], then: Callable[[], None]) -> None:
        at = 0
        while at < len(data):
            size = self.chunks()
            to(data[at : at + size])
            then()
            at += size

    def serve(self) -> None:
        """Handles the server's events."""
        raise NotImplementedError

    def hear(self) -> None:
        """Handles the client's events."""
        raise NotImplementedError


async def settle(seconds: float = 0.0) -> None:
    """Lets everything that is on its way arrive (virtual time), then `seconds` more pass."""
    for _ in range(50):
        await asyncio.sleep(0)
    await asyncio.sleep(seconds)
    for _ in range(50):
        await asyncio.sleep(0)
