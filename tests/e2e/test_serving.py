"""A pod that is well, and clients of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from proto import inferflow_pb2, predict_pb2
from tests.e2e.asking import (
    POINT,
    RETRIEVE,
    answers,
    config,
    errors,
    failing,
    retrieve,
    score,
    scores,
    write_models,
)
from tests.e2e.pod import Pod, UpstreamProcess
from tests.frontdoor.process import PATIENCE, eventually
from tests.upstreams import FETCH, INFER, Upstreams

pytestmark = pytest.mark.slow

Code = grpc.StatusCode
CONFIGS = {
    "shop": config(),
    "patient": config("slow_ranker"),
    "down": config("fail_ranker"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), CONFIGS)


@pytest.fixture(scope="module")
def upstreams(models: Path) -> Iterator[UpstreamProcess]:
    with UpstreamProcess(models) as upstreams:
        yield upstreams


@pytest.fixture(scope="module")
def pod(upstreams: UpstreamProcess) -> Iterator[Pod]:
    with Pod(CONFIGS, upstreams=upstreams.port, EXTERNAL_SERVICE_ONFS_FS_BATCH_SIZE="500") as pod:
        yield pod


# --- answers


def test_ten_thousand_targets(pod: Pod, models: Path) -> None:
    body = score("shop", (f"item-{number}" for number in range(10_000)))
    (expected,) = answers(CONFIGS, Upstreams.load(models), [body])
    answer = pod.call(POINT, body)
    assert answer == expected
    assert len(scores(answer).target_scores) == 10_000
    assert set(errors(answer)) == {""}


def test_gzip_requests_are_read(pod: Pod) -> None:
    body = score("shop", ["a", "b"])
    compressed = pod.method(POINT)(body, timeout=PATIENCE, compression=grpc.Compression.Gzip)
    assert compressed == pod.call(POINT, body)


def test_both_services_answer_the_same_scores(pod: Pod) -> None:
    rows = inferflow_pb2.InferflowResponseProto.FromString(pod.call(RETRIEVE, retrieve("shop", ["a", "b"])))
    assert not rows.HasField("error")
    assert list(rows.component_data[0].data) == ["item_id", "item:fp32_shop:price", "score"]
    assert [row.data[0] for row in rows.component_data[1:]] == ["a", "b"]
    assert all(row.data[2] for row in rows.component_data[1:])


# --- what clients get wrong, and are told through all processes


def test_unknown_config(pod: Pod) -> None:
    with failing() as caught:
        pod.call(POINT, score("nobody", ["a"]))
    assert (caught.code, caught.message) == (
        Code.INVALID_ARGUMENT,
        "model_config_id 'nobody' is unknown",
    )


@pytest.mark.parametrize("body", [b"\xff\xff", b"garbage that is no message", b"\x0a\xff\xff\xff\xff\x0f"])
@pytest.mark.parametrize("rpc", [POINT, RETRIEVE])
def test_garbage(pod: Pod, rpc: str, body: bytes) -> None:
    with failing() as caught:
        pod.call(rpc, body)
    assert caught.code is Code.INVALID_ARGUMENT
    assert f"the body of {len(body)} bytes is no " in caught.message


def test_a_body_over_four_mebibytes(pod: Pod) -> None:
    limit = 4 << 20
    with failing() as caught:
        pod.call(POINT, bytes(limit + 1))
    assert caught.code is Code.RESOURCE_EXHAUSTED
    assert str(limit + 1) in caught.message
    assert str(limit) in caught.message


def test_unknown_methods(pod: Pod) -> None:
    for rpc in ("/Predict/InferListWise", "/predict.Predict/InferPointWise"):
        with failing() as caught:
            pod.call(rpc, score("shop", ["a"]))
        assert caught.code is Code.UNIMPLEMENTED


# --- time


def test_a_deadline_is_kept_though_the_model_is_slower(pod: Pod) -> None:
    """The model takes 300 ms: when the deadline has passed it has not even answered who came before."""
    patient = pod.method(POINT).future(score("patient", ["a"]), timeout=PATIENCE)
    with failing() as caught:
        pod.call(POINT, score("patient", ["a"]), timeout=0.05)
    assert caught.code is Code.DEADLINE_EXCEEDED
    assert not patient.done()
    assert errors(patient.result()) == [""]


def test_the_pod_itself_keeps_the_deadline(pod: Pod) -> None:
    """This client states a deadline, and would wait longer."""
    with failing() as caught:
        pod.call(POINT, score("patient", ["a"]), timeout=None, metadata={"grpc-timeout": "50m"})
    assert caught.code is Code.DEADLINE_EXCEEDED


def test_a_late_model_is_waited_for_within_the_deadline(pod: Pod) -> None:
    assert errors(pod.call(POINT, score("patient", ["a"]))) == [""]


# --- upstreams that fail


def test_a_model_that_is_down_marks_every_row(pod: Pod) -> None:
    answer = scores(pod.call(POINT, score("down", ["a", "b"])))
    assert answer.request_error == "rank: UNAVAILABLE: model is down"
    assert [one.error for one in answer.target_scores] == [answer.request_error] * 2
    assert [one.output_values[0] for one in answer.target_scores] == [b"a", b"b"]


def test_a_model_that_is_down_is_told_to_retrieve(pod: Pod) -> None:
    body = pod.call(RETRIEVE, retrieve("down", ["a", "b"]))
    rows = inferflow_pb2.InferflowResponseProto.FromString(body)
    assert rows.error.message == "rank: UNAVAILABLE: model is down"
    assert len(rows.component_data) == 3


def test_rows_of_a_failed_call_are_marked_and_others_are_not(pod: Pod) -> None:
    """The feature store fails calls with the key `boom`; 500 keys go into one call."""
    ids = [str(number) for number in range(700)]
    ids[650] = "boom"
    answer = scores(pod.call(POINT, score("shop", ids)))
    assert answer.request_error == ""
    assert [one.error for one in answer.target_scores] == [""] * 500 + ["fetch: INTERNAL: boom"] * 200


def test_an_upstream_that_dies_and_comes_back(pod: Pod, upstreams: UpstreamProcess) -> None:
    body = score("shop", ["a", "b"])
    well, processes = pod.call(POINT, body), pod.processes()
    upstreams.kill()
    try:
        answer = scores(pod.call(POINT, body))
        assert [one.output_values[0] for one in answer.target_scores] == [b"a", b"b"]
        assert all(one.error.startswith("fetch: UNAVAILABLE: ") for one in answer.target_scores)
        assert answer.request_error
    finally:
        upstreams.start()
    eventually(lambda: pod.call(POINT, body) == well, "the rows are whole again", pod.text)
    assert pod.processes() == processes, "without a restart"


# --- health, reflection, HTTP


def test_http(pod: Pod) -> None:
    assert pod.get("/health/self") == (200, "true")
    status, document = pod.ready()
    assert (status, document["ready"]) == (200, True)
    assert document["version"] > 0
    assert pod.get("/nowhere")[0] == 404


def test_health_check(pod: Pod) -> None:
    stub = health_pb2_grpc.HealthStub(pod.channel)
    for service in ("", "Inferflow", "Predict"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with failing() as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=PATIENCE)
    assert caught.code is Code.NOT_FOUND


def test_health_watch_follows_the_workers(pod: Pod) -> None:
    stub = health_pb2_grpc.HealthStub(pod.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="Predict"), timeout=PATIENCE)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert next(watch).status == serving
    pod.kill("inferflow: worker 0")
    assert next(watch).status == not_serving
    assert next(watch).status == serving
    watch.cancel()
    pod.wait_ready()


def ask_reflection(pod: Pod, **question: str) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(pod.channel)
    request = reflection_pb2.ServerReflectionRequest(**question)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE)
    return answer


def test_reflection_lists_the_services(pod: Pod) -> None:
    listed = ask_reflection(pod, list_services="").list_services_response.service
    assert {"Inferflow", "Predict"} <= {service.name for service in listed}


def test_reflection_describes_the_methods(pod: Pod) -> None:
    described = ask_reflection(pod, file_containing_symbol="Predict")
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in described.file_descriptor_response.file_descriptor_proto
    ]
    own = descriptor_pb2.FileDescriptorProto()
    predict_pb2.DESCRIPTOR.CopyToProto(own)
    assert own in files


# --- what is asked of the upstreams


def test_upstreams_are_asked_once_for_what_is_needed(pod: Pod, upstreams: UpstreamProcess) -> None:
    upstreams.take_calls()
    pod.call(POINT, score("shop", ["a", "b", "a"]))
    fetch, infer = upstreams.take_calls()
    assert (fetch.path, infer.path) == (FETCH, INFER)
    assert fetch.metadata["online-feature-store-caller-id"] == "caller"
    assert fetch.request.count(b"\x0a\x01a") == 1  # each distinct key once
