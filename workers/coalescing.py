"""Identical calls at the same time share one: an endpoint in front of an endpoint.

Calls are identical when their bytes are: the same feature store is asked for the same keys and features. Whole
batches are compared, not keys. That costs one look into a dict a call, which is a few hundred nanoseconds and
nothing a key, and it finds what is worth finding: one user's requests that arrive together, and clients that ask
twice. Keys that only overlap are the feature cache's to share.

Lifecycle of a shared call: begun by its first waiter → joined by others → ended, for all that still wait. Nobody
waits longer than it would have alone: each waiter has its own deadline, and one that leaves takes the call along
only when it is the last. A call that fails has failed for the waiter that began it. The others did not ask for
this outcome: each starts a call of its own, that it shares with nobody, with the time that it has left.

When a call ends, its waiters are told on the spot, in the order in which they came: they share a thread, so a turn
of the loop for each of them would make none of them sooner.

Belongs to the I/O thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dag.component import Endpoint, Pending, Reply
from rpc.status import Status
from rpc.timers import Timers
from shared.board import Counter

__all__ = ["Coalescing"]

Body = tuple[bytes, ...]
OnDone = Callable[[Reply], None]


class _TooLate:
    """The reply to a waiter whose time is over before the shared call has ended."""

    __slots__ = ("body", "message", "status")

    def __init__(self, timeout: float) -> None:
        self.status = int(Status.DEADLINE_EXCEEDED)
        self.message = f"no answer within {timeout:g} s"
        self.body = b""


class Coalescing:
    """An endpoint whose identical calls are one call of `endpoint`."""

    __slots__ = ("_flights", "endpoint", "loop", "saved", "timers")

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, saved: Counter) -> None:
        """`saved` counts the keys of calls that joined another."""
        self.endpoint = endpoint
        self.loop = loop
        self.timers = Timers.of(loop)
        self.saved = saved
        self._flights: dict[Body, _Flight] = {}

    def start(
        self, body: Body, timeout: float, on_done: OnDone, rows: int, through: Endpoint | None = None
    ) -> Pending:
        """`through`: the endpoint that is called if there is no call under way; None: the usual one."""
        deadline = self.loop.time() + timeout
        flight = self._flights.get(body)
        if flight is not None:
            self.saved.value += rows
            return flight.join(deadline, timeout, on_done)
        flight = self._flights[body] = _Flight(self, body, rows, deadline, on_done)
        endpoint = self.endpoint if through is None else through
        flight.call = endpoint.start(body, timeout, flight.ended, rows)
        return flight

    def through(self, endpoint: Endpoint) -> Endpoint:
        """The same for one request, whose own calls go through this endpoint."""
        return _Through(self, endpoint)

    def land(self, body: Body) -> None:
        """The flight of this body is over: nobody joins it any more."""
        del self._flights[body]

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

    __slots__ = ("_followers", "_landed", "_on_done", "body", "call", "deadline", "owner", "rows")

    def __init__(self, owner: Coalescing, body: Body, rows: int, deadline: float, on_done: OnDone) -> None:
        self.owner = owner
        self.body = body
        self.rows = rows
        self.deadline = deadline
        """When the call itself ends at the latest, on the clock of the loop."""
        self.call: Pending | None = None
        self._on_done: OnDone | None = on_done
        self._followers: list[_Follower] = []
        self._landed = False

    def join(self, deadline: float, timeout: float, on_done: OnDone) -> Pending:
        follower = _Follower(self, deadline, timeout, on_done)
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
        if self._landed:  # the last waiter has left, and this is the call's way to say so
            return
        self._land()
        on_done, self._on_done = self._on_done, None
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.landed()
        try:
            if on_done is not None:
                on_done(reply)
        finally:
            for follower in followers:
                follower.hear(reply, self)

    def _land(self) -> None:
        self._landed = True
        self.call = None  # it knows this flight: together they would be the garbage collector's
        self.owner.land(self.body)

    def _end_if_alone(self) -> None:
        call = self.call
        if call is not None and self._on_done is None and not self._followers:
            self._land()
            call.cancel()

    def __repr__(self) -> str:
        return f"<_Flight about {self.rows} rows, joined by {len(self._followers)}>"


class _Follower:
    """A waiter that joined a call that was under way."""

    __slots__ = ("_bucket", "_call", "_deadline", "_flight", "_on_done", "_timeout")

    def __init__(self, flight: _Flight, deadline: float, timeout: float, on_done: OnDone) -> None:
        self._flight: _Flight | None = flight
        """The call that it waits for, while that is under way."""
        self._deadline = deadline
        self._timeout = timeout
        self._on_done: OnDone | None = on_done
        """Whom it tells; None once it has, or has left."""
        self._call: Pending | None = None
        # Who came later has nearly always until later: the shared call ends in time for it.
        self._bucket = flight.owner.timers.add(deadline, self) if deadline < flight.deadline else None

    def cancel(self) -> None:
        self._on_done = None
        flight, call = self._flight, self._call
        if flight is not None:
            self.landed()
            flight.leave(self)
        elif call is not None:
            self._call = None
            call.cancel()

    def landed(self) -> None:
        """The shared call is no longer this one's."""
        self._flight = None
        if self._bucket is not None:
            self._bucket.discard(self)

    def hear(self, reply: Reply, flight: _Flight) -> None:
        """The shared call, which has landed, ended like this."""
        on_done = self._on_done
        if on_done is None:
            return
        try:
            if reply.status:
                self._ask_alone(flight, on_done)
            else:
                self._on_done = None
                on_done(reply)
        except Exception as error:  # noqa: BLE001 - one waiter's mistake must not cost the others their replies
            flight.owner.loop.call_exception_handler(
                {"message": f"on_done of {self!r} raised", "exception": error}
            )

    def expire(self) -> None:
        """The deadline has passed, and the shared call is still under way. Called by the timers."""
        on_done, flight = self._on_done, self._flight
        assert on_done is not None  # who has left, or heard, is in no bucket
        assert flight is not None
        self._on_done = self._flight = None
        flight.leave(self)
        on_done(_TooLate(self._timeout))

    def _ask_alone(self, flight: _Flight, on_done: OnDone) -> None:
        left = self._deadline - flight.owner.loop.time()
        if left > 0:
            self._call = flight.owner.endpoint.start(flight.body, left, on_done, flight.rows)
        else:
            on_done(_TooLate(self._timeout))

    def __repr__(self) -> str:
        state = (
            "waiting" if self._flight is not None else "asking alone" if self._call is not None else "over"
        )
        return f"<_Follower {state}>"
