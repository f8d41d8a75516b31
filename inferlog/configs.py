"""Which config a message was logged under: where its columns are found when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import orjson

from dag.config import ModelConfig, decode
from inferlog.reader import BadLog, LogMessage
from inferlog.schema import LogColumn, LogSchema
from shared.snapshot import digest_of

__all__ = ["ConfigFiles"]


class _Known(NamedTuple):
    digest: str
    version: int
    columns: tuple[LogColumn, ...]


class ConfigFiles:
    """Columns of messages, from the documents of configs.

    A message of ours names the digest of its config's document: `documents` has texts by that name (the state
    directory of a pod keeps every version that was active). Without one of that name, and for messages of the
    existing service, `directories` are looked through for the model_config_id (`<id>.json`, also in
    `config-map/`); such a config has to have the same digest, or else at least the message's cache_version, which
    is what names a log's schema in the existing service. Then it is a guess: `guessed` has the model_config_id.
    """

    def __init__(self, documents: Path | None, directories: Sequence[Path]) -> None:
        self.guessed: set[str] = set()
        self._documents = documents
        self._directories = directories
        self._by_digest: dict[tuple[str, str], tuple[LogColumn, ...] | None] = {}
        self._by_id: dict[str, list[_Known]] = {}

    def __repr__(self) -> str:
        return f"<ConfigFiles {len(self._by_digest)} digests and {len(self._by_id)} ids asked for>"

    def columns(self, message: LogMessage) -> tuple[LogColumn, ...]:
        """The columns of a message. Raises BadLog when no config of it is known."""
        named = self._named(message) if message.digest else None
        if named is not None:
            return named
        known = self._known(message.model_config_id)
        for one in known:
            if one.digest == message.digest:
                return one.columns
        for one in known:
            if one.version == message.version:
                self.guessed.add(message.model_config_id)
                return one.columns
        digest = f" with the digest {message.digest[:12]}" if message.digest else ""
        places = ", ".join(map(str, filter(None, (self._documents, *self._directories)))) or "nowhere"
        raise BadLog(
            f"no config of {message.model_config_id!r}{digest}, nor one with cache_version {message.version}; "
            f"looked in: {places}"
        )

    def _named(self, message: LogMessage) -> tuple[LogColumn, ...] | None:
        """The columns by the document that has the message's digest for its name."""
        key = message.model_config_id, message.digest
        if key not in self._by_digest:
            self._by_digest[key] = None
            path = None if self._documents is None else self._documents / f"{message.digest}.json"
            if path is not None and path.exists():
                text = path.read_bytes()
                if digest_of(text) != message.digest:
                    raise BadLog(f"{path}: its checksum is not its name")
                self._by_digest[key] = _columns(message.model_config_id, _config(path, text))
        return self._by_digest[key]

    def _known(self, model_config_id: str) -> list[_Known]:
        """The configs of this id in the directories."""
        if model_config_id not in self._by_id:
            places = [
                place / f"{model_config_id}.json"
                for directory in self._directories
                for place in (directory, directory / "config-map")
            ]
            self._by_id[model_config_id] = [_known(model_config_id, path) for path in places if path.exists()]
        return self._by_id[model_config_id]


def _known(model_config_id: str, path: Path) -> _Known:
    text = path.read_bytes()
    config = _config(path, text)
    version = config.component_config.cache_version or 1
    # Digests are those of the compact text, however the file is laid out.
    return _Known(digest_of(orjson.dumps(orjson.loads(text))), version, _columns(model_config_id, config))


def _config(path: Path, text: bytes) -> ModelConfig:
    try:
        return decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadLog(f"{path}: {error}") from error


def _columns(model_config_id: str, config: ModelConfig) -> tuple[LogColumn, ...]:
    return LogSchema.of(model_config_id, config, {}).columns
