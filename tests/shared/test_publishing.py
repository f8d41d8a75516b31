"""Boards in the run directory: written by one process, read by another."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.board import Board
from shared.board_file import BoardFile, encode, read_board, read_boards, remove_boards
from shared.metrics import LOOP_LAG, PROCESS_MEMORY, REQUEST_LATENCY, REQUESTS
from shared.publishing import Publisher
from shared.settings import Settings


def test_what_is_written_is_read(tmp_path: Path) -> None:
    board = Board("worker-3")
    board.counter(REQUESTS, "m", "pointwise", "OK").value = 5
    board.histogram(REQUEST_LATENCY, "m", "pointwise").observe_traced(3.0, "ab" * 16)
    file = BoardFile(tmp_path, board.process)
    file.write(encode(board, 1000.0))
    (read,) = read_boards(tmp_path)
    assert (read.process, read.pid, read.started, read.is_alive) == ("worker-3", os.getpid(), 1000.0, True)
    records = {record.metric.name: record for record in read.records}
    assert records[REQUESTS.name].value == 5
    assert records[REQUESTS.name].named == {"model": "m", "mode": "pointwise", "status": "OK"}
    observed = records[REQUEST_LATENCY.name].observed
    assert observed is not None
    assert (observed.count, observed.sum) == (1, 3.0)
    assert observed.exemplar is not None
    assert observed.exemplar.trace_id == "ab" * 16
    assert read_board(tmp_path, "worker-3") == read
    assert read_board(tmp_path, "worker-4") is None
    file.remove()
    assert read_boards(tmp_path) == []


def test_a_shorter_record_replaces_a_longer_one(tmp_path: Path) -> None:
    file = BoardFile(tmp_path, "config")
    large, small = Board("worker-0"), Board("config")
    for number in range(100):
        large.counter(REQUESTS, str(number), "pointwise", "OK")
    file.write(encode(large, 0.0))
    file.write(encode(small, 0.0))
    (read,) = read_boards(tmp_path)
    assert (read.process, len(read.records)) == ("config", 1)
    file.remove()


def test_readers_never_see_a_torn_record(tmp_path: Path) -> None:
    board = Board("worker-0")
    counters = [board.counter(REQUESTS, str(number), "pointwise", "OK") for number in range(500)]
    file = BoardFile(tmp_path, board.process)
    over = threading.Event()

    def write() -> None:
        value = 0
        while not over.is_set():
            value += 1
            for counter in counters:
                counter.value = value
            file.write(encode(board, 0.0))

    writer = threading.Thread(target=write)
    file.write(encode(board, 0.0))
    writer.start()
    try:
        for _ in range(50):
            for read in read_boards(tmp_path):
                values = {record.value for record in read.records if record.metric is REQUESTS}
                assert len(values) == 1
    finally:
        over.set()
        writer.join()
        file.remove()


def test_what_is_damaged_or_empty_is_no_board(tmp_path: Path) -> None:
    (tmp_path / "board-worker-0").write_bytes(b"")
    (tmp_path / "board-worker-1").write_bytes(b"\x09\0\0\0\0\0\0\0garbage")
    assert read_boards(tmp_path) == []
    assert read_board(tmp_path, "worker-1") is None
    remove_boards(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_must_be_seen_at_once_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.publishing.LAG_SECONDS", 3600.0)

    def shown() -> bool:
        board = read_board(tmp_path, "worker-0")
        assert board is not None
        return any(record.metric is REQUESTS and record.value == 4 for record in board.records)

    async def main() -> None:
        board = Board("worker-0")
        publisher = Publisher(asyncio.get_running_loop(), board, Settings(run_dir=tmp_path))
        publisher.start()
        await _until(lambda: read_board(tmp_path, "worker-0") is not None)
        board.counter(REQUESTS, "m", "pointwise", "OK").value = 4
        assert not shown()
        publisher.publish()
        await _until(shown)
        publisher.close()

    asyncio.run(main())


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come within 30 s")


def test_a_process_publishes_from_its_start_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.publishing.LAG_SECONDS", 0.01)

    async def main() -> None:
        board = Board("worker-0")
        publisher = Publisher(asyncio.get_running_loop(), board, Settings(run_dir=tmp_path))
        publisher.start()
        lag = board.histogram(LOOP_LAG)
        requests = board.counter(REQUESTS, "m", "pointwise", "OK")
        requests.value = 4
        async with asyncio.timeout(30):
            while True:
                found = {
                    record.metric.name: record for read in read_boards(tmp_path) for record in read.records
                }
                if REQUESTS.name in found and found[REQUESTS.name].value == 4 and lag.seen:
                    break
                await asyncio.sleep(0.01)
        assert found[PROCESS_MEMORY.name].value > 1 << 20
        publisher.close()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []
