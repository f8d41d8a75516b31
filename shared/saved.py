"""The state directory: what was active last, for processes that start while the configs' source is away.

| file | what |
|---|---|
| `active.snapshot` | a line with the schema and the SHA-256 of the rest; the head of the snapshot, as JSON |
| `documents/<digest>.json` | the texts, each once, named by their SHA-256 |

An activation changes a few texts of many, so it costs a small file and the new texts, however much there is. Every
file is replaced as a whole, the texts before the head that names them: a reader, or a crash at any moment, finds
the old version or the new one. One process writes (the config sidecar); any may read.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from shared.snapshot import Head, Snapshot, digest_of

__all__ = ["ACTIVE", "Documents", "SavedError", "load", "replace_file", "save"]

ACTIVE = "active.snapshot"
_SCHEMA = b"inferflow-snapshot 2 "
_DIGEST_CHARACTERS = 64
MOST_SYNCED = 64
"""Texts written at once that are waited for until they are on the disk. Thousands are those of a first start, which
must not take the seconds that this costs; if the power fails then, their checksums tell."""


class SavedError(ValueError):
    """A file that does not hold what was saved in it, or is of another release. The text names it and why."""


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Puts a new file in the place of `path`: a reader, or a crash at any moment, finds the old or the new one.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, parts)
    _sync(path.parent)


class Documents:
    """Texts in a directory, one file each, named by their SHA-256."""

    def __init__(self, directory: Path) -> None:
        """What is there already is known from now on. Raises OSError."""
        self._directory = directory
        self._known = {path.stem for path in directory.glob("*.json")}

    def __repr__(self) -> str:
        return f"<Documents {self._directory}: {len(self._known)} texts>"

    def __contains__(self, digest: str) -> bool:
        return digest in self._known

    def read(self, digest: str) -> bytes:
        """The text of this digest. Raises SavedError, OSError."""
        path = self._path(digest)
        text = path.read_bytes()
        if digest_of(text) != digest:
            raise SavedError(f"{path}: its checksum is not its name")
        return text

    def write(self, texts: Mapping[str, bytes]) -> None:
        """Keeps these texts, by digest; those that are there cost nothing. Raises OSError."""
        new = texts.keys() - self._known
        if not new:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        synced = len(new) <= MOST_SYNCED
        for digest in new:
            _replace(self._path(digest), [texts[digest]], synced=synced)
            self._known.add(digest)
        _sync(self._directory)

    def keep_only(self, digests: Collection[str]) -> None:
        """Removes all other texts. Raises OSError."""
        for digest in self._known.difference(digests):
            self._path(digest).unlink(missing_ok=True)
            self._known.discard(digest)

    def tidy(self) -> None:
        """Removes what a writer that was killed has left half written. Raises OSError."""
        for path in self._directory.glob(".*"):
            path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest}.json"


def save(directory: Path, documents: Documents, head: Head, texts: Mapping[str, tuple[str, bytes]]) -> None:
    """Saves a snapshot (the arguments of `Snapshot.encode`) in the place of the last one. Raises OSError."""
    documents.write(dict(texts.values()))
    written = Snapshot.encode_head(head, texts)
    replace_file(directory / ACTIVE, (_SCHEMA, digest_of(written).encode(), b"\n", written))


def load(directory: Path, documents: Documents | None = None) -> Snapshot | None:
    """The snapshot that was saved last; None when there is none. Raises SavedError, OSError.

    `documents` are those of the directory, for whoever has them at hand.
    """
    path = directory / ACTIVE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    start = len(_SCHEMA) + _DIGEST_CHARACTERS + 1
    if not data.startswith(_SCHEMA):
        raise SavedError(f"{path}: does not begin with {_SCHEMA.decode()!r}")
    written = data[start:]
    if data[len(_SCHEMA) : start] != digest_of(written).encode() + b"\n":
        raise SavedError(f"{path}: its checksum is not that of its {len(written)} bytes")
    try:
        head = msgspec.json.decode(written, type=Head)
    except msgspec.DecodeError as error:
        raise SavedError(f"{path}: {error}") from error
    if documents is None:
        documents = Documents(directory / "documents")
    return Snapshot(head, b"".join(documents.read(entry.digest) for entry in head.configs.values()))


def _replace(path: Path, parts: Iterable[bytes], *, synced: bool = True) -> None:
    """`replace_file`, but that a power cut may bring the old name back until the directory is synced, too.

    Without `synced` it may also cut the contents, within half a minute.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as file:
            file.writelines(parts)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
