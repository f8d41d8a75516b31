"""The executor: random DAGs of scripted components, and whatever can happen to them in whatever order.

Two machines run the same rules: one steps components on the I/O thread, the other on threads, each of which
stops at a gate in front of every step, so that a test decides when a step ends. A third test runs requests on a
real event loop.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import uvloop
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from dag.component import Call, Pending, Reply, Scoring, Steps
from dag.executor import Execution, Executor
from shared.shm_matrix import MatrixFull, MatrixPool, ShmMatrix, Slot
from tests.dag.plans import plan_of
from tests.effort import tries

MIB = 1 << 20
PATIENCE = 60.0
"""Seconds after which a test gives up; nothing takes nearly as long."""

RETURNS, YIELDS, RAISES, IS_FULL = "returns", "yields None", "raises", "is full"


class FakeLoop:
    """Time that a test moves, and callbacks that it runs."""

    def __init__(self) -> None:
        self.now = 100.0
        self.callbacks: collections.deque[Callable[[], object]] = collections.deque()
        self.news = threading.Condition()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.call_soon_threadsafe(callback)

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        with self.news:
            self.callbacks.append(callback)
            self.news.notify_all()


@dataclasses.dataclass(frozen=True)
class Answer:
    """A Reply."""

    status: int
    message: str
    body: bytes


@dataclasses.dataclass
class OpenCall:
    """An upstream call that nobody has answered yet."""

    body: tuple[bytes, ...]
    due: float
    on_done: Callable[[Reply], None]
    cancelled: bool = False
    answered: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def answer(self, status: int) -> None:
        assert not self.answered
        self.answered = True
        self.on_done(Answer(status, "", b"re: " + b"".join(self.body)))

    @property
    def open(self) -> bool:
        return not (self.cancelled or self.answered)


@dataclasses.dataclass(frozen=True)
class Script:
    """What a component does: so many calls in each step (with these timeouts), and how it ends."""

    steps: tuple[tuple[float, ...], ...]
    end: str


class Gate:
    """Stops threads where a test wants them: in front of every step."""

    def __init__(self, news: threading.Condition) -> None:
        self.inside: dict[tuple[int, int], threading.Event] = {}
        self._news = news

    def wait(self, key: tuple[int, int]) -> None:
        event = threading.Event()
        with self._news:
            self.inside[key] = event
            self._news.notify_all()
        assert event.wait(PATIENCE)

    def let_go(self, key: tuple[int, int]) -> None:
        with self._news:
            self.inside.pop(key).set()


class Request:
    """One request, and everything that happened to it."""

    def __init__(
        self, world: World, number: int, parents: Sequence[Sequence[int]], scripts: Sequence[Script]
    ) -> None:
        self.world = world
        self.number = number
        self.parents = parents
        self.scripts = scripts
        self.calls: list[OpenCall] = []
        self.started: set[int] = set()
        self.finished: set[int] = set()
        self.closed: set[int] = set()
        self.in_step: set[int] = set()
        self.cancelled = False
        self.full = False
        self.done = 0
        self.idle = 0
        self.slot: Slot = world.pool.acquire()
        self.slot.allocate(1000)
        components = [Scripted(self, at) for at in range(len(scripts))]
        self.deadline = world.deadline
        self.scoring = Scoring(ShmMatrix(self.slot, 1, 0, 0))
        self.execution = Execution(
            world.executor,
            plan_of(components, parents),
            self.scoring,
            self.deadline,
            self.on_done,
            self.on_idle,
        )

    def on_done(self, execution: Execution) -> None:
        assert execution is self.execution
        assert not self.idle
        self.done += 1

    def on_idle(self, execution: Execution) -> None:
        assert execution is self.execution
        assert not self.in_step
        self.idle += 1
        self.world.pool.release(self.slot)

    @property
    def over(self) -> bool:
        return self.cancelled or self.full or len(self.finished) == len(self.scripts)

    @property
    def open_calls(self) -> list[OpenCall]:
        return [call for call in self.calls if call.open]

    def check(self) -> None:
        """What must hold whenever nothing moves."""
        for number in self.started:  # a child starts after its parents
            assert self.finished.issuperset(self.parents[number])
        if not self.over:
            ready = {number for number, needs in enumerate(self.parents) if self.finished.issuperset(needs)}
            assert self.started == ready  # and at once: there is no level barrier
            assert self.open_calls or self.in_step, "the request is stuck"
        assert self.execution.over == self.over
        assert self.done == (self.over and not self.cancelled)
        assert self.idle == (self.over and not self.in_step)
        assert (self.execution.error is not None) == self.full
        if self.over:
            assert not self.open_calls
        if self.idle:
            assert self.closed == self.started
        raised = {n for n in self.finished if self.scripts[n].end == RAISES}
        assert sorted((f.component, f.cause) for f in self.scoring.failures) == [
            (f"c{number}", "internal error: RuntimeError: broken") for number in sorted(raised)
        ]
        assert "components left" in repr(self.execution)


class Scripted:
    """A component that does what its script says."""

    def __init__(self, request: Request, number: int) -> None:
        self.name = f"c{number}"
        self.request = request
        self.number = number

    def run(self, scoring: Scoring) -> Steps:
        request, number, script = self.request, self.number, self.request.scripts[self.number]
        assert scoring is request.scoring
        request.started.add(number)
        try:
            self._step()
            for at, timeouts in enumerate(script.steps):
                bodies = [b"%d.%d.%d" % (number, at, index) for index in range(len(timeouts))]
                replies = yield [
                    Call(self, (body[:1], body[1:]), t) for body, t in zip(bodies, timeouts, strict=True)
                ]
                self._step()
                assert [reply.body for reply in replies] == [b"re: " + body for body in bodies]
            if script.end == RAISES:
                raise RuntimeError("broken")
            if script.end == IS_FULL:
                request.full |= not request.over
                raise MatrixFull("no room")
            if script.end == YIELDS and not request.over:
                request.finished.add(number)
                yield None
        except (RuntimeError, MatrixFull):
            if script.end == RAISES and not request.over:
                request.finished.add(number)
            raise
        else:
            if not request.over:
                request.finished.add(number)
        finally:
            request.closed.add(number)

    def _step(self) -> None:
        key = self.request.number, self.number
        self.request.in_step.add(self.number)
        if self.request.world.threaded:
            self.request.world.gate.wait(key)
        self.request.in_step.discard(self.number)

    def fail(self, scoring: Scoring, cause: str) -> None:
        scoring.fail(self.name, cause)

    def start(
        self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None], rows: int
    ) -> Pending:
        """The component is its own endpoint."""
        now, deadline = self.request.world.loop.now, self.request.deadline
        asked = [t for step in self.request.scripts[self.number].steps for t in step]
        assert timeout in asked or (deadline is not None and timeout == max(deadline - now, 0.0))
        assert deadline is None or timeout <= max(deadline - now, 0.0)
        call = OpenCall(body, now + timeout, on_done)
        self.request.calls.append(call)
        return call


class World:
    """What all requests share."""

    def __init__(self, threads: int) -> None:
        self.threaded = threads > 0
        self.loop = FakeLoop()
        self.gate = Gate(self.loop.news)
        self.executor = Executor(self.loop, threads)
        self.pool = MatrixPool(4 * MIB, MIB, threads=threads)
        self.deadline: float | None = None


TIMEOUTS = st.sampled_from([0.5, 1.0, 3.0])
SCRIPTS = st.builds(
    Script,
    st.lists(st.lists(TIMEOUTS, max_size=3).map(tuple), max_size=3).map(tuple),
    st.sampled_from([RETURNS] * 4 + [YIELDS] * 4 + [RAISES, RAISES, IS_FULL]),
)


MOST_COMPONENTS = 6


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[list[int]], list[Script]]:
    """(parents, scripts) of some components, each after its parents."""
    scripts = draw(st.lists(SCRIPTS, max_size=MOST_COMPONENTS))
    parents = [
        draw(st.lists(st.integers(0, number - 1), unique=True, max_size=3)) if number else []
        for number in range(len(scripts))
    ]
    return parents, scripts


class Rules(RuleBasedStateMachine):
    """The rules of both machines."""

    requests = Bundle("requests")
    threads = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.threads)
        self.all: list[Request] = []

    def settle(self) -> None:
        """Waits until nothing moves."""

    def has_room(self) -> bool:
        """Whether another request may come: in a machine with threads each component needs one."""
        busy = sum(len(request.scripts) for request in self.all if not request.idle)
        return not self.threads or busy + MOST_COMPONENTS <= self.threads

    @precondition(lambda self: self.has_room())
    @rule(target=requests, graph=graphs(), left=st.none() | st.sampled_from([0.0, 0.2, 0.7, 2.0]))
    def begin(self, graph: tuple[list[list[int]], list[Script]], left: float | None) -> Request:
        self.world.deadline = None if left is None else self.world.loop.now + left
        request = Request(self.world, len(self.all), *graph)
        self.all.append(request)
        request.execution.start()
        self.settle()
        return request

    @rule(request=requests, which=st.integers(0, 99), status=st.sampled_from([0, 0, 0, 14]))
    def answer(self, request: Request, which: int, status: int) -> None:
        if request.open_calls:
            request.open_calls[which % len(request.open_calls)].answer(status)
            self.settle()

    @rule(request=requests)
    def cancel(self, request: Request) -> None:
        request.cancelled = request.cancelled or not request.over
        request.execution.cancel()
        self.settle()

    @rule(request=requests, which=st.integers(0, 99))
    def late_answer(self, request: Request, which: int) -> None:
        """A reply that was under way when its call was cancelled."""
        late = [call for call in request.calls if call.cancelled and not call.answered]
        if late:
            late[which % len(late)].answer(0)
            self.settle()

    @rule(seconds=st.sampled_from([0.1, 0.6, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.loop.now += seconds
        for request in self.all:
            while due := [call for call in request.open_calls if call.due <= self.world.loop.now]:
                due[0].answer(4)
                self.settle()

    @invariant()
    def all_is_well(self) -> None:
        for request in self.all:
            request.check()
        assert self.world.pool.busy == sum(not request.idle for request in self.all)

    def teardown(self) -> None:
        for request in self.all:
            self.cancel(request)
        self.finish_steps()
        self.all_is_well()
        assert self.world.pool.in_use == 0
        self.world.executor.close()
        self.world.pool.close()

    def finish_steps(self) -> None:
        """Ends all steps that stand at the gate."""


class WithoutThreads(Rules):
    """Steps run on the I/O thread."""


class WithThreads(Rules):
    """Steps run on more threads than there are components: all that are ready stand at the gate."""

    threads = 12

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.world.gate.inside)
    def end_step(self, which: int) -> None:
        gate = self.world.gate
        self._end(sorted(gate.inside)[which % len(gate.inside)])

    def _end(self, key: tuple[int, int]) -> None:
        self.world.gate.let_go(key)
        self.settle()

    def settle(self) -> None:
        # Every step that was submitted comes to the gate, or its outcome comes to the loop.
        loop, inside = self.world.loop, self.world.gate.inside
        while loop.callbacks or len(inside) < self._expected():
            with loop.news:
                assert loop.news.wait_for(lambda: loop.callbacks or len(inside) == self._expected(), PATIENCE)
            if loop.callbacks:
                loop.callbacks.popleft()()

    def _expected(self) -> int:
        return sum(request.execution._stepping for request in self.all)

    def finish_steps(self) -> None:
        while self.world.gate.inside:
            self._end(next(iter(self.world.gate.inside)))


TestWithoutThreads = WithoutThreads.TestCase
TestWithoutThreads.settings = tries(0.6)
TestWithThreads = WithThreads.TestCase
TestWithThreads.settings = tries(1.0)


# ---------------------------------------------------------------- single stories


class Once:
    """A component whose single step runs a function; it waits for nobody upstream."""

    def __init__(self, name: str, step: Callable[[Scoring], object]) -> None:
        self.name = name
        self.step = step

    def run(self, scoring: Scoring) -> Steps:
        self.step(scoring)
        yield []

    def fail(self, scoring: Scoring, cause: str) -> None:
        scoring.fail(self.name, cause)


@pytest.fixture
def scoring() -> Iterator[Scoring]:
    pool = MatrixPool(MIB, MIB)
    yield Scoring(ShmMatrix(pool.acquire(), 1, 0, 0))
    pool.close()


def test_long_chains_do_not_recurse(scoring: Scoring) -> None:
    order: list[int] = []
    chain = [
        Once(f"c{number}", functools.partial(lambda number, _: order.append(number), number))
        for number in range(2000)
    ]
    parents = [[number - 1] if number else [] for number in range(2000)]
    events: list[str] = []
    Execution(
        Executor(FakeLoop(), 0), plan_of(chain, parents), scoring, None,
        lambda _: events.append("done"), lambda _: events.append("idle"),
    ).start()  # fmt: skip
    assert order == list(range(2000))
    assert events == ["done", "idle"]


def test_a_plan_without_components_is_done_at_once(scoring: Scoring) -> None:
    events: list[str] = []
    Execution(
        Executor(FakeLoop(), 0), plan_of([], []), scoring, None,
        lambda _: events.append("done"), lambda _: events.append("idle"),
    ).start()  # fmt: skip
    assert events == ["done", "idle"]


def test_the_slot_is_freed_even_when_nobody_can_be_answered(scoring: Scoring) -> None:
    idle: list[Execution] = []

    def broken(_: Execution) -> None:
        raise RuntimeError("no answer")

    execution = Execution(
        Executor(FakeLoop(), 0),
        plan_of([Once("c", lambda _: None)], [[]]),
        scoring,
        None,
        broken,
        idle.append,
    )
    with pytest.raises(RuntimeError, match="no answer"):
        execution.start()
    assert idle == [execution]


def test_other_requests_go_on_when_one_cannot_be_answered() -> None:
    pool = MatrixPool(MIB, MIB, threads=1)
    loop = FakeLoop()
    executor = Executor(loop, 1)
    events: list[str] = []

    def broken(_: Execution) -> None:
        raise RuntimeError("no answer")

    for on_done in (broken, lambda _: events.append("done")):
        plan = plan_of([Once("c", lambda _: None)], [[]])
        scoring = Scoring(ShmMatrix(pool.acquire(), 1, 0, 0))
        Execution(executor, plan, scoring, None, on_done, lambda _: events.append("idle")).start()
    executor.close()  # both steps have been taken, and one wake-up of the loop was enough
    with pytest.raises(RuntimeError, match="no answer"):
        while loop.callbacks:
            loop.callbacks.popleft()()
    while loop.callbacks:
        loop.callbacks.popleft()()
    assert events == ["idle", "done", "idle"]


def test_an_executor_ends_its_threads() -> None:
    executor = Executor(FakeLoop(), 3)
    names = {thread.name for thread in threading.enumerate()}
    assert names.issuperset({"executor-0", "executor-1", "executor-2"})
    assert repr(executor) == "<Executor 3 threads, 0 jobs waiting>"
    threads = list(executor.threads)
    executor.close()
    assert not any(thread.is_alive() for thread in threads)
    executor.close()


# ---------------------------------------------------------------- a real loop


class Upstream:
    """Answers every call a few turns of the loop later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dice: random.Random) -> None:
        self.loop = loop
        self.dice = dice

    def start(
        self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None], rows: int
    ) -> Pending:
        reply = Answer(self.dice.choice([0, 0, 14]), "", b"")
        return self.loop.call_later(self.dice.random() / 500, on_done, reply)


class Counting:
    """A component with a few rounds of calls, whose steps must never overlap in time."""

    def __init__(self, number: int, upstream: Upstream, rounds: int) -> None:
        self.name = f"c{number}"
        self.upstream = upstream
        self.rounds = rounds

    def run(self, scoring: Scoring) -> Steps:
        alone = threading.Lock()
        for number in range(self.rounds):
            with alone:
                scoring.matrix.slot.allocate(100)[:] = 1
            replies = yield [Call(self.upstream, (b"",), 1.0)] * number
            assert len(replies) == number

    def fail(self, scoring: Scoring, cause: str) -> None:
        scoring.fail(self.name, cause)


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_many_requests_on_a_real_loop(
    threads: int, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Each of 200 requests is answered once or cancelled, and each slot comes back."""
    dice = random.Random(7)
    pool = MatrixPool(64 * MIB, MIB, threads=threads)
    answered: collections.Counter[int] = collections.Counter()
    idle: collections.Counter[int] = collections.Counter()
    cancelled: set[int] = set()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = Executor(loop, threads)
        all_idle = asyncio.Event()

        def on_done(number: int, execution: Execution) -> None:
            answered[number] += 1

        def on_idle(number: int, slot: Slot, execution: Execution) -> None:
            idle[number] += 1
            pool.release(slot)
            if len(idle) == 200:
                all_idle.set()

        executions = []
        for number in range(200):
            slot = pool.acquire()
            parts = [
                Counting(at, Upstream(loop, dice), dice.randrange(4)) for at in range(dice.randrange(1, 6))
            ]
            parents = [[other for other in range(at) if dice.random() < 0.4] for at in range(len(parts))]
            execution = Execution(
                executor, plan_of(parts, parents), Scoring(ShmMatrix(slot, 1, 0, 0)), None,
                functools.partial(on_done, number), functools.partial(on_idle, number, slot),
            )  # fmt: skip
            executions.append(execution)
            loop.call_later(dice.random() / 50, execution.start)
        for number in dice.sample(range(200), 40):

            def cancel(number: int = number) -> None:
                if not executions[number].over:
                    cancelled.add(number)
                executions[number].cancel()

            loop.call_later(0.02 + dice.random() / 100, cancel)
        async with asyncio.timeout(PATIENCE):
            await all_idle.wait()
        executor.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert set(idle.values()) == {1}
    assert all(count == 1 for count in answered.values())
    assert set(answered) == set(range(200)) - cancelled
    assert (pool.busy, pool.in_use) == (0, 0)
    pool.close()
