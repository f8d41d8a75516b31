"""Joins the three: calls of clients (rpc), the decisions (dispatcher), the workers' links.

Every method belongs to the loop's thread. It looks at no request body: the bytes of the client go to the
worker, the bytes of the worker go to the client.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

from frontdoor.dispatcher import Action, CancelAt, Deliver, Dispatcher, Send
from frontdoor.links import WorkerLink
from frontdoor.meters import CallMeters
from rpc.server import Handler, ServerCall
from rpc.status import Status
from rpc.timers import Expiring, Timers
from shared.board import Board
from shared.frames import (
    NO_METADATA,
    Answer,
    Cancel,
    FrameError,
    Hello,
    State,
    encode_metadata,
    request_head,
)
from shared.settings import Settings

__all__ = ["FrontDoor"]

log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
_OK: Final = 0
# By number: to make a member from its number costs as much as to read an answer.
_STATUSES: Final = tuple(Status)


class _Pending:
    """One call between its arrival and its answer."""

    __slots__ = ("_bucket", "_door", "began", "call", "deadline", "id", "metadata", "method")

    def __init__(self, door: FrontDoor, number: int, call: ServerCall, method: int, metadata: bytes) -> None:
        self._door = door
        self.began = monotonic()
        self.id = number
        self.call = call
        self.method = method
        self.metadata = metadata
        self._bucket: set[Expiring] | None = None
        deadline = call.deadline  # rpc answers on time when it is set, and then calls `cancel`
        if deadline is None:
            deadline = door.loop.time() + door.default_timeout
            self._bucket = door.timers.add(deadline, self)
        self.deadline: float = deadline
        call.on_cancel = self.cancel

    def cancel(self) -> None:
        self._door.cancelled(self)

    def expire(self) -> None:
        self._door.expired(self)

    def finish(self, status: Status) -> ServerCall:
        """It is to be answered now, with this status: nothing else may come for it."""
        self._door.meters.ended(self.method, status, (monotonic() - self.began) * 1e3)
        if self._bucket is not None:
            self._bucket.discard(self)
        self.call.on_cancel = None
        return self.call


class FrontDoor:
    """All requests and workers of one front-door process.

    `handlers` are for the rpc server, `link` makes the protocol of a worker's connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings, board: Board) -> None:
        self.meters = CallMeters(board)
        self.on_readiness: Callable[[], None] = _nothing
        """Called whenever a worker's state may have changed what this door can serve."""
        self.loop = loop
        self.timers = Timers.of(loop)
        self.default_timeout = settings.default_timeout_ms / 1000
        self.dispatcher = Dispatcher(
            wait=settings.wait_ms / 1000,
            max_waiting=settings.max_waiting,
            max_held_bytes=settings.max_held_bytes,
        )
        self._max_unsent = settings.max_held_bytes + settings.max_request_bytes
        self._requests: dict[int, _Pending] = {}
        self._links: dict[int, WorkerLink] = {}
        self._next_request = 0
        self._next_link = 0
        self._wake: asyncio.TimerHandle | None = None
        self._watch = loop.call_later(_WATCH_SECONDS, self._look_at_links)

    def __repr__(self) -> str:
        return f"<FrontDoor {self.dispatcher!r}>"

    def handlers(self, methods: tuple[bytes, ...]) -> Mapping[bytes, Handler]:
        """The handlers of these unary methods; a method's number is its index."""
        return {path: functools.partial(self.arrived, index) for index, path in enumerate(methods)}

    def link(self) -> WorkerLink:
        """The protocol of a new worker connection."""
        return WorkerLink(self.loop, self, self._max_unsent)

    def close(self) -> None:
        """End all links and timers. Requests that are still here are answered UNAVAILABLE."""
        self._watch.cancel()
        for pending in list(self._requests.values()):
            pending.call.fail(Status.UNAVAILABLE, "the front door is shutting down")
            self.cancelled(pending)
        for link in list(self._links.values()):
            link.end("the front door is shutting down")
        if self._wake is not None:
            self._wake.cancel()

    # Clients

    def arrived(self, method: int, call: ServerCall) -> None:
        """A complete request is here."""
        try:
            metadata = encode_metadata(call.metadata) if call.metadata else NO_METADATA
        except FrameError as error:
            self.meters.ended(method, Status.INVALID_ARGUMENT, 0.0)
            call.fail(Status.INVALID_ARGUMENT, str(error))
            return
        number = self._next_request = self._next_request + 1
        self._requests[number] = _Pending(self, number, call, method, metadata)
        actions = self.dispatcher.arrived(number, len(call.body), self.loop.time())
        if actions:
            self._perform(actions)
        else:
            self._arm_wake()

    def cancelled(self, pending: _Pending) -> None:
        """The client has gone, or rpc has answered that its deadline has passed."""
        del self._requests[pending.id]
        is_late = monotonic() >= pending.deadline
        pending.finish(Status.DEADLINE_EXCEEDED if is_late else Status.CANCELLED)
        self._perform(self.dispatcher.cancelled(pending.id))

    def expired(self, pending: _Pending) -> None:
        """The default bound of a request without a deadline has passed."""
        self._perform(self.dispatcher.expired(pending.id))

    # Workers (LinkOwner)

    def worker_joined(self, link: WorkerLink, hello: Hello) -> None:
        link.number = self._next_link = self._next_link + 1
        self._links[link.number] = link
        log.info("%s joined", link.name, extra={"max_in_flight": hello.max_in_flight})
        self._perform(self.dispatcher.joined(link.number, link.name, hello.max_in_flight))

    def worker_state(self, link: WorkerLink, state: State) -> None:
        log.info(
            "%s is %s", link.name, state.readiness.name, extra={"version": state.version, "why": state.reason}
        )
        now = self.loop.time()
        self._perform(
            self.dispatcher.state_changed(link.number, state.readiness, state.version, state.reason, now)
        )
        self._arm_wake()
        self.on_readiness()

    def worker_answered(self, link: WorkerLink, answer: Answer) -> None:
        self._perform(self.dispatcher.answered(answer.id, link.number), answer)

    def worker_gone(self, link: WorkerLink, reason: str) -> None:
        if not link.number:
            log.warning("%s has gone: %s", link.name, reason)
            return
        del self._links[link.number]
        before = self.dispatcher.counts.resent, self.dispatcher.counts.blamed
        actions = self.dispatcher.gone(link.number, self.loop.time())
        counts = self.dispatcher.counts
        log.warning(
            "%s has gone: %s",
            link.name,
            reason,
            extra={"resent": counts.resent - before[0], "failed": counts.blamed - before[1]},
        )
        self._perform(actions)
        self._arm_wake()
        self.on_readiness()

    # Doing what was decided

    def _perform(self, actions: list[Action], answer: Answer | None = None) -> None:
        # Nothing here calls back into this object: what rpc and the links have to tell they tell in later turns.
        for action in actions:
            if isinstance(action, Send):
                self._send(self._requests[action.request], self._links[action.worker])
            elif isinstance(action, Deliver):
                assert answer is not None, "only an answer is delivered"
                _deliver(self._requests.pop(action.request).finish(_status(answer)), answer)
            elif isinstance(action, CancelAt):
                self._links[action.worker].write(Cancel(action.request).encode())
            else:
                call = self._requests.pop(action.request).finish(action.status)
                call.fail(action.status, action.message)

    def _send(self, pending: _Pending, link: WorkerLink) -> None:
        left = int((pending.deadline - self.loop.time()) * 1e6)
        body = pending.call.body
        # 0 would mean no deadline; one that has just passed is about to be cancelled.
        head = request_head(
            pending.id, max(left, 1), int(monotonic() * 1e6), pending.method, pending.metadata, len(body)
        )
        link.write(head, body)

    # Time

    def _arm_wake(self) -> None:
        """Have `tick` called when the longest waiting request has waited enough."""
        when = self.dispatcher.wake_at
        if when is not None and self._wake is None:
            self._wake = self.loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._wake = None
        self._perform(self.dispatcher.tick(self.loop.time()))
        self._arm_wake()

    def _look_at_links(self) -> None:
        self._watch = self.loop.call_later(_WATCH_SECONDS, self._look_at_links)
        now = self.loop.time()
        for link in list(self._links.values()):
            link.check_stall(now)


def _nothing() -> None:
    """Until somebody wants to know."""


def _status(answer: Answer) -> Status:
    """What the client is told: a status that is none becomes INTERNAL (see `_deliver`)."""
    return _STATUSES[answer.status] if answer.status < len(_STATUSES) else Status.INTERNAL


def _deliver(call: ServerCall, answer: Answer) -> None:
    """Give the client the worker's answer. A worker's mistake becomes an answer too: a call must have one."""
    try:
        if answer.status == _OK:
            call.respond(answer.body, answer.metadata)
        else:
            call.fail(Status(answer.status), answer.message, answer.metadata)
    except ValueError as error:
        log.error("a worker's answer cannot be sent", extra={"status": answer.status, "reason": str(error)})
        call.fail(Status.INTERNAL, f"the worker's answer cannot be sent: {error}")
