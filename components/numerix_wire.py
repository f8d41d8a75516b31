"""The wire of the matrix expression service: `/numerix.Numerix/Compute`.

One request row per matrix row: the text of the id column, then each variable as an FP32 value. The second value
of each answered row is its score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from components import kernels
from components.scratch import scratch
from components.wire import WireError, field_head
from proto import numerix_pb2
from shared.shm_matrix import Bytes, TextColumn

__all__ = ["ComputeCodec", "decode_scores", "encode_compute"]

Floats = npt.NDArray[np.float32]

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

    def encode(self, ids: TextColumn, values: Bytes, rows: slice) -> tuple[bytes, ...]:
        """A request for these rows of `ids` and `values`, as parts.

        values: the variables as float32, their bytes: uint8 [all rows, 4 × variables].
        """
        if self._reference:
            texts = ids.texts(np.arange(rows.start, rows.stop, dtype=np.int32))
            return (encode_compute(self._schema, self._compute_id, texts, values[rows].view(np.float32)),)
        step = 0 if ids.constant else 1
        while True:
            out = scratch.out
            size = kernels.encode_compute_rows(
                ids.heap, ids.starts, ids.sizes, step, values, rows.start, rows.stop, out
            )
            if size != kernels.NO_ROOM:
                break
            scratch.grow_out()
        assert size >= 0, size
        length = len(self._head) + size + len(self._tail)
        return field_head(ENTITY_SCORE_DATA, length), self._head, out[:size].tobytes(), self._tail

    def decode(self, body: bytes, rows: int) -> Floats:
        """The scores of `rows` rows. Raises WireError as `decode_scores`."""
        if not self._reference:
            scores = np.empty(rows, np.float32)
            if kernels.read_scores(np.frombuffer(body, np.uint8), 0, scores) == rows:
                return scores
        return decode_scores(body, rows)


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
