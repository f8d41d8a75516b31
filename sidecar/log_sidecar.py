"""The log sidecar: links of workers in, one sender out, and the books.

The decisions are the lenders' (one a worker) and the sender's; here are the sockets and the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from shared.board import Board
from shared.fd_stream import FdStream
from shared.frames import (
    FrameError,
    FrameReader,
    HandOver,
    Lend,
    LogConfig,
    LogQuery,
    LogSegment,
    LogStatus,
    Release,
)
from shared.ledger import NOTHING, Books, Ledger
from shared.metrics import (
    LOG_DROPPED,
    LOG_ERRORS,
    LOG_QUEUED,
    LOG_QUEUED_BYTES,
    LOG_ROWS,
    LOG_SENT,
)
from shared.rundir import UnixListener
from shared.settings import Settings
from sidecar.log_files import FileSink, remove_stale, warm_up
from sidecar.log_kafka import KafkaSink
from sidecar.log_lender import Lender
from sidecar.log_queue import ACCEPTED, Sender, Sink

__all__ = ["SOCKET", "LogSidecar", "open_sink"]

log = logging.getLogger(__name__)

SOCKET: Final = "logs.sock"
MAX_FRAME: Final = 64 << 20  # bytes; the document of a config is the longest
RELEASES: Final = 16
"""Slots that are given back with one frame, at most: workers wait for them when they have lent all they may."""

_FromWorker: TypeAlias = Lend | LogSegment | LogConfig | HandOver | LogQuery
_FROM_WORKER = (Lend, LogSegment, LogConfig, HandOver, LogQuery)


@dataclass
class _Peer:
    """One connection; a worker's from its LEND on."""

    stream: FdStream[_FromWorker]
    lender: Lender | None = None


class LogSidecar:
    """Everything that the process owns. Belongs to the loop's thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: UnixListener, sink: Sink, settings: Settings
    ) -> None:
        self.sender = Sender(
            sink,
            max_bytes=settings.log.queue_bytes,
            max_messages=settings.log.queue_messages,
            on_room=self._tell_room,
        )
        self._loop = loop
        self._listener = listener
        self._settings = settings
        self._started = time.time()
        self._numbers = itertools.count(1)
        self._peers: dict[int, _Peer] = {}
        self._left: list[Lender] = []  # their links are over, and not all of their rows are settled
        self._closed_books: Books = NOTHING  # of workers that are gone, and settled
        self._unfit = 0  # of those
        self._releases: dict[int, list[tuple[int, int]]] = {}

    def __repr__(self) -> str:
        return f"<LogSidecar {len(self.lenders)} workers, {self.sender!r}>"

    @property
    def lenders(self) -> list[Lender]:
        """The workers that are linked."""
        return [peer.lender for peer in self._peers.values() if peer.lender is not None]

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; then delivers what it has, within the time for that."""
        self._loop.add_reader(self._listener.socket, self._accept)
        sending = self._loop.create_task(self.sender.run())
        stopping = self._loop.create_task(stop.wait())
        try:
            # Sending never ends by itself: if it does, that is an error that must not pass in silence.
            await asyncio.wait([sending, stopping], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            self._close_listener()
            await self._flush(sending)
        finally:
            sending.cancel()
            stopping.cancel()
            for peer in self._peers.values():
                peer.stream.close()
                if peer.lender is not None:
                    peer.lender.end()

    # --- links

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.socket.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        number = next(self._numbers)
        reader: FrameReader[_FromWorker] = FrameReader(_FROM_WORKER, MAX_FRAME)
        stream = FdStream(
            self._loop,
            sock,
            reader,
            lambda frame: self._heard(number, frame),
            lambda reason: self._lost(number, reason),
        )
        self._peers[number] = _Peer(stream)

    def _heard(self, number: int, frame: _FromWorker) -> None:
        peer = self._peers[number]
        match frame:
            case LogQuery():
                peer.stream.send(LogStatus(orjson.dumps(self.status())).encode())
                return
            case Lend():
                self._join(number, peer, frame)
                return
        if peer.lender is None:
            raise FrameError(f"{type(frame).__name__}: LEND must come first")
        match frame:
            case HandOver():
                peer.lender.take(frame)
            case LogConfig():
                peer.lender.introduce(frame)
            case LogSegment():
                fd = peer.stream.take_fd()
                try:
                    peer.lender.segments.add(fd, frame.base, frame.size)
                except OSError as error:
                    raise FrameError(f"LOG_SEGMENT of {frame.size} bytes: {error}") from error
                finally:
                    os.close(fd)

    def _join(self, number: int, peer: _Peer, hello: Lend) -> None:
        fd = peer.stream.take_fd()
        try:
            ledger = Ledger(fd)
        except OSError as error:
            raise FrameError(f"LEND: {error}") from error
        finally:
            os.close(fd)
        # A worker that comes back has taken its old books along.
        self._left = [lender for lender in self._left if lender.pid != hello.pid]
        peer.lender = Lender(
            hello,
            ledger,
            self.sender,
            lambda slot, generation: self._release(number, slot, generation),
            message_bytes=self._settings.log.message_bytes,
            key=self._settings.log.key,
        )
        log.info("worker lends", extra={"worker": hello.worker, "worker_pid": hello.pid})

    def _lost(self, number: int, reason: str) -> None:
        peer = self._peers.pop(number)
        self._releases.pop(number, None)
        if peer.lender is not None:
            peer.lender.end()
            self._left.append(peer.lender)
            fields = {"worker": peer.lender.worker, "worker_pid": peer.lender.pid, "reason": reason}
            log.info("worker lends no more", extra=fields)

    def _release(self, number: int, slot: int, generation: int) -> None:
        """Gives a slot back, with others of the same turn of the loop."""
        gathered = self._releases.setdefault(number, [])
        gathered.append((slot, generation))
        if len(gathered) == 1:
            self._loop.call_soon(self._send_releases, number)
        elif len(gathered) >= RELEASES:
            self._send_releases(number)

    def _send_releases(self, number: int) -> None:
        gathered = self._releases.pop(number, None)
        if gathered and number in self._peers:
            self._peers[number].stream.send(Release(tuple(gathered)).encode())

    def _tell_room(self, room: bool) -> None:
        if not room:
            log.error("queue of the inference log is full: rows are dropped", extra=self._queue())
        else:
            log.info("queue of the inference log has room again", extra=self._queue())
        for lender in self.lenders:
            lender.set_accepting(room)

    # --- books

    def status(self) -> dict[str, Any]:
        """What `inferflow logs status` shows."""
        self._close_books()
        workers = [(lender, True) for lender in self.lenders] + [(lender, False) for lender in self._left]
        total = self._closed_books
        for lender, _ in workers:
            total += lender.ledger.books()
        return {
            "sink": self.sender.sink.state,
            "to": self._settings.logs_to,
            "since": self._started,
            **self._queue(),
            "messages_acknowledged": self.sender.outcomes[ACCEPTED],
            "messages_dropped": {
                reason: count for reason, count in self.sender.outcomes.items() if reason != ACCEPTED
            },
            "values_unfit": self._unfit + sum(lender.unfit for lender, _ in workers),
            "total": _shown(total),
            "workers": [
                {
                    "worker": lender.worker,
                    "pid": lender.pid,
                    "linked": linked,
                    **_shown(lender.ledger.books()),
                }
                for lender, linked in workers
            ],
        }

    def show(self, board: Board) -> None:
        """Shows the books on a board."""
        self._close_books()
        total = self._closed_books
        for lender in [*self.lenders, *self._left]:
            total += lender.ledger.books()
        board.counter(LOG_ROWS, "offered").value = total.offered
        board.counter(LOG_ROWS, "acknowledged").value = total.acknowledged
        dropped = {**total.dropped, "lost with the log sidecar": total.lost}
        for reason, rows in dropped.items():
            if rows:
                board.counter(LOG_DROPPED, reason).value = rows
        for outcome, messages in self.sender.outcomes.items():
            if outcome == ACCEPTED:
                board.counter(LOG_SENT).value = messages
            else:
                board.counter(LOG_ERRORS, outcome).value = messages
        board.gauge(LOG_QUEUED).value = self.sender.messages
        board.gauge(LOG_QUEUED_BYTES).value = self.sender.bytes

    def _queue(self) -> dict[str, Any]:
        return {
            "queued_messages": self.sender.messages,
            "queued_bytes": self.sender.bytes,
            "full": self.sender.full,
        }

    def _close_books(self) -> None:
        """Adds up the workers that are gone and settled: nothing about them will change."""
        still = []
        for lender in self._left:
            if lender.unsettled or lender.alive:
                still.append(lender)
            else:
                self._closed_books += lender.ledger.books()
                self._unfit += lender.unfit
        self._left = still

    # --- end

    async def _flush(self, sending: asyncio.Task[None]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.log.flush_s):
                await self.sender.empty()
                sending.cancel()
                await asyncio.wait([sending])
                await self.sender.sink.close()
        self.sender.give_up()
        log.info("log sidecar stopped", extra={"books": self.status()["total"]})

    def _close_listener(self) -> None:
        self._loop.remove_reader(self._listener.socket)
        self._listener.socket.close()
        self._listener.remove()


def _shown(books: Books) -> dict[str, Any]:
    return {**books._asdict(), "held": books.held}


def open_sink(settings: Settings, board: Board) -> Sink:
    """Where `settings.logs_to` says. `board` is where a sink counts what is not about messages.

    Raises OSError when the directory for files cannot be used.
    """
    warm_up()
    if settings.logs_to == "kafka":
        return KafkaSink(settings.kafka, settings.log)
    directory = settings.log.directory
    assert directory is not None  # logs_to says so
    directory.mkdir(parents=True, exist_ok=True)
    remove_stale(directory)
    return FileSink(directory, settings.log, board)
