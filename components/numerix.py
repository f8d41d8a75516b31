"""The numerix component: computes a score from columns by a postfix expression.

The expression runs in the numerix service, or in the worker itself when no service is configured. A missing
value is zero; numbers enter as FP32. An expression that aggregates over rows sees them all at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from components import numbers
from components.columns import texts
from components.expression import Expression, ExpressionError
from components.feature import cause
from components.groups import Groups, batches
from components.numerix_wire import ComputeCodec, decode_scores
from components.tensors import Misfit, TensorInput
from components.wire import WireError
from dag.component import Call, Endpoint, Reply, Scoring, Slates, Steps
from dag.layout import ByteColumn, Source
from rpc.status import Status
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, VALUE, Bytes, CellBlock, Rows, ShmMatrix, TextColumn

__all__ = ["Numerix"]

Floats = npt.NDArray[np.float32]


class _Part:
    """Rows of the matrix, their values, and the groups of them that are computed by themselves."""

    __slots__ = ("groups", "rows", "values")

    def __init__(self, rows: Rows, values: Bytes, groups: Groups) -> None:
        self.rows = rows
        self.values = values  # as Numerix._values
        self.groups = groups


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
    _direct: bool = dataclasses.field(init=False, repr=False, compare=False)  # scores stay what they come as
    _width: int = dataclasses.field(init=False, repr=False, compare=False)  # bytes of a score

    def __post_init__(self) -> None:
        # Not cached properties: compiled, those are reckoned anew each time.
        object.__setattr__(self, "_direct", self.score.data_type is DataType.FP32)
        object.__setattr__(self, "_width", self.score.width)

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
        groups = self._groups(matrix.rows)
        parts: list[_Part] = []
        calls = self._plain_calls(matrix, groups)
        if calls is None:
            values, misfits = self._values(matrix, rows)
            for misfit in misfits:
                scoring.fail(self.name, misfit.reason, rows[misfit.position : misfit.position + 1])
            parts.append(_Part(rows, values, groups))
            if self.endpoint is not None:
                calls = self._calls(self.endpoint, matrix, parts, groups)
        replies: Sequence[Reply] = ()
        if calls is not None:
            replies = yield calls
        block = CellBlock.unwritten(matrix.slot, matrix.rows, 1, self._width)
        scores = block if self._direct else _float_block(matrix.rows)
        failed = self._score(scores, parts, groups, replies)
        if not self._direct:
            self._put(block, scores.flat.view(np.float32))
            block.states[:] = scores.states
        matrix.blocks[self.score.block] = block
        for number, error in failed:
            start, stop = groups.bounds[number], groups.bounds[number + 1]
            scoring.fail(self.name, str(error), rows[start:stop], error.kind)
        yield None

    def _run_dropped(self, scoring: Scoring) -> Steps:
        """A slate component in a request without slates: see components.predator."""
        if self.endpoint is None:
            return
        matrix = scoring.matrix
        values, _ = self._values(matrix, matrix.all_rows)
        groups = self._groups(matrix.rows)
        yield self._calls(self.endpoint, matrix, [_Part(matrix.all_rows, values, groups)], groups)

    def _run_slates(self, scoring: Scoring) -> Steps:
        slates = scoring.slates
        assert slates is not None
        asked, bounds = slates.asked()
        block = CellBlock.empty(slates.matrix.slot, slates.matrix.rows, 1, self._width)
        slates.matrix.blocks[self.score.block] = block
        if not asked:
            return
        groups = Groups(bounds)
        parts = self._slate_parts(scoring, slates, asked, groups)
        replies: Sequence[Reply] = ()
        if self.endpoint is not None:
            replies = yield self._calls(self.endpoint, scoring.matrix, parts, groups)
        scores = _float_block(bounds[-1])
        failed = self._score(scores, parts, groups, replies)
        firsts = np.zeros(slates.matrix.rows, np.float32)
        firsts[asked] = scores.flat.view(np.float32)[groups.limits[:-1]]
        self._put(block, firsts)
        block.states[asked] = scores.states[groups.limits[:-1]]
        for number, error in failed:
            scoring.fail_slates(self.name, str(error), np.array([asked[number]], np.int32), error.kind)

    def _slate_parts(
        self, scoring: Scoring, slates: Slates, asked: Sequence[int], groups: Groups
    ) -> list[_Part]:
        """The values of all slates in one go; each by itself when some do not fit: see components.predator."""
        values, misfits = self._values(scoring.matrix, slates.rows)
        if not misfits:
            return [_Part(slates.rows, values, groups)]
        parts = []
        for number, (start, stop) in zip(asked, itertools.pairwise(groups.bounds), strict=True):
            rows = slates.rows[start:stop]
            values, misfits = self._values(scoring.matrix, rows)
            parts.append(_Part(rows, values, batches(stop - start, 0)))
            for misfit in misfits:
                scoring.fail_slates(self.name, misfit.reason, np.array([number], np.int32))
        return parts

    def _groups(self, rows: int) -> Groups:
        """The rows of each call. An expression that aggregates over rows is not split."""
        whole = self.endpoint is None or (self.expression is not None and self.expression.aggregates)
        return batches(rows, 0 if whole else self.batch_size)

    def _values(self, matrix: ShmMatrix, rows: Rows) -> tuple[Bytes, Sequence[Misfit]]:
        """The variables' values as float32, their bytes: uint8 [rows, 4 × variables]; and what did not fit."""
        if not self.variables:
            return np.zeros((len(rows), 0), np.uint8), ()
        tensor, misfits = self.inputs.build(matrix, rows)
        return tensor.cells, misfits

    def _ids(self, matrix: ShmMatrix) -> TextColumn:
        """The id texts of all rows; empty ones when the id column is nowhere."""
        column = matrix.texts[self.id_source.external]
        if column is None or self.id_source.byte is not None:
            return TextColumn.of(matrix.slot, texts(matrix, self.id_source, matrix.all_rows))
        return column

    def _plain_calls(self, matrix: ShmMatrix, groups: Groups) -> list[Call] | None:
        """The calls of the usual case: all variables are FP32 columns of one block, and all have values."""
        endpoint = self.endpoint
        cells = self.inputs.plain(matrix) if endpoint is not None and self.variables else None
        if endpoint is None or cells is None:
            return None
        bodies = self.codec.encode_cells(self._ids(matrix), cells, groups)
        return None if bodies is None else self._calls_of(endpoint, bodies, groups)

    def _calls(
        self, endpoint: Endpoint, matrix: ShmMatrix, parts: Sequence[_Part], groups: Groups
    ) -> list[Call]:
        ids = self._ids(matrix)
        bodies: list[tuple[bytes, ...]] = []
        for part in parts:
            bodies += self.codec.encode(ids, part.rows, part.values, part.groups)
        return self._calls_of(endpoint, bodies, groups)

    def _calls_of(
        self, endpoint: Endpoint, bodies: Sequence[tuple[bytes, ...]], groups: Groups
    ) -> list[Call]:
        bounds, timeout = groups.bounds, self.timeout
        return [
            Call(endpoint, body, timeout, bounds[number + 1] - bounds[number])
            for number, body in enumerate(bodies)
        ]

    def _score(
        self, scores: CellBlock, parts: Sequence[_Part], groups: Groups, replies: Sequence[Reply]
    ) -> list[tuple[int, WireError]]:
        """Writes the scores of all lines of the parts; returns which groups have none, and why.

        `groups` are those of all parts, in the numbering of all their lines together; `scores` a block of one FP32
        column with all these lines, all of whose states are written.
        """
        if self.endpoint is None:
            return self._score_here(scores, parts, groups)
        failed: list[tuple[int, WireError]] = []
        for number in self.codec.decode(replies, groups, scores):
            reply = replies[number]
            start, stop = groups.bounds[number], groups.bounds[number + 1]
            try:
                if reply.status:
                    raise WireError(cause(reply), Status(reply.status).name)
                scores.flat.view(np.float32)[start:stop] = decode_scores(reply.body, stop - start)
                scores.states[start:stop] = VALUE
            except WireError as error:
                scores.states[start:stop] = ABSENT
                failed.append((number, error))
        return failed

    def _score_here(
        self, scores: CellBlock, parts: Sequence[_Part], groups: Groups
    ) -> list[tuple[int, WireError]]:
        """`_score` without a service."""
        failed: list[tuple[int, WireError]] = []
        inputs = [part.values[a:b] for part in parts for a, b in itertools.pairwise(part.groups.bounds)]
        floats = scores.flat.view(np.float32)
        for number, values in enumerate(inputs):
            start, stop = groups.bounds[number], groups.bounds[number + 1]
            try:
                floats[start:stop] = self._compute(values)
                scores.states[start:stop] = VALUE
            except ExpressionError as uncomputable:
                scores.states[start:stop] = ABSENT
                failed.append((number, WireError(str(uncomputable), "BAD_VALUE")))
        return failed

    def _compute(self, values: Bytes) -> Floats:
        """The scores of these rows. Raises ExpressionError."""
        assert self.expression is not None
        floats = values.view(np.float32)
        columns = {name: floats[:, at] for at, name in enumerate(self.variables)}
        scores: Floats = self.expression.evaluate(columns, len(values), np.float32)
        return scores

    def _put(self, block: CellBlock, scores: Floats) -> None:
        """Writes the scores of all rows into the only column of a block."""
        if not self._direct:
            scores = np.ascontiguousarray(numbers.convert(scores, DataType.FP32, self.score.data_type))
        block.flat[:] = scores.view(np.uint8)


def _float_block(lines: int) -> CellBlock:
    """A block of one FP32 column that belongs to no matrix."""
    return CellBlock(np.empty(5 * lines, np.uint8), lines, 1, 4, 0, 4 * lines)
