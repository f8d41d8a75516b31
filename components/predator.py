"""The predator component: calls a model and writes its scores.

Rows go out in batches, all at once; a batch that fails marks exactly its rows. With slates, the model is called
once per slate over the target rows that the slate names, and the first row of the answer is the slate's. A slate
model in a request without slates is called over all rows, as its servers are used to, and its answer is dropped.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from components.feature import cause
from components.groups import Groups, batches, joined
from components.model_kernels import read_model_scores, read_model_texts, score_plan
from components.scratch import scratch
from components.tensors import Misfit, Tensor, TensorInput
from components.triton_wire import InputHead, decode_outputs, encode_head, encode_raw, split_bytes
from components.wire import WireError
from dag.component import Call, Endpoint, Reply, Scoring, Slates, Steps
from dag.layout import BlockSpec
from rpc.status import Status
from shared.datatypes import DataType, tensor_name
from shared.shm_matrix import VALUE, Block, CellBlock, Rows, ShmMatrix, VarBlock

__all__ = ["ModelRoute", "Output", "Predator", "RequestHeads", "Score", "ScoreBlock"]


RawRows = npt.NDArray[np.uint8]  # [rows, bytes a row]


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """One score of an output: its place, and which elements of an answered row it is."""

    block: int  # index into Predator.blocks
    column: int
    first: int
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """One output tensor of the model: its element type, elements a row, and the scores they are."""

    name: str
    data_type: DataType
    elements: int
    scores: tuple[Score, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreBlock:
    """One block of scores: its number in the matrix."""

    number: int
    spec: BlockSpec

    def make(self, matrix: ShmMatrix, *, written: bool) -> Block:
        """The block without any scores; `written`: a kernel will write all of its states."""
        columns, width = len(self.spec.columns), self.spec.width
        if not width:
            return VarBlock.empty(matrix.slot, matrix.rows, columns)
        if written:
            return CellBlock.unwritten(matrix.slot, matrix.rows, columns, width)
        return CellBlock.empty(matrix.slot, matrix.rows, columns, width)


class RequestHeads:
    """What stands before the tensors of a model's requests, encoded once per number of rows and tensor shapes."""

    LIMIT: Final = 1024  # heads kept: batches have few sizes

    def __init__(self, model: str, inputs: Sequence[TensorInput], outputs: Sequence[Output]) -> None:
        self._model = model
        self._inputs = [(part.name, part.data_type) for part in inputs]
        self._outputs = [output.name for output in outputs]
        self._heads: dict[tuple[int, tuple[tuple[int, ...], ...]], bytes] = {}
        self._fronts: dict[tuple[int, ...], list[bytes]] = {}  # by rows and the lengths of the contents
        # Without texts and free dims, requests of as many rows have the same lengths, or nearly all of them.
        self._rigid = all(part.data_type.size and -1 not in part.shape for part in inputs)

    def get(self, rows: int, shapes: Iterable[tuple[int, ...]]) -> bytes:
        """The head of a request of `rows` rows, each input having one of `shapes` a row."""
        key = rows, tuple(shapes)
        head = self._heads.get(key)
        if head is None:
            inputs = [
                InputHead(name, kind, (rows, *shape))
                for (name, kind), shape in zip(self._inputs, key[1], strict=True)
            ]
            head = encode_head(self._model, inputs, self._outputs)
            if len(self._heads) >= self.LIMIT:
                self._heads.clear()
            self._heads[key] = head
        return head

    def bodies(self, tensors: Sequence[Tensor], bounds: Sequence[int]) -> list[tuple[bytes, ...]]:
        """Requests for the rows from each bound to the next, as parts."""
        columns = [tensor.raws(bounds) for tensor in tensors]
        only = columns[0] if len(columns) == 1 else None
        out: list[tuple[bytes, ...]] = []
        for number in range(len(bounds) - 1):
            rows = bounds[number + 1] - bounds[number]
            if only is not None:  # the usual model
                raw = only[number]
                out.append((self._fronts_of(rows, tensors, (raw,))[0], raw))
                continue
            contents = [raws[number] for raws in columns]
            fronts = self._fronts_of(rows, tensors, contents)
            out.append(tuple(itertools.chain.from_iterable(zip(fronts, contents, strict=True))))
        return out

    def _fronts_of(self, rows: int, tensors: Sequence[Tensor], contents: Sequence[bytes]) -> list[bytes]:
        """What stands before each of the raw contents of so many rows."""
        # A front says how long its content is, and vectors that do not fit are of any length.
        key = (rows, len(contents[0])) if len(contents) == 1 else (rows, *map(len, contents))
        fronts = self._fronts.get(key) if self._rigid else None
        if fronts is None:
            fronts = [encode_raw(raw)[0] for raw in contents]
            fronts[0] = self.get(rows, [tensor.shape for tensor in tensors]) + fronts[0]
            if self._rigid:
                if len(self._fronts) >= self.LIMIT:
                    self._fronts.clear()
                self._fronts[key] = fronts
        return fronts


@dataclasses.dataclass(frozen=True, slots=True)
class ModelRoute:
    """One place that calls go to: rolls (1 … 100) up to `upto`. `name` is what the config calls it."""

    upto: int
    name: str
    endpoint: Endpoint
    heads: RequestHeads


@dataclasses.dataclass(frozen=True)
class Predator:
    """A compiled predator component."""

    name: str
    routes: tuple[ModelRoute, ...]
    timeout: float  # seconds, a call
    batch_size: int  # rows a call; 0: all in one
    inputs: tuple[TensorInput, ...]
    outputs: tuple[Output, ...]
    blocks: tuple[ScoreBlock, ...]
    for_slates: bool
    reference: bool  # use the reference codecs
    _reader: _Reader | None = dataclasses.field(
        init=False, repr=False, compare=False
    )  # None: the reference's way
    _wanted: tuple[tuple[str, DataType], ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        reader = None if self.reference else _Reader(self.outputs, self.blocks)
        # Not cached properties: compiled, those are reckoned anew each time.
        object.__setattr__(self, "_reader", reader)
        object.__setattr__(self, "_wanted", tuple((output.name, output.data_type) for output in self.outputs))

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
        tensors, misfits = self._build(matrix, rows)
        for misfit in misfits:
            scoring.fail(self.name, misfit.reason, rows[misfit.position : misfit.position + 1])
        groups = batches(len(rows), self.batch_size)
        replies = yield self._calls(self._route(scoring), tensors, groups.bounds)
        for number, error in self._write(matrix, replies, groups, None):
            start, stop = groups.bounds[number], groups.bounds[number + 1]
            scoring.fail(self.name, str(error), rows[start:stop], error.kind)
        yield None

    def _run_dropped(self, scoring: Scoring) -> Steps:
        matrix = scoring.matrix
        tensors, _ = self._build(matrix, matrix.all_rows)
        groups = batches(matrix.rows, self.batch_size)
        yield self._calls(self._route(scoring), tensors, groups.bounds)

    def _run_slates(self, scoring: Scoring) -> Steps:
        slates = scoring.slates
        assert slates is not None
        asked, bounds = slates.asked()
        calls = self._slate_calls(scoring, slates, asked, bounds)
        replies = (yield calls) if calls else ()
        for number, error in self._write(slates.matrix, replies, Groups(bounds), asked):
            scoring.fail_slates(self.name, str(error), np.array([asked[number]], np.int32), error.kind)

    def _slate_calls(
        self, scoring: Scoring, slates: Slates, asked: Sequence[int], bounds: Sequence[int]
    ) -> list[Call]:
        """One call a slate. The rows of all slates are gathered in one go."""
        route = self._route(scoring)
        tensors, misfits = self._build(scoring.matrix, slates.rows)
        if not misfits:
            return self._calls(route, tensors, bounds)
        # What most rows have, and so what does not fit, is for each slate to say.
        calls = []
        for number, (start, stop) in zip(asked, itertools.pairwise(bounds), strict=True):
            tensors, misfits = self._build(scoring.matrix, slates.rows[start:stop])
            for misfit in misfits:
                scoring.fail_slates(self.name, misfit.reason, np.array([number], np.int32))
            calls += self._calls(route, tensors, (0, stop - start))
        return calls

    def _build(self, matrix: ShmMatrix, rows: Rows) -> tuple[list[Tensor], list[Misfit]]:
        """The tensors of these rows, and what did not fit into them."""
        tensors: list[Tensor] = []
        misfits: list[Misfit] = []
        for part in self.inputs:
            tensor, found = part.build(matrix, rows)
            tensors.append(tensor)
            misfits += found
        return tensors, misfits

    def _calls(self, route: ModelRoute, tensors: Sequence[Tensor], bounds: Sequence[int]) -> list[Call]:
        """One call for the rows from each bound to the next."""
        bodies = route.heads.bodies(tensors, bounds)
        endpoint, timeout = route.endpoint, self.timeout
        return [
            Call(endpoint, body, timeout, bounds[number + 1] - bounds[number])
            for number, body in enumerate(bodies)
        ]

    def _route(self, scoring: Scoring) -> ModelRoute:
        """Where all calls of a request go: random by percentage (validation has seen that they sum to 100)."""
        route = self.routes[0]
        if len(self.routes) > 1:
            roll = random.randint(1, 100)
            route = next(one for one in self.routes if roll <= one.upto)
        scoring.routes[self.name] = route.name
        return route

    def _write(
        self, matrix: ShmMatrix, replies: Sequence[Reply], groups: Groups, lines: Sequence[int] | None
    ) -> list[tuple[int, WireError]]:
        """Writes the scores; returns which answers had none, and why.

        Answer i is about group i of the rows, which are lines of the blocks. With `lines` only the first of the
        group is, and its line is lines[i].
        """
        reader = self._reader if replies else None
        blocks = [block.make(matrix, written=reader is not None) for block in self.blocks]
        left: Sequence[int] = (
            range(len(replies)) if reader is None else reader.read(matrix, blocks, replies, groups, lines)
        )
        if left and reader is not None and reader.has_texts:
            # Texts of the two ways would stand in two heaps: all of them go the reference's way then.
            left = range(len(replies))
            blocks = [block.make(matrix, written=False) for block in self.blocks]
        failed = self._write_each(matrix, blocks, replies, groups, lines, left) if left else []
        for position, block in enumerate(blocks):
            matrix.blocks[self.blocks[position].number] = block
        return failed

    def _write_each(
        self,
        matrix: ShmMatrix,
        blocks: Sequence[Block],
        replies: Sequence[Reply],
        groups: Groups,
        lines: Sequence[int] | None,
        left: Sequence[int],
    ) -> list[tuple[int, WireError]]:
        """The reference's way, for the answers of these numbers."""
        scores = _Scores(self.outputs, blocks)
        failed = []
        for number in left:
            start, stop = groups.bounds[number], groups.bounds[number + 1]
            asked = stop - start
            if lines is not None:
                start, stop = lines[number], lines[number] + 1
            try:
                scores.put(start, stop, self._answer(replies[number]), asked)
            except WireError as error:
                failed.append((number, error))
        scores.close(matrix)
        return failed

    def _answer(self, reply: Reply) -> list[bytes]:
        if reply.status:
            raise WireError(cause(reply), Status(reply.status).name)
        return decode_outputs(reply.body, self._wanted)


class _Reader:
    """Reads answers into blocks by kernels: its tables, made once."""

    __slots__ = ("_outputs", "_plans", "has_texts")

    def __init__(self, outputs: Sequence[Output], blocks: Sequence[ScoreBlock]) -> None:
        self._outputs = len(outputs)
        texts = bytearray()
        rows = []
        scores: list[list[tuple[int, int, int, int]]] = [[] for _ in blocks]
        for number, output in enumerate(outputs):
            size = output.data_type.size or 1  # of texts, in texts
            width = output.elements * (output.data_type.size or -1)
            name, kind = output.name.encode(), tensor_name(output.data_type).encode()
            at = len(texts)
            rows.append((at, len(name), at + len(name), len(kind), width))
            texts += name + kind
            for score in output.scores:
                scores[score.block].append((number, score.first * size, score.count * size, score.column))
        self._plans = [
            score_plan(len(block.spec.columns), bytes(texts), rows, part)
            for block, part in zip(blocks, scores, strict=True)
        ]
        self.has_texts = not all(block.spec.width for block in blocks)

    def read(
        self,
        matrix: ShmMatrix,
        blocks: Sequence[Block],
        replies: Sequence[Reply],
        groups: Groups,
        lines: Sequence[int] | None,
    ) -> Sequence[int]:
        """Writes what it can, as `Predator._write`; returns the numbers of the answers that it left alone."""
        bodies, table = joined(replies, groups, lines)
        answers = len(replies)
        work = scratch().carriers(answers + 2 * self._outputs)
        left = 0
        for number, plan in enumerate(self._plans):
            block = blocks[number]
            if isinstance(block, CellBlock):
                left = read_model_scores(
                    bodies,
                    answers,
                    table,
                    plan,
                    block.cells_at,
                    block.states_at,
                    block.lines,
                    block.heap,
                    work,
                )
            else:
                room = len(bodies) + 1
                block.heap, at = matrix.slot.place(room)
                left = read_model_texts(
                    bodies, answers, table, plan, block.heap, at, at + room,
                    block.starts, block.sizes, block.states, work,
                )  # fmt: skip
            assert left >= 0, left
        return np.flatnonzero(work[:answers]).tolist() if left else ()

    def __repr__(self) -> str:
        return f"<_Reader {self._outputs} outputs, {len(self._plans)} blocks>"


class _Scores:
    """Writes the answers of a model into its blocks."""

    def __init__(self, outputs: Sequence[Output], blocks: Sequence[Block]) -> None:
        self._outputs = outputs
        self._blocks = blocks
        self._texts: dict[int, list[tuple[int, int, bytes]]] = {
            position: [] for position, block in enumerate(blocks) if isinstance(block, VarBlock)
        }

    def put(self, start: int, stop: int, answers: Sequence[bytes], asked: int) -> None:
        """Writes the scores of rows start … stop − 1 from an answer to `asked` rows.

        An answer of one row is broadcast; a slate takes the first row. All outputs are checked before anything
        is written. Raises WireError.
        """
        decoded = [
            _answered_rows(output, raw, asked) for output, raw in zip(self._outputs, answers, strict=True)
        ]
        for output, values in zip(self._outputs, decoded, strict=True):
            if isinstance(values, np.ndarray):
                self._put_cells(output, start, stop, values)
            else:
                self._put_texts(output, start, stop, values)

    def close(self, matrix: ShmMatrix) -> None:
        """Writes the texts, when all of them are known."""
        for position, block in enumerate(self._blocks):
            if isinstance(block, VarBlock):
                block.fill(matrix.slot, self._texts[position])

    def _put_cells(self, output: Output, start: int, stop: int, values: RawRows) -> None:
        size = output.data_type.size
        lines = values[: stop - start]  # one line alone is broadcast by the assignment
        for score in output.scores:
            block = self._blocks[score.block]
            assert isinstance(block, CellBlock)
            cells = lines[:, score.first * size : (score.first + score.count) * size]
            block.cells[start:stop, score.column] = cells
            block.states[start:stop, score.column] = VALUE

    def _put_texts(self, output: Output, start: int, stop: int, values: Sequence[bytes]) -> None:
        lines = list(_chunks(values, output.elements))
        if len(lines) == 1:
            lines *= stop - start
        for score in output.scores:
            cells = self._texts[score.block]
            for row, line in zip(range(start, stop), lines, strict=False):
                # A vector of strings has one form everywhere: its elements, joined by commas.
                cells.append((row, score.column, b",".join(line[score.first : score.first + score.count])))


def _answered_rows(output: Output, raw: bytes, asked: int) -> RawRows | list[bytes]:
    """The rows of an answered output: uint8 [rows, bytes], or the flat list of texts of a BYTES output."""
    if output.data_type is DataType.STRING:
        texts = split_bytes(raw)
        _check_rows(output, len(texts), output.elements, "strings", asked)
        return texts
    width = output.elements * output.data_type.size
    _check_rows(output, len(raw), width, "bytes", asked)
    return np.frombuffer(raw, np.uint8).reshape(-1, width)


def _check_rows(output: Output, size: int, width: int, unit: str, asked: int) -> None:
    rows, rest = divmod(size, width)
    if rest or rows not in (1, asked):
        raise WireError(
            f"output {output.name!r} has {size} {unit}, where {asked} rows of {width} were asked for"
        )


def _chunks(values: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    return (values[at : at + size] for at in range(0, len(values), size))
