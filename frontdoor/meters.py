"""What a front door counts: how long its requests took, and what the dispatcher and the listener know anyway."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from frontdoor.dispatcher import Dispatcher
from frontdoor.services import METHODS
from rpc.server import Server
from rpc.status import Status
from shared.board import Board, Histogram
from shared.metrics import (
    CLIENT_CALLS,
    CLIENT_CONNECTIONS,
    CLIENT_CONNECTIONS_TOTAL,
    DOOR_EVENTS,
    DOOR_HELD_BYTES,
    DOOR_IN_FLIGHT,
    DOOR_WAITING,
    DOOR_WORKER_IN_FLIGHT,
    DOOR_WORKERS,
    HTTP2_LIMITS,
    ROUTER_LATENCY,
)

__all__ = ["CallMeters", "gather"]

APIS = tuple(path.decode().rpartition("/")[2] for path in METHODS)
"""Values of the label `api`."""


class CallMeters:
    """Requests by method and outcome."""

    __slots__ = ("_board", "_series")

    def __init__(self, board: Board) -> None:
        self._board = board
        self._series: list[list[Histogram | None]] = [[None] * len(Status) for _ in APIS]

    def ended(self, method: int, status: Status, took: float) -> None:
        """Counts a request that was answered, or given up, after `took` ms."""
        series = self._series[method][status]
        if series is None:
            series = self._board.histogram(ROUTER_LATENCY, APIS[method], status.name)
            self._series[method][status] = series
        series.observe(took)

    def __repr__(self) -> str:
        return f"<CallMeters of {len(self._series)} methods>"


def gather(board: Board, dispatcher: Dispatcher, server: Server) -> None:
    """Shows on the board what others have counted. About once a second, on the thread of the loop."""
    for event, count in asdict(dispatcher.counts).items():
        board.counter(DOOR_EVENTS, event).value = count
    board.gauge(DOOR_IN_FLIGHT).value = dispatcher.in_flight
    board.gauge(DOOR_WAITING).value = dispatcher.waiting
    board.gauge(DOOR_HELD_BYTES).value = dispatcher.held_bytes
    workers = dispatcher.workers()
    states = Counter(worker.state for worker in workers)
    board.show(DOOR_WORKERS, {(state,): float(count) for state, count in states.items()})
    board.show(DOOR_WORKER_IN_FLIGHT, {(worker.name,): float(worker.in_flight) for worker in workers})
    stats = server.stats
    board.gauge(CLIENT_CONNECTIONS).value = stats.connections
    board.counter(CLIENT_CONNECTIONS_TOTAL).value = stats.connections_total
    for status, count in zip(Status, stats.calls, strict=True):
        if count:
            board.counter(CLIENT_CALLS, status.name).value = count
    for limit, count in stats.limits.items():
        board.counter(HTTP2_LIMITS, limit).value = count
