"""Identical calls that share one, on a loop whose clock the test moves."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dag.component import Pending, Reply
from rpc.status import Status
from rpc.timers import RESOLUTION
from shared.board import Board
from shared.metrics import CACHE_COALESCED
from tests.components.running import Answer
from tests.effort import tries
from workers.coalescing import Body, Coalescing

A, B = (b"head", b"keys a"), (b"head", b"keys b")
FINE = Answer(body=b"rows")
LATEST = RESOLUTION + 1e-9  # seconds after a deadline; sums of floats are not exact
DOWN = Answer(int(Status.UNAVAILABLE), "down")


class Handle:
    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """What Coalescing needs of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.errors: list[BaseException] = []
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Handle]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Handle:
        handle = Handle(callback, args)
        heapq.heappush(self._due, (when, next(self._numbers), handle))
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context["exception"])

    def run_until(self, when: float) -> None:
        while self._due and self._due[0][0] <= when:
            due, _, handle = heapq.heappop(self._due)
            self.now = max(self.now, due)
            if not handle.cancelled:
                handle.callback(*handle.args)
        self.now = when


class Upstream:
    """An endpoint whose calls the test ends; a call that is not ended in time ends itself."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.open: list[Open] = []
        self.started: list[tuple[Body, float]] = []

    def start(self, body: Body, timeout: float, on_done: Callable[[Reply], None], rows: int) -> Pending:
        call = Open(self, body, on_done)
        self.open.append(call)
        self.started.append((body, timeout))
        call.timer = self.loop.call_at(
            self.loop.now + timeout, call.end, Answer(int(Status.DEADLINE_EXCEEDED), "late")
        )
        return call


class Open:
    def __init__(self, upstream: Upstream, body: Body, on_done: Callable[[Reply], None]) -> None:
        self.upstream = upstream
        self.body = body
        self.on_done = on_done
        self.timer: Handle | None = None

    def end(self, reply: Reply) -> None:
        self.cancel()
        self.on_done(reply)

    def cancel(self) -> None:
        assert self.timer is not None
        self.timer.cancel()
        self.upstream.open.remove(self)


class World:
    def __init__(self) -> None:
        self.loop = Loop()
        self.upstream = Upstream(self.loop)
        self.saved = Board("worker-0").counter(CACHE_COALESCED, "onfs", "store:80")
        self.endpoint = Coalescing(self.loop, self.upstream, self.saved)  # type: ignore[arg-type]

    def ask(self, body: Body = A, timeout: float = 1.0) -> Asked:
        return Asked(self, body, timeout)


class Asked:
    """A waiter, and what it heard."""

    def __init__(self, world: World, body: Body, timeout: float) -> None:
        self.world = world
        self.body = body
        self.deadline = world.loop.now + timeout
        self.heard: list[tuple[int, float]] = []
        self.cancelled = False
        self.pending = world.endpoint.start(body, timeout, self._hear, 5)

    def _hear(self, reply: Reply) -> None:
        assert not self.cancelled
        self.heard.append((reply.status, self.world.loop.now))

    def cancel(self) -> None:
        self.cancelled = True
        self.pending.cancel()


@pytest.fixture
def world() -> World:
    return World()


def test_a_request_may_begin_calls_by_an_endpoint_of_its_own_and_shares_them(world: World) -> None:
    own = Upstream(world.loop)
    usual, heard = world.endpoint, []
    world.endpoint = usual.through(own)  # type: ignore[arg-type,assignment]
    first = world.ask(A)
    world.endpoint = usual
    second = world.ask(A)
    assert ([body for body, _ in own.started], world.upstream.started) == ([A], [])
    own.open[0].end(FINE)
    world.loop.run_until(world.loop.now)
    assert [status for status, _ in first.heard + second.heard] == [0, 0]
    usual.through(own).start(A, 1.0, heard.append, 5)  # type: ignore[arg-type]
    joined = world.ask(A)
    own.open[0].end(DOWN)
    world.loop.run_until(world.loop.now)
    assert [body for body, _ in world.upstream.started] == [A], "who joined asks by the usual one"
    assert (len(heard), joined.heard) == (1, [])


def test_identical_calls_are_one(world: World) -> None:
    first, second, other = world.ask(A), world.ask(A), world.ask(B)
    assert [body for body, _ in world.upstream.started] == [A, B]
    assert world.saved.value == 5
    world.upstream.open[0].end(FINE)
    world.loop.run_until(0.1)
    assert [one.heard for one in (first, second, other)] == [[(0, 0.0)], [(0, 0.0)], []]
    assert "1 calls in flight" in repr(world.endpoint)


def test_a_call_that_has_ended_is_joined_by_nobody(world: World) -> None:
    world.ask()
    world.upstream.open[0].end(FINE)
    world.ask()
    assert len(world.upstream.started) == 2
    assert world.saved.value == 0


def test_a_failure_is_its_first_waiters_alone(world: World) -> None:
    first, second, third = world.ask(), world.ask(timeout=0.5), world.ask()
    world.loop.run_until(0.2)
    world.upstream.open[0].end(DOWN)
    world.loop.run_until(0.3)
    assert first.heard == [(Status.UNAVAILABLE, 0.2)]
    assert second.heard == third.heard == []
    assert world.upstream.started[1:] == [(A, pytest.approx(0.3)), (A, pytest.approx(0.8))]
    world.upstream.open[1].end(FINE)
    world.upstream.open[0].end(DOWN)
    assert (second.heard, third.heard) == ([(Status.UNAVAILABLE, 0.3)], [(0, 0.3)])


def test_the_first_waiter_leaves_and_the_call_goes_on(world: World) -> None:
    first, second = world.ask(), world.ask()
    first.cancel()
    world.upstream.open[0].end(FINE)
    world.loop.run_until(0.1)
    assert (first.heard, second.heard) == ([], [(0, 0.0)])


def test_the_last_one_takes_the_call_along(world: World) -> None:
    first, second = world.ask(), world.ask()
    second.cancel()
    assert len(world.upstream.open) == 1
    first.cancel()
    assert world.upstream.open == []
    world.ask()  # nobody joins a call that was cancelled
    assert len(world.upstream.started) == 2


def test_a_deadline_of_its_own_holds(world: World) -> None:
    first, second = world.ask(timeout=1.0), world.ask(timeout=0.25)
    world.loop.run_until(0.5)
    assert second.heard == [(Status.DEADLINE_EXCEEDED, pytest.approx(0.25, abs=RESOLUTION))]
    world.upstream.open[0].end(FINE)
    assert first.heard == [(0, 0.5)]


def test_a_first_waiter_with_little_time_does_not_fail_the_others(world: World) -> None:
    first, second = world.ask(timeout=0.1), world.ask(timeout=1.0)
    world.loop.run_until(0.2)
    assert first.heard == [(Status.DEADLINE_EXCEEDED, 0.1)]
    assert world.upstream.started[1] == (A, pytest.approx(0.9))
    world.upstream.open[0].end(FINE)
    assert second.heard == [(0, 0.2)]


def test_who_joined_with_no_time_left_is_told_so_without_a_call(world: World) -> None:
    world.ask(timeout=1.0)
    joined = world.ask(timeout=1.0)
    world.loop.run_until(1.0)  # the shared call, too, ends by its deadline
    assert joined.heard == [(Status.DEADLINE_EXCEEDED, 1.0)]
    assert len(world.upstream.started) == 1


def test_waiters_are_told_in_the_order_in_which_they_came(world: World) -> None:
    told: list[str] = []
    for name in ("first", "second", "third"):
        world.endpoint.start(A, 1.0, functools.partial(lambda name, _: told.append(name), name), 5)
    world.upstream.open[0].end(FINE)
    assert told == ["first", "second", "third"]


def test_a_waiter_that_breaks_costs_the_others_nothing(world: World) -> None:
    heard: list[Reply] = []

    def broken(_: Reply) -> None:
        raise RuntimeError("a mistake of its own")

    for on_done in (broken, heard.append, broken, heard.append):
        world.endpoint.start(A, 1.0, on_done, 5)
    with pytest.raises(RuntimeError, match="a mistake"):  # the first one's is for whoever made the call
        world.upstream.open[0].end(FINE)
    assert heard == [FINE, FINE]
    assert [str(error) for error in world.loop.errors] == ["a mistake of its own"]


def test_a_waiter_may_leave_while_the_others_are_told(world: World) -> None:
    joined: list[Asked] = []
    world.endpoint.start(A, 1.0, lambda _: joined[0].cancel(), 5)
    joined += [world.ask(), world.ask(timeout=0.5)]
    world.upstream.open[0].end(FINE)
    world.loop.run_until(2.0)
    assert [one.heard for one in joined] == [[], [(0, 0.0)]]


def test_who_leaves_hears_nothing_however_far_it_is(world: World) -> None:
    _, alone = world.ask(), world.ask()
    world.upstream.open[0].end(DOWN)
    world.loop.run_until(0.5)
    alone.cancel()  # while its own call is under way
    world.loop.run_until(9.0)
    assert alone.heard == []
    assert world.upstream.open == []


class Machine(RuleBasedStateMachine):
    """Whatever happens, each waiter hears once, on time, and no call is open that nobody waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.asked: list[Asked] = []

    @rule(body=st.sampled_from([A, B]), timeout=st.integers(0, 4))
    def ask(self, body: Body, timeout: int) -> None:
        self.asked.append(self.world.ask(body, timeout / 4))

    @rule(which=st.integers(0, 99), reply=st.sampled_from([FINE, DOWN]))
    def end(self, which: int, reply: Answer) -> None:
        if self.world.upstream.open:
            self.world.upstream.open[which % len(self.world.upstream.open)].end(reply)

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        waiting = [one for one in self.asked if not one.heard and not one.cancelled]
        if waiting:
            waiting[which % len(waiting)].cancel()

    @rule(steps=st.integers(0, 3))
    def time_passes(self, steps: int) -> None:
        self.world.loop.run_until(self.world.loop.now + steps / 8)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        self.world.loop.run_until(self.world.loop.now)
        now = self.world.loop.now
        waiting = [one for one in self.asked if not one.heard and not one.cancelled]
        for one in self.asked:
            assert len(one.heard) <= 1
            assert all(when <= one.deadline + LATEST for _, when in one.heard)
        assert all(one.deadline > now - LATEST for one in waiting)
        assert not self.world.loop.errors
        bodies = {one.body for one in waiting}
        assert {call.body for call in self.world.upstream.open} == bodies
        assert len(self.world.upstream.open) <= len(waiting)


TestCoalescing = Machine.TestCase
TestCoalescing.settings = tries(0.5)
