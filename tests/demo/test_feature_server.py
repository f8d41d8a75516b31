from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from demo.feature_server import CALLER_HEADER, TOKEN_HEADER, FeatureStore, services
from demo.serving import Failure, start
from proto import onfs_pb2
from tests.demo.samples import tables

METADATA = {CALLER_HEADER: "test", TOKEN_HEADER: "secret"}


def store() -> FeatureStore:
    return FeatureStore(tables(), "secret")


def query(
    entity: str, groups: list[tuple[str, list[str]]], schema: list[str], keys: list[list[str]]
) -> onfs_pb2.Query:
    return onfs_pb2.Query(
        entity_label=entity,
        feature_groups=[
            onfs_pb2.FeatureGroup(label=label, feature_labels=features) for label, features in groups
        ],
        keys_schema=schema,
        keys=[onfs_pb2.Keys(cols=cols) for cols in keys],
    )


FLIGHT = [("schedule", ["distance"]), ("keys", ["origin", "tailnum"])]


def columns(result: onfs_pb2.Result) -> list[list[bytes]]:
    return [list(row.columns) for row in result.rows]


def test_rows_are_in_key_order_and_an_unknown_key_is_a_row_of_nothing() -> None:
    asked = [["f2"], ["nobody"], ["f1"], ["f2"], [""]]
    result = store().retrieve(query("flight", FLIGHT, ["flight_id"], asked), METADATA)
    assert [list(row.keys) for row in result.rows] == asked
    second, first, nothing = [b"\xfe\xff", b"LGA", b""], [b"\x78\x05", b"JFK", b"N1"], [b"", b"", b""]
    assert columns(result) == [second, nothing, first, second, nothing]


def test_column_indices_count_over_all_groups_in_the_order_asked() -> None:
    result = store().retrieve(query("flight", FLIGHT, ["flight_id"], [["f1"]]), METADATA)
    assert [
        (schema.feature_group_label, [(feature.label, feature.column_idx) for feature in schema.features])
        for schema in result.feature_schemas
    ] == [("schedule", [("distance", 0)]), ("keys", [("origin", 1), ("tailnum", 2)])]
    assert (result.entity_label, list(result.keys_schema)) == ("flight", ["flight_id"])


def test_parts_of_a_key_are_told_apart_by_their_schema() -> None:
    asked = query(
        "origin_hour", [("weather", ["temp"])], ["hour", "origin"], [["T17", "JFK"], ["JFK", "T17"]]
    )
    assert columns(store().retrieve(asked, METADATA)) == [[b"\x00\x00\x90\x40"], [b""]]


def test_of_a_group_asked_twice_all_but_the_last_are_empty() -> None:
    twice = [("schedule", ["distance"]), ("schedule", ["minute", "distance"])]
    result = store().retrieve(query("flight", twice, ["flight_id"], [["f2"]]), METADATA)
    assert columns(result) == [[b"", b"\x2c\x01", b"\xfe\xff"]]


def test_vectors_are_concatenated() -> None:
    result = store().retrieve(query("plane", [("history", ["record"])], ["tailnum"], [["N1"]]), METADATA)
    assert columns(result) == [[b"\x00\x00\x80\x3f\x00\x00\x00\x40\x00\x00\x40\x40"]]


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (query("ship", FLIGHT, ["flight_id"], [["f1"]]), grpc.StatusCode.UNKNOWN, "unknown entity 'ship'"),
        (
            query("flight", [*FLIGHT, ("keys", ["dest"])], ["flight_id"], [["f1"]]),
            grpc.StatusCode.UNKNOWN,
            "unknown feature flight:keys:dest",
        ),
        (
            query("flight", [("fuel", ["kg"])], ["flight_id"], [["f1"]]),
            grpc.StatusCode.UNKNOWN,
            "unknown feature flight:fuel:kg",
        ),
        (
            query("flight", FLIGHT, ["id"], [["f1"]]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "flight is keyed by ['flight_id'], keys_schema is ['id']",
        ),
        (
            query("flight", FLIGHT, ["flight_id"], [["f1"], ["f1", "x"]]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "keys[1] has 2 parts, keys_schema has 1",
        ),
    ],
)
def test_one_wrong_name_fails_the_whole_call(
    asked: onfs_pb2.Query, code: grpc.StatusCode, message: str
) -> None:
    with pytest.raises(Failure) as failure:
        store().retrieve(asked, METADATA)
    assert (failure.value.code, failure.value.message) == (code, message)


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
        ({CALLER_HEADER: "test"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({TOKEN_HEADER: "secret"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({CALLER_HEADER: "test", TOKEN_HEADER: "guess"}, grpc.StatusCode.UNAUTHENTICATED),
    ],
)
def test_callers_show_who_they_are(metadata: dict[str, str], code: grpc.StatusCode) -> None:
    with pytest.raises(Failure) as failure:
        store().retrieve(query("flight", FLIGHT, ["flight_id"], [["f1"]]), metadata)
    assert failure.value.code is code


@pytest.fixture
def channel() -> Iterator[Any]:
    server, port = start(services(store()))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(0).wait()


def test_over_the_wire(channel: Any) -> None:
    retrieve = channel.unary_unary(
        "/retrieve.FeatureService/RetrieveFeatures",
        request_serializer=onfs_pb2.Query.SerializeToString,
        response_deserializer=onfs_pb2.Result.FromString,
    )
    asked = query("flight", FLIGHT, ["flight_id"], [["f1"]])
    assert columns(retrieve(asked, metadata=tuple(METADATA.items()), timeout=20)) == [
        [b"\x78\x05", b"JFK", b"N1"]
    ]
    with pytest.raises(grpc.RpcError) as error:
        retrieve(asked, metadata=((CALLER_HEADER, "test"), (TOKEN_HEADER, "guess")), timeout=20)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert error.value.details() == "wrong token for caller 'test'"


def test_a_port_is_not_shared() -> None:
    server, port = start(services(store()))
    try:
        with pytest.raises(RuntimeError):
            start(services(store()), port)
    finally:
        server.stop(0).wait()
