"""From matrix columns to the tensors of a model call.

One `TensorInput` is one input of the model: features side by side, each converted to the input's type. A missing
or unparsable value is zero (`0.0` as text); a vector is missing as zeros times its own dims. What does not fit at
all (a vector of another length than its place, vectors that together do not fill the shape, a value of another
length than its type) is zero too, and marks its row.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy import empty, int32, uint8

from components import numbers, tensor_kernels, value_kernels
from components.collect import TooMuchError, collect
from components.columns import byte_states, byte_values, cells, elements, fallback, once_each, text_of, texts
from components.kernels import NO_ROOM
from components.scratch import scratch
from components.tensor_kernels import CARRIERS, gather_cells
from dag.layout import ByteColumn, ColumnRun, Source, column_runs
from shared.datatypes import DataType
from shared.shm_matrix import (
    ABSENT,
    IDENTITY,
    ODD,
    Bytes,
    CellBlock,
    MatrixFull,
    Rows,
    ShmMatrix,
    TextColumn,
    VarBlock,
)

__all__ = ["Misfit", "PlainCells", "Tensor", "TensorInput"]

NOTHING = b"0.0"  # the text of a missing value

Array = npt.NDArray[np.generic]
Rows64 = npt.NDArray[np.int64]
NO_ENDS: Final[Rows64] = np.empty(0, np.int64)
NO_CARRIERS: Final[Rows64] = NO_ENDS
NO_INDEX: Final[Rows] = IDENTITY


class Misfit(NamedTuple):
    """A value that does not fit into its place: the position among the rows asked for, and why."""

    position: int
    reason: str


class Tensor:
    """The rows of one input: numeric as cells of a fixed width, BYTES as texts behind their lengths."""

    __slots__ = ("_cells", "_ends", "_packed", "shape")

    def __init__(self, shape: tuple[int, ...], cells: Bytes | None, packed: bytes, ends: Rows64) -> None:
        """`shape` of one row, free dims resolved; `cells` uint8 [rows, bytes] of a numeric tensor.

        Of a BYTES tensor, `packed` is the whole, and ends int64 [rows] says where each row ends in it.
        """
        self.shape = shape
        self._cells = cells
        self._packed = packed
        self._ends = ends

    @classmethod
    def of_numbers(cls, shape: tuple[int, ...], values: Array) -> Tensor:
        """`values` [rows, elements], C order."""
        return cls(shape, values.view(np.uint8), b"", NO_ENDS)

    @classmethod
    def of_texts(cls, shape: tuple[int, ...], texts: Sequence[Sequence[bytes]]) -> Tensor:
        """The texts of each row. Reference of value_kernels.write_texts."""
        rows = [b"".join(_prefixed(text) for text in row) for row in texts]
        ends = np.array(list(itertools.accumulate(map(len, rows))), np.int64)
        return cls(shape, None, b"".join(rows), ends)

    @property
    def cells(self) -> Bytes:
        """The numbers, uint8 [rows, bytes a row]. For numeric tensors."""
        assert self._cells is not None
        return self._cells

    def raws(self, bounds: Sequence[int]) -> list[bytes]:
        """raw_input_contents of the rows from each bound to the next."""
        if (cells := self._cells) is not None:
            packed: bytes = cells.tobytes()
            if len(bounds) == 2 and bounds[1] - bounds[0] == len(cells):
                return [packed]
            width: int = cells.shape[1]
            places = [width * bound for bound in bounds]
        else:
            packed = self._packed
            ends = (0, *self._ends.tolist())
            places = [ends[bound] for bound in bounds]
        return [packed[places[number] : places[number + 1]] for number in range(len(places) - 1)]


class PlainCells:
    """Cells of a block, side by side as its recipe says (`tensor_kernels.cell_recipe`)."""

    __slots__ = ("block", "recipe")

    def __init__(self, block: CellBlock, recipe: npt.NDArray[np.int32]) -> None:
        self.block = block
        self.recipe = recipe


class _Cells:
    """Neighbouring features of a tensor that are columns of one block and one type: gathered in one go."""

    __slots__ = ("_block", "_recipe", "_stays", "count", "externals")

    def __init__(self, columns: Sequence[ByteColumn], externals: Sequence[int], target: DataType) -> None:
        self.count = sum(column.count for column in columns)  # elements a row
        self.externals = tuple(externals)
        self._block = columns[0].block
        self._recipe = tensor_kernels.cell_recipe(
            columns[0].width, columns[0].data_type.element, target, [column.column for column in columns]
        )
        self._stays = columns[0].data_type is target

    def plain(self, matrix: ShmMatrix) -> PlainCells | None:
        """The cells themselves, when nothing is to be done to them but to copy those that have a value."""
        block = matrix.blocks[self._block]
        if not self._stays or block is None:
            return None
        assert isinstance(block, CellBlock)
        return PlainCells(block, self._recipe) if block.lines else None

    def elements(self, matrix: ShmMatrix, rows: Rows) -> int:
        return self.count

    def gather(
        self, matrix: ShmMatrix, rows: Rows, target: int, out: Bytes, at: int, count: int, size: int
    ) -> int:
        block = matrix.blocks[self._block]
        if block is None:
            out[:, at : at + self.count * size] = 0
            return len(rows)
        assert isinstance(block, CellBlock)
        if not block.lines:
            out[:, at : at + self.count * size] = 0
            return len(rows)
        index = block.index
        return gather_cells(
            block.heap, block.cells_at, block.states_at, block.columns,
            NO_INDEX if index is None else index, rows, self._recipe, out, at,
            NO_CARRIERS if self._stays else scratch().carriers(CARRIERS * self.count),
        )  # fmt: skip


class _Vectors:
    """A feature of a tensor that is a column of vectors of any length."""

    __slots__ = ("_block", "_column", "_element", "_source", "count", "externals")

    def __init__(self, column: ByteColumn, external: int, count: int) -> None:
        """`count`: elements a row; 0 when the values themselves decide."""
        self.count = count
        self.externals = (external,)
        self._block = column.block
        self._column = column.column
        self._source = int(column.data_type.element)
        self._element = column.data_type.size

    def elements(self, matrix: ShmMatrix, rows: Rows) -> int:
        if self.count:
            return self.count
        block = matrix.blocks[self._block]
        if block is None or not len(block.states):
            return 0
        assert isinstance(block, VarBlock)
        index = IDENTITY if block.index is None else block.index
        size = tensor_kernels.common_size(block.sizes, index, rows, self._column)
        return size // self._element if size > 0 and not size % self._element else 0

    def gather(
        self, matrix: ShmMatrix, rows: Rows, target: int, out: Bytes, at: int, count: int, size: int
    ) -> int:
        block = matrix.blocks[self._block]
        if block is None or not len(block.states):
            out[:, at : at + count * size] = 0
            return len(rows)
        assert isinstance(block, VarBlock)
        index = IDENTITY if block.index is None else block.index
        return tensor_kernels.gather_values(
            block.heap,
            block.starts,
            block.sizes,
            index,
            rows,
            self._column,
            count,
            self._source,
            target,
            out,
            at,
            NO_CARRIERS if self._source == target else scratch().carriers(CARRIERS * count),
        )


class _Texts:
    """The texts of some rows: that at position i has place lines[i] × step + first of those in `heap`; −1: none."""

    __slots__ = ("_first", "_heap", "_lines", "_sizes", "_starts", "_step")

    def __init__(self, heap: Bytes, starts: Rows64, sizes: Rows, step: int, first: int, lines: Rows) -> None:
        self._heap = heap
        self._starts = starts
        self._sizes = sizes
        self._step = step
        self._first = first
        self._lines = lines

    @classmethod
    def of_column(cls, text: TextColumn, rows: Rows) -> _Texts:
        return cls(text.heap, text.starts, text.sizes, 0 if text.constant else 1, 0, rows)

    @classmethod
    def of_block(cls, block: VarBlock, column: int, rows: Rows) -> _Texts:
        lines = rows if block.index is None else block.index[rows]
        return cls(
            block.heap, block.starts.reshape(-1), block.sizes.reshape(-1), block.sizes.shape[1], column, lines
        )

    def read(self, count: int, read_as: DataType, target: DataType, out: Bytes, at: int) -> Rows:
        """Reads `count` numbers of each text into out[i, at …]; returns the positions left to the reference."""
        lines = self._lines
        left = empty(len(lines), int32)
        missed: int = tensor_kernels.gather_numbers(
            self._heap, self._starts, self._sizes, self._step, self._first, lines,
            count, int(read_as), int(target), out, at, scratch().carriers(CARRIERS), left,
        )  # fmt: skip
        return left[:missed] if missed >= 0 else np.arange(len(lines), dtype=np.int32)

    def some(self, positions: Rows) -> list[bytes]:
        """The texts at these positions."""
        lines = self._lines[positions]
        places = lines * self._step + self._first
        starts = self._starts[places].tolist()
        sizes = np.where(lines >= 0, self._sizes[places], 0).tolist()
        return [self._heap[at : at + size].tobytes() for at, size in zip(starts, sizes, strict=True)]

    def distinct(self, positions: Rows) -> tuple[list[bytes], npt.NDArray[np.intp]]:
        """The texts at these positions, those of one place once, and which of them each position has."""
        places = self._lines[positions] * self._step + self._first
        _, first, which = np.unique(places, return_index=True, return_inverse=True)
        return self.some(positions[first]), which

    def fill(self, read_as: DataType, target: DataType, out: Bytes, at: int, size: int) -> None:
        """Writes the number of each text into out[i, at … at + size − 1]."""
        left = self.read(1, read_as, target, out, at)
        if len(left):
            # Where all rows share one text, they are all left.
            texts = self.some(left if self._step else left[:1])
            out[left, at : at + size] = _parsed(texts, read_as, target)


def _parsed(texts: Sequence[bytes], read_as: DataType, target: DataType) -> Bytes:
    """The numbers of texts, their bytes [texts, bytes]: the reference of `gather_numbers` where they are single."""
    values = numbers.convert(numbers.parse(texts, read_as), read_as, target)
    return values.view(np.uint8).reshape(len(texts), -1)


class _Strings:
    """A feature of a tensor that is a column of fetched texts, each of a number."""

    __slots__ = ("_block", "_column", "_read_as", "_target", "count", "externals")

    def __init__(self, column: ByteColumn, external: int, read_as: DataType, target: DataType) -> None:
        """`read_as`: what a text is read as before it is converted into `target`."""
        self.count = 1
        self.externals = (external,)
        self._block = column.block
        self._column = column.column
        self._read_as = read_as
        self._target = target

    def elements(self, matrix: ShmMatrix, rows: Rows) -> int:
        return 1

    def gather(
        self, matrix: ShmMatrix, rows: Rows, target: int, out: Bytes, at: int, count: int, size: int
    ) -> int:
        block = matrix.blocks[self._block]
        if block is None or not len(block.states):
            out[:, at : at + size] = 0
            return len(rows)
        assert isinstance(block, VarBlock)
        _Texts.of_block(block, self._column, rows).fill(self._read_as, self._target, out, at, size)
        return len(
            rows
        )  # any of them may be absent: that matters only when the request brought the same name


class _Brought:
    """A feature of a tensor that only a request may bring: a number, or the text of one."""

    __slots__ = ("_external", "_read_as", "_target", "count", "externals")

    def __init__(self, external: int, read_as: DataType, target: DataType) -> None:
        """`read_as`: what a text is read as before it is converted into `target`."""
        self.count = 1
        self.externals = ()
        self._external = external
        self._read_as = read_as
        self._target = target

    def elements(self, matrix: ShmMatrix, rows: Rows) -> int:
        return 1

    def gather(
        self, matrix: ShmMatrix, rows: Rows, target: int, out: Bytes, at: int, count: int, size: int
    ) -> int:
        typed = matrix.typed[self._external]
        text = matrix.texts[self._external]
        if typed is not None:
            kind, text = typed.data_type, typed.text
            if kind is not DataType.STRING:
                shown = np.zeros(len(rows), np.int32) if text.constant else rows
                return tensor_kernels.gather_values(
                    text.heap, text.starts.reshape(-1, 1), text.sizes.reshape(-1, 1), IDENTITY, shown,
                    0, 1, int(kind), target, out, at, scratch().carriers(CARRIERS),
                )  # fmt: skip
        if text is None:
            out[:, at : at + size] = 0
            return 0
        _Texts.of_column(text, rows).fill(self._read_as, self._target, out, at, size)
        return 0


_Part = _Cells | _Vectors | _Strings | _Brought


def _run_key(source: Source) -> tuple[int, int, int, int]:
    byte = source.byte
    return (-1, 0, 0, 0) if byte is None else (byte.block, byte.data_type, byte.count, byte.width)


class TensorInput:
    """One input of a model, compiled. Immutable."""

    def __init__(
        self,
        name: str,
        data_type: DataType,
        shape: tuple[int, ...],
        sources: tuple[Source, ...],
        *,
        text_types: tuple[DataType, ...] = (),
        reference: bool = False,
    ) -> None:
        """`data_type`: element type, STRING stands for BYTES. `shape` of one row, with at most one −1.

        `text_types`: what a text of the request is read as, per source, before it is converted; `data_type` by
        default. `reference`: always take the way that works cell by cell.
        """
        self.name = name
        self.data_type = data_type
        self.shape = shape
        self.sources = sources
        self._text_types = text_types or (data_type,) * len(sources)
        self._size = data_type.size
        self._target = int(data_type)
        self._is_text = data_type is DataType.STRING
        self._known = math.prod(dim for dim in shape if dim > 0)  # elements that the known dims make
        self._free = -1 in shape
        self._parts: tuple[_Part, ...] | None = None
        self._runs: tuple[ColumnRun, ...] | None = None
        # Elements of each part and of all, when no request changes them.
        self._fixed: tuple[int, ...] = ()
        self._elements = 0
        # Whether a text is read as a vector, its elements separated by ':'.
        self._text_vector = len(sources) == 1 and shape[0] > 1
        self._reads_vectors = self._text_vector and not (self._is_text or self._free or reference)
        if reference:
            return
        if self._is_text:
            self._runs = column_runs(sources)
            self._blanks = np.array(
                [len(self._blank(source)) // len(NOTHING) for source in sources], np.int32
            )
        else:
            self._parts = self._compiled_parts()
            counts = [part.count for part in self._parts or ()]
            if 0 not in counts and self._fits(sum(counts)):
                self._fixed, self._elements = tuple(counts), sum(counts)

    def _compiled_parts(self) -> tuple[_Part, ...] | None:
        """The sources by the kernels that read them; None when one of them has no kernel."""
        parts: list[_Part] = []
        for (block, kind, _, width), group in itertools.groupby(
            zip(self.sources, self._text_types, strict=True), key=lambda pair: _run_key(pair[0])
        ):
            members = list(group)
            columns = [source.byte for source, _ in members if source.byte is not None]
            externals = [source.external for source, _ in members]
            if width:
                parts.append(_Cells(columns, externals, self.data_type))
            elif block >= 0 and DataType(kind).size:
                parts += [
                    _Vectors(column, external, 0) for column, external in zip(columns, externals, strict=True)
                ]
            elif block >= 0 and self._text_vector:
                return None  # the texts of vectors, see `_vector_texts`
            else:
                parts += [self._text_part(source, text_type) for source, text_type in members]
        return self._with_counts(parts)

    def _text_part(self, source: Source, text_type: DataType) -> _Strings | _Brought:
        read_as = text_type.element if text_type.element.size else self.data_type
        if source.byte is None:
            return _Brought(source.external, read_as, self.data_type)
        return _Strings(source.byte, source.external, read_as, self.data_type)

    def _with_counts(self, parts: list[_Part]) -> tuple[_Part, ...]:
        """A single column of vectors takes what the others leave of the shape."""
        varying = [part for part in parts if not part.count]
        left = self._known - sum(part.count for part in parts)
        if len(varying) == 1 and not self._free and left > 0:
            varying[0].count = left
        return tuple(parts)

    def plain(self, matrix: ShmMatrix) -> PlainCells | None:
        """The cells that are the whole tensor as they are; None when there is more to it.

        For whoever can do without a copy of them. It is `build` that knows what becomes of a cell without a value.
        """
        parts = self._parts
        if parts is None or len(parts) != 1:
            return None
        part = parts[0]
        return part.plain(matrix) if isinstance(part, _Cells) else None

    def build(self, matrix: ShmMatrix, rows: Rows) -> tuple[Tensor, Sequence[Misfit]]:
        """The tensor of these rows (int32 [n]), and the values that do not fit.

        Raises MatrixFull where values say how many bytes there are, and that is more than one request may take.
        """
        if self._is_text:
            if self._runs is not None and (tensor := self._collect(matrix, rows, self._runs)) is not None:
                return tensor, ()
            return self._build_texts(matrix, rows)
        if self._reads_vectors and (found := self._vector_texts(matrix, rows)) is not None:
            return self._read_vectors(found, len(rows))
        if self._parts is not None and (tensor := self._gather(matrix, rows, self._parts)) is not None:
            return tensor, ()
        misfits: list[Misfit] = []
        columns = [self._column(matrix, number, rows, misfits) for number in range(len(self.sources))]
        counts = self._counts(columns)
        if not self._fits(sum(counts)) and not self._is_nowhere(matrix):
            # What the request left out is of any length then.
            columns = [
                _Ragged(source.name, [None] * len(rows), self.data_type)
                if self._left_out(matrix, source)
                else column
                for source, column in zip(self.sources, columns, strict=True)
            ]
            fitting = self._fitting(columns)
            if fitting is None:
                return self._blank_tensor(columns, sum(counts), misfits), misfits
            counts = fitting
        if self._free and sum(counts) * self._size * len(rows) > matrix.slot.limit:
            raise self._too_much(matrix)
        parts = [
            column.pad(count, misfits) if isinstance(column, _Ragged) else column
            for column, count in zip(columns, counts, strict=True)
        ]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        values = np.ascontiguousarray(values)
        return Tensor.of_numbers(self._resolved(values.shape[1]), values), misfits

    def _gather(self, matrix: ShmMatrix, rows: Rows, parts: Sequence[_Part]) -> Tensor | None:
        """The tensor by kernels; None when a cell needs a closer look."""
        if self._text_vector and self._brought(matrix):
            return None
        counts: Sequence[int] = self._fixed
        elements, size, target = self._elements, self._size, self._target
        if not elements:
            counts = [part.elements(matrix, rows) for part in parts]
            if 0 in counts:
                return None
            elements = sum(counts)
            if not self._fits(elements) and (self._free or not self._is_nowhere(matrix)):
                return None
        out = empty((len(rows), elements * size), uint8)
        at = 0
        for number, part in enumerate(parts):
            count = counts[number]
            absent = part.gather(matrix, rows, target, out, at, count, size)
            if absent < 0 or (absent and _any_brought(matrix, part.externals)):
                return None
            at += count * size
        return Tensor(self._resolved(elements), out, b"", NO_ENDS)

    def _vector_texts(self, matrix: ShmMatrix, rows: Rows) -> _Texts | None:
        """The texts that the only source consists of, `1:2:3` each; None when it is no text, or of two origins."""
        source = self.sources[0]
        byte, typed, text = source.byte, matrix.typed[source.external], matrix.texts[source.external]
        if byte is None:
            return None if typed is not None or text is None else _Texts.of_column(text, rows)
        block = matrix.blocks[byte.block]
        if byte.data_type.element is not DataType.STRING or typed is not None or text is not None:
            return None
        assert block is None or isinstance(block, VarBlock)
        return _Texts.of_block(block, byte.column, rows) if block is not None and len(block.states) else None

    def _read_vectors(self, texts: _Texts, rows: int) -> tuple[Tensor, list[Misfit]]:
        """The tensor of texts such as `1:2:3`."""
        count, kind = self._known, self.data_type
        out = empty((rows, count * self._size), uint8)
        misfits: list[Misfit] = []
        left = texts.read(count, kind, kind, out, 0)
        if len(left):
            lines, which = texts.distinct(left)
            found: list[Misfit] = []
            column = _Ragged(self.sources[0].name, numbers.parse_vectors(lines, kind), kind)
            out[left] = column.pad(count, found).view(np.uint8)[which]
            reasons = dict(found)
            misfits += [
                Misfit(position, reasons[number])
                for position, number in zip(left.tolist(), which.tolist(), strict=True)
                if number in reasons
            ]
        return Tensor(self._resolved(count), out, b"", NO_ENDS), misfits

    def _collect(self, matrix: ShmMatrix, rows: Rows, runs: Sequence[ColumnRun]) -> Tensor | None:
        """The tensor of texts by kernels; None when a cell needs a closer look."""
        if not len(rows):
            return None
        if self._text_vector and self._brought(matrix):
            return self._split_by_kernel(matrix, rows)
        try:
            found = collect(matrix, runs, rows, raw=False, limit=matrix.slot.limit)
        except TooMuchError:
            raise self._too_much(matrix) from None
        if found is None:
            return None
        for run in runs:
            if (
                run.block >= 0
                and _any_brought(matrix, run.externals)
                and not found.sizes[run.first : run.stop].all()
            ):
                return None  # maybe the request has what was not fetched
        ends = np.empty(len(rows), np.int64)
        memory = scratch()
        while True:
            size = value_kernels.write_texts(
                memory.heap, found.starts, found.sizes, self._blanks, memory.out, ends
            )
            if size != NO_ROOM:
                break
            self._make_room(matrix)
        assert size >= 0, size
        return Tensor(self._resolved(len(self.sources)), None, memory.written(size), ends)

    def _make_room(self, matrix: ShmMatrix) -> None:
        """Has a kernel more room to write in, while there is less than one request may take. Raises MatrixFull."""
        memory = scratch()
        if len(memory.out) >= matrix.slot.limit:
            raise self._too_much(matrix)
        memory.grow_out()

    def _too_much(self, matrix: ShmMatrix) -> MatrixFull:
        """The error of a tensor that takes more than one request may: values that all rows share add up."""
        scratch().trim()
        return MatrixFull(
            f"input {self.name!r} takes more bytes than one request may: "
            f"the limit is {matrix.slot.limit} (INFERFLOW_MAX_MATRIX_BYTES)"
        )

    def _split_by_kernel(self, matrix: ShmMatrix, rows: Rows) -> Tensor | None:
        """The tensor of texts such as `a:b:c`; None when one has another number of elements than others."""
        external = self.sources[0].external
        text = matrix.texts[external]
        if self._free or text is None or matrix.typed[external] is not None:
            return None
        ends = np.empty(len(rows), np.int64)
        memory = scratch()
        while True:
            size = value_kernels.write_split_texts(
                text.heap,
                text.starts,
                text.sizes,
                0 if text.constant else 1,
                rows,
                self._known,
                memory.out,
                ends,
            )
            if size != NO_ROOM:
                break
            self._make_room(matrix)
        return Tensor(self._resolved(self._known), None, memory.written(size), ends) if size >= 0 else None

    def _column(self, matrix: ShmMatrix, number: int, rows: Rows, misfits: list[Misfit]) -> Array | _Ragged:
        source = self.sources[number]
        byte = source.byte
        if byte is None:
            brought = fallback(matrix, source, rows)
            if brought is None:  # nowhere, so nothing says that it is a vector: one zero
                blank = self._known if self._free and len(self.sources) == 1 else 1
                return np.zeros((len(rows), blank), self.data_type.dtype)
            return self._convert(number, *brought)
        if byte.width:
            found = cells(matrix, byte, rows)
            states = found.states
            out: Array | _Ragged = numbers.convert(found.values, byte.data_type.element, self.data_type)
            misfits += _odd(source, states)
        else:
            states = byte_states(matrix, byte, rows)
            out = self._convert(number, byte.data_type, byte_values(matrix, byte, rows))
        absent = np.flatnonzero(states == ABSENT)
        if len(absent):
            brought = fallback(matrix, source, rows[absent])
            if brought is not None:
                out = _replace(out, absent, self._convert(number, *brought), source.name, self.data_type)
        return out

    def _convert(self, number: int, kind: DataType, values: Sequence[bytes]) -> Array | _Ragged:
        """Raw values of type `kind`, of one source, as elements of the tensor; b"" is missing."""
        name, target = self.sources[number].name, self.data_type
        if kind.element is DataType.STRING:
            if self._text_vector:
                return _Ragged(
                    name,
                    once_each(lambda text: numbers.parse_vector(text, target) if text else None, values),
                    target,
                )
            read_as = self._text_types[number].element
            if read_as is DataType.STRING:
                read_as = target
            return numbers.convert(numbers.parse(values, read_as), read_as, target).reshape(-1, 1)
        if kind.is_vector:
            return _Ragged(name, once_each(lambda raw: _element_wise(raw, kind, target), values), target)
        size = kind.size
        blank = bytes(size)
        packed = b"".join(raw if len(raw) == size else blank for raw in values)
        present = np.fromiter((len(raw) == size for raw in values), bool, len(values))
        out = numbers.convert(np.frombuffer(packed, kind.dtype), kind, target)
        return np.where(present, out, np.zeros((), target.dtype)).reshape(-1, 1)

    def _counts(self, columns: Sequence[Array | _Ragged]) -> list[int]:
        """Elements a row of each column. What the shape does not say, the values themselves do."""
        counts = [column.usual() if isinstance(column, _Ragged) else column.shape[1] for column in columns]
        ragged = [number for number, column in enumerate(columns) if isinstance(column, _Ragged)]
        if not ragged:
            return counts
        if self._free:
            blank = self._known if len(columns) == 1 else 1
            return [count or blank for count in counts]
        # A single vector takes what the others leave. Of several, those that no row has a value of share it.
        empty = ragged if len(ragged) == 1 else [number for number in ragged if not counts[number]]
        taken = sum(counts) - sum(counts[number] for number in empty)
        if empty:
            share, rest = divmod(self._known - taken, len(empty))
            for number in empty:
                counts[number] = share if share > 0 and not rest else counts[number] or 1
        return counts

    def _fits(self, elements: int) -> bool:
        """Whether so many elements a row are what the shape says."""
        return elements % self._known == 0 if self._free else elements == self._known

    def _is_nowhere(self, matrix: ShmMatrix) -> bool:
        """Whether the only source is neither fetched nor brought: it is one zero, whatever the shape."""
        return len(self.sources) == 1 and self._left_out(matrix, self.sources[0])

    def _left_out(self, matrix: ShmMatrix, source: Source) -> bool:
        return source.byte is None and not _any_brought(matrix, (source.external,))

    def _fitting(self, columns: Sequence[Array | _Ragged]) -> list[int] | None:
        """Elements a row of each column, so that they fill the shape; None when nothing says how they do.

        They are those of most of the rows that fill it.
        """
        counts = self._counts(columns)
        if self._fits(sum(counts)):
            return counts
        lengths = zip(*map(_lengths, columns), strict=True)
        whole = collections.Counter(row for row in lengths if all(row) and self._fits(sum(row)))
        return list(whole.most_common(1)[0][0]) if whole else None

    def _blank_tensor(
        self, columns: Sequence[Array | _Ragged], elements: int, misfits: list[Misfit]
    ) -> Tensor:
        """Zeros where most rows have so many elements that nothing says which places of the shape they take.

        All rows are misfits but those that have no value at all.
        """
        lengths = list(map(_lengths, columns))
        wanted = f"a multiple of {self._known}" if self._free else f"{self._known}"
        reason = f"input {self.name!r} has {elements} elements a row, the model takes {wanted}"
        misfits += [
            Misfit(position, reason) for position, row in enumerate(zip(*lengths, strict=True)) if any(row)
        ]
        zeros = np.zeros((len(lengths[0]), self._known), self.data_type.dtype)
        return Tensor.of_numbers(self._resolved(self._known), zeros)

    def _resolved(self, elements: int) -> tuple[int, ...]:
        if not self._free:
            return self.shape
        known = -math.prod(self.shape)
        return tuple(elements // known if dim == -1 else dim for dim in self.shape)

    def _build_texts(self, matrix: ShmMatrix, rows: Rows) -> tuple[Tensor, list[Misfit]]:
        misfits: list[Misfit] = []
        columns = [self._texts(matrix, source, rows, misfits) for source in self.sources]
        if self._text_vector and self._brought(matrix):
            lines = self._split(columns[0], misfits)
        else:
            # A vector is one text, its elements joined by commas; a missing one is the text of its zeros
            # written one after the other, as the models have been trained to read it.
            blanks = [self._blank(source) for source in self.sources]
            lines = [
                [text or blank for text, blank in zip(line, blanks, strict=True)]
                for line in zip(*columns, strict=True)
            ]
        size = 0
        for line in lines:
            size += 4 * len(line) + sum(map(len, line))
            if size > matrix.slot.limit:
                raise self._too_much(matrix)
        return Tensor.of_texts(self._resolved(len(lines[0]) if lines else 1), lines), misfits

    def _split(self, texts: Sequence[bytes], misfits: list[Misfit]) -> list[list[bytes]]:
        """Texts such as `a:b:c` as their elements, in every row the same number of them."""
        lines = once_each(lambda text: [part or NOTHING for part in text.split(b":")] if text else [], texts)
        count = self._known
        if self._free:
            count = _usual([len(line) for line in lines if line and self._fits(len(line))]) or count
        blank = [NOTHING] * count
        for position, line in enumerate(lines):
            if len(line) == count:
                continue
            if line:
                misfits.append(_wrong_count(position, self.sources[0].name, len(line), count))
            lines[position] = blank
        return lines

    def _blank(self, source: Source) -> bytes:
        if source.byte is None or not source.byte.data_type.is_vector:
            return NOTHING
        return NOTHING * self._known

    def _brought(self, matrix: ShmMatrix) -> bool:
        """Whether the only source is a text of the request."""
        source = self.sources[0]
        return source.byte is None and matrix.texts[source.external] is not None

    def _texts(self, matrix: ShmMatrix, source: Source, rows: Rows, misfits: list[Misfit]) -> list[bytes]:
        """Text form of a column, "" for no value; what was not fetched is taken from the request."""
        own = texts(matrix, source, rows)
        byte = source.byte
        if byte is None:
            return own
        states = byte_states(matrix, byte, rows)
        misfits += _odd(source, states)
        absent = np.flatnonzero(states == ABSENT)
        brought = fallback(matrix, source, rows[absent]) if len(absent) else None
        if brought is not None:
            for position, text in zip(absent.tolist(), text_of(brought[1], brought[0]), strict=True):
                own[position] = text
        return own


def _any_brought(matrix: ShmMatrix, externals: Sequence[int]) -> bool:
    """Whether the request brought a column of one of these names."""
    texts, typed = matrix.texts, matrix.typed
    return any(texts[external] is not None or typed[external] is not None for external in externals)


class _Ragged:
    """A column whose rows bring their own number of elements; None for a row without a value."""

    __slots__ = ("data_type", "name", "rows")

    def __init__(self, name: str, rows: list[Array | None], data_type: DataType) -> None:
        self.name = name
        self.rows = rows
        self.data_type = data_type

    def usual(self) -> int:
        """Elements of most rows; 0 when none has a value."""
        return _usual([len(row) for row in self.rows if row is not None])

    def pad(self, count: int, misfits: list[Misfit]) -> Array:
        """[rows, count]; a row of another length is zeros and a misfit."""
        out = np.zeros((len(self.rows), count), self.data_type.dtype)
        for position, row in enumerate(self.rows):
            if row is None:
                continue
            if len(row) == count:
                out[position] = row
            else:
                misfits.append(_wrong_count(position, self.name, len(row), count))
        return out


def _lengths(column: Array | _Ragged) -> list[int]:
    """Elements of each row; 0 of one without a value."""
    if isinstance(column, _Ragged):
        return [0 if row is None else len(row) for row in column.rows]
    return [column.shape[1]] * len(column)


def _usual(lengths: Sequence[int]) -> int:
    """The most frequent of these lengths, of equally frequent ones the first; 0 when there are none."""
    return collections.Counter(lengths).most_common(1)[0][0] if lengths else 0


def _wrong_count(position: int, name: str, count: int, wanted: int) -> Misfit:
    return Misfit(position, f"{name!r} has {count} elements, the model takes {wanted}")


def _odd(source: Source, states: npt.NDArray[np.uint8]) -> list[Misfit]:
    """The values of a fetched column that do not have the length of its type."""
    positions = np.flatnonzero(states == ODD).tolist()
    if not positions:
        return []
    assert source.byte is not None
    label = source.byte.data_type.label
    reason = f"the value of {source.name!r} does not have the length of its type {label}"
    return [Misfit(position, reason) for position in positions]


def _element_wise(raw: bytes, kind: DataType, target: DataType) -> Array | None:
    values = elements(raw, kind) if raw else None
    return None if values is None else numbers.convert(values, kind.element, target)


def _replace(
    column: Array | _Ragged,
    positions: npt.NDArray[np.intp],
    by: Array | _Ragged,
    name: str,
    target: DataType,
) -> Array | _Ragged:
    """`column` with the rows at `positions` taken from `by`."""
    if isinstance(column, _Ragged) or isinstance(by, _Ragged) or column.shape[1] != by.shape[1]:
        rows = _rows_of(column)
        for position, row in zip(positions.tolist(), _rows_of(by), strict=True):
            rows[position] = row
        return _Ragged(name, rows, target)
    column[positions] = by
    return column


def _rows_of(column: Array | _Ragged) -> list[Array | None]:
    return list(column.rows) if isinstance(column, _Ragged) else list(column)


def _prefixed(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + text
