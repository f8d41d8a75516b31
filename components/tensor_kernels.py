"""Cells and values of a matrix, gathered side by side and converted: what numeric tensors are made of.

The rules are those of `components.kernels`, the conversions those of `components.numbers.convert`, bit by bit.
A row is converted in two steps over small buffers, from its type into a carrier (float64, or int64, which hold
every number of the narrower types) and from there into the type that is wanted: 14 + 14 loops instead of 14 × 14,
each of which the compiler can unroll.

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
    I64_2,
    INT,
    U8,
    UNUSUAL,
    VALUE,
    _callee,
    _inline,
    _kernel,
    _maker,
)
from shared.datatypes import DataType

__all__ = ["cell_recipe", "common_size", "gather_cells", "gather_values"]

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


@_callee
def _load(source, data, start, count, bits, carried, integers, at):
    """Elements start … of `data` into the carrier of their type, from place `at` on.

    bits: uint32, those of a float of up to 32 bits; carried: float64; integers: int64. The caller vouches for
    all bounds.
    """
    singles = bits.view(np.float32)
    if source == FP32:
        for i in range(count):
            p = start + 4 * i
            bits[at + i] = (
                np.uint32(data[p])
                | (np.uint32(data[p + 1]) << np.uint32(8))
                | (np.uint32(data[p + 2]) << np.uint32(16))
                | (np.uint32(data[p + 3]) << np.uint32(24))
            )
    elif source == FP16:
        for i in range(count):
            p = start + 2 * i
            bits[at + i] = _bits_of_half(np.uint32(data[p]) | (np.uint32(data[p + 1]) << np.uint32(8)))
    elif source == FP8E5M2:
        for i in range(count):
            bits[at + i] = FP8E5M2_BITS[data[start + i]]
    elif source == FP8E4M3:
        for i in range(count):
            bits[at + i] = FP8E4M3_BITS[data[start + i]]
    if source <= FP32:
        for i in range(count):
            carried[at + i] = singles[at + i]
        return
    size = SIZES[source]
    signed = source >= INT8 and source <= INT64
    for i in range(count):
        p = start + size * i
        number = np.int64(0)
        for b in range(size):
            number |= np.int64(data[p + b]) << (8 * b)
        if signed and size < 8 and data[p + size - 1] >= 0x80:
            number -= np.int64(1) << (8 * size)
        if source == BOOL and number != 0:
            number = np.int64(1)
        integers[at + i] = number
    if source == FP64:
        doubles = integers.view(np.float64)
        for i in range(at, at + count):
            carried[i] = doubles[i]


@_inline
def _put_words(words, count, size, out, at):
    """The low `size` bytes of each of the words."""
    for i in range(count):
        word = words[i]
        for b in range(size):
            out[at] = (word >> (8 * b)) & 0xFF
            at += 1


@_callee
def _store(source, target, count, bits, carried, integers, out, at):
    """The first `count` carried elements as `target`, into `out` from `at` on.

    `carried` is what is stored when `source` is a float type, else `integers`; both may be overwritten.
    """
    singles = bits.view(np.float32)
    floats = source <= FP64
    if target == FP64:
        doubles = integers.view(np.float64)
        for i in range(count):
            if source == FP16 and carried[i] != carried[i]:
                # Signalling or quiet, as it is: the processor's conversions make every NaN quiet.
                sign = np.int64(bits[i] >> np.uint32(31)) << 63
                integers[i] = sign | 0x7FF0000000000000 | (np.int64(bits[i] & np.uint32(0x7FFFFF)) << 29)
            elif floats:
                doubles[i] = carried[i]
            elif source == UINT64:
                doubles[i] = np.float64(np.uint64(integers[i]))
            else:
                doubles[i] = np.float64(integers[i])
        _put_words(integers, count, 8, out, at)
        return
    if target <= FP32:
        if source == FP64:
            for i in range(count):
                singles[i] = np.float32(carried[i])
        elif floats:
            pass  # the bits are there already
        elif source == UINT64:
            for i in range(count):
                singles[i] = np.float32(np.uint64(integers[i]))
        else:
            for i in range(count):
                singles[i] = np.float32(integers[i])
        if target == FP32:
            for i in range(count):
                word = bits[i]
                out[at] = word & 0xFF
                out[at + 1] = (word >> 8) & 0xFF
                out[at + 2] = (word >> 16) & 0xFF
                out[at + 3] = (word >> 24) & 0xFF
                at += 4
        elif target == FP16:
            for i in range(count):
                half = _truncated_half(bits[i])
                out[at] = half & 0xFF
                out[at + 1] = (half >> 8) & 0xFF
                at += 2
        elif target == FP8E5M2:
            for i in range(count):
                out[at + i] = _rounded_byte(bits[i], 2, -14, 0x7C, 0x7B, 0x7E)
        else:
            for i in range(count):
                out[at + i] = _rounded_byte(bits[i], 3, -6, 0x7F, 0x7E, 0x7F)
        return
    if target == BOOL:
        for i in range(count):
            out[at + i] = carried[i] != 0 if floats else integers[i] != 0
        return
    if floats:
        for i in range(count):
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
    _put_words(integers, count, SIZES[target], out, at)


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
    odd = np.uint8(0)
    for i in range(np.uint64(start), np.uint64(start + count)):  # unsigned: see _ascii
        absent += heap[i] == ABSENT
        odd |= heap[i] > EMPTY
    return UNUSUAL if odd else absent


@_callee
def _copy_values(words, at, heap, states_at, count, out, to):
    """Copies `count` cells that are one word each; zeros where there is no VALUE."""
    zero = words.dtype.type(0)
    for i in range(np.uint64(count)):
        word = words[np.uint64(at) + i]
        out[np.uint64(to) + i] = word if heap[np.uint64(states_at) + i] == VALUE else zero


@_callee
def _gather_words(heap, cells, cells_at, states_at, columns, index, rows, recipe, out, stride, at):
    """`gather_cells` of cells that are one word of `cells` and `out` each, and stay as they are."""
    absent = np.int64(0)
    for i in range(rows.shape[0]):
        line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
        place = i * stride + at
        for p in range(PIECES, recipe.shape[0], 2):
            first, count = np.int64(recipe[p]), np.int64(recipe[p + 1])
            if line < 0:
                absent += count
                for k in range(count):
                    out[place + k] = 0
            else:
                start = line * columns + first
                missing = _count_states(heap, states_at + start, count)
                if missing < 0:
                    return missing
                absent += missing
                _copy_values(cells, cells_at + start, heap, states_at + start, count, out, place)
            place += count
    return absent


@_maker
def _gather_any(heap, cells_at, states_at, columns, index, rows, recipe, out, stride, at):
    """`gather_cells` of cells of any width and type."""
    width = np.int64(recipe[WIDTH])
    source, target = np.int64(recipe[SOURCE]), np.int64(recipe[TARGET])
    count = width // SIZES[source]  # elements a cell
    wide = count * SIZES[target]
    elements = np.int64(0)
    for p in range(PIECES, recipe.shape[0], 2):
        elements += count * recipe[p + 1]
    converts = source != target
    carriers = elements if converts else 0
    bits = np.empty(carriers, np.uint32)
    carried = np.empty(carriers, np.float64)
    integers = np.empty(carriers, np.int64)
    absent = 0
    for i in range(rows.shape[0]):
        line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
        place = i * stride + at
        element = 0
        for p in range(PIECES, recipe.shape[0], 2):
            for column in range(np.int64(recipe[p]), np.int64(recipe[p]) + np.int64(recipe[p + 1])):
                cell = line * columns + column
                state = heap[states_at + cell] if line >= 0 else ABSENT
                if state > EMPTY:
                    return UNUSUAL
                absent += state == ABSENT
                start = cells_at + cell * width
                if converts and state == VALUE:
                    _load(source, heap, start, count, bits, carried, integers, element)
                elif converts:
                    bits[element : element + count] = 0
                    carried[element : element + count] = 0.0
                    integers[element : element + count] = 0
                elif state == VALUE:
                    for b in range(width):
                        out[place + b] = heap[start + b]
                else:
                    for b in range(width):
                        out[place + b] = 0
                element += count
                place += wide
        if converts:
            _store(source, target, carriers, bits, carried, integers, out, i * stride + at)
    return absent


@_kernel(INT(U8, INT, INT, INT, I32, I32, I32, U8_2_OUT, INT), makes_arrays=True)
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
) -> int:
    """Copies cells of a block side by side, converted: out[i, at …] = the cells of the recipe in row rows[i].

    heap, cells_at, states_at, columns and index [matrix rows] as in CellBlock (empty: line = row); recipe as
    `cell_recipe` makes it. What has no value becomes zero bytes. Returns how many cells were ABSENT.
    UNUSUAL: an ODD cell. The caller vouches that rows, columns and index stay inside, and that `out` is wide
    enough. Reference: tensors with `columns.cells` and `numbers.convert`.
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
    return _gather_any(heap, cells_at, states_at, columns, index, rows, recipe, flat, stride, at)


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


@_kernel(INT(U8, I64_2, I32_2, I32, I32, INT, INT, INT, INT, U8_2_OUT, INT), makes_arrays=True)
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
) -> int:
    """Copies one column of values of `count` elements, converted: out[i, at …] = the value of row rows[i].

    heap, starts, sizes, index as in VarBlock. What has no value (size 0) becomes zero bytes. Returns how many
    those were. UNUSUAL: a value of another length, or one that is not in the heap. The caller vouches as in
    `gather_cells`. Reference: tensors with `columns.elements` and `numbers.convert`.
    """
    if not (_known(source) and _known(target)) or count < 0:
        return UNUSUAL
    width = count * SIZES[source]
    wide = count * SIZES[target]
    converts = source != target
    carriers = count if converts else 0
    bits = np.empty(carriers, np.uint32)
    carried = np.empty(carriers, np.float64)
    integers = np.empty(carriers, np.int64)
    flat = out.reshape(out.size)
    stride = out.shape[1]
    missing = 0
    for i in range(rows.shape[0]):
        line = np.int64(index[rows[i]]) if index.shape[0] else np.int64(rows[i])
        size = np.int64(sizes[line, column]) if line >= 0 else np.int64(0)
        place = i * stride + at
        if size == 0:
            missing += 1
            for b in range(place, place + wide):
                flat[b] = 0
            continue
        start = starts[line, column]
        if size != width or start < 0 or start + size > heap.shape[0]:
            return UNUSUAL
        if converts:
            _load(source, heap, start, count, bits, carried, integers, 0)
            _store(source, target, count, bits, carried, integers, flat, place)
        else:
            flat[place : place + size] = heap[start : start + size]
    return missing
