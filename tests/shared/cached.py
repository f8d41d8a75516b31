"""Requests to a feature cache in plain bytes: what keys are looked for, and what their lines hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from shared.cache_kernels import line_plan
from shared.cache_memory import cache_segment
from shared.feature_cache import CachedLines, CacheKey, FeatureCache, Found, KeyParts, Places

__all__ = [
    "KEY",
    "Key",
    "Line",
    "Memory",
    "Shape",
    "all_missing",
    "cells_of",
    "look_up",
    "places",
    "remember",
]

Key = tuple[bytes, ...]
KEY = CacheKey(b"config and such ", 60.0)
VALUE = 1
BEFORE = 24  # bytes of a request's memory before its lines


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the lines of a component look like: bytes of each run of cells, cells in each run of states."""

    cells: tuple[int, ...]
    states: tuple[int, ...]
    values: int = 0
    """Variable values of a line."""

    @property
    def runs(self) -> tuple[int, ...]:
        return self.cells + self.states


@dataclasses.dataclass(frozen=True)
class Line:
    """One line: its runs of cells and states, and its variable values."""

    runs: tuple[bytes, ...]
    values: tuple[bytes, ...] = ()


def cells_of(key: Key, shape: Shape, seed: int = 0) -> Line:
    """A line that only this key has; all its states are VALUE."""
    text = b"%d|" % seed + b"|".join(key) + b"|"
    long = text * (max(shape.runs, default=0) // len(text) + 1)
    cells = tuple(long[:size] for size in shape.cells)
    states = tuple(bytes([VALUE]) * size for size in shape.states)
    return Line(cells + states, tuple(text * column for column in range(shape.values)))


def places(keys: Sequence[Key]) -> Places:
    """The keys as a request has them, one a row. All have the same number of parts."""
    sizes = np.array([[len(part) for part in key] for key in keys], np.int32).reshape(len(keys), -1)
    starts = (np.cumsum(sizes.reshape(-1)) - sizes.reshape(-1)).reshape(sizes.shape)
    heap = np.frombuffer(b"".join(b"".join(key) for key in keys) + b"\0", np.uint8)
    rows = np.arange(len(keys), dtype=np.int32)
    by_part = starts.T.astype(np.int64).reshape(-1), sizes.T.reshape(-1)
    return Places(KeyParts(heap, *by_part, len(keys[0]), len(keys)), rows, len(keys))


class Memory:
    """The memory of a request's lines, as a component has it."""

    def __init__(self, shape: Shape, count: int) -> None:
        self.shape = shape
        self.sizes_at = 8 * shape.values * count
        sizes = [12 * shape.values * count, *(size * count for size in shape.runs)]
        *self.bases, end = np.cumsum(sizes).tolist()
        self.memory = np.full(BEFORE + end + -end % 8, 0xEE, np.uint8)
        self.arena = self.memory[BEFORE:]
        self.starts = self.arena[: self.sizes_at].view(np.int64).reshape(count, shape.values)
        self.sizes = self.arena[self.sizes_at : sizes[0]].view(np.int32).reshape(count, shape.values)
        self.heap = np.empty(0, np.uint8)

    def lines(self, heap_at: int = 0) -> CachedLines:
        states = len(self.shape.cells)
        pieces = [(base, size, size) for base, size in zip(self.bases, self.shape.runs, strict=True)]
        first = self.bases[states], self.shape.states[0]
        plan = line_plan(pieces, states, first, self.shape.values, 0, self.sizes_at)
        return CachedLines(plan, self.memory, BEFORE, self.heap, heap_at)

    def write(self, number: int, line: Line) -> None:
        for base, run in zip(self.bases, line.runs, strict=True):
            self.arena[base + number * len(run) : base + (number + 1) * len(run)] = list(run)
        for column, value in enumerate(line.values):
            self.starts[number, column] = len(self.heap)
            self.sizes[number, column] = len(value)
            self.heap = np.concatenate((self.heap, np.frombuffer(value, np.uint8)))

    def read(self, number: int) -> Line:
        values = tuple(
            self.heap[start : start + size].tobytes()
            for start, size in zip(self.starts[number], self.sizes[number], strict=True)
        )
        return Line(self.read_runs(number), values)

    def read_runs(self, number: int) -> tuple[bytes, ...]:
        return tuple(
            self.arena[base + number * size : base + (number + 1) * size].tobytes()
            for base, size in zip(self.bases, self.shape.runs, strict=True)
        )


def look_up(
    cache: FeatureCache, keys: Sequence[Key], shape: Shape, *, key: CacheKey = KEY
) -> list[Line | None]:
    """The line of each key, None for one that is not there."""
    if not keys:
        return []
    torn = cache.torn
    memory, found = _looked_up(cache, keys, shape, key)
    missing = set(found.missing.tolist())
    got = [None if number in missing else memory.read(number) for number in range(len(keys))]
    written = sum(not set(b"".join(memory.read_runs(number))) <= {0xEE} for number in missing)
    assert written <= cache.torn - torn  # what was copied before its check was seen to be wrong
    return got


def _looked_up(cache: FeatureCache, keys: Sequence[Key], shape: Shape, key: CacheKey) -> tuple[Memory, Found]:
    memory = Memory(shape, len(keys))
    found = cache.look_up(key, places(keys), memory.lines())
    while found.hits < 0:
        memory.heap = np.zeros(found.end, np.uint8)
        found = cache.look_up(key, places(keys), memory.lines())
    missing = found.missing.tolist()
    assert found.hits + len(missing) == len(keys)
    assert missing == sorted(set(missing).intersection(range(len(keys))))
    there = np.delete(np.arange(len(keys)), missing)
    assert found.end == memory.sizes[there].sum()
    assert (memory.memory[:BEFORE] == 0xEE).all()
    return memory, found


def remember(cache: FeatureCache, lines: dict[Key, Line], shape: Shape, *, key: CacheKey = KEY) -> None:
    """Caches the lines of these keys, all with one number of parts, after having looked for them."""
    if not lines:
        return
    _looked_up(cache, list(lines), shape, key)
    memory = Memory(shape, len(lines))
    for number, line in enumerate(lines.values()):
        memory.write(number, line)
    cache.insert(key, all_missing(list(lines), shape, key=key), memory.lines())


def all_missing(keys: Sequence[Key], shape: Shape, *, key: CacheKey = KEY) -> Found:
    """What a look-up of these keys finds where there is nothing yet."""
    return FeatureCache(cache_segment(0)).look_up(key, places(keys), Memory(shape, len(keys)).lines())
