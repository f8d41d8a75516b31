"""The hot loops of a request, compiled: wire bytes ↔ the arrays of a matrix.

Every kernel stands beside a reference written with protobuf objects (`onfs_wire`, say) and does the same for every
input, or says that it cannot: it returns a negative code, and the caller takes the reference's way or its error.

Rules: kernels release the GIL and make no Python objects; lengths are checked against the end of their bytes
before anything is read, and against the room of the output before anything is written; an output that was begun
before a negative code is garbage and is written again by whoever goes on. They are compiled, for fixed
signatures, when this module is first imported after an installation, and loaded from the cache after that.

Wire facts: https://protobuf.dev/programming-guides/encoding/. Fields may come in any order, unknown ones are
skipped, and so are known ones of another wire type; the last one of a scalar field counts. A tag has at most 32
bits, and tags and lengths have at most five bytes. A string that is not UTF-8 spoils its message even where
nobody reads it: kernels only look whether it is ASCII, and leave the others to the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types

from shared.kernel_calls import direct

__all__ = [
    "MALFORMED",
    "NO_ROOM",
    "UNUSUAL",
    "ask_keys",
    "distinct_keys",
    "encode_batches",
    "key_work",
    "read_result",
    "rows_begin",
]

MALFORMED = -1  # no message: truncated, a bad tag, a length that runs over
UNUSUAL = -2  # maybe a message, but not what this kernel is for: ask the reference
NO_ROOM = -3  # the output is too small: the caller's mistake

U8 = types.Array(types.uint8, 1, "C", readonly=True)
U8_OUT = types.uint8[::1]
I32 = types.Array(types.int32, 1, "C", readonly=True)
I32_OUT = types.int32[::1]
I64 = types.Array(types.int64, 1, "C", readonly=True)
I32_2 = types.Array(types.int32, 2, "C", readonly=True)
I64_2 = types.Array(types.int64, 2, "C", readonly=True)
U8_2 = types.Array(types.uint8, 2, "C", readonly=True)
INT = types.int64
PAIR = types.UniTuple(INT, 2)
BODY = types.Bytes(types.uint8, 1, "C")  # a bytes object as it is: half of what an array made of it costs

ZERO, ONE, TWO, THREE, FOUR, FIVE, EIGHT = (np.uint64(number) for number in (0, 1, 2, 3, 4, 5, 8))
TAG = np.uint64(0x12)  # field 2, length-delimited: a value in a row of features
ABSENT, VALUE, EMPTY = 0, 1, 2  # states of a cell, shared.shm_matrix

Function = TypeVar("Function", bound=Callable[..., Any])

_njit: Any = numba.njit  # its types do not tell of _nrt


def _inline(function: Function) -> Function:
    """Compiled into the kernels that call it."""
    return cast(Function, numba.njit(inline="always", nogil=True)(function))


def _callee(function: Function) -> Function:
    """Compiled once, called by kernels of the same file: what is long, or called from several places."""
    return cast(Function, _njit(nogil=True, error_model="numpy", _nrt=False)(function))


def _typed_callee(signature: Any) -> Callable[[Function], Function]:
    """A `_callee` with types of its own, whatever its callers have. Compiled on import, hence cached."""
    return cast(
        Callable[[Function], Function],
        _njit(signature, nogil=True, cache=True, error_model="numpy", _nrt=False),
    )


def _merged(function: Function) -> Function:
    """A callee that LLVM puts into its callers, with constants for what is constant there."""
    return cast(Function, _njit(nogil=True, error_model="numpy", forceinline=True, _nrt=False)(function))


def _kernel(signature: Any) -> Callable[[Function], Function]:
    """Compiled for this signature when the module is imported, or taken from the cache.

    Without numba's runtime, so kernels make no arrays: what they need comes with the call. The runtime counts who
    holds an array, with an atomic instruction wherever one is handed on in a loop. The caller holds those that a
    kernel takes. (Without it a call costs half as much, and a kernel of small functions a tenth.)
    """
    compiled = _njit(signature, nogil=True, cache=True, error_model="numpy", _nrt=False)

    def called(function: Function) -> Function:
        return cast(Function, direct(compiled(function)))

    return called


@_inline
def _inside(heap, start, size):
    """Whether a text stands in the heap."""
    return start >= 0 and size >= 0 and start + size <= heap.shape[0]


@_inline
def _varint(data, at, end):
    """(value, next) of a varint of at most five bytes; next is MALFORMED when it is longer or runs over."""
    if at < end and data[at] < 0x80:  # nearly always
        return np.int64(data[at]), at + 1
    value = np.int64(0)
    shift = 0
    while at < end and shift < 35:
        byte = np.int64(data[at])
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, MALFORMED


@_inline
def _tag(data, at, end):
    """(tag, next); next is MALFORMED for field 0 and for more than 32 bits."""
    tag, at = _varint(data, at, end)
    if tag < 8 or tag > 0xFFFFFFFF:
        return tag, MALFORMED
    return tag, at


@_inline
def _length(data, at, end):
    """(start, stop) of a length-delimited field whose length stands at `at`; MALFORMED when it runs over."""
    size, start = _varint(data, at, end)
    if start < 0 or size > end - start:
        return MALFORMED, MALFORMED
    return start, start + size


@_inline
def _skip_varint(data, at, end):
    """The place after a varint of at most ten bytes."""
    end = min(end, at + 10)
    while at < end:
        at += 1
        if data[at - 1] < 0x80:
            return at
    return MALFORMED


@_inline
def _skip(data, at, end, tag):
    """The place after a field with this tag that nobody reads; negative when it cannot be skipped."""
    wire = tag & 7
    if wire == 0:
        at = _skip_varint(data, at, end)
    elif wire == 1:
        at += 8
    elif wire == 2:
        _, at = _length(data, at, end)
    elif wire == 5:
        at += 4
    else:
        return UNUSUAL  # a group, which may well be one, or nothing
    return at if at <= end else MALFORMED


@_inline
def _ascii(data, start, stop):
    """Whether these bytes are ASCII, and so UTF-8 for certain."""
    high = np.uint8(0)
    for i in range(np.uint64(start), np.uint64(stop)):  # unsigned: without a look at negative indices
        high |= data[i]
    return high < 0x80


@_inline
def _skip_text(data, at, end):
    """The place after a string field that nobody reads; UNUSUAL when it may not be UTF-8."""
    start, stop = _length(data, at, end)
    if start < 0:
        return start
    return stop if _ascii(data, start, stop) else UNUSUAL


@_inline
def _put_varint(out, at, value):
    while value >= 0x80:
        out[at] = (value & 0x7F) | 0x80
        at += 1
        value >>= 7
    out[at] = value
    return at + 1


@_inline
def _varint_bytes(value):
    """Bytes of a varint."""
    size = 1
    while value >= 0x80:
        size += 1
        value >>= 7
    return size


@_inline
def _copy(source, start, size, out, at):
    """Copies bytes; returns the place after them.

    Unsigned, so that no index could be negative: only then whole words are copied, and 512 bytes take 20 ns
    instead of 900.
    """
    begin, to = np.uint64(start), np.uint64(at)
    for i in range(np.uint64(max(size, 0))):
        out[to + i] = source[begin + i]
    return at + size


# --- keys


def key_work(rows: int) -> int:
    """How many int32 `distinct_keys` and those after it need as `work` for so many rows.

    First the places of the keys: by key, its first row; then the number of each row's key, −1 when a part of it is
    empty; then a hash table, a power of two of at least 2 × rows. When the keys are found, the table is free: there
    stands how many rows have no key and, of queries, where each batch ends.
    """
    return 2 * rows + (1 << max(2 * rows - 1, 1).bit_length())


@_callee
def _find_keys(heap, starts, sizes, parts, rows, work):
    """See distinct_keys."""
    places = work.shape[0] - 2 * rows
    if places < 2 * rows or places < 2 or places & (places - 1) != 0 or starts.shape[0] < parts * rows:
        return np.int64(NO_ROOM)
    mask = places - 1
    table = 2 * rows
    work[table:] = -1
    count = np.int64(0)
    gaps = np.int32(0)
    for row in range(rows):
        hashed = np.uint64(0xCBF29CE484222325)  # FNV-1a
        whole = True
        for part in range(parts):
            start = starts[part * rows + row]
            size = np.int64(sizes[part * rows + row])
            if not _inside(heap, start, size):
                return np.int64(MALFORMED)
            if size == 0:
                whole = False
            for i in range(np.uint64(start), np.uint64(start + size)):
                hashed = (hashed ^ np.uint64(heap[i])) * np.uint64(0x100000001B3)
            hashed = (hashed ^ np.uint64(0x1FF)) * np.uint64(0x100000001B3)
        if not whole:
            work[rows + row] = -1
            gaps += np.int32(1)
            continue
        place = np.int64((hashed ^ (hashed >> np.uint64(32))) & np.uint64(mask))
        while True:
            key = np.int64(work[table + place])
            if key < 0:
                key = count
                work[table + place] = count
                work[count] = row
                count += 1
                break
            if _same_key(heap, starts, sizes, parts, rows, row, np.int64(work[key])):
                break
            place = (place + 1) & mask
        work[rows + row] = key
    work[table] = gaps
    return count


@_merged
def _same_key(heap, starts, sizes, parts, rows, row, other):
    """Whether two rows have the same key."""
    for part in range(0, parts * rows, rows):
        size = sizes[part + row]
        if sizes[part + other] != size:
            return False
        a = np.uint64(starts[part + row])
        b = np.uint64(starts[part + other])
        for i in range(np.uint64(size)):
            if heap[a + i] != heap[b + i]:
                return False
    return True


@_kernel(INT(U8, I64, I32, INT, INT, I32_OUT))
def distinct_keys(heap: Any, starts: Any, sizes: Any, parts: Any, rows: Any, work: Any) -> int:
    """Finds the distinct keys of the rows, in order of their first row; returns how many there are.

    starts, sizes [parts × rows]: the parts of each row's key in `heap`, part after part. `work` gets what
    `key_work` says and has its size.
    """
    return _find_keys(heap, starts, sizes, parts, rows, work)


@_callee
def _put_key(heap, starts, sizes, parts, rows, row, out, at):
    """Writes the entry of a query for the key of this row; the place after it, or a negative code."""
    size = np.int64(0)
    for part in range(row, parts * rows, rows):
        length = np.int64(sizes[part])
        size += 1 + _varint_bytes(length) + length
    if at + 11 + size > out.shape[0]:
        return np.int64(NO_ROOM)
    out[at] = 0x22
    at = _put_varint(out, at + 1, size)
    high = np.uint8(0)
    for part in range(row, parts * rows, rows):
        length = np.int64(sizes[part])
        out[at] = 0x0A
        at = _put_varint(out, at + 1, length)
        start, place = np.uint64(starts[part]), np.uint64(at)
        for i in range(np.uint64(length)):
            byte = heap[start + i]
            high |= byte
            out[place + i] = byte
        at += length
    return at if high < 0x80 else np.int64(UNUSUAL)


@_callee
def _put_batches(heap, starts, sizes, parts, rows, work, wanted, count, batch, out):
    """See encode_batches."""
    at = np.int64(0)
    ends = 2 * rows + 1
    for number in range(count):
        key = np.int64(wanted[number]) if wanted.shape[0] else number
        at = _put_key(heap, starts, sizes, parts, rows, np.int64(work[key]), out, at)
        if at < 0:
            return at
        if (number + 1) % batch == 0 or number + 1 == count:
            work[ends] = at
            ends += 1
    return at


@_kernel(INT(U8, I64, I32, INT, INT, I32_OUT, I32, INT, U8_OUT))
def encode_batches(
    heap: Any,
    starts: Any,
    sizes: Any,
    parts: Any,
    rows: Any,
    work: Any,
    wanted: Any,
    batch: Any,
    out: Any,
) -> int:
    """Writes Query.keys (field 4, Keys{1 cols}) of the `wanted` keys, in batches of `batch`; returns the bytes.

    All else as `distinct_keys` took and left it. Where each batch ends in `out` is written behind the rows without
    a key, see `key_work`. Reference: onfs_wire.encode_keys. UNUSUAL: a part that is not ASCII.
    """
    return _put_batches(heap, starts, sizes, parts, rows, work, wanted, wanted.shape[0], batch, out)


@_kernel(INT(U8, I64, I32, INT, INT, I32_OUT, INT, U8_OUT))
def ask_keys(
    heap: Any, starts: Any, sizes: Any, parts: Any, rows: Any, work: Any, batch: Any, out: Any
) -> int:
    """`distinct_keys`, then `encode_batches` of all of them; returns how many there are."""
    count = _find_keys(heap, starts, sizes, parts, rows, work)
    if count < 0:
        return count
    size = _put_batches(heap, starts, sizes, parts, rows, work, work[:0], count, batch, out)
    return size if size < 0 else count


# --- feature rows


@_inline
def _skip_feature_schema(data, at, end):
    """The place after a Result's FeatureSchema, which nobody reads; UNUSUAL when it is not written as usual.

    As usual: 1 label, then 2 features{1 label, 2 column_idx}. A closer look would cost as much as ten rows.
    """
    at, end = _length(data, at, end)
    while 0 <= at < end:
        if data[at] == 0x0A:
            at = _skip_text(data, at + 1, end)
        elif data[at] == 0x12:
            at, stop = _length(data, at + 1, end)
            if 0 <= at < stop and data[at] == 0x0A:
                at = _skip_text(data, at + 1, stop)
            if 0 <= at < stop and data[at] == 0x10:
                at = _skip_varint(data, at + 1, stop)
            if at != stop:
                return UNUSUAL
        else:
            return UNUSUAL
    return at


COUNT, WIDTH, CELLS, STRIDE, STATES, STATE_STRIDE, SIZES, SIZE_STRIDE = range(
    8
)  # columns of read_result's table
RUN_COLUMNS = 8


@_merged
def _usual_cells(body, at, stop, count, width, heap, words, cell, state):
    """Reads up to `count` fields that are written as usual: tag, one byte of length, `width` bytes or none.

    (how many, the place after them). All are unsigned, which spares a look at negative indices at each access.
    """
    whole, none = TAG | (width << EIGHT), TAG
    done = ZERO
    while done < count and at + width + TWO <= stop:
        head = np.uint64(np.uint16(body[at]) | (np.uint16(body[at + ONE]) << np.uint16(8)))
        if head == whole:
            if width == FOUR:
                words[cell] = (
                    np.uint32(body[at + TWO])
                    | (np.uint32(body[at + THREE]) << np.uint32(8))
                    | (np.uint32(body[at + FOUR]) << np.uint32(16))
                    | (np.uint32(body[at + FIVE]) << np.uint32(24))
                )
            else:
                for i in range(width):
                    heap[cell + i] = body[at + TWO + i]
            heap[state] = VALUE
            at += width + TWO
        elif head == none:
            heap[state] = EMPTY
            at += TWO
        else:
            break
        done += ONE
        state += ONE
        cell += ONE if width == FOUR else width
    return done, at


@_callee
def _read_row(body, at, stop, line, table, heap, base, words, longs, values, values_at):
    """Reads the values of a Row (field 2 columns) into a line; the new values_at, or a negative code."""
    for run in range(table.shape[0]):
        left = table[run, COUNT]
        width = table[run, WIDTH]
        cell = base + table[run, CELLS] + line * table[run, STRIDE]
        state = base + table[run, STATES] + line * table[run, STATE_STRIDE]
        size_at = base + table[run, SIZES] + line * table[run, SIZE_STRIDE]
        usual = 0 < width < 0x80 and (width != 4 or cell & 3 == 0)
        while left > 0:
            if usual:
                begin, end, most, place = np.uint64(at), np.uint64(stop), np.uint64(left), np.uint64(state)
                if width == 4:  # a constant: so it is half of the loop's work
                    done, after = _usual_cells(
                        body, begin, end, most, FOUR, heap, words, np.uint64(cell >> 2), place
                    )
                else:
                    wide = np.uint64(width)
                    done, after = _usual_cells(
                        body, begin, end, most, wide, heap, words, np.uint64(cell), place
                    )
                at = np.int64(after)
                left -= np.int64(done)
                cell += width * np.int64(done)
                state += np.int64(done)
                if left == 0:
                    break
            if at >= stop:
                return UNUSUAL
            tag, at = _tag(body, at, stop)
            if at < 0:
                return at
            if tag != 0x12:
                at = _skip_text(body, at, stop) if tag == 0x0A else _skip(body, at, stop, tag)
                if at < 0:
                    return at
                continue
            start, at = _length(body, at, stop)
            if start < 0:
                return MALFORMED
            size = at - start
            if width == 0:
                if values_at + size > values.shape[0]:
                    return NO_ROOM
                longs[cell >> 3] = values_at
                words[size_at >> 2] = size
                values_at = _copy(body, start, size, values, values_at)
                cell += 8
                size_at += 4
            elif size == width or size == 0:
                _copy(body, start, size, heap, cell)
                cell += width
            else:
                return UNUSUAL
            heap[state] = VALUE if size != 0 else EMPTY
            state += 1
            left -= 1
    while at < stop:
        tag, at = _tag(body, at, stop)
        if at < 0:
            return at
        if tag == 0x12:
            return UNUSUAL
        at = _skip_text(body, at, stop) if tag == 0x0A else _skip(body, at, stop, tag)
        if at < 0:
            return at
    return values_at


@_merged
def _skip_beside_rows(body, at, end, tag):
    """The place after a field of a Result that is no row; negative when it cannot be skipped."""
    if tag == 0x0A or tag == 0x12:
        return _skip_text(body, at, end)
    if tag == 0x1A:
        return _skip_feature_schema(body, at, end)
    return _skip(body, at, end, tag)


@_kernel(INT(BODY))
def rows_begin(body: Any) -> int:
    """Where the first row of a Result begins, its size when there is none; negative as `read_result`."""
    at = 0
    end = len(body)
    while at < end:
        tag, after = _tag(body, at, end)
        if after < 0 or tag == 0x22:
            return after if after < 0 else at
        at = _skip_beside_rows(body, after, end, tag)
        if at < 0:
            return at
    return at


@_kernel(PAIR(BODY, INT, I32, I64_2, U8_OUT, INT, U8_OUT, INT))
def read_result(
    body: Any, begin: Any, lines: Any, table: Any, heap: Any, base: Any, values: Any, values_at: Any
) -> tuple[int, int]:
    """Reads a Result (field 4 rows{2 columns}) of as many rows as `lines` has, row i into line lines[i].

    Reading begins at `begin`: 0, or where `rows_begin` said that the rows of a Result that began alike do.
    table [runs, 8] says where the values go, a row for each run of COUNT values that are asked for, and lie, one
    behind the other; places in `heap`, in bytes from `base`. Those of WIDTH bytes of line l begin at CELLS + l ×
    STRIDE. WIDTH 0 are variable ones, which go to `values` from `values_at` on: where each starts is an int64 at
    CELLS + l × STRIDE …, its size an int32 at SIZES + l × SIZE_STRIDE …. The states begin at STATES + l ×
    STATE_STRIDE. The caller vouches that all lines and places stay inside heap, that those of numbers are multiples
    of their size, and that heap's size is one of 8.
    Returns the new values_at, and how many rows have a VALUE for the first feature; or a negative code, and 0.
    UNUSUAL: other numbers of rows or values than asked for, or a value whose length does not fit. Reference:
    onfs_wire.decode_rows and Lines._read_reference.
    """
    at = begin
    end = len(body)
    count = lines.shape[0]
    words, longs = heap.view(np.uint32), heap.view(np.int64)
    first_at, first_stride = base + table[0, STATES], table[0, STATE_STRIDE]
    first_values = row = 0
    while at < end:
        tag, at = _tag(body, at, end)
        if at < 0:
            return at, 0
        if tag != 0x22:
            at = _skip_beside_rows(body, at, end, tag)
            if at < 0:
                return at, 0
            continue
        inner, stop = _length(body, at, end)
        if inner < 0:
            return MALFORMED, 0
        at = stop
        if row >= count:
            return UNUSUAL, 0
        line = np.int64(lines[row])
        values_at = _read_row(body, inner, stop, line, table, heap, base, words, longs, values, values_at)
        if values_at < 0:
            return values_at, 0
        if heap[first_at + line * first_stride] == VALUE:
            first_values += 1
        row += 1
    return (values_at, first_values) if row == count else (UNUSUAL, 0)
