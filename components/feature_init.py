"""The root of every DAG: builds the matrix from what the request brought.

Rows are the target ids in request order. What the config never mentions is left out: nobody could read it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dag.component import Scoring, Slates
from dag.layout import Layout
from dag.plan import Plan
from shared.datatypes import DataType
from shared.shm_matrix import MatrixFull, ShmMatrix, Slot, TextColumn, TypedColumn

__all__ = ["Brought", "BroughtSlates", "Column", "initialize"]

STRING, STRING_VECTOR = 14, 29  # DataType, as plain numbers: its properties cost more than all else here


class Column:
    """A column of a request: one value a row, or a single one for all rows.

    String values are texts; values of other types are raw bytes, b"" for no value. A TextColumn stands in the
    slot of the request's matrix already.
    """

    __slots__ = ("data_type", "name", "values", "vector_dim")

    def __init__(
        self, name: str, data_type: DataType, values: Sequence[bytes] | TextColumn, vector_dim: int = 0
    ) -> None:
        self.name = name
        self.data_type = data_type
        self.values = values
        self.vector_dim = vector_dim


class BroughtSlates:
    """The pairs or slates of a request: their target rows, as in dag.component.Slates, and their features."""

    __slots__ = ("bounds", "columns", "rows")

    def __init__(
        self, rows: npt.NDArray[np.int32], bounds: npt.NDArray[np.int64], columns: Sequence[Column]
    ) -> None:
        self.rows = rows
        self.bounds = bounds
        self.columns = columns


class Brought:
    """A request, checked: its rows and columns, whatever message it came in."""

    __slots__ = ("columns", "rows", "slates")

    def __init__(self, rows: int, columns: Sequence[Column], slates: BroughtSlates | None = None) -> None:
        self.rows = rows
        self.columns = columns
        self.slates = slates


def initialize(plan: Plan, brought: Brought, slot: Slot) -> Scoring:
    """The matrix of a request, and that of its slates, in `slot`. Raises MatrixFull."""
    matrix = _matrix(slot, plan.layout, brought.rows, brought.columns)
    for external, text in plan.constants:
        matrix.texts[external] = TextColumn.same(slot, text)
    own = brought.slates
    if own is None:
        return Scoring(matrix)
    slates = _matrix(slot, plan.slate_layout, len(own.bounds) - 1, own.columns)
    return Scoring(matrix, Slates(slates, own.rows, own.bounds))


def _matrix(slot: Slot, layout: Layout, rows: int, columns: Sequence[Column]) -> ShmMatrix:
    externals = layout.external
    matrix = ShmMatrix(slot, rows, len(layout.blocks), len(externals))
    for column in columns:
        external = externals.get(column.name)
        if external is None:
            continue
        values = column.values
        text = values if isinstance(values, TextColumn) else _text(slot, values)
        if text.constant:
            _check_spread(column.name, text.first_size(), rows, slot)
        kind: int = column.data_type
        if kind in (STRING, STRING_VECTOR):
            matrix.texts[external] = text
        else:
            matrix.typed[external] = TypedColumn(column.data_type, column.vector_dim, text)
    return matrix


def _text(slot: Slot, values: Sequence[bytes]) -> TextColumn:
    return TextColumn.same(slot, values[0]) if len(values) == 1 else TextColumn.of(slot, values)


def _check_spread(name: str, size: int, rows: int, slot: Slot) -> None:
    """Refuses a text that all rows share when it would not fit once for each: that is how models get it.

    Raises MatrixFull.
    """
    if size * rows > slot.limit:
        raise MatrixFull(
            f"column {name!r} has one value of {size} bytes for {rows} rows, which makes {size * rows} bytes: "
            f"the limit is {slot.limit} (INFERFLOW_MAX_MATRIX_BYTES)"
        )
