"""The door's end of one worker's connection: frames in, frames out.

Knows sockets and frames, and nothing of which request goes where. Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from shared.frames import Answer, FrameError, FrameReader, FrameWriter, Hello, State

__all__ = ["LinkOwner", "WorkerLink"]

MAX_ANSWER_BYTES = 256 << 20
"""Longest ANSWER frame. Far above what clients take: a worker that sends more is broken."""

STALL_SECONDS = 10.0
"""A worker that takes no byte for so long, although there are some for it, hangs."""


class LinkOwner(Protocol):
    """What a link tells."""

    def worker_joined(self, link: WorkerLink, hello: Hello) -> None:
        """The worker has introduced itself."""

    def worker_state(self, link: WorkerLink, state: State) -> None:
        """The worker has told what it can take. Never before `worker_joined`."""

    def worker_answered(self, link: WorkerLink, answer: Answer) -> None:
        """The worker has answered. Never before `worker_joined`."""

    def worker_gone(self, link: WorkerLink, reason: str) -> None:
        """The connection is over. Once, and last; also for one that never joined."""


class WorkerLink(asyncio.Protocol):
    """One connection. Ends, with a reason, at the first thing that is wrong with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: LinkOwner, max_unsent_bytes: int) -> None:
        self.number = 0
        """The owner's number for it; 0 until it joins."""
        self.name = "a worker that has not introduced itself"
        self._loop = loop
        self._owner = owner
        self._max_unsent = max_unsent_bytes
        self._reader = FrameReader[Hello | State | Answer]((Hello, State, Answer), MAX_ANSWER_BYTES)
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None
        self._given = 0  # bytes handed to the writer
        self._taken = 0  # those of them that the worker had taken at the last look
        self._progress_at = 0.0
        self._reason = "connection closed"

    def __repr__(self) -> str:
        state = "open" if self._transport is not None else f"over: {self._reason}"
        return f"<WorkerLink {self.number}: {self.name}, {self.unsent} bytes unsent, {state}>"

    @property
    def unsent(self) -> int:
        """Bytes that the worker has not taken yet."""
        return self._writer.unsent if self._writer is not None else 0

    def _is_over(self) -> bool:
        return self._transport is None

    # Out

    def write(self, head: bytes, body: bytes = b"") -> None:
        """Send these bytes at the end of the loop's turn, all of a turn together."""
        writer = self._writer
        if writer is not None:
            self._given += len(head) + len(body)
            writer.write(head, body)

    def check_stall(self, now: float) -> None:
        """End the link when the worker has taken nothing for STALL_SECONDS. To be called about once a second."""
        if self._writer is None:
            return
        unsent = self._writer.unsent
        taken = self._given - unsent
        if not unsent or taken != self._taken:
            self._taken, self._progress_at = taken, now
        elif now - self._progress_at >= STALL_SECONDS:
            self.end(f"took none of {unsent} bytes for {now - self._progress_at:.0f} s")

    def end(self, reason: str) -> None:
        """Cut the connection. The owner is told at once."""
        transport = self._transport
        if transport is not None:
            transport.abort()
            self._over(reason)

    def _over(self, reason: str) -> None:
        self._transport = None
        if self._writer is not None:
            self._writer.drop()  # it may have been about to send
            self._writer = None
        self._reason = reason
        self._owner.worker_gone(self, reason)

    # In

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since the transports of uvloop are no subclasses.
        self._transport = cast(asyncio.Transport, transport)
        self._progress_at = self._loop.time()
        # A burst of large bodies may well be above any small limit for an instant; the limit here is only
        # for what must not be kept at all. A worker that hangs is found by `check_stall`.
        self._transport.set_write_buffer_limits(high=self._max_unsent)
        self._writer = FrameWriter(self._loop, self._transport)

    def pause_writing(self) -> None:
        # In a turn of its own: this is called within `write`, whose caller is in the middle of something.
        self._loop.call_soon(self.end, f"has left more than {self._max_unsent} bytes unread")

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                if self._is_over():
                    return  # cut off; what was on the way is of no more use
                self._receive(frame)
        except FrameError as error:
            self.end(f"sent a bad frame: {error}")

    def _receive(self, frame: Hello | State | Answer) -> None:
        if type(frame) is Answer and self.number:
            self._owner.worker_answered(self, frame)
        elif isinstance(frame, State) and self.number:
            self._owner.worker_state(self, frame)
        elif isinstance(frame, Hello) and not self.number:
            if frame.max_in_flight < 1:
                raise FrameError("HELLO: max in flight 0, must be at least 1")
            self.name = f"worker {frame.worker} (process {frame.pid})"
            self._owner.worker_joined(self, frame)
            assert self.number, "worker_joined gives the link its number"
        else:
            raise FrameError(f"{type(frame).__name__}: HELLO must come first, and once")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._over(f"connection lost: {error}" if error else "connection closed")
