"""Components without an executor: compiled from configs, run over matrices, their calls answered on the spot."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from components import compile as compiling
from components.columns import byte_values, texts
from components.compile import Bounds, compile_plan
from components.feature_init import Brought, BroughtSlates, Column, initialize
from dag.component import Component, Endpoint, Failure, Pending, Reply, Scoring
from dag.config import ROOT, decode
from dag.field_rules import components
from dag.layout import Layout
from dag.plan import Plan
from dag.topology import topology
from shared.board import Board
from shared.datatypes import DataType
from shared.feature_cache import FeatureCache
from shared.shm_matrix import MatrixPool, Rows, ShmMatrix, Slot

__all__ = [
    "Answer",
    "Asked",
    "Nowhere",
    "Upstreams",
    "brought",
    "compiled",
    "config_of",
    "failed_rows",
    "failures",
    "matrix_pool",
    "named",
    "raw_column",
    "run",
    "scoring_of",
    "slate_values",
    "text_column",
]

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Answer:
    """A Reply."""

    status: int = 0
    message: str = ""
    body: bytes = b""


class Nowhere:
    """An endpoint by its name. Components only hand it back: these tests answer calls themselves."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(
        self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None], rows: int
    ) -> Pending:
        raise AssertionError("only the executor starts calls")

    def __repr__(self) -> str:
        return f"<Nowhere {self.name}>"


class Upstreams:
    """What plans are compiled with; endpoints are the same objects every time."""

    def __init__(self, *, numerix: bool = True) -> None:
        self._endpoints: dict[str, Nowhere] = {}
        self._numerix = numerix

    def _get(self, name: str) -> Endpoint:
        return self._endpoints.setdefault(name, Nowhere(name))

    def onfs(self) -> Endpoint:
        return self._get("onfs")

    def predator(self, endpoint: str) -> Endpoint:
        return self._get(endpoint)

    def numerix(self) -> Endpoint | None:
        return self._get("numerix") if self._numerix else None


def config_of(
    *,
    features: Sequence[Mapping[str, Any]] = (),
    predators: Sequence[Mapping[str, Any]] = (),
    numerix: Sequence[Mapping[str, Any]] = (),
    response: Sequence[str] = (),
    dag: Mapping[str, Sequence[str]] | None = None,
    **component_config: Any,
) -> dict[str, Any]:
    """A config of these components. Without a `dag` each one depends on the one before it."""
    parts = [*features, *predators, *numerix]
    names = [ROOT, *(part["component"] for part in parts)]
    chain = {name: [before] for before, name in itertools.pairwise(names)}
    return {
        "dag_execution_config": {"component_dependency": chain if dag is None else dag},
        "component_config": {
            "feature_components": list(features),
            "predator_components": list(predators),
            "numerix_components": list(numerix),
            **component_config,
        },
        "response_config": {"features": list(response)},
    }


def compiled(
    config: Mapping[str, Any],
    *,
    upstreams: compiling.Upstreams | None = None,
    expressions: Mapping[str, str] | None = None,
    cache: FeatureCache | None = None,
    **bounds: Any,
) -> Plan:
    """The plan of a config. `bounds` as in components.compile.Bounds; batches are of 3 unless they say."""
    document = decode(json.dumps(config))
    names = [name for name, _ in components(document)]
    usual: dict[str, Any] = {"onfs_batch": 3, "numerix_batch": 3}
    usual |= {"onfs_timeout": 0.2, "predator_timeout": 0.3, "numerix_timeout": 5.0}
    return compile_plan(
        "cfg",
        "digest",
        document,
        topology(document.dag_execution_config.component_dependency, names),
        upstreams=upstreams or Upstreams(),
        expressions=expressions or {},
        cache=cache,
        bounds=Bounds(**(usual | bounds)),
        board=Board("worker-0"),
    )


def brought(
    rows: int,
    columns: Mapping[str, Sequence[bytes] | tuple[DataType, Sequence[bytes]]],
    slates: Sequence[Sequence[int]] | None = None,
) -> Brought:
    """A request: texts by column name, or (type, raw values)."""
    parts = []
    for name, values in columns.items():
        if isinstance(values, tuple):
            parts.append(Column(name, values[0], values[1]))
        else:
            parts.append(Column(name, DataType.STRING, values))
    if slates is None:
        return Brought(rows, parts)
    return Brought(rows, parts, BroughtSlates(*named(slates), []))


def named(slates: Sequence[Sequence[int]]) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The target rows of slates one after the other, and their bounds, as in dag.component.Slates."""
    rows = np.array([row for targets in slates for row in targets], np.int32)
    return rows, np.cumsum([0, *map(len, slates)], dtype=np.int64)


@contextmanager
def matrix_pool() -> Iterator[Slot]:
    """A slot of a pool of its own."""
    pool = MatrixPool(32 * MIB, 16 * MIB)
    try:
        yield pool.acquire()
    finally:
        pool.close()


def scoring_of(plan: Plan, request: Brought, slot: Slot) -> Scoring:
    """The matrix of a request, as the root makes it."""
    return initialize(plan, request, slot)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A call that a component made: to which endpoint, with what body, and how long it may take (seconds)."""

    endpoint: str
    body: bytes
    timeout: float


def run(
    component: Component,
    scoring: Scoring,
    answer: Callable[[bytes], Answer],
    *,
    rounds: list[int] | None = None,
) -> list[Asked]:
    """Runs a component to its end, its calls answered one by one; returns them.

    `rounds`, when given, gets the number of calls of each of its steps.
    """
    asked: list[Asked] = []
    steps = component.run(scoring)
    replies: list[Answer] | None = None
    while True:
        try:
            calls = next(steps) if replies is None else steps.send(replies)
        except StopIteration:
            return asked
        if calls is None:
            return asked
        if rounds is not None:
            rounds.append(len(calls))
        replies = []
        for call in calls:
            assert isinstance(call.endpoint, Nowhere)
            body = b"".join(call.body)
            asked.append(Asked(call.endpoint.name, body, call.timeout))
            replies.append(answer(body))


def raw_column(matrix: ShmMatrix, layout: Layout, name: str) -> list[bytes]:
    """The raw values of a byte column, a row each; b"" for none."""
    return byte_values(matrix, layout.byte[name], matrix.all_rows)


def slate_values(plan: Plan, scoring: Scoring, name: str) -> list[bytes]:
    """The raw values of a slate score."""
    assert scoring.slates is not None
    return raw_column(scoring.slates.matrix, plan.slate_layout, name)


def text_column(matrix: ShmMatrix, layout: Layout, name: str) -> list[bytes]:
    """The text form of a column as an answer shows it."""
    return texts(matrix, layout.source(name), matrix.all_rows)


def failures(found: Sequence[Failure], rows: int) -> list[tuple[str, str, list[int]]]:
    """(component, cause, rows), the rows of equal failures together."""
    out: dict[tuple[str, str], set[int]] = {}
    for failure in found:
        marked = range(rows) if failure.rows is None else failure.rows.tolist()
        out.setdefault((failure.component, failure.cause), set()).update(marked)
    return [(component, cause, sorted(marked)) for (component, cause), marked in out.items()]


def failed_rows(scoring: Scoring) -> list[int]:
    """The target rows that some component could not serve."""
    found = failures(scoring.failures, scoring.matrix.rows)
    return sorted({row for _, _, rows in found for row in rows})


def floats(raw: Sequence[bytes]) -> list[float | None]:
    """FP32 values; None for no value."""
    return [None if not value else float(np.frombuffer(value, "<f4")[0]) for value in raw]


Floats = npt.NDArray[np.float32]
