"""The memory that fetched features go into: the blocks of one feature component, one line per distinct key.

All fixed-width cells and all states lie in one arena, so that a kernel can write an answered row wherever its
values belong; variable ones go to a heap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from components import kernels
from components.onfs_wire import decode_rows
from components.wire import WireError
from dag.layout import BlockSpec
from shared.shm_matrix import EMPTY, VALUE, Bytes, CellBlock, Rows, ShmMatrix, Slot, VarBlock

__all__ = ["FetchedBlock", "FetchedLayout", "Lines"]

TABLES_KEPT = 1024  # numbers of lines whose table is kept: at most 40 bytes a feature each
NO_STARTS = np.empty((0, 0), np.int64)
NO_SIZES = np.empty((0, 0), np.int32)
NO_HEAP = np.empty(0, np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class FetchedBlock:
    """One block of a feature component: its number, and which of the asked features are its columns."""

    number: int
    spec: BlockSpec
    asked: tuple[int, ...]


class FetchedLayout:
    """Where the values of an answered row go. Every offset is so many bytes a line, times the lines.

    Widths descend (8, 4, 2, 1, then the states), so that cells are aligned whatever the number of lines.
    """

    def __init__(self, blocks: Sequence[FetchedBlock], features: int) -> None:
        self.features = features
        self.fixed = sorted((b for b in blocks if b.spec.width), key=lambda b: -b.spec.width)
        self.variable = next((b for b in blocks if not b.spec.width), None)
        self.blocks = [*self.fixed, *([self.variable] if self.variable else [])]
        self._tables: dict[int, npt.NDArray[np.int64]] = {}
        self._constant = np.zeros((features, 5), np.int64)
        self._per_line = np.zeros((features, 5), np.int64)
        self.cells_at: list[int] = []  # by fixed block: bytes a line before its cells
        at = 0
        for block in self.fixed:
            self.cells_at.append(at)
            at += block.spec.width * len(block.asked)
        self.states_at: list[int] = []  # by block, the variable one last: bytes a line before its states
        for block in self.blocks:
            self.states_at.append(at)
            at += len(block.asked)
        self.line_bytes = at
        for number, block in enumerate(self.blocks):
            width = block.spec.width
            for column, asked in enumerate(block.asked):
                constant, per_line = self._constant[asked], self._per_line[asked]
                constant[kernels.WIDTH] = width
                constant[kernels.CELLS] = column * (width or 1)
                constant[kernels.STRIDE] = width * len(block.asked)
                constant[kernels.STATES] = column
                constant[kernels.STATE_STRIDE] = len(block.asked)
                if width:
                    per_line[kernels.CELLS] = self.cells_at[number]
                per_line[kernels.STATES] = self.states_at[number]

    def table(self, lines: int) -> npt.NDArray[np.int64]:
        """The table that kernels.read_result writes by, for this many lines; not to be written to."""
        table = self._tables.get(lines)
        if table is None:
            table = self._constant + self._per_line * lines
            if len(self._tables) < TABLES_KEPT:
                self._tables[lines] = table
        return table


class Lines:
    """The lines of one request: unwritten (ABSENT) until an answer is read into them."""

    def __init__(self, layout: FetchedLayout, slot: Slot, count: int) -> None:
        self._layout = layout
        self._table = layout.table(count)
        self._arena = slot.allocate(layout.line_bytes * count)
        states = layout.states_at[0] * count if layout.states_at else 0
        self._arena[states:] = 0
        self._blocks: list[tuple[int, CellBlock]] = []
        for number, block in enumerate(layout.fixed):
            size = block.spec.width * len(block.asked) * count
            start = layout.cells_at[number] * count
            self._blocks.append(
                (
                    block.number,
                    CellBlock(
                        self._arena[start : start + size], self._states(number, count), block.spec.width
                    ),
                )
            )
        self._var: VarBlock | None = None
        if layout.variable is not None:
            self._var = VarBlock(slot, count, len(layout.variable.asked))
            self._var.states = self._states(len(layout.fixed), count)
        self._heap: Bytes = NO_HEAP
        self._heap_at = 0

    def _states(self, number: int, count: int) -> Bytes:
        start = self._layout.states_at[number] * count
        columns = len(self._layout.blocks[number].asked)
        return self._arena[start : start + columns * count].reshape(count, columns)

    def expect(self, slot: Slot, size: int) -> None:
        """Makes room for the variable values of answers of `size` bytes together."""
        if self._var is not None:
            heap, self._heap_at = slot.place(size)
            self._var.heap = heap
            self._heap = heap[: self._heap_at + size]

    def read(self, body: bytes, lines: Rows, *, reference: bool) -> None:
        """Reads a Result with a row for each of `lines` (int32 [n]).

        Raises WireError when the body is no Result, or has other numbers of rows or values.
        """
        if not reference:
            starts, sizes = (
                (NO_STARTS, NO_SIZES) if self._var is None else (self._var.starts, self._var.sizes)
            )
            at = kernels.read_result(
                np.frombuffer(body, np.uint8),
                lines,
                self._table,
                self._arena,
                starts,
                sizes,
                self._heap,
                self._heap_at,
            )
            if at >= 0:
                self._heap_at = at
                return
        self._read_reference(body, lines)

    def _read_reference(self, body: bytes, lines: Rows) -> None:
        rows = decode_rows(body, len(lines), self._layout.features)
        for line, values in zip(lines.tolist(), rows, strict=True):
            for (_, block), spec in zip(self._blocks, self._layout.fixed, strict=True):
                for column, asked in enumerate(spec.asked):
                    block.put(line, column, values[asked])
            if self._var is not None and self._layout.variable is not None:
                for column, asked in enumerate(self._layout.variable.asked):
                    self._put_text(self._var, line, column, values[asked])

    def _put_text(self, block: VarBlock, line: int, column: int, value: bytes) -> None:
        end = self._heap_at + len(value)
        if end > len(self._heap):
            raise WireError("the values of an answer are longer than the answer")
        self._heap[self._heap_at : end] = np.frombuffer(value, np.uint8)
        block.starts[line, column] = self._heap_at
        block.sizes[line, column] = len(value)
        block.states[line, column] = VALUE if value else EMPTY
        self._heap_at = end

    def has_first(self, line: int) -> bool:
        """Whether the first feature asked for has a value that fits: only then a line is worth caching."""
        state = self._table[0, kernels.STATES] + line * self._table[0, kernels.STATE_STRIDE]
        return bool(self._arena[state] == VALUE) and not any(block.odd for _, block in self._blocks)

    def pack(self, line: int) -> bytes:
        """One line as bytes, for `unpack` of the same layout."""
        parts = [block.cells[line].tobytes() for _, block in self._blocks]
        parts += [block.states[line].tobytes() for _, block in self._blocks]
        if (var := self._var) is not None:
            parts += [var.states[line].tobytes(), var.sizes[line].tobytes()]
            parts += var_values(var, line)
        return b"".join(parts)

    def unpack(self, line: int, record: bytes) -> None:
        """Writes a line that `pack` made."""
        data = np.frombuffer(record, np.uint8)
        at = 0
        for target in [
            *(block.cells[line] for _, block in self._blocks),
            *(block.states[line] for _, block in self._blocks),
        ]:
            target[...] = data[at : at + target.size].reshape(target.shape)
            at += target.size
        if (var := self._var) is None:
            return
        columns = var.states.shape[1]
        var.states[line] = data[at : at + columns]
        at += columns
        var.sizes[line] = data[at : at + 4 * columns].view(np.int32)
        values = data[at + 4 * columns :]
        var.starts[line] = self._heap_at + np.concatenate(([0], np.cumsum(var.sizes[line, :-1])))
        self._heap[self._heap_at : self._heap_at + len(values)] = values
        self._heap_at += len(values)

    def hand_over(self, matrix: ShmMatrix, index: Rows) -> None:
        """Puts the blocks into the matrix; row r shows line index[r] (−1: none)."""
        for number, block in self._blocks:
            block.index = index
            matrix.blocks[number] = block
        if self._var is not None and self._layout.variable is not None:
            self._var.index = index
            matrix.blocks[self._layout.variable.number] = self._var


def var_values(block: VarBlock, line: int) -> list[bytes]:
    """The values of one line of a variable block."""
    return [
        block.heap[start : start + size].tobytes()
        for start, size in zip(block.starts[line].tolist(), block.sizes[line].tolist(), strict=True)
    ]
