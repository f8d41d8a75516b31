"""The plans of a worker: which are compiled again, which config costs whom, what a client is told.

How versions reach a worker and what becomes of old channels is in test_follower.py.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping

import pytest

from components.compile import CompileError
from dag.config import ComponentConfig, ModelConfig, NumerixComponent
from dag.plan import Plan
from shared.snapshot import Head, Snapshot
from tests.dag.plans import plan_of
from workers.plans import PlanSet, SnapshotConfig
from workers.requests import BadRequest


class Compiler:
    """Compiles documents such as b"uses expr1" or b"broken"; remembers which it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, name: str, config: SnapshotConfig, expressions: Mapping[str, str]) -> Plan:
        self.asked.append(name)
        document = config.document.decode()
        if document == "broken":
            raise CompileError("outputs[0]: no such thing")
        if document == "mistake":
            raise ZeroDivisionError("ours")
        computes = [
            NumerixComponent(component=one, score_col=one, compute_id=one)
            for one in document.removeprefix("uses ").split()
        ]
        parts = ComponentConfig(numerix_components=computes if document.startswith("uses") else [])
        return dataclasses.replace(
            plan_of([], []),
            model_config_id=name,
            digest=config.digest,
            config=ModelConfig(component_config=parts),
        )

    def take(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


class World:
    def __init__(self) -> None:
        self.plans = PlanSet()
        self.compiler = Compiler()
        self.number = 0

    def prepare(
        self,
        configs: Mapping[str, str],
        *,
        expressions: Mapping[str, str] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> int:
        """Prepares the next version with these documents (their text is their digest, too)."""
        self.number += 1
        head = Head(self.number, refused=dict(refused or {}), expressions=dict(expressions or {}))
        documents = {name: (text, text.encode()) for name, text in configs.items()}
        self.plans.prepare(Snapshot.encode(head, documents), self.compiler)
        return self.number

    def serve(self, **configs: str) -> None:
        self.plans.activate(self.prepare(configs))


@pytest.fixture
def world() -> World:
    return World()


def told(plans: PlanSet, model_config_id: str) -> str:
    with pytest.raises(BadRequest) as caught:
        plans.find(model_config_id)
    return str(caught.value)


def test_a_prepared_version_is_served_once_it_is_active(world: World) -> None:
    assert told(world.plans, "a") == "model_config_id 'a': no configuration is active yet"
    number = world.prepare({"a": "one"})
    assert told(world.plans, "a") == "model_config_id 'a': no configuration is active yet"
    world.plans.activate(number)
    assert world.plans.find("a").digest == "one"
    world.plans.activate(number)  # said twice is said once
    assert repr(world.plans) == "<PlanSet version 1, 1 plans>"


def test_clients_are_told_why_there_is_no_plan(world: World) -> None:
    world.plans.activate(world.prepare({"a": "one", "b": "broken"}, refused={"c": "c.json is no JSON"}))
    assert told(world.plans, "") == "model_config_id is empty"
    assert told(world.plans, "nobody") == "model_config_id 'nobody' is unknown"
    assert told(world.plans, "b") == "model_config_id 'b' is not usable: outputs[0]: no such thing"
    assert told(world.plans, "c") == "model_config_id 'c' is not usable: c.json is no JSON"


@pytest.mark.parametrize("bad", ["broken", "mistake"])
def test_one_config_that_does_not_compile_holds_back_no_other(world: World, bad: str) -> None:
    world.serve(a="one", b=bad, c="three")
    assert world.compiler.take() == ["a", "b", "c"]
    assert (world.plans.find("a").digest, world.plans.find("c").digest) == ("one", "three")
    assert world.plans.active is not None
    assert set(world.plans.active.refused) == {"b"}
    world.serve(a="one", b="repaired", c="three")
    assert world.compiler.take() == ["b"]
    assert world.plans.find("b").digest == "repaired"


def test_plans_of_unchanged_configs_are_kept(world: World) -> None:
    world.serve(a="one", b="two")
    a, b = world.plans.find("a"), world.plans.find("b")
    world.compiler.take()
    world.serve(a="one", b="two, changed", c="three")
    assert world.compiler.take() == ["b", "c"]
    assert world.plans.find("a") is a
    assert world.plans.find("b") is not b
    assert world.plans.active is not None
    assert world.plans.active.changed == {"b", "c"}


def test_a_changed_expression_compiles_the_configs_that_use_it(world: World) -> None:
    configs = {"a": "uses e1", "b": "uses e2 e3", "c": "none"}
    world.plans.activate(world.prepare(configs, expressions={"e1": "1", "e2": "2", "e3": "3"}))
    world.compiler.take()
    for expressions, compiled in (
        ({"e1": "1", "e2": "2", "e3": "33"}, ["b"]),
        ({"e1": "1", "e2": "2", "e3": "33", "e4": "4"}, []),
        ({"e1": "1", "e3": "33", "e4": "4"}, ["b"]),
        ({"e1": "11", "e2": "2", "e3": "33"}, ["a", "b"]),
    ):
        world.plans.activate(world.prepare(configs, expressions=expressions))
        assert world.compiler.take() == compiled


def test_a_version_that_was_overtaken_is_never_active(world: World) -> None:
    old = world.prepare({"a": "one"})
    new = world.prepare({"a": "two"})
    world.plans.activate(new)
    assert world.plans.find("a").digest == "two"
    with pytest.raises(KeyError):
        world.plans.activate(old)
    with pytest.raises(KeyError):
        world.plans.activate(99)
    assert world.plans.find("a").digest == "two"


def test_what_was_deleted_is_unknown(world: World) -> None:
    world.serve(a="one", b="two")
    world.serve(a="one")
    assert told(world.plans, "b") == "model_config_id 'b' is unknown"


def test_old_plans_are_counted_as_long_as_somebody_holds_them(world: World) -> None:
    world.serve(a="one", b="two")
    held = world.plans.find("a")
    world.serve(a="changed", b="two")
    gc.collect()
    assert world.plans.retiring == 1
    assert "1 of older versions in use" in repr(world.plans)
    assert held.digest == "one"
    del held
    gc.collect()
    assert world.plans.retiring == 0


def test_other_things_can_be_done_between_two_configs(world: World) -> None:
    documents = {name: (name, name.encode()) for name in ("a", "b")}
    steps = world.plans.steps(Snapshot.encode(Head(1), documents), world.compiler)
    assert next(steps) == "a"
    assert world.compiler.take() == ["a"]
    assert [*steps] == ["b"]
    world.plans.activate(1)
    assert world.plans.find("b").digest == "b"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "snapshot of 0 bytes: its head is cut"),
        (b"\xff\0\0\0", "snapshot of 4 bytes: its head ends at 259"),
        (b"\x02\0\0\0{]", "JSON is malformed"),
    ],
)
def test_a_snapshot_that_is_none_is_an_error(world: World, document: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        world.plans.prepare(document, world.compiler)
    assert world.plans.active is None
