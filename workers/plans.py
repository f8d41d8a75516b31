"""The plans of a worker: the active set, and the next one while it is being prepared.

A request holds the plan it began with, so a version that is replaced lives on in its last requests and is gone
with them: nothing is counted for that, and nothing can be forgotten.
"""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple, cast

import orjson

from components.compile import CompileError
from dag.plan import Plan
from shared.snapshot import Head, Snapshot
from workers.requests import BadRequest

__all__ = ["PlanSet", "SnapshotConfig", "Version"]

log = logging.getLogger(__name__)


class SnapshotConfig(NamedTuple):
    """One usable config of a snapshot."""

    digest: str
    document: bytes  # the model config as JSON


@dataclasses.dataclass(frozen=True)
class Version:
    """A prepared snapshot: a plan per usable config, a reason per config that cannot be served."""

    number: int
    plans: Mapping[str, Plan]
    refused: Mapping[str, str]
    expressions: Mapping[str, str]
    waiting: Mapping[str, str]
    """Configs that are served in an older version because a new endpoint does not answer."""
    service: bytes
    """The service config as JSON, its keys in order."""
    changed: frozenset[str]
    """Those whose plan is not that of the version that was active when this one was prepared."""


Compile = Callable[[str, SnapshotConfig, Mapping[str, str]], Plan]


class PlanSet:
    """The active version, and prepared ones that wait for their activation."""

    def __init__(self) -> None:
        self.active: Version | None = None
        self._prepared: dict[int, Version] = {}
        self._retired: list[weakref.ref[Plan]] = []
        self._compiled: list[weakref.ref[Plan]] = []

    @property
    def retiring(self) -> int:
        """Plans of older versions that requests in flight still run on."""
        self._retired = [plan for plan in self._retired if plan() is not None]
        return len(self._retired)

    def living(self) -> list[Plan]:
        """Every plan that was compiled and is still held: by a version, or by a request."""
        self._compiled = [plan for plan in self._compiled if plan() is not None]
        return [plan for found in self._compiled if (plan := found()) is not None]

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

    def prepare(self, document: bytes | memoryview, compile_plan: Compile) -> Version:
        """Compiles a snapshot; plans of unchanged configs are kept. Raises ValueError.

        A config that does not compile is among the version's `refused`; the others are not held back by it.
        """
        steps = self.steps(document, compile_plan)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return cast(Version, end.value)

    def steps(self, document: bytes | memoryview, compile_plan: Compile) -> Generator[str, None, Version]:
        """`prepare` in steps, one for each config that is compiled: requests can be served between them.

        Yields model_config_ids, and returns the version. Raises ValueError.
        """
        snapshot = Snapshot.decode(document)
        head = snapshot.head
        plans: dict[str, Plan] = {}
        refused = dict(head.refused)
        for name, entry in head.configs.items():
            kept = self._unchanged(name, entry.digest, head)
            if kept is not None:
                plans[name] = kept
                continue
            try:
                config = SnapshotConfig(entry.digest, snapshot.document(name))
                plan = plans[name] = compile_plan(name, config, head.expressions)
                self._compiled.append(weakref.ref(plan))
            except CompileError as error:
                refused[name] = str(error)
                log.error("config cannot be served", extra={"model_config_id": name, "reason": str(error)})
            except Exception as error:
                # A mistake of ours, that must cost this config only.
                refused[name] = f"could not be compiled: {type(error).__name__}: {error}"
                log.exception("config could not be compiled", extra={"model_config_id": name})
            yield name
        served = self.active.plans if self.active is not None else {}
        changed = frozenset(name for name, plan in plans.items() if served.get(name) is not plan)
        service = orjson.dumps(head.service, option=orjson.OPT_SORT_KEYS)
        version = Version(head.version, plans, refused, head.expressions, head.waiting, service, changed)
        self._prepared[version.number] = version
        return version

    def _unchanged(self, name: str, digest: str, head: Head) -> Plan | None:
        """A plan that is there and would be the same in this version: its expressions are the same, too.

        It may be of a version that never became active: what a worker compiled in vain is not lost.
        """
        for old in (self.active, *self._prepared.values()):
            plan = old.plans.get(name) if old is not None else None
            if old is not None and plan is not None and plan.digest == digest:
                if old.expressions == head.expressions:
                    return plan
                used = {one.compute_id for one in plan.config.component_config.numerix_components}
                if all(old.expressions.get(one) == head.expressions.get(one) for one in used):
                    return plan
        return None

    def activate(self, number: int) -> None:
        """Makes a prepared version the active one. Raises KeyError when it was never prepared."""
        old = self.active
        if old is not None and old.number == number:
            return
        self.active = self._prepared.pop(number)
        self._prepared = {at: version for at, version in self._prepared.items() if at > number}
        if old is not None:
            self._retired += [
                weakref.ref(plan)
                for name, plan in old.plans.items()
                if self.active.plans.get(name) is not plan
            ]

    def __repr__(self) -> str:
        if self.active is None:
            return "<PlanSet nothing active>"
        retiring = f", {self.retiring} of older versions in use" if self.retiring else ""
        return f"<PlanSet version {self.active.number}, {len(self.active.plans)} plans{retiring}>"
