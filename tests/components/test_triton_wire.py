"""The wire of model servers: heads, raw and typed contents, and answers that are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.triton_wire import InputHead, decode_outputs, encode_head, encode_raw, split_bytes
from components.wire import WireError, field_head, varint
from proto import triton_pb2
from shared.datatypes import DataType
from tests.components.messages import broken

FP32, INT8, BYTES = DataType.FP32, DataType.INT8, DataType.STRING
Response = triton_pb2.ModelInferResponse
Contents = triton_pb2.InferTensorContents


def output(name: str, datatype: str, contents: Contents | None = None) -> Response.InferOutputTensor:
    return Response.InferOutputTensor(name=name, datatype=datatype, shape=[1], contents=contents)


@given(st.integers(0, 1 << 40))
def test_varints_are_minimal_and_read_back(value: int) -> None:
    encoded = varint(value)
    assert sum((byte & 0x7F) << 7 * at for at, byte in enumerate(encoded)) == value
    assert len(encoded) == max(1, -(-value.bit_length() // 7))
    assert field_head(0x3A, value) == b"\x3a" + encoded


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_a_request_is_its_head_and_its_raw_contents(raw: list[bytes]) -> None:
    heads = [InputHead(f"in{n}", FP32, (len(data), 1)) for n, data in enumerate(raw)]
    body = encode_head("ranker", heads, ["out"])
    for data in raw:
        body += b"".join(encode_raw(data))
    request = triton_pb2.ModelInferRequest.FromString(body)
    assert (request.model_name, request.model_version) == ("ranker", "1")
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [
        (head.name, "FP32", list(head.shape)) for head in heads
    ]
    assert [tensor.name for tensor in request.outputs] == ["out"]
    assert list(request.raw_input_contents) == raw


def test_outputs_are_found_by_name() -> None:
    response = Response(
        outputs=[output("b", "FP32"), output("a", "INT8")], raw_output_contents=[b"1234", b"5"]
    )
    body = response.SerializeToString()
    assert decode_outputs(body, [("a", INT8), ("b", FP32)]) == [b"5", b"1234"]
    assert decode_outputs(body, [("b", FP32)]) == [b"1234"]


def test_an_output_without_a_datatype_is_taken_at_its_word() -> None:
    body = Response(outputs=[output("a", "")], raw_output_contents=[b"12"]).SerializeToString()
    assert decode_outputs(body, [("a", FP32)]) == [b"12"]


TYPED = {
    "bool": (DataType.BOOL, "BOOL", Contents(bool_contents=[True, False])),
    "int8": (DataType.INT8, "INT8", Contents(int_contents=[-1, 5])),
    "int16": (DataType.INT16, "INT16", Contents(int_contents=[-300, 5])),
    "int32": (DataType.INT32, "INT32", Contents(int_contents=[-70_000, 5])),
    "int64": (DataType.INT64, "INT64", Contents(int64_contents=[-(1 << 40), 5])),
    "uint8": (DataType.UINT8, "UINT8", Contents(uint_contents=[255])),
    "uint16": (DataType.UINT16, "UINT16", Contents(uint_contents=[65535])),
    "uint32": (DataType.UINT32, "UINT32", Contents(uint_contents=[1 << 31])),
    "uint64": (DataType.UINT64, "UINT64", Contents(uint64_contents=[1 << 63])),
    "fp32": (DataType.FP32, "FP32", Contents(fp32_contents=[0.5, -2])),
    "fp64": (DataType.FP64, "FP64", Contents(fp64_contents=[0.1, -2])),
}


@pytest.mark.parametrize(("kind", "name", "contents"), TYPED.values(), ids=TYPED)
def test_typed_contents_are_read_like_raw_ones(kind: DataType, name: str, contents: Contents) -> None:
    (_, values), *rest = contents.ListFields()
    assert not rest
    body = Response(outputs=[output("a", name, contents)]).SerializeToString()
    (raw,) = decode_outputs(body, [("a", kind)])
    assert raw == np.array(list(values), kind.dtype).tobytes()


def test_typed_texts() -> None:
    body = Response(
        outputs=[output("a", "BYTES", Contents(bytes_contents=[b"x", b"", b"yz"]))]
    ).SerializeToString()
    (raw,) = decode_outputs(body, [("a", BYTES)])
    assert split_bytes(raw) == [b"x", b"", b"yz"]


def test_raw_and_typed_contents_side_by_side() -> None:
    response = Response(
        outputs=[output("a", "FP32"), output("b", "INT8", Contents(int_contents=[7]))],
        raw_output_contents=[b"1234"],
    )
    assert decode_outputs(response.SerializeToString(), [("b", INT8), ("a", FP32)]) == [b"\x07", b"1234"]


BAD = {
    "garbage": (b"\xff", "the answer is no ModelInferResponse"),
    "no outputs": (b"", "the model answered no output 'a', but []"),
    "another output": (
        Response(outputs=[output("b", "FP32")]),
        "the model answered no output 'a', but ['b']",
    ),
    "another type": (Response(outputs=[output("a", "FP64")]), "output 'a' is FP64, the config says FP32"),
}


@pytest.mark.parametrize(("answer", "reason"), BAD.values(), ids=BAD)
def test_answers_that_are_none(answer: Response | bytes, reason: str) -> None:
    body = answer if isinstance(answer, bytes) else answer.SerializeToString()
    with pytest.raises(WireError) as caught:
        decode_outputs(body, [("a", FP32)])
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("kind", "contents"),
    [
        (DataType.INT8, Contents(int_contents=[300])),
        (DataType.UINT8, Contents(uint_contents=[256])),
        (DataType.INT16, Contents(int_contents=[-40_000])),
    ],
)
def test_typed_numbers_that_their_type_cannot_hold(kind: DataType, contents: Contents) -> None:
    body = Response(outputs=[output("a", kind.name, contents)]).SerializeToString()
    with pytest.raises(WireError, match=f"output 'a' .* {kind.name}"):
        decode_outputs(body, [("a", kind)])


@given(broken(Response(outputs=[output("a", "FP32")], raw_output_contents=[b"12345678"]).SerializeToString()))
def test_broken_answers_are_answers_or_errors(body: bytes) -> None:
    try:
        (raw,) = decode_outputs(body, [("a", FP32)])
    except WireError:
        return
    assert isinstance(raw, bytes)


@given(st.lists(st.binary(max_size=5), max_size=5))
def test_texts_with_their_lengths(texts: list[bytes]) -> None:
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    assert split_bytes(raw) == texts
    for end in range(len(raw)):
        try:
            cut = split_bytes(raw[:end])
        except WireError as error:
            assert f"of the {end} bytes" in str(error) or f"the {end} bytes of its tensor" in str(error)
        else:
            assert cut == texts[: len(cut)]
