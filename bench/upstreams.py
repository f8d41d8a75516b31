"""The upstreams of the benchmark on one port: feature store, model server and expression service.

    python -m bench.upstreams [--port PORT]

Prints its port when it listens. It remembers every answer, so that a repeated question costs little more than
its transport: what is measured is the service, which shares the machine with it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
import uvloop

from bench import rules
from bench.cases import CONFIGS, EXPRESSIONS
from proto import numerix_pb2, onfs_pb2, triton_pb2
from rpc.server import Handler, Limits, Rate, Server, ServerCall
from shared import process

__all__ = ["COMPUTE", "FETCH", "INFER", "Memory", "compute", "fetch", "infer", "limits"]

FETCH = "/retrieve.FeatureService/RetrieveFeatures"
INFER = "/inference.GRPCInferenceService/ModelInfer"
COMPUTE = "/numerix.Numerix/Compute"

MEMORY_BYTES = 512 << 20
_ENTRY_BYTES = 200  # of an entry besides its question and answer, about


def fetch(body: bytes) -> bytes:
    """The Result of a Query: a row for each key, in their order."""
    query = onfs_pb2.Query.FromString(body)
    result = onfs_pb2.Result(entity_label=query.entity_label, keys_schema=query.keys_schema)
    columns: list[tuple[str, str]] = []
    for group in query.feature_groups:
        schema = result.feature_schemas.add(feature_group_label=group.label)
        for label in group.feature_labels:
            schema.features.add(label=label, column_idx=len(columns))
            columns.append((group.label, label))
    for key in query.keys:
        values = [rules.feature_value(query.entity_label, key.cols, *column) for column in columns]
        result.rows.add(keys=key.cols, columns=values)
    answer: bytes = result.SerializeToString()
    return answer


def infer(body: bytes) -> bytes:
    """The ModelInferResponse of a ModelInferRequest of FP32 and BYTES tensors."""
    request = triton_pb2.ModelInferRequest.FromString(body)
    inputs = np.hstack(
        [_elements(*tensor) for tensor in zip(request.inputs, request.raw_input_contents, strict=True)]
    )
    response = triton_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
    for output in request.outputs:
        scores = rules.model_scores(inputs, _OUTPUTS[request.model_name, output.name])
        response.outputs.add(name=output.name, datatype="FP32", shape=scores.shape)
        response.raw_output_contents.append(scores.tobytes())
    answer: bytes = response.SerializeToString()
    return answer


def compute(body: bytes) -> bytes:
    """The NumerixResponseProto of a NumerixRequestProto of FP32 columns."""
    data = numerix_pb2.NumerixRequestProto.FromString(body).entity_score_data
    rows = [row.byte_data.values for row in data.entity_scores]
    columns = {
        variable: np.frombuffer(b"".join(row[place] for row in rows), "<f4")
        for place, variable in enumerate(data.schema)
        if place  # the first is the id
    }
    scores = rules.evaluate(EXPRESSIONS[data.compute_id], columns, len(rows))
    answer = numerix_pb2.ComputationScoreData(schema=[data.schema[0], "score"])
    for row, score in zip(rows, scores, strict=True):
        answer.computation_scores.add().byte_data.values.extend((row[0], score.tobytes()))
    encoded: bytes = numerix_pb2.NumerixResponseProto(computation_score_data=answer).SerializeToString()
    return encoded


def _score_counts() -> dict[tuple[str, str], int]:
    """Scores a row, by model and output."""
    models = (
        model for config in CONFIGS.values() for model in config["component_config"]["predator_components"]
    )
    return {
        (model["model_name"], output["name"]): len(output["model_scores"])
        for model in models
        for output in model["outputs"]
    }


_OUTPUTS = _score_counts()


def _elements(tensor: triton_pb2.ModelInferRequest.InferInputTensor, raw: bytes) -> npt.NDArray[np.float64]:
    """The elements of a tensor as numbers [rows, elements a row]."""
    if tensor.datatype == "BYTES":
        values = np.array([rules.text_number(text) for text in _texts(raw)])
    else:
        values = np.frombuffer(raw, "<f4").astype(np.float64)
    return values.reshape(tensor.shape[0], -1)


def _texts(raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor: each has its length before it, u32."""
    texts: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        texts.append(raw[start:at])
    return texts


class Memory:
    """Remembers the answers of pure functions by question, up to so many bytes; then it starts anew."""

    def __init__(self, methods: Mapping[str, Callable[[bytes], bytes]], capacity: int = MEMORY_BYTES) -> None:
        self._methods = methods
        self._capacity = capacity
        self._size = 0
        self._answers: dict[tuple[str, bytes], bytes] = {}

    @classmethod
    def of_upstreams(cls) -> Self:
        """All methods of all upstreams."""
        return cls({FETCH: fetch, INFER: infer, COMPUTE: compute})

    def answer(self, path: str, body: bytes) -> bytes:
        """The answer of the method of this path."""
        found = self._answers.get((path, body))
        if found is None:
            found = self._methods[path](body)
            self._size += len(body) + len(found) + _ENTRY_BYTES
            if self._size > self._capacity:
                self._answers.clear()
                self._size = 0
            self._answers[path, body] = found
        return found

    def handler(self, path: str) -> Handler:
        """The server's handler of this path."""

        def handle(call: ServerCall) -> None:
            call.respond(self.answer(path, call.body))

        return handle

    def __repr__(self) -> str:
        return f"<Memory of {len(self._answers)} answers, {self._size} of {self._capacity} bytes>"


def limits() -> Limits:
    """Limits of a server whose clients are our own: none that a benchmark could run into."""
    endless = Rate(burst=1 << 30, per_second=1 << 30)
    return Limits(
        streams=4096, message_bytes=64 << 20, resets=endless, control_frames=endless, window_updates=endless
    )


async def _serve(port: int) -> None:
    memory = Memory.of_upstreams()
    server = Server(
        {path.encode(): memory.handler(path) for path in (FETCH, INFER, COMPUTE)}, limits=limits()
    )
    print(await server.listen_tcp("127.0.0.1", port), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.upstreams")
    parser.add_argument("--port", type=int, default=0, help="0: a free one (default)")
    arguments = parser.parse_args()
    process.name("bench upstreams")
    uvloop.run(_serve(arguments.port))


if __name__ == "__main__":
    main()
