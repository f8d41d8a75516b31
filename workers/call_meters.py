"""What a worker counts of its upstream calls. Belongs to the I/O thread."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from dag.component import Reply
from rpc.status import Status
from shared.board import Board, Counter
from shared.metrics import UPSTREAM_CALLS, UPSTREAM_LATENCY, UPSTREAM_ROWS

__all__ = ["CallMeters"]


class CallMeters:
    """The series of one endpoint's calls."""

    __slots__ = ("_board", "_by_status", "_labels", "latency", "rows")

    def __init__(self, board: Board, service: str, target: str) -> None:
        self.latency = board.histogram(UPSTREAM_LATENCY, service, target)
        self.rows = board.counter(UPSTREAM_ROWS, service, target)
        self._board = board
        self._labels = service, target
        self._by_status: list[Counter | None] = [None] * len(Status)

    def begun(self, rows: int, on_done: Callable[[Reply], None]) -> Callable[[Reply], None]:
        """Counts a call that starts now, for `rows` rows. Returns `on_done`, which now also counts its end."""
        self.rows.value += rows
        return _Timed(self, on_done).ended

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


class _Timed:
    """A call under way."""

    __slots__ = ("_began", "_meters", "_on_done")

    def __init__(self, meters: CallMeters, on_done: Callable[[Reply], None]) -> None:
        self._meters = meters
        self._on_done = on_done
        self._began = monotonic()

    def ended(self, reply: Reply) -> None:
        self._meters.ended(reply.status, (monotonic() - self._began) * 1e3)
        self._on_done(reply)
