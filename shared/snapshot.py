"""A config snapshot: what the config sidecar publishes and workers prepare; `shared.saved` keeps the last one.

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
from collections.abc import Mapping
from struct import Struct
from typing import Any

import msgspec

__all__ = ["ConfigEntry", "Head", "Snapshot", "digest_of"]

_LENGTH = Struct("<I")


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

    @property
    def encoded(self) -> bytes:
        """What `decode` reads."""
        head = msgspec.json.encode(self.head)
        return b"".join([_LENGTH.pack(len(head)), head, self._documents])

    @staticmethod
    def encode(head: Head, documents: Mapping[str, tuple[str, bytes]]) -> bytes:
        """The snapshot with this head and these configs: model_config_id → (digest, document)."""
        written = Snapshot.encode_head(head, documents)
        return b"".join([_LENGTH.pack(len(written)), written, *(text for _, text in documents.values())])

    @staticmethod
    def encode_head(head: Head, documents: Mapping[str, tuple[str, bytes]]) -> bytes:
        """The head alone, as JSON, with these configs in it."""
        at = 0
        entries = {}
        for name, (digest, document) in documents.items():
            entries[name] = ConfigEntry(digest, at, len(document))
            at += len(document)
        return msgspec.json.encode(msgspec.structs.replace(head, configs=entries))

    def document(self, name: str) -> bytes:
        """The document of a config of the head. Raises KeyError."""
        entry = self.head.configs[name]
        return bytes(self._documents[entry.at : entry.at + entry.length])


def digest_of(text: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(text).hexdigest()
