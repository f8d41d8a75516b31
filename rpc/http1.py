"""Pages on the gRPC port, for people and probes: GET and HEAD of a few paths, and HTTP/1.1 to ask for them.

Requests are answered one after the other, with the answers of plain functions; bodies are not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import h11

from rpc.connection import peer_name
from rpc.limits import Limits, Stats
from rpc.timers import Timers

__all__ = ["METHODS", "Http1Connection", "HttpHandler", "HttpRequest", "HttpResponse", "answer"]

_LINGER: Final = 5.0
_REQUESTS_PER_TURN: Final = 16
METHODS: Final = (b"GET", b"HEAD")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request without a body."""

    path: str
    """Without the query."""
    query: str
    """What follows the question mark, as it came; empty without."""
    headers: tuple[tuple[bytes, bytes], ...]
    """Names in lower case."""
    peer: str


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer."""

    body: bytes = b""
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields of the answer."""
        return [
            (b"content-type", self.content_type.encode("latin-1")),
            (b"content-length", b"%d" % len(self.body)),
            *self.headers,
        ]


HttpHandler = Callable[[HttpRequest], HttpResponse]


def answer(loop: asyncio.AbstractEventLoop, handler: HttpHandler, request: HttpRequest) -> HttpResponse:
    """Returns what `handler` answers, or 500 when it fails, which is reported to the loop."""
    try:
        return handler(request)
    except Exception as error:  # noqa: BLE001 - a handler's mistake must not end the connection silently
        loop.call_exception_handler({"message": f"handler of {request.path} raised", "exception": error})
        return HttpResponse(b"internal error\n", 500)


class Http1Connection(asyncio.Protocol):
    """One client's connection. `handlers` by path."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handlers: Mapping[str, HttpHandler],
        limits: Limits,
        stats: Stats,
        *,
        on_lost: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._timers = Timers.of(loop)
        self._handlers = handlers
        self._limits = limits
        self._stats = stats
        self._on_lost = on_lost
        self._machine = self._new_machine()
        self._transport: asyncio.Transport | None = None
        self._bucket: set[Any] = set()
        self._peer = ""
        self._paused = False
        self._busy = False  # more requests are here than fit into one turn
        self._scheduled = False
        self._between = False  # answered at least once, and nothing of the next request is here
        self._last = False  # the answer being given is the last of this connection
        self._closing = False

    def _new_machine(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)

    # -- asyncio protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer_name(transport)
        self._wait(self._limits.preface_seconds)

    def data_received(self, data: bytes) -> None:
        if not self._closing:
            self._machine.receive_data(data)
            self._advance()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._transport is not None and not self._closing:
            if not self._busy:
                self._transport.resume_reading()
            self._schedule()  # for requests that came before the pause

    def connection_lost(self, error: Exception | None) -> None:
        self._bucket.discard(self)
        self._transport = None
        self._closing = True
        self._on_lost()

    # -- requests ------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Answers the requests that are complete, a few in this turn of the loop."""
        try:
            for _ in range(_REQUESTS_PER_TURN):
                if self._paused or self._closing:
                    return
                event = self._machine.next_event()
                if not isinstance(event, h11.Request):
                    self._wait_for_data()
                    return
                self._respond(event)
        except h11.RemoteProtocolError as error:
            self._stats.limits["header_bytes" if error.error_status_hint == 431 else "protocol"] += 1
            self._reject(error.error_status_hint, str(error))
            return
        if not self._closing and self._transport is not None:
            self._busy = True
            self._transport.pause_reading()
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._advance()

    def _wait_for_data(self) -> None:
        if self._busy and self._transport is not None:
            self._busy = False
            self._transport.resume_reading()
        if self._between and self._machine.trailing_data[0]:
            self._between = False
            self._wait(self._limits.preface_seconds)

    def _respond(self, request: h11.Request) -> None:
        self._stats.http1_requests += 1
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in request.headers)
        # A body would have to be read to find the next request: not worth it, the connection ends here.
        self._last = self._last or has_body
        self._send(self._answer(request), with_body=request.method != b"HEAD")
        if self._last or self._machine.our_state is h11.MUST_CLOSE:
            self._close()
        elif not self._closing:
            self._next_request()

    def _next_request(self) -> None:
        while self._machine.their_state is not h11.DONE:
            event = self._machine.next_event()
            if not isinstance(event, h11.EndOfMessage):
                self._close()
                return
        self._machine.start_next_cycle()
        self._between = True
        self._wait(self._limits.idle_seconds or self._limits.preface_seconds)

    def _answer(self, request: h11.Request) -> HttpResponse:
        limit = self._over_limit(request)
        if limit:
            self._stats.limits[limit] += 1
            return HttpResponse(f"over the limit of {limit}\n".encode(), 431)
        if request.method not in METHODS:
            return HttpResponse(b"only GET and HEAD\n", 405, headers=((b"allow", b"GET, HEAD"),))
        path, _, query = request.target.decode("latin-1").partition("?")
        handler = self._handlers.get(path)
        if handler is None:
            return HttpResponse(b"no such path\n", 404)
        headers = tuple((bytes(name), bytes(value)) for name, value in request.headers)
        return answer(self._loop, handler, HttpRequest(path, query, headers, self._peer))

    def _over_limit(self, request: h11.Request) -> str:
        """The name of the limit that the head of a request exceeds, or nothing."""
        if len(request.headers) > self._limits.header_fields:
            return "header_fields"
        size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
        return "header_bytes" if size > self._limits.header_bytes else ""

    def _send(self, response: HttpResponse, *, with_body: bool) -> None:
        headers = response.fields()
        if self._last:
            headers.append((b"connection", b"close"))
        machine = self._machine
        parts = [machine.send(h11.Response(status_code=response.status, headers=headers))]
        if with_body:
            parts.append(machine.send(h11.Data(data=response.body)))
        parts.append(machine.send(h11.EndOfMessage()))
        if self._transport is not None:
            self._transport.write(b"".join(part for part in parts if part))

    def _reject(self, status: int, reason: str) -> None:
        """Answers bytes that are no request, if an answer can still be sent, and closes."""
        self._last = True
        if self._machine.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(HttpResponse(reason.encode("ascii", "replace") + b"\n", status), with_body=True)
        self._close()

    # -- time and the end ----------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        self._bucket.discard(self)
        self._bucket = self._timers.add(self._loop.time() + seconds, self)

    def expire(self) -> None:
        """The client took too long: for a request, or to read the last answer."""
        if self._closing:
            self.abort()
            return
        self._stats.limits["idle_seconds" if self._between else "preface_seconds"] += 1
        self._close()

    def drain(self, grace: float) -> None:
        """Closes: an answer is never in flight when this runs, only between two requests."""
        self._close()

    def close(self, code: int = 0, reason: str = "") -> None:
        """Closes now; what is written still leaves."""
        self._close()

    def _close(self) -> None:
        if not self._closing and self._transport is not None:
            self._closing = True
            self._transport.close()
            self._wait(_LINGER)

    def abort(self) -> None:
        """Cuts the connection."""
        if self._transport is not None:
            self._transport.abort()

    def __repr__(self) -> str:
        return f"<Http1Connection {self._peer} {'closing' if self._closing else 'open'}>"
