"""What operators see and do: the versions of every key, rollbacks, pins and writes. JSON values in and out.

A key is one of the config tree (`config-map/<model_config_id>`, `expression-config/<compute_id>`,
`service-config`); a name without a slash is a model_config_id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dag.problems import Problem
from shared.saved import SavedError
from shared.snapshot import digest_of
from sidecar.catalog import Content, read_expression, read_service
from sidecar.diff import difference
from sidecar.history import Entry, Override
from sidecar.source import CONFIGS, EXPRESSIONS, SERVICE, SourceError, Text, Unreadable, is_key

if TYPE_CHECKING:
    from sidecar.config import ConfigSidecar

__all__ = ["STATES", "Steering", "SteeringError", "key_of"]

STATES = ("active", "preparing", "waiting", "late", "kept", "refused", "deleted")
"""Of the newest version of a key. `kept`: refused, and an older one is served; `late`: not prepared in time."""


class SteeringError(Exception):
    """Something that was asked and cannot be done. `status` is that of HTTP: 404, 409, 422 or 503."""

    def __init__(self, status: int, reason: str, **details: Any) -> None:
        super().__init__(reason)
        self.status = status
        self.details = details


def key_of(name: str) -> str:
    """The key that is meant: a model_config_id stands for its config."""
    if name == SERVICE or name.startswith((CONFIGS, EXPRESSIONS)):
        return name
    return CONFIGS + name


class Steering:
    """Reads the state of a sidecar, and changes it only through its history and its source."""

    def __init__(self, sidecar: ConfigSidecar) -> None:
        self._sidecar = sidecar

    def __repr__(self) -> str:
        return f"<Steering of {self._sidecar!r}>"

    # --- seeing

    def status(self) -> dict[str, Any]:
        """The pod's versions: active, pending, and those of each worker."""
        activation = self._sidecar.activation
        active, pending = activation.active, activation.pending
        return {
            "active": active.number if active else None,
            "pending": pending.number if pending else None,
            "source": {"place": repr(self._sidecar.source), "error": self._sidecar.source_error},
            "notice": self._sidecar.notice,
            "workers": [
                {
                    "worker": who["worker"],
                    "pid": who["worker_pid"],
                    "version": activation.serving(number),
                    "is_late": number in activation.blamed,
                    "retiring": self._sidecar.retiring(number),
                }
                for number in self._sidecar.workers
                for who in [self._sidecar.who(number)]
            ],
        }

    def overview(self) -> dict[str, Any]:
        """Every key that is served, or is in the source: the short form of `show`, and the status."""
        return {**self.status(), "items": self.items()}

    def items(self) -> list[dict[str, Any]]:
        """The short form of `show` of every key, in the order of the keys."""
        keys = sorted({*self._content().digests, *self._sidecar.texts, *self._sidecar.history.overrides})
        return [self._item(key) for key in keys]

    def show(self, name: str) -> dict[str, Any]:
        """One key: what is served, since when, and the verdict on what its source holds. Raises SteeringError."""
        key = self._known(name)
        content = self._content()
        served = content.text(key) if key in content.digests else None
        return {
            **self._item(key),
            "text": None if served is None else served.decode(),
            "workers": self.status()["workers"],
            "verdict": self.verdict(key, self._sidecar.texts.get(key)),
        }

    def history(self, name: str) -> dict[str, Any]:
        """The versions of a key that were active, the newest first. Raises SteeringError."""
        key = self._known(name)
        return {"key": key, "versions": [_entry(entry) for entry in self._sidecar.history.entries(key)]}

    def diff(self, name: str, old: str = "", new: str = "") -> dict[str, Any]:
        """What changes from one version of a key to another: digests, or their beginnings.

        Without `new` the text in the source, without `old` what is served. Raises SteeringError.
        """
        key = self._known(name)
        content = self._content()
        served = content.text(key) if key in content.digests else None
        source = self._sidecar.texts.get(key)
        before = self._text(key, old) if old else served
        after = self._text(key, new) if new else source if isinstance(source, bytes) else None
        return difference(key, before, after)

    def verdict(self, key: str, text: Text | None) -> dict[str, Any]:
        """What is said of a text under this key, with what is served now: {ok, errors, warnings}."""
        if text is None:
            return {"ok": True, "errors": [], "warnings": []}
        if key.startswith(CONFIGS):
            expressions = self._content().expressions
            found = self._sidecar.catalog.verdict(key.removeprefix(CONFIGS), text, expressions)
            return _verdict(found.errors, found.warnings)
        try:
            if key.startswith(EXPRESSIONS):
                read_expression(text)
            else:
                read_service(text)
        except ValueError as error:
            return _verdict([Problem("", str(error))], [])
        return _verdict([], [])

    # --- steering

    def check(self, name: str, text: bytes) -> dict[str, Any]:
        """What `put` would do: the verdict, the difference, and the revision that it would replace.

        Raises SteeringError when no source reads this key.
        """
        key = _writable(name)
        content = self._content()
        served = content.text(key) if key in content.digests else None
        return {
            "key": key,
            "place": self._sidecar.source.place(key),
            "revision": self._sidecar.source.revision(key),
            "verdict": self.verdict(key, text),
            "diff": difference(key, served, text),
        }

    async def put(self, name: str, text: bytes, revision: int) -> dict[str, Any]:
        """Writes a good text to the source, if its key still has this revision. Raises SteeringError."""
        key = _writable(name)
        verdict = self.verdict(key, text)
        if not verdict["ok"]:
            raise SteeringError(422, f"{key}: refused", verdict=verdict)
        await self._write(key, text, revision)
        return {"key": key, "place": self._sidecar.source.place(key), "digest": digest_of(text)}

    async def rollback(self, name: str, to: str = "", *, write: bool = False) -> dict[str, Any]:
        """Puts a version (a digest or its beginning) back into service; without `to` the one before this.

        It stays until the source has another text. `write`: to the source, too. Raises SteeringError.
        """
        key = self._known(name)
        history = self._sidecar.history
        entry = history.find(key, to) if to else history.previous(key)
        if entry is None or not entry.digest:
            raise SteeringError(
                404,
                f"{key}: no version {to!r} is remembered" if to else f"{key}: nothing else was served before",
            )
        text = self._read(entry.digest)
        if write:
            await self._write(key, text, self._sidecar.source.revision(key))
        else:
            self._override(key, entry, pinned=False)
        return self._item(key) | {"to": _entry(entry), "written": write}

    def pin(self, name: str) -> dict[str, Any]:
        """Keeps what is served for a key, whatever its source holds, until `unpin`. Raises SteeringError."""
        key = self._known(name)
        entry = next(iter(self._sidecar.history.entries(key)), None)
        if entry is None or not entry.digest:
            raise SteeringError(404, f"{key}: nothing is served that could be pinned")
        current = self._sidecar.history.overrides.get(key)
        if current is not None:  # rolled back, maybe not active yet: that is what is to stay
            entry = Entry(current.digest, current.revision, entry.since)
        self._override(key, entry, pinned=True)
        return self._item(key)

    def unpin(self, name: str) -> dict[str, Any]:
        """Serves what the source holds again: ends a pin or a rollback. Raises SteeringError."""
        key = self._known(name)
        try:
            found = self._sidecar.history.withdraw(key)
        except OSError as error:
            raise SteeringError(503, f"{key}: cannot be noted: {error}") from error
        if not found:
            raise SteeringError(409, f"{key}: is neither pinned nor rolled back")
        self._sidecar.judge()
        return self._item(key)

    # --- parts

    def _content(self) -> Content:
        active = self._sidecar.activation.active
        return active.content if active else Content()

    def _known(self, name: str) -> str:
        key = key_of(name)
        sidecar = self._sidecar
        if key in sidecar.texts or key in self._content().digests or sidecar.history.entries(key):
            return key
        raise SteeringError(404, f"{key}: is not in the source, and was never served")

    def _item(self, key: str) -> dict[str, Any]:
        content, sidecar = self._content(), self._sidecar
        entry = next(iter(sidecar.history.entries(key)), None)
        override = sidecar.history.overrides.get(key)
        digest = content.digests.get(key)
        return {
            "key": key,
            "state": self._state(key),
            "reasons": self._reasons(key),
            "digest": digest,
            "revision": content.revisions.get(key, 0) if digest else 0,
            "since": entry.since if entry and entry.digest == digest else None,
            "source_revision": sidecar.revisions.get(key, 0),
            "override": None
            if override is None
            else {"kind": "pinned" if override.pinned else "rolled back", "digest": override.digest},
        }

    def _state(self, key: str) -> str:
        """One of STATES."""
        content = self._content()
        served = key in content.digests
        pending = self._sidecar.activation.pending
        if key in self._sidecar.catalog.problems:
            return "kept" if served else "refused"
        if key.removeprefix(CONFIGS) in self._sidecar.catalog.last.waiting and key.startswith(CONFIGS):
            return "waiting"
        if key in self._sidecar.overdue:
            return "late"
        if pending is not None and pending.content.versions.get(key) != content.versions.get(key):
            return "preparing"
        return "active" if served else "deleted"

    def _reasons(self, key: str) -> Sequence[str]:
        catalog = self._sidecar.catalog
        if key in catalog.problems:
            return catalog.problems[key]
        waits = catalog.last.waiting.get(key.removeprefix(CONFIGS)) if key.startswith(CONFIGS) else None
        if waits is not None:
            return [waits]
        return [self._sidecar.overdue[key]] if key in self._sidecar.overdue else []

    def _text(self, key: str, digest: str) -> bytes:
        entry = self._sidecar.history.find(key, digest)
        if entry is None:
            raise SteeringError(404, f"{key}: no version {digest!r} is remembered")
        return self._read(entry.digest)

    def _read(self, digest: str) -> bytes:
        try:
            return self._sidecar.history.text(digest)
        except (OSError, SavedError) as error:
            raise SteeringError(503, f"version {digest[:12]} cannot be read: {error}") from error

    def _override(self, key: str, entry: Entry, *, pinned: bool) -> None:
        source = self._sidecar.texts.get(key)
        if isinstance(source, Unreadable) and not pinned:
            raise SteeringError(409, f"{key}: cannot be read now, so that its next version could not be told")
        instead_of = digest_of(source) if isinstance(source, bytes) else ""
        try:
            self._sidecar.history.override(key, Override(entry.digest, entry.revision, instead_of, pinned))
        except OSError as error:
            raise SteeringError(503, f"{key}: cannot be noted: {error}") from error
        self._sidecar.judge()

    async def _write(self, key: str, text: bytes, revision: int) -> None:
        try:
            written = await self._sidecar.source.put(key, text, revision)
        except SourceError as error:
            raise SteeringError(503, f"{key}: cannot be written: {error}") from error
        if not written:
            raise SteeringError(409, f"{key}: was changed meanwhile (revision {revision} is not its newest)")
        self._sidecar.look()  # a polled source would be seen half a second later


def _writable(name: str) -> str:
    key = key_of(name)
    if not is_key(key):
        rule = "an id is one segment of printable characters that does not begin with a dot"
        raise SteeringError(422, f"{key!r}: nobody would read this: {rule}")
    return key


def _entry(entry: Entry) -> dict[str, Any]:
    return {"digest": entry.digest, "revision": entry.revision, "since": entry.since}


def _verdict(errors: Sequence[Problem], warnings: Sequence[Problem]) -> dict[str, Any]:
    return {
        "ok": not errors,
        "errors": [str(problem) for problem in errors],
        "warnings": [str(problem) for problem in warnings],
    }
