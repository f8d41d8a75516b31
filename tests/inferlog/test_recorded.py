"""Our logs of the recorded requests, and the recorded logs themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
