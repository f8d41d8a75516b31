"""A model for MLServer: the score of a row is the sum of its numbers. Runs in MLServer's own environment."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Summing(MLModel):
    """One input of any width, one output `out` of the same type."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        scores = rows.sum(axis=1, keepdims=True)
        outputs = [NumpyCodec.encode_output("out", scores)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
