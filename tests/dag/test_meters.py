"""What is measured of the components of a request."""

from __future__ import annotations

import numpy as np
import pytest

from dag.component import Failure
from dag.meters import PlanMeters, Watch
from shared.board import Board
from shared.metrics import (
    COMPONENT_ERROR_ROWS,
    COMPONENT_ERRORS,
    COMPONENT_FEATURES,
    COMPONENT_LATENCY,
    CRITICAL_PATH,
    DEADLINE_LEFT,
)


def test_the_longest_chain_makes_the_critical_path() -> None:
    board = Board("worker-0")
    meters = PlanMeters(board, "shop", ["fast", "slow", "rank"], {"slow": 7}).components
    fast, slow, rank = map(Watch, meters)
    fast.begin(100.0, None, 100.05)
    slow.begin(100.0, None, 100.05)
    fast.end(100.01)
    slow.end(100.03)
    rank.begin(100.03, slow, 100.05)
    rank.end(100.07)
    rank.ended_last()

    def path(name: str) -> float:
        return board.counter(CRITICAL_PATH, "shop", name).value

    assert (path("fast"), path("slow"), path("rank")) == (0, pytest.approx(30), pytest.approx(40))
    assert board.histogram(COMPONENT_LATENCY, "shop", "fast").sum == pytest.approx(10)
    assert board.histogram(DEADLINE_LEFT, "shop", "slow").sum == pytest.approx(50)
    assert board.histogram(DEADLINE_LEFT, "shop", "rank").sum == pytest.approx(20)
    assert board.counter(COMPONENT_FEATURES, "shop", "slow").value == 7


def test_what_failed_is_counted_by_cause_and_rows() -> None:
    board = Board("worker-0")
    rows = np.arange(3, dtype=np.int32)
    failures = [
        Failure("rank", "UNAVAILABLE: a", rows, "UNAVAILABLE"),
        Failure("rank", "UNAVAILABLE: b", rows[:2], "UNAVAILABLE"),
        Failure("rank", "not FP32", rows[:1]),
        Failure("fetch", "broken", None, "INTERNAL"),
    ]
    PlanMeters(board, "shop", ["fetch", "rank"], {}).failed(failures, 10)

    def counted(component: str, kind: str) -> tuple[float, float]:
        labels = "shop", component, kind
        return (
            board.counter(COMPONENT_ERRORS, *labels).value,
            board.counter(COMPONENT_ERROR_ROWS, *labels).value,
        )

    assert counted("rank", "UNAVAILABLE") == (1, 5)
    assert counted("rank", "BAD_VALUE") == (1, 1)
    assert counted("fetch", "INTERNAL") == (1, 10)
