"""What a client can get wrong: each mistake has its status, and a message that names field, index and bound.

Requests are written in protobuf's text format. Nobody upstream is asked for a bad one, and nothing of it stays.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message

from proto import inferflow_pb2, predict_pb2
from rpc.status import Status
from tests.golden.cases import CONFIG_DIR, CONFIGS, EXPRESSIONS
from tests.inprocess import InProcess
from tests.upstreams import Upstreams
from workers.service import Answered

UPSTREAMS = Upstreams.load(CONFIG_DIR)

RETRIEVE = "/Inferflow/RetrieveModelScore"
POINT, PAIR, SLATE = (f"/Predict/Infer{unit}Wise" for unit in ("Point", "Pair", "Slate"))
REQUESTS: Mapping[str, type[Message]] = {
    RETRIEVE: inferflow_pb2.InferflowRequestProto,
    POINT: predict_pb2.PointWiseRequest,
    PAIR: predict_pb2.PairWiseRequest,
    SLATE: predict_pb2.SlateWiseRequest,
}


def request(rpc: str, text: str) -> bytes:
    """A request in text format, on the wire."""
    body: bytes = text_format.Parse(text, REQUESTS[rpc]()).SerializeToString()
    return body


@pytest.fixture(
    scope="module",
    params=[*itertools.product(("kernels", "reference"), (0, 3))],
    ids=lambda param: f"{param[0]}-{param[1]}-threads",
)
def service(request: pytest.FixtureRequest) -> Iterator[InProcess]:
    codec, threads = request.param
    with InProcess(
        CONFIGS, UPSTREAMS, expressions=EXPRESSIONS, reference=codec == "reference", threads=threads
    ) as service:
        yield service


def refused(service: InProcess, rpc: str, body: bytes) -> Answered:
    """The answer, when nothing else came of the request."""
    service.take_calls()
    answered = service.ask(rpc, body)
    assert service.take_calls() == []
    assert (service.service.in_flight, service.pool.busy) == (0, 0)
    assert answered.body == b""
    return answered


ONE = 'targets { id: "1" }'
TWO = 'targets { id: "1" } targets { id: "2" }'
PLAIN = 'model_config_id: "plain_a"'
SLATES = 'model_config_id: "slates_a"'
COMPOSITE = 'model_config_id: "composite_a"'


def feature(name: str, number: int, dim: int = 0) -> str:
    """A column of a schema."""
    return f'{{ name: "{name}" data_type: {number} vector_dim: {dim} }}'


FP32, STRING, FP32_VECTOR = 4, 14, 19

BAD: dict[str, tuple[str, str, str]] = {
    # the config
    "unknown config": (POINT, f'model_config_id: "nobody" {ONE}', "model_config_id 'nobody' is unknown"),
    "no config named": (POINT, ONE, "model_config_id is empty"),
    "unusable config": (
        POINT,
        f'model_config_id: "dag_cycle_a" {ONE}',
        "model_config_id 'dag_cycle_a' is not usable: dag_execution_config.component_dependency",
    ),
    "unknown config, retrieve": (
        RETRIEVE,
        'model_config_id: "nobody" entities { entity: "a" ids: "1" }',
        "model_config_id 'nobody' is unknown",
    ),
    # nothing to score
    "no targets": (POINT, PLAIN, "targets is empty: at least one target is needed"),
    "no targets, pairs": (PAIR, f"{SLATES} pairs {{ }}", "targets is empty: at least one target is needed"),
    "no targets, slates": (
        SLATE,
        f"{SLATES} slates {{ }}",
        "targets is empty: at least one target is needed",
    ),
    "no pairs": (PAIR, f"{SLATES} {ONE}", "pairs is empty: at least one pair is needed"),
    "no slates": (SLATE, f"{SLATES} {ONE}", "slates is empty: at least one slate is needed"),
    "no entities": (RETRIEVE, PLAIN, "entities is empty: at least one entity is needed"),
    "no ids": (
        RETRIEVE,
        f'{PLAIN} entities {{ entity: "a" ids: "1" }} entities {{ entity: "b" }}',
        "entities[1].ids ('b') is empty: at least one id is needed",
    ),
    # indices
    "first index too high": (
        PAIR,
        f"{SLATES} {TWO} pairs {{ }} pairs {{ first_target_index: 2 }}",
        "pairs[1].first_target_index is 2, but there are 2 targets (0 to 1)",
    ),
    "second index negative": (
        PAIR,
        f"{SLATES} {TWO} pairs {{ second_target_index: -1 }}",
        "pairs[0].second_target_index is -1, but there are 2 targets (0 to 1)",
    ),
    "slate index too high": (
        SLATE,
        f"{SLATES} {TWO} slates {{ target_indices: 0 }} slates {{ target_indices: [1, 7] }}",
        "slates[1].target_indices[1] is 7, but there are 2 targets (0 to 1)",
    ),
    "slate index negative": (
        SLATE,
        f"{SLATES} {TWO} slates {{ target_indices: [-2147483648] }}",
        "slates[0].target_indices[0] is -2147483648, but there are 2 targets (0 to 1)",
    ),
    # ragged
    "ragged ids": (
        RETRIEVE,
        f'{PLAIN} entities {{ entity: "a" ids: ["1", "2", "3"] }} entities {{ entity: "b" ids: ["1", "2"] }}',
        "entities[1].ids ('b') has 2 ids, entities[0].ids has 3: 1 or 3 are needed",
    ),
    "ragged feature": (
        RETRIEVE,
        f'{PLAIN} entities {{ entity: "a" ids: ["1", "2", "3"] '
        'features { name: "f" ids_feature_value: ["x", "y"] } }',
        "entities[0].features[0].ids_feature_value ('f') has 2 values for 3 rows: 1 or 3 are needed",
    ),
    "more values than the schema names": (
        POINT,
        f'{PLAIN} target_input_schema {feature("f", STRING)} {ONE} targets {{ feature_values: ["a", "b"] }}',
        "targets[1].feature_values has 2 values, target_input_schema names 1",
    ),
    "values without a schema": (
        POINT,
        f'{PLAIN} {ONE} targets {{ feature_values: "" feature_values: "" }}',
        "feature_values has 2 values, target_input_schema names 0",
    ),
    "more values of a pair": (
        PAIR,
        f'{SLATES} {ONE} pairs {{ feature_values: "x" }}',
        "pairs[0].feature_values has 1 values, pair_input_schema names 0",
    ),
    "more values of a slate": (
        SLATE,
        f'{SLATES} {ONE} slate_input_schema {feature("f", STRING)} slates {{ feature_values: ["x", "y"] }}',
        "slates[0].feature_values has 2 values, slate_input_schema names 1",
    ),
    # data types
    "no data type": (
        POINT,
        f'{PLAIN} {ONE} target_input_schema {{ name: "f" }}',
        "target_input_schema[0].data_type is 0: it must be one of DataType (1 to 30",
    ),
    "data type that is none": (
        POINT,
        f"{PLAIN} {ONE} target_input_schema {feature('f', 31)}",
        "target_input_schema[0].data_type is 31: it must be one of DataType (1 to 30",
    ),
    "data type of a context feature": (
        POINT,
        f'{PLAIN} {ONE} context_features {{ name: "c" data_type: 99 }}',
        "context_features[0].data_type is 99: it must be one of DataType (1 to 30",
    ),
    "data type of a pair's feature": (
        PAIR,
        f"{SLATES} {ONE} pair_input_schema {feature('f', -1)} pairs {{ }}",
        "pair_input_schema[0].data_type is -1: it must be one of DataType (1 to 30",
    ),
    "data type of a slate's feature": (
        SLATE,
        f"{SLATES} {ONE} slate_input_schema {feature('f', 31)} slates {{ }}",
        "slate_input_schema[0].data_type is 31: it must be one of DataType (1 to 30",
    ),
    # lengths
    "scalar of a wrong length": (
        POINT,
        f'{PLAIN} target_input_schema {feature("f", FP32)} {ONE} targets {{ feature_values: "abc" }}',
        "targets[1].feature_values[0] ('f') has 3 bytes, a DataTypeFP32 has 4",
    ),
    "vector of a wrong length": (
        POINT,
        f'{PLAIN} target_input_schema {feature("f", FP32_VECTOR, 2)} targets {{ feature_values: "abcd" }}',
        "targets[0].feature_values[0] ('f') has 4 bytes, a DataTypeFP32Vector has 2 × 4",
    ),
    "vector of no whole elements": (
        POINT,
        f'{PLAIN} target_input_schema {feature("f", FP32_VECTOR)} targets {{ feature_values: "abcde" }}',
        "targets[0].feature_values[0] ('f') has 5 bytes, a DataTypeFP32Vector has a multiple of 4",
    ),
    "context feature of a wrong length": (
        POINT,
        f'{PLAIN} {ONE} context_features {{ name: "c" data_type: 9 value: "abcd" }}',
        "context_features[0].value ('c') has 4 bytes, a DataTypeInt64 has 8",
    ),
    "pair's value of a wrong length": (
        PAIR,
        f'{SLATES} {ONE} pair_input_schema {feature("f", FP32)} pairs {{ }} pairs {{ feature_values: "a" }}',
        "pairs[1].feature_values[0] ('f') has 1 bytes, a DataTypeFP32 has 4",
    ),
    "slate's value of a wrong length": (
        SLATE,
        f'{SLATES} {ONE} slate_input_schema {feature("f", 15)} slates {{ feature_values: "true" }}',
        "slates[0].feature_values[0] ('f') has 4 bytes, a DataTypeBool has 1",
    ),
    # names
    "schema names a column twice": (
        POINT,
        f"{PLAIN} {ONE} target_input_schema {feature('f', 14)} target_input_schema {feature('f', 14)}",
        "target_input_schema[1] names column 'f', which target_input_schema[0] names already",
    ),
    "schema names a context feature": (
        POINT,
        f'{PLAIN} {ONE} context_features {{ name: "f" data_type: 14 }} target_input_schema {feature("f", 14)}',
        "target_input_schema[0] names column 'f', which context_features[0] names already",
    ),
    "context feature named as the id column": (
        POINT,
        f'{PLAIN} {ONE} context_features {{ name: "catalog_id" data_type: 14 }}',
        "context_features[0] names column 'catalog_id', which the id column names already",
    ),
    "schema names the id column": (
        POINT,
        f"{PLAIN} {ONE} target_input_schema {feature('catalog_id', 14)}",
        "target_input_schema[0] names column 'catalog_id', which the id column names already",
    ),
    "feature without a name": (
        POINT,
        f"{PLAIN} {ONE} target_input_schema {feature('', 14)}",
        "target_input_schema[0] has an empty name",
    ),
    "pair feature twice": (
        PAIR,
        f"{SLATES} {ONE} pairs {{ }} pair_input_schema {feature('f', 14)} pair_input_schema {feature('f', 4)}",
        "pair_input_schema[1].name is 'f': it must be neither empty, nor named twice",
    ),
    "slate feature without a name": (
        SLATE,
        f"{SLATES} {ONE} slates {{ }} slate_input_schema {feature('', 14)}",
        "slate_input_schema[0].name is '': it must be neither empty, nor named twice",
    ),
    "reserved name, target": (
        SLATE,
        f"{SLATES} {ONE} slates {{ }} target_input_schema {feature('slate_target_indices', 14)}",
        "target_input_schema[0] names column 'slate_target_indices', which the service writes itself",
    ),
    "reserved name, context": (
        SLATE,
        f'{SLATES} {ONE} slates {{ }} context_features {{ name: "slate_target_indices" data_type: 14 }}',
        "context_features[0] names column 'slate_target_indices', which the service writes itself",
    ),
    "reserved name, slate": (
        SLATE,
        f"{SLATES} {ONE} slates {{ }} slate_input_schema {feature('slate_target_indices', 14)}",
        "slate_input_schema[0].name is 'slate_target_indices'",
    ),
    "entity twice": (
        RETRIEVE,
        f'{PLAIN} entities {{ entity: "a" ids: "1" }} entities {{ entity: "a" ids: "2" }}',
        "entities[1].entity names column 'a', which entities[0].entity names already",
    ),
    "feature named as an entity": (
        RETRIEVE,
        f'{PLAIN} entities {{ entity: "a" ids: "1" features {{ name: "f" ids_feature_value: "x" }} '
        'features { name: "a" ids_feature_value: "x" } }',
        "entities[0].features[1].name names column 'a', which entities[0].entity names already",
    ),
    "entity without a name": (
        RETRIEVE,
        f'{PLAIN} entities {{ ids: "1" }}',
        "entities[0].entity has an empty name",
    ),
    "entity named as a composite key": (
        RETRIEVE,
        f'{COMPOSITE} entities {{ entity: "catalog_id" ids: "1" }} entities {{ entity: "uc_key" ids: "x" }}',
        "entities[1].entity names column 'uc_key', which composite_a writes as a composite key",
    ),
    "feature named as a composite key": (
        POINT,
        f"{COMPOSITE} {ONE} target_input_schema {feature('uc_key', 14)}",
        "target_input_schema[0] names column 'uc_key', which composite_a writes as a composite key",
    ),
}


@pytest.mark.parametrize(("rpc", "text", "message"), BAD.values(), ids=BAD.keys())
def test_bad_requests_are_refused(service: InProcess, rpc: str, text: str, message: str) -> None:
    answered = refused(service, rpc, request(rpc, text))
    assert answered.status is Status.INVALID_ARGUMENT
    assert message in answered.message


@pytest.mark.parametrize("rpc", REQUESTS)
@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05ab", bytes(3), b"garbage that is no message"])
def test_a_body_that_is_no_message_is_refused(service: InProcess, rpc: str, body: bytes) -> None:
    answered = refused(service, rpc, body)
    assert answered.status is Status.INVALID_ARGUMENT
    assert f"the body of {len(body)} bytes is no {REQUESTS[rpc].DESCRIPTOR.name}" in answered.message


@pytest.mark.parametrize("rpc", REQUESTS)
def test_an_empty_body_names_no_config(service: InProcess, rpc: str) -> None:
    answered = refused(service, rpc, b"")
    assert (answered.status, answered.message) == (Status.INVALID_ARGUMENT, "model_config_id is empty")


def test_a_text_that_is_no_utf8_is_refused(service: InProcess) -> None:
    body = request(POINT, f"{PLAIN} {ONE}").replace(b"plain_a", b"pl\xffin_a")
    assert refused(service, POINT, body).status is Status.INVALID_ARGUMENT


def test_a_truncated_request_is_refused_or_scored_but_never_raises(service: InProcess) -> None:
    whole = request(
        SLATE,
        f'{SLATES} {TWO} context_features {{ name: "c" data_type: 14 value: "x" }} '
        f"slates {{ target_indices: [0, 1] }} slate_input_schema {feature('f', 14)}",
    )
    statuses = {service.ask(SLATE, whole[:end]).status for end in range(len(whole) + 1)}
    assert statuses == {Status.OK, Status.INVALID_ARGUMENT}
    assert (service.service.in_flight, service.pool.busy) == (0, 0)


# --- too much


def test_a_matrix_over_the_limit_is_refused_with_size_and_limit() -> None:
    limit = 256 << 10
    with InProcess(CONFIGS, UPSTREAMS, expressions=EXPRESSIONS, max_matrix_bytes=limit) as service:
        body = request(POINT, PLAIN + "".join(f' targets {{ id: "{id}" }}' for id in range(20_000)))
        answered = service.ask(POINT, body)
        assert answered.status is Status.RESOURCE_EXHAUSTED
        said = re.fullmatch(
            r"the request's matrix needs (\d+) bytes, the limit is (\d+) \(INFERFLOW_MAX_MATRIX_BYTES\)",
            answered.message,
        )
        assert said, answered.message
        assert int(said[1]) > int(said[2]) == limit
        assert (service.service.in_flight, service.pool.busy) == (0, 0)
        assert service.ask(POINT, request(POINT, f"{PLAIN} {ONE}")).status is Status.OK


def test_more_requests_than_allowed_are_refused_at_once() -> None:
    with InProcess(CONFIGS, UPSTREAMS, expressions=EXPRESSIONS, max_in_flight=0) as service:
        answered = refused(service, POINT, request(POINT, f"{PLAIN} {ONE}"))
        assert answered.status is Status.RESOURCE_EXHAUSTED
        assert answered.message == "0 requests in flight, the limit is 0"


# --- in time, or not


def test_a_passed_deadline_is_told(service: InProcess) -> None:
    """The model takes 300 ms; its own deadline is later than the client's."""
    body = request(POINT, f'model_config_id: "patient_a" {ONE}')
    answered = service.ask(POINT, body, timeout=0.1)
    assert (answered.status, answered.message) == (
        Status.DEADLINE_EXCEEDED,
        "the client's deadline passed",
    )
    assert (service.service.in_flight, service.pool.busy) == (0, 0)
    assert service.ask(POINT, body, timeout=5).status is Status.OK


def test_a_cancelled_request_leaves_nothing(service: InProcess) -> None:
    service.take_calls()
    service.cancelled(POINT, request(POINT, f'model_config_id: "patient_a" {ONE}'))
    assert (service.service.in_flight, service.pool.busy) == (0, 0)
    assert len(service.take_calls()) == 1  # the fetch; the model was never asked
