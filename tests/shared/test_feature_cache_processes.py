"""The feature cache under processes that write all the time and are killed in the middle of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.cache_kernels import RECORD_WORDS
from shared.cache_memory import HEADER_WORDS, SET_WORDS, cache_segment, sets_of
from shared.feature_cache import FeatureCache
from shared.segments import Segment
from tests.shared.cached import KEY, Key, Memory, Shape, all_missing, cells_of, look_up, remember

ROOT = Path(__file__).parents[2]
SHAPE = Shape((400, 37), (60, 1), 2)
GROUP, GROUPS = 60, 4
"""Keys of a request: so many that others write while they are looked up; all of them together do not fit."""
WRITERS = 24
FIRST_SEED = 1000  # all have four digits: all lines have one length
LIFETIME = 0.1  # seconds from one kill to the next
PATIENCE = 60.0  # seconds to wait for the first line that was overwritten while it was read

NURSERY = """
import sys
from shared.cache_memory import received_cache
from shared.feature_cache import FeatureCache
from tests.shared.test_feature_cache_processes import nurse

nurse(FeatureCache(received_cache(int(sys.argv[1]), int(sys.argv[2]))))
"""


def keys_of(group: int) -> list[Key]:
    return [(b"%03d" % (group * GROUP + i),) for i in range(GROUP)]


def cache_of_whole_records(least: int) -> Segment:
    """A cache whose log holds a whole number of records, so that each one overwrites exactly one older.

    Otherwise a reader that comes too late finds no header where it looks, and the check has nothing to tell.
    """
    line = cells_of(keys_of(0)[0], SHAPE, FIRST_SEED)
    pieces = [4 * SHAPE.values, *map(len, line.runs), sum(map(len, line.values))]
    record = RECORD_WORDS + sum(-(-size // 8) for size in pieces)
    words = next(
        words
        for words in range(least // 8, least)
        if (words - HEADER_WORDS - SET_WORDS * sets_of(words)) % record == 0
    )
    return cache_segment(8 * words)


def check(cache: FeatureCache, keys: list[Key]) -> int:
    """Looks the keys up: what is found must be a line that some process wrote for that very key."""
    found = 0
    for key, line in zip(keys, look_up(cache, keys, SHAPE), strict=True):
        if line is not None:
            seed = int(line.runs[0].partition(b"|")[0])
            assert line == cells_of(key, SHAPE, seed), key
            found += 1
    return found


def write(cache: FeatureCache, seed: int) -> None:
    """Goes on until it is killed, and does nothing else. Each process writes other lines for the same keys."""
    prepared = []
    for group in range(GROUPS):
        memory = Memory(SHAPE, GROUP)
        found = all_missing(keys_of(group), SHAPE)
        for number, key in enumerate(keys_of(group)):
            memory.write(number, cells_of(key, SHAPE, seed))
        prepared.append((found, memory.lines()))
    while True:
        for found, lines in prepared:
            cache.insert(KEY, found, lines)


def nurse(cache: FeatureCache) -> None:
    """Forks a writer for each line of standard input, which is its seed; two live, the oldest is killed.

    Forks, since a process that must import everything first is killed before it has written anything.
    """
    writers: list[int] = []
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            write(cache, int(line))
        writers.append(pid)
        if len(writers) > 2:
            stop(writers.pop(0))
        print(pid, flush=True)
    for pid in writers:
        stop(pid)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"a writer ended by itself: {status}"


@pytest.mark.slow
def test_writers_that_are_killed_cost_misses_only() -> None:
    """The cache is so small that records are overwritten while they are read."""
    segment = cache_of_whole_records(96 << 10)
    cache = FeatureCache(segment)
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(segment.fd), str(segment.size)],
        cwd=ROOT, pass_fds=[segment.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    found, seed = 0, FIRST_SEED
    patience = time.monotonic() + PATIENCE
    while seed < FIRST_SEED + WRITERS or (not cache.torn and time.monotonic() < patience):
        print(seed, file=nursery.stdin, flush=True)
        assert nursery.stdout.readline().strip().isdigit(), "the nursery died"
        seed += 1
        end = time.monotonic() + LIFETIME
        while time.monotonic() < end:
            found += check(cache, keys_of(seed % GROUPS))
    nursery.stdin.close()
    assert nursery.wait(60) == 0
    nursery.stdout.close()
    assert found > 0
    assert cache.torn > 0, "no line was overwritten while it was read: this test has shown nothing"
    # Nothing has to be put right: what is written now is found.
    lines = {key: cells_of(key, SHAPE, 9999) for key in keys_of(0)}
    remember(cache, lines, SHAPE)
    assert look_up(cache, keys_of(0), SHAPE) == list(lines.values())
