"""The kernels that read Predict requests, against protobuf.

What they take is a message to protobuf, too, and says the same; what they do not take is left to the reference.
That they take what is usual, so that nobody waits for the reference, is tested besides.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from components.kernels import MALFORMED, NO_ROOM
from components.request_kernels import (
    COLUMN_PARTS,
    NEITHER,
    PAIRS,
    SLATES,
    first_misfit,
    read_entities,
    read_request,
    read_slates,
    scan_slates,
)
from proto import inferflow_pb2, predict_pb2
from tests.components.memory import CANARY, array, canaries
from tests.components.messages import (
    LENGTH,
    PADS,
    broken,
    cut_anywhere,
    field,
    strange_fields,
    unknown_fields,
    varint,
    written,
)
from tests.effort import tries

WORDS = st.sampled_from(["", "a", "user", "1234567", "x" * 130, "título"]) | st.text(max_size=9)
TEXTS = WORDS.map(str.encode) | st.binary(max_size=4)
"""Contents of string fields: also what is no UTF-8."""

BEFORE = b"\xa5" * 3
"""What stands in the heap before a request."""


def string_fields(number: int, texts: st.SearchStrategy[bytes] = TEXTS) -> st.SearchStrategy[bytes]:
    return st.builds(lambda text, tag, length: field(number, LENGTH, text, tag, length), texts, PADS, PADS)


class Kind(NamedTuple):
    """A Predict request: its message, and what it has besides targets."""

    message: type[predict_pb2.PointWiseRequest | predict_pb2.PairWiseRequest | predict_pb2.SlateWiseRequest]
    groups: int

    @property
    def targets(self) -> int:
        """The number of the field of the targets."""
        return 7 if self.groups else 5


POINT = Kind(predict_pb2.PointWiseRequest, NEITHER)
PAIR = Kind(predict_pb2.PairWiseRequest, PAIRS)
SLATE = Kind(predict_pb2.SlateWiseRequest, SLATES)
REQUESTS = [POINT, PAIR, SLATE]


class Found(NamedTuple):
    """What kernels read of a request."""

    model: bytes
    tracking: bytes
    context: list[bytes]  # values
    targets: list[tuple[bytes, list[bytes]]]  # (id, values)
    slates: list[tuple[list[int], list[bytes]]]  # (target indices, values)
    rest: bytes


def read(body: bytes, kind: Kind) -> Found | None:
    """None when the kernels leave it to the reference."""
    heap = array(BEFORE + body)
    at, size = len(BEFORE), len(body)
    starts, sizes, rest = np.empty(0, np.int64), np.empty(0, np.int32), canaries(size)
    code, rows, values, context, *_ = read_request(heap, at, size, kind.groups, starts, sizes, rest)
    room = context + rows * (1 + values)
    if code == NO_ROOM:
        starts, sizes = np.full(room, -9, np.int64), np.full(room, -9, np.int32)
        code, *again = read_request(heap, at, size, kind.groups, starts, sizes, rest)
        assert again[:3] == [rows, values, context]
    else:
        assert code < 0 or not room
        _, *again = read_request(heap, at, size, kind.groups, starts, sizes, rest)
    if code < 0:
        return None
    kept, model, model_end, tracking, tracking_end = again[3:]
    assert (rest[kept:] == CANARY).all()
    pieces = [heap[a : a + n].tobytes() for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    ids, features = pieces[context : context + rows], pieces[context + rows :]
    targets = [(one, features[row::rows]) for row, one in enumerate(ids)]
    slates = groups_of(body, kind) if kind.groups else []
    if slates is None:
        return None
    return Found(
        body[model:model_end],
        body[tracking:tracking_end],
        pieces[:context],
        targets,
        slates,
        rest[:kept].tobytes(),
    )


def groups_of(body: bytes, kind: Kind) -> list[tuple[list[int], list[bytes]]] | None:
    """The pairs or slates of a request; None when the kernels leave it to the reference."""
    heap = array(BEFORE + body)
    at, size = len(BEFORE), len(body)
    code, count, indices, values, _ = scan_slates(heap, at, size, kind.groups)
    if code < 0:
        return None
    named, bounds = np.full(indices, -9, np.int32), np.full(count + 1, -9, np.int64)
    starts, sizes = np.full(values * count, -9, np.int64), np.full(values * count, -9, np.int32)
    code = read_slates(heap, at, size, kind.groups, named, bounds, starts, sizes)
    if code < 0:
        return None
    assert code == count
    assert bounds[-1] == indices
    pieces = [heap[a : a + n].tobytes() for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    return [
        (named[a:b].tolist(), pieces[slate::count])
        for slate, (a, b) in enumerate(itertools.pairwise(bounds.tolist()))
    ]


def padded(values: Sequence[bytes], longest: int) -> list[bytes]:
    return [*values, *[b""] * (longest - len(values))]


def most(rows: Iterable[Any]) -> int:
    return max((len(row.feature_values) for row in rows), default=0)


def hold_request(body: bytes, kind: Kind) -> bool:
    """Reads a Predict request both ways; whether the kernels took it."""
    found = read(body, kind)
    if found is None:
        return False
    wanted = kind.message.FromString(body)
    assert found.model.decode() == wanted.model_config_id
    assert found.tracking.decode() == wanted.tracking_id
    assert found.context == [feature.value for feature in wanted.context_features]
    assert found.targets == [
        (target.id.encode(), padded(target.feature_values, most(wanted.targets))) for target in wanted.targets
    ]
    if isinstance(wanted, predict_pb2.PairWiseRequest):
        assert found.slates == [
            (
                [pair.first_target_index, pair.second_target_index],
                padded(pair.feature_values, most(wanted.pairs)),
            )
            for pair in wanted.pairs
        ]
        wanted.ClearField("pairs")
    elif isinstance(wanted, predict_pb2.SlateWiseRequest):
        assert found.slates == [
            (list(slate.target_indices), padded(slate.feature_values, most(wanted.slates)))
            for slate in wanted.slates
        ]
        wanted.ClearField("slates")
    for name in ("model_config_id", "tracking_id", "tenant_id", "targets"):
        wanted.ClearField(name)  # type: ignore[arg-type]
    for feature in wanted.context_features:
        feature.ClearField("value")
    others = kind.message.FromString(found.rest)
    assert others.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
    return True


INDICES = st.integers(0, 300) | st.sampled_from([-1, 2**31 - 1, 2**32 + 5, 2**35 - 1])


@st.composite
def slate_messages(draw: st.DrawFn, kind: Kind) -> bytes:
    """A TargetPair or TargetSlate on the wire, its fields in any order."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        index = varint(draw(INDICES) & (2**64 - 1), draw(st.sampled_from([0, 0, 0, 1, 6])))
        parts.append(draw(st.sampled_from([b"\x08", b"\x10"] if kind.groups == PAIRS else [b"\x08"])) + index)
    if kind.groups != PAIRS:
        numbers = draw(st.lists(INDICES, max_size=4))
        packed = b"".join(varint(number & (2**64 - 1)) for number in numbers)
        parts.append(field(1, LENGTH, packed + draw(st.sampled_from([b""] * 9 + [b"\x80"])), draw(PADS)))
    values = draw(st.lists(st.binary(max_size=5), max_size=2))
    parts += [
        field(3 if kind.groups == PAIRS else 2, LENGTH, value, draw(PADS), draw(PADS)) for value in values
    ]
    extra = draw(st.sampled_from([[], [], [b"\x22\x00"], [b"\x0d1234"], [b"\x0a\x01\x05"], [b"\x18\x01"]]))
    return draw(written(draw(st.permutations(parts)), extra))


@st.composite
def named_messages(draw: st.DrawFn) -> bytes:
    """A ContextFeature, or a FeatureSchema, on the wire."""
    parts = draw(st.lists(string_fields(1), max_size=2))
    values = st.builds(lambda value, pad: field(2, LENGTH, value, pad, pad), st.binary(max_size=200), PADS)
    parts += draw(st.lists(values, max_size=2))
    numbers = st.integers(0, 31) | st.sampled_from([2**31 - 1, 2**35, 2**64 - 1])
    for tag in draw(st.lists(st.sampled_from([b"\x10", b"\x18", b"\x20"]), max_size=2)):
        parts.append(tag + varint(draw(numbers)))
    return draw(written(draw(st.permutations(parts)), draw(unknown_fields(1, 2, 3, 4, most=1))))


@st.composite
def request_bodies(draw: st.DrawFn, kind: Kind) -> bytes:
    """A Predict request on the wire, its fields in any order."""
    parts = []
    if kind.groups:
        slates = draw(st.lists(slate_messages(kind), max_size=3))
        parts += [field(6, LENGTH, slate, draw(PADS), draw(PADS)) for slate in slates]
    for _ in range(draw(st.integers(0, 4))):
        ids = draw(st.lists(string_fields(1, WORDS.map(str.encode)) | string_fields(1), max_size=2))
        values = [
            field(2, LENGTH, value, draw(PADS), draw(PADS))
            for value in draw(st.lists(st.binary(max_size=6), max_size=3))
        ]
        extra = draw(unknown_fields(1, 2, most=1)) + draw(strange_fields((1, 2)))
        target = draw(written(draw(st.permutations([*ids, *values])), extra))
        parts.append(field(kind.targets, LENGTH, target, draw(PADS), draw(PADS)))
    schemas = named_messages().map(lambda schema: field(4, LENGTH, schema))
    own = named_messages().map(lambda schema: field(5, LENGTH, schema)) if kind.groups else st.nothing()
    context = st.builds(lambda one, pad: field(3, LENGTH, one, pad, pad), named_messages(), PADS)
    texts = string_fields(1) | string_fields(2) | string_fields(8 if kind.groups else 6)
    parts += draw(st.lists(texts | schemas | own | context, max_size=5))
    parts += draw(unknown_fields(1, 2, 3, 4, 5, 6, 7, 8)) + draw(strange_fields([kind.targets]))
    return b"".join(draw(st.permutations(parts)))


@given(st.data(), st.sampled_from(REQUESTS))
@tries(0.6)
def test_requests_are_read_as_protobuf_says(data: st.DataObject, kind: Kind) -> None:
    hold_request(data.draw(request_bodies(kind)), kind)


@given(st.data(), st.sampled_from(REQUESTS))
@tries(0.6)
def test_broken_requests(data: st.DataObject, kind: Kind) -> None:
    hold_request(data.draw(broken(data.draw(request_bodies(kind)))), kind)


@given(
    st.binary(max_size=30)
    | st.lists(
        st.sampled_from([b"\x2a", b"\x32", b"\x3a", b"\x02", b"\x0a", b"\x12", b"\x08", b"\x01x"])
    ).map(b"".join),
    st.sampled_from(REQUESTS),
)
def test_random_bytes_as_requests(body: bytes, kind: Kind) -> None:
    hold_request(body, kind)


def usual_request(targets: int, kind: Kind) -> bytes:
    """As a client writes it."""
    request = kind.message(model_config_id="ranker", tracking_id="t")
    request.target_input_schema.add(name="price", data_type=4)  # type: ignore[arg-type]
    request.context_features.add(name="user_id", value=b"u", data_type=14)  # type: ignore[arg-type]
    for number in range(targets):
        request.targets.add(id=f"catalog_{number}", feature_values=[struct.pack("<f", number), b""])
        if isinstance(request, predict_pb2.PairWiseRequest):
            request.pairs.add(second_target_index=number, feature_values=[b"x"] * (number % 3))
        elif isinstance(request, predict_pb2.SlateWiseRequest):
            request.slates.add(target_indices=range(number), feature_values=[b"x"] * (number % 3))
    return request.SerializeToString()


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.message.__name__)
def test_usual_requests_are_read(kind: Kind) -> None:
    assert hold_request(usual_request(40, kind), kind)


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.message.__name__)
def test_requests_cut_anywhere(kind: Kind) -> None:
    for body in cut_anywhere(usual_request(3, kind)):
        hold_request(body, kind)


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.message.__name__)
def test_reading_needs_room(kind: Kind) -> None:
    body = usual_request(3, kind)
    heap = array(body)
    room = 1 + 3 * (1 + 2)
    for less in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        starts, sizes = np.empty(room - less[0], np.int64), np.empty(room - less[1], np.int32)
        read = read_request(heap, 0, len(body), kind.groups, starts, sizes, canaries(len(body) - less[2]))
        assert read[:4] == (NO_ROOM, 3, 2, 1)


@pytest.mark.parametrize(("at", "size"), [(-1, 3), (0, -1), (0, 4), (3, 1)])
def test_a_request_outside_of_its_heap_is_none(at: int, size: int) -> None:
    heap, starts, sizes = canaries(3), np.empty(9, np.int64), np.empty(9, np.int32)
    assert read_request(heap, at, size, NEITHER, starts, sizes, canaries(9))[0] == MALFORMED
    assert scan_slates(heap, at, size, PAIRS)[0] == MALFORMED
    assert read_slates(heap, at, size, PAIRS, sizes, starts, starts, sizes) == MALFORMED


@pytest.mark.parametrize("kind", [PAIR, SLATE], ids=["pairs", "slates"])
def test_read_slates_needs_room(kind: Kind) -> None:
    body = usual_request(3, kind)
    heap = array(body)
    _, count, indices, values, _ = scan_slates(heap, 0, len(body), kind.groups)
    for less in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (4, 0, 0)):
        bounds, named, room = count + 1 - less[0], indices - less[1], values * count - less[2]
        code = read_slates(
            heap, 0, len(body), kind.groups, np.empty(named, np.int32), np.empty(bounds, np.int64),
            np.empty(room, np.int64), np.empty(room, np.int32),
        )  # fmt: skip
        assert code == NO_ROOM


@given(
    st.lists(st.sampled_from([0, 1, 4, 8, -4]), max_size=4),
    st.integers(0, 2),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 2),
    st.data(),
)
def test_the_first_misfit(
    wanted: list[int], context: int, rows: int, values: int, gap: int, data: st.DataObject
) -> None:
    lengths = st.sampled_from([0, 4, 4, 4, 8, 3])
    shared = data.draw(st.lists(lengths, min_size=context, max_size=context))
    table = [data.draw(st.lists(lengths, min_size=rows, max_size=rows)) for _ in range(values)]
    columns = [*([size] for size in shared), *table]
    misfits = [
        number
        for number, (want, sizes) in enumerate(zip(wanted, columns, strict=False))
        if want and any(size and (size % -want if want < 0 else size != want) for size in sizes)
    ]
    sizes = np.array([*shared, *[7] * gap, *itertools.chain.from_iterable(table)], np.int32)
    found = first_misfit(sizes, context, rows, values, context + gap, np.array(wanted, np.int64))
    assert found == (misfits[0] if misfits else -1)


def test_lengths_that_are_not_there_do_not_fit() -> None:
    assert first_misfit(np.zeros(1, np.int32), 0, 2, 1, 0, np.ones(1, np.int64)) == 0
    assert first_misfit(np.zeros(1, np.int32), 0, 1, 1, -1, np.ones(1, np.int64)) == 0


# ---------------------------------------------------------------- RetrieveModelScore

Entities = tuple[bytes, bytes, list[tuple[bytes, list[bytes], bool]]]
"""Config, tracking id, and of each column its name, its texts, and whether it is a feature."""


def entities_of(body: bytes) -> Entities | None:
    """What the kernel reads of an InferflowRequestProto; None when it leaves it to the reference."""
    heap = array(BEFORE + body)
    room = len(body) // 2
    columns, starts, sizes = canaries(8 * COLUMN_PARTS * room), canaries(8 * room), canaries(4 * room)
    code, count, model, model_end, tracking, tracking_end = read_entities(
        heap, len(BEFORE), len(body), columns.view(np.int64), starts.view(np.int64), sizes.view(np.int32)
    )
    assert code != NO_ROOM
    if code < 0:
        return None
    found = []
    for name, name_end, first, texts, feature in (
        columns.view(np.int64)[: COLUMN_PARTS * count].reshape(-1, COLUMN_PARTS).tolist()
    ):
        places = range(first, first + texts)
        places_of = [(int(starts.view(np.int64)[p]), int(sizes.view(np.int32)[p])) for p in places]
        values = [heap[start : start + size].tobytes() for start, size in places_of]
        found.append((heap[name:name_end].tobytes(), values, bool(feature)))
    return body[model:model_end], body[tracking:tracking_end], found


def entities_by_protobuf(body: bytes) -> Entities | None:
    try:
        request = inferflow_pb2.InferflowRequestProto.FromString(body)
    except DecodeError:
        return None
    columns = []
    for entity in request.entities:
        columns.append((entity.entity.encode(), [text.encode() for text in entity.ids], False))
        columns += [
            (f.name.encode(), [v.encode() for v in f.ids_feature_value], True) for f in entity.features
        ]
    return request.model_config_id.encode(), request.tracking_id.encode(), columns


@st.composite
def entity_requests(draw: st.DrawFn, texts: st.SearchStrategy[bytes] = TEXTS) -> bytes:
    """An InferflowRequestProto with its fields in any order, and unknown ones among them."""

    def message(*fields: st.SearchStrategy[bytes]) -> bytes:
        parts = draw(st.lists(st.one_of(*fields), max_size=5))
        return draw(written(parts, draw(unknown_fields(1, 2, 3, most=1))))

    def nested(number: int, *fields: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        bodies = [message(*fields) for _ in range(draw(st.integers(0, 2)))] or [b""]
        return st.builds(lambda one, pad: field(number, LENGTH, one, 0, pad), st.sampled_from(bodies), PADS)

    name, values = string_fields(1, texts), string_fields(2, texts)
    entity = nested(1, name, values, nested(3, name, values))
    return message(entity, entity, string_fields(2, texts), string_fields(3, texts))


@given(entity_requests())
def test_entities_that_are_taken_are_a_message(body: bytes) -> None:
    found = entities_of(body)
    assert found is None or found == entities_by_protobuf(body)


@given(entity_requests(WORDS.map(str.encode)), st.data())
def test_broken_entities(body: bytes, data: st.DataObject) -> None:
    body = data.draw(broken(body))
    found = entities_of(body)
    assert found is None or found == entities_by_protobuf(body)


def usual_entities() -> bytes:
    """What a client sends."""
    request = inferflow_pb2.InferflowRequestProto(model_config_id="ranker", tracking_id="t-1")
    catalog = request.entities.add(entity="catalog_id", ids=["1", "", "título"])
    catalog.features.add(name="price", ids_feature_value=["1.5", "2", ""])
    catalog.features.add(name="none")
    request.entities.add(entity="user_id", ids=["u42"])
    return request.SerializeToString()


def test_usual_entities_are_taken() -> None:
    body = usual_entities()
    assert entities_of(body) == entities_by_protobuf(body) is not None
    for part in cut_anywhere(body):
        assert entities_of(part) in (None, entities_by_protobuf(part))


@pytest.mark.parametrize(("columns", "places"), [(3, 7), (4, 6), (0, 0)])
def test_more_entities_than_there_is_room_for(columns: int, places: int) -> None:
    body = array(usual_entities())
    room = np.empty(COLUMN_PARTS * columns, np.int64), np.empty(places, np.int64), np.empty(places, np.int32)
    assert read_entities(body, 0, len(body), *room)[0] == NO_ROOM
    room = np.empty(COLUMN_PARTS * 4, np.int64), np.empty(7, np.int64), np.empty(7, np.int32)
    assert read_entities(body, 0, len(body), *room)[:2] == (0, 4)


@pytest.mark.parametrize(("at", "size"), [(-1, 1), (0, -1), (0, 9), (8, 1)])
def test_entities_outside_of_the_heap(at: int, size: int) -> None:
    room = np.empty(9, np.int64), np.empty(9, np.int64), np.empty(9, np.int32)
    assert read_entities(array(b"12345678"), at, size, *room)[0] == MALFORMED
