"""The Prometheus page, read by the parsers of prometheus-client."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from shared.board import Board
from shared.board_file import BoardFile, encode
from shared.metrics import REQUEST_LATENCY, REQUEST_ROWS, REQUESTS, WORKER_IN_FLIGHT
from sidecar.exposition import page

OPEN = "application/openmetrics-text; version=1.0.0"


def publish(run_dir: Path, number: int, requests: int) -> None:
    board = Board(f"worker-{number}")
    board.counter(REQUESTS, "m", "pointwise", "OK").value = requests
    board.gauge(WORKER_IN_FLIGHT).value = 3
    latency = board.histogram(REQUEST_LATENCY, "m", "pointwise")
    for value in (0.01, 0.08, 3.0, 1e9):
        latency.observe(value)
    latency.observe_traced(5.0, "ab" * 16)
    board.histogram(REQUEST_ROWS, "m", "pointwise").observe(200)
    BoardFile(run_dir, board.process).write(encode(board, 1000.0))


def test_all_processes_are_on_the_page(tmp_path: Path) -> None:
    for number in range(2):
        publish(tmp_path, number, 5 + number)
    text = page(tmp_path, "").body.decode()
    families = {family.name: family for family in plain(text)}
    samples = families["inferflow_requests"].samples
    assert {(sample.labels["process"], sample.value) for sample in samples} == {
        ("worker-0", 5),
        ("worker-1", 6),
    }
    assert all(sample.labels["model"] == "m" for sample in samples)
    assert [sample.value for sample in families["inferflow_process_up"].samples] == [1, 1]


def test_buckets_are_cumulative_and_end_with_all(tmp_path: Path) -> None:
    publish(tmp_path, 0, 1)
    families = {family.name: family for family in plain(page(tmp_path, "").body.decode())}
    samples = families["inferflow_request_latency_milliseconds"].samples
    buckets = {one.labels["le"]: one.value for one in samples if one.name.endswith("_bucket")}
    assert (buckets["0.0625"], buckets["0.125"], buckets["4.0"], buckets["8.0"]) == (1, 2, 3, 4)
    assert buckets["65536.0"] == 4
    assert buckets["+Inf"] == 5
    assert len(buckets) == 22
    (count,) = [one.value for one in samples if one.name.endswith("_count")]
    assert count == 5


def test_openmetrics_has_exemplars(tmp_path: Path) -> None:
    publish(tmp_path, 0, 1)
    found = page(tmp_path, OPEN)
    assert found.content_type.startswith("application/openmetrics-text")
    exemplars = [
        (sample.labels["le"], sample.exemplar)
        for family in open_metrics(found.body.decode())
        for sample in family.samples
        if sample.exemplar
    ]
    ((bound, exemplar),) = exemplars
    assert float(bound) == 8.0
    assert (exemplar.labels, exemplar.value) == ({"trace_id": "ab" * 16}, 5.0)


def test_a_process_that_has_gone_keeps_its_counts_and_loses_its_gauges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: (1 << 22) + 1)  # above all ids of processes
        publish(tmp_path, 0, 5)
    text = page(tmp_path, "").body.decode()
    assert "inferflow_requests_total{" in text
    assert 'inferflow_process_up{process="worker-0"} 0.0' in text
    assert "inferflow_worker_in_flight{" not in text
