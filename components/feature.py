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

from components.columns import text_of
from components.fetched import FetchedLayout, Lines
from components.keys import Keys, all_numbers, distinct_keys, encoded_batches, key_texts
from components.wire import WireError
from dag.component import Call, Endpoint, Reply, Scoring, Steps
from dag.layout import ByteColumn
from rpc.status import Status
from shared.board import Counter
from shared.datatypes import DataType
from shared.feature_cache import CacheKey, FeatureCache, Found
from shared.shm_matrix import Rows, ShmMatrix, Slot, TextColumn, VarBlock

__all__ = ["CacheRule", "DerivedKey", "Feature", "cause"]


@dataclasses.dataclass(frozen=True, slots=True)
class DerivedKey:
    """A fetched column that is a key column of some component: its text goes to an external column too."""

    column: ByteColumn
    external: int


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
            joined = [b"|".join(keys.parts(key)) for key in range(keys.count)]
            matrix.texts[self.composite] = _spread(matrix.slot, joined, keys.index)
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
            self._derive(matrix, derived)
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

    def _derive(self, matrix: ShmMatrix, derived: DerivedKey) -> None:
        """Writes the text form of a fetched column into its text column, where that is empty."""
        block = matrix.blocks[derived.column.block]
        assert block is not None
        assert block.index is not None
        place = derived.column.column
        if isinstance(block, VarBlock) and derived.column.data_type is DataType.STRING and len(block.states):
            # The text is in the slot already: the column looks at it where it is.
            index = block.index
            sizes = np.where(index >= 0, block.sizes[index, place], 0).astype(np.int32)
            column = TextColumn(block.heap, block.starts[index, place], sizes, constant=False)
        else:
            lines = np.arange(len(block.states), dtype=np.int32)
            forms = text_of(block.line_values(place, lines), derived.column.data_type)
            column = _spread(matrix.slot, forms, block.index)
        brought = key_texts(matrix, derived.external)
        if brought is not None:
            own = column.texts(matrix.all_rows)
            given = brought.texts(matrix.all_rows)
            column = TextColumn.of(matrix.slot, [g or o for g, o in zip(given, own, strict=True)])
        matrix.texts[derived.external] = column


def cause(reply: Reply) -> str:
    """A failed call in words: UNAVAILABLE: model is down."""
    return f"{Status(reply.status).name}: {reply.message}" if reply.message else Status(reply.status).name


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def _spread(slot: Slot, texts: Sequence[bytes], index: Rows) -> TextColumn:
    """A text column whose rows show the text of their line; "" for line −1."""
    column = TextColumn.of(slot, [*texts, b""])
    return TextColumn(column.heap, column.starts[index], column.sizes[index], constant=False)
