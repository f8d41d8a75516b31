"""Rows of expressions and their scores: the hot half of `components.numerix_wire`.

The rules are those of `components.kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from components.kernels import (
    ABSENT,
    BODY,
    I32,
    I64,
    INT,
    MALFORMED,
    NO_ROOM,
    U8,
    U8_2,
    U8_OUT,
    UNUSUAL,
    VALUE,
    _callee,
    _copy,
    _inline,
    _kernel,
    _length,
    _put_varint,
    _skip_text,
    _tag,
    _typed_callee,
    _varint_bytes,
)
from components.model_kernels import _answer, _fit_answers
from components.tensor_kernels import PIECES

__all__ = ["encode_compute_cells", "encode_compute_rows", "read_scores"]

I64_OUT = types.int64[::1]


@_inline
def _row_bytes(length, variables):
    """The most that a row with an id of this length takes."""
    return 24 + length + 6 * variables


@_callee
def _begin_row(heap, start, length, variables, out, at):
    """Writes an entity_scores entry up to its variables, which take six bytes each; returns where they belong."""
    inner = 1 + _varint_bytes(length) + length + 6 * variables
    outer = 1 + _varint_bytes(inner) + inner
    out[at] = 0x12
    at = _put_varint(out, at + 1, outer)
    out[at] = 0x12
    at = _put_varint(out, at + 1, inner)
    out[at] = 0x0A
    at = _put_varint(out, at + 1, length)
    return _copy(heap, start, length, out, at)


@_inline
def _put_variable(cells, place, out, at):
    """Writes a value of four bytes; returns where the next one belongs."""
    out[at] = 0x0A
    out[at + 1] = 4
    out[at + 2] = cells[place]
    out[at + 3] = cells[place + 1]
    out[at + 4] = cells[place + 2]
    out[at + 5] = cells[place + 3]
    return at + 6


@_kernel(INT(U8, I64, I32, INT, I32, U8_2, I64, U8_OUT, I64_OUT))
def encode_compute_rows(
    heap: Any,
    starts: Any,
    sizes: Any,
    step: Any,
    rows: Any,
    values: Any,
    bounds: Any,
    out: Any,
    ends: Any,
) -> int:
    """Writes EntityScoreData.entity_scores (field 2), request after request; returns the bytes written.

    Request i is about rows bounds[i] … bounds[i + 1] − 1 of `values` (float32, as bytes [rows, 4 × variables]), and
    ends at ends[i] of `out`. The id text of row r is heap[starts[rows[r] × step] …]; step 0: all rows have one.
    The caller vouches for rows, starts and sizes. Reference: numerix_wire.encode_compute.
    """
    variables = values.shape[1] // 4
    flat = values.reshape(values.size)
    at = 0
    if bounds.shape[0] > ends.shape[0] + 1 or rows.shape[0] < values.shape[0]:
        return NO_ROOM
    for request in range(bounds.shape[0] - 1):
        if bounds[request] < 0 or bounds[request + 1] > values.shape[0]:
            return NO_ROOM
        for row in range(bounds[request], bounds[request + 1]):
            length = np.int64(sizes[rows[row] * step])
            if at + _row_bytes(length, variables) > out.shape[0]:
                return NO_ROOM
            at = _begin_row(heap, starts[rows[row] * step], length, variables, out, at)
            for variable in range(variables):
                at = _put_variable(flat, 4 * (row * variables + variable), out, at)
        ends[request] = at
    return at


@_kernel(INT(U8, I64, I32, INT, U8, INT, INT, INT, I32, I32, I64, U8_OUT, I64_OUT))
def encode_compute_cells(
    heap: Any,
    starts: Any,
    sizes: Any,
    step: Any,
    block: Any,
    cells_at: Any,
    states_at: Any,
    columns: Any,
    index: Any,
    recipe: Any,
    bounds: Any,
    out: Any,
    ends: Any,
) -> int:
    """`encode_compute_rows` of rows whose values are FP32 cells of one block.

    Request i is about rows bounds[i] … bounds[i + 1] − 1 of the matrix.
    block, cells_at, states_at, columns, index, recipe as in `tensor_kernels.gather_cells`. UNUSUAL: a cell without
    a value. The caller vouches for the block, too.
    """
    variables = np.int64(0)
    for p in range(PIECES, recipe.shape[0], 2):
        variables += recipe[p + 1]
    at = 0
    if bounds.shape[0] > ends.shape[0] + 1:
        return NO_ROOM
    for request in range(bounds.shape[0] - 1):
        first, stop = bounds[request], bounds[request + 1]
        if first < 0 or stop * step > starts.shape[0] or (index.shape[0] and stop > index.shape[0]):
            return NO_ROOM
        for row in range(first, stop):
            line = np.int64(index[row]) if index.shape[0] else row
            length = np.int64(sizes[row * step])
            if line < 0:
                return UNUSUAL
            if at + _row_bytes(length, variables) > out.shape[0]:
                return NO_ROOM
            at = _begin_row(heap, starts[row * step], length, variables, out, at)
            for p in range(PIECES, recipe.shape[0], 2):
                cell = line * columns + recipe[p]
                for k in range(cell, cell + recipe[p + 1]):
                    if block[states_at + k] != VALUE:
                        return UNUSUAL
                    at = _put_variable(block, cells_at + 4 * k, out, at)
        ends[request] = at
    return at


@_typed_callee(INT(BODY, INT, INT, U8_OUT))
def _read_answer(body: Any, at: Any, end: Any, cells: Any) -> int:
    """How many rows the NumerixResponseProto in these bytes has, their scores written to `cells`; UNUSUAL for too
    many.

    With types of its own: inlined into the loop over answers, it takes ten times as long.
    """
    if at == end or body[at] != 0x0A:
        return UNUSUAL
    at, stop = _length(body, at + 1, end)
    if at < 0:
        return MALFORMED
    if stop != end:
        return UNUSUAL
    row = 0
    while at < stop:
        tag, at = _tag(body, at, stop)
        if at < 0:
            return at
        if tag != 0x12:
            if tag != 0x0A:
                return UNUSUAL
            at = _skip_text(body, at, stop)
            if at < 0:
                return at
            continue
        inner, after = _length(body, at, stop)
        if inner < 0:
            return MALFORMED
        at = after
        if inner >= after or body[inner] != 0x12:
            return UNUSUAL
        inner, last = _length(body, inner + 1, after)
        if inner < 0:
            return MALFORMED
        if last != after:
            return UNUSUAL
        number = 0
        while inner < last:
            if body[inner] != 0x0A:
                return UNUSUAL
            start, inner = _length(body, inner + 1, last)
            if start < 0:
                return MALFORMED
            if number == 1:
                place = 4 * row
                if inner - start != 4 or place + 4 > cells.shape[0]:
                    return UNUSUAL
                cells[place] = body[start]
                cells[place + 1] = body[start + 1]
                cells[place + 2] = body[start + 2]
                cells[place + 3] = body[start + 3]
            number += 1
        if number < 2:
            return UNUSUAL
        row += 1
    return row


@_kernel(INT(BODY, INT, I64, INT, INT, U8_OUT, I64_OUT))
def read_scores(
    bodies: Any, answers: Any, table: Any, cells_at: Any, states_at: Any, heap: Any, codes: Any
) -> int:
    """Reads the FP32 scores of NumerixResponseProtos that stand one after the other into a column of its own.

    There are so many `answers`, and `table` as `groups.joined` makes it: the scores of answer i are lines bounds[i]
    … bounds[i + 1] − 1 of a block with one column: `heap`, cells_at and states_at as in CellBlock. All states of
    these lines are written: ABSENT where there is no score.
    codes, one for each answer: 0, or why it has none. UNUSUAL: anything but one
    computation_score_data with byte rows of an id and a 4-byte value, as many as asked for. Returns how many
    answers have no scores, or NO_ROOM when the arguments do not fit each other. Reference:
    numerix_wire.decode_scores.
    """
    size = len(bodies)
    if not _fit_answers(size, answers, table) or codes.shape[0] < answers or cells_at < 0 or states_at < 0:
        return NO_ROOM
    bad = 0
    for i in range(answers):
        begin, end = _answer(size, answers, table, i)
        first, count = table[i], table[i + 1] - table[i]
        if first < 0 or count < 0:
            return NO_ROOM
        place, state = cells_at + 4 * first, states_at + first
        if place + 4 * count > heap.shape[0] or state + count > heap.shape[0]:
            return NO_ROOM
        found = _read_answer(bodies, begin, end, heap[place : place + 4 * count])
        whole = found == count
        for k in range(state, state + count):
            heap[k] = VALUE if whole else ABSENT
        codes[i] = 0 if whole else (found if found < 0 else UNUSUAL)
        if not whole:
            bad += 1
    return bad
