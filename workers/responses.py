"""Response builders: from a scored matrix to the messages of the wire."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence

import mmh3
import numpy as np

from components import value_kernels as kernels
from components.collect import Collected, TooMuchError, collect
from components.columns import byte_values, fallback, texts
from components.kernels import NO_ROOM
from components.scratch import scratch
from components.wire import field_head
from dag.component import Failure, Scoring
from dag.plan import OutputColumn, OutputColumns, Plan
from proto import inferflow_pb2, predict_pb2
from shared.shm_matrix import IDENTITY, CellBlock, Rows, ShmMatrix

__all__ = ["ResponseTooLarge", "point_wise", "retrieve", "sampled", "slate_wise"]

MAX_BYTES = 48 << 20  # of an answer: features that all rows share are stored once, and answered for every row
MAX_CAUSE = 500  # characters of an error text, which stands in every row that it is about


class ResponseTooLarge(Exception):
    """An answer of more than MAX_BYTES; the message says of how many rows and columns."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(f"the answer to {rows} rows with {columns} columns is larger than {MAX_BYTES} bytes")


def retrieve(plan: Plan, scoring: Scoring, *, model_schema: bool, reference: bool) -> bytes:
    """InferflowResponseProto: the column names, then one row of texts per matrix row.

    `model_schema`: show the models' inputs before the other features. Raises ResponseTooLarge.
    """
    matrix = scoring.matrix
    columns = plan.answer.model_schema if model_schema else plan.answer.features
    rows = None if reference else _packed_rows(columns, matrix)
    message = inferflow_pb2.InferflowResponseProto.Error(message=_summary(scoring.failures))
    error = inferflow_pb2.InferflowResponseProto(error=message) if scoring.failures else None
    return b"".join(
        (
            _names(columns),
            _rows_by_messages(columns, matrix) if rows is None else rows,
            b"" if error is None else error.SerializeToString(),
        )
    )


NAMES = 0  # among the heads of an answer's columns, beside schemas by their tags


def _names(columns: OutputColumns) -> bytes:
    """The first row of a RetrieveModelScore answer: the names of its columns."""
    row = columns.heads.get(NAMES)
    if row is None:
        response = inferflow_pb2.InferflowResponseProto()
        response.component_data.add(data=[column.name for column in columns])
        row = columns.heads[NAMES] = response.SerializeToString()
    return row


def _packed_rows(columns: OutputColumns, matrix: ShmMatrix) -> bytes | None:
    """The rows of a RetrieveModelScore answer by kernels; None when a cell needs a closer look."""
    found = _collected(columns, matrix, raw=False)
    if found is None:
        return None
    memory = scratch()
    while True:
        size = kernels.write_rows(memory.heap, found.starts, found.sizes, memory.out)
        if size != NO_ROOM:
            break
        memory.grow_out()
    return memory.written(size) if size >= 0 else None


def _rows_by_messages(columns: OutputColumns, matrix: ShmMatrix) -> bytes:
    response = inferflow_pb2.InferflowResponseProto()
    values = []
    size = 0
    for column in columns:
        values.append(texts(matrix, column.source, matrix.all_rows))
        size += sum(map(len, values[-1]))
        if size > MAX_BYTES:
            raise ResponseTooLarge(matrix.rows, len(columns))
    for row in zip(*values, strict=True) if values else [()] * matrix.rows:
        response.component_data.add(data=[text.decode("utf-8", "replace") for text in row])
    body: bytes = response.SerializeToString()
    return body


def _collected(columns: OutputColumns, matrix: ShmMatrix, *, raw: bool, before: int = 0) -> Collected | None:
    """The values of all rows in the scratch heap. Raises ResponseTooLarge."""
    try:
        return collect(matrix, columns.runs, matrix.all_rows, raw=raw, before=before, limit=MAX_BYTES)
    except TooMuchError:
        raise ResponseTooLarge(matrix.rows, len(columns)) from None


def point_wise(plan: Plan, scoring: Scoring, *, reference: bool) -> bytes:
    """PointWiseResponse. Raises ResponseTooLarge."""
    columns, matrix = plan.answer.features, scoring.matrix
    errors = _row_errors(scoring.failures, matrix.rows)
    return b"".join(
        (
            _schema(0x0A, columns, matrix),
            _scores(TARGET_SCORES, columns, matrix, errors, reference),
            _text_field(0x1A, _summary(scoring.failures) if errors is not None and errors.everywhere else ""),
        )
    )


def slate_wise(plan: Plan, scoring: Scoring, *, reference: bool) -> bytes:
    """SlateWiseResponse, or PairWiseResponse: their fields have the same numbers.

    There are no slate scores when the config answers none. Raises ResponseTooLarge.
    """
    slates = scoring.slates
    assert slates is not None
    targets, own = plan.answer.targets, plan.answer.slates
    errors = _row_errors(scoring.failures, scoring.matrix.rows)
    slate_errors = _slate_errors(scoring, errors)
    all_failed = errors is not None and errors.everywhere
    all_failed = all_failed and (not own or (slate_errors is not None and slate_errors.everywhere))
    return b"".join(
        (
            _scores(SLATE_SCORES, own, slates.matrix, slate_errors, reference) if own else b"",
            _scores(TARGET_SCORES, targets, scoring.matrix, errors, reference),
            _schema(0x1A, targets, scoring.matrix),
            _schema(0x22, own, slates.matrix),
            _text_field(0x2A, _summary([*scoring.failures, *slates.failures]) if all_failed else ""),
        )
    )


def sampled(user_id: bytes, percentage: int, now: datetime.datetime) -> bool:
    """Whether this user is among the `percentage` % of today: murmur3 of user and date (DDMMYYYY), mod 100."""
    if not 0 < percentage < 100:
        return percentage >= 100
    return abs(mmh3.hash(user_id + now.strftime("%d%m%Y").encode())) % 100 < percentage


def _schema(tag: int, columns: OutputColumns, matrix: ShmMatrix) -> bytes:
    """The output schema of these columns as field `tag` of a response."""
    typed = any(matrix.typed[external] is not None for external in columns.external)
    head = None if typed else columns.heads.get(tag)
    if head is None:
        head = _encoded_schema(tag, columns, matrix)
        if not typed:
            columns.heads[tag] = head
    return head


def _encoded_schema(tag: int, columns: OutputColumns, matrix: ShmMatrix) -> bytes:
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
    columns: OutputColumns,
    matrix: ShmMatrix,
    errors: _Errors | None,
    reference: bool,
) -> bytes:
    """The scores of all rows as field `tag` of a response.

    TargetScore, PairScore and SlateScore have the same fields: 1 error, 2 output_values.
    """
    if not reference:
        packed = _cell_scores(tag, columns, matrix) if errors is None else None
        if packed is None:
            packed = _packed_scores(tag, columns, matrix, errors)
        if packed is not None:
            return packed
    values = [_values(matrix, column) for column in columns]
    out = bytearray()
    for row, error in enumerate([""] * matrix.rows if errors is None else errors.texts()):
        score = predict_pb2.TargetScore(error=error, output_values=[column[row] for column in values])
        message = score.SerializeToString()
        out += field_head(tag, len(message))
        out += message
        if len(out) > MAX_BYTES:
            raise ResponseTooLarge(matrix.rows, len(columns))
    return bytes(out)


def _cell_scores(tag: int, columns: OutputColumns, matrix: ShmMatrix) -> bytes | None:
    """The same in one step for the usual answer, an id and scores of one model or expression; None for others."""
    usual = columns.text_and_cells
    if usual is None:
        return None
    external, run = usual
    text, block = matrix.texts[external], matrix.blocks[run.block]
    if (
        text is None
        or matrix.typed[external] is not None
        or not isinstance(block, CellBlock)
        or not block.lines
    ):
        return None
    memory = scratch()
    out = memory.out
    while True:
        size = kernels.write_cell_scores(
            tag, text.heap, text.starts, text.sizes,
            block.heap, block.cells_at, block.states_at, block.lines, block.columns, block.width,
            IDENTITY if block.index is None else block.index, run.columns, matrix.rows, out,
        )  # fmt: skip
        if size != NO_ROOM:
            break
        if len(out) >= MAX_BYTES:
            raise ResponseTooLarge(matrix.rows, len(columns))
        out = memory.grow_out()
    if size > MAX_BYTES:
        raise ResponseTooLarge(matrix.rows, len(columns))
    return memory.written(size) if size >= 0 else None


def _packed_scores(
    tag: int, columns: OutputColumns, matrix: ShmMatrix, errors: _Errors | None
) -> bytes | None:
    """The same by kernels; None when a cell needs a closer look."""
    before = 0 if errors is None else 1
    found = _collected(columns, matrix, raw=True, before=before)
    if found is None:
        return None
    if errors is not None:
        _put_errors(errors, found)
    memory = scratch()
    while True:
        size = kernels.write_scores(tag, memory.heap, found.starts, found.sizes, before, memory.out)
        if size != NO_ROOM:
            break
        if len(memory.out) >= MAX_BYTES:
            raise ResponseTooLarge(matrix.rows, len(columns))
        memory.grow_out()
    assert size >= 0, size
    if size > MAX_BYTES:
        raise ResponseTooLarge(matrix.rows, len(columns))
    return memory.written(size)


def _put_errors(errors: _Errors, found: Collected) -> None:
    """The error texts of all rows into the heap, equal ones once, and their places into the first line of those."""
    starts, sizes = np.zeros(len(errors.kinds), np.int64), np.zeros(len(errors.kinds), np.int32)
    at = found.end
    memory = scratch()
    for kind in errors.seen():
        end = memory.append(at, errors.text(kind).encode())
        starts[kind] = at
        sizes[kind] = end - at
        at = end
    found.starts[0] = starts[errors.of_row]
    found.sizes[0] = sizes[errors.of_row]


def _values(matrix: ShmMatrix, column: OutputColumn) -> list[bytes]:
    """Raw bytes of an answered column: of its byte column if it has one, else of what the request brought."""
    if column.source.byte is not None:
        return byte_values(matrix, column.source.byte, matrix.all_rows)
    brought = fallback(matrix, column.source, matrix.all_rows)
    return [b""] * matrix.rows if brought is None else brought[1]


class _Errors:
    """The errors of rows: row r has the texts kinds[of_row[r]], each once, in the order in which they happened.

    Rows fail together, mostly: kinds are few, and rows are not looked at one by one. Kind 0 is none.
    """

    __slots__ = ("_numbers", "kinds", "of_row")

    def __init__(self, rows: int) -> None:
        self.kinds: list[tuple[str, ...]] = [()]
        self.of_row: Rows = np.zeros(rows, np.int32)
        self._numbers: dict[tuple[str, ...], int] = {(): 0}

    @property
    def everywhere(self) -> bool:
        """Whether there are rows, and all of them have an error."""
        return len(self.of_row) > 0 and bool(self.of_row.all())

    def number(self, texts: tuple[str, ...]) -> int:
        """The kind of these texts."""
        number = self._numbers.setdefault(texts, len(self.kinds))
        if number == len(self.kinds):
            self.kinds.append(texts)
        return number

    def add(self, text: str, rows: Rows | None) -> None:
        """These rows (all: None) have this error, too."""
        of_row = self.of_row
        if rows is not None and len(rows) == 1:  # of which there may be many
            row = rows.item(0)
            of_row[row] = self._with(of_row.item(row), text)
            return
        before = of_row if rows is None else of_row[rows]
        after = np.arange(len(self.kinds), dtype=np.int32)
        for kind in np.flatnonzero(np.bincount(before)).tolist():
            after[kind] = self._with(kind, text)
        of_row[slice(None) if rows is None else rows] = after[before]

    def _with(self, kind: int, text: str) -> int:
        own = self.kinds[kind]
        return kind if text in own else self.number((*own, text))

    def seen(self) -> list[int]:
        """The kinds that rows have, but for none."""
        kinds: list[int] = np.flatnonzero(np.bincount(self.of_row)).tolist()
        return [kind for kind in kinds if kind]

    def text(self, kind: int) -> str:
        return "; ".join(self.kinds[kind])

    def texts(self) -> list[str]:
        """The text of each row, "" for none."""
        texts = [self.text(kind) for kind in range(len(self.kinds))]
        return [texts[kind] for kind in self.of_row.tolist()]

    def __repr__(self) -> str:
        return f"<_Errors of {np.count_nonzero(self.of_row)} of {len(self.of_row)} rows>"


def _row_errors(failures: Sequence[Failure], rows: int) -> _Errors | None:
    """None when there are none."""
    if not failures:
        return None
    errors = _Errors(rows)
    for failure in failures:
        errors.add(_text(failure), failure.rows)
    return errors


def _slate_errors(scoring: Scoring, targets: _Errors | None) -> _Errors | None:
    """The errors of the slates: those of the targets they name, which were scored as zeros, and their own."""
    slates = scoring.slates
    assert slates is not None
    own = _row_errors(slates.failures, slates.matrix.rows)
    if targets is None:
        return own
    both = _Errors(slates.matrix.rows)
    for slate, rows in enumerate(slates.targets):
        kinds = dict.fromkeys(targets.of_row[rows].tolist())
        texts = [text for kind in kinds for text in targets.kinds[kind]]
        if own is not None:
            texts += own.kinds[own.of_row.item(slate)]
        both.of_row[slate] = both.number(tuple(dict.fromkeys(texts)))
    return both


def _summary(failures: Sequence[Failure]) -> str:
    return "; ".join(dict.fromkeys(map(_text, failures)))


def _text(failure: Failure) -> str:
    text = f"{failure.component}: {failure.cause}"
    return text if len(text) <= MAX_CAUSE else text[: MAX_CAUSE - 1] + "…"
