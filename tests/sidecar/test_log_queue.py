"""The queue in front of a sink: bounded, and every row's end counted once."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shared.ledger import NOW, RECEIVED, Ledger
from sidecar.log_queue import ACCEPTED, Message, Sender, Settle


class ScriptedSink:
    """Keeps what it is sent until the test settles it; takes nothing while `closed_gate` is set."""

    state = "scripted"

    def __init__(self) -> None:
        self.sent: list[tuple[Message, Settle]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False
        self.closed = False

    async def open(self) -> None:
        """It is ready."""

    async def send(self, message: Message, settle: Settle) -> None:
        await self.gate.wait()
        if self.fails:
            raise RuntimeError("a mistake of ours")
        self.sent.append((message, settle))

    async def close(self) -> None:
        self.closed = True

    def settle(self, outcome: str = ACCEPTED) -> None:
        message, settle = self.sent.pop(0)
        settle(message, outcome)


class World:
    def __init__(self, max_bytes: int = 1000, max_messages: int = 100) -> None:
        self.sink = ScriptedSink()
        self.room: list[bool] = []
        self.sender = Sender(
            self.sink, max_bytes=max_bytes, max_messages=max_messages, on_room=self.room.append
        )
        self.ledger = Ledger.create()

    def put(self, size: int, rows: int = 1) -> None:
        self.ledger.words[NOW + RECEIVED] += rows
        self.sender.put(Message(bytes(size), b"key", rows, self.ledger))

    async def run(self) -> None:
        """Lets the sender do what it can."""
        task = asyncio.create_task(self.sender.run())
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    @property
    def ended(self) -> dict[str, int]:
        books = self.ledger.books()
        return {**books.dropped, **({"acknowledged": books.acknowledged} if books.acknowledged else {})}


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@in_loop
async def test_messages_are_sent_in_order_and_count_until_they_are_settled() -> None:
    world = World()
    for size in (10, 20, 30):
        world.put(size, rows=size)
    await world.run()
    assert [len(message.value) for message, _ in world.sink.sent] == [10, 20, 30]
    assert (world.sender.messages, world.sender.bytes, world.ended) == (3, 60, {})
    world.sink.settle()
    world.sink.settle("not delivered in time")
    assert (world.sender.messages, world.sender.bytes) == (1, 30)
    assert world.ended == {"acknowledged": 10, "not delivered in time": 20}
    assert world.sender.outcomes == {ACCEPTED: 1, "not delivered in time": 1}


@in_loop
async def test_a_message_that_does_not_fit_is_dropped_and_counted() -> None:
    world = World(max_bytes=100)
    world.put(60)
    world.put(41, rows=7)
    assert (world.sender.messages, world.sender.bytes, world.ended) == (1, 60, {"queue full": 7})
    assert world.sender.full
    assert world.room == [False]


@in_loop
async def test_the_number_of_messages_is_bounded() -> None:
    world = World(max_messages=3)
    for _ in range(5):
        world.put(1)
    assert (world.sender.messages, world.ended) == (3, {"queue full": 2})


@in_loop
async def test_a_full_queue_takes_rows_again_when_it_is_three_quarters_full() -> None:
    world = World(max_bytes=100)
    for _ in range(11):
        world.put(10)
    await world.run()
    world.sink.settle()
    world.sink.settle()
    assert world.sender.full
    world.sink.settle()
    assert not world.sender.full
    assert world.room == [False, True]


@in_loop
async def test_giving_up_drops_what_is_queued_and_what_the_sink_has() -> None:
    world = World()
    world.put(1, rows=2)
    await world.run()
    world.put(1, rows=3)
    world.sender.give_up()
    assert (world.sender.messages, world.sender.bytes, world.ended) == (0, 0, {"stopped": 5})
    world.sink.settle()  # comes too late, and is not counted again
    world.put(1, rows=4)
    assert world.ended == {"stopped": 9}


@in_loop
async def test_a_sink_that_fails_costs_one_message() -> None:
    world = World()
    world.sink.fails = True
    world.put(1)
    await world.run()
    world.sink.fails = False
    world.put(1)
    await world.run()
    world.sink.settle()
    assert world.ended == {"refused by the sink": 1, "acknowledged": 1}


@in_loop
async def test_a_sink_that_takes_nothing_holds_the_queue() -> None:
    world = World()
    world.sink.gate.clear()
    for _ in range(3):
        world.put(1)
    await world.run()
    assert world.sink.sent == []
    assert world.sender.messages == 3
    assert "3 messages (2 not sent)" in repr(world.sender)


def test_unknown_outcomes_are_mistakes() -> None:
    world = World()
    with pytest.raises(KeyError):
        world.sender._count(Message(b"", None, 1, world.ledger), "whatever")
