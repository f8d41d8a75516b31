"""The plans of a worker: the active set, and the next one while it is being prepared."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from components.compile import CompileError
from dag.plan import Plan
from workers.requests import BadRequest

__all__ = ["PlanSet", "Snapshot", "SnapshotConfig", "Version"]

log = logging.getLogger(__name__)


class SnapshotConfig(msgspec.Struct, frozen=True):
    """One usable config of a snapshot."""

    digest: str
    document: msgspec.Raw  # the model config as JSON


class Snapshot(msgspec.Struct, frozen=True):
    """What the config sidecar publishes: one JSON document, described in docs/architecture.md."""

    version: int
    configs: dict[str, SnapshotConfig] = {}
    refused: dict[str, str] = {}
    expressions: dict[str, str] = {}
    service: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Version:
    """A prepared snapshot: a plan per usable config, a reason per config that cannot be served."""

    number: int
    plans: Mapping[str, Plan]
    refused: Mapping[str, str]
    expressions: Mapping[str, str]


Compile = Callable[[str, SnapshotConfig, Mapping[str, str]], Plan]


class PlanSet:
    """The active version, and prepared ones that wait for their activation."""

    def __init__(self) -> None:
        self.active: Version | None = None
        self._prepared: dict[int, Version] = {}

    def find(self, model_config_id: str) -> Plan:
        """The active plan of a model config. Raises BadRequest, with the reason why there is none."""
        if not model_config_id:
            raise BadRequest("model_config_id is empty")
        if self.active is None:
            raise BadRequest(f"model_config_id {model_config_id!r}: no configuration is active yet")
        plan = self.active.plans.get(model_config_id)
        if plan is not None:
            return plan
        reason = self.active.refused.get(model_config_id)
        if reason is not None:
            raise BadRequest(f"model_config_id {model_config_id!r} is not usable: {reason}")
        raise BadRequest(f"model_config_id {model_config_id!r} is unknown")

    def prepare(self, document: bytes, compile_plan: Compile) -> Version:
        """Compiles a snapshot; plans of unchanged configs are kept. Raises msgspec.DecodeError.

        A config that does not compile is among the version's `refused`; the others are not held back by it.
        """
        snapshot = msgspec.json.decode(document, type=Snapshot)
        old = self.active
        same_expressions = old is not None and dict(old.expressions) == snapshot.expressions
        plans: dict[str, Plan] = {}
        refused = dict(snapshot.refused)
        for name, config in snapshot.configs.items():
            kept = old.plans.get(name) if old is not None else None
            if kept is not None and same_expressions and kept.digest == config.digest:
                plans[name] = kept
                continue
            try:
                plans[name] = compile_plan(name, config, snapshot.expressions)
            except CompileError as error:
                refused[name] = str(error)
                log.error("config cannot be served", extra={"model_config_id": name, "reason": str(error)})
        version = Version(snapshot.version, plans, refused, snapshot.expressions)
        self._prepared[version.number] = version
        return version

    def activate(self, number: int) -> None:
        """Makes a prepared version the active one. Raises KeyError when it was never prepared."""
        if self.active is not None and self.active.number == number:
            return
        self.active = self._prepared.pop(number)
        self._prepared = {at: version for at, version in self._prepared.items() if at > number}

    def __repr__(self) -> str:
        if self.active is None:
            return "<PlanSet nothing active>"
        return f"<PlanSet version {self.active.number}, {len(self.active.plans)} plans>"
