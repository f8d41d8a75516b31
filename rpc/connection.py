"""One HTTP/2 connection over an asyncio transport: what servers and clients have in common.

Owns the codec and the transport. Bytes go in, events go to `_dispatch` of the subclass; what the subclass
queues in the codec goes out once per loop turn, at its end. Also here: back-pressure, liveness, the ways to end.
All methods belong to the loop's thread.

Rules it keeps:
- The codec gets at most `_feed_bytes` at a time, so that the events of one batch are few, and a stream that
  is opened and reset within a batch costs nothing but the batch.
- `data_to_send()` is never called while the transport is paused, and a server reads nothing then: what cannot
  be sent stays in the codec, where it is counted.
- At most FLUSH_BYTES per turn: a large answer of one connection does not delay the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, cast

from rpc.frames import Codec, Event
from rpc.http2 import ConnectionProtocolError, ErrorCode, error_name
from rpc.timers import Timers

__all__ = ["FLUSH_BYTES", "Http2Connection", "peer_name"]

KiB: Final = 1024
FLUSH_BYTES: Final = 256 * KiB
_WRITE_HIGH_WATER: Final = 512 * KiB
_WHOLE_PIECES: Final = 4 * KiB  # from this size on, on average, pieces are cheaper to write than to join
_LINGER: Final = 5.0  # seconds for the last bytes to be taken after close()


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The other end as text: `1.2.3.4:5`, `[::1]:5`, or `unix` when it has no address."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return name or "unix"


class Http2Connection(asyncio.Protocol):
    """Base of both sides. Subclasses implement `_dispatch`, `_lost` and may extend `_tick`."""

    _feed_bytes: int = 16 * KiB
    # Reading stops while writing is blocked, or a peer that asks and does not listen fills the memory. On one
    # side only: if both did, two ends that send much would wait for each other for ever.
    _reads_while_blocked: bool = False
    # At the end of a connection: FIN goes behind the last bytes, and the peer is listened to until its own comes.
    # A socket that is closed at once answers what still comes with a reset, and the kernel throws away what the
    # peer has not taken yet: the last answers.
    _lingers: bool = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        codec: Codec,
        *,
        frame_seconds: float,
        send_stall_seconds: float,
        ping_seconds: float,
        ping_timeout_seconds: float,
    ) -> None:
        self.codec = codec
        self.closed = False
        """True once nothing can be sent or received any more."""
        self.peer = ""
        self._loop = loop
        self._clock = loop.time
        self._timers = Timers.of(loop)
        self._transport: asyncio.Transport | None = None
        self._dirty = False
        self._write_paused = False
        self._frame_seconds = frame_seconds
        self._send_stall_seconds = send_stall_seconds
        self._ping_seconds = ping_seconds
        self._ping_timeout_seconds = ping_timeout_seconds
        bounds = (frame_seconds, send_stall_seconds, ping_seconds, ping_timeout_seconds)
        self._tick_seconds = min([1.0, *(bound / 4 for bound in bounds if bound)])
        self._bucket: set[Any] = set()
        self._closing_at = 0.0
        self._finished = ""  # why the codec is over; it may have bytes left to send
        self._received_at = self._sent_at = loop.time()
        self._asked_at = 0.0  # when the first bytes were sent after the last ones came
        self._partial_since = 0.0  # since when bytes come without completing a frame; 0 = they do not
        self._ping_at = 0.0  # when the unanswered probe was sent; 0 = there is none
        self._sent_bytes = 0  # given to the transport
        self._body_bytes = 0  # of messages, given to the codec
        self._body_taken = 0  # of those, by the last flush sent or dropped with their stream
        self._stalled_since = 0.0
        self._progress = (0, 0)

    # -- for subclasses ------------------------------------------------------------------------------------

    def _dispatch(self, events: Sequence[Event]) -> None:
        """Handles the events of one batch, in order."""
        raise NotImplementedError

    def _lost(self, reason: str) -> None:
        """The connection is over: ends what was in flight. Called once."""
        raise NotImplementedError

    def _limit_hit(self, name: str) -> None:
        """Counts a limit that ended the connection."""

    def _tick(self, now: float) -> None:
        """Looks at the clock, about once a second."""
        self._check_frame(now)
        self._check_sending(now)
        self._check_alive(now)

    # -- asyncio protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop do not inherit from it
        self.peer = peer_name(transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        self._bucket = self._timers.add(self._clock() + self._tick_seconds, self)

    def data_received(self, data: bytes) -> None:
        self._received_at = self._clock()
        self._ping_at = 0.0
        if len(data) <= self._feed_bytes:
            self._feed(data)
        else:
            view = memoryview(data)
            for start in range(0, len(data), self._feed_bytes):
                self._feed(view[start : start + self._feed_bytes])
        if not (self._dirty or self.closed) and self._may_send():
            self.flush()

    def _may_send(self) -> bool:
        """Whether a flush may do anything. Nearly always it may not, and to ask costs a fifth of a vain flush."""
        return (
            self.codec.want_write  # it has acknowledgements and window updates of its own
            or self._body_taken != self._body_bytes  # what was queued may have been dropped with its stream
        )

    def _feed(self, data: bytes | memoryview) -> None:
        if self.closed:
            return
        try:
            self.codec.receive_data(data)
        except ConnectionProtocolError as error:
            self._limit_hit(error.limit)
            self.close(error.code, str(error))
            return
        events = self.codec.events()
        if events:
            self._partial_since = 0.0
            self._dispatch(events)
        elif not self._partial_since and not self.codec.in_data:
            self._partial_since = self._received_at

    def eof_received(self) -> bool:
        return False  # no half-open connections: HTTP/2 has no use for them

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._transport is not None and not self.closed and not self._reads_while_blocked:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._transport is not None and not self.closed:
            if not self._reads_while_blocked:
                self._transport.resume_reading()
            self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._bucket.discard(self)
        self._transport = None
        self._end(f"connection lost: {error}" if error else "connection closed by peer")

    # -- sending -------------------------------------------------------------------------------------------

    def mark_dirty(self) -> None:
        """There is something to send: has it sent at the end of this loop turn."""
        if not self._dirty:
            self._dirty = True
            self._loop.call_soon(self._flush_if_dirty)

    def _flush_if_dirty(self) -> None:
        if self._dirty:
            self.flush()

    def flush(self) -> None:
        """Sends what the codec has now, up to FLUSH_BYTES; the rest follows in the next turns."""
        self._dirty = False
        transport = self._transport
        if self._write_paused or self.closed or transport is None:
            return
        codec = self.codec
        size = self._write(transport)
        if self._body_taken != self._body_bytes:
            self._body_taken = self._body_bytes - codec.queued_body_size()
        events = codec.events()
        if size:
            self._sent_bytes += size
            now = self._clock()
            if self._sent_at <= self._received_at:
                self._asked_at = now
            self._sent_at = now
            if codec.cut:
                self.mark_dirty()
        if events:
            self._dispatch(events)
        if self._finished:
            self._end_when_sent()

    def _write(self, transport: asyncio.Transport) -> int:
        """Writes what the codec has to send, up to FLUSH_BYTES. Returns how many bytes."""
        pieces = self.codec.pieces_to_send(FLUSH_BYTES)
        size = 0
        for piece in pieces:
            size += len(piece)
        if size >= _WHOLE_PIECES * len(pieces) > 0:
            transport.writelines(pieces)
        elif size:
            transport.write(b"".join(pieces))
        return size

    # -- ending --------------------------------------------------------------------------------------------

    def close(self, code: int = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """Ends the connection now: GOAWAY with `code` and `reason`, then the transport is closed."""
        if self.closed:
            return
        transport = self._transport
        if transport is not None and not self._write_paused:
            self.codec.send_goaway(code, debug_data=reason.encode("ascii", "replace"))
            transport.write(self.codec.data_to_send(FLUSH_BYTES))
        self._close_transport()
        self._end(reason or "connection closed")

    def _close_for(self, limit: str, message: str, code: int = ErrorCode.ENHANCE_YOUR_CALM) -> None:
        """Ends the connection because of a limit of that name."""
        if not self.closed:
            self._limit_hit(limit)
            self.close(code, message)

    def _session_over(self, error_code: int, debug_data: bytes) -> None:
        """The codec has finished: the peer has said GOAWAY. The last answers may have to leave yet."""
        text = debug_data.decode("latin-1")
        self._finished = f"connection closed, {error_name(error_code)}{': ' if text else ''}{text}"
        self._end_when_sent()

    def _end_when_sent(self) -> None:
        if self.closed:
            return
        if self.codec.want_write:
            self.mark_dirty()
        else:
            self._close_transport()
            self._end(self._finished)

    def abort(self, reason: str) -> None:
        """Cuts the connection without a word: the peer does not listen."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def _close_transport(self) -> None:
        self._closing_at = self._clock()
        transport = self._transport
        if transport is None:
            return
        if self._lingers and transport.can_write_eof() and not transport.is_closing():
            if self._write_paused:
                transport.resume_reading()
            transport.write_eof()
        else:
            transport.close()

    def _end(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self._lost(reason)

    # -- watching ------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """The watchdog, called about once a second until the transport is gone."""
        now = self._clock()
        if self._transport is None:
            return
        if not self.closed:
            self._tick(now)
        elif now - self._closing_at > _LINGER:
            self._transport.abort()
            return
        self._bucket = self._timers.add(now + self._tick_seconds, self)

    def _check_frame(self, now: float) -> None:
        """Ends connections that trickle a frame or a header block.

        A peer that is within one cannot answer a PING, as nothing may come between: so bytes that complete
        nothing for half of the time are answered with one, and one that comes back proves that all is well.
        """
        if not self._partial_since or self._write_paused or self.closed:
            return
        waited = now - self._partial_since
        if waited > self._frame_seconds:
            self._close_for("header_block_seconds", f"no complete frame for {waited:.1f} s")
        elif waited > self._frame_seconds / 2 and not self._ping_at:
            self._probe(now)

    def _check_sending(self, now: float) -> None:
        """Ends connections whose peer takes nothing although there is something for it."""
        if self.closed or self._transport is None:
            return
        queued, buffered = self.codec.queued_body_size(), self._transport.get_write_buffer_size()
        progress = (self._body_bytes - queued, self._sent_bytes - buffered)
        last, self._progress = self._progress, progress
        if not ((queued and progress[0] == last[0]) or (buffered and progress[1] == last[1])):
            self._stalled_since = 0.0
        elif not self._stalled_since:
            self._stalled_since = now
        elif now - self._stalled_since >= self._send_stall_seconds:
            self._limit_hit("send_stall_seconds")
            self.abort(f"peer took nothing for {now - self._stalled_since:.1f} s")

    def _check_alive(self, now: float) -> None:
        """Pings a peer that was asked something and is silent; cuts it off when that is not answered either."""
        if self.closed:
            return
        if self._ping_at:
            if now - self._ping_at >= self._ping_timeout_seconds:
                self._limit_hit("ping_timeout_seconds")
                self.abort(f"no answer to a ping for {now - self._ping_at:.1f} s")
        elif self._ping_seconds and self._wants_ping() and self._silence(now) >= self._ping_seconds:
            self._probe(now)

    def _silence(self, now: float) -> float:
        """Seconds in which the peer could have said something and did not."""
        return now - max(self._received_at, self._asked_at)

    def _wants_ping(self) -> bool:
        """Whether silence of the peer is worth a ping."""
        return self._sent_at > self._received_at

    def _probe(self, now: float) -> None:
        if not self._write_paused:
            self._ping_at = now
            self.codec.ping()
            self.mark_dirty()
