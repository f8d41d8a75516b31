from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.model_server import ModelServer, TensorSpec, decode_strings, encode_strings, services
from demo.serving import Failure, start
from proto import triton_pb2

Request = triton_pb2.ModelInferRequest


class Sums:
    """Takes two numbers and a word a row; answers their sum, and the word backwards."""

    inputs = (TensorSpec("numbers", "FP32", (-1, 2)), TensorSpec("word", "BYTES", (-1, 1)))
    outputs = (TensorSpec("sum", "FP32", (-1, 1)), TensorSpec("back", "BYTES", (-1, 1)))

    def run(
        self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> Sequence[npt.NDArray[Any]]:
        if np.isnan(inputs["numbers"]).any():
            raise ValueError("not a number")
        back = np.array([[word[::-1]] for word in inputs["word"][:, 0]], dtype=object)
        answers = {"sum": inputs["numbers"].sum(axis=1, keepdims=True), "back": back}
        return [answers[name] for name in outputs]


SERVER = ModelServer({"sums": Sums()})
NUMBERS = np.array([[1, 2], [3, 4.5]], dtype="<f4")


def request(**changes: Any) -> Request:
    asked = Request(model_name="sums", model_version="1", id="7")
    asked.inputs.add(name="numbers", datatype="FP32", shape=[2, 2])
    asked.inputs.add(name="word", datatype="BYTES", shape=[2, 1])
    asked.raw_input_contents.extend([NUMBERS.tobytes(), encode_strings([b"ab", b""])])
    for name, value in changes.items():
        setattr(asked, name, value)
    return asked


def test_raw_tensors_in_and_out() -> None:
    answer = SERVER.infer(request(), {})
    assert (answer.model_name, answer.model_version, answer.id) == ("sums", "1", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("sum", "FP32", [2, 1]),
        ("back", "BYTES", [2, 1]),
    ]
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [3, 7.5]
    assert answer.raw_output_contents[1] == encode_strings([b"ba", b""])


def test_typed_tensors_mean_the_same() -> None:
    typed = Request(model_name="sums")
    typed.inputs.add(name="word", datatype="BYTES", shape=[2, 1]).contents.bytes_contents.extend([b"ab", b""])
    typed.inputs.add(name="numbers", datatype="FP32", shape=[2, 2]).contents.fp32_contents.extend(
        [1, 2, 3, 4.5]
    )
    assert SERVER.infer(typed, {}).raw_output_contents == SERVER.infer(request(), {}).raw_output_contents


def test_asked_outputs_come_in_the_order_asked() -> None:
    asked = request()
    asked.outputs.add(name="back")
    answer = SERVER.infer(asked, {})
    assert [output.name for output in answer.outputs] == ["back"]
    assert list(answer.raw_output_contents) == [encode_strings([b"ba", b""])]


def _shape(asked: Request) -> None:
    asked.inputs[0].shape[:] = [2, 3]


def _batch(asked: Request) -> None:
    asked.inputs[0].shape[:] = [3, 2]


def _negative(asked: Request) -> None:
    asked.inputs[0].shape[:] = [-1, 2]


def _datatype(asked: Request) -> None:
    asked.inputs[0].datatype = "FP64"


def _no_input(asked: Request) -> None:
    del asked.inputs[1]
    del asked.raw_input_contents[1]


def _twice(asked: Request) -> None:
    asked.inputs[1].CopyFrom(asked.inputs[0])


def _strange(asked: Request) -> None:
    asked.inputs[1].name = "letter"


def _few_contents(asked: Request) -> None:
    del asked.raw_input_contents[1]


def _half_number(asked: Request) -> None:
    asked.raw_input_contents[0] = NUMBERS.tobytes()[:-1]


def _long_string(asked: Request) -> None:
    asked.raw_input_contents[1] = b"\x02\x00\x00\x00ab\xff\x00\x00\x00"


def _output(asked: Request) -> None:
    asked.outputs.add(name="product")


def _model_says_no(asked: Request) -> None:
    asked.raw_input_contents[0] = np.full((2, 2), np.nan, "<f4").tobytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_shape, "inputs[0] 'numbers': shape is [2, 3], the model takes [-1, 2]"),
        (_batch, "inputs[0] 'numbers': shape [3, 2] needs 6 elements, got 4"),
        (_negative, "inputs[0] 'numbers': shape [-1, 2] needs -2 elements, got 4"),
        (_datatype, "inputs[0] 'numbers': datatype is FP64, the model takes FP32"),
        (_no_input, "model 'sums' also needs the inputs ['word']"),
        (_twice, "inputs[1] 'numbers': model 'sums' takes each of ['numbers', 'word'] once"),
        (_strange, "inputs[1] 'letter': model 'sums' takes each of ['numbers', 'word'] once"),
        (_few_contents, "1 raw_input_contents for 2 inputs"),
        (_half_number, "inputs[0] 'numbers': 15 bytes are no whole number of FP32"),
        (_long_string, "inputs[1] 'word': element 1 at byte 6 runs over the end at 10"),
        (_output, "model 'sums' has no output 'product'"),
        (_model_says_no, "model 'sums': not a number"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(spoil: Callable[[Request], None], message: str) -> None:
    asked = request()
    spoil(asked)
    with pytest.raises(Failure) as failure:
        SERVER.infer(asked, {})
    assert (failure.value.code, failure.value.message) == (grpc.StatusCode.INVALID_ARGUMENT, message)


def test_unknown_models_and_versions_are_not_found() -> None:
    for asked, message in (
        (request(model_name="nothing"), "unknown model 'nothing'; served: sums"),
        (request(model_version="2"), "model 'sums' has version 1, not '2'"),
    ):
        with pytest.raises(Failure) as failure:
            SERVER.infer(asked, {})
        assert (failure.value.code, failure.value.message) == (grpc.StatusCode.NOT_FOUND, message)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_strings_come_back_as_they_were(items: list[bytes]) -> None:
    assert decode_strings(encode_strings(items), "here").tolist() == items


@given(st.binary(max_size=60))
def test_any_bytes_are_strings_or_refused(raw: bytes) -> None:
    try:
        items = decode_strings(raw, "here").tolist()
    except Failure as failure:
        assert "runs over the end" in failure.message
    else:
        assert encode_strings(items) == raw


def test_over_the_wire() -> None:
    server, port = start(services(SERVER))
    path = "/inference.GRPCInferenceService/"
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def call(method: str, message: Any, reply: Any) -> Any:
            stub = channel.unary_unary(
                path + method,
                request_serializer=lambda sent: sent.SerializeToString(),
                response_deserializer=reply.FromString,
            )
            return stub(message, timeout=20)

        assert call("ServerLive", triton_pb2.ServerLiveRequest(), triton_pb2.ServerLiveResponse).live
        assert call("ServerReady", triton_pb2.ServerReadyRequest(), triton_pb2.ServerReadyResponse).ready
        ready = triton_pb2.ModelReadyRequest(name="sums")
        assert call("ModelReady", ready, triton_pb2.ModelReadyResponse).ready
        answer = call("ModelInfer", request(), triton_pb2.ModelInferResponse)
        assert answer == SERVER.infer(request(), {})
        with pytest.raises(grpc.RpcError) as error:
            call("ModelReady", triton_pb2.ModelReadyRequest(name="x"), triton_pb2.ModelReadyResponse)
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
    server.stop(0).wait()
