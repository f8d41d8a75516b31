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

__all__ = ["CacheKey", "CachedLines", "FeatureCache", "Found", "LinePieces", "Places"]

Rows = npt.NDArray[np.int32]
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


class Places:
    """The distinct keys of a request: their parts by place. The parts of key k are those of row firsts[k].

    starts int64 and sizes int32 [parts, rows], of `heap`; firsts int32 [keys].
    """

    __slots__ = ("firsts", "heap", "sizes", "starts")

    def __init__(self, heap: Bytes, starts: npt.NDArray[np.int64], sizes: Rows, firsts: Rows) -> None:
        self.heap = heap
        self.starts = starts
        self.sizes = sizes
        self.firsts = firsts

    def __repr__(self) -> str:
        return f"<Places of {len(self.firsts)} keys>"


class LinePieces:
    """Where the cells and states of lines lie, in bytes from where their memory begins.

    pieces int64 [n, 3]: base, stride and size of each run of cells, then, from number `states` on, of states. The
    state of line l's first value stands at first_at + l × first_stride.
    """

    __slots__ = ("first_at", "first_stride", "pieces", "states")

    def __init__(self, pieces: npt.NDArray[np.int64], states: int, first_at: int, first_stride: int) -> None:
        self.pieces = pieces
        self.states = states
        self.first_at = first_at
        self.first_stride = first_stride

    def __repr__(self) -> str:
        return f"<LinePieces {len(self.pieces)}, {self.states} of them cells>"


class CachedLines:
    """Where the lines of a request are, one a key: see `cache_kernels.look_up`.

    Their memory begins at `base` of `arena`. starts int64 and sizes int32 [lines, columns]: the places of the
    variable values in `heap`, [0, 0] when there are none; those that are found go behind heap_at.
    """

    __slots__ = ("arena", "base", "heap", "heap_at", "places", "sizes", "starts")

    def __init__(
        self,
        places: LinePieces,
        arena: Bytes,
        base: int,
        starts: npt.NDArray[np.int64],
        sizes: Rows,
        heap: Bytes,
        heap_at: int,
    ) -> None:
        self.places = places
        self.arena = arena
        self.base = base
        self.starts = starts
        self.sizes = sizes
        self.heap = heap
        self.heap_at = heap_at

    def __repr__(self) -> str:
        return f"<CachedLines at {self.base}, values at {self.heap_at}>"


class Found:
    """What a look-up found.

    `hits`: how many keys; negative: −1 − bytes that the heap of variable values must have behind heap_at, and
    nothing was written. `missing`: the others, int32, ascending. `table` uint64 [keys, 3]: the digest of each key,
    and 1 when its line was found, else 0.
    """

    __slots__ = ("hits", "missing", "table")

    def __init__(self, hits: int, missing: Rows, table: npt.NDArray[np.uint64]) -> None:
        self.hits = hits
        self.missing = missing
        self.table = table

    def __repr__(self) -> str:
        return f"<Found {self.hits} of {len(self.table)} keys>"


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

        Lines that were not found are untouched. The variable values of the others stand together behind heap_at.
        """
        count = len(keys.firsts)
        table = np.empty((count, 3), np.uint64)
        words = self._words
        if words is None:
            table[:, 2] = 0
            return Found(0, np.arange(count, dtype=np.int32), table)
        missing = np.empty(count, np.int32)
        hits: int = find(
            words, key.low, key.high, self._clock() // 1_000_000,
            keys.heap, keys.starts, keys.sizes, keys.firsts, table, missing,
            lines.places.pieces, lines.arena, lines.base, lines.starts, lines.sizes, lines.heap, lines.heap_at,
            self.counts,
        )  # fmt: skip
        if hits > 0:
            missing = missing[: count - hits]
        return Found(hits, missing, table)

    def insert(self, key: CacheKey, found: Found, wanted: Rows, lines: CachedLines) -> None:
        """Keeps the lines of these keys (int32 [n]) for their time, those whose first value is there.

        `found` is what `look_up` returned. Lines with a value of the wrong length are not kept.
        """
        words = self._words
        if words is None:
            return
        now = self._clock() // 1_000_000
        places = lines.places
        keep(
            words, now, now + int(key.ttl * 1000), wanted, found.table,
            places.pieces, places.states, places.first_at, places.first_stride,
            lines.arena, lines.base, lines.starts, lines.sizes, lines.heap, self.counts,
        )  # fmt: skip

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
