"""Inference logs written the straightforward way: a Python object per cell, protobuf objects per row.

The benchmark compares the encoders with this, and the tests hold them to it. It covers what a request without
slates, unfit values and splitting needs, and nothing else.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from components.columns import byte_states, byte_values, text_of
from dag.layout import Layout
from inferlog.encode import EVENT_NAME
from inferlog.event import Event
from inferlog.schema import Format, LogColumn, LogSchema
from proto import inference_log_pb2
from shared.datatypes import DataType
from shared.shm_matrix import VALUE, Rows, ShmMatrix

__all__ = ["cells", "encode", "features"]

Cells = list[list[bytes | None]]
"""By column, by row: the value, None when it is missing."""


def encode(schema: LogSchema, layout: Layout, matrix: ShmMatrix, event: Event) -> list[bytes]:
    """The messages of a request's targets, each a KafkaRequest."""
    messages = []
    for first in range(0, matrix.rows, schema.batch_rows):
        rows = matrix.all_rows[first : first + schema.batch_rows]
        log = inference_log_pb2.InferflowLog(
            user_id=event.user_id,
            tracking_id=event.tracking_id,
            model_config_id=event.model_config_id,
            metadata=bytes((schema.metadata,)),
            parent_entity=event.parent_entity,
            positions=rows.tolist(),
        )
        text = matrix.texts[schema.id_source.external]
        assert text is not None
        log.entities.extend(one.decode() for one in text.texts(rows))
        log.features.extend(
            inference_log_pb2.PerEntityFeatures(encoded_features=blob)
            for blob in features(schema, cells(schema, layout, matrix, rows))
        )
        request = inference_log_pb2.KafkaRequest()
        request.value.event_name = EVENT_NAME
        request.value.event_id = event.tracking_id
        request.value.created_at = event.request_ns // 1_000_000_000
        request.value.properties.Pack(log)
        messages.append(request.SerializeToString())
    return messages


def cells(schema: LogSchema, layout: Layout, matrix: ShmMatrix, rows: Rows) -> Cells:
    """The values of these rows, one list a column."""
    return [_column(column, layout, matrix, rows) for column in schema.columns]


def _column(column: LogColumn, layout: Layout, matrix: ShmMatrix, rows: Rows) -> list[bytes | None]:
    byte = layout.byte.get(column.name)
    if byte is not None:
        values: Sequence[bytes] = byte_values(matrix, byte, rows)
        states = byte_states(matrix, byte, rows)
        unit = column.data_type.size or 1
        return [
            value if state == VALUE and value and len(value) % unit == 0 else None
            for value, state in zip(values, states, strict=True)
        ]
    external = layout.external.get(column.name)
    if column.data_type is not DataType.STRING or external is None:
        return [None] * len(rows)
    typed, text = matrix.typed[external], matrix.texts[external]
    if typed is not None:
        return [one or None for one in text_of(typed.values(rows), typed.data_type)]
    return [None] * len(rows) if text is None else [one or None for one in text.texts(rows)]


def features(schema: LogSchema, table: Cells) -> list[bytes]:
    """The blobs of a message with these values."""
    return _WRITERS[schema.format](schema.columns, table)


def _inner(column: LogColumn, value: bytes | None) -> bytes | None:
    return struct.pack("<H", len(value)) + value if value is not None and column.has_inner_length else value


def _proto(columns: Sequence[LogColumn], table: Cells) -> list[bytes]:
    return [_row(columns, row) for row in zip(*table, strict=True)]


def _row(columns: Sequence[LogColumn], row: Sequence[bytes | None]) -> bytes:
    out = bytearray([0 if None in row else 1])
    for column, value in zip(columns, row, strict=True):
        if column.width:
            out += bytes(column.width) if value is None else value
            continue
        if value is None:
            value = b"0.0" if column.is_text else b""
        packed = _inner(column, value)
        assert packed is not None
        out += struct.pack("<H", len(packed)) + packed
    return bytes(out)


def _arrow(columns: Sequence[LogColumn], table: Cells) -> list[bytes]:
    found = pa.table(
        {
            str(number): pa.array([_inner(column, value) for value in values], pa.binary())
            for number, (column, values) in enumerate(zip(columns, table, strict=True))
        }
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, found.schema) as stream:
        stream.write_table(found)
    return [sink.getvalue()]


def _parquet(columns: Sequence[LogColumn], table: Cells) -> list[bytes]:
    rows = [
        [
            (number, _inner(column, value))
            for number, (column, value) in enumerate(zip(columns, row, strict=True))
        ]
        for row in zip(*table, strict=True)
    ]
    sink = io.BytesIO()
    pq.write_table(pa.table({"Features": pa.array(rows, pa.map_(pa.int64(), pa.binary()))}), sink)
    return [sink.getvalue()]


_WRITERS: Mapping[Format, Callable[[Sequence[LogColumn], Cells], list[bytes]]] = {
    Format.PROTO: _proto,
    Format.ARROW: _arrow,
    Format.PARQUET: _parquet,
}
