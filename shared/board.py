"""What a process counts: one `Board` of series, each a plain number or an array that its owner bumps.

The rules, which make it cheap and safe:
- a series is looked up once (`board.counter(REQUESTS, model, mode, status)`), when a config is prepared or a
  process starts, and kept by whoever records; recording is `series.value += 1` or `series.observe(ms)`;
- each series is written by one thread. Any thread may read: it sees each number whole, and a histogram's parts
  at most one observation apart;
- what is known anyway (queue lengths, bytes in use) is not counted again: a callback given to `before_publishing`
  writes it into gauges about once a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from shared.metrics import SERIES_REFUSED, Kind, Metric

__all__ = ["MAX_SERIES", "Board", "Counter", "Exemplar", "Gauge", "Histogram", "Series"]

MAX_SERIES: Final = 20_000
"""Series of one process. Labels are bounded by the configs, but configs come and go."""
RECENT: Final = 64
"""Observations of a histogram that are kept for DogStatsD, the newest ones; a power of two."""


class Counter:
    """A number that only grows; whole, or a fraction where the metric has a unit."""

    __slots__ = ("labels", "metric", "value")

    def __init__(self, metric: Metric, labels: tuple[str, ...]) -> None:
        self.metric = metric
        self.labels = labels
        self.value: int | float = 0

    def __repr__(self) -> str:
        return f"<Counter {_shown(self.metric, self.labels)} {self.value}>"


class Gauge:
    """A number that is now."""

    __slots__ = ("labels", "metric", "value")

    def __init__(self, metric: Metric, labels: tuple[str, ...]) -> None:
        self.metric = metric
        self.labels = labels
        self.value: int | float = 0

    def __repr__(self) -> str:
        return f"<Gauge {_shown(self.metric, self.labels)} {self.value}>"


class Exemplar(NamedTuple):
    """An observation of a traced request: bucket, value, trace id (hex), when (Unix time)."""

    bucket: int
    value: float
    trace_id: str
    time: float


class Histogram:
    """Counts of observations by bucket: `counts[i]` are those up to `bounds[i]`, the last one those above all."""

    __slots__ = (
        "_place",
        "_tops",
        "bounds",
        "counts",
        "exemplar",
        "labels",
        "metric",
        "recent",
        "seen",
        "sum",
    )

    def __init__(self, metric: Metric, labels: tuple[str, ...]) -> None:
        self.metric = metric
        self.labels = labels
        self.bounds = metric.bounds
        self.counts = [0] * (len(metric.bounds) + 1)
        self._tops = (*metric.bounds, math.inf)  # the bounds, the last bucket's included
        self._place = 0  # bucket of the newest observation
        self.sum: float = 0.0
        self.seen = 0
        """Observations so far."""
        self.recent = [0.0] * RECENT
        """The newest observations, in a ring: number n is at n mod RECENT."""
        self.exemplar: Exemplar | None = None

    def observe(self, value: float) -> None:
        """Counts one observation, in the unit of the metric; it is a number."""
        # Observations are near the ones before them: walking there from the last bucket beats a search from afresh.
        tops, place = self._tops, self._place
        while value > tops[place]:
            place += 1
        while place and value <= tops[place - 1]:
            place -= 1
        self._place = place
        self.counts[place] += 1
        self.sum += value
        self.recent[self.seen & (RECENT - 1)] = value
        self.seen += 1

    def observe_traced(self, value: float, trace_id: str) -> None:
        """The same for an observation that has a trace."""
        self.observe(value)
        self.exemplar = Exemplar(self._place, value, trace_id, time.time())

    def __repr__(self) -> str:
        return f"<Histogram {_shown(self.metric, self.labels)} {self.seen} observations, sum {self.sum:g}>"


Series = Counter | Gauge | Histogram
S = TypeVar("S", Counter, Gauge, Histogram)


class Board:
    """All series of one process. Series are begun on the thread of its loop."""

    def __init__(self, process: str, *, most: int = MAX_SERIES) -> None:
        """`process`: its kind and number, as worker-0; the config and log sidecars have no number.

        `most`: series that it keeps; those over it are counted as refused.
        """
        self.process = process
        self._most = most
        self._kind = process.partition("-")[0]
        self._series: dict[tuple[str, tuple[str, ...]], Series] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._refused = self.counter(SERIES_REFUSED)

    def __repr__(self) -> str:
        return f"<Board of {self.process}: {len(self._series)} series>"

    def __iter__(self) -> Iterator[Series]:
        """Every series. From any thread."""
        return iter(list(self._series.values()))

    def counter(self, metric: Metric, *labels: str) -> Counter:
        """The series of a counter with these values of its labels. Raises ValueError for a mistaken caller."""
        return self._find(Counter, Kind.COUNTER, metric, labels)

    def gauge(self, metric: Metric, *labels: str) -> Gauge:
        """The same of a gauge."""
        return self._find(Gauge, Kind.GAUGE, metric, labels)

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """The same of a histogram."""
        return self._find(Histogram, Kind.HISTOGRAM, metric, labels)

    def show(self, metric: Metric, values: dict[tuple[str, ...], float]) -> None:
        """Sets all series of a gauge: labels → value. Those that are not among them end."""
        for labels in [labels for name, labels in self._series if name == metric.name]:
            if labels not in values:
                del self._series[metric.name, labels]
        for labels, value in values.items():
            self.gauge(metric, *labels).value = value

    def before_publishing(self, callback: Callable[[], None]) -> None:
        """Has a function called on the loop before each publication, about once a second: to set gauges."""
        self._callbacks.append(callback)

    def gather(self) -> None:
        """Has every callback write what it knows. On the thread of the loop."""
        for callback in self._callbacks:
            callback()

    def _find(self, kind: type[S], wanted: Kind, metric: Metric, labels: Sequence[str]) -> S:
        key = metric.name, tuple(labels)
        found = self._series.get(key)
        if found is None:
            if metric.kind is not wanted or len(labels) != len(metric.labels):
                raise ValueError(f"{metric.name} is a {metric.kind.value} with the labels {metric.labels}")
            if self._kind not in metric.processes:
                raise ValueError(f"{metric.name} is not recorded by {self.process}, but {metric.processes}")
            found = kind(metric, tuple(labels))
            if len(self._series) < self._most:
                self._series[key] = found
            else:
                self._refused.value += 1
        assert isinstance(found, kind)  # a name has one kind
        return found


def _shown(metric: Metric, labels: tuple[str, ...]) -> str:
    pairs = ",".join(f"{name}={value}" for name, value in zip(metric.labels, labels, strict=True))
    return f"{metric.name}{{{pairs}}}"
