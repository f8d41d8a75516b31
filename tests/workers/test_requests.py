"""Request adapters: what a message says is what a request brings, however it is written on the wire.

What clients can get wrong has a table of its own, test_bad_requests.py.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from components.feature_init import Brought, Column
from dag.plan import Plan
from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType
from shared.shm_matrix import MatrixPool, TextColumn, counting
from tests.components.messages import LENGTH, field
from tests.components.running import compiled, config_of
from tests.effort import tries
from workers.requests import (
    ADAPTERS,
    CELLS_FOR_ALL,
    MAX_SHAPE,
    MAX_SHAPES,
    BadRequest,
    Inquiry,
    Reading,
)

RETRIEVE, POINT, PAIR, SLATE = range(4)
KINDS: Mapping[int, type[Message]] = {
    POINT: predict_pb2.PointWiseRequest,
    PAIR: predict_pb2.PairWiseRequest,
    SLATE: predict_pb2.SlateWiseRequest,
}

FEATURES = ["x", "price", "título", "f1", "f2", "f3", "f4", "f5"]


def model(name: str, score: str, **more: bool) -> dict[str, Any]:
    """A model that reads all features."""
    return {
        "component": name,
        "model_name": name,
        "model_end_point": "models",
        "inputs": [{"name": "in", "features": FEATURES, "shape": [len(FEATURES)], "data_type": "FP32"}],
        "outputs": [
            {"name": "out", "model_scores": [score], "model_scores_dims": [[1]], "data_type": "FP32"}
        ],
        **more,
    }


PLAN: Plan = compiled(
    config_of(
        predators=[model("rank", "s"), model("bundle", "b", slate_component=True)],
        response=["catalog_id", "s"],
    )
)

Shown = tuple[str, DataType, int, list[bytes]]


def column_of(column: Column, rows: int) -> Shown:
    """(name, type, dim, values) of a column, wherever its values stand."""
    values = column.values
    if isinstance(values, TextColumn):
        values = values.texts(counting(0, 1 if len(values.starts) == 1 else rows))
    return column.name, column.data_type, column.vector_dim, list(values)


def shown(brought: Brought) -> dict[str, Any]:
    """All that a request brings and the plan reads, in plain values."""
    own = brought.slates
    out: dict[str, Any] = {
        "rows": brought.rows,
        "columns": [column_of(c, brought.rows) for c in brought.columns if c.name in PLAN.layout.external],
    }
    if own is not None:
        out["targets"] = [own.rows[a:b].tolist() for a, b in pairwise(own.bounds.tolist())]
        out["slates"] = [
            column_of(c, len(own.bounds) - 1) for c in own.columns if c.name in PLAN.slate_layout.external
        ]
    return out


POOL = MatrixPool(64 << 20, 32 << 20)


def read(
    method: int, body: bytes, reading: Reading, metadata: Mapping[bytes, bytes] | None = None
) -> dict[str, Any]:
    """What a request brings."""
    return shown(asked(method, body, reading, metadata)[1])


def asked(
    method: int,
    body: bytes,
    reading: Reading,
    metadata: Mapping[bytes, bytes] | None = None,
    plan: Plan = PLAN,
) -> tuple[Inquiry, Brought]:
    slot = POOL.acquire()
    try:
        inquiry = ADAPTERS[method](body, metadata or {}, reading, slot)
        return inquiry, inquiry.bring(plan)
    finally:
        POOL.release(slot)  # what it holds stays until the next request


# ---------------------------------------------------------------- Predict

NAMES = st.sampled_from([*FEATURES, "nobody reads it"])
TYPES = st.sampled_from(
    [
        DataType.FP32,
        DataType.INT8,
        DataType.BOOL,
        DataType.STRING,
        DataType.FP32_VECTOR,
        DataType.STRING_VECTOR,
    ]
)
IDS = st.sampled_from(["", "1", "catalog-7", "é", "x" * 200]) | st.text(max_size=4)


def values_of(kind: DataType, dim: int) -> st.SearchStrategy[bytes]:
    """Values of this type: right ones, and none."""
    if not kind.size:
        return st.binary(max_size=6)
    if not kind.is_vector:
        return st.sampled_from([b"", bytes(range(kind.size))])
    lengths = [kind.size * dim] if dim else [0, kind.size, 3 * kind.size]
    return st.sampled_from([b"", *(bytes(range(length)) for length in lengths)])


@st.composite
def requests(draw: st.DrawFn, method: int) -> Any:
    """A good request of this method."""
    request: Any = KINDS[method](model_config_id=draw(st.sampled_from(["cfg", "ünï"])), tracking_id=draw(IDS))
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    split = draw(st.integers(0, len(names)))

    def feature(name: str) -> tuple[str, DataType, int]:
        kind = draw(TYPES)
        return name, kind, draw(st.sampled_from([0, 2])) if kind.is_vector else 0

    for name, kind, dim in map(feature, names[:split]):
        value = draw(values_of(kind, dim))
        request.context_features.add(name=name, data_type=int(kind), vector_dim=dim, value=value)
    schema = [feature(name) for name in names[split:]]
    for name, kind, dim in schema:
        request.target_input_schema.add(name=name, data_type=int(kind), vector_dim=dim)
    targets = draw(st.integers(1, 5))
    for _ in range(targets):
        row = [draw(values_of(kind, dim)) for _, kind, dim in schema]
        request.targets.add(
            id=draw(IDS), feature_values=row[: draw(st.integers(0, len(row)) | st.just(len(row)))]
        )
    if method == POINT:
        request.tenant_id = draw(IDS)
        return request
    own = [feature(name) for name in draw(st.lists(NAMES, unique=True, max_size=3))]
    own_schema = request.pair_input_schema if method == PAIR else request.slate_input_schema
    for name, kind, dim in own:
        own_schema.add(name=name, data_type=int(kind), vector_dim=dim)
    index = st.integers(0, targets - 1)
    for _ in range(draw(st.integers(1, 4))):
        row = [draw(values_of(kind, dim)) for _, kind, dim in own][: draw(st.integers(0, len(own)))]
        if method == PAIR:
            request.pairs.add(
                first_target_index=draw(index), second_target_index=draw(index), feature_values=row
            )
        else:
            request.slates.add(target_indices=draw(st.lists(index, max_size=4)), feature_values=row)
    return request


def padded(rows: Sequence[Any], at: int) -> list[bytes]:
    return [row.feature_values[at] if at < len(row.feature_values) else b"" for row in rows]


def rows_columns(schema: Iterable[Any], rows: Sequence[Any]) -> list[Shown]:
    """The columns of targets, pairs or slates: those that at least one row reaches to."""
    longest = max(len(row.feature_values) for row in rows)
    return [
        (part.name, DataType(part.data_type), part.vector_dim, padded(rows, at))
        for at, part in enumerate(schema)
        if at < longest
    ]


def expected(method: int, request: Any) -> dict[str, Any]:
    """What a request brings, straight from the message."""
    context = [(c.name, DataType(c.data_type), c.vector_dim, [c.value]) for c in request.context_features]
    target_names, slate_names = PLAN.layout.external, PLAN.slate_layout.external
    out: dict[str, Any] = {
        "rows": len(request.targets),
        "columns": [
            ("catalog_id", DataType.STRING, 0, [target.id.encode() for target in request.targets]),
            *(column for column in context if column[0] in target_names),
            *(
                column
                for column in rows_columns(request.target_input_schema, request.targets)
                if column[0] in target_names
            ),
        ],
    }
    if method == PAIR:
        out["targets"] = [[pair.first_target_index, pair.second_target_index] for pair in request.pairs]
        own = rows_columns(request.pair_input_schema, request.pairs)
    elif method == SLATE:
        out["targets"] = [list(slate.target_indices) for slate in request.slates]
        own = rows_columns(request.slate_input_schema, request.slates)
    else:
        return out
    schema = request.pair_input_schema if method == PAIR else request.slate_input_schema
    names = {part.name for part in schema}
    brought = [*own, *(column for column in context if column[0] not in names)]
    out["slates"] = [column for column in brought if column[0] in slate_names]
    return out


@st.composite
def on_the_wire(draw: st.DrawFn, request: Any) -> bytes:
    """The request with its top-level fields in any order, but for repeated ones among themselves."""
    parts: list[list[bytes]] = []
    for descriptor, value in request.ListFields():
        repeated = not isinstance(value, str)
        items = value if repeated else [value]
        parts.append(
            [
                field(
                    descriptor.number,
                    LENGTH,
                    item.encode() if isinstance(item, str) else item.SerializeToString(),
                )
                for item in items
            ]
        )
    out = []
    while parts:
        at = draw(st.integers(0, len(parts) - 1))
        out.append(parts[at].pop(0))
        if not parts[at]:
            del parts[at]
    if draw(st.booleans()):
        out.insert(draw(st.integers(0, len(out))), field(99, LENGTH, b"unknown"))
    return b"".join(out)


@pytest.mark.parametrize("method", KINDS)
@given(data=st.data())
@tries(0.6)
def test_a_request_brings_what_its_message_says(method: int, data: st.DataObject) -> None:
    request = data.draw(requests(method))
    wanted = expected(method, request)
    body = data.draw(on_the_wire(request))
    for reference in (False, True):
        inquiry, brought = asked(method, body, Reading(reference_codecs=reference))
        assert inquiry.model_config_id == request.model_config_id
        assert inquiry.tracking_id == request.tracking_id
        assert shown(brought) == wanted


@pytest.mark.parametrize("method", KINDS)
@given(data=st.data())
@tries(0.3)
def test_with_text_features_everything_is_text(method: int, data: st.DataObject) -> None:
    request = data.draw(requests(method))
    texts = copy.deepcopy(request)
    for part in (*texts.context_features, *texts.target_input_schema):
        part.data_type = int(DataType.STRING)
    for schema in ("pair_input_schema", "slate_input_schema"):
        for part in getattr(texts, schema, ()):
            part.data_type = int(DataType.STRING)
    for reference in (False, True):
        brought = read(
            method, request.SerializeToString(), Reading(text_features=True, reference_codecs=reference)
        )
        assert brought == expected(method, texts)


def test_with_text_features_types_and_lengths_do_not_matter() -> None:
    request = predict_pb2.PointWiseRequest(model_config_id="cfg")
    request.target_input_schema.add(name="x", data_type=0)
    request.target_input_schema.add(name="price", data_type=4)
    request.targets.add(id="1", feature_values=[b"2.5", b"abc"])
    for reference in (False, True):
        reading = Reading(text_features=True, reference_codecs=reference)
        columns = read(POINT, request.SerializeToString(), reading)["columns"]
        assert [(name, kind, values) for name, kind, _, values in columns] == [
            ("catalog_id", DataType.STRING, [b"1"]),
            ("x", DataType.STRING, [b"2.5"]),
            ("price", DataType.STRING, [b"abc"]),
        ]


# ---------------------------------------------------------------- what requests have in common is kept


def shaped(context: Sequence[str], *, kind: int = 14, number: int = 0) -> bytes:
    request = predict_pb2.PointWiseRequest(model_config_id="cfg", tracking_id=f"t{number}")
    for name in context:
        request.context_features.add(name=name, value=b"v%d" % number, data_type=kind)  # type: ignore[arg-type]
    request.targets.add(id=f"id-{number}")
    return request.SerializeToString()


def test_a_shape_is_worked_out_once_for_a_plan() -> None:
    plan = dataclasses.replace(PLAN)
    for number in range(3):
        _, brought = asked(POINT, shaped(["x"], number=number), Reading(), plan=plan)
        shown = {name: values for name, _, _, values in (column_of(c, 1) for c in brought.columns)}
        assert shown == {"catalog_id": [b"id-%d" % number], "x": [b"v%d" % number]}
    assert len(plan.shapes) == 1
    asked(POINT, shaped(["price"]), Reading(), plan=plan)
    asked(POINT, shaped(["x"]), Reading(text_features=True), plan=plan)
    asked(POINT, shaped(["x"]), Reading(reference_codecs=True), plan=plan)
    assert len(plan.shapes) == 3
    assert PLAN.shapes is not plan.shapes


def test_shapes_are_bounded() -> None:
    plan = dataclasses.replace(PLAN)
    for number in range(3 * MAX_SHAPES):
        asked(POINT, shaped([f"context_{number}"]), Reading(), plan=plan)
        assert 1 <= len(plan.shapes) <= MAX_SHAPES
    plan.shapes.clear()
    asked(
        POINT,
        shaped([f"{number}_{'x' * 1000}" for number in range(MAX_SHAPE // 1000 + 1)]),
        Reading(),
        plan=plan,
    )
    assert not plan.shapes


@pytest.mark.parametrize(("context", "kind"), [(["x", "x"], 14), (["x"], 0), (["x"], 31), ([""], 14)])
def test_a_wrong_shape_is_not_kept(context: list[str], kind: int) -> None:
    plan = dataclasses.replace(PLAN)
    for _ in range(2):
        with pytest.raises(BadRequest, match=r"context_features\[\d]"):
            asked(POINT, shaped(context, kind=kind), Reading(), plan=plan)
    assert not plan.shapes


# ---------------------------------------------------------------- errors name the place, either way


def wrong(target_values: Sequence[Sequence[bytes]], *types: DataType) -> bytes:
    request = predict_pb2.PointWiseRequest(model_config_id="cfg")
    for number, kind in enumerate(types):
        request.target_input_schema.add(name=f"f{number}", data_type=int(kind))
    for row in target_values:
        request.targets.add(id="1", feature_values=row)
    return request.SerializeToString()


@given(
    st.lists(st.lists(st.sampled_from([b"", b"x", b"1234", b"12345678"]), max_size=4), min_size=1, max_size=5)
)
def test_both_ways_find_the_same_mistake(rows: list[list[bytes]]) -> None:
    body = wrong(rows, DataType.STRING, DataType.FP32, DataType.FP32_VECTOR)
    outcomes = []
    for reference in (False, True):
        try:
            outcomes.append(str(read(POINT, body, Reading(reference_codecs=reference))))
        except BadRequest as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    too_long = [number for number, row in enumerate(rows) if len(row) > 3]
    if too_long:
        assert (
            f"targets[{too_long[0]}].feature_values has 4 values, target_input_schema names 3" in outcomes[0]
        )


@pytest.mark.parametrize("reference", [False, True])
def test_a_table_out_of_all_proportion_is_refused(reference: bool) -> None:
    """One long target among many empty ones: a small body that would be padded to terabytes."""
    rows = values = 3000
    body = wrong([[b""] * values] + [[]] * (rows - 1), *[DataType.STRING] * values)
    assert rows * values > CELLS_FOR_ALL
    with pytest.raises(
        BadRequest, match=r"targets has 3000 entries with up to 3000 .* 9000000 cells: the limit is 4194304"
    ):
        read(POINT, body, Reading(reference_codecs=reference))


def test_a_table_of_slates_is_bounded_too() -> None:
    request = predict_pb2.SlateWiseRequest(model_config_id="cfg", targets=[predict_pb2.Target(id="1")])
    for number in range(3000):
        request.slate_input_schema.add(name=f"f{number}", data_type=14)
        request.slates.add()
    request.slates[7].feature_values.extend([b""] * 3000)
    with pytest.raises(BadRequest, match="slates has 3000 entries with up to 3000 feature_values"):
        read(SLATE, request.SerializeToString(), Reading())


def test_a_large_table_without_gaps_is_taken() -> None:
    body = wrong([[b"v"] * 50] * 2000, *[DataType.STRING] * 50)
    for reference in (False, True):
        columns = read(POINT, body, Reading(reference_codecs=reference))["columns"]
        assert [len(values) for *_, values in columns] == [2000] * 6
        assert {value for *_, values in columns[1:] for value in values} == {b"v"}


# ---------------------------------------------------------------- RetrieveModelScore


@st.composite
def retrieves(draw: st.DrawFn) -> Any:
    rows = draw(st.integers(1, 4))
    request = inferflow_pb2.InferflowRequestProto(model_config_id="cfg", tracking_id=draw(IDS))
    names = draw(st.lists(NAMES | st.just("user_id"), unique=True, min_size=1, max_size=6))
    entities = names[: draw(st.integers(1, len(names)))]

    def texts(first: bool) -> list[str]:
        count = rows if first else draw(st.sampled_from([1, rows]))
        return draw(st.lists(IDS, min_size=count, max_size=count))

    for number, name in enumerate(entities):
        entity = request.entities.add(entity=name, ids=texts(number == 0))
        for feature in names[len(entities) :] if number == len(entities) - 1 else ():
            values = texts(False) if draw(st.integers(0, 4)) else []
            entity.features.add(name=feature, ids_feature_value=values)
    return request


@given(
    retrieves(),
    st.dictionaries(st.sampled_from([b"user-id", b"app-version-code", b"other"]), st.binary(max_size=3)),
)
def test_entities_features_and_metadata(request: Any, metadata: dict[bytes, bytes]) -> None:
    body = request.SerializeToString()
    inquiry, brought = asked(RETRIEVE, body, Reading(), metadata)
    _, reference = asked(RETRIEVE, body, Reading(reference_codecs=True), metadata)
    assert (inquiry.model_config_id, inquiry.tracking_id) == (request.model_config_id, request.tracking_id)
    assert all(isinstance(column.values, TextColumn) for column in brought.columns[: len(request.entities)])
    assert shown(brought) == shown(reference)
    wanted = []
    for entity in request.entities:
        wanted.append((entity.entity, [text.encode() for text in entity.ids]))
        wanted += [
            (feature.name, [text.encode() for text in feature.ids_feature_value])
            for feature in entity.features
            if feature.ids_feature_value
        ]
    present = {name for name, _ in wanted}
    for key, name in ((b"user-id", "user_id"), (b"app-version-code", "app_version_code")):
        if key in metadata and name not in present:
            wanted.append((name, [metadata[key]]))
    assert brought.rows == len(request.entities[0].ids)
    assert [column_of(column, brought.rows)[::3] for column in brought.columns] == wanted
    assert {column.data_type for column in brought.columns} == {DataType.STRING}
    assert brought.slates is None
