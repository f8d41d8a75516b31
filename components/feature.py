"""The feature component: fetches the features of one entity, each distinct key once.

The key of a row is the values of its key columns. A composite component also writes the joined key into a text
column of its own, and a fetched value that is the key of another component is written there as text: that is how
an entity is derived from another.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from components.cache import FeatureCache
from components.columns import text_of
from components.onfs_wire import WireError, decode_rows, encode_keys
from dag.component import Call, Endpoint, Reply, Scoring, Steps
from dag.layout import BlockSpec, ByteColumn
from rpc.status import Status
from shared.shm_matrix import EMPTY, ODD, VALUE, CellBlock, Rows, ShmMatrix, Slot, TextColumn, VarBlock

__all__ = ["CacheRule", "DerivedKey", "Feature", "FetchedBlock", "cause"]

Key = tuple[bytes, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class FetchedBlock:
    """One block of a feature component: its number, and which of the asked features are its columns."""

    number: int
    spec: BlockSpec
    asked: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class DerivedKey:
    """A fetched column that is a key column of some component: its text goes to an external column too."""

    column: ByteColumn
    external: int


@dataclasses.dataclass(frozen=True, slots=True)
class CacheRule:
    """How a component's rows are cached: under which prefix, how long (seconds)."""

    cache: FeatureCache
    prefix: bytes
    ttl: float


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
    features: int  # how many are asked for
    blocks: tuple[FetchedBlock, ...]
    derived: tuple[DerivedKey, ...]
    caching: CacheRule | None

    def run(self, scoring: Scoring) -> Steps:
        matrix = scoring.matrix
        distinct, index = self._distinct_keys(scoring)
        if self.composite is not None:
            joined = [b"|".join(key) for key in distinct]
            matrix.texts[self.composite] = _spread(matrix.slot, joined, index)
        if self.endpoint is None:
            return
        lines: list[Sequence[bytes] | None] = [None] * len(distinct)
        missing = self._look_up(distinct, lines)
        batches = [missing[at : at + self.batch_size] for at in range(0, len(missing), self.batch_size)]
        if batches:
            replies = yield [
                Call(self.endpoint, (self.head, encode_keys(distinct[line] for line in batch)), self.timeout)
                for batch in batches
            ]
            for batch, reply in zip(batches, replies, strict=True):
                self._take(scoring, distinct, index, lines, batch, reply)
        self._write(matrix, lines, index)
        for derived in self.derived:
            self._derive(matrix, derived)

    def fail(self, scoring: Scoring, cause: str) -> None:
        scoring.fail(self.name, cause)

    def _distinct_keys(self, scoring: Scoring) -> tuple[list[Key], Rows]:
        """The distinct keys in order of their first row, and which of them each row has (-1: none)."""
        matrix = scoring.matrix
        columns = [matrix.texts[external] for external in self.keys]
        seen: dict[Key, int] = {}
        if all(column is None or column.constant for column in columns):
            key = tuple(b"" if column is None else column.texts(matrix.all_rows[:1])[0] for column in columns)
            seen[key] = 0
            index = np.zeros(matrix.rows, np.int32)
        else:
            parts = [
                [b""] * matrix.rows if column is None else column.texts(matrix.all_rows) for column in columns
            ]
            index = np.fromiter(
                (seen.setdefault(key, len(seen)) for key in zip(*parts, strict=True)), np.int32, matrix.rows
            )
        distinct = list(seen)
        if all(map(all, distinct)):
            return distinct, index
        return self._without_gaps(scoring, distinct, index)

    def _without_gaps(self, scoring: Scoring, distinct: list[Key], index: Rows) -> tuple[list[Key], Rows]:
        """Takes keys with an empty part out: they are not sent upstream, their rows are marked."""
        number = np.full(len(distinct), -1, np.int32)
        whole: list[Key] = []
        for line, key in enumerate(distinct):
            if all(key):
                number[line] = len(whole)
                whole.append(key)
            else:
                empty = next(name for name, part in zip(self.key_columns, key, strict=True) if not part)
                rows = np.flatnonzero(index == line).astype(np.int32)
                scoring.fail(self.name, f"key column {empty!r} is empty", rows)
        return whole, number[index]

    def _look_up(self, distinct: Sequence[Key], lines: list[Sequence[bytes] | None]) -> list[int]:
        """Fills `lines` from the cache; returns the lines that are to be fetched."""
        rule = self.caching
        if rule is None:
            return list(range(len(distinct)))
        found = rule.cache.get_many([rule.prefix + b"|".join(key) for key in distinct])
        lines[:] = found
        return [line for line, columns in enumerate(found) if columns is None]

    def _take(
        self,
        scoring: Scoring,
        distinct: Sequence[Key],
        index: Rows,
        lines: list[Sequence[bytes] | None],
        batch: Sequence[int],
        reply: Reply,
    ) -> None:
        """Takes the answer of one batch, or marks the rows of its keys."""
        try:
            if reply.status:
                raise WireError(cause(reply))
            rows = decode_rows(reply.body, len(batch), self.features)
        except WireError as error:
            failed = np.flatnonzero(np.isin(index, batch)).astype(np.int32)
            scoring.fail(self.name, str(error), failed)
            return
        for line, columns in zip(batch, rows, strict=True):
            lines[line] = columns
        if (rule := self.caching) is not None:
            rule.cache.put_many(
                (
                    (rule.prefix + b"|".join(distinct[line]), tuple(columns))
                    for line, columns in zip(batch, rows, strict=True)
                    if columns[0]
                ),
                rule.ttl,
            )

    def _write(self, matrix: ShmMatrix, lines: Sequence[Sequence[bytes] | None], index: Rows) -> None:
        fetched = [line for line, columns in enumerate(lines) if columns is not None]
        values = [lines[line] for line in fetched]
        number = np.full(len(lines) + 1, -1, np.int32)  # the last one is where index == -1 looks
        number[fetched] = np.arange(len(fetched), dtype=np.int32)
        for block in self.blocks:
            write = _write_cells if block.spec.width else _write_var
            written = write(matrix.slot, block, values)  # type: ignore[arg-type]
            written.index = number[index]
            matrix.blocks[block.number] = written

    def _derive(self, matrix: ShmMatrix, derived: DerivedKey) -> None:
        """Writes the text form of a fetched column into its text column, where that is empty."""
        block = matrix.blocks[derived.column.block]
        assert block is not None
        assert block.index is not None
        lines = np.arange(len(block.states), dtype=np.int32)
        forms = text_of(block.line_values(derived.column.column, lines), derived.column.data_type)
        column = _spread(matrix.slot, forms, block.index)
        brought = matrix.texts[derived.external]
        if brought is not None:
            own = column.texts(matrix.all_rows)
            given = brought.texts(matrix.all_rows)
            column = TextColumn.of(matrix.slot, [g or o for g, o in zip(given, own, strict=True)])
        matrix.texts[derived.external] = column


def cause(reply: Reply) -> str:
    """A failed call in words: UNAVAILABLE: model is down."""
    return f"{Status(reply.status).name}: {reply.message}" if reply.message else Status(reply.status).name


def _spread(slot: Slot, texts: Sequence[bytes], index: Rows) -> TextColumn:
    """A text column whose rows show the text of their line; "" for line -1."""
    column = TextColumn.of(slot, [*texts, b""])
    return TextColumn(column.heap, column.starts[index], column.sizes[index], constant=False)


def _write_cells(slot: Slot, block: FetchedBlock, lines: Sequence[Sequence[bytes]]) -> CellBlock:
    width = block.spec.width
    shape = len(lines), len(block.asked)
    out = CellBlock(slot, *shape, width)
    values = [columns[asked] for columns in lines for asked in block.asked]
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    if not (lengths == width).all():
        blank = bytes(width)
        for at in np.flatnonzero((lengths != width) & (lengths != 0)).tolist():
            out.odd[divmod(at, shape[1])] = values[at]
        values = [value if len(value) == width else blank for value in values]
    out.cells[...] = np.frombuffer(b"".join(values), np.uint8).reshape(*shape, width)
    states = np.where(lengths == width, VALUE, np.where(lengths == 0, EMPTY, ODD))
    out.states[...] = states.astype(np.uint8).reshape(shape)
    return out


def _write_var(slot: Slot, block: FetchedBlock, lines: Sequence[Sequence[bytes]]) -> VarBlock:
    out = VarBlock(slot, len(lines), len(block.asked))
    out.fill(
        slot,
        (
            (line, column, columns[asked])
            for (line, columns), (column, asked) in itertools.product(
                enumerate(lines), enumerate(block.asked)
            )
        ),
    )
    return out
