"""The benchmark's cases: the service takes them, and answers them as a plain reckoning of the rules does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bench.cases import CASES, CONFIGS, EXPRESSIONS, TARGETS, Case, framed, write_configs
from bench.expected import WrongAnswerError, check, decode, expected
from bench.naive import Pipeline
from bench.stages import Worker
from bench.upstreams import Memory
from frontdoor.services import METHODS
from proto import inferflow_pb2, predict_pb2
from sidecar.catalog import judge

MESSAGES: dict[str, Any] = {
    "/Predict/InferPointWise": predict_pb2.PointWiseRequest,
    "/Predict/InferSlateWise": predict_pb2.SlateWiseRequest,
    "/Inferflow/RetrieveModelScore": inferflow_pb2.InferflowRequestProto,
}
FIRST_SCORES = {"1000": 1710.0875244140625, "1001": 1824.0, "1002": 1490.8218994140625}
"""Of perf60; recorded with other software that does this job from the same rules."""

each_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker()


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_good(name: str) -> None:
    verdict = judge(name, json.dumps(CONFIGS[name]).encode(), EXPRESSIONS, {"catalog_id", "user_id"})
    assert (verdict.errors, verdict.warnings) == ((), ())


def test_configs_are_laid_out_as_the_service_reads_them(tmp_path: Path) -> None:
    write_configs(tmp_path)
    assert {file.stem for file in (tmp_path / "config-map").iterdir()} == set(CONFIGS)
    found = {
        file.stem: json.loads(file.read_text())["expression"]
        for file in (tmp_path / "expression-config").iterdir()
    }
    assert found == EXPRESSIONS


@each_case
@pytest.mark.parametrize("targets", TARGETS)
def test_bodies_decode(case: Case, targets: int) -> None:
    request: Any = MESSAGES[case.method].FromString(framed(case.message(targets))[5:])
    assert request.model_config_id == case.config
    if isinstance(request, inferflow_pb2.InferflowRequestProto):
        assert len(request.entities[0].ids) == targets
    else:
        assert len({target.id for target in request.targets}) == targets
    if isinstance(request, predict_pb2.SlateWiseRequest):
        assert len(request.slates) == 50
        assert {index for slate in request.slates for index in slate.target_indices} == set(range(targets))


def test_the_prefix_has_the_length() -> None:
    assert framed(b"abc") == b"\0\0\0\0\x03abc"


def test_known_scores() -> None:
    columns = expected(CASES["perf60"], 3).targets
    assert dict(zip(columns["catalog_id"], columns["final_score"], strict=True)) == FIRST_SCORES


@each_case
@pytest.mark.parametrize("targets", [1, 10, 120])
def test_the_service_answers_as_expected(worker: Worker, case: Case, targets: int) -> None:
    answer = worker.score(METHODS.index(case.method.encode()), case.message(targets))
    check(case, targets, answer)


@each_case
def test_a_wrong_answer_is_found(worker: Worker, case: Case) -> None:
    answer = worker.score(METHODS.index(case.method.encode()), case.message(10))
    with pytest.raises(WrongAnswerError, match="rows of catalog_id, must be 11"):
        check(case, 11, answer)


def test_a_wrong_score_is_found() -> None:
    response = predict_pb2.PointWiseResponse()
    response.target_output_schema.add(name="catalog_id", data_type=predict_pb2.DataTypeString)
    response.target_output_schema.add(name="final_score", data_type=predict_pb2.DataTypeFP32)
    response.target_scores.add(output_values=[b"1000", bytes(4)])
    with pytest.raises(WrongAnswerError, match=r"final_score\[0\] is 0.0, must be 1710"):
        check(CASES["perf60"], 1, response.SerializeToString())


def test_an_error_in_a_row_is_found() -> None:
    response = predict_pb2.PointWiseResponse(target_scores=[predict_pb2.TargetScore(error="p0: down")])
    with pytest.raises(WrongAnswerError, match="row 0: p0: down"):
        decode(CASES["perf60"], response.SerializeToString())


class _Channel:
    """A grpc.aio channel to upstreams in this process."""

    def __init__(self) -> None:
        self._memory = Memory.of_upstreams()

    def unary_unary(
        self, path: str, serialize: Callable[[Any], bytes], parse: Callable[[bytes], Any]
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, **_: object) -> Any:
            return parse(self._memory.answer(path, serialize(request)))

        return call


@pytest.mark.parametrize("name", ["perf10", "perf60"])
@pytest.mark.parametrize("targets", [1, 120])
def test_the_peer_answers_as_expected(name: str, targets: int) -> None:
    case = CASES[name]
    request = predict_pb2.PointWiseRequest.FromString(case.message(targets))
    pipeline = Pipeline(CONFIGS[name], _Channel())
    response = asyncio.run(pipeline.point_wise(request, None))
    check(case, targets, response.SerializeToString())


def test_the_upstreams_memory_is_bounded() -> None:
    asked: list[bytes] = []

    def echo(body: bytes) -> bytes:
        asked.append(body)
        return body

    memory = Memory({"echo": echo}, capacity=1000)
    assert [memory.answer("echo", b"x") for _ in range(3)] == [b"x"] * 3
    assert asked == [b"x"]
    memory.answer("echo", bytes(400))
    assert memory.answer("echo", b"x") == b"x"
    assert asked == [b"x", bytes(400), b"x"]
