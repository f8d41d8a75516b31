"""One worker's service in this process: validation, plans, executor, matrices, all but the sockets.

Upstream calls are answered by `tests.upstreams`, and nobody waits for slow ones: the clock that the service
reads is moved on instead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from components.compile import Bounds, CompileError, compile_plan
from components.feature_init import initialize
from dag.component import Endpoint, Pending, Reply, Scoring
from dag.config import decode
from dag.executor import Execution, Executor
from dag.field_rules import components
from dag.plan import Plan
from dag.topology import topology
from frontdoor.services import METHODS
from shared.board import Board
from shared.cache_memory import cache_segment
from shared.feature_cache import FeatureCache
from shared.shm_matrix import MatrixPool
from sidecar.catalog import Catalog
from sidecar.source import CONFIGS, EXPRESSIONS, Text
from tests.upstreams import COMPUTE, FETCH, INFER, Answer, Upstreams, delay
from workers.plans import SnapshotConfig
from workers.requests import ADAPTERS, Reading
from workers.service import Answered, Service, Ticket

__all__ = ["InProcess", "RecordedCall", "Scored"]

PATIENCE = 60.0
"""Seconds after which a test gives up; nothing is expected to take nearly as long."""
MIB = 1 << 20
DEADLINE_EXCEEDED = 4
CALLER = {"caller-id": "caller", "auth-token": "token"}


@dataclasses.dataclass(frozen=True)
class RecordedCall:
    """An upstream call as an upstream sees it, and the status it was answered with."""

    path: str
    status: int
    metadata: Mapping[str, str]
    request: bytes


class Scored(NamedTuple):
    """A request whose DAG has run."""

    plan: Plan
    scoring: Scoring
    release: Callable[[], None]


class _MovableClock:
    """The event loop as the executor needs it, with a clock that can be moved on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ahead = 0.0

    def time(self) -> float:
        return self._loop.time() + self._ahead

    def move_on(self, seconds: float) -> None:
        self._ahead += seconds

    def call_soon(self, callback: Callable[[], object]) -> object:
        return self._loop.call_soon(callback)

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> object:
        return self._loop.call_soon_threadsafe(callback)


@dataclasses.dataclass(frozen=True)
class _Method:
    """One method of one upstream. As a real one it answers later, on the loop's thread, and can be cancelled."""

    world: InProcess
    path: str
    metadata: Mapping[str, str]

    def start(
        self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None], rows: int
    ) -> Pending:
        request = b"".join(body)
        answer = self.world.answers.answer(self.path, request)
        self.world.calls.append(RecordedCall(self.path, answer.status, self.metadata, request))
        self.world.asked.set()
        takes = min(delay(request), timeout)

        def done() -> None:
            self.world.clock.move_on(takes)
            late = timeout <= 0 or takes < delay(request)
            on_done(Answer(DEADLINE_EXCEEDED, f"no answer within {timeout:g} s") if late else answer)

        return self.world.loop.call_soon(done)


class _Methods:
    """What plans are compiled with: every endpoint is the stand-in."""

    def __init__(self, world: InProcess, *, numerix: bool) -> None:
        self._world = world
        self._numerix = numerix

    def onfs(self) -> Endpoint:
        metadata = {f"online-feature-store-{name}": value for name, value in CALLER.items()}
        return _Method(self._world, FETCH, metadata)

    def predator(self, endpoint: str) -> Endpoint:
        return _Method(self._world, INFER, {f"predator-{name}": value for name, value in CALLER.items()})

    def numerix(self) -> Endpoint | None:
        return _Method(self._world, COMPUTE, {"numerix-caller-id": "golden"}) if self._numerix else None


class InProcess:
    """A service with these configs (name → JSON text) and expressions (compute_id → postfix) active.

    `calls` are the upstream calls so far. `numerix`: ask the stand-in for scores, do not compute them here.

    Calls and answers happen within `ask`; between two of them nothing runs but idle executor threads.
    """

    def __init__(
        self,
        configs: Mapping[str, bytes],
        answers: Upstreams,
        *,
        expressions: Mapping[str, str] | None = None,
        reference: bool = False,
        threads: int = 0,
        text_features: bool = False,
        string_scores: bool = False,
        numerix: bool = True,
        max_in_flight: int = 256,
        max_matrix_bytes: int = 64 * MIB,
    ) -> None:
        self.answers = answers
        self.board = Board("worker-0")
        self.calls: list[RecordedCall] = []
        self.asked = asyncio.Event()  # set by each upstream call
        self._runner = asyncio.Runner()
        self.loop = self._runner.get_loop()
        self.clock = _MovableClock(self.loop)
        self._executor = Executor(self.clock, threads)
        self.pool = MatrixPool(64 * MIB, max_matrix_bytes, threads=threads)
        self.service = Service(
            self._executor,
            self.pool,
            max_in_flight=max_in_flight,
            reading=Reading(text_features, reference),
            sampling_tz=datetime.UTC,
            board=self.board,
        )
        self._upstreams = _Methods(self, numerix=numerix)
        self._cache = FeatureCache(cache_segment(MIB))
        self._bounds = Bounds(
            onfs_timeout=2.0,
            onfs_batch=5,
            predator_timeout=0.2,
            numerix_timeout=5.0,
            numerix_batch=5,
            string_scores=string_scores,
            reference_codecs=reference,
        )
        self._activate(configs, expressions or {}, check_expressions=not numerix)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.close()
        self._runner.close()
        self.pool.close()

    def ask(
        self, path: str, body: bytes, *, metadata: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> Answered:
        """The answer to a request; returns when no thread works on it any more."""
        return self._runner.run(self._ask(path, body, metadata or {}, timeout))

    def scored(self, path: str, body: bytes, metadata: Mapping[str, str] | None = None) -> Scored:
        """The matrix of a request once its DAG has run. Its slot stays taken until `Scored.release`."""
        return self._runner.run(self._score(path, body, metadata or {}))

    def cancelled(self, path: str, body: bytes) -> None:
        """Starts a request and cancels it as soon as it waits for an upstream."""
        self._runner.run(self._cancel(path, body))

    def take_calls(self) -> list[RecordedCall]:
        """The upstream calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def _start(
        self,
        path: str,
        body: bytes,
        metadata: Mapping[str, str],
        timeout: float,
        on_answer: Callable[[Answered], None],
    ) -> Ticket:
        return self.service.handle(
            METHODS.index(path.encode()),
            {name.encode(): value.encode() for name, value in metadata.items()},
            body,
            self.clock.time() + timeout,
            on_answer,
        )

    async def _ask(self, path: str, body: bytes, metadata: Mapping[str, str], timeout: float) -> Answered:  # noqa: ASYNC109
        answered: asyncio.Future[Answered] = self.loop.create_future()
        self._start(path, body, metadata, timeout, answered.set_result)
        async with asyncio.timeout(PATIENCE):
            outcome = await answered
        await self._idle()
        return outcome

    async def _score(self, path: str, body: bytes, metadata: Mapping[str, str]) -> Scored:
        given = {name.encode(): value.encode() for name, value in metadata.items()}
        slot = self.pool.acquire()
        inquiry = ADAPTERS[METHODS.index(path.encode())](body, given, Reading(), slot)
        plan = self.service.plans.find(inquiry.model_config_id)
        scoring = initialize(plan, inquiry.bring(plan), slot)
        ran, freed = self.loop.create_future(), self.loop.create_future()
        execution = Execution(self._executor, plan, scoring, None, ran.set_result, freed.set_result)
        execution.start()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(ran, freed)
        return Scored(plan, scoring, lambda: self.pool.release(slot))

    async def _cancel(self, path: str, body: bytes) -> None:
        def unexpected(outcome: Answered) -> None:
            raise AssertionError(f"a cancelled request was answered: {outcome}")

        self.asked.clear()
        ticket = self._start(path, body, {}, 5.0, unexpected)
        async with asyncio.timeout(PATIENCE):
            await self.asked.wait()
        ticket.cancel()
        await self._idle()

    async def _idle(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.service.in_flight:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)

    def _activate(
        self, configs: Mapping[str, bytes], expressions: Mapping[str, str], *, check_expressions: bool
    ) -> None:
        seen: dict[str, Text] = {CONFIGS + name: text for name, text in configs.items()}
        for name, text in expressions.items():
            seen[EXPRESSIONS + name] = json.dumps({"expression": text}).encode()
        content = Catalog(check_expressions=check_expressions).update(seen, now=0)
        self.service.plans.prepare(content.encode(1), self._compile)
        self.service.plans.activate(1)

    def _compile(self, name: str, config: SnapshotConfig, expressions: Mapping[str, str]) -> Plan:
        document = decode(bytes(config.document))
        names = [component for component, _ in components(document)]
        try:
            order = topology(document.dag_execution_config.component_dependency, names)
        except ValueError as error:
            raise CompileError(str(error)) from error
        return compile_plan(
            name,
            config.digest,
            document,
            order,
            upstreams=self._upstreams,
            expressions=expressions,
            cache=self._cache,
            bounds=self._bounds,
            board=self.board,
        )

    def __repr__(self) -> str:
        return f"<InProcess {self.service!r}, {self.pool!r}, {len(self.calls)} upstream calls>"
