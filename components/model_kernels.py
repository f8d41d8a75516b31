"""Answers of models into columns: the hot half of `components.triton_wire` and `components.predator`.

The rules are those of `components.kernels`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from components.kernels import (
    ABSENT,
    I32,
    I32_OUT,
    I64,
    INT,
    MALFORMED,
    NO_ROOM,
    U8,
    U8_OUT,
    UNUSUAL,
    VALUE,
    _ascii,
    _callee,
    _copy,
    _inline,
    _kernel,
    _length,
    _skip_text,
    _skip_varint,
    _tag,
)

__all__ = ["read_model_scores", "score_plan"]

I64_OUT = types.int64[::1]

NAME, NAME_SIZE, TYPE, TYPE_SIZE, WIDTH = range(5)  # columns of the table of outputs
OUTPUT, FIRST, SIZE, COLUMN = range(4)  # columns of the table of scores
HEAD = 3  # what a plan begins with: columns of the block, outputs, scores


def score_plan(
    columns: int,
    texts: bytes,
    outputs: Sequence[tuple[int, int, int, int, int]],
    scores: Sequence[tuple[int, int, int, int]],
) -> npt.NDArray[np.int64]:
    """What `read_model_scores` is to do for a block of so many columns, all in one array.

    outputs: NAME, NAME_SIZE, TYPE, TYPE_SIZE place the output's name and datatype in `texts`; WIDTH: bytes a row.
    scores: OUTPUT the number of the output, FIRST, SIZE which bytes of its row, COLUMN where they go in the block,
    whose cells have SIZE bytes.
    """
    tables = itertools.chain(*outputs, *scores)
    return np.array([columns, len(outputs), len(scores), *tables, *texts], np.int64)


@_inline
def _same(data, start, stop, other, begin, size):
    """Whether these bytes are equal."""
    if stop - start != size:
        return False
    different = np.uint8(0)
    for i in range(size):
        different |= data[start + i] ^ other[begin + i]
    return different == 0


@_inline
def _skip_numbers(data, at, end):
    """The place after a packed field of varints whose length stands at `at`."""
    at, stop = _length(data, at, end)
    while 0 <= at < stop:
        at = _skip_varint(data, at, stop)
    return at


@_callee
def _check_output(data, at, end, texts, outputs, number):
    """0 when the InferOutputTensor in these bytes is what output `number` is to be, without typed contents."""
    name_at = name_end = type_at = type_end = np.int64(0)
    while at < end:
        tag, at = _tag(data, at, end)
        if at < 0:
            return at
        if tag == 0x0A:
            name_at, at = _length(data, at, end)
            if name_at < 0:
                return MALFORMED
            if not _ascii(data, name_at, at):
                return UNUSUAL
            name_end = at
        elif tag == 0x12:
            type_at, at = _length(data, at, end)
            if type_at < 0:
                return MALFORMED
            if not _ascii(data, type_at, at):
                return UNUSUAL
            type_end = at
        elif tag == 0x1A:
            at = _skip_numbers(data, at, end)
        elif tag == 0x18:
            at = _skip_varint(data, at, end)
        else:
            return UNUSUAL
        if at < 0:
            return MALFORMED
    if number >= outputs.shape[0]:
        return 0  # nobody asked for it
    if not _same(data, name_at, name_end, texts, outputs[number, NAME], outputs[number, NAME_SIZE]):
        return UNUSUAL
    if type_end > type_at and not _same(
        data, type_at, type_end, texts, outputs[number, TYPE], outputs[number, TYPE_SIZE]
    ):
        return UNUSUAL
    return 0


@_callee
def _find_outputs(data, texts, outputs, asked, places):
    """Finds the raw contents of all outputs in one ModelInferResponse; 0, or why it is left to the reference.

    places [outputs, 2]: where the contents begin, and how many rows they are.
    """
    at = 0
    end = data.shape[0]
    wanted = outputs.shape[0]
    heads = 0
    found = 0
    while at < end:
        tag, at = _tag(data, at, end)
        if at < 0:
            return at
        if tag == 0x0A or tag == 0x12 or tag == 0x1A:  # model_name, model_version, id
            at = _skip_text(data, at, end)
            if at < 0:
                return at
        elif tag == 0x2A:
            start, at = _length(data, at, end)
            if start < 0:
                return MALFORMED
            code = _check_output(data, start, at, texts, outputs, heads)
            if code < 0:
                return code
            heads += 1
        elif tag == 0x32:
            start, at = _length(data, at, end)
            if start < 0:
                return MALFORMED
            if found < wanted:
                width = outputs[found, WIDTH]
                size = at - start
                rows = size // width if width > 0 else 0
                if rows < 1 or rows * width != size or (rows != 1 and rows != asked):
                    return UNUSUAL
                places[found, 0] = start
                places[found, 1] = rows
            found += 1
        else:
            return UNUSUAL
    return 0 if heads >= wanted and found >= wanted else UNUSUAL


@_inline
def _fits(plan, lines):
    """Whether a plan is whole, and its scores stay within their outputs and a block of so many lines."""
    if plan.shape[0] < HEAD or plan[0] < 0 or plan[1] < 0 or plan[2] < 0:
        return False
    columns, wanted, scored = plan[0], plan[1], plan[2]
    tables = HEAD + 5 * wanted + 4 * scored
    if tables > plan.shape[0]:
        return False
    outputs = plan[HEAD : HEAD + 5 * wanted].reshape(wanted, 5)
    scores = plan[HEAD + 5 * wanted : tables].reshape(scored, 4)
    letters = plan.shape[0] - tables
    for o in range(wanted):
        for part in (NAME, TYPE):
            start, size = outputs[o, part], outputs[o, part + 1]
            if start < 0 or size < 0 or start + size > letters:
                return False
    for s in range(scored):
        output, first, size, column = scores[s, OUTPUT], scores[s, FIRST], scores[s, SIZE], scores[s, COLUMN]
        if output < 0 or output >= wanted or column < 0 or column >= columns or first < 0 or size < 0:
            return False
        if first + size > outputs[output, WIDTH] or size != scores[0, SIZE]:
            return False
    return lines >= 0


@_kernel(INT(U8, I64, I64, I32, I64, INT, INT, INT, U8_OUT, I32_OUT, I64_OUT))
def read_model_scores(
    bodies: Any,
    ends: Any,
    bounds: Any,
    lines: Any,
    plan: Any,
    cells_at: Any,
    states_at: Any,
    height: Any,
    heap: Any,
    codes: Any,
    found: Any,
) -> int:
    """Writes a block of scores from ModelInferResponses that stand one after the other.

    Answer i ends at ends[i] of `bodies` (no ends: there is one answer) and is about rows bounds[i] …
    bounds[i + 1] − 1. Its rows go to lines of these numbers; with `lines`, only the first one does, to line
    lines[i]. A single answered row is broadcast.
    heap, cells_at, states_at as in CellBlock, which has `height` lines; plan as `score_plan` makes it. All states
    are written: ABSENT where there is no score.
    codes [answers]: 0, or why nothing was written of an answer; a single one needs no codes. UNUSUAL: other outputs
    than these in this order, or other numbers of rows. `found` is scratch: two for each output. Returns how many
    answers have no scores, or NO_ROOM when the arguments do not fit each other.
    Reference: triton_wire.decode_outputs and predator._Scores.
    """
    answers = bounds.shape[0] - 1
    if ends.shape[0] != answers and not (answers == 1 and ends.shape[0] == 0):
        return NO_ROOM
    if codes.shape[0] != answers and not (answers == 1 and codes.shape[0] == 0):
        return NO_ROOM
    for i in range(answers):
        before = ends[i - 1] if i else np.int64(0)
        end = ends[i] if ends.shape[0] else bodies.shape[0]
        if before < 0 or end < before or end > bodies.shape[0]:
            return NO_ROOM
        if lines.shape[0]:
            if lines.shape[0] != answers or lines[i] < 0 or lines[i] >= height:
                return NO_ROOM
        elif bounds[i] < 0 or bounds[i + 1] < bounds[i] or bounds[i + 1] > height:
            return NO_ROOM
    if not _fits(plan, height):
        return NO_ROOM
    columns, wanted, scored = plan[0], plan[1], plan[2]
    if found.shape[0] < 2 * wanted:
        return NO_ROOM
    tables = HEAD + 5 * wanted + 4 * scored
    outputs = plan[HEAD : HEAD + 5 * wanted].reshape(wanted, 5)
    scores = plan[HEAD + 5 * wanted : tables].reshape(scored, 4)
    texts = plan[tables:]
    size = scores[0, SIZE] if scored else np.int64(0)
    if cells_at < 0 or cells_at + height * columns * size > heap.shape[0]:
        return NO_ROOM
    if states_at < 0 or states_at + height * columns > heap.shape[0]:
        return NO_ROOM
    for cell in range(states_at, states_at + height * columns):
        heap[cell] = ABSENT
    places = found[: 2 * wanted].reshape(wanted, 2)
    bad = 0
    for i in range(answers):
        asked = bounds[i + 1] - bounds[i]
        begin = ends[i - 1] if i else np.int64(0)
        end = ends[i] if ends.shape[0] else bodies.shape[0]
        answer = bodies[begin:end]
        code = _find_outputs(answer, texts, outputs, asked, places)
        if codes.shape[0]:
            codes[i] = code
        if code < 0:
            bad += 1
            continue
        first = np.int64(lines[i]) if lines.shape[0] else bounds[i]
        count = np.int64(1) if lines.shape[0] else asked
        for s in range(scored):
            output, column = scores[s, OUTPUT], scores[s, COLUMN]
            start = places[output, 0] + scores[s, FIRST]
            step = outputs[output, WIDTH] if places[output, 1] > 1 else 0
            for row in range(count):
                cell = (first + row) * columns + column
                place = cells_at + cell * size
                if size == 4:
                    heap[place] = answer[start]
                    heap[place + 1] = answer[start + 1]
                    heap[place + 2] = answer[start + 2]
                    heap[place + 3] = answer[start + 3]
                else:
                    _copy(answer, start, size, heap, place)
                heap[states_at + cell] = VALUE
                start += step
    return bad
