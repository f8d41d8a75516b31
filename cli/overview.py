"""A pod in numbers, from what its processes publish: for `inferflow status` and `inferflow top`.

Totals are since each process started. With an earlier look at the same pod, rates and quantiles are of the time
between the two. Works while the sidecar is down: only the state of the configs is asked of the admin port.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from shared import metrics
from shared.board_file import STALE_SECONDS, Published, read_boards
from shared.metrics import Metric
from shared.settings import Settings

__all__ = ["Look", "configs", "overview", "quantile"]

ADMIN_SECONDS: Final = 2.0


@dataclasses.dataclass(frozen=True)
class Look:
    """What the processes of a pod had published at a moment of the monotonic clock."""

    boards: tuple[Published, ...]
    at: float

    @classmethod
    def now(cls, run_dir: Path) -> Look:
        """A look at the pod of this run directory; it has no boards when there is no pod."""
        return cls(tuple(read_boards(run_dir)), time.monotonic())


class _Sums:
    """Series of all processes, added up; less those of an earlier look, where a process is still the same."""

    def __init__(self, boards: Iterable[Published], before: Iterable[Published] = ()) -> None:
        self._values: dict[str, dict[tuple[str, ...], float]] = defaultdict(lambda: defaultdict(float))
        self._counts: dict[str, dict[tuple[str, ...], list[int]]] = defaultdict(dict)
        for board in boards:
            self._add(board, 1)
        pids = {board.process: board.pid for board in boards}
        for board in before:
            if pids.get(board.process) == board.pid:
                self._add(board, -1)

    def _add(self, board: Published, sign: int) -> None:
        for record in board.records:
            name = record.metric.name
            if record.observed is None:
                self._values[name][record.labels] += sign * record.value
                continue
            self._values[name][record.labels] += sign * record.observed.sum
            counts = self._counts[name].setdefault(record.labels, [0] * len(record.observed.counts))
            for place, count in enumerate(record.observed.counts):
                counts[place] += sign * count

    def total(self, metric: Metric, **wanted: str) -> float:
        """The sum of a metric (of a histogram's observations) over the series with these labels."""
        return sum(
            value for labels, value in self._values[metric.name].items() if _has(metric, labels, wanted)
        )

    def counts(self, metric: Metric, **wanted: str) -> list[int]:
        """The buckets of a histogram over the series with these labels."""
        found = [
            counts for labels, counts in self._counts[metric.name].items() if _has(metric, labels, wanted)
        ]
        return [sum(column) for column in zip(*found, strict=True)] if found else []

    def values(self, metric: Metric, label: str) -> list[str]:
        """The values of a label, sorted."""
        place = metric.labels.index(label)
        return sorted({labels[place] for labels in self._values[metric.name]})


def _has(metric: Metric, labels: tuple[str, ...], wanted: dict[str, str]) -> bool:
    return all(labels[metric.labels.index(name)] == value for name, value in wanted.items())


def quantile(counts: Sequence[int], bounds: Sequence[float], share: float) -> float | None:
    """The value below which this share of the observations lies; None when there are none.

    Within a bucket values are taken to be spread evenly on a logarithmic scale. What lies above the last bound is
    said to be there.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    below = 0
    for place, count in enumerate(counts):
        if count and below + count >= rank:
            if place == len(bounds):
                break
            upper = bounds[place]
            lower = bounds[place - 1] if place else upper / 2
            return lower * math.pow(upper / lower, (rank - below) / count)
        below += count
    return bounds[-1]


def overview(now: Look, before: Look | None = None) -> dict[str, Any]:
    """The pod as JSON values. Times in ms unless a name says otherwise; rates need an earlier look (else None)."""
    total = _Sums(now.boards)
    span = None if before is None else max(now.at - before.at, 1e-9)
    recent = total if before is None else _Sums(now.boards, before.boards)
    alive = _Sums(board for board in now.boards if board.is_alive)
    return {
        "processes": [_process(board) for board in now.boards],
        "requests": _requests(total, recent, alive, span),
        "models": [_model(total, recent, span, model) for model in total.values(metrics.REQUESTS, "model")],
        "components": [
            _component(total, recent, model, component)
            for model in total.values(metrics.COMPONENT_LATENCY, "model")
            for component in total.values(metrics.COMPONENT_LATENCY, "component")
            if total.counts(metrics.COMPONENT_LATENCY, model=model, component=component)
        ],
        "upstreams": [
            _upstream(total, recent, alive, span, service, endpoint)
            for service in total.values(metrics.UPSTREAM_LATENCY, "service")
            for endpoint in total.values(metrics.UPSTREAM_LATENCY, "endpoint")
            if total.counts(metrics.UPSTREAM_LATENCY, service=service, endpoint=endpoint)
        ],
        "cache": {**_cache(total), "coalesced": int(total.total(metrics.CACHE_COALESCED))},
        "logs": {
            "acknowledged_rows": int(total.total(metrics.LOG_ROWS, state="acknowledged")),
            "dropped_rows": int(total.total(metrics.LOG_DROPPED)),
        },
        "config_keys": {
            state: int(alive.total(metrics.CONFIG_KEYS, state=state))
            for state in alive.values(metrics.CONFIG_KEYS, "state")
        },
        "crash_loops": int(alive.total(metrics.CRASH_LOOPS)),
    }


def configs(settings: Settings) -> dict[str, Any]:
    """What the admin port says of the configs, or {"error": why it cannot be asked}."""
    connection = http.client.HTTPConnection(settings.admin_host, settings.admin_port, timeout=ADMIN_SECONDS)
    try:
        connection.request("GET", "/status")
        return dict(json.loads(connection.getresponse().read()))
    except (OSError, http.client.HTTPException, ValueError) as error:
        place = f"{settings.admin_host}:{settings.admin_port}"
        return {"error": f"no answer on {place} (INFERFLOW_ADMIN_PORT): {error}"}
    finally:
        connection.close()


def _process(board: Published) -> dict[str, Any]:
    own = _Sums([board])
    alive = board.is_alive
    state = "gone" if not alive else "hangs" if board.age > STALE_SECONDS else "up"
    in_flight = metrics.DOOR_IN_FLIGHT if board.process.startswith("frontdoor") else metrics.WORKER_IN_FLIGHT
    return {
        "process": board.process,
        "pid": board.pid,
        "state": state,
        "uptime_seconds": round(board.published - board.started, 1),
        "published_seconds_ago": round(board.age, 1),
        "cpu_seconds": round(own.total(metrics.PROCESS_CPU), 2),
        "resident_bytes": int(own.total(metrics.PROCESS_MEMORY)),
        "in_flight": int(own.total(in_flight)),
        "config_version": int(own.total(metrics.CONFIG_VERSION)),
        "loop_lag_p99_ms": _rounded(quantile(own.counts(metrics.LOOP_LAG), metrics.LATENCY_BOUNDS, 0.99)),
    }


def _times(sums: _Sums, metric: Metric, **labels: str) -> dict[str, float | None]:
    counts = sums.counts(metric, **labels)
    return {
        f"p{share * 100:.0f}_ms": _rounded(quantile(counts, metric.bounds, share)) for share in (0.5, 0.99)
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _rate(count: float, span: float | None) -> float | None:
    return None if span is None else round(count / span, 1)


def _requests(total: _Sums, recent: _Sums, alive: _Sums, span: float | None) -> dict[str, Any]:
    count, good = total.total(metrics.REQUESTS), total.total(metrics.REQUESTS, status="OK")
    return {
        "total": int(count),
        "failed": int(count - good),
        "rows": int(total.total(metrics.REQUEST_ROWS)),
        "error_rows": int(total.total(metrics.COMPONENT_ERROR_ROWS)),
        "per_second": _rate(recent.total(metrics.REQUESTS), span),
        **_times(recent, metrics.REQUEST_LATENCY),
        "in_flight": int(alive.total(metrics.DOOR_IN_FLIGHT)),
        "waiting": int(alive.total(metrics.DOOR_WAITING)),
        "connections": int(alive.total(metrics.CLIENT_CONNECTIONS)),
    }


def _model(total: _Sums, recent: _Sums, span: float | None, model: str) -> dict[str, Any]:
    count = total.total(metrics.REQUESTS, model=model)
    return {
        "model": model,
        "total": int(count),
        "failed": int(count - total.total(metrics.REQUESTS, model=model, status="OK")),
        "rows": int(total.total(metrics.REQUEST_ROWS, model=model)),
        "error_rows": int(total.total(metrics.COMPONENT_ERROR_ROWS, model=model)),
        "per_second": _rate(recent.total(metrics.REQUESTS, model=model), span),
        **_times(recent, metrics.REQUEST_LATENCY, model=model),
        "cache": _cache(total, model=model),
    }


def _component(total: _Sums, recent: _Sums, model: str, component: str) -> dict[str, Any]:
    labels = {"model": model, "component": component}
    return {
        **labels,
        "executions": sum(total.counts(metrics.COMPONENT_LATENCY, **labels)),
        "error_rows": int(total.total(metrics.COMPONENT_ERROR_ROWS, **labels)),
        "critical_path_ms": round(recent.total(metrics.CRITICAL_PATH, **labels), 1),
        **_times(recent, metrics.COMPONENT_LATENCY, **labels),
    }


def _upstream(
    total: _Sums, recent: _Sums, alive: _Sums, span: float | None, service: str, endpoint: str
) -> dict[str, Any]:
    labels = {"service": service, "endpoint": endpoint}
    count = total.total(metrics.UPSTREAM_CALLS, **labels)
    return {
        **labels,
        "calls": int(count),
        "failed": int(count - total.total(metrics.UPSTREAM_CALLS, status="OK", **labels)),
        "per_second": _rate(recent.total(metrics.UPSTREAM_CALLS, **labels), span),
        **_times(recent, metrics.UPSTREAM_LATENCY, **labels),
        "waiting": int(alive.total(metrics.UPSTREAM_WAITING, endpoint=endpoint)),
        "connections": {
            state: int(alive.total(metrics.UPSTREAM_CONNECTIONS, endpoint=endpoint, state=state))
            for state in ("ready", "connecting", "draining", "failed")
        },
    }


def _cache(total: _Sums, **labels: str) -> dict[str, int]:
    asked = int(total.total(metrics.CACHE_REQUESTS, **labels))
    missed = int(total.total(metrics.CACHE_MISSES, **labels))
    return {"requests": asked, "hits": asked - missed, "misses": missed}
