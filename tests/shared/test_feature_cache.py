"""The feature cache, against a plain dict with times in it, and against memory that others write to."""

from __future__ import annotations

import threading

import mmh3
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shared.cache_memory import HEADER_WORDS, SET_WORDS, NotACacheError, cache_segment, sets_of
from shared.feature_cache import CacheKey, FeatureCache
from shared.segments import Segment
from tests.effort import tries
from tests.shared.cached import KEY, Key, Line, Memory, Shape, cells_of, look_up, places, remember

KIB, MIB = 1 << 10, 1 << 20
ABSENT, VALUE, EMPTY, ODD = range(4)
NUMBERS = Shape((240,), (60,))
SHAPES = st.sampled_from(
    [
        NUMBERS,
        Shape((), (1,), 1),
        Shape((8, 4, 3), (1, 1, 3)),
        Shape((16, 7), (2, 7, 3), 3),
        Shape((), (5,), 5),
    ]
)
PARTS = st.sampled_from([b"a", b"b", b"|", b"0123456789abcdef", "é".encode(), b"\xff" * 33])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0  # seconds

    def __call__(self) -> int:
        return int(self.now * 1e9)


def keys_of(parts: int) -> st.SearchStrategy[list[Key]]:
    return st.lists(st.tuples(*[PARTS] * parts), unique=True, max_size=12)


class CacheMachine(RuleBasedStateMachine):
    """With room for everything, the cache forgets what is too old and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = FeatureCache(cache_segment(MIB), clock=self.clock)
        self.model: dict[Key, tuple[Line, float]] = {}
        self.hits = self.misses = self.inserts = 0

    @initialize(shape=SHAPES)
    def begin(self, shape: Shape) -> None:
        self.shape = shape

    @rule(keys=keys_of(2), seed=st.integers(0, 9), ttl=st.integers(1, 9).map(float))
    def put(self, keys: list[Key], seed: int, ttl: float) -> None:
        lines = {key: cells_of(key, self.shape, seed) for key in keys}
        self.expect(keys)
        remember(self.cache, lines, self.shape, key=CacheKey(KEY.prefix, ttl))
        self.model |= {key: (line, self.clock.now + ttl) for key, line in lines.items()}
        self.inserts += len(keys)

    @rule(keys=keys_of(2))
    def get(self, keys: list[Key]) -> None:
        assert look_up(self.cache, keys, self.shape) == self.expect(keys)

    def expect(self, keys: list[Key]) -> list[Line | None]:
        known = [self.model.get(key) for key in keys]
        lines = [entry[0] if entry and self.clock.now < entry[1] else None for entry in known]
        self.hits += sum(line is not None for line in lines)
        self.misses += sum(line is None for line in lines)
        return lines

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def it_counts(self) -> None:
        cache = self.cache
        assert (cache.hits, cache.misses, cache.inserts) == (self.hits, self.misses, self.inserts)
        assert (cache.torn, cache.evictions, cache.too_large) == (0, 0, 0)


TestCache = CacheMachine.TestCase
TestCache.settings = tries(0.4)


@given(
    st.binary(min_size=16, max_size=16), st.lists(st.lists(st.binary(max_size=40), min_size=3, max_size=3))
)
def test_a_key_is_known_by_the_murmur_hash_of_its_name(prefix: bytes, keys: list[list[bytes]]) -> None:
    cache = FeatureCache(cache_segment(4 * KIB))
    rows = [tuple(key) for key in keys] or [(b"", b"x", b"")]
    found = cache.look_up(CacheKey(prefix, 1.0), places(rows), Memory(NUMBERS, len(rows)).lines())
    assert found.memory is not None
    digests = found.memory[: 4 * len(rows)].reshape(len(rows), 4)
    for key, digest in zip(rows, digests, strict=True):
        name = prefix + b"".join(len(part).to_bytes(4, "little") + part for part in key)
        assert digest.tobytes() == mmh3.mmh3_x64_128_digest(name)


@given(st.integers(4 * KIB, 12 * KIB), SHAPES, st.lists(keys_of(1), max_size=30), st.data())
def test_however_small_it_is_what_is_found_is_right(
    size: int, shape: Shape, requests: list[list[Key]], data: st.DataObject
) -> None:
    cache = FeatureCache(cache_segment(size))
    newest: dict[Key, Line] = {}
    for number, keys in enumerate(requests):
        for key, line in zip(keys, look_up(cache, keys, shape), strict=True):
            assert line is None or line == newest[key]
        lines = {key: cells_of(key, shape, number) for key in keys if data.draw(st.booleans())}
        remember(cache, lines, shape)
        # What is older than a newer line that was not kept may be found still: the newer one was no other.
        if cache.too_large == 0:
            newest |= lines
        else:
            return


def numbered(first: int, last: int) -> list[Key]:
    return [(b"%06d" % number,) for number in range(first, last)]


def fill(cache: FeatureCache, keys: list[Key]) -> None:
    for at in range(0, len(keys), 50):
        remember(cache, {key: cells_of(key, NUMBERS) for key in keys[at : at + 50]}, NUMBERS)


def test_what_is_not_used_goes_first() -> None:
    cache = FeatureCache(cache_segment(128 * KIB))
    used = numbered(0, 20)
    fill(cache, used)
    lost = 0
    for first in range(100, 10_000, 50):
        gone = [key for key, line in zip(used, look_up(cache, used, NUMBERS), strict=True) if line is None]
        lost += len(gone)
        fill(cache, gone)
        fill(cache, numbered(first, first + 50))
    assert lost < 0.01 * 20 * 198  # a set of eight is full of newer entries once in a while
    assert look_up(cache, numbered(100, 110), NUMBERS) == [None] * 10
    assert cache.renewals > 0
    assert cache.evictions > 8000
    assert cache.torn == 0


def test_most_of_its_memory_holds_lines() -> None:
    """1 MiB has room for 2,661 lines of 320 bytes: sets that are full by chance cost a few of them."""
    cache = FeatureCache(cache_segment(MIB))
    keys = numbered(0, 2400)
    fill(cache, keys)
    assert sum(line is not None for line in look_up(cache, keys, NUMBERS)) > 2370


def test_entries_of_different_prefixes_do_not_meet() -> None:
    cache = FeatureCache(cache_segment(MIB))
    other = CacheKey(b"another config !", 60.0)
    remember(cache, {(b"a",): cells_of((b"a",), NUMBERS)}, NUMBERS)
    assert look_up(cache, [(b"a",)], NUMBERS, key=other) == [None]


def test_parts_are_told_apart_from_what_reads_alike() -> None:
    cache = FeatureCache(cache_segment(MIB))
    remember(cache, {(b"a|b", b"c"): cells_of((b"x",), NUMBERS)}, NUMBERS)
    assert look_up(cache, [(b"a", b"b|c"), (b"ab", b"|c"), (b"a|b|c", b"")], NUMBERS) == [None] * 3


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ([VALUE, EMPTY, ABSENT], True),
        ([EMPTY, VALUE, VALUE], False),
        ([ABSENT, VALUE, VALUE], False),
        ([VALUE, VALUE, ODD], False),
    ],
)
def test_only_lines_with_a_first_value_and_nothing_odd_are_kept(states: list[int], kept: bool) -> None:
    cache = FeatureCache(cache_segment(MIB))
    shape = Shape((12,), (3,))
    line = Line((b"abcdefghijkl", bytes(states)))
    remember(cache, {(b"a",): line}, shape)
    assert look_up(cache, [(b"a",)], shape) == [line if kept else None]


def test_a_line_that_would_take_more_than_an_eighth_is_not_kept() -> None:
    cache = FeatureCache(cache_segment(8 * KIB))
    shape = Shape((), (1,), 2)
    small, large = Line((b"\1",), (b"", b"x" * 500)), Line((b"\1",), (b"y" * 900, b""))
    remember(cache, {(b"small",): small, (b"large",): large}, shape)
    assert look_up(cache, [(b"small",), (b"large",)], shape) == [small, None]
    assert cache.too_large == 1


def test_without_memory_nothing_is_found_or_kept() -> None:
    cache = FeatureCache()
    remember(cache, {(b"a",): cells_of((b"a",), NUMBERS)}, NUMBERS)
    assert look_up(cache, [(b"a",)], NUMBERS) == [None]
    assert (cache.size, cache.used, repr(cache)) == (0, 0, "<FeatureCache no memory yet>")


def test_memory_of_something_else_is_refused() -> None:
    cache = FeatureCache(cache_segment(MIB))
    remember(cache, {(b"a",): cells_of((b"a",), NUMBERS)}, NUMBERS)
    with pytest.raises(NotACacheError, match="is no feature cache of this version"):
        cache.use(Segment("other", MIB))
    assert look_up(cache, [(b"a",)], NUMBERS) != [None]


def test_the_prefix_has_16_bytes() -> None:
    with pytest.raises(ValueError, match="has 3 bytes, must be 16"):
        CacheKey(b"abc", 1.0)


def test_it_tells_what_it_holds() -> None:
    cache = FeatureCache(cache_segment(MIB))
    remember(cache, {(b"a",): cells_of((b"a",), NUMBERS)}, NUMBERS)
    look_up(cache, [(b"a",), (b"b",)], NUMBERS)
    assert (cache.size, cache.used) == (MIB, 320)
    assert repr(cache) == (
        "<FeatureCache 320 of 1048576 bytes used, here 1 hits, 2 misses, 1 inserts, 0 evictions>"
    )


# ---------------------------------------------------------------- spoilt memory


@given(SHAPES, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 2**64 - 1)), max_size=20))
def test_spoilt_memory_costs_misses_only(shape: Shape, spoilt: list[tuple[int, int]]) -> None:
    """Whatever stands in the memory, a line is right or is not found."""
    segment = cache_segment(8 * KIB)
    cache = FeatureCache(segment)
    keys = numbered(0, 8)
    remember(cache, {key: cells_of(key, shape) for key in keys}, shape)
    words = segment.bytes.view(np.uint64)
    for place, word in spoilt:
        words[1 + place % (len(words) - 1)] ^= np.uint64(word)
    for key, line in zip(keys, look_up(cache, keys, shape), strict=True):
        assert line in (None, cells_of(key, shape))
    remember(cache, {key: cells_of(key, shape, 1) for key in keys}, shape)
    for key, line in zip(keys, look_up(cache, keys, shape), strict=True):
        assert line in (None, cells_of(key, shape), cells_of(key, shape, 1))


@pytest.mark.parametrize("bit", [0, 31, 63])
def test_every_bit_of_a_record_is_checked(bit: int) -> None:
    segment = cache_segment(8 * KIB)
    cache = FeatureCache(segment)
    keys = numbered(0, 1)
    remember(cache, {keys[0]: cells_of(keys[0], NUMBERS)}, NUMBERS)
    words = segment.bytes.view(np.uint64)
    log = HEADER_WORDS + SET_WORDS * sets_of(len(words))
    record = np.flatnonzero(words[log:])  # the only one
    assert len(record) == 40
    for at in (log + record).tolist():
        words[at] ^= np.uint64(1 << bit)
        assert look_up(cache, keys, NUMBERS) == [None], at
        words[at] ^= np.uint64(1 << bit)
    assert look_up(cache, keys, NUMBERS) != [None]
    assert cache.torn == len(record)


def test_threads_may_share_it() -> None:
    cache = FeatureCache(cache_segment(16 * KIB))
    start = threading.Barrier(4)
    wrong: list[object] = []

    def work(number: int) -> None:
        start.wait()
        for turn in range(300):
            keys = numbered((number * 7 + turn) % 60, (number * 7 + turn) % 60 + 3)
            remember(cache, {key: cells_of(key, NUMBERS) for key in keys}, NUMBERS)
            for key, line in zip(keys, look_up(cache, keys, NUMBERS), strict=True):
                if line not in (None, cells_of(key, NUMBERS)):
                    wrong.append(line)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.hits + cache.misses == 2 * 3 * 4 * 300
