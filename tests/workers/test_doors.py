"""The worker's links to front doors, over real Unix sockets, with a service that a test answers for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from rpc.status import Status
from shared.board import Board
from shared.frames import Answer, Cancel, FrameReader, Hello, Readiness, Request, State
from workers import doors as doors_module
from workers.doors import Doors
from workers.service import Answered, Service

PATIENCE = 60.0
HELLO = Hello(3, 4711, 256)
READY = State(Readiness.READY, 5, "")


WITH_ID = ((b"inferflow-request-id", b"1d"),)


class Job:
    """A request that the service has, and its ticket."""

    def __init__(
        self,
        method: int,
        metadata: Mapping[bytes, bytes],
        body: bytes,
        deadline: float | None,
        answer: Callable[[Answered], None],
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.body = body
        self.deadline = deadline
        self.answer = answer
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def ok(self, body: bytes) -> None:
        self.answer(Answered(Status.OK, "", body, b"1d"))


class ScriptedService:
    """Answers `echo…` at once and keeps the other requests for the test."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.news = asyncio.Event()

    def handle(
        self,
        method: int,
        metadata: Mapping[bytes, bytes],
        body: bytes,
        deadline: float | None,
        answer: Callable[[Answered], None],
    ) -> Job:
        job = Job(method, metadata, body, deadline, answer)
        if body.startswith(b"echo"):
            job.ok(body)
        else:
            self.jobs.append(job)
            self.news.set()
        return job

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), 0.01)


class Door:
    """A front door: its workers' connections, in the order in which they came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.turn_away = 0  # so many workers are hung up on at once
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, str(self.path))

    def close(self) -> None:
        """Stops listening and hangs up; the socket file stays."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self.turn_away:
            self.turn_away -= 1
            writer.transport.abort()
        else:
            await self.links.put(Link(reader, writer))

    async def worker(self) -> Link:
        """The next worker, after its greeting."""
        link = await asyncio.wait_for(self.links.get(), PATIENCE)
        assert await link.read() == HELLO
        return link


class Link:
    """One worker's connection, from the door's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._frames: FrameReader[Hello | State | Answer] = FrameReader((Hello, State, Answer), 64 << 20)
        self._read: list[Hello | State | Answer] = []

    async def read(self) -> Hello | State | Answer:
        while not self._read:
            data = await asyncio.wait_for(self.reader.read(1 << 20), PATIENCE)
            assert data, "the worker has closed the link"
            self._read += self._frames.feed(data)
        return self._read.pop(0)

    def send(self, *frames: Request | Cancel | bytes) -> None:
        self.writer.write(b"".join(f if isinstance(f, bytes) else f.encode() for f in frames))

    async def closed(self) -> None:
        """Returns when the worker has closed the link; what it sent before is read."""
        with contextlib.suppress(ConnectionError):
            while await asyncio.wait_for(self.reader.read(1 << 20), PATIENCE):
                pass


class World:
    """One worker with its doors."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.service = ScriptedService()
        loop = asyncio.get_running_loop()
        self.doors = Doors(loop, run_dir, cast(Service, self.service), HELLO, 1 << 20, Board("worker-0"))

        self._opened: list[Door] = []

    async def door(self, number: int, *, turn_away: int = 0) -> Door:
        door = Door(self.run_dir / f"door-{number}.sock")
        door.turn_away = turn_away
        await door.open()
        self._opened.append(door)
        return door

    async def close(self) -> None:
        for link in list(self.doors._links.values()):
            link.close()
        for _ in range(2):  # once more for who came while the doors were being closed
            for door in self._opened:
                door.close()
            await asyncio.sleep(0.01)  # the transports say goodbye to their protocols


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/tmp"))  # socket paths are short
    yield path
    shutil.rmtree(path)


Story = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def tell(
    request: pytest.FixtureRequest, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Story], None]:
    """Runs a story on a loop, while the worker looks for doors."""
    monkeypatch.setattr(doors_module, "LOOK_SECONDS", 0.01)

    @contextlib.asynccontextmanager
    async def world() -> AsyncIterator[World]:
        world = World(run_dir)
        looking = asyncio.create_task(world.doors.keep_looking())
        try:
            yield world
        finally:
            looking.cancel()
            await world.close()

    def run(story: Story) -> None:
        async def main() -> None:
            async with world() as made:
                await story(made)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return run


def ask(number: int, body: bytes = b"body", **more: Any) -> Request:
    return Request(number, more.get("deadline_us", 0), more.get("method", 1), more.get("metadata", ()), body)


# ---------------------------------------------------------------- greetings and states


def test_a_worker_greets_every_door(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        first = await world.door(0)
        link = await first.worker()
        assert await link.read() == State(Readiness.NOT_READY, 0, "no config version is active yet")
        world.doors.tell(READY)
        world.doors.tell(READY)  # no news, not sent
        world.doors.tell(State(Readiness.READY, 6, ""))
        assert [await link.read(), await link.read()] == [READY, State(Readiness.READY, 6, "")]
        second = await world.door(1)
        late = await second.worker()
        assert await late.read() == State(Readiness.READY, 6, "")
        draining = State(Readiness.DRAINING, 6, "the worker is shutting down")
        world.doors.tell(draining)
        assert [await link.read(), await late.read()] == [draining, draining]
        assert repr(world.doors).count("DoorLink door-") == 2

    tell(story)


# ---------------------------------------------------------------- requests


def test_requests_are_answered(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        await link.read()
        metadata = ((b"user-id", b"u\xff"), (b"user-id", b"last one counts"))
        link.send(ask(7, b"slow", method=2, metadata=metadata, deadline_us=2_500_000), ask(8, b"echo"))
        assert await link.read() == Answer(8, 0, "", WITH_ID, b"echo")
        (job,) = world.service.jobs
        assert (job.method, job.body, job.metadata) == (2, b"slow", {b"user-id": b"last one counts"})
        assert job.deadline is not None
        assert 0 < job.deadline - world.doors.loop.time() <= 2.5
        assert world.doors.in_flight == 1
        job.answer(Answered(Status.INVALID_ARGUMENT, "field x", b"", b"1d"))
        assert await link.read() == Answer(7, 3, "field x", WITH_ID, b"")
        assert world.doors.in_flight == 0

    tell(story)


def test_no_deadline_is_none(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        link.send(ask(1))
        await world.service.until(lambda: bool(world.service.jobs))
        assert world.service.jobs[0].deadline is None

    tell(story)


def test_many_answers_come_whole_and_in_order(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        await link.read()
        bodies = [b"echo" + bytes([number % 251]) * (number * 37 % 5000) for number in range(300)]
        link.send(*(ask(number, body) for number, body in enumerate(bodies)))
        for number, body in enumerate(bodies):
            assert await link.read() == Answer(number, 0, "", WITH_ID, body)

    tell(story)


def test_a_cancelled_request_is_forgotten(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        await link.read()
        link.send(ask(1), ask(2), Cancel(1), Cancel(99), Cancel(1))
        await world.service.until(lambda: bool(world.service.jobs) and world.service.jobs[0].cancelled)
        assert [job.cancelled for job in world.service.jobs] == [True, False]
        assert world.doors.in_flight == 1
        world.service.jobs[1].ok(b"two")
        assert await link.read() == Answer(2, 0, "", WITH_ID, b"two")

    tell(story)


def test_a_request_that_is_over_is_freed_at_once(tell: Callable[[Story], None]) -> None:
    """Without the garbage collector, which comes rarely: a request holds its plan, and old plans must go."""

    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        await link.read()
        link.send(ask(1), ask(2), ask(3, b"echo"))
        await link.read()
        ends = [weakref.ref(job) for job in world.service.jobs]
        world.service.jobs.pop(0).ok(b"one")
        await link.read()
        link.send(Cancel(2))
        await world.service.until(lambda: world.service.jobs[0].cancelled)
        world.service.jobs.clear()
        assert [end() for end in ends] == [None, None]

    gc.disable()
    try:
        tell(story)
    finally:
        gc.enable()


def test_idle_waits_for_the_last_request(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        await world.doors.idle()
        door = await world.door(0)
        link = await door.worker()
        link.send(ask(1), ask(2), ask(3))
        await world.service.until(lambda: len(world.service.jobs) == 3)
        waiting = asyncio.create_task(world.doors.idle())
        world.service.jobs[0].ok(b"")
        link.send(Cancel(2))
        await world.service.until(lambda: world.service.jobs[1].cancelled)
        assert not waiting.done()
        world.service.jobs[2].ok(b"")
        await asyncio.wait_for(waiting, PATIENCE)

    tell(story)


# ---------------------------------------------------------------- doors that go


def test_a_lost_door_cancels_its_requests_and_is_found_again(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door, other = await world.door(0), await world.door(1)
        link, other_link = await door.worker(), await other.worker()
        link.send(ask(1), ask(2))
        other_link.send(ask(1))
        await world.service.until(lambda: len(world.service.jobs) == 3)
        waiting = asyncio.create_task(world.doors.idle())
        link.writer.transport.abort()
        await world.service.until(lambda: sum(job.cancelled for job in world.service.jobs) == 2)
        assert world.doors.in_flight == 1
        assert not waiting.done()
        (kept,) = [job for job in world.service.jobs if not job.cancelled]
        again = await door.worker()
        again.send(ask(1, b"echo again"))
        await again.read()
        assert await again.read() == Answer(1, 0, "", WITH_ID, b"echo again")
        kept.ok(b"")
        await asyncio.wait_for(waiting, PATIENCE)

    tell(story)


def test_an_answer_for_a_door_that_is_gone_is_dropped(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        link.send(ask(1))
        await world.service.until(lambda: bool(world.service.jobs))
        link.writer.transport.abort()
        await world.service.until(lambda: world.service.jobs[0].cancelled)
        world.service.jobs[0].ok(b"too late")
        again = await door.worker()
        assert isinstance(await again.read(), State)
        again.send(ask(1, b"echo"))
        assert await again.read() == Answer(1, 0, "", WITH_ID, b"echo")

    tell(story)


def test_a_door_that_hangs_up_at_once_is_tried_again(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door = await world.door(0, turn_away=20)
        await door.worker()
        assert door.turn_away == 0

    tell(story)


def test_a_socket_file_without_a_door_does_no_harm(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        left_behind = await world.door(0)
        await left_behind.worker()
        left_behind.close()
        (world.run_dir / "door-1.sock").touch()
        (world.run_dir / "door-2.txt").touch()
        good = await world.door(3)
        link = await good.worker()
        link.send(ask(1, b"echo"))
        await link.read()
        assert await link.read() == Answer(1, 0, "", WITH_ID, b"echo")
        (world.run_dir / "door-1.sock").unlink()
        late = await world.door(1)
        await late.worker()

    tell(story)


# ---------------------------------------------------------------- doors that misbehave


BAD_FRAMES = {
    "kind of a worker": Hello(1, 2, 3).encode(),
    "unknown kind": b"\x01\0\0\0\x63",
    "no length": b"\0\0\0\0",
    "too long": b"\xff\xff\xff\x7f\x03",
    "cut request": b"\x05\0\0\0\x03abcd",
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_bad_frame_ends_that_link_only(tell: Callable[[Story], None], frame: bytes) -> None:
    async def story(world: World) -> None:
        door, other = await world.door(0), await world.door(1)
        link, other_link = await door.worker(), await other.worker()
        other_link.send(ask(5))
        link.send(ask(1))
        await world.service.until(lambda: len(world.service.jobs) == 2)
        link.send(frame)
        await link.closed()
        await world.service.until(lambda: sum(job.cancelled for job in world.service.jobs) == 1)
        again = await door.worker()
        again.send(ask(2, b"echo"))
        await again.read()
        assert await again.read() == Answer(2, 0, "", WITH_ID, b"echo")
        (kept,) = [job for job in world.service.jobs if not job.cancelled]
        kept.ok(b"fine")
        await other_link.read()
        assert await other_link.read() == Answer(5, 0, "", WITH_ID, b"fine")

    tell(story)


def test_a_body_over_the_limit_is_a_bad_frame(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        link.send(ask(1, b"x" * (1 << 20)))
        await world.service.until(lambda: bool(world.service.jobs))
        assert len(world.service.jobs[0].body) == 1 << 20
        link.send(ask(2, b"x" * (1 << 21)))
        await link.closed()
        assert len(world.service.jobs) == 1

    tell(story)


def test_a_door_that_does_not_read_is_given_up(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors_module, "MAX_UNSENT", 100_000)

    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        link.reader._transport.pause_reading()  # type: ignore[attr-defined]
        link.send(ask(1))
        await world.service.until(lambda: bool(world.service.jobs))
        link.send(*(ask(number, b"echo" + bytes(50_000)) for number in range(2, 60)))
        await world.service.until(lambda: world.service.jobs[0].cancelled)
        await door.worker()

    tell(story)


def test_what_is_unsent_is_sent_before_the_end(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        door = await world.door(0)
        link = await door.worker()
        await link.read()
        link.send(ask(1))
        await world.service.until(lambda: bool(world.service.jobs))
        world.service.jobs[0].ok(b"last words" * 50_000)
        world.doors.finish()
        assert await link.read() == Answer(1, 0, "", WITH_ID, b"last words" * 50_000)
        await link.closed()

    tell(story)
