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
from components.columns import texts
from components.expression import Expression, ExpressionError
from components.feature import cause
from components.numerix_wire import ComputeCodec
from components.tensors import Misfit, TensorInput
from components.wire import WireError
from dag.component import Call, Endpoint, Reply, Scoring, Steps
from dag.layout import ByteColumn, Source
from rpc.status import Status
from shared.datatypes import DataType
from shared.shm_matrix import VALUE, Bytes, CellBlock, Rows, ShmMatrix, TextColumn

__all__ = ["Numerix"]

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Numerix:
    """A compiled numerix component."""

    name: str
    id_source: Source
    variables: tuple[str, ...]
    inputs: TensorInput  # the variables' columns, side by side
    codec: ComputeCodec
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
            scoring.fail(self.name, cause, kind="INTERNAL")
        elif scoring.slates is not None:
            scoring.fail_slates(self.name, cause, kind="INTERNAL")

    def _run_targets(self, scoring: Scoring) -> Steps:
        matrix = scoring.matrix
        rows = matrix.all_rows
        values, misfits = self._values(matrix, rows)
        for misfit in misfits:
            scoring.fail(self.name, misfit.reason, rows[misfit.position : misfit.position + 1])
        batches = self._batches(len(rows))
        outcomes: list[Floats | WireError]
        if self.endpoint is None:
            outcomes = [self._compute(values[batch]) for batch in batches]
        else:
            ids = self._ids(matrix, rows)
            replies = yield [self._call(ids, values, batch) for batch in batches]
            outcomes = [
                self._scores(reply, batch.stop - batch.start)
                for reply, batch in zip(replies, batches, strict=True)
            ]
        block = CellBlock.empty(matrix.slot, matrix.rows, 1, self.score.width)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, WireError):
                scoring.fail(self.name, str(outcome), rows[batch], outcome.kind)
            else:
                self._put(block, batch, outcome)
        matrix.blocks[self.score.block] = block

    def _run_dropped(self, scoring: Scoring) -> Steps:
        """A slate component in a request without slates: see components.predator."""
        if self.endpoint is None:
            return
        matrix = scoring.matrix
        values, _ = self._values(matrix, matrix.all_rows)
        ids = self._ids(matrix, matrix.all_rows)
        yield [self._call(ids, values, batch) for batch in self._batches(matrix.rows)]

    def _run_slates(self, scoring: Scoring) -> Steps:
        slates = scoring.slates
        assert slates is not None
        asked = [number for number, rows in enumerate(slates.targets) if len(rows)]
        inputs = []
        for number in asked:
            values, misfits = self._values(scoring.matrix, slates.targets[number])
            inputs.append(values)
            for misfit in misfits:
                scoring.fail_slates(self.name, misfit.reason, np.array([number], np.int32))
        outcomes: list[Floats | WireError]
        if self.endpoint is None or not asked:
            outcomes = [self._compute(values) for values in inputs]
        else:
            calls = []
            for number, values in zip(asked, inputs, strict=True):
                ids = self._ids(scoring.matrix, slates.targets[number])
                calls.append(self._call(ids, values, slice(0, len(values))))
            replies = yield calls
            outcomes = [
                self._scores(reply, len(values)) for reply, values in zip(replies, inputs, strict=True)
            ]
        block = CellBlock.empty(slates.matrix.slot, slates.matrix.rows, 1, self.score.width)
        for number, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, WireError):
                scoring.fail_slates(self.name, str(outcome), np.array([number], np.int32), outcome.kind)
            else:
                self._put(block, slice(number, number + 1), outcome[:1])
        slates.matrix.blocks[self.score.block] = block

    def _batches(self, rows: int) -> list[slice]:
        """Rows of each call; an expression that aggregates over rows is not split."""
        size = self.batch_size or rows
        if self.endpoint is None or (self.expression is not None and self.expression.aggregates):
            size = rows
        return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]

    def _values(self, matrix: ShmMatrix, rows: Rows) -> tuple[Bytes, Sequence[Misfit]]:
        """The variables' values as float32, their bytes: uint8 [rows, 4 × variables]; and what did not fit."""
        if not self.variables:
            return np.zeros((len(rows), 0), np.uint8), ()
        tensor, misfits = self.inputs.build(matrix, rows)
        return tensor.cells, misfits

    def _ids(self, matrix: ShmMatrix, rows: Rows) -> TextColumn:
        """The id texts of `rows`, in their order; empty ones when the id column is nowhere."""
        column = matrix.texts[self.id_source.external]
        if column is None or self.id_source.byte is not None:
            return TextColumn.of(matrix.slot, texts(matrix, self.id_source, rows))
        if column.constant or rows is matrix.all_rows:
            return column
        return TextColumn(column.heap, column.starts[rows], column.sizes[rows], constant=False)

    def _call(self, ids: TextColumn, values: Bytes, rows: slice) -> Call:
        assert self.endpoint is not None
        body = self.codec.encode(ids, values, rows)
        return Call(self.endpoint, body, self.timeout, rows.stop - rows.start)

    def _scores(self, reply: Reply, rows: int) -> Floats | WireError:
        """The scores of an answer, or why there are none."""
        if reply.status:
            return WireError(cause(reply), Status(reply.status).name)
        try:
            return self.codec.decode(reply.body, rows)
        except WireError as error:
            return error

    def _compute(self, values: Bytes) -> Floats | WireError:
        """The scores of these rows, or why there are none."""
        assert self.expression is not None
        floats = values.view(np.float32)
        columns = {name: floats[:, at] for at, name in enumerate(self.variables)}
        try:
            scores: Floats = self.expression.evaluate(columns, len(values), np.float32)
        except ExpressionError as error:
            return WireError(str(error), "BAD_VALUE")
        return scores

    def _put(self, block: CellBlock, rows: slice, scores: Floats) -> None:
        kind = self.score.data_type
        values = np.ascontiguousarray(numbers.convert(scores, DataType.FP32, kind))
        width = block.width  # the block has this one column, so its rows lie side by side
        block.flat[rows.start * width : rows.stop * width] = values.view(np.uint8)
        block.states[rows, 0] = VALUE
