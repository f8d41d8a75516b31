"""What one connection may cost a server, and how often it tried to cost more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

__all__ = ["Budget", "Limits", "Rate", "Stats"]

KiB = 1024
MiB = 1024 * KiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A token bucket: `burst` events at once, `per_second` in the long run."""

    burst: int
    per_second: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of a server, all of them per connection unless they say otherwise. Sizes in bytes, times in s.

    A limit that is hit is counted in `Stats.limits` under the field's name. Those marked (closes) end the
    connection with GOAWAY; the others cost one call its answer.
    """

    connections: int = 10_000
    """Open connections of the whole server; one more is closed at once."""
    streams: int = 128
    """Concurrent calls, advertised as SETTINGS_MAX_CONCURRENT_STREAMS; more are refused (retriable)."""
    header_fields: int = 128
    """Fields in one header block: RESOURCE_EXHAUSTED; (closes) at four times as many."""
    header_bytes: int = 16 * KiB
    """Custom metadata of a call, decoded, 32 bytes overhead a field: RESOURCE_EXHAUSTED; (closes) when a whole
    header block has four times as many."""
    message_bytes: int = 4 * MiB
    """One request message, before and after decompression; checked before anything is stored."""
    buffered_request_bytes: int = 64 * MiB
    """All request bodies that are not complete yet: the call that goes over is RESOURCE_EXHAUSTED."""
    unsent_response_bytes: int = 64 * MiB
    """Answers that the peer does not take: the one that goes over becomes RESOURCE_EXHAUSTED."""

    resets: Rate = Rate(burst=200, per_second=33)
    """RST_STREAM frames of the peer (closes): rapid reset."""
    glitches: Rate = Rate(burst=500, per_second=50)
    """Frames and requests that are wrong and cost no more than their stream (closes)."""
    control_frames: Rate = Rate(burst=200, per_second=20)
    """PING, SETTINGS, PRIORITY, unknown and empty DATA frames (closes). Each call pays for two more, as gRPC
    clients measure the bandwidth with pings."""
    window_updates: Rate = Rate(burst=2_000, per_second=1_000)
    """WINDOW_UPDATE frames (closes). Each call pays for eight more, each KiB sent for one."""

    preface_seconds: float = 10.0
    """From accept to the first complete bytes of HTTP/2 or an HTTP/1.1 request head (closes)."""
    header_block_seconds: float = 10.0
    """For a frame or header block that began to arrive to become complete (closes)."""
    body_stall_seconds: float = 20.0
    """Without a byte for a unary request that is not complete: DEADLINE_EXCEEDED."""
    send_stall_seconds: float = 30.0
    """Without the peer taking a byte although there are some for it (closes)."""
    idle_seconds: float = 300.0
    """Without an open call: the connection is drained; 0 = never."""
    ping_seconds: float = 60.0
    """Without a byte from the peer while calls are open: a PING is sent; 0 = never."""
    ping_timeout_seconds: float = 20.0
    """Without a byte after that PING (closes): the peer is gone."""
    age_seconds: float = 0.0
    """Age at which a connection is drained, varied by a tenth either way; 0 = never."""
    age_grace_seconds: float = 30.0
    """For calls in flight to finish when a connection is drained because it is old or idle."""

    connection_window_bytes: int = 16 * MiB
    """Flow-control window of the connection. That of a stream is `message_bytes`: a request never waits."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Rate):
                if value.burst < 1 or value.per_second < 1:
                    raise ValueError(f"Limits.{name}: {value} must be at least 1 and 1 per second")
            elif value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise ValueError(f"Limits.{name}: {value} must be positive")


_MAY_BE_ZERO = frozenset({"idle_seconds", "ping_seconds", "age_seconds", "age_grace_seconds"})


class Budget:
    """A token bucket that reckons only when it is empty."""

    __slots__ = ("_earned", "_last", "_rate", "_tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = rate.burst
        self._last = now
        self._earned = 0

    def take(self, now: float, earned: int = 0) -> bool:
        """Takes a token. Returns False when none is left.

        `now` is in seconds; `earned` is the number of extra tokens that the peer has earned since the start,
        by things that justify more events than time alone.
        """
        self._tokens -= 1
        if self._tokens >= 0:
            return True
        gained = int((now - self._last) * self._rate.per_second) + earned - self._earned
        self._tokens = min(self._tokens + gained, self._rate.burst)
        self._last = now
        self._earned = earned
        return self._tokens >= 0


class Stats:
    """Counters of one server. Plain numbers, written on the loop's thread only."""

    __slots__ = ("calls", "connections", "connections_total", "http1_requests", "limits", "streams")

    def __init__(self) -> None:
        self.connections = 0
        """Open connections."""
        self.connections_total = 0
        """Connections accepted since the start."""
        self.streams = 0
        """Calls that wait for an answer."""
        self.calls = [0] * 17
        """Calls answered, by status number; cancelled ones count under CANCELLED."""
        self.http1_requests = 0
        """Requests for pages answered, over HTTP/1.1 and HTTP/2."""
        self.limits: Counter[str] = Counter()
        """Limits hit, by the name of the field in `Limits` (`protocol` for plain violations of HTTP/2)."""

    def __repr__(self) -> str:
        return (
            f"<Stats {self.connections} connections, {self.streams} streams, {sum(self.calls)} calls, "
            f"limits {dict(self.limits)}>"
        )
