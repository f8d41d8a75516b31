"""The first bytes of an accepted connection: HTTP/2 or HTTP/1.1?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from rpc.http2 import PREFACE
from rpc.limits import Limits, Stats
from rpc.timers import Timers

__all__ = ["Greeter", "Spoken"]

# No method of HTTP/1.1 starts like this, so more of the preface need not be there to decide.
_DECISIVE: Final = PREFACE[:4]
_LAST_WORDS_SECONDS: Final = (
    1.0  # for the first bytes of a connection that the end of the server met without any
)


class Spoken(Protocol):
    """A connection whose protocol is known (and an asyncio.Protocol)."""

    def drain(self, grace: float) -> None:
        """Finishes what is in flight, for at most `grace` seconds, and closes."""

    def close(self, code: int = ..., reason: str = ...) -> None:
        """Closes now."""


class Greeter(asyncio.Protocol):
    """Stands at the door until the client has said enough, then steps aside for good."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        stats: Stats,
        *,
        http2: Callable[[Callable[[], None]], asyncio.Protocol],
        http1: Callable[[Callable[[], None]], asyncio.Protocol],
        opened: Callable[[Greeter], bool],
        lost: Callable[[Greeter], None],
    ) -> None:
        """`http2` and `http1` make the protocol that takes over, given what to call at its end.

        `opened` tells whether there is room for one more connection; `lost` is called when it is gone.
        """
        self._loop = loop
        self._timers = Timers.of(loop)
        self._limits = limits
        self._stats = stats
        self._http2 = http2
        self._http1 = http1
        self._opened = opened
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._spoken: Spoken | None = None
        self._seen = b""
        self._bucket: set[Any] = set()
        self._grace: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._opened(self):
            self._transport.abort()
        elif self._grace is None:
            self._bucket = self._timers.add(self._loop.time() + self._limits.preface_seconds, self)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self._seen.startswith(_DECISIVE):
            self._hand_over(self._http2(self._gone))
        elif not _DECISIVE.startswith(self._seen):
            self._hand_over(self._http1(self._gone))

    def _hand_over(self, protocol: asyncio.Protocol) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._bucket.discard(self)
        self._spoken = cast(Spoken, protocol)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        seen, self._seen = self._seen, b""
        protocol.data_received(seen)
        if self._grace is not None:
            self._spoken.drain(self._grace)

    def expire(self) -> None:
        """Nothing to go by came in time."""
        if self._transport is not None and not self._transport.is_closing():
            if self._grace is None:
                self._stats.limits["preface_seconds"] += 1
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._gone()

    def _gone(self) -> None:
        self._bucket.discard(self)
        self._transport = None
        self._lost(self)

    def drain(self, grace: float) -> None:
        """Passes on to the connection. One that has said nothing yet gets a second: calls may be on their way."""
        if self._spoken is not None:
            self._spoken.drain(grace)
        elif self._transport is not None and self._grace is None:
            self._grace = grace
            self._bucket.discard(self)
            self._bucket = self._timers.add(self._loop.time() + min(grace, _LAST_WORDS_SECONDS), self)

    def close(self, code: int, reason: str) -> None:
        """Closes now, with `code` and `reason` if HTTP/2 is spoken."""
        if self._spoken is not None:
            self._spoken.close(code, reason)
        elif self._transport is not None:
            self._transport.abort()

    def abort(self) -> None:
        """Cuts the connection."""
        if self._transport is not None:
            self._transport.abort()

    def __repr__(self) -> str:
        return f"<Greeter {self._spoken or 'waiting for the first bytes'}>"
