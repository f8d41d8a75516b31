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

from shared.config_link import ConfigLink
from shared.fd_stream import FdStream
from shared.frames import Activate, FrameReader, Prepared, Snapshot, Subscribe
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
        self.heard: asyncio.Queue[Subscribe | Prepared] = asyncio.Queue()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(os.fspath(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.path = path
        self.stream: FdStream[Subscribe | Prepared] | None = None

    async def accept(self) -> Subscribe | Prepared:
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(self.listener)
        sock.setblocking(False)
        reader: FrameReader[Subscribe | Prepared] = FrameReader((Subscribe, Prepared), 10_000)
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
        loop = asyncio.get_running_loop()
        self.link = ConfigLink(
            loop, path, worker=3, on_snapshot=self.on_snapshot, on_activate=self.on_activate
        )

    def on_snapshot(self, version: int, document: bytes) -> dict[str, str]:
        self.prepared.append((version, document))
        if version in self.fail_on:
            raise ArithmeticError("cannot be prepared")
        return {"odd": "no host"} if version % 2 else {}

    def on_activate(self, version: int) -> None:
        self.activated.append(version)
        self.changed.set()

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
        failures: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context["exception"])
        )
        sidecar, worker = Sidecar(tmp_path / "s"), Worker(tmp_path / "s")
        worker.fail_on = {4}
        worker.link.start()
        await sidecar.accept()
        sidecar.announce(4, b"four")
        await sidecar.accept()  # a new connection
        assert [type(failure) for failure in failures] == [ArithmeticError]
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
