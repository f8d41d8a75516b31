"""The server's end of an HTTP/2 connection as bytes: requests that come, and answers with trailers (RFC 9113).

What both ends share, and the rules, are in `rpc.frames`. Its clients may be anybody's: whatever they can make it
hold is bounded, a request is told only if it is right (section 8.1.1), and one that is not costs its stream. Such
things are told as `Glitch` events: how many of them are too many is for who owns the connection to say.

A header block that was seen before is the same `RequestHead` again: it is decoded and looked at once. Section
numbers are those of RFC 9113.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rpc.frames import (
    CONTROL,
    DATA,
    END_STREAM,
    FRAME_BYTES,
    FRAME_HEAD,
    NOTED,
    WINDOW,
    Codec,
    Data,
    Event,
    Noted,
    Stream,
    StreamEnd,
    Trailers,
    frame_head,
    goaway_frame,
    headers_frame,
    length_at,
    settings_frame,
    stream_at,
    unpadded,
    window_update,
)
from rpc.http2 import MAX_STREAM_ID, PREFACE, ConnectionProtocolError, ErrorCode, Header, Setting

__all__ = [
    "Glitch",
    "Request",
    "RequestHead",
    "ResetReceived",
    "ServerCodec",
    "WholeRequest",
    "fault_of_request",
]

_KNOWN_HEADS: Final = 32
_KNOWN_HEAD_BYTES: Final = 2048  # of the fields of a head that is kept: so a connection keeps 64 KiB at most
_KNOWN_BLOCKS: Final = 16
_REMEMBERED_RESETS: Final = 2  # times as many as there may be streams

# As numbers of their own: members of an enum are slow to look up.
_NO_ERROR: Final = 0x0
_PROTOCOL_ERROR: Final = 0x1
_STREAM_CLOSED: Final = 0x5
_REFUSED_STREAM: Final = 0x7

# What names and values are made of (sections 8.2.1 and 8.3.1; RFC 9110 sections 5.1 and 5.5; RFC 3986).
_DIGITS: Final = b"0123456789"
_UPPER: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER: Final = b"abcdefghijklmnopqrstuvwxyz"
_NAME: Final = b"!#$%&'*+-.^_`|~" + _DIGITS + _LOWER
_METHOD: Final = _NAME + _UPPER
_SCHEME: Final = b"+-." + _DIGITS + _UPPER + _LOWER
_AUTHORITY: Final = b"!$%&'()*+,-.:;=[]_~" + _DIGITS + _UPPER + _LOWER
_PATH: Final = bytes([*range(0x21, 0x7F), *range(0x80, 0x100)])
_VALUE: Final = b"\t " + _PATH
_PSEUDO: Final = {b":method": _METHOD, b":scheme": _SCHEME, b":path": _PATH, b":authority": _AUTHORITY}
_OF_A_CONNECTION: Final = frozenset(  # section 8.2.2
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class RequestHead:
    """The header block of a request: the same object for each request with the same block."""

    __slots__ = ("fault", "headers", "length", "user")

    def __init__(self, headers: tuple[Header, ...], fault: str, length: int) -> None:
        self.headers = headers
        self.fault = fault
        """What is wrong with it; empty for all that are told."""
        self.length = length
        """Bytes of the body that it declares; -1 if it does not."""
        self.user: object = None
        """What the codec's user has made of it."""


class Request(Event):
    """A request begins."""

    __slots__ = ("end_stream", "head", "stream_id")

    def __init__(self, stream_id: int, head: RequestHead, end_stream: bool) -> None:
        self.stream_id = stream_id
        self.head = head
        self.end_stream = end_stream


class WholeRequest(Event):
    """A request that has come whole, as most do: what Request and Data tell of any other.

    The body is `received[start:end]`: who wants a part of it copies it once.
    """

    __slots__ = ("end", "head", "received", "start", "stream_id")

    def __init__(self, stream_id: int, head: RequestHead, received: bytes, start: int, end: int) -> None:
        self.stream_id = stream_id
        self.head = head
        self.received = received
        self.start = start
        self.end = end

    def parts(self) -> tuple[Request, Data]:
        """The same as other requests are told."""
        return (
            Request(self.stream_id, self.head, False),
            Data(self.stream_id, self.received[self.start : self.end], True),
        )


class Glitch(Noted):
    """Something that no good client sends, and that cost no more than its stream."""

    __slots__ = ()


class ResetReceived(Noted):
    """The client has reset a stream; if it was not over, a `StreamEnd` says which."""

    __slots__ = ()


_GLITCH: Final = Glitch()
_RESET: Final = ResetReceived()


class ServerCodec(Codec):
    """One connection. What is sent on a stream that is over is dropped: its user has not been told yet."""

    def __init__(
        self,
        *,
        max_header_bytes: int,
        max_header_fields: int,
        told_header_bytes: int,
        max_streams: int,
        stream_window: int,
        connection_window: int,
        max_acks: int,
    ) -> None:
        """As the base. `told_header_bytes`: what clients are told of `max_header_bytes`. Streams over `max_streams`
        are refused. Windows are at least 65,535 bytes, those that clients begin with.
        """
        super().__init__(
            max_header_bytes=max_header_bytes,
            max_header_fields=max_header_fields,
            stream_window=stream_window,
            connection_window=connection_window,
            max_acks=max_acks,
        )
        self._max_streams = max_streams
        self._preface = PREFACE  # what is to come of it
        self._last_id = 0  # of the streams that the client has opened
        self._leaving = False  # the client knows the last stream that it may open
        self._reset_ids: dict[
            int, None
        ] = {}  # streams that were reset last: something may be on its way for them
        self._heads: dict[bytes, RequestHead] = {}  # by block, as long as the decoder's version is the same
        self._heads_version = 0
        self._blocks: dict[tuple[Header, ...], bytes] = {}  # as long as the encoder's version is the same
        self._blocks_version = 0
        settings = (
            (Setting.MAX_CONCURRENT_STREAMS, max_streams),
            (Setting.INITIAL_WINDOW_SIZE, stream_window),
            (Setting.MAX_HEADER_LIST_SIZE, told_header_bytes),
            (Setting.NO_RFC7540_PRIORITIES, 1),
        )
        self._out.append(settings_frame(settings))
        if connection_window > WINDOW:
            self._out.append(window_update(0, connection_window - WINDOW))

    # -- out -----------------------------------------------------------------------------------------------

    def send_answer(
        self,
        stream_id: int,
        head: tuple[Header, ...],
        body: Sequence[bytes],
        trailers: tuple[Header, ...],
        trailing: tuple[Header, ...],
    ) -> None:
        """Sends a whole answer: `head`, `body`, which is not empty, and `trailers` with `trailing` behind them.

        `head` and `trailers` are made into blocks once, as they are those of other answers, too.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.done:
            return
        stream.done = True
        traffic = self._traffic
        block = self._known_block(head)
        traffic.append(headers_frame(block, 0, stream_id))
        if len(body) == 1:
            data = body[0]
            size = len(data)
            if size <= FRAME_BYTES and size <= stream.window and size <= self._window:
                self._window -= size
                block = self._known_block(trailers)
                if trailing:
                    block += self._encoder.encode(trailing)
                traffic.append(frame_head(size, DATA, 0, stream_id))
                traffic.append(data)
                traffic.append(headers_frame(block, END_STREAM, stream_id))
                if stream.ended:
                    self._close(stream, _NO_ERROR)
                return
        stream.trailers = trailers + trailing
        self._queue(stream, body)

    def _known_block(self, fields: tuple[Header, ...]) -> bytes:
        """The block of fields that are sent often, to be sent next."""
        if self._blocks_version != self._encoder.version:
            self._blocks.clear()
            self._blocks_version = self._encoder.version
        block = self._blocks.get(fields)
        if block is None:
            block = self._encoder.encode(fields)
            if self._blocks_version == self._encoder.version and len(self._blocks) < _KNOWN_BLOCKS:
                self._blocks[fields] = block
        return block

    def send_head(self, stream_id: int, headers: tuple[Header, ...], *, end_stream: bool = False) -> None:
        """Sends the header block of an answer; with `end_stream` it is all of the answer."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.done:
            block = self._encoder.encode(headers)
            self._traffic.append(headers_frame(block, END_STREAM if end_stream else 0, stream_id))
            if end_stream:
                self._end(stream)

    def send_data(self, stream_id: int, data: bytes, *, end_stream: bool = False) -> None:
        """Sends a piece of a body, which is not empty, as the windows allow."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.done:
            stream.done = end_stream
            self._queue(stream, (data,))

    def send_trailers(self, stream_id: int, headers: tuple[Header, ...]) -> None:
        """Ends an answer with these trailers, behind what waits of its body."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.done:
            return
        if stream.size:
            stream.done = True
            stream.trailers = headers
        else:
            self._traffic.append(headers_frame(self._encoder.encode(headers), END_STREAM, stream_id))
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        """Our side has ended, and all of it is in frames."""
        stream.done = True
        if stream.ended:
            self._close(stream, _NO_ERROR)

    def announce_leaving(self) -> None:
        """Tells the client to go elsewhere; what it opens until it has heard of this is served (section 6.8)."""
        self._out.append(goaway_frame(MAX_STREAM_ID, _NO_ERROR, b""))

    def leave(self) -> None:
        """Tells the client which stream is the last; later ones are ignored."""
        self._leaving = True
        self._out.append(goaway_frame(self._last_id, _NO_ERROR, b""))

    # -- in ------------------------------------------------------------------------------------------------

    def receive_data(self, received: bytes | memoryview) -> None:
        """As of the base, behind the preface."""
        if self._preface:
            received = self._behind_preface(bytes(received))
        super().receive_data(received)

    def _behind_preface(self, received: bytes) -> bytes:
        size = min(len(received), len(self._preface))
        if received[:size] != self._preface[:size]:
            raise ConnectionProtocolError("the peer does not speak HTTP/2: its preface is wrong")
        self._preface = self._preface[size:]
        return received[size:]

    def _receive_whole(self, stream_id: int, data: bytes, start: int, end: int) -> int:
        body = end + FRAME_HEAD
        if (
            body > len(data)
            or data[end + 3] != DATA
            or data[end + 4] != END_STREAM
            or stream_at(data, end) != stream_id
        ):
            return 0
        size = length_at(data, end)
        after = body + size
        head = self._heads.get(data[start:end])
        if (
            head is None
            or head.fault
            or (head.length >= 0 and head.length != size)
            or self._heads_version != self._decoder.version
            or after > len(data)
            or size > FRAME_BYTES
            or (self._consumed + size) * 2 > self._connection_window
            or size > self._stream_window
            or stream_id <= self._last_id
            or not stream_id & 1
            or self._leaving
            or len(self._streams) >= self._max_streams
        ):
            return 0
        self._consumed += size
        self._last_id = stream_id
        stream = Stream(stream_id, self._initial_window)
        stream.ended = True
        self._streams[stream_id] = stream
        self._events.append(WholeRequest(stream_id, head, data, body, after))
        return after

    def _on_block(self, stream_id: int, block: bytes, last: bool) -> None:
        if stream_id > self._last_id and stream_id & 1:
            self._on_request(stream_id, block, last)
            return
        headers = self._decoder.read(block)  # whatever becomes of the stream: blocks build on one another
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, headers, last)
        elif stream_id in self._reset_ids:
            del self._reset_ids[stream_id]  # trailers that were on their way; nothing comes behind them
            if last:
                self._events.append(NOTED)
            else:
                self._refuse(stream_id, _PROTOCOL_ERROR)
        elif self._is_idle(stream_id):
            raise ConnectionProtocolError(f"HEADERS on stream {stream_id}, which is no client's")
        else:
            raise ConnectionProtocolError(
                f"HEADERS on stream {stream_id}, which is closed", ErrorCode.STREAM_CLOSED
            )

    def _on_request(self, stream_id: int, block: bytes, last: bool) -> None:
        if self._heads_version != self._decoder.version:
            self._heads.clear()
            self._heads_version = self._decoder.version
        known = self._heads.get(block)
        head = self._read_head(block) if known is None else known
        if self._leaving:
            self._events.append(_GLITCH)  # its client will have it done elsewhere
            return
        self._last_id = stream_id
        if head.fault or (last and head.length > 0):
            self._refuse(stream_id, _PROTOCOL_ERROR)
        elif len(self._streams) >= self._max_streams:
            self._refuse(stream_id, _REFUSED_STREAM)
        else:
            stream = Stream(stream_id, self._initial_window)
            stream.ended = last
            stream.left = head.length
            self._streams[stream_id] = stream
            self._events.append(Request(stream_id, head, last))

    def _read_head(self, block: bytes) -> RequestHead:
        before = self._decoder.version
        headers = self._decoder.read(block)
        length = _content_length(headers)
        head = RequestHead(headers, fault_of_request(headers), length)
        if self._decoder.version == before:
            size = 0
            for name, value in headers:
                size += len(name) + len(value)
            if size <= _KNOWN_HEAD_BYTES:
                if len(self._heads) >= _KNOWN_HEADS:
                    self._heads.clear()
                self._heads[block] = head
        return head

    def _on_trailers(self, stream: Stream, headers: tuple[Header, ...], last: bool) -> None:
        fault = _fault_of_trailers(headers)
        if stream.ended:
            self._fail(stream, "HEADERS after the end", _STREAM_CLOSED)
        elif not last:
            self._fail(stream, "a second header block that does not end it")
        elif fault:
            self._fail(stream, f"trailers: {fault}")
        elif stream.left > 0:
            self._fail(stream, f"it ends {stream.left} bytes before its content-length")
        else:
            self._events.append(Trailers(stream.id, headers))
            self._on_end(stream)

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        size = end - start
        start, end = unpadded(flags, data, start, end)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._on_stray_data(stream_id, end - start)
            return
        if stream.ended:
            self._fail(stream, "DATA after the end", _STREAM_CLOSED)
            return
        last = flags & END_STREAM != 0
        if not self._take_of(stream, size, last):
            return
        if stream.left >= 0:
            stream.left -= end - start
            if stream.left < 0 or (last and stream.left):
                self._fail(stream, "its body is not as long as its content-length")
                return
        self._events.append(Data(stream_id, data[start:end], last))
        if last:
            self._on_end(stream)

    def _on_stray_data(self, stream_id: int, size: int) -> None:
        """DATA for a stream that is closed: some may be on its way if it was us who closed it (section 5.1)."""
        if stream_id in self._reset_ids or (self._leaving and stream_id & 1 and stream_id > self._last_id):
            self._events.append(NOTED if size else CONTROL)
        elif self._is_idle(stream_id):
            raise ConnectionProtocolError(f"DATA on stream {stream_id}, which has never been opened")
        else:
            self._refuse(stream_id, _STREAM_CLOSED)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        super()._on_reset(stream_id, payload)
        self._events.append(_RESET)

    def _apply(self, setting: int, value: int) -> None:
        if value > 1 and setting in (
            Setting.ENABLE_PUSH,
            Setting.ENABLE_CONNECT_PROTOCOL,
            Setting.NO_RFC7540_PRIORITIES,
        ):
            raise ConnectionProtocolError(f"SETTINGS: {Setting(setting).name} is {value}, must be 0 or 1")

    def _left(self, last_id: int) -> None:
        pass  # clients in Go name streams of their own; there are none of ours

    # -- streams -------------------------------------------------------------------------------------------

    def _is_idle(self, stream_id: int) -> bool:
        return not stream_id & 1 or (stream_id > self._last_id and not self._leaving)

    def _last_taken(self) -> int:
        return self._last_id

    def _refuse(self, stream_id: int, error_code: int) -> None:
        """Resets a stream that has never become one, or is none any more."""
        self._put_reset(stream_id, error_code)
        self._events.append(_GLITCH)

    def _put_reset(self, stream_id: int, error_code: int) -> None:
        super()._put_reset(stream_id, error_code)
        if len(self._reset_ids) >= _REMEMBERED_RESETS * self._max_streams:
            del self._reset_ids[next(iter(self._reset_ids))]
        self._reset_ids[stream_id] = None

    def _tell_end(self, stream: Stream, error_code: int, problem: str) -> None:
        """Only of what was reset: of all others their user knows."""
        if problem:
            self._events.append(_GLITCH)
        if not (stream.ended and stream.done and error_code == _NO_ERROR):
            self._events.append(StreamEnd(stream.id, error_code, problem))


# -- what requests must be ---------------------------------------------------------------------------------


def fault_of_request(headers: Sequence[Header]) -> str:
    """What is wrong with the header block of a request (sections 8.2 and 8.3); empty if it is right."""
    pseudo: dict[bytes, bytes] = {}
    fields = 0
    lengths = 0
    has_host = False
    for name, value in headers:
        if name[:1] == b":":
            allowed = _PSEUDO.get(name)
            if allowed is None:
                return f"{name[:32]!r} is no pseudo-header of requests"
            if fields:
                return f"{name!r} behind the fields"
            if name in pseudo:
                return f"{name!r} twice"
            if not value or value.translate(None, allowed):
                return f"{name!r} is {value[:32]!r}"
            pseudo[name] = value
        else:
            fields += 1
            fault = _fault_of_field(name, value)
            if fault:
                return fault
            if name == b"host":
                if has_host or not value or value.translate(None, _AUTHORITY):
                    return f"host is {value[:32]!r}, or there are two"
                has_host = True
            elif name == b"content-length":
                lengths += 1
                if lengths > 1 or not _is_length(value):
                    return f"content-length is {value[:32]!r}, or there are two"
    return _fault_of_pseudo(pseudo, has_host)


def _fault_of_pseudo(pseudo: dict[bytes, bytes], has_host: bool) -> str:
    """What is missing, or too much (sections 8.3.1 and 8.5)."""
    method = pseudo.get(b":method", b"")
    path = pseudo.get(b":path", b"")
    scheme = pseudo.get(b":scheme", b"")
    if method == b"CONNECT":
        if path or scheme or b":authority" not in pseudo:
            return "CONNECT is for an :authority alone"
        return ""
    if not (method and path and scheme):
        return ":method, :path or :scheme is missing"
    if not (has_host or b":authority" in pseudo):
        return ":authority and host are missing"
    if not scheme[:1].isalpha():
        return f":scheme is {scheme[:32]!r}"
    if scheme.lower() in (b"http", b"https") and path[:1] != b"/" and (method, path) != (b"OPTIONS", b"*"):
        return f":path is {path[:32]!r}"
    return ""


def _fault_of_trailers(headers: Sequence[Header]) -> str:
    """What is wrong with the header block behind a body (section 8.1); empty if it is right."""
    for name, value in headers:
        if name[:1] == b":" or name == b"content-length":
            return f"{name[:32]!r}"
        fault = _fault_of_field(name, value)
        if fault:
            return fault
    return ""


def _fault_of_field(name: bytes, value: bytes) -> str:
    """What is wrong with a field anywhere (sections 8.2.1 and 8.2.2)."""
    if not name or name.translate(None, _NAME):
        return f"{name[:32]!r} is no name of a field"
    if value.translate(None, _VALUE) or value[:1] in _BLANKS or value[-1:] in _BLANKS:
        return f"{name[:32]!r} has a value that no field has"
    if name in _OF_A_CONNECTION:
        return f"{name!r} belongs to no request"
    if name == b"te" and value.lower() != b"trailers":
        return f"te is {value[:32]!r}"
    return ""


_BLANKS: Final = (b" ", b"\t")
_MAX_LENGTH_DIGITS: Final = 18


def _is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS


def _content_length(headers: Sequence[Header]) -> int:
    """The bytes that a request declares for its body; -1 if it does not, or cannot be understood."""
    for name, value in headers:
        if name == b"content-length" and _is_length(value):
            return int(value)
    return -1
