"""The client's side of one HTTP/2 connection: calls become frames, answers become replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from rpc.client_codec import Answer, ClientCodec, Head
from rpc.connection import Http2Connection
from rpc.frames import Data, Event, Finished, Leaving, SettingsChanged, StreamEnd, Trailers
from rpc.hpack import header_bytes
from rpc.http2 import ConnectionClosingError, ErrorCode, Header, NoAvailableStreamIDError, error_name
from rpc.status import RpcError, Status, status_of_http, status_of_reset
from rpc.wire import (
    PREFIX,
    Body,
    MessageReader,
    custom_metadata,
    decode_message,
    message_prefix,
    split_headers,
    timeout_field,
)

__all__ = [
    "ChannelSettings",
    "ClientCall",
    "ClientConnection",
    "Listener",
    "Meter",
    "Method",
    "Owner",
    "Reply",
]

KiB: Final = 1024
MiB: Final = 1024 * KiB
_MAX_BLOCKS: Final = 64
_MAX_HEADER_BYTES: Final = 64 * KiB  # of a request: names and values
_STATUSES: Final = {b"%d" % status: status for status in Status}
_OK: Final = Status.OK  # members of an enum are slow to look up


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelSettings:
    """How a channel behaves. Sizes in bytes, times in seconds."""

    connections_per_address: int = 1
    """Connections opened to each address from the start."""
    max_connections_per_address: int = 4
    """Up to this many when all streams that the peer allows are in use."""
    streams_per_connection: int = 0
    """Calls on one connection at once; 0 = what the peer allows."""
    max_queued_calls: int = 10_000
    """Calls that wait for a connection or a free stream; one more is RESOURCE_EXHAUSTED (retriable)."""
    wait_for_ready: bool = False
    """Whether calls wait, up to their timeout, while no address can be reached; otherwise UNAVAILABLE."""
    max_message_bytes: int = 64 * MiB
    """An answer that is larger is RESOURCE_EXHAUSTED."""
    connect_seconds: float = 5.0
    """For a connection to be made, TLS and the peer's SETTINGS included."""
    backoff_min_seconds: float = 0.1
    """Pause after the first failed attempt, varied by a quarter either way; it grows by 1.6 a time."""
    backoff_max_seconds: float = 5.0
    """The longest pause between two attempts."""
    resolve_seconds: float = 30.0
    """Between two look-ups of the name; also after a failed connection, but at most every second. 0 = once."""
    ping_seconds: float = 20.0
    """Without a byte from a peer that has calls to answer: a PING is sent. 0 = never."""
    ping_timeout_seconds: float = 10.0
    """Without a byte after that PING: the connection is given up."""
    frame_seconds: float = 30.0
    """For a frame that began to arrive to become complete."""
    send_stall_seconds: float = 30.0
    """Without the peer taking a byte although there are some for it: the connection is given up."""
    stream_window_bytes: int = 16 * MiB
    """Flow-control window of a call: answers up to this size need no round trip more."""
    connection_window_bytes: int = 64 * MiB
    """Flow-control window of a connection."""
    max_header_bytes: int = 64 * KiB
    """Decoded size of one header block of an answer; more ends the connection."""


class Method:
    """A method as a channel calls it: the header block that is the same in every call."""

    __slots__ = ("headers", "path")

    def __init__(self, path: str, headers: tuple[Header, ...]) -> None:
        self.path = path
        self.headers = headers

    def __repr__(self) -> str:
        return f"<Method {self.path}>"


class Reply:
    """The outcome of a call."""

    __slots__ = ("body", "message", "retriable", "status", "trailing")

    def __init__(
        self,
        status: Status,
        message: str = "",
        body: bytes = b"",
        trailing: tuple[tuple[bytes, bytes], ...] = (),
        *,
        retriable: bool = False,
    ) -> None:
        self.status = status
        self.message = message
        """Why the status is not OK, for people."""
        self.body = body
        """The response message, decompressed; empty unless the status is OK."""
        self.trailing = trailing
        """Custom trailing metadata; `-bin` values decoded."""
        self.retriable = retriable
        """True when the peer surely did not process the request."""

    def error(self) -> RpcError:
        """Returns the status as an exception."""
        return RpcError(self.status, self.message, trailing=self.trailing, retriable=self.retriable)

    def __repr__(self) -> str:
        what = f"{len(self.body)} bytes" if self.status is _OK else repr(self.message)
        return f"<Reply {self.status.name} {what}>"


class Meter:
    """Counts calls. It does nothing: subclasses do."""

    __slots__ = ()

    def ended(self, status: int, took: float) -> None:
        """A call has ended after `took` ms; its `on_done` is called next."""


class ClientCall:
    """A call that was started. Its `on_done` is called exactly once, from the loop."""

    __slots__ = (
        "_began",
        "_body",
        "_bucket",
        "_messages",
        "_meter",
        "_on_done",
        "_owner",
        "_reader",
        "attempts",
        "connection",
        "deadline",
        "encoding",
        "method",
        "over",
        "request",
        "stream_id",
    )

    def __init__(
        self,
        owner: Owner,
        method: Method,
        request: Body,
        deadline: float | None,
        on_done: Callable[[Reply], None],
        meter: Meter | None,
    ) -> None:
        self.method = method
        self.request = request
        self.deadline = deadline
        self.over = False
        """True when the outcome is known."""
        self.connection: ClientConnection | None = None
        """Where it was sent; None while it waits for a connection or a stream."""
        self.stream_id = 0
        self.attempts = 0
        self.encoding = b"identity"
        self._owner = owner
        self._on_done = on_done
        self._meter = meter
        self._began = monotonic() if meter is not None else 0.0
        self._bucket: set[Any] | None = None
        self._reader: MessageReader | None = None
        self._messages = 0
        self._body = b""

    def cancel(self) -> None:
        """Gives the call up; `on_done` then gets CANCELLED, in the next turn of the loop.

        Does nothing when the outcome is known.
        """
        self._give_up(Reply(Status.CANCELLED, "cancelled by the caller"), soon=True)

    def expire(self) -> None:
        """The deadline has passed. Called by the timers."""
        self._give_up(Reply(Status.DEADLINE_EXCEEDED, f"deadline exceeded, {self._where()}"), soon=False)

    def _where(self) -> str:
        if self.connection is not None:
            return f"waiting for an answer of {self.connection.peer}"
        return f"waiting for a connection to {self._owner.target}"

    def _give_up(self, reply: Reply, *, soon: bool) -> None:
        if self.over:
            return
        connection = self.connection
        if connection is not None:
            connection.give_up(self)
        else:
            self._owner.forget(self)
        self.finish(reply, soon=soon)

    # -- for the connection and the channel ----------------------------------------------------------------

    def set_deadline(self, bucket: set[Any]) -> None:
        """Notes the bucket of timers that holds this call."""
        self._bucket = bucket

    def finish(self, reply: Reply, *, soon: bool = False) -> None:
        """Ends the call with `reply`; `soon`: in the next turn of the loop, because a caller is on the stack."""
        if self.over:
            return
        self.over = True
        self._reader = None
        self.request = b""
        if self._bucket is not None:
            self._bucket.discard(self)
        meter = self._meter
        if meter is not None:
            meter.ended(reply.status, (monotonic() - self._began) * 1e3)
        on_done, self._on_done = self._on_done, _ignore
        if soon:
            self._owner.loop.call_soon(on_done, reply)
            return
        try:
            on_done(reply)
        except Exception as error:  # noqa: BLE001 - one caller's mistake must not cost the others their replies
            self._owner.loop.call_exception_handler(
                {"message": f"on_done of {self!r} raised", "exception": error}
            )

    def restart(self) -> None:
        """Forgets what has come of an attempt that the peer refused."""
        self.connection = None
        self._reader = None
        self._messages = 0
        self._body = b""

    def feed(self, data: bytes | memoryview, limit: int) -> None:
        """Takes a piece of the answer. Raises RpcError when it is wrong."""
        if self._reader is None:
            self._reader = MessageReader(limit, self.encoding)
        for message in self._reader.feed(data):
            self._messages += 1
            self._body = message

    def body(self) -> bytes:
        """Returns the message of a complete answer. Raises RpcError when there is not exactly one."""
        if self._reader is not None and self._reader.partial:
            raise RpcError(Status.INTERNAL, f"answer is cut off: {self._reader.partial}")
        if self._messages != 1:
            raise RpcError(Status.INTERNAL, f"answer has {self._messages} messages, expected one")
        return self._body

    def __repr__(self) -> str:
        return f"<ClientCall {self.method.path} {'over' if self.over else self._where()}>"


def _ignore(_: Reply) -> None:
    """The callback of a call that is over."""


class Owner(Protocol):
    """What a call asks of its channel."""

    loop: asyncio.AbstractEventLoop

    @property
    def target(self) -> str:
        """The target as text."""

    def forget(self, call: ClientCall) -> None:
        """Takes a call that was given up out of the queue."""


class Listener(Protocol):
    """Whom a connection tells what becomes of it."""

    def retry(self, call: ClientCall, reply: Reply) -> None:
        """Sends a refused call again, or ends it with `reply`."""

    def slot_free(self, connection: ClientConnection) -> None:
        """Calls wait, and a stream of `connection` has become free."""

    def connection_ready(self, connection: ClientConnection) -> None:
        """The peer has sent its SETTINGS: calls can start."""

    def connection_unusable(self, connection: ClientConnection, reason: str) -> None:
        """No calls can start on `connection` any more, some may be in flight. Called once."""

    def connection_lost(self, connection: ClientConnection) -> None:
        """The connection is over. Called once, after `connection_unusable`."""


class ClientConnection(Http2Connection):
    """One connection of a channel."""

    # Answers are large and come from peers that were chosen: bigger batches, fewer events.
    _feed_bytes = 256 * KiB
    _reads_while_blocked = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: ChannelSettings,
        listener: Listener,
        waiting: Sized,
    ) -> None:
        codec = ClientCodec(
            settings.max_header_bytes, settings.stream_window_bytes, settings.connection_window_bytes
        )
        super().__init__(
            loop,
            codec,
            frame_seconds=settings.frame_seconds,
            send_stall_seconds=settings.send_stall_seconds,
            ping_seconds=settings.ping_seconds,
            ping_timeout_seconds=settings.ping_timeout_seconds,
        )
        self._http = codec  # `codec`, as what it is
        self._blocks: dict[
            Method, bytes
        ] = {}  # header blocks that are the same again, as long as the codec's version
        self._version = codec.version
        self._settings = settings
        self._listener = listener
        self._waiting = waiting  # the channel's queue, to see at no cost whether it is empty
        self.open = 0
        """Streams in use."""
        self.limit = 0
        """Streams that may be in use; 0 until the peer's SETTINGS have come, and when it is leaving."""
        self.ready = False
        self.answered = False
        """Whether the peer has answered a call."""
        self._calls: dict[int, ClientCall] = {}
        self._draining = False
        self._good_head: tuple[Header, ...] = ()
        self._good_trailers: tuple[Header, ...] = ()

    @property
    def calls(self) -> int:
        """Number of calls that wait for an answer."""
        return len(self._calls)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.abort("the peer does not speak HTTP/2 (no h2 in ALPN)")
            return
        self.flush()

    # -- requests ------------------------------------------------------------------------------------------

    def submit(self, call: ClientCall) -> None:
        """Sends a call. The caller has seen that `open < limit`."""
        codec = self._http
        block = self._blocks.get(call.method)
        if block is None or codec.version != self._version:
            block = self._encode(call.method)
            if not block:
                size = header_bytes(call.method.headers)
                message = f"request could not be sent: headers of {size} bytes, at most {_MAX_HEADER_BYTES}"
                call.finish(Reply(Status.INTERNAL, message), soon=True)
                return
        field = b""
        if call.deadline is not None:
            field = timeout_field(call.deadline - self._clock())
        request = call.request
        parts = (request,) if isinstance(request, bytes) else request
        size = 0
        for part in parts:
            size += len(part)
        try:
            stream_id = codec.send_request(block, parts, field=field, start=message_prefix(size))
        except (NoAvailableStreamIDError, ConnectionClosingError) as error:
            # Out of stream ids, or a GOAWAY whose event is still in the batch: no calls here any more.
            self._retire(str(error))
            self._listener.retry(call, Reply(Status.UNAVAILABLE, str(error), retriable=True))
            return
        call.stream_id = stream_id
        call.connection = self
        call.attempts += 1
        self._calls[stream_id] = call
        self.open += 1
        self._body_bytes += PREFIX + size
        if not self._dirty:
            self.mark_dirty()

    def _encode(self, method: Method) -> bytes:
        """The header block of a method, to be sent next; empty when it would be too large."""
        if header_bytes(method.headers) > _MAX_HEADER_BYTES:
            return b""
        codec = self._http
        if codec.version != self._version or len(self._blocks) >= _MAX_BLOCKS:
            self._blocks.clear()
        before = codec.version
        block = codec.encode(method.headers)
        self._version = codec.version
        if self._version == before:
            self._blocks[method] = block
        else:
            self._blocks.clear()
        return block

    def give_up(self, call: ClientCall) -> None:
        """Resets the stream of a call that nobody waits for any more."""
        if self._calls.pop(call.stream_id, None) is not None and not self.closed:
            self._reset(call.stream_id)

    def _reset(self, stream_id: int) -> None:
        self._http.reset_stream(stream_id, ErrorCode.CANCEL)
        self.mark_dirty()

    # -- events --------------------------------------------------------------------------------------------

    def _dispatch(self, events: Sequence[Event]) -> None:
        calls = self._calls
        limit = self._settings.max_message_bytes
        for event in events:
            if isinstance(event, Answer):
                self._on_answer(event)
            elif isinstance(event, StreamEnd):
                self.open -= 1
                call = calls.pop(event.stream_id, None)
                if call is not None:
                    self._stream_failed(call, event)
                if self._draining or self._waiting:
                    self._on_free_stream()
            elif isinstance(event, Data):
                call = calls.get(event.stream_id)
                if call is not None:
                    try:
                        call.feed(event.data, limit)
                        if event.end_stream:
                            raise RpcError(Status.UNKNOWN, "answer ended without a status")
                    except RpcError as error:
                        self._fail(call, error)
            elif isinstance(event, Head):
                # Most are the last good one again: the codec knows the block.
                if event.headers is not self._good_head or event.end_stream:
                    self._on_response(event)
            elif isinstance(event, Trailers):
                call = calls.pop(event.stream_id, None)
                if call is not None:
                    self._on_trailers(call, event.headers)
            else:
                self._on_other(event)

    def _on_answer(self, event: Answer) -> None:
        """A whole response: nearly always the headers of good ones around one message that is not compressed."""
        data, start = event.received, event.start
        size = event.end - start - PREFIX
        if (
            event.head is not self._good_head
            or event.trailers is not self._good_trailers
            or not 0 <= size <= self._settings.max_message_bytes
            or data[start]
            or data[start + 1] << 24 | data[start + 2] << 16 | data[start + 3] << 8 | data[start + 4] != size
        ):
            self._dispatch(event.parts())
            return
        self.open -= 1
        self.answered = True
        call = self._calls.pop(event.stream_id, None)
        if call is not None:
            call.finish(Reply(_OK, "", data[start + PREFIX : event.end]))
        if self._draining or self._waiting:
            self._on_free_stream()

    def _on_other(self, event: Event) -> None:
        if isinstance(event, SettingsChanged):
            self._on_settings()
        elif isinstance(event, Leaving):
            text = event.debug_data.decode("latin-1")
            self._retire(f"GOAWAY {error_name(event.error_code)}{': ' if text else ''}{text}")
        elif isinstance(event, Finished):
            self._session_over(event.error_code, event.debug_data)

    def _on_settings(self) -> None:
        if self._draining:
            return
        allowed = self._http.max_streams
        own = self._settings.streams_per_connection
        self.limit = min(allowed, own) if own else allowed
        if not self.ready:
            self.ready = True
            self._listener.connection_ready(self)
        elif self._waiting and self.open < self.limit:
            self._listener.slot_free(self)

    def _on_response(self, event: Head) -> None:
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        headers = event.headers
        fields = dict(headers)
        status = fields[b":status"]
        if event.end_stream:
            if self._http.queued_body_size(call.stream_id):
                self._reset(call.stream_id)  # it wants no more of the body
            del self._calls[call.stream_id]
            call.finish(_reply_of_trailers(headers, call))
        elif status != b"200" or not fields.get(b"content-type", b"").startswith(b"application/grpc"):
            kind = fields.get(b"content-type", b"none").decode("latin-1")
            self._fail(
                call,
                RpcError(
                    status_of_http(status),
                    f"not a gRPC answer: HTTP status {status.decode('latin-1')}, content-type {kind}",
                ),
            )
        else:
            encoding = fields.get(b"grpc-encoding", b"identity")
            if encoding == b"identity":
                self._good_head = headers
            else:
                call.encoding = encoding

    def _on_trailers(self, call: ClientCall, headers: tuple[Header, ...]) -> None:
        if headers is self._good_trailers:
            reply = _reply_of_body(call, ())
        else:
            reply = _reply_of_trailers(headers, call)
            if reply.status is _OK and not reply.trailing:
                self._good_trailers = headers
        self.answered = True
        if self._http.queued_body_size(call.stream_id):
            self._reset(call.stream_id)  # answered before it had read the request: it need not read on
        call.finish(reply)

    def _fail(self, call: ClientCall, error: RpcError) -> None:
        self.give_up(call)
        call.finish(Reply(error.status, error.message))

    def _on_free_stream(self) -> None:
        if self._draining:
            if not self.open:
                self.close(ErrorCode.NO_ERROR, "drained")
        elif self._waiting and self.open < self.limit:
            self._listener.slot_free(self)

    def _stream_failed(self, call: ClientCall, event: StreamEnd) -> None:
        code = event.error_code
        if event.problem:
            call.finish(Reply(Status.INTERNAL, f"{self.peer} broke HTTP/2: {event.problem}"))
        elif code == ErrorCode.REFUSED_STREAM:
            self._listener.retry(call, Reply(Status.UNAVAILABLE, "refused by the peer", retriable=True))
        else:
            call.finish(Reply(status_of_reset(code), f"stream reset by the peer: {error_name(code)}"))

    # -- the end -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """No more calls here; closes when those in flight are answered."""
        self._retire("drained")
        if not self.open:
            self.close(ErrorCode.NO_ERROR, "drained")

    def _retire(self, reason: str) -> None:
        if not self._draining:
            self._draining = True
            self.limit = 0
            self._listener.connection_unusable(self, reason)

    def _lost(self, reason: str) -> None:
        calls = list(self._calls.values())
        self._calls.clear()
        self.open = 0
        self._retire(reason)
        self._listener.connection_lost(self)
        for call in calls:
            unsent = call.stream_id > self._http.sent_id
            reply = Reply(Status.UNAVAILABLE, f"{self.peer}: {reason}", retriable=unsent)
            if unsent:
                self._listener.retry(call, reply)
            else:
                call.finish(reply)

    def _wants_ping(self) -> bool:
        return bool(self._calls) or super()._wants_ping()

    def __repr__(self) -> str:
        state = (
            "closed"
            if self.closed
            else "draining"
            if self._draining
            else "ready"
            if self.ready
            else "connecting"
        )
        return f"<ClientConnection {self.peer} {state}, {self.open} of {self.limit} streams>"


def _reply_of_trailers(headers: tuple[Header, ...], call: ClientCall) -> Reply:
    """Returns the outcome that trailers, or headers that end the stream, tell."""
    fields, others = split_headers(headers)
    try:
        trailing = custom_metadata(others)
    except RpcError as error:
        return Reply(Status.INTERNAL, f"bad trailers: {error.message}")
    code = fields.get(b"grpc-status")
    if code is None:
        http = fields.get(b":status", b"200")
        status = Status.UNKNOWN if http == b"200" else status_of_http(http)
        return Reply(
            status, f"answer without grpc-status, HTTP status {http.decode('latin-1')}", b"", trailing
        )
    if code == b"0":
        return _reply_of_body(call, trailing)
    message = decode_message(fields.get(b"grpc-message", b""))
    known = _STATUSES.get(code)
    if known is None:
        return Reply(Status.UNKNOWN, f"unknown grpc-status {code[:16]!r}: {message}", b"", trailing)
    return Reply(known, message, b"", trailing)


def _reply_of_body(call: ClientCall, trailing: tuple[tuple[bytes, bytes], ...]) -> Reply:
    try:
        return Reply(_OK, "", call.body(), trailing)
    except RpcError as error:
        return Reply(error.status, error.message, b"", trailing)
