"""When versions become active: single stories, and every interleaving of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.activation import (
    Action,
    Activated,
    Activation,
    Announce,
    Forget,
    ImpossibleEventError,
    Overdue,
    Rejected,
    Released,
    Tell,
    Version,
    Waits,
)
from sidecar.catalog import Content, Document

LIMIT = 10.0


def content(*names: str, digest: str = "d") -> Content:
    return Content({name: Document(b"{}", f"{digest}-{name}", frozenset()) for name in names})


A, B, C = content("a"), content("a", "b"), content("c")


def running(*workers: int, active: Version | None = None) -> Activation:
    """An activation with connected workers that serve its active version."""
    machine = Activation(active or Version(1, A), limit=LIMIT)
    for worker in workers:
        machine.joined(worker, 0)
        machine.prepared(worker, machine.active.number if machine.active else 0, {}, 0)
    return machine


# ---------------------------------------------------------------- stories


def test_cold_start_waits_for_a_first_worker() -> None:
    machine = Activation(limit=LIMIT)
    assert machine.publish(A, number=100, now=0) == []
    assert machine.tick(LIMIT) == []  # nobody to blame
    assert machine.due == 2 * LIMIT
    assert machine.joined(1, 0) == [Announce(1, Version(100, A))]
    assert machine.prepared(1, 100, {}, 0) == [Activated(Version(100, A), ()), Tell(1, 100)]


def test_no_configs_at_all_are_a_version_too() -> None:
    machine = Activation(limit=LIMIT)
    machine.publish(Content(), number=1, now=0)
    machine.joined(1, 0)
    machine.prepared(1, 1, {}, 0)
    assert machine.active == Version(1, Content())


def test_a_version_becomes_active_when_every_worker_has_prepared_it() -> None:
    machine = running(1, 2)
    v2 = Version(2, B)
    assert machine.publish(B, number=2, now=0) == [Announce(1, v2), Announce(2, v2)]
    assert machine.prepared(2, 2, {}, 0) == []
    assert machine.prepared(1, 2, {}, 0) == [Activated(v2, ()), Tell(1, 2), Tell(2, 2), Forget(1)]


def test_equal_content_is_no_change() -> None:
    machine = running(1)
    assert machine.publish(content("a"), number=9, now=0) == []
    machine.publish(B, number=9, now=0)
    assert machine.publish(content("a", "b"), number=10, now=0) == []
    assert machine.pending == Version(9, B)


def test_numbers_only_grow_even_when_the_clock_goes_back() -> None:
    machine = running(1, active=Version(1000, A))
    machine.publish(B, number=5, now=0)
    assert machine.pending == Version(1001, B)


def test_an_edit_that_is_taken_back_sends_nothing() -> None:
    machine = running(1)
    machine.publish(B, number=2, now=0)
    assert machine.publish(A, number=3, now=0) == [Forget(2)]
    assert machine.prepared(1, 2, {}, 0) == []
    assert machine.active == Version(1, A)
    assert machine.due is None


def test_a_worker_prepares_one_version_at_a_time() -> None:
    machine = running(1)
    machine.publish(B, number=2, now=0)
    assert machine.publish(C, number=3, now=0) == [Forget(2)]  # it is busy with 2
    assert machine.publish(content("e"), number=4, now=0) == [Forget(3)]
    assert machine.prepared(1, 2, {}, 0) == [Announce(1, Version(4, content("e")))]


def test_a_worker_that_joins_gets_the_active_version_first() -> None:
    machine = running(1)
    machine.publish(B, number=2, now=0)
    assert machine.joined(2, 0) == [Announce(2, Version(1, A))]
    assert machine.prepared(2, 1, {}, 0) == [Tell(2, 1), Announce(2, Version(2, B))]


def test_a_worker_that_does_not_serve_yet_holds_nothing_up() -> None:
    """With thousands of configs its first version takes seconds."""
    machine = running(1)
    assert machine.joined(2, 0) == [Announce(2, Version(1, A))]
    machine.publish(B, number=2, now=0)
    assert machine.prepared(1, 2, {}, 0) == [Activated(Version(2, B), (2,)), Tell(1, 2), Forget(1)]
    assert machine.prepared(2, 1, {}, 0) == [Announce(2, Version(2, B))], "not told to serve the old one"
    assert machine.prepared(2, 2, {}, 0) == [Tell(2, 2)]


def test_a_dead_worker_holds_nothing_up() -> None:
    machine = running(1, 2)
    machine.publish(B, number=2, now=0)
    machine.prepared(1, 2, {}, 0)
    assert machine.left(2, 0) == [Activated(Version(2, B), ()), Tell(1, 2), Forget(1)]


def test_a_version_that_no_worker_has_prepared_is_not_activated_when_all_are_dead() -> None:
    machine = running(1)
    machine.publish(B, number=2, now=0)
    assert machine.left(1, 0) == []
    assert machine.tick(LIMIT) == []
    assert machine.active == Version(1, A)


def test_what_a_slow_worker_cannot_prepare_is_activated_nowhere() -> None:
    machine = running(1, 2)
    machine.publish(B, number=2, now=5)
    machine.prepared(1, 2, {}, 6)
    assert machine.due == 5 + LIMIT
    assert machine.tick(14.9) == []
    assert machine.tick(15) == [Overdue(Version(2, B), (2,)), Forget(2)]
    assert machine.active == Version(1, A)
    assert machine.publish(B, number=3, now=20) == []  # it would only be held up again


def test_it_is_tried_again_when_the_slow_worker_is_done() -> None:
    machine = running(1, 2)
    machine.publish(B, number=2, now=0)
    machine.prepared(1, 2, {}, 1)
    machine.tick(LIMIT)
    again = Version(3, B)
    assert machine.prepared(2, 2, {}, 11) == [Announce(1, again), Announce(2, again)]
    assert not machine.is_overdue
    assert machine.due == 11 + LIMIT
    machine.prepared(1, 3, {}, 12)
    assert machine.prepared(2, 3, {}, 12)[0] == Activated(again, ())


def test_it_is_tried_again_when_the_slow_worker_is_gone() -> None:
    machine = running(1, 2, 3)
    machine.publish(B, number=2, now=0)
    machine.prepared(1, 2, {}, 1)
    assert machine.tick(LIMIT) == [Overdue(Version(2, B), (2, 3)), Forget(2)]
    assert machine.left(2, 11) == []
    assert machine.left(3, 12) == [Announce(1, Version(3, B))]
    assert Tell(1, 3) in machine.prepared(1, 3, {}, 13)


def test_what_was_overdue_is_forgotten_when_something_else_is_published() -> None:
    machine = running(1, 2)
    machine.publish(B, number=2, now=0)
    machine.prepared(1, 2, {}, 1)
    machine.tick(LIMIT)
    assert machine.is_overdue
    assert machine.publish(A, number=3, now=20) == []  # the edit was taken back
    assert not machine.is_overdue
    assert machine.prepared(2, 2, {}, 21) == []
    assert machine.active == Version(1, A)


def test_the_first_version_of_all_waits_for_nobody_after_the_limit() -> None:
    machine = Activation(limit=LIMIT)
    machine.publish(A, number=1, now=0)
    machine.joined(1, 0)
    machine.joined(2, 0)
    assert machine.tick(LIMIT) == [Overdue(Version(1, A), (1, 2))]
    assert machine.is_overdue
    assert machine.due is None
    assert machine.prepared(1, 1, {}, 11) == [Activated(Version(1, A), (2,)), Tell(1, 1)]
    assert machine.prepared(2, 1, {}, 12) == [Tell(2, 1)]


def test_the_limit_of_the_first_version_begins_when_a_worker_is_there_to_prepare_it() -> None:
    machine = Activation(limit=LIMIT)
    machine.publish(A, number=1, now=0)
    machine.joined(1, 9)
    assert machine.due == 9 + LIMIT
    assert machine.tick(LIMIT) == []


def test_a_worker_that_joins_does_not_move_the_limit_of_a_later_version() -> None:
    machine = running(1)
    machine.publish(B, number=2, now=0)
    machine.joined(2, 9)
    assert machine.due == LIMIT


def test_a_served_config_whose_new_endpoint_does_not_answer_keeps_its_version() -> None:
    machine = running(1, 2, active=Version(1, content("a", "b")))
    changed = content("a", "b", digest="new")
    machine.publish(changed, number=2, now=0)
    assert machine.prepared(1, 2, {}, 1, {"a": "waiting for x"}) == [
        Waits(Version(2, changed), {"a": "waiting for x"}),
        Forget(2),
    ]
    assert machine.prepared(2, 2, {}, 1) == []
    assert machine.connected(1, ["b"]) == []
    assert machine.connected(1, ["a"]) == [Released(("a",))]
    assert machine.connected(1, ["a"]) == []


def test_a_config_is_released_when_the_last_worker_that_waits_is_gone_or_connected() -> None:
    machine = running(1, 2, active=Version(1, content("a")))
    for number, worker in ((2, 1), (3, 2)):
        machine.publish(content("a", digest=str(number)), number=number, now=0)
        machine.prepared(worker, number, {}, 1, {"a": "waiting"})
        machine.prepared(3 - worker, number, {}, 1)
    assert machine.connected(2, ["a"]) == []
    assert machine.left(1, 2) == [Released(("a",))]


def test_a_new_config_waits_for_no_endpoint() -> None:
    machine = running(1)
    machine.publish(B, number=2, now=0)
    assert Tell(1, 2) in machine.prepared(1, 2, {}, 1, {"b": "waiting"})


def test_a_version_in_which_a_served_config_would_be_lost_is_rejected() -> None:
    machine = running(1, 2, active=Version(1, content("a", "b")))
    worse = content("a", "b", digest="new")
    machine.publish(worse, number=2, now=0)
    assert machine.prepared(1, 2, {"a": "no host"}, 0) == [
        Rejected(Version(2, worse), {"a": "no host"}),
        Forget(2),
    ]
    assert machine.pending is None
    assert machine.prepared(2, 2, {}, 0) == []


def test_a_new_config_that_cannot_be_served_rejects_nothing() -> None:
    machine = running(1)
    machine.publish(B, number=2, now=0)
    assert Tell(1, 2) in machine.prepared(1, 2, {"b": "no host", "never heard of": "x"}, 0)


def test_an_unchanged_config_that_cannot_be_served_rejects_nothing() -> None:
    """Dropping the version would not bring it back, and the next one would be dropped for it again."""
    machine = running(1)
    machine.publish(B, number=2, now=0)
    assert Tell(1, 2) in machine.prepared(1, 2, {"a": "no host"}, 0)


def test_a_changed_expression_makes_a_config_a_changed_one() -> None:
    def with_expression(text: str) -> Content:
        return Content({"a": Document(b"{}", "d", frozenset({"x"}))}, expressions={"x": text})

    machine = running(1, active=Version(1, with_expression("1")))
    machine.publish(with_expression("2"), number=2, now=0)
    assert isinstance(machine.prepared(1, 2, {"a": "bad"}, 0)[0], Rejected)


@pytest.mark.parametrize(
    ("event", "story"),
    [
        (lambda machine: machine.joined(1, 0), "worker 1 joined twice"),
        (lambda machine: machine.left(7, 0), "worker 7 left, but is not connected"),
        (lambda machine: machine.prepared(7, 1, {}, 0), "worker 7 prepared 1, but is not connected"),
        (lambda machine: machine.prepared(1, 5, {}, 0), "says it prepared 5, it was sent 2"),
    ],
)
def test_impossible_events_tell_their_story(event: object, story: str) -> None:
    machine = running(1)
    machine.publish(B, number=2, now=0)
    with pytest.raises(ImpossibleEventError, match=story):
        event(machine)  # type: ignore[operator]


def test_repr_tells_how_far_it_is() -> None:
    machine = running(1, 2)
    machine.publish(B, number=2, now=0)
    machine.prepared(1, 2, {}, 0)
    assert repr(machine) == "<Activation active 1, pending 2: 1 of 2 workers>"


# ---------------------------------------------------------------- every interleaving


class Pod(RuleBasedStateMachine):
    """Workers that prepare when they please, die, come back and refuse; a source that changes meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Activation(limit=LIMIT)
        self.now = 0.0
        self.names = 0
        self.sent: dict[int, Version | None] = {}  # connected worker → what it works on
        self.ready: dict[int, set[int]] = {}
        self.serving: dict[int, int] = {}
        self.told: set[int] = set()  # workers that this sidecar has told what to serve
        self.waiting: dict[int, set[str]] = {}
        self.active = 0
        self.announced: set[int] = set()
        self.forgotten: set[int] = set()
        self.wanted: Content | None = None
        self.rejected = False

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Announce(worker, version):
                    assert self.sent[worker] is None, "a worker prepares one version at a time"
                    assert version.number not in self.forgotten, "memory of a version is not used after it"
                    assert version.number not in self.ready[worker], "a version is prepared once"
                    self.sent[worker] = version
                    self.announced.add(version.number)
                case Tell(worker, number):
                    assert number in self.ready[worker], "only what is prepared is activated"
                    assert number >= self.serving.get(worker, 0), "no worker goes back"
                    assert number == self.active
                    self.serving[worker] = number
                    self.told.add(worker)
                case Activated(version, late):
                    assert version.number > self.active, "versions go forward"
                    assert any(version.number in ready for ready in self.ready.values())
                    assert all(version.number not in self.ready[worker] for worker in late)
                    assert not self.told & set(late), "everywhere or nowhere"
                    self.active = version.number
                case Forget(number):
                    assert number not in self.forgotten
                    assert number != self.active
                    self.forgotten.add(number)
                case Rejected(version, _) | Waits(version, _):
                    assert version.number != self.active
                    self.rejected = True
                case Released(names):
                    assert not any(set(names) & waiting for waiting in self.waiting.values())
                case Overdue(version, workers):
                    assert workers
                    assert all(version.number not in self.ready[worker] for worker in workers)
                    assert version.number != self.active

    @rule(names=st.sets(st.sampled_from("abc"), max_size=3), digest=st.sampled_from("12"))
    def change(self, names: set[str], digest: str) -> None:
        self.wanted = content(*names, digest=digest)
        self.rejected = False
        self.perform(self.machine.publish(self.wanted, number=0, now=self.now))

    @rule()
    def join(self) -> None:
        self.names += 1
        self.sent[self.names], self.ready[self.names], self.waiting[self.names] = None, set(), set()
        self.perform(self.machine.joined(self.names, self.now))

    @rule()
    def the_sidecar_is_killed(self) -> None:
        """A new one begins with what was saved. Every worker goes on serving, and comes again."""
        self.machine = Activation(self.machine.active, limit=LIMIT)
        self.announced, self.forgotten, self.told = set(), set(), set()
        if self.wanted is not None:
            self.perform(self.machine.publish(self.wanted, number=0, now=self.now))
        for worker in self.sent:
            # It may have prepared this or that before: then it only answers sooner.
            self.sent[worker], self.ready[worker], self.waiting[worker] = None, set(), set()
            self.perform(self.machine.joined(worker, self.now))
        self.rejected = False

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.sent)))
        del self.sent[worker], self.ready[worker], self.waiting[worker]
        self.serving.pop(worker, None)
        self.told.discard(worker)
        self.perform(self.machine.left(worker, self.now))

    @precondition(lambda self: any(self.sent.values()))
    @rule(
        data=st.data(),
        refused=st.sets(st.sampled_from("abc"), max_size=1),
        waiting=st.sets(st.sampled_from("abc"), max_size=1),
    )
    def prepare(self, data: st.DataObject, refused: set[str], waiting: set[str]) -> None:
        worker = data.draw(st.sampled_from(sorted(one for one, version in self.sent.items() if version)))
        self.answer(worker, dict.fromkeys(refused, "cannot"), dict.fromkeys(waiting, "waits"))

    def answer(self, worker: int, refused: dict[str, str], waiting: dict[str, str]) -> None:
        version = self.sent[worker]
        assert version is not None
        self.sent[worker] = None
        self.ready[worker].add(version.number)
        actions = self.machine.prepared(worker, version.number, refused, self.now, waiting)
        for action in actions:
            if isinstance(action, Waits):
                self.waiting[worker] |= action.reasons.keys()
        self.perform(actions)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(one for one, names in self.waiting.items() if names)))
        names, self.waiting[worker] = self.waiting[worker], set()
        actions = self.machine.connected(worker, names)
        self.perform(actions)
        for name in names:
            if not any(name in waiting for waiting in self.waiting.values()):
                assert any(isinstance(one, Released) and name in one.names for one in actions)

    @rule(seconds=st.sampled_from([0.5, 3.0, LIMIT]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.machine.tick(self.now))

    @precondition(lambda self: self.sent and self.wanted is not None)
    @rule()
    def come_to_rest(self) -> None:
        """When everybody has answered, everybody serves what was published last."""
        while any(self.sent.values()):
            for worker in [one for one, version in self.sent.items() if version]:
                self.answer(worker, {}, {})
        assert self.machine.pending is None
        assert self.machine.active is not None
        assert self.rejected or self.machine.active.content == self.wanted
        assert all(self.serving[worker] == self.machine.active.number for worker in self.sent)

    @precondition(lambda self: self.machine.pending is not None and self.machine.active is not None)
    @rule()
    def nobody_waits_for_ever(self) -> None:
        """After the limit the version is active, or those who held it up are known."""
        wanted = self.machine.pending
        assert wanted is not None
        self.now += LIMIT
        self.perform(self.machine.tick(self.now))
        if self.told:
            assert self.machine.pending is None
            assert self.machine.overdue == wanted.content
            assert self.machine.blamed <= self.told
            assert all(self.sent[worker] for worker in self.machine.blamed), "those who are busy"

    @invariant()
    def it_knows_its_workers(self) -> None:
        assert f"of {len(self.sent)} workers" in repr(self.machine)
        if self.machine.pending is None:
            assert self.machine.due is None

    @invariant()
    def memory_is_given_back(self) -> None:
        """Only the active and the pending version keep theirs."""
        kept = {one.number for one in (self.machine.active, self.machine.pending) if one}
        assert self.announced - self.forgotten <= kept


Pod.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestPod = Pod.TestCase
