"""A model server that speaks the open inference protocol (KServe v2) over gRPC, on ONNX Runtime.

    python -m demo.model_server DIRECTORY [--port PORT]

Serves every `<name>.onnx` of the directory as model `<name>`, version 1. Tensors come in raw or typed
contents and leave in raw contents. Wrong requests are INVALID_ARGUMENT and say which tensor and why.
This module is the protocol; `demo.onnx_models` is the one that knows ONNX Runtime.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import numpy.typing as npt

from demo.serving import Failure, Metadata, Method, run
from proto import triton_pb2
from shared.datatypes import DataType, data_type

__all__ = ["Model", "ModelServer", "TensorSpec", "decode_strings", "encode_strings", "services"]

Array = npt.NDArray[Any]
VERSION = "1"
_LENGTH = struct.Struct("<I")
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output: name, protocol datatype, and shape with −1 where any size will do."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )


class Model(Protocol):
    """What the server needs of a model. BYTES tensors are object arrays of bytes."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """The named outputs, in that order. Raises ValueError when the model cannot take the inputs."""
        ...


class ModelServer:
    """Answers the calls of the inference service over models by name."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models

    def __repr__(self) -> str:
        return f"<ModelServer {', '.join(self._models)}>"

    def live(self, request: triton_pb2.ServerLiveRequest, _: Metadata) -> triton_pb2.ServerLiveResponse:
        return triton_pb2.ServerLiveResponse(live=True)

    def ready(self, request: triton_pb2.ServerReadyRequest, _: Metadata) -> triton_pb2.ServerReadyResponse:
        return triton_pb2.ServerReadyResponse(ready=bool(self._models))

    def model_ready(
        self, request: triton_pb2.ModelReadyRequest, _: Metadata
    ) -> triton_pb2.ModelReadyResponse:
        self._find(request.name, request.version)
        return triton_pb2.ModelReadyResponse(ready=True)

    def infer(self, request: triton_pb2.ModelInferRequest, _: Metadata) -> triton_pb2.ModelInferResponse:
        """The asked outputs (all of them, if none is named). Raises Failure."""
        model = self._find(request.model_name, request.model_version)
        inputs = _read_inputs(request, model.inputs)
        specs = _asked_outputs(request, model.outputs)
        try:
            arrays = model.run(inputs, [spec.name for spec in specs])
        except ValueError as error:
            raise _invalid(f"model {request.model_name!r}: {error}") from error
        response = triton_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=VERSION, id=request.id
        )
        for spec, array in zip(specs, arrays, strict=True):
            response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            response.raw_output_contents.append(_raw(array, spec.datatype))
        return response

    def _find(self, name: str, version: str) -> Model:
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise Failure(grpc.StatusCode.NOT_FOUND, f"unknown model {name!r}; served: {known}")
        if version not in ("", VERSION):
            raise Failure(grpc.StatusCode.NOT_FOUND, f"model {name!r} has version {VERSION}, not {version!r}")
        return model


def _invalid(message: str) -> Failure:
    return Failure(grpc.StatusCode.INVALID_ARGUMENT, message)


def _asked_outputs(request: triton_pb2.ModelInferRequest, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    by_name = {spec.name: spec for spec in specs}
    for output in request.outputs:
        if output.name not in by_name:
            raise _invalid(f"model {request.model_name!r} has no output {output.name!r}")
    return [by_name[output.name] for output in request.outputs] or list(specs)


def _read_inputs(request: triton_pb2.ModelInferRequest, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    by_name = {spec.name: spec for spec in specs}
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise _invalid(f"{len(raws)} raw_input_contents for {len(request.inputs)} inputs")
    arrays: dict[str, Array] = {}
    for number, tensor in enumerate(request.inputs):
        place = f"inputs[{number}] {tensor.name!r}"
        spec = by_name.get(tensor.name)
        if spec is None or tensor.name in arrays:
            raise _invalid(f"{place}: model {request.model_name!r} takes each of {sorted(by_name)} once")
        if tensor.datatype != spec.datatype:
            raise _invalid(f"{place}: datatype is {tensor.datatype}, the model takes {spec.datatype}")
        if not spec.fits(tensor.shape):
            raise _invalid(f"{place}: shape is {list(tensor.shape)}, the model takes {list(spec.shape)}")
        arrays[tensor.name] = _read_tensor(tensor, raws[number] if raws else None, place)
    missing = [name for name in by_name if name not in arrays]
    if missing:
        raise _invalid(f"model {request.model_name!r} also needs the inputs {missing}")
    return arrays


def _read_tensor(
    tensor: triton_pb2.ModelInferRequest.InferInputTensor, raw: bytes | None, place: str
) -> Array:
    kind = data_type(tensor.datatype)
    if raw is None:
        flat = _typed(tensor, kind, place)
    elif kind is DataType.STRING:
        flat = decode_strings(raw, place)
    elif len(raw) % kind.size:
        raise _invalid(f"{place}: {len(raw)} bytes are no whole number of {tensor.datatype}")
    else:
        flat = np.frombuffer(raw, kind.dtype)
    shape = tuple(tensor.shape)
    wanted = int(np.prod(shape))
    if min(shape, default=0) < 0 or flat.size != wanted:
        raise _invalid(f"{place}: shape {list(shape)} needs {wanted} elements, got {flat.size}")
    return flat.reshape(shape)


def _typed(tensor: triton_pb2.ModelInferRequest.InferInputTensor, kind: DataType, place: str) -> Array:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise _invalid(f"{place}: {tensor.datatype} travels in raw_input_contents only")
    values = list(getattr(tensor.contents, field))
    if kind is DataType.STRING:
        return np.array(values, dtype=object)
    try:
        return np.array(values, dtype=kind.dtype)
    except OverflowError as error:
        raise _invalid(f"{place}: a value of contents.{field} does not fit {tensor.datatype}") from error


def decode_strings(raw: bytes, place: str) -> Array:
    """An object array of bytes from length-prefixed elements. Raises Failure naming place and offset."""
    items: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + _LENGTH.size
        size = _LENGTH.unpack_from(raw, at)[0] if end <= len(raw) else 0
        if end + size > len(raw):
            raise _invalid(f"{place}: element {len(items)} at byte {at} runs over the end at {len(raw)}")
        items.append(raw[end : end + size])
        at = end + size
    array = np.empty(len(items), dtype=object)  # np.array(items) would guess a dtype
    array[:] = items
    return array


def encode_strings(items: Sequence[bytes]) -> bytes:
    """Length-prefixed elements, as BYTES tensors travel."""
    return b"".join(_LENGTH.pack(len(item)) + item for item in items)


def _raw(array: Array, datatype: str) -> bytes:
    kind = data_type(datatype)
    if kind is DataType.STRING:
        return encode_strings(array.ravel().tolist())
    return array.astype(kind.dtype, copy=False).tobytes()


def services(server: ModelServer) -> dict[str, dict[str, Method]]:
    return {
        "inference.GRPCInferenceService": {
            "ServerLive": Method(triton_pb2.ServerLiveRequest, server.live),
            "ServerReady": Method(triton_pb2.ServerReadyRequest, server.ready),
            "ModelReady": Method(triton_pb2.ModelReadyRequest, server.model_ready),
            "ModelInfer": Method(triton_pb2.ModelInferRequest, server.infer),
        }
    }


def main() -> None:
    from demo.onnx_models import load_models  # here, so that tests of the protocol need no ONNX Runtime

    parser = argparse.ArgumentParser(prog="python -m demo.model_server")
    parser.add_argument("directory", type=Path, help="directory of the models (<name>.onnx)")
    parser.add_argument("--port", type=int, default=0, help="0: a free one (default)")
    arguments = parser.parse_args()
    run(services(ModelServer(load_models(arguments.directory))), arguments.port)


if __name__ == "__main__":
    main()
