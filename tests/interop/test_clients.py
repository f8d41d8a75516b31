"""Clients that were not written here: grpcurl, which learns the messages by reflection, and h2load."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format

from proto import predict_pb2
from tests.e2e.asking import POINT, config, score, scores, write_models
from tests.e2e.pod import Pod, UpstreamProcess
from tests.interop.tools import run, tool

pytestmark = [pytest.mark.full, pytest.mark.slow]

CONFIGS = {"shop": config()}


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    models = write_models(tmp_path_factory.mktemp("models"), CONFIGS)
    with UpstreamProcess(models) as upstreams, Pod(CONFIGS, upstreams=upstreams.port) as pod:
        yield pod


def grpcurl(pod: Pod, *arguments: str, stdin: str = "") -> str:
    *options, what = arguments
    return run(tool("grpcurl"), "-plaintext", *options, f"127.0.0.1:{pod.port}", *what.split(), stdin=stdin)


def test_grpcurl_lists_the_services(pod: Pod) -> None:
    assert set(grpcurl(pod, "list").split()) >= {"Inferflow", "Predict", "grpc.health.v1.Health"}
    assert grpcurl(pod, "list Predict").split() == [
        "Predict.InferPairWise",
        "Predict.InferPointWise",
        "Predict.InferSlateWise",
    ]


def test_grpcurl_describes_messages(pod: Pod) -> None:
    described = grpcurl(pod, "describe Predict.InferPointWise")
    assert "rpc InferPointWise ( .PointWiseRequest ) returns ( .PointWiseResponse );" in described
    fields = grpcurl(pod, "describe .PointWiseRequest")
    assert "string model_config_id = 1;" in fields
    assert "repeated .Target targets = 5;" in fields


def test_grpcurl_scores(pod: Pod) -> None:
    question = json_format.MessageToJson(predict_pb2.PointWiseRequest.FromString(score("shop", ["a", "b"])))
    answer = grpcurl(pod, "-d", "@", "Predict/InferPointWise", stdin=question)
    said = json_format.Parse(answer, predict_pb2.PointWiseResponse())
    assert said == scores(pod.call(POINT, score("shop", ["a", "b"])))
    assert [one.output_values[0] for one in said.target_scores] == [b"a", b"b"]


def test_grpcurl_is_told_what_is_wrong(pod: Pod) -> None:
    with pytest.raises(AssertionError) as caught:
        grpcurl(pod, "-d", '{"modelConfigId": "nobody"}', "Predict/InferPointWise")
    assert "Code: InvalidArgument" in str(caught.value)
    assert "Message: model_config_id 'nobody' is unknown" in str(caught.value)


def test_grpcurl_asks_for_health(pod: Pod) -> None:
    answer = grpcurl(pod, "-d", '{"service": "Predict"}', "grpc.health.v1.Health/Check")
    assert json.loads(answer) == {"status": "SERVING"}


def test_h2load(pod: Pod, tmp_path: Path) -> None:
    """Many streams on few connections, by libnghttp2's own client: every request is answered."""
    body = score("shop", ["a", "b"])
    (tmp_path / "body").write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    headers = ("-H", "te: trailers", "-H", "content-type: application/grpc")
    url = f"http://127.0.0.1:{pod.port}{POINT}"
    said = run(tool("h2load"), "-n600", "-c4", "-m16", *headers, "-d", str(tmp_path / "body"), url)
    assert re.search(
        r"requests: 600 total, 600 started, 600 done, 600 succeeded, 0 failed, 0 errored", said
    ), said
    assert "status codes: 600 2xx" in said
