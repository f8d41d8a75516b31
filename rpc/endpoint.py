"""The connections of a channel to one address: opened, replaced, paused between failed attempts."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable, Sized
from typing import Final, Protocol

from rpc.client_connection import ChannelSettings, ClientCall, ClientConnection, Reply
from rpc.resolver import Address

__all__ = ["Connector", "Endpoint", "EndpointOwner", "address_text"]

_BACKOFF_GROWTH: Final = 1.6
_BACKOFF_JITTER: Final = 0.25
# A peer that drops each connection at once must not be stormed: after the first connection that lived less
# than this many seconds the next ones are opened after a pause, as if the attempts had failed.
_SHORT_LIFE: Final = 1.0

Connector = Callable[
    [Address, Callable[[], asyncio.Protocol], ssl.SSLContext | None, str | None], Awaitable[object]
]
"""Opens a transport to an address for a protocol, with TLS for a server name. Raises OSError."""


def address_text(address: Address) -> str:
    """The address as people write it."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class EndpointOwner(Protocol):
    """What an endpoint asks of its channel."""

    loop: asyncio.AbstractEventLoop
    settings: ChannelSettings

    def endpoint_ready(self, endpoint: Endpoint, connection: ClientConnection) -> None:
        """A connection is ready."""

    def endpoint_failed(self, endpoint: Endpoint) -> None:
        """An attempt to connect has failed, `endpoint.error` says why."""

    def endpoint_lost(self, endpoint: Endpoint) -> None:
        """A connection that was ready is not any more."""

    def retry(self, call: ClientCall, reply: Reply) -> None:
        """Sends a refused call again, or ends it with `reply`."""

    def slot_free(self, connection: ClientConnection) -> None:
        """Calls wait, and a stream of `connection` has become free."""


class Endpoint:
    """One address. Keeps `connections_per_address` connections, more when they are full."""

    def __init__(
        self,
        owner: EndpointOwner,
        address: Address,
        connector: Connector,
        tls: ssl.SSLContext | None,
        server_name: str | None,
        waiting: Sized,
    ) -> None:
        self.address = address
        self.ready: list[ClientConnection] = []
        """Connections on which calls can start, if they have a stream free."""
        self.failures = 0
        """Attempts that failed since the last one that did not."""
        self.error = ""
        """Why the last attempt failed."""
        self._short_lives = 0  # connections one after the other
        self._owner = owner
        self._connector = connector
        self._tls = tls
        self._server_name = server_name
        self._waiting = waiting
        self._attempts: set[asyncio.Task[None]] = set()
        self._outcomes: dict[ClientConnection, asyncio.Future[None]] = {}  # of connections being made
        self._since: dict[ClientConnection, float] = {}  # of all open connections
        self._closed = False
        self.connections: set[ClientConnection] = set()
        """All open connections, also those whose last calls are in flight."""
        self._gone = asyncio.Event()
        self._gone.set()

    def pick(self) -> ClientConnection | None:
        """Returns a connection with a free stream, or None."""
        for connection in self.ready:
            if connection.open < connection.limit:
                return connection
        return None

    def start(self) -> None:
        """Opens the connections that should be there. They are replaced when they are lost."""
        self._open_up_to(self._owner.settings.connections_per_address)

    def grow(self) -> None:
        """All streams are in use: opens one more connection, if the settings allow."""
        if not self._attempts:
            wanted = min(len(self.ready) + 1, self._owner.settings.max_connections_per_address)
            self._open_up_to(wanted)

    def _open_up_to(self, count: int) -> None:
        while not self._closed and len(self.ready) + len(self._attempts) < count:
            task = self._owner.loop.create_task(self._connect(self._pause()))
            self._attempts.add(task)
            task.add_done_callback(self._attempt_done)

    def _pause(self) -> float:
        """Seconds to wait before the next attempt."""
        steps = max(self.failures, self._short_lives - 1)
        if steps <= 0:
            return 0.0
        settings = self._owner.settings
        pause = settings.backoff_min_seconds * _BACKOFF_GROWTH ** min(steps - 1, 64)
        return min(pause, settings.backoff_max_seconds) * random.uniform(
            1 - _BACKOFF_JITTER, 1 + _BACKOFF_JITTER
        )

    def _attempt_done(self, task: asyncio.Task[None]) -> None:
        self._attempts.discard(task)
        if not task.cancelled():
            self.start()
            if self.ready and self._waiting:
                self.grow()

    async def _connect(self, pause: float) -> None:
        if pause:
            await asyncio.sleep(pause)
        settings = self._owner.settings
        connection = ClientConnection(self._owner.loop, settings, self, self._waiting)
        outcome = self._outcomes[connection] = self._owner.loop.create_future()
        try:
            async with asyncio.timeout(settings.connect_seconds):
                await self._connector(self.address, lambda: connection, self._tls, self._server_name)
                await outcome
        except TimeoutError:
            self._failed(connection, f"not connected after {settings.connect_seconds:g} s")
        except asyncio.CancelledError:
            self._give_up(connection, "channel closed")
            raise
        except Exception as error:  # noqa: BLE001 - OSError and ssl.SSLError, and whatever a connector raises
            self._failed(connection, str(error) or type(error).__name__)
        finally:
            del self._outcomes[connection]

    def _failed(self, connection: ClientConnection, reason: str) -> None:
        self.failures += 1
        self.error = reason
        self._give_up(connection, reason)
        self._owner.endpoint_failed(self)

    def _give_up(self, connection: ClientConnection, reason: str) -> None:
        self._outcomes[connection].cancel()  # nobody waits for it any more
        connection.abort(reason)

    # -- Listener of the connections -----------------------------------------------------------------------

    def connection_ready(self, connection: ClientConnection) -> None:
        """The peer has sent its SETTINGS."""
        outcome = self._outcomes.get(connection)
        if self._closed or outcome is None or outcome.done():
            connection.abort("not wanted any more")
            return
        outcome.set_result(None)
        self.failures = 0
        self._since[connection] = self._owner.loop.time()
        self.connections.add(connection)
        self._gone.clear()
        self.ready.append(connection)
        self._owner.endpoint_ready(self, connection)

    def connection_unusable(self, connection: ClientConnection, reason: str) -> None:
        """The connection was lost, or its peer is leaving."""
        outcome = self._outcomes.get(connection)
        if outcome is not None and not outcome.done():
            outcome.set_exception(ConnectionError(reason))
            return
        if connection not in self._since:
            return
        lived = self._owner.loop.time() - self._since.pop(connection)
        useless = lived < _SHORT_LIFE and not connection.answered
        self._short_lives = self._short_lives + 1 if useless else 0
        self.ready.remove(connection)
        self._owner.endpoint_lost(self)
        if self._short_lives > 1:
            self.failures += 1
            self.error = reason
            self._owner.endpoint_failed(self)
        self.start()

    def connection_lost(self, connection: ClientConnection) -> None:
        """The connection is over."""
        self.connections.discard(connection)
        if not self.connections:
            self._gone.set()

    def retry(self, call: ClientCall, reply: Reply) -> None:
        """Passed on to the channel."""
        self._owner.retry(call, reply)

    def slot_free(self, connection: ClientConnection) -> None:
        """Passed on to the channel."""
        self._owner.slot_free(connection)

    # -- the end -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Opens no more connections; those that are open close when their calls are answered."""
        self._stop()
        for connection in list(self.ready):
            connection.drain()

    def close(self, reason: str) -> None:
        """Closes every connection now; calls in flight fail."""
        self._stop()
        for connection in list(self.connections):
            connection.close(reason=reason)

    async def drained(self) -> None:
        """Returns when there is no connection and no attempt to make one any more."""
        if self._attempts:
            await asyncio.wait(self._attempts)
        await self._gone.wait()

    def _stop(self) -> None:
        self._closed = True
        for task in self._attempts:
            task.cancel()

    def states(self) -> tuple[int, int, int, int]:
        """(ready connections, draining ones, attempts to connect, 1 if it cannot be reached)."""
        ready = len(self.ready)
        failed = int(not ready and self.failures > 0)
        return ready, len(self.connections) - ready, len(self._attempts), failed

    @property
    def problem(self) -> str:
        """Why there is no connection, for people."""
        return f"cannot connect to {address_text(self.address)}: {self.error}"

    def __repr__(self) -> str:
        state = f"{len(self.ready)} ready, {len(self._attempts)} connecting"
        failed = f", {self.failures} failures, last: {self.error}" if self.failures else ""
        return f"<Endpoint {address_text(self.address)} {state}{failed}>"
