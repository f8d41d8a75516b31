"""Identical calls at the same time share one: an endpoint in front of an endpoint.

Calls are identical when their bytes are: the same feature store is asked for the same keys and features. Whole
batches are compared, not keys. That costs one look into a dict a call, which is a few hundred nanoseconds and
nothing a key, and it finds what is worth finding: one user's requests that arrive together, and clients that ask
twice. Keys that only overlap are the feature cache's to share.

Lifecycle of a shared call: begun by its first waiter → joined by others → ended, for all that still wait. Nobody
waits longer than it would have alone: each waiter has its own deadline, and one that leaves takes the call along
only when it is the last. A call that fails has failed for the waiter that began it. The others did not ask for
this outcome: each starts a call of its own, that it shares with nobody, with the time that it has left.

Belongs to the I/O thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from dag.component import Endpoint, Pending, Reply
from rpc.status import Status
from shared.board import Counter

__all__ = ["Coalescing"]

Body = tuple[bytes, ...]
OnDone = Callable[[Reply], None]


class _TooLate(NamedTuple):
    """The reply to a waiter whose time is over before the shared call has ended."""

    message: str
    status: int = Status.DEADLINE_EXCEEDED
    body: bytes = b""


class Coalescing:
    """An endpoint whose identical calls are one call of `endpoint`."""

    __slots__ = ("__weakref__", "_flights", "endpoint", "loop", "saved")

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, saved: Counter) -> None:
        """`saved` counts the keys of calls that joined another."""
        self.endpoint = endpoint
        self.loop = loop
        self.saved = saved
        self._flights: dict[Body, _Flight] = {}

    def start(
        self, body: Body, timeout: float, on_done: OnDone, rows: int, through: Endpoint | None = None
    ) -> Pending:
        """`through`: the endpoint that is called if there is no call under way; None: the usual one."""
        flight = self._flights.get(body)
        if flight is not None:
            self.saved.value += rows
            return flight.join(timeout, on_done)
        flight = self._flights[body] = _Flight(self, body, rows, on_done)
        flight.call = (through or self.endpoint).start(body, timeout, flight.ended, rows)
        return flight

    def through(self, endpoint: Endpoint) -> Endpoint:
        """The same for one request, whose own calls go through this endpoint."""
        return _Through(self, endpoint)

    def land(self, flight: _Flight) -> None:
        """A flight is over: nobody joins it any more."""
        if self._flights.get(flight.body) is flight:
            del self._flights[flight.body]

    def __repr__(self) -> str:
        return f"<Coalescing {len(self._flights)} calls in flight to {self.endpoint!r}>"


class _Through:
    """Shares calls with all others; those that it begins go through an endpoint of its own."""

    __slots__ = ("_coalescing", "_endpoint")

    def __init__(self, coalescing: Coalescing, endpoint: Endpoint) -> None:
        self._coalescing = coalescing
        self._endpoint = endpoint

    def start(self, body: Body, timeout: float, on_done: OnDone, rows: int) -> Pending:
        return self._coalescing.start(body, timeout, on_done, rows, self._endpoint)

    def __repr__(self) -> str:
        return f"<_Through {self._endpoint!r}, sharing with {self._coalescing!r}>"


class _Flight:
    """One call under way. It stands for its first waiter, too: nearly always there is no other."""

    __slots__ = ("_followers", "_on_done", "_owner", "body", "call", "rows")

    def __init__(self, owner: Coalescing, body: Body, rows: int, on_done: OnDone) -> None:
        self.body = body
        self.rows = rows
        self.call: Pending | None = None
        self._owner = owner
        self._on_done: OnDone | None = on_done
        self._followers: list[_Follower] = []

    def join(self, timeout: float, on_done: OnDone) -> Pending:
        follower = _Follower(self, self._owner.loop, timeout, on_done)
        self._followers.append(follower)
        return follower

    def cancel(self) -> None:
        """The first waiter leaves."""
        self._on_done = None
        self._end_if_alone()

    def leave(self, follower: _Follower) -> None:
        """Another waiter leaves."""
        self._followers.remove(follower)
        self._end_if_alone()

    def ended(self, reply: Reply) -> None:
        self.call = None  # it knows this flight: together they would be the garbage collector's
        self._owner.land(self)
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.hear(reply, self._owner.endpoint)
        if self._on_done is not None:
            self._on_done(reply)

    def _end_if_alone(self) -> None:
        if self._on_done is None and not self._followers:
            self._owner.land(self)
            call, self.call = self.call, None
            if call is not None:
                call.cancel()


class _Follower:
    """A waiter that joined a call that was under way."""

    __slots__ = ("_call", "_deadline", "_flight", "_loop", "_on_done", "_timeout", "_timer")

    def __init__(
        self, flight: _Flight, loop: asyncio.AbstractEventLoop, timeout: float, on_done: OnDone
    ) -> None:
        self._flight: _Flight | None = flight
        self._loop = loop
        self._timeout = timeout
        self._deadline = loop.time() + timeout
        self._on_done = on_done
        self._call: Pending | None = None
        self._timer: asyncio.TimerHandle | asyncio.Handle = loop.call_at(self._deadline, self._too_late)

    def cancel(self) -> None:
        self._timer.cancel()
        if self._flight is not None:
            flight, self._flight = self._flight, None
            flight.leave(self)
        elif self._call is not None:
            self._call.cancel()

    def hear(self, reply: Reply, endpoint: Endpoint) -> None:
        """The shared call has ended. Goes on in a turn of its own: the first waiter must not wait for others."""
        self._timer.cancel()
        flight, self._flight = self._flight, None
        assert flight is not None  # who has left hears nothing
        if reply.status == Status.OK:
            self._timer = self._loop.call_soon(self._on_done, reply)
        else:
            self._timer = self._loop.call_soon(self._ask_alone, endpoint, flight.body, flight.rows)

    def _ask_alone(self, endpoint: Endpoint, body: Body, rows: int) -> None:
        left = max(self._deadline - self._loop.time(), 0.0)
        self._call = endpoint.start(body, left, self._on_done, rows)

    def _too_late(self) -> None:
        flight, self._flight = self._flight, None
        assert flight is not None  # the timer is cancelled with the flight
        flight.leave(self)
        self._on_done(_TooLate(f"no answer within {self._timeout:g} s"))
