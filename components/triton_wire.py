"""The wire of model servers: `/inference.GRPCInferenceService/ModelInfer` of the open inference protocol.

https://github.com/kserve/open-inference-protocol: tensors are named, shaped, and travel as raw little-endian
bytes in the order of their heads; BYTES elements carry a u32 length prefix. Servers may answer typed contents
instead of raw ones; both are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError

from components.wire import WireError, field_head
from proto import triton_pb2
from shared.datatypes import DataType, tensor_name

__all__ = ["InputHead", "decode_outputs", "encode_head", "encode_raw", "split_bytes"]

RAW_INPUT_CONTENTS = 0x3A  # field 7, length-delimited


@dataclasses.dataclass(frozen=True, slots=True)
class InputHead:
    """Name, datatype and whole shape (batch first) of one input tensor."""

    name: str
    data_type: DataType
    shape: tuple[int, ...]


def encode_head(model: str, inputs: Sequence[InputHead], outputs: Sequence[str]) -> bytes:
    """A ModelInferRequest without its raw contents, which may follow it in the same message."""
    head: bytes = triton_pb2.ModelInferRequest(
        model_name=model,
        model_version="1",
        inputs=[
            triton_pb2.ModelInferRequest.InferInputTensor(
                name=tensor.name, datatype=tensor_name(tensor.data_type), shape=tensor.shape
            )
            for tensor in inputs
        ],
        outputs=[triton_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
    ).SerializeToString()
    return head


def encode_raw(raw: bytes) -> tuple[bytes, bytes]:
    """One raw_input_contents entry, as two parts: its head and the bytes themselves."""
    return field_head(RAW_INPUT_CONTENTS, len(raw)), raw


def decode_outputs(body: bytes, wanted: Sequence[tuple[str, DataType]]) -> list[bytes]:
    """The raw bytes of each wanted output, by name.

    Raises WireError when the body is no ModelInferResponse, an output is missing, has another datatype, or a number
    that this datatype cannot hold.
    """
    try:
        response = triton_pb2.ModelInferResponse.FromString(body)
    except DecodeError as error:
        raise WireError("the answer is no ModelInferResponse") from error
    outputs = response.outputs
    out = []
    for number, (name, kind) in enumerate(wanted):
        if number >= len(outputs) or outputs[number].name != name:  # usually in the order asked for
            names = [output.name for output in outputs]
            if name not in names:
                raise WireError(f"the model answered no output {name!r}, but {sorted(names)}")
            number = names.index(name)
        output = outputs[number]
        if output.datatype and output.datatype != tensor_name(kind):
            raise WireError(f"output {name!r} is {output.datatype}, the config says {tensor_name(kind)}")
        if number < len(response.raw_output_contents):
            out.append(response.raw_output_contents[number])
        else:
            out.append(_from_contents(name, output.contents, kind))
    return out


def split_bytes(raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor. Raises WireError when a length runs over the end."""
    out = []
    at = 0
    while at < len(raw):
        start = at + 4
        end = start + int.from_bytes(raw[at:start], "little")
        if end > len(raw):
            raise WireError(f"a BYTES element at byte {at} runs over the {len(raw)} bytes of its tensor")
        out.append(raw[start:end])
        at = end
    return out


_CONTENTS = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
    DataType.STRING: "bytes_contents",
}


def _from_contents(name: str, contents: triton_pb2.InferTensorContents, kind: DataType) -> bytes:
    field = _CONTENTS.get(kind)
    values = getattr(contents, field) if field else ()
    if kind is DataType.STRING:
        return b"".join(len(value).to_bytes(4, "little") + value for value in values)
    numbers = np.array(values)
    cells = numbers.astype(kind.dtype)
    if numbers.dtype.kind in "iu":  # narrow integers travel in wide ones
        for wrong in numbers[cells != numbers]:
            raise WireError(f"output {name!r} has the value {wrong}, which is no {kind.name}")
    return cells.tobytes()
