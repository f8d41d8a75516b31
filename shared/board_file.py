"""Boards between processes: one small file a process in the run directory, written in place about once a second.

A file and not shared memory by name: the directory is private to the pod already, a file outlives a process that
was killed (its counts are read until the next one begins), and the page cache is memory as well. A reader may come
in the middle of a write, so a record carries its length and its checksum, and a torn one is read again.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from shared.board import Board, Exemplar, Histogram
from shared.metrics import METRICS, Kind, Metric

__all__ = [
    "STALE_SECONDS",
    "BoardFile",
    "Observed",
    "Published",
    "Record",
    "encode",
    "read_board",
    "read_boards",
    "remove_boards",
]

STALE_SECONDS: Final = 10.0
"""A living process that has not published for so long hangs."""
_HEAD: Final = struct.Struct("<II")
_PREFIX: Final = "board-"
_ATTEMPTS: Final = 20
_PAUSE: Final = 0.001


@dataclasses.dataclass(frozen=True, slots=True)
class Observed:
    """A histogram as it was: see `shared.board.Histogram`."""

    counts: Sequence[int]
    sum: float
    exemplar: Exemplar | None = None

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One series as it was."""

    metric: Metric
    labels: tuple[str, ...]
    value: float
    observed: Observed | None = None

    @property
    def named(self) -> Mapping[str, str]:
        """Its labels by name."""
        return dict(zip(self.metric.labels, self.labels, strict=True))


@dataclasses.dataclass(frozen=True)
class Published:
    """The board of a process as it was published last. Times are Unix times."""

    process: str
    pid: int
    started: float
    published: float
    records: tuple[Record, ...]

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return os.path.exists(f"/proc/{self.pid}")

    @property
    def age(self) -> float:
        """Seconds since it was published."""
        return max(time.time() - self.published, 0.0)


def encode(board: Board, started: float) -> bytes:
    """A record of a board as it is now. From any thread."""
    series: list[Any] = []
    for one in board:
        if isinstance(one, Histogram):
            value: Any = [list(one.counts), one.sum, list(one.exemplar) if one.exemplar else None]
        else:
            value = one.value
        series.append((one.metric.name, one.labels, value))
    document = {
        "process": board.process,
        "pid": os.getpid(),
        "started": started,
        "published": time.time(),
        "series": series,
    }
    payload = orjson.dumps(document)
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


class BoardFile:
    """The file of one process's board. One writer."""

    def __init__(self, run_dir: Path, process: str) -> None:
        """Raises OSError when it cannot be made."""
        self.path = run_dir / f"{_PREFIX}{process}"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, record: bytes) -> None:
        """Replaces what is there. Raises OSError when the file system is full."""
        written = os.pwrite(self._fd, record, 0)
        if written != len(record):
            raise OSError(f"{self.path}: {written} of {len(record)} bytes could be written")

    def remove(self) -> None:
        """Closes and removes it: the process ends in order."""
        os.close(self._fd)
        self.path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<BoardFile {self.path}>"


def read_boards(run_dir: Path) -> list[Published]:
    """What the processes of the pod have published, in the order of their names.

    Those that were killed are among them (`is_alive` is false) until they are started again.
    """
    found = (_read(path) for path in sorted(run_dir.glob(f"{_PREFIX}*")))
    return [one for one in found if one is not None]


def read_board(run_dir: Path, process: str) -> Published | None:
    """What this process has published; None: nothing, or it is being written in this moment. Never waits."""
    return _decode(run_dir / f"{_PREFIX}{process}")


def remove_boards(run_dir: Path) -> None:
    """Removes what a pod left behind that was killed as a whole. Before any process of a new one starts."""
    for path in run_dir.glob(f"{_PREFIX}*"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Published | None:
    """None: nothing was ever written, or it has gone."""
    for _ in range(_ATTEMPTS):
        found = _decode(path)
        if found is not None or not path.exists():
            return found
        time.sleep(_PAUSE)  # it is being written
    return None


def _decode(path: Path) -> Published | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack_from(data)
    payload = data[_HEAD.size : _HEAD.size + length]
    if len(payload) != length or zlib.crc32(payload) != checksum:
        return None
    return _published(orjson.loads(payload))


def _published(document: Mapping[str, Any]) -> Published:
    records = [
        _record(METRICS[name], tuple(labels), value)
        for name, labels, value in document["series"]
        if name in METRICS  # of another version, while the pod is being updated
    ]
    return Published(
        document["process"],
        document["pid"],
        document["started"],
        document["published"],
        tuple(records),
    )


def _record(metric: Metric, labels: tuple[str, ...], value: Any) -> Record:
    if metric.kind is not Kind.HISTOGRAM:
        return Record(metric, labels, value)
    counts, total, exemplar = value
    return Record(metric, labels, 0.0, Observed(counts, total, Exemplar(*exemplar) if exemplar else None))
