"""A gRPC channel on asyncio: calls to all addresses of one target.

A call goes to the next address in turn that has a free stream. When there is none it waits in the order of
arrival, for its timeout at most: while the first connections are made, and while all streams are in use.
While no address can be reached calls fail at once with UNAVAILABLE, unless the settings say otherwise.
A call that a peer refused without looking at it is sent again, to a limit, wherever there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from rpc.client_connection import ChannelSettings, ClientCall, ClientConnection, Meter, Method, Reply
from rpc.endpoint import Connector, Endpoint
from rpc.http2 import Header
from rpc.resolver import Address, DnsResolver, Resolver, parse_target
from rpc.status import Metadata, RpcError, Status
from rpc.timers import Timers
from rpc.wire import Body, encode_metadata

__all__ = ["Channel", "ChannelSettings", "ClientCall", "Meter", "Method", "Reply", "connect_socket"]

_USER_AGENT: Final = b"grpc-python-inferflow/1"
_MAX_ATTEMPTS: Final = 3  # of a call that peers refuse
_RESOLVE_PAUSE: Final = 1.0  # seconds between two look-ups, however often connections fail


async def connect_socket(
    address: Address,
    factory: Callable[[], asyncio.Protocol],
    tls: ssl.SSLContext | None,
    server_name: str | None,
) -> object:
    """The connector for TCP and Unix sockets. Returns the transport and the protocol. Raises OSError."""
    loop = asyncio.get_running_loop()
    name = server_name if tls is not None else None
    if isinstance(address, str):
        return await loop.create_unix_connection(factory, address, ssl=tls, server_hostname=name)
    host, port = address
    return await loop.create_connection(factory, host, port, ssl=tls, server_hostname=name)


class Channel:
    """All connections to one target. Made and used on a running loop, on its thread only."""

    def __init__(
        self,
        target: str,
        *,
        tls: ssl.SSLContext | None = None,
        authority: str | None = None,
        settings: ChannelSettings | None = None,
        resolver: Resolver | None = None,
        connector: Connector = connect_socket,
    ) -> None:
        """`target` is `host:port`, `[v6 address]:port` or `unix:/path`. Nothing is connected yet.

        `authority` replaces the target's name in requests and in the verification of certificates.
        Raises ValueError for a malformed target, RuntimeError without a running loop.
        """
        parsed = parse_target(target)
        self.loop = asyncio.get_running_loop()
        self._clock = self.loop.time
        self.settings = settings or ChannelSettings()
        self.target = target
        self._parsed = parsed
        self._authority = authority or parsed.authority
        self._server_name = self._authority.rpartition(":")[0].strip("[]") if authority is None else authority
        self._tls = tls
        self._connector = connector
        self._resolver = resolver or DnsResolver()
        self._timers = Timers.of(self.loop)
        self._endpoints: dict[Address, Endpoint] = {}
        self._usable: list[Endpoint] = []  # those with a ready connection
        self._turn = 0
        self._queue: OrderedDict[ClientCall, None] = OrderedDict()
        self._methods: dict[str, Method] = {}
        self._failure = ""  # why no address can be reached; empty while there is hope
        self._leaving: list[Endpoint] = []  # addresses that are gone, with calls in flight
        self._changed = asyncio.Event()  # set when there is news for connect()
        self._look_up = asyncio.Event()
        self._resolving: asyncio.Task[None] | None = None
        self._closed = False

    # -- calls ---------------------------------------------------------------------------------------------

    def method(self, path: str, metadata: Metadata = ()) -> Method:
        """Returns `/service/method` with `metadata`, prepared for `start`. Raises ValueError for bad metadata."""
        if not path.startswith("/") or path.count("/") != 2:
            raise ValueError(f"method path {path!r} is not /service/method")
        headers: tuple[Header, ...] = (
            (b":method", b"POST"),
            (b":scheme", b"https" if self._tls else b"http"),
            (b":path", path.encode("ascii")),
            (b":authority", self._authority.encode("ascii")),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", _USER_AGENT),
            *encode_metadata(metadata),
        )
        return Method(path, headers)

    def start(
        self,
        method: Method,
        body: Body,
        timeout: float | None,
        on_done: Callable[[Reply], None],
        meter: Meter | None = None,
    ) -> ClientCall:
        """Starts a unary call, which `meter` counts. `timeout` in seconds, None = none.

        `on_done` is called exactly once, in a later step of the loop, never from within this function.
        """
        if timeout is None:
            call = ClientCall(self, method, body, None, on_done, meter)
        else:
            deadline = self._clock() + timeout
            call = ClientCall(self, method, body, deadline, on_done, meter)
            call.set_deadline(self._timers.add(deadline, call))
        self._send(call)
        return call

    def _send(self, call: ClientCall) -> None:
        # Nothing overtakes what waits: whoever is in the queue has come before.
        connection = None if self._queue else self._pick()
        if connection is not None:
            connection.submit(call)
        else:
            self._enqueue(call)

    def _pick(self) -> ClientConnection | None:
        usable = self._usable
        if len(usable) == 1:
            return usable[0].pick()
        for _ in usable:
            self._turn += 1
            connection = usable[self._turn % len(usable)].pick()
            if connection is not None:
                return connection
        return None

    def _enqueue(self, call: ClientCall) -> None:
        settings = self.settings
        if self._closed:
            call.finish(
                Reply(Status.UNAVAILABLE, f"channel to {self.target} is closed", retriable=True), soon=True
            )
        elif self._failure and not settings.wait_for_ready:
            call.finish(Reply(Status.UNAVAILABLE, self._failure, retriable=True), soon=True)
        elif len(self._queue) >= settings.max_queued_calls:
            message = (
                f"{len(self._queue)} calls wait for {self.target}, the limit is {settings.max_queued_calls}"
            )
            call.finish(Reply(Status.RESOURCE_EXHAUSTED, message, retriable=True), soon=True)
        else:
            self._queue[call] = None
            self._begin()
            for endpoint in self._usable:
                endpoint.grow()

    async def unary(
        self,
        path: str,
        body: Body,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,  # noqa: ASYNC109 - it goes to the peer, too
    ) -> bytes:
        """Calls `/service/method` and returns the response message. Raises RpcError for any other outcome.

        `timeout` in seconds, None = none. When the caller is cancelled, so is the call.
        """
        done: asyncio.Future[Reply] = self.loop.create_future()

        call = self.start(self._prepared(path, metadata), body, timeout, functools.partial(_settle, done))
        try:
            reply = await done
        except asyncio.CancelledError:
            call.cancel()
            raise
        if reply.status is not Status.OK:
            raise reply.error()
        return reply.body

    def _prepared(self, path: str, metadata: Metadata) -> Method:
        if metadata:
            return self.method(path, metadata)
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = self.method(path)
        return method

    # -- connecting ----------------------------------------------------------------------------------------

    async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the error tells more
        """Connects, if nothing has so far, and returns when a call can be sent.

        Raises RpcError: UNAVAILABLE when no address can be reached (unless the settings say to wait),
        DEADLINE_EXCEEDED after `timeout` seconds.
        """
        self._begin()
        try:
            async with asyncio.timeout(timeout):
                while not self._usable:
                    if self._closed or (self._failure and not self.settings.wait_for_ready):
                        reason = self._failure or f"channel to {self.target} is closed"
                        raise RpcError(Status.UNAVAILABLE, reason, retriable=True)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            message = f"no connection to {self.target} after {timeout:g} s {self._failure}".rstrip()
            raise RpcError(Status.DEADLINE_EXCEEDED, message, retriable=True) from None

    def _begin(self) -> None:
        if self._closed or self._endpoints or self._resolving is not None:
            return
        fixed = self._fixed_address()
        if fixed is not None:
            self._set_addresses([fixed])
        else:
            self._resolving = self.loop.create_task(self._resolve_for_ever())

    def _fixed_address(self) -> Address | None:
        """The address of a target that needs no look-up."""
        if self._parsed.path:
            return self._parsed.path
        try:
            ipaddress.ip_address(self._parsed.host)
        except ValueError:
            return None
        return (self._parsed.host, self._parsed.port)

    async def _resolve_for_ever(self) -> None:
        while True:
            try:
                addresses = await self._resolver.resolve(self._parsed.host, self._parsed.port)
            except Exception as error:  # noqa: BLE001 - OSError, UnicodeError, and whatever a resolver raises
                self._resolve_failed(
                    f"cannot resolve {self._parsed.host}: {str(error) or type(error).__name__}"
                )
            else:
                if addresses:
                    self._set_addresses(addresses)
                else:
                    self._resolve_failed(f"{self._parsed.host} has no address")
            self._look_up.clear()
            await asyncio.sleep(_RESOLVE_PAUSE)
            pause = self.settings.resolve_seconds if self._endpoints else _RESOLVE_PAUSE
            if not pause:
                return
            try:
                async with asyncio.timeout(pause):
                    await self._look_up.wait()
            except TimeoutError:
                continue

    def _resolve_failed(self, reason: str) -> None:
        if not self._endpoints:  # otherwise the old addresses are the best there is
            self._fail_waiting(reason)

    def _set_addresses(self, addresses: Sequence[Address]) -> None:
        for address in self._endpoints.keys() - set(addresses):
            endpoint = self._endpoints.pop(address)
            self._leaving = [left for left in self._leaving if left.connections] + [endpoint]
            endpoint.drain()
        for address in addresses:
            if address not in self._endpoints:
                self._endpoints[address] = Endpoint(
                    self, address, self._connector, self._tls, self._server_name, self._queue
                )
                self._endpoints[address].start()

    def _fail_waiting(self, reason: str) -> None:
        """There is no hope for now: calls that wait fail, and those to come."""
        self._failure = reason
        self._changed.set()
        if not self.settings.wait_for_ready:
            self._end_waiting(Reply(Status.UNAVAILABLE, reason, retriable=True))

    def _end_waiting(self, reply: Reply) -> None:
        calls = list(self._queue)
        self._queue.clear()
        for call in calls:
            call.finish(reply)

    # -- what endpoints and calls report -------------------------------------------------------------------

    def endpoint_ready(self, endpoint: Endpoint, connection: ClientConnection) -> None:
        """A connection is ready."""
        self._failure = ""
        if endpoint not in self._usable:
            self._usable.append(endpoint)
        self._changed.set()
        self.slot_free(connection)

    def endpoint_failed(self, endpoint: Endpoint) -> None:
        """An attempt to connect has failed."""
        self._look_up.set()
        if not self._usable and all(one.failures for one in self._endpoints.values()):
            self._fail_waiting(endpoint.problem)

    def endpoint_lost(self, endpoint: Endpoint) -> None:
        """A connection that was ready is not any more."""
        if not endpoint.ready and endpoint in self._usable:
            self._usable.remove(endpoint)
        self._look_up.set()

    def slot_free(self, connection: ClientConnection) -> None:
        """Starts calls that wait, the oldest first, as long as `connection` has streams free."""
        queue = self._queue
        while queue and connection.open < connection.limit:
            call, _ = queue.popitem(last=False)
            connection.submit(call)

    def forget(self, call: ClientCall) -> None:
        """Takes a call that was given up out of the queue."""
        self._queue.pop(call, None)

    def retry(self, call: ClientCall, reply: Reply) -> None:
        """Sends a call again that its peer refused, or ends it with `reply` after some attempts."""
        call.restart()
        if call.attempts >= _MAX_ATTEMPTS or self._closed:
            call.finish(reply, soon=True)
        else:
            self._send(call)

    @property
    def waiting(self) -> int:
        """Calls that wait for a connection or a free stream."""
        return len(self._queue)

    def states(self) -> dict[str, int]:
        """Connections to all addresses by state: ready, draining, connecting; addresses that cannot be reached."""
        states = [endpoint.states() for endpoint in (*self._endpoints.values(), *self._leaving)]
        totals = map(sum, zip(*states, strict=True)) if states else (0, 0, 0, 0)
        return dict(zip(("ready", "draining", "connecting", "failed"), totals, strict=True))

    # -- the end -------------------------------------------------------------------------------------------

    async def close(self, grace: float = 0.0) -> None:
        """Closes the channel: no new calls, those in flight have `grace` seconds, then they are UNAVAILABLE."""
        if not self._closed:
            self._closed = True
            if self._resolving is not None:
                self._resolving.cancel()
                await asyncio.wait([self._resolving])
            self._end_waiting(
                Reply(Status.UNAVAILABLE, f"channel to {self.target} is closed", retriable=True)
            )
            self._changed.set()
        endpoints = [*self._endpoints.values(), *self._leaving]
        for endpoint in endpoints:
            endpoint.drain()
        if grace:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*(endpoint.drained() for endpoint in endpoints))
        for endpoint in endpoints:
            endpoint.close("channel closed")
        await asyncio.gather(*(endpoint.drained() for endpoint in endpoints))

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._failure or "open"
        return f"<Channel {self.target} {state}, {len(self._queue)} calls wait, {list(self._endpoints.values())}>"


def _settle(done: asyncio.Future[Reply], reply: Reply) -> None:
    if not done.done():  # its caller may have been cancelled
        done.set_result(reply)
