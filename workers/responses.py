"""Response builders: from a scored matrix to the messages of the wire."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence

import mmh3
import numpy as np
import numpy.typing as npt

from components import kernels
from components.columns import byte_values, fallback, texts
from components.scratch import scratch
from components.wire import field_head
from dag.component import Failure, Scoring
from dag.plan import OutputColumn, Plan
from proto import inferflow_pb2, predict_pb2
from shared.shm_matrix import IDENTITY, Bytes, CellBlock, Rows, ShmMatrix, TextColumn, VarBlock

__all__ = ["point_wise", "retrieve", "sampled", "slate_wise"]


def retrieve(plan: Plan, scoring: Scoring, *, model_schema: bool) -> bytes:
    """InferflowResponseProto: the column names, then one row of texts per matrix row.

    `model_schema`: show the models' inputs before the other features.
    """
    matrix = scoring.matrix
    columns = plan.answer.model_schema if model_schema else plan.answer.features
    response = inferflow_pb2.InferflowResponseProto()
    response.component_data.add(data=[column.name for column in columns])
    values = [texts(matrix, column.source, matrix.all_rows) for column in columns]
    for row in zip(*values, strict=True) if values else [()] * matrix.rows:
        response.component_data.add(data=[text.decode("utf-8", "replace") for text in row])
    if scoring.failures:
        response.error.message = _summary(scoring.failures)
    body: bytes = response.SerializeToString()
    return body


def point_wise(plan: Plan, scoring: Scoring, *, reference: bool) -> bytes:
    """PointWiseResponse."""
    columns = plan.answer.features
    return b"".join(
        (
            _schema(0x0A, columns, scoring.matrix),
            _scores(TARGET_SCORES, columns, scoring.matrix, scoring.failures, reference),
            _text_field(0x1A, _request_error(scoring)),
        )
    )


def slate_wise(plan: Plan, scoring: Scoring, *, reference: bool) -> bytes:
    """SlateWiseResponse, or PairWiseResponse: their fields have the same numbers.

    There are no slate scores when the config answers none.
    """
    slates = scoring.slates
    assert slates is not None
    targets, own = plan.answer.targets, plan.answer.slates
    return b"".join(
        (
            _scores(SLATE_SCORES, own, slates.matrix, _inherited(scoring), reference) if own else b"",
            _scores(TARGET_SCORES, targets, scoring.matrix, scoring.failures, reference),
            _schema(0x1A, targets, scoring.matrix),
            _schema(0x22, own, slates.matrix),
            _text_field(0x2A, _request_error(scoring)),
        )
    )


def sampled(user_id: bytes, percentage: int, now: datetime.datetime) -> bool:
    """Whether this user is among the `percentage` % of today: murmur3 of user and date (DDMMYYYY), mod 100."""
    if not 0 < percentage < 100:
        return percentage >= 100
    return abs(mmh3.hash(user_id + now.strftime("%d%m%Y").encode())) % 100 < percentage


def _schema(tag: int, columns: Sequence[OutputColumn], matrix: ShmMatrix) -> bytes:
    """The output schema of these columns as field `tag` of a response."""
    out: list[bytes] = []
    for column in columns:
        kind, dim = column.data_type, column.vector_dim
        if column.source.byte is None and (typed := matrix.typed[column.source.external]) is not None:
            kind, dim = typed.data_type, typed.vector_dim
        message = _feature_schema(column.name, int(kind), dim)
        out += (field_head(tag, len(message)), message)
    return b"".join(out)


@functools.lru_cache(maxsize=4096)
def _feature_schema(name: str, kind: int, dim: int) -> bytes:
    message: bytes = predict_pb2.FeatureSchema(
        name=name,
        data_type=kind,  # type: ignore[arg-type]
        vector_dim=dim,
    ).SerializeToString()
    return message


def _text_field(tag: int, text: str) -> bytes:
    raw = text.encode()
    return field_head(tag, len(raw)) + raw if raw else b""


# Tags of the score lists: field number and wire type 2. Plain numbers, because kernels take no enums.
TARGET_SCORES = 0x12  # in all three responses
SLATE_SCORES = 0x0A  # pair_scores and slate_scores


def _scores(
    tag: int,
    columns: Sequence[OutputColumn],
    matrix: ShmMatrix,
    failures: Sequence[Failure],
    reference: bool,
) -> bytes:
    """The scores of all rows as field `tag` of a response.

    TargetScore, PairScore and SlateScore have the same fields: 1 error, 2 output_values.
    """
    if not (reference or failures):
        packed = _packed_scores(tag, columns, matrix)
        if packed is not None:
            return packed
    values = [_values(matrix, column) for column in columns]
    errors = _row_errors(failures, matrix.rows)
    out = bytearray()
    for row in range(matrix.rows):
        score = predict_pb2.TargetScore(error=errors[row], output_values=[column[row] for column in values])
        message = score.SerializeToString()
        out += field_head(tag, len(message))
        out += message
    return bytes(out)


def _packed_scores(tag: int, columns: Sequence[OutputColumn], matrix: ShmMatrix) -> bytes | None:
    """The same by kernels; None when a cell needs a closer look."""
    starts = np.zeros((len(columns), matrix.rows), np.int64)
    sizes = np.zeros((len(columns), matrix.rows), np.int32)
    at = 0
    number = 0
    while number < len(columns):
        end = _collect(matrix, columns[number], scratch.heap, at, starts[number], sizes[number])
        if end == kernels.NO_ROOM:
            # What was collected so far goes with the old heap: once more from the start, in a larger one.
            scratch.grow_heap()
            at = number = 0
            continue
        if end < 0:
            return None
        at = end
        number += 1
    while True:
        size = kernels.write_scores(tag, scratch.heap, starts, sizes, scratch.out)
        if size != kernels.NO_ROOM:
            break
        scratch.grow_out()
    assert size >= 0, size
    return scratch.out[:size].tobytes()


def _text_source(matrix: ShmMatrix, column: OutputColumn) -> TextColumn | None:
    """The texts or raw values that the request brought under this name."""
    typed = matrix.typed[column.source.external]
    return matrix.texts[column.source.external] if typed is None else typed.text


def _row_sizes(block: VarBlock, column: int, rows: Rows) -> Rows:
    if not len(block.sizes):
        return np.zeros(len(rows), np.int32)
    if block.index is None:
        return block.sizes[:, column]
    return np.where(block.index >= 0, block.sizes[block.index, column], 0).astype(np.int32)


def _collect(
    matrix: ShmMatrix,
    column: OutputColumn,
    heap: Bytes,
    at: int,
    starts: npt.NDArray[np.int64],
    sizes: Rows,
) -> int:
    """Copies the values of a column into `heap`; the new end, or a negative kernel code."""
    byte = column.source.byte
    if byte is None:
        text = _text_source(matrix, column)
        if text is None:
            return at
        step = 0 if text.constant else 1
        return kernels.collect_texts(text.heap, text.starts, text.sizes, step, heap, at, starts, sizes)
    block = matrix.blocks[byte.block]
    if block is None or not len(block.states):
        return at
    if isinstance(block, CellBlock):
        index = IDENTITY if block.index is None else block.index
        return kernels.collect_cells(
            block.flat, block.states, index, byte.column, byte.width, heap, at, starts, sizes
        )
    places = block.starts[:, byte.column] if block.index is None else block.starts[block.index, byte.column]
    lengths = np.ascontiguousarray(_row_sizes(block, byte.column, matrix.all_rows))
    return kernels.collect_texts(
        block.heap, np.ascontiguousarray(places), lengths, 1, heap, at, starts, sizes
    )


def _inherited(scoring: Scoring) -> list[Failure]:
    """The failures of the slates: their own, and those of the targets they name, which were scored as zeros."""
    slates = scoring.slates
    assert slates is not None
    if not scoring.failures:
        return slates.failures
    out = []
    for failure in scoring.failures:
        if failure.rows is None:
            rows = [number for number, targets in enumerate(slates.targets) if len(targets)]
        else:
            rows = [n for n, targets in enumerate(slates.targets) if np.isin(targets, failure.rows).any()]
        out.append(Failure(failure.component, failure.cause, np.array(rows, np.int32)))
    return out + slates.failures


def _values(matrix: ShmMatrix, column: OutputColumn) -> list[bytes]:
    """Raw bytes of an answered column: of its byte column if it has one, else of what the request brought."""
    if column.source.byte is not None:
        return byte_values(matrix, column.source.byte, matrix.all_rows)
    brought = fallback(matrix, column.source, matrix.all_rows)
    return [b""] * matrix.rows if brought is None else brought[1]


def _row_errors(failures: Sequence[Failure], rows: int) -> list[str]:
    """The error text of each row: its failures, each once, in the order in which they happened."""
    texts: list[dict[str, None]] = [{} for _ in range(rows)]
    for failure in failures:
        text = _text(failure)
        for row in range(rows) if failure.rows is None else failure.rows.tolist():
            texts[row][text] = None
    return ["; ".join(row) for row in texts]


def _request_error(scoring: Scoring) -> str:
    """Why all rows failed; "" when some row is whole."""
    failures = list(scoring.failures)
    if not failures:
        return ""
    whole = not all(_row_errors(failures, scoring.matrix.rows))
    if scoring.slates is not None:
        failures += scoring.slates.failures
        whole = whole or not all(_row_errors(scoring.slates.failures, scoring.slates.matrix.rows))
    return "" if whole else _summary(failures)


def _summary(failures: Sequence[Failure]) -> str:
    return "; ".join(dict.fromkeys(map(_text, failures)))


def _text(failure: Failure) -> str:
    return f"{failure.component}: {failure.cause}"
