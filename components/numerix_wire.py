"""The wire of the matrix expression service: `/numerix.Numerix/Compute`.

One request row per matrix row: the text of the id column, then each variable as an FP32 value. The second value
of each answered row is its score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from components.onfs_wire import WireError
from proto import numerix_pb2

__all__ = ["decode_scores", "encode_compute"]


def encode_compute(
    schema: Sequence[str], compute_id: str, ids: Sequence[bytes], values: npt.NDArray[np.float32]
) -> bytes:
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


def decode_scores(body: bytes, rows: int) -> npt.NDArray[np.float32]:
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
