"""The distinct keys of a component's rows, and the query entries that ask for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy import empty, int32, int64, uint8

from components import value_kernels
from components.columns import text_of
from components.kernels import NO_ROOM, ask_keys, encode_batches, key_work
from components.kernels import distinct_keys as distinct
from components.key_kernels import gather_part, join_keys
from components.onfs_wire import encode_keys
from components.scratch import scratch
from shared.datatypes import DataType
from shared.feature_cache import KeyParts, Places
from shared.shm_matrix import Bytes, Rows, ShmMatrix, Slot, TextColumn, TypedColumn, counting

__all__ = ["Keys", "all_numbers", "distinct_keys", "encoded_batches", "key_texts", "spread"]

QUERY_KEYS = 0x22  # field 4 of Query, length-delimited
KEYS_COLS = 0x0A  # field 1 of Keys, length-delimited

_ZEROS: Rows = np.zeros(1 << 14, np.int32)
_FIRST_ROW: Rows = np.zeros(1, np.int32)
_NO_HEAP: Bytes = np.empty(0, np.uint8)
_NO_STARTS: npt.NDArray[np.int64] = np.empty(0, np.int64)
_NO_SIZES: Rows = np.empty(0, np.int32)
_ONE_PART = tuple(bytes((QUERY_KEYS, size + 2, KEYS_COLS, size)) for size in range(126))
"""What stands before a key of one part in a query, by the size of that part: while all lengths have one byte."""


@functools.lru_cache(maxsize=1024)
def _zeros(rows: int) -> Rows:
    """The key of all rows is number 0; not to be written to."""
    return _ZEROS[:rows] if rows <= len(_ZEROS) else np.zeros(rows, np.int32)


def all_numbers(count: int) -> Rows:
    """0 … count − 1, int32; not to be written to."""
    return counting(0, count)


@functools.lru_cache(maxsize=1024)
def _numbers(count: int, size: int) -> tuple[Rows, ...]:
    """0 … count − 1 in batches of `size`; not to be written to."""
    return tuple(counting(begin, min(begin + size, count)) for begin in range(0, count, size))


class Keys:
    """The distinct keys of the rows, in order of their first row.

    `index` int32 [rows]: the number of each row's key, −1 where a part of it is empty: such a row has no key.
    `gaps`: whether some row has none. `first_rows` int32 [`count` or longer]: by key, its first row.
    """

    __slots__ = ("count", "first_rows", "gaps", "index")

    def __init__(self, count: int, index: Rows, gaps: bool, first_rows: Rows) -> None:
        self.count = count
        self.index = index
        self.gaps = gaps
        self.first_rows = first_rows

    def parts(self, key: int) -> tuple[bytes, ...]:
        """The parts of one key."""
        raise NotImplementedError

    def places(self) -> Places:
        """All keys, by the places of their parts."""
        raise NotImplementedError

    def batches(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
        """These keys (int32 [n]) in batches of `size`: their numbers, and the `keys` entries of a Query for them.

        Raises WireError for a key that is not UTF-8.
        """
        raise NotImplementedError

    def rows_without(self, part: int) -> Rows:
        """The rows whose key has no value in this part."""
        raise NotImplementedError

    def joined(self, slot: Slot) -> TextColumn:
        """A text column: by row the parts of its key with `|` between them, "" for none. Raises MatrixFull."""
        return spread(slot, [b"|".join(self.parts(key)) for key in range(self.count)], self.index)


def distinct_keys(matrix: ShmMatrix, columns: Sequence[int], batch: int | None, *, reference: bool) -> Keys:
    """The distinct keys of all rows over these text columns (external ids).

    `batch`: all of them will be asked for, in batches of so many; None: that is not known yet.
    """
    found = [key_texts(matrix, column) for column in columns]
    for column in found:
        if column is not None and not column.constant:
            break
    else:
        return _OneKey(matrix.rows, found)
    gather = _gathered_reference if reference else _gathered
    gathered = gather(matrix.rows, found)
    if not reference and batch is not None:
        asked = _AskedKeys.ask(gathered, batch)
        if asked is not None:
            return asked
    return _ListedKeys.find(gathered, reference=reference)


def key_texts(matrix: ShmMatrix, column: int) -> TextColumn | None:
    """The texts of a key column (an external id): what came as a number is a key by its text form."""
    text, typed = matrix.texts[column], matrix.typed[column]
    if text is not None or typed is None:
        return text
    if typed.data_type is DataType.STRING:
        return typed.text
    if typed.text.constant:
        return TextColumn.same(matrix.slot, text_of([typed.text.first()], typed.data_type)[0])
    if not typed.data_type.is_vector:
        return _number_texts(matrix, typed)
    return TextColumn.of(matrix.slot, text_of(typed.values(matrix.all_rows), typed.data_type))


def _number_texts(matrix: ShmMatrix, typed: TypedColumn) -> TextColumn:
    """The text forms of a typed column of numbers, by a kernel."""
    rows, text = matrix.rows, typed.text
    heap, at = matrix.slot.place(rows * value_kernels.NUMBER_ROOM)
    starts, sizes = empty((1, rows), int64), empty((1, rows), int32)
    end = value_kernels.collect_texts(
        text.heap,
        text.starts,
        text.sizes,
        1,
        matrix.all_rows,
        int(typed.data_type),
        heap,
        at,
        starts,
        sizes,
        0,
    )
    assert end >= 0, end
    return TextColumn(heap, starts[0], sizes[0], constant=False)


def spread(slot: Slot, texts: Sequence[bytes], index: Rows) -> TextColumn:
    """A text column whose rows show the text of this number (int32 [rows]); "" for −1. Raises MatrixFull."""
    column = TextColumn.of(slot, [*texts, b""])
    return TextColumn(column.heap, column.starts[index], column.sizes[index], constant=False)


def encoded_batches(keys: Keys, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
    """The reference of `Keys.batches`. Raises WireError likewise."""
    batches = [wanted[at : at + size] for at in range(0, len(wanted), size)]
    return [(batch, encode_keys(keys.parts(key) for key in batch.tolist())) for batch in batches]


class _OneKey(Keys):
    """All rows have one key: no column of it varies."""

    __slots__ = ("_columns", "_parts")

    def __init__(self, rows: int, columns: Sequence[TextColumn | None]) -> None:
        parts = [b"" if column is None else column.first() for column in columns]
        self._columns = columns
        self._parts = parts
        if b"" in parts:
            super().__init__(0, np.full(rows, -1, np.int32), True, _FIRST_ROW)
        else:
            super().__init__(1, _zeros(rows), False, _FIRST_ROW)

    def parts(self, key: int) -> tuple[bytes, ...]:
        return tuple(self._parts)

    def places(self) -> Places:
        return Places(_gathered(1, self._columns), _FIRST_ROW, self.count)

    def batches(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
        if not len(wanted):
            return []
        parts = self._parts
        if len(parts) == 1 and len(part := parts[0]) < len(_ONE_PART) and part.isascii():
            return [(wanted, _ONE_PART[len(part)] + part)]
        return encoded_batches(self, wanted, size)

    def rows_without(self, part: int) -> Rows:
        return np.empty(0, np.int32) if self._parts[part] else np.arange(len(self.index), dtype=np.int32)

    def joined(self, slot: Slot) -> TextColumn:
        return TextColumn.same(slot, b"|".join(self._parts) if self.count else b"")

    def __repr__(self) -> str:
        return f"<_OneKey {self._parts} of {len(self.index)} rows>"


class _ListedKeys(Keys):
    """Distinct keys by the place of their parts in a heap. `work` is as kernels.key_work says."""

    __slots__ = ("_gathered", "_reference", "_work")

    def __init__(self, gathered: KeyParts, work: Rows, count: int, *, reference: bool) -> None:
        rows = gathered.rows
        gaps = count < rows and bool(work[2 * rows])
        super().__init__(count, work[rows : 2 * rows], gaps, work)
        self._gathered = gathered
        self._work = work
        self._reference = reference

    @classmethod
    def find(cls, gathered: KeyParts, *, reference: bool) -> _ListedKeys:
        work: Rows = empty(_work_size(gathered.rows), int32)
        find = _distinct if reference else distinct
        count: int = find(gathered.heap, gathered.starts, gathered.sizes, gathered.parts, gathered.rows, work)
        return cls(gathered, work, count, reference=reference)

    def parts(self, key: int) -> tuple[bytes, ...]:
        return _parts(self._gathered, int(self._work[key]))

    def places(self) -> Places:
        return Places(self._gathered, self._work, self.count)

    def batches(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
        encoded = None if self._reference else self._encoded(wanted, size)
        return encoded_batches(self, wanted, size) if encoded is None else encoded

    def _encoded(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]] | None:
        """`batches` by a kernel; None when a key needs the reference: it is not ASCII."""
        count = len(wanted)
        if not count:
            return []
        own, work = self._gathered, self._work
        if count > size:  # other components may use these keys in other threads: ends are noted in a copy
            work = work[: 2 * own.rows + 1 + (count + size - 1) // size].copy()
        memory = scratch()
        out = memory.out
        while True:
            written: int = encode_batches(
                own.heap, own.starts, own.sizes, own.parts, own.rows, work, wanted, size, out
            )
            if written != NO_ROOM:
                break
            out = memory.grow_out()
        if written < 0:
            return None
        if count <= size:
            return [(wanted, out[:written].tobytes())]
        batches = [wanted[at : at + size] for at in range(0, count, size)]
        return _cut(out, _ends(work, own.rows, len(batches)), batches)

    def rows_without(self, part: int) -> Rows:
        rows = self._gathered.rows
        sizes = self._gathered.sizes[part * rows : (part + 1) * rows]
        return np.flatnonzero(sizes == 0).astype(np.int32)

    def joined(self, slot: Slot) -> TextColumn:
        if self._reference:
            return super().joined(slot)
        own = self._gathered
        starts, sizes = empty(own.rows, int64), empty(own.rows, int32)
        memory = scratch()
        out = memory.out
        while True:
            size: int = join_keys(
                own.heap, own.starts, own.sizes, own.parts, own.rows,
                self.index, self.first_rows, out, starts, sizes,
            )  # fmt: skip
            if size != NO_ROOM:
                break
            out = memory.grow_out()
        assert size >= 0, size
        heap, at = slot.copy(out[:size].data)
        starts += at
        return TextColumn(heap, starts, sizes, constant=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.count} of {len(self.index)} rows>"


class _AskedKeys(_ListedKeys):
    """The same, found and encoded in one go by a kernel."""

    __slots__ = ("_batches",)

    def __init__(self, gathered: KeyParts, work: Rows, count: int, batch: int, out: Bytes) -> None:
        super().__init__(gathered, work, count, reference=False)
        if 0 < count <= batch:
            end = int(work[2 * gathered.rows + 1])
            self._batches = [(all_numbers(count), out[:end].tobytes())]
        else:
            numbers = _numbers(count, batch)
            self._batches = _cut(out, _ends(work, gathered.rows, len(numbers)), numbers)

    @classmethod
    def ask(cls, gathered: KeyParts, batch: int) -> _AskedKeys | None:
        """None when a key needs the reference: it is not ASCII."""
        work: Rows = empty(_work_size(gathered.rows), int32)
        memory = scratch()
        out = memory.out
        while True:
            count: int = ask_keys(
                gathered.heap,
                gathered.starts,
                gathered.sizes,
                gathered.parts,
                gathered.rows,
                work,
                batch,
                out,
            )
            if count != NO_ROOM:
                break
            out = memory.grow_out()
        return cls(gathered, work, count, batch, out) if count >= 0 else None

    def batches(self, wanted: Rows, size: int) -> list[tuple[Rows, bytes]]:
        return self._batches


@functools.lru_cache(maxsize=1024)
def _work_size(rows: int) -> int:
    return key_work(rows)


def _ends(work: Rows, rows: int, batches: int) -> list[int]:
    """Where so many batches end that a kernel wrote, as it noted them in `work`."""
    begin = 2 * rows + 1
    ends: list[int] = work[begin : begin + batches].tolist()
    return ends


def _cut(out: Bytes, ends: list[int], numbers: Sequence[Rows]) -> list[tuple[Rows, bytes]]:
    """The batches of keys that a kernel wrote one after the other, each with the numbers of its keys."""
    batches: list[tuple[Rows, bytes]] = []
    if ends:
        written: bytes = out[: ends[-1]].tobytes()
        at = 0
        for number, end in enumerate(ends):
            batches.append((numbers[number], written[at:end]))
            at = end
    return batches


def _parts(gathered: KeyParts, row: int) -> tuple[bytes, ...]:
    """The parts of the key of a row."""
    starts = gathered.starts[row :: gathered.rows].tolist()
    sizes = gathered.sizes[row :: gathered.rows].tolist()
    return tuple(
        gathered.heap[start : start + size].tobytes() for start, size in zip(starts, sizes, strict=True)
    )


def _gathered(rows: int, columns: Sequence[TextColumn | None]) -> KeyParts:
    """The columns as one heap: their own when they share one, as they usually do, else a copy of the texts."""
    parts = len(columns)
    first = columns[0]
    if parts == 1 and first is not None:
        return KeyParts(first.heap, first.starts, first.sizes, 1, rows)
    starts, sizes = empty(parts * rows, int64), empty(parts * rows, int32)
    heap = _shared_heap(columns)
    copies = heap is None
    out = _NO_HEAP if heap is not None else empty(_text_bytes(columns), uint8)
    at = 0
    for number, column in enumerate(columns):
        if column is None:
            at = gather_part(_NO_HEAP, _NO_STARTS, _NO_SIZES, number, rows, copies, out, at, starts, sizes)
        else:
            at = gather_part(
                column.heap, column.starts, column.sizes, number, rows, copies, out, at, starts, sizes
            )
        assert at >= 0, at
    return KeyParts(out if heap is None else heap, starts, sizes, parts, rows)


def _gathered_reference(rows: int, columns: Sequence[TextColumn | None]) -> KeyParts:
    """The reference of `_gathered`: all texts one after the other."""
    all_rows = all_numbers(rows)
    texts = [
        text for column in columns for text in ([b""] * rows if column is None else column.texts(all_rows))
    ]
    sizes = np.array([len(text) for text in texts], np.int32)
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    return KeyParts(np.frombuffer(b"".join(texts), np.uint8), starts, sizes, len(columns), rows)


def _shared_heap(columns: Sequence[TextColumn | None]) -> Bytes | None:
    """The heap that all columns are in; None when there are several."""
    shared: Bytes | None = None
    for column in columns:
        if column is None:
            continue
        if shared is not None and column.heap is not shared:
            return None
        shared = column.heap
    return _NO_HEAP if shared is None else shared


def _text_bytes(columns: Sequence[TextColumn | None]) -> int:
    """Bytes of all texts of the columns, that of a constant one once."""
    return sum(int(column.sizes.sum()) for column in columns if column is not None)


def _distinct(
    heap: Bytes, starts: npt.NDArray[np.int64], sizes: Rows, parts: int, rows: int, work: Rows
) -> int:
    """The reference of kernels.distinct_keys."""
    gathered = KeyParts(heap, starts, sizes, parts, rows)
    seen: dict[tuple[bytes, ...], int] = {}
    gaps = 0
    for row in range(rows):
        key = _parts(gathered, row)
        if not all(key):
            work[rows + row] = -1
            gaps += 1
            continue
        if key not in seen:
            work[len(seen)] = row
            seen[key] = len(seen)
        work[rows + row] = seen[key]
    work[2 * rows] = gaps
    return len(seen)
