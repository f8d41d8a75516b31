"""Rows of expressions and their scores by kernels, against protobuf and `numerix_wire`."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from components.kernels import NO_ROOM, UNUSUAL
from components.numerix_kernels import encode_compute_cells, encode_compute_rows, read_scores
from components.numerix_wire import decode_scores, encode_compute
from components.tensor_kernels import cell_recipe
from proto import numerix_pb2
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, VALUE
from tests.components.memory import CANARY, Cells, array, canaries, cells_of
from tests.components.messages import LENGTH, WORDS, broken, cut_anywhere, field, string_fields, written
from tests.effort import tries

FP32 = DataType.FP32
FLOAT_BITS = st.integers(0, (1 << 32) - 1)


IDS = st.binary(max_size=3) | st.just(b"i" * 200)


def encoded(texts: Sequence[bytes], values: npt.NDArray[np.float32]) -> bytes:
    """The entity_scores of a request by the reference."""
    request = numerix_pb2.NumerixRequestProto.FromString(encode_compute([], "", texts, values))
    scores = request.entity_score_data.entity_scores
    whole: bytes = numerix_pb2.EntityScoreData(entity_scores=scores).SerializeToString()
    return whole


@given(
    st.integers(0, 3).flatmap(
        lambda variables: st.lists(
            st.tuples(IDS, st.lists(FLOAT_BITS, min_size=variables, max_size=variables)),
            min_size=1,
            max_size=6,
        )
    ),
    st.booleans(),
    st.data(),
)
@tries(0.5)
def test_encode_compute_rows_is_as_protobuf_says(
    rows: list[tuple[bytes, list[int]]], constant: bool, data: st.DataObject
) -> None:
    ids = [text for text, _ in rows]
    bits = np.array([values for _, values in rows], np.uint32).reshape(len(rows), -1)
    bounds = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=4)))
    shown = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=len(rows), max_size=len(rows)))
    sizes = np.array([len(text) for text in ids], np.int32)
    starts = (np.cumsum(sizes) - sizes).astype(np.int64)
    out, ends = canaries(len(rows) * (max(sizes) + 6 * bits.shape[1] + 24)), np.full(len(bounds) - 1, -9)
    code = encode_compute_rows(
        array(b"".join(ids)), starts, sizes, 0 if constant else 1, np.array(shown, np.int32), bits.view(np.uint8),
        np.array(bounds), out, ends,
    )  # fmt: skip
    texts = [ids[0 if constant else row] for row in shown]
    at = 0
    for begin, end, until in zip(bounds, bounds[1:], ends.tolist(), strict=False):
        assert out[at:until].tobytes() == encoded(texts[begin:end], bits.view(np.float32)[begin:end])
        at = until
    assert code == at
    assert (out[code:] == CANARY).all()


def test_encode_compute_rows_needs_room() -> None:
    values, rows, bounds, ends = (
        np.ones((2, 12), np.uint8),
        np.arange(2, dtype=np.int32),
        np.array([0, 2]),
        np.empty(1, np.int64),
    )
    places = array(b"abc"), np.zeros(2, np.int64), np.full(2, 3, np.int32)
    codes = {
        encode_compute_rows(*places, 1, rows, values, bounds, canaries(room), ends)
        for room in range(2 * (3 + 18 + 24))
    }
    assert codes == {NO_ROOM, 2 * (2 + 2 + 2 + 3 + 18)}
    out = canaries(200)
    for wrong in ([0, 3], [-1, 2], [0, 1, 2]):
        code = encode_compute_rows(*places, 1, rows, values, np.array(wrong), out, ends)
        assert code == NO_ROOM
    assert encode_compute_rows(*places, 1, rows[:1], values, bounds, out, ends) == NO_ROOM
    assert (out == CANARY).all()


@given(cells_of([4]), st.lists(IDS, min_size=1, max_size=6), st.booleans(), st.data())
def test_encode_compute_cells_writes_what_is_in_the_block(
    block: Cells, ids: list[bytes], constant: bool, data: st.DataObject
) -> None:
    ids = (ids * block.rows)[: block.rows]
    rows = range(block.rows)
    bounds = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=4)))
    all_columns = block.states.shape[1]
    columns = data.draw(st.lists(st.integers(0, all_columns - 1), min_size=1, max_size=4))
    sizes = np.array([len(text) for text in ids], np.int32)
    starts = (np.cumsum(sizes) - sizes).astype(np.int64)
    heap = np.concatenate((canaries(1), block.flat, block.states.ravel()))
    out, ends = canaries(len(rows) * (max(sizes) + 6 * len(columns) + 24)), np.full(len(bounds) - 1, -9)
    code = encode_compute_cells(
        array(b"".join(ids)), starts, sizes, 0 if constant else 1,
        heap, 1, 1 + len(block.flat), all_columns, block.index,
        cell_recipe(4, FP32, FP32, columns), np.array(bounds), out, ends,
    )  # fmt: skip
    cells = [[block.cell(row, column) for column in columns] for row in rows]
    if any(state != VALUE for line in cells[bounds[0] : bounds[-1]] for state, _ in line):
        assert code == UNUSUAL
        return
    raw = b"".join(value or bytes(4) for line in cells for _, value in line)
    values = np.frombuffer(raw, np.float32).reshape(len(rows), len(columns))
    texts = [ids[0 if constant else row] for row in rows]
    at = 0
    for begin, end, until in zip(bounds, bounds[1:], ends.tolist(), strict=False):
        assert out[at:until].tobytes() == encoded(texts[begin:end], values[begin:end])
        at = until
    assert code == at
    assert (out[code:] == CANARY).all()


def test_encode_compute_cells_needs_room() -> None:
    ends, index = np.empty(1, np.int64), np.array([0, 1], np.int32)
    ids = array(b"abc"), np.zeros(2, np.int64), np.full(2, 3, np.int32)
    block = np.concatenate((canaries(24), np.full(6, VALUE, np.uint8)))
    cells = block, 0, 24, 3, index[:0], cell_recipe(4, FP32, FP32, [0, 1, 2])
    codes = {
        encode_compute_cells(*ids, 1, *cells, np.array([0, 2]), canaries(room), ends)
        for room in range(2 * (3 + 18 + 24))
    }
    assert codes == {NO_ROOM, 2 * (2 + 2 + 2 + 3 + 18)}
    out = canaries(200)
    for wrong in ([0, 3], [-1, 2], [0, 1, 2]):
        assert encode_compute_cells(*ids, 1, *cells, np.array(wrong), out, ends) == NO_ROOM
    one = *cells[:4], index[:1], cells[5]
    assert encode_compute_cells(*ids, 0, *one, np.array([0, 2]), out, ends) == NO_ROOM
    assert (out == CANARY).all()


def hold_scores(bodies: Sequence[bytes], counts: Sequence[int], spare: int) -> list[bool]:
    """Reads NumerixResponseProtos both ways; returns which of them the kernel read."""
    bounds = [spare, *(spare + total for total in itertools.accumulate(counts))]
    height = bounds[-1] + spare
    heap = canaries(5 * height)
    cells, states = heap[: 4 * height].reshape(height, 4), heap[4 * height :]
    ends = itertools.accumulate(map(len, bodies))
    codes = np.full(len(bodies), 9, np.int64)
    table = np.array([*bounds, *ends], np.int64)
    left = read_scores(b"".join(bodies), len(bodies), table, 0, 4 * height, heap, codes)
    assert left == np.count_nonzero(codes)
    for around in (slice(spare), slice(height - spare, height)):
        assert (cells[around] == CANARY).all()
        assert (states[around] == CANARY).all()
    for body, code, start, stop in zip(bodies, codes.tolist(), bounds, bounds[1:], strict=False):
        assert (states[start:stop] == (ABSENT if code else VALUE)).all()
        if not code:
            wanted = decode_scores(body, stop - start)  # a WireError here: the kernel accepted too much
            assert cells[start:stop].tobytes() == wanted.tobytes()
    return [code == 0 for code in codes.tolist()]


@st.composite
def score_bodies(draw: st.DrawFn) -> tuple[bytes, int]:
    """A NumerixResponseProto on the wire, and how many rows it has."""
    pads = st.sampled_from([0] * 20 + [1, 5])
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        # 4-byte scores and ids; now and then another length, another number of values
        values = [draw(st.binary(max_size=3)), draw(st.binary(min_size=4, max_size=4))]
        values += draw(st.lists(st.binary(max_size=4), max_size=1))
        if draw(st.integers(0, 9)) == 0:
            values = values[: draw(st.integers(0, 1))] + draw(st.lists(st.binary(max_size=5), max_size=1))
        inner = [field(1, LENGTH, value, draw(pads), draw(pads)) for value in values]
        odd = draw(st.sampled_from([[]] * 9 + [[b"\x1a\x01x"], [b"\x08\x01"]]))
        matrix = draw(st.sampled_from([2] * 12 + [1]))
        row = field(matrix, LENGTH, draw(written(inner, odd)), draw(pads), draw(pads))
        rows.append(field(2, LENGTH, row * draw(st.sampled_from([1] * 12 + [2])), draw(pads), draw(pads)))
    schema = draw(st.lists(string_fields(1, WORDS.map(str.encode)) | string_fields(1), max_size=2))
    unknown = draw(st.sampled_from([[]] * 4 + [[b"\x1a\x01x"], [b"\x0d1234"], [b"\x10\x01"]]))
    data = field(1, LENGTH, draw(written(rows, schema + unknown)), draw(pads), draw(pads))
    return draw(
        st.sampled_from([data] * 9 + [data + data, data + b"\x12\x00", b"\x12\x00" + data, b""])
    ), len(rows)


@given(score_bodies(), st.integers(0, 2), st.integers(-1, 1))
@tries(0.5)
def test_read_scores_is_as_protobuf_says(answer: tuple[bytes, int], spare: int, more: int) -> None:
    body, rows = answer
    hold_scores([body, usual_scores(2), body], [max(rows + more, 0), 2, rows], spare)


@given(score_bodies().flatmap(lambda answer: broken(answer[0])))
@example(b"\x0a")
@example(b"\x0a\x02\x12\x00")
@tries(0.5)
def test_read_scores_of_broken_bytes(body: bytes) -> None:
    hold_scores([body, usual_scores(1)], [4, 1], 0)


@given(st.binary(max_size=30).map(lambda rest: b"\x0a" + rest))
def test_read_scores_of_random_bytes(body: bytes) -> None:
    hold_scores([body], [3], 1)


def usual_scores(rows: int) -> bytes:
    """A NumerixResponseProto as the service writes it."""
    response = numerix_pb2.NumerixResponseProto()
    response.computation_score_data.schema[:] = ["catalog_id", "score"]
    for row in range(rows):
        value = struct.pack("<f", row / 3)
        response.computation_score_data.computation_scores.add().byte_data.values.extend([b"id", value])
    return response.SerializeToString()


def test_read_scores_takes_what_is_usual() -> None:
    assert hold_scores([usual_scores(50)], [50], 0) == [True]
    assert hold_scores([usual_scores(3), b"", usual_scores(2)], [3, 1, 2], 1) == [True, False, True]


def test_read_scores_cut_anywhere() -> None:
    for body in cut_anywhere(usual_scores(3)):
        assert hold_scores([body], [3], 0) == [False]


@pytest.mark.parametrize(("body", "left"), [(usual_scores(2), 0), (usual_scores(3), 1), (b"", 1)])
def test_a_single_answer_needs_no_end(body: bytes, left: int) -> None:
    heap, codes = canaries(10), np.full(1, 9, np.int64)
    assert read_scores(body, 1, np.array([0, 2]), 0, 8, heap, codes) == left
    assert (codes[0] != 0) == left
    assert (heap[8:] == (ABSENT if left else VALUE)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"ends": [2, 99]}, {"ends": [-1, 5]}, {"ends": [3, 2]}, {"ends": []}, {"bounds": [0, 1]},
        {"bounds": [-1, 0, 1]}, {"answers": 1}, {"answers": 0}, {"answers": -1},
        {"bounds": [0, 1, 3]}, {"bounds": [0, 1, 0]}, {"cells": 1}, {"cells": -8}, {"states": 9}, {"states": -1},
        {"codes": 0}, {"codes": 1},
    ],
    ids=str,
)  # fmt: skip
def test_read_scores_looks_at_its_bounds(change: dict[str, Any]) -> None:
    made = {"answers": 2, "ends": [2, 5], "bounds": [0, 1, 2], "cells": 0, "states": 8, "codes": 2} | change
    code = read_scores(
        b"12345", made["answers"], np.array([*made["bounds"], *made["ends"]], np.int64),
        made["cells"], made["states"], canaries(10)[: 10 - (made["cells"] == 1)], np.empty(made["codes"], np.int64),
    )  # fmt: skip
    assert code == NO_ROOM
