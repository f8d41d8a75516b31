"""What a pod says of itself is what was sent to it: on Prometheus, on DogStatsD and in `inferflow status`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proto import onfs_pb2
from tests.agent import Agent
from tests.e2e.asking import POINT, RETRIEVE, config, failing, retrieve, score, write_models
from tests.e2e.pod import Pod, UpstreamProcess
from tests.frontdoor.process import PATIENCE, ROOT, eventually
from tests.upstreams import FETCH

pytestmark = pytest.mark.slow


def cached() -> bytes:
    """A config whose features are cached."""
    document = json.loads(config())
    parts = document["component_config"]
    parts["cache_enabled"] = parts["feature_components"][0]["comp_cache_enabled"] = True
    return json.dumps(document).encode()


CONFIGS = {"shop": config(), "down": config("fail_ranker"), "cached": cached()}
SHOP, DOWN, RETRIEVED, WRONG = 40, 7, 5, 3
"""Requests of each kind."""
ROWS, DOWN_ROWS, RETRIEVED_ROWS = 11, 4, 2
"""Rows of one request of each."""


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent() as agent:
        yield agent


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamProcess]:
    with UpstreamProcess(write_models(tmp_path_factory.mktemp("models"), CONFIGS)) as upstreams:
        yield upstreams


@pytest.fixture(scope="module")
def pod(agent: Agent, upstreams: UpstreamProcess) -> Iterator[Pod]:
    with (
        Pod(
            CONFIGS,
            upstreams=upstreams.port,
            EXTERNAL_SERVICE_ONFS_FS_BATCH_SIZE="500",
            INFERFLOW_WORKERS="2",
            TELEGRAF_HOST="localhost",
            TELEGRAF_PORT=str(agent.port),
            APP_ENV="test",
        ) as pod,
    ):
        for number in range(SHOP):
            pod.call(POINT, score("shop", (f"item-{number}-{row}" for row in range(ROWS))))
        for _ in range(DOWN):
            pod.call(POINT, score("down", (f"item-{row}" for row in range(DOWN_ROWS))))
        for _ in range(RETRIEVED):
            pod.call(RETRIEVE, retrieve("shop", ["a", "b"]))
        for _ in range(WRONG):
            with failing():
                pod.call(POINT, score("nobody", ["a"]))
        yield pod


def prometheus(pod: Pod) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample of the page: name → (labels, value)."""
    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(pod.admin("/metrics")):
        for sample in family.samples:
            found[sample.name].append((dict(sample.labels), float(sample.value)))
    return found


def total(samples: list[tuple[dict[str, str], float]], **labels: str) -> float:
    return sum(value for own, value in samples if own.items() >= labels.items())


def test_prometheus_counts_what_was_sent(pod: Pod) -> None:
    def all_are_there() -> bool:  # workers and front doors publish at different moments
        found = prometheus(pod)
        names = "inferflow_requests_total", "inferflow_router_latency_milliseconds_count"
        return all(total(found[name]) == SHOP + DOWN + RETRIEVED + WRONG for name in names)

    eventually(all_are_there, "all requests are counted", pod.text)
    found = prometheus(pod)
    requests = found["inferflow_requests_total"]
    assert total(requests, model="shop", mode="pointwise", status="OK") == SHOP
    assert total(requests, model="shop", mode="retrieve", status="OK") == RETRIEVED
    assert total(requests, model="down", status="OK") == DOWN
    assert total(requests, model="", status="INVALID_ARGUMENT") == WRONG
    assert {labels["model"] for labels, _ in requests} == {"shop", "down", ""}
    rows = found["inferflow_request_rows_sum"]
    assert total(rows, model="shop", mode="pointwise") == SHOP * ROWS
    assert total(rows, mode="retrieve") == RETRIEVED * RETRIEVED_ROWS
    failed = found["inferflow_component_error_rows_total"]
    assert (
        total(failed)
        == total(failed, model="down", component="rank", error="UNAVAILABLE")
        == DOWN * DOWN_ROWS
    )
    assert total(found["inferflow_component_errors_total"]) == DOWN
    times = found["inferflow_component_latency_milliseconds_count"]
    assert total(times, component="fetch") == total(times, component="rank") == SHOP + DOWN + RETRIEVED
    calls = found["inferflow_upstream_calls_total"]
    assert total(calls, service="onfs", status="OK") == SHOP + DOWN + RETRIEVED
    assert total(calls, service="predator", status="UNAVAILABLE") == DOWN
    routed = found["inferflow_router_latency_milliseconds_count"]
    assert total(routed, api="InferPointWise", status="OK") == SHOP + DOWN
    assert total(routed, api="InferPointWise", status="INVALID_ARGUMENT") == WRONG
    assert total(routed, api="RetrieveModelScore") == RETRIEVED
    assert total(found["inferflow_handover_latency_milliseconds_count"]) == SHOP + DOWN + RETRIEVED + WRONG
    path = found["inferflow_critical_path_milliseconds_total"]
    assert (
        0
        < total(path, model="shop")
        <= total(found["inferflow_request_latency_milliseconds_sum"], model="shop")
    )


def test_prometheus_shows_every_process(pod: Pod) -> None:
    def all_are_there() -> bool:
        found = prometheus(pod)  # each process publishes at its own moment
        versions = [value for _, value in found["inferflow_config_version"]]
        ready = total(found["inferflow_frontdoor_workers"], state="ready")
        return ready == 2 and len(versions) == 3 and 0 not in versions

    eventually(all_are_there, "both workers are ready", pod.text)
    found = prometheus(pod)
    up = {labels["process"]: value for labels, value in found["inferflow_process_up"]}
    assert up == {"config": 1, "frontdoor-0": 1, "log": 1, "worker-0": 1, "worker-1": 1}
    versions = {labels["process"]: value for labels, value in found["inferflow_config_version"]}
    assert versions.keys() == {"config", "worker-0", "worker-1"}
    assert len(set(versions.values())) == 1
    assert total(found["inferflow_config_keys"], state="active") == len(CONFIGS)
    assert total(found["inferflow_upstream_connections"], state="ready") >= 1
    assert total(found["inferflow_worker_in_flight"]) == 0
    assert total(found["inferflow_slots_busy"]) == 0


def test_dogstatsd_counts_what_was_sent(pod: Pod, agent: Agent) -> None:
    ends = ("env:test", "service:golden")
    eventually(
        lambda: agent.count("predict.infer.request.total", *ends) == SHOP + DOWN + WRONG,
        "all requests are counted",
        lambda: repr(agent.counts),
    )
    shop = ("model-id:shop", "inference-mode:pointwise", *ends)
    assert agent.count("predict.infer.request.total", *shop) == SHOP
    assert agent.count("predict.infer.request.batch.size", *shop) == SHOP * ROWS
    assert agent.observed("predict.infer.latency", *shop) == pytest.approx(SHOP)
    assert agent.observed("predict.infer.request.latency", *shop) == pytest.approx(SHOP)
    assert agent.count("inferflow.retrievemodelscore.request.total", "model-id:shop", *ends) == RETRIEVED
    assert agent.count("inferflow.retrievemodelscore.batch.size") == RETRIEVED * RETRIEVED_ROWS
    ranked = ("component-name:rank", *ends)
    assert agent.count("inferflow.component.execution.total", *ranked) == SHOP + DOWN + RETRIEVED
    error = ("model-id:down", "error-type:UNAVAILABLE", *ranked)
    assert agent.count("inferflow.component.execution.error", *error) == DOWN
    fetched = ("component-name:fetch", *ends)
    assert agent.count("inferflow.component.feature.count", *fetched) == 2 * (SHOP + DOWN + RETRIEVED)
    onfs = ("ext-service:onfs", *ends)
    assert agent.count("inferflow.external.api.request.total", *onfs) == SHOP + DOWN + RETRIEVED
    rows = SHOP * ROWS + DOWN * DOWN_ROWS + RETRIEVED * RETRIEVED_ROWS
    assert agent.count("inferflow.external.api.request.batch", *onfs) == rows
    routed = ("api:InferPointWise", "status:OK", *ends)
    eventually(
        lambda: agent.count("inferflow.router.api.request.total", *routed) == SHOP + DOWN, "they are routed"
    )
    assert agent.bad == []


def status(pod: Pod) -> Any:
    run = subprocess.run(
        [sys.executable, "-m", "cli.main", "status", "--json"],
        cwd=pod.home,
        env={**pod.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    return json.loads(run.stdout)


def test_status_counts_what_was_sent(pod: Pod) -> None:
    state = status(pod)
    requests = state["requests"]
    assert (requests["total"], requests["failed"]) == (SHOP + DOWN + RETRIEVED + WRONG, WRONG)
    assert requests["rows"] == SHOP * ROWS + DOWN * DOWN_ROWS + RETRIEVED * RETRIEVED_ROWS
    assert requests["error_rows"] == DOWN * DOWN_ROWS
    models = {model["model"]: model for model in state["models"]}
    assert models["down"]["error_rows"] == DOWN * DOWN_ROWS
    assert models["shop"]["total"] == SHOP + RETRIEVED
    failed = {one["service"]: (one["calls"], one["failed"]) for one in state["upstreams"]}
    assert failed == {"onfs": (SHOP + DOWN + RETRIEVED, 0), "predator": (SHOP + DOWN + RETRIEVED, DOWN)}
    assert {process["state"] for process in state["processes"]} == {"up"}
    assert state["configs"]["active"] is not None


def test_cached_reads_are_counted(pod: Pod, agent: Agent, upstreams: UpstreamProcess) -> None:
    """The last test: it asks for more."""
    upstreams.take_calls()
    for _ in range(8):
        pod.call(POINT, score("cached", ["a", "b", "c"]))
    fetches = [call.request for call in upstreams.take_calls() if call.path == FETCH]
    asked, missed = 8 * 3, sum(len(onfs_pb2.Query.FromString(body).keys) for body in fetches)
    assert 3 <= missed < asked
    labels = {"model": "cached", "component": "fetch"}
    eventually(
        lambda: total(prometheus(pod)["inferflow_cache_requests_total"], **labels) == asked,
        "all reads are counted",
        pod.text,
    )
    assert total(prometheus(pod)["inferflow_cache_misses_total"], **labels) == missed
    tags = ("model-id:cached", "component-name:fetch")
    name = "inferflow.component.inmemorycache"
    eventually(lambda: agent.count(f"{name}.request.total", *tags) == asked, "the agent knows")
    assert agent.count(f"{name}.miss", *tags) == missed
    assert agent.count(f"{name}.request.miss.total", *tags) == missed
    cache = status(pod)["cache"]
    assert (cache["requests"], cache["hits"], cache["misses"]) == (asked, asked - missed, missed)
