"""Inference logs in files: whole ones only, by size and by time, and never acknowledged before they are there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shared.ledger import Ledger
from shared.settings import LogSettings
from sidecar import log_files
from sidecar.log_files import FileSink, remove_stale
from sidecar.log_queue import ACCEPTED, Message

LEDGER = Ledger.create()
PATIENCE = 60.0


class Outcomes(list[tuple[bytes, str]]):
    """What was settled, in order."""

    def settle(self, message: Message, outcome: str) -> None:
        self.append((message.value, outcome))

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self) < count:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)


def message(value: bytes, rows: int = 1) -> Message:
    return Message(value, b"key", rows, LEDGER)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.parquet"))


def test_a_file_is_written_when_there_is_enough(tmp_path: Path) -> None:
    async def run() -> None:
        sink, outcomes = FileSink(tmp_path, LogSettings(file_bytes=100)), Outcomes()
        for number in range(9):
            await sink.send(message(bytes([number]) * 20, number), outcomes.settle)
            assert len(outcomes) == (number + 1) // 5 * 5
        assert len(files(tmp_path)) == 1
        await sink.close()
        assert [value[0] for value, outcome in outcomes if outcome == ACCEPTED] == list(range(9))

    asyncio.run(run())
    first, second = files(tmp_path)
    table = pq.read_table(first)
    assert table["value"].to_pylist() == [bytes([number]) * 20 for number in range(5)]
    assert table["key"].to_pylist() == [b"key"] * 5
    assert table["rows"].to_pylist() == list(range(5))
    assert pq.read_table(second).num_rows == 4
    assert sorted(tmp_path.iterdir()) == [first, second], "no scratch file is left"


def test_a_file_is_written_when_messages_have_waited_enough(tmp_path: Path) -> None:
    async def run() -> None:
        sink, outcomes = FileSink(tmp_path, LogSettings(file_s=0.1)), Outcomes()
        for number in range(2):
            await sink.send(message(b"x"), outcomes.settle)
            await outcomes.reach(number + 1)
        await sink.close()

    asyncio.run(run())
    assert len(files(tmp_path)) == 2


def test_nothing_is_acknowledged_that_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_files, "RETRY_SECONDS", 0.05)
    directory = tmp_path / "logs"
    directory.write_text("a file where a directory is to be")

    async def run() -> None:
        sink, outcomes = FileSink(directory, LogSettings(file_bytes=1, delivery_s=0.5)), Outcomes()
        await sink.send(message(b"late"), outcomes.settle)
        assert outcomes == [(b"late", "not delivered in time")]
        assert "cannot be written" in sink.state
        sending = asyncio.create_task(sink.send(message(b"in time"), outcomes.settle))
        await asyncio.sleep(0.1)
        directory.unlink()
        await sending
        assert outcomes[1:] == [(b"in time", ACCEPTED)]
        assert sink.state == "1 files written"

    asyncio.run(run())
    assert len(files(directory)) == 1
    assert {record.message for record in caplog.records} == {"inference log is not written"}


def test_scratch_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old, new, other = (
        tmp_path / name for name in (".inferflow-1.parquet.77", ".inferflow-2.parquet.78", ".something-else")
    )
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (1, 1))
    remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, other])


def test_repr_tells_what_is_gathered(tmp_path: Path) -> None:
    async def run() -> None:
        sink = FileSink(tmp_path, LogSettings())
        await sink.send(message(b"x"), Outcomes().settle)
        assert repr(sink) == f"<FileSink {tmp_path}: 0 files written, 1 messages gathered>"
        await sink.close()

    asyncio.run(run())
