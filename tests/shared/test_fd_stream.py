"""Frames and descriptors over a real socket pair, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from shared.fd_stream import FdStream
from shared.frames import Activate, FrameReader, Snapshot

Accepted = Snapshot | Activate
TIMEOUT = 20  # seconds; far more than anything here takes


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run_it(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(main, TIMEOUT))

    return run_it


class End:
    """One end of a connection, with what it has seen."""

    def __init__(self, sock: socket.socket, max_unsent: int = 1 << 20) -> None:
        sock.setblocking(False)
        self.frames: list[Accepted] = []
        self.files: list[str] = []
        self.lost: list[str] = []
        self.changed = asyncio.Event()
        reader: FrameReader[Accepted] = FrameReader((Snapshot, Activate), 1000)
        loop = asyncio.get_running_loop()
        self.stream = FdStream(loop, sock, reader, self._frame, self._lost, max_unsent)

    def _frame(self, frame: Accepted) -> None:
        self.changed.set()
        if isinstance(frame, Snapshot):
            fd = self.stream.take_fd()
            self.files.append(os.pread(fd, 100, 0).decode())
            os.close(fd)
        if isinstance(frame, Activate) and frame.version == 666:
            raise ArithmeticError("a handler that fails")
        self.frames.append(frame)

    def _lost(self, reason: str) -> None:
        self.changed.set()
        self.lost.append(reason)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


def file_of(text: str) -> int:
    fd = os.memfd_create("test")
    os.write(fd, text.encode())
    return fd


def test_descriptors_arrive_with_their_frames(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        sender, receiver = End(left), End(right)
        for number in range(40):
            fd = file_of(f"file {number}")
            sender.stream.send(Activate(number).encode())
            sender.stream.send(Snapshot(number, 6).encode(), fd)
            os.close(fd)  # the stream has its own
        await receiver.until(lambda: len(receiver.frames) == 80)
        assert receiver.files == [f"file {number}" for number in range(40)]
        assert receiver.frames[::2] == [Activate(number) for number in range(40)]
        sender.stream.close()
        await receiver.until(lambda: bool(receiver.lost))
        assert receiver.lost == ["closed by its peer"]
        assert sender.lost == []
        assert repr(sender.stream).startswith("<FdStream closed")

    run(main())


def test_frames_wait_for_a_slow_reader(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        sender = End(left)
        fd = file_of("slow")
        count = 5000  # far more than the kernel buffers
        for number in range(count):
            sender.stream.send(Snapshot(number, 4).encode(), fd if number % 100 == 0 else None)
        assert "0 bytes unsent" not in repr(sender.stream)
        os.close(fd)
        receiver = End(right)
        receiver.stream.take_fd = lambda: os.memfd_create("x")  # type: ignore[method-assign]
        await receiver.until(lambda: len(receiver.frames) == count)
        assert [frame.version for frame in receiver.frames] == list(range(count))
        assert " 0 bytes unsent" in repr(sender.stream)
        sender.stream.close()
        receiver.stream.close()

    run(main())


def test_a_frame_that_goes_in_pieces_arrives_whole(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """Longer than what the kernel takes at once; its descriptor goes with the first piece, once."""

    async def main() -> None:
        left, right = socket.socketpair()
        sender = End(left, max_unsent=16 << 20)
        data = os.urandom(4 << 20)
        fd = file_of("whole")
        sender.stream.send(data, fd)
        sender.stream.send(b"end")
        os.close(fd)
        right.setblocking(False)
        received, files = bytearray(), []
        while len(received) < len(data) + 3:
            try:
                piece, fds, _, _ = socket.recv_fds(right, 1 << 20, 4)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            received += piece
            files += fds
        assert received == data + b"end"
        assert [os.pread(one, 100, 0) for one in files] == [b"whole"]
        for one in files:
            os.close(one)
        sender.stream.close()
        right.close()

    run(main())


def test_a_reader_that_never_reads_is_given_up(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        sender = End(left, max_unsent=10_000)
        for number in range(10_000):
            sender.stream.send(Activate(number).encode())
        assert sender.lost == []  # never from inside send
        await sender.until(lambda: bool(sender.lost))
        assert len(sender.lost) == 1
        assert "it does not read" in sender.lost[0]
        right.close()

    run(main())


def test_a_handler_that_fails_takes_no_other_frame_with_it(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def main() -> None:
        failures: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context["exception"])
        )
        left, right = socket.socketpair()
        receiver = End(right)
        left.sendall(Activate(1).encode() + Activate(666).encode() + Activate(2).encode())
        await receiver.until(lambda: len(receiver.frames) == 2)
        assert receiver.frames == [Activate(1), Activate(2)]
        assert [type(failure) for failure in failures] == [ArithmeticError]
        left.close()
        receiver.stream.close()

    run(main())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (Snapshot(1, 1).encode(), "without its descriptor"),
        (b"\xff" * 8, "frame of"),
        (b"\x02\x00\x00\x00\x63\x00", "kind 99"),
    ],
)
def test_a_peer_that_breaks_the_rules_is_lost(
    run: Callable[[Coroutine[Any, Any, None]], None], data: bytes, reason: str
) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        receiver = End(right)
        left.sendall(data)
        await receiver.until(lambda: bool(receiver.lost))
        assert reason in receiver.lost[0]
        assert left.recv(1) == b""
        left.close()

    run(main())


def test_a_frame_that_is_cut_says_so(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        receiver = End(right)
        left.sendall(Activate(1).encode()[:-3])
        left.close()
        await receiver.until(lambda: bool(receiver.lost))
        assert receiver.lost == ["closed by its peer inside a frame (10 bytes)"]

    run(main())


def test_no_descriptor_leaks(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        left, right = socket.socketpair()
        sender, receiver = End(left), End(right)
        receiver.stream.take_fd = lambda: os.memfd_create("never claimed")  # type: ignore[method-assign]
        fd = file_of("x")
        for number in range(2000):
            sender.stream.send(Snapshot(number, 1).encode(), fd)
        os.close(fd)
        await receiver.until(lambda: len(receiver.frames) > 10)
        sender.stream.close()
        receiver.stream.close()
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before

    run(main())
