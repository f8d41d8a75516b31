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
from shared.feature_cache import CachedLines, CacheKey, FeatureCache, Found, Places
from shared.shm_matrix import ABSENT, EMPTY, VALUE, Bytes, CellBlock, Rows, ShmMatrix, Slot, VarBlock

__all__ = ["FetchedBlock", "FetchedLayout", "Lines"]

SHAPES_KEPT = 1024  # numbers of lines whose shape is kept: 40 bytes a feature each
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
        self._shapes: dict[int, LinesShape] = {}
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
            asked = np.array(block.asked, np.intp)
            column = np.arange(len(asked))
            self._constant[asked, kernels.WIDTH] = width
            self._constant[asked, kernels.CELLS] = column * (width or 1)
            self._constant[asked, kernels.STRIDE] = width * len(asked)
            self._constant[asked, kernels.STATES] = column
            self._constant[asked, kernels.STATE_STRIDE] = len(asked)
            if width:
                self._per_line[asked, kernels.CELLS] = self.cells_at[number]
            self._per_line[asked, kernels.STATES] = self.states_at[number]

    def shape(self, lines: int) -> LinesShape:
        """Where everything lies for this many lines."""
        shape = self._shapes.get(lines)
        if shape is None:
            shape = LinesShape(self, lines)
            if len(self._shapes) < SHAPES_KEPT:
                self._shapes[lines] = shape
        return shape

    def table(self, lines: int) -> npt.NDArray[np.int64]:
        """The table that kernels.read_result writes by, for this many lines."""
        return self._constant + self._per_line * lines


class LinesShape:
    """Where the cells and states of so many lines lie in their arena."""

    __slots__ = ("cells", "count", "pieces", "size", "states", "states_at", "table")

    def __init__(self, layout: FetchedLayout, count: int) -> None:
        self.count = count
        self.table = layout.table(count)
        self.size = layout.line_bytes * count
        self.cells: list[tuple[int, int, int, int]] = []  # by fixed block: number, width, start, stop
        for block, at in zip(layout.fixed, layout.cells_at, strict=True):
            size = block.spec.width * len(block.asked) * count
            self.cells.append((block.number, block.spec.width, at * count, at * count + size))
        self.states: list[tuple[int, int, int]] = []  # by block: start, stop, columns
        for block, at in zip(layout.blocks, layout.states_at, strict=True):
            columns = len(block.asked)
            self.states.append((at * count, (at + columns) * count, columns))
        self.states_at = self.states[0][0] if self.states else 0
        runs = [(start, (stop - start) // max(count, 1)) for _, _, start, stop in self.cells]
        runs += [(start, columns) for start, _, columns in self.states]
        self.pieces = np.array([(start, size, size) for start, size in runs], np.int64).reshape(-1, 3)


class Lines:
    """The lines of one request: unwritten (ABSENT) until an answer is read into them."""

    __slots__ = ("_arena", "_blocks", "_heap", "_heap_at", "_heap_from", "_layout", "_shape", "_var")

    def __init__(self, layout: FetchedLayout, slot: Slot, count: int) -> None:
        shape = layout.shape(count)
        self._layout = layout
        self._shape = shape
        self._arena = arena = slot.allocate(shape.size)
        arena[shape.states_at :] = ABSENT
        self._blocks: list[tuple[int, CellBlock]] = []
        for (number, width, start, _), (first, _, columns) in zip(shape.cells, shape.states, strict=False):
            self._blocks.append((number, CellBlock(arena, count, columns, width, start, first)))
        self._var: VarBlock | None = None
        if layout.variable is not None:
            first, last, columns = shape.states[-1]
            self._var = VarBlock(slot, count, columns)
            self._var.states = arena[first:last].reshape(count, columns)
        self._heap: Bytes = NO_HEAP
        self._heap_from = self._heap_at = 0

    def expect(self, slot: Slot, size: int) -> None:
        """Makes room for `size` more bytes of variable values, behind those that are there."""
        if (var := self._var) is None or self._heap_at + size <= len(self._heap):
            return
        old, start, used = self._heap, self._heap_from, self._heap_at - self._heap_from
        heap, at = slot.place(used + size)
        if used:
            heap[at : at + used] = old[start : start + used]
            var.starts[...] = np.where(var.sizes > 0, var.starts + (at - start), 0)
        var.heap = heap
        self._heap = heap[: at + used + size]
        self._heap_from, self._heap_at = at, at + used

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
                self._shape.table,
                self._arena,
                starts,
                sizes,
                self._heap,
                self._heap_at,
            )
            if at >= 0:
                self._heap_at = at
                return
        try:
            self._read_reference(body, lines)
        except WireError:
            self._forget(lines)  # the kernel may have begun
            raise

    def _forget(self, lines: Rows) -> None:
        for _, block in self._blocks:
            block.states[lines] = ABSENT
        if self._var is not None:
            self._var.states[lines] = ABSENT
            self._var.sizes[lines] = 0

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

    def look_up(self, cache: FeatureCache, key: CacheKey, slot: Slot, keys: Places) -> tuple[Found, int]:
        """Writes the lines of the keys that the cache has.

        Returns what `remember` wants for the others, and how many were found.
        """
        found, hits = cache.look_up(key, keys, self._cached())
        while hits < 0:
            self.expect(slot, -1 - hits)
            found, hits = cache.look_up(key, keys, self._cached())
        if hits and self._var is not None:
            self._heap_at += int(self._var.sizes.sum())
        return found, hits

    def remember(self, cache: FeatureCache, key: CacheKey, found: Found, lines: Rows) -> None:
        """Caches lines (int32 [n]) that were read. Only those whose first feature has a value are kept, and
        none with an ODD cell.
        """
        cache.insert(key, found, lines, self._cached())

    def _cached(self) -> CachedLines:
        var, table = self._var, self._shape.table
        return CachedLines(
            self._shape.pieces,
            len(self._blocks),
            int(table[0, kernels.STATES]),
            int(table[0, kernels.STATE_STRIDE]),
            self._arena,
            NO_STARTS if var is None else var.starts,
            NO_SIZES if var is None else var.sizes,
            self._heap,
            self._heap_at,
        )

    def hand_over(self, matrix: ShmMatrix, index: Rows) -> None:
        """Puts the blocks into the matrix; row r shows line index[r] (−1: none)."""
        for number, block in self._blocks:
            block.index = index
            matrix.blocks[number] = block
        if self._var is not None and self._layout.variable is not None:
            self._var.index = index
            matrix.blocks[self._layout.variable.number] = self._var
