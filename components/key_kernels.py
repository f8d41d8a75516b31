"""Key columns of several parts, and those that components write: joined from others, or fetched.

The rules are those of `components.kernels`. `index` and `first_rows` are those of `components.keys.Keys`, int32: by
row the number of its key, −1 for none, and by key its first row.
"""

from __future__ import annotations

from typing import Any

from numba import types

from components.kernels import (
    I32,
    I32_2,
    I32_OUT,
    I64,
    I64_2,
    INT,
    MALFORMED,
    NO_ROOM,
    U8,
    U8_OUT,
    _copy,
    _inside,
    _kernel,
)

__all__ = ["gather_part", "join_keys", "merge_texts", "show_values"]

I64_OUT = types.int64[::1]
SEPARATOR = 124  # |


@_kernel(INT(U8, I64, I32, INT, INT, INT, U8_OUT, INT, I64_OUT, I32_OUT))
def gather_part(
    heap: Any,
    from_starts: Any,
    from_sizes: Any,
    part: Any,
    rows: Any,
    copies: Any,
    out: Any,
    at: Any,
    starts: Any,
    sizes: Any,
) -> int:
    """Writes where a part of the keys of so many rows stands, into starts, sizes [parts × rows], part after part.

    from_starts, from_sizes: its texts in `heap`, one for each row, a single one for all, or none. With `copies` (1)
    they are copied into `out` from `at` on, else (0) they stay in `heap`. Returns the new `at`. MALFORMED: a text
    that is not in the heap. Reference: keys._gathered_reference.
    """
    first = part * rows
    if part < 0 or rows < 0 or first + rows > starts.shape[0] or first + rows > sizes.shape[0]:
        return NO_ROOM
    count = from_starts.shape[0]
    if from_sizes.shape[0] != count or (count > 1 and count < rows):
        return NO_ROOM
    for row in range(rows):
        if count == 0:
            starts[first + row] = 0
            sizes[first + row] = 0
            continue
        if row >= count:  # the single one
            starts[first + row] = starts[first]
            sizes[first + row] = sizes[first]
            continue
        start, size = from_starts[row], from_sizes[row]
        if not _inside(heap, start, size):
            return MALFORMED
        if copies:
            if at < 0 or at + size > out.shape[0]:
                return NO_ROOM
            _copy(heap, start, size, out, at)
            start = at
            at += size
        starts[first + row] = start
        sizes[first + row] = size
    return at


@_kernel(INT(U8, I64, I32, INT, INT, I32, I32, U8_OUT, I64_OUT, I32_OUT))
def join_keys(
    heap: Any,
    starts: Any,
    sizes: Any,
    parts: Any,
    rows: Any,
    index: Any,
    first_rows: Any,
    out: Any,
    joined_starts: Any,
    joined_sizes: Any,
) -> int:
    """Writes the parts of each key with `|` between them, and by row the place of its key's text in `out`.

    heap, starts, sizes [parts × rows] as kernels.distinct_keys took them. A row without a key has size 0. Returns
    the bytes written. MALFORMED: a place that is not in its array. Reference: keys.Keys.joined.
    """
    if index.shape[0] < rows or joined_starts.shape[0] < rows or joined_sizes.shape[0] < rows:
        return NO_ROOM
    if starts.shape[0] < parts * rows or sizes.shape[0] < parts * rows:
        return NO_ROOM
    at = 0
    for row in range(rows):
        key = index[row]
        begin = at
        if key >= 0:
            if key >= first_rows.shape[0]:
                return MALFORMED
            first = first_rows[key]
            if first < 0 or first > row:
                return MALFORMED
            if first < row:
                joined_starts[row] = joined_starts[first]
                joined_sizes[row] = joined_sizes[first]
                continue
            for place in range(row, parts * rows, rows):
                start, size = starts[place], sizes[place]
                if not _inside(heap, start, size):
                    return MALFORMED
                if at + size + 1 > out.shape[0]:
                    return NO_ROOM
                if place > row:
                    out[at] = SEPARATOR
                    at += 1
                at = _copy(heap, start, size, out, at)
        joined_starts[row] = begin
        joined_sizes[row] = at - begin
    return at


@_kernel(INT(I64_2, I32_2, INT, I32, I64_OUT, I32_OUT))
def show_values(from_starts: Any, from_sizes: Any, column: Any, index: Any, starts: Any, sizes: Any) -> int:
    """Writes by row the place of the text of its line in a column of a VarBlock; size 0 for line −1. Returns 0.

    from_starts, from_sizes [lines, columns] as there. MALFORMED: a line or a column that is not there.
    Reference: VarBlock.line_values.
    """
    lines, columns = from_starts.shape
    if from_sizes.shape[0] != lines or from_sizes.shape[1] != columns or column < 0 or column >= columns:
        return MALFORMED
    rows = index.shape[0]
    if starts.shape[0] < rows or sizes.shape[0] < rows:
        return NO_ROOM
    for row in range(rows):
        line = index[row]
        if line >= lines:
            return MALFORMED
        starts[row] = from_starts[line, column] if line >= 0 else 0
        sizes[row] = from_sizes[line, column] if line >= 0 else 0
    return 0


@_kernel(INT(U8, I64, I32, U8, I64, I32, INT, U8_OUT, INT, I64_OUT, I32_OUT))
def merge_texts(
    heap: Any,
    from_starts: Any,
    from_sizes: Any,
    other: Any,
    other_starts: Any,
    other_sizes: Any,
    rows: Any,
    out: Any,
    at: Any,
    starts: Any,
    sizes: Any,
) -> int:
    """Copies the text of each row from one column, or from another one where that is empty, into `out`.

    Writes from `at` on, and returns the new `at`. Each column has one text for each row, or a single one for all.
    MALFORMED: a text that is not in its heap. Reference: derived._merged.
    """
    step = 1 if from_starts.shape[0] >= rows else 0
    other_step = 1 if other_starts.shape[0] >= rows else 0
    if from_starts.shape[0] < 1 or from_sizes.shape[0] < from_starts.shape[0]:
        return MALFORMED
    if other_starts.shape[0] < 1 or other_sizes.shape[0] < other_starts.shape[0]:
        return MALFORMED
    if starts.shape[0] < rows or sizes.shape[0] < rows or at < 0:
        return NO_ROOM
    for row in range(rows):
        begin = at
        start, size = from_starts[row * step], from_sizes[row * step]
        if size != 0:
            if not _inside(heap, start, size):
                return MALFORMED
            if at + size > out.shape[0]:
                return NO_ROOM
            at = _copy(heap, start, size, out, at)
        else:
            start, size = other_starts[row * other_step], other_sizes[row * other_step]
            if not _inside(other, start, size):
                return MALFORMED
            if at + size > out.shape[0]:
                return NO_ROOM
            at = _copy(other, start, size, out, at)
        starts[row] = begin
        sizes[row] = at - begin
    return at
