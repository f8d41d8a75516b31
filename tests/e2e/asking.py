"""Configs, requests and answers for tests of the whole pod.

Every config fetches two features and asks one model; what the answers are is taken from `tests.inprocess`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from proto import inferflow_pb2, predict_pb2
from tests.inprocess import InProcess
from tests.upstreams import Upstreams

__all__ = [
    "POINT",
    "RETRIEVE",
    "answers",
    "config",
    "errors",
    "failing",
    "retrieve",
    "score",
    "scores",
    "write_models",
]

RETRIEVE = "/Inferflow/RetrieveModelScore"
POINT = "/Predict/InferPointWise"


def config(model: str = "ranker", *, feature: str = "price") -> bytes:
    """A model config. `slow` in the model's name: it takes 300 ms; `fail`: it is down (see tests.upstreams)."""
    column = f"item:fp32_shop:{feature}"
    return json.dumps(
        {
            "dag_execution_config": {
                "component_dependency": {"fetch": ["feature_initializer"], "rank": ["fetch"]}
            },
            "component_config": {
                "feature_components": [
                    {
                        "component": "fetch",
                        "component_id": "item_id",
                        "fs_keys": [{"schema": "item_id", "col": "item_id"}],
                        "fs_request": {
                            "label": "item",
                            "featureGroups": [
                                {"label": "fp32_shop", "data_type": "FP32", "features": [feature, "stock"]}
                            ],
                        },
                    }
                ],
                "predator_components": [
                    {
                        "component": "rank",
                        "component_id": "item_id",
                        "model_name": model,
                        "model_end_point": "127.0.0.1",
                        "deadline": 2000,
                        "batch_size": 1000,
                        "inputs": [
                            {
                                "name": "in",
                                "features": [column, "item:fp32_shop:stock"],
                                "shape": [2],
                                "data_type": "FP32",
                            }
                        ],
                        "outputs": [
                            {
                                "name": "out",
                                "model_scores": ["score"],
                                "model_scores_dims": [[1]],
                                "data_type": "FP32",
                            }
                        ],
                    }
                ],
            },
            "response_config": {"features": ["item_id", column, "score"]},
        },
        indent=1,
    ).encode()


def write_models(directory: Path, configs: Mapping[str, bytes]) -> Path:
    """Writes the configs where the stand-in of the model server looks for its models; returns the directory."""
    for name, text in configs.items():
        (directory / f"{name}.json").write_bytes(text)
    return directory


def score(model_config_id: str, ids: Iterable[str]) -> bytes:
    """A PointWiseRequest."""
    targets = [predict_pb2.Target(id=one) for one in ids]
    body: bytes = predict_pb2.PointWiseRequest(
        model_config_id=model_config_id, targets=targets
    ).SerializeToString()
    return body


def retrieve(model_config_id: str, ids: Iterable[str]) -> bytes:
    """An InferflowRequestProto."""
    entity = inferflow_pb2.InferflowRequestProto.Entity(entity="item_id", ids=ids)
    request = inferflow_pb2.InferflowRequestProto(model_config_id=model_config_id, entities=[entity])
    body: bytes = request.SerializeToString()
    return body


def answers(configs: Mapping[str, bytes], upstreams: Upstreams, bodies: Iterable[bytes]) -> list[bytes]:
    """What a pod with these configs answers to these PointWise requests while all upstreams are well."""
    with InProcess(configs, upstreams) as service:
        return [service.ask(POINT, body).body for body in bodies]


def scores(body: bytes) -> Any:
    """A PointWiseResponse."""
    return predict_pb2.PointWiseResponse.FromString(body)


def errors(body: bytes) -> list[str]:
    """The error of each target of a PointWiseResponse."""
    return [one.error for one in scores(body).target_scores]


class Caught:
    """What `failing` has caught."""

    error: Any = None

    @property
    def code(self) -> grpc.StatusCode:
        found: grpc.StatusCode = self.error.code()
        return found

    @property
    def message(self) -> str:
        return str(self.error.details())


@contextmanager
def failing() -> Iterator[Caught]:
    """The RpcError that the body must raise."""
    caught = Caught()
    try:
        yield caught
    except grpc.RpcError as error:
        caught.error = error
    assert caught.error is not None, "the call succeeded"
