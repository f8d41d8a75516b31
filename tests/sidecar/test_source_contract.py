"""What every source of configs must do alike: the directory and etcd."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from sidecar.etcd import EtcdClient
from sidecar.etcd_keys import EtcdKeys
from sidecar.etcd_source import EtcdSource
from sidecar.source import DirectorySource, Source
from tests.sidecar.etcd_server import EtcdServer
from tests.sidecar.etcd_support import run, until, until_away, until_held


class World(ABC):
    """A place that keeps configs, and what can happen to it."""

    @abstractmethod
    def source(self) -> contextlib.AbstractAsyncContextManager[Source]: ...

    @abstractmethod
    def put(self, key: str, text: bytes) -> None: ...

    @abstractmethod
    def delete(self, key: str) -> None: ...

    @abstractmethod
    def put_noise(self) -> None:
        """Writes things around the configs that are none."""

    @abstractmethod
    def go(self) -> None:
        """Cannot be reached from now on; nothing is lost."""

    @abstractmethod
    def come(self) -> None:
        """Can be reached again; nothing if it can be already."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What must stand in the message when it cannot be reached."""


class Directory(World):
    def __init__(self, root: Path) -> None:
        self._root = root / "configs"
        self._elsewhere = root / "elsewhere"
        self._root.mkdir()

    @property
    def name(self) -> str:
        return str(self._root)

    @contextlib.asynccontextmanager
    async def source(self) -> AsyncIterator[Source]:
        yield DirectorySource(self._root, interval=0.01)

    def put(self, key: str, text: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        scratch = path.with_name(".scratch")
        scratch.write_bytes(text)
        scratch.replace(path)

    def delete(self, key: str) -> None:
        self._path(key).unlink()

    def put_noise(self) -> None:
        (self._root / "config-map").mkdir(exist_ok=True)
        for name in ("README.md", "else.json", "config-map/a.json~", "config-map/.b.json"):
            (self._root / name).write_bytes(b"noise")

    def go(self) -> None:
        self._root.rename(self._elsewhere)

    def come(self) -> None:
        if self._elsewhere.exists():
            self._elsewhere.rename(self._root)

    def _path(self, key: str) -> Path:
        root = self._root if self._root.exists() else self._elsewhere
        return root / f"{key}.json"


class Etcd(World):
    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self._keys = EtcdKeys("app")

    @property
    def name(self) -> str:
        return f"etcd {self._server.address}"

    @contextlib.asynccontextmanager
    async def source(self) -> AsyncIterator[Source]:
        source = EtcdSource(EtcdClient([self._server.address], failover=False), self._keys)
        try:
            yield source
        finally:
            await source.close()

    def put(self, key: str, text: bytes) -> None:
        self._server.put(self._keys.place(key), text)

    def delete(self, key: str) -> None:
        self._server.delete(self._keys.place(key))

    def put_noise(self) -> None:
        self._server.put("/config/inferflow/services/app/else", "noise")
        self._server.put("/config/inferflow/services/other/model-config/config-map/a", "noise")
        self._server.put("/config/inferflow/services/app/model-config/config-map/a/b", "noise")

    def go(self) -> None:
        self._server.kill()

    def come(self) -> None:
        if not self._server.running:
            self._server.start()


@pytest.fixture(params=["directory", "etcd"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "directory":
        yield Directory(tmp_path)
        return
    one = Etcd(request.getfixturevalue("etcd"))
    yield one
    one.come()  # the next test has the same server


Story: TypeAlias = Callable[[World], Coroutine[Any, Any, None]]


def told(story: Story) -> Callable[[World], None]:
    """A test that is a coroutine."""

    def test(world: World) -> None:
        run(story(world))

    test.__doc__ = story.__doc__
    return test


@told
async def test_what_is_there_is_read(world: World) -> None:
    texts = {
        "config-map/a": b"{}",
        "config-map/b.c-D_e": b"x",
        "expression-config/e": b"1",
        "service-config": b"2",
    }
    for key, text in texts.items():
        world.put(key, text)
    async with world.source() as source:
        await until_held(source, texts)
        for key in texts:
            assert key in source.place(key)


@told
async def test_nothing_there_is_something_that_can_be_read(world: World) -> None:
    async with world.source() as source:
        await until_held(source, {})
        assert source.revision("config-map/a") == 0


@told
async def test_puts_changes_and_deletions_are_seen(world: World) -> None:
    async with world.source() as source:
        await until_held(source, {})
        world.put("config-map/a", b"1")
        await until_held(source, {"config-map/a": b"1"})
        world.put("config-map/a", b"2")
        await until_held(source, {"config-map/a": b"2"})
        world.put("expression-config/e", b"3")
        await until_held(source, {"config-map/a": b"2", "expression-config/e": b"3"})
        world.delete("config-map/a")
        await until_held(source, {"expression-config/e": b"3"})


@told
async def test_many_at_once_are_all_seen(world: World) -> None:
    texts = {f"config-map/{number}": b"%d" % number for number in range(200)}
    async with world.source() as source:
        await until_held(source, {})
        for key, text in texts.items():
            world.put(key, text)
        await until_held(source, texts)
        for key in texts:
            world.put(key, b"again")
        world.delete("config-map/7")
        await until_held(source, dict.fromkeys(texts.keys() - {"config-map/7"}, b"again"))


@told
async def test_what_is_no_config_is_left_alone(world: World) -> None:
    world.put_noise()
    world.put("config-map/z", b"1")
    async with world.source() as source:
        await until_held(source, {"config-map/z": b"1"})
        world.put_noise()
        world.put("config-map/z", b"2")
        await until_held(source, {"config-map/z": b"2"})


@told
async def test_away_at_the_start_is_said_and_tried_again(world: World) -> None:
    world.put("config-map/a", b"1")
    world.go()
    async with world.source() as source:
        await until_away(source, world.name)
        world.come()
        await until_held(source, {"config-map/a": b"1"})


@told
async def test_away_later_is_said_and_what_happened_meanwhile_is_caught_up_with(world: World) -> None:
    for name in "abc":
        world.put(f"config-map/{name}", b"1")
    async with world.source() as source:
        await until(source, lambda found: len(found) == 3 and not isinstance(found, str))
        world.go()
        await until_away(source, world.name)
        world.come()
        world.put("config-map/a", b"2")
        world.delete("config-map/b")
        world.put("config-map/d", b"4")
        await until_held(source, {"config-map/a": b"2", "config-map/c": b"1", "config-map/d": b"4"})


@told
async def test_another_text_has_another_revision_and_the_same_text_has_not(world: World) -> None:
    world.put("config-map/a", b"1")
    world.put("config-map/b", b"1")
    async with world.source() as source:
        await until(source, lambda found: len(found) == 2 and not isinstance(found, str))
        first, other = source.revision("config-map/a"), source.revision("config-map/b")
        world.put("config-map/a", b"2")
        await until_held(source, {"config-map/a": b"2", "config-map/b": b"1"})
        assert source.revision("config-map/a") > first > 0
        assert source.revision("config-map/b") == other


@told
async def test_a_text_is_written_only_over_the_revision_that_was_seen(world: World) -> None:
    async with world.source() as source:
        await until_held(source, {})
        assert await source.put("config-map/a", b"1", 0)
        await until_held(source, {"config-map/a": b"1"})
        seen = source.revision("config-map/a")
        assert not await source.put("config-map/a", b"2", 0)
        assert await source.put("config-map/a", b"3", seen)
        assert not await source.put("config-map/a", b"4", seen)
        await until_held(source, {"config-map/a": b"3"})


@told
async def test_its_state_shows(world: World) -> None:
    async with world.source() as source:
        await until_held(source, {})
        assert repr(source).startswith(f"<{type(source).__name__} ")
