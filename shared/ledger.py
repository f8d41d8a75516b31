"""The books of one worker's inference logs: a page of counters that the worker and the log sidecar both see.

Every number is of rows, grows only, and has one owner: the worker writes its own words and `EARLIER`, the log
sidecar writes `NOW` and `ACCEPTING`. The page is shared memory, so that whoever survives the other knows to the row
what was settled: a worker whose log sidecar was killed counts the rest as lost, a log sidecar whose worker was
killed closes its books. A link has a page of its own, and begins with a copy: what an old log sidecar may still
write goes to a page that nobody reads any more.

    offered   = refused (by reason) + handed over
    handed    = lost with a log sidecar + acknowledged + dropped (by reason) + held

Aligned words of 8 bytes are read and written whole by the processors that this runs on; a reader that looks while a
request is being handed over may see it offered, and neither refused nor handed over yet.
"""

from __future__ import annotations

import mmap
import os
from typing import Final, NamedTuple, Self

__all__ = [
    "ACCEPTING",
    "ACKNOWLEDGED",
    "DROPPED",
    "FULL",
    "HANDED",
    "LOST",
    "NOTHING",
    "NOW",
    "OFFERED",
    "RECEIVED",
    "REFUSED",
    "ROOM",
    "Books",
    "Ledger",
]

# Words of the worker.
OFFERED: Final = 0
HANDED: Final = 1
LOST: Final = 2
REFUSED: Final = {
    "log sidecar away": 3,
    "log sidecar behind": 4,
    "queue full": 5,
    "no shared memory": 6,
    "not understood": 7,
}
"""Why a worker took a slot back at once → the word that counts its rows."""

# Words of the log sidecar, counted from NOW; what former links came to stands in the same order at EARLIER.
RECEIVED: Final = 0
ACKNOWLEDGED: Final = 1
DROPPED: Final = {
    "queue full": 2,
    "not delivered in time": 3,
    "refused by the sink": 4,
    "row too large": 5,
    "not understood": 6,
    "torn": 7,
    "stopped": 8,
    "lost with the worker": 9,
}
"""Why the log sidecar dropped rows → the word that counts them."""
EARLIER: Final = 16
NOW: Final = 32
ACCEPTING: Final = 63
"""What the log sidecar says: 0 nothing yet, ROOM, or FULL."""
ROOM: Final = 1
FULL: Final = 2
"""The queue is full: rows need not be handed over."""

_SETTLED = (ACKNOWLEDGED, *DROPPED.values())
_WORDS = 64
_BYTES = 4096


class Books(NamedTuple):
    """What a page says, in rows."""

    offered: int
    """Served and sampled."""
    handed: int
    lost: int
    """Held by a log sidecar when it was killed, or given up together with its link."""
    received: int
    """Read from the links; the rest of `handed` was on its way."""
    acknowledged: int
    dropped: dict[str, int]
    """By reason, of both sides."""

    @property
    def held(self) -> int:
        """Handed over, and neither settled nor lost: on the way, being encoded, or in the queue."""
        return self.offered - self.lost - self.acknowledged - sum(self.dropped.values())

    def __add__(self, other: object) -> Books:
        if not isinstance(other, Books):
            return NotImplemented
        dropped = {
            reason: self.dropped.get(reason, 0) + other.dropped.get(reason, 0)
            for reason in self.dropped | other.dropped
        }
        return Books(
            self.offered + other.offered,
            self.handed + other.handed,
            self.lost + other.lost,
            self.received + other.received,
            self.acknowledged + other.acknowledged,
            dropped,
        )


NOTHING: Final = Books(0, 0, 0, 0, 0, {})


class Ledger:
    """One page. `words` are its counters; each side writes its own only."""

    def __init__(self, fd: int) -> None:
        """Maps the page behind a descriptor, which stays the caller's. Raises OSError."""
        if os.fstat(fd).st_size != _BYTES:
            raise OSError(f"descriptor {fd} has {os.fstat(fd).st_size} bytes, a ledger has {_BYTES}")
        self.fd = fd
        self.words = memoryview(mmap.mmap(fd, _BYTES)).cast("Q")

    @classmethod
    def create(cls) -> Self:
        """A new page of zeros. Raises OSError when the memory is not to be had."""
        fd = os.memfd_create("inferflow-ledger", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, _BYTES)
            return cls(fd)
        except OSError:
            os.close(fd)
            raise

    def close(self) -> None:
        """Closes the descriptor; the page goes with the last process that has mapped it."""
        os.close(self.fd)

    @property
    def settled(self) -> int:
        """Rows that this link's log sidecar has acknowledged or dropped."""
        return sum(self.words[NOW + word] for word in _SETTLED)

    @property
    def outstanding(self) -> int:
        """Rows handed over whose end is not known yet."""
        earlier = sum(self.words[EARLIER + word] for word in _SETTLED)
        return self.words[HANDED] - self.words[LOST] - earlier - self.settled

    def succeed(self, old: Ledger) -> None:
        """Takes over the books of a link that has ended: what it had not settled is lost. For the worker.

        `old` may be this page itself, when no other is to be had.
        """
        lost = old.outstanding
        words = list(old.words)
        for word in range(EARLIER, NOW):
            words[word] += words[word + NOW - EARLIER]
            words[word + NOW - EARLIER] = 0
        words[LOST] += lost
        words[ACCEPTING] = 0
        for word, rows in enumerate(words):
            self.words[word] = rows

    def books(self) -> Books:
        """What the page says now."""
        words = self.words
        dropped = {reason: words[word] for reason, word in REFUSED.items()}
        for reason, word in DROPPED.items():
            rows = words[EARLIER + word] + words[NOW + word]
            dropped[reason] = dropped.get(reason, 0) + rows
        return Books(
            words[OFFERED],
            words[HANDED],
            words[LOST],
            words[EARLIER + RECEIVED] + words[NOW + RECEIVED],
            words[EARLIER + ACKNOWLEDGED] + words[NOW + ACKNOWLEDGED],
            {reason: rows for reason, rows in dropped.items() if rows},
        )

    def __repr__(self) -> str:
        books = self.books()
        return (
            f"<Ledger {books.offered} rows offered, {books.acknowledged} acknowledged, {books.held} held, "
            f"{books.lost} lost, dropped {books.dropped}>"
        )
