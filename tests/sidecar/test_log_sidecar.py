"""Lent matrices and what becomes of them: logged as served, dropped with a reason, lost with the sidecar."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shared.frames import FrameReader, HandOver, LogQuery, LogStatus
from shared.log_record import Notes
from shared.settings import LogSettings
from tests.sidecar.lending import MIB, Lending, document, expected, log_of, matrix_of, version


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@in_loop
async def test_what_is_logged_is_what_was_lent() -> None:
    async with Lending() as world:
        for mark in range(5):
            assert world.lend(3 + mark, mark)
        await world.settled()
        assert world.sink.rows == [row for mark in range(5) for row in expected(3 + mark, mark)]
        assert world.books == {"offered": 25, "acknowledged": 25}
        assert world.pool.busy == 0
        assert world.introduced == 1
        log = log_of(world.sink.messages[2].value)
        assert (log.tracking_id, log.user_id, log.model_config_id) == ("t-2", "u", "shop")
        assert log.request_id == b"id-2"
        assert world.sink.messages[2].key == b"t-2"


@in_loop
async def test_matrices_in_several_segments_and_messages() -> None:
    async with Lending(limit=16 * MIB) as world:
        for rows, ballast in ((1, 0), (1200, 3 * MIB), (3, 0), (700, 3 * MIB), (1, 0)):
            assert world.lend(rows, rows, ballast=ballast)
        await world.settled()
        assert len(world.pool.segments) > 1
        assert world.sink.rows == [row for rows in (1, 1200, 3, 700, 1) for row in expected(rows, rows)]
        assert max(message.rows for message in world.sink.messages) == 500


@in_loop
async def test_without_a_log_sidecar_slots_are_taken_back_at_once() -> None:
    async with Lending() as world:
        await world.stop_sidecar()
        await world.until(lambda: not world.link.connected, "the link is lost")
        assert not world.lend(4)
        assert world.books == {"offered": 4, "log sidecar away": 4}
        assert world.pool.busy == 0


@in_loop
async def test_no_more_than_the_limit_is_lent() -> None:
    async with Lending(limit=200 << 10) as world:
        lent = [world.lend(1) for _ in range(5)]  # 64 KiB each; nothing is read before the loop turns
        assert lent == [True, True, True, False, False]
        assert world.link.lent_bytes == 3 * (64 << 10)
        await world.settled()
        assert world.books == {"offered": 5, "acknowledged": 3, "log sidecar behind": 2}
        assert world.lend(1)
        await world.settled()


@in_loop
async def test_a_full_queue_is_known_to_the_worker() -> None:
    async with Lending(log=LogSettings(queue_messages=2, flush_s=0)) as world:
        world.sink.holding = True
        for _ in range(3):
            assert world.lend(1)
        await world.until(lambda: not world.link.lent, "the slots are back")
        assert world.books == {"offered": 3, "held": 2, "queue full": 1}
        assert not world.lend(5)
        assert world.books == {"offered": 8, "held": 2, "queue full": 6}
        world.sink.settle_all()
        assert world.lend(1)
        await world.until(lambda: not world.link.lent, "the slot is back")
        world.sink.settle_all()
        assert world.books == {"offered": 9, "acknowledged": 3, "queue full": 6}


@in_loop
async def test_a_log_sidecar_that_ends_costs_what_it_held() -> None:
    async with Lending(log=LogSettings(flush_s=0)) as world:
        world.sink.holding = True
        assert world.lend(3)
        await world.until(lambda: not world.link.lent, "the slot is back")
        assert world.lend(2)  # on its way
        world.sidecar._peers[next(iter(world.sidecar._peers))].stream.close()  # as a killed one does
        await world.until(lambda: not world.link.lent, "the slots are back")
        assert world.books == {"offered": 5, "lost": 5}
        world.sink.settle_all()  # what the old one still does is in nobody's books
        assert world.books == {"offered": 5, "lost": 5}
        assert world.pool.busy == 0


@in_loop
async def test_a_new_log_sidecar_is_told_everything_again() -> None:
    async with Lending() as world:
        assert world.lend(3, 1)
        await world.settled()
        await world.stop_sidecar()
        await world.until(lambda: not world.link.connected, "the link is lost")
        world.start_sidecar()
        await world.until(lambda: world.accepting, "the link is there again")
        assert world.lend(2, 2)
        await world.settled()
        assert world.sink.rows == expected(3, 1) + expected(2, 2)
        assert world.introduced == 2
        assert world.books == {"offered": 5, "acknowledged": 5}


@in_loop
async def test_a_slot_that_is_taken_back_while_it_is_read_is_dropped_as_torn() -> None:
    async with Lending() as world:
        assert world.lend(3)
        (loan,) = world.link._loans.values()
        loan.heap[loan.at : loan.at + 8] = 0
        await world.settled()
        assert world.sink.messages == []
        assert world.books == {"offered": 3, "torn": 3}


@in_loop
async def test_a_slot_that_is_taken_back_while_it_is_encoded_is_dropped_as_torn() -> None:
    async with Lending() as world:
        (lender,) = world.sidecar.lenders
        encode = lender._encode

        def meanwhile(*arguments: Any) -> Any:
            encoding = encode(*arguments)
            (loan,) = world.link._loans.values()
            loan.heap[loan.at : loan.at + 8] = 0
            return encoding

        lender._encode = meanwhile  # type: ignore[method-assign]
        assert world.lend(3)
        await world.settled()
        assert world.sink.messages == []
        assert world.books == {"offered": 3, "torn": 3}


@in_loop
async def test_each_version_is_introduced_once_and_the_oldest_is_forgotten() -> None:
    async with Lending() as world:
        for batch in (2, 3, 4, 2, 3):
            assert world.lend(5, batch, service=json.dumps({"number": batch}).encode())
        await world.settled()
        assert world.introduced == 5  # 2 was forgotten when 4 came, 3 when 2 came again
        (lender,) = world.sidecar.lenders
        assert len(lender._versions) == 2
        assert world.books == {"offered": 25, "acknowledged": 25}


@in_loop
async def test_a_config_that_cannot_be_logged_costs_its_rows() -> None:
    async with Lending() as world:
        assert world.lend(2, service=b'{"v2-logging-type": "xml"}')
        assert world.lend(3)
        await world.settled()
        assert world.books == {"offered": 5, "acknowledged": 3, "not understood": 2}


@in_loop
async def test_rows_too_large_for_a_message_are_counted() -> None:
    async with Lending(log=LogSettings(message_bytes=1024, flush_s=0)) as world:
        notes = Notes(1, b"id", "t", "u" * 2000, "", 7, {}, [])
        assert world.lend(3, notes=notes)
        await world.settled()
        assert world.books == {"offered": 3, "row too large": 3}


@in_loop
async def test_what_a_worker_handed_over_is_logged_after_its_death() -> None:
    async with Lending() as world:
        world.sink.holding = True
        assert world.lend(3)
        await world.link.close()  # sends what is there, and goes
        await world.until(lambda: len(world.sink.messages) == 1, "the message came")
        assert world.sink.rows == expected(3, 1)
        world.sink.settle_all()
        assert world.sidecar.status()["total"]["acknowledged"] == 3
        assert world.sidecar.status()["total"]["held"] == 0


@in_loop
async def test_what_a_worker_never_sent_is_lost_with_it() -> None:
    async with Lending() as world:
        assert world.lend(3)
        assert world.link._stream is not None
        world.link._stream.close()  # killed before it sent anything
        world.link._stream = None
        await world.until(lambda: not world.sidecar.lenders, "the link is over")
        assert world.books == {"offered": 3, "lost with the worker": 3}


@in_loop
async def test_a_slot_of_an_unknown_version_ends_the_link() -> None:
    async with Lending() as world:
        link = world.link
        assert link._stream is not None
        link._stream.send(HandOver(0, 99, 1, 1, 1, 8, 9, 1).encode())
        await world.until(lambda: not link.connected, "the link is lost")


@in_loop
async def test_anybody_can_ask_for_the_books() -> None:
    async with Lending() as world:
        assert world.lend(3)
        await world.settled()

        def ask() -> dict[str, Any]:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(str(world.home / "logs.sock"))
                sock.sendall(LogQuery().encode())
                reader: FrameReader[LogStatus] = FrameReader((LogStatus,), MIB)
                while not (frames := reader.feed(sock.recv(MIB))):
                    pass
                return dict(json.loads(frames[0].document))

        status = await asyncio.to_thread(ask)
        assert status["total"] == {
            "offered": 3,
            "handed": 3,
            "lost": 0,
            "received": 3,
            "acknowledged": 3,
            "dropped": {},
            "held": 0,
        }
        assert [one["worker"] for one in status["workers"]] == [0]
        assert status["messages_acknowledged"] == 1


@in_loop
async def test_a_mistake_in_describing_a_matrix_costs_its_rows_only() -> None:
    async with Lending() as world:
        matrix = matrix_of(world.pool, 2, 1)

        def broken() -> Notes:
            raise RuntimeError("a mistake of ours")

        assert not world.link.lend(matrix, None, broken, version(), document)
        world.pool.release(matrix.slot)
        assert world.lend(1)
        await world.settled()
        assert world.books == {"offered": 3, "acknowledged": 1, "not understood": 2}


@in_loop
async def test_a_matrix_that_fills_its_slot_is_not_logged() -> None:
    async with Lending() as world:
        matrix = matrix_of(world.pool, 2, 1)
        matrix.slot.allocate(8 * MIB - matrix.slot.used - (1 << 16))
        big = Notes(1, b"id", "t" * (1 << 17), "u", "", 7, {}, [])
        assert not world.link.lend(matrix, None, lambda: big, version(), document)
        world.pool.release(matrix.slot)
        assert world.books == {"offered": 2, "no shared memory": 2} or world.books == {
            "offered": 2,
            "log sidecar behind": 2,
        }


@pytest.mark.parametrize("side", ["link", "sidecar"])
def test_reprs_tell_counts(side: str) -> None:
    async def run() -> None:
        async with Lending() as world:
            assert world.lend(3)
            await world.settled()
            text = repr(getattr(world, side))
            assert ("0 slots lent" if side == "link" else "1 workers") in text

    asyncio.run(run())
