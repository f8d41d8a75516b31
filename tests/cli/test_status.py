"""`inferflow status` and `inferflow top`, over boards that the test has written."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from cli import main as cli
from cli.overview import Look, overview, quantile
from cli.status import render
from shared.board import Board
from shared.board_file import BoardFile, encode
from shared.crashes import LOOP_ENDS, Crashes
from shared.metrics import (
    CACHE_COALESCED,
    CACHE_MISSES,
    CACHE_REQUESTS,
    COMPONENT_ERROR_ROWS,
    COMPONENT_LATENCY,
    CONFIG_KEYS,
    CRITICAL_PATH,
    LATENCY_BOUNDS,
    PROCESS_MEMORY,
    REQUEST_LATENCY,
    REQUEST_ROWS,
    REQUESTS,
    UPSTREAM_CALLS,
    UPSTREAM_CONNECTIONS,
    UPSTREAM_LATENCY,
    WORKER_IN_FLIGHT,
)
from tests.frontdoor.process import free_port


class Worker:
    """A board, published by this process."""

    def __init__(self, run_dir: Path, number: int) -> None:
        self.board = Board(f"worker-{number}")
        self.file = BoardFile(run_dir, self.board.process)

    def serve(self, requests: int, failed: int, took: float) -> None:
        board = self.board
        board.counter(REQUESTS, "shop", "pointwise", "OK").value += requests - failed
        board.counter(REQUESTS, "shop", "pointwise", "INTERNAL").value += failed
        for _ in range(requests):
            board.histogram(REQUEST_LATENCY, "shop", "pointwise").observe(took)
            board.histogram(REQUEST_ROWS, "shop", "pointwise").observe(10)
            board.histogram(COMPONENT_LATENCY, "shop", "fetch").observe(took)
            board.histogram(UPSTREAM_LATENCY, "onfs", "fs:1").observe(took)
        board.counter(UPSTREAM_CALLS, "onfs", "fs:1", "OK").value += requests
        board.counter(CRITICAL_PATH, "shop", "fetch").value += requests * took
        self.publish()

    def publish(self) -> None:
        self.file.write(encode(self.board, 1000.0))


def test_quantiles_are_within_their_bucket() -> None:
    counts = [0] * (len(LATENCY_BOUNDS) + 1)
    counts[5], counts[20] = 99, 1
    median, slowest = quantile(counts, LATENCY_BOUNDS, 0.5), quantile(counts, LATENCY_BOUNDS, 1.0)
    assert median is not None
    assert LATENCY_BOUNDS[4] < median < LATENCY_BOUNDS[5]
    assert slowest == pytest.approx(LATENCY_BOUNDS[20])
    assert quantile([0, 0], [1.0], 0.5) is None
    assert quantile([0, 3], [1.0], 0.5) == 1.0


def test_processes_are_added_up(tmp_path: Path) -> None:
    one, two = Worker(tmp_path, 0), Worker(tmp_path, 1)
    one.board.gauge(WORKER_IN_FLIGHT).value = 3
    one.board.gauge(PROCESS_MEMORY).value = 1 << 20
    one.board.counter(COMPONENT_ERROR_ROWS, "shop", "fetch", "UNAVAILABLE").value = 6
    one.board.counter(CACHE_REQUESTS, "shop", "fetch").value = 100
    one.board.counter(CACHE_MISSES, "shop", "fetch").value = 25
    one.board.show(UPSTREAM_CONNECTIONS, {("fs:1", "ready"): 2.0})
    one.board.counter(CACHE_COALESCED, "onfs", "fs:1").value = 4
    one.serve(7, 1, 2.0)
    two.serve(3, 0, 2.0)
    state = overview(Look.now(tmp_path))
    assert [(process["process"], process["state"]) for process in state["processes"]] == [
        ("worker-0", "up"),
        ("worker-1", "up"),
    ]
    assert state["processes"][0]["in_flight"] == 3
    requests = state["requests"]
    assert (requests["total"], requests["failed"], requests["rows"], requests["error_rows"]) == (
        10,
        1,
        100,
        6,
    )
    assert requests["per_second"] is None
    assert 1.4 < requests["p50_ms"] <= 2.0
    (model,) = state["models"]
    assert (model["model"], model["total"], model["cache"]["hits"]) == ("shop", 10, 75)
    assert state["cache"] == {"requests": 100, "hits": 75, "misses": 25, "coalesced": 4}
    (upstream,) = state["upstreams"]
    assert (upstream["endpoint"], upstream["calls"], upstream["failed"]) == ("fs:1", 10, 0)
    assert upstream["connections"]["ready"] == 2
    (component,) = state["components"]
    assert component["critical_path_ms"] == pytest.approx(20)


def test_rates_are_those_between_two_looks(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 0)
    worker.serve(5, 0, 1.0)
    before = Look.now(tmp_path)
    worker.serve(30, 0, 100.0)
    now = Look(Look.now(tmp_path).boards, before.at + 2.0)
    requests = overview(now, before)["requests"]
    assert (requests["total"], requests["per_second"]) == (35, 15.0)
    assert requests["p50_ms"] > 60  # of the newer ones alone


def test_a_restarted_process_is_not_subtracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: 1)
        Worker(tmp_path, 0).serve(50, 0, 1.0)
        before = Look.now(tmp_path)
    Worker(tmp_path, 0).serve(4, 0, 1.0)
    now = Look(Look.now(tmp_path).boards, before.at + 1.0)
    assert overview(now, before)["requests"]["per_second"] == 4


def test_what_people_see(tmp_path: Path) -> None:
    Worker(tmp_path, 0).serve(7, 1, 2.0)
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(render(overview(Look.now(tmp_path))))
    shown = console.export_text()
    assert "7 requests, 1 failed" in shown
    for word in ("worker-0", "shop", "fetch", "fs:1", "up"):
        assert word in shown


def environment(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    monkeypatch.setenv("INFERFLOW_RUN_DIR", str(run_dir))
    monkeypatch.setenv("INFERFLOW_ADMIN_PORT", str(free_port()))


def test_status_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    environment(monkeypatch, tmp_path)
    Worker(tmp_path, 0).serve(7, 1, 2.0)
    assert cli.main(["status", "--json"]) == 1  # no config sidecar answers
    state = json.loads(capfdbinary.readouterr().out)
    assert state["requests"]["total"] == 7
    assert "INFERFLOW_ADMIN_PORT" in state["configs"]["error"]


def test_status_says_what_is_not_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    environment(monkeypatch, tmp_path)
    sidecar = Board("config")
    sidecar.show(CONFIG_KEYS, {("active",): 4.0, ("kept",): 1.0, ("waiting",): 2.0})
    BoardFile(tmp_path, "config").write(encode(sidecar, 1000.0))
    crashes = Crashes(tmp_path)
    for _ in range(LOOP_ENDS):
        crashes.ended("worker_1", "exit status 1")
    assert cli.main(["status"]) == 1
    shown = capfd.readouterr().out
    assert "configs: 1 kept, 2 waiting; `inferflow config list` says why" in shown
    assert "worker_1 ended 3 times in 0 s, the last time by exit status 1" in shown


def test_components_that_nobody_asked_are_not_in_the_way(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 0)
    worker.board.histogram(COMPONENT_LATENCY, "shop", "never_asked")
    worker.serve(7, 1, 2.0)
    console = Console(width=160, file=io.StringIO())
    console.print(render(overview(Look.now(tmp_path))))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "fetch" in shown
    assert "never_asked" not in shown


def test_top_ends_after_some_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    environment(monkeypatch, tmp_path)
    Worker(tmp_path, 0).serve(7, 1, 2.0)
    assert cli.main(["top", "--seconds", "0.1", "--looks", "2"]) == 0
    assert "7 requests" in capfd.readouterr().out


def test_no_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    environment(monkeypatch, tmp_path)
    assert cli.main(["status"]) == 3
    assert f"in {tmp_path} (INFERFLOW_RUN_DIR)" in capsys.readouterr().err
