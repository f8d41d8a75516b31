"""What a worker counts of its upstream calls. Belongs to the I/O thread."""

from __future__ import annotations

from rpc.client_connection import Meter
from rpc.status import Status
from shared.board import Board, Counter
from shared.metrics import UPSTREAM_CALLS, UPSTREAM_LATENCY, UPSTREAM_ROWS

__all__ = ["CallMeters"]


class CallMeters(Meter):
    """The series of one endpoint's calls. `rows`: what they were about, which whoever starts one counts."""

    __slots__ = ("_board", "_by_status", "_labels", "latency", "rows")

    def __init__(self, board: Board, service: str, target: str) -> None:
        self.latency = board.histogram(UPSTREAM_LATENCY, service, target)
        self.rows = board.counter(UPSTREAM_ROWS, service, target)
        self._board = board
        self._labels = service, target
        self._by_status: list[Counter | None] = [None] * len(Status)

    def ended(self, status: int, took: float) -> None:
        """Counts a call that ended after `took` ms."""
        self.latency.observe(took)
        count = self._by_status[status]
        if count is None:
            name = Status(status).name
            count = self._by_status[status] = self._board.counter(UPSTREAM_CALLS, *self._labels, name)
        count.value += 1

    def __repr__(self) -> str:
        return f"<CallMeters {self.latency!r}>"
