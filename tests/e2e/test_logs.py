"""Inference logs of the whole pod: what was served is in the topic, and the books balance whatever dies."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cli.log_status import StatusError, ask
from proto import inference_log_pb2, predict_pb2
from tests.e2e.asking import POINT, config, scores, write_models
from tests.e2e.pod import Load, Pod, UpstreamProcess
from tests.frontdoor.process import PATIENCE, eventually
from tests.kafka import Topic, mock_broker

pytestmark = pytest.mark.slow

LATE = (
    "inference log is not delivered",
    "queue of the inference log is full",
    "inference log is not written",
)
FIRST_START = 300.0  # the log sidecar may have to compile its kernels


def logged_config() -> bytes:
    document = json.loads(config())
    document["response_config"]["logging_perc"] = 100
    return json.dumps(document).encode()


CONFIGS = {"shop": logged_config()}


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamProcess]:
    with UpstreamProcess(write_models(tmp_path_factory.mktemp("models"), CONFIGS)) as process:
        yield process


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with mock_broker() as address:
        yield address


def kafka(broker: str, topic: str) -> dict[str, str]:
    return {"KAFKA_BOOTSTRAP_SERVERS": broker, "KAFKA_LOGGING_TOPIC": topic}


def body(tracking_id: str, rows: int) -> bytes:
    targets = [predict_pb2.Target(id=f"item {number}") for number in range(rows)]
    message: bytes = predict_pb2.PointWiseRequest(
        model_config_id="shop", tracking_id=tracking_id, targets=targets
    ).SerializeToString()
    return message


def status(pod: Pod) -> dict[str, Any]:
    """The books; {} while there is no log sidecar."""
    try:
        return ask(pod.run_dir)
    except StatusError:
        return {}


def total(pod: Pod) -> dict[str, Any]:
    return dict(status(pod).get("total", {}))


def lending(pod: Pod, workers: int = 1) -> None:
    """Returns when the log sidecar has all workers."""
    eventually(
        lambda: [one["linked"] for one in status(pod).get("workers", [])].count(True) >= workers,
        "the workers lend",
        pod.text,
        FIRST_START,
    )


def settled(pod: Pod) -> dict[str, Any]:
    """The books, as soon as nothing is held."""
    eventually(lambda: total(pod).get("held") == 0, "everything is settled", lambda: str(status(pod)))
    return total(pod)


def balanced(books: dict[str, Any]) -> bool:
    dropped = sum(books["dropped"].values())
    return bool(books["offered"] == books["lost"] + books["acknowledged"] + dropped + books["held"])


def logged(value: bytes) -> inference_log_pb2.InferflowLog:
    request = inference_log_pb2.KafkaRequest.FromString(value)
    return inference_log_pb2.InferflowLog.FromString(request.value.properties.value)


class Asking:
    """Requests with a tracking id of their own each; counts the rows that were served."""

    def __init__(self, pod: Pod, rows: int = 5) -> None:
        self.rows = rows
        self.served = 0
        self._method = pod.method(POINT)
        self._lock = threading.Lock()
        self._number = 0

    def __call__(self) -> None:
        with self._lock:
            self._number += 1
            number = self._number
        answer = scores(self._method(body(f"t-{number}", self.rows), timeout=PATIENCE))
        assert len(answer.target_scores) == self.rows
        with self._lock:
            self.served += self.rows


def test_what_was_served_is_in_the_topic(upstreams: UpstreamProcess, broker: str) -> None:
    topic = Topic(broker, "served")
    with Pod(CONFIGS, upstreams=upstreams.port, **kafka(broker, "served")) as pod:
        lending(pod)
        served = {}
        for number in range(20):
            metadata = [("user-id", "u1"), ("clp_id", "clp9")]
            answer, call = pod.method(POINT).with_call(body(f"t-{number}", 7), metadata=metadata)
            served[dict(call.trailing_metadata())["inferflow-request-id"]] = scores(answer)
        assert len(served) == 20
        pod.call(POINT, body("", 7))  # without a tracking id: not logged
        books = settled(pod)
        assert (books["offered"], books["acknowledged"], books["dropped"]) == (140, 140, {})
        taken = topic.take(20)
    topic.close()
    for _, key, value in taken:
        log = logged(value)
        answer = served.pop(log.request_id.decode())
        assert key == log.tracking_id.encode()
        assert (log.user_id, list(log.parent_entity)) == ("u1", ["clp9"])
        assert log.endpoints == {"rank": "127.0.0.1"}
        assert list(log.entities) == [f"item {number}" for number in range(7)]
        for row, one in zip(log.features, answer.target_scores, strict=True):
            missing = bytes(4)
            price, score = (value or missing for value in one.output_values[1:])
            assert (row.encoded_features[1:5], row.encoded_features[9:13]) == (price, score)
    assert not served


def test_a_killed_log_sidecar_costs_what_it_held_and_no_request(
    upstreams: UpstreamProcess, broker: str
) -> None:
    topic = Topic(broker, "killed")
    with Pod(CONFIGS, upstreams=upstreams.port, **kafka(broker, "killed")) as pod:
        lending(pod)
        asking = Asking(pod)
        load = Load(asking, 4)
        try:
            eventually(lambda: load.answers >= 100, "answers come")
            pod.kill("inferflow: log sidecar")
            lending(pod)
        finally:
            load.stop()
        assert load.errors == []
        books = settled(pod)
        assert books["offered"] == asking.served
        assert balanced(books)
        assert set(books["dropped"]) <= {"log sidecar away", "log sidecar behind"}
        rows = books["acknowledged"] // asking.rows
        seen = {logged(value).request_id for _, _, value in topic.take(rows)}
        assert len(seen) == rows
    topic.close()


def test_killed_workers_leave_books_that_balance(upstreams: UpstreamProcess, broker: str) -> None:
    topic = Topic(broker, "workers")
    settings = kafka(broker, "workers") | {"INFERFLOW_WORKERS": "2"}
    with Pod(CONFIGS, upstreams=upstreams.port, **settings) as pod:
        lending(pod, 2)
        asking = Asking(pod)
        load = Load(asking, 4)
        try:
            eventually(lambda: load.answers >= 50, "answers come")
            pod.kill("inferflow: worker 0")
            lending(pod, 2)
        finally:
            load.stop()
        assert load.errors == []
        books = settled(pod)
        assert balanced(books)
        assert books["offered"] >= asking.served, "a request that a killed worker had answered may run again"
        topic.take(books["acknowledged"] // asking.rows)
    topic.close()


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def under_load(pod: Pod, clients: int, rows: int, until: Callable[[], bool]) -> Asking:
    asking = Asking(pod, rows)
    load = Load(asking, clients)
    try:
        eventually(until, "the load does what it is to do", lambda: str(status(pod)))
    finally:
        load.stop()
    assert load.errors == []
    return asking


def test_without_a_broker_memory_is_bounded_and_every_row_is_counted(upstreams: UpstreamProcess) -> None:
    with mock_broker() as address:
        pass  # it has gone
    settings = kafka(address, "nowhere") | {
        "INFERFLOW_LOG_QUEUE_BYTES": "2MiB",
        "INFERFLOW_LOG_FILE_BYTES": "1MiB",
        "INFERFLOW_LOG_FLUSH_SECONDS": "1",
    }
    with Pod(CONFIGS, upstreams=upstreams.port, expected_errors=LATE, **settings) as pod:
        lending(pod)
        pid = pod.processes()["inferflow: log sidecar"]
        before = resident(pid)
        asking = under_load(pod, 4, 300, lambda: total(pod)["dropped"].get("queue full", 0) > 30_000)
        books = total(pod)
        assert books["offered"] == asking.served
        assert balanced(books)
        assert (books["acknowledged"], books["lost"]) == (0, 0)
        assert books["held"] > 0
        assert set(books["dropped"]) <= {"queue full", "log sidecar behind"}
        assert resident(pid) - before < 48 << 20
        eventually(
            lambda: pod.ready()[1].get("logs", {}).get("dropped") == total(pod)["dropped"],
            "readiness tells it, too",
            lambda: str(pod.ready()),
        )
        assert "no broker answers" in status(pod)["sink"]
        (line,) = [line for line in pod.logs() if line["message"] == LATE[0]]
        assert line["topic"] == "nowhere"
        time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)  # what is held is dropped, and said so
        eventually(lambda: bool(pod.logged("log sidecar stopped")), "it says what became of all rows")
        final = pod.logged("log sidecar stopped")[0]["books"]
        assert final["held"] == 0
        assert final["dropped"]["stopped"] == books["held"]


def test_logs_in_files(upstreams: UpstreamProcess, tmp_path: Path) -> None:
    settings = {"INFERFLOW_LOG_DIR": str(tmp_path / "logs"), "INFERFLOW_LOG_FILE_SECONDS": "0.5"}
    with Pod(CONFIGS, upstreams=upstreams.port, **settings) as pod:
        lending(pod)
        for number in range(10):
            pod.call(POINT, body(f"t-{number}", 3))
        assert settled(pod)["acknowledged"] == 30
        pod.call(POINT, body("last", 3))  # written at the stop
    values = [
        value for path in (tmp_path / "logs").iterdir() for value in pq.read_table(path)["value"].to_pylist()
    ]
    found = sorted(logged(value).tracking_id for value in values)
    assert found == sorted([*(f"t-{number}" for number in range(10)), "last"])
