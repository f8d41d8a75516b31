"""The calls that a server hands to its handlers.

A call has one end: an answer, a cancellation by the peer, its deadline, or the loss of the connection.
Whatever comes after it is ignored, so that a handler may finish at any time. On the loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rpc.status import Metadata, RpcError, Status
from rpc.wire import PREFIX, Body, MessageReader, whole_message

if TYPE_CHECKING:
    from rpc.server_connection import ServerConnection

__all__ = ["Call", "Handler", "ServerCall", "StreamCall", "StreamHandler"]


class Call:
    """What unary and streaming calls have in common."""

    __slots__ = (
        "_bucket",
        "_connection",
        "_handler",
        "complete",
        "deadline",
        "encoding",
        "held",
        "metadata",
        "on_cancel",
        "over",
        "path",
        "progress_at",
        "reader",
        "stream_id",
    )

    def __init__(
        self,
        connection: ServerConnection,
        stream_id: int,
        path: bytes,
        metadata: tuple[tuple[bytes, bytes], ...],
        encoding: bytes,
        now: float,
        handler: Callable[[Any], None],
    ) -> None:
        self.path = path
        """`/service/method`."""
        self.metadata = metadata
        """Custom metadata: no pseudo-headers, no fields of the protocol; `-bin` values decoded."""
        self.deadline: float | None = None
        """When the call expires, on the clock of `loop.time()`; None when the client gave no timeout."""
        self.on_cancel: Callable[[], None] | None = None
        """Set by the handler: called once if the call ends before it is answered."""
        self.over = False
        """True when nothing the handler does matters any more."""
        # The rest belongs to the connection.
        self.stream_id = stream_id
        self.encoding = encoding
        self.complete = False  # all of the request has come
        self.held = 0  # bytes of it, while it is not complete
        self.progress_at = now  # when its last piece came
        self._connection = connection
        self._handler: Callable[[Any], None] | None = handler
        self.reader: MessageReader | None = None  # of a request that comes in pieces
        self._bucket: set[Any] | None = None

    @property
    def peer(self) -> str:
        """The client's address as text."""
        return self._connection.peer

    def fail(self, status: Status, message: str, trailing: Metadata = ()) -> None:
        """Answers with a status other than OK. Does nothing when the call is over.

        Raises ValueError when `trailing` holds something that is no metadata.
        """
        if not self.over:
            self._connection.send_failure(self, RpcError(status, message, trailing=trailing))
            self.on_cancel = None

    # -- for the connection --------------------------------------------------------------------------------

    def set_deadline(self, when: float, bucket: set[Any]) -> None:
        """Notes the deadline and the bucket of timers that holds it."""
        self.deadline = when
        self._bucket = bucket

    def expire(self) -> None:
        """The deadline has passed."""
        self._connection.expired(self)

    def finish(self) -> None:
        """The call is over: forgets its deadline and what is left of its request."""
        self.over = True
        self.reader = None
        if self._bucket is not None:
            self._bucket.discard(self)

    def cancelled(self) -> None:
        """Tells the handler that nobody waits any more."""
        callback, self.on_cancel = self.on_cancel, None
        if callback is not None:
            self._connection.guarded(callback)

    def feed(self, data: bytes | memoryview, limit: int) -> None:
        """Takes a piece of the request and updates `held`. Raises RpcError when the request is wrong."""
        if self.reader is None:
            self.reader = MessageReader(limit, self.encoding)
        self._take(self.reader, data)

    def _take(self, reader: MessageReader, data: bytes | memoryview) -> None:
        raise NotImplementedError

    def feed_end(self) -> None:
        """The request is complete. Raises RpcError when it ends too early."""
        raise NotImplementedError

    def run(self) -> None:
        """Hands to the handler what it has not seen yet."""
        raise NotImplementedError

    def __repr__(self) -> str:
        state = "over" if self.over else "open"
        return f"<{type(self).__name__} {self.path.decode('latin-1')} stream {self.stream_id} {state}>"


class ServerCall(Call):
    """One request, one answer. The handler gets it when the request is complete."""

    __slots__ = ("body",)

    body: bytes
    """The request message, decompressed."""

    def respond(self, body: Body, trailing: Metadata = ()) -> None:
        """Answers OK with `body`. Does nothing when the call is over.

        Raises ValueError when `trailing` holds something that is no metadata.
        """
        if not self.over:
            self._connection.send_answer(self, body, trailing)
            self.on_cancel = None  # it often refers to the call: no cycles for the garbage collector

    # -- for the connection --------------------------------------------------------------------------------

    def feed_whole(self, data: bytes, start: int, end: int, limit: int) -> None:
        """Takes a request that came in one piece, `data[start:end]`. Raises RpcError when it is wrong."""
        size = end - start - PREFIX
        # Nearly always: the flag is 0 and the length is that of what follows.
        if (
            0 <= size <= limit
            and not data[start]
            and data[start + 1] << 24 | data[start + 2] << 16 | data[start + 3] << 8 | data[start + 4] == size
        ):
            self.body = data[start + PREFIX : end]
        else:
            self.body = whole_message(data[start:end], limit, self.encoding)
        self.complete = True

    def _take(self, reader: MessageReader, data: bytes | memoryview) -> None:
        size = 0
        for message in reader.feed(data):
            if reader.count > 1:
                raise RpcError(Status.UNIMPLEMENTED, "the call has more than the one expected message")
            self.body = message
            size = len(message)
        self.held = max(self.held + len(data), size)

    def feed_end(self) -> None:
        reader = self.reader
        if reader is not None and reader.partial:
            raise RpcError(Status.INTERNAL, reader.partial)
        if reader is None or not reader.count:
            raise RpcError(Status.UNIMPLEMENTED, "the call has no message, expected one")

    def run(self) -> None:
        assert self._handler is not None
        self._handler(self)


class StreamCall(Call):
    """A call with any number of messages either way.

    The handler gets it as soon as it is opened and sets the callbacks; they are called in this order: each
    message, then `on_end`.
    """

    __slots__ = ("_inbox", "headers_sent", "on_end", "on_message")

    def __init__(
        self,
        connection: ServerConnection,
        stream_id: int,
        path: bytes,
        metadata: tuple[tuple[bytes, bytes], ...],
        encoding: bytes,
        now: float,
        handler: Callable[[Any], None],
    ) -> None:
        super().__init__(connection, stream_id, path, metadata, encoding, now, handler)
        self.on_message: Callable[[bytes], None] | None = None
        """Called with each message of the client; messages are dropped while it is None."""
        self.on_end: Callable[[], None] | None = None
        """Called once, when the client has sent its last message."""
        self.headers_sent = False
        self._inbox: list[bytes] = []

    def send(self, body: Body) -> None:
        """Sends one message. Does nothing when the call is over.

        A peer that takes nothing ends the call with RESOURCE_EXHAUSTED when the connection's budget for
        unsent bytes is used up.
        """
        if not self.over:
            self._connection.send_message(self, body)

    def end(self, trailing: Metadata = ()) -> None:
        """Ends the call with OK. Does nothing when it is over. Raises ValueError for bad metadata."""
        if not self.over:
            self._connection.send_end(self, trailing)
            self.on_cancel = None

    # -- for the connection --------------------------------------------------------------------------------

    def _take(self, reader: MessageReader, data: bytes | memoryview) -> None:
        self._inbox += reader.feed(data)
        self.held = reader.held

    def feed_end(self) -> None:
        if self.reader is not None and self.reader.partial:
            raise RpcError(Status.INTERNAL, self.reader.partial)

    def run(self) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            handler(self)
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            if self.on_message is not None and not self.over:
                self.on_message(message)
        if self.complete and self.on_end is not None and not self.over:
            callback, self.on_end = self.on_end, None
            callback()


Handler = Callable[[ServerCall], None]
StreamHandler = Callable[[StreamCall], None]
