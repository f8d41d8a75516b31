"""Values and their texts, against `components.numbers` and protobuf, which say what they are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.columns import text_of
from components.kernels import MALFORMED, NO_ROOM, UNUSUAL
from components.tensors import Tensor
from components.value_kernels import (
    NUMBER_ROOM,
    RAW,
    collect_cells,
    collect_texts,
    collect_values,
    write_cell_scores,
    write_rows,
    write_scores,
    write_split_texts,
    write_texts,
)
from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType
from shared.shm_matrix import IDENTITY, ODD, Bytes, Rows
from tests.components.memory import CANARY, Cells, Values, array, canaries, cells_of, values_of
from tests.components.messages import LENGTH, field
from tests.components.test_tensor_kernels import NUMERIC, all_and_hard
from tests.effort import tries

KINDS = [
    int(kind) for kind in DataType if kind
]  # all of them have a text form, and RAW is the bytes themselves
ROOM = 1000


def form(raw: bytes, kind: int) -> bytes:
    """What a value is collected as."""
    return raw if kind == RAW or not raw else text_of([raw], DataType(kind))[0]


class Places:
    """Room for `columns` columns of places, and one more on either side that must stay as it is."""

    def __init__(self, columns: int, rows: int) -> None:
        self.starts = np.full((columns + 2, rows), -9, np.int64)
        self.sizes = np.full((columns + 2, rows), -9, np.int32)

    def values(self, out: Bytes) -> list[list[bytes]]:
        """The collected values, column by column."""
        assert (self.sizes[[0, -1]] == -9).all()
        assert (self.starts[[0, -1]] == -9).all()
        return [
            [out[a : a + n].tobytes() for a, n in zip(starts, sizes, strict=True)]
            for starts, sizes in zip(self.starts[1:-1].tolist(), self.sizes[1:-1].tolist(), strict=True)
        ]


# ---------------------------------------------------------------- texts of numbers


@pytest.mark.parametrize("kind", NUMERIC, ids=lambda kind: kind.name)
def test_every_number_as_text(kind: DataType) -> None:
    raw = all_and_hard(kind)
    if kind in (DataType.FP32, DataType.FP64):
        whole = np.arange(-3000, 3000)
        near_a_million = np.concatenate(
            [999_990 + np.arange(0, 20, 0.25), 1e-4 * (1 + np.arange(-9, 9) * 1e-9)]
        )
        powers = [float(f"{digit}e{power}") for power in range(-45, 39) for digit in (1, 5, 9.999999)]
        random = np.random.default_rng(1).integers(0, 256, 50_000 * kind.size, dtype=np.uint8)
        with np.errstate(all="ignore"):
            more = np.concatenate([whole, whole / 100, whole * 1e15, near_a_million, powers]).astype(
                kind.dtype
            )
        raw = np.concatenate([raw, random, more.view(np.uint8)])
    count = len(raw) // kind.size
    places, out = Places(1, count), canaries(count * NUMBER_ROOM)
    code = collect_cells(
        raw, np.ones((count, 1), np.uint8), IDENTITY, np.arange(count, dtype=np.int32), np.zeros(1, np.int32),
        np.array([kind], np.int32), kind.size, out, 0, places.starts, places.sizes, 1,
    )  # fmt: skip
    wanted = text_of([raw[at : at + kind.size].tobytes() for at in range(0, len(raw), kind.size)], kind)
    assert code == sum(map(len, wanted))
    (found,) = places.values(out)
    assert [pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1]] == []


def test_the_longest_number_has_room() -> None:
    for value, kind in ((-2.2250738585072014e-308, DataType.FP64), (-(2**63), DataType.INT64)):
        raw = np.array([value], kind.dtype).tobytes()
        assert len(text_of([raw], kind)[0]) < NUMBER_ROOM  # and a comma


# ---------------------------------------------------------------- collecting


@given(cells_of([1, 2, 4, 8, 16]), st.integers(0, 2), st.data())
def test_cells_are_collected(block: Cells, begin: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, block.rows - 1), max_size=5))
    column = st.tuples(st.integers(0, block.states.shape[1] - 1), st.sampled_from([RAW, *KINDS]))
    columns = data.draw(st.lists(column, max_size=3))
    room = data.draw(st.sampled_from([ROOM, 0, block.width, 30]))
    places, out = Places(len(columns), len(rows)), canaries(begin + room)
    code = collect_cells(
        block.flat, block.states, block.index, np.array(rows, np.int32),
        np.array([place for place, _ in columns], np.int32), np.array([kind for _, kind in columns], np.int32),
        block.width, out, begin, places.starts, places.sizes, 1,
    )  # fmt: skip
    found = [[block.cell(row, place) for row in rows] for place, _ in columns]
    odd = any(state == ODD for line in found for state, _ in line)
    assert (out[:begin] == CANARY).all()
    if code == NO_ROOM:
        assert room < ROOM
        return
    if odd:
        assert code == UNUSUAL
        return
    wanted = [[form(raw, kind) for _, raw in line] for line, (_, kind) in zip(found, columns, strict=True)]
    assert code == begin + sum(len(text) for line in wanted for text in line)
    assert places.values(out) == wanted
    assert (out[code + NUMBER_ROOM * 16 :] == CANARY).all()


@given(values_of(st.binary(max_size=9) | st.just("é".encode())), st.integers(0, 2), st.data())
def test_values_are_collected(block: Values, begin: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, block.rows - 1), max_size=5))
    column = st.tuples(st.integers(0, block.sizes.shape[1] - 1), st.sampled_from([RAW, *KINDS]))
    columns = data.draw(st.lists(column, max_size=3))
    room = data.draw(st.sampled_from([30 * ROOM, 0, 5, 30]))
    places, out = Places(len(columns), len(rows)), canaries(begin + room)
    code = collect_values(
        block.heap, block.starts, block.sizes, block.index, np.array(rows, np.int32),
        np.array([place for place, _ in columns], np.int32), np.array([kind for _, kind in columns], np.int32),
        out, begin, places.starts, places.sizes, 1,
    )  # fmt: skip
    if code == NO_ROOM:
        assert room < ROOM
        return
    wanted = [[form(block.value(row, place), kind) for row in rows] for place, kind in columns]
    assert code == begin + sum(len(text) for line in wanted for text in line)
    assert places.values(out) == wanted


@given(
    st.lists(st.binary(max_size=9), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([RAW, *KINDS]),
    st.data(),
)
def test_texts_are_collected(texts: list[bytes], constant: bool, kind: int, data: st.DataObject) -> None:
    heap = array(b"__" + b"".join(texts))
    from_sizes = np.array([len(text) for text in texts], np.int32)
    from_starts = (np.cumsum(from_sizes) - from_sizes + 2).astype(np.int64)
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=6))
    shown = [texts[0 if constant else row] for row in rows]
    room = data.draw(st.sampled_from([30 * ROOM, 0, 5]))
    places, out = Places(1, len(rows)), canaries(room)
    code = collect_texts(
        heap, from_starts, from_sizes, 0 if constant else 1, np.array(rows, np.int32), kind,
        out, 0, places.starts, places.sizes, 1,
    )  # fmt: skip
    if code == NO_ROOM:
        assert room < ROOM
        return
    wanted = [form(text, kind) for text in shown]
    assert code == sum(map(len, wanted))
    assert places.values(out) == [wanted]


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, -1), (0, 9), (9, 1), (1 << 40, 1)])
def test_values_outside_of_their_heap_are_not_read(start: int, size: int) -> None:
    heap, rows, raw = array(b"abc"), np.zeros(1, np.int32), np.zeros(1, np.int32)
    starts, sizes, out = np.array([[start]], np.int64), np.array([[size]], np.int32), canaries(99)
    places = Places(1, 1)
    into = (out, 0, places.starts, places.sizes, 1)
    assert collect_texts(heap, starts[0], sizes[0], 1, rows, RAW, *into) == MALFORMED
    assert collect_values(heap, starts, sizes, IDENTITY, rows, raw, raw, *into) == MALFORMED
    assert write_scores(0x12, heap, starts, sizes, 0, out) == MALFORMED
    assert write_rows(heap, starts, sizes, out) == MALFORMED
    assert write_texts(heap, starts, sizes, np.ones(1, np.int32), out, np.empty(1, np.int64)) == MALFORMED
    assert (out == CANARY).all()


@pytest.mark.parametrize("kind", [-1, 31, 1000])
def test_what_is_no_type_is_refused(kind: int) -> None:
    rows, kinds, places = np.zeros(1, np.int32), np.array([kind], np.int32), Places(1, 1)
    starts, sizes = np.zeros((1, 1), np.int64), np.ones((1, 1), np.int32)
    into = (canaries(99), 0, places.starts, places.sizes, 1)
    cell, states = array(b"a"), np.ones((1, 1), np.uint8)
    assert collect_texts(cell, starts[0], sizes[0], 1, rows, kind, *into) == UNUSUAL
    assert collect_values(cell, starts, sizes, IDENTITY, rows, rows, kinds, *into) == UNUSUAL
    assert collect_cells(cell, states, IDENTITY, rows, rows, kinds, 1, *into) == UNUSUAL


@pytest.mark.parametrize("line", [-1, 3])
def test_places_that_are_not_there_are_not_written(line: int) -> None:
    rows, places = np.zeros(1, np.int32), Places(1, 1)
    starts, sizes = np.zeros((1, 1), np.int64), np.ones((1, 1), np.int32)
    into = (canaries(99), 0, places.starts, places.sizes, line)
    cell, states = array(b"a"), np.ones((1, 1), np.uint8)
    assert collect_texts(cell, starts[0], sizes[0], 1, rows, RAW, *into) == NO_ROOM
    assert collect_values(cell, starts, sizes, IDENTITY, rows, rows, rows, *into) == NO_ROOM
    assert collect_cells(cell, states, IDENTITY, rows, rows, rows, 1, *into) == NO_ROOM


# ---------------------------------------------------------------- writing

VALUES = st.binary(max_size=4) | st.sampled_from([b"v" * 127, b"v" * 130])
TEXTS = st.text(max_size=5).map(str.encode) | st.binary(max_size=4) | st.just(b"t" * 130)


def tables(values: st.SearchStrategy[bytes], least: int = 0) -> st.SearchStrategy[list[list[bytes]]]:
    """Rows of equally many values."""
    return st.integers(least, 3).flatmap(
        lambda columns: st.lists(st.lists(values, min_size=columns, max_size=columns), max_size=5)
    )


def placed(rows: Sequence[Sequence[bytes]]) -> tuple[Bytes, npt.NDArray[np.int64], Rows]:
    """The heap, starts and sizes [columns, rows] of a table."""
    columns = len(rows[0]) if rows else 0
    starts, sizes = np.zeros((columns, len(rows)), np.int64), np.zeros((columns, len(rows)), np.int32)
    heap = bytearray()
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            starts[column, row], sizes[column, row] = len(heap), len(value)
            heap += value
    return array(bytes(heap)), starts, sizes


@given(tables(VALUES), st.sampled_from([0x0A, 0x12]))
@tries(0.5)
def test_scores_are_as_protobuf_says(rows: list[list[bytes]], tag: int) -> None:
    wanted = b"".join(
        field(tag >> 3, LENGTH, predict_pb2.TargetScore(output_values=values).SerializeToString())
        for values in rows
    )
    for room in range(len(wanted) + 8):
        out = canaries(room)
        code = write_scores(tag, *placed(rows), 0, out)
        assert code == len(wanted) or code == NO_ROOM
        if code >= 0:
            assert out[:code].tobytes() == wanted
            assert (out[code:] == CANARY).all()
    assert code == len(wanted)


@given(tables(VALUES, least=1))
def test_scores_with_errors_are_as_protobuf_says(rows: list[list[bytes]]) -> None:
    rows = [[b"e" * len(error), *values] for error, *values in rows]
    wanted = b"".join(
        field(
            2, LENGTH, predict_pb2.TargetScore(error=error.decode(), output_values=values).SerializeToString()
        )
        for error, *values in rows
    )
    out = canaries(len(wanted) + 9)
    code = write_scores(0x12, *placed(rows), 1, out)
    assert out[:code].tobytes() == wanted


def cell_scores(
    block: Cells, texts: Sequence[bytes], columns: Sequence[int], out: Bytes, before: int = 3
) -> int:
    """`write_cell_scores` of a block that stands behind a few other bytes, its states first."""
    heap = np.concatenate([canaries(before), block.states.reshape(-1), block.flat])
    lines, everything = block.states.shape
    starts, sizes = places_of(texts)
    return write_cell_scores(
        0x12, array(b"".join(texts)), starts, sizes,
        heap, before + block.states.size, before, lines, everything, block.width,
        block.index, np.array(columns, np.int32), block.rows, out,
    )  # fmt: skip


def places_of(texts: Sequence[bytes]) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], Rows]:
    sizes = np.array([len(text) for text in texts], np.int32)
    return (np.cumsum(sizes) - sizes).astype(np.int64), sizes


@given(cells_of([1, 4, 8, 200]), st.booleans(), st.data())
def test_scores_of_cells_are_as_protobuf_says(block: Cells, constant: bool, data: st.DataObject) -> None:
    count = 1 if constant else block.rows
    texts = data.draw(st.lists(st.binary(max_size=3) | st.just(b"x" * 150), min_size=count, max_size=count))
    columns = data.draw(st.lists(st.integers(0, block.states.shape[1] - 1), min_size=1, max_size=3))
    cells = [[block.cell(row, column) for column in columns] for row in range(block.rows)]
    wanted = b"".join(
        field(
            2,
            LENGTH,
            predict_pb2.TargetScore(
                output_values=[texts[0 if constant else row], *(value for _, value in of_row)]
            ).SerializeToString(),
        )
        for row, of_row in enumerate(cells)
    )
    if any(state == ODD for of_row in cells for state, _ in of_row):
        assert cell_scores(block, texts, columns, canaries(len(wanted) + 999)) == UNUSUAL
        return
    for room in (len(wanted) // 2, len(wanted) + 9):
        out = canaries(room)
        code = cell_scores(block, texts, columns, out)
        if room < len(wanted):
            assert code == NO_ROOM
        else:
            assert out[:code].tobytes() == wanted
            assert (out[code:] == CANARY).all()


def test_scores_of_cells_that_are_not_there() -> None:
    """Each place is looked at: of the texts, of the block, of its lines and columns."""
    heap, out = canaries(20), canaries(99)
    right = (
        0x12, array(b"id"), np.zeros(2, np.int64), np.ones(2, np.int32),
        np.ones(20, np.uint8), 4, 0, 2, 2, 4, IDENTITY, np.array([1], np.int32), 2,
    )  # fmt: skip
    assert write_cell_scores(*right, out) == 2 * 11
    wrong: list[tuple[int, object]] = [
        (2, np.array([0, 2])),
        (2, np.array([0, -1])),
        (2, np.empty(0, np.int64)),
        (3, np.ones(1, np.int32)),
        (3, np.array([1, -1], np.int32)),
        (4, heap[:19]),
        (5, -1),
        (5, 5),
        (6, -1),
        (6, 17),
        (7, 1),
        (7, -1),
        (9, -1),
        (9, 5),
        (10, np.array([0, 2], np.int32)),
        (10, np.array([0], np.int32)),
        (11, np.array([2], np.int32)),
        (11, np.array([-1], np.int32)),
    ]
    for place, value in wrong:
        assert write_cell_scores(*right[:place], value, *right[place + 1 :], out) == MALFORMED, (place, value)


@given(tables(TEXTS))
@tries(0.5)
def test_rows_are_as_protobuf_says(rows: list[list[bytes]]) -> None:
    try:
        texts = [[text.decode() for text in row] for row in rows]
    except UnicodeDecodeError:
        assert write_rows(*placed(rows), canaries(4000)) == UNUSUAL
        return
    answer = inferflow_pb2.InferflowResponseProto()
    for row in texts:
        answer.component_data.add(data=row)
    wanted = answer.SerializeToString()
    for room in range(len(wanted) + 8):
        out = canaries(room)
        code = write_rows(*placed(rows), out)
        assert code == len(wanted) or code == NO_ROOM
        if code >= 0:
            assert out[:code].tobytes() == wanted
            assert (out[code:] == CANARY).all()
    assert code == len(wanted)


def test_only_utf8_is_text() -> None:
    """The first and last code points of each length, and every kind of bytes that is none."""
    edges = [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    good = [chr(point).encode() for point in edges]
    bad = [
        b"\x80",
        b"\xc1\xbf",
        b"\xc2",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
    ]
    bad += [b"\xf5\x80\x80\x80", b"\xe1\x80", b"\xe1\x80\x41", b"\xf1\x80\x80", b"\xf1\x80\x80\xc0", b"\xff"]
    for text in good:
        assert write_rows(*placed([[b"a" + text + b"b"]]), canaries(99)) > 0, text
    for text in bad:
        assert write_rows(*placed([[b"a" + text]]), canaries(99)) == UNUSUAL, text


@given(tables(VALUES), st.data())
@tries(0.5)
def test_elements_of_a_tensor_are_behind_their_lengths(rows: list[list[bytes]], data: st.DataObject) -> None:
    columns = len(rows[0]) if rows else 0
    blanks = data.draw(st.lists(st.integers(0, 3), min_size=columns, max_size=columns))
    filled = [[text or b"0.0" * n for text, n in zip(row, blanks, strict=True)] for row in rows]
    tensor = Tensor.of_texts((columns,), filled)
    wanted = tensor.raws((0, len(rows)))[0]
    for room in range(len(wanted) + 3):
        out, ends = canaries(room), np.full(len(rows), -9, np.int64)
        code = write_texts(*placed(rows), np.array(blanks, np.int32), out, ends)
        assert code == (len(wanted) if room >= len(wanted) else NO_ROOM)
        if code >= 0:
            assert out[:code].tobytes() == wanted
            assert (out[code:] == CANARY).all()
            for row, end in enumerate(ends.tolist()):
                assert tensor.raws((0, row + 1))[0] == wanted[:end]


@given(st.data(), st.integers(1, 3), st.sampled_from([0, 1]))
def test_texts_are_split_at_colons(data: st.DataObject, count: int, step: int) -> None:
    element = st.sampled_from([b"", b"a", b"bb", b"x" * 300])
    usual = st.just(b"") | st.lists(element, min_size=count, max_size=count).map(b":".join)
    texts = data.draw(
        st.lists(usual | usual | st.lists(element, max_size=4).map(b":".join), min_size=1, max_size=4)
    )
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=4))
    sizes = np.array([*map(len, texts)], np.int32)
    starts = np.array([1, *np.cumsum(sizes[:-1] + 1) + 1], np.int64)
    heap = array(b"_" + b"#".join(texts))
    found = [texts[row * step].split(b":") if texts[row * step] else [b""] * count for row in rows]
    parts = [b"".join(len(e or b"0.0").to_bytes(4, "little") + (e or b"0.0") for e in line) for line in found]
    places = heap, starts, sizes, step, np.array(rows, np.int32), count
    room = sum(map(len, parts)) + 7 * count
    out, ends = canaries(room), np.empty(len(rows), np.int64)
    size = write_split_texts(*places, out, ends)
    if any(len(line) != count for line in found):
        assert size == UNUSUAL
        return
    assert out[:size].tobytes() == b"".join(parts)
    assert ends.tolist() == [*itertools.accumulate(map(len, parts))]
    assert (out[size:] == CANARY).all()
    if size:
        assert write_split_texts(*places, out[: size - 1], ends) == NO_ROOM
        assert write_split_texts(*places, out, ends[:-1]) == NO_ROOM


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, -1), (3, 1), (1 << 40, 1)])
def test_texts_to_split_outside_of_their_heap(start: int, size: int) -> None:
    starts, sizes, rows = np.array([start]), np.array([size], np.int32), np.zeros(1, np.int32)
    out, ends = canaries(40), np.empty(1, np.int64)
    assert write_split_texts(array(b"abc"), starts, sizes, 1, rows, 1, out, ends) == MALFORMED
    assert write_split_texts(array(b"abc"), starts, sizes, 1, rows, 0, out, ends) == NO_ROOM
    assert (out == CANARY).all()
