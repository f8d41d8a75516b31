"""grpcio on the other side, both ways: the reference that everybody else is measured by."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from proto import etcd_pb2
from rpc.calls import ServerCall, StreamCall
from rpc.client import Channel, ChannelSettings, Reply
from rpc.server import Limits, Server
from rpc.status import RpcError, Status
from rpc.tls import client_context, server_context
from tests.rpc.support import PATIENCE, Certificates, Holder, echo, listening, run, until
from tests.sidecar.etcd_server import EtcdServer

ECHO = "/test.Echo/Echo"
MiB = 1024 * 1024


# -- grpcio asks our server --------------------------------------------------------------------------------


def serve(
    server: Server,
    test: Callable[[grpc.aio.Channel], Coroutine[Any, Any, None]],
    *,
    options: Sequence[tuple[str, int]] = (),
    compression: grpc.Compression | None = None,
) -> Server:
    async def main() -> None:
        sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with (
            listening(server) as target,
            grpc.aio.insecure_channel(target, options=[*sizes, *options], compression=compression) as channel,
        ):
            await test(channel)
        assert server.stats.connections == server.stats.streams == 0

    run(main, virtual=False)
    return server


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 4 * MiB])
def test_echo_of_grpcio(size: int) -> None:
    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(ECHO)
        body = bytes(i & 0xFF for i in range(1013)) * (size // 1013 + 1)
        assert await call(body[:size], timeout=PATIENCE) == body[:size]

    serve(Server({b"/test.Echo/Echo": echo}), test)


def test_many_calls_of_grpcio() -> None:
    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(ECHO)
        bodies = [b"%d" % i for i in range(500)]  # more than the streams that the server allows
        assert await asyncio.gather(*(call(body, timeout=PATIENCE) for body in bodies)) == bodies

    server = serve(Server({b"/test.Echo/Echo": echo}), test)
    assert server.stats.limits == {}


def test_large_bodies_both_ways_with_grpcio() -> None:
    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(ECHO)
        bodies = [bytes([i]) * 2_000_000 for i in range(30)]
        assert await asyncio.gather(*(call(body, timeout=PATIENCE) for body in bodies)) == bodies

    server = serve(Server({b"/test.Echo/Echo": echo}), test)
    assert server.stats.limits == {}


def test_large_answers_to_grpcio() -> None:
    def large(call: ServerCall) -> None:
        call.respond(bytes(int(call.body)))

    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary("/test.Echo/Large")
        sizes = [20 * MiB, 1 * MiB, 3 * MiB, 10]
        answers = await asyncio.gather(*(call(b"%d" % size, timeout=PATIENCE) for size in sizes))
        assert [len(answer) for answer in answers] == sizes

    server = serve(Server({b"/test.Echo/Large": large}), test)
    assert server.stats.limits == {}


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_of_grpcio(algorithm: grpc.Compression) -> None:
    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(ECHO)
        for body in (b"", b"x" * 100_000, bytes(range(256)) * 5000):
            assert await call(body, timeout=PATIENCE) == body
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bytes(5 * MiB), timeout=PATIENCE)  # small as it is sent
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "decompressed message is larger than the limit of 4194304 bytes"

    serve(Server({b"/test.Echo/Echo": echo}), test, compression=algorithm)


def test_metadata_and_trailing_metadata_with_grpcio() -> None:
    def answer(call: ServerCall) -> None:
        assert (b"user-id", b"u1") in call.metadata
        assert (b"blob-bin", b"\x00\xff,") in call.metadata
        assert all(name in (b"user-id", b"blob-bin") for name, _ in call.metadata)
        call.respond(b"", trailing=((b"cost", b"3"), (b"blob-bin", b"\xff\x00")))

    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary("/test.Echo/Meta")(
            b"", metadata=(("user-id", "u1"), ("blob-bin", b"\x00\xff,")), timeout=PATIENCE
        )
        assert await call == b""
        assert dict(await call.trailing_metadata()) == {"cost": "3", "blob-bin": b"\xff\x00"}

    serve(Server({b"/test.Echo/Meta": answer}), test)


def test_statuses_to_grpcio() -> None:
    def fail(call: ServerCall) -> None:
        call.fail(Status(int(call.body)), "ungültig: 5 % \u20ac", trailing=((b"why", b"because"),))

    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary("/test.Echo/Fail")
        for status in list(Status)[1:]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"%d" % status, timeout=PATIENCE)
            assert caught.value.code().value[0] == status
            assert caught.value.details() == "ungültig: 5 % \u20ac"
            assert ("why", "because") in list(caught.value.trailing_metadata())
        for path, text in (
            ("/test.Echo/None", "unknown method None for service test.Echo"),
            ("/none/None", "unknown service none"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"x" * 100_000, timeout=PATIENCE)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert caught.value.details() == text

    serve(Server({b"/test.Echo/Fail": fail}), test)


def test_deadline_and_cancel_of_grpcio() -> None:
    holder = Holder()

    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary("/test.Echo/Hold")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"x", timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: len(holder.cancelled) == 1)
        assert holder.calls[0].deadline is not None
        pending = call(b"x")
        waiting = asyncio.ensure_future(pending)
        await until(lambda: len(holder.calls) == 2)
        assert holder.calls[1].deadline is None
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: len(holder.cancelled) == 2)

    serve(Server({b"/test.Echo/Hold": holder}), test)


def test_streams_of_grpcio() -> None:
    def shout(call: StreamCall) -> None:
        call.on_message = lambda message: call.send(message.upper())
        call.on_end = lambda: call.end(((b"total", b"all"),))

    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream("/test.Echo/Shout")(timeout=PATIENCE)
        for word in (b"a", b"b" * 100_000, b""):
            await call.write(word)
            assert await call.read() == word.upper()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert dict(await call.trailing_metadata()) == {"total": "all"}

    serve(Server({}, stream_handlers={b"/test.Echo/Shout": shout}), test)


def test_a_stream_that_the_server_ends_first() -> None:
    def enough(call: StreamCall) -> None:
        call.on_message = lambda message: call.fail(Status.OUT_OF_RANGE, "enough")

    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream("/test.Echo/Enough")(timeout=PATIENCE)
        await call.write(b"x")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert caught.value.details() == "enough"

    serve(Server({}, stream_handlers={b"/test.Echo/Enough": enough}), test)


def test_drain_under_calls_of_grpcio() -> None:
    """Two servers on one port, as in a rolling update: no call fails when the first one goes."""

    async def main() -> None:
        servers = [Server({b"/test.Echo/Echo": echo}) for _ in range(2)]
        port = await servers[0].listen_tcp("127.0.0.1", 0, reuse_port=True)
        options = [("grpc.max_receive_message_length", -1), ("grpc.initial_reconnect_backoff_ms", 100)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.unary_unary(ECHO)
            done = 0

            async def ask() -> None:
                nonlocal done
                for i in range(400):
                    assert await call(b"%d" % i, timeout=PATIENCE) == b"%d" % i
                    done += 1

            asking = [asyncio.create_task(ask()) for _ in range(10)]
            await until(lambda: done > 500)
            await servers[1].listen_tcp("127.0.0.1", port, reuse_port=True)
            await servers[0].drain(PATIENCE)
            await asyncio.gather(*asking)
        assert done == 4000
        assert servers[1].stats.calls[Status.OK] > 0
        await servers[1].close()

    run(main, virtual=False)


def test_grpcio_over_tls(certificates: Certificates) -> None:
    async def main() -> None:
        context = server_context(certificates.server, certificates.server_key, client_ca=certificates.ca)
        server = Server({b"/test.Echo/Echo": echo}, tls=context)
        port = await server.listen_tcp("127.0.0.1", 0)
        credentials = grpc.ssl_channel_credentials(
            certificates.ca.read_bytes(),
            certificates.client_key.read_bytes(),
            certificates.client.read_bytes(),
        )
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            assert await channel.unary_unary(ECHO)(b"x" * 100_000, timeout=PATIENCE) == b"x" * 100_000
        await server.close()

    run(main, virtual=False)


def test_keepalive_pings_of_grpcio_are_tolerated() -> None:
    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(ECHO)
        assert await call(b"x", timeout=PATIENCE) == b"x"
        await asyncio.sleep(0.5)
        assert await call(b"x", timeout=PATIENCE) == b"x"

    options = [
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    server = serve(Server({b"/test.Echo/Echo": echo}), test, options=options)
    assert server.stats.connections_total == 1


# -- our channel asks grpcio -------------------------------------------------------------------------------


class Service(grpc.GenericRpcHandler):
    """Methods of a grpcio server by name."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[str, Any], ...]] = []
        self.remaining: list[float] = []
        self.cancelled = asyncio.Event()

    def service(self, details: Any) -> Any:
        method = getattr(self, details.method.rpartition("/")[2].lower(), None)
        return None if method is None else grpc.unary_unary_rpc_method_handler(method)

    async def echo(self, request: bytes, context: Any) -> bytes:
        self.seen.append(tuple(context.invocation_metadata()))
        context.set_trailing_metadata((("cost", "3"), ("blob-bin", b"\xff\x00")))
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "schon da: \u20ac %", (("why", "so"),))
        raise AssertionError("abort returned")

    async def hold(self, request: bytes, context: Any) -> bytes:
        self.remaining.append(context.time_remaining())
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    async def packed(self, request: bytes, context: Any) -> bytes:
        context.set_compression(grpc.Compression.Gzip)
        return request


@contextlib.asynccontextmanager
async def grpcio_server(
    target: str = "127.0.0.1:0", *, options: Any = (), credentials: Any = None
) -> AsyncIterator[tuple[Service, str, Any]]:
    service = Service()
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=[*limits, *options])
    server.add_generic_rpc_handlers((service,))
    if credentials is not None:
        port = server.add_secure_port(target, credentials)
    else:
        port = server.add_insecure_port(target)
    await server.start()
    try:
        yield service, target if target.startswith("unix:") else f"127.0.0.1:{port}", server
    finally:
        await server.stop(0)


def ask(test: Callable[[Channel, Service], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def main() -> None:
        async with grpcio_server() as (service, target, _):
            channel = Channel(target, settings=ChannelSettings(**settings))
            try:
                await test(channel, service)
            finally:
                await channel.close()

    run(main, virtual=False)


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 20 * MiB])
def test_echo_by_grpcio(size: int) -> None:
    async def test(channel: Channel, service: Service) -> None:
        body = bytes(i & 0xFF for i in range(1013)) * (size // 1013 + 1)
        assert await channel.unary(ECHO, body[:size], timeout=PATIENCE) == body[:size]

    ask(test)


def test_many_calls_to_grpcio() -> None:
    async def test(channel: Channel, service: Service) -> None:
        bodies = [b"%d" % i for i in range(500)]
        answers = await asyncio.gather(*(channel.unary(ECHO, body, timeout=PATIENCE) for body in bodies))
        assert answers == bodies

    ask(test)


def test_metadata_to_grpcio() -> None:
    async def test(channel: Channel, service: Service) -> None:
        replies: list[Reply] = []
        method = channel.method(ECHO, ((b"user-id", b"u 1"), (b"blob-bin", b"\x00\xff,")))
        channel.start(method, b"x", PATIENCE, replies.append)
        await until(lambda: bool(replies))
        seen = dict(service.seen[0])
        assert seen["user-id"] == "u 1"
        assert seen["blob-bin"] == b"\x00\xff,"
        assert set(replies[0].trailing) == {(b"cost", b"3"), (b"blob-bin", b"\xff\x00")}

    ask(test)


def test_statuses_of_grpcio() -> None:
    async def test(channel: Channel, service: Service) -> None:
        with pytest.raises(RpcError) as caught:
            await channel.unary("/test.Echo/Fail", b"", timeout=PATIENCE)
        assert caught.value.status is Status.ALREADY_EXISTS
        assert caught.value.message == "schon da: \u20ac %"
        assert (b"why", b"so") in caught.value.trailing
        with pytest.raises(RpcError) as caught:
            await channel.unary("/test.Echo/None", b"x" * 200_000, timeout=PATIENCE)
        assert caught.value.status is Status.UNIMPLEMENTED

    ask(test)


def test_deadline_and_cancel_at_grpcio() -> None:
    async def test(channel: Channel, service: Service) -> None:
        await channel.connect(PATIENCE)
        with pytest.raises(RpcError) as caught:
            await channel.unary("/test.Echo/Hold", b"", timeout=0.2)
        assert caught.value.status is Status.DEADLINE_EXCEEDED
        assert 0 < service.remaining[0] <= 0.2
        await asyncio.wait_for(service.cancelled.wait(), PATIENCE)
        service.cancelled.clear()
        replies: list[Reply] = []
        call = channel.start(channel.method("/test.Echo/Hold"), b"", None, replies.append)
        await until(lambda: len(service.remaining) == 2)
        call.cancel()
        await asyncio.wait_for(service.cancelled.wait(), PATIENCE)
        assert replies[0].status is Status.CANCELLED

    ask(test)


def test_grpcio_does_not_compress_what_was_not_asked_for() -> None:
    async def test(channel: Channel, service: Service) -> None:
        assert await channel.unary("/test.Echo/Packed", b"x" * 10_000, timeout=PATIENCE) == b"x" * 10_000

    ask(test)


def test_compressed_answers_of_grpcio() -> None:
    async def test(channel: Channel, service: Service) -> None:
        method = channel.method("/test.Echo/Packed")
        method.headers += ((b"grpc-accept-encoding", b"identity,deflate,gzip"),)
        replies: list[Reply] = []
        for body in (b"x" * 10_000, b"", bytes(range(256)) * 4000):
            channel.start(method, body, PATIENCE, replies.append)
            await until(lambda: bool(replies))
            reply = replies.pop()
            assert reply.body == body

    ask(test)


def test_grpcio_allows_few_streams() -> None:
    async def main() -> None:
        async with grpcio_server(options=[("grpc.max_concurrent_streams", 5)]) as (_, target, _server):
            channel = Channel(target)
            bodies = [b"%d" % i for i in range(200)]
            answers = await asyncio.gather(*(channel.unary(ECHO, body, timeout=PATIENCE) for body in bodies))
            assert answers == bodies
            await channel.close()

    run(main, virtual=False)


def test_grpcio_restarts() -> None:
    """A server goes and another one comes on the same port: calls in between fail fast, then all is well."""

    async def main() -> None:
        async with grpcio_server() as (_, target, _server):
            channel = Channel(target)
            assert await channel.unary(ECHO, b"1", timeout=PATIENCE) == b"1"
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(RpcError, match="UNAVAILABLE"):
                while True:
                    await channel.unary(ECHO, b"2", timeout=PATIENCE)
        async with grpcio_server(target):
            await asyncio.wait_for(_until_served(channel), PATIENCE)
            await channel.close()

    run(main, virtual=False)


async def _until_served(channel: Channel) -> None:
    while True:
        try:
            assert await channel.unary(ECHO, b"3", timeout=PATIENCE) == b"3"
        except RpcError:
            await asyncio.sleep(0.02)
        else:
            return


def test_graceful_stop_of_grpcio_loses_no_call() -> None:
    async def main() -> None:
        async with grpcio_server() as (_, target, server):
            channel = Channel(target, settings=ChannelSettings(wait_for_ready=True))
            await channel.connect(PATIENCE)
            calls = [asyncio.create_task(channel.unary(ECHO, b"%d" % i, timeout=PATIENCE)) for i in range(50)]
            stopping = asyncio.create_task(server.stop(PATIENCE))
            await asyncio.sleep(0)
            async with grpcio_server(target):
                assert await asyncio.gather(*calls) == [b"%d" % i for i in range(50)]
                await stopping
                await channel.close()

    run(main, virtual=False)


def test_a_channel_to_grpcio_over_tls_and_unix(certificates: Certificates, short_dir: Any) -> None:
    async def main() -> None:
        pair = (certificates.server_key.read_bytes(), certificates.server.read_bytes())
        credentials = grpc.ssl_server_credentials([pair])
        async with grpcio_server(credentials=credentials) as (_, target, _server):
            channel = Channel(target, tls=client_context(ca=certificates.ca))
            assert await channel.unary(ECHO, b"tls", timeout=PATIENCE) == b"tls"
            await channel.close()
        async with grpcio_server(f"unix:{short_dir}/g.sock") as (_, target, _server):
            channel = Channel(target)
            assert await channel.unary(ECHO, b"unix", timeout=PATIENCE) == b"unix"
            await channel.close()

    run(main, virtual=False)


def test_limits_of_the_server_are_advertised_to_grpcio() -> None:
    """grpcio queues calls over MAX_CONCURRENT_STREAMS itself; none is refused."""
    holder = Holder()

    async def test(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary("/test.Echo/Hold")
        calls = [asyncio.ensure_future(call(b"", timeout=PATIENCE)) for _ in range(10)]
        for done in range(10):
            await until(lambda done=done: len(holder.calls) == min(done + 3, 10))  # type: ignore[misc]
            holder.calls[done].respond(b"")
        await asyncio.gather(*calls)

    server = serve(Server({b"/test.Echo/Hold": holder}, limits=Limits(streams=3)), test)
    assert server.stats.limits == {}


# -- h2load: a load on loopback, by another implementation of HTTP/2 ----------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(("connections", "streams"), [(1, 1), (10, 100)])
def test_h2load(connections: int, streams: int, short_dir: Any) -> None:
    body = short_dir / "body"
    body.write_bytes(b"\0\0\0\0\x64" + bytes(100))

    async def main() -> None:
        server = Server({b"/test.Echo/Echo": echo})
        async with listening(server) as target:
            process = await asyncio.create_subprocess_exec(
                "h2load", "-n", "5000", "-c", str(connections), "-m", str(streams), "-d", str(body),
                "-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{target}{ECHO}",
                stdout=subprocess.PIPE,
            )  # fmt: skip
            out, _ = await process.communicate()
        assert b"5000 succeeded, 0 failed, 0 errored, 0 timeout" in out
        assert server.stats.calls[Status.OK] == 5000
        assert server.stats.limits == {}
        assert server.stats.connections == 0

    run(main, virtual=False)


# -- a server of grpc-go -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_calls_to_grpc_go() -> None:
    """etcd is one: its header compression, its frames, its windows."""
    keys = [b"key %03d" % number for number in range(100)]
    large = bytes(1_000_000)

    async def main(target: str) -> None:
        channel = Channel(target)

        async def call(method: str, request: Message) -> bytes:
            return await channel.unary(
                f"/etcdserverpb.KV/{method}", request.SerializeToString(), timeout=PATIENCE
            )

        await asyncio.gather(*(call("Put", etcd_pb2.PutRequest(key=key, value=key * 50)) for key in keys))
        await call("Put", etcd_pb2.PutRequest(key=b"large", value=large))
        for _ in range(3):
            found = await asyncio.gather(*(call("Range", etcd_pb2.RangeRequest(key=key)) for key in keys))
            values = [etcd_pb2.RangeResponse.FromString(answer).kvs[0].value for answer in found]
            assert values == [key * 50 for key in keys]
            answer = await call("Range", etcd_pb2.RangeRequest(key=b"large"))
            assert etcd_pb2.RangeResponse.FromString(answer).kvs[0].value == large
        with pytest.raises(RpcError, match="INVALID_ARGUMENT: etcdserver: key is not provided"):
            await call("Range", etcd_pb2.RangeRequest())
        with pytest.raises(RpcError, match="INVALID_ARGUMENT: etcdserver: request is too large"):
            await call("Put", etcd_pb2.PutRequest(key=b"too large", value=bytes(1_600_000)))
        with pytest.raises(RpcError, match="UNIMPLEMENTED: unknown method Nothing"):
            await call("Nothing", etcd_pb2.RangeRequest())
        await channel.close()

    with EtcdServer().start() as etcd:
        run(lambda: main(etcd.address), virtual=False)
