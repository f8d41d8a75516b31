"""A TCP proxy that can do what networks do: cut connections, refuse them, swallow everything in silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["FaultProxy", "proxy"]


class FaultProxy:
    """Forwards one port of loopback to another. Belongs to one event loop; made by `proxy`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self.muted = False
        """Whether answers, and only they, are lost on the way."""
        self._swallowing = False
        self.port = 0
        self.accepted = 0
        """Connections so far."""
        self._accepted_more = asyncio.Condition()

    def __repr__(self) -> str:
        return (
            f"<FaultProxy {self.port} → {self._target}: {len(self._writers)} ends, {self.accepted} accepted>"
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Accepts connections; always at the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def until_accepted(self, connections: int) -> None:
        """Returns when there have been that many connections."""
        async with self._accepted_more:
            await self._accepted_more.wait_for(lambda: self.accepted >= connections)

    def cut(self) -> None:
        """Resets every connection; new ones are welcome."""
        for writer in self._writers:
            writer.transport.abort()

    async def refuse(self) -> None:
        """Resets every connection and takes no new ones, until `open`."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.cut()

    def drop(self, *, new_ones_too: bool = False) -> None:
        """From now on nothing comes through the connections there are, and nobody is told."""
        self._silent |= self._writers
        self._swallowing = new_ones_too

    def heal(self) -> None:
        """New connections are good again; those that were silent stay so."""
        self._swallowing = False

    async def close(self) -> None:
        """Ends everything, the silent connections too."""
        await self.refuse()
        for writer in self._silent:
            writer.transport.abort()
        await asyncio.gather(*self._pumps)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._accepted_more:
            self.accepted += 1
            self._accepted_more.notify_all()
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, there_writer}
        self._writers |= ends
        if self._swallowing:
            self._silent |= ends
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink, ends, answers=sink is writer))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        ends: set[asyncio.StreamWriter],
        *,
        answers: bool,
    ) -> None:
        try:
            while data := await source.read(65536):
                if sink not in self._silent and not (answers and self.muted):
                    sink.write(data)
                    await sink.drain()
        except ConnectionError:
            pass  # one end has gone; the other is told below, unless it is to hear nothing
        if sink not in self._silent:
            for end in ends:
                end.transport.abort()
        self._writers -= ends


@contextlib.asynccontextmanager
async def proxy(target: int) -> AsyncIterator[FaultProxy]:
    """A proxy to a port of loopback, while it is used."""
    one = FaultProxy(target)
    await one.open()
    try:
        yield one
    finally:
        await one.close()
