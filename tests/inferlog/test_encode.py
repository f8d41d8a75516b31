"""What is logged is what was in the matrix: cell by cell, whoever reads it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import fastparquet  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import naive_logs
from inferlog import reader
from inferlog.encode import DROPPED_TOO_LARGE, Dropped, Encoded, TornMatrix, encode
from inferlog.schema import LogColumn
from proto import inference_log_pb2
from shared.datatypes import DataType
from shared.shm_matrix import CellBlock, TextColumn, VarBlock
from tests.inferlog.matrices import TYPES, Made, make
from tests.inferlog.reference_reader import ReferenceReader

FORMATS = ("proto", "arrow", "parquet")
LARGE = 1 << 24
SEEDS = st.integers(0, 2**32 - 1)
COLUMNS = st.lists(st.sampled_from(TYPES), min_size=1, max_size=8)
ROWS = st.integers(1, 12)


@pytest.fixture(scope="module")
def reference() -> Iterator[ReferenceReader]:
    with ReferenceReader() as started:
        yield started


def raw_cells(made: Made, message: Encoded, columns: Sequence[LogColumn]) -> naive_logs.Cells:
    """The values that a message is to have, by column, by row."""
    layout, matrix = made.layouts.targets, made.matrix
    if message.kind == "slates":
        assert made.slates is not None
        layout, matrix = made.layouts.slates, made.slates.matrix
    rows = np.arange(message.first_row, message.first_row + message.rows, dtype=np.int32)
    return naive_logs.cells(made.schema("proto"), layout, matrix, rows)


def typed(column: LogColumn, raw: bytes | None) -> Any:
    """A value as our reader is to give it."""
    kind = column.data_type
    if raw is None:
        return None
    if kind.element is DataType.STRING:
        return raw.decode("utf-8", "replace")
    numbers = np.frombuffer(raw, kind.dtype)
    if kind.element in (DataType.FP8E5M2, DataType.FP8E4M3, DataType.FP16):
        numbers = numbers.astype(np.float32)
    values = [bool(one) for one in numbers] if kind.element is DataType.BOOL else numbers.tolist()
    return values if kind.is_vector else values[0]


def as_reference(column: LogColumn, raw: bytes | None, *, has_null: bool) -> Any:
    """A value as the reference reader gives it: six digits, FP8 as its byte, strange strings in hexadecimal."""
    kind = column.data_type
    if raw is None:
        if has_null or kind.is_vector:
            return None
        return "0.0" if column.is_text else as_reference(column, bytes(kind.size), has_null=False)
    if kind is DataType.STRING:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.hex()
    if kind is DataType.STRING_VECTOR:
        return raw.hex()
    if kind.element in (DataType.FP8E5M2, DataType.FP8E4M3):
        return list(raw) if kind.is_vector else raw[0]
    return rounded(typed(column, raw))


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return [rounded(one) for one in value] if isinstance(value, list) else value


def looks_like_json(raw: bytes | None) -> bool:
    """The reference reader takes a vector that is a JSON text for one, so nobody can log those bytes for it."""
    try:
        return raw is not None and raw[:1] in (b"[", b"{") and json.loads(raw) is not None
    except ValueError:
        return False


@given(SEEDS, COLUMNS, ROWS, st.integers(0, 3), st.sampled_from(FORMATS), st.booleans())
def test_what_is_read_back_is_what_was_served(
    seed: int, types: list[str], rows: int, slates: int, written: str, compress: bool
) -> None:
    made = make(seed, types, rows=rows, slates=slates)
    schema = made.schema(written, compress=compress)
    encoding = encode(schema, made.matrix, made.slates, made.event, max_message_bytes=LARGE)
    assert not encoding.dropped
    for message in encoding.messages:
        log = reader.read(message.value)
        assert (log.compressed, log.rows, message.unfit) == (compress, message.rows, 0)
        served = raw_cells(made, message, schema.columns)
        for column, found, raw in zip(
            schema.columns, reader.values(log, schema.columns), served, strict=True
        ):
            assert found.type == reader.arrow_type(column.data_type)
            assert repr(found.to_pylist()) == repr([typed(column, one) for one in raw]), column
    made.release()


@given(SEEDS, COLUMNS, ROWS, st.integers(0, 3), st.sampled_from(FORMATS), st.booleans())
def test_the_reference_reader_reads_what_was_served(
    reference: ReferenceReader,
    seed: int,
    types: list[str],
    rows: int,
    slates: int,
    written: str,
    compress: bool,
) -> None:
    made = make(seed, types, rows=rows, slates=slates)
    schema = made.schema(written, compress=compress)
    for message in encode(schema, made.matrix, made.slates, made.event, max_message_bytes=LARGE).messages:
        found = reference.read(message.value, schema.columns)
        log = reader.read(message.value).log
        assert (found["metadata"], found["entities"]) == (schema.metadata, list(log.entities))
        for column, raw in zip(schema.columns, raw_cells(made, message, schema.columns), strict=True):
            if any(map(looks_like_json, raw)):
                continue
            expected = [as_reference(column, one, has_null=written != "proto") for one in raw]
            assert repr([row[column.name] for row in found["rows"]]) == repr(expected), column
    made.release()


@given(SEEDS, COLUMNS, ROWS)
def test_the_row_format_is_that_of_the_straightforward_writer(seed: int, types: list[str], rows: int) -> None:
    made = make(seed, types, rows=rows)
    schema = made.schema("proto")
    for message in encode(schema, made.matrix, None, made.event, max_message_bytes=LARGE).messages:
        expected = naive_logs.features(schema, raw_cells(made, message, schema.columns))
        log = reader.read(message.value).log
        assert [item.encoded_features for item in log.features] == expected
        assert list(log.SerializeToString()) == list(inference_log(message.value).SerializeToString())
    made.release()


@given(SEEDS, COLUMNS, ROWS)
def test_arrow_and_parquet_hold_what_the_straightforward_writer_puts_there(
    seed: int, types: list[str], rows: int
) -> None:
    made = make(seed, types, rows=rows)
    for written in ("arrow", "parquet"):
        schema = made.schema(written)
        for message in encode(schema, made.matrix, None, made.event, max_message_bytes=LARGE).messages:
            (expected,) = naive_logs.features(schema, raw_cells(made, message, schema.columns))
            (found,) = reader.read(message.value).log.features
            assert opened(written, found.encoded_features) == opened(written, expected)
    made.release()


@given(SEEDS, COLUMNS, ROWS)
def test_fastparquet_reads_the_parquet_blob(seed: int, types: list[str], rows: int) -> None:
    made = make(seed, types, rows=rows)
    schema = made.schema("parquet")
    for message in encode(schema, made.matrix, None, made.event, max_message_bytes=LARGE).messages:
        (item,) = reader.read(message.value).log.features
        frame = fastparquet.ParquetFile(io.BytesIO(item.encoded_features)).to_pandas()
        served = raw_cells(made, message, schema.columns)
        assert len(frame) == message.rows
        for row, found in enumerate(frame["Features"]):
            wanted = dict(enumerate(with_inner_length(schema.columns, [column[row] for column in served])))
            assert found == wanted
    made.release()


def with_inner_length(columns: Sequence[LogColumn], row: Sequence[bytes | None]) -> list[bytes | None]:
    return [
        len(raw).to_bytes(2, "little") + raw if raw is not None and column.has_inner_length else raw
        for column, raw in zip(columns, row, strict=True)
    ]


def opened(written: str, blob: bytes) -> list[Any]:
    table = pq.read_table(io.BytesIO(blob)) if written == "parquet" else pa.ipc.open_stream(blob).read_all()
    rows: list[Any] = table.to_pylist()
    return rows


def inference_log(value: bytes) -> inference_log_pb2.InferflowLog:
    request = inference_log_pb2.KafkaRequest.FromString(value)
    log = inference_log_pb2.InferflowLog()
    assert request.value.properties.Unpack(log)
    return log


@given(SEEDS, COLUMNS, st.integers(2, 40), st.sampled_from(FORMATS), st.booleans(), st.integers(100, 4000))
def test_large_messages_are_split_by_rows(
    seed: int, types: list[str], rows: int, written: str, compress: bool, limit: int
) -> None:
    made = make(seed, types, rows=rows, slates=3)
    schema = made.schema(written, compress=compress)
    encoding = encode(schema, made.matrix, made.slates, made.event, max_message_bytes=limit)
    places = {"rows": [0] * rows, "slates": [0] * 3}
    parts: list[Encoded | Dropped] = [*encoding.messages, *encoding.dropped]
    for part in parts:
        for row in range(part.first_row, part.first_row + part.rows):
            places[part.kind][row] += 1
    assert places == {"rows": [1] * rows, "slates": [1] * 3}
    assert all(len(message.value) <= limit for message in encoding.messages)
    assert all(part.rows == 1 and part.reason == DROPPED_TOO_LARGE for part in encoding.dropped)
    for message in encoding.messages:
        log = reader.read(message.value)
        assert list(log.log.positions) == list(range(message.first_row, message.first_row + message.rows))
        served = raw_cells(made, message, schema.columns)
        for column, found, raw in zip(
            schema.columns, reader.values(log, schema.columns), served, strict=True
        ):
            assert repr(found.to_pylist()) == repr([typed(column, one) for one in raw]), column
    made.release()


@given(SEEDS, COLUMNS, ROWS, st.sampled_from(FORMATS))
def test_odd_values_are_named_and_logged_as_missing(
    seed: int, types: list[str], rows: int, written: str
) -> None:
    made = make(seed, types, rows=rows, odd=True)
    schema = made.schema(written)
    for message in encode(schema, made.matrix, None, made.event, max_message_bytes=LARGE).messages:
        log = reader.read(message.value)
        served = raw_cells(made, message, schema.columns)
        found = [column.to_pylist() for column in reader.values(log, schema.columns)]
        assert message.unfit == len(log.log.unfit)
        for one in log.log.unfit:
            assert found[one.column][one.row] is None and served[one.column][one.row] is None
            place = made.layouts.targets.byte[schema.columns[one.column].name]
            assert (one.bytes != place.width) if place.width else one.bytes % place.data_type.size
        for column, values, raw in zip(schema.columns, found, served, strict=True):
            assert repr(values) == repr([typed(column, value) for value in raw])
    made.release()


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize(
    ("kind", "limit"), [("DataTypeString", 65535), ("BYTES", 65533), ("FP32Vector", 65535)]
)
def test_a_value_that_is_too_long_for_its_length_field(written: str, kind: str, limit: int) -> None:
    size = 4 if kind == "FP32Vector" else 1
    fits, too_long = b"x" * (limit // size * size), b"x" * (limit // size * size + size)
    if written != "proto":
        fits = b"x" * 65532
        too_long = b"x" * 65536
    made = make(1, [kind], rows=3)
    column = made.layouts.targets.byte["e:g0:f"]
    block = VarBlock.empty(made.matrix.slot, 3, 1)
    block.fill(made.matrix.slot, [(0, 0, fits), (1, 0, too_long), (2, 0, fits)])
    made.matrix.blocks[column.block] = block
    schema = made.schema(written)
    held = written != "proto" and kind != "BYTES"  # what has 4-byte offsets holds longer values
    (message, *rest) = encode(schema, made.matrix, None, made.event, max_message_bytes=LARGE).messages
    found = [reader.values(reader.read(one.value), schema.columns)[0].to_pylist() for one in [message, *rest]]
    flat = [value for values in found for value in values]
    assert [value is None for value in flat] == [False, not held, False]
    named = [
        (one.first_row + unfit.row, unfit.column, unfit.bytes)
        for one in [message, *rest]
        for unfit in reader.read(one.value).log.unfit
    ]
    assert named == ([] if held else [(1, 0, len(too_long))])
    made.release()


def with_numbers(table: pa.Table) -> pa.Table:
    """The table with times as numbers: Python has no type for nanoseconds."""
    at = table.schema.get_field_index("_time")
    return table.set_column(at, "_time", table.column(at).cast(pa.int64()))


def test_everything_said_beside_the_values() -> None:
    made = make(7, ["FP32"], rows=4, slates=2)
    assert made.slates is not None
    schema = made.schema("arrow")
    messages = encode(schema, made.matrix, made.slates, made.event, max_message_bytes=LARGE).messages
    found = [
        row
        for one in messages
        for row in with_numbers(reader.table(reader.read(one.value), schema.columns)).to_pylist()
    ]
    targets = [row for row in found if row["_kind"] == "TARGETS"]
    slates = [row for row in found if row["_kind"] == "SLATES"]
    assert [row["_entity"] for row in targets] == ["id0", "id1", "id2", "id3"]
    assert [row["_position"] for row in targets] == [0, 1, 2, 3]
    assert [row["_errors"] for row in targets] == [["model: all rows"]] * 3 + [
        ["fetch: one row", "model: all rows"]
    ]
    named = [rows.tolist() for rows in made.slates.targets]
    assert [row["_slate_targets"] for row in slates] == named
    assert [row["_entity"] for row in slates] == ["|".join(f"id{at}" for at in rows) for rows in named]
    for rows, row, last in zip(named, slates, (False, True), strict=True):
        expected = ["fetch: one row"] * (3 in rows) + ["model: all rows"] + ["slate model: late"] * last
        assert row["_errors"] == expected
    for row in found:
        assert row["_rpc"] == "INFER_SLATE_WISE"
        assert row["_request_id"] == made.event.request_id.decode()
        assert row["_config_digest"] == made.event.digest
        assert row["_time"] == made.event.request_ns
        assert row["_endpoints"] == [("model", "10.0.0.1:8090")]
        assert (row["_user_id"], row["_parent_entity"]) == ("u-1", ["parent"])
    made.release()


@given(SEEDS, st.data())
def test_a_torn_matrix_is_refused_or_read_within_its_memory(seed: int, data: st.DataObject) -> None:
    made = make(seed, ["FP32", "INT64", "String", "FP32Vector"], rows=5)
    wild = st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 70_000)
    for number, block in enumerate(made.matrix.blocks):
        if isinstance(block, VarBlock):
            torn = np.array(data.draw(st.lists(wild, min_size=2, max_size=2)))
            block.starts = block.starts.copy()
            block.sizes = block.sizes.copy()
            block.starts.flat[0], block.sizes.flat[-1] = torn
        if block is not None and block.index is not None:
            block.index = block.index.copy()
            block.index[0] = data.draw(wild)
        if isinstance(block, CellBlock) and data.draw(st.booleans()):
            cut = block.flat[: data.draw(st.integers(0, len(block.flat)))]
            heap = np.concatenate((block.states.ravel(), cut))
            torn_block = CellBlock(heap, block.lines, block.columns, block.width, block.states.size, 0)
            torn_block.index = block.index
            made.matrix.blocks[number] = torn_block
    text = next(text for text in made.matrix.texts if text is not None)
    text.starts = text.starts.copy()
    text.starts[0] = data.draw(wild)
    written = data.draw(st.sampled_from(FORMATS))
    try:
        encode(made.schema(written), made.matrix, None, made.event, max_message_bytes=LARGE)
    except TornMatrix as error:
        assert "outside of its memory" in str(error)
    made.release()


def test_ids_that_are_no_utf8_do_not_spoil_the_message() -> None:
    made = make(3, ["FP32"], rows=2)
    external = made.layouts.targets.external["id"]
    made.matrix.texts[external] = TextColumn.of(made.matrix.slot, [b"\xff", "é".encode()])
    messages = encode(made.schema("proto"), made.matrix, None, made.event, max_message_bytes=LARGE).messages
    assert [name for one in messages for name in reader.read(one.value).log.entities] == ["�", "é"]
    made.release()
