"""The comparison itself: what differs is found."""

from __future__ import annotations

import dataclasses

import pytest

from proto import numerix_pb2, predict_pb2
from tests.golden.cases import CASES
from tests.golden.compare import Outcome, problems
from tests.inprocess import RecordedCall
from tests.upstreams import COMPUTE

CASE = CASES["numerix_ops_bytes_a"]
SLATES = CASES["slate_one_down_a"]


def as_recorded(name: str = CASE.name) -> Outcome:
    wanted = CASES[name].expectation
    assert wanted.calls is not None
    return Outcome(wanted.statuses[0], "", wanted.response or b"", wanted.calls)


def test_the_recorded_answer_is_right() -> None:
    assert problems(CASE, as_recorded(), string_scores=True) == []


def test_another_status_is_found() -> None:
    found = problems(CASE, dataclasses.replace(as_recorded(), status=14, message="gone"))
    assert found == ["status: [0] expected, got 14: gone"]


def test_one_wrong_bit_is_found() -> None:
    response = predict_pb2.PointWiseResponse.FromString(as_recorded().body)
    values = response.target_scores[1].output_values
    values[1] = bytes([values[1][0] ^ 1]) + values[1][1:]
    assert problems(CASE, dataclasses.replace(as_recorded(), body=response.SerializeToString()))


def test_an_unknown_field_is_found() -> None:
    body = as_recorded().body + bytes([15 << 3, 1])
    assert problems(CASE, dataclasses.replace(as_recorded(), body=body)) == ["unknown fields differ"]


def test_errors_of_the_wrong_rows_are_found() -> None:
    wanted = as_recorded(SLATES.name)
    response = predict_pb2.SlateWiseResponse.FromString(wanted.body)
    for row, found in [(1, []), (0, ["slate_scores with an error: [1] expected, got [0]"])]:
        for score in response.slate_scores:
            score.error = ""
        response.slate_scores[row].error = "p: because"
        outcome = dataclasses.replace(wanted, body=response.SerializeToString())
        assert problems(SLATES, outcome, string_scores=True) == found


def test_calls_may_come_in_any_order_with_their_variables_in_any_order() -> None:
    outcome = as_recorded()
    assert outcome.calls is not None
    calls = [shuffled(call) if call.path == COMPUTE else call for call in outcome.calls]
    assert calls != outcome.calls
    assert problems(CASE, dataclasses.replace(outcome, calls=calls[::-1]), string_scores=True) == []


def shuffled(call: RecordedCall) -> RecordedCall:
    """The same variables the other way round."""
    request = numerix_pb2.NumerixRequestProto.FromString(call.request)
    data = request.entity_score_data
    data.schema[1:] = data.schema[:0:-1]
    for row in data.entity_scores:
        row.byte_data.values[1:] = row.byte_data.values[:0:-1]
    return dataclasses.replace(call, request=request.SerializeToString())


@pytest.mark.parametrize(
    "change",
    [
        lambda calls: calls[1:],
        lambda calls: [*calls, calls[0]],
        lambda calls: [dataclasses.replace(calls[0], status=14), *calls[1:]],
        lambda calls: [dataclasses.replace(calls[0], metadata={}), *calls[1:]],
        lambda calls: [dataclasses.replace(calls[0], request=b""), *calls[1:]],
    ],
    ids=["missing", "twice", "status", "metadata", "request"],
)
def test_wrong_calls_are_found(change) -> None:  # type: ignore[no-untyped-def]
    outcome = as_recorded()
    assert problems(CASE, dataclasses.replace(outcome, calls=change(outcome.calls)), string_scores=True)
