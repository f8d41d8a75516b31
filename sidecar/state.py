"""The last good configs on disk: what a new sidecar starts from, whatever its source holds by then, and what a
worker starts from while there is no sidecar.

One file, the snapshot of the version that was active last, with its schema and checksum. It is replaced as a
whole, so a reader or a crash never sees half of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from shared import snapshot
from shared.snapshot import SavedError
from sidecar.activation import Version
from sidecar.catalog import Content

__all__ = ["Saved", "SavedError", "load", "save"]


class Saved(NamedTuple):
    """What was saved, and whether it has passed the rules of this release."""

    version: Version
    judged: bool


def load(path: Path) -> Saved | None:
    """The version that was saved last; None when there is none. Raises SavedError, OSError."""
    data = snapshot.load(path)
    if data is None:
        return None
    try:
        number, content, judged = Content.decode(data)
    except ValueError as error:
        raise SavedError(f"{path}: {error}") from error
    return Saved(Version(number, content), judged)


def save(path: Path, version: Version) -> None:
    """Replaces the file by this version. Raises OSError."""
    snapshot.save(path, version.content.encode(version.number))
