"""An HTTP/2 connection as bytes: what the codecs of both ends share. Section numbers are those of RFC 9113.

Owns frames, header blocks, windows, and the bodies that wait for them. Bytes go in by `receive_data`, events come
out of `events`, bytes to send out of `data_to_send`. It keeps no clock, knows no gRPC and calls nobody. Priorities
are ignored, and nothing is pushed.

Calls are alike, so nearly all frames are of one kind: a header block that was seen before, a message in one frame.
So both ends look blocks up whole and make a call's frames in one piece. A general codec, with an object for each
frame and each header, took more than all the rest of a call.

What a peer does wrong with a stream costs that stream; what makes the rest of the connection doubtful is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rpc.hpack import Decoder, Encoder
from rpc.http2 import (
    MAX_STREAM_ID,
    ConnectionProtocolError,
    DenialOfServiceError,
    ErrorCode,
    Header,
    error_name,
)

__all__ = [
    "CONTROL",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "FRAME_BYTES",
    "FRAME_HEAD",
    "GOAWAY",
    "HEADERS",
    "NOTED",
    "PING",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW",
    "Codec",
    "Control",
    "Data",
    "Event",
    "Finished",
    "Leaving",
    "Noted",
    "PingAnswered",
    "SettingsChanged",
    "Stream",
    "StreamEnd",
    "Trailers",
    "WindowUpdated",
    "frame_head",
    "goaway_frame",
    "headers_frame",
    "length_at",
    "settings_frame",
    "stream_at",
    "unpadded",
    "window_update",
]

DATA: Final = 0
HEADERS: Final = 1
_PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
_PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
_WINDOW_UPDATE: Final = 8
_CONTINUATION: Final = 9

END_STREAM: Final = 0x1
_ACK: Final = 0x1
END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_WITH_PRIORITY: Final = 0x20

FRAME_HEAD: Final = 9
FRAME_BYTES: Final = 16_384  # payload of a frame that both sides take, whatever SETTINGS say (section 4.2)
WINDOW: Final = 65_535  # the initial window (section 6.9.2)
_MAX_WINDOW: Final = 2**31 - 1
_MAX_CONTINUATIONS: Final = 64

# As numbers of their own: members of an enum are slow to look up.
_NO_ERROR: Final = 0x0
_PROTOCOL_ERROR: Final = 0x1
_HEADER_TABLE_SIZE: Final = 0x1
_INITIAL_WINDOW_SIZE: Final = 0x4
_MAX_FRAME_SIZE: Final = 0x5
_MAX_SETTINGS: Final = 32  # in a frame; there are not that many


# -- events ------------------------------------------------------------------------------------------------


class Event:
    """Something that a peer has sent, or what has become of a stream."""

    __slots__ = ()


class Noted(Event):
    """A frame that changes nothing for a caller."""

    __slots__ = ()


class Control(Noted):
    """A frame that nobody needs many of: PING, SETTINGS' acknowledgement, PRIORITY, a type that is not known."""

    __slots__ = ()


class WindowUpdated(Noted):
    """The peer takes more."""

    __slots__ = ()


class Data(Event):
    """A piece of a body, without padding; to a client a large one is a view of what was received."""

    __slots__ = ("data", "end_stream", "stream_id")

    def __init__(self, stream_id: int, data: bytes | memoryview, end_stream: bool) -> None:
        self.stream_id = stream_id
        self.data = data
        self.end_stream = end_stream


class Trailers(Event):
    """The last header block of a stream, after its body."""

    __slots__ = ("headers", "stream_id")

    def __init__(self, stream_id: int, headers: tuple[Header, ...]) -> None:
        self.stream_id = stream_id
        self.headers = headers


class StreamEnd(Event):
    """A stream is closed: both sides have ended it (code 0), or one has reset it, with this code."""

    __slots__ = ("error_code", "problem", "stream_id")

    def __init__(self, stream_id: int, error_code: int, problem: str) -> None:
        self.stream_id = stream_id
        self.error_code = error_code
        self.problem = problem
        """What was wrong with what the peer sent; empty if it was not the codec that reset the stream."""


class SettingsChanged(Event):
    """The peer's SETTINGS have come; they hold from now on."""

    __slots__ = ()


class PingAnswered(Event):
    """The peer has answered a ping with this payload."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload


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


NOTED: Final = Noted()
CONTROL: Final = Control()
_WINDOW_UPDATED: Final = WindowUpdated()
_SETTINGS_CHANGED: Final = SettingsChanged()


# -- frames ------------------------------------------------------------------------------------------------


def frame_head(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    """What a frame starts with (section 4.1); `size` is that of its payload."""
    return (size << 16 | kind << 8 | flags).to_bytes(5, "big") + stream_id.to_bytes(4, "big")


def headers_frame(block: bytes, flags: int, stream_id: int) -> bytes:
    """A header block as HEADERS, and CONTINUATION if it is too long for one frame (section 4.3)."""
    if len(block) <= FRAME_BYTES:
        return frame_head(len(block), HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [frame_head(FRAME_BYTES, HEADERS, flags, stream_id), block[:FRAME_BYTES]]
    for start in range(FRAME_BYTES, len(block), FRAME_BYTES):
        part = block[start : start + FRAME_BYTES]
        last = END_HEADERS if start + FRAME_BYTES >= len(block) else 0
        parts.append(frame_head(len(part), _CONTINUATION, last, stream_id))
        parts.append(part)
    return b"".join(parts)


def goaway_frame(last_stream_id: int, code: int, reason: bytes) -> bytes:
    """A whole GOAWAY frame (section 6.8)."""
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + reason
    return frame_head(len(payload), GOAWAY, 0, 0) + payload


def window_update(stream_id: int, more: int) -> bytes:
    """A whole WINDOW_UPDATE frame (section 6.9)."""
    return frame_head(4, _WINDOW_UPDATE, 0, stream_id) + more.to_bytes(4, "big")


def settings_frame(values: Sequence[tuple[int, int]]) -> bytes:
    """A whole SETTINGS frame (section 6.5)."""
    payload = b"".join([name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values])
    return frame_head(len(payload), SETTINGS, 0, 0) + payload


def unpadded(flags: int, data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of a frame is, without padding if it has any (section 6.1)."""
    if not flags & _PADDED:
        return start, end
    if start == end or data[start] >= end - start:
        raise ConnectionProtocolError("padding is longer than its frame")
    return start + 1, end - data[start]


def length_at(data: bytes, at: int) -> int:
    """The length of the frame whose head begins there (section 4.1)."""
    return data[at] << 16 | data[at + 1] << 8 | data[at + 2]


def stream_at(data: bytes, at: int) -> int:
    """The stream of the frame whose head begins there."""
    return (data[at + 5] & 0x7F) << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]


def _wrong_size(kind: str, size: int, right: str) -> ConnectionProtocolError:
    return ConnectionProtocolError(f"{kind} of {size} bytes, must be {right}", ErrorCode.FRAME_SIZE_ERROR)


# -- codec -------------------------------------------------------------------------------------------------


class Stream:
    """A stream that is not closed."""

    __slots__ = (
        "answering",
        "consumed",
        "done",
        "ended",
        "id",
        "left",
        "pending",
        "size",
        "trailers",
        "window",
    )

    def __init__(self, stream_id: int, window: int) -> None:
        self.id = stream_id
        self.window = window  # bytes that the peer takes
        self.pending: list[memoryview] = []  # of our body, not in frames yet
        self.size = 0  # bytes of those
        self.trailers: tuple[Header, ...] = ()  # what comes after the body
        self.done = False  # our side has ended, or does so with what is pending
        self.answering = False  # the head of the peer's response has come
        self.ended = False  # the peer has ended its side
        self.consumed = 0  # bytes of the peer's body that it has not been given back
        self.left = -1  # bytes of it that are to come; -1 = unknown


class Codec:
    """One connection. Subclasses are the two ends: they know how streams begin and what may come on them."""

    def __init__(
        self,
        *,
        max_header_bytes: int,
        max_header_fields: int,
        stream_window: int,
        connection_window: int,
        max_acks: int,
    ) -> None:
        """`max_header_bytes` and `max_header_fields` (0 = any) bound a decoded header block, as `Decoder` counts.

        Windows are in bytes. `max_acks` bounds the acknowledgements that the peer asks for and does not take.
        """
        self.cut = False
        """Whether the last `data_to_send` has left out what could have been sent."""
        self._queued = 0  # bytes of bodies that are not in frames yet
        self._decoder = Decoder(max_header_bytes, max_header_fields)
        self._encoder = Encoder()
        self._max_header_bytes = max_header_bytes
        self._stream_window = stream_window
        self._connection_window = connection_window
        self._consumed = 0  # as in a stream
        self._window = WINDOW  # bytes that the peer takes on all streams
        self._initial_window = WINDOW  # of a stream
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[int, Stream] = {}  # those with a body to send
        self._sent_id = 0  # what concerns streams up to this one is not to be taken back
        self._settled = False  # the peer's SETTINGS have come
        self._unanswered = 1  # SETTINGS of ours that the peer has not acknowledged
        self._goaway: Leaving | None = None
        self._over = False
        self._in = b""  # a frame that is not complete
        self._block: list[bytes] = []  # a header block that is not
        self._block_stream = 0  # whose; 0 = there is none
        self._block_ends = False  # whether it ends the stream
        self._acks = 0  # acknowledgements that are not sent
        self._max_acks = max_acks
        self._out: list[bytes | memoryview] = []
        # As `_out`, which goes before it: headers and bodies.
        self._traffic: list[bytes | memoryview] = []
        self._events: list[Event] = []

    # -- for the two ends ----------------------------------------------------------------------------------

    def _is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened this stream, so that nothing may come for it."""
        raise NotImplementedError

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        raise NotImplementedError

    def _on_block(self, stream_id: int, block: bytes, last: bool) -> None:
        """A header block is complete."""
        raise NotImplementedError

    def _apply(self, setting: int, value: int) -> None:
        """Takes a setting whose meaning differs; those that are not known are ignored."""
        raise NotImplementedError

    def _left(self, last_id: int) -> None:
        """The peer has said GOAWAY: it has taken our streams up to this one."""
        raise NotImplementedError

    def _last_taken(self) -> int:
        """The last stream of the peer that was taken."""
        raise NotImplementedError

    def _tell_end(self, stream: Stream, error_code: int, problem: str) -> None:
        """Adds the event that a stream is closed, if it is news."""
        raise NotImplementedError

    # -- out -----------------------------------------------------------------------------------------------

    def queued_body_size(self, stream_id: int = 0) -> int:
        """Bytes of bodies that wait for the peer's windows, or their turn: of one stream, or of all (0)."""
        if not stream_id:
            return self._queued
        stream = self._waiting.get(stream_id)
        return 0 if stream is None else stream.size

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """Ends a stream, if it is not over: nothing is told of it any more but its end."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._reset(stream, error_code, "")

    def ping(self, payload: bytes = bytes(8)) -> None:
        """Asks for a sign of life, with 8 bytes that come back."""
        self._out.append(frame_head(8, PING, 0, 0) + payload)

    def send_goaway(self, error_code: int, *, debug_data: bytes) -> None:
        """Says good-bye: what is in frames already follows, and nothing after that."""
        if not self._over:
            self._over = True
            self._out.append(goaway_frame(self._last_taken(), error_code, debug_data))

    def data_to_send(self, amount: int) -> bytes:
        """What is to be sent now: all frames that are ready, and of large bodies up to `amount` bytes."""
        return b"".join(self.pieces_to_send(amount))

    def pieces_to_send(self, amount: int) -> list[bytes | memoryview]:
        """The same in pieces, so that whoever writes them one after the other need not copy large bodies."""
        self.cut = False
        if self._waiting and not self._over:
            self._frame_bodies(amount)
        self._acks = 0
        out = self._out
        if self._traffic:
            out = out + self._traffic if out else self._traffic
            self._traffic = []
        if out:
            self._out = []
        return out

    def _queue(self, stream: Stream, body: Sequence[bytes]) -> None:
        """Has a body sent as the windows allow."""
        size = 0
        for part in body:
            stream.pending.append(memoryview(part))
            size += len(part)
        stream.size += size
        self._queued += size
        self._waiting[stream.id] = stream

    def _frame_bodies(self, amount: int) -> None:
        """Puts bodies into frames, up to `amount` bytes: the oldest first, as far as the windows allow.

        In turn they would all be complete as late as the last one, and the peer would have to hold them all.
        """
        room = amount
        for stream in list(self._waiting.values()):
            while stream.size:
                size = min(stream.size, FRAME_BYTES, self._window, stream.window)
                if size <= 0:
                    break
                if room < size + FRAME_HEAD and room != amount:  # one frame goes in any case
                    self.cut = True
                    return
                room -= size + FRAME_HEAD
                self._frame_body(stream, size)
            else:
                del self._waiting[stream.id]
                if stream.trailers:
                    block = self._encoder.encode(stream.trailers)
                    self._traffic.append(headers_frame(block, END_STREAM, stream.id))
                if stream.done and stream.ended:
                    self._close(stream, _NO_ERROR)

    def _frame_body(self, stream: Stream, size: int) -> None:
        stream.size -= size
        stream.window -= size
        self._window -= size
        self._queued -= size
        last = stream.done and not stream.size and not stream.trailers
        out = self._traffic
        out.append(frame_head(size, DATA, END_STREAM if last else 0, stream.id))
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
        return bool(self._out) or bool(self._traffic) or (bool(self._waiting) and self._window > 0)

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

    @property
    def in_data(self) -> bool:
        """Whether a DATA frame has begun to come, and it is not complete."""
        return len(self._in) >= FRAME_HEAD and self._in[3] == DATA

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

        What follows it is read where it stands: of a large message not every byte is copied.
        """
        frame = self._in
        used = 0
        if len(frame) < FRAME_HEAD:
            used = min(FRAME_HEAD - len(frame), len(data))
            frame += data[:used]
        if len(frame) >= FRAME_HEAD:
            lacks = FRAME_HEAD + length_at(frame, 0) - len(frame)
            frame += data[used : used + lacks]
            used = min(used + lacks, len(data))
        self._in = frame[self._receive_frames(frame, 0) :]
        return used

    def _receive_frames(self, data: bytes, at: int) -> int:
        """Takes the frames that are complete, from `at` on. Returns where they end."""
        size = len(data)
        while size - at >= FRAME_HEAD:
            length = length_at(data, at)
            kind = data[at + 3]
            flags = data[at + 4]
            if length > FRAME_BYTES or not self._settled:
                self._check_first(kind, flags, length)
            start = at + FRAME_HEAD
            end = start + length
            if end > size:
                break
            stream_id = stream_at(data, at)
            after = 0
            if kind == HEADERS and flags == END_HEADERS and not self._block_stream:
                after = self._receive_whole(stream_id, data, start, end)
            if not after:
                self._receive(kind, flags, stream_id, data, start, end)
                after = end
            at = after
        return at

    def _receive_whole(self, stream_id: int, data: bytes, start: int, end: int) -> int:
        """Takes the message whose header block is `data[start:end]`, if it is a plain one and has come whole.

        Returns where it ends; 0 if it was not taken: then nothing has happened yet, and its frames are taken one by
        one. Whatever is unusual is left to them.
        """
        raise NotImplementedError

    def _check_first(self, kind: int, flags: int, length: int) -> None:
        """Refuses what comes instead of the peer's SETTINGS (section 3.4), and frames that are too long."""
        if not self._settled and (kind != SETTINGS or flags & _ACK):
            raise ConnectionProtocolError("the peer does not speak HTTP/2: its first frame is not SETTINGS")
        if length > FRAME_BYTES:
            raise ConnectionProtocolError(
                f"frame of {length} bytes, at most {FRAME_BYTES}", ErrorCode.FRAME_SIZE_ERROR
            )

    def _receive(self, kind: int, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if self._block_stream and (kind != _CONTINUATION or stream_id != self._block_stream):
            raise ConnectionProtocolError(
                f"frame of type {kind} within the header block of stream {self._block_stream}"
            )
        if kind == DATA:
            self._take(flags, stream_id, data, start, end)
        elif kind == HEADERS:
            self._on_headers(flags, stream_id, data, start, end)
        elif kind == _WINDOW_UPDATE:
            self._on_window_update(stream_id, data[start:end])
        elif kind == PING:
            self._on_ping(flags, stream_id, data[start:end])
        elif kind == _CONTINUATION:
            self._on_continuation(flags, data[start:end])
        elif kind == RST_STREAM:
            self._on_reset(stream_id, data[start:end])
        elif kind == SETTINGS:
            self._on_settings(flags, stream_id, data[start:end])
        elif kind == GOAWAY:
            self._on_goaway(stream_id, data[start:end])
        elif kind == _PRIORITY:
            self._on_priority(stream_id, data[start:end])
        elif kind == _PUSH_PROMISE:
            raise ConnectionProtocolError("PUSH_PROMISE, although push is disabled")
        else:
            self._events.append(CONTROL)  # types that are not known are ignored (section 5.5)

    def _take(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        """DATA takes from the connection's window, whatever becomes of its stream (section 6.9)."""
        self._consumed += end - start
        if self._consumed > self._connection_window:
            raise ConnectionProtocolError(
                f"more DATA than the connection's window of {self._connection_window} bytes",
                ErrorCode.FLOW_CONTROL_ERROR,
            )
        if self._consumed * 2 > self._connection_window:
            self._out.append(window_update(0, self._consumed))
            self._consumed = 0
        self._on_data(flags, stream_id, data, start, end)

    def _take_of(self, stream: Stream, size: int, last: bool) -> bool:
        """Takes so many bytes from a stream's window. Returns False if they are too many: it is reset."""
        stream.consumed += size
        if stream.consumed > self._stream_window:
            self._fail(
                stream,
                f"more DATA than its window of {self._stream_window} bytes",
                ErrorCode.FLOW_CONTROL_ERROR,
            )
            return False
        if not last and stream.consumed * 2 > self._stream_window:
            self._out.append(window_update(stream.id, stream.consumed))
            stream.consumed = 0
        return True

    def _on_headers(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        start, end = unpadded(flags, data, start, end)
        if flags & _WITH_PRIORITY:
            start += 5
            if start > end:
                raise ConnectionProtocolError(
                    "HEADERS: the frame is too short for its priority", ErrorCode.FRAME_SIZE_ERROR
                )
            _check_dependency(stream_id, data[start - 5 : start])
        if flags & END_HEADERS:
            self._on_block(stream_id, data[start:end], flags & END_STREAM != 0)
        else:
            if not stream_id:
                raise ConnectionProtocolError("HEADERS on stream 0")
            self._block_stream = stream_id
            self._block_ends = flags & END_STREAM != 0
            self._block = [data[start:end]]

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if not self._block_stream:
            raise ConnectionProtocolError("CONTINUATION without HEADERS before it")
        self._block.append(payload)
        if len(self._block) > _MAX_CONTINUATIONS or sum(map(len, self._block)) > 2 * self._max_header_bytes:
            raise DenialOfServiceError("too many CONTINUATION frames", "header_bytes")
        if flags & END_HEADERS:
            stream_id, self._block_stream = self._block_stream, 0
            block, self._block = b"".join(self._block), []
            self._on_block(stream_id, block, self._block_ends)

    def _on_end(self, stream: Stream) -> None:
        """The peer has ended its side of a stream."""
        stream.ended = True
        if stream.done and stream.id not in self._waiting:
            self._close(stream, _NO_ERROR)

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        """Priorities are ignored, but for what is no priority (RFC 7540 section 5.3)."""
        if not stream_id:
            raise ConnectionProtocolError("PRIORITY on stream 0")
        if len(payload) != 5:
            raise _wrong_size("PRIORITY", len(payload), "5")
        _check_dependency(stream_id, payload)
        self._events.append(CONTROL)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _wrong_size("RST_STREAM", len(payload), "4")
        stream = self._stream(stream_id)
        if stream is not None:
            self._close(stream, int.from_bytes(payload, "big"))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionProtocolError(f"SETTINGS of {len(payload)} bytes on stream {stream_id}")
        if flags & _ACK:
            if payload:
                raise _wrong_size("SETTINGS", len(payload), "0 with ACK")
            if not self._unanswered:
                raise ConnectionProtocolError("SETTINGS with ACK, and there were none to acknowledge")
            self._unanswered -= 1
            self._events.append(NOTED)
            return
        if len(payload) % 6:
            raise _wrong_size("SETTINGS", len(payload), "a multiple of 6")
        if len(payload) > 6 * _MAX_SETTINGS:
            raise DenialOfServiceError(
                f"SETTINGS of {len(payload)} bytes, at most {6 * _MAX_SETTINGS}", "control_frames"
            )
        self._commit()
        for at in range(0, len(payload), 6):
            self._set(
                int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            )
        self._settled = True
        self._acknowledge(frame_head(0, SETTINGS, _ACK, 0))
        self._events.append(_SETTINGS_CHANGED)

    def _commit(self) -> None:
        """Frames that were made under the settings until now leave ahead of the acknowledgement of others."""
        self._out += self._traffic
        self._traffic = []

    def _set(self, setting: int, value: int) -> None:
        """Takes one of the peer's settings (section 6.5.2)."""
        if setting == _HEADER_TABLE_SIZE:
            self._encoder.resize(value)
        elif setting == _INITIAL_WINDOW_SIZE:
            self._resize_windows(value)
        elif setting == _MAX_FRAME_SIZE:
            if not FRAME_BYTES <= value < 1 << 24:
                raise ConnectionProtocolError(
                    f"SETTINGS: MAX_FRAME_SIZE is {value}, must be from 16384 to 16777215"
                )
        else:
            self._apply(setting, value)

    def _resize_windows(self, value: int) -> None:
        """Streams start with another window, and those that are there get the difference (section 6.9.2)."""
        if value > _MAX_WINDOW:
            raise ConnectionProtocolError(
                f"SETTINGS: INITIAL_WINDOW_SIZE is {value}, at most {_MAX_WINDOW}",
                ErrorCode.FLOW_CONTROL_ERROR,
            )
        for stream in self._streams.values():
            stream.window += value - self._initial_window
            if stream.window > _MAX_WINDOW:
                raise ConnectionProtocolError(
                    f"the window of stream {stream.id} is over {_MAX_WINDOW} bytes",
                    ErrorCode.FLOW_CONTROL_ERROR,
                )
        self._initial_window = value

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionProtocolError(f"PING of {len(payload)} bytes on stream {stream_id}")
        if len(payload) != 8:
            raise _wrong_size("PING", len(payload), "8")
        if flags & _ACK:
            self._events.append(PingAnswered(payload))
        else:
            self._acknowledge(frame_head(8, PING, _ACK, 0) + payload)
            self._events.append(CONTROL)

    def _acknowledge(self, frame: bytes) -> None:
        self._acks += 1
        if self._acks > self._max_acks:
            raise DenialOfServiceError(f"more than {self._max_acks} frames to acknowledge", "control_frames")
        self._out.append(frame)

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionProtocolError(f"GOAWAY of {len(payload)} bytes on stream {stream_id}")
        if len(payload) < 8:
            raise _wrong_size("GOAWAY", len(payload), "at least 8")
        event = self._goaway = Leaving(int.from_bytes(payload[4:8], "big"), payload[8:])
        self._events.append(event)
        self._left(int.from_bytes(payload[:4], "big") & MAX_STREAM_ID)
        self._finish_if_left()

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _wrong_size("WINDOW_UPDATE", len(payload), "4")
        more = int.from_bytes(payload, "big") & _MAX_WINDOW
        self._events.append(_WINDOW_UPDATED)
        if stream_id:
            stream = self._stream(stream_id)
            if stream is not None:
                stream.window += more
                if not more or stream.window > _MAX_WINDOW:
                    code = ErrorCode.FLOW_CONTROL_ERROR if more else ErrorCode.PROTOCOL_ERROR
                    self._fail(stream, f"WINDOW_UPDATE by {more}: its window is {stream.window} bytes", code)
            return
        self._window += more
        if not more or self._window > _MAX_WINDOW:
            raise ConnectionProtocolError(
                f"WINDOW_UPDATE by {more}: the connection's window is {self._window} bytes",
                ErrorCode.FLOW_CONTROL_ERROR if more else ErrorCode.PROTOCOL_ERROR,
            )

    # -- streams -------------------------------------------------------------------------------------------

    def _stream(self, stream_id: int) -> Stream | None:
        """The stream; None for one that is over: what was on its way is ignored (section 5.1)."""
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise ConnectionProtocolError(f"a frame on stream {stream_id}, which has never been opened")
            self._events.append(NOTED)
        return stream

    def _fail(self, stream: Stream, problem: str, error_code: int = _PROTOCOL_ERROR) -> None:
        """Ends a stream for a mistake of the peer (section 5.4.2)."""
        self._reset(stream, error_code, problem)

    def _reset(self, stream: Stream, error_code: int, problem: str) -> None:
        self._put_reset(stream.id, error_code)
        self._close(stream, error_code, problem)

    def _put_reset(self, stream_id: int, error_code: int) -> None:
        frame = frame_head(4, RST_STREAM, 0, stream_id) + error_code.to_bytes(4, "big")
        if stream_id > self._sent_id:
            self._traffic.append(frame)  # not before the headers that open or answer it
        else:
            self._out.append(frame)

    def _close(self, stream: Stream, error_code: int, problem: str = "") -> None:
        del self._streams[stream.id]
        if stream.size or stream.trailers:
            self._queued -= stream.size
            stream.size = 0
            self._waiting.pop(stream.id, None)
        self._tell_end(stream, error_code, problem)
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
        queued = f"{self._queued} bytes of bodies queued"
        return f"<{type(self).__name__} {state}, {len(self._streams)} streams, {queued}>"


def _check_dependency(stream_id: int, priority: bytes) -> None:
    if int.from_bytes(priority[:4], "big") & MAX_STREAM_ID == stream_id:
        raise ConnectionProtocolError(f"stream {stream_id} depends on itself")
