"""Many deadlines, one loop timer.

Every call has a deadline and almost none fires. A loop timer per call costs more than the rest of the
bookkeeping together, and a heap with lazy deletion would keep answered calls (and their bodies) alive until
their deadline. So deadlines are put into buckets of a few milliseconds: adding and removing is a set
operation, and only the earliest bucket has a loop timer. When it fires, buckets that are empty by then are
dropped: while calls end in time, the loop is woken once a timeout and not once a bucket.
"""

from __future__ import annotations

import asyncio
import heapq
import weakref
from typing import Final, Protocol

__all__ = ["Expiring", "Timers"]

RESOLUTION: Final = 0.004  # seconds a deadline may be late; loop timers of uvloop have 1 ms


class Expiring(Protocol):
    """Something with a deadline. Hashed by identity."""

    def expire(self) -> None:
        """Called once, at the deadline or at most RESOLUTION later, never before."""


class Timers:
    """The deadlines of one event loop. Use only on that loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak, because `of` keeps this object as long as the loop lives.
        self._loop = weakref.ref(loop)
        self._buckets: dict[int, set[Expiring]] = {}
        self._order: list[int] = []
        self._handle: asyncio.TimerHandle | None = None
        self._armed = 0
        self._firing = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Timers:
        """Returns the one object of `loop`: many channels and servers then share its wake-ups."""
        timers = _TIMERS.get(loop)
        if timers is None:
            timers = _TIMERS[loop] = cls(loop)
        return timers

    def add(self, when: float, item: Expiring) -> set[Expiring]:
        """Has `item.expire()` called at `when` (clock of the loop, seconds).

        Returns the bucket; `bucket.discard(item)` takes the deadline back.
        """
        slot = int(when / RESOLUTION) + 1  # the end of the slot: late by up to RESOLUTION, never early
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._open(slot)
        bucket.add(item)
        return bucket

    def _open(self, slot: int) -> set[Expiring]:
        bucket: set[Expiring] = set()
        self._buckets[slot] = bucket
        heapq.heappush(self._order, slot)
        if not self._firing and (self._handle is None or slot < self._armed):
            self._arm(slot)
        return bucket

    def _arm(self, slot: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        loop = self._loop()
        assert loop is not None, "timers outlived their loop"
        self._armed = slot
        self._handle = loop.call_at(slot * RESOLUTION, self._fire)

    def _fire(self) -> None:
        loop = self._loop()
        assert loop is not None, "timers outlived their loop"
        self._handle = None
        self._firing = True  # what is added now is armed at the end, together with what was there before
        now = loop.time()
        order = self._order
        while order and order[0] * RESOLUTION <= now:
            bucket = self._buckets.pop(heapq.heappop(order))
            while bucket:  # expiring one may discard another
                self._expire(loop, bucket.pop())
        self._firing = False
        while order and not self._buckets[order[0]]:
            del self._buckets[heapq.heappop(order)]
        if order:
            self._arm(order[0])

    def _expire(self, loop: asyncio.AbstractEventLoop, item: Expiring) -> None:
        try:
            item.expire()
        except Exception as error:  # noqa: BLE001 - one bad item must not cost the others their deadline
            loop.call_exception_handler({"message": f"expire() of {item!r} raised", "exception": error})

    def __repr__(self) -> str:
        waiting = sum(map(len, self._buckets.values()))
        return f"<Timers {waiting} deadlines in {len(self._buckets)} buckets>"


_TIMERS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Timers] = weakref.WeakKeyDictionary()
