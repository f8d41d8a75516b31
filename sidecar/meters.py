"""What the config sidecar knows and an operator should see on a graph."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from shared import crashes
from shared.board import Board
from shared.metrics import (
    CONFIG_KEYS,
    CONFIG_SOURCE_AWAY,
    CONFIG_WORKERS,
    CRASH_LOOPS,
    PROCESS_RESTARTS,
)
from shared.publishing import VersionMeter
from sidecar.steering import Steering

if TYPE_CHECKING:
    from sidecar.config import ConfigSidecar

__all__ = ["ConfigMeters"]


class ConfigMeters:
    """Shows on a board what a sidecar knows. Belongs to the loop's thread."""

    def __init__(self, board: Board, sidecar: ConfigSidecar, run_dir: Path) -> None:
        self._board = board
        self._sidecar = sidecar
        self._steering = Steering(sidecar)
        self._run_dir = run_dir
        self._version = VersionMeter(board)
        self._away_since: float | None = None
        board.before_publishing(self._gather)

    def __repr__(self) -> str:
        return f"<ConfigMeters of {self._sidecar!r}>"

    def _gather(self) -> None:
        board, sidecar = self._board, self._sidecar
        active = sidecar.activation.active
        self._version.show(active.number if active is not None else 0)
        states = Counter(item["state"] for item in self._steering.overview()["items"])
        board.show(CONFIG_KEYS, {(state,): float(count) for state, count in states.items()})
        board.gauge(CONFIG_WORKERS).value = len(sidecar.workers)
        now = time.monotonic()
        if not sidecar.source_error:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        board.gauge(CONFIG_SOURCE_AWAY).value = 0.0 if self._away_since is None else now - self._away_since
        ends = crashes.read(self._run_dir)
        for program, each in ends.items():
            board.counter(PROCESS_RESTARTS, program).value = each.total
        board.gauge(CRASH_LOOPS).value = len(crashes.looping(ends))
