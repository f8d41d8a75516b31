"""A worker's link to the config sidecar, against a scripted sidecar on a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from shared.config_link import ALONE, ConfigLink, Outcome
from shared.fd_stream import FdStream
from shared.frames import Activate, Connected, FrameReader, Notice, Prepared, Snapshot, Subscribe
from shared.sealed import seal

TIMEOUT = 20  # seconds; far more than anything here takes


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run_it(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(main, TIMEOUT))

    return run_it


class Sidecar:
    """Listens, and says what the test tells it to."""

    def __init__(self, path: Path) -> None:
        self.heard: asyncio.Queue[Subscribe | Prepared | Connected] = asyncio.Queue()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(os.fspath(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.path = path
        self.stream: FdStream[Subscribe | Prepared | Connected] | None = None

    async def accept(self) -> Subscribe | Prepared | Connected:
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(self.listener)
        sock.setblocking(False)
        reader: FrameReader[Subscribe | Prepared | Connected] = FrameReader(
            (Subscribe, Prepared, Connected), 10_000
        )
        self.stream = FdStream(loop, sock, reader, self.heard.put_nowait, lambda reason: None)
        return await self.heard.get()

    def announce(self, version: int, document: bytes, length: int | None = None) -> None:
        assert self.stream is not None
        fd = seal("test", document)
        self.stream.send(Snapshot(version, len(document) if length is None else length).encode(), fd)
        os.close(fd)

    def activate(self, version: int) -> None:
        assert self.stream is not None
        self.stream.send(Activate(version).encode())

    def hang_up(self) -> None:
        assert self.stream is not None
        self.stream.close()

    def end(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.listener.close()
        self.path.unlink()


class Worker:
    """A link, and what it asked of its worker."""

    def __init__(self, path: Path) -> None:
        self.prepared: list[tuple[int, bytes]] = []
        self.activated: list[int] = []
        self.fail_on: set[int] = set()
        self.changed = asyncio.Event()
        self.notices: list[str] = []
        self.on_disk: tuple[int, bytes] | None = None
        self.slow = asyncio.Event()  # preparing waits for it
        self.slow.set()
        self.asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.link = ConfigLink(loop, path, worker=3, follower=self)

    async def prepare(self, version: int, document: bytes) -> Outcome:
        self.prepared.append((version, document))
        self.asked.set()
        await self.slow.wait()
        if version in self.fail_on:
            raise ArithmeticError("cannot be prepared")
        return Outcome({"odd": "no host"} if version % 2 else {}, {"w": "x"} if version == 8 else {})

    def activate(self, version: int) -> None:
        self.activated.append(version)
        self.changed.set()

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self.changed.set()

    def saved(self) -> tuple[int, bytes] | None:
        return self.on_disk

    async def until_active(self, version: int) -> None:
        while self.link.version != version:
            self.changed.clear()
            await self.changed.wait()
            await asyncio.sleep(0)


def test_prepare_and_activate(run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path) -> None:
    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.link.start()
        assert await sidecar.accept() == Subscribe(3, os.getpid())
        sidecar.announce(5, b"five")
        assert await sidecar.heard.get() == Prepared(5, {"odd": "no host"})
        assert worker.link.version == 0
        sidecar.activate(5)
        await worker.until_active(5)
        sidecar.announce(6, b"six" * 100_000)
        assert await sidecar.heard.get() == Prepared(6, {})
        sidecar.activate(6)
        await worker.until_active(6)
        assert worker.prepared == [(5, b"five"), (6, b"six" * 100_000)]
        assert worker.activated == [5, 6]
        assert "connected, version 6" in repr(worker.link)
        await worker.link.close()
        sidecar.end()

    run(main())


def test_it_waits_for_a_sidecar_and_finds_the_next(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        worker = Worker(tmp_path / "s")
        worker.link.start()
        assert "not connected" in repr(worker.link)
        for version in (1, 2):
            sidecar = Sidecar(tmp_path / "s")
            await sidecar.accept()
            sidecar.announce(version, b"x")
            await sidecar.heard.get()
            sidecar.activate(version)
            await worker.until_active(version)
            sidecar.end()
        assert worker.link.version == 2  # kept, though the sidecar has gone
        await worker.link.close()
        assert "closed" in repr(worker.link)

    run(main())


def test_a_version_that_is_announced_again_is_not_prepared_again(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.link.start()
        for _ in range(3):
            await sidecar.accept()
            sidecar.announce(5, b"five")
            assert await sidecar.heard.get() == Prepared(5, {"odd": "no host"})
            sidecar.activate(5)
            await worker.until_active(5)
            sidecar.hang_up()
        assert worker.prepared == [(5, b"five")]
        assert worker.activated == [5]
        await worker.link.close()
        sidecar.end()

    run(main())


def test_a_version_that_was_not_prepared_is_not_activated(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.link.start()
        await sidecar.accept()
        sidecar.activate(9)
        sidecar.announce(10, b"ten")
        await sidecar.heard.get()
        assert worker.activated == []
        assert worker.link.version == 0
        await worker.link.close()
        sidecar.end()

    run(main())


def test_what_cannot_be_prepared_ends_the_connection_not_the_worker(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.fail_on = {4}
        worker.link.start()
        await sidecar.accept()
        sidecar.announce(4, b"four")
        await sidecar.accept()  # a new connection
        assert worker.prepared == [(4, b"four")]
        sidecar.announce(6, b"six")
        assert await sidecar.heard.get() == Prepared(6, {})
        await worker.link.close()
        sidecar.end()

    run(main())


def test_a_document_of_another_length_ends_the_connection(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.link.start()
        await sidecar.accept()
        sidecar.announce(4, b"four", length=5)
        await sidecar.accept()
        assert worker.prepared == []
        await worker.link.close()
        sidecar.end()

    run(main())


def test_closing_while_there_is_no_sidecar_stops_looking_for_one(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        worker = Worker(tmp_path / "s")
        worker.link.start()
        await worker.link.close()
        sidecar = Sidecar(tmp_path / "s")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sidecar.accept(), 0.3)
        sidecar.end()

    run(main())


def test_endpoints_that_do_not_answer_are_told_and_that_they_do(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.link.start()
        await sidecar.accept()
        sidecar.announce(8, b"eight")
        assert await sidecar.heard.get() == Prepared(8, {}, {"w": "x"})
        worker.link.connected(["w"])
        assert await sidecar.heard.get() == Connected(("w",))
        await worker.link.close()
        sidecar.end()

    run(main())


def test_a_notice_is_passed_on(run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path) -> None:
    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.link.start()
        await sidecar.accept()
        assert sidecar.stream is not None
        sidecar.stream.send(Notice("away").encode())
        await worker.changed.wait()
        assert worker.notices == ["away"]
        await worker.link.close()
        sidecar.end()

    run(main())


def test_a_lost_connection_ends_a_preparation_that_nobody_waits_for(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.slow.clear()
        worker.link.start()
        await sidecar.accept()
        sidecar.announce(2, b"two")
        await worker.asked.wait()
        sidecar.hang_up()
        await sidecar.accept()
        worker.slow.set()
        sidecar.announce(4, b"four")
        assert await sidecar.heard.get() == Prepared(4, {})
        sidecar.announce(2, b"two")
        assert await sidecar.heard.get() == Prepared(2, {})
        assert worker.prepared == [(2, b"two"), (4, b"four"), (2, b"two")]
        await worker.link.close()
        sidecar.end()

    run(main())


def test_without_a_sidecar_it_starts_from_what_was_saved(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        worker = Worker(tmp_path / "s")
        worker.on_disk = (6, b"six")
        worker.link.start()
        await worker.until_active(6)
        sidecar = Sidecar(tmp_path / "s")  # it is back, and holds the same
        await sidecar.accept()
        sidecar.announce(6, b"six")
        assert await sidecar.heard.get() == Prepared(6, {})
        sidecar.activate(6)
        sidecar.announce(8, b"eight")
        await sidecar.heard.get()
        sidecar.activate(8)
        await worker.until_active(8)
        assert worker.prepared == [(6, b"six"), (8, b"eight")]
        assert worker.activated == [6, 8]
        await worker.link.close()
        sidecar.end()

    run(main())


@pytest.mark.parametrize("announced", [False, True])
def test_when_the_first_sidecar_is_lost_before_it_activates_it_starts_from_what_was_saved(
    run: Callable[[Coroutine[Any, Any, None]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    announced: bool,
) -> None:
    monkeypatch.setattr("shared.config_link.ALONE", 0.05)

    async def main() -> None:
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.on_disk = (6, b"six")
        worker.link.start()
        await sidecar.accept()
        if announced:
            sidecar.announce(6, b"six")
            await sidecar.heard.get()
        await asyncio.sleep(0.1)
        assert worker.activated == []
        sidecar.end()
        await worker.until_active(6)
        assert worker.prepared == [(6, b"six")]
        await worker.link.close()

    run(main())


def test_a_sidecar_that_comes_and_goes_does_not_end_the_preparation_of_what_was_saved(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def main() -> None:
        worker = Worker(tmp_path / "s")
        worker.on_disk = (6, b"six")
        worker.slow.clear()
        worker.link.start()
        await worker.asked.wait()
        sidecar = Sidecar(tmp_path / "s")
        await sidecar.accept()
        sidecar.hang_up()
        await sidecar.accept()
        worker.slow.set()
        await worker.until_active(6)
        assert worker.prepared == [(6, b"six")]
        await worker.link.close()
        sidecar.end()

    run(main())


@pytest.mark.parametrize("saved", [None, (5, b"five")])
def test_without_a_sidecar_and_nothing_good_saved_it_goes_on_looking(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path, saved: tuple[int, bytes] | None
) -> None:
    async def main() -> None:
        worker = Worker(tmp_path / "s")
        worker.on_disk, worker.fail_on = saved, {5}
        worker.link.start()
        await asyncio.sleep(ALONE * 1.2)
        sidecar = Sidecar(tmp_path / "s")
        await sidecar.accept()
        sidecar.announce(6, b"six")
        assert await sidecar.heard.get() == Prepared(6, {})
        await worker.link.close()
        sidecar.end()

    run(main())
