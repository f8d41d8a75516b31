"""The last good configs on disk: what a new sidecar starts from, whatever its source holds by then, and what a
worker starts from while there is no sidecar. How they lie there is told in `shared.saved`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from shared import saved
from shared.saved import Documents, SavedError
from sidecar.activation import Version
from sidecar.catalog import Content

__all__ = ["Saved", "SavedError", "load", "save"]


class Saved(NamedTuple):
    """What was saved, and whether it has passed the rules of this release."""

    version: Version
    judged: bool


def load(directory: Path, documents: Documents) -> Saved | None:
    """The version that was saved last; None when there is none. Raises SavedError, OSError."""
    snapshot = saved.load(directory, documents)
    if snapshot is None:
        return None
    try:
        number, content, judged = Content.of(snapshot)
    except ValueError as error:
        raise SavedError(f"{directory / saved.ACTIVE}: {error}") from error
    return Saved(Version(number, content), judged)


def save(directory: Path, documents: Documents, version: Version) -> None:
    """Puts this version in the place of what was saved before. Raises OSError."""
    saved.save(directory, documents, *version.content.parts(version.number))
