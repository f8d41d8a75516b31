"""The root of every DAG: builds the matrix from what the request brought.

Rows are the target ids in request order. What the config never mentions is left out: nobody could read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dag.component import Scoring, Slates
from dag.layout import Layout
from dag.plan import Plan
from shared.datatypes import DataType
from shared.shm_matrix import MatrixFull, ShmMatrix, Slot, TextColumn, TypedColumn

__all__ = ["Brought", "BroughtSlates", "Column", "Places", "initialize"]

NO_HEAP = np.empty(0, np.uint8)


class Places(NamedTuple):
    """Values by where they stand in the request's body: starts int64 [rows], sizes int32 [rows]."""

    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]


class Column(NamedTuple):
    """A column of a request: one value a row, or a single one for all rows.

    String values are texts; values of other types are raw bytes, b"" for no value.
    """

    name: str
    data_type: DataType
    values: Sequence[bytes] | Places
    vector_dim: int = 0


class BroughtSlates(NamedTuple):
    """The pairs or slates of a request: their target rows, as in dag.component.Slates, and their features."""

    rows: npt.NDArray[np.int32]
    bounds: npt.NDArray[np.int64]
    columns: Sequence[Column]


class Brought(NamedTuple):
    """A request, checked: its rows and columns, whatever message it came in."""

    rows: int
    columns: Sequence[Column]
    slates: BroughtSlates | None = None
    body: bytes = b""  # what Places stand in


def initialize(plan: Plan, brought: Brought, slot: Slot) -> Scoring:
    """The matrix of a request, and that of its slates, in `slot`. Raises MatrixFull."""
    texts = _Texts(slot, brought.body)
    matrix = _matrix(plan.layout, brought.rows, brought.columns, texts)
    for external, text in plan.constants:
        matrix.texts[external] = TextColumn.same(slot, text)
    if brought.slates is None:
        return Scoring(matrix)
    rows, bounds, columns = brought.slates
    slates = _matrix(plan.slate_layout, len(bounds) - 1, columns, texts)
    return Scoring(matrix, Slates(slates, rows, bounds))


class _Texts:
    """Makes text columns in a slot; the body is copied there once, however many columns stand in it."""

    def __init__(self, slot: Slot, body: bytes) -> None:
        self.slot = slot
        self._heap, self._at = slot.copy(body) if body else (NO_HEAP, 0)

    def spread(self, name: str, size: int, rows: int) -> None:
        """Refuses a text that all rows share when it would not fit once for each: that is how models get it.

        Raises MatrixFull.
        """
        if size * rows > self.slot.limit:
            raise MatrixFull(
                f"column {name!r} has one value of {size} bytes for {rows} rows, which makes {size * rows} bytes: "
                f"the limit is {self.slot.limit} (INFERFLOW_MAX_MATRIX_BYTES)"
            )

    def column(self, values: Sequence[bytes] | Places) -> TextColumn:
        if isinstance(values, Places):
            starts = values.starts + self._at
            return TextColumn(self._heap, starts, values.sizes, constant=len(starts) == 1)
        if len(values) == 1:
            return TextColumn.same(self.slot, values[0])
        return TextColumn.of(self.slot, values)


def _matrix(layout: Layout, rows: int, columns: Sequence[Column], texts: _Texts) -> ShmMatrix:
    matrix = ShmMatrix(texts.slot, rows, len(layout.blocks), len(layout.external))
    for column in columns:
        external = layout.external.get(column.name)
        if external is None:
            continue
        text = texts.column(column.values)
        if text.constant:
            texts.spread(column.name, int(text.sizes[0]), rows)
        if column.data_type.element is DataType.STRING:
            matrix.texts[external] = text
        else:
            matrix.typed[external] = TypedColumn(column.data_type, column.vector_dim, text)
    return matrix
