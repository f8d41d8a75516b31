"""Columns collected by kernels: the values of some rows side by side, raw or as text, in one heap.

The fast way to what `columns.byte_values`, `columns.fallback` and `columns.texts` give value by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components import value_kernels as kernels
from components.kernels import NO_ROOM
from components.scratch import scratch
from dag.layout import ColumnRun
from shared.shm_matrix import IDENTITY, Bytes, CellBlock, Rows, ShmMatrix

__all__ = ["Collected", "TooMuchError", "collect"]

STRING = 14  # DataType.STRING, for kernels


class TooMuchError(Exception):
    """The values take more room than they may."""


class Collected(NamedTuple):
    """Where the values stand in the heap of `scratch()`: starts int64, sizes int32, both [columns, rows]."""

    starts: npt.NDArray[np.int64]
    sizes: Rows
    end: int  # bytes in the heap


def collect(
    matrix: ShmMatrix,
    runs: Sequence[ColumnRun],
    rows: Rows,
    *,
    raw: bool,
    before: int = 0,
    limit: int | None = None,
) -> Collected | None:
    """The columns of `runs` for `rows` (int32 [n]): raw bytes, or text forms; None when a cell needs a closer look.

    The first `before` lines of starts and sizes are left to the caller. Raises TooMuchError when the values take
    more than `limit` bytes. The result is in the heap of `scratch()`, and good until anything else uses it.
    """
    columns = before + (runs[-1].stop if runs else 0)
    starts = np.empty((columns, len(rows)), np.int64)
    sizes = np.empty((columns, len(rows)), np.int32)
    while True:
        at = _collect(matrix, runs, rows, raw, before, starts, sizes)
        if at != NO_ROOM:
            break
        memory = scratch()
        if limit is not None and len(memory.heap) >= limit:
            memory.trim()
            raise TooMuchError
        memory.grow_heap()
    if at < 0:
        return None
    if limit is not None and at > limit:
        raise TooMuchError
    return Collected(starts, sizes, at)


def _collect(
    matrix: ShmMatrix,
    runs: Sequence[ColumnRun],
    rows: Rows,
    raw: bool,
    before: int,
    starts: npt.NDArray[np.int64],
    sizes: Rows,
) -> int:
    """The end of what was collected, or a negative kernel code."""
    at = 0
    heap = scratch().heap
    for run in runs:
        first = before + run.first
        if run.block < 0:
            at = _collect_brought(matrix, run.externals[0], rows, raw, heap, at, starts, sizes, first)
        else:
            block = matrix.blocks[run.block]
            if block is None or not len(block.states):
                sizes[first : before + run.stop] = starts[first : before + run.stop] = 0
                continue
            index = IDENTITY if block.index is None else block.index
            kinds = run.raw if raw else run.kinds
            if isinstance(block, CellBlock):
                at = kernels.collect_cells(
                    block.flat, block.states, index, rows, run.columns, kinds, run.width,
                    heap, at, starts, sizes, first,
                )  # fmt: skip
            else:
                at = kernels.collect_values(
                    block.heap, block.starts, block.sizes, index, rows, run.columns, kinds,
                    heap, at, starts, sizes, first,
                )  # fmt: skip
        if at < 0:
            return at
    return at


def _collect_brought(
    matrix: ShmMatrix,
    external: int,
    rows: Rows,
    raw: bool,
    heap: Bytes,
    at: int,
    starts: npt.NDArray[np.int64],
    sizes: Rows,
    line: int,
) -> int:
    """The same for what the request brought under one name, or nothing."""
    typed = matrix.typed[external]
    text = matrix.texts[external] if typed is None else typed.text
    if text is None:
        sizes[line] = starts[line] = 0
        return at
    kind = kernels.RAW if raw else STRING if typed is None else int(typed.data_type)
    step = 0 if text.constant else 1
    return kernels.collect_texts(
        text.heap, text.starts, text.sizes, step, rows, kind, heap, at, starts, sizes, line
    )
