"""Which request goes to which worker, and what becomes of it. A pure state machine.

Events go in as method calls, actions come out as a list; there are no sockets, clocks or tasks here. Times
are seconds of one monotonic clock that the caller reads. Requests and workers are numbers of the caller's;
a number is never used twice.

A request, from `arrived` until exactly one of Deliver, Refuse, or the caller's own `cancelled`:

    state      event                      next
    ---------  -------------------------  ------------------------------------------------------------
    (new)      arrived                    sent, or waiting while no worker is ready; refused when all
                                          ready workers are full, or too much waits, or is held
    waiting    a worker has room          sent
    waiting    no worker for `wait`       refused: UNAVAILABLE
    sent       answered by its worker     delivered
    sent       its worker is gone         a suspect, waiting; at the second time refused: INTERNAL
    any        expired                    refused: DEADLINE_EXCEEDED (and CancelAt, when sent)
    any        cancelled                  forgotten (and CancelAt, when sent)

A worker, from `joined` until `gone`: not ready ⇄ ready ⇄ draining, as it says itself. Only a ready one is
sent anything; what it has when it stops being ready, it finishes.

Fresh requests go to the ready worker with the fewest in flight, ties in turn.

Suspects. A worker that dies takes all its requests with it, and nobody knows which one ended it. All are
sent once more, but each worker has at most one suspect at a time: a second death then has one suspect, and
the innocent of the first cannot be blamed again because of it. The price is that after a death the lost
requests follow one by one on each worker; they are few (rate × service time). Fresh requests avoid a worker
with a suspect while another one has room. What remains: a suspect that shares its worker with a *fresh*
poisonous request is blamed when that one strikes. To rule that out a suspect would need a worker to itself,
and with one worker that would stop all service for as long as suspects last.

Ghosts. A cancelled request frees its place at once, since its worker will not answer it. A worker that
hangs would so look idle and draw every new request to itself. So whatever was cancelled at a worker counts
in the comparison (never against its limit) until that worker answers something.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from rpc.status import Status
from shared.frames import Readiness

__all__ = [
    "Action",
    "CancelAt",
    "Counts",
    "Deliver",
    "DispatchError",
    "Dispatcher",
    "Refuse",
    "Send",
    "WorkerLoad",
]

MAX_LOSSES = 2
"""Deaths after which a request is not sent again."""

_STORY_EVENTS = 512
_READY = Readiness.READY
_AVOID = 1 << 32  # more than any load: a worker with a suspect comes after all others with room


# ---------------------------------------------------------------- actions


class Send(NamedTuple):
    """Send the request to this worker."""

    request: int
    worker: int


class CancelAt(NamedTuple):
    """Tell this worker that nobody waits for the request."""

    request: int
    worker: int


class Deliver(NamedTuple):
    """Answer the request with what the worker answered; forget its body."""

    request: int


class Refuse(NamedTuple):
    """Answer the request with this error; forget its body."""

    request: int
    status: Status
    message: str


Action: TypeAlias = Send | CancelAt | Deliver | Refuse


class DispatchError(Exception):
    """An event that cannot be. The text has the story of the request or the worker that led there."""


@dataclass
class Counts:
    """What has happened so far."""

    arrived: int = 0
    delivered: int = 0
    cancelled: int = 0
    expired: int = 0
    waited: int = 0
    """Requests that found no worker ready."""
    deaths: int = 0
    """Workers gone with requests in flight."""
    resent: int = 0
    blamed: int = 0
    """Requests answered INTERNAL after two deaths."""
    overloaded: int = 0
    """Requests answered RESOURCE_EXHAUSTED: all ready workers full."""
    too_much_held: int = 0
    """Requests answered RESOURCE_EXHAUSTED: bodies above the budget."""
    no_worker: int = 0
    """Requests answered UNAVAILABLE."""
    stray_answers: int = 0
    """Answers to requests that were not at that worker any more: mostly cancelled ones."""


class WorkerLoad(NamedTuple):
    """What a worker does now: its number (the word after "worker" in its name), what it says, what it has."""

    name: str
    state: str
    in_flight: int


# ---------------------------------------------------------------- records


class _Worker:
    __slots__ = ("ghosts", "limit", "name", "readiness", "reason", "requests", "suspect", "version")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.readiness = Readiness.NOT_READY
        self.version = 0
        self.reason = "has not told its state yet"
        self.requests: dict[int, _Request] = {}
        self.suspect: int | None = None
        self.ghosts = 0

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {self.readiness.name}, {len(self.requests)} of {self.limit} in flight, "
            f"suspect {self.suspect}, {self.ghosts} ghosts>"
        )


class _Request:
    __slots__ = ("id", "losses", "since", "size", "worker")

    def __init__(self, request: int, size: int) -> None:
        self.id = request
        self.size = size
        self.losses = 0
        self.worker: int | None = None
        self.since = 0.0  # when it began to wait


# ---------------------------------------------------------------- the machine


class Dispatcher:
    """The table of requests and workers of one front door. Belongs to one thread.

    Every event returns the actions that it leads to, in the order in which they are to be done. An
    impossible event raises DispatchError and changes nothing.
    """

    def __init__(self, *, wait: float, max_waiting: int, max_held_bytes: int) -> None:
        """`wait`: seconds a request waits while no worker is ready; `max_waiting`: fresh requests that may;
        `max_held_bytes`: bodies kept until they are answered."""
        self.counts = Counts()
        self._wait = wait
        self._max_waiting = max_waiting
        self._max_held = max_held_bytes
        self._held = 0
        self._requests: dict[int, _Request] = {}
        self._workers: dict[int, _Worker] = {}  # least recently chosen first: that settles ties
        self._fresh: dict[int, _Request] = {}  # both queues: longest waiting first
        self._suspects: dict[int, _Request] = {}
        self._unready_since: float | None = float("-inf")  # None while a worker is ready
        self._story: deque[tuple[str, int | None, int | None]] = deque(maxlen=_STORY_EVENTS)

    def __repr__(self) -> str:
        return (
            f"<Dispatcher: {len(self._requests)} requests ({self._held} bytes), {len(self._fresh)} waiting, "
            f"{len(self._suspects)} suspects waiting, workers {list(self._workers.values())}>"
        )

    # What it knows

    @property
    def in_flight(self) -> int:
        """Requests that have no answer yet, waiting ones included."""
        return len(self._requests)

    @property
    def waiting(self) -> int:
        """Requests that are at no worker."""
        return len(self._fresh) + len(self._suspects)

    @property
    def held_bytes(self) -> int:
        """Bytes of the bodies that the caller keeps."""
        return self._held

    @property
    def wake_at(self) -> float | None:
        """When `tick` has something to do; None when only an event can change anything."""
        if self._unready_since is None:
            return None
        first = [next(iter(queue.values())).since for queue in (self._fresh, self._suspects) if queue]
        return max(min(first), self._unready_since) + self._wait if first else None

    @property
    def serving_version(self) -> int | None:
        """The highest active config version among ready workers; None when no worker is ready with one."""
        versions = [worker.version for worker in self._workers.values() if worker.readiness is _READY]
        return max(versions, default=0) or None

    def workers(self) -> list[WorkerLoad]:
        """What each connected worker does."""
        return [
            WorkerLoad(_short(worker.name), worker.readiness.name.lower(), len(worker.requests))
            for worker in self._workers.values()
        ]

    def unready_reason(self) -> str:
        """Why no worker is ready, for people: what each worker says of itself."""
        if not self._workers:
            return "no worker is connected"
        states = sorted(f"{worker.name}: {_state_text(worker)}" for worker in self._workers.values())
        return "no worker is ready: " + "; ".join(states)

    def notices(self) -> list[str]:
        """What ready workers have to say to an operator, each text once."""
        ready = [worker.reason for worker in self._workers.values() if worker.readiness is _READY]
        return sorted({reason for reason in ready if reason})

    # Events of workers

    def joined(self, worker: int, name: str, max_in_flight: int) -> list[Action]:
        """A worker has connected. It gets nothing until it says that it is ready."""
        if worker in self._workers or max_in_flight < 1:
            raise self._impossible(f"worker joined with max_in_flight {max_in_flight}", worker=worker)
        self._story.append(("joined", None, worker))
        self._workers[worker] = _Worker(name, max_in_flight)
        return []

    def state_changed(
        self, worker: int, readiness: Readiness, version: int, reason: str, now: float
    ) -> list[Action]:
        """A worker has told its state. A ready one takes what waits."""
        found = self._worker(worker, "state changed")
        self._story.append((readiness.name, None, worker))
        found.readiness = readiness
        found.version = version
        found.reason = reason
        self._note_readiness(now)
        return self._send_waiting()

    def gone(self, worker: int, now: float) -> list[Action]:
        """A worker's connection has ended, however. What it had is sent again, or given up."""
        found = self._worker(worker, "gone")
        self._story.append(("gone", None, worker))
        del self._workers[worker]
        self._note_readiness(now)
        if found.requests:
            self.counts.deaths += 1
        actions: list[Action] = []
        for request in found.requests.values():
            request.worker = None
            request.losses += 1
            if request.losses < MAX_LOSSES:
                self.counts.resent += 1
                self._queue(self._suspects, request, now)
            else:
                self.counts.blamed += 1
                message = f"the request ended {request.losses} workers and is not sent to another"
                actions.append(self._refuse(request, Status.INTERNAL, message))
        return actions + self._send_waiting()

    # Events of requests

    def arrived(self, request: int, size: int, now: float) -> list[Action]:
        """A request of `size` bytes is here; the caller keeps its body until Deliver, Refuse or `cancelled`."""
        if request in self._requests:
            raise self._impossible("arrived twice", request=request)
        self.counts.arrived += 1
        if self._held + size > self._max_held:
            self.counts.too_much_held += 1
            message = (
                f"overloaded: request bodies of {self._held} bytes are held here, one of {size} bytes "
                f"would pass the limit of {self._max_held}"
            )
            return [Refuse(request, Status.RESOURCE_EXHAUSTED, message)]
        worker = self._roomiest()
        if worker is not None:
            self._story.append(("arrived", request, worker))
            return [self._send(self._hold(request, size), worker)]
        if self._unready_since is None:
            self.counts.overloaded += 1
            return [Refuse(request, Status.RESOURCE_EXHAUSTED, self._full_message())]
        if len(self._fresh) >= self._max_waiting or self._wait == 0:
            self.counts.no_worker += 1
            return [Refuse(request, Status.UNAVAILABLE, self.unready_reason())]
        self.counts.waited += 1
        self._story.append(("arrived", request, None))
        self._queue(self._fresh, self._hold(request, size), now)
        return []

    def answered(self, request: int, worker: int) -> list[Action]:
        """A worker has answered. An answer to what is not at that worker (cancelled before) is counted only."""
        found = self._worker(worker, "answered", request)
        found.ghosts = 0
        if request not in found.requests:
            self.counts.stray_answers += 1
            return []
        self._story.append(("answered", request, worker))
        self.counts.delivered += 1
        self._forget(self._requests[request])
        actions: list[Action] = [Deliver(request)]
        return actions + self._send_waiting() if self._fresh or self._suspects else actions

    def cancelled(self, request: int) -> list[Action]:
        """Nobody waits for the answer any more: the client has gone, or was told of its own deadline."""
        actions = self._give_up(request, "cancelled")
        self.counts.cancelled += 1
        return actions + self._send_waiting()

    def expired(self, request: int) -> list[Action]:
        """The bound on requests without a deadline has passed."""
        actions = self._give_up(request, "expired")
        self.counts.expired += 1
        message = "no answer within the time that requests without a deadline have here"
        return [*actions, Refuse(request, Status.DEADLINE_EXCEEDED, message), *self._send_waiting()]

    def tick(self, now: float) -> list[Action]:
        """Time has passed: give up what has waited for a worker too long. Early and late calls do no harm."""
        if self._unready_since is None:
            return []
        actions: list[Action] = []
        for request in [*self._suspects.values(), *self._fresh.values()]:
            if max(request.since, self._unready_since) + self._wait <= now:
                self.counts.no_worker += 1
                message = f"{self.unready_reason()}; waited {self._wait:g} s"
                actions.append(self._refuse(request, Status.UNAVAILABLE, message))
        return actions

    # Parts of them

    def _hold(self, request: int, size: int) -> _Request:
        held = self._requests[request] = _Request(request, size)
        self._held += size
        return held

    def _queue(self, queue: dict[int, _Request], request: _Request, now: float) -> None:
        request.since = now
        queue[request.id] = request

    def _roomiest(self) -> int | None:
        """The ready worker for the next fresh request; None when none has room."""
        best: int | None = None
        best_load = 0
        for number, worker in self._workers.items():
            in_flight = len(worker.requests)
            if worker.readiness is _READY and in_flight < worker.limit:
                load = in_flight + worker.ghosts
                if worker.suspect is not None:
                    load += _AVOID
                if best is None or load < best_load:
                    best, best_load = number, load
        return best

    def _without_suspect(self) -> int | None:
        """The ready worker for the next suspect; None when each has one, or no room."""
        best = self._roomiest()
        # The roomiest has none if any with room has none: that is how it is chosen.
        return best if best is not None and self._workers[best].suspect is None else None

    def _send(self, request: _Request, number: int) -> Send:
        worker = self._workers.pop(number)
        self._workers[number] = worker  # now the most recently chosen
        worker.requests[request.id] = request
        request.worker = number
        if request.losses:
            worker.suspect = request.id
        return Send(request.id, number)

    def _send_waiting(self) -> list[Action]:
        """Give what waits to workers with room: suspects first, they have waited longest."""
        actions: list[Action] = []
        for queue, choose in ((self._suspects, self._without_suspect), (self._fresh, self._roomiest)):
            while queue and (worker := choose()) is not None:
                request = queue.pop(next(iter(queue)))
                self._story.append(("sent", request.id, worker))
                actions.append(self._send(request, worker))
        return actions

    def _give_up(self, request: int, event: str) -> list[Action]:
        found = self._requests.get(request)
        if found is None:
            raise self._impossible(event, request=request)
        self._story.append((event, request, found.worker))
        actions: list[Action] = []
        if found.worker is not None:
            self._workers[found.worker].ghosts += 1
            actions.append(CancelAt(request, found.worker))
        self._forget(found)
        return actions

    def _refuse(self, request: _Request, status: Status, message: str) -> Refuse:
        self._story.append((status.name, request.id, None))
        self._forget(request)
        return Refuse(request.id, status, message)

    def _forget(self, request: _Request) -> None:
        del self._requests[request.id]
        self._held -= request.size
        if request.worker is not None:
            worker = self._workers[request.worker]
            del worker.requests[request.id]
            if worker.suspect == request.id:
                worker.suspect = None
        else:
            self._suspects.pop(request.id, None)
            self._fresh.pop(request.id, None)

    def _note_readiness(self, now: float) -> None:
        if any(worker.readiness is _READY for worker in self._workers.values()):
            self._unready_since = None
        elif self._unready_since is None:
            self._unready_since = now

    def _full_message(self) -> str:
        ready = [worker for worker in self._workers.values() if worker.readiness is _READY]
        places = sum(worker.limit for worker in ready)
        return f"overloaded: all {len(ready)} ready workers are full ({places} requests in flight)"

    # Impossible events

    def _worker(self, worker: int, event: str, request: int | None = None) -> _Worker:
        found = self._workers.get(worker)
        if found is None:
            raise self._impossible(event, request=request, worker=worker)
        return found

    def _impossible(
        self, event: str, *, request: int | None = None, worker: int | None = None
    ) -> DispatchError:
        story = list(itertools.islice(self._told(request, worker), 40))
        return DispatchError(
            f"impossible event {event!r} of request {request}, worker {worker}; its story: "
            f"{'; '.join(story) or 'never seen'}; now {self!r}"
        )

    def _told(self, request: int | None, worker: int | None) -> Iterator[str]:
        for event, of_request, of_worker in self._story:
            if (request is not None and of_request == request) or (
                worker is not None and of_worker == worker
            ):
                yield f"{event} (request {of_request}, worker {of_worker})"


def _short(name: str) -> str:
    """worker-3, of `worker 3 (process 4711)`: a label that a restart does not change."""
    return name.partition(" (")[0].replace(" ", "-")


def _state_text(worker: _Worker) -> str:
    if worker.readiness is _READY:
        return "ready"
    state = "draining" if worker.readiness is Readiness.DRAINING else "not ready"
    return f"{state} ({worker.reason})" if worker.reason else state
