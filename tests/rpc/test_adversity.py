"""Peers that attack, break, stall or die. Time is virtual."""

from __future__ import annotations

import asyncio
import gc
import random
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ngh2 import Connection, Role

from rpc.calls import ServerCall
from rpc.client import Channel, ChannelSettings, ClientCall, Reply
from rpc.connection import FLUSH_BYTES
from rpc.http2 import PREFACE, ErrorCode
from rpc.server import Limits, Rate, Server
from rpc.status import RpcError, Status
from rpc.testing import MemoryListener
from tests.rpc.raw import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    RawClient,
    frame,
    message,
    settle,
)
from tests.rpc.support import Holder, echo, run

ECHO = "/test.Echo/Echo"
HOLD = b"/test.Echo/Hold"
MiB = 1024 * 1024

Test = Callable[[Server], Coroutine[Any, Any, None]]


def attack(test: Test, *, limits: Limits | None = None, holder: Holder | None = None) -> Server:
    """Runs `test` against a server; then an honest client is served, and nothing is left behind."""
    made: list[Server] = []

    async def main() -> None:
        server = Server({b"/test.Echo/Echo": echo, HOLD: holder or Holder()}, limits=limits)
        made.append(server)
        await test(server)
        listener = MemoryListener(server.connection)
        channel = Channel("10.0.0.1:1", connector=listener.connect)
        try:
            assert await channel.unary(ECHO, b"honest", timeout=30) == b"honest"
        finally:
            await channel.close()
            await server.close()
        assert server.stats.connections == 0
        assert server.stats.streams == 0

    run(main)
    return made[0]


# -- floods ------------------------------------------------------------------------------------------------


def test_rapid_reset() -> None:
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)
        for _ in range(300):
            stream = client.request(HOLD)
            client.flush()
            client.codec.reset_stream(stream)
            client.flush()
        await settle()
        assert client.closed
        assert client.goaway is not None

    server = attack(test, holder=holder)
    assert server.stats.limits["resets"] == 1
    # Opened and reset within one batch: no handler has seen them, but for those at the border of two.
    assert len(holder.calls) <= 2


def test_a_cancelled_call_now_and_then_is_no_attack() -> None:
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)
        for _ in range(150):
            stream = client.request(HOLD)
            client.flush()
            await settle()
            client.codec.reset_stream(stream)
            client.flush()
            await settle()
        assert not client.closed

    server = attack(test, holder=holder)
    assert server.stats.limits == {}
    assert len(holder.cancelled) == len(holder.calls) == 150


@pytest.mark.parametrize(
    ("limit", "flood"),
    [
        ("control_frames", frame(PING, bytes(8))),
        ("control_frames", frame(SETTINGS)),
        ("control_frames", frame(SETTINGS, struct.pack(">HI", 4, 100_000))),
        ("window_updates", frame(WINDOW_UPDATE, struct.pack(">I", 1))),
    ],
    ids=["ping", "empty settings", "settings", "window updates"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_floods_of_control_frames(limit: str, flood: bytes, at_once: bool) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.hello()
        await settle()
        for _ in range(100):
            if at_once:
                client.write(flood * 50)
            else:
                for _ in range(50):
                    client.write(flood)
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
        await settle()
        assert client.closed

    server = attack(test)
    assert server.stats.limits == {limit: 1}


def test_a_flood_of_empty_data() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        stream = client.request(HOLD, body=None, end=False)
        client.flush()
        await settle()
        client.manual = True
        for _ in range(1000):
            client.write(frame(DATA, stream=stream))
        await settle()
        assert client.closed

    assert attack(test).stats.limits == {"control_frames": 1}


def test_a_flood_of_nonsense_frames() -> None:
    """Frames that the codec ignores or finds odd; it counts them as glitches or ends the connection."""

    async def test(server: Server) -> None:
        client = RawClient(server)
        client.hello()
        stream = 1
        for _ in range(2000):
            client.write(frame(WINDOW_UPDATE, struct.pack(">I", 0), stream=stream))
            client.write(frame(PRIORITY, struct.pack(">IB", stream, 0), stream=stream))
        await settle()
        assert client.closed

    limits = attack(test).stats.limits
    assert limits.keys() <= {"glitches", "protocol"}
    assert limits


def test_resets_that_the_server_is_made_to_send() -> None:
    """Each request is spoilt by the client so that the server has to reset it."""
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)
        for _ in range(2000):
            stream = client.request(HOLD, end=False)
            client.flush()
            client.write(frame(WINDOW_UPDATE, struct.pack(">I", 2**31 - 1), stream=stream))
            await asyncio.sleep(0)
            if not client.codec.can_send_request:
                break
        await settle()
        assert client.closed

    server = attack(test, holder=holder)
    assert server.stats.limits["glitches"] + server.stats.limits["protocol"] == 1
    assert len(holder.calls) == 0


def test_pings_for_measuring_are_no_attack() -> None:
    """gRPC clients ping with each answer; calls earn control frames."""

    async def test(server: Server) -> None:
        client = RawClient(server)
        for _ in range(2000):
            client.request()
            client.codec.ping()
            client.flush()
            await settle()
        assert not client.closed

    assert attack(test).stats.limits == {}


# -- headers -----------------------------------------------------------------------------------------------


def test_too_many_fields_cost_one_call() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        bad = client.request(extra=[(b"x-%d" % i, b"") for i in range(123)])
        good = client.request(extra=[(b"x-%d" % i, b"") for i in range(122)])
        client.flush()
        await settle()
        assert client.status(bad) == Status.RESOURCE_EXHAUSTED
        assert client.answer(bad)[b"grpc-message"] == b"129 header fields, the limit is 128"
        assert client.status(good) == Status.OK

    assert attack(test).stats.limits == {"header_fields": 1}


def test_too_many_bytes_of_metadata_cost_one_call() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        bad = client.request(extra=[(b"x", b"y" * 16_384)])
        good = client.request(extra=[(b"x", b"y" * 15_900)])
        client.flush()
        await settle()
        assert client.status(bad) == Status.RESOURCE_EXHAUSTED
        assert b"bytes of metadata, the limit is 16384" in client.answer(bad)[b"grpc-message"]
        assert client.status(good) == Status.OK

    assert attack(test).stats.limits == {"header_bytes": 1}


@pytest.mark.parametrize(
    ("limit", "extra"),
    [
        ("header_fields", [(b"x-%d" % i, b"") for i in range(600)]),
        ("header_bytes", [(b"x-%d" % i, b"y" * 15_000) for i in range(5)]),
        # A field of 4,000 bytes in the table of the codec, and then one byte for each time it is named.
        ("header_bytes", [(b"bomb", b"y" * 3_900)] * 400),
    ],
)
def test_header_bombs_end_the_connection(limit: str, extra: list[tuple[bytes, bytes]]) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.request(extra=extra)
        client.flush()
        await settle()
        assert client.closed
        assert ErrorCode.ENHANCE_YOUR_CALM.to_bytes(4, "big") in client.received

    assert attack(test).stats.limits == {limit: 1}


def test_endless_continuation() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.hello()
        client.write(frame(HEADERS, b"\x82", stream=1))
        for _ in range(1000):
            client.write(frame(CONTINUATION, b"", stream=1))
        await settle()
        assert client.closed

    limits = attack(test).stats.limits
    assert sum(limits.values()) == 1


# -- requests that are wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replace", "status"),
    [
        ({b"grpc-timeout": b"soon"}, Status.INVALID_ARGUMENT),
        ({b"grpc-timeout": b"123456789S"}, Status.INVALID_ARGUMENT),
        ({b"grpc-encoding": b"br"}, Status.UNIMPLEMENTED),
        ({b"a-bin": b"!"}, Status.INVALID_ARGUMENT),
        ({b":path": b"/"}, Status.UNIMPLEMENTED),  # the message ends with a blank, which HTTP/2 forbids
        ({b":path": b"/%00/\xff"}, Status.UNIMPLEMENTED),
        ({b":path": b"no-slash"}, None),
        ({b"te": None}, Status.OK),
        ({b"content-type": b"application/grpc+proto"}, Status.OK),
        ({b"grpc-timeout": b"0S"}, Status.DEADLINE_EXCEEDED),
    ],
)
def test_odd_headers(replace: dict[bytes, bytes | None], status: Status | None) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        path = HOLD if replace.get(b"grpc-timeout") == b"0S" else b"/test.Echo/Echo"
        stream = client.request(path, replace=replace)
        client.flush()
        await settle(0.1)
        assert client.status(stream) == status
        if status == Status.UNIMPLEMENTED:
            assert client.answer(stream)[b"grpc-accept-encoding"] == b"identity,deflate,gzip"
        if status is None:
            assert client.resets() == [ErrorCode.PROTOCOL_ERROR]

    attack(test)


@pytest.mark.parametrize(
    "replace",
    [
        {b"content-type": None},
        {b"content-type": b"application/json"},
        {b"content-type": b"application/grpc-web+proto"},
        {b":method": b"GET"},
    ],
)
def test_what_is_not_grpc_is_415(replace: dict[bytes, bytes | None]) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        stream = client.request(replace=replace)
        client.flush()
        await settle()
        assert client.answer(stream)[b":status"] == b"415"

    attack(test)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", Status.UNIMPLEMENTED),
        (b"\0\0\0", Status.INTERNAL),
        (b"\0\0\0\0\5abc", Status.INTERNAL),
        (message(b"a") + message(b"b"), Status.UNIMPLEMENTED),
        (b"\7\0\0\0\1a", Status.INTERNAL),
        (b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED),
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_wrong_bodies(data: bytes, status: Status, split: bool) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        stream = client.request(body=None, end=False)
        pieces = [data[i : i + 1] for i in range(len(data))] if split else [data]
        for piece in pieces:
            if client.status(stream) is not None:
                break
            client.codec.send_data(stream, piece)
            client.flush()
            await settle()
        if client.status(stream) is None:
            client.codec.end_stream(stream)
            client.flush()
            await settle()
        assert client.status(stream) == status
        assert not client.closed

    attack(test)


def test_a_length_prefix_that_is_too_large_is_answered_at_once() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        stream = client.request(body=None, end=False)
        client.codec.send_data(stream, b"\0\x00\x40\x00\x01")  # 4 MiB + 1, of which not a byte has come
        client.flush()
        await settle()
        assert client.status(stream) == Status.RESOURCE_EXHAUSTED
        assert b"4194305 bytes is larger than the limit of 4194304" in client.answer(stream)[b"grpc-message"]
        assert client.resets() == [ErrorCode.NO_ERROR]  # and the rest need not be sent

    attack(test)


# -- too much at once --------------------------------------------------------------------------------------


def test_streams_over_the_limit_are_refused() -> None:
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)  # it has not read the server's SETTINGS yet
        for _ in range(140):
            client.request(HOLD)
        client.flush()
        await settle()
        assert len(holder.calls) == server.stats.streams == 128
        assert client.resets() == [ErrorCode.REFUSED_STREAM] * 12
        for call in holder.calls:
            call.respond(b"")
        await settle()
        assert not client.closed

    attack(test, holder=holder)


def test_incomplete_requests_have_a_budget() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        streams = [client.request(HOLD, body=None, end=False) for _ in range(5)]
        client.flush()
        await settle()
        for stream in streams:
            client.codec.send_data(stream, message(bytes(900_000))[:800_000])
            client.flush()
            await settle()
        assert [client.status(stream) for stream in streams] == [None] * 3 + [Status.RESOURCE_EXHAUSTED] * 2
        client.codec.send_data(streams[0], bytes(100_005), end_stream=True)
        client.flush()
        await settle()
        late = client.request(body=bytes(700_000))  # there is room again
        client.flush()
        await settle()
        assert client.status(late) == Status.OK

    server = attack(test, limits=Limits(buffered_request_bytes=3 * MiB))
    assert server.stats.limits == {"buffered_request_bytes": 2}


def test_answers_that_nobody_takes_have_a_budget() -> None:
    """The client grants no window: answers stay in the codec until the budget is used up."""
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server, {4: 0})
        streams = [client.request(HOLD) for _ in range(10)]
        client.flush()
        await settle()
        for call in holder.calls:
            call.respond(bytes(MiB))
        await settle()
        statuses = [client.status(stream) for stream in streams]
        assert statuses.count(Status.RESOURCE_EXHAUSTED) == 7
        assert statuses.count(None) == 3  # those are in the codec
        client.codec.update_settings({4: 2 * MiB})
        client.codec.set_local_window_size(8 * MiB)
        client.flush()
        await settle()
        assert [client.status(stream) for stream in streams].count(Status.OK) == 3
        fresh = client.request()
        client.flush()
        await settle()
        assert client.status(fresh) == Status.OK

    server = attack(test, limits=Limits(unsent_response_bytes=3 * MiB + 100), holder=holder)
    assert server.stats.limits == {"unsent_response_bytes": 7}


def test_a_slow_reader_bounds_what_is_buffered() -> None:
    """The client's windows are wide open but it does not read: nothing piles up in the transport."""
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server, {4: 2**30}, window=2**30)
        streams = [client.request(HOLD) for _ in range(20)]
        client.flush()
        await settle()
        client.transport.pause_reading()
        for call in holder.calls:
            call.respond(bytes(MiB))
        await settle()
        assert client.link.server.get_write_buffer_size() <= 512 * 1024 + FLUSH_BYTES
        late = client.request()
        client.flush()
        await settle()
        assert client.link.client.get_write_buffer_size() > 0  # the server does not read either
        client.transport.resume_reading()
        await settle(1)
        assert [client.status(stream) for stream in (*streams, late)] == [Status.OK] * 21

    assert attack(test, holder=holder).stats.limits == {}


def test_large_answers_are_written_in_turns() -> None:
    """One turn of the loop writes no more than FLUSH_BYTES for a connection."""
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server, {4: 2**30}, window=2**30)
        client.request(HOLD)
        client.flush()
        await settle()
        transport = client.link.server
        before = transport.written
        holder.calls[0].respond(bytes(3 * MiB))
        steps = []
        for _ in range(40):
            await asyncio.sleep(0)
            steps.append(transport.written - before)
            before = transport.written
        assert max(steps) <= FLUSH_BYTES
        assert sum(steps) >= 3 * MiB

    attack(test, holder=holder)


def test_connections_over_the_limit_are_closed_at_once() -> None:
    async def test(server: Server) -> None:
        clients = [RawClient(server) for _ in range(5)]
        for client in clients:
            client.flush()
        await settle()
        assert [client.closed for client in clients] == [False] * 3 + [True] * 2
        clients[0].transport.close()
        await settle()
        again = RawClient(server)
        again.flush()
        await settle()
        assert not again.closed
        for client in (*clients, again):
            client.transport.close()
        await settle()

    assert attack(test, limits=Limits(connections=3)).stats.limits == {"connections": 2}


@pytest.mark.parametrize(
    ("last_stream", "code", "text"),
    [
        (0, ErrorCode.NO_ERROR, b""),
        (0, ErrorCode.PROTOCOL_ERROR, b"mine"),
        (1, ErrorCode.NO_ERROR, b"as of Go"),
    ],
)
def test_a_client_that_says_goodbye_breaks_no_rule(last_stream: int, code: int, text: bytes) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.request()
        client.flush()
        await settle()
        client.write(frame(GOAWAY, struct.pack(">II", last_stream, code) + text))
        await settle()
        assert client.closed or last_stream == 0
        client.transport.close()
        await settle()

    assert attack(test).stats.limits == {}


# -- slowness and silence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", PREFACE[:3], PREFACE, PREFACE[:10], b"GET / HT"])
def test_a_client_that_does_not_introduce_itself(said: bytes) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.manual = True
        if said:
            client.write(said)
        await settle(9)
        assert not client.closed
        await settle(3)
        assert client.closed

    assert attack(test).stats.limits == {"preface_seconds": 1}


def test_a_trickled_header_block() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.hello()
        await settle()
        field = b"\0\1x\x7f\xa1\x1e" + b"y" * 4000  # HPACK: a literal of 4,000 bytes
        block = frame(HEADERS, field, stream=1)
        for byte in block[:60]:
            client.write(bytes([byte]))
            await settle(1)
            if client.closed:
                break
        assert client.closed

    assert attack(test).stats.limits == {"header_block_seconds": 1}


def test_odd_bytes_of_an_honest_client_are_no_trickle() -> None:
    """A lone frame that means nothing completes no event; the ping that follows clears the suspicion."""

    async def test(server: Server) -> None:
        client = RawClient(server)
        client.flush()
        await settle()
        client.write(frame(0xBE, b"grease"))
        await settle(60)
        assert not client.closed

    assert attack(test).stats.limits == {}


def test_a_stalled_body() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        stalled = client.request(HOLD, body=None, end=False)
        client.codec.send_data(stalled, message(bytes(100))[:50])
        slow = client.request(body=None, end=False)
        client.flush()
        for _ in range(10):
            client.codec.send_data(slow, b"\0")
            client.flush()
            await settle(10)
            if client.status(slow) is not None:
                break
        assert client.status(stalled) == Status.DEADLINE_EXCEEDED
        assert client.answer(stalled)[b"grpc-message"] == b"no byte of the request for 20 s"
        assert not client.closed

    server = attack(test)
    assert server.stats.limits["body_stall_seconds"] == 1


def test_a_client_without_calls_is_sent_away() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.request()
        client.flush()
        await settle(290)
        assert not client.closed
        await settle(20)
        assert client.closed
        assert client.goaway is not None
        assert client.goaway[0] == ErrorCode.NO_ERROR

    assert attack(test).stats.limits == {"idle_seconds": 1}


def test_an_idle_client_whose_call_crosses_the_goodbye_is_served() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.request()
        client.flush()
        await settle()
        client.link.server.stalled = True  # what the server says is on a long way
        await settle(302)
        late = client.request()
        client.flush()
        await settle()
        client.link.server.resume_delivery()
        await settle()
        assert client.status(late) == Status.OK
        assert client.closed

    assert attack(test).stats.limits == {"idle_seconds": 1}


def test_a_client_that_dies_with_a_call_open() -> None:
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)
        client.request(HOLD)
        client.flush()
        await settle()
        client.link.stall()
        await settle(70)
        assert not holder.cancelled
        await settle(20)
        assert len(holder.cancelled) == 1
        assert server.stats.connections == 0

    assert attack(test, holder=holder).stats.limits == {"ping_timeout_seconds": 1}


def test_a_living_client_may_wait_for_long() -> None:
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)
        stream = client.request(HOLD)
        client.flush()
        await settle(10_000)
        holder.calls[0].respond(b"at last")
        await settle()
        assert client.status(stream) == Status.OK

    assert attack(test, holder=holder).stats.limits == {}


@pytest.mark.parametrize("windows", ["shut", "open"])
def test_a_client_that_takes_nothing_is_cut_off(windows: str) -> None:
    """Whether it grants no window or does not read its socket."""
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server, {4: 0 if windows == "shut" else 2**30}, window=2**30)
        for _ in range(8):
            client.request(HOLD)
        client.flush()
        await settle()
        if windows == "open":
            client.transport.pause_reading()
        for call in holder.calls:
            call.respond(bytes(MiB))
        await settle(28)
        assert server.stats.connections == 1
        await settle(10)
        assert server.stats.connections == 0

    assert attack(test, holder=holder).stats.limits == {"send_stall_seconds": 1}


def test_old_connections_are_drained() -> None:
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)
        stream = client.request(HOLD)
        client.flush()
        await settle(80)
        assert client.goaway is None
        await settle(31)
        assert client.goaway is not None
        assert not client.closed
        holder.calls[0].respond(b"in peace")
        await settle()
        assert client.status(stream) == Status.OK
        assert client.closed

    server = attack(test, limits=Limits(age_seconds=100.0), holder=holder)
    assert server.stats.limits == {"age_seconds": 1}


# -- links that break --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fragment", [1, 2, 7])
def test_any_fragmentation(fragment: int) -> None:
    async def main() -> None:
        server = Server({b"/test.Echo/Echo": echo})
        listener = MemoryListener(server.connection, fragment=fragment)
        channel = Channel("10.0.0.1:1", connector=listener.connect)
        bodies = [bytes([i]) * (i * 37) for i in range(30)]
        replies = await asyncio.gather(*(channel.unary(ECHO, body, timeout=60) for body in bodies))
        assert replies == bodies
        with pytest.raises(RpcError, match="unknown service"):
            await channel.unary("/none/none", b"x" * 2000, timeout=60)
        await channel.close()
        await server.close()
        assert server.stats.limits == {}
        assert server.stats.connections == 0

    run(main)


@pytest.mark.parametrize("seed", range(10))
def test_a_link_that_is_cut_anywhere(seed: int) -> None:
    """Every call ends once, and the counters return to zero, wherever the cut is."""
    dice = random.Random(seed)
    holder = Holder()

    async def main() -> None:
        server = Server({b"/test.Echo/Echo": echo, HOLD: holder})
        listener = MemoryListener(server.connection, fragment=dice.choice([1, 50, 5000]))
        channel = Channel("10.0.0.1:1", connector=listener.connect)
        await channel.connect()
        method, held = channel.method(ECHO), channel.method(HOLD.decode())
        replies: list[Reply] = []
        for i in range(20):
            channel.start(held if i % 2 else method, bytes(dice.randrange(20_000)), 30.0, replies.append)
        for _ in range(dice.randrange(100)):
            await asyncio.sleep(0)
        held = list(holder.calls)
        listener.links[0].cut()
        await settle()
        assert all(call.over for call in held)
        await channel.close()
        await settle()
        assert server.stats.connections == 0
        assert all(call.over for call in holder.calls)
        assert len(replies) == 20
        for reply in replies:
            assert reply.status in (Status.OK, Status.UNAVAILABLE)
        assert server.stats.streams == 0
        await server.close()

    run(main)


def test_half_a_frame_and_then_nothing() -> None:
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)
        client.request(HOLD)
        client.request(HOLD, body=bytes(1000))
        data = client.codec.data_to_send()
        client.write(data[:-300])
        await settle()
        client.transport.close()
        await settle()
        assert len(holder.calls) == len(holder.cancelled) == 1

    attack(test, holder=holder)


def test_a_handler_that_answers_after_the_connection_is_gone() -> None:
    holder = Holder()

    async def test(server: Server) -> None:
        client = RawClient(server)
        client.request(HOLD)
        client.request(HOLD)
        client.flush()
        await settle()
        client.link.cut()
        await settle()
        holder.calls[0].respond(b"too late")
        holder.calls[1].fail(Status.INTERNAL, "too late")
        await settle()

    attack(test, holder=holder)


def test_cancelling_one_call_answers_another_that_is_closed_in_the_same_batch() -> None:
    """A handler's on_cancel may touch any call, also one whose reset has not been looked at yet."""
    calls: list[ServerCall] = []

    def handler(call: ServerCall) -> None:
        calls.append(call)
        call.on_cancel = lambda: [other.respond(b"x") for other in calls]  # type: ignore[func-returns-value]

    async def main() -> None:
        server = Server({HOLD: handler})
        client = RawClient(server)
        streams = [client.request(HOLD) for _ in range(3)]
        client.flush()
        await settle()
        for stream in streams:
            client.codec.reset_stream(stream)
        client.flush()
        await settle()
        assert not client.closed
        assert server.stats.streams == 0
        await server.close()

    run(main)


# -- fuzz --------------------------------------------------------------------------------------------------

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

FRAMES = st.builds(
    frame,
    st.sampled_from(
        [DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, 5, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, 77]
    ),
    st.binary(max_size=40),
    flags=st.sampled_from([0, 1, 4, 5, 8, 0x2D]),
    stream=st.sampled_from([0, 1, 3, 5, 2, 2**31 - 1]),
)


@FUZZ
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        if data:
            client.write(data)
        await settle(30)
        client.transport.close()
        await settle()

    attack(test)


@FUZZ
@given(st.lists(FRAMES, max_size=20))
def test_random_frames_after_a_good_start(frames: list[bytes]) -> None:
    async def test(server: Server) -> None:
        client = RawClient(server)
        client.request(body=b"abc")
        client.request(HOLD, body=b"abc", end=False)
        client.flush()
        await settle()
        client.write(b"".join(frames))
        await settle(1)
        client.transport.close()
        await settle()

    attack(test)


@FUZZ
@given(st.data())
def test_damaged_conversations(data: st.DataObject) -> None:
    """A good conversation with some bytes changed, removed or doubled."""

    async def test(server: Server) -> None:
        client = RawClient(server)
        for size in (0, 10, 3000):
            client.request(body=bytes(size), extra=[(b"grpc-timeout", b"1S"), (b"user-id", b"1")])
        good = bytearray(client.codec.data_to_send())
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(good) - 1))
            how = data.draw(st.sampled_from(["change", "remove", "double"]))
            if how == "change":
                good[at] = data.draw(st.integers(0, 255))
            elif how == "remove":
                del good[at : at + data.draw(st.integers(1, 30))]
            else:
                good[at:at] = good[at : at + data.draw(st.integers(1, 30))]
            if not good:
                break
        client.write(bytes(good) or b"x")
        await settle(3)
        client.transport.close()
        await settle()

    attack(test)


def test_settings_of_the_peer_that_are_extreme() -> None:
    async def test(server: Server) -> None:
        client = RawClient(server, {1: 0, 3: 0, 4: 2**31 - 1, 5: 2**24 - 1, 6: 1})
        stream = client.request(body=b"x" * 1000)
        client.flush()
        await settle()
        assert client.status(stream) == Status.OK

    attack(test, limits=Limits(resets=Rate(burst=1, per_second=1)))


class Babbler(asyncio.Protocol):
    """A server that answers every piece of input with the next of its sayings."""

    def __init__(self, sayings: list[bytes]) -> None:
        self.sayings = sayings
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(frame(SETTINGS))

    def data_received(self, data: bytes) -> None:
        if self.sayings:
            self.transport.write(self.sayings.pop(0))


def ask_a_babbler(sayings: list[bytes]) -> None:
    """Every call ends once and in time, whatever the server says."""

    async def main() -> None:
        listener = MemoryListener(lambda: Babbler(sayings))
        channel = Channel("10.0.0.1:1", connector=listener.connect, settings=ChannelSettings())
        replies: list[Reply] = []
        for i in range(4):
            channel.start(channel.method(ECHO), b"x" * i, 5.0, replies.append)
            await settle()
        await settle(6)
        assert len(replies) == 4
        await channel.close()
        assert len(replies) == 4

    run(main)


@FUZZ
@given(st.lists(st.one_of(st.binary(max_size=100), FRAMES), max_size=10))
def test_servers_that_babble(sayings: list[bytes]) -> None:
    ask_a_babbler(sayings)


@FUZZ
@given(st.data())
def test_servers_whose_answers_are_damaged(data: st.DataObject) -> None:
    answer = Connection(Role.SERVER)
    answer.initiate_connection()
    answer.receive_data(PREFACE + frame(SETTINGS) + frame(HEADERS, b"\x83\x86\x84", flags=4, stream=1))
    answer.send_response(1, [(b":status", b"200"), (b"content-type", b"application/grpc")])
    answer.send_data(1, message(b"y" * data.draw(st.integers(0, 3000))))
    answer.send_trailers(1, [(b"grpc-status", b"0"), (b"grpc-message", b"%20")])
    good = bytearray(answer.data_to_send())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
    ask_a_babbler([bytes(good)])


# -- memory ------------------------------------------------------------------------------------------------


def test_answered_calls_are_forgotten_at_once() -> None:
    """Neither their deadlines keep them nor cycles, which only the garbage collector would find."""

    async def main() -> None:
        holder = Holder()
        server = Server({b"/test.Echo/Echo": echo, HOLD: holder})
        channel = Channel("10.0.0.1:1", connector=MemoryListener(server.connection).connect)
        for _ in range(20):
            await channel.unary(ECHO, b"x" * 20_000, timeout=3600.0)
            replies: list[Reply] = []
            channel.start(channel.method(HOLD.decode()), b"", 3600.0, replies.append)
            await settle()
            holder.calls.pop().respond(b"")
            await settle()
        alive = [one for one in gc.get_objects() if type(one) in (ServerCall, ClientCall)]
        assert len(alive) <= 2  # the last ones may still be on some stack
        await channel.close()
        await server.close()

    gc.collect()
    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()
