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
from typing import Protocol, cast

from dag.component import Call, Pending, Reply, Scoring, Steps
from dag.meters import Trace, Watch
from dag.plan import Plan, Schedule
from shared.shm_matrix import MatrixFull

__all__ = ["Execution", "Executor", "Loop"]

log = logging.getLogger(__name__)


class Loop(Protocol):
    """What the executor needs of an event loop."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callable[[], object]) -> object: ...
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> object: ...


class _Awaited:
    """One call of a step, and where its reply belongs."""

    __slots__ = ("_execution", "_index", "_number", "_replies")

    def __init__(self, execution: Execution, number: int, replies: list[Reply | None], index: int) -> None:
        self._execution = execution
        self._number = number
        self._replies = replies
        self._index = index

    def ended(self, reply: Reply) -> None:
        self._replies[self._index] = reply
        self._execution.replied(self._number, self._replies)


class Execution:
    """One request on its way through the DAG."""

    __slots__ = (
        "_calls",
        "_executor",
        "_generators",
        "_left",
        "_on_done",
        "_on_idle",
        "_open",
        "_ready",
        "_running",
        "_schedule",
        "_stepping",
        "_waits",
        "_watch",
        "components",
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
        self.components = plan.components
        self.scoring = scoring
        self.deadline = deadline
        self.over = False
        self.error: MatrixFull | None = None  # the one failure that ends a request: no memory for its columns
        self._executor = executor
        self._schedule: Schedule = plan.schedule
        self._waits = list(self._schedule.waits)
        self._left = len(self._waits)
        self._stepping = 0
        self._ready: list[tuple[int, Sequence[Reply] | None]] = []
        self._running = False
        self._generators: list[Steps | None] = [None] * self._left
        self._calls: list[list[Pending]] = [[]] * self._left  # of the step that a component waits for
        self._open = [0] * self._left  # how many of them have not ended
        self._watch = Watch(plan.meters, deadline, trace)
        self._on_done = on_done
        self._on_idle = on_idle

    def start(self) -> None:
        """Starts the components that wait for nobody."""
        if not self._left:
            self._finish()
            return
        for number in self._schedule.first:
            self._begin(number, -1)

    def cancel(self) -> None:
        """Ends the execution: open calls are cancelled, `on_done` is not called any more."""
        if self.over:
            return
        self.over = True
        self._cancel_calls()
        self._rest()

    def stepped(self, number: int, calls: Sequence[Call] | None, error: BaseException | None) -> None:
        """The outcome of a step: the calls the component asks for, or None when it is done."""
        self._stepping -= 1
        if self.over:
            self._rest()
            return
        if error is not None:
            self._fail(number, error)
        elif calls is None:
            self._done(number)
        elif not calls:
            self._step(number, ())
        else:
            self._call(number, calls)

    def _begin(self, number: int, after: int) -> None:
        if self.over:  # an earlier sibling may have ended the request on the spot
            return
        self._watch.began(number, after)
        self._generators[number] = self.components[number].run(self.scoring)
        self._step(number, None)

    def _step(self, number: int, replies: Sequence[Reply] | None) -> None:
        self._stepping += 1
        if self._executor.threads:
            generator = self._generators[number]
            assert generator is not None
            self._executor.submit(self, number, generator, replies)
        elif self._running:
            self._ready.append((number, replies))
        else:
            self._run(number, replies)

    def _run(self, number: int, replies: Sequence[Reply] | None) -> None:
        """Takes this step and those that become ready by it, on this thread: a loop, not recursion."""
        self._running = True
        try:
            while True:
                calls, error = _stepped(self, self._generators[number], replies)
                self.stepped(number, calls, error)
                if not self._ready:
                    return
                number, replies = self._ready.pop(0)
        finally:
            self._running = False

    def _call(self, number: int, calls: Sequence[Call]) -> None:
        """Starts the calls; the component goes on when the last one has ended."""
        time_left = None if self.deadline is None else max(self.deadline - self._executor.loop.time(), 0.0)
        count = len(calls)
        replies: list[Reply | None] = [None] * count
        pending: list[Pending] = []
        self._calls[number] = pending
        self._open[number] = count
        trace = self._watch.trace
        for index, call in enumerate(calls):
            timeout = call.timeout
            if time_left is not None and time_left < timeout:
                timeout = time_left
            endpoint = call.endpoint if trace is None else trace.endpoint(number, call.endpoint)
            awaited = _Awaited(self, number, replies, index)
            pending.append(endpoint.start(call.body, timeout, awaited.ended, call.rows))

    def replied(self, number: int, replies: list[Reply | None]) -> None:
        """A call that component `number` asked for has ended: with the last one, the component goes on."""
        if self.over:
            return
        self._open[number] -= 1
        if not self._open[number]:
            self._calls[number] = []
            self._step(number, cast("list[Reply]", replies))

    def _fail(self, number: int, error: BaseException) -> None:
        if isinstance(error, MatrixFull):
            self.error = error
            self._cancel_calls()
            self._finish()
            return
        component = self.components[number]
        log.error("component failed", exc_info=error, extra={"component": component.name})
        component.fail(self.scoring, f"internal error: {type(error).__name__}: {error}")
        self._done(number)

    def _done(self, number: int) -> None:
        self._generators[number] = None
        self._watch.ended(number)
        self._left -= 1
        if not self._left:
            self._watch.finished()
            self._finish()
            return
        for child in self._schedule.releases[number]:
            self._waits[child] -= 1
            if not self._waits[child]:
                self._begin(child, number)

    def _finish(self) -> None:
        self.over = True
        try:
            self._on_done(self)
        finally:
            self._rest()

    def _cancel_calls(self) -> None:
        for pending in self._calls:
            for call in pending:
                call.cancel()
        self._calls = []
        self._open = []

    def _rest(self) -> None:
        """Says once that nobody touches the matrix any more."""
        if self._stepping:
            return
        generators, self._generators = self._generators, []
        for generator in generators:
            if generator is not None:
                generator.close()
        on_idle = self._on_idle
        # Whoever waits for the execution holds it, too: no cycles for the garbage collector.
        self._on_done = self._on_idle = _nobody
        on_idle(self)

    def __repr__(self) -> str:
        open_calls = sum(self._open)
        return f"<Execution {self._left} components left, {self._stepping} stepping, {open_calls} calls open>"


def _nobody(_: Execution) -> None:
    """Stands in for `on_idle` once it was called."""


Job = tuple[Execution, int, Steps, Sequence[Reply] | None]
Outcome = tuple[Execution, int, Sequence[Call] | None, BaseException | None]


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

    def submit(
        self, execution: Execution, number: int, generator: Steps, replies: Sequence[Reply] | None
    ) -> None:
        """Has a thread step the generator; the execution is told the outcome on the I/O thread."""
        self._jobs.put((execution, number, generator, replies))

    def close(self) -> None:
        """Stops the threads, after the jobs they have."""
        for _ in self.threads:
            self._jobs.put(None)
        for thread in self.threads:
            thread.join()
        self.threads.clear()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            execution, number, generator, replies = job
            self._outcomes.append((execution, number, *_stepped(execution, generator, replies)))
            if not self._waking:
                self._waking = True
                self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        # The flag falls first: an outcome appended after the last popleft wakes the loop again.
        self._waking = False
        try:
            while self._outcomes:
                execution, number, calls, error = self._outcomes.popleft()
                execution.stepped(number, calls, error)
        finally:
            if self._outcomes:  # an answer that could not be given must not hold back other requests
                self.loop.call_soon(self._drain)

    def __repr__(self) -> str:
        return f"<Executor {len(self.threads)} threads, {self._jobs.qsize()} jobs waiting>"


def _stepped(
    execution: Execution, generator: Steps | None, replies: Sequence[Reply] | None
) -> tuple[Sequence[Call] | None, BaseException | None]:
    """One step of a component: the calls it asks for (None: it is done), or what it raised."""
    if execution.over or generator is None:
        return None, None
    try:
        return (next(generator) if replies is None else generator.send(replies)), None
    except StopIteration:
        return None, None
    except Exception as error:  # noqa: BLE001 — its rows' error, not the request's end
        return None, error
