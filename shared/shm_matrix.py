"""The matrix of one request, in a slot of shared memory.

A **slot** belongs to one request from `MatrixPool.acquire` to `MatrixPool.release`; each reuse has a new
generation, so that a record which a dead or stale process left is recognised. A slot's memory is a list of
chunks: it grows by adding one, nothing ever moves, and a component that has written its block can hand out
views of it for as long as the request lives.

A **matrix** has `rows` rows and three kinds of columns:

- *blocks*, one per component and cell width: `CellBlock` (fixed width, C order) or `VarBlock` (offsets and
  bytes). Each is written once, by the component that owns it, and read by everybody after that. A block has
  one line per distinct key, and `index` says which line a row shows: a user's features are stored once, however
  many targets the request has;
- *texts*: string columns (entities, request features, composite keys), addressed by the plan's external ids;
- *typed*: request features that came as typed bytes, addressed likewise.

Allocation is locked where components run on several threads at once; everything else relies on each column
having one writer and on readers being started after it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from shared.datatypes import DataType
from shared.segments import Bytes, Segment

__all__ = [
    "ABSENT",
    "EMPTY",
    "IDENTITY",
    "ODD",
    "TEXTS_KEPT",
    "VALUE",
    "Block",
    "Bytes",
    "CellBlock",
    "MatrixFull",
    "MatrixPool",
    "Rows",
    "ShmMatrix",
    "Slot",
    "TextColumn",
    "TextTable",
    "TypedColumn",
    "VarBlock",
    "counting",
]

Rows = npt.NDArray[np.int32]
IDENTITY: Rows = np.empty(0, np.int32)  # stands for "line = row" where an array is needed

# States of a cell. "No value" is distinct from zero, and a value that the upstream says is empty is distinct
# from one that could not be asked for: only the latter may be replaced by what the request itself brought.
ABSENT = 0
VALUE = 1
EMPTY = 2
ODD = 3  # a value whose length does not fit the declared type, kept as it came

_NO_HEAP: Bytes = np.empty(0, np.uint8)
_COUNTING: Rows = np.arange(1 << 14, dtype=np.int32)
_FIRST: list[Rows] = [_COUNTING[:count] for count in range(513)]  # what most need: a view takes its time


def counting(start: int, stop: int) -> Rows:
    """start … stop − 1, not to be written to: most requests need the same few."""
    if not start and stop < len(_FIRST):
        return _FIRST[stop]
    return _COUNTING[start:stop] if stop <= len(_COUNTING) else np.arange(start, stop, dtype=np.int32)


ALIGN: Final = 64  # one cache line
SMALLEST_CHUNK: Final = 64 << 10
TEXTS_KEPT: Final = 2048  # places of texts that a slot keeps a table for: 24 kB
SEGMENT: Final = 8 << 20


class MatrixFull(Exception):
    """A request's matrix does not fit: the message names its size and the limit."""


class Chunk:
    """A power-of-two range of a segment."""

    __slots__ = ("bytes", "memory", "offset", "segment", "size")

    def __init__(self, segment: int, offset: int, bytes_: Bytes) -> None:
        self.segment = segment
        self.offset = offset
        self.bytes = bytes_
        self.size = len(bytes_)
        self.memory = bytes_.data  # what bytes are copied through, at a third of the cost

    def __repr__(self) -> str:
        return f"<Chunk {self.segment}:{self.offset} {self.size} bytes>"


class Slot:
    """The memory of one request: a bump allocator over chunks that its pool lends it."""

    def __init__(self, pool: MatrixPool, number: int) -> None:
        self.number = number
        self.generation = 0
        self.idle = True  # belongs to no request
        self.chunks: list[Chunk] = []
        self.size = 0  # bytes lent, over all chunks
        self.used = 0  # bytes asked for
        self._pool = pool
        self._at = 0
        self._texts: TextTable | None = None
        self._lock = threading.Lock() if pool.threads else None

    @property
    def limit(self) -> int:
        """Bytes that one request may take."""
        return self._pool.limit

    def place(self, size: int) -> tuple[Bytes, int]:
        """Room for `size` bytes, **not** zeroed: the whole chunk it is in, and where it starts there.

        Raises MatrixFull when the slot would grow over the limit of one request, or the pool is exhausted.
        """
        chunk, start = self._take(size)
        return chunk.bytes, start

    def _take(self, size: int) -> tuple[Chunk, int]:
        if self._lock is None:
            return self._taken(size)
        with self._lock:
            return self._taken(size)

    def _taken(self, size: int) -> tuple[Chunk, int]:
        chunk = self.chunks[-1] if self.chunks else None
        start = -self._at % ALIGN + self._at
        if chunk is None or start + size > chunk.size:
            chunk = self._pool.lend(self, size)
            start = 0
        self._at = start + size
        self.used += size
        return chunk, start

    def allocate(self, size: int) -> Bytes:
        """`size` bytes, uint8, aligned to a cache line, **not** zeroed. Raises MatrixFull."""
        heap, start = self.place(size)
        return heap[start : start + size]

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        """An uninitialised array of `shape` and `dtype` in this slot."""
        kind = np.dtype(dtype)
        size = kind.itemsize
        for extent in shape:
            size *= extent
        return self.allocate(size).view(kind).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        """A zeroed array of `shape` and `dtype` in this slot."""
        out = self.array(shape, dtype)
        out[...] = 0
        return out

    def copy(self, data: bytes | memoryview) -> tuple[Bytes, int]:
        """`data`, copied into this slot: the chunk it is in, and where it starts there."""
        size = len(data)
        chunk, start = self._take(size)
        chunk.memory[start : start + size] = data
        return chunk.bytes, start

    def texts(self, room: int) -> TextTable:
        """A table of at least so many places of texts, for the one reader of the request. A small one is kept."""
        if room > TEXTS_KEPT:
            return TextTable(room)
        table = self._texts
        if table is None:
            table = self._texts = TextTable(TEXTS_KEPT)
        return table

    def reset(self) -> list[Chunk]:
        """Takes the memory off this slot and returns it, but for a smallest chunk: most requests need no more."""
        self._at = self.used = 0
        if self.size == SMALLEST_CHUNK:  # one, and of this size
            return []
        kept = self.chunks[:1] if self.chunks and self.chunks[0].size == SMALLEST_CHUNK else []
        chunks = self.chunks[len(kept) :]
        self.chunks = kept
        self.size = SMALLEST_CHUNK * len(kept)
        return chunks

    def empty(self) -> list[Chunk]:
        """Takes all memory off this slot, which is idle, and returns it."""
        chunks, self.chunks = self.chunks, []
        self.size = 0
        return chunks

    def __repr__(self) -> str:
        return (
            f"<Slot {self.number} generation={self.generation} {len(self.chunks)} chunks, {self.size} bytes>"
        )


class MatrixPool:
    """The shared memory of one worker's matrices.

    `capacity` bounds what all requests in flight take together, `limit` what one request asks for, both in bytes.
    Segments are added as they are needed and kept. Chunks come in powers of two: a larger one is halved, and
    halves are put together again when nothing else is left.

    `threads`: how many others than the one that acquires and releases slots take memory for them. Without any,
    nothing is locked.
    """

    def __init__(
        self, capacity: int, limit: int, *, threads: int = 0, name: str = "inferflow-matrix"
    ) -> None:
        self.capacity = capacity
        self.limit = min(limit, capacity)
        self.name = name
        self.segments: list[Segment] = []
        self.reserved = 0  # bytes of all segments
        self.in_use = 0  # bytes of the slots that belong to a request
        self.threads = threads
        self._lock = threading.Lock() if threads else None
        self._free: dict[int, list[Chunk]] = {}  # by size
        self._slots: list[Slot] = []
        self._idle: list[Slot] = []

    @property
    def busy(self) -> int:
        """Slots that belong to a request."""
        return len(self._slots) - len(self._idle)

    def acquire(self) -> Slot:
        """An empty slot with a new generation."""
        if self._lock is None:
            return self._acquire()
        with self._lock:
            return self._acquire()

    def _acquire(self) -> Slot:
        if self._idle:
            slot = self._idle.pop()
        else:
            slot = Slot(self, len(self._slots))
            self._slots.append(slot)
        slot.idle = False
        slot.generation += 1
        self.in_use += slot.size
        return slot

    def release(self, slot: Slot) -> None:
        """Takes a slot back with all its memory. Views of it must not be used any more.

        Raises ValueError when it was released before: two requests would share it.
        """
        if self._lock is None:
            self._release(slot)
            return
        with self._lock:
            self._release(slot)

    def _release(self, slot: Slot) -> None:
        if slot.idle:
            raise ValueError(f"{slot!r} is released twice")
        slot.idle = True
        self.in_use -= slot.size
        for chunk in slot.reset():
            self._free.setdefault(chunk.size, []).append(chunk)
        self._idle.append(slot)

    def lend(self, slot: Slot, size: int) -> Chunk:
        """A chunk of at least `size` bytes for `slot`; called by the slot. Raises MatrixFull."""
        if slot.used + size > self.limit:
            raise MatrixFull(
                f"the request's matrix needs {slot.used + size} bytes, the limit is {self.limit} "
                "(INFERFLOW_MAX_MATRIX_BYTES)"
            )
        least = _power_of_two(max(size, SMALLEST_CHUNK))
        # Doubling keeps the chunks few, however often a request asks for a little.
        doubled = _power_of_two(max(least, slot.size))
        wanted = doubled if slot.size + doubled <= self.limit else least
        if self._lock is None:
            chunk = self._lend(wanted, least, size)
        else:
            with self._lock:
                chunk = self._lend(wanted, least, size)
        slot.chunks.append(chunk)
        slot.size += chunk.size
        return chunk

    def _lend(self, wanted: int, least: int, size: int) -> Chunk:
        """A chunk of `wanted` bytes, or of `least` when that is not to be had, for `size` bytes."""
        chunk = self._take(wanted) or self._take(least)
        if chunk is None:
            raise MatrixFull(
                f"the request's matrix needs {size} bytes more, and {self.in_use} of the "
                f"{self.capacity} bytes for matrices are in use (INFERFLOW_MATRIX_BYTES)"
            )
        self.in_use += chunk.size
        return chunk

    def _take(self, wanted: int) -> Chunk | None:
        """A free chunk of exactly this size (a power of two): as it is, from a larger one, or of new memory."""
        if free := self._free.get(wanted):
            return free.pop()
        chunk = self._split(wanted)
        if chunk is None and self._grow(wanted):
            chunk = self._split(wanted)
        if chunk is None:  # all memory is reserved: see what has come back in smaller pieces
            self._join()
            chunk = self._split(wanted)
        return chunk

    def _split(self, wanted: int) -> Chunk | None:
        """Halves the smallest free chunk that is large enough until it has this size."""
        sizes = [size for size, chunks in self._free.items() if chunks and size >= wanted]
        if not sizes:
            return None
        size = min(sizes)
        chunk = self._free[size].pop()
        while size > wanted:
            size //= 2
            upper = Chunk(chunk.segment, chunk.offset + size, chunk.bytes[size:])
            self._free.setdefault(size, []).append(upper)
            chunk = Chunk(chunk.segment, chunk.offset, chunk.bytes[:size])
        return chunk

    def _grow(self, wanted: int) -> bool:
        """Adds a segment with room for this size, as one free chunk; False when the capacity leaves none."""
        left = self.capacity - self.reserved
        if wanted > left:
            return False
        size = max(wanted, min(SEGMENT, _power_of_two(left + 1) // 2))
        try:
            segment = Segment(f"{self.name}-{len(self.segments)}", size)
        except OSError as error:
            raise MatrixFull(f"no shared memory for {size} bytes of matrix: {error}") from error
        self._free.setdefault(size, []).append(Chunk(len(self.segments), 0, segment.bytes))
        self.segments.append(segment)
        self.reserved += size
        return True

    def _join(self) -> None:
        """Puts free halves together again, also those that idle slots have kept."""
        for slot in self._idle:
            for chunk in slot.empty():
                self._free.setdefault(chunk.size, []).append(chunk)
        size = SMALLEST_CHUNK
        while size < max((segment.size for segment in self.segments), default=0):
            places = {(chunk.segment, chunk.offset): chunk for chunk in self._free.get(size, ())}
            for number, offset in list(places):
                lower, upper = (number, offset), (number, offset + size)
                if offset % (2 * size) == 0 and upper in places:
                    del places[lower], places[upper]
                    whole = self.segments[number].bytes[offset : offset + 2 * size]
                    self._free.setdefault(2 * size, []).append(Chunk(number, offset, whole))
            self._free[size] = list(places.values())
            size *= 2

    def close(self) -> None:
        """Gives the segments back; no slot may be in use."""
        for segment in self.segments:
            segment.close()
        self.segments.clear()

    def __repr__(self) -> str:
        return (
            f"<MatrixPool {self.busy} of {len(self._slots)} slots busy, "
            f"{self.in_use} of {self.reserved} bytes in use, capacity {self.capacity}>"
        )


def _power_of_two(size: int) -> int:
    """The smallest power of two that is not less than `size` (at least 1)."""
    return 1 << (size - 1).bit_length()


class TextColumn:
    """A string column: `rows` texts as places in a heap of UTF-8 bytes; an empty text means no value.

    The heap is a whole chunk of the slot, so that the columns of a request usually share one. A constant column
    (an entity with one id, a context feature) has one entry that all rows share; `only` is its text, for whoever
    has it at hand.
    """

    __slots__ = ("_only", "constant", "heap", "sizes", "starts")

    def __init__(
        self,
        heap: Bytes,
        starts: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int32],
        *,
        constant: bool,
        only: bytes | None = None,
    ) -> None:
        self.heap = heap
        self.starts = starts  # int64 [rows], or [1] when constant
        self.sizes = sizes  # int32, likewise
        self.constant = constant
        self._only = only

    @classmethod
    def of(cls, slot: Slot, texts: Sequence[bytes]) -> TextColumn:
        """A column of these texts, one a row."""
        count = len(texts)
        sizes = np.fromiter(map(len, texts), np.int32, count)
        heap, at = slot.copy(b"".join(texts))
        starts = np.empty(count, np.int64)
        if count:
            starts[0] = at
            np.cumsum(sizes[:-1], out=starts[1:])
            starts[1:] += at
        return cls(heap, starts, sizes, constant=False)

    @classmethod
    def same(cls, slot: Slot, text: bytes) -> TextColumn:
        """A column with the same text in all rows."""
        heap, at = slot.copy(text)
        starts, sizes = np.array([at], np.int64), np.array([len(text)], np.int32)
        return cls(heap, starts, sizes, constant=True, only=text)

    def first(self) -> bytes:
        """The text of the first row: of all rows when the column is constant."""
        if self._only is not None:
            return self._only
        start: int = self.starts.item(0)
        return self.heap[start : start + self.first_size()].tobytes()

    def first_size(self) -> int:
        """The bytes of the text of the first row."""
        if self._only is not None:
            return len(self._only)
        size: int = self.sizes.item(0)
        return size

    def texts(self, rows: Rows) -> list[bytes]:
        """The texts of `rows` (int32 [n])."""
        if self.constant:
            return [self.first()] * len(rows)
        return _cut(self.heap, self.starts[rows], self.sizes[rows])


class TextTable:
    """Places of texts in one heap: `starts` int64, `sizes` int32. Ordinary memory, for the columns of a request."""

    __slots__ = ("_ones", "_size_of", "_start_of", "sizes", "starts")

    def __init__(self, room: int) -> None:
        self.starts: npt.NDArray[np.int64] = np.empty(room, np.int64)
        self.sizes: npt.NDArray[np.int32] = np.empty(room, np.int32)
        # Single numbers are read through these at a third of the cost.
        self._start_of = self.starts.data
        self._size_of = self.sizes.data
        self._ones: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]] = {}

    def column(self, heap: Bytes, first: int, count: int) -> TextColumn:
        """The texts at these places, one a row."""
        stop = first + count
        return TextColumn(heap, self.starts[first:stop], self.sizes[first:stop], constant=False)

    def constant(self, heap: Bytes, place: int, body: bytes, at: int) -> TextColumn:
        """The text at this place, for all rows. `body` stands in the heap from `at` on, and the text in it."""
        found = self._ones.get(place)
        if found is None:
            found = self.starts[place : place + 1], self.sizes[place : place + 1]
            self._ones[place] = found
        start: int = self._start_of[place] - at
        size: int = self._size_of[place]
        starts, sizes = found
        return TextColumn(heap, starts, sizes, constant=True, only=body[start : start + size])

    def __repr__(self) -> str:
        return f"<TextTable of {len(self.starts)} places>"


def _cut(heap: Bytes, starts: npt.NDArray[np.int64], sizes: Rows) -> list[bytes]:
    """The pieces of `heap`; b"" for size 0, whatever the start."""
    view = heap.data
    return [
        bytes(view[a : a + n]) if n else b"" for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)
    ]


class TypedColumn:
    """A request feature that came as typed bytes: the raw values and their declared type.

    `text` has one entry a row, or a single one that all rows share; b"" means no value. `vector_dim` is what the
    request declared, 0 for a scalar or nothing.
    """

    __slots__ = ("data_type", "text", "vector_dim")

    def __init__(self, data_type: DataType, vector_dim: int, text: TextColumn) -> None:
        self.data_type = data_type
        self.vector_dim = vector_dim
        self.text = text

    def values(self, rows: Rows) -> list[bytes]:
        """The raw values of `rows` (int32 [n])."""
        return self.text.texts(rows)


class CellBlock:
    """Fixed-width cells of one component: `cells` [lines, columns, width], `states` [lines, columns], uint8.

    Both lie in `heap`, memory of the slot: kernels take it with `cells_at` and `states_at`, where they begin, and
    the arrays are views that are made when somebody asks for them; `flat` is `cells` in one dimension. `index`
    (int32 [rows]) says which line a row shows, -1 for none (then all its cells are ABSENT); None: line = row.
    """

    __slots__ = (
        "_flat", "_states", "cells_at", "columns", "heap", "index", "lines", "odd", "states_at", "width",
    )  # fmt: skip

    def __init__(
        self, heap: Bytes, lines: int, columns: int, width: int, cells_at: int, states_at: int
    ) -> None:
        """A block over memory that has room for it."""
        self.heap = heap
        self.lines = lines
        self.columns = columns
        self.width = width
        self.cells_at = cells_at
        self.states_at = states_at
        self.index: Rows | None = None
        self.odd: dict[tuple[int, int], bytes] = {}  # (line, column) → the value of an ODD cell
        self._flat: Bytes | None = None
        self._states: Bytes | None = None

    @classmethod
    def unwritten(cls, slot: Slot, lines: int, columns: int, width: int) -> CellBlock:
        """A block whose states are garbage until a kernel has written every one. Raises MatrixFull."""
        cells = lines * columns
        heap, at = slot.place(cells * (width + 1))
        return CellBlock(heap, lines, columns, width, at, at + cells * width)

    @classmethod
    def empty(cls, slot: Slot, lines: int, columns: int, width: int) -> CellBlock:
        """A block in which all cells are ABSENT. Raises MatrixFull."""
        block = cls.unwritten(slot, lines, columns, width)
        block.heap[block.states_at : block.states_at + lines * columns] = ABSENT
        return block

    @property
    def flat(self) -> Bytes:
        flat = self._flat
        if flat is None:
            size = self.lines * self.columns * self.width
            flat = self._flat = self.heap[self.cells_at : self.cells_at + size]
        return flat

    @property
    def states(self) -> Bytes:
        states = self._states
        if states is None:
            size = self.lines * self.columns
            flat = self.heap[self.states_at : self.states_at + size]
            states = self._states = flat.reshape(self.lines, self.columns)
        return states

    @property
    def cells(self) -> Bytes:
        return self.flat.reshape(self.lines, self.columns, self.width)

    def put(self, line: int, column: int, value: bytes) -> None:
        """Writes one cell from the bytes an upstream answered."""
        if len(value) == self.width:
            self.cells[line, column] = np.frombuffer(value, np.uint8)
            self.states[line, column] = VALUE
        elif not value:
            self.states[line, column] = EMPTY
        else:
            self.odd[line, column] = value
            self.states[line, column] = ODD

    def values(self, column: int, rows: Rows) -> list[bytes]:
        """Raw bytes of one column for `rows`: b"" where there is no value."""
        return self.line_values(column, rows if self.index is None else self.index[rows])

    def line_values(self, column: int, lines: Rows) -> list[bytes]:
        """Raw bytes of one column for block lines (-1: none)."""
        if not self.lines:
            return [b""] * len(lines)
        states = np.where(lines >= 0, self.states[lines, column], ABSENT).tolist()
        width = self.width
        packed = np.ascontiguousarray(self.cells[lines, column]).tobytes()
        return [
            packed[i * width : (i + 1) * width]
            if state == VALUE
            else self.odd[int(lines[i]), column]
            if state == ODD
            else b""
            for i, state in enumerate(states)
        ]


class VarBlock:
    """Variable-width cells (strings, vectors) of one component: `starts`, `sizes` [lines, columns] of `heap`.

    `states` and `index` are as in CellBlock; what has no VALUE has size 0. There are no ODD cells: every length
    fits. The heap is a whole chunk of the slot.
    """

    __slots__ = ("heap", "index", "sizes", "starts", "states")

    def __init__(self, starts: npt.NDArray[np.int64], sizes: Rows, states: Bytes) -> None:
        """A block over memory of the slot, [lines, columns] each."""
        self.starts = starts
        self.sizes = sizes
        self.states = states
        self.heap: Bytes = _NO_HEAP
        self.index: Rows | None = None

    @classmethod
    def empty(cls, slot: Slot, lines: int, columns: int) -> VarBlock:
        """A block in which all cells are ABSENT."""
        count = lines * columns
        arena = slot.allocate(13 * count)
        arena[:] = ABSENT
        shape = lines, columns
        return cls(
            arena[: 8 * count].view(np.int64).reshape(shape),
            arena[8 * count : 12 * count].view(np.int32).reshape(shape),
            arena[12 * count :].reshape(shape),
        )

    def fill(self, slot: Slot, cells: Iterable[tuple[int, int, bytes]]) -> None:
        """Writes (line, column, value) cells; to be called once, with all of them."""
        kept = list(cells)
        self.heap, at = slot.copy(b"".join(value for _, _, value in kept))
        for line, column, value in kept:
            self.starts[line, column] = at
            self.sizes[line, column] = len(value)
            self.states[line, column] = VALUE if value else EMPTY
            at += len(value)

    def values(self, column: int, rows: Rows) -> list[bytes]:
        """Raw bytes of one column for `rows`: b"" where there is no value."""
        return self.line_values(column, rows if self.index is None else self.index[rows])

    def line_values(self, column: int, lines: Rows) -> list[bytes]:
        """Raw bytes of one column for block lines (-1: none)."""
        if not len(self.sizes):
            return [b""] * len(lines)
        return _cut(
            self.heap,
            self.starts[lines, column],
            np.where(lines >= 0, self.sizes[lines, column], 0).astype(np.int32),
        )


Block = CellBlock | VarBlock


class ShmMatrix:
    """The matrix of one request (see the head of this module)."""

    __slots__ = ("all_rows", "blocks", "rows", "slot", "texts", "typed")

    def __init__(self, slot: Slot, rows: int, blocks: int, externals: int) -> None:
        """`blocks` and `externals` are how many the plan's layout has; all start unwritten."""
        self.slot = slot
        self.rows = rows
        self.blocks: list[Block | None] = [None] * blocks
        self.texts: list[TextColumn | None] = [None] * externals
        self.typed: list[TypedColumn | None] = [None] * externals
        self.all_rows: Rows = counting(0, rows)

    def __repr__(self) -> str:
        written = sum(block is not None for block in self.blocks)
        return f"<ShmMatrix {self.rows} rows, {written} of {len(self.blocks)} blocks written, {self.slot!r}>"
