"""The server's side of one HTTP/2 connection: requests become calls, answers become frames."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Final

from rpc.calls import Call, Handler, ServerCall, StreamCall, StreamHandler
from rpc.connection import Http2Connection
from rpc.frames import (
    WINDOW,
    Control,
    Data,
    Event,
    Finished,
    Noted,
    PingAnswered,
    SettingsChanged,
    StreamEnd,
    Trailers,
    WindowUpdated,
)
from rpc.http1 import METHODS, HttpHandler, HttpRequest, answer
from rpc.http2 import ErrorCode, Header
from rpc.limits import Budget, Limits, Stats
from rpc.server_codec import Glitch, Request, RequestHead, ResetReceived, ServerCodec, WholeRequest
from rpc.status import Metadata, RpcError, Status
from rpc.wire import (
    ACCEPT_ENCODING,
    ENCODINGS,
    PREFIX,
    Body,
    custom_metadata,
    decode_timeout,
    encode_message,
    encode_metadata,
    message_parts,
    split_headers,
    unknown_encoding,
)

__all__ = ["Routes", "ServerConnection"]

_HEAD: Final[tuple[Header, ...]] = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
)
_ENCODINGS: Final[tuple[Header, ...]] = ((b"grpc-accept-encoding", ACCEPT_ENCODING),)
_OK_TRAILERS: Final[tuple[Header, ...]] = ((b"grpc-status", b"0"),)
_NOT_GRPC: Final[tuple[Header, ...]] = ((b":status", b"415"), (b"accept", b"application/grpc"))
_GRPC: Final = b"application/grpc"
_AFTER_GRPC: Final = (b"", b"+", b";")  # application/grpc-web is another protocol
_IDENTITY: Final = b"identity"
_FIELD_OVERHEAD: Final = 32  # what a header field costs besides its bytes, RFC 9113 section 6.5.2
_WINDOW_UPDATES_PER_CALL: Final = 8  # grpcio sends two or more, whatever the size of the answer
_BYTES_PER_WINDOW_UPDATE: Final = 1024
_CONTROL_FRAMES_PER_CALL: Final = 2
_HEADER_FACTOR: Final = 4
"""What is over a bound of headers costs a call, and what is over so many times the bound the connection: the codec
cannot go on without what it does not read, and with it go everybody else's calls."""
_ACKS_PER_BURST: Final = 2  # acknowledgements that a client does not take, by its burst of control frames
_DRAIN_PING: Final = b"draining"
_AGE_SPREAD: Final = 0.1  # connections opened together must not end together


class Routes:
    """What a server answers: unary and streaming methods, and pages for GET, each by path."""

    __slots__ = ("pages", "streams", "unary")

    def __init__(
        self,
        unary: Mapping[bytes, Handler],
        streams: Mapping[bytes, StreamHandler],
        pages: Mapping[str, HttpHandler],
    ) -> None:
        both = unary.keys() & streams.keys()
        if both:
            raise ValueError(f"methods {sorted(both)} have a unary and a streaming handler")
        for path in (*unary, *streams):
            if not path.startswith(b"/") or path.count(b"/") != 2:
                raise ValueError(f"method path {path!r} is not /service/method")
        self.unary = dict(unary)
        self.streams = dict(streams)
        self.pages = dict(pages)

    def unknown(self, path: bytes) -> str:
        """Why there is no handler for `path`, as text for the client."""
        service, _, method = path.removeprefix(b"/").rpartition(b"/")
        head = b"/" + service + b"/"
        known = any(route.startswith(head) for route in chain(self.unary, self.streams))
        shown = service.decode("utf-8", "replace")
        if known:
            return f"unknown method {method.decode('utf-8', 'replace')} for service {shown}"
        return f"unknown service {shown}"


class _Plan:
    """What all calls with the same header block have in common."""

    __slots__ = ("encoding", "metadata", "path", "streaming", "timeout", "unary")

    def __init__(
        self,
        path: bytes,
        unary: Handler | None,
        streaming: StreamHandler | None,
        encoding: bytes,
        metadata: tuple[Header, ...],
        timeout: float,
    ) -> None:
        self.path = path
        self.unary = unary
        self.streaming = streaming  # if it is not unary
        self.encoding = encoding
        self.metadata = metadata
        self.timeout = timeout  # in seconds; -1 = none


class ServerConnection(Http2Connection):
    """One client's connection. Created by `Server`, or by hand for any asyncio transport."""

    _lingers = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        routes: Routes,
        limits: Limits,
        stats: Stats,
        *,
        on_lost: Callable[[], None],
    ) -> None:
        codec = ServerCodec(
            max_header_bytes=_HEADER_FACTOR * limits.header_bytes,
            max_header_fields=_HEADER_FACTOR * limits.header_fields,
            told_header_bytes=limits.header_bytes,
            max_streams=limits.streams,
            stream_window=max(limits.message_bytes + PREFIX, WINDOW),
            connection_window=max(limits.connection_window_bytes, WINDOW),
            max_acks=_ACKS_PER_BURST * limits.control_frames.burst,
        )
        super().__init__(
            loop,
            codec,
            frame_seconds=limits.header_block_seconds,
            send_stall_seconds=limits.send_stall_seconds,
            ping_seconds=limits.ping_seconds,
            ping_timeout_seconds=limits.ping_timeout_seconds,
        )
        now = loop.time()
        self._http = codec  # `codec`, as what it is
        self._routes = routes
        self._limits = limits
        self._message_bytes = limits.message_bytes
        self._unsent_limit = limits.unsent_response_bytes
        self._stats = stats
        self._on_lost = on_lost
        self._calls: dict[int, Call] = {}  # those that wait for an answer
        self._half_open: dict[int, float] = {}  # answered streams whose client goes on, and since when
        self._ready: list[Call] = []  # those with something for their handler, within a batch
        self._buffered = 0  # bytes of requests that are not complete
        self._opened = 0  # calls since the start
        self._control = Budget(limits.control_frames, now)
        self._window_updates = Budget(limits.window_updates, now)
        self._glitches = Budget(limits.glitches, now)
        self._resets = Budget(limits.resets, now)
        self._drain_ping = b""  # the ping whose answer proves that the peer knows of the shutdown
        self._draining = False
        self._greeted = False  # the client's SETTINGS have come
        self._idle_since = self._opened_at = now
        spread = limits.age_seconds * _AGE_SPREAD
        self._drain_at = (
            now + limits.age_seconds + random.uniform(-spread, spread) if limits.age_seconds else 0.0
        )
        self._close_at = 0.0

    @property
    def calls(self) -> int:
        """Number of calls that wait for an answer."""
        return len(self._calls)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.flush()

    # -- events --------------------------------------------------------------------------------------------

    def _dispatch(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, WholeRequest):
                self._on_whole_request(event)
            elif isinstance(event, Data):
                self._on_data(event)
            elif isinstance(event, Request):
                self._on_request(event)
            elif isinstance(event, Noted):
                self._on_noted(event)
            else:
                self._on_other(event)
        # After the batch: a stream that it opened and closed never reaches a handler.
        if self._ready:
            ready, self._ready = self._ready, []
            for call in ready:
                if not call.over:
                    try:
                        call.run()
                    except Exception as error:  # noqa: BLE001 - a handler's mistake must not cost the other calls
                        self._handler_failed(call, error)

    def _on_noted(self, event: Noted) -> None:
        """Has the client pay for a frame that changes nothing."""
        if isinstance(event, WindowUpdated):
            earned = self._opened * _WINDOW_UPDATES_PER_CALL + self._sent_bytes // _BYTES_PER_WINDOW_UPDATE
            if not self._window_updates.take(self._received_at, earned):
                self._close_for("window_updates", "too many WINDOW_UPDATE frames")
        elif isinstance(event, Control):
            self._charge_control()
        elif isinstance(event, ResetReceived):
            if not self._resets.take(self._received_at):
                self._close_for("resets", "too many RST_STREAM frames")
        elif isinstance(event, Glitch) and not self._glitches.take(self._received_at):
            self._close_for("glitches", "too many requests and frames that are wrong")

    def _on_other(self, event: Event) -> None:
        if isinstance(event, Trailers):
            self._on_data_end(event.stream_id)
        elif isinstance(event, StreamEnd):
            self._on_stream_reset(event.stream_id)
        elif isinstance(event, Finished):
            self._session_over(event.error_code, event.debug_data)
        elif isinstance(event, PingAnswered) and event.payload == self._drain_ping:
            self._finish_drain()
        else:
            if isinstance(event, SettingsChanged):
                self._greeted = True
            self._charge_control()

    def _charge_control(self) -> None:
        if not self._control.take(self._received_at, self._opened * _CONTROL_FRAMES_PER_CALL):
            self._close_for(
                "control_frames", "too many PING, SETTINGS, PRIORITY, unknown or empty DATA frames"
            )

    def _on_whole_request(self, event: WholeRequest) -> None:
        """Nearly always the call of a unary method whose header block has come before."""
        plan = event.head.user
        if not isinstance(plan, _Plan) or plan.unary is None:
            request, data = event.parts()
            self._on_request(request)
            self._on_data(data)
            return
        if self.closed:
            return  # by an event before this one in the batch
        self._opened += 1
        call = ServerCall(
            self, event.stream_id, plan.path, plan.metadata, plan.encoding, self._received_at, plan.unary
        )
        self._begin(call, plan.timeout)
        try:
            call.feed_whole(event.received, event.start, event.end, self._message_bytes)
        except RpcError as error:
            self._break_off(call, error)
            return
        self._ready.append(call)

    def _on_request(self, event: Request) -> None:
        if self.closed:
            return  # by an event before this one in the batch
        self._opened += 1
        head = event.head
        plan = head.user
        try:
            if not isinstance(plan, _Plan):
                plan = head.user = self._plan(head)
            call = None if plan is None else self._open(event.stream_id, plan)
        except RpcError as error:
            self._refuse(event, _failure_headers(error))
            self._stats.calls[error.status] += 1
            return
        if call is None:
            self._answer_http(event)
            return
        if type(call) is StreamCall:
            self._ready.append(call)
        if event.end_stream:
            self._request_complete(call)

    def _plan(self, head: RequestHead) -> _Plan | None:
        """Returns what all calls with this header block are, or None when it does not ask for gRPC.

        Raises RpcError when they cannot be served.
        """
        headers = head.headers
        if len(headers) > self._limits.header_fields:
            raise self._over(
                "header_fields", f"{len(headers)} header fields, the limit is {self._limits.header_fields}"
            )
        fields, others = split_headers(headers)
        kind_of_body = fields.get(b"content-type", b"")
        if fields[b":method"] != b"POST" or kind_of_body[: len(_GRPC)] != _GRPC:
            return None
        if kind_of_body[len(_GRPC) : len(_GRPC) + 1] not in _AFTER_GRPC:
            return None
        path = fields.get(b":path", b"")
        unary = self._routes.unary.get(path)
        streaming = self._routes.streams.get(path)
        if unary is None and streaming is None:
            raise RpcError(Status.UNIMPLEMENTED, self._routes.unknown(path))
        encoding = fields.get(b"grpc-encoding", _IDENTITY)
        if encoding not in ENCODINGS:
            raise unknown_encoding(encoding)
        metadata: tuple[Header, ...] = ()
        if others:
            metadata = custom_metadata(others)
            self._check_metadata(metadata)
        timeout = fields.get(b"grpc-timeout")
        seconds = -1.0 if timeout is None else decode_timeout(timeout)
        return _Plan(path, unary, streaming, encoding, metadata, seconds)

    def _open(self, stream_id: int, plan: _Plan) -> Call:
        now = self._received_at
        call: Call
        if plan.unary is not None:
            call = ServerCall(self, stream_id, plan.path, plan.metadata, plan.encoding, now, plan.unary)
        else:
            assert plan.streaming is not None
            call = StreamCall(self, stream_id, plan.path, plan.metadata, plan.encoding, now, plan.streaming)
        self._begin(call, plan.timeout)
        return call

    def _begin(self, call: Call, timeout: float) -> None:
        if timeout >= 0:
            deadline = self._received_at + timeout
            call.set_deadline(deadline, self._timers.add(deadline, call))
        self._calls[call.stream_id] = call
        self._stats.streams += 1

    def _answer_http(self, event: Request) -> None:
        """Answers a request that is not gRPC: a page if there is one for GET, otherwise 415."""
        request = event.head.headers
        fields = dict(request)
        path, _, query = fields.get(b":path", b"").decode("latin-1").partition("?")
        handler = self._routes.pages.get(path)
        method = fields[b":method"]
        if handler is None or method not in METHODS:
            self._refuse(event, _NOT_GRPC)
            return
        headers = tuple([(name, value) for name, value in request if name[:1] != b":"])
        response = answer(self._loop, handler, HttpRequest(path, query, headers, self.peer))
        self._stats.http1_requests += 1
        body = response.body if method == b"GET" else b""
        head = ((b":status", b"%d" % response.status), *response.fields())
        self._http.send_head(event.stream_id, head, end_stream=not body)
        if body:
            self._body_bytes += len(body)
            self._http.send_data(event.stream_id, body, end_stream=True)
        if not event.end_stream:
            self._half_open[event.stream_id] = self._loop.time()
        self.mark_dirty()

    def _check_metadata(self, metadata: tuple[tuple[bytes, bytes], ...]) -> None:
        """Raises RpcError for more custom metadata than is good. (The codec has a bound for all headers.)"""
        size = sum([len(name) + len(value) + _FIELD_OVERHEAD for name, value in metadata])
        limit = self._limits.header_bytes
        if size > limit:
            raise self._over("header_bytes", f"{size} bytes of metadata, the limit is {limit}")

    def _check_unsent(self, more: int) -> None:
        """Raises RpcError when `more` bytes are too many, as the peer does not take those there are."""
        unsent = self._body_bytes - self._body_taken
        if unsent + more > self._unsent_limit and unsent:
            raise self._over(
                "unsent_response_bytes",
                f"{unsent} unsent response bytes on this connection, the limit is {self._unsent_limit}",
            )

    def _over(self, limit: str, message: str) -> RpcError:
        self._limit_hit(limit)
        return RpcError(Status.RESOURCE_EXHAUSTED, message)

    def _on_data(self, event: Data) -> None:
        call = self._calls.get(event.stream_id)
        if call is None:
            if event.end_stream:
                self._on_data_end(event.stream_id)
            elif not event.data:
                self._charge_control()
            return
        data = event.data
        try:
            if event.end_stream and type(call) is ServerCall and call.reader is None:
                whole = bytes(data)
                call.feed_whole(whole, 0, len(whole), self._message_bytes)
                self._ready.append(call)
                return
            self._feed_piece(call, data)
        except RpcError as error:
            self._break_off(call, error)
            return
        if event.end_stream:
            self._request_complete(call)

    def _on_data_end(self, stream_id: int) -> None:
        """The client has ended its side of a stream, other than with a message."""
        call = self._calls.get(stream_id)
        if call is not None:
            self._request_complete(call)
        else:  # answered before; the rest of its request was on the way
            self._half_open.pop(stream_id, None)

    def _feed_piece(self, call: Call, data: bytes | memoryview) -> None:
        if not data:
            self._charge_control()
            return
        call.progress_at = self._received_at
        before = call.held
        call.feed(data, self._message_bytes)
        self._buffered += call.held - before
        if self._buffered > self._limits.buffered_request_bytes:
            raise self._over(
                "buffered_request_bytes",
                f"{self._buffered} bytes of incomplete requests on this connection, "
                f"the limit is {self._limits.buffered_request_bytes}",
            )
        if type(call) is StreamCall:
            self._ready.append(call)

    def _request_complete(self, call: Call) -> None:
        call.complete = True
        self._release(call)
        try:
            call.feed_end()
        except RpcError as error:
            self._break_off(call, error)
            return
        self._ready.append(call)

    def _on_stream_reset(self, stream_id: int) -> None:
        """A stream is over before both sides have ended it."""
        self._half_open.pop(stream_id, None)
        call = self._calls.get(stream_id)
        if call is not None:
            self._finish(call, Status.CANCELLED)
            call.cancelled()

    def _handler_failed(self, call: Call, error: Exception) -> None:
        self._report(f"handler of {call!r}", error)
        call.fail(Status.INTERNAL, f"handler failed: {type(error).__name__}")

    def guarded(self, callback: Callable[[], None]) -> None:
        """Calls `callback`; its mistakes are reported to the loop and cost nobody else anything."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - see the docstring
            self._report(f"callback {callback!r}", error)

    def _report(self, what: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": f"{what} raised", "exception": error, "protocol": self})

    # -- answers (called by the calls) ---------------------------------------------------------------------

    def send_answer(self, call: Call, body: Body, trailing: Metadata) -> None:
        """Sends the one answer of a unary call."""
        fields = encode_metadata(trailing) if trailing else ()
        parts = message_parts(body)
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if self._body_bytes - self._body_taken + size > self._unsent_limit:
            try:
                self._check_unsent(size)
            except RpcError as error:
                self.send_failure(call, error)
                return
        self._finish(call, Status.OK)
        self._body_bytes += size
        self._http.send_answer(call.stream_id, _HEAD, parts, _OK_TRAILERS, fields)
        if not self._dirty:
            self.mark_dirty()

    def send_failure(self, call: Call, error: RpcError) -> None:
        """Ends a call with the status of `error`."""
        if isinstance(call, StreamCall) and call.headers_sent:
            trailers = _failure_trailers(error)
            self._finish(call, error.status)
            self._send_trailers(call, trailers)
        else:
            headers = _failure_headers(error)
            self._finish(call, error.status)
            self._send_only(call.stream_id, headers, complete=call.complete)
        self.mark_dirty()

    def _send_trailers(self, call: StreamCall, trailers: tuple[Header, ...]) -> None:
        if not call.complete:
            self._half_open[call.stream_id] = self._loop.time()
        self._http.send_trailers(call.stream_id, trailers)

    def send_message(self, call: StreamCall, body: Body) -> None:
        """Sends one message of a streaming call, and its headers before the first."""
        parts = message_parts(body)
        try:
            self._check_unsent(sum(map(len, parts)))
        except RpcError as error:
            self._break_off(call, error)
            return
        self._send_head(call)
        for part in parts:
            self._body_bytes += len(part)
            self._http.send_data(call.stream_id, part)
        self.mark_dirty()

    def send_end(self, call: StreamCall, trailing: Metadata) -> None:
        """Ends a streaming call with OK."""
        trailers = _OK_TRAILERS + encode_metadata(trailing)
        self._send_head(call)
        self._finish(call, Status.OK)
        self._send_trailers(call, trailers)
        self.mark_dirty()

    def _send_head(self, call: StreamCall) -> None:
        if not call.headers_sent:
            call.headers_sent = True
            self._http.send_head(call.stream_id, _HEAD)

    def expired(self, call: Call) -> None:
        """The deadline of a call has passed."""
        if not call.over:
            self._break_off(call, RpcError(Status.DEADLINE_EXCEEDED, "deadline exceeded"))

    def _break_off(self, call: Call, error: RpcError) -> None:
        """Fails a call that its handler has not answered."""
        self.send_failure(call, error)
        call.cancelled()

    def _refuse(self, event: Request, headers: tuple[Header, ...]) -> None:
        """Answers a request that never became a call."""
        self._send_only(event.stream_id, headers, complete=event.end_stream)
        self.mark_dirty()

    def _send_only(self, stream_id: int, headers: tuple[Header, ...], *, complete: bool) -> None:
        """Answers with headers alone. `complete`: the peer has nothing more to send, and need not be stopped."""
        self._http.send_head(stream_id, headers, end_stream=True)
        if not complete:
            self._http.reset_stream(stream_id, ErrorCode.NO_ERROR)

    def flush(self) -> None:
        super().flush()
        if self._draining and not self._half_open:
            self._close_if_drained()

    def _finish(self, call: Call, status: Status) -> None:
        call.finish()
        if call.held:
            self._release(call)
        del self._calls[call.stream_id]
        self._stats.streams -= 1
        self._stats.calls[status] += 1
        if not self._calls:
            self._idle_since = self._loop.time()

    def _release(self, call: Call) -> None:
        self._buffered -= call.held
        call.held = 0

    # -- the end -------------------------------------------------------------------------------------------

    def _limit_hit(self, name: str) -> None:
        self._stats.limits[name] += 1

    def _lost(self, reason: str) -> None:
        calls = list(self._calls.values())
        self._calls.clear()
        self._half_open.clear()
        self._stats.streams -= len(calls)
        for call in calls:
            self._stats.calls[Status.CANCELLED] += 1
            call.finish()
            call.cancelled()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._on_lost()

    def drain(self, grace: float) -> None:
        """Has the client go elsewhere: no new calls, those in flight finish, then the connection closes.

        After `grace` seconds it closes even so. A notice goes first and the last stream is named only when
        a ping has come back: calls that crossed the notice on the wire are still served.
        """
        if self.closed or self._draining:
            return
        self._draining = True
        self._close_at = self._loop.time() + grace
        self._drain_ping = _DRAIN_PING
        self._http.announce_leaving()
        self._http.ping(_DRAIN_PING)
        self.mark_dirty()

    def _finish_drain(self) -> None:
        self._drain_ping = b""
        if self._calls or self.codec.queued_body_size():
            self._http.leave()
            self.mark_dirty()
        else:
            self.close(ErrorCode.NO_ERROR, "drained")

    def _close_if_drained(self) -> None:
        codec = self._http
        if not (
            self._calls or self._drain_ping or codec.queued_body_size() or codec.want_write or self.closed
        ):
            self.close(ErrorCode.NO_ERROR, "drained")

    def _tick(self, now: float) -> None:
        limits = self._limits
        if not self._greeted and now - self._opened_at >= limits.preface_seconds:
            self._close_for("preface_seconds", f"no SETTINGS for {limits.preface_seconds:g} s")
        super()._tick(now)
        if self.closed:
            return
        self._check_bodies(now)
        if self._draining:
            self._close_if_drained()
            if now >= self._close_at:
                self.close(ErrorCode.NO_ERROR, "the time to finish is over")
        elif self._drain_at and now >= self._drain_at:
            self._limit_hit("age_seconds")
            self.drain(limits.age_grace_seconds)
        elif limits.idle_seconds and not self._calls and now - self._idle_since >= limits.idle_seconds:
            self._limit_hit("idle_seconds")
            self.drain(limits.age_grace_seconds)  # a call may be on its way

    def _check_bodies(self, now: float) -> None:
        stall = self._limits.body_stall_seconds
        for call in list(self._calls.values()):
            if type(call) is ServerCall and not call.complete and now - call.progress_at >= stall:
                self._limit_hit("body_stall_seconds")
                self._break_off(
                    call, RpcError(Status.DEADLINE_EXCEEDED, f"no byte of the request for {stall:g} s")
                )
        for stream_id, since in list(self._half_open.items()):
            if now - since >= stall:  # answered, and the client still has not ended its side
                del self._half_open[stream_id]
                self._http.reset_stream(stream_id, ErrorCode.NO_ERROR)
                self.mark_dirty()

    def _wants_ping(self) -> bool:
        return bool(self._calls) or super()._wants_ping()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "draining" if self._draining else "open"
        return f"<ServerConnection {self.peer} {state}, {len(self._calls)} calls of {self._opened}>"


def _failure_headers(error: RpcError) -> tuple[Header, ...]:
    return _HEAD + _failure_trailers(error)


def _failure_trailers(error: RpcError) -> tuple[Header, ...]:
    trailers: tuple[Header, ...] = ((b"grpc-status", b"%d" % error.status),)
    if error.message:
        trailers += ((b"grpc-message", encode_message(error.message)),)
    if error.status is Status.UNIMPLEMENTED:
        trailers += _ENCODINGS
    return trailers + encode_metadata(error.trailing)
