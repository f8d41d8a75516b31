"""The memory that fetched features go into: the blocks of one feature component, one line per distinct key.

All fixed-width cells, all states and the places of variable values lie in one piece, so that a kernel can write an
answered row wherever its values belong; the variable values themselves go to a heap of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

from components import kernels
from components.kernels import read_result
from components.onfs_wire import decode_rows
from components.wire import WireError
from dag.component import Reply
from dag.layout import BlockSpec
from shared.cache_kernels import line_plan
from shared.feature_cache import CachedLines, CacheKey, FeatureCache, Found, Places
from shared.shm_matrix import ABSENT, EMPTY, VALUE, Bytes, CellBlock, Rows, ShmMatrix, Slot, VarBlock

__all__ = ["FetchedBlock", "FetchedLayout", "Lines"]

SHAPES_KEPT = 1024  # numbers of lines whose shape is kept: 40 bytes a feature each
NO_HEAP: Final[Bytes] = np.empty(0, np.uint8)
START_BYTES, SIZE_BYTES = 8, 4  # of where a variable value starts in its heap, and of how long it is


@dataclasses.dataclass(frozen=True, slots=True)
class FetchedBlock:
    """One block of a feature component: its number, and which of the asked features are its columns."""

    number: int
    spec: BlockSpec
    asked: tuple[int, ...]


class FetchedLayout:
    """Where the values of an answered row go: the memory of so many lines, one part behind the other.

    Parts with longer numbers come first (the starts of variable values, cells of 8 bytes, …, the states), so that
    all are aligned whatever the number of lines.
    """

    def __init__(self, blocks: Sequence[FetchedBlock], features: int) -> None:
        self.features = features
        self.fixed = sorted((b for b in blocks if b.spec.width), key=_alignment, reverse=True)
        self.variable = next((b for b in blocks if not b.spec.width), None)
        self.runs = _runs([*self.fixed, *([] if self.variable is None else [self.variable])])
        """(number of the block, first column, columns) of the asked features, in the order they are asked for."""
        self.head = b""
        """What stood before the rows of an answer that was read: it names the features asked for, and is the same
        in every answer, so that its many texts need not be looked at again."""
        self._shapes: dict[int, LinesShape] = {}

    def shape(self, lines: int) -> LinesShape:
        """Where everything lies for this many lines."""
        shape = self._shapes.get(lines)
        if shape is None:
            shape = LinesShape(self, lines)
            if len(self._shapes) < SHAPES_KEPT:
                self._shapes[lines] = shape
        return shape

    def __repr__(self) -> str:
        return f"<FetchedLayout {self.features} features in {len(self.runs)} runs>"


def _alignment(block: FetchedBlock) -> int:
    """The largest power of two that a cell's width is a multiple of."""
    return block.spec.width & -block.spec.width


def _runs(blocks: Sequence[FetchedBlock]) -> list[tuple[int, int, int]]:
    """See `FetchedLayout.runs`."""
    places = sorted(
        (asked, block.number, column) for block in blocks for column, asked in enumerate(block.asked)
    )
    runs: list[tuple[int, int, int]] = []
    for _, number, column in places:
        if runs and runs[-1][0] == number and runs[-1][1] + runs[-1][2] == column:
            runs[-1] = (number, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((number, column, 1))
    return runs


class BlockPlace:
    """Where the cells and states of a block lie in the memory of so many lines; one without width has no cells."""

    __slots__ = ("cells_at", "columns", "number", "states_at", "width")

    def __init__(self, block: FetchedBlock, cells_at: int, states_at: int) -> None:
        self.number = block.number
        self.width = block.spec.width
        self.columns = len(block.asked)
        self.cells_at = cells_at
        self.states_at = states_at


class LinesShape:
    """Where everything lies in the memory of so many lines, in bytes from its begin, and the tables for kernels."""

    __slots__ = ("cached", "count", "fixed", "size", "sizes_at", "table", "variable")

    def __init__(self, layout: FetchedLayout, lines: int) -> None:
        values = 0 if layout.variable is None else len(layout.variable.asked)
        self.count = lines
        at = START_BYTES * values * lines  # of variable values, first of all
        cells_at = []
        for block in layout.fixed:
            if block.spec.width % SIZE_BYTES:
                break
            cells_at.append(at)
            at += block.spec.width * len(block.asked) * lines
        self.sizes_at = at
        at += SIZE_BYTES * values * lines
        for block in layout.fixed[len(cells_at) :]:
            cells_at.append(at)
            at += block.spec.width * len(block.asked) * lines
        self.fixed: list[BlockPlace] = []
        for block, cells in zip(layout.fixed, cells_at, strict=True):
            self.fixed.append(BlockPlace(block, cells, at))
            at += len(block.asked) * lines
        self.variable: BlockPlace | None = None
        if layout.variable is not None:
            self.variable = BlockPlace(layout.variable, 0, at)
            at += values * lines
        self.size = at
        places = [*self.fixed, *([] if self.variable is None else [self.variable])]
        by_number = {place.number: place for place in places}
        rows = [self._run(by_number[number], column, count) for number, column, count in layout.runs]
        self.table = np.array(rows, np.int64).reshape(-1, kernels.RUN_COLUMNS)
        pieces = [(place.cells_at, place.width * place.columns) for place in self.fixed]
        pieces += [(place.states_at, place.columns) for place in places]
        first_at, first_stride = self.table[0, [kernels.STATES, kernels.STATE_STRIDE]].tolist()
        self.cached = line_plan(
            [(start, size, size) for start, size in pieces],
            len(self.fixed),
            (first_at, first_stride),
            values,
            sizes_at=self.sizes_at,
        )

    def _run(self, place: BlockPlace, column: int, count: int) -> tuple[int, ...]:
        """A row of the table: see kernels.read_result."""
        width = place.width or START_BYTES
        cells, sizes = place.cells_at + width * column, self.sizes_at + SIZE_BYTES * column
        return (
            *(count, place.width, cells, width * place.columns),
            *(place.states_at + column, place.columns, sizes, SIZE_BYTES * place.columns),
        )

    def __repr__(self) -> str:
        return f"<LinesShape {self.count} lines, {self.size} bytes, {len(self.table)} runs>"


class Lines:
    """The lines of one request. Each is to be read, found in the cache, or forgotten: until then it is garbage."""

    __slots__ = (
        "_at",
        "_blocks",
        "_first_values",
        "_heap",
        "_layout",
        "_shape",
        "_values",
        "_values_at",
        "_values_from",
        "_var",
    )

    def __init__(self, layout: FetchedLayout, slot: Slot, count: int) -> None:
        """Raises MatrixFull."""
        self._layout = layout
        self._shape = shape = layout.shape(count)
        self._heap, self._at = heap, at = slot.place(shape.size)
        self._blocks = [
            CellBlock(heap, count, place.columns, place.width, at + place.cells_at, at + place.states_at)
            for place in shape.fixed
        ]
        self._var: VarBlock | None = None
        if (place := shape.variable) is not None:
            cells = count * place.columns
            sizes_at, states_at = at + shape.sizes_at, at + place.states_at
            self._var = VarBlock(
                heap[at : at + START_BYTES * cells].view(np.int64).reshape(count, place.columns),
                heap[sizes_at : sizes_at + SIZE_BYTES * cells].view(np.int32).reshape(count, place.columns),
                heap[states_at : states_at + cells].reshape(count, place.columns),
            )
        self._values: Bytes = NO_HEAP
        self._values_from = self._values_at = 0
        self._first_values = 0  # lines that were read and have a value of the first feature

    def expect_answers(self, slot: Slot, replies: Sequence[Reply]) -> None:
        """Makes room for the variable values of these answers."""
        if self._var is not None:
            self.expect(slot, sum(len(reply.body) for reply in replies if not reply.status))

    def expect(self, slot: Slot, size: int) -> None:
        """Makes room for `size` more bytes of variable values, behind those that are there."""
        if (var := self._var) is None or self._values_at + size <= len(self._values):
            return
        old, start, used = self._values, self._values_from, self._values_at - self._values_from
        heap, at = slot.place(used + size)
        if used:
            heap[at : at + used] = old[start : start + used]
            var.starts[...] = np.where(var.sizes > 0, var.starts + (at - start), 0)
        var.heap = heap
        self._values = heap[: at + used + size]
        self._values_from, self._values_at = at, at + used

    def read(self, body: bytes, lines: Rows, *, reference: bool) -> None:
        """Reads a Result with a row for each of `lines` (int32 [n]).

        Raises WireError when the body is no Result, or has other numbers of rows or values: the lines are to be
        forgotten then.
        """
        if not reference:
            head = self._layout.head
            begin = len(head) if body.startswith(head) else 0
            told: tuple[int, int] = read_result(
                body, begin, lines, self._shape.table, self._heap, self._at, self._values, self._values_at
            )
            at, first_values = told
            if at >= 0:
                self._values_at = at
                self._first_values += first_values
                if not begin:
                    self._layout.head = body[: kernels.rows_begin(body)]
                return
        self._read_reference(body, lines)
        self._first_values += len(lines)

    def forget(self, lines: Rows) -> None:
        """These lines (int32 [n]) stay without values: whatever was begun there is taken back."""
        for block in self._blocks:
            block.states[lines] = ABSENT
        if self._var is not None:
            self._var.states[lines] = ABSENT
            self._var.sizes[lines] = 0
            self._var.starts[lines] = 0

    def _read_reference(self, body: bytes, lines: Rows) -> None:
        rows = decode_rows(body, len(lines), self._layout.features)
        for line, values in zip(lines.tolist(), rows, strict=True):
            for block, spec in zip(self._blocks, self._layout.fixed, strict=True):
                for column, asked in enumerate(spec.asked):
                    block.put(line, column, values[asked])
            if self._var is not None and self._layout.variable is not None:
                for column, asked in enumerate(self._layout.variable.asked):
                    self._put_text(self._var, line, column, values[asked])

    def _put_text(self, block: VarBlock, line: int, column: int, value: bytes) -> None:
        end = self._values_at + len(value)
        if end > len(self._values):
            raise WireError("the values of an answer are longer than the answer")
        self._values[self._values_at : end] = np.frombuffer(value, np.uint8)
        block.starts[line, column] = self._values_at
        block.sizes[line, column] = len(value)
        block.states[line, column] = VALUE if value else EMPTY
        self._values_at = end

    def look_up(self, cache: FeatureCache, key: CacheKey, slot: Slot, keys: Places) -> Found:
        """Writes the lines of the keys that the cache has; what it returns is what `remember` wants."""
        found = cache.look_up(key, keys, self._cached())
        while found.hits < 0:
            self.expect(slot, found.end)
            found = cache.look_up(key, keys, self._cached())
        self._values_at = found.end
        return found

    def remember(self, cache: FeatureCache, key: CacheKey, found: Found) -> None:
        """Caches the lines that were missing, now that they were read. Only those whose first feature has a value
        are kept, and none with an ODD cell.
        """
        if self._first_values:
            cache.insert(key, found, self._cached())

    def _cached(self) -> CachedLines:
        return CachedLines(self._shape.cached, self._heap, self._at, self._values, self._values_at)

    def hand_over(self, matrix: ShmMatrix, index: Rows) -> None:
        """Puts the blocks into the matrix; row r shows line index[r] (−1: none)."""
        fixed = self._shape.fixed
        for number, block in enumerate(self._blocks):
            block.index = index
            matrix.blocks[fixed[number].number] = block
        if (variable := self._shape.variable) is not None and (var := self._var) is not None:
            var.index = index
            matrix.blocks[variable.number] = var
