"""Inference logs in files: whole ones only, by size and by time, and never acknowledged before they are there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shared.board import Board
from shared.ledger import Ledger
from shared.metrics import LOG_FILES_DELETED
from shared.settings import LogSettings
from sidecar import log_files
from sidecar.log_files import DAY, FileSink, outdated, remove_stale
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


def sink_of(directory: Path, board: Board | None = None, **settings: float) -> FileSink:
    return FileSink(directory, LogSettings(**settings), board or Board("log"))  # type: ignore[arg-type]


def message(value: bytes, rows: int = 1) -> Message:
    return Message(value, b"key", rows, LEDGER)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.parquet"))


def test_a_file_is_written_when_there_is_enough(tmp_path: Path) -> None:
    async def run() -> None:
        sink, outcomes = sink_of(tmp_path, file_bytes=100), Outcomes()
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
        sink, outcomes = sink_of(tmp_path, file_s=0.1), Outcomes()
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
        sink, outcomes = sink_of(directory, file_bytes=1, delivery_s=0.5), Outcomes()
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


def file_of(directory: Path, name: str, *, size: int, age: float) -> Path:
    """A file that was written `age` seconds before the Unix time 1,000,000."""
    path = directory / f"inferflow-{name}.parquet"
    path.write_bytes(bytes(size))
    os.utime(path, (1e6 - age, 1e6 - age))
    return path


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({}, []),
        ({"keep_bytes": 60}, []),
        ({"keep_bytes": 59}, [("a", "size")]),
        ({"keep_bytes": 20}, [("a", "size"), ("b", "size")]),
        ({"keep_bytes": 1}, [("a", "size"), ("b", "size")]),
        ({"keep_days": 2}, [("a", "age")]),
        ({"keep_days": 0.5}, [("a", "age"), ("b", "age"), ("c", "age")]),
        ({"keep_days": 2, "keep_bytes": 20}, [("a", "age"), ("b", "size")]),
    ],
)
def test_the_oldest_files_go_first(
    tmp_path: Path, settings: dict[str, float], gone: list[tuple[str, str]]
) -> None:
    for number, name in enumerate("cba"):
        file_of(tmp_path, name, size=20, age=(number + 0.9) * DAY)
    (tmp_path / "rows.parquet").write_bytes(bytes(1000))  # not ours
    found = outdated(tmp_path, LogSettings(**settings), 1e6)  # type: ignore[arg-type]
    names = [(one.path.name.removeprefix("inferflow-").removesuffix(".parquet"), one.reason) for one in found]
    assert names == gone
    assert {one.bytes for one in found} <= {20}


def test_files_are_deleted_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_files, "TIDY_SECONDS", 0.02)
    caplog.set_level("INFO", log_files.__name__)
    old = file_of(tmp_path, "old", size=20, age=0)
    board = Board("log")

    async def run() -> None:
        sink, outcomes = sink_of(tmp_path, board, keep_bytes=1, keep_days=1, file_bytes=1), Outcomes()
        await sink.open()
        for number in range(4):
            await sink.send(message(b"%d" % number), outcomes.settle)
        async with asyncio.timeout(PATIENCE):
            while sink.deleted < 4:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        assert sink.state == "4 files written, 4 old ones deleted"
        await sink.close()
        assert [outcome for _, outcome in outcomes] == [ACCEPTED] * 4

    asyncio.run(run())
    (kept,) = files(tmp_path)
    assert pq.read_table(kept)["value"].to_pylist() == [b"3"]
    assert (
        board.counter(LOG_FILES_DELETED, "age").value,
        board.counter(LOG_FILES_DELETED, "size").value,
    ) == (1, 3)
    deleted = [record.__dict__ for record in caplog.records if record.message.endswith("deleted")]
    assert (deleted[0]["file"], deleted[0]["bytes"], deleted[0]["reason"]) == (str(old), 20, "age")
    assert len(deleted) == 4


def test_files_that_cannot_be_deleted_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_files, "TIDY_SECONDS", 0.02)
    (tmp_path / "inferflow-1.parquet").mkdir()  # unlink refuses it, also for root
    os.utime(tmp_path / "inferflow-1.parquet", (1, 1))

    async def run() -> None:
        sink = sink_of(tmp_path, keep_days=1)
        await sink.open()
        async with asyncio.timeout(PATIENCE):
            while len(caplog.records) < 2:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        await sink.close()
        assert sink.deleted == 0

    asyncio.run(run())
    assert {record.message for record in caplog.records} == {
        "old files of the inference log cannot be deleted"
    }


def test_repr_tells_what_is_gathered(tmp_path: Path) -> None:
    async def run() -> None:
        sink = sink_of(tmp_path)
        await sink.send(message(b"x"), Outcomes().settle)
        assert repr(sink) == f"<FileSink {tmp_path}: 0 files written, 1 messages gathered>"
        await sink.close()

    asyncio.run(run())
