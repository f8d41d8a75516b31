"""Memory for kernels: arrays of bytes, and blocks of cells in any state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from shared.shm_matrix import ABSENT, EMPTY, ODD, VALUE, Bytes, Rows

__all__ = ["CANARY", "Cells", "Values", "array", "canaries", "cells_of", "values_of"]

CANARY = 0xA5
"""What memory that a kernel must leave alone is filled with."""


def array(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)


def canaries(size: int) -> Bytes:
    return np.full(size, CANARY, np.uint8)


class Cells(NamedTuple):
    """A block of cells; `index` may be empty (line = row) and may say −1."""

    flat: Bytes
    states: Bytes  # [lines, columns]
    index: Rows
    width: int

    @property
    def rows(self) -> int:
        return len(self.index) or len(self.states)

    def cell(self, row: int, column: int) -> tuple[int, bytes]:
        """The state and the bytes of a cell: b"" where it has no value."""
        line = int(self.index[row]) if len(self.index) else row
        if line < 0:
            return ABSENT, b""
        state = int(self.states[line, column])
        at = (line * self.states.shape[1] + column) * self.width
        return state, self.flat[at : at + self.width].tobytes() if state == VALUE else b""


@st.composite
def cells_of(draw: st.DrawFn, widths: Sequence[int]) -> Cells:
    """A block with cells of one of these widths."""
    width = draw(st.sampled_from(list(widths)))
    lines, columns = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    size = lines * columns
    flat = array(draw(st.binary(min_size=size * width, max_size=size * width)))
    usual = st.sampled_from([VALUE, VALUE, VALUE, ABSENT, EMPTY])
    states = draw(st.lists(usual | st.just(ODD), min_size=size, max_size=size))
    index = draw(st.just([]) | st.lists(st.integers(-1, lines - 1), min_size=1, max_size=6))
    return Cells(flat, np.array(states, np.uint8).reshape(lines, columns), np.array(index, np.int32), width)


class Values(NamedTuple):
    """A block of values of any length: starts, sizes [lines, columns] of `heap`; `index` as in Cells."""

    heap: Bytes
    starts: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    sizes: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    index: Rows

    @property
    def rows(self) -> int:
        return len(self.index) or len(self.sizes)

    def value(self, row: int, column: int) -> bytes:
        line = int(self.index[row]) if len(self.index) else row
        if line < 0:
            return b""
        start = int(self.starts[line, column])
        return self.heap[start : start + int(self.sizes[line, column])].tobytes()


@st.composite
def values_of(draw: st.DrawFn, values: st.SearchStrategy[bytes]) -> Values:
    lines, columns = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cells = draw(st.lists(values, min_size=lines * columns, max_size=lines * columns))
    sizes = np.array([len(cell) for cell in cells], np.int32)
    starts = (np.cumsum(sizes) - sizes + 1).astype(np.int64)
    index = draw(st.just([]) | st.lists(st.integers(-1, lines - 1), min_size=1, max_size=6))
    return Values(
        array(b"_" + b"".join(cells)),
        starts.reshape(lines, columns),
        sizes.reshape(lines, columns),
        np.array(index, np.int32),
    )
