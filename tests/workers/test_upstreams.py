"""The upstreams of a worker, by what a server sees of their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from components.compile import CompileError
from components.predator import Predator
from dag.component import Endpoint, Reply
from dag.plan import Plan
from rpc.calls import ServerCall
from rpc.server import Server
from rpc.status import Status
from shared.board import Board
from shared.metrics import CACHE_COALESCED, UPSTREAM_CALLS, UPSTREAM_LATENCY, UPSTREAM_ROWS
from shared.settings import NumerixSettings, OnfsSettings, PredatorSettings, Settings
from tests.components.running import compiled, config_of
from workers.coalescing import Coalescing
from workers.upstreams import COMPUTE, FETCH, INFER, ChannelEndpoint, WorkerUpstreams, targets_of, with_port

PATIENCE = 60.0


class World:
    """A server that stands for all upstreams, and a worker's ways to it."""

    def __init__(self, port: int, seen: list[tuple[bytes, dict[bytes, bytes], bytes]]) -> None:
        self.port = port
        self.seen = seen
        self.board = Board("worker-0")
        self.upstreams = WorkerUpstreams(
            Settings(
                name="shop",
                onfs=OnfsSettings(host="127.0.0.1", port=port, caller_id="me", caller_token="secret"),
                predator=PredatorSettings(port=port, caller_id="p", caller_token="t"),
                numerix=NumerixSettings(host="127.0.0.1", port=port),
            ),
            self.board,
        )

    async def call(self, endpoint: Endpoint | None, *body: bytes, timeout: float = PATIENCE) -> Reply:  # noqa: ASYNC109
        assert endpoint is not None
        done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        endpoint.start(body, timeout, done.set_result, len(body))
        assert not done.done()  # later, never from within
        return await asyncio.wait_for(done, PATIENCE)


Story = Callable[[World], Coroutine[Any, Any, None]]


def tell(story: Story) -> None:
    seen: list[tuple[bytes, dict[bytes, bytes], bytes]] = []

    def answer(call: ServerCall) -> None:
        seen.append((call.path, dict(call.metadata), call.body))
        if call.body == b"fail":
            call.fail(Status.UNAVAILABLE, "as asked")
        else:
            call.respond(b"re: " + call.body)

    async def main() -> None:
        server = Server({path.encode(): answer for path in (FETCH, INFER, COMPUTE)})
        world = World(await server.listen_tcp("127.0.0.1", 0), seen)
        try:
            await story(world)
        finally:
            await world.upstreams.close()
            await server.close()

    asyncio.run(main())


def test_calls_carry_the_credentials_of_their_service() -> None:
    async def story(world: World) -> None:
        for endpoint, path, headers in (
            (
                world.upstreams.onfs(),
                FETCH,
                {b"online-feature-store-caller-id": b"me", b"online-feature-store-auth-token": b"secret"},
            ),
            (
                world.upstreams.predator("127.0.0.1"),
                INFER,
                {b"predator-caller-id": b"p", b"predator-auth-token": b"t"},
            ),
            (world.upstreams.numerix(), COMPUTE, {b"numerix-caller-id": b"shop"}),
        ):
            reply = await world.call(endpoint, b"head ", b"and body")
            assert (reply.status, reply.body) == (0, b"re: head and body")
            seen_path, metadata, _ = world.seen.pop()
            assert seen_path == path.encode()
            assert {name: metadata.get(name) for name in headers} == headers

    tell(story)


def test_methods_of_one_address_share_a_channel_and_endpoints_are_kept() -> None:
    async def story(world: World) -> None:
        upstreams = world.upstreams
        onfs, predator = upstreams.onfs(), upstreams.predator(f"127.0.0.1:{world.port}")
        assert upstreams.onfs() is onfs
        assert upstreams.predator("127.0.0.1") is predator
        assert isinstance(onfs, Coalescing)
        assert isinstance(onfs.endpoint, ChannelEndpoint)
        assert isinstance(predator, ChannelEndpoint)
        assert onfs.endpoint.channel is predator.channel
        other = upstreams.predator("127.0.0.1:1")
        assert isinstance(other, ChannelEndpoint)
        assert other.channel is not predator.channel
        assert repr(upstreams) == "<WorkerUpstreams 2 channels>"

    tell(story)


def plan_of(world: World, *models: str) -> Plan:
    """A plan with one model that is called at each of these endpoints in turn."""
    share = 100 // len(models)
    model = {
        "component": "rank",
        "model_name": "ranker",
        "model_end_points": [{"endpoint": endpoint, "percentage": share} for endpoint in models],
        "inputs": [{"name": "in", "features": ["x"], "shape": [1], "data_type": "FP32"}],
        "outputs": [{"name": "out", "model_scores": ["s"], "model_scores_dims": [[1]], "data_type": "FP32"}],
    }
    return compiled(config_of(predators=[model]), upstreams=world.upstreams)


def test_a_channel_that_no_plan_uses_is_closed() -> None:
    async def story(world: World) -> None:
        kept, dropped = plan_of(world, "127.0.0.1"), plan_of(world, "127.0.0.1:1")
        assert world.upstreams.close_unused([kept, dropped]) == []
        assert world.upstreams.close_unused([kept]) == ["127.0.0.1:1"]
        assert world.upstreams.close_unused([kept]) == []
        again = plan_of(world, "127.0.0.1:1")
        assert targets_of(again)["127.0.0.1:1"] is not targets_of(dropped)["127.0.0.1:1"]
        (reply,) = [await world.call(route.endpoint, b"x") for route in model_of(kept).routes]
        assert (reply.status, reply.body) == (0, b"re: x")

    tell(story)


def model_of(plan: Plan) -> Predator:
    (found,) = [component for component in plan.components if isinstance(component, Predator)]
    return found


def test_a_plan_knows_its_targets() -> None:
    async def story(world: World) -> None:
        assert set(targets_of(plan_of(world, "a", "b:7"))) == {f"a:{world.port}", "b:7"}

    tell(story)


def test_a_failing_call_is_a_reply() -> None:
    async def story(world: World) -> None:
        reply = await world.call(world.upstreams.predator("127.0.0.1:1"), b"x", timeout=0.05)
        assert reply.status in (4, 14)
        assert reply.message

    tell(story)


def test_hosts_that_are_not_configured() -> None:
    upstreams = WorkerUpstreams(Settings(), Board("worker-0"))
    with pytest.raises(CompileError, match="EXTERNAL_SERVICE_ONFS_FS_HOST is empty"):
        upstreams.onfs()
    assert upstreams.numerix() is None


@pytest.mark.parametrize(
    ("endpoint", "wanted"),
    [
        ("models", "models:8090"),
        ("models:9000", "models:9000"),
        ("10.0.0.1", "10.0.0.1:8090"),
        ("[::1]", "[::1]:8090"),
        ("[::1]:9000", "[::1]:9000"),
        ("[fe80::12]", "[fe80::12]:8090"),
        ("a.b-c.local:1", "a.b-c.local:1"),
    ],
)
def test_ports_that_are_left_out(endpoint: str, wanted: str) -> None:
    assert with_port(endpoint, 8090) == wanted


def test_calls_are_counted_by_service_endpoint_and_outcome() -> None:
    async def story(world: World) -> None:
        onfs = world.upstreams.onfs()
        for _ in range(3):
            assert (await world.call(onfs, b"a", b"b")).status == 0
        assert (await world.call(onfs, b"fail")).status == Status.UNAVAILABLE
        place = "onfs", f"127.0.0.1:{world.port}"
        board = world.board
        assert board.counter(UPSTREAM_CALLS, *place, "OK").value == 3
        assert board.counter(UPSTREAM_CALLS, *place, "UNAVAILABLE").value == 1
        assert board.counter(UPSTREAM_ROWS, *place).value == 7
        assert board.histogram(UPSTREAM_LATENCY, *place).seen == 4

    tell(story)


def test_identical_feature_reads_at_the_same_time_are_one_call() -> None:
    async def story(world: World) -> None:
        endpoint = world.upstreams.onfs()
        assert world.upstreams.onfs() is endpoint
        replies = await asyncio.gather(
            world.call(endpoint, b"head", b"a"),
            world.call(endpoint, b"head", b"a"),
            world.call(endpoint, b"head", b"b"),
        )
        assert [reply.body for reply in replies] == [b"re: heada", b"re: heada", b"re: headb"]
        assert sorted(body for _, _, body in world.seen) == [b"heada", b"headb"]
        assert world.board.counter(CACHE_COALESCED, "onfs", f"127.0.0.1:{world.port}").value == 2

    tell(story)


def test_coalescing_can_be_switched_off() -> None:
    async def story(world: World) -> None:
        settings = Settings(onfs=OnfsSettings(host="127.0.0.1", port=world.port), coalesce=False)
        upstreams = WorkerUpstreams(settings, world.board)
        endpoint = upstreams.onfs()
        await asyncio.gather(*(world.call(endpoint, b"same") for _ in range(2)))
        assert len(world.seen) == 2
        await upstreams.close()

    tell(story)
