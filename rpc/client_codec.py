"""The client's end of an HTTP/2 connection as bytes: what a channel of unary calls needs of RFC 9113.

Upstream calls are most of what the service does on the wire, and they are alike: a header block that was sent
before and a message in one frame, and back two header blocks that were seen before with a message between them. So
this codec makes a call's frames in one piece, looks blocks up whole, and tells a response that has come whole as
one event. A general codec, with an object for each frame and each header, took two thirds of the time of a call.

Bytes go in by `receive_data`, events come out of `events`, bytes to send out of `data_to_send`. It keeps no clock,
knows no gRPC and calls nobody. Not here, because a client of unary calls has no use for it: server push (refused),
priorities (ignored), requests without a body. Section numbers are those of RFC 9113.

What a peer does wrong with a stream costs that stream; what makes the rest of the connection doubtful is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rpc.codec import (
    MAX_STREAM_ID,
    PREFACE,
    ConnectionClosingError,
    ConnectionProtocolError,
    DenialOfServiceError,
    Header,
    NoAvailableStreamIDError,
    Setting,
    error_name,
    goaway_frame,
)
from rpc.hpack import Decoder, Encoder

__all__ = [
    "Answer",
    "ClientCodec",
    "Data",
    "Event",
    "Finished",
    "Head",
    "Leaving",
    "Noted",
    "SettingsChanged",
    "StreamEnd",
    "Trailers",
]

_DATA: Final = 0
_HEADERS: Final = 1
_RST_STREAM: Final = 3
_SETTINGS: Final = 4
_PUSH_PROMISE: Final = 5
_PING: Final = 6
_GOAWAY: Final = 7
_WINDOW_UPDATE: Final = 8
_CONTINUATION: Final = 9

_END_STREAM: Final = 0x1
_ACK: Final = 0x1
_END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_PRIORITY: Final = 0x20

_FRAME_HEAD: Final = 9
_FRAME_BYTES: Final = 16_384  # payload of a frame that both sides take, whatever SETTINGS say (section 4.2)
_WINDOW: Final = 65_535  # the initial window (section 6.9.2)
_MAX_WINDOW: Final = 2**31 - 1
_MAX_CONTINUATIONS: Final = 64
_MAX_UNSENT_ACKS: Final = 1000
_VIEW_FROM: Final = 4096  # bytes of DATA that are cheaper to look at where they are than to copy

# As numbers of their own: members of an enum are slow to look up.
_NO_ERROR: Final = 0x0
_PROTOCOL_ERROR: Final = 0x1
_REFUSED_STREAM: Final = 0x7


class Event:
    """Something that a peer has sent, or what has become of a stream."""

    __slots__ = ()


class Noted(Event):
    """A frame that changes nothing for a caller."""

    __slots__ = ()


class Head(Event):
    """The header block of a response; those of status 1xx are not told."""

    __slots__ = ("end_stream", "headers", "stream_id")

    def __init__(self, stream_id: int, headers: tuple[Header, ...], end_stream: bool) -> None:
        self.stream_id = stream_id
        self.headers = headers
        self.end_stream = end_stream


class Data(Event):
    """A piece of a response's body, without padding; a large one is a view of what was received."""

    __slots__ = ("data", "end_stream", "stream_id")

    def __init__(self, stream_id: int, data: bytes | memoryview, end_stream: bool) -> None:
        self.stream_id = stream_id
        self.data = data
        self.end_stream = end_stream


class Trailers(Event):
    """The last header block of a response."""

    __slots__ = ("headers", "stream_id")

    def __init__(self, stream_id: int, headers: tuple[Header, ...]) -> None:
        self.stream_id = stream_id
        self.headers = headers


class Answer(Event):
    """A whole response, as most come: what Head, Data, Trailers and StreamEnd tell of any other.

    Its head is one that a Head has told before. The body is `received[start:end]`: who wants a part of it copies it
    once.
    """

    __slots__ = ("end", "head", "received", "start", "stream_id", "trailers")

    def __init__(
        self,
        stream_id: int,
        head: tuple[Header, ...],
        received: bytes,
        start: int,
        end: int,
        trailers: tuple[Header, ...],
    ) -> None:
        self.stream_id = stream_id
        self.head = head
        self.received = received
        self.start = start
        self.end = end
        self.trailers = trailers

    def parts(self) -> tuple[Event, ...]:
        """The same as other responses are told."""
        return (
            Head(self.stream_id, self.head, False),
            Data(self.stream_id, self.received[self.start : self.end], False),
            Trailers(self.stream_id, self.trailers),
            StreamEnd(self.stream_id, _NO_ERROR, ""),
        )


class StreamEnd(Event):
    """A stream is closed: both sides have ended it, or one has reset it, with this code."""

    __slots__ = ("error_code", "problem", "stream_id")

    def __init__(self, stream_id: int, error_code: int, problem: str) -> None:
        self.stream_id = stream_id
        self.error_code = error_code
        self.problem = problem
        """What was wrong with what the peer sent; empty if it was not the codec that reset the stream."""


class SettingsChanged(Event):
    """The peer's SETTINGS have come; they hold from now on."""

    __slots__ = ()


class Leaving(Event):
    """GOAWAY: the peer takes no new streams."""

    __slots__ = ("debug_data", "error_code")

    def __init__(self, error_code: int, debug_data: bytes) -> None:
        self.error_code = error_code
        self.debug_data = debug_data


class Finished(Event):
    """The peer has said GOAWAY, and no stream is left."""

    __slots__ = ("debug_data", "error_code")

    def __init__(self, error_code: int, debug_data: bytes) -> None:
        self.error_code = error_code
        self.debug_data = debug_data


_NOTED: Final = Noted()
_SETTINGS_CHANGED: Final = SettingsChanged()


class _Stream:
    """A request that is not over."""

    __slots__ = ("answering", "consumed", "ended", "id", "pending", "size", "window")

    def __init__(self, stream_id: int, window: int) -> None:
        self.id = stream_id
        self.window = window  # bytes that the peer takes
        self.pending: list[memoryview] = []  # of the body, not in frames yet
        self.size = 0  # bytes of those
        self.answering = False  # the head of the response has come
        self.ended = False  # the response is complete
        self.consumed = 0  # bytes of the response that the peer has not been given back


class ClientCodec:
    """One connection."""

    def __init__(self, max_header_bytes: int, stream_window: int, connection_window: int) -> None:
        """`max_header_bytes` bounds a decoded header block, as `Decoder` counts it; windows are in bytes."""
        self.max_streams = _MAX_WINDOW
        """Streams that the peer allows at once."""
        self._queued = 0  # bytes of request bodies that are not in frames yet
        self._decoder = Decoder(max_header_bytes)
        self._encoder = Encoder()
        self._max_header_bytes = max_header_bytes
        self._stream_window = stream_window
        self._connection_window = connection_window
        self._consumed = 0  # as in a stream
        self._window = _WINDOW  # bytes that the peer takes on all streams
        self._initial_window = _WINDOW  # of a stream
        self._streams: dict[int, _Stream] = {}
        self._waiting: dict[int, _Stream] = {}  # those with a body to send
        self._next_id = 1
        self._sent_id = 0  # streams up to this one have been sent
        self._settled = False  # the peer's SETTINGS have come
        self._goaway: Leaving | None = None
        self._over = False
        self._in = b""  # a frame that is not complete
        self._block: list[bytes] = []  # a header block that is not
        self._block_stream = 0  # whose; 0 = there is none
        self._block_ends = False  # whether it ends the stream
        self._acks = 0  # acknowledgements that are not sent
        self._good_head: tuple[Header, ...] = ()  # the last one that a Head has told, before a body
        self._out: list[bytes | memoryview] = [
            PREFACE,
            _settings(
                (
                    (Setting.ENABLE_PUSH, 0),
                    (Setting.INITIAL_WINDOW_SIZE, stream_window),
                    (Setting.MAX_HEADER_LIST_SIZE, max_header_bytes),
                )
            ),
        ]
        if connection_window > _WINDOW:
            self._out.append(_window_update(0, connection_window - _WINDOW))
        # As `_out`, which goes before it: what a GOAWAY would take back.
        self._requests: list[bytes | memoryview] = []
        self._events: list[Event] = []

    # -- out -----------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Blocks of `encode` are good as long as this stays as it was when they were made."""
        return self._encoder.version

    def encode(self, headers: Sequence[Header]) -> bytes:
        """A header block for `send_request`, which must follow at once: blocks build on one another.

        If `version` was the same before, the block may be sent again, as long as it stays so.
        """
        return self._encoder.encode(headers)

    def send_request(
        self, block: bytes, body: Sequence[bytes], *, field: bytes = b"", start: bytes = b""
    ) -> int:
        """Starts a request with these headers and this body, which is not empty. Returns its stream.

        What differs from call to call is given apart, so that nobody joins it to the rest: `field` ends the header
        block, `start` begins the body.
        Raises NoAvailableStreamIDError when all have been used, and ConnectionClosingError after a GOAWAY.
        """
        if self._goaway is not None or self._over:
            raise ConnectionClosingError("the connection takes no new streams")
        stream_id = self._next_id
        if stream_id > MAX_STREAM_ID:
            raise NoAvailableStreamIDError("all streams of the connection have been used")
        self._next_id = stream_id + 2
        stream = _Stream(stream_id, self._initial_window)
        self._streams[stream_id] = stream
        out = self._requests
        stream_bytes = stream_id.to_bytes(4, "big")
        size = len(block) + len(field)
        if size <= _FRAME_BYTES:
            out.append((size << 16 | _HEADERS << 8 | _END_HEADERS).to_bytes(5, "big"))
            out.append(stream_bytes)
            out.append(block)
            out.append(field)
        else:
            self._send_long_block(stream_id, block + field)
        size = len(start)
        for part in body:
            size += len(part)
        if size <= _FRAME_BYTES and size <= stream.window and size <= self._window:
            stream.window -= size
            self._window -= size
            out.append((size << 16 | _DATA << 8 | _END_STREAM).to_bytes(5, "big"))
            out.append(stream_bytes)
            out.append(start)
            out.extend(body)
            return stream_id
        stream.pending = [memoryview(part) for part in (start, *body) if part]
        stream.size = size
        self._queued += size
        self._waiting[stream_id] = stream
        return stream_id

    def _send_long_block(self, stream_id: int, block: bytes) -> None:
        kind = _HEADERS
        for start in range(0, len(block), _FRAME_BYTES):
            part = block[start : start + _FRAME_BYTES]
            flags = _END_HEADERS if start + _FRAME_BYTES >= len(block) else 0
            self._requests.append(_frame_head(len(part), kind, flags, stream_id))
            self._requests.append(part)
            kind = _CONTINUATION

    def queued_body_size(self, stream_id: int = 0) -> int:
        """Bytes of request bodies that wait for the peer's windows, or their turn: of one stream, or of all (0)."""
        if not stream_id:
            return self._queued
        stream = self._waiting.get(stream_id)
        return 0 if stream is None else stream.size

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """Ends a stream, if it is not over: nothing is told of it any more but its end."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._reset(stream, error_code, "")

    def ping(self) -> None:
        """Asks for a sign of life."""
        self._out.append(_frame_head(8, _PING, 0, 0) + bytes(8))

    def send_goaway(self, error_code: int, *, debug_data: bytes) -> None:
        """Says good-bye: nothing is sent after it. (No streams of the peer were taken: the last one is 0.)"""
        if not self._over:
            self._over = True
            self._out.append(goaway_frame(0, error_code, debug_data))

    def data_to_send(self, amount: int) -> bytes:
        """What is to be sent now: all frames that are ready, then large bodies, up to some `amount` of bytes."""
        return b"".join(self.pieces_to_send(amount))

    def pieces_to_send(self, amount: int) -> list[bytes | memoryview]:
        """The same in pieces, so that whoever writes them one after the other need not copy large bodies."""
        if self._waiting and not self._over:
            self._frame_bodies(amount)
        self._acks = 0
        self._sent_id = self._next_id - 2
        out = self._out
        if self._requests:
            out = out + self._requests if out else self._requests
            self._requests = []
        if out:
            self._out = []
        return out

    def _frame_bodies(self, amount: int) -> None:
        """Puts bodies into frames, up to some `amount` of bytes: the oldest first, as far as the windows allow.

        In turn they would all be complete as late as the last one, and the peer would have to hold them all.
        """
        for stream in list(self._waiting.values()):
            while stream.size:
                size = min(stream.size, _FRAME_BYTES, self._window, stream.window)
                if size <= 0:
                    break
                if amount <= 0:
                    return
                amount -= size
                self._frame_body(stream, size)
            else:
                del self._waiting[stream.id]
                if stream.ended:
                    self._close(stream, _NO_ERROR)

    def _frame_body(self, stream: _Stream, size: int) -> None:
        stream.size -= size
        stream.window -= size
        self._window -= size
        self._queued -= size
        flags = 0 if stream.size else _END_STREAM
        out = self._requests
        out.append(_frame_head(size, _DATA, flags, stream.id))
        while size:
            part = stream.pending[0]
            if len(part) <= size:
                del stream.pending[0]
            else:
                stream.pending[0] = part[size:]
                part = part[:size]
            size -= len(part)
            out.append(part)

    @property
    def want_write(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._out) or bool(self._requests) or (bool(self._waiting) and self._window > 0)

    @property
    def want_read(self) -> bool:
        """Whether anything that comes is still of use."""
        return not self._over

    # -- in ------------------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """What has happened since the last time, in order."""
        events = self._events
        if events:
            self._events = []
        return events

    def receive_data(self, received: bytes | memoryview) -> None:
        """Takes bytes of the peer, in any pieces.

        Raises ConnectionProtocolError, or DenialOfServiceError, its kind for what is too much: the connection must
        be closed.
        """
        if self._over:
            return
        data = received if isinstance(received, bytes) else bytes(received)
        at = self._complete(data) if self._in else 0
        if at < len(data):
            at = self._receive_frames(data, at)
            self._in = data[at:]

    def _complete(self, data: bytes) -> int:
        """Adds to the frame that has begun what it lacks, and takes it when it is whole. Returns how much that was.

        What follows it is read where it stands: of a large answer not every byte is copied.
        """
        frame = self._in
        used = 0
        if len(frame) < _FRAME_HEAD:
            used = min(_FRAME_HEAD - len(frame), len(data))
            frame += data[:used]
        if len(frame) >= _FRAME_HEAD:
            lacks = _FRAME_HEAD + _length_at(frame, 0) - len(frame)
            frame += data[used : used + lacks]
            used = min(used + lacks, len(data))
        self._in = frame[self._receive_frames(frame, 0) :]
        return used

    def _receive_frames(self, data: bytes, at: int) -> int:
        """Takes the frames that are complete, from `at` on. Returns where they end."""
        size = len(data)
        while size - at >= _FRAME_HEAD:
            length = _length_at(data, at)
            kind = data[at + 3]
            flags = data[at + 4]
            if length > _FRAME_BYTES or not self._settled:
                self._check_first(kind, flags, length)
            start = at + _FRAME_HEAD
            end = start + length
            if end > size:
                break
            stream_id = _stream_at(data, at)
            after = 0
            if kind == _HEADERS and flags == _END_HEADERS and not self._block_stream:
                after = self._receive_answer(stream_id, data, start, end)
            if not after:
                self._receive(kind, flags, stream_id, data, start, end)
                after = end
            at = after
        return at

    def _receive_answer(self, stream_id: int, data: bytes, start: int, end: int) -> int:
        """Takes the response whose head is `data[start:end]`, if it is a plain one and has come whole.

        Returns where it ends; 0 if it was not taken: then nothing has happened yet, and its frames are taken one by
        one. Whatever is unusual is left to them.
        """
        stream = self._streams.get(stream_id)
        head = self._decoder.known(data[start:end])
        if stream is None or stream.answering or stream.size or head is None or head is not self._good_head:
            return 0
        body = end + _FRAME_HEAD
        if body > len(data) or data[end + 3] != _DATA or data[end + 4] or _stream_at(data, end) != stream_id:
            return 0
        size = _length_at(data, end)
        last = body + size
        block = last + _FRAME_HEAD
        if (
            block > len(data)
            or data[last + 3] != _HEADERS
            or data[last + 4] != _END_HEADERS | _END_STREAM
            or _stream_at(data, last) != stream_id
        ):
            return 0
        after = block + _length_at(data, last)
        taken = self._consumed + size
        if (
            after > len(data)
            or size > _FRAME_BYTES
            or after - block > _FRAME_BYTES
            or taken * 2 > self._connection_window
            or size * 2 > self._stream_window
        ):
            return 0
        self._consumed = taken
        trailers = self._decoder.decode(data[block:after])
        self._events.append(Answer(stream_id, head, data, body, last, trailers))
        del self._streams[stream_id]
        if self._goaway is not None:
            self._finish_if_left()
        return after

    def _check_first(self, kind: int, flags: int, length: int) -> None:
        """Refuses what comes instead of the peer's SETTINGS (section 3.4), and frames that are too long."""
        if not self._settled and (kind != _SETTINGS or flags & _ACK):
            raise ConnectionProtocolError("the peer does not speak HTTP/2: its first frame is not SETTINGS")
        if length > _FRAME_BYTES:
            raise ConnectionProtocolError(f"frame of {length} bytes, at most {_FRAME_BYTES}")

    def _receive(self, kind: int, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if self._block_stream and (kind != _CONTINUATION or stream_id != self._block_stream):
            raise ConnectionProtocolError(
                f"frame of type {kind} within the header block of stream {self._block_stream}"
            )
        if kind == _DATA:
            self._on_data(flags, stream_id, data, start, end)
        elif kind == _HEADERS:
            self._on_headers(flags, stream_id, data, start, end)
        elif kind == _WINDOW_UPDATE:
            self._on_window_update(stream_id, data[start:end])
        elif kind == _PING:
            self._on_ping(flags, stream_id, data[start:end])
        elif kind == _CONTINUATION:
            self._on_continuation(flags, data[start:end])
        elif kind == _RST_STREAM:
            self._on_reset(stream_id, data[start:end])
        elif kind == _SETTINGS:
            self._on_settings(flags, stream_id, data[start:end])
        elif kind == _GOAWAY:
            self._on_goaway(stream_id, data[start:end])
        elif kind == _PUSH_PROMISE:
            raise ConnectionProtocolError("PUSH_PROMISE, although push is disabled")
        else:
            self._events.append(_NOTED)  # PRIORITY, and types that are not known (section 5.5)

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        size = end - start
        self._consumed += size
        if self._consumed > self._connection_window:
            raise ConnectionProtocolError(
                f"more DATA than the connection's window of {self._connection_window} bytes"
            )
        if self._consumed * 2 > self._connection_window:
            self._out.append(_window_update(0, self._consumed))
            self._consumed = 0
        if flags & _PADDED:
            start, end = _unpadded(data, start, end)
        stream = self._stream(stream_id)
        if stream is None:
            return
        if stream.ended or not stream.answering:
            self._fail(stream, "DATA after the end" if stream.ended else "DATA before HEADERS")
            return
        last = flags & _END_STREAM != 0
        if not last:
            stream.consumed += size
            if stream.consumed > self._stream_window:
                self._fail(stream, f"more DATA than its window of {self._stream_window} bytes")
                return
            if stream.consumed * 2 > self._stream_window:
                self._out.append(_window_update(stream_id, stream.consumed))
                stream.consumed = 0
        piece = data[start:end] if end - start < _VIEW_FROM else memoryview(data)[start:end]
        self._events.append(Data(stream_id, piece, last))
        if last:
            self._on_end(stream)

    def _on_headers(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if flags & _PADDED:
            start, end = _unpadded(data, start, end)
        if flags & _PRIORITY:
            start += 5
            if start > end:
                raise ConnectionProtocolError("HEADERS: the frame is too short for its priority")
        if flags & _END_HEADERS:
            self._on_block(stream_id, data[start:end], flags & _END_STREAM != 0)
        else:
            if not stream_id:
                raise ConnectionProtocolError("HEADERS on stream 0")
            self._block_stream = stream_id
            self._block_ends = flags & _END_STREAM != 0
            self._block = [data[start:end]]

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if not self._block_stream:
            raise ConnectionProtocolError("CONTINUATION without HEADERS before it")
        self._block.append(payload)
        if len(self._block) > _MAX_CONTINUATIONS or sum(map(len, self._block)) > 2 * self._max_header_bytes:
            raise DenialOfServiceError("too many CONTINUATION frames")
        if flags & _END_HEADERS:
            stream_id, self._block_stream = self._block_stream, 0
            block, self._block = b"".join(self._block), []
            self._on_block(stream_id, block, self._block_ends)

    def _on_block(self, stream_id: int, block: bytes, last: bool) -> None:
        headers = self._decoder.decode(block)  # whatever becomes of the stream: blocks build on one another
        stream = self._stream(stream_id)
        if stream is None:
            return
        if stream.ended:
            self._fail(stream, "HEADERS after the end")
        elif stream.answering:
            if last:
                self._events.append(Trailers(stream_id, headers))
                self._on_end(stream)
            else:
                self._fail(stream, "a second header block that does not end it")
        else:
            status = headers[0][1] if headers and headers[0][0] == b":status" else b""
            if len(status) != 3 or not status.isdigit() or (status[0] == 0x31 and last):
                self._fail(stream, f"HEADERS with the status {status[:16]!r}")
            elif status[0] == 0x31:  # 1xx: the response is still to come
                self._events.append(_NOTED)
            else:
                stream.answering = True
                self._events.append(Head(stream_id, headers, last))
                if last:
                    self._on_end(stream)
                else:
                    self._good_head = headers

    def _on_end(self, stream: _Stream) -> None:
        """The response is complete."""
        if stream.size:
            stream.ended = True  # and the request is not: its user decides
        else:
            self._close(stream, _NO_ERROR)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionProtocolError(f"RST_STREAM of {len(payload)} bytes, must be 4")
        stream = self._stream(stream_id)
        if stream is not None:
            self._close(stream, int.from_bytes(payload, "big"))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & _ACK and payload):
            raise ConnectionProtocolError(f"SETTINGS of {len(payload)} bytes on stream {stream_id}")
        if flags & _ACK:
            self._events.append(_NOTED)
            return
        for at in range(0, len(payload), 6):
            self._apply(
                int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            )
        self._settled = True
        self._acknowledge(_frame_head(0, _SETTINGS, _ACK, 0))
        self._events.append(_SETTINGS_CHANGED)

    def _apply(self, setting: int, value: int) -> None:
        """Takes one of the peer's settings (section 6.5.2); those that are not known are ignored."""
        if setting == Setting.HEADER_TABLE_SIZE:
            self._encoder.resize(value)
        elif setting == Setting.ENABLE_PUSH:
            if value:
                raise ConnectionProtocolError(f"SETTINGS: a server's ENABLE_PUSH is {value}, must be 0")
        elif setting == Setting.MAX_CONCURRENT_STREAMS:
            self.max_streams = value
        elif setting == Setting.INITIAL_WINDOW_SIZE:
            if value > _MAX_WINDOW:
                raise ConnectionProtocolError(
                    f"SETTINGS: INITIAL_WINDOW_SIZE is {value}, at most {_MAX_WINDOW}"
                )
            for stream in self._streams.values():
                stream.window += value - self._initial_window
                if stream.window > _MAX_WINDOW:
                    raise ConnectionProtocolError(
                        f"the window of stream {stream.id} is over {_MAX_WINDOW} bytes"
                    )
            self._initial_window = value
        elif setting == Setting.MAX_FRAME_SIZE and not _FRAME_BYTES <= value < 1 << 24:
            raise ConnectionProtocolError(
                f"SETTINGS: MAX_FRAME_SIZE is {value}, must be from 16384 to 16777215"
            )

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            raise ConnectionProtocolError(f"PING of {len(payload)} bytes on stream {stream_id}")
        if not flags & _ACK:
            self._acknowledge(_frame_head(8, _PING, _ACK, 0) + payload)
        self._events.append(_NOTED)

    def _acknowledge(self, frame: bytes) -> None:
        self._acks += 1
        if self._acks > _MAX_UNSENT_ACKS:
            raise DenialOfServiceError(f"more than {_MAX_UNSENT_ACKS} frames to acknowledge")
        self._out.append(frame)

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) < 8:
            raise ConnectionProtocolError(f"GOAWAY of {len(payload)} bytes on stream {stream_id}")
        last_id = int.from_bytes(payload[:4], "big") & MAX_STREAM_ID
        event = self._goaway = Leaving(int.from_bytes(payload[4:8], "big"), payload[8:])
        self._events.append(event)
        # What has not been sent must not be any more, and can go somewhere else.
        last_id = min(last_id, self._sent_id)
        self._requests.clear()
        for stream in list(self._streams.values()):
            if stream.id > last_id:
                self._close(stream, _REFUSED_STREAM)
        self._finish_if_left()

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionProtocolError(f"WINDOW_UPDATE of {len(payload)} bytes, must be 4")
        more = int.from_bytes(payload, "big") & _MAX_WINDOW
        self._events.append(_NOTED)
        if stream_id:
            stream = self._stream(stream_id)
            if stream is not None:
                stream.window += more
                if not more or stream.window > _MAX_WINDOW:
                    self._fail(stream, f"WINDOW_UPDATE by {more}: its window is {stream.window} bytes")
            return
        self._window += more
        if not more or self._window > _MAX_WINDOW:
            raise ConnectionProtocolError(
                f"WINDOW_UPDATE by {more}: the connection's window is {self._window} bytes"
            )

    # -- streams -------------------------------------------------------------------------------------------

    def _stream(self, stream_id: int) -> _Stream | None:
        """The stream; None for one that is over: what was on its way is ignored (section 5.1)."""
        stream = self._streams.get(stream_id)
        if stream is None:
            if not stream_id & 1 or stream_id >= self._next_id:
                raise ConnectionProtocolError(f"a frame on stream {stream_id}, which has never been opened")
            self._events.append(_NOTED)
        return stream

    def _fail(self, stream: _Stream, problem: str) -> None:
        """Ends a stream for a mistake of the peer (section 5.4.2)."""
        self._reset(stream, _PROTOCOL_ERROR, problem)

    def _reset(self, stream: _Stream, error_code: int, problem: str) -> None:
        frame = _frame_head(4, _RST_STREAM, 0, stream.id) + error_code.to_bytes(4, "big")
        if stream.id > self._sent_id:
            self._requests.append(frame)
        else:
            self._out.append(frame)
        self._close(stream, error_code, problem)

    def _close(self, stream: _Stream, error_code: int, problem: str = "") -> None:
        del self._streams[stream.id]
        if stream.size:
            self._queued -= stream.size
            stream.size = 0
            self._waiting.pop(stream.id, None)
        self._events.append(StreamEnd(stream.id, error_code, problem))
        if self._goaway is not None:
            self._finish_if_left()

    def _finish_if_left(self) -> None:
        goaway = self._goaway
        if goaway is not None and not self._streams and not self._over:
            self._over = True
            self._events.append(Finished(goaway.error_code, goaway.debug_data))

    def __repr__(self) -> str:
        state = (
            "over" if self._over else "open" if self._goaway is None else error_name(self._goaway.error_code)
        )
        return f"<ClientCodec {state}, {len(self._streams)} streams, {self._queued} bytes of bodies queued>"


def _frame_head(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    return (size << 16 | kind << 8 | flags).to_bytes(5, "big") + stream_id.to_bytes(4, "big")


def _length_at(data: bytes, at: int) -> int:
    """The length of the frame whose head begins there (section 4.1)."""
    return data[at] << 16 | data[at + 1] << 8 | data[at + 2]


def _stream_at(data: bytes, at: int) -> int:
    """The stream of the frame whose head begins there."""
    return (data[at + 5] & 0x7F) << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]


def _window_update(stream_id: int, more: int) -> bytes:
    return _frame_head(4, _WINDOW_UPDATE, 0, stream_id) + more.to_bytes(4, "big")


def _settings(values: Sequence[tuple[int, int]]) -> bytes:
    payload = b"".join([name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values])
    return _frame_head(len(payload), _SETTINGS, 0, 0) + payload


def _unpadded(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of a padded frame is (section 6.1)."""
    if start == end or data[start] >= end - start:
        raise ConnectionProtocolError("padding is longer than its frame")
    return start + 1, end - data[start]
