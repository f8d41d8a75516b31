"""What a worker does with config versions: prepares them, activates them, waits for endpoints. On the I/O thread.

Preparing is compiling, one config in a turn of the loop, so that requests are served meanwhile, and connecting
to the endpoints that a config did not have before. Endpoints that do not answer in time are reported; then
they are tried for as long as the config sidecar says that their config waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from dag.plan import Plan
from rpc.client import Channel
from rpc.status import RpcError
from shared import saved
from shared.config_link import Outcome
from shared.saved import SavedError
from workers.plans import Compile, PlanSet, Version
from workers.upstreams import WorkerUpstreams, targets_of

__all__ = ["Follower"]

log = logging.getLogger(__name__)

CONNECT_SECONDS = 1.0
"""For how long new endpoints may hold up a version. A connection takes milliseconds."""
COLD_CONNECT_SECONDS = 0.25
"""The same for the first version of a worker: it is served whether they answer or not."""
FIRST_PAUSE = 0.2  # seconds between two looks at an endpoint that does not answer; doubled each time
LONGEST_PAUSE = 5.0
SWEEP_SECONDS = 1.0
"""Between two looks whether the last requests of older versions have ended, while there are some."""


class _Waiting:
    """A config whose new endpoints do not answer. Its plan keeps their channels alive."""

    def __init__(self, plan: Plan, task: asyncio.Task[None]) -> None:
        self.plan = plan
        self.task = task


class Follower:
    """Keeps `plans` at the version that the config sidecar wants. See `shared.config_link.ConfigFollower`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plans: PlanSet,
        upstreams: WorkerUpstreams,
        compile_plan: Compile,
        state_dir: Path,
        *,
        on_version: Callable[[int, str], None],
        on_connected: Callable[[Collection[str]], None],
        on_retiring: Callable[[int], None],
    ) -> None:
        """`state_dir` is where the last good version is saved. `on_version(number, notice)` is called when either
        changes (number 0: nothing is active yet), `on_connected(configs)` when endpoints answer that these
        configs waited for, `on_retiring(plans)` with the number of plans of older versions that requests still run
        on: once a second while there are any, and when there are none any more.
        """
        self._loop = loop
        self._plans = plans
        self._upstreams = upstreams
        self._compile = compile_plan
        self._state_dir = state_dir
        self._on_version = on_version
        self._on_connected = on_connected
        self._on_retiring = on_retiring
        self._notice = ""
        self._waiting: dict[str, _Waiting] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Follower {self._plans!r}, {len(self._waiting)} configs wait for endpoints>"

    # --- ConfigFollower

    async def prepare(self, version: int, document: bytes | memoryview) -> Outcome:
        """Compiles a snapshot and connects to what is new in it. Raises ValueError."""
        prepared = await self._compiled(document)
        missing = await self._connect(prepared)
        for name, channels in missing.items():
            self._wait(name, prepared.plans[name], channels)
        reasons = {
            name: "waiting for "
            + "; ".join(f"endpoint {target}: {reason}" for target, reason in failed.items())
            for name, failed in missing.items()
        }
        log.info(
            "version prepared",
            extra={
                "version": version,
                "configs": len(prepared.plans),
                "changed": len(prepared.changed),
                "waiting": reasons,
            },
        )
        return Outcome(dict(prepared.refused), reasons)

    def activate(self, version: int) -> None:
        """Puts a prepared version into service."""
        self._plans.activate(version)
        active = self._plans.active
        assert active is not None  # it was activated
        for name in [name for name in self._waiting if name not in active.waiting]:
            self._waiting.pop(name).task.cancel()
        log.info("version active", extra={"version": version, "retiring": self._plans.retiring})
        self._on_version(version, self._notice)
        self._sweep_later()

    def notice(self, text: str) -> None:
        """The sidecar says something about the configs as a whole; "" takes it back."""
        if text == self._notice:
            return
        self._notice = text
        self._on_version(self._plans.active.number if self._plans.active is not None else 0, text)

    def saved(self) -> tuple[int, bytes] | None:
        """The version that was saved last, and its snapshot; None when there is none that can be used."""
        try:
            found = saved.load(self._state_dir)
            return None if found is None else (found.head.version, found.encoded)
        except (SavedError, OSError) as error:
            log.error("saved version is not used", extra={"reason": str(error)})
            return None

    async def close(self) -> None:
        """Ends waiting for endpoints."""
        if self._sweep is not None:
            self._sweep.cancel()
        tasks = [waiting.task for waiting in self._waiting.values()]
        self._waiting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- preparing

    async def _compiled(self, document: bytes | memoryview) -> Version:
        steps = self._plans.steps(document, self._compile)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                version: Version = end.value
                return version
            await asyncio.sleep(0)

    async def _connect(self, version: Version) -> dict[str, dict[str, str]]:
        """Connects to the endpoints that are new to their configs: all at once, each once.

        Returns the configs that are served now and whose new endpoints do not answer: name → target → reason.
        A config that is not served yet waits for nothing: its rows say what is wrong.
        """
        wanted = {name: self._new_targets(version, name) for name in sorted(version.changed)}
        channels = {target: channel for targets in wanted.values() for target, channel in targets.items()}
        active = self._plans.active
        limit = COLD_CONNECT_SECONDS if active is None else CONNECT_SECONDS
        reasons = await asyncio.gather(*(_reason(channel, limit) for channel in channels.values()))
        outcomes = dict(zip(channels, reasons, strict=True))
        served = {} if active is None else active.plans
        missing = {
            name: {target: outcomes[target] for target in targets if outcomes[target]}
            for name, targets in wanted.items()
            if name in served
        }
        return {name: failed for name, failed in missing.items() if failed}

    def _new_targets(self, version: Version, name: str) -> Mapping[str, Channel]:
        active = self._plans.active
        old = active.plans.get(name) if active is not None else None
        known = targets_of(old) if old is not None else {}
        new = targets_of(version.plans[name])
        return {target: channel for target, channel in new.items() if target not in known}

    # --- waiting

    def _wait(self, name: str, plan: Plan, failed: Mapping[str, str]) -> None:
        """Goes on trying the endpoints of a config, in place of those that it waited for before."""
        if name in self._waiting:
            self._waiting.pop(name).task.cancel()
        channels = [channel for target, channel in targets_of(plan).items() if target in failed]
        task = self._loop.create_task(self._until_connected(name, channels))
        self._waiting[name] = _Waiting(plan, task)

    async def _until_connected(self, name: str, channels: Collection[Channel]) -> None:
        for channel in channels:
            pause = FIRST_PAUSE
            while await _reason(channel):
                await asyncio.sleep(pause * random.uniform(0.75, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
        log.info("endpoints answer now", extra={"config": name})
        # The plan stays until the next activation: it is about to be prepared again, on the same channels.
        self._on_connected([name])

    # --- after the last requests

    def _sweep_later(self) -> None:
        """Closes channels when nothing uses them any more, which may be when the last requests have ended."""
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        closed = self._upstreams.close_unused(self._plans.living())
        if closed:
            log.info("upstreams closed: no config uses them", extra={"targets": closed})
        retiring = self._plans.retiring
        self._on_retiring(retiring)
        if retiring:
            self._sweep_later()


async def _reason(channel: Channel, limit: float = CONNECT_SECONDS) -> str:
    """Connects; returns why that cannot be done within `limit` seconds, "" when it can."""
    try:
        await channel.connect(limit)
    except RpcError as error:
        return error.message
    return ""
