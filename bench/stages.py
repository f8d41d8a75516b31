"""Where a worker's microseconds go: one worker's service in this process, without sockets.

    python -m bench.stages [--cases NAMES] [--targets NUMBERS] [--docs PAGE]

Upstream calls are answered at once from memory, and the time that takes is not counted: what is left is the work
on the request itself. What a worker of `bench.run` needs beyond it is transport: HTTP/2 to the upstreams, frames
to the front door, system calls.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from bench.cases import CASES, CONFIGS, EXPRESSIONS, TARGETS, Case
from bench.expected import WrongAnswerError, check
from bench.report import Table, figure, machine, replace_section
from bench.upstreams import COMPUTE, FETCH, INFER, Memory
from components.compile import Bounds, compile_plan
from dag.component import Component, Endpoint, Pending, Reply, Scoring, Steps
from dag.config import decode
from dag.executor import Executor
from dag.field_rules import components
from dag.plan import Plan
from dag.topology import topology
from frontdoor.services import METHODS
from rpc.status import Status
from shared.board import Board
from shared.cache_memory import cache_segment
from shared.feature_cache import FeatureCache
from shared.shm_matrix import MatrixPool
from sidecar.catalog import Catalog
from sidecar.source import CONFIGS as CONFIGS_KEY
from sidecar.source import EXPRESSIONS as EXPRESSIONS_KEY
from workers.plans import SnapshotConfig
from workers.requests import Reading
from workers.service import Answered, Service

__all__ = ["Spent", "Worker", "main"]

MIB = 1 << 20
BATCHES = (
    200  # the best one counts: what disturbs the machine only ever adds, and spares some when they are short
)
BATCH_SECONDS = 0.005
BOUNDS = Bounds(onfs_timeout=5.0, onfs_batch=50, predator_timeout=1.0, numerix_timeout=5.0, numerix_batch=100)
VERSION = 1
HEADER = ("case", "targets", "µs", "feature", "predator", "numerix", "request, executor, answer")


class Spent(NamedTuple):
    """µs a request: all, and those of the components of each kind."""

    total: float
    feature: float
    predator: float
    numerix: float

    @property
    def rest(self) -> float:
        """Reading the request, building the matrix, executing, answering."""
        return self.total - self.feature - self.predator - self.numerix


class _Loop:
    """What the executor needs of an event loop when it has no threads."""

    def time(self) -> float:
        return time.monotonic()

    def call_soon(self, callback: Callable[[], object]) -> object:
        raise AssertionError(f"{callback}: nothing is due later")

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> object:
        raise AssertionError(f"{callback}: there are no threads")


@dataclasses.dataclass(frozen=True)
class _Answer:
    """The reply of an upstream call."""

    body: bytes
    status: int = Status.OK
    message: str = ""


class _Call:
    """A call that is answered already."""

    def cancel(self) -> None:
        raise AssertionError("nobody cancels here")


@dataclasses.dataclass(frozen=True)
class _Instant:
    """One method of one upstream."""

    worker: Worker
    path: str

    def start(
        self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None], rows: int
    ) -> Pending:
        started = time.perf_counter()
        answer = _Answer(self.worker.memory.answer(self.path, b"".join(body)))
        self.worker.due.append((on_done, answer))
        self.worker.clocks["upstreams"] += time.perf_counter() - started
        return _Call()


@dataclasses.dataclass(frozen=True)
class _Instants:
    """What plans are compiled with."""

    worker: Worker

    def onfs(self) -> Endpoint:
        return _Instant(self.worker, FETCH)

    def predator(self, endpoint: str) -> Endpoint:
        return _Instant(self.worker, INFER)

    def numerix(self) -> Endpoint:
        return _Instant(self.worker, COMPUTE)


class _Timed:
    """A component whose steps are timed."""

    def __init__(self, component: Component, clocks: dict[str, float]) -> None:
        self._component = component
        self._kind = type(component).__name__.lower()
        self._clocks = clocks

    @property
    def name(self) -> str:
        return self._component.name

    def run(self, scoring: Scoring) -> Steps:
        steps = self._component.run(scoring)
        replies: Sequence[Reply] | None = None
        while True:
            started = time.perf_counter()
            try:
                calls = next(steps) if replies is None else steps.send(replies)
            except StopIteration:
                return
            finally:
                self._clocks[self._kind] += time.perf_counter() - started
            replies = yield calls

    def fail(self, scoring: Scoring, cause: str) -> None:
        self._component.fail(scoring, cause)


class Worker:
    """A worker's service with all configs of the benchmark, its upstreams in memory."""

    def __init__(self) -> None:
        self.board = Board("worker-0")
        self.memory = Memory.of_upstreams()
        self.due: deque[tuple[Callable[[Reply], None], Reply]] = deque()
        """Replies that are on their way."""
        self.clocks: dict[str, float] = defaultdict(float)
        """Seconds spent so far, by kind of component, and in the upstreams."""
        self._service = Service(
            Executor(_Loop(), 0),
            MatrixPool(64 * MIB, 64 * MIB),
            max_in_flight=1,
            reading=Reading(),
            sampling_tz=datetime.UTC,
            board=self.board,
        )
        self._cache = FeatureCache(cache_segment(64 * MIB))
        self._service.plans.prepare(_snapshot(), self._compile)
        self._service.plans.activate(VERSION)

    def __repr__(self) -> str:
        return f"<Worker {self._service!r}>"

    def _compile(self, name: str, config: SnapshotConfig, expressions: Mapping[str, str]) -> Plan:
        document = decode(config.document)
        names = [component for component, _ in components(document)]
        plan = compile_plan(
            name,
            config.digest,
            document,
            topology(document.dag_execution_config.component_dependency, names),
            upstreams=_Instants(self),
            expressions=expressions,
            cache=self._cache,
            bounds=BOUNDS,
            board=self.board,
        )
        timed = tuple(_Timed(component, self.clocks) for component in plan.components)
        return dataclasses.replace(plan, components=timed)

    def score(self, method: int, message: bytes) -> bytes:
        """The body of the answer to a request; `method` is its place in METHODS.

        Raises WrongAnswerError when the answer is not OK.
        """
        answers: list[Answered] = []
        self._service.handle(method, {}, message, None, answers.append)
        while self.due:
            on_done, reply = self.due.popleft()
            on_done(reply)
        (answer,) = answers
        if answer.status is not Status.OK:
            raise WrongAnswerError(f"{answer.status.name}: {answer.message}")
        return answer.body

    def measure(self, case: Case, targets: int) -> Spent:
        """The least that a request of this case takes. Raises WrongAnswerError when its answer is wrong."""
        method, message = METHODS.index(case.method.encode()), case.message(targets)
        check(case, targets, self.score(method, message))
        started = time.perf_counter()
        self.score(method, message)
        requests = max(int(BATCH_SECONDS / (time.perf_counter() - started)), 1)
        return min(self._batch(method, message, requests) for _ in range(BATCHES))

    def _batch(self, method: int, message: bytes, requests: int) -> Spent:
        self.clocks.clear()
        started = time.perf_counter()
        for _ in range(requests):
            self.score(method, message)
        total = time.perf_counter() - started - self.clocks["upstreams"]
        kinds = (self.clocks[kind] for kind in Spent._fields[1:])
        return Spent(*(seconds / requests * 1e6 for seconds in (total, *kinds)))


def _snapshot() -> bytes:
    """All configs of the benchmark as the config sidecar would publish them."""
    seen = {CONFIGS_KEY + name: json.dumps(document).encode() for name, document in CONFIGS.items()}
    for name, text in EXPRESSIONS.items():
        seen[EXPRESSIONS_KEY + name] = json.dumps({"expression": text}).encode()
    return Catalog(check_expressions=True).update(seen, now=0).encode(VERSION)


def _row(case: Case, targets: int, spent: Spent) -> list[str]:
    return [case.name, str(targets), *(figure(part) for part in (*spent, spent.rest))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stages", description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help="comma list (all)")
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="comma list")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="replace the table in this page")
    arguments = parser.parse_args()
    cases = [CASES[name] for name in arguments.cases.split(",")]
    sizes = [int(number) for number in arguments.targets.split(",")]
    worker = Worker()
    rows = [_row(case, size, worker.measure(case, size)) for case in cases for size in sizes]
    table = Table("A request in the worker, without sockets", HEADER, rows)
    table.show(Console())
    if arguments.docs is not None:
        replace_section(arguments.docs, "stages", f"{table.markdown()}\n\n{machine()}.")


if __name__ == "__main__":
    main()
