"""The dispatcher, event by event, and under every interleaving that Hypothesis finds."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from frontdoor.dispatcher import Action, CancelAt, Deliver, Dispatcher, DispatchError, Refuse, Send
from rpc.status import Status
from shared.frames import Readiness

WAIT = 1.0


def dispatcher(
    *workers: int, limit: int = 10, wait: float = WAIT, max_waiting: int = 4, held: int = 1000
) -> Dispatcher:
    """A dispatcher with these workers, ready."""
    made = Dispatcher(wait=wait, max_waiting=max_waiting, max_held_bytes=held)
    for worker in workers:
        assert made.joined(worker, f"worker {worker}", limit) == []
        assert ready(made, worker) == []
    return made


def ready(it: Dispatcher, worker: int, now: float = 0.0) -> list[Action]:
    return it.state_changed(worker, Readiness.READY, 1, "", now)


def unready(it: Dispatcher, worker: int, reason: str = "preparing", now: float = 0.0) -> list[Action]:
    return it.state_changed(worker, Readiness.NOT_READY, 0, reason, now)


def arrive(it: Dispatcher, *requests: int, now: float = 0.0) -> list[Action]:
    return [action for request in requests for action in it.arrived(request, 1, now)]


def refusal(actions: list[Action]) -> tuple[Status, str]:
    (action,) = actions
    assert isinstance(action, Refuse)
    return action.status, action.message


class TestChoosing:
    def test_a_request_goes_to_a_worker_and_its_answer_back(self) -> None:
        it = dispatcher(1)
        assert it.arrived(7, 100, 0.0) == [Send(7, 1)]
        assert it.held_bytes == 100
        assert it.answered(7, 1) == [Deliver(7)]
        assert (it.in_flight, it.held_bytes) == (0, 0)

    def test_ties_go_round(self) -> None:
        it = dispatcher(1, 2, 3)
        chosen = []
        for request in range(6):
            (action,) = arrive(it, request)
            assert isinstance(action, Send)
            chosen.append(action.worker)
            it.answered(request, action.worker)
        assert chosen == [1, 2, 3, 1, 2, 3]

    def test_the_fewest_in_flight_win(self) -> None:
        it = dispatcher(1, 2)
        assert arrive(it, 10, 11, 12) == [Send(10, 1), Send(11, 2), Send(12, 1)]
        it.answered(10, 1)
        it.answered(12, 1)
        assert arrive(it, 13) == [Send(13, 1)]

    def test_workers_that_are_not_ready_or_drain_get_nothing_new(self) -> None:
        it = dispatcher(1, 2)
        assert arrive(it, 10) == [Send(10, 1)]
        it.state_changed(1, Readiness.DRAINING, 1, "SIGTERM", 0.0)
        assert arrive(it, 11, 12) == [Send(11, 2), Send(12, 2)]
        assert it.answered(10, 1) == [Deliver(10)]

    def test_when_all_ready_workers_are_full_it_is_refused_at_once(self) -> None:
        it = dispatcher(1, 2, limit=1)
        arrive(it, 10, 11)
        status, message = refusal(arrive(it, 12))
        assert status is Status.RESOURCE_EXHAUSTED
        assert message == "overloaded: all 2 ready workers are full (2 requests in flight)"
        assert it.counts.overloaded == 1
        it.answered(10, 1)
        assert arrive(it, 13) == [Send(13, 1)]

    def test_bodies_above_the_budget_are_refused(self) -> None:
        it = dispatcher(1, held=100)
        it.arrived(1, 60, 0.0)
        status, message = refusal(it.arrived(2, 41, 0.0))
        assert status is Status.RESOURCE_EXHAUSTED
        assert re.search("60 bytes are held here, one of 41 bytes would pass the limit of 100", message)
        assert it.arrived(3, 40, 0.0) == [Send(3, 1)]


class TestWaiting:
    def test_a_worker_that_becomes_ready_takes_what_waits_up_to_its_limit(self) -> None:
        it = dispatcher()
        assert arrive(it, 1, 2, 3) == []
        it.joined(9, "worker 9", 2)
        assert ready(it, 9) == [Send(1, 9), Send(2, 9)]
        assert it.answered(1, 9) == [Deliver(1), Send(3, 9)]

    def test_the_wait_is_bounded_and_the_refusal_says_why(self) -> None:
        it = dispatcher()
        it.joined(1, "worker 1", 2)
        unready(it, 1, "no config yet")
        arrive(it, 5, now=10.0)
        assert it.wake_at == 11.0
        assert it.tick(10.9) == []
        status, message = refusal(it.tick(11.0))
        assert status is Status.UNAVAILABLE
        assert message == "no worker is ready: worker 1: not ready (no config yet); waited 1 s"
        assert it.wake_at is None

    def test_the_queue_is_bounded(self) -> None:
        it = dispatcher(max_waiting=2)
        arrive(it, 1, 2)
        assert refusal(arrive(it, 3)) == (Status.UNAVAILABLE, "no worker is connected")

    def test_without_a_wait_it_is_refused_at_once(self) -> None:
        assert refusal(arrive(dispatcher(wait=0), 1))[0] is Status.UNAVAILABLE

    def test_the_wait_counts_only_while_no_worker_is_ready(self) -> None:
        it = dispatcher()
        arrive(it, 1, 2, now=0.0)
        it.joined(9, "worker 9", 1)
        assert ready(it, 9, now=0.5) == [Send(1, 9)]
        assert it.wake_at is None
        assert it.tick(50.0) == []
        unready(it, 9, now=50.0)
        assert it.wake_at == 51.0
        assert it.tick(50.9) == []
        assert [type(action) for action in it.tick(51.0)] == [Refuse]

    @pytest.mark.parametrize("event", ["answered", "cancelled", "expired"])
    def test_a_place_that_becomes_free_is_taken_at_once(self, event: str) -> None:
        it = dispatcher()
        arrive(it, 1, 2)
        it.joined(9, "worker 9", 1)
        ready(it, 9)
        actions = it.answered(1, 9) if event == "answered" else getattr(it, event)(1)
        assert actions[-1] == Send(2, 9)

    def test_a_waiting_request_that_is_cancelled_is_forgotten(self) -> None:
        it = dispatcher()
        arrive(it, 1)
        assert it.cancelled(1) == []
        assert (it.in_flight, it.waiting, it.wake_at) == (0, 0, None)


class TestDeath:
    def test_lost_requests_go_to_another_worker(self) -> None:
        it = dispatcher(1, 2)
        assert arrive(it, 10) == [Send(10, 1)]
        assert it.gone(1, 0.0) == [Send(10, 2)]
        assert it.answered(10, 2) == [Deliver(10)]
        assert it.counts.resent == 1

    def test_or_wait_for_the_worker_that_comes_back(self) -> None:
        it = dispatcher(1)
        arrive(it, 10)
        assert it.gone(1, 5.0) == []
        assert it.wake_at == 6.0
        it.joined(2, "worker 1 again", 10)
        assert ready(it, 2, now=5.5) == [Send(10, 2)]

    def test_in_flight_at_two_deaths_is_enough(self) -> None:
        it = dispatcher(1, 2, 3)
        arrive(it, 10)
        it.gone(1, 0.0)
        status, message = refusal(it.gone(2, 0.0))
        assert status is Status.INTERNAL
        assert message == "the request ended 2 workers and is not sent to another"
        assert (it.counts.blamed, it.counts.deaths) == (1, 2)

    def test_suspects_go_one_by_one_so_that_a_second_death_has_one(self) -> None:
        it = dispatcher(1, 2)
        unready(it, 2)
        arrive(it, 10, 11, 12)
        ready(it, 2)
        assert it.gone(1, 0.0) == [Send(10, 2)]
        assert it.answered(10, 2) == [Deliver(10), Send(11, 2)]
        it.joined(3, "worker 1 again", 10)
        assert ready(it, 3) == [Send(12, 3)]
        assert refusal(it.gone(3, 0.0))[0] is Status.INTERNAL
        assert it.answered(11, 2) == [Deliver(11)]

    def test_fresh_requests_avoid_a_worker_with_a_suspect(self) -> None:
        it = dispatcher(1, 2, 3, limit=2)
        arrive(it, 10)
        it.gone(1, 0.0)  # 10 is at worker 2 now
        assert arrive(it, 11, 12, 13) == [Send(11, 3), Send(12, 3), Send(13, 2)]

    def test_fresh_requests_share_a_death_with_a_suspect_only_as_suspects(self) -> None:
        it = dispatcher(1)
        arrive(it, 10)
        it.gone(1, 0.0)
        it.joined(2, "again", 10)
        ready(it, 2)
        assert arrive(it, 11) == [Send(11, 2)]
        assert [type(action) for action in it.gone(2, 0.0)] == [Refuse]
        it.joined(3, "again", 10)
        assert ready(it, 3) == [Send(11, 3)]

    def test_one_poisonous_request_never_costs_another_its_answer(self) -> None:
        """A crowd in flight, one of which ends every worker that it meets: all the others are answered."""
        poison, crowd = 5, range(10)
        it = dispatcher(0, limit=100)
        at = {action.request: 0 for action in arrive(it, *crowd) if isinstance(action, Send)}
        outcomes: dict[int, str] = {}
        generation = 0
        for _ in range(100):
            if not at:
                break
            if poison in at:
                at.clear()
                actions = it.gone(generation, 0.0)
                generation += 1
                it.joined(generation, f"generation {generation}", 100)
                actions += ready(it, generation)
            else:
                actions = it.answered(min(at), generation)
                del at[min(at)]
            for action in actions:
                if isinstance(action, Send):
                    at[action.request] = action.worker
                else:
                    outcomes[action.request] = type(action).__name__
        assert outcomes == {request: "Refuse" if request == poison else "Deliver" for request in crowd}


class TestEnds:
    def test_a_cancel_reaches_the_worker_and_frees_the_place(self) -> None:
        it = dispatcher(1, limit=1)
        arrive(it, 10)
        assert it.cancelled(10) == [CancelAt(10, 1)]
        assert arrive(it, 11) == [Send(11, 1)]

    def test_the_answer_that_crosses_a_cancel_is_only_counted(self) -> None:
        it = dispatcher(1)
        arrive(it, 10)
        it.cancelled(10)
        assert it.answered(10, 1) == []
        assert it.counts.stray_answers == 1

    def test_an_answer_from_the_wrong_worker_answers_nothing(self) -> None:
        it = dispatcher(1, 2)
        arrive(it, 10)
        assert it.answered(10, 2) == []
        assert it.answered(10, 1) == [Deliver(10)]

    def test_an_expired_request_is_refused_and_cancelled_at_its_worker(self) -> None:
        it = dispatcher(1)
        arrive(it, 10)
        cancel, refuse = it.expired(10)
        assert cancel == CancelAt(10, 1)
        assert refusal([refuse])[0] is Status.DEADLINE_EXCEEDED

    def test_a_worker_that_hangs_does_not_draw_all_requests_to_itself(self) -> None:
        it = dispatcher(1, 2)
        sends: Counter[int] = Counter()
        for request in range(50):
            (action,) = arrive(it, request)
            assert isinstance(action, Send)
            sends[action.worker] += 1
            if action.worker == 1:  # it hangs: the client loses patience
                it.cancelled(request)
            else:
                it.answered(request, 2)
        assert sends == {1: 1, 2: 49}
        assert it.answered(0, 1) == []  # it lives again
        assert arrive(it, 100) == [Send(100, 1)]

    def test_ghosts_never_count_against_the_limit(self) -> None:
        it = dispatcher(1, limit=1)
        for request in range(5):
            assert arrive(it, request) == [Send(request, 1)]
            it.cancelled(request)


class TestReadiness:
    def test_serving_needs_a_ready_worker_with_a_config_version(self) -> None:
        it = dispatcher()
        assert it.serving_version is None
        assert it.unready_reason() == "no worker is connected"
        it.joined(1, "worker 1", 1)
        assert it.unready_reason() == "no worker is ready: worker 1: not ready (has not told its state yet)"
        it.state_changed(1, Readiness.READY, 0, "", 0.0)
        assert it.serving_version is None
        it.state_changed(1, Readiness.READY, 17, "", 0.0)
        assert it.serving_version == 17
        it.state_changed(1, Readiness.DRAINING, 17, "SIGTERM", 0.0)
        assert it.serving_version is None
        assert it.unready_reason() == "no worker is ready: worker 1: draining (SIGTERM)"


class TestImpossible:
    @pytest.mark.parametrize("event", ["arrived", "joined", "cancelled", "expired", "gone", "answered"])
    def test_an_impossible_event_raises_with_the_story_and_changes_nothing(self, event: str) -> None:
        it = dispatcher(1)
        arrive(it, 10)
        before = repr(it)
        events = {
            "arrived": lambda: it.arrived(10, 1, 0.0),
            "joined": lambda: it.joined(1, "twice", 1),
            "cancelled": lambda: it.cancelled(99),
            "expired": lambda: it.expired(99),
            "gone": lambda: it.gone(99, 0.0),
            "answered": lambda: it.answered(10, 99),
        }
        with pytest.raises(DispatchError, match="impossible event") as caught:
            events[event]()
        assert repr(it) == before
        if event == "arrived":
            assert "its story: arrived (request 10, worker 1)" in str(caught.value)


# ---------------------------------------------------------------- every interleaving


class Interleavings(RuleBasedStateMachine):
    """Plays front door, clients and workers against the dispatcher and keeps its own books."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.next_request = 0
        self.next_worker = 0
        self.open: dict[int, int] = {}  # request → size
        self.ended: Counter[int] = Counter()
        self.losses: Counter[int] = Counter()
        self.sends: Counter[int] = Counter()
        self.at: dict[int, dict[int, bool]] = {}  # worker → request → was it a suspect when sent
        self.limits: dict[int, int] = {}
        self.readiness: dict[int, Readiness] = {}
        self.strays: list[tuple[int, int]] = []

    @initialize(wait=st.sampled_from([0.0, 1.0]), max_waiting=st.integers(0, 3), held=st.integers(1, 40))
    def start(self, wait: float, max_waiting: int, held: int) -> None:
        self.wait = wait
        self.max_held = held
        self.it = Dispatcher(wait=wait, max_waiting=max_waiting, max_held_bytes=held)

    def perform(self, actions: list[Action], arriving: int | None = None) -> None:
        for action in actions:
            request = action.request
            if isinstance(action, Send):
                assert self.readiness[action.worker] is Readiness.READY
                self.sends[request] += 1
                suspect = self.losses[request] > 0
                if suspect:
                    assert not any(self.at[action.worker].values()), "two suspects at one worker"
                self.at[action.worker][request] = suspect
                assert len(self.at[action.worker]) <= self.limits[action.worker]
                assert request in self.open
            elif isinstance(action, CancelAt):
                del self.at[action.worker][request]
                self.strays.append((request, action.worker))
            else:
                self.end(request)
                if isinstance(action, Refuse):
                    assert action.message
                    assert (action.status is Status.INTERNAL) == (self.losses[request] == 2)
                    if action.status is Status.RESOURCE_EXHAUSTED:
                        assert request == arriving

    def end(self, request: int) -> None:
        self.ended[request] += 1
        del self.open[request]

    def pick(self, data: st.DataObject, choices: list[int]) -> int:
        return data.draw(st.sampled_from(choices))

    # Events

    @rule(limit=st.integers(1, 3), is_ready=st.booleans())
    def join(self, limit: int, is_ready: bool) -> None:
        worker = self.next_worker = self.next_worker + 1
        self.at[worker] = {}
        self.limits[worker] = limit
        self.readiness[worker] = Readiness.NOT_READY
        self.perform(self.it.joined(worker, f"worker {worker}", limit))
        if is_ready:
            self.change_state(worker, Readiness.READY)

    def change_state(self, worker: int, readiness: Readiness) -> None:
        self.readiness[worker] = readiness
        self.perform(self.it.state_changed(worker, readiness, 1, "told so", self.now))

    @precondition(lambda self: self.at)
    @rule(data=st.data(), readiness=st.sampled_from(Readiness))
    def state(self, data: st.DataObject, readiness: Readiness) -> None:
        self.change_state(self.pick(data, list(self.at)), readiness)

    @precondition(lambda self: self.at)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = self.pick(data, list(self.at))
        for request in self.at.pop(worker):
            self.losses[request] += 1
        del self.readiness[worker]
        self.strays = [stray for stray in self.strays if stray[1] != worker]
        self.perform(self.it.gone(worker, self.now))

    @rule(size=st.integers(0, 9))
    def arrive(self, size: int) -> None:
        request = self.next_request = self.next_request + 1
        self.open[request] = size
        self.perform(self.it.arrived(request, size, self.now), arriving=request)

    @precondition(lambda self: any(self.at.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        worker = self.pick(data, [worker for worker, requests in self.at.items() if requests])
        request = self.pick(data, list(self.at[worker]))
        del self.at[worker][request]
        self.perform(self.it.answered(request, worker))
        assert request not in self.open

    @precondition(lambda self: self.strays)
    @rule(data=st.data())
    def late_answer(self, data: st.DataObject) -> None:
        stray = data.draw(st.sampled_from(self.strays))
        self.strays.remove(stray)
        assert self.it.answered(*stray) == []

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = self.pick(data, list(self.open))
        self.end(request)
        self.perform([*self.it.cancelled(request)])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        request = self.pick(data, list(self.open))
        self.perform(self.it.expired(request))
        assert request not in self.open

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.it.tick(self.now))

    # What always holds

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "it"):
            return
        it = self.it
        assert it.in_flight == len(self.open)
        assert it.held_bytes == sum(self.open.values()) <= self.max_held
        assert it.waiting == len(self.open) - sum(len(requests) for requests in self.at.values())
        assert all(count == 1 for count in self.ended.values())
        assert all(sends <= 2 for sends in self.sends.values())
        ready_workers = [worker for worker, state in self.readiness.items() if state is Readiness.READY]
        assert (it.serving_version is not None) == bool(ready_workers)
        if ready_workers:
            assert it.wake_at is None
        # Nothing waits that could be sent: fresh ones for any room, suspects for room without a suspect.
        at_workers = {request for requests in self.at.values() for request in requests}
        waiting = [request for request in self.open if request not in at_workers]
        room = [worker for worker in ready_workers if len(self.at[worker]) < self.limits[worker]]
        if any(self.losses[request] == 0 for request in waiting):
            assert not room
        if any(self.losses[request] for request in waiting):
            assert not [worker for worker in room if not any(self.at[worker].values())]
        # Nothing waits for ever either.
        if waiting and not ready_workers:
            assert it.wake_at is not None
            assert it.wake_at <= self.now + self.wait

    def teardown(self) -> None:
        if not hasattr(self, "it"):
            return
        while self.at:
            worker = next(iter(self.at))
            for request in self.at.pop(worker):
                self.losses[request] += 1
            del self.readiness[worker]
            self.perform(self.it.gone(worker, self.now))
        self.now += self.wait
        self.perform(self.it.tick(self.now))
        assert not self.open
        assert (self.it.in_flight, self.it.waiting, self.it.held_bytes) == (0, 0, 0)
        assert set(self.ended) == set(range(1, self.next_request + 1))
        counts = self.it.counts
        assert counts.arrived == self.next_request
        assert counts.arrived == (
            counts.delivered
            + counts.cancelled
            + counts.expired
            + counts.blamed
            + counts.overloaded
            + counts.too_much_held
            + counts.no_worker
        )


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
