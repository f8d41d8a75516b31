"""Boards over DogStatsD, as Prometheus' statsd_exporter reads them: names, types, tags and counts."""

from __future__ import annotations

import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from shared.board import Board
from shared.metrics import REQUEST_LATENCY, REQUEST_ROWS, REQUESTS, STATSD_FAILURES, WORKER_IN_FLIGHT
from shared.settings import Settings, StatsdSettings
from shared.statsd import SAMPLES, StatsdSender
from tests.frontdoor.process import PATIENCE, eventually, free_port
from tests.interop.tools import tool

pytestmark = pytest.mark.full

TAGS = {"model_id": "shop", "inference_mode": "pointwise", "env": "test", "service": "ranking"}
"""As the exporter writes them: a dash is no character of a Prometheus label."""


@contextmanager
def exporter(log: Path) -> Iterator[tuple[int, int]]:
    """A statsd_exporter; the ports that it listens on for packets and for pages."""
    packets, pages = free_port(), free_port()
    command = [
        str(tool("statsd_exporter")),
        f"--statsd.listen-udp=127.0.0.1:{packets}",
        "--statsd.listen-tcp=",
        f"--web.listen-address=127.0.0.1:{pages}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            eventually(lambda: _serves(pages), "the exporter listens", log.read_text)
            yield packets, pages
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _serves(port: int) -> bool:
    """Whether it is up: it opens its pages last."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def read(port: int) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as page:
        return {family.name: family for family in text_string_to_metric_families(page.read().decode())}


def total(families: dict[str, Metric], name: str) -> float:
    """Over all series of a name; 0 where there is none: a counter of errors appears with the first."""
    found = families[name].samples if name in families else []
    return sum(one.value for one in found if one.name.removesuffix("_total") == name)


def test_ten_thousand_requests(tmp_path: Path) -> None:
    board = Board("worker-0")
    requests = board.counter(REQUESTS, "shop", "pointwise", "OK")
    latency = board.histogram(REQUEST_LATENCY, "shop", "pointwise")
    rows = board.histogram(REQUEST_ROWS, "shop", "pointwise")
    board.gauge(WORKER_IN_FLIGHT).value = 7
    with exporter(tmp_path / "log") as (packets, pages):
        statsd = StatsdSettings(host="127.0.0.1", port=packets)
        sender = StatsdSender(Settings(environment="test", name="ranking", statsd=statsd), board)
        for number in range(10_000):
            requests.value += 1
            latency.observe(number % 40 + 0.5)
            rows.observe(3)
            if number % 1000 == 999:
                sender.send()
        sender.close()

        def counted() -> bool:  # a packet after the other
            families = read(pages)
            timings = ("predict_infer_latency", "predict_infer_request_latency")
            return (
                total(families, "predict_infer_request") == 10_000
                and total(families, "predict_infer_request_batch_size") == 30_000
                and families.keys() >= set(timings)
                and all(
                    one.value == 10_000
                    for timing in timings
                    for one in families[timing].samples
                    if one.name.endswith("_count")
                )
            )

        eventually(counted, "all are counted", lambda: repr(read(pages)))
        families = read(pages)
        found = families["predict_infer_request"]  # the parser takes _total off
        assert found.type == "counter"
        (sample,) = found.samples
        assert sample.labels == TAGS
        for timing in ("predict_infer_latency", "predict_infer_request_latency"):
            assert families[timing].type == "summary"
            (count,) = [one for one in families[timing].samples if one.name.endswith("_count")]
            assert count.labels == TAGS
            # A rate of 8 in 1,000 makes each line stand for 125.
            assert count.value == 10_000 == 10 * SAMPLES * 125
            (added,) = [one.value for one in families[timing].samples if one.name.endswith("_sum")]
            assert 0.5 < added / count.value * 1000 < 39.5  # the exporter shows seconds
        (gauge,) = families["inferflow_worker_in_flight"].samples
        assert (gauge.value, gauge.labels["process"]) == (7, "worker-0")
        assert total(families, "statsd_exporter_sample_errors") == 0
        assert total(families, "statsd_exporter_tag_errors") == 0
        assert board.counter(STATSD_FAILURES).value == 0
