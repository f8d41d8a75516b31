"""Tests without sockets and without waiting: a transport in memory, and a loop whose clock jumps.

With both, a test is deterministic: bytes are delivered in the order they were written, one step of the loop
later, and an hour of idle time passes in a moment.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from rpc.resolver import Address

__all__ = ["MemoryLink", "MemoryListener", "MemoryTransport", "VirtualLoop", "run_virtual"]

T = TypeVar("T")


# -- time --------------------------------------------------------------------------------------------------


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still while something is ready and then jumps to the next timer."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        """Moves the clock forward."""
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)  # no timer at all: something outside must wake the loop
        events = super().select(0)
        if not events and timeout > 0:
            self._loop.jump(timeout)
        return events


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs `main()` on a new VirtualLoop and returns its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


# -- bytes -------------------------------------------------------------------------------------------------


class MemoryTransport(asyncio.Transport):
    """One end of a link in memory."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        super().__init__(extra={"peername": name})
        self.written = 0
        """Bytes written so far."""
        self.fragment = 0
        """Deliver at most so many bytes at once; 0 = all there are."""
        self.stalled = False
        """True: what is written stays here. See `resume_delivery`."""
        self._loop = loop
        self._protocol: asyncio.BaseProtocol | None = None
        self._peer: MemoryTransport | None = None
        self._buffer = bytearray()
        self._scheduled = False
        self._closing = False
        self._lost = False
        self._ended = False
        self._reading = True
        self._writing_paused = False
        self._high = 64 * 1024
        self._low = 16 * 1024

    def attach(self, protocol: asyncio.BaseProtocol, peer: MemoryTransport) -> None:
        """Joins this end with a protocol and the other end."""
        self._protocol = protocol
        self._peer = peer

    # -- what protocols use --------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        if self._ended:
            raise RuntimeError("nothing can be written behind the end of file")
        self.written += len(data)
        self._buffer += data
        self._schedule()
        if len(self._buffer) > self._high and not self._writing_paused:
            self._writing_paused = True
            self.get_protocol().pause_writing()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._peer is not None:
            self._peer._schedule()

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Ends this direction when everything written has been delivered."""
        self._ended = True
        self._schedule()

    def close(self) -> None:
        """Ends the link when everything written has been delivered."""
        if not self._closing:
            self._closing = True
            self._schedule()

    def abort(self) -> None:
        """Ends the link now; what was not delivered is lost."""
        self.lose(None)
        if self._peer is not None:
            self._peer.lose(ConnectionResetError("connection reset by peer"))

    # -- what tests use ------------------------------------------------------------------------------------

    def resume_delivery(self) -> None:
        """Ends `stalled`."""
        self.stalled = False
        self._schedule()

    def lose(self, error: Exception | None) -> None:
        """Ends this side as if its socket had failed with `error`."""
        self._closing = True
        if not self._lost:
            self._lost = True
            self._buffer.clear()
            self._loop.call_soon(self.get_protocol().connection_lost, error)

    # -- delivery ------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled and not self._lost:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        peer = self._peer
        if self._lost or peer is None or self.stalled:
            return
        if self._buffer and peer._reading and not peer._closing:
            self._deliver_some(peer)
        elif peer._closing:
            self._buffer.clear()
        if self._buffer:
            if peer._reading:
                self._schedule()
        elif self._closing and not self._lost:
            self.lose(None)
            peer._end_of_file()
        elif self._ended:
            peer._end_of_file()

    def _deliver_some(self, peer: MemoryTransport) -> None:
        size = self.fragment or len(self._buffer)
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        if self._writing_paused and len(self._buffer) <= self._low and not self._closing:
            self._writing_paused = False
            self.get_protocol().resume_writing()
        cast(asyncio.Protocol, peer.get_protocol()).data_received(piece)

    def _end_of_file(self) -> None:
        if not self._closing and not cast(asyncio.Protocol, self.get_protocol()).eof_received():
            self.close()

    def __repr__(self) -> str:
        state = "lost" if self._lost else "closing" if self._closing else "open"
        return (
            f"<MemoryTransport {self.get_extra_info('peername')} {state}, {len(self._buffer)} bytes waiting>"
        )


class MemoryLink:
    """A client's and a server's end, joined."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: asyncio.BaseProtocol,
        server: asyncio.BaseProtocol,
        *,
        fragment: int = 0,
    ) -> None:
        self.client = MemoryTransport(loop, "memory-server")
        self.server = MemoryTransport(loop, "memory-client")
        self.client.fragment = self.server.fragment = fragment
        self.client.attach(client, self.server)
        self.server.attach(server, self.client)
        server.connection_made(self.server)
        client.connection_made(self.client)

    def cut(self) -> None:
        """Both ends fail at once, as when a machine on the way dies and resets what passes."""
        error = ConnectionResetError("link cut")
        self.client.lose(error)
        self.server.lose(error)

    def stall(self) -> None:
        """Nothing is delivered any more, either way; neither end is told."""
        self.client.stalled = self.server.stalled = True


class MemoryListener:
    """Something to connect to, for `Channel(connector=listener.connect)`."""

    def __init__(self, accept: Callable[[], asyncio.BaseProtocol], *, fragment: int = 0) -> None:
        """`accept` makes the server's protocol of a connection: `server.connection`."""
        self.links: list[MemoryLink] = []
        """Every link made so far."""
        self.refusing = False
        """True: attempts to connect fail."""
        self.attempts: list[Address] = []
        """The address of every attempt, refused or not."""
        self._accept = accept
        self._fragment = fragment

    async def connect(
        self, address: Address, factory: Callable[[], asyncio.Protocol], tls: object, server_name: str | None
    ) -> object:
        """The connector. Raises ConnectionRefusedError while `refusing`."""
        self.attempts.append(address)
        await asyncio.sleep(0)
        if self.refusing:
            raise ConnectionRefusedError(f"{address} refuses connections")
        link = MemoryLink(asyncio.get_running_loop(), factory(), self._accept(), fragment=self._fragment)
        self.links.append(link)
        return link.client

    def __repr__(self) -> str:
        return f"<MemoryListener {len(self.links)} links, {len(self.attempts)} attempts>"
