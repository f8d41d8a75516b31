"""What differs between an expectation and what a service did.

Compared are the status code, the response field by field, and the upstream calls as a multiset: path, status,
caller id and token, request. The variables of an expression are put into the order of their names (schema and
values together; the id stays first), since theirs was random in the recorded service.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message

from proto import numerix_pb2, onfs_pb2, predict_pb2, triton_pb2
from shared.datatypes import data_type
from tests.golden.cases import CONFIGS, Case, Expectation
from tests.inprocess import RecordedCall
from tests.upstreams import COMPUTE, FETCH, INFER

__all__ = ["Outcome", "canonical", "problems", "schema_of_models"]

REQUESTS: Mapping[str, type[Message]] = {
    FETCH: onfs_pb2.Query,
    INFER: triton_pb2.ModelInferRequest,
    COMPUTE: numerix_pb2.NumerixRequestProto,
}
COMPARED_METADATA = {
    "online-feature-store-caller-id",
    "online-feature-store-auth-token",
    "predator-caller-id",
    "predator-auth-token",
    "numerix-caller-id",
}
SCORES = ("target_scores", "pair_scores", "slate_scores")
SCHEMAS = ("target_output_schema", "pair_output_schema", "slate_output_schema")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a service did with a case. `calls` None: not known, not compared."""

    status: int
    message: str
    body: bytes
    calls: Sequence[RecordedCall] | None


def problems(case: Case, outcome: Outcome, *, string_scores: bool = False) -> list[str]:
    """What is wrong with the outcome; empty when nothing is.

    `string_scores`: schemas are to be as they were recorded. Otherwise model scores are to have their own types
    and dims, which the recorded service never told.
    """
    wanted = case.expectation
    if outcome.status not in wanted.statuses:
        return [f"status: {wanted.statuses} expected, got {outcome.status}: {outcome.message}"]
    found: list[str] = []
    if outcome.status == 0 and wanted.response is not None:
        found += _response_problems(case, wanted, outcome.body, string_scores)
    if outcome.calls is not None and wanted.calls is not None:
        found += _call_problems(wanted.calls, outcome.calls)
    return found


# --- responses


def _response_problems(case: Case, wanted: Expectation, body: bytes, string_scores: bool) -> list[str]:
    assert wanted.response is not None
    expected, actual = case.message_of(wanted.response), case.message_of(body)
    if not string_scores:
        scores = schema_of_models(case.model_config_id)
        _name_types(expected, scores)
        _forget_dims(actual, except_of=scores)
    found = []
    if wanted.errors is not None:
        _take_errors(expected)
        errors = _take_errors(actual)
        for field, rows in wanted.errors.items():
            if errors.get(field, []) != rows:
                found.append(f"{field} with an error: {rows} expected, got {errors.get(field, [])}")
    if expected != actual:
        found += _differing_lines(expected, actual)
    return found


def schema_of_models(model_config_id: str) -> dict[str, tuple[int, int]]:
    """Data type and dim (0: a scalar) of every score of the config's models, as their `outputs` declare them."""
    if model_config_id not in CONFIGS:
        return {}
    found = {}
    config = json.loads(CONFIGS[model_config_id])
    for model in config["component_config"].get("predator_components") or []:
        for output in model["outputs"]:
            element = data_type(output["data_type"]).element
            for score, dims in zip(output["model_scores"], output["model_scores_dims"], strict=False):
                scalar = dims == [1]
                found[score] = (int(element if scalar else element.vector), 0 if scalar else math.prod(dims))
    return found


def _columns(message: Any) -> Iterator[predict_pb2.FeatureSchema]:
    for field in SCHEMAS:
        yield from getattr(message, field, ())


def _name_types(expected: Any, scores: Mapping[str, tuple[int, int]]) -> None:
    """Puts the declared types and dims of model scores where the recorded service said String, or no dim."""
    for column in _columns(expected):
        if column.name in scores:
            column.data_type, column.vector_dim = scores[column.name]  # type: ignore[assignment]


def _forget_dims(actual: Any, *, except_of: Mapping[str, object]) -> None:
    """There is nothing recorded to compare the dims of other columns with."""
    for column in _columns(actual):
        if column.name not in except_of:
            column.vector_dim = 0


def _take_errors(message: Any) -> dict[str, Any]:
    """Removes the error texts; score list → rows that had one, request_error → whether there was one."""
    found: dict[str, Any] = {}
    for field in SCORES:
        for row, score in enumerate(getattr(message, field, ())):
            if score.error:
                found.setdefault(field, []).append(row)
                score.error = ""
    for field in ("request_error", "error"):
        if field in message.DESCRIPTOR.fields_by_name:
            found[field] = bool(getattr(message, field))
            message.ClearField(field)
    return found


def _differing_lines(expected: Message, actual: Message) -> list[str]:
    wanted, got = (text_format.MessageToString(message).splitlines() for message in (expected, actual))
    return list(difflib.unified_diff(wanted, got, "expected", "got", lineterm="")) or [
        "unknown fields differ"
    ]


# --- upstream calls


def _call_problems(expected: Iterable[RecordedCall], actual: Iterable[RecordedCall]) -> list[str]:
    wanted, got = Counter(map(_canonical_text, expected)), Counter(map(_canonical_text, actual))
    return [f"missing call {text}" for text in (wanted - got).elements()] + [
        f"unexpected call {text}" for text in (got - wanted).elements()
    ]


def _canonical_text(call: RecordedCall) -> str:
    metadata = {key: call.metadata[key] for key in sorted(COMPARED_METADATA & call.metadata.keys())}
    return f"{call.path} {metadata} → {call.status}\n{text_format.MessageToString(canonical(call))}"


def canonical(call: RecordedCall) -> Any:
    """The request of a call, with the variables of an expression in the order of their names."""
    message: Any = REQUESTS[call.path].FromString(call.request)
    if call.path == COMPUTE:
        data = message.entity_score_data
        order = [0, *sorted(range(1, len(data.schema)), key=lambda place: data.schema[place])]
        for values in (data.schema, *map(_row_values, data.entity_scores)):
            if len(values) == len(order):
                values[:] = [values[place] for place in order]
    return message


def _row_values(row: numerix_pb2.Score) -> Any:
    return getattr(row, row.WhichOneof("matrix_format") or "byte_data").values
