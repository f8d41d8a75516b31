"""When a version becomes active, and which worker is told what: a pure state machine.

Events are method calls, and each returns the actions to take; sockets, clocks and memory are elsewhere.

| version is | on | becomes |
|---|---|---|
| – | `publish` of a new content | pending |
| pending | every connected worker has prepared it | active |
| pending | the time limit is over and one worker has prepared it | active |
| pending | a worker says that a config which is served now would be lost | dropped (Rejected) |
| pending | `publish` of another content | dropped |
| active | another version becomes active | retired |

What follows from it: nothing becomes active that no worker could prepare. A dead worker holds nothing up, a
slow one at most the time limit; it serves what it has, and is told to activate when it is done. A worker that
joins gets the active version first, so that it can serve, and then the pending one. A worker prepares one
version at a time: one that hangs does not pile up snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from sidecar.catalog import Content

__all__ = [
    "Action",
    "Activated",
    "Activation",
    "Announce",
    "Forget",
    "ImpossibleEventError",
    "Rejected",
    "Stuck",
    "Tell",
    "Version",
]

LIMIT = 10.0
"""Seconds for which one slow worker may hold up the others. Compiling takes well under a second."""


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


class Stuck(NamedTuple):
    """The time limit is over and no worker has prepared this version; these work on it or on an older one."""

    version: Version
    workers: tuple[int, ...]


class Forget(NamedTuple):
    """This version will not be announced again: its memory can go."""

    number: int


Action: TypeAlias = Announce | Tell | Activated | Rejected | Stuck | Forget


class ImpossibleEventError(RuntimeError):
    """An event that cannot follow what happened before; the text tells the story."""


@dataclass
class _Worker:
    """What one connected worker was sent and has done."""

    preparing: int | None = None
    prepared: set[int] = field(default_factory=set)


class Activation:
    """The active and the pending version, and the connected workers. `worker` is any number that names one
    connection: a process that comes back is a new worker."""

    def __init__(self, active: Version | None = None, *, limit: float = LIMIT) -> None:
        """`active` is what was served before this process began; `limit` in seconds."""
        self.active = active
        self.pending: Version | None = None
        self.due: float | None = None
        """When to call `tick`; None: not needed."""
        self._limit = limit
        self._over = False
        self._workers: dict[int, _Worker] = {}
        self._last_number = active.number if active else 0

    def __repr__(self) -> str:
        active = self.active.number if self.active else None
        pending = self.pending.number if self.pending else None
        done = sum(pending in worker.prepared for worker in self._workers.values())
        return f"<Activation active {active}, pending {pending}: {done} of {len(self._workers)} workers>"

    # --- events

    def publish(self, content: Content, number: int, now: float) -> list[Action]:
        """A content to be served, under this number or the next free one. Nothing when it is not new."""
        current = self.pending or self.active
        if current is not None and current.content == content:
            return []
        actions: list[Action] = [*self._drop_pending()]
        if self.active is None or self.active.content != content:
            self._last_number = max(number, self._last_number + 1)
            self.pending = Version(self._last_number, content)
            self.due = now + self._limit
            actions += self._feed_all()
        return actions

    def joined(self, worker: int) -> list[Action]:
        """A worker has subscribed. Raises ImpossibleEventError when it had already."""
        if worker in self._workers:
            raise ImpossibleEventError(f"worker {worker} joined twice: {self!r}")
        self._workers[worker] = _Worker()
        return [*self._feed(worker)]

    def left(self, worker: int) -> list[Action]:
        """A worker's connection has ended. Raises ImpossibleEventError when it never joined."""
        self._state(worker, "left")
        del self._workers[worker]
        return [*self._advance()]

    def prepared(self, worker: int, number: int, refused: Mapping[str, str]) -> list[Action]:
        """A worker has prepared a version, but for these configs.

        Raises ImpossibleEventError when that is not what the worker was working on.
        """
        state = self._state(worker, f"prepared {number}")
        if state.preparing != number:
            raise ImpossibleEventError(
                f"worker {worker} says it prepared {number}, it was sent {state.preparing}: {self!r}"
            )
        state.preparing = None
        state.prepared.add(number)
        actions: list[Action] = []
        if self.active is not None and number == self.active.number:
            actions.append(Tell(worker, number))
        elif self.pending is not None and number == self.pending.number:
            lost = self._lost(self.active, self.pending, refused)
            if lost:
                actions.append(Rejected(self.pending, lost))
                actions += self._drop_pending()
            else:
                actions += self._advance()
        return [*actions, *self._feed(worker)]

    def tick(self, now: float) -> list[Action]:
        """Time has passed. Nothing before `due`."""
        if self.pending is None or self.due is None or now < self.due:
            return []
        self.due = None
        self._over = True
        actions = [*self._advance()]
        if self.pending is not None and self._workers:
            actions.append(Stuck(self.pending, tuple(self._workers)))
        return actions

    # --- what follows

    def _state(self, worker: int, event: str) -> _Worker:
        if worker not in self._workers:
            raise ImpossibleEventError(f"worker {worker} {event}, but is not connected: {self!r}")
        return self._workers[worker]

    def _feed_all(self) -> Iterator[Action]:
        for worker in self._workers:
            yield from self._feed(worker)

    def _feed(self, worker: int) -> Iterator[Action]:
        """The next version that this worker needs, unless it is busy."""
        state = self._workers[worker]
        for version in (self.active, self.pending):
            if state.preparing is None and version is not None and version.number not in state.prepared:
                state.preparing = version.number
                yield Announce(worker, version)

    def _advance(self) -> Iterator[Action]:
        """Activates the pending version if nothing speaks against it any more."""
        if self.pending is None:
            return
        number = self.pending.number
        ready = [worker for worker, state in self._workers.items() if number in state.prepared]
        if not ready or (len(ready) < len(self._workers) and not self._over):
            return
        retired, self.active = self.active, self.pending
        self._clear_pending()
        for state in self._workers.values():
            state.prepared = {one for one in state.prepared if one >= number}
        yield Activated(self.active, tuple(worker for worker in self._workers if worker not in ready))
        for worker in ready:
            yield Tell(worker, number)
        if retired is not None:
            yield Forget(retired.number)
        yield from self._feed_all()

    def _drop_pending(self) -> Iterator[Action]:
        if self.pending is not None:
            yield Forget(self.pending.number)
            self._clear_pending()

    def _clear_pending(self) -> None:
        self.pending, self.due, self._over = None, None, False

    @staticmethod
    def _lost(active: Version | None, pending: Version, refused: Mapping[str, str]) -> dict[str, str]:
        """Configs that are served now and would not be any more, because of what is new about them."""
        if active is None:
            return {}
        return {
            name: reason
            for name, reason in refused.items()
            if name in pending.content.configs
            and name in active.content.configs
            and pending.content.fingerprint(name) != active.content.fingerprint(name)
        }
