"""What a DogStatsD agent gets of a board."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shared.board import Board
from shared.metrics import (
    LOOP_LAG,
    REQUEST_LATENCY,
    REQUEST_ROWS,
    REQUESTS,
    STATSD_FAILURES,
    WORKER_IN_FLIGHT,
)
from shared.settings import Settings, StatsdSettings
from shared.statsd import SAMPLES, StatsdSender
from tests.agent import Agent
from tests.frontdoor.process import eventually, free_port

ENDS = ("env:test", "service:shop")


def settings(**statsd: object) -> Settings:
    return Settings(environment="test", name="shop", statsd=StatsdSettings(**statsd))  # type: ignore[arg-type]


@pytest.fixture
def board() -> Board:
    return Board("worker-0")


def test_ten_thousand_requests_are_counted_ten_thousand_times(board: Board) -> None:
    with Agent() as agent:
        sender = StatsdSender(settings(host="127.0.0.1", port=agent.port), board)
        requests = board.counter(REQUESTS, "m", "pointwise", "OK")
        failed = board.counter(REQUESTS, "m", "pointwise", "INTERNAL")
        latency = board.histogram(REQUEST_LATENCY, "m", "pointwise")
        rows = board.histogram(REQUEST_ROWS, "m", "pointwise")
        for number in range(10_000):
            (failed if number % 10 == 0 else requests).value += 1
            latency.observe(number / 100)
            rows.observe(3)
            if number % 1000 == 999:
                sender.send()
        sender.close()
        name = "predict.infer.request.total"
        tags = ("model-id:m", "inference-mode:pointwise", *ENDS)
        eventually(lambda: agent.count(name, *tags) == 10_000, "all are counted", lambda: repr(agent.counts))
        assert agent.count("predict.infer.request.batch.size", *tags) == 30_000
        for timing in ("predict.infer.latency", "predict.infer.request.latency"):
            assert agent.observed(timing, *tags) == pytest.approx(10_000)
            assert len(agent.timings[timing, frozenset(tags)]) == 10 * SAMPLES
            assert all(0 <= value < 100 for value in agent.timings[timing, frozenset(tags)])
        assert agent.bad == []
        assert {key[1] for key in agent.counts if key[0] == name} == {frozenset(tags)}
        assert board.counter(STATSD_FAILURES).value == 0


def test_few_timings_are_sent_as_they_are(board: Board) -> None:
    with Agent() as agent:
        sender = StatsdSender(settings(host="127.0.0.1", port=agent.port), board)
        for value in (1.5, 2.25):
            board.histogram(REQUEST_LATENCY, "m", "retrieve").observe(value)
        sender.send()
        key = "inferflow.retrievemodelscore.latency", frozenset(("model-id:m", *ENDS))
        eventually(
            lambda: agent.timings.get(key) == [1.5, 2.25], "both are there", lambda: repr(agent.timings)
        )
        assert agent.stand_for[key] == 2
        sender.close()


def test_sampled_timings_stand_for_all(board: Board) -> None:
    with Agent() as agent:
        sender = StatsdSender(settings(host="127.0.0.1", port=agent.port, sample_rate=0.5), board)
        requests = board.counter(REQUESTS, "m", "retrieve", "OK")
        latency = board.histogram(REQUEST_LATENCY, "m", "retrieve")
        for _ in range(300):
            requests.value += 4
            for _ in range(4):
                latency.observe(1.0)
            sender.send()
        name = "inferflow.retrievemodelscore.request.total"
        eventually(lambda: agent.count(name) == 1200, "counters are never sampled")
        # 1,200 lots at one half: outside of this once in 10^11 runs
        assert 1200 - 240 < agent.observed("inferflow.retrievemodelscore.latency") < 1200 + 240
        sender.close()


def test_gauges_say_of_which_process_they_are(board: Board) -> None:
    with Agent() as agent:
        sender = StatsdSender(settings(host="127.0.0.1", port=agent.port), board)
        board.gauge(WORKER_IN_FLIGHT).value = 7
        sender.send()
        key = "inferflow.worker_in_flight", frozenset(("process:worker-0", *ENDS))
        eventually(lambda: agent.gauges.get(key) == 7, "the gauge is there", lambda: repr(agent.gauges))
        sender.close()


def test_a_unix_socket(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with Agent(path) as agent:
        sender = StatsdSender(settings(socket=path), board)
        board.counter(REQUESTS, "m", "retrieve", "OK").value = 5
        sender.send()
        eventually(lambda: agent.count("inferflow.retrievemodelscore.request.total") == 5, "it is counted")
        sender.close()


def test_an_agent_that_is_not_there_costs_nothing_but_its_packets(board: Board, tmp_path: Path) -> None:
    for sender in (
        StatsdSender(settings(host="127.0.0.1", port=free_port()), board),
        StatsdSender(settings(socket=tmp_path / "nobody"), board),
    ):
        for _ in range(3):
            board.counter(REQUESTS, "m", "retrieve", "OK").value += 1
            sender.send()
        sender.close()
    assert board.counter(STATSD_FAILURES).value > 0


def test_an_agent_that_reads_nothing_blocks_nobody(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "hung.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hung:
        hung.bind(str(path))
        sender = StatsdSender(settings(socket=path), board)
        lag = board.histogram(LOOP_LAG)
        for _ in range(2000):  # far more than the socket's buffer takes
            lag.observe(1.0)
            sender.send()
        sender.close()
    assert board.counter(STATSD_FAILURES).value > 0


def test_a_name_that_cannot_be_resolved_is_not_asked_for_again_at_once(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fail(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    sender = StatsdSender(settings(host="agent.invalid"), board)
    for _ in range(5):
        sender.send()
    assert asked == ["agent.invalid"]
    assert board.counter(STATSD_FAILURES).value == 1
