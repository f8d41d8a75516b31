"""Boards and their series."""

from __future__ import annotations

import bisect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.board import RECENT, Board
from shared.metrics import (
    LATENCY_BOUNDS,
    LOOP_LAG,
    REQUEST_LATENCY,
    REQUESTS,
    ROUTER_LATENCY,
    SERIES_REFUSED,
    UPSTREAM_WAITING,
    WORKER_IN_FLIGHT,
)
from tests.effort import tries


@pytest.fixture
def board() -> Board:
    return Board("worker-0")


def test_a_series_is_one_for_its_labels(board: Board) -> None:
    ok = board.counter(REQUESTS, "shop", "pointwise", "OK")
    ok.value += 3
    assert board.counter(REQUESTS, "shop", "pointwise", "OK") is ok
    assert board.counter(REQUESTS, "shop", "pointwise", "INTERNAL").value == 0
    assert "inferflow_requests_total{model=shop,mode=pointwise,status=OK} 3" in repr(ok)


def test_observations_are_counted_by_bucket(board: Board) -> None:
    latency = board.histogram(LOOP_LAG)
    for value in (0.0, 0.0625, 0.0626, 1e9):
        latency.observe(value)
    assert (latency.counts[0], latency.counts[1], latency.counts[-1]) == (2, 1, 1)
    assert sum(latency.counts) == latency.seen == 4
    assert latency.sum == pytest.approx(1e9 + 0.1251)


@given(
    st.lists(
        st.floats(allow_nan=False)
        | st.sampled_from(LATENCY_BOUNDS)
        | st.sampled_from(LATENCY_BOUNDS).map(lambda bound: math.nextafter(bound, math.inf)),
        max_size=30,
    )
)
@tries(0.3)
def test_the_bucket_is_that_of_a_search_whatever_came_before(values: list[float]) -> None:
    found = Board("worker-0").histogram(REQUEST_LATENCY, "m", "retrieve")
    counts = [0] * (len(LATENCY_BOUNDS) + 1)
    for value in values:
        found.observe(value)
        counts[bisect.bisect_left(LATENCY_BOUNDS, value)] += 1
    assert found.counts == counts


def test_the_newest_observations_are_kept(board: Board) -> None:
    latency = board.histogram(LOOP_LAG)
    for value in range(RECENT + 3):
        latency.observe(value)
    assert sorted(latency.recent) == [float(value) for value in range(3, RECENT + 3)]


def test_a_traced_observation_is_an_exemplar(board: Board) -> None:
    latency = board.histogram(REQUEST_LATENCY, "shop", "pointwise")
    latency.observe_traced(3.0, "ab" * 16)
    assert latency.exemplar is not None
    assert latency.counts[latency.exemplar.bucket] == 1
    assert (latency.exemplar.value, latency.exemplar.trace_id) == (3.0, "ab" * 16)


def test_gauges_are_gathered_before_publishing(board: Board) -> None:
    board.before_publishing(lambda: board.show(UPSTREAM_WAITING, {("a:1",): 2.0, ("b:1",): 1.0}))
    board.gather()
    assert board.gauge(UPSTREAM_WAITING, "a:1").value == 2
    board.show(UPSTREAM_WAITING, {("b:1",): 5.0})
    shown = {series.labels: series for series in board if series.metric is UPSTREAM_WAITING}
    assert list(shown) == [("b:1",)]


def test_mistakes_of_callers_are_named(board: Board) -> None:
    with pytest.raises(ValueError, match="is a counter with the labels"):
        board.counter(REQUESTS, "shop")
    with pytest.raises(ValueError, match="is a gauge"):
        board.counter(WORKER_IN_FLIGHT)
    with pytest.raises(ValueError, match="not recorded by worker-0"):
        board.histogram(ROUTER_LATENCY, "api", "OK")


def test_series_are_bounded() -> None:
    board = Board("worker-0", most=3)
    for number in range(5):
        board.counter(REQUESTS, str(number), "pointwise", "OK").value += 1
    assert len(list(board)) == 3
    assert board.counter(SERIES_REFUSED).value == 3
