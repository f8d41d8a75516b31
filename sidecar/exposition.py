"""The Prometheus page of a pod: what all its processes have published, as text or as OpenMetrics.

Nothing is added up: every series has the label `process`, so that a process that begins again at 0 is seen as just
that by `rate()`. Gauges of a process that has gone are left out; its counts stay until the next one begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Exemplar

from shared.board_file import Observed, Published, read_boards
from shared.metrics import LATENCY_BOUNDS, METRICS, Kind, Metric

__all__ = ["Page", "families", "page"]

_FINER: Final = 2
"""Buckets of times are this much finer on a board than on the page: quantiles over pods need fewer, and each is a
series."""
_UP: Final = "inferflow_process_up"
_AGE: Final = "inferflow_process_published_age_seconds"


class Page(NamedTuple):
    """A body, and what it is."""

    body: bytes
    content_type: str


def page(run_dir: Path, accept: str) -> Page:
    """The page as a client that sends this Accept header can read it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Boards(run_dir))
    encode, content_type = choose_encoder(accept)
    return Page(encode(registry), content_type)


class _Boards(Collector):
    """What prometheus-client asks for families."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def collect(self) -> Iterable[Family]:
        """Every family that has a series."""
        return families(read_boards(self._run_dir))

    def describe(self) -> Iterable[Family]:
        """Nothing: names are checked by tests, not by reading the boards twice."""
        return ()


def families(boards: Iterable[Published]) -> Iterator[Family]:
    """The families of these boards, in the order of the list of metrics."""
    boards = list(boards)
    alive = {board.process: board.is_alive for board in boards}
    yield _gauge(_UP, "1: the process is there.", ((one, float(alive[one.process])) for one in boards))
    yield _gauge(
        _AGE,
        "Since the process published its metrics; it grows while its event loop hangs.",
        ((one, one.age) for one in boards),
    )
    made: dict[str, Family] = {}
    for board in boards:
        for record in board.records:
            metric = record.metric
            if metric.kind is Kind.GAUGE and not alive[board.process]:
                continue
            family = made.get(metric.name)
            if family is None:
                family = made[metric.name] = _family(metric)
            labels = [*record.labels, board.process]
            if isinstance(family, HistogramMetricFamily):
                assert record.observed is not None
                family.add_metric(labels, _buckets(metric, record.observed), record.observed.sum)
            elif isinstance(family, CounterMetricFamily | GaugeMetricFamily):
                family.add_metric(labels, record.value)
    yield from (made[name] for name in METRICS if name in made)


def _family(metric: Metric) -> Family:
    labels = [*metric.labels, "process"]
    if metric.kind is Kind.COUNTER:
        return CounterMetricFamily(metric.name, metric.help, labels=labels)
    if metric.kind is Kind.GAUGE:
        return GaugeMetricFamily(metric.name, metric.help, labels=labels)
    return HistogramMetricFamily(metric.name, metric.help, labels=labels)


def _gauge(name: str, help: str, values: Iterable[tuple[Published, float]]) -> Family:
    family = GaugeMetricFamily(name, help, labels=["process"])
    for board, value in values:
        family.add_metric([board.process], value)
    return family


def _buckets(metric: Metric, observed: Observed) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    """(upper bound, observations up to it) of every bucket of the page; and the exemplar, with the one it is in."""
    bounds = [str(bound) for bound in metric.bounds] + ["+Inf"]
    sums = list(itertools.accumulate(observed.counts))
    step = _FINER if metric.bounds == LATENCY_BOUNDS else 1
    places = [*range(0, len(metric.bounds), step), len(metric.bounds)]
    found = observed.exemplar
    at = next((place for place in places if found is not None and place >= found.bucket), None)
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for place in places:
        if found is not None and place == at:
            exemplar = Exemplar({"trace_id": found.trace_id}, found.value, found.time)
            buckets.append((bounds[place], float(sums[place]), exemplar))
        else:
            buckets.append((bounds[place], float(sums[place])))
    return buckets
