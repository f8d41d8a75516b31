"""The reader and what is no log, or not quite one: it reads it or says that it cannot, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dag.config import decode
from inferlog import reader
from inferlog.configs import ConfigFiles
from inferlog.encode import encode
from inferlog.reader import BadLog
from inferlog.schema import LogColumn, LogSchema
from proto import inference_log_pb2
from shared.datatypes import DataType
from tests.golden.cases import CONFIG_DIR, CONFIGS
from tests.inferlog.matrices import make
from tests.inferlog.recorded import LOGS

FORMATS = ("proto", "arrow", "parquet")
TYPES = ["FP32", "INT64", "String", "FP32Vector", "BYTES", "DataTypeBool"]


def message(seed: int, written: str, *, compress: bool = False) -> tuple[bytes, tuple[LogColumn, ...]]:
    made = make(seed, TYPES, rows=4)
    schema = made.schema(written, compress=compress)
    encoding = encode(schema, made.matrix, None, made.event, max_message_bytes=1 << 24)
    made.release()
    return encoding.messages[0].value, schema.columns


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(BadLog):
        reader.read(data)


@given(
    st.integers(0, 50),
    st.sampled_from(FORMATS),
    st.booleans(),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    st.floats(0.5, 1),
)
def test_a_spoilt_message_is_read_or_refused(
    seed: int, written: str, compress: bool, flips: list[tuple[float, int]], kept: float
) -> None:
    value, columns = message(seed, written, compress=compress)
    spoilt = bytearray(value)
    for place, bits in flips:
        spoilt[int(place * len(spoilt))] ^= bits
    for data in (bytes(spoilt), value[: int(kept * len(value))]):
        try:
            reader.table(reader.read(data), columns).validate(full=True)
        except BadLog as error:
            assert str(error)


@given(
    st.integers(0, 50),
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_a_spoilt_blob_is_read_or_refused(seed: int, written: str, flips: list[tuple[float, int]]) -> None:
    value, columns = message(seed, written)
    found = reader.read(value)
    blob = bytearray(found.log.features[0].encoded_features)
    for place, bits in flips:
        blob[int(place * len(blob))] ^= bits
    found.log.features[0].encoded_features = bytes(blob)
    try:
        reader.table(found, columns).validate(full=True)
    except BadLog as error:
        assert str(error)


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda columns: columns[:-1], "columns"),
        (lambda columns: (*columns, LogColumn("more", "INT64", DataType.INT64)), "columns"),
    ],
    ids=["fewer", "more"],
)
def test_columns_of_another_config_are_refused(
    written: str, change: Callable[[tuple[LogColumn, ...]], tuple[LogColumn, ...]], said: str
) -> None:
    value, columns = message(1, written)
    with pytest.raises(BadLog, match=said):
        reader.values(reader.read(value), change(columns))


def test_each_blob_may_be_compressed_on_its_own() -> None:
    """Another way to read the contract, which some writer may have chosen."""
    value, columns = message(3, "proto")
    found = reader.read(value)
    expected = reader.table(found, columns)
    for item in found.log.features:
        item.encoded_features = pa.compress(item.encoded_features, codec="zstd", asbytes=True)
    assert reader.table(found, columns).equals(expected)


def test_a_message_of_another_event_is_refused() -> None:
    request = inference_log_pb2.KafkaRequest()
    request.value.event_name = "clicks"
    with pytest.raises(BadLog, match="'clicks'"):
        reader.read(request.SerializeToString())


def test_a_slate_without_its_targets_is_refused() -> None:
    value, _ = message(3, "proto")
    found = reader.read(value)
    found.log.row_kind = inference_log_pb2.SLATES
    with pytest.raises(BadLog, match="_slate_targets"):
        reader.beside(found)


def test_names_that_the_table_has_for_itself() -> None:
    value, columns = message(3, "proto")
    renamed = (dataclasses.replace(columns[0], name="_entity"), *columns[1:])
    found = reader.table(reader.read(value), renamed)
    assert "feature:_entity" in found.column_names
    assert len(set(found.column_names)) == found.num_columns


@pytest.mark.parametrize("case", [case for case in LOGS if case.messages], ids=lambda case: case.id)
def test_columns_by_id_and_cache_version(case: object) -> None:
    (recorded,) = (one for one in LOGS if one is case)
    configs = ConfigFiles(None, [CONFIG_DIR])
    expected = LogSchema.of(recorded.model_config_id, decode(CONFIGS[recorded.model_config_id]), {})
    assert configs.columns(reader.read(recorded.messages[0])) == expected.columns
    assert configs.guessed == {recorded.model_config_id}
