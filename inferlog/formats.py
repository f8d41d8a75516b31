"""The three formats that rows of a batch are written in, each as InferflowLog.features (field 5).

| format | blobs a message | a missing value |
|---|---|---|
| proto | one a row: a byte, then the values in column order | zero, empty, `0.0`; the row's first byte is 0 |
| arrow | one: an IPC stream with a binary column "0", "1", … per logged column | null |
| parquet | one: a file with a map column `Features` of column number → bytes | null |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.wire import field_head, varint
from inferlog import kernels
from inferlog.cells import Batch
from inferlog.schema import Format
from shared.shm_matrix import Bytes

__all__ = ["MAP_COLUMN", "WRITERS", "Writer"]

Part = bytes | memoryview
Writer = Callable[[Batch], Sequence[Part]]
"""Writes a batch; what it returns is joined."""

MAP_COLUMN: Final = "Features"
MISSING_TAG: Final = varint(110 << 3 | 2)  # InferflowLog.missing
_MAP = pa.map_(pa.int64(), pa.binary())
_MAP_FILE = pa.schema([pa.field(MAP_COLUMN, _MAP, nullable=False)])
_KEYS, _VALUES = f"{MAP_COLUMN}.key_value.key", f"{MAP_COLUMN}.key_value.value"
# Keys count from 0 to the last column again and again: deltas take a fraction of a byte each.
_ENCODINGS: Final = {_KEYS: "DELTA_BINARY_PACKED", _VALUES: "PLAIN"}


def _proto(batch: Batch) -> list[Part]:
    schema = batch.schema
    lengths = np.empty(batch.rows, np.int32)
    size = kernels.row_lengths(batch.sizes, schema.widths, schema.inner, schema.fillers, lengths)
    out, places = np.empty(size, np.uint8), _places(batch)
    missing = np.zeros(-(-batch.sizes.size // 8), np.uint8)
    end = kernels.frame_rows(
        batch.sizes, schema.widths, schema.inner, schema.fillers, lengths, out, places, missing
    )
    assert end == size, (end, size)
    batch.copy(places, out)
    return [out.data, MISSING_TAG, varint(len(missing)), missing.data] if missing.any() else [out.data]


def _arrow(batch: Batch) -> list[Part]:
    rows, columns = batch.sizes.shape
    out, places = _room(batch, padding=8), _places(batch)
    bases = np.empty(columns + 1, np.int64)
    offsets = np.empty((columns, rows + 1), np.int32)
    valid = np.zeros((columns, -(-rows // 8)), np.uint8)
    nulls = np.empty(columns, np.int32)
    end = kernels.frame_columns(batch.sizes, batch.schema.inner, out, places, bases, offsets, valid, nulls)
    assert end >= 0, end
    batch.copy(places, out)
    heap, starts = pa.py_buffer(out), bases.tolist()
    arrays = [
        pa.Array.from_buffers(
            pa.binary(),
            rows,
            [
                pa.py_buffer(valid[column]) if missing else None,
                pa.py_buffer(offsets[column]),
                heap.slice(starts[column], starts[column + 1] - starts[column]),
            ],
            missing,
        )
        for column, missing in enumerate(nulls.tolist())
    ]
    sink = pa.BufferOutputStream()
    schema = _binary_columns(columns)
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return _blob(sink.getvalue())


def _parquet(batch: Batch) -> list[Part]:
    rows, columns = batch.sizes.shape
    count = rows * columns
    out, places = _room(batch, padding=0), _places(batch)
    offsets = np.empty(count + 1, np.int32)
    valid = np.zeros(-(-count // 8), np.uint8)
    missing = kernels.frame_map(batch.sizes, batch.schema.inner, out, places, offsets, valid)
    assert missing >= 0, missing
    batch.copy(places, out)
    buffers = [pa.py_buffer(valid) if missing else None, pa.py_buffer(offsets), pa.py_buffer(out)]
    values = pa.Array.from_buffers(pa.binary(), count, buffers, missing)
    keys = pa.array(np.tile(np.arange(columns, dtype=np.int64), rows))
    ends = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(columns))
    table = pa.Table.from_arrays([pa.MapArray.from_arrays(ends, keys, values)], schema=_MAP_FILE)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="none", use_dictionary=False, write_statistics=False,
        column_encoding=_ENCODINGS, store_schema=False,
    )  # fmt: skip
    return _blob(sink.getvalue())


WRITERS: Mapping[Format, Writer] = {
    Format.PROTO: _proto,
    Format.ARROW: _arrow,
    Format.PARQUET: _parquet,
}


def _places(batch: Batch) -> npt.NDArray[np.int64]:
    """Room for where each value goes."""
    return np.empty(batch.sizes.shape, np.int64)


def _room(batch: Batch, padding: int) -> Bytes:
    """Room for all values with their inner lengths, and `padding` a column."""
    rows, columns = batch.sizes.shape
    return np.empty(batch.bytes + rows * int(batch.schema.inner.sum()) + columns * padding, np.uint8)


@functools.lru_cache(maxsize=256)
def _binary_columns(columns: int) -> pa.Schema:
    return pa.schema([(str(number), pa.binary()) for number in range(columns)])


def _blob(blob: pa.Buffer) -> list[Part]:
    """PerEntityFeatures{1 encoded_features} with this blob, as field 5."""
    inner = field_head(0x0A, blob.size)
    return [field_head(0x2A, len(inner) + blob.size), inner, memoryview(blob)]
