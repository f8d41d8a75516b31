"""The worker's links to the front doors: requests in, answers out.

A worker connects to every `door-*.sock` it finds in the run directory and looks again twice a second, so that
front doors and workers can come and go in any order. Belongs to the I/O thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Final, Protocol, cast

from shared.board import Board
from shared.frames import (
    Cancel,
    FrameError,
    FrameReader,
    FrameWriter,
    Hello,
    OneField,
    Readiness,
    Request,
    State,
    answer_head,
)
from shared.metrics import HANDOVER_LATENCY
from workers.service import Answered

__all__ = ["DoorLink", "Doors", "Scorer", "Ticket"]

log = logging.getLogger(__name__)

REQUEST_ID: Final = OneField(b"inferflow-request-id")  # trailing metadata of every answer
LOOK_SECONDS = 0.5  # this and MAX_UNSENT are not final, so that tests can have others
FRAME_OVERHEAD: Final = 64 << 10  # bytes that a request frame may have besides its body: metadata
MAX_UNSENT = 64 << 20  # bytes of answers that a front door has not read; over that it is taken for dead

_NO_METADATA: Final[dict[bytes, bytes]] = {}


class Ticket(Protocol):
    """A request in flight."""

    def cancel(self) -> None:
        """Ends it without an answer."""
        ...


class Scorer(Protocol):
    """What answers requests: `workers.service.Service`."""

    def handle(
        self,
        method: int,
        metadata: Mapping[bytes, bytes],
        body: bytes,
        deadline: float | None,
        answer: Callable[[Answered], None],
    ) -> Ticket: ...


class _Asked:
    """A request that a link has handed over."""

    __slots__ = ("_link", "answered", "id", "ticket")

    def __init__(self, link: DoorLink, request_id: int) -> None:
        self._link = link
        self.id = request_id
        self.ticket: Ticket | None = None
        """Until it is over: the ticket knows whom to answer, and together they would be the garbage collector's."""
        self.answered = False

    def answer(self, outcome: Answered) -> None:
        """Called by the scorer, maybe before there is a ticket."""
        self.answered = True
        self.ticket = None
        self._link.answer(self, outcome)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        ticket, self.ticket = self.ticket, None
        assert ticket is not None  # who cancels comes later than the scorer
        ticket.cancel()

    def __repr__(self) -> str:
        return f"<_Asked {self.id} of {self._link!r}>"


class DoorLink(asyncio.Protocol):
    """One connection to one front door."""

    def __init__(self, doors: Doors, path: Path) -> None:
        self.path = path
        self._doors = doors
        self._reader: FrameReader[Request | Cancel] = FrameReader(
            (Request, Cancel), doors.max_request_bytes + FRAME_OVERHEAD
        )
        self._asked: dict[int, _Asked] = {}  # what is not answered yet
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None

    @property
    def in_flight(self) -> int:
        return len(self._asked)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._transport.set_write_buffer_limits(high=MAX_UNSENT)
        self._writer = FrameWriter(self._doors.loop, self._transport)
        self._writer.write(self._doors.hello.encode())
        self.send_state(self._doors.state)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._reader.feed(data)
        except FrameError as error:
            log.error("front door sent a bad frame", extra={"door": self.path.name, "reason": str(error)})
            self.close()
            return
        for frame in frames:
            if isinstance(frame, Request):
                self._start(frame)
            elif (asked := self._asked.pop(frame.id, None)) is not None:
                asked.cancel()
                self._doors.answered()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._writer is not None:
            self._writer.drop()
            self._writer = None
        requests, self._asked = self._asked, {}
        for asked in requests.values():
            asked.cancel()
        self._doors.lost(self)

    def pause_writing(self) -> None:
        log.error("front door does not read its answers", extra={"door": self.path.name, "limit": MAX_UNSENT})
        self.close()

    def send_state(self, state: State) -> None:
        if self._writer is not None:
            self._writer.write(state.encode())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        """Closes when all is sent."""
        if self._transport is not None and self._writer is not None:
            self._writer.flush()
            self._transport.close()

    def _start(self, request: Request) -> None:
        doors = self._doors
        if request.sent_us:
            doors.handover.observe(monotonic() * 1e3 - request.sent_us * 1e-3)
        deadline = doors.clock() + request.deadline_us / 1e6 if request.deadline_us else None
        metadata = dict(request.metadata) if request.metadata else _NO_METADATA
        asked = _Asked(self, request.id)
        ticket = doors.service.handle(request.method, metadata, request.body, deadline, asked.answer)
        if not asked.answered:
            asked.ticket = ticket
            self._asked[asked.id] = asked

    def answer(self, asked: _Asked, outcome: Answered) -> None:
        """Sends the answer to a request."""
        self._asked.pop(asked.id, None)
        writer = self._writer
        if writer is not None:
            trailing = REQUEST_ID.encode(outcome.request_id)
            body = outcome.body
            writer.write(answer_head(asked.id, outcome.status, outcome.message, trailing, len(body)), body)
        self._doors.answered()

    def __repr__(self) -> str:
        return f"<DoorLink {self.path.name} {self.in_flight} in flight>"


class Doors:
    """All front doors of the pod, as one worker sees them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run_dir: Path,
        service: Scorer,
        hello: Hello,
        max_request_bytes: int,
        board: Board,
    ) -> None:
        self.loop = loop
        self.clock = loop.time
        self.handover = board.histogram(HANDOVER_LATENCY)
        self.service = service
        self.hello = hello
        self.max_request_bytes = max_request_bytes
        self.state = State(Readiness.NOT_READY, 0, "no config version is active yet")
        self._run_dir = run_dir
        self._links: dict[Path, DoorLink] = {}
        self._became_idle: asyncio.Future[None] | None = None

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return sum(link.in_flight for link in self._links.values())

    def tell(self, state: State) -> None:
        """Tells all front doors, now and those to come, what this worker can take."""
        if state != self.state:
            self.state = state
            for link in self._links.values():
                link.send_state(state)

    async def idle(self) -> None:
        """Returns when no request is in flight."""
        while self.in_flight:
            self._became_idle = self.loop.create_future()
            await self._became_idle

    def answered(self) -> None:
        """Called by the links after each answer or cancellation."""
        if self._became_idle is not None and not self._became_idle.done() and not self.in_flight:
            self._became_idle.set_result(None)

    async def keep_looking(self) -> None:
        """Connects to front doors as they appear; runs until it is cancelled."""
        while True:
            for path in sorted(self._run_dir.glob("door-*.sock")):
                if path not in self._links:
                    await self._connect(path)
            await asyncio.sleep(LOOK_SECONDS)

    def lost(self, link: DoorLink) -> None:
        if self._links.get(link.path) is link:
            del self._links[link.path]
        self.answered()

    def finish(self) -> None:
        for link in list(self._links.values()):
            link.finish()

    async def _connect(self, path: Path) -> None:
        try:
            _, link = await self.loop.create_unix_connection(lambda: DoorLink(self, path), str(path))
        except OSError as error:
            # A socket file that its front door left behind, or one that does not listen yet.
            log.debug("front door cannot be reached", extra={"door": path.name, "reason": str(error)})
            return
        self._links[path] = link

    def __repr__(self) -> str:
        return f"<Doors {list(self._links.values())!r}>"
