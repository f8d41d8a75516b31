"""Answers of models read by the kernel, against protobuf and `triton_wire.decode_outputs`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.kernels import NO_ROOM, VALUE
from components.model_kernels import read_model_scores, read_model_texts, score_plan
from components.triton_wire import decode_outputs, split_bytes
from components.wire import WireError
from proto import triton_pb2
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, EMPTY
from tests.components.memory import CANARY, canaries
from tests.components.messages import LENGTH, PADS, broken, cut_anywhere, field, unknown_fields, written

Response = triton_pb2.ModelInferResponse

WANTED = (("a", DataType.FP32), ("bb", DataType.INT32))
TEXTS = b"_aFP32bbINT32"
OUTPUTS = [(1, 1, 2, 4, 8), (6, 2, 8, 5, 4)]  # a: two elements a row, bb: one
SCORES = [(0, 0, 4, 2), (0, 4, 4, 0), (1, 0, 4, 1)]
COLUMNS = 3
PLAN = score_plan(COLUMNS, TEXTS, OUTPUTS, SCORES)
BEFORE = 5  # bytes of the heap that belong to others


def decoded(body: bytes, asked: int) -> list[list[bytes]] | None:
    """The cells of each answered row by the reference, in the order of columns; None when there are none."""
    try:
        a, b = decode_outputs(body, WANTED)
    except WireError:
        return None
    rows = []
    for raw, width in ((a, 8), (b, 4)):
        lines = [raw[at : at + width] for at in range(0, len(raw), width)]
        if len(raw) % width or len(lines) not in (1, asked):
            return None
        rows.append(lines * asked if len(lines) == 1 else lines)
    return [[first[4:], second, first[:4]] for first, second in zip(*rows, strict=True)]


def hold(bodies: Sequence[bytes], counts: Sequence[int], lines: Sequence[int] | None = None) -> list[bool]:
    """Reads the answers both ways; returns which of them the kernel read."""
    bounds = [0, *itertools.accumulate(counts)]
    height = bounds[-1] if lines is None else max(lines) + 1
    heap = canaries(BEFORE + height * COLUMNS * 5 + BEFORE)
    states_at = BEFORE + height * COLUMNS * 4
    flat, states = heap[BEFORE:states_at], heap[states_at:-BEFORE].reshape(height, COLUMNS)
    work = np.full(len(bodies) + 2 * len(OUTPUTS), 9, np.int64)
    table = np.array([*bounds, *itertools.accumulate(map(len, bodies)), *(lines or ())], np.int64)
    left = read_model_scores(
        b"".join(bodies), len(bodies), table, PLAN, BEFORE, states_at, height, heap, work
    )
    codes = work[: len(bodies)]
    assert left == np.count_nonzero(codes)
    assert (heap[:BEFORE] == CANARY).all()
    assert (heap[-BEFORE:] == CANARY).all()
    written_lines = set()
    for number, body in enumerate(bodies):
        if codes[number]:
            continue
        rows = decoded(body, counts[number])
        assert rows is not None, "the kernel reads what the reference refuses"
        places = range(bounds[number], bounds[number + 1]) if lines is None else [lines[number]]
        for line, cells in zip(places, rows, strict=False):
            written_lines.add(line)
            for column, cell in enumerate(cells):
                at = (line * COLUMNS + column) * 4
                assert flat[at : at + 4].tobytes() == cell
    cells_of_lines = flat.reshape(height, COLUMNS * 4)
    for line in range(height):
        assert (states[line] == (VALUE if line in written_lines else ABSENT)).all()
        assert line in written_lines or (cells_of_lines[line] == CANARY).all()
    return [code == 0 for code in codes.tolist()]


def usual(rows: int, seed: int = 0) -> bytes:
    """As a model server answers."""
    values = np.arange(3 * rows, dtype="<i4") + 100 * seed
    return Response(
        model_name="ranker",
        model_version="1",
        outputs=[
            Response.InferOutputTensor(name="a", datatype="FP32", shape=[rows, 2]),
            Response.InferOutputTensor(name="bb", datatype="INT32", shape=[rows, 1]),
        ],
        raw_output_contents=[values[: 2 * rows].tobytes(), values[2 * rows :].tobytes()],
    ).SerializeToString()


def test_what_is_usual_is_read() -> None:
    assert hold([usual(5)], [5]) == [True]
    assert hold([usual(3, 1), usual(3, 2), usual(2, 3)], [3, 3, 2]) == [True] * 3
    assert hold([usual(3, 1), usual(4, 2)], [3, 4], lines=[4, 1]) == [True] * 2
    assert hold([usual(1)], [6]) == [True]  # one row for all


@pytest.mark.parametrize(("body", "left"), [(usual(2), 0), (usual(3), 1), (b"", 1)])
def test_a_single_answer_needs_no_end(body: bytes, left: int) -> None:
    heap, work = canaries(2 * COLUMNS * 5), np.full(1 + 2 * len(OUTPUTS), 9, np.int64)
    places = np.array([0, 2]), PLAN, 0, 2 * COLUMNS * 4, 2
    assert read_model_scores(body, 1, *places, heap, work) == left
    assert (work[0] != 0) == left
    assert (heap[2 * COLUMNS * 4 :] == (ABSENT if left else VALUE)).all()


def test_an_answer_that_is_none_leaves_its_lines_alone() -> None:
    assert hold([usual(2), b"", usual(2)], [2, 2, 2]) == [True, False, True]
    assert hold([usual(2), usual(3), usual(2)], [2, 2, 2]) == [True, False, True]
    assert hold([b"", usual(2)], [2, 2], lines=[1, 0]) == [False, True]


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int]:
    """An answer to so many rows in any shape, and now and then one that is no answer to them."""
    rows = draw(st.integers(1, 4))
    answered = draw(st.sampled_from([rows, rows, rows, 1, 0, 2]))
    names = draw(st.permutations(["a", "bb"]) | st.just(["a", "bb"]) | st.just(["a", "bb", "é"]))
    kinds = {"a": "FP32", "bb": "INT32"}
    parts = []
    for name in names:
        kind = draw(st.sampled_from([kinds.get(name, ""), kinds.get(name, ""), "", "FP64"]))
        fields = [field(1, LENGTH, name.encode(), draw(PADS), draw(PADS))]
        if kind:
            fields.append(field(2, LENGTH, kind.encode()))
        fields.append(
            draw(st.sampled_from([b"\x18\x05", field(3, LENGTH, b"\x05\x80\x01"), field(3, LENGTH, b"\x80")]))
        )
        inside = draw(
            written(fields, draw(unknown_fields(1, 2, 3, most=1) if draw(st.booleans()) else st.just([])))
        )
        parts.append(field(5, LENGTH, inside, draw(PADS), draw(PADS)))
        parts.append(field(6, LENGTH, bytes(range(answered * (8 if name == "a" else 4)))))
    extra = draw(unknown_fields(1, 2, 3, 4, 5, 6, most=1) if draw(st.booleans()) else st.just([]))
    texts = st.sampled_from([b"m", b"", "é".encode(), b"\xff"])
    extra += [field(n, LENGTH, draw(texts)) for n in draw(st.lists(st.integers(1, 4), max_size=2))]
    return draw(written(parts, extra)), rows


@given(st.lists(answers(), min_size=1, max_size=3), st.booleans())
def test_answers_of_any_shape(made: list[tuple[bytes, int]], slates: bool) -> None:
    bodies, counts = [body for body, _ in made], [rows for _, rows in made]
    hold(bodies, counts, list(range(len(bodies)))[::-1] if slates else None)


@given(st.data(), st.integers(1, 3))
def test_broken_answers(data: st.DataObject, rows: int) -> None:
    hold([data.draw(broken(usual(rows))), usual(rows)], [rows, rows])


@given(st.binary(max_size=40))
def test_random_bytes(body: bytes) -> None:
    hold([body], [1])


def test_answers_cut_anywhere() -> None:
    for body in cut_anywhere(usual(2)):
        assert hold([body], [2]) == [False]


GOOD = {
    "answers": 1,
    "ends": [len(usual(2))],
    "bounds": [0, 2],
    "lines": [],
    "outputs": OUTPUTS,
    "scores": SCORES,
    "height": 2,
    "before": 0,
    "states": 0,
}
BAD = [
    {"ends": [len(usual(2)) + 1]},
    {"ends": [-1]},
    {"answers": 2, "ends": [], "bounds": [0, 1, 2]},
    {"ends": [1, 2], "lines": [0]},
    {"answers": 0},
    {"answers": -1},
    {"answers": 2},
    {"bounds": [0, 3]},
    {"bounds": [-1, 1]},
    {"bounds": [2, 0]},
    {"bounds": [0]},
    {"lines": [2]},
    {"lines": [-1]},
    {"lines": [0, 1]},
    {"height": 1},
    {"outputs": [(1, 1, 2, 99, 8), (6, 2, 8, 5, 4)]},
    {"outputs": [(-1, 1, 2, 4, 8), (6, 2, 8, 5, 4)]},
    {"scores": [(0, 8, 4, 2)]},
    {"scores": [(2, 0, 4, 2)]},
    {"scores": [(-1, 0, 4, 2)]},
    {"scores": [(0, 0, 4, 3)]},
    {"scores": [(0, -4, 4, 0)]},
    {"scores": [(0, 0, 8, 0)]},
    {"scores": [(0, 0, 4, 0), (0, 0, 2, 1)]},
    {"answers": 2, "ends": [len(usual(2))] * 2, "bounds": [0, 1, 2]},  # room for one code only
    {"before": 1},
    {"before": -1},
    {"states": -1},
    {"states": 1},
]


@pytest.mark.parametrize("change", BAD, ids=map(str, BAD))
def test_arguments_that_do_not_fit_each_other(change: dict[str, Any]) -> None:
    made = GOOD | change
    height = made["height"]
    heap, states_at = canaries(height * COLUMNS * 5), height * COLUMNS * 4
    code = read_model_scores(
        usual(2), made["answers"], np.array([*made["bounds"], *made["ends"], *made["lines"]], np.int64),
        score_plan(COLUMNS, TEXTS, made["outputs"], made["scores"]),
        made["before"] * states_at, made["states"] * height * COLUMNS + states_at * (made["states"] >= 0), height,
        heap, np.empty(1 + 2 * len(OUTPUTS), np.int64),
    )  # fmt: skip
    assert code == NO_ROOM
    assert (heap == CANARY).all()


@pytest.mark.parametrize("size", range(len(PLAN) - 1))
def test_a_plan_that_is_cut(size: int) -> None:
    heap = canaries(2 * COLUMNS * 5)
    states_at, work = 2 * COLUMNS * 4, np.empty(1 + 2 * len(OUTPUTS), np.int64)
    code = read_model_scores(usual(2), 1, np.array([0, 2]), PLAN[:size], 0, states_at, 2, heap, work)
    assert code == NO_ROOM
    assert (heap == CANARY).all()


def test_too_little_room_for_what_is_found() -> None:
    heap, work = canaries(2 * COLUMNS * 5), np.empty(2 * len(OUTPUTS), np.int64)
    code = read_model_scores(usual(2), 1, np.array([0, 2]), PLAN, 0, 2 * COLUMNS * 4, 2, heap, work)
    assert code == NO_ROOM
    assert (heap == CANARY).all()


# ---------------------------------------------------------------- BYTES outputs

WANTED_TEXTS = (("a", DataType.FP32), ("bb", DataType.STRING))
NAMES = b"_aFP32bbBYTES"
TEXT_OUTPUTS = [(1, 1, 2, 4, 4), (6, 2, 8, 5, -3)]  # a: one number a row, bb: three strings
TEXT_SCORES = [(1, 0, 1, 1), (1, 1, 2, 0)]  # the first string, and the two others together
TEXT_COLUMNS = 2
TEXT_PLAN = score_plan(TEXT_COLUMNS, NAMES, TEXT_OUTPUTS, TEXT_SCORES)


def prefixed(*texts: bytes) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def with_texts(numbers: int, raw: bytes, order: Sequence[int] = (0, 1)) -> bytes:
    """An answer of so many numbers, and of these bytes for the strings."""
    tensors = [
        (Response.InferOutputTensor(name="a", datatype="FP32", shape=[numbers, 1]), bytes(4 * numbers)),
        (Response.InferOutputTensor(name="bb", datatype="BYTES", shape=[numbers, 3]), raw),
    ]
    return Response(
        outputs=[tensors[place][0] for place in order],
        raw_output_contents=[tensors[place][1] for place in order],
    ).SerializeToString()


def decoded_texts(body: bytes, asked: int) -> list[list[bytes]] | None:
    """The values of each answered row by the reference, in the order of columns; None when there are none."""
    try:
        numbers, raw = decode_outputs(body, WANTED_TEXTS)
        texts = split_bytes(raw)
    except WireError:
        return None
    rows, rest = divmod(len(texts), 3)
    if rest or rows not in (1, asked) or len(numbers) % 4 or len(numbers) // 4 not in (1, asked):
        return None
    found = [[b",".join(texts[at + 1 : at + 3]), texts[at]] for at in range(0, 3 * rows, 3)]
    return found * asked if rows == 1 else found


def hold_texts(
    bodies: Sequence[bytes], counts: Sequence[int], lines: Sequence[int] | None = None
) -> list[bool]:
    """Reads the answers both ways; returns which of them the kernel read."""
    bounds = [0, *itertools.accumulate(counts)]
    height = bounds[-1] if lines is None else max(lines) + 1
    shape = height, TEXT_COLUMNS
    starts, sizes, states = (
        np.full(shape, -9, np.int64),
        np.full(shape, -9, np.int32),
        np.full(shape, 9, np.uint8),
    )
    room = sum(map(len, bodies)) + 1
    heap = canaries(BEFORE + room + BEFORE)
    work = np.full(len(bodies) + 4, 9, np.int64)
    table = np.array([*bounds, *itertools.accumulate(map(len, bodies)), *(lines or ())], np.int64)
    left = read_model_texts(
        b"".join(bodies),
        len(bodies),
        table,
        TEXT_PLAN,
        heap,
        BEFORE,
        BEFORE + room,
        starts,
        sizes,
        states,
        work,
    )
    codes = work[: len(bodies)]
    assert left == np.count_nonzero(codes)
    assert (heap[:BEFORE] == CANARY).all()
    assert (heap[-BEFORE:] == CANARY).all()
    written_lines = set()
    for number, body in enumerate(bodies):
        if codes[number]:
            continue
        rows = decoded_texts(body, counts[number])
        assert rows is not None, "the kernel reads what the reference refuses"
        places = range(bounds[number], bounds[number + 1]) if lines is None else [lines[number]]
        for line, texts in zip(places, rows, strict=False):
            written_lines.add(line)
            for column, text in enumerate(texts):
                start, size = int(starts[line, column]), int(sizes[line, column])
                assert heap[start : start + size].tobytes() == text
                assert states[line, column] == (VALUE if text else EMPTY)
    for line in set(range(height)) - written_lines:
        assert (states[line] == 9).all()
        assert (sizes[line] == -9).all()
    return [code == 0 for code in codes.tolist()]


def test_usual_strings_are_read() -> None:
    two = with_texts(2, prefixed(b"a", b"b", b"", b"", b"", b""))
    assert hold_texts([two], [2]) == [True]
    assert (
        hold_texts([with_texts(1, prefixed(b"a", b"bb", b"ccc")), two], [4, 2]) == [True] * 2
    )  # one row for all
    assert hold_texts([two, two], [2, 2], lines=[3, 1]) == [True] * 2


@pytest.mark.parametrize(
    "raw",
    [b"", prefixed(b"a", b"b"), prefixed(b"a") * 5, prefixed(b"a") * 9, prefixed(b"a") * 6 + b"\0\0\0",
     b"\xff\xff\xff\xff" + prefixed(b"a") * 5, prefixed(b"a") * 5 + b"\2\0\0\0a"],
)  # fmt: skip
def test_strings_that_are_not_those_asked_for(raw: bytes) -> None:
    assert hold_texts([with_texts(2, raw)], [2]) == [False]


def test_strings_in_another_order_are_left_to_the_reference() -> None:
    body = with_texts(2, prefixed(b"a") * 6, order=(1, 0))
    assert decoded_texts(body, 2) is not None
    assert hold_texts([body], [2]) == [False]


@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans())
def test_strings_of_any_kind(data: st.DataObject, counts: list[int], slates: bool) -> None:
    text = st.sampled_from([b"", b"a", b",", b"x" * 300]) | st.binary(max_size=4)
    bodies = []
    for count in counts:
        answered = data.draw(st.sampled_from([count, count, 1, 2]))
        strings = 3 * data.draw(st.sampled_from([answered, answered, 1]))
        raw = prefixed(*data.draw(st.lists(text, min_size=strings, max_size=strings)))
        body = with_texts(answered, raw)
        bodies.append(data.draw(st.just(body) | broken(body)))
    hold_texts(bodies, counts, list(range(len(bodies)))[::-1] if slates else None)


@given(st.binary(max_size=40))
def test_random_bytes_for_strings(raw: bytes) -> None:
    hold_texts([with_texts(1, raw)], [1])


def test_strings_cut_anywhere() -> None:
    for body in cut_anywhere(with_texts(2, prefixed(b"a", b"b", b"c", b"d", b"e", b"f"))):
        assert hold_texts([body], [2]) == [False]


BAD_TEXTS: list[dict[str, Any]] = [
    {"table": [0, 3]},
    {"table": [-1, 1]},
    {"table": [0]},
    {"table": [0, 2, 1 << 40]},
    {"outputs": [(1, 1, 2, 4, 4), (6, 2, 8, 5, -2)]},  # fewer strings than the scores say
    {"outputs": [(1, 1, 2, 4, 4), (6, 2, 8, 5, 3)]},
    {"scores": [(0, 0, 1, 1)]},  # of an output of numbers
    {"scores": [(1, -1, 1, 1)]},
    {"scores": [(1, 0, 1, 2)]},
    {"scores": [(1, 0, 1, -1)]},
    {"columns": 3},
    {"at": -1},
    {"stop": 1 << 20},
    {"stop": 8},
    {"starts": (1, 2)},
    {"sizes": (2, 1)},
    {"work": 4},
]


@pytest.mark.parametrize("change", BAD_TEXTS, ids=map(str, BAD_TEXTS))
def test_arguments_for_strings_that_do_not_fit_each_other(change: dict[str, Any]) -> None:
    made = {"table": [0, 2], "outputs": TEXT_OUTPUTS, "scores": TEXT_SCORES, "columns": 2, "at": 0} | change
    body, heap = with_texts(2, prefixed(b"abc", b"d", b"e") * 2), canaries(100)
    plan = score_plan(made["columns"], NAMES, made["outputs"], made["scores"])
    starts = np.empty(made.get("starts", (2, 2)), np.int64)
    sizes = np.empty(made.get("sizes", (2, 2)), np.int32)
    places = heap, made["at"], made.get("stop", 100), starts, sizes, np.empty((2, 2), np.uint8)
    work = np.empty(made.get("work", 5), np.int64)
    assert read_model_texts(body, 1, np.array(made["table"], np.int64), plan, *places, work) == NO_ROOM


@pytest.mark.parametrize("size", range(len(TEXT_PLAN) - 1))
def test_a_plan_for_strings_that_is_cut(size: int) -> None:
    body, heap = with_texts(2, prefixed(b"a") * 6), canaries(100)
    places = heap, 0, 100, np.empty((2, 2), np.int64), np.empty((2, 2), np.int32), np.empty((2, 2), np.uint8)
    table = np.array([0, 2], np.int64)
    assert read_model_texts(body, 1, table, TEXT_PLAN[:size], *places, np.empty(5, np.int64)) == NO_ROOM
    assert (heap == CANARY).all()
