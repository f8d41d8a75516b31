"""The last good configs on disk: what a new sidecar starts from, whatever its source holds by then, and what a
worker starts from while there is no sidecar.

One file, the snapshot of the version that was active last, with its schema and checksum. It is replaced as a
whole, so a reader or a crash never sees half of it.
"""

from __future__ import annotations

from pathlib import Path

from shared import snapshot
from shared.snapshot import SavedError
from sidecar.activation import Version
from sidecar.catalog import Content

__all__ = ["SavedError", "load", "save"]


def load(path: Path) -> Version | None:
    """The version that was saved last; None when there is none. Raises SavedError, OSError."""
    data = snapshot.load(path)
    if data is None:
        return None
    try:
        return Version(*Content.decode(data))
    except ValueError as error:
        raise SavedError(f"{path}: {error}") from error


def save(path: Path, version: Version) -> None:
    """Replaces the file by this version. Raises OSError."""
    snapshot.save(path, version.content.encode(version.number))
