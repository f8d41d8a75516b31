"""What every transport must do alike: memory, Unix socket, TCP, TLS."""

from __future__ import annotations

import asyncio

import pytest

from rpc.calls import ServerCall, StreamCall
from rpc.client import ChannelSettings, Reply
from rpc.status import RpcError, Status
from tests.rpc.support import PATIENCE, Holder, World, echo, until

ECHO = "/test.Echo/Echo"
HANDLERS = {b"/test.Echo/Echo": echo}


@pytest.mark.parametrize("size", [0, 1, 100, 16_379, 16_384, 65_535, 1_000_000, 4 * 1024 * 1024])
def test_echo(world: World, size: int) -> None:
    body = bytes(i & 0xFF for i in range(997)) * (size // 997 + 1)
    body = body[:size]

    async def main() -> None:
        async with world.serve(HANDLERS) as served:
            channel = served.channel()
            assert await channel.unary(ECHO, body, timeout=PATIENCE) == body
            assert served.server.stats.calls[Status.OK] == 1

    world.run(main)


def test_bodies_in_parts(world: World) -> None:
    small, large = (b"ab", b"", b"cde"), (b"x" * 40_000, b"y", b"z" * 50_000)

    def parts(call: ServerCall) -> None:
        call.respond(large if call.body == b"abcde" else b"wrong")

    async def main() -> None:
        async with world.serve({b"/test.Echo/Parts": parts} | HANDLERS) as served:
            channel = served.channel()
            assert await channel.unary("/test.Echo/Parts", small, timeout=PATIENCE) == b"".join(large)
            assert await channel.unary(ECHO, large, timeout=PATIENCE) == b"".join(large)

    world.run(main)


def test_many_calls_at_once_on_one_connection(world: World) -> None:
    async def main() -> None:
        async with world.serve(HANDLERS) as served:
            channel = served.channel()
            bodies = [b"%d" % i * (i % 50) for i in range(1000)]
            answers = await asyncio.gather(*(channel.unary(ECHO, body, timeout=PATIENCE) for body in bodies))
            assert answers == bodies
            assert served.server.stats.connections_total <= ChannelSettings().max_connections_per_address

    world.run(main)


def test_large_bodies_both_ways_at_once(world: World) -> None:
    """More than any buffer on the way holds: if both ends waited for the other to read, this would hang."""

    async def main() -> None:
        async with world.serve(HANDLERS) as served:
            channel = served.channel()
            bodies = [bytes([i]) * 2_000_000 for i in range(40)]
            answers = await asyncio.gather(*(channel.unary(ECHO, body, timeout=PATIENCE) for body in bodies))
            assert answers == bodies
            assert served.server.stats.limits == {}

    world.run(main)


def test_statuses_messages_and_trailing_metadata(world: World) -> None:
    def fail(call: ServerCall) -> None:
        call.fail(Status(int(call.body)), "größer als 100 %\n", trailing=((b"why-bin", b"\x00\xff"),))

    async def main() -> None:
        async with world.serve({b"/test.Echo/Fail": fail}) as served:
            channel = served.channel()
            for status in Status:
                if status is Status.OK:
                    continue
                with pytest.raises(RpcError) as caught:
                    await channel.unary("/test.Echo/Fail", b"%d" % status, timeout=PATIENCE)
                assert caught.value.status is status
                assert caught.value.message == "größer als 100 %\n"
                assert caught.value.trailing == ((b"why-bin", b"\x00\xff"),)
                assert not caught.value.retriable

    world.run(main)


def test_metadata_both_ways(world: World) -> None:
    sent = ((b"user-id", b"u 1"), (b"trace-bin", b"\x00,\xff"), (b"user-id", b"u 2"))

    def answer(call: ServerCall) -> None:
        assert call.metadata == sent
        assert call.path == b"/test.Echo/Meta"
        call.respond(call.body, trailing=((b"a", b"1"), (b"a", b"2"), (b"b-bin", b"")))

    async def main() -> None:
        async with world.serve({b"/test.Echo/Meta": answer}) as served:
            channel = served.channel()
            replies: list[Reply] = []
            channel.start(channel.method("/test.Echo/Meta", sent), b"x", PATIENCE, replies.append)
            await until(lambda: bool(replies))
            assert replies[0].status is Status.OK
            assert replies[0].body == b"x"
            assert replies[0].trailing == ((b"a", b"1"), (b"a", b"2"), (b"b-bin", b""))

    world.run(main)


def test_unknown_methods(world: World) -> None:
    async def main() -> None:
        async with world.serve(HANDLERS) as served:
            channel = served.channel()
            for path, message in (
                ("/test.Echo/Nope", "unknown method Nope for service test.Echo"),
                ("/test.Nope/Echo", "unknown service test.Nope"),
            ):
                with pytest.raises(RpcError, match=message) as caught:
                    await channel.unary(path, b"x" * 100_000, timeout=PATIENCE)
                assert caught.value.status is Status.UNIMPLEMENTED
            assert await channel.unary(ECHO, b"still there", timeout=PATIENCE) == b"still there"

    world.run(main)


def test_deadline_on_both_sides(world: World) -> None:
    holder = Holder()

    async def main() -> None:
        async with world.serve({b"/test.Echo/Hold": holder}) as served:
            channel = served.channel()
            await channel.connect(PATIENCE)
            start = asyncio.get_running_loop().time()
            with pytest.raises(RpcError) as caught:
                await channel.unary("/test.Echo/Hold", b"x", timeout=0.05)
            assert caught.value.status is Status.DEADLINE_EXCEEDED
            assert round(asyncio.get_running_loop().time() - start, 6) >= 0.05  # to the ms of uvloop's clock
            (call,) = holder.calls
            assert call.deadline is not None
            await until(lambda: holder.cancelled == [call])
            assert call.over
            call.respond(b"too late")
            call.fail(Status.INTERNAL, "too late")

    world.run(main)


def test_the_server_ends_calls_on_time_by_itself(world: World) -> None:
    """The client gives the server a short timeout and waits for longer itself."""
    holder = Holder()

    async def main() -> None:
        async with world.serve({b"/test.Echo/Hold": holder}) as served:
            channel = served.channel()
            method = channel.method("/test.Echo/Hold")
            method.headers += ((b"grpc-timeout", b"50m"),)
            replies: list[Reply] = []
            channel.start(method, b"x", None, replies.append)
            await until(lambda: bool(replies))
            assert replies[0].status is Status.DEADLINE_EXCEEDED
            assert len(holder.cancelled) == 1
            assert served.server.stats.calls[Status.DEADLINE_EXCEEDED] == 1

    world.run(main)


def test_cancel(world: World) -> None:
    holder = Holder()

    async def main() -> None:
        async with world.serve({b"/test.Echo/Hold": holder} | HANDLERS) as served:
            channel = served.channel()
            replies: list[Reply] = []
            call = channel.start(channel.method("/test.Echo/Hold"), b"x", None, replies.append)
            await until(lambda: bool(holder.calls))
            call.cancel()
            assert replies == []  # never from within
            call.cancel()
            await until(lambda: bool(holder.cancelled))
            assert [reply.status for reply in replies] == [Status.CANCELLED]
            assert served.server.stats.calls[Status.CANCELLED] == 1
            assert await channel.unary(ECHO, b"ok", timeout=PATIENCE) == b"ok"

    world.run(main)


def test_cancelling_the_awaiting_task_cancels_the_call(world: World) -> None:
    holder = Holder()

    async def main() -> None:
        async with world.serve({b"/test.Echo/Hold": holder}) as served:
            channel = served.channel()
            task = asyncio.create_task(channel.unary("/test.Echo/Hold", b"x"))
            await until(lambda: bool(holder.calls))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: bool(holder.cancelled))

    world.run(main)


def test_too_large_a_request(world: World) -> None:
    async def main() -> None:
        async with world.serve(HANDLERS) as served:
            channel = served.channel()
            with pytest.raises(
                RpcError, match="message of 4194305 bytes is larger than the limit of 4194304"
            ):
                await channel.unary(ECHO, bytes(4 * 1024 * 1024 + 1), timeout=PATIENCE)
            assert await channel.unary(ECHO, b"ok", timeout=PATIENCE) == b"ok"

    world.run(main)


def test_too_large_an_answer(world: World) -> None:
    async def main() -> None:
        async with world.serve(HANDLERS) as served:
            channel = served.channel(ChannelSettings(max_message_bytes=1000))
            with pytest.raises(RpcError, match="message of 1001 bytes") as caught:
                await channel.unary(ECHO, bytes(1001), timeout=PATIENCE)
            assert caught.value.status is Status.RESOURCE_EXHAUSTED
            assert await channel.unary(ECHO, bytes(1000), timeout=PATIENCE) == bytes(1000)

    world.run(main)


def test_an_early_answer_ends_the_request(world: World) -> None:
    """The server refuses after the headers; the client need not send its megabytes."""

    async def main() -> None:
        async with world.serve(HANDLERS) as served:
            channel = served.channel(ChannelSettings(stream_window_bytes=70_000))
            for _ in range(20):
                with pytest.raises(RpcError) as caught:
                    await channel.unary("/test.Echo/Nope", bytes(20_000_000), timeout=PATIENCE)
                assert caught.value.status is Status.UNIMPLEMENTED
            assert served.server.stats.connections_total == 1

    world.run(main)


def test_streaming_calls(world: World) -> None:
    def double(call: StreamCall) -> None:
        call.on_message = lambda message: call.send(message * 2)
        call.on_end = lambda: call.end(((b"done", b"yes"),))

    async def main() -> None:
        async with world.serve({}, stream_handlers={b"/test.Echo/Double": double}) as served:
            channel = served.channel()  # a unary client sees a stream of one message each way
            assert await channel.unary("/test.Echo/Double", b"ab", timeout=PATIENCE) == b"abab"

    world.run(main)


def test_a_mistake_in_a_handler_costs_one_call(memory: World) -> None:
    def broken(call: ServerCall) -> None:
        raise KeyError("secret")

    async def main() -> None:
        reported: list[dict[str, object]] = []
        async with memory.serve({b"/test.Echo/Broken": broken} | HANDLERS) as served:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: reported.append(context))
            channel = served.channel()
            with pytest.raises(RpcError, match="INTERNAL: handler failed: KeyError"):
                await channel.unary("/test.Echo/Broken", b"x")
            assert await channel.unary(ECHO, b"x") == b"x"
        assert len(reported) == 1
        assert isinstance(reported[0]["exception"], KeyError)

    memory.run(main)


def test_drain_loses_no_call(world: World) -> None:
    holder = Holder()

    async def main() -> None:
        async with world.serve({b"/test.Echo/Hold": holder} | HANDLERS) as served:
            channel = served.channel()
            held = asyncio.create_task(channel.unary("/test.Echo/Hold", b"x", timeout=PATIENCE))
            await until(lambda: bool(holder.calls))
            draining = asyncio.create_task(served.server.drain(PATIENCE))
            await until(lambda: not repr(channel).count("1 ready"))
            assert not draining.done()
            holder.calls[0].respond(b"in time")
            assert await held == b"in time"
            await asyncio.wait_for(draining, PATIENCE)
            assert served.server.stats.connections == 0

    world.run(main)


def test_drain_gives_up_after_its_time(world: World) -> None:
    holder = Holder()

    async def main() -> None:
        async with world.serve({b"/test.Echo/Hold": holder}) as served:
            channel = served.channel()
            held = asyncio.create_task(channel.unary("/test.Echo/Hold", b"x", timeout=PATIENCE))
            await until(lambda: bool(holder.calls))
            assert await served.server.drain(0.1) == 1
            with pytest.raises(RpcError) as caught:
                await held
            assert caught.value.status is Status.UNAVAILABLE
            assert not caught.value.retriable
            assert len(holder.cancelled) == 1

    world.run(main)


def test_closing_the_channel_ends_its_calls(world: World) -> None:
    holder = Holder()

    async def main() -> None:
        async with world.serve({b"/test.Echo/Hold": holder}) as served:
            channel = served.channel()
            held = asyncio.create_task(channel.unary("/test.Echo/Hold", b"x"))
            await until(lambda: bool(holder.calls))
            await channel.close()
            with pytest.raises(RpcError, match="UNAVAILABLE"):
                await held
            with pytest.raises(RpcError, match=r"UNAVAILABLE: channel to .* is closed"):
                await channel.unary(ECHO, b"x")
            await until(lambda: bool(holder.cancelled))

    world.run(main)


def test_closing_with_grace_lets_calls_finish(world: World) -> None:
    holder = Holder()

    async def main() -> None:
        async with world.serve({b"/test.Echo/Hold": holder}) as served:
            channel = served.channel()
            held = asyncio.create_task(channel.unary("/test.Echo/Hold", b"x"))
            await until(lambda: bool(holder.calls))
            closing = asyncio.create_task(channel.close(PATIENCE))
            await asyncio.sleep(0.01)
            holder.calls[0].respond(b"done")
            assert await held == b"done"
            await asyncio.wait_for(closing, PATIENCE)

    world.run(main)
