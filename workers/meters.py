"""What a worker counts of its requests. Belongs to the I/O thread."""

from __future__ import annotations

from rpc.status import Status
from shared.board import Board, Counter
from shared.feature_cache import FeatureCache
from shared.metrics import (
    CACHE_BYTES,
    CACHE_EVICTIONS,
    CACHE_INSERTS,
    CACHE_UNUSED,
    MATRIX_BYTES,
    MODES,
    REQUEST_LATENCY,
    REQUEST_ROWS,
    REQUESTS,
    SLOTS_BUSY,
    UPSTREAM_CONNECTIONS,
    UPSTREAM_WAITING,
    WORKER_IN_FLIGHT,
)
from shared.shm_matrix import MatrixPool
from workers.upstreams import WorkerUpstreams

__all__ = ["RequestMeters", "gather", "gather_cache"]

_STATUSES = len(Status)
_NO_MODE = len(MODES)
"""Place of the requests whose method is none."""


class _Series:
    """The series of one model in one mode; those of rarer statuses are begun when they are needed."""

    __slots__ = ("by_status", "latency", "rows")

    def __init__(self, board: Board, model: str, mode: str) -> None:
        self.latency = board.histogram(REQUEST_LATENCY, model, mode)
        self.rows = board.histogram(REQUEST_ROWS, model, mode)
        self.by_status: list[Counter | None] = [None] * _STATUSES


class RequestMeters:
    """Requests answered, by model, mode and status."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._series: dict[str, list[_Series | None]] = {}

    def answered(
        self, model: str, method: int, status: Status, took: float, rows: int, trace_id: str = ""
    ) -> None:
        """Counts an answer after `took` ms, to `rows` rows (0: the matrix was not built).

        `model` is a config that is known, or ""; `trace_id`: of a request that is traced.
        """
        of_model = self._series.get(model)
        if of_model is None:
            of_model = self._series[model] = [None] * (_NO_MODE + 1)
        place = method if method < _NO_MODE else _NO_MODE
        series = of_model[place]
        if series is None:
            mode = MODES[place] if place < _NO_MODE else ""
            series = of_model[place] = _Series(self._board, model, mode)
        count = series.by_status[status]
        if count is None:
            labels = series.latency.labels
            count = series.by_status[status] = self._board.counter(REQUESTS, *labels, status.name)
        count.value += 1
        if trace_id:
            series.latency.observe_traced(took, trace_id)
        else:
            series.latency.observe(took)
        if rows:
            series.rows.observe(rows)

    def __repr__(self) -> str:
        return f"<RequestMeters of {len(self._series)} models>"


def gather_cache(board: Board, cache: FeatureCache) -> None:
    """Shows on the board what the feature cache has counted. About once a second, on the thread of the loop."""
    board.gauge(CACHE_BYTES, "used").value = cache.used
    board.gauge(CACHE_BYTES, "limit").value = cache.size
    board.counter(CACHE_INSERTS).value = cache.inserts
    board.counter(CACHE_EVICTIONS).value = cache.evictions
    board.counter(CACHE_UNUSED, "expired").value = cache.expired
    board.counter(CACHE_UNUSED, "torn").value = cache.torn
    board.counter(CACHE_UNUSED, "too_large").value = cache.too_large


def gather(board: Board, in_flight: int, pool: MatrixPool, upstreams: WorkerUpstreams) -> None:
    """Shows on the board what others know. About once a second, on the thread of the loop."""
    board.gauge(WORKER_IN_FLIGHT).value = in_flight
    board.gauge(SLOTS_BUSY).value = pool.busy
    board.gauge(MATRIX_BYTES, "in_use").value = pool.in_use
    board.gauge(MATRIX_BYTES, "reserved").value = pool.reserved
    board.gauge(MATRIX_BYTES, "limit").value = pool.capacity
    channels = upstreams.channels()
    board.show(UPSTREAM_WAITING, {(channel.target,): float(channel.waiting) for channel in channels})
    board.show(
        UPSTREAM_CONNECTIONS,
        {
            (channel.target, state): float(count)
            for channel in channels
            for state, count in channel.states().items()
        },
    )
