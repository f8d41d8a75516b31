"""The feature cache, against a plain dict with times in it."""

from __future__ import annotations

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from components.cache import ENTRY_OVERHEAD, FeatureCache
from tests.effort import tries

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])


class CacheMachine(RuleBasedStateMachine):
    """With room for everything, the cache forgets what is too old and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.cache = FeatureCache(1 << 20, clock=lambda: self.now)
        self.model: dict[bytes, tuple[bytes, float]] = {}
        self.hits = self.misses = 0

    @rule(items=st.dictionaries(KEYS, st.binary(max_size=5)), ttl=st.integers(1, 9).map(float))
    def put(self, items: dict[bytes, bytes], ttl: float) -> None:
        self.cache.put_many(items.items(), ttl)
        self.model |= {key: (record, self.now + ttl) for key, record in items.items()}

    @rule(keys=st.lists(KEYS))
    def get(self, keys: list[bytes]) -> None:
        living = {key: record for key, (record, end) in self.model.items() if self.now < end}
        assert self.cache.get_many(keys) == [living.get(key) for key in keys]
        found = sum(key in living for key in keys)
        self.hits += found
        self.misses += len(keys) - found

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def it_counts(self) -> None:
        assert (self.cache.hits, self.cache.misses) == (self.hits, self.misses)


TestCache = CacheMachine.TestCase
TestCache.settings = tries(0.4)


def entry(key: bytes, record: bytes) -> int:
    return ENTRY_OVERHEAD + len(key) + len(record)


def test_it_stays_within_its_capacity_and_drops_what_was_used_longest_ago() -> None:
    size = entry(b"a", b"12345678")
    cache = FeatureCache(3 * size)
    for key in (b"a", b"b", b"c"):
        cache.put_many([(key, b"12345678")], 60)
    cache.get_many([b"a"])
    cache.put_many([(b"d", b"12345678")], 60)
    assert cache.get_many([b"a", b"b", b"c", b"d"]) == [b"12345678", None, b"12345678", b"12345678"]
    assert repr(cache) == f"<FeatureCache 3 entries, {3 * size} of {3 * size} bytes, 4 hits, 1 misses>"


@pytest.mark.parametrize(("key", "record"), [(b"k" * 5000, b""), (b"k", b"r" * 5000)], ids=["key", "record"])
def test_keys_and_records_count(key: bytes, record: bytes) -> None:
    cache = FeatureCache(5000)
    cache.put_many([(b"small", b"record")], 60)
    cache.put_many([(key, record)], 60)  # larger than the whole cache
    assert cache.get_many([b"small", key]) == [b"record", None]


def test_without_capacity_nothing_is_kept() -> None:
    cache = FeatureCache(0)
    cache.put_many([(b"a", b"")], 60)
    assert cache.get_many([b"a"]) == [None]


def test_threads_may_share_it() -> None:
    cache = FeatureCache(40 * entry(b"00000", b""))
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for turn in range(400):
            key = b"%05d" % ((number * 7 + turn) % 60)
            cache.put_many([(key, key)], 60)
            (found,) = cache.get_many([key])
            assert found in (key, None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.hits + cache.misses == 1600
