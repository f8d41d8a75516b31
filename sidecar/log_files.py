"""Inference logs as Parquet files in a directory, for machines without a Kafka.

Each row of a file is one message, as it would stand in the topic. A file gets its name when it is whole and on
disk: until then its rows are not acknowledged, and a crash leaves nothing but a hidden scratch file. Files that are
older, or together larger, than the settings allow are deleted, the oldest first.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import logging
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from shared.board import Board
from shared.metrics import LOG_FILES_DELETED
from shared.saved import replace_file
from shared.settings import LogSettings
from sidecar.log_queue import ACCEPTED, Message, Settle

__all__ = ["SCHEMA", "FileSink", "Outdated", "outdated", "remove_stale", "warm_up"]

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
STALE_SECONDS: Final = 600.0
"""A scratch file that has not been written to for so long is of a process that was killed."""
TIDY_SECONDS: Final = 10.0
"""Between two looks for files that are not to be kept."""
DAY: Final = 86_400.0  # seconds
SCHEMA: Final = pa.schema(
    [
        pa.field("value", pa.binary(), nullable=False),  # KafkaRequest, see proto/inference_log.proto
        pa.field("key", pa.binary()),
        pa.field("rows", pa.int32(), nullable=False),
    ]
)


class FileSink:
    """Gathers messages and writes them, whenever there are enough of them or some have waited enough."""

    def __init__(self, directory: Path, settings: LogSettings, board: Board) -> None:
        """`board`: where files that are deleted are counted."""
        self.written = 0
        """Files."""
        self.deleted = 0
        """Files that were not to be kept, whoever had written them."""
        self._directory = directory
        self._settings = settings
        self._gathered: list[tuple[Message, Settle]] = []
        self._bytes = 0
        self._writing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._late: asyncio.Task[None] | None = None
        self._board = board
        self._tidying: asyncio.Task[None] | None = None
        self._trouble = ""
        self._numbers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<FileSink {self._directory}: {self.state}, {len(self._gathered)} messages gathered>"

    @property
    def state(self) -> str:
        deleted = f", {self.deleted} old ones deleted" if self.deleted else ""
        return self._trouble or f"{self.written} files written{deleted}"

    async def open(self) -> None:
        """A file is begun when there is something to write; old ones go from now on."""
        if self._settings.keep_bytes or self._settings.keep_days:
            self._tidying = asyncio.create_task(self._tidy())

    async def send(self, message: Message, settle: Settle) -> None:
        self._gathered.append((message, settle))
        self._bytes += len(message.value)
        if self._bytes >= self._settings.file_bytes:
            await self._write()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._settings.file_s, self._waited)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._tidying is not None:
            self._tidying.cancel()
        await self._write()

    def _waited(self) -> None:
        self._timer = None
        self._late = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Writes what is gathered; tries again until the delivery time is over."""
        async with self._writing:
            gathered, self._gathered = self._gathered, []
            self._bytes = 0
            if not gathered:
                return
            outcome = await self._write_file([message for message, _ in gathered])
            for message, settle in gathered:
                settle(message, outcome)

    async def _write_file(self, messages: list[Message]) -> str:
        give_up = time.monotonic() + self._settings.delivery_s
        while True:
            try:
                await asyncio.to_thread(_write, self._next_path(), messages)
            except OSError as error:
                self._note(f"{self._directory} cannot be written: {error.strerror or error}")
                if time.monotonic() + RETRY_SECONDS > give_up:
                    return "not delivered in time"
                await asyncio.sleep(RETRY_SECONDS)
            except pa.ArrowException:
                log.exception("messages do not fit into a file")
                return "refused by the sink"
            else:
                self._trouble = ""
                self.written += 1
                return ACCEPTED

    async def _tidy(self) -> None:
        """Deletes what is not to be kept, again and again."""
        while True:
            try:
                for one in await asyncio.to_thread(outdated, self._directory, self._settings, time.time()):
                    if await asyncio.to_thread(_delete, one.path):
                        self.deleted += 1
                        self._board.counter(LOG_FILES_DELETED, one.reason).value += 1
                        fields = {"file": str(one.path), "bytes": one.bytes, "reason": one.reason}
                        log.info("file of the inference log deleted", extra=fields)
            except OSError as error:
                fields = {"directory": str(self._directory), "reason": str(error)}
                log.error("old files of the inference log cannot be deleted", extra=fields)
            await asyncio.sleep(TIDY_SECONDS)

    def _next_path(self) -> Path:
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        return self._directory / f"inferflow-{moment}-{os.getpid()}-{next(self._numbers):06d}.parquet"

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.error("inference log is not written", extra={"reason": trouble})


def _write(path: Path, messages: list[Message]) -> None:
    columns = {
        "value": pa.array([message.value for message in messages], pa.binary()),
        "key": pa.array([message.key for message in messages], pa.binary()),
        "rows": pa.array([message.rows for message in messages], pa.int32()),
    }
    out = pa.BufferOutputStream()
    # Messages are their own: a dictionary of them, or statistics, would only cost.
    pq.write_table(
        pa.table(columns, SCHEMA), out, compression="zstd", use_dictionary=False, write_statistics=False
    )
    replace_file(path, [out.getvalue()])


class Outdated(NamedTuple):
    """A file that is not to be kept any more."""

    path: Path
    bytes: int
    reason: str
    """`age` or `size`."""


def outdated(directory: Path, settings: LogSettings, now: float) -> list[Outdated]:
    """The files to be deleted at `now` (Unix time), the oldest first. Raises OSError.

    The newest one is deleted for its age only: one that is larger than all may be together would never be seen.
    """
    found = []
    for path in directory.glob("inferflow-*.parquet"):
        with contextlib.suppress(FileNotFoundError):  # another pod that writes here was faster
            status = path.stat()
            found.append((status.st_mtime, path, status.st_size))
    found.sort()
    total = sum(size for _, _, size in found)
    old = []
    for place, (written, path, size) in enumerate(found, 1):
        if settings.keep_days and now - written > settings.keep_days * DAY:
            old.append(Outdated(path, size, "age"))
        elif settings.keep_bytes and total > settings.keep_bytes and place < len(found):
            old.append(Outdated(path, size, "size"))
        else:
            break
        total -= size
    return old


def _delete(path: Path) -> bool:
    """Whether it was there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def warm_up() -> None:
    """Has Arrow do once what it loads half of itself for (pandas, where that is installed): seconds in which no
    slot would be given back.
    """
    table = pa.table({"value": pa.array([b"x"], pa.binary())})
    pq.write_table(table, pa.BufferOutputStream(), compression="zstd")


def remove_stale(directory: Path) -> None:
    """Removes scratch files that nobody writes any more. Raises OSError."""
    for path in directory.glob(".inferflow-*.parquet.*"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink(missing_ok=True)
