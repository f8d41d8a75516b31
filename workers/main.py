"""What a worker process owns, and its life.

One I/O thread (uvloop) owns every socket: links to the front doors, channels to the upstreams, the link to the
config sidecar. Executor threads run the DAGs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import uvloop

from components.compile import Bounds, CompileError, compile_plan
from dag.config import decode
from dag.executor import Executor
from dag.plan import Plan
from dag.topology import TopologyCache
from shared import logs, process
from shared.board import Board
from shared.config_link import ConfigLink
from shared.feature_cache import FeatureCache
from shared.frames import Hello, Readiness, State
from shared.log_link import LogLink
from shared.publishing import Publisher, VersionMeter
from shared.rundir import private_directory
from shared.settings import Settings
from shared.shm_matrix import MatrixPool
from workers.doors import Doors
from workers.follower import Follower
from workers.handover import Handover
from workers.meters import gather, gather_cache
from workers.plans import SnapshotConfig
from workers.requests import Reading
from workers.service import Service
from workers.upstreams import WorkerUpstreams

if TYPE_CHECKING:  # nothing of OpenTelemetry is imported while tracing is off
    from workers.tracing import Tracing

__all__ = ["Worker", "main"]

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """Everything that one worker process owns."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.loop = loop
        self.board = Board(f"worker-{settings.index}")
        self.tracing = _tracing(settings, self.board)
        self.executor = Executor(loop, settings.executor_threads)
        run_dir = private_directory(settings.run_dir)
        # What is lent to the log sidecar comes on top: requests have what they would have without it.
        lent_bytes = settings.log.lent_bytes if settings.logs_to else 0
        self.pool = MatrixPool(
            settings.matrix_bytes + lent_bytes, settings.max_matrix_bytes, threads=settings.executor_threads
        )
        self.log_link: LogLink | None = None
        if lent_bytes:
            path = run_dir / "logs.sock"
            self.log_link = LogLink(loop, path, self.pool, worker=settings.index, limit=lent_bytes)
        self.service = Service(
            self.executor,
            self.pool,
            max_in_flight=settings.max_in_flight,
            reading=Reading("text-features" in settings.compat, settings.reference_codecs),
            sampling_tz=settings.sampling_tz,
            tracing=self.tracing,
            inference_log=Handover(self.log_link, settings.sampling_tz) if self.log_link else None,
            board=self.board,
        )
        self.doors = Doors(
            loop,
            run_dir,
            self.service,
            Hello(settings.index, os.getpid(), settings.max_in_flight),
            settings.max_request_bytes,
            self.board,
        )
        self.upstreams = WorkerUpstreams(settings, self.board)
        cache_bytes = settings.feature_cache_bytes
        self.cache = FeatureCache(capacity=cache_bytes) if cache_bytes else None
        self.follower = Follower(
            loop,
            self.service.plans,
            self.upstreams,
            self._compile,
            settings.state_dir,
            on_version=self._serving,
            on_connected=self._connected,
            on_retiring=self._retiring,
        )
        self.config_link = ConfigLink(
            loop,
            run_dir / "config.sock",
            worker=settings.index,
            follower=self.follower,
            cache=self.cache,
        )
        self.publisher = Publisher(loop, self.board, settings)
        self._version = VersionMeter(self.board)
        self.board.before_publishing(self._gather)
        self._topologies = TopologyCache(settings.topology_cache_size, settings.topology_cache_ttl_s)
        self._bounds = Bounds(
            onfs_timeout=settings.onfs.deadline_ms / 1000,
            onfs_batch=settings.onfs.batch_size,
            predator_timeout=settings.predator.deadline_ms / 1000,
            numerix_timeout=settings.numerix.deadline_ms / 1000,
            numerix_batch=settings.numerix.batch_size,
            string_scores="string-scores" in settings.compat,
            reference_codecs=settings.reference_codecs,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then drains."""
        self.publisher.start()
        process.settle()
        process.keep_freed_memory()
        self.config_link.start()
        if self.log_link is not None:
            self.log_link.start()
        looking = self.loop.create_task(self.doors.keep_looking())
        await stop.wait()
        await self._drain()
        looking.cancel()
        self.doors.finish()
        if self.log_link is not None:
            await self.log_link.close()
        await self.config_link.close()
        await self.follower.close()
        await self.upstreams.close()
        self.executor.close()
        if self.tracing is not None:
            self.tracing.close()
        self.publisher.close()

    def _gather(self) -> None:
        self._version.show(self.doors.state.version)
        gather(self.board, self.service.in_flight, self.pool, self.upstreams)
        if self.cache is not None:
            gather_cache(self.board, self.cache)

    def _serving(self, version: int, notice: str) -> None:
        if self.doors.state.readiness is not Readiness.DRAINING:
            readiness = Readiness.READY if version else Readiness.NOT_READY
            is_first = not self.doors.state.version
            self.doors.tell(State(readiness, version, notice))
            if is_first:
                self.publisher.publish()  # who waits for this worker need not wait for the next publication

    def _connected(self, configs: Collection[str]) -> None:
        self.config_link.connected(tuple(configs))

    def _retiring(self, plans: int) -> None:
        self.config_link.retiring(plans)

    def _compile(self, name: str, config: SnapshotConfig, expressions: Mapping[str, str]) -> Plan:
        document = decode(bytes(config.document))
        parts = document.component_config
        names = [part.component for part in parts.feature_components]
        names += [part.component for part in parts.predator_components]
        names += [part.component for part in parts.numerix_components]
        try:
            topology = self._topologies.get(document.dag_execution_config.component_dependency, names)
            return compile_plan(
                name,
                config.digest,
                document,
                topology,
                upstreams=self.upstreams,
                expressions=expressions,
                cache=self.cache,
                bounds=self._bounds,
                board=self.board,
            )
        except ValueError as error:
            raise CompileError(str(error)) from error

    async def _drain(self) -> None:
        """Answers what is in flight; what takes longer than the drain time is cancelled with the links."""
        self.doors.tell(State(Readiness.DRAINING, self.doors.state.version, "the worker is shutting down"))
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self.doors.idle()
        except TimeoutError:
            log.warning("drain time is over", extra={"in_flight": self.doors.in_flight})


def _tracing(settings: Settings, board: Board) -> Tracing | None:
    if not settings.tracing.endpoint:
        return None
    from workers.tracing import Tracing  # not at the top: a second and 30 MB, which most workers need not pay

    return Tracing(settings, board)


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    logs.log_loop_errors(loop)
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    worker = Worker(settings, loop)
    await worker.run(stop)
    process.ignore_stops(loop, STOP_SIGNALS)


def main() -> None:
    settings = Settings.from_env(os.environ)
    process.die_with_parent(settings.supervisor_pid)
    process.name(f"worker {settings.index}")
    logs.configure(f"worker-{settings.index}", settings.log_level)
    if settings.pin:
        process.pin(settings.index)
    uvloop.run(_serve(settings))
