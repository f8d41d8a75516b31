"""A config snapshot: what the config sidecar publishes, workers prepare, and the state directory keeps.

A head that names everything, and behind it the documents of the model configs as they are: a reader decodes
the few that it does not know yet, and no others. With 50 configs of 200 kB that is the difference between
some 20 ms and well under one for each activation, on the thread that serves requests.

| bytes | what |
|---|---|
| 4 | u32, little-endian: bytes of the head |
| … | the head: JSON, see `Head` |
| rest | the documents, one after the other |
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from struct import Struct
from typing import Any

import msgspec

__all__ = ["ConfigEntry", "Head", "SavedError", "Snapshot", "digest_of", "load", "replace_file", "save"]

_LENGTH = Struct("<I")
_SCHEMA = b"inferflow-snapshot 1 "
_DIGEST_CHARACTERS = 64


class ConfigEntry(msgspec.Struct, frozen=True):
    """Where the document of one usable config stands, counted from the end of the head."""

    digest: str
    """SHA-256 of the document, hexadecimal."""
    at: int
    length: int


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything of a snapshot but the documents."""

    version: int
    configs: dict[str, ConfigEntry] = {}
    refused: dict[str, str] = {}
    """Configs that have no good version: the reason."""
    kept: dict[str, str] = {}
    """Configs that are served in an older version: what is wrong with the newest."""
    waiting: dict[str, str] = {}
    """Configs that are served in an older version: which new endpoint does not answer."""
    expressions: dict[str, str] = {}
    service: dict[str, Any] = {}
    revisions: dict[str, int] = {}
    """By key of the config tree: the revision of its source that is served. 0: not known."""
    rules: str = ""
    """What the configs were judged by; see `sidecar.rules`."""


class Snapshot:
    """One snapshot. Immutable."""

    def __init__(self, head: Head, documents: bytes | memoryview) -> None:
        self.head = head
        self._documents = memoryview(documents)

    def __repr__(self) -> str:
        return (
            f"<Snapshot {self.head.version}: {len(self.head.configs)} configs, {len(self._documents)} bytes>"
        )

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Snapshot:
        """Reads a snapshot. Raises ValueError saying what is wrong with it."""
        if len(data) < _LENGTH.size:
            raise ValueError(f"snapshot of {len(data)} bytes: its head is cut")
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        if end > len(data):
            raise ValueError(f"snapshot of {len(data)} bytes: its head ends at {end}")
        head = msgspec.json.decode(data[_LENGTH.size : end], type=Head)
        documents = memoryview(data)[end:]
        for name, entry in head.configs.items():
            if entry.at < 0 or entry.length < 0 or entry.at + entry.length > len(documents):
                raise ValueError(
                    f"config {name!r}: its document is at {entry.at} + {entry.length} of {len(documents)} bytes"
                )
        return cls(head, documents)

    @staticmethod
    def encode(head: Head, documents: Mapping[str, tuple[str, bytes]]) -> bytes:
        """The snapshot with this head and these configs: model_config_id → (digest, document)."""
        at = 0
        entries = {}
        for name, (digest, document) in documents.items():
            entries[name] = ConfigEntry(digest, at, len(document))
            at += len(document)
        written = msgspec.json.encode(msgspec.structs.replace(head, configs=entries))
        return b"".join([_LENGTH.pack(len(written)), written, *(text for _, text in documents.values())])

    def document(self, name: str) -> bytes:
        """The document of a config of the head. Raises KeyError."""
        entry = self.head.configs[name]
        return bytes(self._documents[entry.at : entry.at + entry.length])


def digest_of(text: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(text).hexdigest()


# ---------------------------------------------------------------- on disk


class SavedError(ValueError):
    """A file that does not hold what was saved in it, or is of another release. The text names it and why."""


def save(path: Path, snapshot: bytes) -> None:
    """Replaces the file by this encoded snapshot, with its schema and checksum. Raises OSError."""
    replace_file(path, (_SCHEMA, digest_of(snapshot).encode(), b"\n", snapshot))


def load(path: Path) -> bytes | None:
    """The encoded snapshot that was saved last; None when there is none. Raises SavedError, OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    start = len(_SCHEMA) + _DIGEST_CHARACTERS + 1
    if not data.startswith(_SCHEMA):
        raise SavedError(f"{path}: does not begin with {_SCHEMA.decode()!r}")
    snapshot = data[start:]
    if data[len(_SCHEMA) : start] != digest_of(snapshot).encode() + b"\n":
        raise SavedError(f"{path}: its checksum is not that of its {len(snapshot)} bytes")
    return snapshot


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Puts a new file in the place of `path`: a reader, or a crash at any moment, finds the old or the new one.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # or a power cut could bring the old name back
    finally:
        os.close(directory)
