"""From matrix columns to the tensors of a model call.

One `TensorInput` is one input of the model: features side by side, each converted to the input's type. A missing
or unparsable value is zero (`0.0` as text); a vector is missing as zeros times its own dims. What does not fit at
all (a vector of another length than its place, a value of another length than its type) is zero too, and marks
its row.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components import kernels, numbers
from components.columns import byte_states, byte_values, cells, elements, fallback, text_of, texts
from dag.layout import ByteColumn, Source
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, IDENTITY, ODD, CellBlock, Rows, ShmMatrix

__all__ = ["Misfit", "Tensor", "TensorInput"]

NOTHING = b"0.0"  # the text of a missing value

Array = npt.NDArray[np.generic]


class Misfit(NamedTuple):
    """A value that does not fit into its place: the position among the rows asked for, and why."""

    position: int
    reason: str


class Tensor:
    """The rows of one input: numeric as an array [rows, elements], BYTES as a list of texts per row."""

    __slots__ = ("_ends", "_packed", "shape", "values")

    def __init__(
        self, shape: tuple[int, ...], values: Array | None, texts: Sequence[Sequence[bytes]]
    ) -> None:
        """`shape` of one row, free dims resolved; `texts` for a BYTES tensor, whose `values` is None."""
        self.shape = shape
        self.values = values
        self._packed = b""
        self._ends = [0]
        if values is None:
            rows = [b"".join(_prefixed(text) for text in row) for row in texts]
            self._packed = b"".join(rows)
            for row in rows:
                self._ends.append(self._ends[-1] + len(row))

    def raw(self, start: int, stop: int) -> bytes:
        """raw_input_contents of rows start … stop − 1."""
        if self.values is not None:
            return self.values[start:stop].tobytes()
        return self._packed[self._ends[start] : self._ends[stop]]


class _Run:
    """Neighbouring features of a tensor that are columns of one block and one type: gathered in one go."""

    __slots__ = ("block", "columns", "data_type", "externals", "first", "stop", "width")

    def __init__(self, columns: Sequence[ByteColumn], externals: Sequence[int], first: int) -> None:
        """`first`: the element of the tensor where the run begins."""
        self.block = columns[0].block
        self.data_type = columns[0].data_type.element
        self.width = columns[0].width
        self.columns = np.array([column.column for column in columns], np.int32)
        self.externals = tuple(externals)
        self.first = first
        self.stop = first + sum(column.count for column in columns)

    def brought(self, matrix: ShmMatrix) -> bool:
        """Whether the request brought a column of one of these names."""
        return any(
            matrix.texts[external] is not None or matrix.typed[external] is not None
            for external in self.externals
        )


def _runs(sources: Sequence[Source]) -> tuple[_Run, ...] | None:
    """The sources as runs; None when one of them is no fixed-width column."""
    runs: list[_Run] = []
    first = 0
    for (_, _, _, width), group in itertools.groupby(sources, key=_run_key):
        if not width:
            return None
        members = list(group)
        columns = [source.byte for source in members if source.byte is not None]
        runs.append(_Run(columns, [source.external for source in members], first))
        first = runs[-1].stop
    return tuple(runs)


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
        self._runs = None if reference or data_type is DataType.STRING else _runs(sources)

    @property
    def text_vector(self) -> bool:
        """Whether a text is read as a vector, its elements separated by ':'."""
        return len(self.sources) == 1 and self.shape[0] > 1

    def build(self, matrix: ShmMatrix, rows: Rows) -> tuple[Tensor, list[Misfit]]:
        """The tensor of these rows (int32 [n]), and the values that do not fit."""
        if self.data_type is DataType.STRING:
            return self._build_texts(matrix, rows)
        if self._runs is not None:
            gathered = self._gather(matrix, rows, self._runs)
            if gathered is not None:
                return Tensor(self._resolved(gathered.shape[1]), gathered, ()), []
        misfits: list[Misfit] = []
        columns = [self._column(matrix, number, rows, misfits) for number in range(len(self.sources))]
        counts = self._counts(columns)
        parts = [
            column.pad(count, misfits) if isinstance(column, _Ragged) else column
            for column, count in zip(columns, counts, strict=True)
        ]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        values = np.ascontiguousarray(values)
        return Tensor(self._resolved(values.shape[1]), values, ()), misfits

    def _gather(self, matrix: ShmMatrix, rows: Rows, runs: Sequence[_Run]) -> Array | None:
        """The tensor by kernels, [rows, elements]; None when a cell needs a closer look."""
        size = self.data_type.size
        out = np.empty((len(rows), runs[-1].stop * size), np.uint8)
        values: Array = out.view(self.data_type.dtype)
        for run in runs:
            block = matrix.blocks[run.block]
            if block is None or not len(block.states):
                out[:, run.first * size : run.stop * size] = 0
                absent = 1
            else:
                assert isinstance(block, CellBlock)
                if block.odd:
                    return None
                index = IDENTITY if block.index is None else block.index
                if run.data_type is self.data_type:
                    absent = kernels.gather(
                        block.flat, block.states, index, rows, run.columns, run.width, out, run.first * size
                    )
                else:
                    raw = np.empty((len(rows), len(run.columns) * run.width), np.uint8)
                    absent = kernels.gather(
                        block.flat, block.states, index, rows, run.columns, run.width, raw, 0
                    )
                    values[:, run.first : run.stop] = numbers.convert(
                        raw.view(run.data_type.dtype), run.data_type, self.data_type
                    )
            if absent and run.brought(matrix):
                return None
        return values

    def _column(self, matrix: ShmMatrix, number: int, rows: Rows, misfits: list[Misfit]) -> Array | _Ragged:
        source = self.sources[number]
        byte = source.byte
        if byte is None:
            brought = fallback(matrix, source, rows)
            if brought is None:  # nowhere, so nothing says that it is a vector: one zero
                return np.zeros((len(rows), 1), self.data_type.dtype)
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
            if self.text_vector:
                return _Ragged(name, [numbers.parse_vector(v, target) if v else None for v in values], target)
            read_as = self._text_types[number].element
            if read_as is DataType.STRING:
                read_as = target
            return numbers.convert(numbers.parse(values, read_as), read_as, target).reshape(-1, 1)
        if kind.is_vector:
            return _Ragged(name, [_element_wise(raw, kind, target) for raw in values], target)
        size = kind.size
        blank = bytes(size)
        packed = b"".join(raw if len(raw) == size else blank for raw in values)
        present = np.fromiter((len(raw) == size for raw in values), bool, len(values))
        out = numbers.convert(np.frombuffer(packed, kind.dtype), kind, target)
        return np.where(present, out, np.zeros((), target.dtype)).reshape(-1, 1)

    @property
    def _known(self) -> int:
        """Elements that the known dims of the shape make."""
        return math.prod(dim for dim in self.shape if dim > 0)

    def _counts(self, columns: Sequence[Array | _Ragged]) -> list[int]:
        """Elements a row of each column. What the shape does not say, the values themselves do."""
        counts = [column.usual() if isinstance(column, _Ragged) else column.shape[1] for column in columns]
        ragged = [number for number, column in enumerate(columns) if isinstance(column, _Ragged)]
        if not ragged:
            return counts
        if -1 in self.shape:
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

    def _resolved(self, elements: int) -> tuple[int, ...]:
        if -1 not in self.shape:
            return self.shape
        known = -math.prod(self.shape)
        return tuple(elements // known if dim == -1 else dim for dim in self.shape)

    def _build_texts(self, matrix: ShmMatrix, rows: Rows) -> tuple[Tensor, list[Misfit]]:
        misfits: list[Misfit] = []
        columns = [self._texts(matrix, source, rows, misfits) for source in self.sources]
        if self.text_vector and self._brought(matrix):
            lines = self._split(columns[0], misfits)
        else:
            # A vector is one text, its elements joined by commas; a missing one is the text of its zeros
            # written one after the other, as the models have been trained to read it.
            blanks = [self._blank(source) for source in self.sources]
            lines = [
                [text or blank for text, blank in zip(line, blanks, strict=True)]
                for line in zip(*columns, strict=True)
            ]
        return Tensor(self._resolved(len(lines[0]) if lines else 1), None, lines), misfits

    def _split(self, texts: Sequence[bytes], misfits: list[Misfit]) -> list[list[bytes]]:
        """Texts such as `a:b:c` as their elements, in every row the same number of them."""
        lines = [[part or NOTHING for part in text.split(b":")] if text else [] for text in texts]
        count = self._known
        if -1 in self.shape:
            count = _usual([len(line) for line in lines if line]) or count
        for position, line in enumerate(lines):
            if len(line) == count:
                continue
            if line:
                misfits.append(_wrong_count(position, self.sources[0].name, len(line), count))
            lines[position] = [NOTHING] * count
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
