"""The cases where the recorded service is to be bettered and nothing was recorded instead: this is right."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from proto import onfs_pb2
from tests.golden.cases import CASES, CONFIG_DIR, CONFIGS, EXPRESSIONS, Case
from tests.golden.compare import Outcome, canonical
from tests.golden.test_inprocess import outcome
from tests.inprocess import InProcess
from tests.upstreams import COMPUTE, FETCH, INFER, Upstreams, feature_value


@pytest.fixture(scope="module", params=["kernels", "reference"])
def service(request: pytest.FixtureRequest) -> Iterator[InProcess]:
    upstreams = Upstreams.load(CONFIG_DIR)
    with InProcess(
        CONFIGS, upstreams, expressions=EXPRESSIONS, reference=request.param == "reference"
    ) as service:
        yield service


Ask = Callable[[str], tuple[Outcome, Any]]


@pytest.fixture
def ask(service: InProcess) -> Ask:
    """Case name → its outcome, and its response."""

    def asked(name: str) -> tuple[Outcome, Any]:
        case: Case = CASES[name]
        assert case.is_open
        result = outcome(service, case)
        return result, case.message_of(result.body)

    return asked


def requests(result: Outcome, path: str) -> list[Any]:
    """The upstream requests of one path, in their canonical form."""
    assert result.calls is not None
    return [canonical(call) for call in result.calls if call.path == path]


def second_values(response: Any) -> list[float]:
    """The second output of every target, FP32; no row has an error."""
    assert [score.error for score in response.target_scores] == [""] * len(response.target_scores)
    values = [score.output_values[1] for score in response.target_scores]
    return [struct.unpack("<f", value)[0] for value in values]


def test_every_open_case_has_its_test_here() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {case.name for case in CASES.values() if case.is_open} <= tested


def test_at_type_a(ask: Ask) -> None:
    """`p_a@DataTypeFP64`: asked and named without its suffix, and the column is filled."""
    result, response = ask("at_type_a")
    (query,) = requests(result, FETCH)
    assert [list(group.feature_labels) for group in query.feature_groups] == [["p_a", "q_a"]]
    assert [list(row.data) for row in response.component_data] == [
        ["catalog_id", "catalog:fp64_a:p_a", "catalog:fp64_a:q_a"],
        ["1000", "3", "-79.375"],
        ["1007", "", "127.5"],
        ["1014", "145.625", "90.875"],
    ]


def test_one_row_answer_batches_a(ask: Ask) -> None:
    """An answer of one row is that of every row of its own batch (of two)."""
    result, response = ask("one_row_answer_batches_a")
    batches = requests(result, INFER)
    assert sorted(batch.inputs[0].shape[0] for batch in batches) == [1, 2, 2]
    assert second_values(response) == [5.625, 5.625, 1.0078125, 1.0078125, 5.359375]


def test_numerix_wrong_type_a(ask: Ask) -> None:
    """An INT32 column mapped as `a@DataTypeFP32` is read as the INT32 it is."""
    result, response = ask("numerix_wrong_type_a")
    (request,) = requests(result, COMPUTE)
    rows = [row.byte_data.values for row in request.entity_score_data.entity_scores]
    assert [struct.unpack("<ff", row[1] + row[2]) for row in rows] == [(-51, 3), (37, -58.875), (48, 36.25)]
    assert second_values(response) == [-48, -21.875, 84.25]


def test_slate_only_a(ask: Ask) -> None:
    """A slate score as first response feature is not the id column: the targets' ids are the keys."""
    result, response = ask("slate_only_a")
    (query,) = requests(result, FETCH)
    assert [list(key.cols) for key in query.keys] == [["1000"], ["1007"], ["1014"], ["1021"]]
    assert [column.name for column in response.slate_output_schema] == ["sscore"]
    assert not response.target_output_schema
    assert [list(score.output_values) for score in response.target_scores] == [[]] * 4
    scores = [struct.unpack("<f", value) for score in response.slate_scores for value in score.output_values]
    assert scores == [(3.9013671875,), (10.4755859375,)]


def test_flatten_empty_a(ask: Ask) -> None:
    """A feature component without `fs_flatten_resp_keys` runs like any other."""
    result, response = ask("flatten_empty_a")
    (query,) = requests(result, FETCH)
    assert [list(key.cols) for key in query.keys] == [["1000"], ["1007"]]
    assert second_values(response) == [5.625, 994.234375]


def test_no_batch_size_a(ask: Ask) -> None:
    """`batch_size` 0: all rows in one batch."""
    result, response = ask("no_batch_size_a")
    (batch,) = requests(result, INFER)
    assert list(batch.inputs[0].shape) == [2, 2]
    assert second_values(response) == [5.625, 994.234375]


def test_bytes_vector_a(ask: Ask) -> None:
    """A BYTES output with dims [2] holds two strings a row."""
    _, response = ask("bytes_vector_a")
    assert [list(row.data) for row in response.component_data] == [
        ["catalog_id", "label"],
        ["1000", "v3,v7"],
        ["1007", "v999,v998"],
        ["1014", "v9,v19"],
    ]


def test_dag_unlinked_a(ask: Ask) -> None:
    """A component that nothing connects to the root."""
    assert refusal(ask("dag_unlinked_a")).startswith(
        "model_config_id 'dag_unlinked_a' is not usable: dag_execution_config.component_dependency.fs_b: "
        "'fs_b' is not connected: nothing leads from feature_initializer to it"
    )


def test_dag_two_roots_a(ask: Ask) -> None:
    """The same, with a component that waits for it."""
    assert refusal(ask("dag_two_roots_a")).startswith(
        "model_config_id 'dag_two_roots_a' is not usable: dag_execution_config.component_dependency.p[1]: "
        "'fs_b' is a second root"
    )


def refusal(asked: tuple[Outcome, Any]) -> str:
    """The message of INVALID_ARGUMENT, given without asking anybody."""
    result, _ = asked
    assert (result.status, result.calls) == (3, [])
    return result.message


def test_numerix_bad_text_a(ask: Ask) -> None:
    """A text that is no number counts as 0, and the rows after it are converted."""
    result, response = ask("numerix_bad_text_a")
    (request,) = requests(result, COMPUTE)
    rows = [row.byte_data.values for row in request.entity_score_data.entity_scores]
    assert [struct.unpack("<f", row[1]) for row in rows] == [(1.5,), (0,), (2,)]
    assert second_values(response) == [1.5, 0, 2]


def test_numerix_no_data_type_a(ask: Ask) -> None:
    """A numerix component without `data_type` answers FP32."""
    result, response = ask("numerix_no_data_type_a")
    assert [request.entity_score_data.data_type for request in requests(result, COMPUTE)] == ["fp32"]
    assert [column.data_type for column in response.target_output_schema] == [14, 4]
    assert second_values(response) == [38.125, -10.875]


def test_numerix_no_column_a(ask: Ask) -> None:
    """A mapped column that only a request could bring, and this one does not: 0."""
    result, response = ask("numerix_no_column_a")
    (request,) = requests(result, COMPUTE)
    rows = [row.byte_data.values for row in request.entity_score_data.entity_scores]
    assert [struct.unpack("<ff", row[1] + row[2]) for row in rows] == [(38.125, 0), (-10.875, 0)]
    assert second_values(response) == [38.125, -10.875]


def test_out_of_range_a(ask: Ask) -> None:
    """Floats into integers: the fraction is cut off, NaN is 0, what is beyond the bounds is saturated."""
    result, _ = ask("out_of_range_a")
    fetched = fetched_numbers(requests(result, FETCH))
    assert {-math.inf, 1e22} < set(fetched)
    assert any(map(math.isnan, fetched))
    (batch,) = requests(result, INFER)
    assert {tensor.datatype for tensor in batch.inputs} == set(INTEGERS)
    for tensor, raw in zip(batch.inputs, batch.raw_input_contents, strict=True):
        assert list(tensor.shape) == [6, 8]
        numbers = np.frombuffer(raw, tensor.datatype.lower()).tolist()
        assert numbers == [whole(value, tensor.datatype) for value in fetched], tensor.datatype


INTEGERS = [f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]


def whole(value: float, kind: str) -> int:
    """A float as an integer of this type.

    Unsigned types take the low bits of what a signed integer holds (of 32 bits, or 64 for the two wide types):
    so it is recorded for negative numbers. They saturate beyond that.
    """
    if math.isnan(value):
        return 0
    bits = int(kind.partition("INT")[2])
    if not kind.startswith("U"):
        return clamped(value, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    carrier = 32 if bits < 32 else 64
    if -(2 ** (carrier - 1)) <= value < 2 ** (carrier - 1):
        return math.trunc(value) % (1 << bits)
    return clamped(value, 0, 2**bits - 1)


def clamped(value: float, least: int, most: int) -> int:
    return int(min(max(value, least), most))


def fetched_numbers(queries: list[onfs_pb2.Query]) -> list[float]:
    """The values that the feature store answered, row by row; what it has not is 0."""
    numbers = []
    for query in sorted(queries, key=lambda query: query.keys[0].cols[0]):
        for key in query.keys:
            for group in query.feature_groups:
                for feature in group.feature_labels:
                    value = feature_value((query.entity_label, *key.cols, group.label, feature))
                    numbers.append(struct.unpack("<f" if len(value) == 4 else "<d", value or bytes(8))[0])
    return numbers
