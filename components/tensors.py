"""From matrix columns to the tensors of a model call.

One `TensorInput` is one input of the model: features side by side, each converted to the input's type. A missing
or unparsable value is zero (`0.0` as text); a vector is missing as zeros times its own dims. What does not fit at
all (a vector of another length than its place, a value of another length than its type) is zero too, and marks
its row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from components import numbers
from components.columns import byte_states, byte_values, cells, elements, fallback, text_of, texts
from dag.layout import Source
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, ODD, Rows, ShmMatrix

__all__ = ["Misfit", "Tensor", "TensorInput"]

NOTHING = b"0.0"  # the text of a missing value

Array = npt.NDArray[np.generic]


@dataclasses.dataclass(frozen=True, slots=True)
class Misfit:
    """A value that does not fit into its place: the position among the rows asked for, and why."""

    position: int
    reason: str


class Tensor:
    """The rows of one input: numeric as an array [rows, elements], BYTES as a list of texts per row."""

    __slots__ = ("_ends", "_numbers", "_packed", "shape")

    def __init__(
        self, shape: tuple[int, ...], numbers: Array | None, texts: Sequence[Sequence[bytes]]
    ) -> None:
        """`shape` of one row, free dims resolved; `texts` for a BYTES tensor."""
        self.shape = shape
        self._numbers = numbers
        self._packed = b""
        self._ends = [0]
        if numbers is None:
            rows = [b"".join(_prefixed(text) for text in row) for row in texts]
            self._packed = b"".join(rows)
            for row in rows:
                self._ends.append(self._ends[-1] + len(row))

    def raw(self, start: int, stop: int) -> bytes:
        """raw_input_contents of rows start … stop − 1."""
        if self._numbers is not None:
            return self._numbers[start:stop].tobytes()
        return self._packed[self._ends[start] : self._ends[stop]]


@dataclasses.dataclass(frozen=True)
class TensorInput:
    """One input of a model, compiled."""

    name: str
    data_type: DataType  # element type; STRING stands for BYTES
    shape: tuple[int, ...]  # of one row; at most one −1
    sources: tuple[Source, ...]

    @property
    def text_vector(self) -> bool:
        """Whether a text is read as a vector, its elements separated by ':'."""
        return len(self.sources) == 1 and self.shape[0] > 1

    def build(self, matrix: ShmMatrix, rows: Rows) -> tuple[Tensor, list[Misfit]]:
        """The tensor of these rows (int32 [n]), and the values that do not fit."""
        if self.data_type is DataType.STRING:
            return self._build_texts(matrix, rows)
        misfits: list[Misfit] = []
        columns: list[Array | _Ragged] = [
            self._column(matrix, source, rows, misfits) for source in self.sources
        ]
        counts = self._counts(columns)
        parts = [
            column.pad(count, misfits) if isinstance(column, _Ragged) else column
            for column, count in zip(columns, counts, strict=True)
        ]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        values = np.ascontiguousarray(values)
        return Tensor(self._resolved(values.shape[1]), values, ()), misfits

    def _column(
        self, matrix: ShmMatrix, source: Source, rows: Rows, misfits: list[Misfit]
    ) -> Array | _Ragged:
        byte = source.byte
        if byte is None:
            brought = fallback(matrix, source, rows)
            if brought is None:  # nowhere, so nothing says that it is a vector: one zero
                return np.zeros((len(rows), 1), self.data_type.dtype)
            return self._convert(source.name, *brought)
        if byte.width:
            found = cells(matrix, byte, rows)
            states = found.states
            out: Array | _Ragged = numbers.convert(found.values, byte.data_type.element, self.data_type)
            if (states == ODD).any():
                misfits += [
                    Misfit(
                        i,
                        f"the value of {source.name!r} does not have the length of its type {byte.data_type.label}",
                    )
                    for i in np.flatnonzero(states == ODD).tolist()
                ]
        else:
            states = byte_states(matrix, byte, rows)
            out = self._convert(source.name, byte.data_type, byte_values(matrix, byte, rows))
        absent = np.flatnonzero(states == ABSENT)
        if len(absent):
            brought = fallback(matrix, source, rows[absent])
            if brought is not None:
                out = _replace(out, absent, self._convert(source.name, *brought), source.name, self.data_type)
        return out

    def _convert(self, name: str, kind: DataType, values: Sequence[bytes]) -> Array | _Ragged:
        """Raw values of type `kind` as elements of the tensor; b"" is missing."""
        target = self.data_type
        if kind.element is DataType.STRING:
            if self.text_vector:
                return _Ragged(name, [numbers.parse_vector(v, target) if v else None for v in values], target)
            return numbers.parse(values, target).reshape(-1, 1)
        if kind.is_vector:
            return _Ragged(name, [_element_wise(raw, kind, target) for raw in values], target)
        size = kind.size
        blank = bytes(size)
        packed = b"".join(raw if len(raw) == size else blank for raw in values)
        present = np.fromiter((len(raw) == size for raw in values), bool, len(values))
        out = numbers.convert(np.frombuffer(packed, kind.dtype), kind, target)
        return np.where(present, out, np.zeros((), target.dtype)).reshape(-1, 1)

    def _counts(self, columns: Sequence[Array | _Ragged]) -> list[int]:
        """Elements a row of each column. What the shape does not say, the values themselves do."""
        ragged = [column for column in columns if isinstance(column, _Ragged)]
        fixed = sum(column.shape[1] for column in columns if not isinstance(column, _Ragged))
        share = 0
        if ragged and -1 not in self.shape:
            share, rest = divmod(math.prod(self.shape) - fixed, len(ragged))
            if rest or share < 1:
                share = 0
        return [
            (share or column.seen() or 1) if isinstance(column, _Ragged) else column.shape[1]
            for column in columns
        ]

    def _resolved(self, elements: int) -> tuple[int, ...]:
        if -1 not in self.shape:
            return self.shape
        known = -math.prod(self.shape)
        return tuple(elements // known if dim == -1 else dim for dim in self.shape)

    def _build_texts(self, matrix: ShmMatrix, rows: Rows) -> tuple[Tensor, list[Misfit]]:
        columns = [self._texts(matrix, source, rows) for source in self.sources]
        if self.text_vector and self._brought(matrix):
            wanted = math.prod(dim for dim in self.shape if dim > 0)
            lines = [
                [part or NOTHING for part in text.split(b":")] if text else [NOTHING] * wanted
                for text in columns[0]
            ]
        else:
            # A vector is one text, its elements joined by commas; a missing one is the text of its zeros
            # written one after the other, as the models have been trained to read it.
            blanks = [self._blank(source) for source in self.sources]
            lines = [
                [text or blank for text, blank in zip(line, blanks, strict=True)]
                for line in zip(*columns, strict=True)
            ]
        return Tensor(self._resolved(len(lines[0]) if lines else 1), None, lines), []

    def _blank(self, source: Source) -> bytes:
        if source.byte is None or not source.byte.data_type.is_vector:
            return NOTHING
        return NOTHING * math.prod(dim for dim in self.shape if dim > 0)

    def _brought(self, matrix: ShmMatrix) -> bool:
        """Whether the only source is a text of the request."""
        source = self.sources[0]
        return source.byte is None and matrix.texts[source.external] is not None

    def _texts(self, matrix: ShmMatrix, source: Source, rows: Rows) -> list[bytes]:
        """Text form of a column, "" for no value; what was not fetched is taken from the request."""
        own = texts(matrix, source, rows)
        byte = source.byte
        if byte is None:
            return own
        absent = np.flatnonzero(byte_states(matrix, byte, rows) == ABSENT)
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

    def seen(self) -> int:
        """Elements of the first row that has any."""
        return next((len(row) for row in self.rows if row is not None), 0)

    def pad(self, count: int, misfits: list[Misfit]) -> Array:
        """[rows, count]; a row of another length is zeros and a misfit."""
        out = np.zeros((len(self.rows), count), self.data_type.dtype)
        for position, row in enumerate(self.rows):
            if row is None:
                continue
            if len(row) == count:
                out[position] = row
            else:
                misfits.append(
                    Misfit(position, f"{self.name!r} has {len(row)} elements, the model takes {count}")
                )
        return out


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
