"""Our logs of the recorded requests, and the recorded logs themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from inferlog import reader
from proto import inference_log_pb2
from tests.golden.cases import CONFIG_DIR, CONFIGS, EXPRESSIONS
from tests.inferlog.recorded import LOGS, Log, log, schema_of
from tests.inprocess import InProcess
from tests.upstreams import Upstreams

UPSTREAMS = Upstreams.load(CONFIG_DIR)
PLAIN = [case for case in LOGS if not (case.compression or case.deviation)]


@pytest.fixture(scope="module")
def service() -> Iterator[InProcess]:
    with InProcess(CONFIGS, UPSTREAMS, expressions=EXPRESSIONS) as service:
        yield service


def readable(value: Any) -> Any:
    """A typed value as the reference reader shows it: floats have six digits, and what is not finite is text."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return [readable(item) for item in value] if isinstance(value, list) else value


def decoded(value: bytes, case: Log) -> dict[str, Any]:
    """A message as the recording shows what was read of it."""
    message = reader.read(value)
    schema = schema_of(case).columns
    found = reader.table(message, schema).drop_columns(["_time"]).to_pylist()
    names = [column.name for column in schema]
    out = {
        "event_name": message.event_name,
        "event_id": message.log.tracking_id,
        "event_user_id": message.log.user_id,
        "type_url": "type.googleapis.com/InferflowLog",
        "user_id": found[0]["_user_id"] or "",
        "tracking_id": found[0]["_tracking_id"],
        "model_config_id": found[0]["_model_config_id"],
        "metadata": message.metadata,
        "parent_entity": found[0]["_parent_entity"],
        "entities": [row["_entity"] for row in found],
        "rows": [{name: readable(row[name]) for name in names} for row in found],
    }
    if case.format == "proto":
        out["generated"] = [int(row["_generated"]) for row in found]
    return out


def in_order(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The existing service sends the messages of a request in any order."""
    return sorted(messages, key=lambda message: str(message["entities"]))


def with_nulls(case: Log) -> list[dict[str, Any]]:
    """What is expected of a message in the row format whose writer says what is missing.

    The recorded ones do not say it, but the same requests were recorded in Arrow, too, which has null.
    """
    arrow = next(other for other in LOGS if (other.name, other.format) == (case.name, "arrow"))
    pairs = zip(in_order(case.expected or []), in_order(arrow.expected or []), strict=True)
    return [message | {"rows": other["rows"]} for message, other in pairs]


def inference_log(value: bytes) -> inference_log_pb2.InferflowLog:
    request = inference_log_pb2.KafkaRequest.FromString(value)
    log = inference_log_pb2.InferflowLog()
    assert request.value.properties.Unpack(log)
    return log


@pytest.mark.parametrize("case", LOGS, ids=lambda case: case.id)
def test_columns_and_types_are_as_recorded(case: Log) -> None:
    assert [(column.name, column.written_type) for column in schema_of(case).columns] == case.schema


@pytest.mark.parametrize(
    "case", [case for case in PLAIN if case.format == "proto" and case.messages], ids=lambda case: case.id
)
def test_the_row_format_is_the_recorded_one_byte_by_byte(service: InProcess, case: Log) -> None:
    ours = [message.value for message in log(service, case).messages]
    assert len(ours) == len(case.messages)
    for mine, theirs in zip(map(inference_log, ours), map(inference_log, case.messages), strict=True):
        assert list(mine.features) == list(theirs.features)
        for name in ("user_id", "tracking_id", "model_config_id", "entities", "metadata", "parent_entity"):
            assert getattr(mine, name) == getattr(theirs, name), name


@pytest.mark.parametrize("case", [case for case in LOGS if case.messages], ids=lambda case: case.id)
def test_recorded_messages_are_read_as_recorded(case: Log) -> None:
    expected = case.decoded
    if case.name == "log_bytes_scores_a":  # the reference reader loses two characters there, ours does not
        expected = case.expect or []
    assert in_order(decoded(value, case) for value in case.messages) == in_order(expected)


@pytest.mark.parametrize("case", [case for case in LOGS if case.expected], ids=lambda case: case.id)
def test_our_messages_are_read_as_recorded(service: InProcess, case: Log) -> None:
    expected = with_nulls(case) if case.format == "proto" else case.expected
    encoding = log(service, case)
    assert not encoding.dropped
    found = [decoded(message.value, case) for message in encoding.messages]
    assert in_order(found) == in_order(expected or [])
