"""What was served before, and what an operator put in its place: by key of the config tree.

Both are on disk, in the state directory: the texts once each, named by their SHA-256, and a ledger that says
when which of them was served. Belongs to one thread.

An override stands for the text of the source. A rollback ends when the source has another text for its key
than it had then, a pin when it is taken away.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from shared.saved import Documents, SavedError, replace_file
from shared.snapshot import digest_of
from sidecar.catalog import Content
from sidecar.source import Text, Unreadable

__all__ = ["KEPT", "Entry", "History", "Override"]

log = logging.getLogger(__name__)

KEPT = 20
"""Versions of one key that are remembered."""

_SCHEMA = 1


class Entry(msgspec.Struct, frozen=True):
    """One version of one key."""

    digest: str
    """SHA-256 of its text; "" when the key was taken out of service."""
    revision: int
    """Of its source."""
    since: float
    """When it became active: seconds since 1970."""


class Override(msgspec.Struct, frozen=True):
    """What is served in the place of the source's text."""

    digest: str
    revision: int
    instead_of: str
    """SHA-256 of the source's text when it was made; "" when there was none."""
    pinned: bool = False


class _Ledger(msgspec.Struct):
    schema: int = _SCHEMA
    entries: dict[str, list[Entry]] = {}
    overrides: dict[str, Override] = {}


class History:
    """The versions of every key, the newest first, and the overrides."""

    def __init__(self, directory: Path, documents: Documents, *, fresh: bool = False) -> None:
        """Reads what is there, or begins anew. The texts are among the `documents`. Raises SavedError, OSError."""
        self._path = directory / "history.json"
        self._documents = documents
        self._ledger = _Ledger() if fresh else self._read()
        self._served = {key: entries[0] for key, entries in self._ledger.entries.items()}

    def __repr__(self) -> str:
        ledger = self._ledger
        return f"<History {self._path}: {len(ledger.entries)} keys, {len(ledger.overrides)} overrides>"

    # --- versions

    def entries(self, key: str) -> tuple[Entry, ...]:
        """The versions of a key that were active, the newest first."""
        return tuple(self._ledger.entries.get(key, ()))

    def text(self, digest: str) -> bytes:
        """The text of a version. Raises SavedError, OSError."""
        return self._documents.read(digest)

    def previous(self, key: str) -> Entry | None:
        """The newest version with another text than the one that is served; None without one."""
        entries = self.entries(key)
        return next((one for one in entries if one.digest not in ("", entries[0].digest)), None)

    def find(self, key: str, digest: str) -> Entry | None:
        """The newest version of a key whose digest begins like this."""
        return next((one for one in self.entries(key) if digest and one.digest.startswith(digest)), None)

    def record(self, content: Content, now: float) -> None:
        """This content is served from `now` on (seconds since 1970). Raises OSError."""
        digests = content.digests
        changed = [
            key
            for key, digest in digests.items()
            if key not in self._served or self._served[key].digest != digest
        ]
        gone = [key for key, entry in self._served.items() if entry.digest and key not in digests]
        if not changed and not gone:
            return
        self._documents.write({digests[key]: content.text(key) for key in changed})
        for key in changed:
            self._add(key, Entry(digests[key], content.revisions.get(key, 0), now))
        for key in gone:
            self._add(key, Entry("", 0, now))
        self._save()

    @property
    def digests(self) -> set[str]:
        """Of every text that somebody may go back to."""
        remembered = {entry.digest for entries in self._ledger.entries.values() for entry in entries}
        return remembered | {override.digest for override in self.overrides.values()}

    # --- overrides

    @property
    def overrides(self) -> Mapping[str, Override]:
        """By key."""
        return self._ledger.overrides

    def override(self, key: str, override: Override) -> None:
        """Puts an override in the place of what the key has. Raises OSError; then nothing has changed."""
        self._note({**self.overrides, key: override})

    def withdraw(self, key: str) -> bool:
        """Takes an override away; returns whether there was one. Raises OSError; then nothing has changed."""
        if key not in self.overrides:
            return False
        self._note({name: one for name, one in self.overrides.items() if name != key})
        return True

    def apply(
        self, texts: Mapping[str, Text], revisions: Mapping[str, int]
    ) -> tuple[dict[str, Text], dict[str, int]]:
        """The texts and revisions of the source, with the overrides in their places.

        Ends rollbacks that are over, also when that cannot be noted on disk.
        """
        seen, numbers = dict(texts), dict(revisions)
        lasting = dict(self.overrides)
        for key, override in self.overrides.items():
            text = texts.get(key)
            if (
                not override.pinned
                and not isinstance(text, Unreadable)
                and _digest(text) != override.instead_of
            ):
                log.info("rollback is over: its source has a newer version", extra={"key": key})
                del lasting[key]
                continue
            try:
                seen[key] = self.text(override.digest)
            except (OSError, SavedError) as error:
                log.error("rollback is not possible", extra={"key": key, "reason": str(error)})
                continue
            numbers[key] = override.revision
        if lasting != self.overrides:
            # It is the source that ends a rollback: a restart would find the same.
            self._ledger.overrides = lasting
            try:
                self._save()
            except OSError as error:
                log.error("history cannot be saved", extra={"reason": str(error)})
        return seen, numbers

    # --- on disk

    def _add(self, key: str, entry: Entry) -> None:
        self._served[key] = entry
        self._ledger.entries[key] = [entry, *self._ledger.entries.get(key, [])][:KEPT]

    def _note(self, overrides: dict[str, Override]) -> None:
        before, self._ledger.overrides = self._ledger.overrides, overrides
        try:
            self._save()
        except OSError:
            self._ledger.overrides = before
            raise

    def _save(self) -> None:
        replace_file(self._path, [msgspec.json.encode(self._ledger)])

    def _read(self) -> _Ledger:
        try:
            ledger = msgspec.json.decode(self._path.read_bytes(), type=_Ledger)
        except FileNotFoundError:
            return _Ledger()
        except msgspec.DecodeError as error:
            raise SavedError(f"{self._path}: {error}") from error
        if ledger.schema != _SCHEMA:
            raise SavedError(f"{self._path}: has schema {ledger.schema}, must be {_SCHEMA}")
        return ledger


def _digest(text: Text | None) -> str:
    return digest_of(text) if isinstance(text, bytes) else ""
