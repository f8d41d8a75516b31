"""The predator component: batches, routes, answers of all shapes, slates."""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.predator import RequestHeads
from components.tensors import Tensor, TensorInput
from dag.plan import Plan
from proto import triton_pb2
from shared.datatypes import DataType
from shared.shm_matrix import Slot
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

Response = triton_pb2.ModelInferResponse


def model(**changes: Any) -> dict[str, Any]:
    """A model of one number `x`, with one score."""
    return {
        "component": "rank",
        "model_name": "ranker",
        "model_end_point": "models",
        "inputs": [{"name": "in", "features": ["x"], "shape": [1], "data_type": "FP32"}],
        "outputs": [
            {"name": "out", "model_scores": ["score"], "model_scores_dims": [[1]], "data_type": "FP32"}
        ],
        **changes,
    }


def outputs(*parts: tuple[str, str, Sequence[str], Sequence[Sequence[int]]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "data_type": kind,
            "model_scores": list(scores),
            "model_scores_dims": [list(d) for d in dims],
        }
        for name, kind, scores, dims in parts
    ]


def plan_of(*models: dict[str, Any], **bounds: Any) -> Plan:
    scores = [name for part in models for out in part["outputs"] for name in out["model_scores"]]
    return compiled(config_of(predators=models, response=["id", *scores]), **bounds)


def raw_answer(**parts: tuple[str, bytes]) -> Answer:
    """A ModelInferResponse with these outputs: name=(datatype, raw bytes)."""
    response = Response(model_name="ranker", model_version="1")
    for name, (kind, raw) in parts.items():
        response.outputs.add(name=name, datatype=kind)
        response.raw_output_contents.append(raw)
    return Answer(body=response.SerializeToString())


def numbers_of(body: bytes) -> list[float]:
    """The first input of a request, as FP32."""
    request = triton_pb2.ModelInferRequest.FromString(body)
    values: list[float] = np.frombuffer(request.raw_input_contents[0], "<f4").tolist()
    return values


def doubling(body: bytes) -> Answer:
    """A model that answers twice what it is given."""
    return raw_answer(out=("FP32", (np.array(numbers_of(body), "<f4") * 2).tobytes()))


def fp32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def texts(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


class Scored:
    """The outcome of a run of the first component of a plan over rows with x = 0, 1, 2, …."""

    def __init__(
        self,
        plan: Plan,
        slot: Slot,
        rows: int,
        answer: Callable[[bytes], Answer],
        slates: Sequence[Sequence[int]] | None = None,
        xs: Sequence[bytes] | None = None,
    ) -> None:
        self.plan = plan
        columns = {"x": [str(row).encode() for row in range(rows)] if xs is None else list(xs)}
        self.scoring = scoring_of(plan, brought(rows, columns, slates), slot)
        self.rounds: list[int] = []
        self.calls = run(plan.components[0], self.scoring, answer, rounds=self.rounds)
        self.rows = rows

    def raw(self, name: str) -> list[bytes]:
        return raw_column(self.scoring.matrix, self.plan.layout, name)

    def score(self, name: str = "score") -> list[float | None]:
        return floats(self.raw(name))

    @property
    def failures(self) -> list[tuple[str, str, list[int]]]:
        return failures(self.scoring.failures, self.rows)

    @property
    def slate_failures(self) -> list[tuple[str, str, list[int]]]:
        assert self.scoring.slates is not None
        return failures(self.scoring.slates.failures, self.scoring.slates.matrix.rows)


# ---------------------------------------------------------------- batches


@given(st.integers(1, 12), st.integers(0, 14))
@tries(0.3)
def test_rows_go_out_in_batches_all_at_once(rows: int, batch: int) -> None:
    plan = plan_of(model(batch_size=batch))
    with matrix_pool() as slot:
        got = Scored(plan, slot, rows, doubling)
        size = batch or rows
        wanted = [list(range(rows))[at : at + size] for at in range(0, rows, size)]
        assert [numbers_of(call.body) for call in got.calls] == wanted
        assert got.rounds == [len(wanted)]
        shapes = [
            list(triton_pb2.ModelInferRequest.FromString(call.body).inputs[0].shape) for call in got.calls
        ]
        assert shapes == [[len(part), 1] for part in wanted]
        assert got.score() == [2.0 * row for row in range(rows)]
        assert got.failures == []


def test_a_call_may_take_as_long_as_the_config_says() -> None:
    with matrix_pool() as slot:
        assert [call.timeout for call in Scored(plan_of(model(deadline=70)), slot, 1, doubling).calls] == [
            0.07
        ]
        assert [call.timeout for call in Scored(plan_of(model()), slot, 1, doubling).calls] == [0.3]


def test_a_failed_batch_marks_exactly_its_rows() -> None:
    plan = plan_of(model(batch_size=2))
    with matrix_pool() as slot:
        got = Scored(
            plan, slot, 5, lambda body: Answer(14, "down") if 2.0 in numbers_of(body) else doubling(body)
        )
        assert got.score() == [0, 2, None, None, 8]
        assert got.failures == [("rank", "UNAVAILABLE: down", [2, 3])]


def test_an_answer_of_one_row_is_broadcast_over_its_batch() -> None:
    plan = plan_of(model(batch_size=3))

    def answer(body: bytes) -> Answer:
        return raw_answer(out=("FP32", fp32(numbers_of(body)[0] + 100)))

    with matrix_pool() as slot:
        assert Scored(plan, slot, 5, answer).score() == [100, 100, 100, 103, 103]


@pytest.mark.parametrize("answered", [0, 2, 4, 6])
def test_other_numbers_of_rows_are_refused(answered: int) -> None:
    with matrix_pool() as slot:
        got = Scored(plan_of(model()), slot, 3, lambda _: raw_answer(out=("FP32", bytes(4 * answered))))
        assert got.score() == [None, None, None]
        reason = f"output 'out' has {4 * answered} bytes, where 3 rows of 4 were asked for"
        assert got.failures == [("rank", reason, [0, 1, 2])]


def test_half_a_row_is_refused() -> None:
    with matrix_pool() as slot:
        got = Scored(plan_of(model()), slot, 1, lambda _: raw_answer(out=("FP32", b"123456")))
        assert got.failures == [("rank", "output 'out' has 6 bytes, where 1 rows of 4 were asked for", [0])]


def test_a_batch_is_written_whole_or_not_at_all() -> None:
    part = model(
        outputs=outputs(("a", "FP32", ["first"], [[1]]), ("b", "FP32", ["second"], [[1]])), batch_size=1
    )

    def answer(body: bytes) -> Answer:
        bad = numbers_of(body) == [1.0]
        return raw_answer(a=("FP32", fp32(7)), b=("FP32", b"123" if bad else fp32(8)))

    with matrix_pool() as slot:
        got = Scored(plan_of(part), slot, 3, answer)
        assert (got.score("first"), got.score("second")) == ([7, None, 7], [8, None, 8])
        assert [rows for _, _, rows in got.failures] == [[1]]


def test_a_value_that_does_not_fit_marks_its_row_and_is_sent_as_zero() -> None:
    inputs = [{"name": "in", "features": ["x"], "shape": [2], "data_type": "FP32"}]
    with matrix_pool() as slot:
        got = Scored(
            plan_of(model(inputs=inputs)),
            slot,
            2,
            lambda _: raw_answer(out=("FP32", fp32(1, 2))),
            xs=[b"1:2", b"1:2:3"],
        )
        assert numbers_of(got.calls[0].body) == [1, 2, 0, 0]
        assert got.failures == [("rank", "'x' has 3 elements, the model takes 2", [1])]
        assert got.score() == [1, 2]


def test_a_component_that_raised_marks_all_rows() -> None:
    plan = plan_of(model())
    with matrix_pool() as slot:
        scoring = scoring_of(plan, brought(2, {"x": [b"1"]}), slot)
        plan.components[0].fail(scoring, "internal error")
        assert failures(scoring.failures, 2) == [("rank", "internal error", [0, 1])]


# ---------------------------------------------------------------- outputs


def test_an_output_is_cut_into_its_scores() -> None:
    part = model(
        outputs=outputs(
            ("a", "FP32", ["one", "pair", "square"], [[1], [2], [2, 2]]),
            ("b", "INT64", ["long"], [[1]]),
            ("c", "FP64", ["wide", "wider"], [[1], [1]]),
        )
    )
    a = fp32(*range(14))
    answer = raw_answer(
        a=("FP32", a),
        c=("FP64", np.array([0.5, 1.5, 2.5, 3.5]).tobytes()),
        b=("INT64", np.array([-1, 1 << 40]).tobytes()),
    )
    with matrix_pool() as slot:
        got = Scored(plan_of(part), slot, 2, lambda _: answer)
        assert got.failures == []
        assert got.raw("one") == [fp32(0), fp32(7)]
        assert got.raw("pair") == [fp32(1, 2), fp32(8, 9)]
        assert got.raw("square") == [fp32(3, 4, 5, 6), fp32(10, 11, 12, 13)]
        assert [int.from_bytes(raw, "little", signed=True) for raw in got.raw("long")] == [-1, 1 << 40]
        assert got.raw("wider") == [np.float64(1.5).tobytes(), np.float64(3.5).tobytes()]
    types = {name: column.data_type.label for name, column in plan_of(part).layout.byte.items()}
    assert types == {
        "one": "DataTypeFP32", "pair": "DataTypeFP32Vector", "square": "DataTypeFP32Vector",
        "long": "DataTypeInt64", "wide": "DataTypeFP64", "wider": "DataTypeFP64",
    }  # fmt: skip


def test_texts_are_joined_where_a_score_has_several() -> None:
    part = model(outputs=outputs(("t", "BYTES", ["word", "words"], [[1], [2]])))
    with matrix_pool() as slot:
        got = Scored(
            plan_of(part),
            slot,
            2,
            lambda _: raw_answer(t=("BYTES", texts(b"a", b"b", b"", b"d", b"e", b"f"))),
        )
        assert got.raw("word") == [b"a", b"d"]
        assert got.raw("words") == [b"b,", b"e,f"]
        got = Scored(plan_of(part), slot, 2, lambda _: raw_answer(t=("BYTES", texts(b"a", b"b", b"c"))))
        assert got.raw("words") == [b"b,c", b"b,c"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (texts(b"a", b"b"), "output 't' has 2 strings, where 3 rows of 1 were asked for"),
        (b"\x09\0\0\0abc", "a BYTES element at byte 0 runs over the 7 bytes of its tensor"),
    ],
)
def test_texts_that_do_not_fit(raw: bytes, reason: str) -> None:
    part = model(outputs=outputs(("t", "BYTES", ["word"], [[1]])))
    with matrix_pool() as slot:
        got = Scored(plan_of(part), slot, 3, lambda _: raw_answer(t=("BYTES", raw)))
        assert got.failures == [("rank", reason, [0, 1, 2])]
        assert got.raw("word") == [b"", b"", b""]


def test_typed_contents() -> None:
    response = Response()
    response.outputs.add(name="out", datatype="FP32").contents.fp32_contents.extend([1.5, 2.5])
    with matrix_pool() as slot:
        got = Scored(plan_of(model()), slot, 2, lambda _: Answer(body=response.SerializeToString()))
        assert got.score() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (raw_answer(out=("INT32", b"1234")), "output 'out' is INT32, the config says FP32"),
        (raw_answer(other=("FP32", b"1234")), "the model answered no output 'out', but ['other']"),
        (Answer(body=b"\xff"), "the answer is no ModelInferResponse"),
        (Answer(4), "DEADLINE_EXCEEDED"),
    ],
)
def test_answers_that_are_none(answer: Answer, reason: str) -> None:
    with matrix_pool() as slot:
        got = Scored(plan_of(model()), slot, 1, lambda _: answer)
        assert got.failures == [("rank", reason, [0])]
        assert got.score() == [None]


# ---------------------------------------------------------------- routing


def test_calls_are_shared_out_as_the_percentages_say() -> None:
    shares = {"a": 10, "b": 60, "c": 0, "d": 30}
    part = model(model_end_points=[{"endpoint": name, "percentage": share} for name, share in shares.items()])
    plan = plan_of(part)
    random.seed(11)
    with matrix_pool() as slot:
        scoring = scoring_of(plan, brought(1, {"x": [b"1"]}), slot)
        went = collections.Counter(
            call.endpoint for _ in range(4000) for call in run(plan.components[0], scoring, doubling)
        )
    assert set(went) == {"a", "b", "d"}
    for name, share in shares.items():
        assert abs(went[name] / 40 - share) < 3


def test_all_batches_of_a_request_go_to_one_place() -> None:
    part = model(
        batch_size=1,
        model_end_points=[{"endpoint": "a", "percentage": 50}, {"endpoint": "b", "percentage": 50}],
    )
    plan = plan_of(part)
    random.seed(5)
    seen = set()
    with matrix_pool() as slot:
        for _ in range(30):
            (place,) = {call.endpoint for call in Scored(plan, slot, 4, doubling).calls}
            seen.add(place)
    assert seen == {"a", "b"}


@pytest.mark.parametrize(
    ("routing", "wanted"),
    [
        ({"model_end_points": [{"endpoint": "a", "percentage": 0}]}, {("models", "ranker")}),
        ({"model_end_points": [{"endpoint": "a", "percentage": 100}]}, {("a", "ranker")}),
        (
            {"route_config": [{"model_endpoint": "r", "model_name": "twin", "routing_percentage": 100}]},
            {("r", "twin")},
        ),
        ({"route_config": [{"model_endpoint": "r", "routing_percentage": 100}]}, {("r", "ranker")}),
        (
            {
                "model_end_points": [{"endpoint": "a", "percentage": 0}],
                "route_config": [{"model_endpoint": "r", "model_name": "twin", "routing_percentage": 100}],
            },
            {("r", "twin")},
        ),
    ],
)
def test_where_calls_go(routing: dict[str, Any], wanted: set[tuple[str, str]]) -> None:
    with matrix_pool() as slot:
        calls = Scored(plan_of(model(**routing)), slot, 1, doubling).calls
        names = {
            (call.endpoint, triton_pb2.ModelInferRequest.FromString(call.body).model_name) for call in calls
        }
        assert names == wanted


def test_heads_are_kept_but_not_for_ever() -> None:
    heads = RequestHeads("ranker", (), ())
    assert heads.get(3, [(1,)][:0]) is heads.get(3, [])
    for rows in range(2 * RequestHeads.LIMIT):
        request = triton_pb2.ModelInferRequest.FromString(heads.get(rows, []))
        assert request.model_name == "ranker"
    assert len(heads._heads) <= RequestHeads.LIMIT


@pytest.mark.parametrize("inputs", [1, 2])
def test_a_request_of_another_length_leaves_later_ones_as_they_are(inputs: int) -> None:
    """What is kept of one says how long its contents are, so it is only for those of the same lengths."""
    heads = RequestHeads("ranker", [TensorInput("in", DataType.FP32, (3,), ())] * inputs, ())
    for row in ((1.0,), (1.0, 2.0, 3.0), (1.0,)):
        tensors = [Tensor.of_numbers((3,), np.array([row], "<f4"))] * inputs
        body = b"".join(heads.bodies(tensors, (0, 1))[0])
        request = triton_pb2.ModelInferRequest.FromString(body)
        assert list(request.raw_input_contents) == [fp32(*row)] * inputs


# ---------------------------------------------------------------- slates

SLATE = model(slate_component=True, component="bundle")


def summing(body: bytes) -> Answer:
    """A model whose first answer is the sum of its rows."""
    values = numbers_of(body)
    return raw_answer(out=("FP32", fp32(sum(values), *values[1:])))


def test_a_slate_model_is_called_once_for_each_slate() -> None:
    with matrix_pool() as slot:
        got = Scored(plan_of(SLATE), slot, 5, summing, slates=[[0, 1], [4, 2, 4], [3]])
        assert [numbers_of(call.body) for call in got.calls] == [[0, 1], [4, 2, 4], [3]]
        assert got.rounds == [3]
        assert floats(slate_values(got.plan, got.scoring, "score")) == [1, 10, 3]
        assert (got.failures, got.slate_failures) == ([], [])


def test_a_failed_call_marks_its_slate_only() -> None:
    def answer(body: bytes) -> Answer:
        return Answer(14, "down") if numbers_of(body) == [2.0] else summing(body)

    with matrix_pool() as slot:
        got = Scored(plan_of(SLATE), slot, 3, answer, slates=[[0, 1], [2], [1, 2]])
        assert floats(slate_values(got.plan, got.scoring, "score")) == [1, None, 3]
        assert got.slate_failures == [("bundle", "UNAVAILABLE: down", [1])]
        assert got.failures == []


def test_a_slate_of_nothing_is_not_asked_for() -> None:
    with matrix_pool() as slot:
        got = Scored(plan_of(SLATE), slot, 2, summing, slates=[[], [1]])
        assert [numbers_of(call.body) for call in got.calls] == [[1]]
        assert floats(slate_values(got.plan, got.scoring, "score")) == [None, 1]
        got = Scored(plan_of(SLATE), slot, 2, summing, slates=[[]])
        assert got.calls == []


def test_one_answered_row_stands_for_the_slate() -> None:
    with matrix_pool() as slot:
        got = Scored(plan_of(SLATE), slot, 3, lambda _: raw_answer(out=("FP32", fp32(9))), slates=[[0, 1, 2]])
        assert floats(slate_values(got.plan, got.scoring, "score")) == [9]


def test_texts_of_slates() -> None:
    part = SLATE | {"outputs": outputs(("t", "BYTES", ["word"], [[1]]))}
    with matrix_pool() as slot:
        got = Scored(
            plan_of(part),
            slot,
            2,
            lambda _: raw_answer(t=("BYTES", texts(b"a", b"b"))),
            slates=[[0, 1], [1, 0]],
        )
        assert slate_values(got.plan, got.scoring, "word") == [b"a", b"a"]


def test_without_slates_the_answer_of_a_slate_model_is_dropped() -> None:
    with matrix_pool() as slot:
        got = Scored(plan_of(SLATE | {"batch_size": 2}), slot, 3, lambda _: Answer(14))
        assert [numbers_of(call.body) for call in got.calls] == [[0, 1], [2]]
        assert got.failures == []
        got.plan.components[0].fail(got.scoring, "internal error")
        assert got.failures == []


def test_slate_models_that_raised_mark_all_slates() -> None:
    with matrix_pool() as slot:
        got = Scored(plan_of(SLATE), slot, 2, summing, slates=[[0], [1]])
        got.plan.components[0].fail(got.scoring, "internal error")
        assert got.slate_failures == [("bundle", "internal error", [0, 1])]


def test_endpoints_are_named_by_the_config() -> None:
    with matrix_pool() as slot:
        plan = compiled(config_of(predators=[model(model_end_point="other:9")]), upstreams=Upstreams())
        assert [call.endpoint for call in Scored(plan, slot, 1, doubling).calls] == ["other:9"]


# ---------------------------------------------------------------- by kernels, by messages


@given(
    st.integers(1, 7),
    st.none() | st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=4),
    st.lists(
        st.sampled_from(["good", "good", "one row", "other rows", "broken", "down"]), min_size=5, max_size=5
    ),
    st.integers(0, 3),
    st.sampled_from([b"1", b"1:2", b"x", b""]),
    st.booleans(),
)
def test_kernels_and_messages_score_alike(
    rows: int, slates: list[list[int]] | None, moods: list[str], batch: int, x: bytes, strings: bool
) -> None:
    """Whatever is asked and answered: the same calls, the same scores, the same errors."""
    if slates is not None:
        slates = [[index % rows for index in targets] for targets in slates]
    seen = []
    for reference in (False, True):
        number = itertools.count()

        def answer(body: bytes, number: Iterator[int] = number) -> Answer:
            mood = moods[next(number) % len(moods)]
            count = len(numbers_of(body))
            if mood == "down":
                return Answer(14, "down")
            count = {"one row": 1, "other rows": count + 1}.get(mood, count)
            words = texts(*(b"w%d" % value if value % 5 else b"" for value in range(3 * count)))
            good = raw_answer(
                out=("FP32", fp32(*(float(value) for value in range(count)))),
                **({"t": ("BYTES", words)} if strings else {}),
            )
            return Answer(body=good.body[:-1]) if mood == "broken" else good

        asked = [("out", "FP32", ["score"], [[1]]), ("t", "BYTES", ["word", "words"], [[1], [2]])]
        part = model(
            batch_size=batch,
            slate_component=slates is not None,
            outputs=outputs(*asked[: 2 if strings else 1]),
        )
        plan = plan_of(part, reference_codecs=reference)
        xs = [x] + [str(row).encode() for row in range(1, rows)]
        with matrix_pool() as slot:
            got = Scored(plan, slot, rows, answer, slates, xs)
            names = ["score", "word", "words"] if strings else ["score"]
            if slates is None:
                scores = [got.raw(name) for name in names]
            else:
                scores = [slate_values(plan, got.scoring, name) for name in names]
            failed = got.failures if slates is None else got.slate_failures
            seen.append((got.calls, got.rounds, scores, failed))
    assert seen[0] == seen[1]
