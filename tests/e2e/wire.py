"""An HTTP/2 client on a blocking socket that sends what it is told to, right or wrong."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    Event,
    NGH2Error,
    ResponseReceived,
    Role,
    StreamClosed,
    TrailersReceived,
)

__all__ = ["WireClient", "message"]

PATIENCE = 30.0
"""Seconds to wait for an answer."""


def message(body: bytes) -> bytes:
    """A body behind its gRPC prefix, not compressed."""
    return b"\0" + len(body).to_bytes(4, "big") + body


class WireClient:
    """One connection. `ask` sends one request and waits until its stream or the connection is closed."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._codec = Connection(Role.CLIENT, Configuration())
        self._codec.initiate_connection({})
        self._events: list[Event] = []
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(
        self, path: str, data: bytes, *, replace: Mapping[str, str | None] | None = None, end: bool = True
    ) -> dict[str, str]:
        """The headers and trailers of the answer; empty when there is none.

        `data` is sent as it is. `replace`: header fields to put in, or (None) to leave out.
        `end` False: the stream is left open, and nothing is waited for.
        """
        fields: dict[str, str | None] = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
            **(replace or {}),
        }
        headers = [(name.encode(), value.encode()) for name, value in fields.items() if value is not None]
        stream = self._codec.send_request(headers)
        self._codec.send_data(stream, data, end_stream=end)
        self._flush()
        if end:
            self._receive_until_closed(stream)
        return self._answer(stream)

    def reset(self, stream: int) -> None:
        """Cancels a stream."""
        self._codec.reset_stream(stream, 8)
        self._flush()

    def send(self, data: bytes) -> None:
        """Writes bytes past the codec. Nothing happens when the server has hung up."""
        try:
            self._socket.sendall(data)
        except ConnectionError:
            self.closed = True

    def drain(self) -> None:
        """Reads until the server hangs up or says nothing for a moment."""
        self._socket.settimeout(0.05)
        try:
            while self._socket.recv(1 << 16):
                pass
            self.closed = True
        except TimeoutError:
            return
        except ConnectionError:
            self.closed = True
        finally:
            self._socket.settimeout(PATIENCE)

    def _flush(self) -> None:
        self.send(self._codec.data_to_send())

    def _receive_until_closed(self, stream: int) -> None:
        while not self.closed and not self._is_closed(stream):
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionError:
                data = b""
            self.closed = not data
            try:
                self._codec.receive_data(data)
            except NGH2Error:
                self.closed = True
            self._events += self._codec.events()
            self._flush()

    def _is_closed(self, stream: int) -> bool:
        return any(
            isinstance(event, ConnectionClosed)
            or (isinstance(event, StreamClosed) and event.stream_id == stream)
            for event in self._events
        )

    def _answer(self, stream: int) -> dict[str, str]:
        found: dict[str, str] = {}
        for event in self._events:
            if isinstance(event, ResponseReceived | TrailersReceived) and event.stream_id == stream:
                found |= {name.decode(): value.decode() for name, value in cast(Any, event.headers)}
        return found

    def __repr__(self) -> str:
        return f"<WireClient {'closed' if self.closed else 'open'}, {len(self._events)} events>"
