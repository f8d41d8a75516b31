"""The log of a request against the answer to it: all recorded cases, all four RPCs, all formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from components.columns import text_of
from dag.config import ModelConfig
from frontdoor.services import METHODS
from inferlog import reader
from inferlog.encode import encode
from inferlog.event import Event
from inferlog.schema import LogColumn, LogSchema
from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType
from tests.golden.cases import CASES, CONFIG_DIR, CONFIGS, EXPRESSIONS, Case
from tests.inprocess import InProcess, Scored
from tests.upstreams import Upstreams
from workers import responses

FORMATS = [("proto", False), ("proto", True), ("arrow", False), ("arrow", True), ("parquet", False)]
SETTLED = [
    case for case in CASES.values() if case.rpc.encode() in METHODS and list(case.expectation.statuses) == [0]
]

Table = Mapping[str, Sequence[bytes]]
"""Column → raw values by row, b"" for none."""


@pytest.fixture(scope="module")
def service() -> Iterator[InProcess]:
    with InProcess(CONFIGS, Upstreams.load(CONFIG_DIR), expressions=EXPRESSIONS) as service:
        yield service


def served(service: InProcess, rpc: str) -> Iterator[tuple[Case, Scored]]:
    """The cases of RPCs with this beginning that are answered, each scored."""
    assert service.service.plans.active is not None
    for case in SETTLED:
        if case.rpc.startswith(rpc) and case.model_config_id in service.service.plans.active.plans:
            scored = service.scored(case.rpc, case.request, case.metadata)
            yield case, scored
            scored.release()


def answered_columns_only(config: ModelConfig) -> ModelConfig:
    """The config, with everything that it answers logged, in small messages."""
    response = msgspec.structs.replace(config.response_config, log_features=True, log_batch_size=3)
    return msgspec.structs.replace(config, response_config=response)


def logged(case: Case, scored: Scored, written: str, *, compress: bool) -> Mapping[str, Table]:
    """What is read of the log, by kind of row."""
    service = {"v2-logging-type": written, "compression-enabled": compress}
    schema = LogSchema.of(case.model_config_id, answered_columns_only(scored.plan.config), service)
    event = Event(
        method=METHODS.index(case.rpc.encode()),
        model_config_id=case.model_config_id,
        digest=scored.plan.digest,
        request_id=b"1",
        tracking_id="t",
        request_ns=1,
        failures=scored.scoring.failures,
    )
    matrix, slates = scored.scoring.matrix, scored.scoring.slates
    encoding = encode(schema, matrix, slates, event, max_message_bytes=1 << 22)
    assert not encoding.dropped
    tables: dict[str, dict[str, list[bytes]]] = {
        kind: {column.name: [] for column in schema.columns} for kind in ("rows", "slates")
    }
    for message in encoding.messages:
        read = reader.values(reader.read(message.value), schema.columns)
        for column, values in zip(schema.columns, read, strict=True):
            tables[message.kind][column.name] += [raw(column, value) for value in values.to_pylist()]
    return tables


def raw(column: LogColumn, value: Any) -> bytes:
    """A typed value as the bytes that a cell has."""
    if value is None:
        return b""
    if column.data_type.element is DataType.STRING:
        return str(value).encode()
    return np.array(value, column.data_type.dtype).tobytes()


def predicted(case: Case, scored: Scored) -> Mapping[str, Table]:
    """What a Predict call was answered, by kind of row."""
    if case.rpc == "/Predict/InferPointWise":
        answer = predict_pb2.PointWiseResponse.FromString(
            responses.point_wise(scored.plan, scored.scoring, reference=False)
        )
        return {"rows": scores(answer.target_output_schema, answer.target_scores)}
    slates = predict_pb2.SlateWiseResponse.FromString(
        responses.slate_wise(scored.plan, scored.scoring, reference=False)
    )
    return {
        "rows": scores(slates.target_output_schema, slates.target_scores),
        "slates": scores(slates.slate_output_schema, slates.slate_scores),
    }


def scores(schema: Any, rows: Any) -> Table:
    """Raw values by column; numbers that the request brought are logged as text."""
    return {one.name: [row.output_values[number] for row in rows] for number, one in enumerate(schema)}


def compared(column: LogColumn, values: Sequence[bytes], kind: DataType) -> list[bytes]:
    """The served values as they are to be logged."""
    if column.data_type is DataType.STRING and kind is not DataType.STRING:
        return text_of(values, kind)
    if column.width:
        return [value if len(value) == column.width else b"" for value in values]
    unit = column.data_type.size or 1
    return [value if len(value) % unit == 0 else b"" for value in values]


@pytest.mark.parametrize(("written", "compress"), FORMATS)
def test_predict_calls_are_logged_as_answered(service: InProcess, written: str, compress: bool) -> None:
    kinds = set()
    for case, scored in served(service, "/Predict/"):
        schema = LogSchema.of(case.model_config_id, answered_columns_only(scored.plan.config), {})
        columns = {column.name: column for column in schema.columns}
        found = logged(case, scored, written, compress=compress)
        for kind, table in predicted(case, scored).items():
            kinds.add((case.rpc, kind))
            for name, values in table.items():
                typed = scored.scoring.matrix.typed[scored.plan.layout.external[name]]
                as_type = DataType.STRING if typed is None else typed.data_type
                expected = compared(columns[name], values, as_type)
                assert found[kind][name] == expected, (case.name, kind, name)
    assert len(kinds) == 5


@pytest.mark.parametrize(("written", "compress"), FORMATS)
def test_retrieve_calls_are_logged_as_answered(service: InProcess, written: str, compress: bool) -> None:
    count = 0
    for case, scored in served(service, "/Inferflow/"):
        answer = inferflow_pb2.InferflowResponseProto.FromString(
            responses.retrieve(scored.plan, scored.scoring, model_schema=False, reference=False)
        )
        names, *rows = (list(one.data) for one in answer.component_data)
        found = logged(case, scored, written, compress=compress)["rows"]
        schema = LogSchema.of(case.model_config_id, answered_columns_only(scored.plan.config), {})
        assert [column.name for column in schema.columns] == names
        for number, column in enumerate(schema.columns):
            texts = [
                text.decode("utf-8", "replace") for text in text_of(found[column.name], column.data_type)
            ]
            assert texts == [row[number] for row in rows], (case.name, column)
        count += 1
    assert count > 20
