"""The cells of a batch of rows: how long each is, and how it gets to where a format wants it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from components.columns import text_of
from inferlog import kernels
from inferlog.schema import BlockPlaces, LogSchema, Places
from shared.shm_matrix import IDENTITY, ODD, Bytes, CellBlock, Rows, ShmMatrix, TextColumn

__all__ = ["Batch", "Cells", "TornMatrix"]

UNFIT_NAMED: Final = 1024  # values of a batch that are named when they do not fit; all are counted


class TornMatrix(ValueError):
    """A matrix that points outside of its memory: whoever wrote it has not finished."""


class Cells:
    """The logged cells of one matrix, of whichever kind `places` are."""

    def __init__(self, schema: LogSchema, places: Places, matrix: ShmMatrix) -> None:
        self.schema = schema
        self.matrix = matrix
        self.blocks = [
            (block, place) for place in places.blocks if (block := matrix.blocks[place.block]) is not None
        ]
        self.texts = [
            (text, logged)
            for external, logged in places.externals
            if (text := _brought(matrix, external)) is not None
        ]

    def __repr__(self) -> str:
        return f"<Cells of {self.matrix!r}, {self.schema!r}>"


class Batch:
    """Rows `first` … `stop` − 1 of these cells, measured.

    `sizes` int32 [rows, columns] are the bytes of each value, -1 for none. Raises TornMatrix.
    """

    def __init__(self, cells: Cells, first: int, stop: int) -> None:
        self.schema = cells.schema
        self.first = first
        self.stop = stop
        self.sizes: Rows = np.full((stop - first, len(self.schema.columns)), kernels.ABSENT, np.int32)
        self.unfit = 0
        self._unfit: list[tuple[int, int, int]] = []
        self._cells = cells
        self._measure()

    def __repr__(self) -> str:
        return f"<Batch rows {self.first} to {self.stop} of {self.schema!r}, {self.unfit} values unfit>"

    @property
    def rows(self) -> int:
        return self.stop - self.first

    @property
    def bytes(self) -> int:
        """Bytes of all values."""
        return int(np.sum(self.sizes, where=self.sizes > 0, dtype=np.int64))

    def unfit_cells(self) -> Iterator[tuple[int, int, int]]:
        """(row, column, bytes) of values that do not fit and are logged as missing; at most UNFIT_NAMED."""
        return iter(self._unfit[:UNFIT_NAMED])

    def copy(self, places: npt.NDArray[np.int64], out: Bytes) -> None:
        """Puts the values to `places` int64 [rows, columns] of `out`. Raises TornMatrix."""
        for block, place in self._cells.blocks:
            index = IDENTITY if block.index is None else block.index
            if isinstance(block, CellBlock):
                code = kernels.copy_cells(
                    block.flat, block.width, index, block.states.shape[1], self.first,
                    place.columns, place.logged, places, out,
                )  # fmt: skip
            else:
                code = kernels.copy_variable(
                    block.heap, block.starts, index, self.first,
                    place.columns, place.logged, self.sizes, places, out,
                )  # fmt: skip
            self._check(code)
        for text, logged in self._cells.texts:
            step = 0 if text.constant else 1
            self._check(
                kernels.copy_texts(text.heap, text.starts, step, self.first, logged, self.sizes, places, out)
            )

    def _measure(self) -> None:
        for block, place in self._cells.blocks:
            index = IDENTITY if block.index is None else block.index
            if isinstance(block, CellBlock):
                odd = self._check(
                    kernels.size_cells(
                        block.states, index, block.width, self.first, place.columns, place.logged, self.sizes
                    )
                )
                if odd:
                    self._note_odd(block, place)
            else:
                self._check(
                    kernels.size_variable(
                        block.sizes, index, self.first, place.columns, place.logged, self.sizes
                    )
                )
        for text, logged in self._cells.texts:
            step = 0 if text.constant else 1
            self._check(kernels.size_texts(text.sizes, step, self.first, logged, self.sizes))
        found = np.empty((UNFIT_NAMED, 3), np.int32)
        count = kernels.spoil(self.sizes, self.schema.limits, self.schema.units, found)
        self.unfit += count
        self._unfit += [(row, column, size) for row, column, size in found[:count].tolist()]

    def _note_odd(self, block: CellBlock, place: BlockPlaces) -> None:
        """Names the cells whose bytes are no value of their type."""
        for row in range(self.rows):
            line = self.first + row if block.index is None else int(block.index[self.first + row])
            for column, logged in zip(place.columns.tolist(), place.logged.tolist(), strict=True):
                if line >= 0 and block.states[line, column] == ODD:
                    value = block.odd.get((line, column), b"")
                    self._unfit.append((row, logged, len(value)))
                    self.unfit += 1

    def _check(self, code: int) -> int:
        if code < 0:
            raise TornMatrix(
                f"rows {self.first} to {self.stop} of {self._cells.matrix!r}: a value lies outside of its memory"
            )
        return code


def _brought(matrix: ShmMatrix, external: int) -> TextColumn | None:
    """What the request brought under this name, as text."""
    typed = matrix.typed[external]
    if typed is None:
        return matrix.texts[external]
    count = 1 if typed.text.constant else matrix.rows
    texts = text_of(typed.values(np.arange(count, dtype=np.int32)), typed.data_type)
    sizes = np.fromiter(map(len, texts), np.int32, count)
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    heap = np.frombuffer(b"".join(texts), np.uint8)
    return TextColumn(heap, starts, sizes, constant=typed.text.constant)
