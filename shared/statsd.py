"""A board's way to a DogStatsD agent, over UDP or a Unix socket.

Called about once a second, on a thread that may wait: nothing of a request happens here. The board has added up
already what a client would aggregate, so the client only writes lines, packs them into packets and sends them.
Its socket never blocks. Counters go out as what was added since the last time, which makes them exact; of timings a
few go out for all, each with its rate.
"""

from __future__ import annotations

import logging
import random
import socket
import time
from typing import Final

from datadog.dogstatsd.base import DogStatsd

from shared.board import RECENT, Board, Counter, Histogram, Series
from shared.metrics import STATSD_FAILURES, TAGS, Kind, Part, Statsd
from shared.settings import Settings

__all__ = ["SAMPLES", "StatsdSender"]

log = logging.getLogger(__name__)

SAMPLES: Final = 8
"""Observations of one series that are sent at a time: 80 in the 10 seconds over which an agent adds up."""
_LOOK_UP_SECONDS: Final = 10.0
"""Between two look-ups of an agent whose name is not known. One costs much more than what is sent."""
_NEVER: Final = 10**9


class _Sent:
    """What the agent was told of a series."""

    __slots__ = ("seen", "sum", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self.seen = 0
        self.sum: float = 0.0


class StatsdSender:
    """Sends one board. Made and used on one thread."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self._statsd = settings.statsd
        self._tags = [f"env:{settings.environment}", f"service:{settings.name}"]
        self._board = board
        self._failures = board.counter(STATSD_FAILURES)
        self._client: DogStatsd | None = None
        self._look_up_at = 0.0
        self._sent: dict[Series, _Sent] = {}
        self._spelled: dict[Series, list[tuple[Statsd, list[str]]]] = {}
        self._dice = random.Random()

    def __repr__(self) -> str:
        place = self._statsd.socket or f"{self._statsd.host}:{self._statsd.port}"
        return f"<StatsdSender to {place}, {len(self._sent)} series>"

    def send(self) -> None:
        """Sends what is new. While the agent's name cannot be resolved it stays new."""
        client = self._client or self._connect()
        if client is None:
            return
        for series in self._board:
            self._send_series(client, series)
        client.flush_buffered_metrics()
        self._failures.value += client.packets_dropped_writer
        client.packets_dropped_writer = 0

    def close(self) -> None:
        """Closes the socket."""
        if self._client is not None:
            self._client.close_socket()

    def _connect(self) -> DogStatsd | None:
        if self._statsd.socket is not None:
            self._client = self._made(socket_path=str(self._statsd.socket))
            return self._client
        if time.monotonic() < self._look_up_at:
            return None
        self._look_up_at = time.monotonic() + _LOOK_UP_SECONDS
        try:
            found = socket.getaddrinfo(self._statsd.host, self._statsd.port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            self._failures.value += 1
            log.warning(
                "metrics agent cannot be resolved", extra={"host": self._statsd.host, "reason": str(error)}
            )
            return None
        address = found[0][4]
        self._client = self._made(host=str(address[0]), port=self._statsd.port)
        return self._client

    def _made(
        self, *, host: str | None = None, port: int | None = None, socket_path: str | None = None
    ) -> DogStatsd:
        return DogStatsd(
            host=host,
            port=port,
            socket_path=socket_path,
            constant_tags=self._tags,
            disable_buffering=False,
            flush_interval=0,  # no thread of its own: this one flushes
            telemetry_min_flush_interval=_NEVER,  # it counts what it drops, and keeps that to itself
            origin_detection_enabled=False,
            track_instance=False,
        )

    def _send_series(self, client: DogStatsd, series: Series) -> None:
        sent = self._sent.get(series)
        if sent is None:
            sent = self._sent[series] = _Sent()
            self._spelled[series] = _spellings(series, self._board.process)
        spelled = self._spelled[series]
        if isinstance(series, Counter):
            added, sent.value = series.value - sent.value, series.value
            if added:
                for spelling, tags in spelled:
                    client.increment(spelling.name, _plain(added), tags)
        elif isinstance(series, Histogram):
            self._send_histogram(client, series, sent, spelled)
        else:
            for spelling, tags in spelled:
                client.gauge(spelling.name, _plain(series.value), tags)

    def _send_histogram(
        self,
        client: DogStatsd,
        series: Histogram,
        sent: _Sent,
        spelled: list[tuple[Statsd, list[str]]],
    ) -> None:
        seen, total = series.seen, series.sum
        new, added = seen - sent.seen, total - sent.sum
        if not new:
            return
        sent.seen, sent.sum = seen, total
        values, rate = self._sample(series, seen, new)
        for spelling, tags in spelled:
            if spelling.part is Part.COUNT:
                client.increment(spelling.name, new, tags)
            elif spelling.part is Part.SUM:
                client.increment(spelling.name, _plain(added), tags)
            else:
                for value in values:
                    # `timing` would draw lots once more: these have been drawn.
                    client._report(spelling.name, "ms", value, tags, rate, sampling=False)

    def _sample(self, series: Histogram, seen: int, new: int) -> tuple[list[float], float]:
        """Some of the newest observations, and the share of all that they are."""
        kept = min(new, RECENT)
        values = [series.recent[number & (RECENT - 1)] for number in range(seen - kept, seen)]
        if kept > SAMPLES:
            values = self._dice.sample(values, SAMPLES)
        share = self._statsd.sample_rate
        if share < 1:
            values = [value for value in values if self._dice.random() < share]
        return [round(value, 4) for value in values], share * min(SAMPLES, new) / new


def _plain(value: float) -> float:
    """Whole numbers without a point: agents read both, people one."""
    return int(value) if value == int(value) else round(value, 6)


def _spellings(series: Series, process: str) -> list[tuple[Statsd, list[str]]]:
    labels = dict(zip(series.metric.labels, series.labels, strict=True))
    own = [f"process:{process}"] if series.metric.kind is Kind.GAUGE else []
    return [
        (spelling, [f"{TAGS.get(name, name)}:{labels[name] or 'none'}" for name in spelling.labels] + own)
        for spelling in series.metric.spellings
        if spelling.covers(labels)
    ]
