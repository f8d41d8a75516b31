"""The feature component: fetches the features of one entity, each distinct key once.

The key of a row is the values of its key columns. A composite component also writes the joined key into a text
column of its own, and a fetched value that is the key of another component is written there as text: that is how
an entity is derived from another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np

from components.derived import DerivedKey
from components.fetched import FetchedLayout, Lines
from components.keys import Keys, all_numbers, distinct_keys, encoded_batches
from components.wire import WireError
from dag.component import Call, Endpoint, Reply, Scoring, Steps
from rpc.status import Status
from shared.board import Counter
from shared.feature_cache import CacheKey, FeatureCache, Found
from shared.shm_matrix import Rows

__all__ = ["CacheRule", "Feature", "cause"]


@dataclasses.dataclass(frozen=True, slots=True)
class CacheRule:
    """Where a component's lines are cached, under which name and how long."""

    cache: FeatureCache
    key: CacheKey
    requests: Counter
    """Keys looked up."""
    misses: Counter
    """Keys that were not there."""


@dataclasses.dataclass(frozen=True)
class Feature:
    """A compiled feature component."""

    name: str
    endpoint: Endpoint | None  # None: no feature groups, nothing is fetched
    timeout: float  # seconds, a call
    batch_size: int  # keys a call
    head: bytes
    key_columns: tuple[str, ...]
    keys: tuple[int, ...]  # external ids of the key columns
    composite: int | None  # external id of the joined key
    layout: FetchedLayout
    derived: tuple[DerivedKey, ...]
    caching: CacheRule | None
    shares_keys: bool  # other components have the same ones
    reference: bool  # use the reference codecs

    def run(self, scoring: Scoring) -> Steps:
        matrix = scoring.matrix
        caching = self.caching
        keys = self._keys(scoring)
        if keys.gaps:
            self._mark_gaps(scoring, keys)
        if self.composite is not None:
            matrix.texts[self.composite] = keys.joined(matrix.slot)
        if self.endpoint is None:
            return
        lines = Lines(self.layout, matrix.slot, keys.count)
        found: Found | None = None
        if caching is None or not keys.count:
            wanted = all_numbers(keys.count)
        else:
            found = lines.look_up(caching.cache, caching.key, matrix.slot, keys.places())
            wanted = found.missing
            caching.requests.value += keys.count
            caching.misses.value += len(wanted)
        if len(wanted):
            asked = self._batches(scoring, keys, lines, wanted)
            endpoint, head, timeout = self.endpoint, self.head, self.timeout
            replies = yield [Call(endpoint, (head, entries), timeout, len(batch)) for batch, entries in asked]
            self._read(scoring, keys, lines, [batch for batch, _ in asked], replies)
            if caching is not None and found is not None:
                lines.remember(caching.cache, caching.key, found)
        lines.hand_over(matrix, keys.index)
        for derived in self.derived:
            derived.write(matrix, keys, reference=self.reference)
        yield None

    def fail(self, scoring: Scoring, cause: str) -> None:
        scoring.fail(self.name, cause, kind="INTERNAL")

    def _keys(self, scoring: Scoring) -> Keys:
        """The distinct keys of the rows: found, and encoded, once for all components that have the same ones."""
        batch = None if self.caching is not None else self.batch_size
        if not self.shares_keys:
            return distinct_keys(scoring.matrix, self.keys, batch, reference=self.reference)
        name = self.keys, batch
        known = scoring.shared.get(name)
        if known is not None:
            return cast("Keys", known)
        found = distinct_keys(scoring.matrix, self.keys, batch, reference=self.reference)
        scoring.shared[name] = found
        return found

    def _read(
        self, scoring: Scoring, keys: Keys, lines: Lines, batches: Sequence[Rows], replies: Sequence[Reply]
    ) -> None:
        """Reads the answers into the lines of their keys; those of failed calls have none and mark their rows."""
        lines.expect_answers(scoring.matrix.slot, replies)
        for number, batch in enumerate(batches):
            reply = replies[number]
            if reply.status:
                self._fail_keys(scoring, keys, lines, batch, cause(reply), Status(reply.status).name)
                continue
            try:
                lines.read(reply.body, batch, reference=self.reference)
            except WireError as error:
                self._fail_keys(scoring, keys, lines, batch, str(error), error.kind)

    def _batches(self, scoring: Scoring, keys: Keys, lines: Lines, wanted: Rows) -> list[tuple[Rows, bytes]]:
        """The wanted keys in encoded batches; those that no query can carry mark their rows."""
        size = self.batch_size
        try:
            return keys.batches(wanted, size)
        except WireError:
            good = []
            for key in wanted.tolist():
                bad = next((part for part in keys.parts(key) if not _is_text(part)), None)
                if bad is None:
                    good.append(key)
                else:
                    reason = f"a key is not UTF-8: {bad!r}"
                    self._fail_keys(scoring, keys, lines, np.array([key], np.int32), reason, "BAD_VALUE")
            return encoded_batches(keys, np.array(good, np.int32), size)

    def _mark_gaps(self, scoring: Scoring, keys: Keys) -> None:
        """Rows with an empty key part are not sent upstream; they say why."""
        for part, name in enumerate(self.key_columns):
            rows = keys.rows_without(part)
            if len(rows):
                scoring.fail(self.name, f"key column {name!r} is empty", rows, "EMPTY_KEY")

    def _fail_keys(
        self, scoring: Scoring, keys: Keys, lines: Lines, batch: Rows, reason: str, kind: str
    ) -> None:
        """These keys have no values; their rows say why."""
        lines.forget(batch)
        rows = np.flatnonzero(np.isin(keys.index, batch)).astype(np.int32)
        scoring.fail(self.name, reason, rows, kind)


def cause(reply: Reply) -> str:
    """A failed call in words: UNAVAILABLE: model is down."""
    return f"{Status(reply.status).name}: {reply.message}" if reply.message else Status(reply.status).name


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True
