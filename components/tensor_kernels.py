"""Cells and values of a matrix, gathered side by side and converted: what numeric tensors are made of.

The rules are those of `components.kernels`, the conversions those of `components.numbers.convert`, bit by bit.
A row is converted in two steps over small buffers, from its type into a carrier (float64, or int64, which hold
every number of the narrower types) and from there into the type that is wanted: 14 + 14 loops instead of 14 × 14.
Their indices are unsigned and their buffers typed, so that the compiler can make vectors of them.

Kernels of one file may call each other: a cached kernel is compiled again when *its* file changes, and only then.
What is taken from `components.kernels` is too small to change.
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
    EMPTY,
    I32,
    I32_2,
    I32_OUT,
    I64,
    I64_2,
    INT,
    NO_ROOM,
    ONE,
    TWO,
    U8,
    UNUSUAL,
    VALUE,
    _callee,
    _copy,
    _inline,
    _inside,
    _kernel,
    _merged,
)
from shared.datatypes import DataType

__all__ = ["CARRIERS", "cell_recipe", "common_size", "gather_cells", "gather_numbers", "gather_values"]

# Plain numbers, because kernels take no enums.
FP8E5M2, FP8E4M3, FP16, FP32, FP64 = 1, 2, 3, 4, 5
INT8, INT16, INT32, INT64 = 6, 7, 8, 9
UINT8, UINT16, UINT32, UINT64 = 10, 11, 12, 13
BOOL = 15

SIZES = np.array([kind.size for kind in DataType if not kind.is_vector], np.int64)  # by element type

# The float32 bits of every number of the two smallest types.
_BYTES = np.arange(256, dtype=np.uint8)
FP8E5M2_BITS = _BYTES.view(DataType.FP8E5M2.dtype).astype(np.float32).view(np.uint32)
FP8E4M3_BITS = _BYTES.view(DataType.FP8E4M3.dtype).astype(np.float32).view(np.uint32)

U8_2_OUT = types.uint8[:, ::1]
I64_OUT = types.int64[::1]


@_inline
def _bits_of_half(half):
    """The float32 bits of a float16."""
    half = np.uint32(half)
    sign = (half & np.uint32(0x8000)) << np.uint32(16)
    exponent = (half >> np.uint32(10)) & np.uint32(0x1F)
    fraction = half & np.uint32(0x3FF)
    if exponent == np.uint32(0x1F):
        return sign | np.uint32(0x7F800000) | (fraction << np.uint32(13))
    if exponent:
        return sign | ((exponent + np.uint32(112)) << np.uint32(23)) | (fraction << np.uint32(13))
    if fraction == 0:
        return sign
    exponent = np.uint32(113)
    while not fraction & np.uint32(0x400):
        fraction <<= np.uint32(1)
        exponent -= np.uint32(1)
    return sign | (exponent << np.uint32(23)) | ((fraction & np.uint32(0x3FF)) << np.uint32(13))


@_inline
def _truncated_half(bits):
    """The float16 of a float32 by `numbers.convert`: clamped to ±65000, low bits dropped, small ones zero."""
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude > np.uint32(0x7F800000):
        return sign | np.uint32(0x7E00)
    if magnitude < np.uint32(0x38800000):  # 2^-14
        return sign
    magnitude = min(magnitude, np.uint32(0x477DE800))  # 65000
    return sign | ((magnitude >> np.uint32(13)) - np.uint32(112 << 10))


@_inline
def _rounded_byte(bits, fraction_bits, least, infinity, largest, nan):
    """A float32 as a float of eight bits, to nearest, ties to even; `least` is its smallest normal exponent.

    `infinity` stands for the infinities, and for what is above `largest`.
    """
    sign = (bits >> np.uint32(24)) & np.uint32(0x80)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude > np.uint32(0x7F800000):
        return sign | np.uint32(nan)
    if magnitude == np.uint32(0x7F800000):
        return sign | np.uint32(infinity)
    exponent = np.int64(magnitude >> np.uint32(23)) - 127
    if exponent < -24:
        return sign
    whole = np.int64(magnitude & np.uint32(0x7FFFFF)) | 0x800000
    drop = 23 - fraction_bits + max(least - exponent, 0)
    kept = whole >> drop
    rest = whole - (kept << drop)
    half = np.int64(1) << (drop - 1)
    if rest > half or (rest == half and kept & 1):
        kept += 1
    byte = (max(exponent - least, 0) << fraction_bits) + kept
    if byte > largest:
        byte = infinity
    return sign | np.uint32(byte)


@_inline
def _whole(number, least, floor, ceiling, most):
    """A float as an integer, by `numbers.convert`: within floor ≤ number < ceiling its own, else a limit."""
    number = np.trunc(number)
    if number >= ceiling:
        return np.int64(most)
    if number < floor:
        return np.int64(least)
    return np.int64(number) if number == number else np.int64(0)


@_inline
def _whole_unsigned(number):
    """A float as the bits of a UINT64: of an INT64 where it is negative."""
    number = np.trunc(number)
    if number >= 18446744073709551616.0:
        return np.int64(-1)
    if number >= 9223372036854775808.0:
        return np.int64(number - 9223372036854775808.0) + np.int64(-9223372036854775808)
    if number < -9223372036854775808.0:
        return np.int64(0)
    return np.int64(number) if number == number else np.int64(0)


CARRIERS = 4  # int64 an element that is converted needs


@_inline
def _carriers(carriers):
    """The carriers in `carriers` (int64): integers, floats as float64, bits of floats of up to 32 bits; and bytes.

    The bytes are those of elements before they are carried, and after that.
    """
    count = carriers.shape[0] // CARRIERS
    return (
        carriers[:count],
        carriers[count : 2 * count].view(np.float64),
        carriers[2 * count : 3 * count].view(np.uint32),
        carriers[3 * count : 4 * count].view(np.uint8),
    )


@_inline
def _widened(narrow, count, integers, at):
    """Integers of any width as int64."""
    to = np.uint64(at)
    for i in range(np.uint64(count)):
        integers[to + i] = np.int64(narrow[i])


@_callee
def _load(source, data, start, count, carriers, at):
    """Elements start … of `data` into the carrier of their type, from place `at` on; see `_carriers`.

    The caller vouches for all bounds.
    """
    integers, carried, bits, plain = _carriers(carriers)
    _copy(data, start, count * SIZES[source], plain, 0)
    to = np.uint64(at)
    if source <= FP32:
        singles = bits.view(np.float32)
        if source == FP32:
            _copy(plain, 0, 4 * count, bits.view(np.uint8), 4 * at)
        elif source == FP16:
            halves = plain.view(np.uint16)
            for i in range(np.uint64(count)):
                bits[to + i] = _bits_of_half(halves[i])
        elif source == FP8E5M2:
            for i in range(np.uint64(count)):
                bits[to + i] = FP8E5M2_BITS[plain[i]]
        else:
            for i in range(np.uint64(count)):
                bits[to + i] = FP8E4M3_BITS[plain[i]]
        for i in range(to, to + np.uint64(count)):
            carried[i] = singles[i]
    elif source == FP64:
        _copy(plain, 0, 8 * count, carried.view(np.uint8), 8 * at)
    elif source == BOOL:
        for i in range(np.uint64(count)):
            integers[to + i] = plain[i] != 0
    elif source == INT8:
        _widened(plain.view(np.int8), count, integers, at)
    elif source == INT16:
        _widened(plain.view(np.int16), count, integers, at)
    elif source == INT32:
        _widened(plain.view(np.int32), count, integers, at)
    elif source == UINT8:
        _widened(plain, count, integers, at)
    elif source == UINT16:
        _widened(plain.view(np.uint16), count, integers, at)
    elif source == UINT32:
        _widened(plain.view(np.uint32), count, integers, at)
    else:  # INT64, and the bits of a UINT64
        _widened(plain.view(np.int64), count, integers, at)


@_inline
def _clear(start, count, carriers):
    """Zeros in all carriers."""
    integers, carried, bits, _ = _carriers(carriers)
    for i in range(np.uint64(start), np.uint64(start + count)):
        integers[i] = 0
        carried[i] = 0.0
        bits[i] = 0


@_inline
def _to_singles(source, count, carriers):
    """The carried elements as float32, where those of small floats are already."""
    integers, carried, bits, _ = _carriers(carriers)
    singles = bits.view(np.float32)
    if source == FP64:
        for i in range(np.uint64(count)):
            singles[i] = np.float32(carried[i])
    elif source == UINT64:
        for i in range(np.uint64(count)):
            singles[i] = np.float32(np.uint64(integers[i]))
    elif source > FP64:
        for i in range(np.uint64(count)):
            singles[i] = np.float32(integers[i])


@_inline
def _to_doubles(source, count, carriers):
    """The carried elements as float64."""
    integers, carried, bits, plain = _carriers(carriers)
    doubles, words = plain.view(np.float64), plain.view(np.int64)
    if source == UINT64:
        for i in range(np.uint64(count)):
            doubles[i] = np.float64(np.uint64(integers[i]))
    elif source > FP64:
        for i in range(np.uint64(count)):
            doubles[i] = np.float64(integers[i])
    else:
        for i in range(np.uint64(count)):
            doubles[i] = carried[i]
        if source == FP16:
            for i in range(np.uint64(count)):
                if carried[i] != carried[i]:
                    # Signalling or quiet, as it is: the processor's conversions make every NaN quiet.
                    sign = np.int64(bits[i] >> np.uint32(31)) << 63
                    words[i] = sign | 0x7FF0000000000000 | (np.int64(bits[i] & np.uint32(0x7FFFFF)) << 29)


@_inline
def _to_integers(target, count, carriers):
    """The carried floats as integers of type `target`, each in an int64."""
    integers, carried, _, _ = _carriers(carriers)
    for i in range(np.uint64(count)):
        number = carried[i]
        if target == INT8:
            integers[i] = _whole(number, -128, -128.0, 128.0, 127)
        elif target == INT16:
            integers[i] = _whole(number, -32768, -32768.0, 32768.0, 32767)
        elif target == INT32:
            integers[i] = _whole(number, -2147483648, -2147483648.0, 2147483648.0, 2147483647)
        elif target == INT64:
            integers[i] = _whole(
                number,
                -9223372036854775808,
                -9223372036854775808.0,
                9223372036854775808.0,
                9223372036854775807,
            )
        elif target == UINT8:
            integers[i] = _whole(number, 0, -2147483648.0, 2147483648.0, 0xFF)
        elif target == UINT16:
            integers[i] = _whole(number, 0, -2147483648.0, 2147483648.0, 0xFFFF)
        elif target == UINT32:
            integers[i] = _whole(number, 0, -9223372036854775808.0, 9223372036854775808.0, 0xFFFFFFFF)
        else:
            integers[i] = _whole_unsigned(number)


@_callee
def _store(source, target, count, carriers, out, at):
    """The first `count` carried elements as `target`, into `out` from `at` on; all carriers may be overwritten."""
    integers, carried, bits, plain = _carriers(carriers)
    if target == FP64:
        _to_doubles(source, count, carriers)
    elif target <= FP32:
        _to_singles(source, count, carriers)
        if target == FP32:
            _copy(bits.view(np.uint8), 0, 4 * count, out, at)
            return
        if target == FP16:
            halves = plain.view(np.uint16)
            for i in range(np.uint64(count)):
                halves[i] = _truncated_half(bits[i])
        elif target == FP8E5M2:
            for i in range(np.uint64(count)):
                plain[i] = _rounded_byte(bits[i], 2, -14, 0x7C, 0x7B, 0x7E)
        else:
            for i in range(np.uint64(count)):
                plain[i] = _rounded_byte(bits[i], 3, -6, 0x7F, 0x7E, 0x7F)
    elif target == BOOL:
        if source <= FP64:
            for i in range(np.uint64(count)):
                plain[i] = carried[i] != 0
        else:
            for i in range(np.uint64(count)):
                plain[i] = integers[i] != 0
    else:
        if source <= FP64:
            _to_integers(target, count, carriers)
        size = SIZES[target]
        if size == 8:
            _copy(integers.view(np.uint8), 0, 8 * count, out, at)
            return
        words, halves = plain.view(np.uint32), plain.view(np.uint16)
        if size == 4:
            for i in range(np.uint64(count)):
                words[i] = np.uint32(integers[i] & 0xFFFFFFFF)
        elif size == 2:
            for i in range(np.uint64(count)):
                halves[i] = np.uint16(integers[i] & 0xFFFF)
        else:
            for i in range(np.uint64(count)):
                plain[i] = np.uint8(integers[i] & 0xFF)
    _copy(plain, 0, count * SIZES[target], out, at)


@_inline
def _zero(out, at, size):
    for i in range(np.uint64(at), np.uint64(at + size)):
        out[i] = 0


@_inline
def _known(kind):
    """Whether this is an element type of numbers."""
    return kind >= FP8E5M2 and kind <= BOOL and SIZES[kind] > 0


WIDTH, SOURCE, TARGET, PIECES = range(4)  # places in a recipe


def cell_recipe(width: int, source: int, target: int, columns: Sequence[int]) -> npt.NDArray[np.int32]:
    """What `gather_cells` is to do: cells of these columns, `width` bytes each, from one type into another.

    Neighbouring columns become one piece, which is copied as a whole.
    """
    pieces: list[list[int]] = []
    for column in columns:
        if pieces and column == sum(pieces[-1]):
            pieces[-1][1] += 1
        else:
            pieces.append([column, 1])
    return np.array([width, source, target, *itertools.chain(*pieces)], np.int32)


@_callee
def _count_states(heap, start, count):
    """How many of these states are ABSENT; UNUSUAL when one is ODD."""
    absent = np.int64(0)
    for i in range(np.uint64(start), np.uint64(start + count)):  # unsigned: see _ascii
        if heap[i] > EMPTY:
            return UNUSUAL
        absent += heap[i] == ABSENT
    return absent


@_merged
def _copy_values(words, at, heap, states_at, count, out, to):
    """Copies `count` cells that are one word each; zeros where there is no VALUE. All arguments are unsigned.

    Returns whether all of them are a VALUE or EMPTY, looked at bit by bit: so it is vector instructions throughout.
    """
    zero = words.dtype.type(0)
    seen = np.uint8(0)
    for i in range(count):
        state = heap[states_at + i]
        seen |= np.uint8(state - np.uint8(VALUE))  # VALUE: 0, EMPTY: 1, ABSENT: 255
        out[to + i] = words[at + i] if state == VALUE else zero
    return seen < np.uint8(2)


@_callee
def _gather_words(heap, cells, cells_at, states_at, columns, index, rows, recipe, out, stride, at):
    """`gather_cells` of cells that are one word of `cells` and `out` each, and stay as they are."""
    absent = np.int64(0)
    for i in range(np.uint64(rows.shape[0])):
        line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
        place = np.int64(i) * stride + at
        for p in range(np.uint64(PIECES), np.uint64(recipe.shape[0]), TWO):
            first, count = np.int64(recipe[p]), np.int64(recipe[p + ONE])
            if line < 0:
                absent += count
                for k in range(count):
                    out[place + k] = 0
            else:
                start = line * columns + first
                usual = _copy_values(
                    *(cells, np.uint64(cells_at + start), heap, np.uint64(states_at + start)),
                    *(np.uint64(count), out, np.uint64(place)),
                )
                if not usual:
                    missing = _count_states(heap, states_at + start, count)
                    if missing < 0:
                        return missing
                    absent += missing
            place += count
    return absent


@_callee
def _gather_plain(heap, cells_at, states_at, columns, index, rows, recipe, out, stride, at):
    """`gather_cells` of cells of any width that stay as they are."""
    width = np.int64(recipe[WIDTH])
    absent = np.int64(0)
    for i in range(rows.shape[0]):
        line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
        place = i * stride + at
        for p in range(PIECES, recipe.shape[0], 2):
            count = np.int64(recipe[p + 1])
            first = line * columns + recipe[p]
            if line >= 0:
                _copy(heap, cells_at + first * width, count * width, out, place)
            for cell in range(first, first + count):
                state = heap[states_at + cell] if line >= 0 else ABSENT
                if state > EMPTY:
                    return UNUSUAL
                absent += state == ABSENT
                if state != VALUE:
                    _zero(out, place, width)
                place += width
    return absent


@_callee
def _gather_converted(heap, cells_at, states_at, columns, index, rows, recipe, out, stride, at, carriers):
    """`gather_cells` of cells that are converted: all of a row at once."""
    width = np.int64(recipe[WIDTH])
    source, target = np.int64(recipe[SOURCE]), np.int64(recipe[TARGET])
    count = width // SIZES[source]  # elements a cell
    elements = np.int64(0)
    for p in range(PIECES, recipe.shape[0], 2):
        elements += count * recipe[p + 1]
    if carriers.shape[0] < CARRIERS * elements:
        return NO_ROOM
    absent = np.int64(0)
    for i in range(rows.shape[0]):
        line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
        element = np.int64(0)
        for p in range(PIECES, recipe.shape[0], 2):
            first = line * columns + recipe[p]
            if line >= 0:
                _load(source, heap, cells_at + first * width, count * recipe[p + 1], carriers, element)
            for cell in range(first, first + recipe[p + 1]):
                state = heap[states_at + cell] if line >= 0 else ABSENT
                if state > EMPTY:
                    return UNUSUAL
                absent += state == ABSENT
                if state != VALUE:
                    _clear(element, count, carriers)
                element += count
        _store(source, target, elements, carriers, out, i * stride + at)
    return absent


@_kernel(INT(U8, INT, INT, INT, I32, I32, I32, U8_2_OUT, INT, I64_OUT))
def gather_cells(
    heap: Any,
    cells_at: Any,
    states_at: Any,
    columns: Any,
    index: Any,
    rows: Any,
    recipe: Any,
    out: Any,
    at: Any,
    carriers: Any,
) -> int:
    """Copies cells of a block side by side, converted: out[i, at …] = the cells of the recipe in row rows[i].

    heap, cells_at, states_at, columns and index [matrix rows] as in CellBlock (empty: line = row); recipe as
    `cell_recipe` makes it. What has no value becomes zero bytes. `carriers` is scratch: CARRIERS for each element
    of a row, when they are converted. Returns how many cells were ABSENT. UNUSUAL: an ODD cell. NO_ROOM: too few
    carriers. The caller vouches that rows, columns and index stay inside, and that `out` is wide enough.
    Reference: tensors with `columns.cells` and `numbers.convert`.
    """
    source, target, width = np.int64(recipe[SOURCE]), np.int64(recipe[TARGET]), np.int64(recipe[WIDTH])
    if not (_known(source) and _known(target)) or width % SIZES[source]:
        return UNUSUAL
    flat = out.reshape(out.size)
    stride = out.shape[1]
    whole = (flat.shape[0] | cells_at | stride | at) & (width - 1) == 0  # everything lies where words do
    if source == target and width == 4 and whole:
        cells, words = heap[: heap.shape[0] & ~3].view(np.uint32), flat.view(np.uint32)
        return _gather_words(
            heap, cells, cells_at >> 2, states_at, columns, index, rows, recipe, words, stride >> 2, at >> 2
        )
    if source == target and width == 8 and whole:
        pairs, longs = heap[: heap.shape[0] & ~7].view(np.uint64), flat.view(np.uint64)
        return _gather_words(
            heap, pairs, cells_at >> 3, states_at, columns, index, rows, recipe, longs, stride >> 3, at >> 3
        )
    if source == target and width == 1:
        return _gather_words(heap, heap, cells_at, states_at, columns, index, rows, recipe, flat, stride, at)
    if source == target:
        return _gather_plain(heap, cells_at, states_at, columns, index, rows, recipe, flat, stride, at)
    return _gather_converted(
        heap, cells_at, states_at, columns, index, rows, recipe, flat, stride, at, carriers
    )


@_kernel(INT(I32_2, I32, I32, INT))
def common_size(sizes: Any, index: Any, rows: Any, column: Any) -> int:
    """The size that all values of a column of a VarBlock have in these rows; 0 when there are none.

    UNUSUAL: they have several.
    """
    common = 0
    for i in range(rows.shape[0]):
        line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
        size = sizes[line, column] if line >= 0 else 0
        if size and size != common:
            if common:
                return UNUSUAL
            common = size
    return common


@_kernel(INT(U8, I64_2, I32_2, I32, I32, INT, INT, INT, INT, U8_2_OUT, INT, I64_OUT))
def gather_values(
    heap: Any,
    starts: Any,
    sizes: Any,
    index: Any,
    rows: Any,
    column: Any,
    count: Any,
    source: Any,
    target: Any,
    out: Any,
    at: Any,
    carriers: Any,
) -> int:
    """Copies one column of values of `count` elements, converted: out[i, at …] = the value of row rows[i].

    heap, starts, sizes, index as in VarBlock. What has no value (size 0) becomes zero bytes. Returns how many
    those were. UNUSUAL: a value of another length, or one that is not in the heap. Carriers, and what the caller
    vouches for, as in `gather_cells`. Reference: tensors with `columns.elements` and `numbers.convert`.
    """
    if not (_known(source) and _known(target)) or count < 0:
        return UNUSUAL
    width = count * SIZES[source]
    wide = count * SIZES[target]
    converts = source != target
    if converts and carriers.shape[0] < CARRIERS * count:
        return NO_ROOM
    flat = out.reshape(out.size)
    stride = out.shape[1]
    missing = 0
    for i in range(rows.shape[0]):
        line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
        size = np.int64(sizes[line, column]) if line >= 0 else np.int64(0)
        place = i * stride + at
        if size == 0:
            missing += 1
            _zero(flat, place, wide)
            continue
        start = starts[line, column]
        if size != width or start < 0 or start + size > heap.shape[0]:
            return UNUSUAL
        if converts:
            _load(source, heap, start, count, carriers, 0)
            _store(source, target, count, carriers, flat, place)
        else:
            _copy(heap, start, size, flat, place)
    return missing


# --- texts of numbers

MOST_DIGITS = 18  # of a number that is read here: fewer than an int64 has
POWERS = np.array([10.0**power for power in range(23)])  # those that are exact
EXACT = np.uint64(1 << 53)  # up to here float64 has every integer


@_callee
def _read_decimal(heap, at, end, carriers):
    """Reads a decimal number that float64 arithmetic rounds once; False when it is none, or not so easy.

    digits × 10^power with both factors exact in float64 is the float64 nearest to the number: William Clinger, "How
    to Read Floating Point Numbers Accurately" (1990).
    """
    negative = heap[at] == 45
    if negative or heap[at] == 43:
        at += 1
    digits = np.uint64(0)
    count = 0
    power = np.int64(0)
    seen = point = False
    while at < end:
        byte = np.int64(heap[at])
        if byte >= 48 and byte <= 57:
            seen = True
            count += digits != 0 or byte != 48
            if count > MOST_DIGITS:
                return False
            digits = digits * np.uint64(10) + np.uint64(byte - 48)
            power -= point
        elif byte == 46 and not point:
            point = True
        else:
            break
        at += 1
    if not seen:
        return False
    if at < end:
        if heap[at] | 0x20 != 101 or at + 1 == end:  # e
            return False
        at += 1
        below = heap[at] == 45
        if below or heap[at] == 43:
            at += 1
        if at == end or end - at > 4:
            return False
        exponent = np.int64(0)
        for i in range(at, end):
            if heap[i] < 48 or heap[i] > 57:
                return False
            exponent = 10 * exponent + np.int64(heap[i]) - 48
        power += -exponent if below else exponent
    number = np.float64(digits)
    if digits != 0:
        if digits > EXACT or abs(power) > 22:
            return False
        number = number / POWERS[-power] if power < 0 else number * POWERS[power]
    _, carried, _, _ = _carriers(carriers)
    carried[0] = -number if negative else number
    return True


@_inline
def _to_single(carriers):
    """The carried float64 of a text as the float32 nearest to the text, which becomes the carried number, too.

    False when it is infinite, or may be another one: when the text is not the float64, and that stands between two
    float32.
    """
    _, carried, bits, plain = _carriers(carriers)
    plain.view(np.float64)[0] = carried[0]
    dropped = plain.view(np.int64)[0] & ((1 << 29) - 1)
    size = abs(carried[0])
    if dropped == 1 << 28 or (size != 0.0 and size < 1.1754943508222875e-38):
        return False
    bits.view(np.float32)[0] = np.float32(carried[0])
    if bits[0] & np.uint32(0x7FFFFFFF) == np.uint32(0x7F800000):
        return False  # too large: alone it is zero, but it spoils a vector
    carried[0] = bits.view(np.float32)[0]  # what is converted further is the number that was read
    return True


@_inline
def _read_integer(heap, at, end, kind, carriers):
    """Reads an integer of this type; False when it is none, out of range, or not so easy."""
    signed = kind <= INT64
    negative = heap[at] == 45
    if signed and (negative or heap[at] == 43):
        at += 1
    if at == end or end - at > MOST_DIGITS:
        return False
    number = np.int64(0)
    for i in range(at, end):
        if heap[i] < 48 or heap[i] > 57:
            return False
        number = 10 * number + np.int64(heap[i]) - 48
    size = SIZES[kind]
    if size < 8:
        most = np.int64(1) << (8 * size - (1 if signed else 0))  # the first that is too large
        if number >= most + (1 if signed and negative else 0):
            return False  # as in _to_single
    integers, _, _, _ = _carriers(carriers)
    integers[0] = -number if signed and negative else number
    return True


@_inline
def _is_true(heap, at, end):
    """Whether a text is `true`, in any case."""
    return end - at == 4 and (
        heap[at] | 0x20 == 116
        and heap[at + 1] | 0x20 == 114
        and heap[at + 2] | 0x20 == 117
        and heap[at + 3] | 0x20 == 101
    )


@_callee
def _read_number(heap, at, end, kind, carriers):
    """Reads a text that is not empty into the carrier of its type; False when the reference is to do it."""
    integers, _, _, _ = _carriers(carriers)
    if kind == BOOL:
        integers[0] = _is_true(heap, at, end)
        return True
    if kind >= INT8:
        return _read_integer(heap, at, end, kind, carriers)
    if not _read_decimal(heap, at, end, carriers):
        return False
    return kind == FP64 or _to_single(carriers)


@_callee
def _read_numbers(heap, start, end, count, read_as, target, carriers, out, place):
    """Reads a text of `count` numbers with `:` between them; False when the reference is to do it."""
    for element in range(count):
        stop = start
        while stop < end and (heap[stop] != 58 or count == 1):
            stop += 1
        if stop == start or (stop == end) != (element == count - 1):
            return False
        if not _read_number(heap, start, stop, read_as, carriers):
            return False
        _store(read_as, target, 1, carriers, out, place)
        place += SIZES[target]
        start = stop + 1
    return True


@_kernel(INT(U8, I64, I32, INT, INT, I32, INT, INT, INT, U8_2_OUT, INT, I64_OUT, I32_OUT))
def gather_numbers(
    heap: Any,
    starts: Any,
    sizes: Any,
    step: Any,
    first: Any,
    rows: Any,
    count: Any,
    read_as: Any,
    target: Any,
    out: Any,
    at: Any,
    carriers: Any,
    left: Any,
) -> int:
    """Reads texts as numbers of type `read_as` and writes them as `target`: out[i, at …] is that of row rows[i].

    The text of row r is heap[starts[r × step + first] …]; step 0: all rows have one. It is a number, or, when
    `count` is not 1, so many with `:` between them. An empty one, and that of row −1, becomes zero bytes.
    Returns how many rows are left to the reference, whose positions are in left [rows]: texts of more than
    MOST_DIGITS digits, in hexadecimal, infinite, with underscores, out of range, no numbers, or not so many.
    UNUSUAL: types that are not read here (BOOL only if alone), or a text that is not in the heap. Carriers as in
    `gather_cells`, for one element; the caller vouches for rows and `out` as there. Reference: `numbers.parse` or
    `numbers.parse_vectors`, then `numbers.convert`.
    """
    if (
        not (_known(read_as) and _known(target))
        or read_as < FP32
        or count < 1
        or (read_as == BOOL and count > 1)
    ):
        return UNUSUAL
    if carriers.shape[0] < CARRIERS or left.shape[0] < rows.shape[0]:
        return NO_ROOM
    flat = out.reshape(out.size)
    stride = out.shape[1]
    wide = count * SIZES[target]
    missed = 0
    for i in range(rows.shape[0]):
        place = i * stride + at
        if rows[i] < 0:
            _zero(flat, place, wide)
            continue
        text = np.int64(rows[i]) * step + first
        start, size = starts[text], np.int64(sizes[text])
        if not _inside(heap, start, size):
            return UNUSUAL
        if step == 0 and i > 0 and missed == 0:
            _copy(flat, at, wide, flat, place)
        elif size == 0:
            _zero(flat, place, wide)
        elif not _read_numbers(heap, start, start + size, count, read_as, target, carriers, flat, place):
            left[missed] = i
            missed += 1
    return missed
