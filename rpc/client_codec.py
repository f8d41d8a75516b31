"""The client's end of an HTTP/2 connection as bytes: what a channel of unary calls needs of RFC 9113.

What both ends share, and the rules, are in `rpc.frames`. A response that has come whole is told as one event.
Not here, because a client of unary calls has no use for it: server push (refused), requests without a body. Section
numbers are those of RFC 9113.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rpc.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    FRAME_HEAD,
    HEADERS,
    NOTED,
    WINDOW,
    Codec,
    Data,
    Event,
    Stream,
    StreamEnd,
    Trailers,
    frame_head,
    headers_frame,
    length_at,
    settings_frame,
    stream_at,
    unpadded,
    window_update,
)
from rpc.http2 import (
    MAX_STREAM_ID,
    PREFACE,
    ConnectionClosingError,
    ConnectionProtocolError,
    Header,
    NoAvailableStreamIDError,
    Setting,
)

__all__ = ["Answer", "ClientCodec", "Head"]

_MAX_STREAMS: Final = 2**31 - 1
_MAX_UNSENT_ACKS: Final = 1000
_VIEW_FROM: Final = 4096  # bytes of DATA that are cheaper to look at where they are than to copy

# As numbers of their own: members of an enum are slow to look up.
_NO_ERROR: Final = 0x0
_REFUSED_STREAM: Final = 0x7


class Head(Event):
    """The header block of a response; those of status 1xx are not told."""

    __slots__ = ("end_stream", "headers", "stream_id")

    def __init__(self, stream_id: int, headers: tuple[Header, ...], end_stream: bool) -> None:
        self.stream_id = stream_id
        self.headers = headers
        self.end_stream = end_stream


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


class ClientCodec(Codec):
    """One connection."""

    def __init__(self, max_header_bytes: int, stream_window: int, connection_window: int) -> None:
        """`max_header_bytes` bounds a decoded header block, as `Decoder` counts it; windows are in bytes."""
        super().__init__(
            max_header_bytes=max_header_bytes,
            max_header_fields=0,
            stream_window=stream_window,
            connection_window=connection_window,
            max_acks=_MAX_UNSENT_ACKS,
        )
        self.max_streams = _MAX_STREAMS
        """Streams that the peer allows at once."""
        self._next_id = 1
        self._good_head: tuple[Header, ...] = ()  # the last one that a Head has told, before a body
        settings = (
            (Setting.ENABLE_PUSH, 0),
            (Setting.INITIAL_WINDOW_SIZE, stream_window),
            (Setting.MAX_HEADER_LIST_SIZE, max_header_bytes),
        )
        self._out += [PREFACE, settings_frame(settings)]
        if connection_window > WINDOW:
            self._out.append(window_update(0, connection_window - WINDOW))

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
        stream = Stream(stream_id, self._initial_window)
        stream.done = True
        self._streams[stream_id] = stream
        out = self._traffic
        size = len(block) + len(field)
        if size <= FRAME_BYTES:
            out.append(frame_head(size, HEADERS, END_HEADERS, stream_id))
            out.append(block)
            out.append(field)
        else:
            out.append(headers_frame(block + field, 0, stream_id))
        size = len(start)
        for part in body:
            size += len(part)
        if size <= FRAME_BYTES and size <= stream.window and size <= self._window:
            stream.window -= size
            self._window -= size
            out.append(frame_head(size, DATA, END_STREAM, stream_id))
            out.append(start)
            out.extend(body)
        else:
            self._queue(stream, [start, *body] if start else body)
        return stream_id

    def pieces_to_send(self, amount: int) -> list[bytes | memoryview]:
        """As of the base; from now on streams are reset, not taken back."""
        self._sent_id = self._next_id - 2
        return super().pieces_to_send(amount)

    @property
    def sent_id(self) -> int:
        """The peer may know of the streams up to this one, and of none behind it."""
        return self._sent_id

    # -- in ------------------------------------------------------------------------------------------------

    def _receive_whole(self, stream_id: int, data: bytes, start: int, end: int) -> int:
        stream = self._streams.get(stream_id)
        head = self._decoder.known(data[start:end])
        if stream is None or stream.answering or stream.size or head is None or head is not self._good_head:
            return 0
        body = end + FRAME_HEAD
        if body > len(data) or data[end + 3] != DATA or data[end + 4] or stream_at(data, end) != stream_id:
            return 0
        size = length_at(data, end)
        last = body + size
        block = last + FRAME_HEAD
        if (
            block > len(data)
            or data[last + 3] != HEADERS
            or data[last + 4] != END_HEADERS | END_STREAM
            or stream_at(data, last) != stream_id
        ):
            return 0
        after = block + length_at(data, last)
        taken = self._consumed + size
        if (
            after > len(data)
            or size > FRAME_BYTES
            or after - block > FRAME_BYTES
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

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        size = end - start
        start, end = unpadded(flags, data, start, end)
        stream = self._stream(stream_id)
        if stream is None:
            return
        if stream.ended or not stream.answering:
            self._fail(stream, "DATA after the end" if stream.ended else "DATA before HEADERS")
            return
        last = flags & END_STREAM != 0
        if not self._take_of(stream, size, last):
            return
        piece = data[start:end] if end - start < _VIEW_FROM else memoryview(data)[start:end]
        self._events.append(Data(stream_id, piece, last))
        if last:
            self._on_end(stream)

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
                self._events.append(NOTED)
            else:
                stream.answering = True
                self._events.append(Head(stream_id, headers, last))
                if last:
                    self._on_end(stream)
                else:
                    self._good_head = headers

    def _apply(self, setting: int, value: int) -> None:
        if setting == Setting.ENABLE_PUSH:
            if value:
                raise ConnectionProtocolError(f"SETTINGS: a server's ENABLE_PUSH is {value}, must be 0")
        elif setting == Setting.MAX_CONCURRENT_STREAMS:
            self.max_streams = value

    def _commit(self) -> None:
        self._sent_id = self._next_id - 2
        super()._commit()

    def _left(self, last_id: int) -> None:
        # What has not been sent must not be any more, and can go somewhere else.
        last_id = min(last_id, self._sent_id)
        self._traffic.clear()
        for stream in list(self._streams.values()):
            if stream.id > self._sent_id:
                self._window += self._initial_window - stream.window
            if stream.id > last_id:
                self._close(stream, _REFUSED_STREAM)

    # -- streams -------------------------------------------------------------------------------------------

    def _is_idle(self, stream_id: int) -> bool:
        return not stream_id & 1 or stream_id >= self._next_id

    def _last_taken(self) -> int:
        return 0  # a server opens none

    def _tell_end(self, stream: Stream, error_code: int, problem: str) -> None:
        self._events.append(StreamEnd(stream.id, error_code, problem))
