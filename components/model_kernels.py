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
    BODY,
    EMPTY,
    I64,
    INT,
    MALFORMED,
    NO_ROOM,
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

__all__ = ["read_model_scores", "read_model_texts", "score_plan"]

I64_OUT = types.int64[::1]
I64_2_OUT = types.int64[:, ::1]
I32_2_OUT = types.int32[:, ::1]
U8_2_OUT = types.uint8[:, ::1]

NAME, NAME_SIZE, TYPE, TYPE_SIZE, WIDTH = range(5)  # columns of the table of outputs
OUTPUT, FIRST, SIZE, COLUMN = range(4)  # columns of the table of scores
HEAD = 3  # what a plan begins with: columns of the block, outputs, scores


def score_plan(
    columns: int,
    texts: bytes,
    outputs: Sequence[tuple[int, int, int, int, int]],
    scores: Sequence[tuple[int, int, int, int]],
) -> npt.NDArray[np.int64]:
    """What `read_model_scores` or `read_model_texts` is to do for a block of so many columns, all in one array.

    outputs: NAME, NAME_SIZE, TYPE, TYPE_SIZE place the output's name and datatype in `texts`; WIDTH: bytes a row,
    of a BYTES output its strings a row, negative.
    scores: OUTPUT the number of the output, FIRST, SIZE which bytes of its row, COLUMN where they go in the block,
    whose cells have SIZE bytes; of a BYTES output, which of its strings.
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


@_inline
def _string_size(data, at):
    """The length of a string in a BYTES tensor, which stands before it: u32."""
    return (
        np.int64(data[at])
        | (np.int64(data[at + 1]) << 8)
        | (np.int64(data[at + 2]) << 16)
        | (np.int64(data[at + 3]) << 24)
    )


@_callee
def _count_strings(data, at, end):
    """How many strings these bytes of a BYTES tensor are; −1 when one runs over their end."""
    count = 0
    while at < end:
        if end - at < 4:
            return -1
        at += 4 + _string_size(data, at)
        count += 1
    return count if at == end else -1


@_callee
def _find_outputs(data, at, end, texts, outputs, asked, places):
    """Finds the raw contents of all outputs in the ModelInferResponse in these bytes; 0, or why it is left to the
    reference.

    places [outputs, 2]: where the contents begin, and how many rows they are.
    """
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
                if width < 0:
                    width, size = -width, _count_strings(data, start, at)
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
def _fits(plan, lines, of_strings):
    """Whether a plan is whole, and its scores stay within their outputs and a block of so many lines.

    of_strings: all scores are of BYTES outputs, or none is.
    """
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
        width = outputs[output, WIDTH]
        if first + size > (-width if of_strings else width):
            return False
        if not of_strings and size != scores[0, SIZE]:
            return False
    return lines >= 0


@_inline
def _fit_lines(answers, table, height):
    """Whether the lines that answers are about are some of so many."""
    lines = 2 * answers + 1  # where they begin in the table, if it has any
    for i in range(answers):
        if table.shape[0] > lines:
            if table[lines + i] < 0 or table[lines + i] >= height:
                return False
        elif table[i] < 0 or table[i + 1] < table[i] or table[i + 1] > height:
            return False
    return True


@_inline
def _fit_answers(size, answers, table):
    """Whether a table is that of so many answers, whose ends are in order and within `size` bytes."""
    if answers < 0 or table.shape[0] <= 2 * answers:
        return answers == 1 and table.shape[0] == 2
    before = np.int64(0)
    for i in range(answers + 1, 2 * answers + 1):
        if table[i] < before or table[i] > size:
            return False
        before = table[i]
    return table.shape[0] == 2 * answers + 1 or table.shape[0] == 3 * answers + 1


@_inline
def _answer(size, answers, table, i):
    """Where answer i begins and ends."""
    begin = table[answers + i] if i else np.int64(0)
    end = table[answers + 1 + i] if table.shape[0] > answers + 1 else np.int64(size)
    return begin, end


@_kernel(INT(BODY, INT, I64, I64, INT, INT, INT, U8_OUT, I64_OUT))
def read_model_scores(
    bodies: Any,
    answers: Any,
    table: Any,
    plan: Any,
    cells_at: Any,
    states_at: Any,
    height: Any,
    heap: Any,
    work: Any,
) -> int:
    """Writes a block of scores from ModelInferResponses that stand one after the other.

    There are so many `answers`, and `table` as `groups.joined` makes it: answer i is about rows bounds[i] …
    bounds[i + 1] − 1. Its rows go to lines of these numbers; where the table has lines, only the first one does, to
    its line. A single answered row is broadcast.
    heap, cells_at, states_at as in CellBlock, which has `height` lines; plan as `score_plan` makes it. All states
    are written: ABSENT where there is no score.
    work: one for each answer, 0, or why nothing was written of it; two for each output behind that. UNUSUAL: other
    outputs than these in this order, or other numbers of rows. Returns how many answers have no scores, or NO_ROOM
    when the arguments do not fit each other.
    Reference: triton_wire.decode_outputs and predator._Scores.
    """
    size = len(bodies)
    if not _fit_answers(size, answers, table) or not _fit_lines(answers, table, height):
        return NO_ROOM
    lines = 2 * answers + 1
    with_lines = table.shape[0] > lines
    if not _fits(plan, height, False):
        return NO_ROOM
    columns, wanted, scored = plan[0], plan[1], plan[2]
    if work.shape[0] < answers + 2 * wanted:
        return NO_ROOM
    tables = HEAD + 5 * wanted + 4 * scored
    outputs = plan[HEAD : HEAD + 5 * wanted].reshape(wanted, 5)
    scores = plan[HEAD + 5 * wanted : tables].reshape(scored, 4)
    texts = plan[tables:]
    width = scores[0, SIZE] if scored else np.int64(0)
    if cells_at < 0 or cells_at + height * columns * width > heap.shape[0]:
        return NO_ROOM
    if states_at < 0 or states_at + height * columns > heap.shape[0]:
        return NO_ROOM
    for cell in range(states_at, states_at + height * columns):
        heap[cell] = ABSENT
    places = work[answers : answers + 2 * wanted].reshape(wanted, 2)
    bad = 0
    for i in range(answers):
        asked = table[i + 1] - table[i]
        begin, end = _answer(size, answers, table, i)
        code = _find_outputs(bodies, begin, end, texts, outputs, asked, places)
        work[i] = code
        if code < 0:
            bad += 1
            continue
        first = table[lines + i] if with_lines else table[i]
        count = np.int64(1) if with_lines else asked
        for s in range(scored):
            output, column = scores[s, OUTPUT], scores[s, COLUMN]
            start = places[output, 0] + scores[s, FIRST]
            step = outputs[output, WIDTH] if places[output, 1] > 1 else 0
            for row in range(count):
                cell = (first + row) * columns + column
                place = cells_at + cell * width
                if width == 4:
                    heap[place] = bodies[start]
                    heap[place + 1] = bodies[start + 1]
                    heap[place + 2] = bodies[start + 2]
                    heap[place + 3] = bodies[start + 3]
                else:
                    _copy(bodies, start, width, heap, place)
                heap[states_at + cell] = VALUE
                start += step
    return bad


@_kernel(INT(BODY, INT, I64, I64, U8_OUT, INT, INT, I64_2_OUT, I32_2_OUT, U8_2_OUT, I64_OUT))
def read_model_texts(
    bodies: Any,
    answers: Any,
    table: Any,
    plan: Any,
    heap: Any,
    at: Any,
    stop: Any,
    starts: Any,
    sizes: Any,
    states: Any,
    work: Any,
) -> int:
    """`read_model_scores` for a block of strings: its scores are of BYTES outputs.

    The strings of a score go to heap[at … stop − 1], with commas between them: no more than the answers have bytes.
    starts, sizes, states [lines, columns] as in VarBlock; what has no score is left as it is.
    """
    height, columns, size = states.shape[0], states.shape[1], len(bodies)
    if not _fit_answers(size, answers, table) or not _fit_lines(answers, table, height):
        return NO_ROOM
    if not _fits(plan, height, True) or plan[0] != columns or at < 0 or stop > heap.shape[0]:
        return NO_ROOM
    if starts.shape != states.shape or sizes.shape != states.shape:
        return NO_ROOM
    wanted, scored = plan[1], plan[2]
    if work.shape[0] < answers + 2 * wanted:
        return NO_ROOM
    tables = HEAD + 5 * wanted + 4 * scored
    outputs = plan[HEAD : HEAD + 5 * wanted].reshape(wanted, 5)
    scores = plan[HEAD + 5 * wanted : tables].reshape(scored, 4)
    texts = plan[tables:]
    places = work[answers : answers + 2 * wanted].reshape(wanted, 2)
    lines = 2 * answers + 1
    with_lines = table.shape[0] > lines
    bad = 0
    for i in range(answers):
        asked = table[i + 1] - table[i]
        begin, end = _answer(size, answers, table, i)
        code = _find_outputs(bodies, begin, end, texts, outputs, asked, places)
        work[i] = code
        if code < 0:
            bad += 1
            continue
        first = table[lines + i] if with_lines else table[i]
        count = np.int64(1) if with_lines else asked
        for s in range(scored):
            output, column = scores[s, OUTPUT], scores[s, COLUMN]
            place, answered = places[output, 0], places[output, 1]
            begun = at
            for line in range(first, first + count):
                if line == first or answered > 1:  # a single row is written once, for all
                    begun = at
                    for element in range(-outputs[output, WIDTH]):
                        length = _string_size(bodies, place)
                        place += 4
                        if scores[s, FIRST] <= element < scores[s, FIRST] + scores[s, SIZE]:
                            if at + length + 1 > stop:
                                return NO_ROOM
                            if element > scores[s, FIRST]:
                                heap[at] = 44  # ,
                                at += 1
                            at = _copy(bodies, place, length, heap, at)
                        place += length
                starts[line, column] = begun
                sizes[line, column] = at - begun
                states[line, column] = VALUE if at > begun else EMPTY
    return bad
