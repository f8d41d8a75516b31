"""Reading inference logs back: from Kafka messages to typed columns.

All that this service writes, and what the existing one has written: the format is the message's own, and what a
writer of ours says besides (fields from 100 on) is there when it was. Values are typed by the log columns of a
config; a message carries none of that, only the digest of the config's document.

Arrow types of values: integers, FP32, FP64 and BOOL as they are; FP16 and FP8 as float32, which holds all their
values and which every reader of Parquet knows; strings as string (bytes that are no UTF-8 are replaced), vectors as
lists, vectors of strings as the text that was served (elements joined by commas). A missing value is null. The row
format has no null: there the writer says what was missing (`missing`); messages of the existing service do not, and
have a made-up zero, `0.0` or an empty vector (which reads as null), and `generated` true for the row.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError

from inferlog import kernels
from inferlog.encode import EVENT_NAME
from inferlog.formats import MAP_COLUMN
from inferlog.schema import Format, LogColumn
from proto import inference_log_pb2
from shared.datatypes import DataType

__all__ = ["BESIDE", "BadLog", "LogMessage", "arrow_type", "beside", "read", "table", "values"]

ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
MOST_BYTES: Final = 1 << 30
"""Of a message once it is unpacked: what claims to be larger is no log."""


class BadLog(ValueError):
    """A message that cannot be read, or not with these columns; the text says why."""


@dataclasses.dataclass(frozen=True)
class LogMessage:
    """One message. `log` has everything that is said beside the values."""

    event_name: str
    created_at: int  # Unix seconds
    log: inference_log_pb2.InferflowLog
    compressed: bool

    @property
    def format(self) -> Format:
        return Format(self.metadata >> 6)

    @property
    def version(self) -> int:
        """The version of the schema: the config's cache_version."""
        return self.metadata >> 2 & 0x0F

    @property
    def metadata(self) -> int:
        return self.log.metadata[0]

    @property
    def model_config_id(self) -> str:
        return self.log.model_config_id

    @property
    def digest(self) -> str:
        """Of the config's document; "" in messages of the existing service."""
        return self.log.config_digest

    @property
    def rows(self) -> int:
        return len(self.log.entities)

    def __repr__(self) -> str:
        return f"<LogMessage {self.model_config_id} {self.rows} rows, {self.format.name.lower()}>"


def read(value: bytes) -> LogMessage:
    """The message in a KafkaRequest. Raises BadLog."""
    try:
        event = inference_log_pb2.KafkaRequest.FromString(value).value
        packed = event.properties.value
        compressed = packed[:4] == ZSTD_MAGIC
        log = inference_log_pb2.InferflowLog.FromString(_unpacked(packed) if compressed else packed)
    except DecodeError as error:
        raise BadLog(f"{len(value)} bytes are no KafkaRequest with an InferflowLog: {error}") from error
    if event.event_name != EVENT_NAME:
        raise BadLog(f"event {event.event_name!r} is not {EVENT_NAME!r}")
    if len(log.metadata) != 1 or log.metadata[0] >> 6 > max(Format):
        raise BadLog(f"metadata {log.metadata.hex(' ')!r} is not one byte with a known format")
    return LogMessage(event.event_name, event.created_at, log, compressed)


class Values(NamedTuple):
    """The values of one column by their places: int64 starts and int32 sizes [rows], -1 for none, in `data`."""

    data: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]


def values(message: LogMessage, columns: Sequence[LogColumn]) -> list[pa.Array]:
    """The values of a message, one typed array [rows] a column. Raises BadLog when these are not its columns."""
    blobs = [_unpacked_blob(item.encoded_features) for item in message.log.features]
    placed = _PLACES[message.format](message, blobs, columns)
    return [
        _typed(_without_inner_length(one) if column.has_inner_length else one, column)
        for one, column in zip(placed, columns, strict=True)
    ]


def generated(message: LogMessage) -> list[bool | None]:
    """Of each row whether a value was made up for it; None in formats that have null for that."""
    if message.format is not Format.PROTO:
        return [None] * message.rows
    return [_unpacked_blob(item.encoded_features)[:1] == b"\0" for item in message.log.features]


# ---------------------------------------------------------------- bytes


def _unpacked(data: bytes) -> bytes:
    """A zstd frame, unpacked. Raises BadLog."""
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            out: bytes = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadLog(f"{len(data)} bytes of zstd cannot be unpacked: {error}") from error
    if len(out) > MOST_BYTES:
        raise BadLog(f"{len(data)} bytes of zstd hold more than {MOST_BYTES}")
    return out


def _unpacked_blob(blob: bytes) -> bytes:
    return _unpacked(blob) if blob[:4] == ZSTD_MAGIC else blob


# ---------------------------------------------------------------- where the values stand, by format


def _in_rows(message: LogMessage, blobs: Sequence[bytes], columns: Sequence[LogColumn]) -> Iterator[Values]:
    rows = len(blobs)
    _check_rows(message, rows)
    data = np.frombuffer(b"".join(blobs), np.uint8)
    ends = np.cumsum(np.fromiter(map(len, blobs), np.int64, rows))
    widths = np.array([column.width for column in columns], np.int32)
    starts, sizes = np.zeros((rows, len(columns)), np.int64), np.zeros((rows, len(columns)), np.int32)
    if kernels.read_rows(data, ends, widths, starts, sizes, np.empty(rows, np.uint8)) < 0:
        raise _not_these(message, columns, "a row is shorter or longer than its columns")
    missing = np.unpackbits(np.frombuffer(message.log.missing, np.uint8), bitorder="little")
    if len(missing):
        if len(missing) < sizes.size:
            raise _not_these(message, columns, f"it says of {len(missing)} values whether they are missing")
        sizes[missing[: sizes.size].reshape(sizes.shape) != 0] = kernels.ABSENT
    return (Values(data, starts[:, number], sizes[:, number]) for number in range(len(columns)))


def _in_stream(message: LogMessage, blobs: Sequence[bytes], columns: Sequence[LogColumn]) -> Iterator[Values]:
    try:
        found = pa.ipc.open_stream(_only(message, blobs)).read_all()
        found.validate(full=True)
        names = found.column_names
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are no UTF-8
        raise BadLog(f"{message!r}: its blob is no Arrow stream: {error}") from error
    if names != [str(number) for number in range(len(columns))]:
        raise _not_these(message, columns, f"it has {found.num_columns} columns")
    if columns:  # a stream without columns does not know its rows
        _check_rows(message, found.num_rows)
    return (_of_binary(found.column(number)) for number in range(len(columns)))


def _in_map(message: LogMessage, blobs: Sequence[bytes], columns: Sequence[LogColumn]) -> Iterator[Values]:
    try:
        found = pq.read_table(io.BytesIO(_only(message, blobs)))
        column = found.column(MAP_COLUMN).combine_chunks()
        column.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise BadLog(f"{message!r}: its blob is no Parquet file with {MAP_COLUMN!r}: {error}") from error
    if not (pa.types.is_map(column.type) and pa.types.is_integer(column.type.key_type)):
        raise BadLog(f"{message!r}: {MAP_COLUMN!r} is no map of column numbers, but {column.type}")
    rows = found.num_rows
    _check_rows(message, rows)
    ends = np.asarray(column.offsets)
    row = np.repeat(np.arange(rows), np.diff(ends))
    key = np.asarray(column.keys)[ends[0] : ends[-1]]
    if len(key) and (key.min(), key.max()) != (0, len(columns) - 1):
        raise _not_these(message, columns, f"it has columns {key.min()} to {key.max()}")
    items = _of_binary(column.items.slice(ends[0], ends[-1] - ends[0]))
    starts = np.zeros((rows, len(columns)), np.int64)
    sizes = np.full((rows, len(columns)), kernels.ABSENT, np.int32)
    starts[row, key], sizes[row, key] = items.starts, items.sizes
    return (Values(items.data, starts[:, number], sizes[:, number]) for number in range(len(columns)))


_PLACES: Mapping[Format, Callable[[LogMessage, Sequence[bytes], Sequence[LogColumn]], Iterator[Values]]] = {
    Format.PROTO: _in_rows,
    Format.ARROW: _in_stream,
    Format.PARQUET: _in_map,
}


def _only(message: LogMessage, blobs: Sequence[bytes]) -> bytes:
    if len(blobs) != 1:
        raise BadLog(f"{message!r}: {len(blobs)} blobs, where this format has one")
    return blobs[0]


def _check_rows(message: LogMessage, rows: int) -> None:
    if rows != message.rows:
        raise BadLog(f"{message!r}: {rows} rows of values")


def _not_these(message: LogMessage, columns: Sequence[LogColumn], reason: str) -> BadLog:
    return BadLog(f"{message!r} does not have these {len(columns)} columns: {reason}")


def _of_binary(column: pa.Array | pa.ChunkedArray) -> Values:
    """The values of a binary array; what is empty counts as none, as in the row format."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_binary(array.type):
        raise BadLog(f"values are no bytes, but {array.type}")
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4) if len(array) else _NO_ENDS
    sizes = np.diff(ends)
    sizes[(sizes == 0) | np.asarray(array.is_null())] = kernels.ABSENT
    heap = np.frombuffer(data, np.uint8) if data is not None and data.size else _NO_BYTES
    return Values(heap, ends[:-1].astype(np.int64), sizes)


_NO_ENDS: Final = np.zeros(1, np.int32)
_NO_BYTES: Final = np.empty(0, np.uint8)


# ---------------------------------------------------------------- typed


def arrow_type(kind: DataType) -> pa.DataType:
    """The Arrow type of values of this type."""
    if kind.element is DataType.STRING:
        return pa.string()
    element = _element_type(kind.element)
    return pa.list_(element) if kind.is_vector else element


@functools.cache
def _element_type(kind: DataType) -> pa.DataType:
    return pa.bool_() if kind is DataType.BOOL else pa.from_numpy_dtype(_numpy(kind))


def _numpy(kind: DataType) -> np.dtype[Any]:
    small = kind in (DataType.FP8E5M2, DataType.FP8E4M3, DataType.FP16)
    return np.dtype(np.float32) if small else kind.dtype


def _without_inner_length(found: Values) -> Values:
    """Takes the u16 length off values that begin with it: ours do, those of the existing service do not."""
    data, starts, sizes = found
    long = sizes >= 2
    inner = np.full(len(sizes), kernels.ABSENT, np.int64)
    inner[long] = data[starts[long]] + (data[starts[long] + 1].astype(np.int64) << 8)
    has = long & (inner == sizes - 2)
    return Values(data, np.where(has, starts + 2, starts), np.where(has, sizes - 2, sizes).astype(np.int32))


def _typed(found: Values, column: LogColumn) -> pa.Array:
    """An array of the column's type. Raises BadLog for a value whose length is none of this type."""
    kind = column.data_type
    present = found.sizes >= 0
    heap, offsets = _gathered(found)
    if kind.element is DataType.STRING:
        return _strings(heap, offsets, present)
    sizes = np.diff(offsets)
    odd = sizes % kind.size if kind.is_vector else present & (sizes != kind.size)
    if odd.any():
        raise BadLog(
            f"column {column.name!r}: a value of {sizes[odd != 0][0]} bytes is no {column.written_type}"
        )
    elements = pa.array(_numbers(heap, kind.element))
    mask = pa.array(~present)
    if kind.is_vector:
        ends = pa.array((offsets // kind.size).astype(np.int32))
        return pa.ListArray.from_arrays(ends, elements, mask=mask)
    return elements.take(pa.array(np.cumsum(present) - 1, mask=~present))


def _gathered(found: Values) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All values one after the other, and where each begins: int64 [rows + 1]."""
    starts = np.ascontiguousarray(found.starts)
    sizes = np.maximum(found.sizes, 0)
    offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    heap = np.empty(int(offsets[-1]), np.uint8)
    code = kernels.gather(found.data, starts, sizes, heap)
    assert code >= 0, code  # the places come from checked offsets
    return heap, offsets


def _numbers(heap: npt.NDArray[np.uint8], kind: DataType) -> npt.NDArray[Any]:
    raw = heap.view(kind.dtype)
    return raw != 0 if kind is DataType.BOOL else raw.astype(_numpy(kind))


def _strings(heap: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], present: Any) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(heap)]
    found = pa.Array.from_buffers(pa.large_binary(), len(present), buffers)
    try:
        texts = found.cast(pa.large_string()).cast(pa.string())
    except pa.ArrowInvalid:  # no UTF-8 somewhere
        texts = pa.array([one.decode("utf-8", "replace") for one in found.to_pylist()], pa.string())
    return pc.if_else(pa.array(present), texts, None)


# ---------------------------------------------------------------- tables

BESIDE: Final = pa.schema(
    [
        ("_request_id", pa.string()),  # as in the answer's trailing metadata
        ("_time", pa.timestamp("ns", "UTC")),
        ("_model_config_id", pa.string()),
        ("_config_digest", pa.string()),
        ("_tracking_id", pa.string()),
        ("_user_id", pa.string()),
        ("_parent_entity", pa.list_(pa.string())),
        ("_rpc", pa.string()),
        ("_kind", pa.string()),
        ("_entity", pa.string()),
        ("_position", pa.uint32()),
        ("_slate_targets", pa.list_(pa.uint32())),
        ("_endpoints", pa.map_(pa.string(), pa.string())),
        ("_errors", pa.list_(pa.string())),
        ("_generated", pa.bool_()),
    ]
)
"""The columns that stand before the logged ones in a table."""


def table(message: LogMessage, columns: Sequence[LogColumn]) -> pa.Table:
    """A message as a table: what is said of each row (BESIDE), then its values. Raises BadLog.

    A logged column that has one of the names of BESIDE is called `feature:` and its name.
    """
    said = beside(message)
    names = [f"feature:{column.name}" if column.name in BESIDE.names else column.name for column in columns]
    return pa.Table.from_arrays(
        [*said.columns, *values(message, columns)],
        schema=pa.schema(
            [
                *BESIDE,
                *(
                    pa.field(name, arrow_type(column.data_type))
                    for name, column in zip(names, columns, strict=True)
                ),
            ]
        ),
    )


def beside(message: LogMessage) -> pa.Table:
    """What is said of each row of a message besides its values: the columns of BESIDE. Needs no config."""
    log, rows = message.log, message.rows
    ours = bool(log.config_digest)
    nanoseconds = log.request_ns or message.created_at * 1_000_000_000
    same = {
        "_request_id": log.request_id.decode("utf-8", "backslashreplace") or None,
        "_time": nanoseconds,
        "_model_config_id": log.model_config_id,
        "_config_digest": log.config_digest or None,
        "_tracking_id": log.tracking_id,
        "_user_id": log.user_id or None,
        "_parent_entity": list(log.parent_entity),
        "_rpc": _name(inference_log_pb2.Rpc, log.rpc) if ours else None,
        "_kind": _name(inference_log_pb2.RowKind, log.row_kind),
        "_endpoints": sorted(log.endpoints.items()),
    }
    each: dict[str, Sequence[Any]] = {
        "_entity": list(log.entities),
        "_position": list(log.positions) if ours else [None] * rows,
        "_slate_targets": _slate_targets(log, rows),
        "_errors": _errors(log, rows),
        "_generated": generated(message),
    }
    each |= {name: [value] * rows for name, value in same.items()}
    for name, column in each.items():
        if len(column) != rows:
            raise BadLog(f"{message!r}: {len(column)} values of {name}")
    return pa.table([pa.array(each[field.name], field.type) for field in BESIDE], schema=BESIDE)


def _name(kind: Any, number: int) -> str:
    """The name of an enum's value; its number when a newer writer knows more names."""
    return str(kind.Name(number)) if number in kind.values() else str(number)


def _slate_targets(log: inference_log_pb2.InferflowLog, rows: int) -> list[list[int] | None]:
    if log.row_kind != inference_log_pb2.SLATES:
        return [None] * rows
    return [list(one.positions) for one in log.slate_targets]


def _errors(log: inference_log_pb2.InferflowLog, rows: int) -> list[list[str]]:
    """Of each row its errors, component and cause."""
    errors: list[list[str]] = [[] for _ in range(rows)]
    for one in log.errors:
        for row in range(rows) if one.all_rows else one.rows:
            if row >= rows:
                raise BadLog(f"an error of {one.component} is about row {row} of {rows}")
            errors[row].append(f"{one.component}: {one.cause}")
    return errors
