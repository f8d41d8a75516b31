"""The distinct keys of a component's rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from components import kernels
from components.onfs_wire import encode_keys
from shared.shm_matrix import Bytes, Rows, ShmMatrix, TextColumn

__all__ = ["Keys", "distinct_keys"]

HASH_BITS_PER_ROW = 2  # table places a row: half of them stay empty


class Keys:
    """The distinct keys of the rows, in order of their first row.

    `index` (int32 [rows]) is the number of each row's key, −1 where a part of it is empty: such a row has no key.
    """

    __slots__ = ("_first", "_heap", "_sizes", "_starts", "count", "index")

    def __init__(
        self,
        heap: Bytes,
        starts: npt.NDArray[np.int64],
        sizes: Rows,
        index: Rows,
        first: Rows,
    ) -> None:
        """starts, sizes [parts, rows] of `heap`; first [keys]: the first row of each key."""
        self.count = len(first)
        self.index = index
        self._heap = heap
        self._starts = starts
        self._sizes = sizes
        self._first = first

    def parts(self, key: int) -> tuple[bytes, ...]:
        """The parts of one key."""
        row = int(self._first[key])
        return tuple(
            self._heap[start : start + size].tobytes()
            for start, size in zip(self._starts[:, row].tolist(), self._sizes[:, row].tolist(), strict=True)
        )

    def encode(self, keys: Rows, *, reference: bool) -> bytes:
        """The `keys` entries of a Query for these keys (int32 [n]). Raises WireError when one is not UTF-8."""
        if not reference:
            rows = self._first[keys]
            parts = len(self._starts)
            room = int(self._sizes[:, rows].sum()) + len(rows) * (11 + 6 * parts)
            out = np.empty(room, np.uint8)
            size = kernels.encode_keys(self._heap, self._starts, self._sizes, rows, 0, len(rows), out)
            if size >= 0:
                return out[:size].tobytes()
        return encode_keys(self.parts(key) for key in keys.tolist())

    def rows_without(self, part: int) -> Rows:
        """The rows whose key has no value in this part."""
        empty = np.broadcast_to(self._sizes[part] == 0, self.index.shape)
        return np.flatnonzero(empty).astype(np.int32)

    def __repr__(self) -> str:
        return f"<Keys {self.count} of {len(self.index)} rows>"


def distinct_keys(matrix: ShmMatrix, columns: Sequence[int], *, reference: bool) -> Keys:
    """The distinct keys of all rows over these text columns (external ids)."""
    found = [matrix.texts[column] for column in columns]
    heap, starts, sizes, rows = _gathered(matrix, found)
    index = np.empty(rows, np.int32)
    first = np.empty(rows, np.int32)
    if reference:
        count = _distinct(heap, starts, sizes, index, first)
    else:
        table = np.empty(1 << (HASH_BITS_PER_ROW * max(rows, 1) - 1).bit_length(), np.int32)
        count = kernels.distinct_keys(heap, starts, sizes, table, index, first)
    if rows != matrix.rows:
        index = np.full(matrix.rows, index[0], np.int32)
    return Keys(heap, starts, sizes, index, first[:count])


def _gathered(
    matrix: ShmMatrix, columns: Sequence[TextColumn | None]
) -> tuple[Bytes, npt.NDArray[np.int64], Rows, int]:
    """The columns as one heap and [parts, rows] of places in it; one row when all columns are constant."""
    present = [column for column in columns if column is not None]
    rows = 1 if all(column.constant for column in present) else matrix.rows
    if len(present) == len(columns) == 1:
        only = present[0]
        return only.heap, only.starts.reshape(1, -1), only.sizes.reshape(1, -1), rows
    starts = np.zeros((len(columns), rows), np.int64)
    sizes = np.zeros((len(columns), rows), np.int32)
    heap, offsets = _one_heap(present)
    for number, column in enumerate(columns):
        if column is not None:
            starts[number] = column.starts
            starts[number] += offsets[id(column.heap)]
            sizes[number] = column.sizes
    return heap, starts, sizes, rows


def _one_heap(columns: Sequence[TextColumn]) -> tuple[Bytes, dict[int, int]]:
    """One heap for all columns, and the offset of each one's own in it. They usually share one already."""
    heaps = {id(column.heap): column.heap for column in columns}
    if not heaps:
        return np.empty(0, np.uint8), {}
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
