"""A gRPC server on asyncio: listens, knows its connections, drains and closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from rpc.calls import Handler, ServerCall, StreamCall, StreamHandler
from rpc.codec import ErrorCode
from rpc.limits import Limits, Rate, Stats
from rpc.server_connection import Routes, ServerConnection

__all__ = [
    "Handler",
    "Limits",
    "Rate",
    "Server",
    "ServerCall",
    "Stats",
    "StreamCall",
    "StreamHandler",
]

_BACKLOG = 1024


class Server:
    """Answers gRPC calls with `handlers`. All methods belong to one loop's thread."""

    def __init__(
        self,
        handlers: Mapping[bytes, Handler],
        *,
        stream_handlers: Mapping[bytes, StreamHandler] | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.stats = Stats()
        self.limits = limits or Limits()
        self._routes = Routes(handlers, stream_handlers or {})
        self._tls = tls
        self._listeners: list[asyncio.AbstractServer] = []
        self._paths: list[str] = []
        self._connections: set[ServerConnection] = set()
        self._empty: asyncio.Event = asyncio.Event()
        self._empty.set()

    def connection(self) -> asyncio.Protocol:
        """Returns the protocol of one new connection, for any asyncio transport."""
        connection = ServerConnection(
            asyncio.get_running_loop(), self._routes, self.limits, self.stats, on_lost=self._connection_lost
        )
        self._connections.add(connection)
        self._empty.clear()
        self.stats.connections += 1
        self.stats.connections_total += 1
        return connection

    def _connection_lost(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)
        self.stats.connections -= 1
        if not self._connections:
            self._empty.set()

    async def listen_tcp(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listens on `host` and `port` (0 = any). Returns the port. Raises OSError."""
        listener = await asyncio.get_running_loop().create_server(
            self.connection, host, port, backlog=_BACKLOG, reuse_port=reuse_port, ssl=self._tls
        )
        self._listeners.append(listener)
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def listen_unix(self, path: str | os.PathLike[str]) -> None:
        """Listens on a Unix socket; a socket that nobody serves any more is replaced. Raises OSError."""
        text = os.fspath(path)
        listener = await asyncio.get_running_loop().create_unix_server(
            self.connection, text, backlog=_BACKLOG, ssl=self._tls
        )
        self._listeners.append(listener)
        self._paths.append(text)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path in self._paths:
            Path(path).unlink(missing_ok=True)
        self._paths.clear()

    async def drain(self, seconds: float) -> None:
        """Stops accepting, lets the calls in flight finish for at most `seconds`, then closes everything."""
        self._stop_listening()
        for connection in list(self._connections):
            connection.drain(seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)
        await self.close()

    async def close(self) -> None:
        """Closes everything now; calls in flight are cancelled."""
        self._stop_listening()
        for connection in list(self._connections):
            connection.close(ErrorCode.NO_ERROR, "server closed")

    def __repr__(self) -> str:
        return f"<Server {len(self._listeners)} listeners, {self.stats!r}>"
