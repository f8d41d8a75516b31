"""From the matrix of a scored request to the messages of its log.

`encode` is a pure function of its arguments: no clock, no queue, no socket. It may be called from any thread,
and on memory whose writer has died: what does not add up raises TornMatrix.

One message holds up to `log_batch_size` rows of one kind, targets or slates. Its value is a KafkaRequest (see
proto/inference_log.proto). A message that would be larger than allowed is split by rows; a single row that is too
large is reported, never passed over in silence. A value that its format cannot hold (its length does not fit the
declared type, or is over 65,535 bytes where two bytes say the length) is logged as missing and named in the
message (`unfit`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.columns import byte_values, text_of
from components.wire import field_head, varint
from dag.component import Failure, Slates
from dag.layout import Source
from inferlog.cells import Batch, Cells, TornMatrix
from inferlog.event import Event
from inferlog.formats import WRITERS
from inferlog.schema import LogSchema, Places
from proto import inference_log_pb2
from shared.shm_matrix import ShmMatrix

__all__ = ["DROPPED_TOO_LARGE", "EVENT_NAME", "Dropped", "Encoded", "Encoding", "TornMatrix", "encode"]

EVENT_NAME = "inferflow_inference_logs"
TYPE_URL = "type.googleapis.com/InferflowLog"
DROPPED_TOO_LARGE = "row larger than a message"

COMPRESSION_HOPED_FOR = 8
"""How much smaller compression may make a message: what is larger before is split without trying."""

TARGETS, SLATES = "rows", "slates"


class Encoded(NamedTuple):
    """One message: its value, and the rows that are in it."""

    value: bytes  # of a KafkaRequest
    rows: int
    first_row: int  # place of the first in the request, among the rows of its kind
    kind: str  # "rows" (targets) or "slates"
    unfit: int  # values that are logged as missing because the format cannot hold them


class Dropped(NamedTuple):
    """Rows that could not be logged, and why."""

    rows: int
    first_row: int
    kind: str
    reason: str


class Encoding(NamedTuple):
    """The whole log of one request: every row is in one message or dropped."""

    messages: list[Encoded]
    dropped: list[Dropped]


def encode(
    schema: LogSchema,
    matrix: ShmMatrix,
    slates: Slates | None,
    event: Event,
    *,
    max_message_bytes: int,
) -> Encoding:
    """The messages of a request's log. Raises TornMatrix when the matrix points outside of its memory."""
    kinds = [_Targets(schema, matrix, event)]
    if slates is not None:
        kinds.append(_Slates(schema, matrix, slates, event))
    encoding = Encoding([], [])
    for kind in kinds:
        for first in range(0, kind.matrix.rows, schema.batch_rows):
            stop = min(first + schema.batch_rows, kind.matrix.rows)
            for part in _messages(kind, first, stop, max_message_bytes):
                if isinstance(part, Encoded):
                    encoding.messages.append(part)
                else:
                    encoding.dropped.append(part)
    return encoding


def _messages(kind: _Targets, first: int, stop: int, limit: int) -> Iterator[Encoded | Dropped]:
    """The messages of these rows, none larger than `limit` bytes."""
    rows = stop - first
    batch = Batch(kind.cells, first, stop)
    hoped = limit * COMPRESSION_HOPED_FOR if kind.schema.compress else limit
    size = batch.bytes
    if size <= hoped:
        value = kind.message(batch)
        size = len(value)
        if size <= limit:
            yield Encoded(value, rows, first, kind.name, batch.unfit)
            return
    if rows == 1:
        yield Dropped(1, first, kind.name, DROPPED_TOO_LARGE)
        return
    # In as many parts as its size asks for, and at least in two: rows are of about the same size.
    step = -(-rows // max(2, min(rows, -(-size // limit))))
    for start in range(first, stop, step):
        yield from _messages(kind, start, min(start + step, stop), limit)


class _Targets:
    """The rows of the targets, and what stands beside them in a message."""

    name = TARGETS
    row_kind = inference_log_pb2.TARGETS

    def __init__(self, schema: LogSchema, matrix: ShmMatrix, event: Event) -> None:
        self.schema = schema
        self.event = event
        self.matrix = matrix
        self.cells = Cells(schema, self.places(schema), matrix)
        self.failures: Sequence[Failure] = event.failures

    @staticmethod
    def places(schema: LogSchema) -> Places:
        """Where this kind of rows has its columns."""
        return schema.targets

    @functools.cached_property
    def _head(self) -> bytes:
        """What all messages of this kind have in common, as fields of InferflowLog."""
        event = self.event
        log = inference_log_pb2.InferflowLog(
            user_id=event.user_id,
            tracking_id=event.tracking_id,
            model_config_id=event.model_config_id,
            metadata=bytes((self.schema.metadata,)),
            parent_entity=event.parent_entity,
            config_digest=event.digest,
            request_ns=event.request_ns,
            request_id=event.request_id,
            rpc=event.method,  # type: ignore[arg-type]
            row_kind=self.row_kind,
            endpoints=event.endpoints,
        )
        head: bytes = log.SerializeToString()
        return head

    def entities(self, first: int, stop: int) -> list[bytes]:
        """The names of these rows: the ids of the targets."""
        return _ids(self.matrix, self.schema.id_source, np.arange(first, stop, dtype=np.int32))

    def beside(self, first: int, stop: int) -> inference_log_pb2.InferflowLog:
        """What is said of these rows besides their values."""
        log = inference_log_pb2.InferflowLog(positions=range(first, stop))
        for failure in self.failures:
            _note(log, failure, first, stop)
        return log

    def message(self, batch: Batch) -> bytes:
        """The KafkaRequest of a batch."""
        beside = self.beside(batch.first, batch.stop)
        for row, column, size in batch.unfit_cells():
            beside.unfit.add(row=row, column=column, bytes=size)
        features = WRITERS[self.schema.format](batch)
        parts = (self._head, _entities(self.entities(batch.first, batch.stop)), *features)
        log = b"".join((*parts, beside.SerializeToString()))
        if self.schema.compress:
            log = pa.compress(log, codec="zstd", asbytes=True)
        return _request(self.event, log)


class _Slates(_Targets):
    """The rows of the slates: named by their targets' ids, and with the errors of their targets, too."""

    name = SLATES
    row_kind = inference_log_pb2.SLATES

    def __init__(self, schema: LogSchema, matrix: ShmMatrix, slates: Slates, event: Event) -> None:
        super().__init__(schema, slates.matrix, event)
        self.named = slates.targets
        self._target_matrix = matrix
        self.failures = (*(self._inherited(failure) for failure in event.failures), *slates.failures)

    @staticmethod
    def places(schema: LogSchema) -> Places:
        return schema.slates

    @functools.cached_property
    def _target_ids(self) -> list[bytes]:
        return _ids(self._target_matrix, self.schema.id_source, self._target_matrix.all_rows)

    def entities(self, first: int, stop: int) -> list[bytes]:
        """The ids of each slate's targets, joined as composite keys are."""
        ids = self._target_ids
        return [b"|".join([ids[row] for row in rows.tolist()]) for rows in self.named[first:stop]]

    def beside(self, first: int, stop: int) -> inference_log_pb2.InferflowLog:
        log = super().beside(first, stop)
        for rows in self.named[first:stop]:
            log.slate_targets.add(positions=rows.tolist())
        return log

    def _inherited(self, failure: Failure) -> Failure:
        """The slates that a failure of targets is about: they were scored with what those lack."""
        if failure.rows is None:
            return failure
        touched = [number for number, rows in enumerate(self.named) if np.isin(rows, failure.rows).any()]
        return Failure(failure.component, failure.cause, np.array(touched, np.int32))


def _note(log: inference_log_pb2.InferflowLog, failure: Failure, first: int, stop: int) -> None:
    """Says of a failure what is about these rows."""
    if failure.rows is None:
        log.errors.add(component=failure.component, cause=failure.cause, all_rows=True)
        return
    rows = failure.rows[(failure.rows >= first) & (failure.rows < stop)] - first
    if len(rows):
        log.errors.add(component=failure.component, cause=failure.cause, rows=rows.tolist())


def _ids(matrix: ShmMatrix, source: Source, rows: npt.NDArray[np.int32]) -> list[bytes]:
    """The ids of target rows, as text: what the request brought, else what was fetched under that name."""
    text = matrix.texts[source.external]
    if text is not None:
        return text.texts(rows)
    typed = matrix.typed[source.external]
    if typed is not None:
        return text_of(typed.values(rows), typed.data_type)
    if source.byte is not None:
        return text_of(byte_values(matrix, source.byte, rows), source.byte.data_type)
    return [b""] * len(rows)


def _entities(ids: Sequence[bytes]) -> bytes:
    """InferflowLog.entities (4). Ids that are no UTF-8 are made so: one would spoil the message."""
    if not b"".join(ids).isascii():
        ids = [one.decode("utf-8", "replace").encode() for one in ids]
    return b"".join(itertools.chain.from_iterable((field_head(0x22, len(one)), one) for one in ids))


def _request(event: Event, log: bytes) -> bytes:
    """KafkaRequest{1 value KafkaEventValue{…, 4 properties Any{1 type_url, 2 value}, …}}, around `log`."""
    packed = _field(1, TYPE_URL.encode()) + field_head(0x12, len(log))
    value = b"".join(
        (
            _field(1, EVENT_NAME.encode()),
            _field(2, event.tracking_id.encode()),
            b"\x18" + varint(event.request_ns // 1_000_000_000),
            field_head(0x22, len(packed) + len(log)),
            packed,
        )
    )
    user = _field(5, event.user_id.encode())
    return b"".join((field_head(0x0A, len(value) + len(log) + len(user)), value, log, user))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field; none when it is empty, as in all proto3 messages."""
    return field_head(number << 3 | 2, len(content)) + content if content else b""
