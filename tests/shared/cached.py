"""Requests to a feature cache in plain bytes: what keys are looked for, and what their lines hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from shared.feature_cache import CachedLines, CacheKey, FeatureCache, Found, LinePieces, Places

__all__ = ["KEY", "Key", "Line", "Memory", "Shape", "cells_of", "look_up", "places", "remember"]

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
    return Places(heap, np.ascontiguousarray(starts.T.astype(np.int64)), np.ascontiguousarray(sizes.T), rows)


class Memory:
    """The memory of a request's lines, as a component has it."""

    def __init__(self, shape: Shape, count: int) -> None:
        self.shape = shape
        ends = np.cumsum([size * count for size in shape.runs]).tolist()
        self.bases = [0, *ends[:-1]]
        self.memory = np.full(BEFORE + (ends[-1] if ends else 0), 0xEE, np.uint8)
        self.arena = self.memory[BEFORE:]
        self.starts = np.zeros((count, shape.values), np.int64)
        self.sizes = np.zeros((count, shape.values), np.int32)
        self.heap = np.empty(0, np.uint8)

    def lines(self, heap_at: int = 0) -> CachedLines:
        states = len(self.shape.cells)
        pieces = [(base, size, size) for base, size in zip(self.bases, self.shape.runs, strict=True)]
        return CachedLines(
            LinePieces(
                np.array(pieces, np.int64).reshape(-1, 3), states, self.bases[states], self.shape.states[0]
            ),
            self.memory,
            BEFORE,
            self.starts if self.shape.values else np.empty((0, 0), np.int64),
            self.sizes if self.shape.values else np.empty((0, 0), np.int32),
            self.heap,
            heap_at,
        )

    def write(self, number: int, line: Line) -> None:
        for base, run in zip(self.bases, line.runs, strict=True):
            self.arena[base + number * len(run) : base + (number + 1) * len(run)] = list(run)
        for column, value in enumerate(line.values):
            self.starts[number, column] = len(self.heap)
            self.sizes[number, column] = len(value)
            self.heap = np.concatenate((self.heap, np.frombuffer(value, np.uint8)))

    def read(self, number: int) -> Line:
        runs = tuple(
            self.arena[base + number * size : base + (number + 1) * size].tobytes()
            for base, size in zip(self.bases, self.shape.runs, strict=True)
        )
        values = tuple(
            self.heap[start : start + size].tobytes()
            for start, size in zip(self.starts[number], self.sizes[number], strict=True)
        )
        return Line(runs, values)


def look_up(
    cache: FeatureCache, keys: Sequence[Key], shape: Shape, *, key: CacheKey = KEY
) -> list[Line | None]:
    """The line of each key, None for one that is not there."""
    if not keys:
        return []
    memory, found = _looked_up(cache, keys, shape, key)
    got = [memory.read(number) if hit else None for number, hit in enumerate(found.table[:, 2].tolist())]
    for number, line in enumerate(got):
        if line is None:  # untouched
            assert set(b"".join(memory.read(number).runs)) <= {0xEE}
    return got


def _looked_up(cache: FeatureCache, keys: Sequence[Key], shape: Shape, key: CacheKey) -> tuple[Memory, Found]:
    memory = Memory(shape, len(keys))
    found = cache.look_up(key, places(keys), memory.lines())
    while found.hits < 0:
        memory.heap = np.zeros(-1 - found.hits, np.uint8)
        found = cache.look_up(key, places(keys), memory.lines())
    assert found.hits == found.table[:, 2].sum()
    assert found.missing.tolist() == np.flatnonzero(found.table[:, 2] == 0).tolist()
    assert (memory.memory[:BEFORE] == 0xEE).all()
    return memory, found


def remember(cache: FeatureCache, lines: dict[Key, Line], shape: Shape, *, key: CacheKey = KEY) -> None:
    """Caches the lines of these keys, all with one number of parts, after having looked for them."""
    if not lines:
        return
    _, found = _looked_up(cache, list(lines), shape, key)
    memory = Memory(shape, len(lines))
    for number, line in enumerate(lines.values()):
        memory.write(number, line)
    cache.insert(key, found, np.arange(len(lines), dtype=np.int32), memory.lines())
