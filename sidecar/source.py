"""Where configs come from: a mapping of keys to JSON texts, and word of when to look again.

Keys are those of the config tree: `config-map/<model_config_id>`, `expression-config/<compute_id>` and
`service-config`. An id is one segment of printable characters that does not begin with a dot; what is named
otherwise belongs to somebody else. A source reads; it does not judge what it reads.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = [
    "CONFIGS",
    "EXPRESSIONS",
    "MAX_DOCUMENT_BYTES",
    "SERVICE",
    "DirectorySource",
    "NotReadYetError",
    "Source",
    "SourceError",
    "Text",
    "Unreadable",
    "is_key",
]

CONFIGS = "config-map/"
EXPRESSIONS = "expression-config/"
SERVICE = "service-config"
MAX_DOCUMENT_BYTES = 8 << 20
"""Longest text of one key. Real configs have some 100 kB; a log file in the wrong place has more."""


def is_key(key: str) -> bool:
    """Whether this is a key of the config tree: what every source reads, and what may be written to it."""
    branch, slash, name = key.partition("/")
    if branch + slash not in (CONFIGS, EXPRESSIONS):
        return key == SERVICE
    return name != "" and name.isprintable() and "/" not in name and not name.startswith(".")


class SourceError(Exception):
    """The source as a whole cannot be read now. The text says why."""


class NotReadYetError(SourceError):
    """The source has not been asked yet: `changed` is about to return, with the texts or with the reason."""


class Unreadable(NamedTuple):
    """A key that is there, but whose text cannot be had: it must not be taken for deleted."""

    reason: str


Text = bytes | Unreadable


class Source(Protocol):
    """What the sidecar asks of a place that keeps configs."""

    def read(self) -> Mapping[str, Text]:
        """Everything there is, by key, at one moment. Raises SourceError."""
        ...

    async def changed(self) -> None:
        """Returns when `read` may give something else than the last time. Never raises."""
        ...

    def place(self, key: str) -> str:
        """How people find this key: a path, or the key in its store."""
        ...

    def revision(self, key: str) -> int:
        """A number that changes with the text of this key, as of the last `read`; 0: the key was not there."""
        ...

    async def put(self, key: str, text: bytes, revision: int) -> bool:
        """Writes a text if the key still has this revision (0: is not there). Returns whether it was written.

        Raises SourceError when the source cannot be written to.
        """
        ...


class _Mark(NamedTuple):
    """What tells a file from a later one of its name, without reading it."""

    modified_ns: int
    size: int
    device: int
    inode: int


class DirectorySource:
    """A directory with one `.json` file a key, polled. Other files are left alone.

    A change shows as another modification time, size or inode. Two writes within one tick of the file system's
    clock may leave all three as they are, so a file that was modified just before it was read is read again; the
    others are read once.
    Only `changed` waits, and only through `sleep`, which takes seconds.
    """

    def __init__(
        self,
        root: Path,
        *,
        interval: float = 0.5,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`interval` in seconds between two looks; `clock_ns` must be the file system's (real time)."""
        self.root = root
        self._interval = interval
        self._sleep = sleep
        self._clock_ns = clock_ns
        self._seen: dict[str, _Mark] | None = None  # None: the directory could not be looked at
        self._fresh = False
        self._kept: dict[str, tuple[_Mark, bytes]] = {}  # texts that need not be read again under this mark

    def __repr__(self) -> str:
        found = "not readable" if self._seen is None else f"{len(self._seen)} files"
        return f"<DirectorySource {self.root} {found}>"

    def place(self, key: str) -> str:
        """The path of the key's file."""
        return f"{self.root / key}.json"

    def revision(self, key: str) -> int:
        """When the key's file was last modified: nanoseconds since 1970."""
        mark = (self._seen or {}).get(key)
        return 0 if mark is None else mark.modified_ns

    async def put(self, key: str, text: bytes, revision: int) -> bool:
        """Replaces the key's file as a whole. Between the look at its revision and that, others may still write:
        a file system knows no compare-and-swap. Raises SourceError."""
        path = Path(self.place(key))
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(text)
            if _modified_ns(path) != revision:
                scratch.unlink()
                return False
            scratch.replace(path)
        except OSError as error:
            raise SourceError(f"{error.filename}: {error.strerror}") from error
        return True

    def read(self) -> dict[str, Text]:
        """The text of every file. Raises SourceError when the directory is not there or cannot be listed.

        A file that vanishes meanwhile is left out; one that cannot be read is Unreadable.
        """
        kept = self._kept
        self._seen, self._fresh, self._kept = None, False, {}
        marks = self._marks()
        # A mark cannot tell what happens from here on in the same tick of the clock: at most 10 ms on Linux.
        barely = self._clock_ns() - 20_000_000
        texts: dict[str, Text] = {}
        for key, mark in marks.items():
            known, same = kept.get(key, (None, b""))
            text = same if known == mark else self._text(key)
            if text is not None:
                texts[key] = text
            if mark.modified_ns >= barely:
                self._fresh = True
            elif isinstance(text, bytes):
                self._kept[key] = mark, text
        self._seen = marks
        return texts

    async def changed(self) -> None:
        """Returns at the first look that finds something else than the last `read` did."""
        while True:
            await self._sleep(self._interval)
            if self._fresh or self._look() != self._seen:
                return

    def _look(self) -> dict[str, _Mark] | None:
        try:
            return self._marks()
        except SourceError:
            return None

    def _marks(self) -> dict[str, _Mark]:
        """Every key with the mark of its file, in the order of the keys. Raises SourceError."""
        try:
            if not self.root.is_dir():
                raise SourceError(f"{self.root}: is no directory (INFERFLOW_CONFIG_DIR)")
            found = [*self._listed(""), *self._listed(CONFIGS), *self._listed(EXPRESSIONS)]
        except OSError as error:
            raise SourceError(f"{error.filename}: {error.strerror}") from error
        return dict(sorted(found))

    def _listed(self, prefix: str) -> Iterator[tuple[str, _Mark]]:
        try:
            entries = os.scandir(self.root / prefix)
        except FileNotFoundError:
            return  # each part of the tree may be missing
        with entries:
            for entry in entries:
                key = prefix + entry.name.removesuffix(".json")
                if not entry.name.endswith(".json") or not is_key(key):
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                yield key, _Mark(status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino)

    def _text(self, key: str) -> Text | None:
        path = self.place(key)
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_DOCUMENT_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Unreadable(f"cannot be read: {error.strerror}")
        if len(text) > MAX_DOCUMENT_BYTES:
            return Unreadable(f"is longer than {MAX_DOCUMENT_BYTES} bytes")
        return text


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
