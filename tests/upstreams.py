"""Stand-ins for the three upstreams: every answer is a pure function of the request.

    python -m tests.upstreams PORT CONFIG_DIR [--record FILE]

serves them on one port of the loopback (0: a free one, which is printed). Tests in one process call
`Upstreams.answer` instead. What was recorded in `tests/data/golden` was recorded against these rules:

**Feature store.** A value is made from h, the CRC-32 of `entity|key…|group|feature`. The group's label up to its
first `_` is the type: `fp32_x`, `int8_x`, `string_x`, `fp32v4_x` for a vector of four. One value in eleven is
missing. `fp32odd_x` and `fp64odd_x` hold numbers whose text is remarkable. A key with the part `boom` fails its
call with INTERNAL.

**Model server.** A row's base is the sum of all its input elements (texts: CRC-32 mod 1000; NaN and infinities
count nothing); element j of its scores is base · (j + 1) / 16 mod 1000. Types and widths of the outputs come
from the model configs. Models whose name has `fail` in it answer UNAVAILABLE, those with `failbad` only when a
text is `bad`; `onerow` answers one row whatever was asked. A tensor that does not fill whole rows is
INVALID_ARGUMENT.

**Expressions.** `CONFIG_DIR/expressions.json` has them by compute_id, postfix. A compute_id with `err` in it is
answered by an error message, a request that cannot be evaluated by INTERNAL.

Whatever has `slow` in its first 200 bytes is answered after 300 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from proto import numerix_pb2, onfs_pb2, triton_pb2
from shared import process

__all__ = ["COMPUTE", "FETCH", "INFER", "SLOW_SECONDS", "Answer", "Upstreams", "delay", "serve"]

FETCH = "/retrieve.FeatureService/RetrieveFeatures"
INFER = "/inference.GRPCInferenceService/ModelInfer"
COMPUTE = "/numerix.Numerix/Compute"
SLOW_SECONDS = 0.3

OK, INVALID_ARGUMENT, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 12, 13, 14

Floats = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an upstream says: a gRPC status code, its message, and the body when it is 0."""

    status: int
    message: str = ""
    body: bytes = b""


class Refusal(Exception):
    """An upstream's own error: status code, message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.answer = Answer(status, message)


def delay(body: bytes) -> float:
    """Seconds after which this request is answered."""
    return SLOW_SECONDS if b"slow" in body[:200] else 0.0


class Upstreams:
    """All three, for the models and expressions of one config directory."""

    def __init__(
        self, models: Mapping[str, Mapping[str, tuple[str, int]]], expressions: Mapping[str, str]
    ) -> None:
        """`models`: name → output name → its tensor type and elements a row."""
        self._rules: dict[str, Callable[[bytes], bytes]] = {
            FETCH: fetch,
            INFER: lambda body: infer(models, body),
            COMPUTE: lambda body: compute(expressions, body),
        }
        self._counts = f"{len(models)} models, {len(expressions)} expressions"

    @classmethod
    def load(cls, directory: Path) -> Upstreams:
        """The models that the configs of `directory` name, and its `expressions.json`."""
        expressions = directory / "expressions.json"
        configs = [path for path in sorted(directory.glob("*.json")) if path != expressions]
        models: dict[str, dict[str, tuple[str, int]]] = {}
        for path in configs:
            for name, outputs in _models(json.loads(path.read_text())):
                models.setdefault(name, {}).update(outputs)
        return cls(models, json.loads(expressions.read_text()) if expressions.exists() else {})

    def answer(self, path: str, body: bytes) -> Answer:
        """The answer to one call."""
        rule = self._rules.get(path)
        if rule is None:
            return Answer(UNIMPLEMENTED, f"no such method: {path}")
        try:
            with np.errstate(all="ignore"):
                return Answer(OK, body=rule(body))
        except Refusal as refusal:
            return refusal.answer
        except (DecodeError, IndexError, KeyError, ValueError) as error:
            return Answer(INTERNAL, f"cannot read the request: {type(error).__name__}: {error}")

    def __repr__(self) -> str:
        return f"<Upstreams {self._counts}>"


def _models(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, tuple[str, int]]]]:
    components = (config.get("component_config") or {}).get("predator_components") or []
    for component in components:
        outputs = {}
        for output in component["outputs"]:
            dims = output.get("model_scores_dims") or [[1] for _ in output["model_scores"]]
            width = sum(math.prod(size for size in one if size > 0) for one in dims)
            outputs[output["name"]] = (output["data_type"], width)
        yield component["model_name"], outputs


# --- feature store

NUMBERS = {
    "bool": "<u1",
    "fp8e4m3": "<u1",
    "fp8e5m2": "<u1",
    "fp16": "<f2",
    "fp32": "<f4",
    "fp32odd": "<f4",
    "fp64": "<f8",
    "fp64odd": "<f8",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
}
REMARKABLE = (1e6, 1234567.0, 1e-5, 0.1, 100000.0, 1e21, 3.0, -0.0)
# Those, and more that are at the edges of types and of number formats.
ODD = (
    *REMARKABLE,
    *(math.nan, math.inf, -math.inf, 1e-4, 123456.7, 999999.9, 16777217.0, 1e20, 3.4e38, 1e-44),
    *(-1e-7, 0.0, 1 / 3, 2.5e-5, 1e22, 99999.95),
)


def fetch(body: bytes) -> bytes:
    """The answer of the feature store: a row per key, columns in the order asked."""
    query = onfs_pb2.Query.FromString(body)
    columns = [(group.label, feature) for group in query.feature_groups for feature in group.feature_labels]
    result = onfs_pb2.Result(entity_label=query.entity_label, keys_schema=query.keys_schema)
    place = 0
    for group in query.feature_groups:
        schema = result.feature_schemas.add(feature_group_label=group.label)
        for feature in group.feature_labels:
            schema.features.add(label=feature, column_idx=place)
            place += 1
    for key in query.keys:
        if "boom" in key.cols:
            raise Refusal(INTERNAL, "boom")
        values = [feature_value((query.entity_label, *key.cols, *column)) for column in columns]
        result.rows.add(keys=key.cols, columns=values)
    return result.SerializeToString()


def feature_value(names: tuple[str, ...]) -> bytes:
    """The value at entity, key parts, group, feature; empty when it is missing."""
    h = zlib.crc32("|".join(names).encode())
    if h % 11 == 0:
        return b""
    kind, _, dim = names[-2].split("_")[0].partition("v")
    if kind == "string":
        return f"s{h % 1000}".encode()
    numbers = [_number(kind, h, place) for place in range(int(dim or 1))]
    return np.array(numbers).astype(NUMBERS[kind]).tobytes()


def _number(kind: str, h: int, place: int) -> float:
    if kind == "bool":
        return ((h >> 3) + place) % 2
    if kind.endswith("odd"):
        return ODD[(h // 11 + place) % len(ODD)]
    if kind.startswith("fp8"):
        return (h >> 5) % 256
    if "int" in kind:
        number = (h >> 5) % 100 + place
        return -number if kind.startswith("int") and h % 3 == 0 else number
    if kind != "fp16" and h % 7 == 0:
        return REMARKABLE[(h // 7 + place) % len(REMARKABLE)]
    return ((h >> 8) + 7 * place) % 2000 / 8 - 100


# --- model server

TENSORS = {name.upper(): dtype for name, dtype in NUMBERS.items()}


def infer(models: Mapping[str, Mapping[str, tuple[str, int]]], body: bytes) -> bytes:
    """The answer of the model server: the outputs asked for, as raw contents."""
    request = triton_pb2.ModelInferRequest.FromString(body)
    name = request.model_name
    rows = request.inputs[0].shape[0]
    base = np.zeros(rows)
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=False):
        elements = _elements(tensor.datatype, raw, bad_fails="failbad" in name)
        if rows < 1 or len(elements) % rows:
            raise Refusal(INVALID_ARGUMENT, "unexpected tensor size")
        # One column after the other: the order of a float sum is part of the recorded answers.
        for column in np.where(np.isfinite(elements), elements, 0).reshape(rows, -1).T:
            base = base + column
    if "fail" in name and "failbad" not in name:
        raise Refusal(UNAVAILABLE, "model is down")
    if "onerow" in name:
        base = base[:1]
    response = triton_pb2.ModelInferResponse(model_name=name, model_version="1")
    for output in request.outputs:
        kind, width = models[name][output.name]
        response.outputs.add(name=output.name, datatype=kind, shape=[len(base), width])
        response.raw_output_contents.append(_packed(kind, base[:, None] * (np.arange(width) + 1) / 16 % 1000))
    return response.SerializeToString()


def _elements(kind: str, raw: bytes, *, bad_fails: bool) -> Floats:
    """The elements of an input as numbers."""
    if kind == "BYTES":
        texts = list(_texts(raw))
        if bad_fails and b"bad" in texts:
            raise Refusal(UNAVAILABLE, "a bad row")
        return np.array([zlib.crc32(text) % 1000 for text in texts], float)
    dtype = np.dtype(TENSORS[kind])
    if len(raw) % dtype.itemsize:
        raise Refusal(INVALID_ARGUMENT, "unexpected tensor size")
    return np.frombuffer(raw, dtype).astype(float)


def _texts(raw: bytes) -> Iterator[bytes]:
    """The elements of a BYTES tensor: u32 length, text, …."""
    at = 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        yield raw[at + 4 : end]
        at = end


def _packed(kind: str, scores: Floats) -> bytes:
    if kind == "BYTES":
        texts = [b"v%d" % int(score) for score in scores.ravel()]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    whole = scores.astype(np.int64) % 2 if kind in ("INT8", "BOOL") else scores
    return whole.astype(TENSORS[kind]).tobytes()


# --- expressions


def _rank(values: Floats) -> Floats:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(len(values) - 1, 1)


BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "^": np.power,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "==": np.equal,
    "min": np.minimum,
    "max": np.maximum,
    "&": np.logical_and,
    "|": np.logical_or,
}
UNARY: Mapping[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "percentile_rank": _rank,
    "norm_min_max": lambda values: (values - (values.min() + 0)) / (values.max() - values.min()),
}


def compute(expressions: Mapping[str, str], body: bytes) -> bytes:
    """The answer of the expression service: per row its first value and the score, as FP32."""
    data = numerix_pb2.NumerixRequestProto.FromString(body).entity_score_data
    response = numerix_pb2.NumerixResponseProto()
    if "err" in data.compute_id:
        response.error.message = "bad compute"
        return response.SerializeToString()
    rows = [
        row.byte_data.values or [text.encode() for text in row.string_data.values]
        for row in data.entity_scores
    ]
    columns = {
        name: np.array([np.frombuffer(row[place], "<f4")[0] for row in rows], np.float32)
        for place, name in enumerate(data.schema)
        if place
    }
    scores = _evaluated(expressions[data.compute_id], columns, len(rows))
    answer = response.computation_score_data
    answer.schema.extend([data.schema[0], "score"])
    for row, score in zip(rows, scores, strict=True):
        answer.computation_scores.add().byte_data.values.extend([row[0], score.tobytes()])
    return response.SerializeToString()


def _evaluated(expression: str, columns: Mapping[str, Floats], rows: int) -> Floats:
    """FP32 after every step."""
    stack: list[Floats] = []
    for token in expression.split():
        if token in BINARY:
            right, left = stack.pop(), stack.pop()
            value = BINARY[token](left, right)
        elif token in UNARY:
            value = UNARY[token](stack.pop())
        else:
            value = columns[token] if token in columns else np.full(rows, float(token))
        stack.append(np.asarray(value, np.float32))
    return stack.pop()


# --- the process


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Any path, bodies as bytes. Each call is recorded before it is answered."""

    def __init__(self, upstreams: Upstreams, record: TextIO | None) -> None:
        self._upstreams = upstreams
        self._record = record

    def service(self, details: Any) -> Any:
        path = details.method

        async def behaviour(body: bytes, context: Any) -> bytes:
            answer = self._upstreams.answer(path, body)
            if self._record is not None:
                self._note(path, answer.status, context.invocation_metadata(), body)
            await asyncio.sleep(delay(body))
            if answer.status != OK:
                await context.abort(grpc.StatusCode((answer.status, _NAMES[answer.status])), answer.message)
            return answer.body

        return grpc.unary_unary_rpc_method_handler(behaviour)

    def _note(self, path: str, status: int, metadata: Any, body: bytes) -> None:
        assert self._record is not None
        line = {
            "path": path,
            "status": status,
            "metadata": {key: value for key, value in metadata if key != "user-agent"},
            "request": base64.b64encode(body).decode(),
        }
        self._record.write(json.dumps(line) + "\n")
        self._record.flush()


_NAMES = {code.value[0]: code.value[1] for code in grpc.StatusCode}


async def serve(port: int, upstreams: Upstreams, record: TextIO | None) -> None:
    """Serves for ever on this port of the loopback. Raises RuntimeError when it is taken."""
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
        handlers=[_Service(upstreams, record)],
    )
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"{upstreams!r} on port {bound}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Runs the process until it is ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("config_dir", type=Path)
    parser.add_argument("--record", type=argparse.FileType("a"), help="append one JSON line per call")
    arguments = parser.parse_args()
    process.die_with_parent()
    asyncio.run(serve(arguments.port, Upstreams.load(arguments.config_dir), arguments.record))


if __name__ == "__main__":
    main()
