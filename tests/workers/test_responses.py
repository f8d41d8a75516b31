"""Response builders: what a matrix holds is what is answered, by kernels and by messages alike."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

import mmh3
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dag.component import Scoring, Slates
from dag.layout import LayoutBuilder
from dag.plan import Answer, OutputColumn, OutputColumns, Plan
from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType
from shared.shm_matrix import CellBlock, ShmMatrix, Slot, TextColumn, TypedColumn, VarBlock
from tests.components.running import matrix_pool, named
from tests.dag.plans import EMPTY_LAYOUT, plan_of
from tests.effort import tries
from workers import responses
from workers.responses import ResponseTooLarge, point_wise, retrieve, sampled, slate_wise

FP32, FP64, INT64, STRING = DataType.FP32, DataType.FP64, DataType.INT64, DataType.STRING


@dataclasses.dataclass
class Column:
    """A column to be answered: where it comes from, its type, and its value in each row."""

    name: str
    origin: str  # "block", "text", "typed" or "nowhere"
    kind: DataType
    count: int  # elements a cell of a block; 0: varies
    values: list[bytes]
    constant: bool = False


class Table:
    """A matrix with these columns, written as components write it, and the plan that answers them."""

    def __init__(
        self, slot: Slot, rows: int, columns: Sequence[Column], index: Sequence[int] | None = None
    ) -> None:
        self.rows = rows
        self.columns = columns
        builder = LayoutBuilder(column.name for column in columns)
        builder.write("c", [(c.name, c.kind, c.count) for c in columns if c.origin == "block"])
        self.layout = builder.build()
        self.matrix = ShmMatrix(slot, rows, len(self.layout.blocks), len(self.layout.external))
        by_name = {column.name: column for column in columns}
        for number, spec in enumerate(self.layout.blocks):
            names = [column.name for column in spec.columns]
            self.matrix.blocks[number] = self._block(
                slot, [by_name[name] for name in names], spec.width, index
            )
        for column in columns:
            external = self.layout.external[column.name]
            text = (
                TextColumn.same(slot, column.values[0])
                if column.constant
                else TextColumn.of(slot, column.values)
            )
            if column.origin == "text":
                self.matrix.texts[external] = text
            elif column.origin == "typed":
                self.matrix.typed[external] = TypedColumn(column.kind, column.count, text)

    def _block(
        self, slot: Slot, columns: Sequence[Column], width: int, index: Sequence[int] | None
    ) -> CellBlock | VarBlock:
        # A row shows line index[row]; rows of one line have the same values (see `tables`).
        lines = list(range(self.rows)) if index is None else list(index)
        cells = [
            (line, place, column.values[row])
            for place, column in enumerate(columns)
            for row, line in enumerate(lines)
            if line >= 0
        ]
        block: CellBlock | VarBlock
        if width:
            block = CellBlock.empty(slot, max([*lines, 0]) + 1, len(columns), width)
            for line, place, value in cells:
                if value:
                    block.put(line, place, value)
        else:
            block = VarBlock.empty(slot, max([*lines, 0]) + 1, len(columns))
            block.fill(slot, {(line, place): (line, place, value) for line, place, value in cells}.values())
        if index is not None:
            block.index = np.array(index, np.int32)
        return block

    def outputs(self) -> OutputColumns:
        return OutputColumns(
            OutputColumn(
                self.layout.source(column.name),
                column.kind if column.origin == "block" else STRING,
                column.count if column.origin == "block" and column.kind.is_vector else 0,
            )
            for column in self.columns
        )

    def shown(self) -> list[list[bytes]]:
        """The values of each row."""
        return [
            [column.values[0 if column.constant else row] for column in self.columns]
            for row in range(self.rows)
        ]

    def schema(self) -> list[predict_pb2.FeatureSchema]:
        out = []
        for column in self.columns:
            kind = column.kind if column.origin in ("block", "typed") else STRING
            dim = column.count if kind.is_vector or column.origin == "typed" else 0
            out.append(predict_pb2.FeatureSchema(name=column.name, data_type=int(kind), vector_dim=dim))  # type: ignore[arg-type]
        return out


def answering(
    targets: Table, slates: Table | None = None, *, shown: Sequence[OutputColumn] | None = None
) -> Plan:
    outputs = targets.outputs() if shown is None else OutputColumns(shown)
    return dataclasses.replace(
        plan_of([], []),
        layout=targets.layout,
        slate_layout=EMPTY_LAYOUT if slates is None else slates.layout,
        answer=Answer(outputs, outputs, OutputColumns() if slates is None else slates.outputs(), outputs),
    )


KINDS = st.sampled_from(
    [FP32, FP32, FP64, INT64, DataType.INT8, STRING, DataType.FP32_VECTOR, DataType.STRING_VECTOR]
)


@st.composite
def columns_of(draw: st.DrawFn, rows: int, index: Sequence[int] | None) -> list[Column]:
    out = []
    for number in range(draw(st.integers(0, 4))):
        origin = draw(st.sampled_from(["block", "block", "text", "typed", "nowhere"]))
        kind = STRING if origin in ("text", "nowhere") else draw(KINDS)
        count = 0
        if kind.is_vector and kind is not DataType.STRING_VECTOR:
            count = draw(st.sampled_from([0, 2]))
        elif not kind.is_vector and origin == "block":
            count = 1
        width = count * kind.size
        value = st.binary(max_size=9)
        if width and origin == "block":
            right = st.binary(min_size=width, max_size=width)
            value = st.one_of(right, right, right, st.just(b""), st.binary(max_size=9))
        constant = origin in ("text", "typed") and draw(st.booleans())
        if origin == "nowhere":
            values = [b""] * rows
        elif constant:
            values = [draw(value)]
        elif origin == "block" and index is not None:
            lines = {line: draw(value) if line >= 0 else b"" for line in sorted(set(index))}
            values = [lines[line] for line in index]
        else:
            values = draw(st.lists(value, min_size=rows, max_size=rows))
        out.append(Column(f"c{number}", origin, kind, count, values, constant))
    return out


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, list[Column], list[int] | None]:
    rows = draw(st.integers(1, 5))
    index = draw(st.none() | st.lists(st.integers(-1, 2), min_size=rows, max_size=rows))
    return rows, draw(columns_of(rows, index)), index


TEXTS = st.sampled_from(["down", "late", "odd length", "é"])


@st.composite
def failures_of(draw: st.DrawFn, rows: int) -> list[tuple[str, str, list[int] | None]]:
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["fetch", "rank"]),
                TEXTS,
                st.none() | st.lists(st.integers(0, rows - 1), min_size=1, unique=True),
            ),
            max_size=3,
        )
    )


def fail(scoring: Scoring, found: Sequence[tuple[str, str, list[int] | None]]) -> None:
    for component, cause, rows in found:
        scoring.fail(component, cause, None if rows is None else np.array(rows, np.int32))


def errors_of(found: Sequence[tuple[str, str, list[int] | None]], rows: int) -> list[dict[str, None]]:
    """The error texts of each row, in order."""
    out: list[dict[str, None]] = [{} for _ in range(rows)]
    for component, cause, marked in found:
        for row in range(rows) if marked is None else marked:
            out[row][f"{component}: {cause}"] = None
    return out


# ---------------------------------------------------------------- PointWise


@given(tables(), st.data())
@tries(1.5)
def test_a_point_wise_answer_is_the_matrix(
    made: tuple[int, list[Column], list[int] | None], data: st.DataObject
) -> None:
    rows, columns, index = made
    found = data.draw(st.just([]) | failures_of(rows))
    with matrix_pool() as slot:
        table = Table(slot, rows, columns, index)
        scoring = Scoring(table.matrix)
        fail(scoring, found)
        errors = errors_of(found, rows)
        wanted = predict_pb2.PointWiseResponse(
            target_output_schema=table.schema(),
            target_scores=[
                predict_pb2.TargetScore(error="; ".join(error), output_values=values)
                for error, values in zip(errors, table.shown(), strict=True)
            ],
            request_error="; ".join(dict.fromkeys(f"{c}: {why}" for c, why, _ in found))
            if all(errors)
            else "",
        )
        for reference in (False, True):
            body = point_wise(answering(table), scoring, reference=reference)
            assert predict_pb2.PointWiseResponse.FromString(body) == wanted


def test_kernels_answer_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain scores never take the slow way."""
    columns = [
        Column("id", "text", STRING, 0, [b"a", b"bb", b"ccc"]),
        Column("score", "block", FP32, 1, [b"1234", b"", b"5678"]),
        Column("title", "block", STRING, 1, [b"x", b"", b"long"]),
        Column("user", "text", STRING, 0, [b"u"], constant=True),
    ]
    with matrix_pool() as slot:
        table = Table(slot, 3, columns)
        slow = point_wise(answering(table), Scoring(table.matrix), reference=True)
        monkeypatch.setattr(responses, "_values", None)
        assert point_wise(answering(table), Scoring(table.matrix), reference=False) == slow


def test_large_answers_grow_their_memory() -> None:
    columns = [Column("text", "text", STRING, 0, [b"x" * 3_000], constant=True)]
    with matrix_pool() as slot:
        table = Table(slot, 1000, columns)
        fast, slow = (point_wise(answering(table), Scoring(table.matrix), reference=r) for r in (False, True))
        assert fast == slow
        assert len(fast) > 3_000_000


def test_answers_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MAX_BYTES", 1 << 20)
    columns = [Column("text", "text", STRING, 0, [b"x" * 3_000], constant=True)]
    with matrix_pool() as slot:
        table = Table(slot, 5000, columns)
        plan, scoring = answering(table), Scoring(table.matrix)
        message = "the answer to 5000 rows with 1 columns is larger than"
        for reference in (False, True):
            with pytest.raises(ResponseTooLarge, match=message):
                point_wise(plan, scoring, reference=reference)
            with pytest.raises(ResponseTooLarge, match=message):
                retrieve(plan, scoring, model_schema=False, reference=reference)


def test_error_texts_are_cut() -> None:
    with matrix_pool() as slot:
        table = Table(slot, 1, [])
        scoring = Scoring(table.matrix)
        scoring.fail("rank", "x" * 10_000)
        answer = predict_pb2.PointWiseResponse.FromString(
            point_wise(answering(table), scoring, reference=False)
        )
        assert len(answer.target_scores[0].error) == responses.MAX_CAUSE
        assert answer.target_scores[0].error == answer.request_error
        assert answer.request_error.startswith("rank: xxx")
        assert answer.request_error.endswith("x…")


# ---------------------------------------------------------------- PairWise, SlateWise


@given(tables(), st.data())
def test_a_slate_wise_answer_is_both_matrices(
    made: tuple[int, list[Column], list[int] | None], data: st.DataObject
) -> None:
    rows, columns, index = made
    count = data.draw(st.integers(1, 4))
    targets = data.draw(
        st.lists(st.lists(st.integers(0, rows - 1), max_size=3), min_size=count, max_size=count)
    )
    own = data.draw(columns_of(count, None))
    found, slates_found = (
        data.draw(st.just([]) | failures_of(rows)),
        data.draw(st.just([]) | failures_of(count)),
    )
    with matrix_pool() as slot:
        table, slate_table = Table(slot, rows, columns, index), Table(slot, count, own)
        scoring = Scoring(table.matrix, Slates(slate_table.matrix, *named(targets)))
        assert scoring.slates is not None
        fail(scoring, found)
        for component, cause, marked in slates_found:
            scoring.fail_slates(component, cause, None if marked is None else np.array(marked, np.int32))
        errors, own_errors = errors_of(found, rows), errors_of(slates_found, count)
        slate_errors = [
            dict.fromkeys([text for row in named for text in errors[row]]) | own_errors[number]
            for number, named in enumerate(targets)
        ]
        all_failed = all(errors) and (not own or all(slate_errors))
        causes = dict.fromkeys(f"{c}: {why}" for c, why, _ in [*found, *slates_found])
        wanted = predict_pb2.SlateWiseResponse(
            target_output_schema=table.schema(),
            slate_output_schema=slate_table.schema(),
            target_scores=[
                predict_pb2.TargetScore(error="; ".join(error), output_values=values)
                for error, values in zip(errors, table.shown(), strict=True)
            ],
            slate_scores=[
                predict_pb2.SlateScore(error="; ".join(error), output_values=values)
                for error, values in zip(slate_errors, slate_table.shown(), strict=True)
            ]
            if own
            else [],
            request_error="; ".join(causes) if all_failed else "",
        )
        for reference in (False, True):
            body = slate_wise(answering(table, slate_table), scoring, reference=reference)
            assert predict_pb2.SlateWiseResponse.FromString(body) == wanted
            pairs = predict_pb2.PairWiseResponse.FromString(body)
            assert [list(s.output_values) for s in pairs.pair_scores] == [
                list(s.output_values) for s in wanted.slate_scores
            ]
            assert pairs.pair_output_schema == wanted.slate_output_schema
            assert pairs.request_error == wanted.request_error


# ---------------------------------------------------------------- RetrieveModelScore


def le(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def retrieved(table: Table, scoring: Scoring, **more: Any) -> inferflow_pb2.InferflowResponseProto:
    fast, slow = (
        inferflow_pb2.InferflowResponseProto.FromString(
            retrieve(answering(table, **more), scoring, model_schema=False, reference=reference)
        )
        for reference in (False, True)
    )
    assert fast == slow
    return fast


def test_texts_are_answered_below_their_names() -> None:
    columns = [
        Column("id", "text", STRING, 0, [b"a", "é".encode(), b"\xff"]),
        Column("score", "block", FP32, 1, [le(0.1), b"", b"odd"]),
        Column("vector", "block", DataType.FP32_VECTOR, 2, [le(1, 2.5), le(3, 4), b""]),
        Column("typed", "typed", INT64, 0, [np.int64(7).tobytes()], constant=True),
        Column("nowhere", "nowhere", STRING, 0, [b""] * 3),
    ]
    with matrix_pool() as slot:
        table = Table(slot, 3, columns)
        answer = retrieved(table, Scoring(table.matrix))
        assert [list(row.data) for row in answer.component_data] == [
            ["id", "score", "vector", "typed", "nowhere"],
            ["a", "0.1", "1,2.5", "7", ""],
            ["é", "", "3,4", "7", ""],
            ["\N{REPLACEMENT CHARACTER}", "", "", "7", ""],
        ]
        assert not answer.HasField("error")


@given(tables(), st.data())
def test_texts_are_the_same_by_kernels_and_by_messages(
    made: tuple[int, list[Column], list[int] | None], data: st.DataObject
) -> None:
    rows, columns, index = made
    with matrix_pool() as slot:
        table = Table(slot, rows, columns, index)
        scoring = Scoring(table.matrix)
        fail(scoring, data.draw(st.just([]) | failures_of(rows)))
        assert len(retrieved(table, scoring).component_data) == rows + 1


def test_kernels_answer_texts_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [
        Column("id", "text", STRING, 0, [b"a", "é".encode()]),
        Column("score", "block", FP32, 1, [le(0.1), b""]),
        Column("title", "block", STRING, 1, ["ß".encode(), b""]),
        Column("vector", "block", DataType.FP64_VECTOR, 0, [np.array([1, 2.5]).tobytes(), b""]),
    ]
    with matrix_pool() as slot:
        table = Table(slot, 2, columns)
        slow = retrieve(answering(table), Scoring(table.matrix), model_schema=False, reference=True)
        monkeypatch.setattr(responses, "texts", None)
        assert retrieve(answering(table), Scoring(table.matrix), model_schema=False, reference=False) == slow


def test_no_columns_give_empty_rows() -> None:
    with matrix_pool() as slot:
        table = Table(slot, 2, [])
        scoring = Scoring(table.matrix)
        scoring.fail("rank", "down", np.array([1], np.int32))
        scoring.fail("rank", "down")
        scoring.fail("mix", "late")
        answer = retrieved(table, scoring)
        assert [list(row.data) for row in answer.component_data] == [[], [], []]
        assert answer.error.message == "rank: down; mix: late"


def test_the_model_schema_is_shown_when_it_is_asked_for() -> None:
    columns = [Column("a", "text", STRING, 0, [b"1"]), Column("b", "text", STRING, 0, [b"2"])]
    with matrix_pool() as slot:
        table = Table(slot, 1, columns)
        plan = dataclasses.replace(
            answering(table),
            answer=Answer(
                OutputColumns(table.outputs().columns[:1]),
                OutputColumns(),
                OutputColumns(),
                OutputColumns(table.outputs().columns[::-1]),
            ),
        )
        shown = {
            model_schema: [
                list(row.data)
                for row in inferflow_pb2.InferflowResponseProto.FromString(
                    retrieve(plan, Scoring(table.matrix), model_schema=model_schema, reference=False)
                ).component_data
            ]
            for model_schema in (False, True)
        }
        assert shown == {False: [["a"], ["1"]], True: [["b", "a"], ["2", "1"]]}


# ---------------------------------------------------------------- sampling


@given(
    st.binary(max_size=8), st.integers(0, 100), st.dates(datetime.date(2000, 1, 1), datetime.date(2099, 1, 1))
)
def test_users_are_sampled_by_day(user: bytes, percentage: int, day: datetime.date) -> None:
    now = datetime.datetime.combine(day, datetime.time(23, 59), datetime.UTC)
    number = mmh3.hash(user + f"{day:%d%m%Y}".encode(), signed=True)
    assert sampled(user, percentage, now) == (abs(number) % 100 < percentage)


def test_about_as_many_users_as_asked_for_are_sampled() -> None:
    now = datetime.datetime(2026, 7, 1, tzinfo=datetime.UTC)
    users = [str(number).encode() for number in range(20_000)]
    for percentage in (0, 1, 30, 100):
        share = sum(sampled(user, percentage, now) for user in users) / 200
        assert abs(share - percentage) < 1.5
