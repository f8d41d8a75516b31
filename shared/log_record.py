"""The record of a lent slot: what the log sidecar needs besides the matrix to make sense of it.

The worker writes it into the slot itself, behind the matrix, when it hands the slot over. The cells stay where
the components wrote them; the record says where that is, as addresses in the worker, and holds the few arrays
that never were in shared memory (which line a row shows, where the texts of a column stand).

| bytes | what |
|---|---|
| 8 | the check word: stands there as long as the slot is lent, and 0 from the moment on when it is taken back |
| … | arrays, each at a multiple of 8 |
| rest | the head: `_Head`, as MessagePack |

The reader trusts nothing that it did not check: a place outside of the worker's segments and an index that names
no line raise RecordError, so that a torn record is refused and never read beyond its memory. What it hands out as
indices are copies, because a worker that believes the log sidecar gone may reuse the slot at any moment; the
check word, read once more when the rows are encoded, then tells.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shared.addresses import address
from shared.datatypes import DataType
from shared.shm_matrix import Bytes, CellBlock, MatrixPool, Rows, ShmMatrix, TextColumn, TypedColumn, VarBlock

__all__ = [
    "CHECK",
    "LoggedConfig",
    "Notes",
    "Record",
    "RecordError",
    "SegmentMap",
    "WrittenRecord",
    "check_word",
    "read_record",
    "write_record",
]

CHECK: Final = Struct("<Q")
_NONE: Final = -1  # in the place of an array: there is none


class RecordError(ValueError):
    """A record that does not describe a matrix in the worker's memory. The text says what is wrong."""


def check_word(slot: int, generation: int) -> int:
    """The check word of one loan of a slot: not 0, and another one at each reuse."""
    return ((generation * 0x9E3779B97F4A7C15 + slot + 1) & 0xFFFF_FFFF_FFFF_FFFF) or 1


# ---------------------------------------------------------------- what is written


class LoggedConfig(msgspec.Struct, frozen=True):
    """One version of a config, as the worker introduces it to the log sidecar."""

    model_config_id: str
    digest: str
    """SHA-256 of the document that is served."""
    service: msgspec.Raw
    """The service config, as JSON."""
    document: msgspec.Raw
    """The model config, as JSON."""


Failures = list[tuple[str, str, bytes | None]]
"""Component, cause, rows (int32; None: all)."""


class Notes(msgspec.Struct, array_like=True, frozen=True):
    """What is logged of a request besides its matrices."""

    method: int
    request_id: bytes
    tracking_id: str
    user_id: str
    parent_entity: str
    request_ns: int
    """Unix time in ns."""
    routes: dict[str, str]
    """Component → the endpoint that this request was routed to."""
    failures: Failures
    slate_failures: Failures = []
    slate_sizes: bytes = b""
    """int32: how many targets each slate names."""
    slate_targets: bytes = b""
    """int32: their rows, slate by slate."""


class _Cells(msgspec.Struct, array_like=True, tag=0, frozen=True):
    number: int
    width: int
    lines: int
    columns: int
    cells: int  # address
    states: int  # address
    index: int  # place in the record
    odd: list[tuple[int, int, bytes]]


class _Variable(msgspec.Struct, array_like=True, tag=1, frozen=True):
    number: int
    lines: int
    columns: int
    starts: int  # address
    sizes: int  # address
    states: int  # address
    heap: int  # address
    heap_bytes: int
    index: int  # place in the record


class _Text(msgspec.Struct, array_like=True, frozen=True):
    external: int
    constant: bool
    heap: int  # address
    heap_bytes: int
    starts: int  # place in the record
    sizes: int  # place in the record
    data_type: int = _NONE  # of a typed column
    vector_dim: int = 0


class _Matrix(msgspec.Struct, array_like=True, frozen=True):
    rows: int
    blocks: int
    externals: int
    written: list[_Cells | _Variable]
    texts: list[_Text]


class _Head(msgspec.Struct, array_like=True, frozen=True):
    matrix: _Matrix
    slates: _Matrix | None
    notes: Notes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Head)


class WrittenRecord(NamedTuple):
    """A record, ready to be copied into its slot."""

    data: bytes
    head: int
    """Where the head begins."""


class _Writer:
    """Collects the arrays of a record, each once."""

    __slots__ = ("_heaps", "_places", "at", "parts")

    def __init__(self, check: int) -> None:
        self.parts: list[bytes] = [CHECK.pack(check)]
        self.at = CHECK.size
        self._places: dict[int, int] = {}
        self._heaps: dict[int, int] = {}

    def place(self, array: npt.NDArray[Any]) -> int:
        """Where in the record a copy of this array stands. It is alive as long as the matrix: its id is its own."""
        found = self._places.get(id(array))
        if found is not None:
            return found
        data = array.tobytes()
        place = self._places[id(array)] = self.at
        padding = -len(data) & 7
        self.parts.append(data + bytes(padding) if padding else data)
        self.at += len(data) + padding
        return place

    def heap(self, heap: Bytes) -> int:
        """The address of a heap: columns share few."""
        found = self._heaps.get(id(heap))
        if found is None:
            found = self._heaps[id(heap)] = address(heap)
        return found

    def matrix(self, matrix: ShmMatrix) -> _Matrix:
        written: list[_Cells | _Variable] = []
        for number, block in enumerate(matrix.blocks):
            if block is None:
                continue
            index = _NONE if block.index is None else self.place(block.index)
            if isinstance(block, CellBlock):
                odd = [(*place, value) for place, value in block.odd.items()] if block.odd else []
                heap = self.heap(block.heap)
                cells, states = heap + block.cells_at, heap + block.states_at
                written.append(
                    _Cells(number, block.width, block.lines, block.columns, cells, states, index, odd)
                )
            else:
                lines, columns = block.states.shape
                starts, sizes, states = address(block.starts), address(block.sizes), address(block.states)
                heap = self.heap(block.heap)
                written.append(
                    _Variable(number, lines, columns, starts, sizes, states, heap, len(block.heap), index)
                )
        texts = [
            self._text(external, text, _NONE, 0)
            for external, text in enumerate(matrix.texts)
            if text is not None
        ]
        for external, typed in enumerate(matrix.typed):
            if typed is not None:
                texts.append(self._text(external, typed.text, int(typed.data_type), typed.vector_dim))
        return _Matrix(matrix.rows, len(matrix.blocks), len(matrix.texts), written, texts)

    def _text(self, external: int, text: TextColumn, kind: int, dim: int) -> _Text:
        starts, sizes = self.place(text.starts), self.place(text.sizes)
        heap = self.heap(text.heap)
        return _Text(external, text.constant, heap, len(text.heap), starts, sizes, kind, dim)


def write_record(matrix: ShmMatrix, slates: ShmMatrix | None, notes: Notes, check: int) -> WrittenRecord:
    """The record of a matrix, and of its slates, which are in the same slot."""
    writer = _Writer(check)
    head = _Head(writer.matrix(matrix), None if slates is None else writer.matrix(slates), notes)
    writer.parts.append(_encoder.encode(head))
    return WrittenRecord(b"".join(writer.parts), writer.at)


# ---------------------------------------------------------------- what is read


class _Pages:
    """Tells NumPy of read-only memory as if it could be written.

    The mapping is read-only, and the operating system sees to that. But the kernels that encode are compiled for
    ordinary arrays, and NumPy would mark these as another kind.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        start = np.frombuffer(self._map, np.uint8).ctypes.data
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (start, False), "version": 3}


class SegmentMap:
    """The segments of one worker, mapped for reading."""

    def __init__(self) -> None:
        self._bases: list[int] = []  # in the worker, ascending
        self._segments: list[Bytes] = []

    def add(self, fd: int, base: int, size: int) -> None:
        """Maps a segment; the descriptor stays the caller's. Raises OSError, ValueError."""
        at = bisect.bisect(self._bases, base)
        self._bases.insert(at, base)
        self._segments.insert(at, np.asarray(_Pages(fd, size)))

    def find(self, start: int, size: int) -> Bytes:
        """`size` bytes at this address of the worker. Raises RecordError when they are not in one segment."""
        if not size:
            return np.empty(0, np.uint8)
        at = bisect.bisect(self._bases, start) - 1
        if at >= 0 and size > 0:
            segment = self._segments[at]
            offset = start - self._bases[at]
            if offset + size <= len(segment):
                return segment[offset : offset + size]
        raise RecordError(f"{size} bytes at {start:#x} are in none of {len(self._bases)} segments")

    def __len__(self) -> int:
        return len(self._bases)

    def __repr__(self) -> str:
        return f"<SegmentMap {len(self)} segments, {sum(map(len, self._segments))} bytes>"


class Record(NamedTuple):
    """What a record describes: matrices over the worker's memory."""

    matrix: ShmMatrix
    slates: ShmMatrix | None
    notes: Notes


# Rebuilt matrices pretend to live in this slot. Nothing is ever written in it.
_NOWHERE = MatrixPool(64 << 10, 64 << 10, name="inferflow-nowhere").acquire()


class _Reader:
    def __init__(self, segments: SegmentMap, record: Bytes, head: int) -> None:
        self._segments = segments
        self._arrays = record[:head].tobytes()

    def _place(self, place: int, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        size = count * np.dtype(dtype).itemsize
        if place < CHECK.size or place + size > len(self._arrays):
            raise RecordError(
                f"array of {size} bytes at {place}: the record has {len(self._arrays)} of arrays"
            )
        return np.frombuffer(self._arrays, dtype, count, place)

    def _index(self, place: int, rows: int, lines: int) -> Rows | None:
        if place == _NONE:
            if lines and lines < rows:
                raise RecordError(f"a block has {lines} lines for {rows} rows")
            return None
        index = self._place(place, rows, np.int32).copy()
        if rows and (index.min() < -1 or index.max() >= lines):
            raise RecordError(f"an index goes from {index.min()} to {index.max()}, there are {lines} lines")
        return index

    def _heap(self, start: int, size: int) -> Bytes:
        return self._segments.find(start, size)

    def matrix(self, head: _Matrix) -> ShmMatrix:
        matrix = ShmMatrix(_NOWHERE, head.rows, head.blocks, head.externals)
        for block in head.written:
            if not 0 <= block.number < head.blocks:
                raise RecordError(f"block {block.number} of {head.blocks}")
            made = self._cells(block, head.rows) if isinstance(block, _Cells) else self._var(block, head.rows)
            matrix.blocks[block.number] = made
        for text in head.texts:
            if not 0 <= text.external < head.externals:
                raise RecordError(f"column {text.external} of {head.externals}")
            column = self._text(text, head.rows)
            if text.data_type == _NONE:
                matrix.texts[text.external] = column
            else:
                matrix.typed[text.external] = TypedColumn(DataType(text.data_type), text.vector_dim, column)
        return matrix

    def _cells(self, head: _Cells, rows: int) -> CellBlock:
        count = head.lines * head.columns
        start = min(head.cells, head.states)
        stop = max(head.cells + count * head.width, head.states + count)
        heap = self._segments.find(start, stop - start if count else 0)
        block = CellBlock(heap, head.lines, head.columns, head.width, head.cells - start, head.states - start)
        block.index = self._index(head.index, rows, head.lines)
        block.odd = {(line, column): value for line, column, value in head.odd}
        return block

    def _var(self, head: _Variable, rows: int) -> VarBlock:
        block = VarBlock.empty(_NOWHERE, 0, 0)
        count = head.lines * head.columns
        shape = head.lines, head.columns
        # Copies: places that change under the encoder would lead it out of the heap.
        block.starts = self._segments.find(head.starts, 8 * count).view(np.int64).reshape(shape).copy()
        block.sizes = self._segments.find(head.sizes, 4 * count).view(np.int32).reshape(shape).copy()
        block.states = self._segments.find(head.states, count).reshape(shape)
        block.heap = self._heap(head.heap, head.heap_bytes)
        block.index = self._index(head.index, rows, head.lines)
        _check_places(block.starts, block.sizes, len(block.heap))
        return block

    def _text(self, head: _Text, rows: int) -> TextColumn:
        count = 1 if head.constant else rows
        starts = self._place(head.starts, count, np.int64).copy()
        sizes = self._place(head.sizes, count, np.int32).copy()
        heap = self._heap(head.heap, head.heap_bytes)
        _check_places(starts, sizes, len(heap))
        return TextColumn(heap, starts, sizes, constant=head.constant)


def _check_places(starts: npt.NDArray[np.int64], sizes: Rows, heap: int) -> None:
    """Refuses values that are not in their heap; an empty one may stand anywhere."""
    if not sizes.size:
        return
    ends = np.where(sizes != 0, starts + sizes, 0)
    if sizes.min() < 0 or (starts[sizes != 0] < 0).any() or ends.max() > heap:
        raise RecordError(f"values end at {ends.max()}, their heap has {heap} bytes")


def read_record(
    segments: SegmentMap, start: int, length: int, head: int, *, rows: int | None = None
) -> Record:
    """The record at this address of the worker.

    Raises RecordError for one that is not whole.
    """
    record = segments.find(start, length)
    if not CHECK.size <= head <= length:
        raise RecordError(f"record of {length} bytes: its head begins at {head}")
    try:
        found = _decoder.decode(record[head:].tobytes())
        reader = _Reader(segments, record, head)
        slates = None if found.slates is None else reader.matrix(found.slates)
        read = Record(reader.matrix(found.matrix), slates, found.notes)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise RecordError(f"record of {length} bytes: {error}") from error
    described = _rows((read.matrix, read.slates))
    if rows is not None and described != rows:
        raise RecordError(f"record of {described} rows, announced were {rows}")
    return read


def _rows(matrices: Sequence[ShmMatrix | None]) -> int:
    return sum(matrix.rows for matrix in matrices if matrix is not None)
