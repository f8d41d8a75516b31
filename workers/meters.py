"""What a worker counts of its requests. Belongs to the I/O thread."""

from __future__ import annotations

from rpc.status import Status
from shared.board import Board, Counter
from shared.metrics import MODES, REQUEST_LATENCY, REQUEST_ROWS, REQUESTS

__all__ = ["RequestMeters"]

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

    def answered(self, model: str, method: int, status: Status, took: float, rows: int) -> None:
        """Counts an answer after `took` ms, to `rows` rows (0: the matrix was not built).

        `model` is a config that is known, or "".
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
        series.latency.observe(took)
        if rows:
            series.rows.observe(rows)

    def __repr__(self) -> str:
        return f"<RequestMeters of {len(self._series)} models>"
