"""Asks the service over gRPC, with grpcio and nothing else of Inferflow but its messages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType

__all__ = ["Answer", "Client", "Row", "Value", "decode"]

Value = str | int | float | bool | list[Any] | None
TIMEOUT = 30.0


@dataclass(frozen=True)
class Row:
    """One scored target, pair or slate: its values by column name, and what went wrong (empty: nothing)."""

    values: Mapping[str, Value]
    error: str

    def __getitem__(self, name: str) -> Value:
        return self.values.get(name)

    def number(self, name: str) -> float:
        """A numeric value, NaN when there is none."""
        value = self.values.get(name)
        return float(value) if isinstance(value, int | float) else float("nan")


@dataclass(frozen=True)
class Answer:
    """Scored targets, and scored pairs or slates when those were asked for, in the order asked.

    `error` says why no row could be scored.
    """

    targets: list[Row]
    groups: list[Row] = field(default_factory=list)
    error: str = ""


class Client:
    """Calls of the four methods. `took` has the milliseconds of every call by method name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.took: dict[str, list[float]] = {}
        self._channel = grpc.insecure_channel(address)

    def __repr__(self) -> str:
        return f"<Client of {self.address}, {sum(map(len, self.took.values()))} calls>"

    def close(self) -> None:
        self._channel.close()

    def point_wise(self, config: str, ids: Iterable[str], tracking_id: str = "") -> Answer:
        """The targets' columns. A request with a tracking id is logged. Raises grpc.RpcError, as do the others."""
        request = predict_pb2.PointWiseRequest(
            model_config_id=config, tracking_id=tracking_id, targets=_targets(ids)
        )
        reply = self._call("Predict", "InferPointWise", request, predict_pb2.PointWiseResponse)
        return Answer(_rows(reply.target_output_schema, reply.target_scores), error=reply.request_error)

    def pair_wise(self, config: str, ids: Iterable[str], pairs: Iterable[tuple[int, int]]) -> Answer:
        """Targets, and pairs of indices into them."""
        request = predict_pb2.PairWiseRequest(model_config_id=config, targets=_targets(ids))
        for first, second in pairs:
            request.pairs.add(first_target_index=first, second_target_index=second)
        reply = self._call("Predict", "InferPairWise", request, predict_pb2.PairWiseResponse)
        return Answer(
            _rows(reply.target_output_schema, reply.target_scores),
            _rows(reply.pair_output_schema, reply.pair_scores),
            reply.request_error,
        )

    def slate_wise(self, config: str, ids: Iterable[str], slates: Iterable[Sequence[int]]) -> Answer:
        """Targets, and slates of indices into them."""
        request = predict_pb2.SlateWiseRequest(model_config_id=config, targets=_targets(ids))
        for indices in slates:
            request.slates.add(target_indices=indices)
        reply = self._call("Predict", "InferSlateWise", request, predict_pb2.SlateWiseResponse)
        return Answer(
            _rows(reply.target_output_schema, reply.target_scores),
            _rows(reply.slate_output_schema, reply.slate_scores),
            reply.request_error,
        )

    def retrieve(self, config: str, entity: str, ids: Iterable[str]) -> list[list[str]]:
        """The column names, then a row of texts for each id."""
        request = inferflow_pb2.InferflowRequestProto(model_config_id=config)
        request.entities.add(entity=entity, ids=ids)
        reply = self._call("Inferflow", "RetrieveModelScore", request, inferflow_pb2.InferflowResponseProto)
        return [list(row.data) for row in reply.component_data]

    def _call(self, service: str, method: str, request: Any, response: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        start = time.perf_counter()
        reply = call(request, timeout=TIMEOUT)
        self.took.setdefault(method, []).append((time.perf_counter() - start) * 1000)
        return reply


def _targets(ids: Iterable[str]) -> list[predict_pb2.Target]:
    return [predict_pb2.Target(id=target) for target in ids]


def _rows(schema: Sequence[predict_pb2.FeatureSchema], scores: Iterable[Any]) -> list[Row]:
    return [
        Row(
            {
                column.name: decode(value, DataType(column.data_type))
                for column, value in zip(schema, score.output_values, strict=False)
            },
            score.error,
        )
        for score in scores
    ]


def decode(value: bytes, kind: DataType) -> Value:
    """A wire value as Python has it; None for no bytes. Raises ValueError when the length does not fit."""
    if not value:
        return None
    if kind.element is DataType.STRING:
        return value.decode()
    elements: list[Any] = np.frombuffer(value, kind.dtype).tolist()
    if kind.element is DataType.BOOL:
        elements = [bool(element) for element in elements]
    if kind.is_vector:
        return elements
    if len(elements) != 1:
        raise ValueError(f"{len(value)} bytes are no {kind.name}")
    one: Value = elements[0]
    return one
