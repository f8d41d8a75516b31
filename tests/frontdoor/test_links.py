"""The door's end of a worker's connection, with a transport and a clock of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest

from frontdoor.links import STALL_SECONDS, WorkerLink
from shared.frames import JOIN_BELOW, Answer, Cancel, Hello, Readiness, State

LIMIT = 1000
HELLO = Hello(3, 77, 5)
ANSWER = Answer(1, 0, "", (), b"body")


class Loop:
    """What a link uses of a loop."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        self.soon.append(lambda: callback(*arguments))

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Transport:
    """Takes bytes into a buffer that the test empties."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.buffered = 0
        self.high = 0
        self.aborted = False

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.buffered += len(data)

    def writelines(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            self.write(part)

    def abort(self) -> None:
        self.aborted = True


class Owner:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def worker_joined(self, link: WorkerLink, hello: Hello) -> None:
        link.number = 9
        self.told.append(hello)

    def worker_state(self, link: WorkerLink, state: State) -> None:
        self.told.append(state)

    def worker_answered(self, link: WorkerLink, answer: Answer) -> None:
        self.told.append(answer)

    def worker_gone(self, link: WorkerLink, reason: str) -> None:
        self.told.append(reason)


class Bench:
    """A link that has just been connected."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.owner = Owner()
        self.transport = Transport()
        self.link = WorkerLink(cast(asyncio.AbstractEventLoop, self.loop), self.owner, LIMIT)
        self.link.connection_made(cast(asyncio.BaseTransport, self.transport))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_frames_are_told_in_order(bench: Bench) -> None:
    state = State(Readiness.READY, 7, "")
    wire = HELLO.encode() + state.encode() + ANSWER.encode()
    bench.link.data_received(wire[:20])
    bench.link.data_received(wire[20:])
    assert bench.owner.told == [HELLO, state, ANSWER]
    assert bench.link.name == "worker 3 (process 77)"


def test_what_a_turn_writes_leaves_in_one_piece(bench: Bench) -> None:
    bench.link.write(b"head", b"body")
    bench.link.write(b"more")
    assert (bench.transport.writes, bench.link.unsent) == ([], 12)
    bench.loop.turn()
    assert (bench.transport.writes, bench.link.unsent) == ([b"headbodymore"], 12)
    bench.loop.turn()
    assert bench.transport.writes == [b"headbodymore"]


def test_large_bodies_are_not_copied(bench: Bench) -> None:
    large = bytes(JOIN_BELOW)
    bench.link.write(b"head", large)
    bench.loop.turn()
    assert bench.transport.writes == [b"head", large]
    assert bench.transport.writes[1] is large


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (ANSWER.encode(), "sent a bad frame: Answer: HELLO must come first, and once"),
        (State(Readiness.READY, 1, "").encode(), "sent a bad frame: State: HELLO must come first, and once"),
        (HELLO.encode() * 2, "sent a bad frame: Hello: HELLO must come first, and once"),
        (Hello(1, 2, 0).encode(), "sent a bad frame: HELLO: max in flight 0, must be at least 1"),
        (Cancel(1).encode(), "sent a bad frame: frame of kind 4 (CANCEL): must be HELLO or STATE or ANSWER"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_cut_off(bench: Bench, wire: bytes, reason: str) -> None:
    bench.link.data_received(wire)
    assert bench.owner.told[-1] == reason
    assert bench.transport.aborted
    bench.link.connection_lost(None)
    assert bench.owner.told.count(reason) == 1


def test_a_lost_connection_is_told_once(bench: Bench) -> None:
    bench.link.data_received(HELLO.encode())
    bench.link.connection_lost(ConnectionResetError("reset by peer"))
    assert bench.owner.told == [HELLO, "connection lost: reset by peer"]


def test_what_a_turn_would_have_written_is_lost_with_the_connection(bench: Bench) -> None:
    """uvloop raises when a transport is written to that it has closed."""
    bench.link.data_received(HELLO.encode())
    bench.link.write(b"sooner")
    bench.link.connection_lost(None)
    bench.link.write(b"later")
    bench.loop.turn()
    assert bench.transport.writes == []
    assert bench.link.unsent == 0


def test_nothing_is_written_or_told_after_the_end(bench: Bench) -> None:
    bench.link.data_received(HELLO.encode())
    bench.link.write(b"sooner")
    bench.link.end("enough")
    bench.link.write(b"later")
    bench.loop.turn()
    bench.link.data_received(ANSWER.encode())
    bench.link.end("twice")
    assert bench.transport.writes == []
    assert bench.owner.told == [HELLO, "enough"]


def test_frames_behind_the_one_that_ended_it_are_dropped(bench: Bench) -> None:
    def end(link: WorkerLink, state: State) -> None:
        link.end("enough")

    bench.owner.worker_state = end  # type: ignore[method-assign]
    bench.link.data_received(HELLO.encode() + State(Readiness.READY, 1, "").encode() + ANSWER.encode())
    assert bench.owner.told == [HELLO, "enough"]


def test_a_worker_that_leaves_too_much_unread_is_cut_off(bench: Bench) -> None:
    assert bench.transport.high == LIMIT
    bench.link.pause_writing()  # as the transport does above that limit, within a write
    assert bench.owner.told == []
    bench.loop.turn()
    assert bench.owner.told == ["has left more than 1000 bytes unread"]


class TestStall:
    def test_a_worker_that_takes_nothing_is_cut_off(self, bench: Bench) -> None:
        bench.link.write(b"x" * 50)
        for second in range(int(STALL_SECONDS) + 1):
            bench.link.check_stall(100.0 + second)
        assert bench.owner.told == ["took none of 50 bytes for 10 s"]

    def test_one_that_takes_a_little_is_not(self, bench: Bench) -> None:
        bench.link.write(b"x" * 50)
        bench.loop.turn()
        for second in range(40):
            bench.transport.buffered -= 1
            bench.link.check_stall(100.0 + second)
        assert bench.owner.told == []

    def test_nor_one_that_has_nothing_to_take(self, bench: Bench) -> None:
        bench.link.check_stall(100.0)
        bench.link.check_stall(1000.0)
        bench.link.write(b"x")
        bench.link.check_stall(1001.0)
        bench.link.check_stall(1009.0)
        assert bench.owner.told == []


def test_repr_tells_state_and_bytes(bench: Bench) -> None:
    bench.link.data_received(HELLO.encode())
    bench.link.write(b"12345")
    assert repr(bench.link) == "<WorkerLink 9: worker 3 (process 77), 5 bytes unsent, open>"
    bench.link.end("enough")
    assert repr(bench.link) == "<WorkerLink 9: worker 3 (process 77), 0 bytes unsent, over: enough>"
