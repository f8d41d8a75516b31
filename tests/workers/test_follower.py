"""A worker and config versions: what is compiled again, what is waited for, what is closed when nothing uses it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from components.compile import Bounds, CompileError, compile_plan
from dag.config import decode
from dag.field_rules import components
from dag.plan import Plan
from dag.topology import topology
from rpc.server import Server
from shared.board import Board
from shared.saved import ACTIVE, Documents
from shared.settings import OnfsSettings, Settings
from sidecar.activation import Version as SidecarVersion
from sidecar.catalog import Catalog
from sidecar.source import Text
from sidecar.state import save
from tests.frontdoor.process import free_port
from tests.sidecar.texts import config, expression
from workers.follower import Follower
from workers.plans import PlanSet, SnapshotConfig
from workers.upstreams import WorkerUpstreams

BOUNDS = Bounds(onfs_timeout=1, onfs_batch=5, predator_timeout=1, numerix_timeout=1, numerix_batch=5)
TIMEOUT = 30
Story = Callable[["World"], Coroutine[Any, Any, None]]


class World:
    """A follower with real channels, and a server that stands for all upstreams."""

    def __init__(self, port: int, state_dir: Path) -> None:
        self.port = port
        self.plans = PlanSet()
        self.board = Board("worker-0")
        self.upstreams = WorkerUpstreams(Settings(onfs=OnfsSettings(host="127.0.0.1", port=port)), self.board)
        self.compiled: list[str] = []
        self.versions: list[tuple[int, str]] = []
        self.connected: asyncio.Queue[list[str]] = asyncio.Queue()
        self.retiring: asyncio.Queue[int] = asyncio.Queue()
        self.fail_on = ""
        self.catalog = Catalog()
        self.follower = Follower(
            asyncio.get_running_loop(),
            self.plans,
            self.upstreams,
            self.compile,
            state_dir,
            on_version=lambda number, notice: self.versions.append((number, notice)),
            on_connected=lambda names: self.connected.put_nowait([*names]),
            on_retiring=self.retiring.put_nowait,
        )
        self.number = 0

    def compile(self, name: str, text: SnapshotConfig, expressions: Mapping[str, str]) -> Plan:
        self.compiled.append(name)
        if name == self.fail_on:
            raise ZeroDivisionError("a mistake of ours")
        document = decode(text.document)
        names = [one for one, _ in components(document)]
        order = topology(document.dag_execution_config.component_dependency, names)
        return compile_plan(
            name,
            text.digest,
            document,
            order,
            upstreams=self.upstreams,
            expressions=expressions,
            cache=None,
            bounds=BOUNDS,
            board=self.board,
        )

    async def prepare(self, texts: Mapping[str, Text]) -> tuple[dict[str, str], dict[str, str]]:
        """Prepares the next version; what it refuses, and what it waits for."""
        self.number += 1
        self.compiled = []
        document = self.catalog.update(texts, 10.0 * self.number).encode(self.number)
        return await self.follower.prepare(self.number, document)

    async def serve(self, texts: Mapping[str, Text]) -> None:
        """Prepares and activates the next version."""
        await self.prepare(texts)
        self.follower.activate(self.number)

    def at(self, port: int, price: str = "price", compute_id: str = "") -> bytes:
        return config(price, endpoint=f"127.0.0.1:{port}", compute_id=compute_id)


@pytest.fixture
def tell(tmp_path: Path) -> Callable[[Story], None]:
    def run(story: Story) -> None:
        async def main() -> None:
            server = Server({})
            port = await server.listen_tcp("127.0.0.1", 0)
            world = World(port, tmp_path)
            try:
                async with asyncio.timeout(TIMEOUT):
                    await story(world)
            finally:
                await world.follower.close()
                await world.upstreams.close()
                await server.close()

        asyncio.run(main())

    return run


def test_only_what_changed_is_compiled(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        texts: dict[str, Text] = {
            "config-map/a": world.at(world.port, compute_id="e"),
            "config-map/b": world.at(world.port),
            "expression-config/e": expression("x"),
            "expression-config/f": expression("x"),
        }
        await world.serve(texts)
        assert world.compiled == ["a", "b"]
        texts["expression-config/f"] = expression("x x +")
        await world.serve(texts)
        assert world.compiled == []
        texts["expression-config/e"] = expression("x x +")
        await world.serve(texts)
        assert world.compiled == ["a"]
        texts["config-map/b"] = world.at(world.port, "mrp")
        await world.serve(texts)
        assert world.compiled == ["b"]
        assert world.versions == [(number, "") for number in (1, 2, 3, 4)]

    tell(story)


def test_what_was_compiled_for_a_version_that_never_became_active_is_used_again(
    tell: Callable[[Story], None],
) -> None:
    """A worker that takes long for its first version must not begin from the start with each change."""

    async def story(world: World) -> None:
        texts: dict[str, Text] = {"config-map/a": world.at(world.port), "config-map/b": world.at(world.port)}
        await world.prepare(texts)
        await world.serve({**texts, "config-map/b": world.at(world.port, "mrp")})
        assert world.compiled == ["b"]

    tell(story)


def test_a_mistake_in_compiling_costs_that_config_only(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        world.fail_on = "a"
        refused, waiting = await world.prepare(
            {"config-map/a": world.at(world.port), "config-map/b": world.at(world.port)}
        )
        assert refused == {"a": "could not be compiled: ZeroDivisionError: a mistake of ours"}
        assert waiting == {}
        world.follower.activate(1)
        assert world.plans.find("b").model_config_id == "b"

    tell(story)


def test_plans_of_an_old_version_live_as_long_as_their_requests(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.follower.SWEEP_SECONDS", 0.01)

    async def story(world: World) -> None:
        await world.serve({"config-map/a": world.at(world.port)})
        request = [world.plans.find("a")]
        await world.serve({"config-map/a": world.at(world.port, "mrp")})
        assert world.plans.retiring == 1
        assert "1 of older versions in use" in repr(world.plans)
        while await world.retiring.get() != 1:
            pass  # of the first version there was nothing to tell but that
        request.clear()
        assert world.plans.retiring == 0
        while await world.retiring.get() != 0:
            pass  # asked before the request had ended

    tell(story)


def test_channels_that_nothing_uses_are_closed(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        other = Server({})
        port = await other.listen_tcp("127.0.0.1", 0)
        await world.serve({"config-map/a": world.at(port)})
        request = [world.plans.find("a")]
        await world.serve({"config-map/a": world.at(world.port)})
        assert world.upstreams.close_unused(world.plans.living()) == [], "a request may still call it"
        request.clear()
        assert world.upstreams.close_unused(world.plans.living()) == [f"127.0.0.1:{port}"]
        assert world.upstreams.close_unused(world.plans.living()) == []
        await other.close()

    tell(story)


def test_a_new_endpoint_that_does_not_answer_is_reported_and_tried_again(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: World) -> None:
        port = free_port()
        await world.serve({"config-map/a": world.at(world.port), "config-map/b": world.at(world.port)})
        active = world.catalog.last
        wanted: dict[str, Text] = {
            "config-map/a": world.at(port),
            "config-map/b": world.at(world.port, "mrp"),
        }
        refused, waiting = await world.prepare(wanted)
        assert refused == {}
        assert waiting.keys() == {"a"}
        assert waiting["a"].startswith(f"waiting for endpoint 127.0.0.1:{port}: cannot connect to")
        world.catalog.hold("a", world.catalog.last.fingerprint("a"), waiting["a"], active)
        await world.serve(wanted)
        assert "1 configs wait" in repr(world.follower)
        assert world.plans.find("a").digest == active.configs["a"].digest
        late = Server({})
        await late.listen_tcp("127.0.0.1", port)
        assert await world.connected.get() == ["a"]
        world.catalog.release("a")
        assert (await world.prepare(wanted)) == ({}, {})
        world.follower.activate(world.number)
        assert "0 configs wait" in repr(world.follower)
        await late.close()

    tell(story)


def test_an_edit_that_is_taken_back_ends_the_waiting(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        await world.serve({"config-map/a": world.at(world.port)})
        await world.prepare({"config-map/a": world.at(free_port())})
        assert "1 configs wait" in repr(world.follower)
        await world.serve({"config-map/a": world.at(world.port)})
        assert "0 configs wait" in repr(world.follower)

    tell(story)


def test_the_first_version_and_new_configs_wait_for_nothing(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        nobody = world.at(free_port())
        assert await world.prepare({"config-map/a": nobody}) == ({}, {})
        world.follower.activate(1)
        assert await world.prepare({"config-map/a": nobody, "config-map/b": nobody}) == ({}, {})

    tell(story)


def test_an_endpoint_that_both_versions_have_is_not_waited_for(tell: Callable[[Story], None]) -> None:
    """It does not answer the old version either: keeping that would help nobody."""

    async def story(world: World) -> None:
        port = free_port()
        await world.serve({"config-map/a": world.at(port)})
        assert await world.prepare({"config-map/a": world.at(port, "mrp")}) == ({}, {})

    tell(story)


def test_notices_reach_the_front_doors_before_and_after_the_first_version(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: World) -> None:
        world.follower.notice("away")
        world.follower.notice("away")
        await world.serve({})
        world.follower.notice("")
        assert world.versions == [(0, "away"), (1, "away"), (1, "")]

    tell(story)


def test_what_was_saved_is_found(tell: Callable[[Story], None], tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert world.follower.saved() is None
        (tmp_path / ACTIVE).write_bytes(b"nonsense")
        assert world.follower.saved() is None
        content = world.catalog.update({"config-map/a": world.at(world.port)}, 0)
        save(tmp_path, Documents(tmp_path / "documents"), SidecarVersion(9, content))
        found = world.follower.saved()
        assert found is not None
        assert found[0] == 9
        await world.follower.prepare(*found)
        world.follower.activate(9)
        assert json.loads(content.configs["a"].text)
        assert world.plans.find("a").digest == content.configs["a"].digest

    tell(story)


def test_a_config_that_does_not_compile_names_its_reason(tell: Callable[[Story], None]) -> None:
    async def story(world: World) -> None:
        def refuse(*_: object) -> Plan:
            raise CompileError("no host")

        steps = world.plans.steps(
            world.catalog.update({"config-map/a": world.at(world.port)}, 0).encode(1), refuse
        )
        assert list(steps) == ["a"]
        world.plans.activate(1)
        with pytest.raises(ValueError, match="'a' is not usable: no host"):
            world.plans.find("a")

    tell(story)
