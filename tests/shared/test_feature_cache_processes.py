"""The feature cache under processes that write all the time and are killed in the middle of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.cache_memory import cache_segment
from shared.feature_cache import FeatureCache
from tests.shared.cached import Key, Shape, cells_of, look_up, remember

ROOT = Path(__file__).parents[2]
SHAPE = Shape((2000, 37), (60, 1), 2)
KEYS = 300
WRITERS = 40
LIFETIME = 0.1  # seconds from one kill to the next

NURSERY = """
import sys
from shared.cache_memory import received_cache
from shared.feature_cache import FeatureCache
from tests.shared.test_feature_cache_processes import nurse

nurse(FeatureCache(received_cache(int(sys.argv[1]), int(sys.argv[2]))))
"""


def keys_of(number: int) -> list[Key]:
    return [(b"%d" % ((number * 7 + i) % KEYS),) for i in range(5)]


def check(cache: FeatureCache, keys: list[Key]) -> int:
    """Looks the keys up: what is found must be a line that some process wrote for that very key."""
    found = 0
    for key, line in zip(keys, look_up(cache, keys, SHAPE), strict=True):
        if line is not None:
            seed = int(line.runs[0].partition(b"|")[0])
            assert line == cells_of(key, SHAPE, seed), key
            found += 1
    return found


def write_and_read(cache: FeatureCache, seed: int) -> None:
    """Goes on until it is killed. Each process writes other lines for the same keys."""
    while True:
        number = random.randrange(KEYS)
        remember(cache, {key: cells_of(key, SHAPE, seed) for key in keys_of(number)}, SHAPE)
        check(cache, keys_of(number + 3))


def nurse(cache: FeatureCache) -> None:
    """Forks a writer for each line of standard input, which is its seed; two live, the oldest is killed.

    Forks, since a process that must import everything first is killed before it has written anything.
    """
    writers: list[int] = []
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            random.seed(line)
            write_and_read(cache, int(line))
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
    segment = cache_segment(96 << 10)
    cache = FeatureCache(segment)
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(segment.fd), str(segment.size)],
        cwd=ROOT, pass_fds=[segment.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    found = 0
    for seed in range(WRITERS):
        print(seed, file=nursery.stdin, flush=True)
        assert nursery.stdout.readline().strip().isdigit(), (
            "a writer read what nobody wrote, or the nursery died"
        )
        end = time.monotonic() + LIFETIME
        while time.monotonic() < end:
            found += check(cache, keys_of(random.randrange(KEYS)))
    nursery.stdin.close()
    assert nursery.wait(60) == 0
    nursery.stdout.close()
    assert found > 0
    # Nothing has to be put right: what is written now is found.
    lines = {key: cells_of(key, SHAPE, 999) for key in keys_of(0)}
    remember(cache, lines, SHAPE)
    assert look_up(cache, keys_of(0), SHAPE) == list(lines.values())
