"""The numerix component: computes a score from columns by a postfix expression.

The expression runs in the numerix service, or in the worker itself when no service is configured. A missing
value is zero; numbers enter as FP32. An expression that aggregates over rows sees them all at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from components import numbers
from components.columns import byte_states, byte_values, cells, elements, fallback, texts
from components.expression import Expression, ExpressionError
from components.feature import cause
from components.numerix_wire import decode_scores, encode_compute
from components.onfs_wire import WireError
from dag.component import Call, Endpoint, Reply, Scoring, Steps
from dag.layout import ByteColumn, Source
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, VALUE, CellBlock, Rows, ShmMatrix

__all__ = ["Numerix", "Variable"]

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the expression, and the column that it is."""

    name: str
    source: Source


@dataclasses.dataclass(frozen=True)
class Numerix:
    """A compiled numerix component."""

    name: str
    compute_id: str
    id_name: str
    id_source: Source
    variables: tuple[Variable, ...]
    score: ByteColumn
    endpoint: Endpoint | None  # None: computed here, by `expression`
    expression: Expression | None  # None: known to the service alone
    timeout: float  # seconds, a call
    batch_size: int  # rows a call; 0: all in one
    for_slates: bool

    def run(self, scoring: Scoring) -> Steps:
        if not self.for_slates:
            return self._run_targets(scoring)
        return self._run_dropped(scoring) if scoring.slates is None else self._run_slates(scoring)

    def fail(self, scoring: Scoring, cause: str) -> None:
        if not self.for_slates:
            scoring.fail(self.name, cause)
        elif scoring.slates is not None:
            scoring.fail_slates(self.name, cause)

    def _run_targets(self, scoring: Scoring) -> Steps:
        matrix = scoring.matrix
        rows = matrix.all_rows
        values = self._values(matrix, rows)
        batches = self._batches(len(rows))
        block = CellBlock(matrix.slot, matrix.rows, 1, self.score.width)
        if self.endpoint is None:
            outcomes = [self._compute(values[batch]) for batch in batches]
        else:
            ids = texts(matrix, self.id_source, rows)
            replies = yield [self._call(ids[batch], values[batch]) for batch in batches]
            outcomes = [
                _scores(reply, len(rows[batch])) for reply, batch in zip(replies, batches, strict=True)
            ]
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, str):
                scoring.fail(self.name, outcome, rows[batch])
            else:
                self._put(block, rows[batch], outcome)
        matrix.blocks[self.score.block] = block

    def _run_dropped(self, scoring: Scoring) -> Steps:
        """A slate component in a request without slates: see components.predator."""
        if self.endpoint is None:
            return
        matrix = scoring.matrix
        values = self._values(matrix, matrix.all_rows)
        ids = texts(matrix, self.id_source, matrix.all_rows)
        yield [self._call(ids[batch], values[batch]) for batch in self._batches(matrix.rows)]

    def _batches(self, rows: int) -> list[slice]:
        """Rows of each call; an expression that aggregates over rows is not split."""
        size = self.batch_size or rows
        if self.endpoint is None or (self.expression is not None and self.expression.aggregates):
            size = rows
        return [slice(at, at + size) for at in range(0, rows, size)]

    def _run_slates(self, scoring: Scoring) -> Steps:
        slates = scoring.slates
        assert slates is not None
        asked = [number for number, rows in enumerate(slates.targets) if len(rows)]
        inputs = [self._values(scoring.matrix, slates.targets[number]) for number in asked]
        if self.endpoint is None or not asked:
            outcomes = [self._compute(values) for values in inputs]
        else:
            calls = []
            for number, values in zip(asked, inputs, strict=True):
                ids = texts(scoring.matrix, self.id_source, slates.targets[number])
                calls.append(self._call(ids, values))
            replies = yield calls
            outcomes = [_scores(reply, len(values)) for reply, values in zip(replies, inputs, strict=True)]
        block = CellBlock(slates.matrix.slot, slates.matrix.rows, 1, self.score.width)
        for number, outcome in zip(asked, outcomes, strict=True):
            row = np.array([number], np.int32)
            if isinstance(outcome, str):
                scoring.fail_slates(self.name, outcome, row)
            else:
                self._put(block, row, outcome[:1])
        slates.matrix.blocks[self.score.block] = block

    def _call(self, ids: Sequence[bytes], values: Floats) -> Call:
        assert self.endpoint is not None
        schema = [self.id_name, *(variable.name for variable in self.variables)]
        return Call(self.endpoint, (encode_compute(schema, self.compute_id, ids, values),), self.timeout)

    def _compute(self, values: Floats) -> Floats | str:
        """The scores of these rows, or why there are none."""
        assert self.expression is not None
        columns = {variable.name: values[:, at] for at, variable in enumerate(self.variables)}
        try:
            return self.expression.evaluate(columns, len(values), np.float32)
        except ExpressionError as error:
            return str(error)

    def _put(self, block: CellBlock, rows: Rows, scores: Floats) -> None:
        kind = self.score.data_type
        values = np.ascontiguousarray(numbers.convert(scores, DataType.FP32, kind))
        block.cells[rows, 0] = values.view(np.uint8).reshape(len(rows), -1)
        block.states[rows, 0] = VALUE

    def _values(self, matrix: ShmMatrix, rows: Rows) -> Floats:
        """The variables' values, float32 [rows, variables]."""
        out = np.zeros((len(rows), len(self.variables)), np.float32)
        for at, variable in enumerate(self.variables):
            out[:, at] = _floats(matrix, variable.source, rows)
        return out


def _floats(matrix: ShmMatrix, source: Source, rows: Rows) -> Floats:
    byte = source.byte
    if byte is None:
        brought = fallback(matrix, source, rows)
        return np.zeros(len(rows), np.float32) if brought is None else _as_floats(*brought)
    if byte.width:
        found = cells(matrix, byte, rows)
        states = found.states
        out: Floats = numbers.convert(found.values[:, 0], byte.data_type.element, DataType.FP32).astype(
            np.float32
        )
    else:
        states = byte_states(matrix, byte, rows)
        out = _as_floats(byte.data_type, byte_values(matrix, byte, rows))
    absent = np.flatnonzero(states == ABSENT)
    if len(absent):
        brought = fallback(matrix, source, rows[absent])
        if brought is not None:
            out[absent] = _as_floats(*brought)
    return out


def _as_floats(kind: DataType, values: Sequence[bytes]) -> Floats:
    if kind.element is DataType.STRING:
        return numbers.parse(values, DataType.FP32)
    out = np.zeros(len(values), np.float32)
    for at, raw in enumerate(values):
        found = elements(raw, kind) if raw else None
        if found is not None and len(found):
            out[at] = numbers.convert(found[:1], kind.element, DataType.FP32)[0]
    return out


def _scores(reply: Reply, rows: int) -> Floats | str:
    """The scores of an answer, or why there are none."""
    if reply.status:
        return cause(reply)
    try:
        return decode_scores(reply.body, rows)
    except WireError as error:
        return str(error)
