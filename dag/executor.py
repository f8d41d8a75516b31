"""Drives the components of a request: each starts as soon as its own parents are done.

Ownership and threads: an `Execution` lives on the I/O thread. Everything it decides (who is ready, which calls
are open, whether it is over) is decided there. Executor threads only step generators, one step of one component
at a time, and hand the outcome back; with 0 threads the steps run on the I/O thread itself.

Rules:
- a component is stepped by one thread at a time, and never after its execution is over;
- `on_done` is called exactly once, unless the execution was cancelled first: then `on_idle` alone is called;
- `on_idle` is called once, when no thread touches the request's matrix any more: only then may the slot be freed;
- a component that raises has its rows marked and the others go on.
"""

from __future__ import annotations

import collections
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol, cast

from dag.component import Call, Component, Pending, Reply, Scoring, Steps
from dag.meters import ComponentMeters, Trace, Watch
from dag.plan import Plan
from dag.schedule import Schedule
from shared.shm_matrix import MatrixFull

__all__ = ["Execution", "Executor", "Loop"]

log = logging.getLogger(__name__)


class Loop(Protocol):
    """What the executor needs of an event loop."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callable[[], object]) -> object: ...
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> object: ...


class _Part(Watch):
    """One component of one request: how far it is, and since when."""

    __slots__ = ("calls", "component", "number", "open", "steps", "waits")

    def __init__(self, number: int, component: Component, meters: ComponentMeters, waits: int) -> None:
        super().__init__(meters)
        self.number = number
        self.component = component
        self.waits = waits
        """Parents that have not ended."""
        self.steps: Steps | None = None
        """The component's generator, from its begin to its end."""
        self.calls: list[Pending] = []
        """Those of the step that it waits for."""
        self.open = 0
        """How many of them have not ended."""

    def __repr__(self) -> str:
        return f"<_Part {self.component.name}, waits for {self.waits} parents and {self.open} calls>"


class _Awaited:
    """One call of a step, and where its reply belongs."""

    __slots__ = ("_execution", "_index", "_part", "_replies")

    def __init__(self, execution: Execution, part: _Part, replies: list[Reply | None], index: int) -> None:
        self._execution = execution
        self._part = part
        self._replies = replies
        self._index = index

    def ended(self, reply: Reply) -> None:
        self._replies[self._index] = reply
        self._execution.replied(self._part, self._replies)


class Execution:
    """One request on its way through the DAG."""

    __slots__ = (
        "_executor",
        "_left",
        "_on_done",
        "_on_idle",
        "_parts",
        "_ready",
        "_running",
        "_schedule",
        "_stepping",
        "_trace",
        "deadline",
        "error",
        "over",
        "scoring",
    )

    def __init__(
        self,
        executor: Executor,
        plan: Plan,
        scoring: Scoring,
        deadline: float | None,
        on_done: Callable[[Execution], None],
        on_idle: Callable[[Execution], None],
        trace: Trace | None = None,
    ) -> None:
        """`deadline` on the clock of the loop; `trace`: where it is told what happens, if anybody wants to know."""
        self.scoring = scoring
        self.deadline = deadline
        self.over = False
        self.error: MatrixFull | None = None  # the one failure that ends a request: no memory for its columns
        self._executor = executor
        self._schedule: Schedule = plan.schedule
        components = plan.components
        meters = plan.meters.components
        waits = self._schedule.waits
        self._left = len(waits)
        self._parts = [
            _Part(number, components[number], meters[number], waits[number]) for number in range(self._left)
        ]
        self._stepping = 0
        self._ready: list[tuple[_Part, Sequence[Reply] | None]] = []
        self._running = False
        self._trace = trace
        self._on_done = on_done
        self._on_idle = on_idle

    def start(self) -> None:
        """Starts the components that wait for nobody."""
        if not self._left:
            self._finish()
            return
        for number in self._schedule.first:
            self._begin(self._parts[number], monotonic(), None)

    def cancel(self) -> None:
        """Ends the execution: open calls are cancelled, `on_done` is not called any more."""
        if self.over:
            return
        self.over = True
        self._cancel_calls()
        self._rest()

    def stepped(self, part: _Part, calls: list[Call] | None, error: BaseException | None) -> None:
        """The outcome of a step: the calls the component asks for, or None when it is done."""
        self._stepping -= 1
        if self.over:
            self._rest()
            return
        if error is not None:
            self._fail(part, error)
        elif calls is None:
            self._done(part)
        elif not calls:
            self._step(part, ())
        else:
            self._call(part, calls)

    def _begin(self, part: _Part, now: float, after: _Part | None) -> None:
        if self.over:  # an earlier sibling may have ended the request on the spot
            return
        part.begin(now, after, self.deadline)
        if self._trace is not None:
            self._trace.began(part.number)
        part.steps = part.component.run(self.scoring)
        self._step(part, None)

    def _step(self, part: _Part, replies: Sequence[Reply] | None) -> None:
        self._stepping += 1
        if self._executor.threads:
            self._executor.submit(self, part, replies)
        elif self._running:
            self._ready.append((part, replies))
        else:
            self._run(part, replies)

    def _run(self, part: _Part, replies: Sequence[Reply] | None) -> None:
        """Takes this step and those that become ready by it, on this thread: a loop, not recursion."""
        self._running = True
        try:
            while True:
                calls, error = _stepped(self, part, replies)
                self.stepped(part, calls, error)
                if not self._ready:
                    return
                part, replies = self._ready.pop(0)
        finally:
            self._running = False

    def _call(self, part: _Part, calls: list[Call]) -> None:
        """Starts the calls; the component goes on when the last one has ended."""
        time_left = None if self.deadline is None else max(self.deadline - self._executor.loop.time(), 0.0)
        count = len(calls)
        replies: list[Reply | None] = [None] * count
        pending: list[Pending] = []
        part.calls = pending
        part.open = count
        trace = self._trace
        for index in range(count):
            call = calls[index]
            timeout = call.timeout
            if time_left is not None and time_left < timeout:
                timeout = time_left
            endpoint = call.endpoint if trace is None else trace.endpoint(part.number, call.endpoint)
            awaited = _Awaited(self, part, replies, index)
            pending.append(endpoint.start(call.body, timeout, awaited.ended, call.rows))

    def replied(self, part: _Part, replies: list[Reply | None]) -> None:
        """A call that this component asked for has ended: with the last one, the component goes on."""
        if self.over:
            return
        part.open -= 1
        if not part.open:
            part.calls = []
            self._step(part, cast("list[Reply]", replies))

    def _fail(self, part: _Part, error: BaseException) -> None:
        if isinstance(error, MatrixFull):
            self.error = error
            self._cancel_calls()
            self._finish()
            return
        component = part.component
        log.error("component failed", exc_info=error, extra={"component": component.name})
        component.fail(self.scoring, f"internal error: {type(error).__name__}: {error}")
        self._done(part)

    def _done(self, part: _Part) -> None:
        part.steps = None
        now = monotonic()
        part.end(now)
        if self._trace is not None:
            self._trace.ended(part.number)
        self._left -= 1
        if not self._left:
            part.ended_last()
            self._finish()
            return
        for number in self._schedule.releases[part.number]:
            child = self._parts[number]
            child.waits -= 1
            if not child.waits:
                self._begin(child, now, part)

    def _finish(self) -> None:
        self.over = True
        try:
            self._on_done(self)
        finally:
            self._rest()

    def _cancel_calls(self) -> None:
        for part in self._parts:
            calls, part.calls = part.calls, []
            for call in calls:
                call.cancel()

    def _rest(self) -> None:
        """Says once that nobody touches the matrix any more."""
        if self._stepping:
            return
        for part in self._parts:
            if part.steps is not None:
                part.steps.close()
                part.steps = None
        on_idle = self._on_idle
        # Whoever waits for the execution holds it, too: no cycles for the garbage collector.
        self._on_done = self._on_idle = _nobody
        on_idle(self)

    def __repr__(self) -> str:
        open_calls = sum([part.open for part in self._parts])
        return f"<Execution {self._left} components left, {self._stepping} stepping, {open_calls} calls open>"


def _nobody(_: Execution) -> None:
    """Stands in for `on_idle` once it was called."""


Job = tuple[Execution, _Part, Sequence[Reply] | None]
Outcome = tuple[Execution, _Part, list[Call] | None, BaseException | None]


class Executor:
    """Steps generators: on `threads` threads, or on the I/O thread when there are none."""

    def __init__(self, loop: Loop, threads: int) -> None:
        self.loop = loop
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outcomes: collections.deque[Outcome] = collections.deque()
        self._waking = False  # one wake-up of the loop is enough for many outcomes
        self.threads = [
            threading.Thread(target=self._work, name=f"executor-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def submit(self, execution: Execution, part: _Part, replies: Sequence[Reply] | None) -> None:
        """Has a thread step the component; the execution is told the outcome on the I/O thread."""
        self._jobs.put((execution, part, replies))

    def close(self) -> None:
        """Stops the threads, after the jobs they have."""
        for _ in self.threads:
            self._jobs.put(None)
        for thread in self.threads:
            thread.join()
        self.threads.clear()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            execution, part, replies = job
            calls, error = _stepped(execution, part, replies)
            self._outcomes.append((execution, part, calls, error))
            if not self._waking:
                self._waking = True
                self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        # The flag falls first: an outcome appended after the last popleft wakes the loop again.
        self._waking = False
        try:
            while self._outcomes:
                execution, part, calls, error = self._outcomes.popleft()
                execution.stepped(part, calls, error)
        finally:
            if self._outcomes:  # an answer that could not be given must not hold back other requests
                self.loop.call_soon(self._drain)

    def __repr__(self) -> str:
        return f"<Executor {len(self.threads)} threads, {self._jobs.qsize()} jobs waiting>"


def _stepped(
    execution: Execution, part: _Part, replies: Sequence[Reply] | None
) -> tuple[list[Call] | None, BaseException | None]:
    """One step of a component: the calls it asks for (None: it is done), or what it raised."""
    steps = part.steps
    if execution.over or steps is None:
        return None, None
    try:
        return (next(steps) if replies is None else steps.send(replies)), None
    except StopIteration:
        return None, None
    except Exception as error:  # noqa: BLE001 — its rows' error, not the request's end
        return None, error
