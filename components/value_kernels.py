"""Values of columns, as raw bytes or as text: what answers and BYTES tensors are made of.

The rules are those of `components.kernels`. Writing takes two steps: `collect_…` copies the values of each column,
in the form that is wanted, into one heap, and `write_…` puts them row by row behind their lengths. Text forms are
those of `components.numbers.text`, byte by byte.

Numbers with the fewest digits: Raffaello Giulietti, "The Schubfach way to render doubles"
(https://drive.google.com/file/d/1IEeATSVnEE6TkrHlCYNY2GjaraBjOT4f). It is exact, and needs no way out for hard
cases: one multiplication by a power of ten of 128 bits for the number and for both ends of its rounding interval.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from components.kernels import (
    ABSENT,
    EMPTY,
    I32,
    I32_2,
    I64,
    I64_2,
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
    _inside,
    _kernel,
    _put_varint,
    _varint_bytes,
)
from components.tensor_kernels import FP8E4M3_BITS, FP8E5M2_BITS, SIZES, _bits_of_half

__all__ = [
    "NUMBER_ROOM",
    "RAW",
    "collect_cells",
    "collect_texts",
    "collect_values",
    "show_cells",
    "write_cell_scores",
    "write_rows",
    "write_scores",
    "write_split_texts",
    "write_texts",
]

# Plain numbers, because kernels take no enums.
FP8E5M2, FP8E4M3, FP16, FP32, FP64 = 1, 2, 3, 4, 5
INT8, INT64, UINT8, UINT64, STRING, BOOL = 6, 9, 10, 13, 14, 15

RAW = 0
"""In the place of a type: the value as it is."""
NUMBER_ROOM = 25
"""Bytes that no number's text form exceeds, a comma included: -2.2250738585072014e-308."""

I64_2_OUT = types.int64[:, ::1]
I32_2_OUT = types.int32[:, ::1]

_FIRST_POWER = -292


def _power(exponent: int) -> int:
    """10^exponent, scaled by a power of two to 128 bits and rounded up."""
    bits = (exponent * 1741647 >> 19) - 127  # floor(log2(10^exponent)) − 127
    if exponent < 0:
        return -(-(1 << -bits) // 10**-exponent)
    return -(-(10**exponent) >> bits) if bits > 0 else 10**exponent << -bits


_POWERS = [_power(exponent) for exponent in range(_FIRST_POWER, 325)]
POWERS_HIGH = np.array([power >> 64 for power in _POWERS], np.uint64)
POWERS_LOW = np.array([power & (1 << 64) - 1 for power in _POWERS], np.uint64)

U0, U1, U2, U4, U10, U40 = (np.uint64(n) for n in (0, 1, 2, 4, 10, 40))
U32 = np.uint64(32)
LOW_HALF = np.uint64(0xFFFFFFFF)


@_inline
def _high_product(a, b):
    """The upper 64 of the 128 bits of a product."""
    a0, a1 = a & LOW_HALF, a >> U32
    b0, b1 = b & LOW_HALF, b >> U32
    middle = a1 * b0 + (a0 * b0 >> U32)
    other = a0 * b1 + (middle & LOW_HALF)
    return a1 * b1 + (middle >> U32) + (other >> U32)


@_inline
def _scaled(power, number):
    """number × power ÷ 2^128, rounded to odd: the lowest bit says whether anything was cut off."""
    carry = _high_product(POWERS_LOW[power], number)
    low = POWERS_HIGH[power] * number
    high = _high_product(POWERS_HIGH[power], number)
    low += carry
    if low < carry:
        high += U1
    return high | np.uint64(low > U1)


@_callee
def _shortest(fraction, exponent, fraction_bits, bias):
    """(digits, power): the shortest decimal digits × 10^power that read back as this float, the nearest of them.

    fraction, exponent: the fields of a finite float that is not zero; power may be such that digits end in 0.
    """
    if exponent:
        c = fraction | (U1 << np.uint64(fraction_bits))
        q = exponent - bias
    else:
        c = fraction
        q = 1 - bias
    closer = fraction == U0 and exponent > 1  # the next smaller float is only half as far away
    even = c & U1 == U0  # then a decimal at the very end of the interval reads back as this float
    k = (q * 1262611 - (524031 if closer else 0)) >> 22
    h = np.uint64(q + (-k * 1741647 >> 19) + 1)
    power = -k - _FIRST_POWER
    middle = c * U4
    low = _scaled(power, (middle - (U1 if closer else U2)) << h)
    value = _scaled(power, middle << h)
    high = _scaled(power, (middle + U2) << h)
    if not even:
        low += U1
        high -= U1
    s = value // U4
    if s >= U10:
        tens = s // U10
        down = low <= U40 * tens
        up = U40 * tens + U40 <= high
        if down != up:
            return tens + np.uint64(up), k + 1
    down = low <= U4 * s
    up = U4 * s + U4 <= high
    if down != up:
        return s + np.uint64(up), k
    half = U4 * s + U2
    return s + np.uint64(value > half or (value == half and s & U1 == U1)), k


@_inline
def _digits_of(number):
    """How many decimal digits a number has."""
    count = 1
    while number >= U10:
        number //= U10
        count += 1
    return count


@_inline
def _put_digits(number, count, out, at):
    """A number's `count` lowest decimal digits."""
    for i in range(at + count - 1, at - 1, -1):
        rest = number // U10
        out[i] = np.uint8(48) + np.uint8(number - rest * U10)
        number = rest
    return at + count


@_callee
def _put_float(negative, fraction, exponent, fraction_bits, bias, special, out, at):
    """The text form of a float by its fields; `special` is the exponent of NaN and of the infinities."""
    if exponent == special and fraction != U0:
        out[at], out[at + 1], out[at + 2] = 78, 97, 78  # NaN
        return at + 3
    if negative:
        out[at] = 45  # -
        at += 1
    if exponent == special:
        if not negative:
            out[at] = 43  # +
            at += 1
        out[at], out[at + 1], out[at + 2] = 73, 110, 102  # Inf
        return at + 3
    if exponent == 0 and fraction == U0:
        out[at] = 48
        return at + 1
    digits, power = _shortest(fraction, exponent, fraction_bits, bias)
    while digits % U10 == U0:
        digits //= U10
        power += 1
    count = _digits_of(digits)
    leading = power + count - 1  # the power of ten of the first digit
    if leading < -4 or leading >= 6:
        end = _put_digits(digits, count, out, at + 1)
        out[at] = out[at + 1]
        out[at + 1] = 46  # .
        at = end if count > 1 else at + 1
        out[at] = 101  # e
        out[at + 1] = 45 if leading < 0 else 43
        leading = abs(leading)
        return _put_digits(np.uint64(leading), 3 if leading >= 100 else 2, out, at + 2)
    if leading < 0:
        out[at], out[at + 1] = 48, 46  # 0.
        for i in range(-leading - 1):
            out[at + 2 + i] = 48
        return _put_digits(digits, count, out, at + 1 - leading)
    if power >= 0:
        at = _put_digits(digits, count, out, at)
        for i in range(power):
            out[at + i] = 48
        return at + power
    end = _put_digits(digits, count, out, at + 1)
    for i in range(leading + 1):
        out[at + i] = out[at + i + 1]
    out[at + leading + 1] = 46
    return end


@_callee
def _put_number(kind, data, start, out, at):
    """The text form of the element at data[start …]; returns the place after it."""
    size = SIZES[kind]
    word = U0
    for b in range(size):
        word |= np.uint64(data[start + b]) << np.uint64(8 * b)
    if kind == BOOL:
        if word != U0:
            out[at], out[at + 1], out[at + 2], out[at + 3] = 116, 114, 117, 101  # true
            return at + 4
        out[at], out[at + 1], out[at + 2], out[at + 3], out[at + 4] = 102, 97, 108, 115, 101  # false
        return at + 5
    if kind == FP64:
        negative = word >> np.uint64(63) != U0
        exponent = np.int64((word >> np.uint64(52)) & np.uint64(0x7FF))
        return _put_float(negative, word & np.uint64((1 << 52) - 1), exponent, 52, 1075, 0x7FF, out, at)
    if kind <= FP32:
        bits = np.uint32(word)
        if kind == FP16:
            bits = _bits_of_half(bits)
        elif kind == FP8E5M2:
            bits = FP8E5M2_BITS[bits]
        elif kind == FP8E4M3:
            bits = FP8E4M3_BITS[bits]
        exponent = np.int64((bits >> np.uint32(23)) & np.uint32(0xFF))
        fraction = np.uint64(bits & np.uint32(0x7FFFFF))
        return _put_float(bits >> np.uint32(31) != 0, fraction, exponent, 23, 150, 0xFF, out, at)
    if kind <= INT64:
        top = U1 << np.uint64(8 * size - 1)
        if word & top:
            out[at] = 45
            at += 1
            word = (~word + U1) & ((top - U1) | top)
    return _put_digits(word, _digits_of(word), out, at)


@_inline
def _form_room(kind, size):
    """Bytes that the form of a value of `size` bytes never exceeds."""
    element = kind - 15 if kind > 15 else kind
    if element in (RAW, STRING):
        return size
    return size // SIZES[element] * NUMBER_ROOM


@_inline
def _put_form(kind, data, start, size, out, at):
    """A value's form as `kind` (RAW: as it is); returns the place after it.

    Nothing for a value whose length does not fit. The caller has seen that there is `_form_room`.
    """
    element = kind - 15 if kind > 15 else kind
    if element in (RAW, STRING):
        return _copy(data, start, size, out, at)
    width = SIZES[element]
    if size % width or (kind <= 15 and size != width):
        return at
    for i in range(start, start + size, width):
        if i > start:
            out[at] = 44  # ,
            at += 1
        at = _put_number(element, data, i, out, at)
    return at


@_inline
def _is_kind(kind):
    """Whether this is RAW, or a type that has a text form."""
    element = kind - 15 if kind > 15 else kind
    return kind >= 0 and element <= BOOL and (element in (RAW, STRING) or SIZES[element] > 0)


@_kernel(INT(U8, U8_2, I32, I32, I32, I32, INT, U8_OUT, INT, I64_2_OUT, I32_2_OUT, INT))
def collect_cells(
    flat: Any,
    states: Any,
    index: Any,
    rows: Any,
    columns: Any,
    kinds: Any,
    width: Any,
    out: Any,
    at: Any,
    starts: Any,
    sizes: Any,
    first: Any,
) -> int:
    """Copies columns of a CellBlock into `out` from `at` on; returns the new `at`.

    kinds: of each column the type of which the text form is written, or RAW. The places go to starts, sizes
    [columns, rows] from line `first` on; size 0 for no value. UNUSUAL: an ODD cell. The caller vouches for rows,
    columns and index. Reference: columns.byte_values, columns.text_of.
    """
    if first < 0 or first + columns.shape[0] > starts.shape[0] or starts.shape[1] != rows.shape[0]:
        return NO_ROOM
    everything = states.shape[1]
    for j in range(columns.shape[0]):
        column, kind = np.int64(columns[j]), np.int64(kinds[j])
        if not _is_kind(kind):
            return UNUSUAL
        room = _form_room(kind, width)
        for i in range(rows.shape[0]):
            line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
            state = states[line, column] if line >= 0 else ABSENT
            begin = at
            if state == VALUE:
                if at + room > out.shape[0]:
                    return NO_ROOM
                at = _put_form(kind, flat, (line * everything + column) * width, width, out, at)
            elif state > EMPTY:
                return UNUSUAL
            starts[first + j, i] = begin
            sizes[first + j, i] = at - begin
    return at


@_kernel(INT(U8, I64_2, I32_2, I32, I32, I32, I32, U8_OUT, INT, I64_2_OUT, I32_2_OUT, INT))
def collect_values(
    heap: Any,
    from_starts: Any,
    from_sizes: Any,
    index: Any,
    rows: Any,
    columns: Any,
    kinds: Any,
    out: Any,
    at: Any,
    starts: Any,
    sizes: Any,
    first: Any,
) -> int:
    """The same for columns of a VarBlock. MALFORMED: a value that is not in the heap."""
    if first < 0 or first + columns.shape[0] > starts.shape[0] or starts.shape[1] != rows.shape[0]:
        return NO_ROOM
    for j in range(columns.shape[0]):
        column, kind = np.int64(columns[j]), np.int64(kinds[j])
        if not _is_kind(kind):
            return UNUSUAL
        for i in range(rows.shape[0]):
            line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
            size = np.int64(from_sizes[line, column]) if line >= 0 else np.int64(0)
            begin = at
            if size:
                start = from_starts[line, column]
                if not _inside(heap, start, size):
                    return MALFORMED
                if at + _form_room(kind, size) > out.shape[0]:
                    return NO_ROOM
                at = _put_form(kind, heap, start, size, out, at)
            starts[first + j, i] = begin
            sizes[first + j, i] = at - begin
    return at


@_kernel(INT(U8, I64, I32, INT, I32, INT, U8_OUT, INT, I64_2_OUT, I32_2_OUT, INT))
def collect_texts(
    heap: Any,
    from_starts: Any,
    from_sizes: Any,
    step: Any,
    rows: Any,
    kind: Any,
    out: Any,
    at: Any,
    starts: Any,
    sizes: Any,
    line: Any,
) -> int:
    """The same for one text or typed column (row r at r × step), into line `line` of starts and sizes."""
    if line < 0 or line >= starts.shape[0] or starts.shape[1] != rows.shape[0]:
        return NO_ROOM
    if not _is_kind(kind):
        return UNUSUAL
    for i in range(rows.shape[0]):
        start = from_starts[rows[i] * step]
        size = np.int64(from_sizes[rows[i] * step])
        begin = at
        if size:
            if not _inside(heap, start, size):
                return MALFORMED
            if at + _form_room(kind, size) > out.shape[0]:
                return NO_ROOM
            at = _put_form(kind, heap, start, size, out, at)
        starts[line, i] = begin
        sizes[line, i] = at - begin
    return at


@_kernel(INT(U8, INT, INT, INT, INT, INT, INT, I32, I32, U8_OUT, INT, types.int64[::1], types.int32[::1]))
def show_cells(
    heap: Any,
    cells_at: Any,
    states_at: Any,
    lines: Any,
    columns: Any,
    column: Any,
    kind: Any,
    index: Any,
    first_rows: Any,
    out: Any,
    at: Any,
    starts: Any,
    sizes: Any,
) -> int:
    """Writes the text forms of a column of numbers of type `kind` into `out` from `at` on; returns the new `at`.

    heap … columns: a CellBlock. By row the place of the form of line index[row] goes to starts, sizes: size 0 for
    no value, and for line −1. A form is written for the first row of each line, first_rows[line]. UNUSUAL: an ODD
    cell, or no type of numbers. MALFORMED: a place that is not in its array. Reference: columns.text_of.
    """
    if kind <= RAW or kind > BOOL or kind == STRING or SIZES[kind] == 0:
        return UNUSUAL
    width, cells = SIZES[kind], lines * columns
    if lines < 0 or column < 0 or column >= columns or cells_at < 0 or states_at < 0 or at < 0:
        return MALFORMED
    if cells_at + cells * width > heap.shape[0] or states_at + cells > heap.shape[0]:
        return MALFORMED
    rows = index.shape[0]
    if starts.shape[0] < rows or sizes.shape[0] < rows:
        return NO_ROOM
    for row in range(rows):
        line = np.int64(index[row])
        begin = at
        if line >= 0:
            if line >= lines or line >= first_rows.shape[0]:
                return MALFORMED
            first = np.int64(first_rows[line])
            if first < 0 or first > row:
                return MALFORMED
            if first < row:
                starts[row] = starts[first]
                sizes[row] = sizes[first]
                continue
            cell = line * columns + column
            state = heap[states_at + cell]
            if state > EMPTY:
                return UNUSUAL
            if state == VALUE:
                if at + NUMBER_ROOM > out.shape[0]:
                    return NO_ROOM
                at = _put_number(kind, heap, cells_at + cell * width, out, at)
        starts[row] = begin
        sizes[row] = at - begin
    return at


@_kernel(INT(INT, U8, I64_2, I32_2, INT, U8_OUT))
def write_scores(tag: Any, heap: Any, starts: Any, sizes: Any, errors: Any, out: Any) -> int:
    """Writes TargetScore messages (1 error, 2 output_values) as field `tag` (its one-byte tag).

    starts, sizes [columns, rows] of the values in `heap`; when `errors` is 1, the first column has the error
    texts, empty for none, when it is 0 there are none. Returns the bytes written. PairScore and SlateScore have
    the same fields. Reference: workers.responses with protobuf messages.
    """
    columns, rows = starts.shape
    at = 0
    for row in range(rows):
        inner = 0
        for column in range(columns):
            size = np.int64(sizes[column, row])
            if not _inside(heap, starts[column, row], size):
                return MALFORMED
            if size or column >= errors:
                inner += 1 + _varint_bytes(size) + size
        if at + 6 + inner > out.shape[0]:
            return NO_ROOM
        out[at] = tag
        at = _put_varint(out, at + 1, inner)
        for column in range(columns):
            size = np.int64(sizes[column, row])
            if size or column >= errors:
                out[at] = 0x0A if column < errors else 0x12
                at = _put_varint(out, at + 1, size)
                at = _copy(heap, starts[column, row], size, out, at)
    return at


@_kernel(INT(INT, U8, I64, I32, U8, INT, INT, INT, INT, INT, I32, I32, INT, U8_OUT))
def write_cell_scores(
    tag: Any,
    texts: Any,
    starts: Any,
    sizes: Any,
    heap: Any,
    cells_at: Any,
    states_at: Any,
    lines: Any,
    everything: Any,
    width: Any,
    index: Any,
    columns: Any,
    rows: Any,
    out: Any,
) -> int:
    """`write_scores` in one step for the usual answer: a text column, then raw columns of a CellBlock, no errors.

    texts, starts, sizes: the text column, of one text for all rows or one each. heap …: the block, `everything` is
    how many columns it has; index: as there, empty for line = row. UNUSUAL: an ODD cell. MALFORMED: a place that is
    not in its array. Reference: workers.responses with protobuf messages.
    """
    step = 1 if starts.shape[0] >= rows else 0
    if starts.shape[0] < 1 or sizes.shape[0] < starts.shape[0] or width < 0 or lines < 0 or cells_at < 0:
        return MALFORMED
    if states_at < 0 or states_at + lines * everything > heap.shape[0]:
        return MALFORMED
    if cells_at + lines * everything * width > heap.shape[0]:
        return MALFORMED
    for column in columns:
        if column < 0 or column >= everything:
            return MALFORMED
    if (index.shape[0] or lines) < rows:
        return MALFORMED
    head = 1 + _varint_bytes(width)
    at = 0
    for row in range(rows):
        start, size = starts[row * step], np.int64(sizes[row * step])
        line = np.int64(index[row]) if index.shape[0] else row
        if not _inside(texts, start, size) or line >= lines:
            return MALFORMED
        inner = 1 + _varint_bytes(size) + size
        for column in columns:
            state = heap[states_at + line * everything + column] if line >= 0 else ABSENT
            if state > EMPTY:
                return UNUSUAL
            inner += head + width if state == VALUE else 2
        if at + 6 + inner > out.shape[0]:
            return NO_ROOM
        out[at] = tag
        at = _put_varint(out, at + 1, inner)
        out[at] = 0x12
        at = _put_varint(out, at + 1, size)
        at = _copy(texts, start, size, out, at)
        for column in columns:
            cell = line * everything + column
            out[at] = 0x12
            if line >= 0 and heap[states_at + cell] == VALUE:
                at = _put_varint(out, at + 1, width)
                at = _copy(heap, cells_at + cell * width, width, out, at)
            else:
                out[at + 1] = 0
                at += 2
    return at


@_callee
def _utf8(data, start, stop):
    """Whether these bytes are UTF-8: RFC 3629, section 4."""
    at = start
    while at < stop:
        byte = np.int64(data[at])
        at += 1
        if byte < 0x80:
            continue
        if byte < 0xC2 or byte > 0xF4:
            return False
        more = 1 if byte < 0xE0 else (2 if byte < 0xF0 else 3)
        if at + more > stop:
            return False
        second = np.int64(data[at])
        least = 0xA0 if byte == 0xE0 else (0x90 if byte == 0xF0 else 0x80)
        most = 0x9F if byte == 0xED else (0x8F if byte == 0xF4 else 0xBF)
        if second < least or second > most:
            return False
        for i in range(at + 1, at + more):
            if data[i] & 0xC0 != 0x80:
                return False
        at += more
    return True


@_kernel(INT(U8, I64_2, I32_2, U8_OUT))
def write_rows(heap: Any, starts: Any, sizes: Any, out: Any) -> int:
    """Writes InferflowResponseProto.component_data (field 1, ComponentData{1 data}); returns the bytes written.

    starts, sizes [columns, rows] of the texts in `heap`. UNUSUAL: one that is not UTF-8. Reference:
    workers.responses with protobuf messages.
    """
    columns, rows = starts.shape
    at = 0
    for row in range(rows):
        inner = 0
        for column in range(columns):
            start, size = starts[column, row], np.int64(sizes[column, row])
            if not _inside(heap, start, size):
                return MALFORMED
            if not _utf8(heap, start, start + size):
                return UNUSUAL
            inner += 1 + _varint_bytes(size) + size
        if at + 6 + inner > out.shape[0]:
            return NO_ROOM
        out[at] = 0x0A
        at = _put_varint(out, at + 1, inner)
        for column in range(columns):
            size = np.int64(sizes[column, row])
            out[at] = 0x0A
            at = _put_varint(out, at + 1, size)
            at = _copy(heap, starts[column, row], size, out, at)
    return at


@_inline
def _put_nothing(out, at):
    """Writes an element of a BYTES tensor that says `0.0`; returns the place after it."""
    out[at], out[at + 1], out[at + 2], out[at + 3] = 3, 0, 0, 0
    out[at + 4], out[at + 5], out[at + 6] = 48, 46, 48
    return at + 7


@_kernel(INT(U8, I64, I32, INT, I32, INT, U8_OUT, types.int64[::1]))
def write_split_texts(
    heap: Any, starts: Any, sizes: Any, step: Any, rows: Any, count: Any, out: Any, ends: Any
) -> int:
    """`write_texts` of texts such as `a:b:c`, each split into its `count` elements; returns the bytes written.

    The text of row r is heap[starts[r × step] …]; step 0: all rows have one. In the place of an empty element
    stands `0.0`, and in that of an empty text as many of them. UNUSUAL: a text of another number of elements.
    The caller vouches for rows. Reference: TensorInput._split.
    """
    if count < 1 or ends.shape[0] < rows.shape[0]:
        return NO_ROOM
    at = 0
    for i in range(rows.shape[0]):
        start, size = starts[rows[i] * step], np.int64(sizes[rows[i] * step])
        if not _inside(heap, start, size):
            return MALFORMED
        if at + size + 7 * count > out.shape[0]:
            return NO_ROOM
        end = start + size
        for element in range(count):
            stop = start
            while stop < end and heap[stop] != 58:  # :
                stop += 1
            if size > 0 and (stop == end) != (element == count - 1):
                return UNUSUAL
            written = stop - start
            if written == 0:
                at = _put_nothing(out, at)
            else:
                for b in range(4):
                    out[at + b] = (written >> (8 * b)) & 0xFF
                at = _copy(heap, start, written, out, at + 4)
            start = min(stop + 1, end)
        ends[i] = at
    return at


@_kernel(INT(U8, I64_2, I32_2, I32, U8_OUT, types.int64[::1]))
def write_texts(heap: Any, starts: Any, sizes: Any, blanks: Any, out: Any, ends: Any) -> int:
    """Writes the elements of a BYTES tensor: row by row each text behind its length as u32.

    starts, sizes [columns, rows] of the texts in `heap`; in the place of an empty one stands `0.0`, blanks[column]
    times. ends[row]: where the row ends in `out`. Returns the bytes written. Reference: tensors.Tensor.
    """
    columns, rows = starts.shape
    if blanks.shape[0] < columns or ends.shape[0] < rows:
        return NO_ROOM
    at = 0
    for row in range(rows):
        for column in range(columns):
            start, size = starts[column, row], np.int64(sizes[column, row])
            if not _inside(heap, start, size):
                return MALFORMED
            written = size if size else 3 * np.int64(blanks[column])
            if written < 0 or at + 4 + written > out.shape[0]:
                return NO_ROOM
            for b in range(4):
                out[at + b] = (written >> (8 * b)) & 0xFF
            at += 4
            if size:
                at = _copy(heap, start, size, out, at)
                continue
            for _ in range(blanks[column]):
                out[at], out[at + 1], out[at + 2] = 48, 46, 48
                at += 3
        ends[row] = at
    return at
