"""The distinct keys of a component's rows, and the query entries that ask for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from components import kernels
from components.columns import text_of
from components.onfs_wire import encode_keys
from components.scratch import scratch
from shared.feature_cache import Places
from shared.shm_matrix import Bytes, Rows, ShmMatrix, TextColumn, counting

__all__ = ["Keys", "all_numbers", "distinct_keys", "encoded_batches", "key_texts"]

QUERY_KEYS = 0x22  # field 4 of Query, length-delimited
KEYS_COLS = 0x0A  # field 1 of Keys, length-delimited

_ZEROS: Rows = np.zeros(1 << 14, np.int32)
_ONE_PART = tuple(bytes((QUERY_KEYS, size + 2, KEYS_COLS, size)) for size in range(126))
"""What stands before a key of one part in a query, by the size of that part: while all lengths have one byte."""


@functools.lru_cache(maxsize=1024)
def _zeros(rows: int) -> Rows:
    """The key of all rows is number 0; not to be written to."""
    return _ZEROS[:rows] if rows <= len(_ZEROS) else np.zeros(rows, np.int32)


@functools.lru_cache(maxsize=1024)
def all_numbers(count: int) -> Rows:
    """0 … count − 1, int32; not to be written to."""
    return counting(0, count)


@functools.lru_cache(maxsize=1024)
def _numbers(count: int, size: int) -> tuple[Rows, ...]:
    """0 … count − 1 in batches of `size`; not to be written to."""
    return tuple(counting(begin, min(begin + size, count)) for begin in range(0, count, size))


class Keys(Protocol):
    """The distinct keys of the rows, in order of their first row."""

    count: int
    index: Rows
    """int32 [rows]: the number of each row's key, −1 where a part of it is empty: such a row has no key."""
    gaps: bool
    """Whether some row has no key."""

    def parts(self, key: int) -> tuple[bytes, ...]:
        """The parts of one key."""
        ...

    def places(self) -> Places:
        """All keys, by the places of their parts."""
        ...

    def batches(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
        """These keys (int32 [n]) in batches of `size`: their numbers, and the `keys` entries of a Query for them.

        Raises WireError for a key that is not UTF-8.
        """
        ...

    def rows_without(self, part: int) -> Rows:
        """The rows whose key has no value in this part."""
        ...


def distinct_keys(matrix: ShmMatrix, columns: Sequence[int], batch: int | None, *, reference: bool) -> Keys:
    """The distinct keys of all rows over these text columns (external ids).

    `batch`: all of them will be asked for, in batches of so many; None: that is not known yet.
    """
    found = [key_texts(matrix, column) for column in columns]
    if all(column is None or column.constant for column in found):
        return _OneKey(matrix, found)
    heap, starts, sizes = _gathered(matrix.rows, found)
    if not reference and batch is not None:
        asked = _AskedKeys.ask(heap, starts, sizes, batch)
        if asked is not None:
            return asked
    return _ListedKeys(heap, starts, sizes, reference=reference)


def key_texts(matrix: ShmMatrix, column: int) -> TextColumn | None:
    """The texts of a key column (an external id): what came as a number is a key by its text form."""
    text, typed = matrix.texts[column], matrix.typed[column]
    if text is not None or typed is None:
        return text
    if typed.text.constant:
        return TextColumn.same(matrix.slot, text_of([typed.text.first()], typed.data_type)[0])
    return TextColumn.of(matrix.slot, text_of(typed.values(matrix.all_rows), typed.data_type))


def encoded_batches(keys: Keys, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
    """The reference of `Keys.batches`. Raises WireError likewise."""
    batches = [wanted[at : at + size] for at in range(0, len(wanted), size)]
    return [(batch, encode_keys(keys.parts(key) for key in batch.tolist())) for batch in batches]


class _OneKey:
    """All rows have one key: no column of it varies."""

    __slots__ = ("_columns", "_parts", "count", "gaps", "index")

    def __init__(self, matrix: ShmMatrix, columns: Sequence[TextColumn | None]) -> None:
        self._columns = columns
        self._parts = [b"" if column is None else column.first() for column in columns]
        self.gaps = b"" in self._parts
        self.count = 0 if self.gaps else 1
        self.index = np.full(matrix.rows, -1, np.int32) if self.gaps else _zeros(matrix.rows)

    def parts(self, key: int) -> tuple[bytes, ...]:
        return tuple(self._parts)

    def places(self) -> Places:
        heap, starts, sizes = _gathered(1, self._columns)
        return Places(heap, starts, sizes, _ZEROS[: self.count])

    def batches(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
        if not len(wanted):
            return []
        parts = self._parts
        if len(parts) == 1 and len(part := parts[0]) < len(_ONE_PART) and part.isascii():
            return [(wanted, _ONE_PART[len(part)] + part)]
        return encoded_batches(self, wanted, size)

    def rows_without(self, part: int) -> Rows:
        return np.empty(0, np.int32) if self._parts[part] else np.arange(len(self.index), dtype=np.int32)

    def __repr__(self) -> str:
        return f"<_OneKey {self._parts} of {len(self.index)} rows>"


class _ListedKeys:
    """Distinct keys by the place of their parts in a heap."""

    __slots__ = ("_first", "_heap", "_reference", "_sizes", "_starts", "count", "gaps", "index")

    def __init__(self, heap: Bytes, starts: npt.NDArray[np.int64], sizes: Rows, *, reference: bool) -> None:
        """starts, sizes [parts, rows] of `heap`."""
        rows = starts.shape[1]
        self.index = index = np.empty(rows, np.int32)
        self._first = first = np.empty(rows, np.int32)
        if reference:
            self.count = _distinct(heap, starts, sizes, index, first)
        else:
            self.count = kernels.distinct_keys(heap, starts, sizes, scratch.table(rows), index, first)
        self.gaps = self.count < rows and bool((index < 0).any())
        self._heap = heap
        self._starts = starts
        self._sizes = sizes
        self._reference = reference

    def parts(self, key: int) -> tuple[bytes, ...]:
        row = int(self._first[key])
        return tuple(
            self._heap[start : start + size].tobytes()
            for start, size in zip(self._starts[:, row].tolist(), self._sizes[:, row].tolist(), strict=True)
        )

    def places(self) -> Places:
        return Places(self._heap, self._starts, self._sizes, self._first[: self.count])

    def batches(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
        encoded = None if self._reference else self._encoded(wanted, size)
        return encoded_batches(self, wanted, size) if encoded is None else encoded

    def _encoded(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]] | None:
        """`batches` by a kernel; None when a key needs the reference: it is not ASCII."""
        firsts = self._first[wanted]
        ends = np.empty(len(wanted) // size + 1, np.int64)
        while True:
            out = scratch.out
            count = kernels.encode_batches(self._heap, self._starts, self._sizes, firsts, size, out, ends)
            if count != kernels.NO_ROOM:
                break
            scratch.grow_out()
        if count < 0:
            return None
        return _cut(out, ends, [wanted[at : at + size] for at in range(0, len(wanted), size)])

    def rows_without(self, part: int) -> Rows:
        return np.flatnonzero(self._sizes[part] == 0).astype(np.int32)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.count} of {len(self.index)} rows>"


class _AskedKeys(_ListedKeys):
    """The same, found and encoded in one go by a kernel."""

    __slots__ = ("_batches",)

    def __init__(
        self,
        heap: Bytes,
        starts: npt.NDArray[np.int64],
        sizes: Rows,
        index: Rows,
        first: Rows,
        count: int,
        gaps: bool,
        batches: list[tuple[Rows, bytes]],
    ) -> None:
        self.count = count
        self.index = index
        self.gaps = gaps
        self._heap = heap
        self._starts = starts
        self._sizes = sizes
        self._first = first
        self._reference = False
        self._batches = batches

    @classmethod
    def ask(cls, heap: Bytes, starts: npt.NDArray[np.int64], sizes: Rows, batch: int) -> _AskedKeys | None:
        """None when a key needs the reference: it is not ASCII."""
        rows = starts.shape[1]
        index = np.empty(rows, np.int32)
        first = np.empty(rows, np.int32)
        ends = np.empty(rows // batch + 2, np.int64)
        table = scratch.table(rows)
        while True:
            out = scratch.out
            count = kernels.ask_keys(heap, starts, sizes, batch, table, index, first, out, ends)
            if count != kernels.NO_ROOM:
                break
            scratch.grow_out()
        if count < 0:
            return None
        batches = _cut(out, ends, _numbers(count, batch))
        return cls(heap, starts, sizes, index, first, count, bool(ends[-1]), batches)

    def batches(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
        return self._batches


def _cut(out: Bytes, ends: npt.NDArray[np.int64], numbers: Sequence[Rows]) -> list[tuple[Rows, bytes]]:
    """The batches of keys that a kernel wrote one after the other, each with the numbers of its keys."""
    if not numbers:
        return []
    stops = ends[: len(numbers)].tolist()
    written = out[: stops[-1]].tobytes()
    batches = []
    at = 0
    for keys, end in zip(numbers, stops, strict=True):
        batches.append((keys, written[at:end]))
        at = end
    return batches


def _gathered(rows: int, columns: Sequence[TextColumn | None]) -> tuple[Bytes, npt.NDArray[np.int64], Rows]:
    """The columns as one heap and [parts, rows] of places in it."""
    if len(columns) == 1 and (only := columns[0]) is not None:
        return only.heap, only.starts.reshape(1, -1), only.sizes.reshape(1, -1)
    starts = np.zeros((len(columns), rows), np.int64)
    sizes = np.zeros((len(columns), rows), np.int32)
    heap, offsets = _one_heap([column for column in columns if column is not None])
    for number, column in enumerate(columns):
        if column is not None:
            starts[number] = column.starts
            starts[number] += offsets[id(column.heap)]
            sizes[number] = column.sizes
    return heap, starts, sizes


def _one_heap(columns: Sequence[TextColumn]) -> tuple[Bytes, dict[int, int]]:
    """One heap for all columns, and the offset of each one's own in it. They usually share one already."""
    heaps = {id(column.heap): column.heap for column in columns}
    if len(heaps) == 1:
        ((number, heap),) = heaps.items()
        return heap, {number: 0}
    offsets: dict[int, int] = {}
    at = 0
    for number, heap in heaps.items():
        offsets[number] = at
        at += len(heap)
    return np.concatenate(list(heaps.values())), offsets


def _distinct(heap: Bytes, starts: npt.NDArray[np.int64], sizes: Rows, index: Rows, first: Rows) -> int:
    """The reference of kernels.distinct_keys."""
    seen: dict[tuple[bytes, ...], int] = {}
    for row in range(starts.shape[1]):
        key = tuple(
            heap[start : start + size].tobytes()
            for start, size in zip(starts[:, row].tolist(), sizes[:, row].tolist(), strict=True)
        )
        if not all(key):
            index[row] = -1
            continue
        if key not in seen:
            first[len(seen)] = row
            seen[key] = len(seen)
        index[row] = seen[key]
    return len(seen)
