from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from demo.client import Client, decode
from demo.serving import Failure, Metadata, Method, start
from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (b"", DataType.FP32, None),
        (b"\x2c\x01", DataType.INT16, 300),
        (struct.pack("<f", 0.5), DataType.FP32, 0.5),
        ("é".encode(), DataType.STRING, "é"),
        (b"\x01", DataType.BOOL, True),
        (struct.pack("<2f", 1, 2), DataType.FP32_VECTOR, [1.0, 2.0]),
    ],
)
def test_values(value: bytes, kind: DataType, expected: object) -> None:
    assert decode(value, kind) == expected


def test_a_scalar_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="8 bytes are no FP32"):
        decode(bytes(8), DataType.FP32)


class Service:
    """Answers each target with its id and number, each group with the sum of its indices."""

    schema = predict_pb2.FeatureSchema(name="id", data_type=predict_pb2.DataTypeString)
    total = predict_pb2.FeatureSchema(name="total", data_type=predict_pb2.DataTypeInt32)

    def targets(self, request: Any) -> list[predict_pb2.TargetScore]:
        return [predict_pb2.TargetScore(output_values=[target.id.encode()]) for target in request.targets]

    def point(self, request: Any, _: Metadata) -> Any:
        if request.model_config_id != "known":
            raise Failure(grpc.StatusCode.INVALID_ARGUMENT, "no such config")
        return predict_pb2.PointWiseResponse(
            target_output_schema=[self.schema],
            target_scores=self.targets(request),
            request_error="half of it",
        )

    def pair(self, request: Any, _: Metadata) -> Any:
        sums = [pair.first_target_index + 10 * pair.second_target_index for pair in request.pairs]
        return predict_pb2.PairWiseResponse(
            target_output_schema=[self.schema],
            target_scores=self.targets(request),
            pair_output_schema=[self.total],
            pair_scores=[predict_pb2.PairScore(output_values=[struct.pack("<i", total)]) for total in sums],
        )

    def slate(self, request: Any, _: Metadata) -> Any:
        scores = [
            predict_pb2.SlateScore(output_values=[struct.pack("<i", sum(slate.target_indices))])
            for slate in request.slates
        ]
        scores[-1] = predict_pb2.SlateScore(error="the model is away")
        return predict_pb2.SlateWiseResponse(slate_output_schema=[self.total], slate_scores=scores)

    def retrieve(self, request: Any, _: Metadata) -> Any:
        rows = [[request.entities[0].entity], *([target] for target in request.entities[0].ids)]
        data = [inferflow_pb2.InferflowResponseProto.ComponentData(data=row) for row in rows]
        return inferflow_pb2.InferflowResponseProto(component_data=data)


@pytest.fixture
def client() -> Iterator[Client]:
    service = Service()
    methods = {
        "Predict": {
            "InferPointWise": Method(predict_pb2.PointWiseRequest, service.point),
            "InferPairWise": Method(predict_pb2.PairWiseRequest, service.pair),
            "InferSlateWise": Method(predict_pb2.SlateWiseRequest, service.slate),
        },
        "Inferflow": {"RetrieveModelScore": Method(inferflow_pb2.InferflowRequestProto, service.retrieve)},
    }
    server, port = start(methods)
    opened = Client(f"127.0.0.1:{port}")
    yield opened
    opened.close()
    server.stop(0).wait()


def test_the_four_methods(client: Client) -> None:
    answer = client.point_wise("known", ["a", "b"])
    assert ([row["id"] for row in answer.targets], answer.error) == (["a", "b"], "half of it")
    pairs = client.pair_wise("any", ["a", "b"], [(0, 1), (1, 0)])
    assert [row["total"] for row in pairs.groups] == [10, 1]
    assert [row["id"] for row in pairs.targets] == ["a", "b"]
    slates = client.slate_wise("any", ["a", "b", "c"], [[0, 1, 2], [1]])
    whole, failed = slates.groups
    assert (whole.number("total"), whole.error) == (3, "")
    assert (math.isnan(failed.number("total")), failed.error) == (True, "the model is away")
    assert client.retrieve("any", "flight_id", ["x"]) == [["flight_id"], ["x"]]
    assert {name: len(times) for name, times in client.took.items()} == {
        "InferPointWise": 1,
        "InferPairWise": 1,
        "InferSlateWise": 1,
        "RetrieveModelScore": 1,
    }


def test_a_refused_request_raises(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as error:
        client.point_wise("unknown", ["a"])
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.took == {}
