"""A worker's link to the log sidecar: finished matrix slots out, releases in.

A slot that is lent stays busy, and nobody writes to it, until the log sidecar releases it or is gone. What can go
wrong costs rows of the log and no request anything: a slot that cannot be lent is the caller's to free at once, and
the reason is counted. How much memory may be lent is bounded. Belongs to the thread of its event loop.

Lifecycle of a loan: lent → released | taken back, when the link has ended. The worker writes 0 into the check
word of a slot before it frees it, so that a log sidecar which is still at it finds out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from shared.addresses import address
from shared.fd_stream import FdStream
from shared.frames import FrameError, FrameReader, HandOver, Lend, LogConfig, LogSegment, Release
from shared.ledger import ACCEPTING, FULL, HANDED, OFFERED, REFUSED, Ledger
from shared.log_record import CHECK, Notes, check_word, write_record
from shared.shm_matrix import Bytes, MatrixFull, MatrixPool, ShmMatrix, Slot

__all__ = ["ConfigVersion", "LogLink"]

log = logging.getLogger(__name__)

FIRST_WAIT: Final = (
    0.05  # seconds before the second attempt to connect; doubled at each that comes to nothing
)
LONGEST_WAIT: Final = 1.0
GATHER: Final = 0.001
"""Seconds for which hand-overs are gathered: one write, and one wake-up of the log sidecar, serves them all."""
_MAX_FRAME: Final = 1 << 20
_MAX_UNSENT: Final = 64 << 20
"""Bytes; loans are bounded, so that what waits here is mostly the documents of configs."""
_KEPT: Final = 2
"""Versions of a config that the log sidecar keeps: requests of the one before may still be under way."""
_AWAY: Final = REFUSED["log sidecar away"]
_BEHIND: Final = REFUSED["log sidecar behind"]
_QUEUE_FULL: Final = REFUSED["queue full"]
_NO_MEMORY: Final = REFUSED["no shared memory"]
_BAD: Final = REFUSED["not understood"]


class ConfigVersion(NamedTuple):
    """Which version of a config a matrix was scored by."""

    model_config_id: str
    digest: str
    service: bytes
    """The service config, as JSON."""


class _Loan(NamedTuple):
    slot: Slot
    generation: int
    heap: Bytes
    at: int
    """Where in the heap the check word stands."""
    bytes: int


class LogLink:
    """Lends the slots of one pool to the log sidecar.

    `ledger` has the books; `lent` and `lent_bytes` are the loans that are open.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, path: Path, pool: MatrixPool, *, worker: int, limit: int
    ) -> None:
        """`path` is the log sidecar's socket, `limit` how many bytes of slots may be lent. Nothing happens yet.

        Raises OSError when there is no memory for the books.
        """
        self.ledger = Ledger.create()
        self.lent_bytes = 0
        self.limit = limit
        self._loop = loop
        self._path = path
        self._pool = pool
        self._lend = Lend(worker, os.getpid()).encode()
        self._loans: dict[int, _Loan] = {}
        self._stream: FdStream[Release] | None = None
        self._announced = 0  # segments that the log sidecar knows
        self._numbers: dict[ConfigVersion, int] = {}
        self._versions: dict[str, list[ConfigVersion]] = {}  # introduced, by model_config_id, oldest first
        self._next_number = 0
        self._frames: list[bytes] = []
        self._retry: asyncio.TimerHandle | None = None
        self._wait = FIRST_WAIT
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "not connected"
        return (
            f"<LogLink {self._path} {state}, {self.lent} slots lent, {self.lent_bytes} bytes of {self.limit}>"
        )

    @property
    def connected(self) -> bool:
        return self._stream is not None

    @property
    def lent(self) -> int:
        """Slots that are lent."""
        return len(self._loans)

    def start(self) -> None:
        """Connects, now or as soon as the log sidecar is there, and again whenever the connection is lost."""
        self._connect()

    async def close(self, limit: float = 1.0) -> None:
        """Sends what was handed over, if that can be done within `limit` seconds, and ends the link.

        The log sidecar has the memory mapped and goes on with what it got.
        """
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._stream is None:
            return
        self._flush()
        over = self._loop.time() + limit
        while self._stream is not None and self._stream.unsent and self._loop.time() < over:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    # --- slots

    def lend(
        self,
        matrix: ShmMatrix,
        slates: ShmMatrix | None,
        notes: Callable[[], Notes],
        version: ConfigVersion,
        document: Callable[[], bytes],
    ) -> bool:
        """Hands the slot of a finished matrix over. True: it is lent, and the caller must not touch it any more.

        `notes` is called only if it can be lent; `document` makes the `LoggedConfig` of the version, and is called
        only if the log sidecar does not know it.
        """
        rows = matrix.rows + (slates.rows if slates is not None else 0)
        words = self.ledger.words
        words[OFFERED] += rows
        refused = self._refusal(matrix.slot)
        if not refused:
            try:
                self._hand_over(matrix, slates, notes(), self._config_number(version, document), rows)
            except MatrixFull:
                refused = _NO_MEMORY
            except Exception:
                # A mistake of ours: it costs the log a request, and nobody else anything.
                log.exception(
                    "matrix cannot be described", extra={"model_config_id": version.model_config_id}
                )
                refused = _BAD
        if refused:
            words[refused] += rows
            return False
        return True

    def _refusal(self, slot: Slot) -> int:
        """The word of the reason why this slot cannot be lent; 0 when it can."""
        accepting = self.ledger.words[ACCEPTING]
        if self._stream is None or not accepting:
            return _AWAY
        if accepting == FULL:
            return _QUEUE_FULL
        return _BEHIND if self.lent_bytes + slot.size > self.limit else 0

    def _hand_over(
        self, matrix: ShmMatrix, slates: ShmMatrix | None, notes: Notes, config: int, rows: int
    ) -> None:
        slot, generation = matrix.slot, matrix.slot.generation
        check = check_word(slot.number, generation)
        record = write_record(matrix, slates, notes, check)
        heap, at = slot.copy(record.data)
        if len(self._pool.segments) > self._announced:
            self._announce_segments()
        self._loans[slot.number] = _Loan(slot, generation, heap, at, slot.size)
        self.lent_bytes += slot.size
        self.ledger.words[HANDED] += rows
        start = address(heap) + at
        self._write(
            HandOver(
                slot.number, config, generation, check, start, record.head, len(record.data), rows
            ).encode()
        )

    def _release(self, frame: Release) -> None:
        for number, generation in frame.slots:
            loan = self._loans.get(number)
            if loan is None or loan.generation != generation:
                raise FrameError(f"RELEASE: slot {number} of generation {generation} is not lent")
            del self._loans[number]
            self._free(loan)

    def _free(self, loan: _Loan) -> None:
        loan.heap[loan.at : loan.at + CHECK.size] = 0
        self.lent_bytes -= loan.bytes
        self._pool.release(loan.slot)

    # --- what the log sidecar must know first

    def _config_number(self, version: ConfigVersion, document: Callable[[], bytes]) -> int:
        number = self._numbers.get(version)
        if number is not None:
            return number
        text = document()
        self._next_number += 1
        number = forget = self._next_number
        known = self._versions.setdefault(version.model_config_id, [])
        known.append(version)
        if len(known) > _KEPT:
            forget = self._numbers.pop(known.pop(0))
        self._numbers[version] = number
        self._write(LogConfig(number, forget, text).encode())
        return number

    def _announce_segments(self) -> None:
        assert self._stream is not None  # only a link that is there is told anything
        self._flush()
        for segment in self._pool.segments[self._announced :]:
            self._stream.send(LogSegment(address(segment.bytes), segment.size).encode(), segment.fd)
        self._announced = len(self._pool.segments)

    # --- connection

    def _write(self, frame: bytes) -> None:
        if not self._frames:
            self._loop.call_later(GATHER, self._flush)
        self._frames.append(frame)

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if frames and self._stream is not None:
            self._stream.send(b"".join(frames))

    def _connect(self) -> None:
        self._retry = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(self._path))  # at once or not at all, as for all Unix sockets
        except OSError as error:
            sock.close()
            log.debug("log sidecar cannot be reached", extra={"reason": str(error)})
            self._try_again()
            return
        reader: FrameReader[Release] = FrameReader((Release,), _MAX_FRAME)
        self._stream = FdStream(self._loop, sock, reader, self._on_release, self._lost, _MAX_UNSENT)
        self._stream.send(self._lend, self.ledger.fd)
        self._announce_segments()

    def _on_release(self, frame: Release) -> None:
        self._wait = FIRST_WAIT
        self._release(frame)

    def _try_again(self) -> None:
        # Jitter: the workers of a pod lose the log sidecar in the same instant.
        self._retry = self._loop.call_later(self._wait * random.uniform(0.5, 1.0), self._connect)
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _lost(self, reason: str) -> None:
        self._stream = None
        self._frames.clear()
        self._announced = 0
        self._numbers.clear()
        self._versions.clear()
        loans = list(self._loans.values())
        self._loans.clear()
        for loan in loans:
            self._free(loan)
        lost = self.ledger.outstanding
        self._turn_page()
        if not self._closed:
            log.warning("log sidecar lost", extra={"reason": reason, "slots": len(loans), "rows_lost": lost})
            self._try_again()

    def _turn_page(self) -> None:
        old = self.ledger
        try:
            self.ledger = Ledger.create()
        except OSError as error:
            log.error("no memory for new books: the old ones go on", extra={"reason": str(error)})
        self.ledger.succeed(old)
        if old is not self.ledger:
            old.close()
