"""The wire of the matrix expression service: `/numerix.Numerix/Compute`.

One request row per matrix row: the text of the id column, then each variable as an FP32 value. The second value
of each answered row is its score.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from components.groups import Groups, Places, joined
from components.kernels import NO_ROOM
from components.numerix_kernels import encode_compute_cells, encode_compute_rows, read_scores
from components.scratch import scratch
from components.tensors import PlainCells
from components.wire import WireError, field_head
from dag.component import Reply
from proto import numerix_pb2
from shared.shm_matrix import IDENTITY, Bytes, CellBlock, Rows, TextColumn

__all__ = ["ComputeCodec", "decode_scores", "encode_compute"]

Floats = npt.NDArray[np.float32]

NO_INDEX: Final[Rows] = IDENTITY
ENTITY_SCORE_DATA = 0x0A  # field 1 of the request, length-delimited


class ComputeCodec:
    """Requests and answers of one expression over one schema."""

    def __init__(self, schema: Sequence[str], compute_id: str, reference: bool) -> None:
        """`schema`: the id column, then the variables."""
        self._schema = tuple(schema)
        self._compute_id = compute_id
        self._reference = reference
        self._head = numerix_pb2.EntityScoreData(schema=schema).SerializeToString()
        self._tail = numerix_pb2.EntityScoreData(compute_id=compute_id, data_type="fp32").SerializeToString()

    def encode(self, ids: TextColumn, rows: Rows, values: Bytes, groups: Groups) -> list[tuple[bytes, ...]]:
        """Requests, as parts: each about one group of the lines of `values`.

        values: the variables as float32, their bytes: uint8 [lines, 4 × variables]; rows int32 [lines]: whose id
        text in `ids` each line has.
        """
        if self._reference:
            return [
                (
                    encode_compute(
                        self._schema,
                        self._compute_id,
                        ids.texts(rows[start:stop]),
                        values[start:stop].view(np.float32),
                    ),
                )
                for start, stop in itertools.pairwise(groups.bounds)
            ]
        step = 0 if ids.constant else 1
        limits = groups.limits
        memory = scratch()
        out, ends = memory.out, memory.carriers(len(limits))
        while True:
            size = encode_compute_rows(ids.heap, ids.starts, ids.sizes, step, rows, values, limits, out, ends)
            if size != NO_ROOM:
                break
            out = memory.grow_out()
        assert size >= 0, size
        return self._bodies(memory.written(size), ends, len(limits) - 1)

    def encode_cells(
        self, ids: TextColumn, cells: PlainCells, groups: Groups
    ) -> list[tuple[bytes, ...]] | None:
        """Requests as those of `encode`, each about one group of rows, whose variables are FP32 cells of a block.

        None when one of them has no value, and for the reference codec.
        """
        if self._reference:
            return None
        block, index = cells.block, cells.block.index
        step = 0 if ids.constant else 1
        limits = groups.limits
        memory = scratch()
        out, ends = memory.out, memory.carriers(len(limits))
        while True:
            size = encode_compute_cells(
                ids.heap, ids.starts, ids.sizes, step, block.heap, block.cells_at, block.states_at, block.columns,
                NO_INDEX if index is None else index, cells.recipe, limits, out, ends,
            )  # fmt: skip
            if size != NO_ROOM:
                break
            out = memory.grow_out()
        return self._bodies(memory.written(size), ends, len(limits) - 1) if size >= 0 else None

    def _bodies(self, packed: bytes, ends: Places, count: int) -> list[tuple[bytes, ...]]:
        """So many requests, whose entries a kernel has packed, each up to its end."""
        if count == 1:
            return [self._framed(packed)]
        return [self._framed(packed[a:b]) for a, b in itertools.pairwise((0, *ends[:count].tolist()))]

    def _framed(self, entries: bytes) -> tuple[bytes, ...]:
        length = len(self._head) + len(entries) + len(self._tail)
        return field_head(ENTITY_SCORE_DATA, length), self._head, entries, self._tail

    def decode(self, replies: Sequence[Reply], groups: Groups, scores: CellBlock) -> Sequence[int]:
        """Writes the scores of answers, each about one group, to the lines of the group.

        `scores`: a block of one FP32 column; the states of all groups are written. Returns the numbers of the
        answers that are to be read by `decode_scores`, or have none.
        """
        if self._reference:
            return range(len(replies))
        bodies, table = joined(replies, groups)
        answers = len(replies)
        codes = scratch().carriers(answers)
        left = read_scores(bodies, answers, table, scores.cells_at, scores.states_at, scores.heap, codes)
        assert left >= 0, left
        return np.flatnonzero(codes[:answers]).tolist() if left else ()


def encode_compute(schema: Sequence[str], compute_id: str, ids: Sequence[bytes], values: Floats) -> bytes:
    """A NumerixRequestProto; `values` is [rows, variables]."""
    request = numerix_pb2.NumerixRequestProto()
    data = request.entity_score_data
    data.schema[:] = schema
    data.compute_id = compute_id
    data.data_type = "fp32"
    for text, row in zip(ids, values, strict=True):
        data.entity_scores.add().byte_data.values.extend((text, *(value.tobytes() for value in row)))
    body: bytes = request.SerializeToString()
    return body


def decode_scores(body: bytes, rows: int) -> Floats:
    """The scores of `rows` rows.

    Raises WireError when the service answered an error, or something else than one FP32 score a row.
    """
    try:
        response = numerix_pb2.NumerixResponseProto.FromString(body)
    except DecodeError as error:
        raise WireError("the answer is no NumerixResponseProto") from error
    if response.HasField("error"):
        raise WireError(response.error.message or "the expression failed")
    answered = response.computation_score_data.computation_scores
    if len(answered) != rows:
        raise WireError(f"{len(answered)} scores answered for {rows} rows")
    out = []
    for number, row in enumerate(answered):
        values = row.byte_data.values
        if len(values) < 2 or len(values[1]) != 4:
            raise WireError(f"computation_scores[{number}] has no FP32 score")
        out.append(values[1])
    return np.frombuffer(b"".join(out), "<f4")
