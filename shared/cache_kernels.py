"""The loops of the feature cache, compiled: keys → digests → records, for a whole request in one call.

The memory is an array of 64-bit words that any number of processes read and write at the same moment, without
locks:

    head (16 words) · index: sets of 8 ways · log: the records, one behind the other, round and round

A **record** is a header of 2 words (check, life) and the words of a line. `life` is the time when it ends (ms,
monotonic clock) × 2²⁴ + the words of its line. A record's **place** is the number of words that were ever written
to the log before it: it is there as long as the log has not gone round since. Room is taken by adding to the
head's counter, the only atomic step. A **set** has, for each way, the second half of a digest (the first half
chooses the set), a place, and a life: words 0–7, 8–15 and 16–23.

Why this is safe: what a reader has copied out counts only if the check of the copy is right, and the check
covers the line, the key's digest, the life and the place. Whatever a reader finds instead (a record half written, a
writer killed, bytes overwritten while they were read, an index entry of two writers) is a miss. Nothing is
waited for, and nothing has to be put right after a death.

A line is copied and mixed in one go, from the log to where the request has it. Where to look is found out for all
keys before the first record is read, and the processor is told in time which memory is to come: in a large cache
the way there costs more than the copy.

A record that is read in the oldest quarter of the log is written again at its end: what is used stays, what is
not goes, first in, first out.

The rules of `components.kernels` hold here, too. Reference: `mmh3` for the digests, a dict for the rest
(tests/shared/test_feature_cache.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shared.cache_memory import HEAD_AT, HEADER_WORDS, SET_WORDS, WAYS, sets_of
from shared.kernel_calls import direct

__all__ = [
    "COUNTERS",
    "EVICTED",
    "EXPIRED",
    "HITS",
    "INSERTED",
    "LIFE_BITS",
    "MISSES",
    "NO_ROOM",
    "RECORD_WORDS",
    "RENEWED",
    "TOO_LARGE",
    "TORN",
    "insert",
    "line_plan",
    "look_up",
]

RECORD_WORDS = 2
LIFE_BITS = 24
LARGEST_SHARE = 8  # a record takes at most so much of the log

HITS, MISSES, EXPIRED, TORN, INSERTED, EVICTED, RENEWED, TOO_LARGE = range(8)
COUNTERS = 8

NO_ROOM = -1  # see look_up

# Of records that a look-up will come to: how many words of which it has the processor fetch beforehand.
AHEAD_KEYS = 4
AHEAD_WORDS = 64

VALUE, ODD = 1, 3  # states of a cell, shared.shm_matrix

U8 = types.Array(types.uint8, 1, "C", readonly=True)
U8_OUT = types.uint8[::1]
U64_OUT = types.uint64[::1]
I32 = types.Array(types.int32, 1, "C", readonly=True)
I32_OUT = types.int32[::1]
I64 = types.Array(types.int64, 1, "C", readonly=True)
INT = types.int64
PAIR = types.UniTuple(INT, 2)
WORD = types.uint64

Function = TypeVar("Function", bound=Callable[..., Any])

_njit: Any = numba.njit  # its types do not tell of _nrt


def _inline(function: Function) -> Function:
    """Compiled into the kernels that call it."""
    return cast(Function, numba.njit(inline="always", nogil=True, error_model="numpy")(function))


def _callee(function: Function) -> Function:
    """Compiled once, called by kernels of this file: what is rare, or called from several places."""
    return cast(Function, _njit(nogil=True, error_model="numpy", _nrt=False)(function))


def _merged(function: Function) -> Function:
    """A callee that LLVM puts into its only caller."""
    return cast(Function, _njit(nogil=True, error_model="numpy", forceinline=True, _nrt=False)(function))


def _kernel(signature: Any) -> Callable[[Function], Function]:
    """Compiled for this signature when the module is imported, or taken from the cache.

    Without numba's runtime, which counts who holds an array: the caller holds those that a kernel takes, and a
    kernel makes none.
    """
    compiled = _njit(signature, nogil=True, cache=True, error_model="numpy", _nrt=False)

    def called(function: Function) -> Function:
        return cast(Function, direct(compiled(function)))

    return called


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


def _load_word(_context, source, _at):
    """The 8 bytes at this place, which need not be a multiple of 8."""

    def generate(context, builder, signature, arguments):
        read = context.make_array(signature.args[0])(context, builder, arguments[0])
        begin = builder.gep(read.data, [arguments[1]])
        word = context.get_value_type(types.uint64)
        return builder.load(builder.bitcast(begin, word.as_pointer()), align=1)

    return types.uint64(source, types.intp), generate


def _store_word(_context, out, _at, _word):
    """Writes 8 bytes to this place, which need not be a multiple of 8."""

    def generate(context, builder, signature, arguments):
        written = context.make_array(signature.args[0])(context, builder, arguments[0])
        target = builder.gep(written.data, [arguments[1]])
        word = context.get_value_type(types.uint64)
        builder.store(arguments[2], builder.bitcast(target, word.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(out, types.intp, types.uint64), generate


def _fetch_line(_context, array, _at):
    """Has the processor fetch the cache line of this item, soon to be read: a hint, and harmless whatever `at`."""

    def generate(context, builder, signature, arguments):
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(made.data, [arguments[1]]), cgutils.voidptr_t)
        number = cgutils.int32_t
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [place, number(0), number(3), number(1)])  # to read, to be kept near, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


_add: Any = intrinsic(_atomic_add)
_move: Any = intrinsic(_copy_bytes)
_word: Any = intrinsic(_load_word)
_put_word: Any = intrinsic(_store_word)
_prefetch: Any = intrinsic(_fetch_line)

U = np.uint64
ZERO, ONE, SEVEN, EIGHT = U(0), U(1), U(7), U(8)
C1, C2 = U(0x87C37B91114253D5), U(0x4CF5AD432745937F)  # of MurmurHash3_x64_128
FIRST_KEY, KEY_STEP = U(0x243F6A8885A308D3), U(0x9E3779B97F4A7C15)  # digits of π and of the golden ratio
HALF = U(0xFFFFFFFF)
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
def _put(one, two, low, high, filled, word, size):
    """1 to 8 bytes more, the others of `word` being 0: the state, and the up to 15 bytes not mixed in yet."""
    shift = (filled & SEVEN) * EIGHT
    over = (word >> ONE) >> (U(63) - shift)  # what goes into the next word: a shift by 64 is no shift
    if filled < EIGHT:
        low |= word << shift
        high |= over
        over = ZERO
    else:
        high |= word << shift
    filled += size
    if filled >= U(16):
        one, two = _mixed(one, two, low, high)
        low, high = over, ZERO
        filled -= U(16)
    return one, two, low, high, filled


@_callee
def _last_bytes(heap, start, stop):
    """Up to 8 bytes as a word; the others are 0."""
    word = ZERO
    for at in range(start, stop):
        word |= U(heap[at]) << (U(at - start) * EIGHT)
    return word


@_merged
def _digest(one, two, heap, starts, sizes, parts, rows, row):
    """The digest of the key in this row; `one`, `two` is the state after the prefix."""
    low, high, filled = ZERO, ZERO, ZERO
    length = np.int64(16)
    for part in range(parts):
        at = starts[part * rows + row]
        size = np.int64(sizes[part * rows + row])
        stop = at + size
        one, two, low, high, filled = _put(one, two, low, high, filled, U(size), U(LENGTH_BYTES))
        while at < stop:
            taken = min(stop - at, 8)
            if at + 8 <= heap.shape[0]:
                word = _word(heap, at) & (U(0xFFFFFFFFFFFFFFFF) >> (U(8 - taken) * EIGHT))
            else:
                word = _last_bytes(heap, at, stop)
            one, two, low, high, filled = _put(one, two, low, high, filled, word, U(taken))
            at += taken
        length += LENGTH_BYTES + size
    if filled > EIGHT:
        two ^= _rotated(high * C2, 33) * C1
    if filled > ZERO:
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
def _copy(source, start, size, out, at, key, mixed):
    """Copies `size` bytes that begin with this word; the last word's others are not written, but mixed in.

    Returns the key of the next word and the mix. Each word is read once: what is mixed is what was copied. The mix
    is the sum of the products of each word's halves, under a key of its own (as in NH of UMAC): words wait for each
    other with no more than an addition, so that vector instructions do several at once.
    """
    start, at = U(start), U(at)  # unsigned: without a look at negative indices
    words = U(size) >> U(3)
    for i in range(words):
        word = source[start + i]
        _put_word(out, at + (i << U(3)), word)
        word ^= key
        key += KEY_STEP
        mixed += (word & HALF) * (word >> U(32))
    rest = U(size) & SEVEN
    if rest:
        word = source[start + words]
        at += words << U(3)
        for i in range(rest):
            out[at + i] = np.uint8((word >> (i << U(3))) & U(0xFF))
        word ^= key
        key += KEY_STEP
        mixed += (word & HALF) * (word >> U(32))
    return key, mixed


@_callee
def _reserve(words, span, size):
    """The place of a record of so many words behind all others; 0 when others took all room in one piece."""
    for _ in range(4):
        place = _add(words, HEAD_AT, U(size))
        if np.int64(place % U(span)) + size <= span:
            return place
    return ZERO


@_callee
def _write(words, log, span, place, line, start, first, second, life):
    """Writes a record to its place: its line is in `line` from word `start` on. Returns the line's mix."""
    at = log + np.int64(place % U(span))
    count = np.int64(life & LIFE_MASK)
    _, mixed = _copy(line, start, 8 * count, words.view(np.uint8), 8 * (at + RECORD_WORDS), FIRST_KEY, ZERO)
    words[at] = _check(mixed, place, first, second, life)
    words[at + 1] = life
    return mixed


@_callee
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


@_callee
def _keep(words, log, span, now, line, first, second, life):
    """Writes a record behind all others and notes it in the index; (written, entries that had to go)."""
    place = _reserve(words, span, RECORD_WORDS + np.int64(life & LIFE_MASK))
    if place == ZERO:
        return 0, 0
    _write(words, log, span, place, line, 0, first, second, life)
    return 1, _enter(words, log, span, now, first, second, place, life)


@_callee
def _renew(words, log, span, now, old, first, second, life):
    """Writes the record of this place once more, behind all others; (written, entries that had to go).

    It may be overwritten while it is read, as ever: then the new one is noted nowhere.
    """
    place = _reserve(words, span, RECORD_WORDS + np.int64(life & LIFE_MASK))
    if place == ZERO:
        return 0, 0
    at = log + np.int64(old % U(span))
    mixed = _write(words, log, span, place, words, at + RECORD_WORDS, first, second, life)
    if words[at] != _check(mixed, old, first, second, life):
        return 0, 0
    return 1, _enter(words, log, span, now, first, second, place, life)


@_inline
def _count(counters, counter, more):
    """Adds to what the process, which has other threads, counts."""
    if more:
        _add(counters, counter, U(more))


@_inline
def _way(words, at, second):
    """Where in a set the second half of a digest stands, −1 when it does not."""
    found = -1
    for way in range(at, at + WAYS):
        if words[way] == second:
            found = way
    return found


# --- a request's lines. A line is kept as pieces, each of which begins with a word of its own: the u32 sizes of its
# variable values, its cells and states, then the variable values themselves. What is left of a last word is 0.

# What a plan begins with; after it comes (BASE, STRIDE, SIZE) of each piece but the variable values.
COLUMNS, FIXED, PIECES, STATES, FIRST_AT, FIRST_STRIDE, STARTS_AT, SIZES_AT = range(8)
PLAN_HEAD = 8
BASE, STRIDE, SIZE = range(3)
PIECE = 3


def line_plan(
    pieces: Sequence[tuple[int, int, int]],
    states: int,
    first: tuple[int, int],
    columns: int = 0,
    starts_at: int = 0,
    sizes_at: int = 0,
) -> npt.NDArray[np.int64]:
    """Where lines lie, for `look_up` and `insert`, all in one array; in bytes from where their memory begins.

    pieces: (begin, stride, size) of each run of cells of a line and, from number `states` on, of states. `first`:
    (begin, stride) of the states of lines' first values. A line has so many variable `columns`: where their values
    start are int64 [lines, columns] at starts_at, a multiple of 8, how long they are int32 at sizes_at, one of 4.
    """
    sizes = [(sizes_at, 4 * columns, 4 * columns)] if columns else []
    kept = [*sizes, *pieces]
    fixed = sum(_whole_words(size) for _, _, size in kept)
    head = (columns, fixed, len(kept), len(sizes) + states, *first, starts_at, sizes_at)
    return np.array([*head, *itertools.chain(*kept)], np.int64)


def _whole_words(size: int) -> int:
    """The words that so many bytes take."""
    return (size + 7) >> 3


_words_of: Any = _inline(_whole_words)


@_callee
def _place_values(key, room, plan, longs, ints, base, heap_at):
    """Notes where the variable values of a line will stand; returns their bytes, −1 when there is no room."""
    columns = plan[COLUMNS]
    starts = ((base + plan[STARTS_AT]) >> 3) + key * columns
    sizes = ((base + plan[SIZES_AT]) >> 2) + key * columns
    used = np.int64(0)
    for column in range(columns):
        size = np.int64(ints[sizes + column])
        if size < 0 or size > room - used:
            return np.int64(-1)
        longs[starts + column] = heap_at + used
        used += size
    return used


@_merged
def _take(words, at, most, now, place, first, second, key, plan, arena, longs, ints, base, heap, heap_at):
    """Copies the record that begins at this word to the line of a key; (its life, bytes of its variable values).

    Life is 0 when it is not the record of this place and digest, or too old: then the line is garbage.
    """
    if at + RECORD_WORDS > words.shape[0]:
        return ZERO, np.int64(0)
    check, life = words[at], words[at + 1]
    count = np.int64(life & LIFE_MASK)
    left = count - plan[FIXED]
    at += RECORD_WORDS
    if count > most or at + count > words.shape[0] or left < 0 or life >> LIFE_SHIFT <= now:
        return ZERO, np.int64(0)
    name, mixed = FIRST_KEY, ZERO
    for piece in range(PLAN_HEAD, PLAN_HEAD + PIECE * plan[PIECES], PIECE):
        size = plan[piece + SIZE]
        to = base + plan[piece + BASE] + key * plan[piece + STRIDE]
        name, mixed = _copy(words, at, size, arena, to, name, mixed)
        at += _words_of(size)
    values = np.int64(0)
    if plan[COLUMNS]:
        room = min(8 * left, heap.shape[0] - heap_at)
        values = _place_values(key, room, plan, longs, ints, base, heap_at)
        if values > 0:
            _, mixed = _copy(words, at, values, heap, heap_at, name, mixed)
    if values < 0 or _words_of(values) != left or check != _check(mixed, place, first, second, life):
        return ZERO, np.int64(0)
    return life, values


@_kernel(
    PAIR(
        *(U64_OUT, WORD, WORD, WORD, U8, I64, I32, INT, INT, I32, INT, I32_OUT),
        *(I64, U8_OUT, INT, U8_OUT, INT, U64_OUT),
    )
)
def look_up(
    words: Any,
    low: Any,
    high: Any,
    now: Any,
    key_heap: Any,
    starts: Any,
    sizes: Any,
    parts: Any,
    rows: Any,
    firsts: Any,
    keys: Any,
    found: Any,
    plan: Any,
    arena: Any,
    base: Any,
    heap: Any,
    heap_at: Any,
    counters: Any,
) -> tuple[int, int]:
    """Looks for the keys in the first `keys` of the rows `firsts`; writes those lines: line i is that of key i.

    low, high: the prefix of the keys' names; now in ms. starts, sizes [parts × rows]: the parts of each row's key
    in `key_heap`. found [6 × keys]: gets the digests of all keys (two u64 each), then the numbers of those that
    were not found, ascending. plan: see `line_plan`; the lines lie in `arena` from `base` on, a multiple of 8, and
    so is arena's size. Variable values go to `heap` from heap_at on. The caller vouches that all keys stay inside
    key_heap, and all lines inside arena.
    Returns how many keys were found, and where their variable values end in heap; or (NO_ROOM, bytes that heap
    needs behind heap_at): nothing was written then.
    """
    log = HEADER_WORDS + SET_WORDS * _sets(words.shape[0])
    sets = (log - HEADER_WORDS) // SET_WORDS
    span = words.shape[0] - log
    largest = span // LARGEST_SHARE - RECORD_WORDS
    columns, fixed = plan[COLUMNS], plan[FIXED]
    digests = found.view(np.uint64)
    one, two = _mixed(ZERO, ZERO, low, high)
    for key in range(keys):
        first, second = _digest(one, two, key_heap, starts, sizes, parts, rows, firsts[key])
        digests[2 * key] = first
        digests[2 * key + 1] = second
        # All three lines of a set: memory is asked for all keys before the first of them is waited for.
        for at in range(_set_at(first, sets), _set_at(first, sets) + SET_WORDS, WAYS):
            _prefetch(words, at)
    longest: Any = 0
    needed = np.int64(0)
    expired = evicted = torn = np.int64(0)
    for key in range(keys):
        first, second = digests[2 * key], digests[2 * key + 1]
        digests[2 * keys + key] = ZERO
        way = _way(words, _set_at(first, sets), second)
        if way < 0:
            continue
        place, life = words[way + WAYS], words[way + 2 * WAYS]
        count = np.int64(life & LIFE_MASK)
        if life >> LIFE_SHIFT <= now:
            expired += 1
        elif place + U(span) < words[HEAD_AT]:
            evicted += 1
            words[way] = ZERO  # said once
        elif count > largest:
            torn += 1
        else:
            digests[2 * keys + key] = place
            longest = max(longest, count)
            needed += 8 * max(count - fixed, 0)
    if columns and heap_at + needed > heap.shape[0]:
        _count(counters, EVICTED, evicted)
        return NO_ROOM, int(needed)
    longs, ints = arena.view(np.int64), arena.view(np.int32)
    ahead = min(longest, AHEAD_WORDS)
    renewed = np.int64(0)
    misses = np.int64(0)
    for key in range(keys):
        if key + AHEAD_KEYS < keys:
            coming = log + np.int64(digests[2 * keys + key + AHEAD_KEYS] % U(span))
            for at in range(coming, coming + ahead, WAYS):
                _prefetch(words, at)
        place = digests[2 * keys + key]
        first, second = digests[2 * key], digests[2 * key + 1]
        life = ZERO
        values: Any = np.int64(0)
        if place != ZERO:
            record = log + np.int64(place % U(span))
            life, values = _take(
                words,
                record,
                longest,
                now,
                place,
                first,
                second,
                key,
                plan,
                arena,
                longs,
                ints,
                base,
                heap,
                heap_at,
            )
            torn += life == ZERO
        if life == ZERO:
            found[4 * keys + misses] = key  # over places that were read before
            misses += 1
            continue
        heap_at += values
        if words[HEAD_AT] - place > U(span // 4 * 3):
            kept, gone = _renew(words, log, span, now, place, first, second, life)
            renewed += kept
            evicted += gone
    _count(counters, HITS, keys - misses)
    _count(counters, MISSES, misses)
    _count(counters, EXPIRED, expired)
    _count(counters, TORN, torn)
    _count(counters, EVICTED, evicted)
    _count(counters, RENEWED, renewed)
    return keys - int(misses), heap_at


@_callee
def _values(ints, at, columns):
    """Bytes of a line's variable values, whose sizes stand here."""
    size = np.int64(0)
    for column in range(columns):
        size += np.int64(ints[at + column])
    return size


@_callee
def _odd(arena, base, plan, key):
    """Whether a line has an ODD cell."""
    odd = False
    for piece in range(PLAN_HEAD + PIECE * plan[STATES], PLAN_HEAD + PIECE * plan[PIECES], PIECE):
        begin = base + plan[piece + BASE] + key * plan[piece + STRIDE]
        for i in range(
            U(begin), U(begin + plan[piece + SIZE])
        ):  # unsigned: without a look at negative indices
            odd |= arena[i] == ODD
    return odd


@_callee
def _pack(arena, longs, ints, base, plan, key, heap, line, narrow, count):
    """The words of a line, to be kept as so many."""
    for i in range(U(count)):
        line[i] = ZERO
    at = np.int64(0)
    for piece in range(PLAN_HEAD, PLAN_HEAD + PIECE * plan[PIECES], PIECE):
        size = plan[piece + SIZE]
        _move(arena, base + plan[piece + BASE] + key * plan[piece + STRIDE], size, narrow, 8 * at)
        at += _words_of(size)
    columns = plan[COLUMNS]
    starts = ((base + plan[STARTS_AT]) >> 3) + key * columns
    sizes = ((base + plan[SIZES_AT]) >> 2) + key * columns
    to = 8 * at
    for column in range(columns):
        size = np.int64(ints[sizes + column])
        _move(heap, longs[starts + column], size, narrow, to)
        to += size


@_kernel(INT(U64_OUT, WORD, WORD, I32, INT, INT, I64, U8, INT, U8, U64_OUT, U64_OUT))
def insert(
    words: Any,
    now: Any,
    end: Any,
    found: Any,
    keys: Any,
    misses: Any,
    plan: Any,
    arena: Any,
    base: Any,
    heap: Any,
    line: Any,
    counters: Any,
) -> int:
    """Keeps lines until `end` (ms): of those not found before the ones that have a first value and nothing odd.

    `found` as `look_up` left it for so many keys and misses, all else as it takes it. Returns how many were kept,
    or −1 − the words that `line` needs: nothing was done then.
    """
    log = HEADER_WORDS + SET_WORDS * _sets(words.shape[0])
    span = words.shape[0] - log
    largest = min(span // LARGEST_SHARE - RECORD_WORDS, np.int64(LIFE_MASK))
    columns, fixed = plan[COLUMNS], plan[FIXED]
    digests = found.view(np.uint64)
    narrow = line.view(np.uint8)
    longs, ints = arena.view(np.int64), arena.view(np.int32)
    sizes = (base + plan[SIZES_AT]) >> 2
    longest = np.int64(0)
    for number in range(4 * keys, 4 * keys + misses):
        count = fixed + _words_of(_values(ints, sizes + np.int64(found[number]) * columns, columns))
        longest = max(longest, min(count, largest))
    if longest > line.shape[0]:
        return -1 - int(longest)
    evicted = too_large = inserted = np.int64(0)
    for number in range(4 * keys, 4 * keys + misses):
        key = np.int64(found[number])
        if arena[base + plan[FIRST_AT] + key * plan[FIRST_STRIDE]] != VALUE or _odd(arena, base, plan, key):
            continue
        count = fixed + _words_of(_values(ints, sizes + key * columns, columns))
        if count > largest:
            too_large += 1
            continue
        _pack(arena, longs, ints, base, plan, key, heap, line, narrow, count)
        life = (end << LIFE_SHIFT) | U(count)
        kept, gone = _keep(words, log, span, now, line, digests[2 * key], digests[2 * key + 1], life)
        inserted += kept
        evicted += gone
    _count(counters, INSERTED, inserted)
    _count(counters, EVICTED, evicted)
    _count(counters, TOO_LARGE, too_large)
    return int(inserted)
