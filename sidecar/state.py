"""The last good configs on disk: what a new sidecar starts from, whatever its source holds by then.

One file, the snapshot document of the version that was active last. It is replaced as a whole, so a reader or a
crash never sees half of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from dag.config import decode
from sidecar.activation import Version
from sidecar.catalog import Content, Document, digest_of

__all__ = ["StateError", "load", "save"]


class StateError(ValueError):
    """A state file that cannot be used. The text names it and the reason."""


class _StoredConfig(msgspec.Struct, frozen=True):
    digest: str
    document: msgspec.Raw


class _Stored(msgspec.Struct, frozen=True):
    version: int
    configs: dict[str, _StoredConfig] = {}
    refused: dict[str, str] = {}
    kept: dict[str, str] = {}
    expressions: dict[str, str] = {}
    service: dict[str, Any] = {}


def load(path: Path) -> Version | None:
    """The version that was saved last; None when there is none. Raises StateError, OSError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        stored = msgspec.json.decode(text, type=_Stored)
        configs = {name: _document(name, config) for name, config in stored.configs.items()}
    except ValueError as error:
        raise StateError(f"{path}: {error}") from error
    content = Content(configs, stored.refused, stored.kept, stored.expressions, stored.service)
    return Version(stored.version, content)


def save(path: Path, version: Version) -> None:
    """Replaces the file by this version. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "wb") as file:
        file.write(version.content.encode(version.number))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _document(name: str, stored: _StoredConfig) -> Document:
    text = bytes(stored.document)
    if digest_of(text) != stored.digest:
        raise ValueError(f"config {name!r} does not have the digest that stands beside it")
    config = decode(text)
    needs = frozenset(one.compute_id for one in config.component_config.numerix_components)
    return Document(text, stored.digest, needs)
