"""One feature cache for the pod: how workers and config sidecars that come and go keep to the same memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shared.config_link import ConfigLink, Outcome
from shared.feature_cache import FeatureCache
from shared.rundir import UnixListener
from shared.segments import Segment
from sidecar.config import ConfigSidecar
from tests.shared.cached import Line, Shape, look_up, remember
from tests.sidecar.test_config import Shelf, run, run_dir

__all__ = ["run_dir"]

SIZE = 64 << 10
SHAPE = Shape((4,), (1,))
LINE = Line((b"1234", b"\1"))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - links tell nobody
        await asyncio.sleep(0.01)


class Idle:
    """A worker without configs. See `shared.config_link.ConfigFollower`."""

    async def prepare(self, version: int, document: bytes | memoryview) -> Outcome:
        return Outcome({}, {})

    def activate(self, version: int) -> None: ...
    def notice(self, text: str) -> None: ...
    def saved(self) -> tuple[int, bytes] | None:
        return None


class Member:
    """A worker's cache and its link."""

    def __init__(self, path: Path, *, capacity: int = SIZE) -> None:
        self.cache = FeatureCache(capacity=capacity)
        self.link = ConfigLink(asyncio.get_running_loop(), path, worker=0, follower=Idle(), cache=self.cache)
        self.link.start()

    @property
    def memory(self) -> tuple[int, int] | None:
        """What tells this memory from all others."""
        if self.cache.segment is None:
            return None
        status = os.fstat(self.cache.segment.fd)
        return status.st_dev, status.st_ino

    async def begun(self) -> tuple[int, int]:
        await until(lambda: self.memory is not None)
        assert self.memory is not None
        return self.memory

    async def connected(self, wanted: bool = True) -> None:
        await until(lambda: ("not connected" in repr(self.link)) is not wanted)

    def put(self, key: bytes) -> None:
        remember(self.cache, {(key,): LINE}, SHAPE)

    def has(self, key: bytes) -> bool:
        return look_up(self.cache, [(key,)], SHAPE) == [LINE]


@contextlib.asynccontextmanager
async def sidecar(run_dir: Path, *, cache_bytes: int = SIZE) -> AsyncIterator[Path]:
    """A running sidecar; gives the path of its socket."""
    path = run_dir / "config.sock"
    one = ConfigSidecar(
        asyncio.get_running_loop(),
        UnixListener(path),
        Shelf({}),
        run_dir / "state",
        check_expressions=True,
        cache_bytes=cache_bytes,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    try:
        yield path
    finally:
        stop.set()
        await running


def test_what_one_worker_caches_the_others_find(run_dir: Path) -> None:
    async def main() -> None:
        async with sidecar(run_dir) as path:
            first, second = Member(path), Member(path)
            assert await first.begun() == await second.begun()
            first.put(b"a")
            assert second.has(b"a")
            await first.link.close()  # its worker dies
            third = Member(path)
            await third.begun()
            assert third.has(b"a")
            await second.link.close()
            await third.link.close()

    run(main())


def test_a_new_sidecar_takes_the_cache_that_workers_have(run_dir: Path) -> None:
    async def main() -> None:
        async with sidecar(run_dir) as path:
            first, second = Member(path), Member(path)
            memory = await first.begun()
            await second.begun()
            first.put(b"a")
        await first.connected(False)
        await second.connected(False)
        async with sidecar(run_dir) as path:
            await first.connected()
            await second.connected()
            third = Member(path)
            assert await third.begun() == memory == first.memory == second.memory
            assert third.has(b"a")
            for one in (first, second, third):
                await one.link.close()

    run(main())


def test_a_worker_without_a_sidecar_makes_its_own_and_brings_it_along(run_dir: Path) -> None:
    async def main() -> None:
        first = Member(run_dir / "config.sock")
        memory = await first.begun()
        first.put(b"a")
        async with sidecar(run_dir) as path:
            await first.connected()
            second = Member(path)
            assert await second.begun() == memory == first.memory
            assert second.has(b"a")
            await first.link.close()
            await second.link.close()

    run(main())


def test_two_workers_that_made_their_own_end_with_one(run_dir: Path) -> None:
    async def main() -> None:
        members = [Member(run_dir / "config.sock") for _ in range(2)]
        assert await members[0].begun() != await members[1].begun()
        async with sidecar(run_dir):
            await until(lambda: members[0].memory == members[1].memory)
            members[0].put(b"a")
            assert members[1].has(b"a")
            for one in members:
                await one.link.close()

    run(main())


def test_a_cache_of_another_size_is_replaced(run_dir: Path) -> None:
    async def main() -> None:
        member = Member(run_dir / "config.sock", capacity=2 * SIZE)
        old = await member.begun()
        async with sidecar(run_dir):
            await until(lambda: member.memory != old)
            assert member.cache.size == SIZE
            await member.link.close()

    run(main())


def test_without_a_size_nothing_is_handed_out(run_dir: Path) -> None:
    async def main() -> None:
        async with sidecar(run_dir, cache_bytes=0) as path:
            member = Member(path)
            await member.connected()
            await asyncio.sleep(0.05)
            assert member.memory is None
            await member.link.close()

    run(main())


@pytest.mark.parametrize(("announced", "reason"), [(8192, "has 4096 bytes"), (4096, "is no feature cache")])
def test_memory_that_is_no_cache_is_refused(announced: int, reason: str) -> None:
    cache = FeatureCache(capacity=SIZE)
    cache.begin()
    before = cache.segment
    other = Segment("other", 4096)
    with pytest.raises(ValueError, match=reason):
        cache.adopt(other.fd, announced)
    assert cache.segment is before
    assert before is not None
    assert not cache.adopt(before.fd, before.size)  # it has it already
    other.close()
