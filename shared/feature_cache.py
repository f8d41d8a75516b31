"""The feature cache: lines of fetched values in shared memory, for all workers of the pod at once.

Who owns what: one memfd for the pod. The config sidecar makes it and hands it to every worker; a worker without a
sidecar makes its own. A worker that connects tells the sidecar which one it has: a new sidecar takes the first
that it is told of, so that the cache outlives both. Everybody reads and writes it at any moment, without locks;
see `shared.cache_kernels` for the layout and for why that is safe. The kernel frees it, with the last process.

A `FeatureCache` is what one process has of it, with the counts of that process. It may be used from several
threads at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy import empty, int32, uint64

from shared import cache_kernels as kernels
from shared.cache_kernels import insert as keep
from shared.cache_kernels import look_up as find
from shared.cache_memory import (
    HEAD_AT,
    HEADER_WORDS,
    SET_WORDS,
    Words,
    cache_segment,
    received_cache,
    sets_of,
    words_of,
)
from shared.segments import Bytes, Segment

__all__ = ["CacheKey", "CachedLines", "FeatureCache", "Found", "KeyParts", "Places"]

Rows = npt.NDArray[np.int32]
NONE: Rows = np.empty(0, np.int32)
BUFFER_WORDS = 512  # what a buffer for a line has at first: twice a line of 500 numbers
LONGEST = 365 * 86400.0  # seconds that a record lives at most: what its header has bits for


class CacheKey:
    """What the keys of one component's rows are told apart by from all others, and how long they are kept.

    The name of a row is these 16 bytes and, for each part of its key, u32 length and bytes; its digest is the
    MurmurHash3_x64_128 of that.
    """

    __slots__ = ("high", "low", "prefix", "ttl")

    def __init__(self, prefix: bytes, ttl: float) -> None:
        """`prefix`: 16 bytes, a digest of config, version, component and what is asked for; ttl in seconds."""
        if len(prefix) != 16:
            raise ValueError(f"the prefix of a cache key has {len(prefix)} bytes, must be 16")
        self.prefix = prefix
        self.low = int.from_bytes(prefix[:8], "little")
        self.high = int.from_bytes(prefix[8:], "little")
        self.ttl = min(ttl, LONGEST)

    def __repr__(self) -> str:
        return f"<CacheKey {self.prefix.hex()} ttl={self.ttl:g} s>"


class KeyParts:
    """The parts of the keys of rows, as one heap: starts int64 and sizes int32 [parts × rows], part after part."""

    __slots__ = ("heap", "parts", "rows", "sizes", "starts")

    def __init__(
        self, heap: Bytes, starts: npt.NDArray[np.int64], sizes: Rows, parts: int, rows: int
    ) -> None:
        self.heap = heap
        self.starts = starts
        self.sizes = sizes
        self.parts = parts
        self.rows = rows

    def __repr__(self) -> str:
        return f"<KeyParts of {self.rows} rows, {self.parts} parts each>"


class Places:
    """Distinct keys by where their parts stand: key k has those of row firsts[k] (int32, `count` or longer)."""

    __slots__ = ("count", "firsts", "of")

    def __init__(self, of: KeyParts, firsts: Rows, count: int) -> None:
        self.of = of
        self.firsts = firsts
        self.count = count

    def __repr__(self) -> str:
        return f"<Places of {self.count} keys>"


class CachedLines:
    """Where the lines of a request are, one a key: as the plan says (`cache_kernels.line_plan`), in `arena` from
    `base` on.

    Variable values are in `heap`; those that are found go behind heap_at.
    """

    __slots__ = ("arena", "base", "heap", "heap_at", "plan")

    def __init__(
        self, plan: npt.NDArray[np.int64], arena: Bytes, base: int, heap: Bytes, heap_at: int
    ) -> None:
        self.plan = plan
        self.arena = arena
        self.base = base
        self.heap = heap
        self.heap_at = heap_at

    def __repr__(self) -> str:
        return f"<CachedLines at {self.base}, values at {self.heap_at}>"


class Found:
    """What a look-up found.

    `hits`: how many keys, and `end`, where their variable values end; or −1, and the bytes that the heap of
    variable values must have behind heap_at: nothing was written then. `missing`: the other keys, int32, ascending.
    `memory` int32 [6 × keys] is for `insert`; it begins with the digests of all keys. None: nothing was looked for.
    """

    __slots__ = ("count", "end", "hits", "memory", "missing")

    def __init__(self, count: int, hits: int, end: int, missing: Rows, memory: Rows | None) -> None:
        self.count = count
        self.hits = hits
        self.end = end
        self.missing = missing
        self.memory = memory

    def __repr__(self) -> str:
        return f"<Found {self.hits} of {self.count} keys>"


class FeatureCache:
    """One process's view of the pod's feature cache, and what this process did with it.

    `counts` holds `hits` and `misses` (keys), the misses because an entry was too old (`expired`) or was being
    overwritten (`torn`), `inserts`, `evictions` (entries that were displaced or overwritten before their time,
    counted by whoever found out), `renewals` (entries moved to the front because they were used again) and
    `too_large` (entries that take more than an eighth of the cache, and are not kept).
    """

    def __init__(
        self,
        segment: Segment | None = None,
        *,
        capacity: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`clock` in ns, the same for all processes. Without a segment nothing is kept until one is there;
        `capacity` is the size in bytes of what `begin` makes.
        """
        self.counts: Words = np.zeros(kernels.COUNTERS, np.uint64)
        self.segment: Segment | None = None
        self._words: Words | None = None
        self._clock = clock
        self._buffers: list[Words] = []  # for a line, as many as threads were in here at once
        self.capacity = capacity
        if segment is not None:
            self.use(segment)

    def use(self, segment: Segment) -> None:
        """From now on uses this memory. Raises NotACacheError; then everything is as it was."""
        self._words = words_of(segment)
        self.segment = segment

    def begin(self) -> None:
        """Makes memory of its own if there is none. Raises OSError when it is not to be had."""
        if self.segment is None:
            self.use(cache_segment(self.capacity))

    def adopt(self, fd: int, size: int) -> bool:
        """Uses the memory behind a descriptor, which stays the caller's; says whether that is another than before.

        What was cached in the memory before is lost to this process. Raises NotACacheError or OSError.
        """
        old = self.segment
        if old is not None and old.is_behind(fd):
            return False
        self.use(received_cache(fd, size))
        if old is not None:
            old.close()
        return True

    def look_up(self, key: CacheKey, keys: Places, lines: CachedLines) -> Found:
        """Writes the lines that are there.

        Lines that were not found are garbage if they were before. The variable values of the others stand together
        behind heap_at.
        """
        count, parts = keys.count, keys.of
        words = self._words
        if words is None:
            return Found(count, 0, lines.heap_at, np.arange(count, dtype=np.int32), None)
        memory: Rows = empty(6 * count, int32)
        now = self._clock() // 1_000_000
        told: tuple[int, int] = find(
            words, key.low, key.high, now,
            parts.heap, parts.starts, parts.sizes, parts.parts, parts.rows, keys.firsts, count,
            memory, lines.plan, lines.arena, lines.base, lines.heap, lines.heap_at, self.counts,
        )  # fmt: skip
        hits, end = told
        missing = memory[4 * count : 5 * count - hits] if 0 <= hits < count else NONE
        return Found(count, hits, end, missing, memory)

    def insert(self, key: CacheKey, found: Found, lines: CachedLines) -> None:
        """Keeps the lines of the keys that were missing for their time, those whose first value is there.

        `found` is what `look_up` returned. Lines with a value of the wrong length are not kept.
        """
        words, memory = self._words, found.memory
        if words is None or memory is None:
            return
        now = self._clock() // 1_000_000
        end = now + int(key.ttl * 1000)
        line = self._buffer()
        while True:
            kept: int = keep(
                words, now, end, memory, found.count, len(found.missing),
                lines.plan, lines.arena, lines.base, lines.heap, line, self.counts,
            )  # fmt: skip
            if kept >= 0:
                break
            line = empty(-1 - kept, uint64)
        self._buffers.append(line)

    def _buffer(self) -> Words:
        """Memory for one line, which is the caller's until it puts it back."""
        try:
            return self._buffers.pop()
        except IndexError:
            return empty(BUFFER_WORDS, uint64)

    # --- for people

    @property
    def size(self) -> int:
        """Bytes of the cache; 0 while there is none."""
        return self.segment.size if self.segment is not None else 0

    @property
    def used(self) -> int:
        """Bytes of the log that hold records, living or not."""
        if self._words is None:
            return 0
        words = self._words
        span = len(words) - HEADER_WORDS - SET_WORDS * sets_of(len(words))
        return 8 * min(int(words[HEAD_AT]) - span, span)

    @property
    def hits(self) -> int:
        return int(self.counts[kernels.HITS])

    @property
    def misses(self) -> int:
        return int(self.counts[kernels.MISSES])

    @property
    def expired(self) -> int:
        return int(self.counts[kernels.EXPIRED])

    @property
    def torn(self) -> int:
        return int(self.counts[kernels.TORN])

    @property
    def inserts(self) -> int:
        return int(self.counts[kernels.INSERTED])

    @property
    def evictions(self) -> int:
        return int(self.counts[kernels.EVICTED])

    @property
    def renewals(self) -> int:
        return int(self.counts[kernels.RENEWED])

    @property
    def too_large(self) -> int:
        return int(self.counts[kernels.TOO_LARGE])

    def __repr__(self) -> str:
        if self._words is None:
            return "<FeatureCache no memory yet>"
        return (
            f"<FeatureCache {self.used} of {self.size} bytes used, here {self.hits} hits, {self.misses} misses, "
            f"{self.inserts} inserts, {self.evictions} evictions>"
        )
