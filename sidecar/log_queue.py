"""Encoded messages on their way out: a bounded queue, and one sender that gives them to a sink.

A message counts against the bounds until its end is known: acknowledged by the sink, or dropped with a reason. So
what the log sidecar keeps in memory is bounded, however long the sink is away, and what does not fit is dropped and
counted at the door. Belongs to the thread of its event loop.

Lifecycle of a message: queued → sent → acknowledged | dropped (reason).
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from shared.ledger import ACKNOWLEDGED, DROPPED, NOW, Ledger

__all__ = ["ACCEPTED", "Message", "Sender", "Sink"]

log = logging.getLogger(__name__)

ACCEPTED: Final = ""
"""The outcome of a message that the sink has; other outcomes are the reasons of `shared.ledger.DROPPED`."""
_ROOM_AGAIN: Final = 0.75
"""Of the bounds: a full queue takes rows again when it is down to this, so that workers are not told so often."""


class Message(NamedTuple):
    """One message, and whose rows are in it."""

    value: bytes
    key: bytes | None
    """What decides on its partition."""
    rows: int
    ledger: Ledger


Settle = Callable[[Message, str], None]
"""Told once what became of a message: ACCEPTED, or the reason why it was dropped."""


class Sink(Protocol):
    """Where messages go. `open` is called first, `send` for one message at a time, in their order."""

    async def open(self) -> None:
        """Returns when messages can be sent; they wait meanwhile."""
        ...

    async def send(self, message: Message, settle: Settle) -> None:
        """Takes a message, and waits while it can take none. `settle` is called later, or at once."""
        ...

    async def close(self) -> None:
        """Delivers what it has, and ends. It is cancelled when that takes too long."""
        ...

    @property
    def state(self) -> str:
        """What an operator should know of it, in a few words."""
        ...


class Sender:
    """The queue in front of one sink.

    `messages` and `bytes` are what is not settled; `outcomes` counts settled messages by outcome. `on_room` is
    called with False when the queue gets full, and with True when it has room again.
    """

    def __init__(
        self, sink: Sink, *, max_bytes: int, max_messages: int, on_room: Callable[[bool], None]
    ) -> None:
        self.sink = sink
        self.messages = 0
        self.bytes = 0
        self.full = False
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._on_room = on_room
        self._queue: collections.deque[Message] = collections.deque()
        self._sent: dict[int, Message] = {}  # by identity: sent, and not settled
        self._news = asyncio.Event()
        self._sending = False
        self._over = False

    def __repr__(self) -> str:
        return (
            f"<Sender {self.messages} messages ({len(self._queue)} not sent), {self.bytes} of {self._max_bytes} "
            f"bytes, settled {dict(self.outcomes)}, {self.sink!r}>"
        )

    def put(self, message: Message) -> None:
        """Queues a message; one that does not fit is dropped and counted."""
        if self._over:
            self._count(message, "stopped")
            return
        if self.messages >= self._max_messages or self.bytes + len(message.value) > self._max_bytes:
            self._count(message, "queue full")
            self._set_full(True)
            return
        self.messages += 1
        self.bytes += len(message.value)
        self._queue.append(message)
        self._news.set()

    async def run(self) -> None:
        """Sends what is queued, in order; until it is cancelled."""
        await self.sink.open()
        while True:
            while not self._queue:
                self._news.clear()
                await self._news.wait()
            message = self._queue.popleft()
            self._sent[id(message)] = message
            self._sending = True
            try:
                await self.sink.send(message, self._settle)
            except Exception:
                # A mistake of ours: it costs this message, and not all that come after it.
                log.exception("message could not be sent")
                self._settle(message, "refused by the sink")
            self._sending = False

    async def empty(self) -> None:
        """Returns when the sink has taken everything; it may still be on its way."""
        while self._queue or self._sending:  # noqa: ASYNC110 - only a stop waits for this, for a moment
            await asyncio.sleep(0.01)

    def give_up(self) -> None:
        """Drops what is not settled. Nothing is taken after this."""
        self._over = True
        for message in [*self._sent.values(), *self._queue]:
            self._sent[id(message)] = message
            self._settle(message, "stopped")
        self._queue.clear()

    def _settle(self, message: Message, outcome: str) -> None:
        if self._sent.pop(id(message), None) is None:
            return  # given up already
        self.messages -= 1
        self.bytes -= len(message.value)
        self._count(message, outcome)
        if (
            self.full
            and self.bytes <= self._max_bytes * _ROOM_AGAIN
            and self.messages <= self._max_messages * _ROOM_AGAIN
        ):
            self._set_full(False)

    def _count(self, message: Message, outcome: str) -> None:
        self.outcomes[outcome] += 1
        word = ACKNOWLEDGED if outcome == ACCEPTED else DROPPED[outcome]
        message.ledger.words[NOW + word] += message.rows

    def _set_full(self, full: bool) -> None:
        if full != self.full:
            self.full = full
            self._on_room(not full)
