"""What a channel does about queues, many addresses, failures and odd answers. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import pytest
from ngh2 import Connection, RequestReceived, Role, StreamReset

from rpc.calls import ServerCall
from rpc.client import Channel, ChannelSettings, Reply
from rpc.client_connection import ClientConnection
from rpc.http2 import MAX_STREAM_ID, ErrorCode
from rpc.resolver import Address
from rpc.server import Limits, Server
from rpc.status import RpcError, Status
from rpc.testing import MemoryListener
from tests.rpc.raw import message, settle
from tests.rpc.support import Holder, echo, run, until

ECHO = "/test.Echo/Echo"
HOLD = "/test.Echo/Hold"
HANDLERS = {b"/test.Echo/Echo": echo}


async def failure(channel: Channel, path: str = ECHO, timeout: float | None = 30.0) -> RpcError:  # noqa: ASYNC109
    with pytest.raises(RpcError) as caught:
        await channel.unary(path, b"x", timeout=timeout)
    return caught.value


class Town:
    """Servers by address, in memory, and a resolver that knows what it is told."""

    def __init__(self, *addresses: str) -> None:
        self.listeners: dict[Address, MemoryListener] = {}
        self.served: dict[str, int] = {}
        self.known: list[Address] | OSError = []
        self.lookups: list[float] = []
        for address in addresses:
            self.build(address)

    def build(self, host: str) -> MemoryListener:
        def answer(call: ServerCall) -> None:
            self.served[host] = self.served.get(host, 0) + 1
            call.respond(host.encode())

        server = Server({b"/test.Echo/Echo": answer})
        listener = self.listeners[host, 80] = MemoryListener(server.connection)
        if isinstance(self.known, list):
            self.known = [*self.known, (host, 80)]
        return listener

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        self.lookups.append(asyncio.get_running_loop().time())
        if isinstance(self.known, OSError):
            raise self.known
        return self.known

    async def connect(self, address: Address, factory: Callable[[], asyncio.Protocol], *rest: Any) -> object:
        return await self.listeners[address].connect(address, factory, *rest)

    def channel(self, **settings: Any) -> Channel:
        return Channel("name:80", connector=self.connect, resolver=self, settings=ChannelSettings(**settings))


# -- queues ------------------------------------------------------------------------------------------------


def test_calls_wait_for_the_first_connection_in_order() -> None:
    order: list[bytes] = []

    def note(call: ServerCall) -> None:
        order.append(call.body)
        call.respond(b"")

    async def main() -> None:
        server = Server({b"/test.Echo/Note": note})
        channel = Channel("10.0.0.1:80", connector=MemoryListener(server.connection).connect)
        replies: list[Reply] = []
        method = channel.method("/test.Echo/Note")
        for i in range(300):
            channel.start(method, b"%d" % i, 5.0, replies.append)
        await until(lambda: len(replies) == 300)
        assert order == [b"%d" % i for i in range(300)]
        await channel.close()

    run(main)


def test_streams_that_the_peer_allows_are_not_exceeded() -> None:
    holder = Holder()

    async def main() -> None:
        server = Server({HOLD.encode(): holder}, limits=Limits(streams=3))
        listener = MemoryListener(server.connection)
        channel = Channel(
            "10.0.0.1:80", connector=listener.connect, settings=ChannelSettings(max_connections_per_address=2)
        )
        replies: list[Reply] = []
        method = channel.method(HOLD)
        for i in range(20):
            channel.start(method, b"%d" % i, None, replies.append)
        for done in range(20):
            await settle()
            assert len(holder.calls) == min(done + 6, 20)
            assert server.stats.streams <= 6
            holder.calls[done].respond(b"")
        await settle()
        assert len(replies) == 20
        assert len(listener.links) == 2
        assert [int(call.body) for call in holder.calls] == list(range(20))
        await channel.close()
        await server.close()

    run(main)


def test_a_call_that_waits_for_a_stream_keeps_its_deadline() -> None:
    holder = Holder()

    async def main() -> None:
        server = Server({HOLD.encode(): holder}, limits=Limits(streams=1))
        channel = Channel(
            "10.0.0.1:80",
            connector=MemoryListener(server.connection).connect,
            settings=ChannelSettings(max_connections_per_address=1),
        )
        replies: list[Reply] = []
        method = channel.method(HOLD)
        channel.start(method, b"first", None, replies.append)
        await settle()
        second = channel.start(method, b"second", None, replies.append)
        error = await failure(channel, HOLD, timeout=2.0)
        assert error.status is Status.DEADLINE_EXCEEDED
        assert error.message == "deadline exceeded, waiting for a connection to 10.0.0.1:80"
        second.cancel()
        await settle()
        holder.calls[0].respond(b"")
        await settle()
        assert [reply.status for reply in replies] == [Status.CANCELLED, Status.OK]
        assert len(holder.calls) == 1  # neither of the others was ever sent
        await channel.close()

    run(main)


def test_the_queue_is_bounded() -> None:
    async def main() -> None:
        listener = MemoryListener(asyncio.Protocol)  # accepts, and says nothing
        settings = ChannelSettings(max_queued_calls=5)
        channel = Channel("10.0.0.1:80", connector=listener.connect, settings=settings)
        replies: list[Reply] = []
        for _ in range(7):
            channel.start(channel.method(ECHO), b"", None, replies.append)
        assert replies == []  # never from within
        await settle()
        assert [reply.status for reply in replies] == [Status.RESOURCE_EXHAUSTED] * 2
        assert replies[0].message == "5 calls wait for 10.0.0.1:80, the limit is 5"
        assert replies[0].retriable
        await channel.close()
        assert len(replies) == 7

    run(main)


def test_more_connections_when_streams_run_out() -> None:
    holder = Holder()

    async def main() -> None:
        server = Server({HOLD.encode(): holder}, limits=Limits(streams=10))
        listener = MemoryListener(server.connection)
        channel = Channel("10.0.0.1:80", connector=listener.connect)
        for _ in range(100):
            channel.start(channel.method(HOLD), b"", None, lambda reply: None)
            await settle()
        assert len(listener.links) == 4
        assert len(holder.calls) == 40
        await channel.close()
        await server.close()

    run(main)


# -- addresses ---------------------------------------------------------------------------------------------


def test_round_robin_over_all_addresses() -> None:
    async def main() -> None:
        town = Town("a", "b", "c")
        channel = town.channel()
        await channel.connect()
        await settle()
        for _ in range(30):
            await channel.unary(ECHO, b"")
        assert town.served == {"a": 10, "b": 10, "c": 10}
        await channel.close()

    run(main)


def test_addresses_come_and_go() -> None:
    async def main() -> None:
        town = Town("a", "b")
        channel = town.channel(resolve_seconds=30.0)
        await channel.connect()
        await settle(1)
        town.known = [("b", 80)]
        town.build("c")
        await settle(31)
        town.served.clear()
        for _ in range(10):
            await channel.unary(ECHO, b"")
        assert town.served == {"b": 5, "c": 5}
        assert "10.0" not in repr(channel)
        assert "a:80" not in repr(channel)
        await channel.close()

    run(main)


def test_a_failed_connection_asks_the_resolver_and_the_others_serve() -> None:
    async def main() -> None:
        town = Town("a", "b")
        channel = town.channel(resolve_seconds=1000.0)
        await channel.connect()
        await settle(2)
        assert len(town.lookups) == 1
        town.listeners["a", 80].refusing = True
        town.listeners["a", 80].links[0].cut()
        await settle()
        for _ in range(10):
            assert await channel.unary(ECHO, b"") == b"b"
        await settle(3)
        assert len(town.lookups) > 1
        assert all(later - earlier >= 1.0 for earlier, later in pairwise(town.lookups))
        town.listeners["a", 80].refusing = False
        await settle(10)
        town.served.clear()
        for _ in range(10):
            await channel.unary(ECHO, b"")
        assert town.served == {"a": 5, "b": 5}
        await channel.close()

    run(main)


def test_a_name_that_cannot_be_resolved() -> None:
    async def main() -> None:
        town = Town("a")
        known, town.known = town.known, OSError("no such name")
        channel = town.channel()
        error = await failure(channel)
        assert error.status is Status.UNAVAILABLE
        assert error.message == "cannot resolve name: no such name"
        assert error.retriable
        town.known = known
        await settle(5)
        assert await channel.unary(ECHO, b"") == b"a"
        for nothing in (OSError("gone"), []):  # what was known is better than that
            town.known = nothing
            await settle(100)
            assert await channel.unary(ECHO, b"") == b"a"
        await channel.close()

    run(main)


# -- failures ----------------------------------------------------------------------------------------------


def test_an_address_that_refuses() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = Server(HANDLERS)
        listener = MemoryListener(server.connection)
        listener.refusing = True
        times: list[float] = []

        async def connect(*arguments: Any) -> object:
            times.append(loop.time())
            return await listener.connect(*arguments)

        channel = Channel("10.0.0.1:80", connector=connect)
        error = await failure(channel)
        assert error.status is Status.UNAVAILABLE
        assert error.retriable
        assert "refuses connections" in error.message
        assert loop.time() == times[0]  # at once, not after the timeout
        with pytest.raises(RpcError, match="UNAVAILABLE: cannot connect"):
            await channel.connect(5)
        await settle(60)
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert 0.07 <= pauses[0] <= 0.13
        assert all(pause <= 5 * 1.25 + 0.1 for pause in pauses)
        assert pauses[-1] >= 5 * 0.75
        listener.refusing = False
        await settle(7)
        assert await channel.unary(ECHO, b"back") == b"back"
        await channel.close()
        await server.close()

    run(main)


def test_what_connectors_and_resolvers_raise_is_told() -> None:
    async def main() -> None:
        async def connect(*arguments: Any) -> object:
            raise ValueError("odd address")

        channel = Channel("10.0.0.1:80", connector=connect)
        error = await failure(channel)
        assert error.message == "cannot connect to 10.0.0.1:80: odd address"
        await channel.close()

        class Odd:
            async def resolve(self, host: str, port: int) -> Sequence[Address]:
                raise LookupError

        channel = Channel("name:80", resolver=Odd())
        error = await failure(channel)
        assert error.message == "cannot resolve name: LookupError"
        await channel.close()

    run(main)


def test_waiting_for_an_address_that_refuses() -> None:
    async def main() -> None:
        server = Server(HANDLERS)
        listener = MemoryListener(server.connection)
        listener.refusing = True
        settings = ChannelSettings(wait_for_ready=True)
        channel = Channel("10.0.0.1:80", connector=listener.connect, settings=settings)
        error = await failure(channel, timeout=3.0)
        assert error.status is Status.DEADLINE_EXCEEDED
        waiting = asyncio.create_task(channel.unary(ECHO, b"patient", timeout=60))
        connecting = asyncio.create_task(channel.connect(60))
        with pytest.raises(RpcError, match=r"DEADLINE_EXCEEDED: no connection to 10\.0\.0\.1:80 after 1 s"):
            await channel.connect(1)
        await settle(20)
        listener.refusing = False
        assert await waiting == b"patient"
        await connecting
        await channel.close()
        await server.close()

    run(main)


def test_a_peer_that_accepts_and_says_nothing() -> None:
    async def main() -> None:
        listener = MemoryListener(asyncio.Protocol)
        channel = Channel("10.0.0.1:80", connector=listener.connect)
        start = channel.loop.time()
        error = await failure(channel)
        assert error.status is Status.UNAVAILABLE
        assert "not connected after 5 s" in error.message
        assert channel.loop.time() - start == pytest.approx(5.0)
        await channel.close()

    run(main)


def test_a_lost_connection() -> None:
    holder = Holder()

    async def main() -> None:
        server = Server({HOLD.encode(): holder} | HANDLERS)
        listener = MemoryListener(server.connection)
        channel = Channel("10.0.0.1:80", connector=listener.connect)
        await channel.connect()
        held = asyncio.create_task(failure(channel, HOLD))
        await settle(2)
        listener.links[0].cut()
        error = await held
        assert error.status is Status.UNAVAILABLE
        assert not error.retriable  # it may have been processed
        assert error.message == "memory-server: connection lost: link cut"
        assert await channel.unary(ECHO, b"again", timeout=1.0) == b"again"
        await channel.close()
        await server.close()

    run(main)


def test_calls_that_never_left_are_sent_again() -> None:
    """The link breaks between the start of a call and the end of the loop's turn."""

    async def main() -> None:
        server = Server(HANDLERS)
        listener = MemoryListener(server.connection)
        channel = Channel("10.0.0.1:80", connector=listener.connect)
        await channel.connect()
        await settle(2)
        replies: list[Reply] = []
        channel.start(channel.method(ECHO), b"lucky", 5.0, replies.append)
        listener.links[0].client.lose(ConnectionResetError("cut"))
        cast(ClientConnection, listener.links[0].client.get_protocol()).connection_lost(None)
        await until(lambda: bool(replies))
        assert replies[0].body == b"lucky"
        assert len(listener.links) == 2
        await channel.close()
        listener.links[0].server.lose(None)
        await settle()
        await server.close()

    run(main)


def test_a_call_that_has_left_beside_a_large_one_is_not_sent_again() -> None:
    """The link breaks while the large body is still being sent."""
    served: list[bytes] = []

    async def main() -> None:
        limits = Limits(message_bytes=64 << 20, connection_window_bytes=64 << 20)
        server = Server(
            {b"/test.Echo/Echo": lambda call: served.append(call.body), b"/test.Echo/Hold": Holder()},
            limits=limits,
        )
        listener = MemoryListener(server.connection)
        channel = Channel("10.0.0.1:80", connector=listener.connect)
        await channel.connect()
        replies: list[Reply] = []
        channel.start(channel.method(HOLD), bytes(30 << 20), 5.0, replies.append)
        channel.start(channel.method(ECHO), b"once", 5.0, replies.append)
        while not served:  # noqa: ASYNC110 - turn by turn: much has to be left unsent
            await asyncio.sleep(0)
        listener.links[0].cut()
        await until(lambda: len(replies) == 2)
        assert [(reply.status, reply.retriable) for reply in replies] == [(Status.UNAVAILABLE, False)] * 2
        assert served == [b"once"]
        await channel.close()
        await server.close()

    run(main)


def test_a_peer_that_drops_every_connection_is_not_stormed() -> None:
    async def main() -> None:
        server = Server(HANDLERS)
        listener = MemoryListener(server.connection)
        channel = Channel("10.0.0.1:80", connector=listener.connect)
        await channel.connect()
        for _ in range(600):
            listener.links[-1].cut()
            await settle(0.1)
        assert len(listener.links) < 40
        await channel.close()
        await server.close()

    run(main)


def test_a_peer_that_ends_each_connection_after_some_calls() -> None:
    """As proxies do (nginx after 1,000 requests): at full load that is several times a second, and no failure."""

    async def main() -> None:
        answer = full(message(b"good"), OK)

        def last(codec: Connection, stream: int) -> None:
            answer(codec, stream)
            codec.send_goaway(ErrorCode.NO_ERROR, last_stream_id=stream)

        channel, servers = scripted(*[answer, last] * 20)
        for _ in range(40):
            assert await channel.unary(ECHO, b"") == b"good"
        assert len(servers) == 20
        assert channel.states()["failed"] == 0
        await channel.close()

    run(main)


def test_a_peer_that_dies() -> None:
    """Calls go out and nothing comes back: a ping finds out, and the next connection serves."""

    async def main() -> None:
        server = Server(HANDLERS)
        listener = MemoryListener(server.connection)
        settings = ChannelSettings(ping_seconds=10.0, ping_timeout_seconds=5.0)
        channel = Channel("10.0.0.1:80", connector=listener.connect, settings=settings)
        await channel.connect()
        await settle(100)
        assert len(listener.links) == 1  # idle is not dead
        listener.links[0].stall()
        start = channel.loop.time()
        replies: list[Reply] = []
        while len(listener.links) == 1:
            channel.start(channel.method(ECHO), b"", 1.0, replies.append)
            await settle(1.1)
            assert channel.loop.time() - start < 30
        assert {reply.status for reply in replies} <= {Status.DEADLINE_EXCEEDED, Status.UNAVAILABLE}
        assert 10 <= len(replies) <= 20
        assert await channel.unary(ECHO, b"alive", timeout=1.0) == b"alive"
        await channel.close()
        await server.close()

    run(main)


def test_goaway_moves_new_calls_and_keeps_the_old() -> None:
    holder = Holder()

    async def main() -> None:
        server = Server({HOLD.encode(): holder} | HANDLERS)
        listener = MemoryListener(server.connection)
        channel = Channel("10.0.0.1:80", connector=listener.connect)
        held = asyncio.create_task(channel.unary(HOLD, b"old"))
        await settle(2)
        old = listener.links[0].server.get_protocol()
        cast(Any, old).drain(60.0)
        await settle()
        assert await channel.unary(ECHO, b"new") == b"new"
        assert len(listener.links) == 2
        holder.calls[0].respond(b"finished")
        assert await held == b"finished"
        await settle()
        assert listener.links[0].client.is_closing()
        await channel.close()
        await server.close()

    run(main)


def test_stream_ids_run_out() -> None:
    async def main() -> None:
        server = Server(HANDLERS)
        listener = MemoryListener(server.connection)
        channel = Channel("10.0.0.1:80", connector=listener.connect)
        assert await channel.unary(ECHO, b"1") == b"1"
        connection = cast(ClientConnection, listener.links[0].client.get_protocol())
        cast(Any, connection.codec)._next_id = MAX_STREAM_ID + 2
        assert await channel.unary(ECHO, b"2") == b"2"
        assert len(listener.links) == 2
        await channel.close()
        await server.close()

    run(main)


def test_a_mistake_in_on_done_costs_nobody_else() -> None:
    async def main() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        server = Server(HANDLERS)
        channel = Channel("10.0.0.1:80", connector=MemoryListener(server.connection).connect)

        def broken(reply: Reply) -> None:
            raise ValueError("broken")

        replies: list[Reply] = []
        channel.start(channel.method(ECHO), b"", None, broken)
        channel.start(channel.method(ECHO), b"", None, replies.append)
        await settle()
        assert len(replies) == 1
        assert [type(context["exception"]) for context in reported] == [ValueError]
        await channel.close()

    run(main)


# -- odd answers -------------------------------------------------------------------------------------------

GRPC = (b"content-type", b"application/grpc")
Script = Callable[[Connection, int], None]


class ScriptedServer(asyncio.Protocol):
    """Answers each request with the next script."""

    def __init__(self, scripts: list[Script], settings: dict[int, int] | None = None) -> None:
        self.scripts = scripts
        self.codec = Connection(Role.SERVER)
        self.codec.initiate_connection(settings or {})
        self.requests: list[RequestReceived] = []
        self.resets: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.codec.receive_data(data)
        for event in self.codec.events():
            if isinstance(event, RequestReceived):
                self.requests.append(event)
                self.scripts.pop(0)(self.codec, event.stream_id)
            elif isinstance(event, StreamReset):
                self.resets.append(event.error_code)
        self.transport.write(self.codec.data_to_send())


def scripted(*scripts: Script) -> tuple[Channel, list[ScriptedServer]]:
    """A channel to servers that share the scripts."""
    left = list(scripts)
    servers: list[ScriptedServer] = []

    def accept() -> ScriptedServer:
        servers.append(ScriptedServer(left))
        return servers[-1]

    return Channel("10.0.0.1:80", connector=MemoryListener(accept).connect), servers


def only(*headers: tuple[bytes, bytes]) -> Script:
    """Headers that end the stream."""
    return lambda codec, stream: codec.send_response(stream, headers, end_stream=True)


def full(
    body: bytes, trailers: Sequence[tuple[bytes, bytes]], headers: Sequence[tuple[bytes, bytes]] = (GRPC,)
) -> Script:
    def script(codec: Connection, stream: int) -> None:
        codec.send_response(stream, [(b":status", b"200"), *headers])
        if body:
            codec.send_data(stream, body)
        codec.send_trailers(stream, trailers)

    return script


def reset(code: int) -> Script:
    return lambda codec, stream: codec.reset_stream(stream, code)


def ended_without_trailers(codec: Connection, stream: int) -> None:
    codec.send_response(stream, [(b":status", b"200"), GRPC])
    codec.send_data(stream, message(b"x"), end_stream=True)


OK = [(b"grpc-status", b"0")]


@pytest.mark.parametrize(
    ("script", "status", "text"),
    [
        (only((b":status", b"503"), (b"content-type", b"text/html")), Status.UNAVAILABLE, "HTTP status 503"),
        (only((b":status", b"404")), Status.UNIMPLEMENTED, "HTTP status 404"),
        (only((b":status", b"200"), GRPC), Status.UNKNOWN, "without grpc-status"),
        (
            only((b":status", b"200"), GRPC, (b"grpc-status", b"0")),
            Status.INTERNAL,
            "0 messages, expected one",
        ),
        (
            only((b":status", b"200"), GRPC, (b"grpc-status", b"99")),
            Status.UNKNOWN,
            "unknown grpc-status b'99'",
        ),
        (
            only((b":status", b"200"), GRPC, (b"grpc-status", b"00")),
            Status.UNKNOWN,
            "unknown grpc-status b'00'",
        ),
        (
            full(message(b"x"), [(b":status", b"odd")]),
            Status.UNKNOWN,
            "without grpc-status, HTTP status odd",
        ),
        (
            only((b":status", b"200"), GRPC, (b"grpc-status", b"x")),
            Status.UNKNOWN,
            "unknown grpc-status b'x'",
        ),
        (
            only((b":status", b"200"), GRPC, (b"grpc-status", b"5"), (b"grpc-message", b"%")),
            Status.NOT_FOUND,
            "%",
        ),
        (
            only((b":status", b"200"), GRPC, (b"grpc-status", b"5"), (b"a-bin", b"!")),
            Status.INTERNAL,
            "base64",
        ),
        (full(message(b"x"), [(b"x", b"y")]), Status.UNKNOWN, "without grpc-status"),
        (full(b"", OK), Status.INTERNAL, "0 messages"),
        (full(message(b"x") * 2, OK), Status.INTERNAL, "2 messages"),
        (full(message(b"xyz")[:-1], OK), Status.INTERNAL, "message ends after 2 of 3 bytes"),
        (full(b"\0\0", OK), Status.INTERNAL, "within its 5-byte prefix"),
        (full(b"\1\0\0\0\1x", OK), Status.INTERNAL, "marked compressed"),
        (full(b"\1\0\0\0\1x", OK, [GRPC, (b"grpc-encoding", b"br")]), Status.UNIMPLEMENTED, "'br'"),
        (full(b"<html>", OK, [(b"content-type", b"text/html")]), Status.UNKNOWN, "not a gRPC answer"),
        (
            full(message(b"x"), [(b"grpc-status", b"3"), (b"grpc-message", b"no")]),
            Status.INVALID_ARGUMENT,
            "no",
        ),
        (ended_without_trailers, Status.UNKNOWN, "answer ended without a status"),
        (reset(ErrorCode.INTERNAL_ERROR), Status.INTERNAL, "stream reset by the peer: INTERNAL_ERROR"),
        (reset(ErrorCode.CANCEL), Status.CANCELLED, "stream reset by the peer: CANCEL"),
        (reset(ErrorCode.ENHANCE_YOUR_CALM), Status.RESOURCE_EXHAUSTED, "ENHANCE_YOUR_CALM"),
        (reset(0xABCD), Status.INTERNAL, "0xabcd"),
    ],
)
def test_odd_answers(script: Script, status: Status, text: str) -> None:
    async def main() -> None:
        good = full(message(b"good"), OK)
        channel, servers = scripted(good, script, good)
        assert await channel.unary(ECHO, b"") == b"good"
        error = await failure(channel)
        assert error.status is status
        assert text in error.message
        assert not error.retriable
        assert await channel.unary(ECHO, b"") == b"good"
        assert len(servers) == 1
        await channel.close()

    run(main)


def test_a_large_request_that_is_refused_at_its_beginning_is_reset() -> None:
    async def main() -> None:
        refused = only((b":status", b"200"), GRPC, (b"grpc-status", b"8"))
        channel, servers = scripted(refused, full(message(b"good"), OK))
        with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
            await channel.unary(ECHO, bytes(200_000), timeout=5.0)
        assert await channel.unary(ECHO, b"x", timeout=5.0) == b"good"
        assert servers[0].resets == [ErrorCode.CANCEL]
        await channel.close()

    run(main)


def test_a_refused_stream_is_sent_again() -> None:
    async def main() -> None:
        refuse = reset(ErrorCode.REFUSED_STREAM)
        channel, servers = scripted(refuse, refuse, full(message(b"third time"), OK), refuse, refuse, refuse)
        assert await channel.unary(ECHO, b"x", timeout=1.0) == b"third time"
        error = await failure(channel)
        assert (error.status, error.retriable) == (Status.UNAVAILABLE, True)
        assert len(servers[0].requests) == 6
        await channel.close()

    run(main)


def test_calls_above_the_last_stream_of_a_goaway_go_elsewhere() -> None:
    def leave(codec: Connection, stream: int) -> None:
        codec.send_goaway(0, last_stream_id=stream - 2)

    async def main() -> None:
        good = full(message(b"good"), OK)
        channel, servers = scripted(good, leave, good)
        assert await channel.unary(ECHO, b"") == b"good"
        assert await channel.unary(ECHO, b"") == b"good"
        assert len(servers) == 2
        await channel.close()

    run(main)


def test_calls_that_cross_a_goaway_go_elsewhere() -> None:
    """They are in the codec when the GOAWAY comes, in the same turn of the loop."""

    async def main() -> None:
        good = full(message(b"good"), OK)
        channel, servers = scripted(good, good, good)
        assert await channel.unary(ECHO, b"") == b"good"
        servers[0].codec.send_goaway(0)
        servers[0].transport.write(servers[0].codec.data_to_send())
        replies: list[Reply] = []
        asyncio.get_running_loop().call_soon(
            lambda: [channel.start(channel.method(ECHO), b"", 5.0, replies.append) for _ in range(2)]
        )
        await settle()
        assert [reply.body for reply in replies] == [b"good", b"good"]
        assert len(servers) == 2
        await channel.close()

    run(main)


def test_a_request_that_is_too_large_to_be_sent() -> None:
    async def main() -> None:
        good = full(message(b"good"), OK)
        channel, servers = scripted(good)
        with pytest.raises(
            RpcError, match=r"INTERNAL: request could not be sent: headers of 100\d\d\d bytes, at most 65536"
        ):
            await channel.unary(ECHO, b"", metadata=[(b"large", b"x" * 100_000)])
        assert await channel.unary(ECHO, b"") == b"good"
        assert len(servers) == 1
        await channel.close()

    run(main)


def test_what_a_request_looks_like() -> None:
    async def main() -> None:
        channel, servers = scripted(full(message(b""), OK), full(message(b""), OK))
        await channel.unary(ECHO, b"", metadata=[(b"user-id", b"1"), (b"x-bin", b"\0")], timeout=2.0)
        await channel.unary(ECHO, b"")
        first, second = ([tuple(header) for header in request.headers] for request in servers[0].requests)
        assert first == [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/test.Echo/Echo"),
            (b":authority", b"10.0.0.1:80"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"grpc-python-inferflow/1"),
            (b"user-id", b"1"),
            (b"x-bin", b"AA"),
            (b"grpc-timeout", b"2000000u"),
        ]
        assert second == first[:7]
        await channel.close()

    run(main)


def test_a_cancelled_call_is_reset() -> None:
    async def main() -> None:
        channel, servers = scripted(lambda codec, stream: None, full(message(b"good"), OK))
        error = await failure(channel, timeout=1.0)
        assert error.status is Status.DEADLINE_EXCEEDED
        assert error.message == "deadline exceeded, waiting for an answer of memory-server"
        await settle()
        assert servers[0].resets == [ErrorCode.CANCEL]
        assert await channel.unary(ECHO, b"") == b"good"
        await channel.close()

    run(main)


@pytest.mark.parametrize("path", ["Echo", "/Echo", "/a/b/c"])
def test_paths_that_are_no_methods(path: str) -> None:
    async def main() -> None:
        channel = Channel("10.0.0.1:80")
        with pytest.raises(ValueError, match="is not /service/method"):
            channel.method(path)
        with pytest.raises(ValueError, match="not a name for custom metadata"):
            channel.method(ECHO, [(b"Bad", b"")])
        await channel.close()

    run(main)


def test_a_channel_needs_a_loop() -> None:
    with pytest.raises(RuntimeError):
        Channel("10.0.0.1:80")
