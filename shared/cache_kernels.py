"""The loops of the feature cache, compiled: keys → digests → records, for a whole request in one call.

The memory is an array of 64-bit words that any number of processes read and write at the same moment, without
locks:

    head (16 words) · index: sets of 8 ways · log: the records, one behind the other, round and round

A **record** is a header of 2 words (check, life) and the bytes of a line. `life` is the time when it ends (ms,
monotonic clock) × 2²⁴ + the words of its line. A record's **place** is the number of words that were ever written
to the log before it: it is there as long as the log has not gone round since. Room is taken by adding to the
head's counter, the only atomic step. A **set** has, for each way, the second half of a digest (the first half
chooses the set), a place, and a life: words 0–7, 8–15 and 16–23.

Why this is safe: what a reader has copied out counts only if the check of the copy is right, and the check
covers the line, the key's digest, the life and the place. Whatever a reader finds instead (a record half written, a
writer killed, bytes overwritten while they were read, an index entry of two writers) is a miss. Nothing is
waited for, and nothing has to be put right after a death.

A record that is read in the oldest quarter of the log is written again at its end: what is used stays, what is
not goes, first in, first out.

The rules of `components.kernels` hold here, too. Reference: `mmh3` for the digests, a dict for the rest
(tests/shared/test_feature_cache.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shared.cache_memory import HEAD_AT, HEADER_WORDS, SET_WORDS, WAYS, sets_of

__all__ = [
    "BASE",
    "COUNTERS",
    "EVICTED",
    "EXPIRED",
    "HITS",
    "INSERTED",
    "LIFE_BITS",
    "MISSES",
    "RECORD_WORDS",
    "RENEWED",
    "SIZE",
    "STRIDE",
    "TOO_LARGE",
    "TORN",
    "insert",
    "look_up",
]

RECORD_WORDS = 2
LIFE_BITS = 24
LARGEST_SHARE = 8  # a record takes at most so much of the log

HITS, MISSES, EXPIRED, TORN, INSERTED, EVICTED, RENEWED, TOO_LARGE = range(8)
COUNTERS = 8

BASE, STRIDE, SIZE = range(3)  # columns of the table of a line's pieces

VALUE, ODD = 1, 3  # states of a cell, shared.shm_matrix

U8 = types.Array(types.uint8, 1, "C", readonly=True)
U8_OUT = types.uint8[::1]
U64_OUT = types.uint64[::1]
U64_2_OUT = types.uint64[:, ::1]
I32 = types.Array(types.int32, 1, "C", readonly=True)
I32_OUT = types.int32[::1]
I32_2 = types.Array(types.int32, 2, "C", readonly=True)
I32_2_OUT = types.int32[:, ::1]
I64_2 = types.Array(types.int64, 2, "C", readonly=True)
I64_2_OUT = types.int64[:, ::1]
INT = types.int64
WORD = types.uint64

Function = TypeVar("Function", bound=Callable[..., Any])


def _inline(function: Function) -> Function:
    """Compiled into the kernels that call it."""
    return cast(Function, numba.njit(inline="always", nogil=True, error_model="numpy")(function))


def _aside(function: Function) -> Function:
    """Called by kernels, for what is rare or has loops of its own over arrays that the caller's loop does not need:
    inlined, it would have the caller count references to them at every turn, which costs more than all else.
    """
    return cast(Function, numba.njit(nogil=True, error_model="numpy")(function))


def _kernel(signature: Any) -> Callable[[Function], Function]:
    """Compiled for this signature when the module is imported, or taken from the cache."""
    return cast(
        Callable[[Function], Function], numba.njit(signature, nogil=True, cache=True, error_model="numpy")
    )


def _atomic_add(_context, array, _place, _value):
    """Adds to array[place] in one step, whoever else does at the same moment; the value before."""

    def generate(context, builder, signature, arguments):
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        target = builder.gep(made.data, [arguments[1]])
        return builder.atomic_rmw("add", target, arguments[2], "monotonic")

    return array.dtype(array, types.intp, array.dtype), generate


def _copy_bytes(_context, source, _start, _size, out, _at):
    """memcpy: among so much else the compiler makes no fast loop of a copy, and of small ones least of all."""

    def generate(context, builder, signature, arguments):
        read = context.make_array(signature.args[0])(context, builder, arguments[0])
        written = context.make_array(signature.args[3])(context, builder, arguments[3])
        begin = builder.gep(read.data, [arguments[1]])
        target = builder.gep(written.data, [arguments[4]])
        cgutils.raw_memcpy(builder, target, begin, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp), generate


_add: Any = intrinsic(_atomic_add)
_move: Any = intrinsic(_copy_bytes)

U = np.uint64
ZERO, ONE, EIGHT = U(0), U(1), U(8)
C1, C2 = U(0x87C37B91114253D5), U(0x4CF5AD432745937F)  # of MurmurHash3_x64_128
LENGTH_BYTES = 4
LIFE_MASK = U((1 << LIFE_BITS) - 1)
LIFE_SHIFT = U(LIFE_BITS)


@_inline
def _rotated(word, bits):
    return (word << U(bits)) | (word >> U(64 - bits))


# --- digests: MurmurHash3_x64_128 of a prefix of 16 bytes and, for each part of a key, its length (u32) and bytes


@_inline
def _mixed(one, two, low, high):
    """The state after another 16 bytes."""
    one ^= _rotated(low * C1, 31) * C2
    one = (_rotated(one, 27) + two) * U(5) + U(0x52DCE729)
    two ^= _rotated(high * C2, 33) * C1
    two = (_rotated(two, 31) + one) * U(5) + U(0x38495AB5)
    return one, two


@_inline
def _avalanche(word):
    word = (word ^ (word >> U(33))) * U(0xFF51AFD7ED558CCD)
    word = (word ^ (word >> U(33))) * U(0xC4CEB9FE1A85EC53)
    return word ^ (word >> U(33))


@_inline
def _put(one, two, low, high, filled, byte):
    """One byte more: the state, and the up to 15 bytes that are not mixed in yet."""
    if filled < 8:
        low |= U(byte) << (U(filled) * EIGHT)
    else:
        high |= U(byte) << (U(filled - 8) * EIGHT)
    filled += 1
    if filled == 16:
        one, two = _mixed(one, two, low, high)
        low, high, filled = ZERO, ZERO, 0
    return one, two, low, high, filled


@_inline
def _digest(one, two, heap, starts, sizes, row):
    """The digest of the key in this row; `one`, `two` is the state after the prefix."""
    low, high = ZERO, ZERO
    filled = 0
    length = 16
    for part in range(starts.shape[0]):
        start = starts[part, row]
        size = np.int64(sizes[part, row])
        for shift in range(0, 8 * LENGTH_BYTES, 8):
            one, two, low, high, filled = _put(one, two, low, high, filled, (size >> shift) & 0xFF)
        for i in range(start, start + size):
            one, two, low, high, filled = _put(one, two, low, high, filled, heap[i])
        length += LENGTH_BYTES + int(size)
    if filled > 8:
        two ^= _rotated(high * C2, 33) * C1
    if filled > 0:
        one ^= _rotated(low * C1, 31) * C2
    one ^= U(length)
    two ^= U(length)
    one += two
    two += one
    one, two = _avalanche(one), _avalanche(two)
    one += two
    return one, two + one


# --- the memory


_sets = _inline(sets_of)


@_inline
def _set_at(first, sets):
    """Where the set of a digest with this first half begins."""
    return HEADER_WORDS + SET_WORDS * np.int64(((first >> U(32)) * U(sets)) >> U(32))


@_inline
def _check(mixed, place, first, second, life):
    """The check word of a record whose line's words are `mixed`."""
    word = _rotated((mixed ^ place) * C1, 31) ^ first
    word = _rotated(word * C2, 29) ^ second
    word = _rotated(word * C1, 27) ^ life
    return _avalanche(word * C2)


@_inline
def _mix(lane, word):
    # The rotation brings the high bits down: a product alone never would, and the sign of a float is the top bit.
    return _rotated((lane ^ word) * C1, 29)


@_inline
def _copy_words(source, start, count, out, at):
    """Copies words and returns their mix. Each is read once: what is mixed is what was copied."""
    a, b, c, d = U(1), U(2), U(3), U(4)  # four chains, since each multiplication waits for the one before
    start, at = U(start), U(at)  # unsigned: without a look at negative indices
    whole = U(count) & ~U(3)
    for i in range(ZERO, whole, U(4)):
        w = source[start + i]
        x = source[start + i + ONE]
        y = source[start + i + U(2)]
        z = source[start + i + U(3)]
        out[at + i] = w
        out[at + i + ONE] = x
        out[at + i + U(2)] = y
        out[at + i + U(3)] = z
        a = _mix(a, w)
        b = _mix(b, x)
        c = _mix(c, y)
        d = _mix(d, z)
    for i in range(whole, U(count)):
        w = source[start + i]
        out[at + i] = w
        a = _mix(a, w)
    return _mix(_mix(_mix(a, b), c), d)


@_aside
def _append(words, log, span, line, count, first, second, life):
    """Writes a record behind all others; returns its place, 0 when others took all room that is in one piece."""
    size = RECORD_WORDS + count
    for _ in range(4):
        place = _add(words, HEAD_AT, U(size))
        at = np.int64(place % U(span))
        if at + size <= span:
            at += log
            mixed = _copy_words(line, 0, count, words, at + RECORD_WORDS)
            words[at] = _check(mixed, place, first, second, life)
            words[at + 1] = life
            return place
    return ZERO


@_aside
def _enter(words, log, span, now, first, second, place, life):
    """Notes a record in the index; returns how many living entries of other keys had to go."""
    at = _set_at(first, (log - HEADER_WORDS) // SET_WORDS)
    head = words[HEAD_AT]
    chosen = at
    best = U(0xFFFFFFFFFFFFFFFF)
    for way in range(at, at + WAYS):
        tag = words[way]
        if tag == second:
            chosen = way
            best = ZERO
            break
        old = words[way + WAYS]
        ended = words[way + 2 * WAYS] >> LIFE_SHIFT <= now
        worth = ZERO if tag == ZERO else ONE if old + U(span) < head or ended else old
        if worth < best:
            chosen = way
            best = worth
    tag = words[chosen]
    evicted = tag != ZERO and tag != second and words[chosen + 2 * WAYS] >> LIFE_SHIFT > now
    words[chosen + WAYS] = place
    words[chosen + 2 * WAYS] = life
    words[chosen] = second
    return 1 if evicted else 0


@_aside
def _keep(words, log, span, now, line, first, second, life, counts, counter):
    """Writes a record behind all others and notes it in the index."""
    place = _append(words, log, span, line, np.int64(life & LIFE_MASK), first, second, life)
    if place != ZERO:
        counts[EVICTED] += _enter(words, log, span, now, first, second, place, life)
        counts[counter] += 1


@_aside
def _count(counters, counts):
    """Adds the counts of one call to those of the process, which has other threads."""
    for counter in range(COUNTERS):
        if counts[counter]:
            _add(counters, counter, U(counts[counter]))


@_inline
def _way(words, at, second):
    """Where in a set the second half of a digest stands, −1 when it does not."""
    found = -1
    for way in range(at, at + WAYS):
        if words[way] == second:
            found = way
    return found


# --- a request's lines. The bytes of a line: u32 sizes of its variable values, then its pieces (cells and states),
# then the variable values; zeros up to a whole word.


@_inline
def _fixed_bytes(pieces, columns):
    """Bytes of a line before its variable values."""
    size = 4 * columns
    for piece in range(pieces.shape[0]):
        size += pieces[piece, SIZE]
    return size


@_aside
def _place_values(wide, key, room, starts, sizes, heap_at):
    """Notes where the variable values of a line will stand; returns their bytes, −1 when there is no room."""
    used = 0
    for column in range(sizes.shape[1]):
        size = int(wide[column])
        if size < 0 or size > room - used:
            return -1
        used += size
    place = heap_at
    for column in range(sizes.shape[1]):
        starts[key, column] = place
        sizes[key, column] = wide[column]
        place += int(wide[column])
    return used


@_aside
def _odd(arena, base, pieces, states, key):
    """Whether a line has an ODD cell."""
    odd = False
    for piece in range(states, pieces.shape[0]):
        begin = base + pieces[piece, BASE] + key * pieces[piece, STRIDE]
        for i in range(
            U(begin), U(begin + pieces[piece, SIZE])
        ):  # unsigned: without a look at negative indices
            odd |= arena[i] == ODD
    return odd


@_aside
def _values(sizes, key):
    """Bytes of a line's variable values."""
    size = 0
    for column in range(sizes.shape[1]):
        size += int(sizes[key, column])
    return size


@_aside
def _longest(lines, sizes, fixed, largest):
    """Words of the longest of these lines, `largest` at most."""
    longest = 0
    if sizes.shape[1]:
        for number in range(lines.shape[0]):
            longest = max(longest, _values(sizes, lines[number]))
    return min((fixed + longest + 7) // 8, largest)


@_aside
def _pack_values(narrow, wide, key, fixed, starts, sizes, heap):
    """Gathers the variable values of a line and their sizes."""
    at = fixed
    for column in range(sizes.shape[1]):
        size = sizes[key, column]
        wide[column] = size
        _move(heap, starts[key, column], size, narrow, at)
        at += size


@_kernel(
    INT(
        *(U64_OUT, WORD, WORD, WORD, U8, I64_2, I32_2, I32, U64_2_OUT, I32_OUT),
        *(I64_2, U8_OUT, INT, I64_2_OUT, I32_2_OUT, U8_OUT, INT, U64_OUT),
    )
)
def look_up(
    words: Any,
    low: Any,
    high: Any,
    now: Any,
    heap: Any,
    starts: Any,
    sizes: Any,
    firsts: Any,
    found: Any,
    missing: Any,
    pieces: Any,
    arena: Any,
    base: Any,
    value_starts: Any,
    value_sizes: Any,
    value_heap: Any,
    heap_at: Any,
    counters: Any,
) -> int:
    """Looks for the keys in rows `firsts` and writes the lines that are there: line i is that of key i.

    low, high: the prefix of the keys' names; now in ms. starts, sizes [parts, rows]: the parts of each row's key in
    `heap`. found [keys, 3] gets the digest of each key, and 1 when its line was there, else 0; `missing` [keys] the
    numbers of those that were not.
    pieces [n, 3]: a line's cells and states in `arena`, line l at base + BASE + l × STRIDE, SIZE bytes. Variable
    values go to value_heap from heap_at on, their places to value_starts, value_sizes [lines, columns]. The caller
    vouches that all keys stay inside heap, and all lines inside arena, value_starts and value_sizes.
    Returns how many keys were found; when value_heap has no room, −1 − the bytes needed: nothing was written then.
    """
    sets = _sets(words.shape[0])
    log = HEADER_WORDS + SET_WORDS * sets
    span = words.shape[0] - log
    keys = firsts.shape[0]
    columns = value_sizes.shape[1]
    fixed = _fixed_bytes(pieces, columns)
    counts = np.zeros(COUNTERS, np.int64)
    one, two = _mixed(ZERO, ZERO, low, high)
    longest = 0
    needed = 0
    for key in range(keys):
        first, second = _digest(one, two, heap, starts, sizes, firsts[key])
        found[key, 0] = first
        found[key, 1] = second
        found[key, 2] = ZERO
        way = _way(words, _set_at(first, sets), second)
        if way < 0:
            continue
        place, life = words[way + WAYS], words[way + 2 * WAYS]
        if life >> LIFE_SHIFT <= now:
            counts[EXPIRED] += 1
        elif place + U(span) < words[HEAD_AT]:
            counts[EVICTED] += 1
            words[way] = ZERO  # said once
        else:
            found[key, 2] = place
            count = np.int64(life & LIFE_MASK)
            longest = max(longest, int(count))
            needed += max(8 * count - fixed, 0)
    if columns and heap_at + needed > value_heap.shape[0]:
        _add(counters, EVICTED, U(counts[EVICTED]))
        return -1 - needed
    longest = min(longest, span // LARGEST_SHARE)
    line = np.empty(longest, np.uint64)
    narrow, wide = line.view(np.uint8), line.view(np.int32)
    for key in range(keys):
        place = found[key, 2]
        if place == ZERO:
            continue
        found[key, 2] = ZERO
        # The record, copied out; then it is seen whether it is the one.
        at = np.int64(place % U(span))
        if at + RECORD_WORDS > span:
            counts[TORN] += 1
            continue
        at += log
        check, life = words[at], words[at + 1]
        count = np.int64(life & LIFE_MASK)
        at += RECORD_WORDS
        if count > longest or at + count > words.shape[0] or 8 * count < fixed or life >> LIFE_SHIFT <= now:
            counts[TORN] += 1
            continue
        mixed = _copy_words(words, at, count, line, 0)
        if check != _check(mixed, place, found[key, 0], found[key, 1], life):
            counts[TORN] += 1
            continue
        # Its bytes, to where they belong.
        values = 0
        if columns:
            room = min(8 * count - fixed, value_heap.shape[0] - heap_at)
            values = _place_values(wide, key, room, value_starts, value_sizes, heap_at)
            if values < 0:
                counts[TORN] += 1
                continue
        at = 4 * columns
        for piece in range(pieces.shape[0]):
            size = pieces[piece, SIZE]
            _move(narrow, at, size, arena, base + pieces[piece, BASE] + key * pieces[piece, STRIDE])
            at += size
        if values:
            _move(narrow, fixed, values, value_heap, heap_at)
            heap_at += values
        found[key, 2] = ONE
        counts[HITS] += 1
        if words[HEAD_AT] - place > U(span // 4 * 3):
            _keep(words, log, span, now, line, found[key, 0], found[key, 1], life, counts, RENEWED)
    misses = 0
    for key in range(keys):
        if found[key, 2] == ZERO:
            missing[misses] = key
            misses += 1
    counts[MISSES] = misses
    _count(counters, counts)
    return counts[HITS]


@_kernel(
    INT(
        *(U64_OUT, WORD, WORD, I32, U64_2_OUT, I64_2, INT, INT, INT),
        *(U8_OUT, INT, I64_2_OUT, I32_2_OUT, U8_OUT, U64_OUT),
    )
)
def insert(
    words: Any,
    now: Any,
    end: Any,
    lines: Any,
    found: Any,
    pieces: Any,
    states: Any,
    first_at: Any,
    first_stride: Any,
    arena: Any,
    base: Any,
    value_starts: Any,
    value_sizes: Any,
    value_heap: Any,
    counters: Any,
) -> int:
    """Keeps `lines` until `end` (ms), those whose first value is there and whose values all fit; returns how many.

    pieces from number `states` on are states; the state of the first value stands at base + first_at + line ×
    first_stride. All else as `look_up` takes it, and `found` as it left it.
    """
    log = HEADER_WORDS + SET_WORDS * _sets(words.shape[0])
    span = words.shape[0] - log
    columns = value_sizes.shape[1]
    fixed = _fixed_bytes(pieces, columns)
    largest = min(span // LARGEST_SHARE - RECORD_WORDS, np.int64(LIFE_MASK))
    line = np.empty(_longest(lines, value_sizes, fixed, largest), np.uint64)
    narrow, wide = line.view(np.uint8), line.view(np.int32)
    counts = np.zeros(COUNTERS, np.int64)
    for number in range(lines.shape[0]):
        key = np.int64(lines[number])
        if arena[base + first_at + key * first_stride] != VALUE or _odd(arena, base, pieces, states, key):
            continue
        size = fixed
        if columns:
            size += _values(value_sizes, key)
        count = (size + 7) // 8
        if count > largest:
            counts[TOO_LARGE] += 1
            continue
        line[count - 1] = ZERO
        at = 4 * columns
        for piece in range(pieces.shape[0]):
            part = pieces[piece, SIZE]
            _move(arena, base + pieces[piece, BASE] + key * pieces[piece, STRIDE], part, narrow, at)
            at += part
        if columns:
            _pack_values(narrow, wide, key, fixed, value_starts, value_sizes, value_heap)
        life = (end << LIFE_SHIFT) | U(count)
        _keep(words, log, span, now, line, found[key, 0], found[key, 1], life, counts, INSERTED)
    _count(counters, counts)
    return counts[INSERTED]
