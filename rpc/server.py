"""A gRPC server on asyncio: listens, knows its connections, drains and closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, cast

from rpc.calls import Handler, ServerCall, StreamCall, StreamHandler
from rpc.greeter import Greeter
from rpc.http1 import Http1Connection, HttpHandler, HttpRequest, HttpResponse
from rpc.http2 import ErrorCode
from rpc.limits import Limits, Rate, Stats
from rpc.server_connection import Routes, ServerConnection

__all__ = [
    "Handler",
    "HttpHandler",
    "HttpRequest",
    "HttpResponse",
    "Limits",
    "Rate",
    "Server",
    "ServerCall",
    "Stats",
    "StreamCall",
    "StreamHandler",
]

_BACKLOG: Final = 1024
_HANDSHAKE_SECONDS, _HANDSHAKE_LOOKS = 1.0, 100
_LAST_BYTES_SECONDS: Final = 1.0  # for GOAWAYs to leave when the server closes


class Server:
    """Answers gRPC calls, and HTTP/1.1 requests on the same port. All methods belong to one loop's thread."""

    def __init__(
        self,
        handlers: Mapping[bytes, Handler],
        *,
        stream_handlers: Mapping[bytes, StreamHandler] | None = None,
        http1: Mapping[str, HttpHandler] | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`handlers` and `stream_handlers` by `/service/method`; `http1` by path for GET and HEAD, which are
        also answered over HTTP/2, as some probes speak nothing else.

        Raises ValueError for a malformed path, or one with two handlers.
        """
        self.stats = Stats()
        """Counters, for reading."""
        self.limits = limits or Limits()
        self._routes = Routes(handlers, stream_handlers or {}, http1 or {})
        self._tls = tls
        self._listeners: list[asyncio.AbstractServer] = []
        self._sockets: dict[str, int] = {}  # paths of Unix sockets and their inodes
        self._connections: set[Greeter] = set()
        self._shaking_hands: weakref.WeakSet[Greeter] = weakref.WeakSet()  # those that fail just disappear
        self._empty = asyncio.Event()
        self._empty.set()
        self._leaving = False
        self._grace: float | None = None  # while it drains: seconds for connections to finish

    # -- listening -----------------------------------------------------------------------------------------

    async def listen_tcp(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listens on `host` and `port` (0 = any free one). Returns the port. Raises OSError.

        `reuse_port`: other processes may listen on the same port; the kernel spreads connections over them.
        """
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            self.connection,
            host,
            port,
            backlog=_BACKLOG,
            reuse_port=reuse_port,
            ssl=self._tls,
            ssl_handshake_timeout=self._handshake_seconds(),
        )
        self._listeners.append(listener)
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def listen_unix(self, path: str | os.PathLike[str]) -> None:
        """Listens on a Unix socket. Raises OSError.

        A socket that is already there is replaced; it is removed at the end, unless replaced by another.
        """
        text = os.fspath(path)
        loop = asyncio.get_running_loop()
        listener = await loop.create_unix_server(
            self.connection,
            text,
            backlog=_BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=self._handshake_seconds(),
        )
        self._listeners.append(listener)
        self._sockets[text] = os.stat(text).st_ino

    def _handshake_seconds(self) -> float | None:
        return self.limits.preface_seconds if self._tls is not None else None

    def connection(self) -> asyncio.Protocol:
        """Returns the protocol for one accepted connection, over any asyncio transport."""
        greeter = Greeter(
            asyncio.get_running_loop(),
            self.limits,
            self.stats,
            http2=self._speak_http2,
            http1=self._speak_http1,
            opened=self._connection_opened,
            lost=self._connection_lost,
        )
        if self._tls is not None:
            self._shaking_hands.add(greeter)
        return greeter

    def _speak_http2(self, on_lost: Callable[[], None]) -> asyncio.Protocol:
        loop = asyncio.get_running_loop()
        return ServerConnection(loop, self._routes, self.limits, self.stats, on_lost=on_lost)

    def _speak_http1(self, on_lost: Callable[[], None]) -> asyncio.Protocol:
        loop = asyncio.get_running_loop()
        return Http1Connection(loop, self._routes.pages, self.limits, self.stats, on_lost=on_lost)

    def _connection_opened(self, connection: Greeter) -> bool:
        self._shaking_hands.discard(connection)
        if len(self._connections) >= self.limits.connections:
            self.stats.limits["connections"] += 1
            return False
        if self._leaving and self._grace is None:
            return False  # it was accepted while the listeners closed
        self._connections.add(connection)
        self._empty.clear()
        self.stats.connections += 1
        self.stats.connections_total += 1
        if self._grace is not None:
            connection.drain(self._grace)
        return True

    def _connection_lost(self, connection: Greeter) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self.stats.connections -= 1
            if not self._connections:
                self._empty.set()

    # -- the end -------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> int:
        """Stops accepting, lets calls in flight finish for at most `seconds`, then closes everything.

        Returns the number of calls that were cut off. Clients are told first to go elsewhere, so that no call
        is lost: see `ServerConnection.drain`.
        """
        self._leaving = True
        self._grace = seconds
        waiting = self._accept_last()
        for connection in list(self._connections):
            connection.drain(seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # Of peers that have gone meanwhile only an exception comes back, and nobody misses them.
                await asyncio.gather(*waiting, return_exceptions=True)
                await self._handshakes()
                await self._empty.wait()
        left = self.stats.streams
        await self.close()
        return left

    async def close(self) -> None:
        """Closes everything now; calls in flight are cancelled. Returns when all connections are gone."""
        self._leaving = True
        self._grace = None
        self._stop_listening()
        for connection in list(self._connections):
            connection.close(ErrorCode.NO_ERROR, "server closed")
        try:
            await asyncio.wait_for(self._empty.wait(), _LAST_BYTES_SECONDS)
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await self._empty.wait()

    def _accept_last(self) -> list[asyncio.Task[object]]:
        """Stops listening on all ports, and takes over the connections that nobody has accepted yet.

        The kernel has shaken hands with them already: closing the port would reset them, and their clients
        see a server that fails, also where another process listens on the same port. Returns the
        tasks that connect them.
        """
        loop = asyncio.get_running_loop()
        listening = [
            socket.socket(fileno=os.dup(one.fileno()))
            for listener in self._listeners
            for one in cast(asyncio.Server, listener).sockets  # uvloop's are none by inheritance
        ]
        self._stop_listening()
        tasks: list[asyncio.Task[object]] = []
        for listener in listening:
            with listener, contextlib.suppress(BlockingIOError):
                while True:
                    accepted, _ = listener.accept()
                    accepted.setblocking(False)
                    tasks.append(loop.create_task(self._connect(accepted)))
        return tasks

    async def _handshakes(self) -> None:
        """Waits for TLS handshakes that are under way, for a moment: to their clients they look like any other."""
        for _ in range(_HANDSHAKE_LOOKS):  # polled, since one that fails tells nobody
            if not self._shaking_hands:
                return
            await asyncio.sleep(_HANDSHAKE_SECONDS / _HANDSHAKE_LOOKS)

    async def _connect(self, accepted: socket.socket) -> object:
        loop = asyncio.get_running_loop()
        return await loop.connect_accepted_socket(
            self.connection, accepted, ssl=self._tls, ssl_handshake_timeout=self._handshake_seconds()
        )

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path, inode in self._sockets.items():
            with contextlib.suppress(FileNotFoundError):
                if Path(path).stat().st_ino == inode:
                    Path(path).unlink()
        self._sockets.clear()

    def __repr__(self) -> str:
        return f"<Server {len(self._listeners)} listeners, {self.stats!r}>"
