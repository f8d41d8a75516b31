"""Fetched values that are keys: how an entity is derived from another one.

A fetched column that is a key column of some component is written into a text column of that name too: by row the
text form of its value. What a request brought under this name goes first.
"""

from __future__ import annotations

import numpy as np
from numpy import empty, int32, int64

from components.columns import text_of
from components.key_kernels import merge_texts, show_values
from components.keys import Keys, key_texts, spread
from components.value_kernels import NUMBER_ROOM, show_cells
from dag.layout import ByteColumn
from shared.datatypes import DataType
from shared.shm_matrix import Block, Rows, ShmMatrix, Slot, TextColumn, VarBlock

__all__ = ["DerivedKey"]


class DerivedKey:
    """A fetched column that is a key column: its texts go to the external column `external`. Immutable."""

    __slots__ = ("_column", "_external", "_kind")

    def __init__(self, column: ByteColumn, external: int) -> None:
        self._column = column
        self._external = external
        self._kind = int(column.data_type)

    def write(self, matrix: ShmMatrix, keys: Keys, *, reference: bool) -> None:
        """Writes the text column for lines that are handed over: one for each key. Raises MatrixFull."""
        block = matrix.blocks[self._column.block]
        assert block is not None
        shown = None if reference else self._shown(matrix.slot, block, keys)
        own = self._spread(matrix.slot, block, keys.index) if shown is None else shown
        brought = key_texts(matrix, self._external)
        if brought is not None:
            own = _merged(matrix, brought, own, reference=reference)
        matrix.texts[self._external] = own

    def _shown(self, slot: Slot, block: Block, keys: Keys) -> TextColumn | None:
        """The column by kernels; None when a value needs a closer look, or is a vector."""
        one = keys.count == 1 and not keys.gaps  # so is its text
        index = keys.first_rows[:1] if one else keys.index
        starts, sizes = empty(len(index), int64), empty(len(index), int32)
        place = self._column.column
        if isinstance(block, VarBlock):
            if self._column.data_type is not DataType.STRING:
                return None
            # The texts are in the slot already: the column looks at them where they are.
            code: int = show_values(block.starts, block.sizes, place, index, starts, sizes)
            assert code >= 0, code
            return TextColumn(block.heap, starts, sizes, constant=one)
        heap, at = slot.place(keys.count * NUMBER_ROOM)
        end: int = show_cells(
            block.heap, block.cells_at, block.states_at, block.lines, block.columns, place, self._kind,
            index, keys.first_rows, heap, at, starts, sizes,
        )  # fmt: skip
        return TextColumn(heap, starts, sizes, constant=one) if end >= 0 else None

    def _spread(self, slot: Slot, block: Block, index: Rows) -> TextColumn:
        """The reference of `_shown`."""
        lines = np.arange(len(block.states), dtype=np.int32)
        return spread(
            slot, text_of(block.line_values(self._column.column, lines), self._column.data_type), index
        )

    def __repr__(self) -> str:
        return f"<DerivedKey {self._column} as external column {self._external}>"


def _merged(matrix: ShmMatrix, brought: TextColumn, own: TextColumn, *, reference: bool) -> TextColumn:
    """What was brought; where that is empty, what was fetched. Raises MatrixFull."""
    if reference:
        given, fetched = brought.texts(matrix.all_rows), own.texts(matrix.all_rows)
        return TextColumn.of(matrix.slot, [g or f for g, f in zip(given, fetched, strict=True)])
    rows = matrix.rows
    starts, sizes = empty(rows, int64), empty(rows, int32)
    heap, at = matrix.slot.place(_bytes(brought, rows) + _bytes(own, rows))
    end: int = merge_texts(
        brought.heap,
        brought.starts,
        brought.sizes,
        own.heap,
        own.starts,
        own.sizes,
        rows,
        heap,
        at,
        starts,
        sizes,
    )
    assert end >= 0, end
    return TextColumn(heap, starts, sizes, constant=False)


def _bytes(column: TextColumn, rows: int) -> int:
    """Bytes that the texts of so many rows take."""
    size = int(column.sizes.sum())
    return size * rows if column.constant else size
