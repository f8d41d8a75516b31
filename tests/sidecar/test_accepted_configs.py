"""The seam between validation and compilation: what is accepted can be compiled, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from components.compile import Bounds, compile_plan
from dag.component import Endpoint
from dag.config import ModelConfig
from dag.field_rules import components
from dag.plan import Plan
from dag.topology import topology
from shared.board import Board
from sidecar.catalog import judge
from tests.dag.configs import CONFIGS, EXPRESSIONS, good, spoilt

KNOWN = {**EXPRESSIONS, "weighted": "p q *"}
BOUNDS = Bounds(onfs_timeout=1, onfs_batch=5, predator_timeout=1, numerix_timeout=1, numerix_batch=5)


class Nowhere:
    """Upstreams that are never called."""

    def start(self, *_: object) -> Any:
        raise AssertionError("compiling a plan calls nobody")

    def onfs(self) -> Endpoint:
        return self

    def predator(self, endpoint: str) -> Endpoint:
        return self

    def numerix(self) -> None:
        return None


def compiled(config: ModelConfig) -> Plan:
    order = topology(
        config.dag_execution_config.component_dependency, [name for name, _ in components(config)]
    )
    return compile_plan(
        "x",
        "digest",
        config,
        order,
        upstreams=Nowhere(),
        expressions=KNOWN,
        cache=None,
        bounds=BOUNDS,
        board=Board("worker-0"),
    )


@pytest.mark.parametrize("name", [*CONFIGS, "good"])
def test_accepted_recorded_configs_compile(name: str) -> None:
    verdict = judge(name, CONFIGS.get(name) or json.dumps(good()).encode(), KNOWN)
    if verdict.config is not None:
        assert len(compiled(verdict.config).components) == len(list(components(verdict.config)))


@given(spoilt(most=1))
@settings(max_examples=300)
def test_accepted_spoilt_configs_compile(config: dict[str, Any]) -> None:
    verdict = judge("x", json.dumps(config).encode(), KNOWN)
    if verdict.config is not None:  # about one in three
        assert compiled(verdict.config).config == verdict.config
