"""The numerix component: remote and embedded alike, batches, what the service is sent, slates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.compile import CompileError
from components.expression import ExpressionError, parse
from components.groups import Groups, batches
from components.numerix_wire import ComputeCodec, decode_scores, encode_compute
from components.wire import WireError
from dag.plan import Plan
from proto import numerix_pb2
from shared.datatypes import DataType
from shared.shm_matrix import VALUE, CellBlock, Slot, TextColumn
from tests.components.memory import CANARY
from tests.components.running import (
    Answer,
    Upstreams,
    brought,
    compiled,
    config_of,
    failures,
    floats,
    matrix_pool,
    raw_column,
    run,
    scoring_of,
    slate_values,
)
from tests.effort import tries

Request = numerix_pb2.NumerixRequestProto

EXPRESSIONS = {
    "weighted": "p q *",
    "halved": "p 0.5 *",
    "spread": "p norm_min_max q +",
    "inverse": "1 p /",
    "one": "1",
    "up": "p 100 *",
}


def compute(**changes: Any) -> dict[str, Any]:
    return {
        "component": "mix",
        "component_id": "id",
        "score_col": "final",
        "data_type": "DataTypeFP32",
        "score_mapping": {"p@DataTypeFP32": "x", "q@DataTypeFP32": "y"},
        "compute_id": "weighted",
        **changes,
    }


def plan_of(
    *, embedded: bool = False, known: bool = True, part: Mapping[str, Any] | None = None, **bounds: Any
) -> Plan:
    part = part or compute()
    return compiled(
        config_of(numerix=[part], response=["id", part["score_col"]]),
        upstreams=Upstreams(numerix=not embedded),
        expressions=EXPRESSIONS if known else {},
        **bounds,
    )


def service(body: bytes) -> Answer:
    """The expression service: evaluates what it is sent, rows as they come."""
    data = Request.FromString(body).entity_score_data
    assert data.data_type == "fp32"
    rows = [row.byte_data.values for row in data.entity_scores]
    columns = {
        name: np.array([np.frombuffer(row[at], "<f4")[0] for row in rows], np.float32)
        for at, name in enumerate(data.schema)
        if at
    }
    try:
        scores = parse(EXPRESSIONS[data.compute_id]).evaluate(columns, len(rows), np.float32)
    except ExpressionError as error:
        message = numerix_pb2.NumerixResponseProto(error=numerix_pb2.Error(message=str(error)))
        return Answer(body=message.SerializeToString())
    answer = numerix_pb2.ComputationScoreData(schema=[data.schema[0], "score"])
    for row, score in zip(rows, np.asarray(scores, np.float32), strict=True):
        answer.computation_scores.add().byte_data.values.extend([row[0], score.tobytes()])
    return Answer(body=numerix_pb2.NumerixResponseProto(computation_score_data=answer).SerializeToString())


class Computed:
    """The outcome of a run of the component of a plan."""

    def __init__(
        self,
        plan: Plan,
        slot: Slot,
        columns: Mapping[str, Any],
        answer: Callable[[bytes], Answer] = service,
        slates: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.plan = plan
        self.rows = len(columns["id"])
        self.scoring = scoring_of(plan, brought(self.rows, columns, slates), slot)
        self.rounds: list[int] = []
        self.calls = run(plan.components[0], self.scoring, answer, rounds=self.rounds)

    def raw(self) -> list[bytes]:
        return raw_column(self.scoring.matrix, self.plan.layout, "final")

    @property
    def scores(self) -> list[float | None]:
        return floats(self.raw())

    @property
    def failures(self) -> list[tuple[str, str, list[int]]]:
        return failures(self.scoring.failures, self.rows)

    @property
    def slate_failures(self) -> list[tuple[str, str, list[int]]]:
        assert self.scoring.slates is not None
        return failures(self.scoring.slates.failures, self.scoring.slates.matrix.rows)

    def sent(self) -> list[list[list[bytes]]]:
        """The rows of each call."""
        messages = [Request.FromString(call.body).entity_score_data for call in self.calls]
        return [[list(row.byte_data.values) for row in data.entity_scores] for data in messages]


def fp32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def columns_of(*xs: float, y: float = 2.0) -> dict[str, list[bytes]]:
    return {
        "id": [f"id{n}".encode() for n in range(len(xs))],
        "x": [str(x).encode() for x in xs],
        "y": [str(y).encode()],
    }


# ---------------------------------------------------------------- what is sent


@pytest.mark.parametrize("reference", [False, True])
def test_a_row_is_its_id_and_the_variables_as_fp32(reference: bool) -> None:
    with matrix_pool() as slot:
        got = Computed(plan_of(reference_codecs=reference), slot, columns_of(1, 2.5))
        (call,) = got.calls
        assert (call.endpoint, call.timeout) == ("numerix", 5.0)
        data = Request.FromString(call.body).entity_score_data
        assert (list(data.schema), data.compute_id) == (["id", "p", "q"], "weighted")
        assert got.sent() == [[[b"id0", fp32(1), fp32(2)], [b"id1", fp32(2.5), fp32(2)]]]
        assert got.scores == [2, 5]


@given(st.integers(1, 9), st.integers(0, 9), st.booleans())
@tries(0.3)
def test_rows_go_out_in_batches_all_at_once(rows: int, batch: int, reference: bool) -> None:
    plan = plan_of(numerix_batch=batch, reference_codecs=reference)
    with matrix_pool() as slot:
        got = Computed(plan, slot, columns_of(*range(rows)))
        size = batch or rows
        assert [len(sent) for sent in got.sent()] == [min(size, rows - at) for at in range(0, rows, size)]
        assert [row[0] for sent in got.sent() for row in sent] == columns_of(*range(rows))["id"]
        assert got.rounds == [len(got.calls)]
        assert got.scores == [2.0 * row for row in range(rows)]


def test_an_expression_over_all_rows_is_not_split() -> None:
    part = compute(compute_id="spread")
    with matrix_pool() as slot:
        got = Computed(plan_of(part=part, numerix_batch=2), slot, columns_of(0, 5, 10, 20, 15))
        assert got.rounds == [1]
        assert got.scores == [2, 2.25, 2.5, 3, 2.75]
        # What this service does not know it cannot see to.
        got = Computed(plan_of(part=part, numerix_batch=2, known=False), slot, columns_of(0, 5, 10, 20, 15))
        assert got.rounds == [3]


def test_ids_may_be_the_same_or_missing() -> None:
    with matrix_pool() as slot:
        columns = columns_of(1, 2)
        got = Computed(plan_of(part=compute(component_id="y")), slot, columns)
        assert [row[0] for row in got.sent()[0]] == [b"2.0", b"2.0"]
        got = Computed(plan_of(part=compute(component_id="nobody")), slot, columns)
        assert [row[0] for row in got.sent()[0]] == [b"", b""]
        assert got.scores == [2, 4]


def test_typed_ids_are_sent_as_text() -> None:
    with matrix_pool() as slot:
        columns = columns_of(1, 2) | {"number": (DataType.INT32, [np.int32(n).tobytes() for n in (7, 8)])}
        got = Computed(plan_of(part=compute(component_id="number")), slot, columns)
        assert [row[0] for row in got.sent()[0]] == [b"7", b"8"]


def test_texts_are_read_as_the_type_after_the_at() -> None:
    part = compute(score_mapping={"p@DataTypeBool": "x", "q@DataTypeInt8": "y"})
    with matrix_pool() as slot:
        columns = {"id": [b"a", b"b", b"c"], "x": [b"true", b"TRUE", b"1"], "y": [b"5", b"500", b"5"]}
        got = Computed(plan_of(part=part), slot, columns)
        assert [row[1:] for row in got.sent()[0]] == [
            [fp32(1), fp32(5)],
            [fp32(1), fp32(0)],
            [fp32(0), fp32(5)],
        ]


def test_typed_columns_keep_their_own_type() -> None:
    part = compute(score_mapping={"p@DataTypeFP32": "x", "q@DataTypeInt8": "y"})
    with matrix_pool() as slot:
        typed = {"y": (DataType.FP64, [np.float64(2.5).tobytes(), b""])}
        got = Computed(plan_of(part=part), slot, columns_of(1, 2) | typed)
        assert [row[2] for row in got.sent()[0]] == [fp32(2.5), fp32(0)]


def test_an_expression_without_variables() -> None:
    part = compute(score_mapping={}, compute_id="one")
    for embedded in (False, True):
        with matrix_pool() as slot:
            got = Computed(plan_of(part=part, embedded=embedded), slot, columns_of(4, 5))
            assert got.scores == [1, 1]


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("DataTypeFP64", [np.float64(150).tobytes(), np.float64(-50).tobytes()]),
        ("INT16", [np.int16(150).tobytes(), np.int16(-50).tobytes()]),
        ("BOOL", [b"\x01", b"\x01"]),
        ("", [fp32(150), fp32(-50)]),
    ],
)
@pytest.mark.parametrize("embedded", [False, True])
def test_scores_have_the_type_of_the_config(kind: str, wanted: list[bytes], embedded: bool) -> None:
    part = compute(compute_id="up", data_type=kind, score_mapping={"p@FP32": "x"})
    with matrix_pool() as slot:
        assert Computed(plan_of(part=part, embedded=embedded), slot, columns_of(1.5, -0.5)).raw() == wanted


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8),
    st.floats(-10, 10, width=32),
    st.sampled_from(["weighted", "halved", "spread", "inverse"]),
)
@tries(0.5)
def test_computed_here_or_there_the_scores_are_the_same(xs: list[float], y: float, compute_id: str) -> None:
    outcomes = []
    for embedded in (False, True):
        with matrix_pool() as slot:
            plan = plan_of(part=compute(compute_id=compute_id), embedded=embedded, numerix_batch=0)
            got = Computed(plan, slot, columns_of(*xs, y=y))
            assert embedded is not bool(got.calls)
            outcomes.append((got.raw(), got.failures))
    assert outcomes[0] == outcomes[1]


def test_an_error_of_the_expression_marks_the_rows_it_was_computed_for() -> None:
    part = compute(compute_id="inverse", score_mapping={"p@FP32": "x"})
    with matrix_pool() as slot:
        got = Computed(plan_of(part=part, numerix_batch=2), slot, columns_of(1, 2, 0, 4, 5))
        assert got.scores == [1, 0.5, None, None, pytest.approx(0.2)]
        ((component, reason, rows),) = got.failures
        assert (component, rows) == ("mix", [2, 3])
        assert "division by zero" in reason
        got = Computed(plan_of(part=part, embedded=True), slot, columns_of(1, 2, 0, 4, 5))
        assert got.scores == [None] * 5
        assert [rows for _, _, rows in got.failures] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(14, "down"), "UNAVAILABLE: down"),
        (Answer(body=b"\xff"), "the answer is no NumerixResponseProto"),
        (Answer(body=b""), "0 scores answered for 2 rows"),
        (
            Answer(body=numerix_pb2.NumerixResponseProto(error=numerix_pb2.Error()).SerializeToString()),
            "the expression failed",
        ),
    ],
)
def test_a_failed_call_marks_its_rows(answer: Answer, reason: str, reference: bool) -> None:
    with matrix_pool() as slot:
        plan = plan_of(numerix_batch=2, reference_codecs=reference)
        got = Computed(
            plan, slot, columns_of(1, 2, 3), lambda body: service(body) if b"id2" in body else answer
        )
        assert got.scores == [None, None, 6]
        assert got.failures == [("mix", reason, [0, 1])]


def test_a_vector_that_does_not_fit_marks_its_row() -> None:
    with matrix_pool() as slot:
        typed = {"x": (DataType.FP32_VECTOR, [fp32(3), fp32(3), fp32(1, 2)])}
        got = Computed(plan_of(), slot, {"id": [b"a", b"b", b"c"], "y": [b"2"]} | typed)
        assert got.scores == [6, 6, 0]
        assert got.failures == [("mix", "'x' has 2 elements, the model takes 1", [2])]


def test_a_component_that_raised_marks_all_rows() -> None:
    plan = plan_of()
    with matrix_pool() as slot:
        scoring = scoring_of(plan, brought(2, {}), slot)
        plan.components[0].fail(scoring, "internal error")
        assert failures(scoring.failures, 2) == [("mix", "internal error", [0, 1])]


# ---------------------------------------------------------------- slates

SLATE = compute(slate_component=True, score_mapping={"p@FP32": "x"}, compute_id="halved")


@pytest.mark.parametrize("embedded", [False, True])
def test_each_slate_is_computed_over_its_own_rows(embedded: bool) -> None:
    with matrix_pool() as slot:
        plan = plan_of(part=SLATE, embedded=embedded)
        got = Computed(plan, slot, columns_of(1, 2, 3, 4), slates=[[3, 0], [1], []])
        assert floats(slate_values(plan, got.scoring, "final")) == [2, 1, None]
        assert [[row[0] for row in sent] for sent in got.sent()] == (
            [] if embedded else [[b"id3", b"id0"], [b"id1"]]
        )
        assert (got.failures, got.slate_failures) == ([], [])


def test_a_failed_slate_is_marked() -> None:
    part = SLATE | {"compute_id": "inverse"}
    for embedded in (False, True):
        with matrix_pool() as slot:
            plan = plan_of(part=part, embedded=embedded)
            got = Computed(plan, slot, columns_of(1, 0), slates=[[0], [0, 1], [0]])
            assert floats(slate_values(plan, got.scoring, "final")) == [1, None, 1]
            assert [rows for _, _, rows in got.slate_failures] == [[1]]
            plan.components[0].fail(got.scoring, "internal error")
            assert got.slate_failures[-1] == ("mix", "internal error", [0, 1, 2])


def test_without_slates_the_answers_are_dropped() -> None:
    with matrix_pool() as slot:
        got = Computed(plan_of(part=SLATE, numerix_batch=2), slot, columns_of(1, 2, 3), lambda _: Answer(14))
        assert (got.rounds, got.failures) == ([2], [])
        got.plan.components[0].fail(got.scoring, "internal error")
        assert got.failures == []
        assert Computed(plan_of(part=SLATE, embedded=True), slot, columns_of(1)).rounds == []


# ---------------------------------------------------------------- compiling


def test_an_expression_that_is_needed_must_be_there() -> None:
    assert plan_of(known=False).components[0].name == "mix"
    with pytest.raises(
        CompileError, match=r"'mix': there is no expression 'weighted', and no numerix service"
    ):
        plan_of(embedded=True, known=False)


def test_an_expression_must_be_one() -> None:
    with pytest.raises(CompileError, match=r"numerix component 'mix': .*'p \+'"):
        compiled(config_of(numerix=[compute()]), expressions={"weighted": "p +"})


# ---------------------------------------------------------------- the wire


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=6), st.integers(0, 3), st.booleans(), st.data())
def test_both_codecs_write_the_same_request(
    ids: list[bytes], variables: int, constant: bool, data: st.DataObject
) -> None:
    schema = ["id", *(f"v{n}" for n in range(variables))]
    bits = st.lists(st.integers(0, 2**32 - 1), min_size=variables, max_size=variables)
    cells = data.draw(st.lists(bits, min_size=len(ids), max_size=len(ids)))
    values = np.array(cells, np.uint32).reshape(len(ids), variables).view(np.float32)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(ids))] * 2)))
    with matrix_pool() as slot:
        column = TextColumn.same(slot, ids[0]) if constant else TextColumn.of(slot, ids)
        shown = ids[:1] * len(ids) if constant else ids
        fast, slow = (
            [
                Request.FromString(b"".join(body))
                for body in ComputeCodec(schema, "c", reference).encode(
                    column,
                    np.arange(len(ids), dtype=np.int32),
                    values.view(np.uint8),
                    Groups((0, start, stop)),
                )
            ]
            for reference in (False, True)
        )
        assert fast == slow
        assert fast[1] == Request.FromString(
            encode_compute(schema, "c", shown[start:stop], values[start:stop])
        )


def decoded(body: bytes, rows: int, reference: bool) -> npt.NDArray[np.float32]:
    """The scores of one answer as the component reads them. Raises WireError."""
    scores = CellBlock(np.full(5 * rows, CANARY, np.uint8), rows, 1, 4, 0, 4 * rows)
    left = ComputeCodec(["id"], "c", reference).decode([Answer(body=body)], batches(rows, 0), scores)
    if left:
        return decode_scores(body, rows)
    assert (scores.states == VALUE).all()
    return scores.flat.view(np.float32)


def test_scores_may_come_with_ids_and_more() -> None:
    response = numerix_pb2.NumerixResponseProto()
    for score in (1.5, float("nan")):
        response.computation_score_data.computation_scores.add().byte_data.values.extend(
            [b"id", fp32(score), b"more"]
        )
    body = response.SerializeToString()
    for reference in (False, True):
        scores = decoded(body, 2, reference)
        assert scores[0] == 1.5
        assert np.isnan(scores[1])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([b"id"], r"computation_scores\[1\] has no FP32 score"),
        ([b"id", b"12345678"], r"computation_scores\[1\] has no FP32 score"),
        ([], r"computation_scores\[1\] has no FP32 score"),
    ],
)
def test_answers_without_a_score(values: list[bytes], reason: str) -> None:
    response = numerix_pb2.NumerixResponseProto()
    response.computation_score_data.computation_scores.add().byte_data.values.extend([b"id", fp32(1)])
    response.computation_score_data.computation_scores.add().byte_data.values.extend(values)
    body = response.SerializeToString()
    for reference in (False, True):
        with pytest.raises(WireError, match=reason):
            decoded(body, 2, reference)
    with pytest.raises(WireError, match="2 scores answered for 3 rows"):
        decode_scores(body, 3)
