"""The feature cache of one worker: packed lines of fetched values by key, bounded in bytes and time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from cachetools import TLRUCache

__all__ = ["FeatureCache"]

Entry = tuple[bytes, float, int]  # record, seconds to live, bytes that it takes

ENTRY_OVERHEAD = 600  # bytes that Python and the cache need for an entry besides its key and record, measured


class FeatureCache:
    """Key → the line that the feature store answered for it; safe to use from several threads.

    `capacity` in bytes, object overhead included; 0 keeps nothing. Least recently used entries go first.
    """

    def __init__(self, capacity: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()  # an unlocked cachetools cache breaks for ever
        self._cache: TLRUCache[bytes, Entry] = TLRUCache(
            maxsize=capacity,
            ttu=lambda _key, entry, now: now + entry[1],
            timer=clock,
            getsizeof=lambda entry: entry[2],
        )

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The record of each key, None for one that is not there or too old."""
        with self._lock:
            found = [self._cache.get(key) for key in keys]
            hits = sum(entry is not None for entry in found)
            self.hits += hits
            self.misses += len(keys) - hits
        return [None if entry is None else entry[0] for entry in found]

    def put_many(self, items: Iterable[tuple[bytes, bytes]], ttl: float) -> None:
        """Keeps the record of each key for `ttl` seconds."""
        with self._lock:
            for key, record in items:
                size = ENTRY_OVERHEAD + len(key) + len(record)
                if size <= self._cache.maxsize:
                    self._cache[key] = (record, ttl, size)

    def __repr__(self) -> str:
        return (
            f"<FeatureCache {len(self._cache)} entries, {self._cache.currsize} of {self._cache.maxsize} bytes, "
            f"{self.hits} hits, {self.misses} misses>"
        )
