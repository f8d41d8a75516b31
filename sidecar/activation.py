"""When a version becomes active, and which worker is told what: a pure state machine.

Events are method calls, and each returns the actions to take; sockets, clocks and memory are elsewhere.

| version is | on | becomes |
|---|---|---|
| – | `publish` of a new content | pending |
| pending | every worker that serves has prepared it | active |
| pending | a worker says that a config which is served now would be lost | dropped (Rejected) |
| pending | a worker says that a new endpoint of a config which is served now does not answer | dropped (Waits) |
| pending | the time limit is over | dropped (Overdue), and tried again when those who held it up are done or gone |
| pending | `publish` of another content | dropped |
| active | another version becomes active | retired |

What follows from it: a version is active everywhere or nowhere, and nothing becomes active that a worker could not
prepare. A dead worker holds nothing up, and neither does one that has just come and serves nothing yet: it gets
the active version first, so that it can serve, and then the pending one. A worker prepares one version at a time:
one that hangs does not pile up snapshots.

Only the first version of all is activated without those who are late: where nothing is served, something is better.

A config whose endpoint does not answer is left at its old version by whoever publishes, and the worker that
missed it goes on trying. When it answers, or the worker is gone, the config is Released: to be published again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from sidecar.catalog import Content

__all__ = [
    "LIMIT",
    "Action",
    "Activated",
    "Activation",
    "Announce",
    "Forget",
    "ImpossibleEventError",
    "Overdue",
    "Rejected",
    "Released",
    "Tell",
    "Version",
    "Waits",
]

LIMIT = 10.0
"""Seconds that preparing may take. Compiling takes well under a second, and so does a connection."""

NOTHING: Mapping[str, str] = {}


class Version(NamedTuple):
    """A numbered content. Numbers only grow."""

    number: int
    content: Content


class Announce(NamedTuple):
    """Send this worker the snapshot of a version to prepare."""

    worker: int
    version: Version


class Tell(NamedTuple):
    """Tell this worker to activate a version, which it has prepared."""

    worker: int
    number: int


class Activated(NamedTuple):
    """A version is active from now on; these workers are late and will follow."""

    version: Version
    late: tuple[int, ...]


class Rejected(NamedTuple):
    """A version is dropped: a worker cannot serve these configs in it, and serves them now."""

    version: Version
    reasons: Mapping[str, str]


class Waits(NamedTuple):
    """A version is dropped: new endpoints of these configs, which are served now, do not answer."""

    version: Version
    reasons: Mapping[str, str]


class Released(NamedTuple):
    """Nobody waits for the endpoints of these configs any more: they deserve another try."""

    names: tuple[str, ...]


class Overdue(NamedTuple):
    """A version is dropped, or the first of all still waited for: these workers have not prepared it in time."""

    version: Version
    workers: tuple[int, ...]


class Forget(NamedTuple):
    """This version will not be announced again: its memory can go."""

    number: int


Action: TypeAlias = Announce | Tell | Activated | Rejected | Waits | Released | Overdue | Forget


class ImpossibleEventError(RuntimeError):
    """An event that cannot follow what happened before; the text tells the story."""


@dataclass
class _Worker:
    """What one connected worker was sent and has done."""

    preparing: int | None = None
    prepared: set[int] = field(default_factory=set)
    serving: int | None = None
    waiting: set[str] = field(default_factory=set)


class Activation:
    """The active and the pending version, and the connected workers. `worker` is any number that names one
    connection: a process that comes back is a new worker."""

    def __init__(self, active: Version | None = None, *, limit: float = LIMIT) -> None:
        """`active` is what was served before this process began; `limit` in seconds."""
        self.active = active
        self.pending: Version | None = None
        self.due: float | None = None
        """When to call `tick`; None: not needed."""
        self.overdue: Content | None = None
        """What was dropped because of slow workers, and is published again when they are done."""
        self.blamed: frozenset[int] = frozenset()
        """The workers that held it up and have not finished since."""
        self.limit = limit
        self._over = False
        self._now = 0.0
        self._workers: dict[int, _Worker] = {}
        self._last_number = active.number if active else 0

    def __repr__(self) -> str:
        active = self.active.number if self.active else None
        pending = self.pending.number if self.pending else None
        done = sum(pending in worker.prepared for worker in self._workers.values())
        return f"<Activation active {active}, pending {pending}: {done} of {len(self._workers)} workers>"

    @property
    def is_overdue(self) -> bool:
        """Whether what was published last was not prepared in time, and has neither been served nor begun again."""
        return self._over or self.overdue is not None

    def serving(self, worker: int) -> int | None:
        """The version that a worker was last told to activate. Raises KeyError."""
        return self._workers[worker].serving

    # --- events

    def publish(self, content: Content, number: int, now: float) -> list[Action]:
        """A content to be served, under this number or the next free one. Nothing when it is not new."""
        self._now = now
        if self.overdue == content:
            return []
        self._clear_overdue()
        current = self.pending or self.active
        if current is not None and current.content == content:
            return []
        actions: list[Action] = [*self._drop_pending()]
        if self.active is None or self.active.content != content:
            actions += self._begin(content, number)
        return actions

    def joined(self, worker: int, now: float) -> list[Action]:
        """A worker has subscribed. Raises ImpossibleEventError when it had already."""
        self._now = now
        if worker in self._workers:
            raise ImpossibleEventError(f"worker {worker} joined twice: {self!r}")
        self._workers[worker] = _Worker()
        if self.active is None and self.pending is not None and not self._over:
            self.due = now + self.limit  # nobody has kept the first version waiting before it could begin
        return [*self._feed(worker)]

    def left(self, worker: int, now: float) -> list[Action]:
        """A worker's connection has ended. Raises ImpossibleEventError when it never joined."""
        self._now = now
        state = self._state(worker, "left")
        del self._workers[worker]
        return [*self._advance(), *self._release(state.waiting), *self._unblame(worker)]

    def prepared(
        self,
        worker: int,
        number: int,
        refused: Mapping[str, str],
        now: float,
        waiting: Mapping[str, str] = NOTHING,
    ) -> list[Action]:
        """A worker has prepared a version, but for these configs; it waits for endpoints of others.

        Raises ImpossibleEventError when that is not what the worker was working on.
        """
        self._now = now
        state = self._state(worker, f"prepared {number}")
        if state.preparing != number:
            raise ImpossibleEventError(
                f"worker {worker} says it prepared {number}, it was sent {state.preparing}: {self!r}"
            )
        state.preparing = None
        state.prepared.add(number)
        actions: list[Action] = []
        if self.active is not None and number == self.active.number:
            state.serving = number
            actions.append(Tell(worker, number))
        elif self.pending is not None and number == self.pending.number:
            actions += self._judge(state, self.pending, refused, waiting)
        return [*actions, *self._unblame(worker), *self._feed(worker)]

    def connected(self, worker: int, names: Collection[str]) -> list[Action]:
        """The endpoints that a worker missed for these configs answer now.

        Raises ImpossibleEventError when the worker never joined.
        """
        state = self._state(worker, "connected")
        done = state.waiting.intersection(names)
        state.waiting -= done
        return [*self._release(done)]

    def tick(self, now: float) -> list[Action]:
        """Time has passed. Nothing before `due`."""
        self._now = now
        if self.pending is None or self.due is None or now < self.due:
            return []
        late = tuple(worker for worker, state in self._voters() if self.pending.number not in state.prepared)
        if not late:  # nobody is connected: there is time again for those who come
            self.due = now + self.limit
            return []
        self.due = None
        overdue = Overdue(self.pending, late)
        if self.active is None:
            self._over = True
            return [overdue, *self._advance()]
        self.overdue, self.blamed = self.pending.content, frozenset(late)
        return [overdue, *self._drop_pending()]

    # --- what follows

    def _state(self, worker: int, event: str) -> _Worker:
        if worker not in self._workers:
            raise ImpossibleEventError(f"worker {worker} {event}, but is not connected: {self!r}")
        return self._workers[worker]

    def _begin(self, content: Content, number: int) -> Iterator[Action]:
        self._last_number = max(number, self._last_number + 1)
        self.pending = Version(self._last_number, content)
        self.due = self._now + self.limit
        for worker in self._workers:
            yield from self._feed(worker)

    def _feed(self, worker: int) -> Iterator[Action]:
        """The next version that this worker needs, unless it is busy."""
        state = self._workers[worker]
        for version in (self.active, self.pending):
            if state.preparing is None and version is not None and version.number not in state.prepared:
                state.preparing = version.number
                yield Announce(worker, version)

    def _judge(
        self, state: _Worker, pending: Version, refused: Mapping[str, str], waiting: Mapping[str, str]
    ) -> Iterator[Action]:
        """A worker has prepared the pending version: is there anything against it, or is it the last?"""
        lost = self._at_stake(pending, refused)
        missed = self._at_stake(pending, waiting)
        state.waiting |= missed.keys()
        if lost:
            yield Rejected(pending, lost)
        if missed:
            yield Waits(pending, missed)
        if lost or missed:
            yield from self._drop_pending()
        else:
            yield from self._advance()

    def _at_stake(self, pending: Version, reasons: Mapping[str, str]) -> dict[str, str]:
        """Those of these configs that are served now, and in another version of theirs."""
        if self.active is None:
            return {}
        old, new = self.active.content, pending.content
        return {
            name: reason
            for name, reason in reasons.items()
            if name in new.configs and name in old.configs and new.fingerprint(name) != old.fingerprint(name)
        }

    def _advance(self) -> Iterator[Action]:
        """Activates the pending version if nothing speaks against it any more."""
        if self.pending is None:
            return
        number = self.pending.number
        ready = [worker for worker, state in self._workers.items() if number in state.prepared]
        done = all(number in state.prepared for _, state in self._voters())
        if not ready or not (done or self._over):
            return
        retired, self.active = self.active, self.pending
        self._clear_pending()
        for state in self._workers.values():
            state.prepared = {one for one in state.prepared if one >= number}
        yield Activated(self.active, tuple(worker for worker in self._workers if worker not in ready))
        for worker in ready:
            self._workers[worker].serving = number
            yield Tell(worker, number)
        if retired is not None:
            yield Forget(retired.number)
        for worker in self._workers:
            yield from self._feed(worker)

    def _voters(self) -> list[tuple[int, _Worker]]:
        """The workers that a pending version waits for: those that serve; all of them while nothing is active."""
        return [
            (worker, state)
            for worker, state in self._workers.items()
            if self.active is None or state.serving is not None
        ]

    def _release(self, names: Collection[str]) -> Iterator[Action]:
        """Names that no worker waits for any more."""
        free = [name for name in names if not any(name in state.waiting for state in self._workers.values())]
        if free:
            yield Released(tuple(sorted(free)))

    def _unblame(self, worker: int) -> Iterator[Action]:
        """A worker that held a version up is done or gone: after the last of them it is tried again."""
        if worker not in self.blamed:
            return
        self.blamed -= {worker}
        content = self.overdue
        if self.blamed or content is None:
            return
        self._clear_overdue()
        yield from self._begin(content, 0)

    def _drop_pending(self) -> Iterator[Action]:
        if self.pending is not None:
            yield Forget(self.pending.number)
            self._clear_pending()

    def _clear_pending(self) -> None:
        self.pending, self.due, self._over = None, None, False

    def _clear_overdue(self) -> None:
        self.overdue, self.blamed = None, frozenset()
