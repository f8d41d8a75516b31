"""The peer: what a good engineer writes in an afternoon with grpc.aio, protobuf and NumPy.

    python -m bench.naive CONFIG UPSTREAM_PORT [--port PORT] [--uvloop]

Answers /Predict/InferPointWise for one pipeline, read once from one of the benchmark's perf configs: two feature
components, one model, one expression. It makes the same upstream calls as the service and gives the same
answers, and has nothing else: no DAG, no cache, no live config, no check of what it is sent or answered.
Prints its port when it listens.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import uvloop

from bench.cases import CONFIGS
from bench.upstreams import COMPUTE, FETCH, INFER
from proto import numerix_pb2, onfs_pb2, predict_pb2, triton_pb2
from shared import process

FEATURE_BATCH = 50  # keys a call
NUMERIX_BATCH = 100  # rows a call
FEATURE_SECONDS = 2.0
NUMERIX_SECONDS = 5.0
ONFS_HEADERS = (("online-feature-store-caller-id", "bench"), ("online-feature-store-auth-token", "bench"))
PREDATOR_HEADERS = (("predator-caller-id", "bench"), ("predator-auth-token", "bench"))
NUMERIX_HEADERS = (("numerix-caller-id", "bench"),)
MISSING = bytes(4)  # a number that the feature store does not have counts as zero

Floats = npt.NDArray[np.float32]


class Pipeline:
    """Fetch the features of items and user, call the model, compute the final score."""

    def __init__(self, config: dict[str, Any], channel: grpc.aio.Channel) -> None:
        parts = config["component_config"]
        self._items, self._user = parts["feature_components"]
        (self._model,) = parts["predator_components"]
        (self._final,) = parts["numerix_components"]
        ((variable, _),) = self._final["score_mapping"].items()
        self._numerix_schema = [self._final["component_id"], variable.split("@")[0]]
        id_column, score_column = config["response_config"]["features"]
        self._schema = [
            predict_pb2.FeatureSchema(name=id_column, data_type=predict_pb2.DataTypeString),
            predict_pb2.FeatureSchema(name=score_column, data_type=predict_pb2.DataTypeFP32),
        ]
        self._retrieve = channel.unary_unary(
            FETCH, onfs_pb2.Query.SerializeToString, onfs_pb2.Result.FromString
        )
        self._infer = channel.unary_unary(
            INFER, triton_pb2.ModelInferRequest.SerializeToString, triton_pb2.ModelInferResponse.FromString
        )
        self._compute = channel.unary_unary(
            COMPUTE,
            numerix_pb2.NumerixRequestProto.SerializeToString,
            numerix_pb2.NumerixResponseProto.FromString,
        )

    async def point_wise(
        self, request: predict_pb2.PointWiseRequest, context: grpc.aio.ServicerContext
    ) -> predict_pb2.PointWiseResponse:
        """Scores the targets of a request."""
        if not request.targets:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "targets is empty")
        user = next(part.value.decode() for part in request.context_features if part.name == "user_id")
        ids = [target.id for target in request.targets]
        response = predict_pb2.PointWiseResponse(target_output_schema=self._schema)
        try:
            scores = await self._score(ids, user)
        except grpc.aio.AioRpcError as error:
            response.request_error = str(error.details())
            scores = [b""] * len(ids)
        for identity, score in zip(ids, scores, strict=True):
            response.target_scores.add(output_values=(identity.encode(), score))
        return response

    async def _score(self, ids: Sequence[str], user: str) -> list[bytes]:
        items, users = await asyncio.gather(
            self._features(self._items, ids), self._features(self._user, [user])
        )
        rows = np.hstack((items, np.repeat(users, len(ids), axis=0)))
        return await self._final_scores(ids, await self._model_scores(rows))

    async def _features(self, component: dict[str, Any], keys: Sequence[str]) -> Floats:
        """The features of each key [keys, features]."""
        batches = [keys[at : at + FEATURE_BATCH] for at in range(0, len(keys), FEATURE_BATCH)]
        return np.concatenate(await asyncio.gather(*(self._fetch(component, batch) for batch in batches)))

    async def _fetch(self, component: dict[str, Any], keys: Sequence[str]) -> Floats:
        asked = component["fs_request"]
        query = onfs_pb2.Query(
            entity_label=asked["label"],
            keys_schema=[key["schema"] for key in component["fs_keys"]],
            keys=[onfs_pb2.Keys(cols=[key]) for key in keys],
            feature_groups=[
                onfs_pb2.FeatureGroup(label=group["label"], feature_labels=group["features"])
                for group in asked["featureGroups"]
            ],
        )
        result = await self._retrieve(query, timeout=FEATURE_SECONDS, metadata=ONFS_HEADERS)
        raw = b"".join(value or MISSING for row in result.rows for value in row.columns)
        return np.frombuffer(raw, "<f4").reshape(len(keys), -1)

    async def _model_scores(self, rows: Floats) -> Floats:
        (tensor,), (output,) = self._model["inputs"], self._model["outputs"]
        request = triton_pb2.ModelInferRequest(model_name=self._model["model_name"], model_version="1")
        request.inputs.add(name=tensor["name"], datatype="FP32", shape=rows.shape)
        request.outputs.add(name=output["name"])
        request.raw_input_contents.append(rows.tobytes())
        seconds = self._model["deadline"] / 1000
        answer = await self._infer(request, timeout=seconds, metadata=PREDATOR_HEADERS)
        return np.frombuffer(answer.raw_output_contents[0], "<f4")

    async def _final_scores(self, ids: Sequence[str], scores: Floats) -> list[bytes]:
        starts = range(0, len(ids), NUMERIX_BATCH)
        batches = [(ids[at : at + NUMERIX_BATCH], scores[at : at + NUMERIX_BATCH]) for at in starts]
        answers = await asyncio.gather(*(self._evaluate(*batch) for batch in batches))
        return [score for answer in answers for score in answer]

    async def _evaluate(self, ids: Sequence[str], scores: Floats) -> list[bytes]:
        request = numerix_pb2.NumerixRequestProto()
        data = request.entity_score_data
        data.schema[:] = self._numerix_schema
        data.compute_id = self._final["compute_id"]
        data.data_type = "fp32"
        for identity, score in zip(ids, scores, strict=True):
            data.entity_scores.add().byte_data.values.extend((identity.encode(), score.tobytes()))
        answer = await self._compute(request, timeout=NUMERIX_SECONDS, metadata=NUMERIX_HEADERS)
        return [row.byte_data.values[1] for row in answer.computation_score_data.computation_scores]


async def _serve(config: str, upstream_port: int, port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{upstream_port}") as channel:
        pipeline = Pipeline(CONFIGS[config], channel)
        method = grpc.unary_unary_rpc_method_handler(
            pipeline.point_wise,
            predict_pb2.PointWiseRequest.FromString,
            predict_pb2.PointWiseResponse.SerializeToString,
        )
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("Predict", {"InferPointWise": method}),)
        )
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        print(bound, flush=True)
        await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.naive")
    parser.add_argument("config", choices=[name for name in CONFIGS if name.startswith("perf")])
    parser.add_argument("upstream_port", type=int)
    parser.add_argument("--port", type=int, default=0, help="0: a free one (default)")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop instead of asyncio's own loop")
    arguments = parser.parse_args()
    process.name("bench naive peer")
    run = uvloop.run if arguments.uvloop else asyncio.run
    run(_serve(arguments.config, arguments.upstream_port, arguments.port))


if __name__ == "__main__":
    main()
