"""The hot loops of inference logs, compiled: blocks of a matrix → rows of a log, and back.

A batch of rows is encoded in three passes, each a kernel over a whole block or a whole batch. `size_*` note how
long every cell is; a `frame_*` lays the batch out in one format and says where each cell goes; `copy_*` put the
cells there. All formats share the first and the last pass.

Tables are [rows, columns] of the log. A size is ABSENT (-1) where there is no value, a destination likewise.

Rules as in `components.kernels`: no Python objects, the GIL is released, and every place is checked before it is
read or written, because the memory belongs to another process which may have died: a kernel returns a negative
code instead. The reference is `tests/inferlog/reference.py`, written cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types

from shared.kernel_calls import direct

__all__ = [
    "ABSENT",
    "MALFORMED",
    "NO_ROOM",
    "copy_cells",
    "copy_texts",
    "copy_variable",
    "frame_columns",
    "frame_map",
    "frame_rows",
    "gather",
    "read_rows",
    "row_lengths",
    "size_cells",
    "size_texts",
    "size_variable",
    "spoil",
]

ABSENT = -1
MALFORMED = -2  # a place outside of its memory
NO_ROOM = -3  # the output is too small: the caller's mistake

FILLER = 3  # bytes of "0.0", which the row format writes for a missing string
LARGEST = 65535  # what a length of two bytes can say

U8 = types.Array(types.uint8, 1, "C", readonly=True)
U8_OUT = types.uint8[::1]
U8_2 = types.Array(types.uint8, 2, "C", readonly=True)
U8_2_OUT = types.uint8[:, ::1]
I32 = types.Array(types.int32, 1, "C", readonly=True)
I32_OUT = types.int32[::1]
I32_2 = types.Array(types.int32, 2, "C", readonly=True)
I32_2_OUT = types.int32[:, ::1]
I64 = types.Array(types.int64, 1, "C", readonly=True)
I64_OUT = types.int64[::1]
I64_2 = types.Array(types.int64, 2, "C", readonly=True)
I64_2_OUT = types.int64[:, ::1]
INT = types.int64

VALUE, ODD = 1, 3  # states of a cell, shared.shm_matrix

Function = TypeVar("Function", bound=Callable[..., Any])


_njit: Any = numba.njit  # its types do not tell of _nrt


def _inline(function: Function) -> Function:
    """Compiled into the kernels that call it."""
    return cast(Function, numba.njit(inline="always", nogil=True)(function))


def _kernel(signature: Any) -> Callable[[Function], Function]:
    """Compiled for this signature when the module is imported, or taken from the cache.

    Without numba's runtime, which counts who holds an array: the caller does, and a kernel makes none.
    """
    compiled = _njit(signature, nogil=True, cache=True, error_model="numpy", _nrt=False)

    def called(function: Function) -> Function:
        return cast(Function, direct(compiled(function)))

    return called


@_inline
def _varint_bytes(value):
    size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


@_inline
def _put_varint(out, at, value):
    while value >= 0x80:
        out[at] = value & 0x7F | 0x80
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@_inline
def _copy(source, start, size, out, at):
    for byte in range(size):
        out[at + byte] = source[start + byte]


@_inline
def _line(index, row):
    """The line of a block that a row shows; an empty index stands for "line = row"."""
    return int(index[row]) if index.shape[0] else row


# ---------------------------------------------------------------- how long every cell is


@_kernel(INT(U8_2, I32, INT, INT, I32, I32, I32_2_OUT))
def size_cells(states: Any, index: Any, width: Any, first: Any, columns: Any, logged: Any, sizes: Any) -> int:
    """Sizes of the logged columns of a CellBlock; returns how many of its cells are ODD (they count as absent).

    `columns` of the block are `logged` columns of the log. `first` is the matrix row of row 0 of `sizes`.
    """
    odd = 0
    for row in range(sizes.shape[0]):
        if index.shape[0] and first + row >= index.shape[0]:
            return MALFORMED
        line = _line(index, first + row)
        if line >= states.shape[0]:
            return MALFORMED
        for number in range(columns.shape[0]):
            state = states[line, columns[number]] if line >= 0 else np.uint8(0)
            sizes[row, logged[number]] = width if state == VALUE else ABSENT
            if state == ODD:
                odd += 1
    return odd


@_kernel(INT(I32_2, I32, INT, I32, I32, I32_2_OUT))
def size_variable(block_sizes: Any, index: Any, first: Any, columns: Any, logged: Any, sizes: Any) -> int:
    """Sizes of the logged columns of a VarBlock, where size 0 is no value; arguments as in `size_cells`."""
    for row in range(sizes.shape[0]):
        if index.shape[0] and first + row >= index.shape[0]:
            return MALFORMED
        line = _line(index, first + row)
        if line >= block_sizes.shape[0]:
            return MALFORMED
        for number in range(columns.shape[0]):
            size = block_sizes[line, columns[number]] if line >= 0 else np.int32(0)
            if size < 0:
                return MALFORMED
            sizes[row, logged[number]] = size if size else ABSENT
    return 0


@_kernel(INT(I32, INT, INT, INT, I32_2_OUT))
def size_texts(text_sizes: Any, step: Any, first: Any, logged: Any, sizes: Any) -> int:
    """Sizes of one text column (row r at r × step), where an empty text is none."""
    for row in range(sizes.shape[0]):
        place = (first + row) * step
        if place >= text_sizes.shape[0]:
            return MALFORMED
        size = text_sizes[place]
        if size < 0:
            return MALFORMED
        sizes[row, logged] = size if size else ABSENT
    return 0


@_kernel(INT(I32_2_OUT, I32, I32, I32_2_OUT))
def spoil(sizes: Any, limits: Any, units: Any, unfit: Any) -> int:
    """Takes out what is longer than its column's limit, or no multiple of its unit; returns how many cells.

    They are ABSENT afterwards; the first of them stand in `unfit` [n, 3]: row, column, size.
    """
    found = 0
    for row in range(sizes.shape[0]):
        for column in range(sizes.shape[1]):
            size = sizes[row, column]
            if size > 0 and (size > limits[column] or (units[column] > 1 and size % units[column])):
                if found < unfit.shape[0]:
                    unfit[found, 0] = row
                    unfit[found, 1] = column
                    unfit[found, 2] = size
                sizes[row, column] = ABSENT
                found += 1
    return found


# ---------------------------------------------------------------- where every cell goes


@_kernel(INT(I32_2, I32, I32, I32, I32_OUT))
def row_lengths(sizes: Any, widths: Any, inner: Any, fillers: Any, lengths: Any) -> int:
    """The length of each row in the row format; returns the bytes of all of them with their heads."""
    total = 0
    for row in range(sizes.shape[0]):
        length = np.int64(1)
        for column in range(sizes.shape[1]):
            if widths[column]:
                length += widths[column]
            else:
                size = sizes[row, column]
                if size < 0:
                    size = fillers[column]
                length += 2 + size + (inner[column] if size else 0)
        lengths[row] = length
        field = 1 + _varint_bytes(length) + length
        total += 1 + _varint_bytes(field) + field
    return total


@_kernel(INT(I32_2, I32, I32, I32, I32, U8_OUT, I64_2_OUT, U8_OUT))
def frame_rows(
    sizes: Any, widths: Any, inner: Any, fillers: Any, lengths: Any, out: Any, places: Any, missing: Any
) -> int:
    """Writes everything of the row format but the values, and says where those go; returns the bytes written.

    Rows are InferflowLog.features (5), PerEntityFeatures{1 encoded_features}: a byte that is 1 when no value was
    made up, then per column a fixed-width value (zero when missing) or u16 length and bytes. A missing string is
    "0.0" (`fillers` FILLER), a missing vector has length 0; `inner` columns (2, else 0) have their length once
    more within the value. `missing` (zeros, a bit for each value) gets a 1 where there is none.
    """
    at = 0
    for row in range(sizes.shape[0]):
        length = int(lengths[row])
        field = 1 + _varint_bytes(length) + length
        if at + 1 + _varint_bytes(field) + field > out.shape[0]:
            return NO_ROOM
        out[at] = 0x2A
        at = _put_varint(out, at + 1, field)
        out[at] = 0x0A
        at = _put_varint(out, at + 1, length)
        flag = at
        whole = 1
        at += 1
        for column in range(sizes.shape[1]):
            size = int(sizes[row, column])
            width = widths[column]
            places[row, column] = ABSENT
            if size < 0:
                whole = 0
                number = row * sizes.shape[1] + column
                missing[number >> 3] |= 1 << (number & 7)
            if width:
                if size < 0:
                    for byte in range(width):
                        out[at + byte] = 0
                else:
                    places[row, column] = at
                at += width
                continue
            filled = int(fillers[column]) if size < 0 else size
            outer = filled + (inner[column] if filled else 0)
            out[at] = outer & 0xFF
            out[at + 1] = outer >> 8
            at += 2
            if filled and inner[column]:
                out[at] = filled & 0xFF
                out[at + 1] = filled >> 8
                at += 2
            if size >= 0:
                places[row, column] = at
            elif filled:
                out[at] = 0x30
                out[at + 1] = 0x2E
                out[at + 2] = 0x30
            at += filled
        out[flag] = whole
    return at


@_kernel(INT(I32_2, I32, U8_OUT, I64_2_OUT, I64_OUT, I32_2_OUT, U8_2_OUT, I32_OUT))
def frame_columns(
    sizes: Any, inner: Any, out: Any, places: Any, bases: Any, offsets: Any, valid: Any, nulls: Any
) -> int:
    """Lays a batch out column by column, as Arrow's binary arrays have it; returns the bytes of all values.

    Column c has its values from bases[c] on (a multiple of 8; bases has one more for the end), offsets[c] [rows +
    1] within them, a validity bitmap valid[c] and nulls[c]. The inner lengths are written, the values are not.
    """
    rows, columns = sizes.shape
    at = 0
    for column in range(columns):
        at = (at + 7) & ~7
        bases[column] = at
        start = at
        missing = 0
        for row in range(rows):
            offsets[column, row] = at - start
            size = int(sizes[row, column])
            places[row, column] = ABSENT
            if size < 0:
                missing += 1
                continue
            valid[column, row >> 3] |= 1 << (row & 7)
            if at + size + inner[column] > out.shape[0]:
                return NO_ROOM
            if inner[column]:
                out[at] = size & 0xFF
                out[at + 1] = size >> 8
                at += 2
            places[row, column] = at
            at += size
        offsets[column, rows] = at - start
        nulls[column] = missing
    bases[columns] = at
    return at


@_kernel(INT(I32_2, I32, U8_OUT, I64_2_OUT, I32_OUT, U8_OUT))
def frame_map(sizes: Any, inner: Any, out: Any, places: Any, offsets: Any, valid: Any) -> int:
    """Lays a batch out row by row as one binary array of rows × columns values; returns its missing ones.

    offsets [rows × columns + 1], valid a bitmap; as in `frame_columns`.
    """
    rows, columns = sizes.shape
    at = 0
    missing = 0
    number = 0
    for row in range(rows):
        for column in range(columns):
            offsets[number] = at
            size = int(sizes[row, column])
            places[row, column] = ABSENT
            if size < 0:
                missing += 1
            else:
                valid[number >> 3] |= 1 << (number & 7)
                if at + size + inner[column] > out.shape[0]:
                    return NO_ROOM
                if inner[column]:
                    out[at] = size & 0xFF
                    out[at + 1] = size >> 8
                    at += 2
                places[row, column] = at
                at += size
            number += 1
    offsets[number] = at
    return missing


# ---------------------------------------------------------------- the cells themselves


@_kernel(INT(U8, INT, I32, INT, INT, I32, I32, I64_2, U8_OUT))
def copy_cells(
    flat: Any,
    width: Any,
    index: Any,
    block_columns: Any,
    first: Any,
    columns: Any,
    logged: Any,
    places: Any,
    out: Any,
) -> int:
    """Copies the cells of a CellBlock with `block_columns` columns; arguments as in `size_cells`."""
    for row in range(places.shape[0]):
        line = _line(index, first + row)
        for number in range(columns.shape[0]):
            at = places[row, logged[number]]
            if at < 0:
                continue
            start = (line * block_columns + columns[number]) * width
            if start < 0 or start + width > flat.shape[0] or at + width > out.shape[0]:
                return MALFORMED
            if width == 4:  # unrolled: nearly all cells
                out[at] = flat[start]
                out[at + 1] = flat[start + 1]
                out[at + 2] = flat[start + 2]
                out[at + 3] = flat[start + 3]
            else:
                _copy(flat, start, width, out, at)
    return 0


@_kernel(INT(U8, I64_2, I32, INT, I32, I32, I32_2, I64_2, U8_OUT))
def copy_variable(
    heap: Any,
    starts: Any,
    index: Any,
    first: Any,
    columns: Any,
    logged: Any,
    sizes: Any,
    places: Any,
    out: Any,
) -> int:
    """Copies the cells of a VarBlock; `sizes` and `places` are the log's."""
    for row in range(places.shape[0]):
        line = _line(index, first + row)
        for number in range(columns.shape[0]):
            at = places[row, logged[number]]
            if at < 0:
                continue
            if line < 0 or line >= starts.shape[0]:
                return MALFORMED
            size = np.int64(sizes[row, logged[number]])
            start = starts[line, columns[number]]
            if start < 0 or size < 0 or start + size > heap.shape[0] or at + size > out.shape[0]:
                return MALFORMED
            _copy(heap, start, size, out, at)
    return 0


@_kernel(INT(U8, I64, INT, INT, INT, I32_2, I64_2, U8_OUT))
def copy_texts(
    heap: Any, starts: Any, step: Any, first: Any, logged: Any, sizes: Any, places: Any, out: Any
) -> int:
    """Copies the texts of one column (row r at r × step)."""
    for row in range(places.shape[0]):
        at = places[row, logged]
        if at < 0:
            continue
        place = (first + row) * step
        if place >= starts.shape[0]:
            return MALFORMED
        size = int(sizes[row, logged])
        start = starts[place]
        if start < 0 or size < 0 or start + size > heap.shape[0] or at + size > out.shape[0]:
            return MALFORMED
        _copy(heap, start, size, out, at)
    return 0


# ---------------------------------------------------------------- reading back


@_kernel(INT(U8, I64, I32, I64_2_OUT, I32_2_OUT, U8_OUT))
def read_rows(data: Any, ends: Any, widths: Any, starts: Any, sizes: Any, flags: Any) -> int:
    """Finds the values of rows in the row format: row r ends at ends[r] and begins where the one before ends.

    starts, sizes [rows, columns] of the values in `data`; what has length 0 is ABSENT. `flags` [rows] are the first
    bytes. MALFORMED: a row that is cut or goes on behind its last column.
    """
    at = 0
    for row in range(ends.shape[0]):
        end = ends[row]
        if end > data.shape[0] or at >= end:
            return MALFORMED
        flags[row] = data[at]
        at += 1
        for column in range(widths.shape[0]):
            size: Any = int(widths[column])
            if not size:
                if at + 2 > end:
                    return MALFORMED
                size = np.int64(data[at]) | np.int64(data[at + 1]) << 8
                at += 2
            if at + size > end:
                return MALFORMED
            starts[row, column] = at
            sizes[row, column] = size if size else ABSENT
            at += size
        if at != end:
            return MALFORMED
    return 0


@_kernel(INT(U8, I64, I32, U8_OUT))
def gather(data: Any, starts: Any, sizes: Any, out: Any) -> int:
    """Copies values (starts, sizes [n] in `data`) one after the other into `out`; returns their bytes."""
    at = 0
    for number in range(starts.shape[0]):
        start = starts[number]
        size = int(sizes[number])
        if start < 0 or size < 0 or start + size > data.shape[0]:
            return MALFORMED
        if at + size > out.shape[0]:
            return NO_ROOM
        _copy(data, start, size, out, at)
        at += size
    return at
