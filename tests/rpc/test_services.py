"""Health and reflection, asked by the stubs of grpcio."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, timestamp_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from rpc.health import SERVICE, Health
from rpc.reflection import Reflection
from rpc.server import Server
from tests.rpc.support import PATIENCE, listening, run, until

Serving = health_pb2.HealthCheckResponse


def with_server(server: Server, test: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with listening(server) as target:
            await test(target)
        assert server.stats.streams == 0

    run(main, virtual=False)


# -- health ------------------------------------------------------------------------------------------------


def health_server(health: Health) -> Server:
    return Server(health.handlers, stream_handlers=health.stream_handlers)


def test_check() -> None:
    health = Health()
    health.set("a", True)

    async def test(target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def check(service: str) -> int:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
                return int(answer.status)

            assert await check("a") == Serving.SERVING
            assert await check("") == Serving.NOT_SERVING  # until it is set
            health.set("", True)
            health.set("a", False)
            listed = await stub.List(health_pb2.HealthListRequest(), timeout=PATIENCE)
            states = {name: state.status for name, state in listed.statuses.items()}
            assert states == {"": Serving.SERVING, "a": Serving.NOT_SERVING}
            assert await check("") == Serving.SERVING
            assert await check("a") == Serving.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check("b")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert caught.value.details() == "unknown service 'b'"

    with_server(health_server(health), test)


def test_watch() -> None:
    health = Health()

    async def test(target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="a"), timeout=PATIENCE)
            states: AsyncIterator[Any] = aiter(watch)
            assert (await anext(states)).status == Serving.SERVICE_UNKNOWN
            health.set("a", True)
            assert (await anext(states)).status == Serving.SERVING
            health.set("a", True)  # no change, nothing is sent
            health.set("b", True)
            health.set("a", False)
            assert (await anext(states)).status == Serving.NOT_SERVING
            assert "1 watchers" in repr(health)
            watch.cancel()
            await until(lambda: "0 watchers" in repr(health))

    with_server(health_server(health), test)


def test_health_of_bad_requests() -> None:
    async def test(target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            for call in (
                channel.unary_unary(f"/{SERVICE}/Check"),
                channel.unary_unary(f"/{SERVICE}/Watch"),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"\xff", timeout=PATIENCE)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    with_server(health_server(Health()), test)


# -- reflection --------------------------------------------------------------------------------------------


def sample_files() -> list[Any]:
    """A file with everything that has a name, and one that imports it."""
    pool = descriptor_pool.DescriptorPool()
    stamp = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(stamp)
    base = descriptor_pb2.FileDescriptorProto(name="base.proto", package="pkg", syntax="proto2")
    inner = base.message_type.add(name="Outer")
    inner.nested_type.add(name="Inner").field.add(name="deep", number=1, label=1, type=5)
    inner.field.add(name="field", number=1, label=1, type=5, oneof_index=0)
    inner.oneof_decl.add(name="choice")
    inner.extension_range.add(start=100, end=200)
    inner.enum_type.add(name="Kind").value.add(name="KIND", number=0)
    base.enum_type.add(name="Color").value.add(name="RED", number=0)
    base.extension.add(name="extra", number=101, label=1, type=5, extendee=".pkg.Outer")
    top = descriptor_pb2.FileDescriptorProto(
        name="top.proto", dependency=["base.proto", "google/protobuf/timestamp.proto"], syntax="proto3"
    )
    service = top.service.add(name="Service")
    service.method.add(name="Do", input_type=".pkg.Outer", output_type=".google.protobuf.Timestamp")
    for proto in (stamp, base, top):
        pool.Add(proto)  # type: ignore[no-untyped-call]
    return [pool.FindFileByName("top.proto")]


def reflection_server() -> Server:
    return Server({}, stream_handlers=Reflection(sample_files(), ["grpc.health.v1.Health"]).stream_handlers)


def names(response: reflection_pb2.ServerReflectionResponse) -> set[str]:
    files = response.file_descriptor_response.file_descriptor_proto
    return {descriptor_pb2.FileDescriptorProto.FromString(file).name for file in files}


BASE = {"base.proto"}
ALL = {"base.proto", "top.proto", "google/protobuf/timestamp.proto"}


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("Service", ALL),
        ("Service.Do", ALL),
        ("pkg.Outer", BASE),
        ("pkg.Outer.field", BASE),
        ("pkg.Outer.choice", BASE),
        ("pkg.Outer.Inner.deep", BASE),
        ("pkg.Outer.Kind", BASE),
        ("pkg.Outer.KIND", BASE),
        ("pkg.Color", BASE),
        ("pkg.RED", BASE),
        ("pkg.extra", BASE),
        ("google.protobuf.Timestamp", {"google/protobuf/timestamp.proto"}),
    ],
)
def test_symbols(symbol: str, expected: set[str]) -> None:
    reflection = Reflection(sample_files())
    answer = reflection.answer(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
    assert names(answer) == expected


def test_other_questions() -> None:
    reflection = Reflection(sample_files())
    ask = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(containing_type="pkg.Outer", extension_number=101)
    assert names(reflection.answer(ask(file_by_filename="base.proto"))) == BASE
    assert names(reflection.answer(ask(file_containing_extension=extension))) == BASE
    numbers = reflection.answer(ask(all_extension_numbers_of_type="pkg.Outer")).all_extension_numbers_response
    assert list(numbers.extension_number) == [101]
    extension.extension_number = 102
    for question in (
        ask(file_by_filename="none.proto"),
        ask(file_containing_symbol="none"),
        ask(file_containing_extension=extension),
        ask(all_extension_numbers_of_type="none"),
    ):
        assert reflection.answer(question).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert reflection.answer(ask()).error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_reflection_of_v1alpha_by_its_own_client() -> None:
    async def test(target: str) -> None:
        def ask() -> None:
            with grpc.insecure_channel(target) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                assert set(database.get_services()) == {"Service", "grpc.health.v1.Health"}
                pool = descriptor_pool.DescriptorPool(database)
                method = pool.FindServiceByName("Service").FindMethodByName("Do")
                assert method is not None
                assert method.input_type.full_name == "pkg.Outer"

        await asyncio.to_thread(ask)

    with_server(reflection_server(), test)


def test_reflection_of_v1_with_several_questions() -> None:
    async def test(target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            call = channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(timeout=PATIENCE)
            for i in range(20):
                await call.write(
                    reflection_pb2.ServerReflectionRequest(host=f"h{i}", file_by_filename="base.proto")
                )
                answer = await call.read()
                assert answer.valid_host == answer.original_request.host == f"h{i}"
                assert names(answer) == BASE
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    with_server(reflection_server(), test)


def test_bad_questions() -> None:
    async def test(target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            ask = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
            call = ask(timeout=PATIENCE)
            await call.write(b"\xff\xff")
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        async with grpc.aio.insecure_channel(target) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(timeout=PATIENCE)
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK

    with_server(reflection_server(), test)


def test_the_services_do_not_import_grpc() -> None:
    """grpcio costs 20 MB and its threads; only its generated messages are wanted."""
    code = "import rpc.health, rpc.reflection, rpc.client, rpc.server, sys; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
