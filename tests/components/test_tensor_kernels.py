"""Gathered and converted cells, against `components.numbers`, which says what each conversion gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import numbers
from components.kernels import NO_ROOM, UNUSUAL
from components.tensor_kernels import (
    CARRIERS,
    cell_recipe,
    common_size,
    gather_cells,
    gather_numbers,
    gather_values,
)
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, IDENTITY, ODD, Bytes
from tests.components.memory import CANARY, Cells, Values, array, canaries, cells_of, values_of

NUMERIC = [kind for kind in DataType if kind.size and not kind.is_vector]
KINDS = st.sampled_from(NUMERIC)
SCRATCH = np.empty(CARRIERS * 64, np.int64)


def converted(raw: bytes, source: DataType, target: DataType) -> bytes:
    return numbers.convert(np.frombuffer(raw, source.dtype), source, target).tobytes()


def lines_of(rows: int, width: int) -> Bytes:
    return canaries(rows * width).reshape(rows, width)


def all_and_hard(kind: DataType) -> Bytes:
    """The bytes of all numbers of a small type; of a large one many random ones, and those at its limits."""
    if kind.size <= 2:
        return np.arange(1 << 8 * kind.size, dtype=f"<u{kind.size}").view(np.uint8)
    random = np.random.default_rng(0)
    anything = random.integers(0, 256, 4000 * kind.size, dtype=np.uint8)
    if kind.dtype.kind != "f":
        return anything
    powers = 2.0 ** np.arange(-160, 130)
    limits = [
        0,
        0.5,
        127.5,
        255.5,
        448,
        464,
        464.1,
        480,
        57344,
        61439.9,
        61440,
        65000,
        65504,
        65520,
        np.nan,
        np.inf,
    ]
    values = np.concatenate([limits, powers, powers * 1.5, powers * 1.0625, powers * (1.0625 + 2**-20)])
    with np.errstate(all="ignore"):
        hard = np.concatenate([values, -values]).astype(kind.dtype)
    return np.concatenate([anything, hard.view(np.uint8)])


@pytest.mark.parametrize("source", NUMERIC, ids=lambda kind: kind.name)
def test_every_number_into_every_type(source: DataType) -> None:
    raw = all_and_hard(source)
    count = len(raw) // source.size
    for target in NUMERIC:
        out = canaries(count * target.size).reshape(count, target.size)
        heap, rows = np.concatenate((raw, np.ones(count, np.uint8))), np.arange(count, dtype=np.int32)
        recipe = cell_recipe(source.size, source, target, [0])
        code = gather_cells(heap, 0, len(raw), 1, IDENTITY, rows, recipe, out, 0, SCRATCH)
        assert code == 0
        wanted = np.frombuffer(converted(raw.tobytes(), source, target), np.uint8).reshape(count, -1)
        wrong = np.flatnonzero((out != wanted).any(axis=1))
        assert not len(wrong), (target.name, raw.view(source.dtype)[wrong[:3]], out[wrong[:3]])


@given(cells_of([1, 2, 4, 8, 16]), KINDS, KINDS, st.sampled_from([0, 1, 2, 4, 8]), st.data())
def test_cells_stand_side_by_side(
    block: Cells, source: DataType, target: DataType, before: int, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, block.rows - 1), max_size=5))
    all_columns = block.states.shape[1]
    columns = data.draw(st.lists(st.integers(0, all_columns - 1), min_size=1, max_size=4))
    behind = data.draw(st.sampled_from([2, 8]))
    gap = data.draw(st.sampled_from([0, 1, 4, 8]))  # cells need not lie where words of their width do
    fits = block.width % source.size == 0
    wide = block.width // source.size * target.size
    out = lines_of(len(rows), before + len(columns) * wide + behind)
    heap = np.concatenate((canaries(gap), block.flat, block.states.ravel()))
    recipe = cell_recipe(block.width, source, target, columns)
    code = gather_cells(
        heap,
        gap,
        gap + len(block.flat),
        all_columns,
        block.index,
        np.array(rows, np.int32),
        recipe,
        out,
        before,
        SCRATCH,
    )
    found = [block.cell(row, column) for row in rows for column in columns]
    if not fits or any(state == ODD for state, _ in found):
        assert code == UNUSUAL
        return
    assert code == sum(state == ABSENT for state, _ in found)
    edge = bytes([CANARY])
    for row, line in zip(rows, out, strict=True):
        values = [block.cell(row, column)[1] for column in columns]
        wanted = b"".join(converted(value, source, target) if value else bytes(wide) for value in values)
        assert line.tobytes() == before * edge + wanted + behind * edge


@given(
    values_of(st.sampled_from([b"", b"12345678", b"ABCDEFGH", b"\xff" * 8]) | st.binary(max_size=9)),
    KINDS, KINDS, st.integers(0, 2), st.data(),
)  # fmt: skip
def test_values_stand_side_by_side(
    block: Values, source: DataType, target: DataType, before: int, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, block.rows - 1), max_size=5))
    column = data.draw(st.integers(0, block.sizes.shape[1] - 1))
    count = data.draw(st.just(8 // source.size) | st.integers(0, 3))
    wide = count * target.size
    out = lines_of(len(rows), before + wide + 1)
    code = gather_values(
        block.heap, block.starts, block.sizes, block.index, np.array(rows, np.int32), column, count,
        int(source), int(target), out, before, SCRATCH,
    )  # fmt: skip
    found = [block.value(row, column) for row in rows]
    if any(value and len(value) != count * source.size for value in found):
        assert code == UNUSUAL
        return
    assert code == found.count(b"")
    edge = bytes([CANARY])
    for value, line in zip(found, out, strict=True):
        wanted = converted(value, source, target) if value else bytes(wide)
        assert line.tobytes() == before * edge + wanted + edge


@pytest.mark.parametrize("kind", [-1, 0, int(DataType.STRING), int(DataType.FP32_VECTOR), 99])
def test_what_is_no_type_of_numbers_is_refused(kind: int) -> None:
    rows, out = np.zeros(1, np.int32), canaries(4).reshape(1, 4)
    flat, fp32 = array(b"1234\1"), int(DataType.FP32)
    for recipe in (cell_recipe(4, kind, fp32, [0]), cell_recipe(4, fp32, kind, [0])):
        assert gather_cells(flat, 0, 4, 1, IDENTITY, rows, recipe, out, 0, SCRATCH) == UNUSUAL
    starts, sizes = np.zeros((1, 1), np.int64), np.full((1, 1), 4, np.int32)
    assert gather_values(flat, starts, sizes, IDENTITY, rows, 0, 1, kind, fp32, out, 0, SCRATCH) == UNUSUAL
    assert (out == CANARY).all()


@given(values_of(st.sampled_from([b"", b"", b"12", b"34", b"567"])), st.data())
def test_the_size_that_all_values_have(block: Values, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, block.rows - 1), max_size=5))
    column = data.draw(st.integers(0, block.sizes.shape[1] - 1))
    found = {len(block.value(row, column)) for row in rows} - {0}
    code = common_size(block.sizes, block.index, np.array(rows, np.int32), column)
    assert code == (UNUSUAL if len(found) > 1 else max(found, default=0))


@pytest.mark.parametrize("start", [-1, 5, 1 << 40])
def test_values_outside_of_their_heap_are_not_read(start: int) -> None:
    starts, sizes = np.array([[start]], np.int64), np.array([[4]], np.int32)
    rows, out, kind = np.zeros(1, np.int32), canaries(4).reshape(1, 4), int(DataType.INT8)
    code = gather_values(array(b"12345678"), starts, sizes, IDENTITY, rows, 0, 4, kind, kind, out, 0, SCRATCH)
    assert code == UNUSUAL
    assert (out == CANARY).all()


def test_too_few_carriers_are_an_error() -> None:
    fp32, fp64, rows = DataType.FP32, DataType.FP64, np.zeros(1, np.int32)
    out, few = canaries(16).reshape(1, 16), SCRATCH[: CARRIERS * 2 - 1]
    heap = array(b"12345678\1\1")
    code = gather_cells(heap, 0, 8, 2, IDENTITY, rows, cell_recipe(4, fp32, fp64, [0, 1]), out, 0, few)
    assert code == NO_ROOM
    starts, sizes = np.zeros((1, 1), np.int64), np.full((1, 1), 8, np.int32)
    code = gather_values(heap, starts, sizes, IDENTITY, rows, 0, 2, int(fp32), int(fp64), out, 0, few)
    assert code == NO_ROOM
    assert (out == CANARY).all()


def number_texts() -> st.SearchStrategy[bytes]:
    """Numbers as people and programs write them, and what is nearly one."""
    digits = st.text("0123456789", max_size=20)
    sign = st.sampled_from(["", "-", "+"])
    exponent = st.just("") | st.builds(
        "{}{}{}".format, st.sampled_from("eE"), sign, digits.map(lambda d: d[:3])
    )
    written = st.builds("{}{}{}{}{}".format, sign, digits, st.sampled_from(["", "."]), digits, exponent)
    known = st.sampled_from(
        ["", "true", "TRUE", "false", "1_0", "0x1p3", "inf", "nan", "-0.0", "1.", ".", "1e"]
    )
    singles = st.floats(width=32, allow_nan=False, allow_infinity=False)
    limits = st.sampled_from(
        [2**bits + more for bits in (7, 8, 15, 16, 31, 32, 63, 64) for more in (-1, 0, 1)]
    )
    whole = st.builds("{}{}".format, st.sampled_from(["", "-"]), limits | st.integers(-(2**65), 2**65))
    # Halfway between two float32, and next to it.
    halves = singles.map(lambda n: repr(float(n) * (1 + 2.0**-24)))
    floats = st.floats().map(repr)
    return (written | known | singles.map(repr) | halves | floats | whole).map(str.encode)


READ_AS = [kind for kind in NUMERIC if kind >= DataType.FP32]


@given(st.lists(number_texts(), min_size=1, max_size=6), st.sampled_from(READ_AS), KINDS, st.data())
def test_texts_are_read_as_numbers(
    texts: list[bytes], read_as: DataType, target: DataType, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=5))
    step = data.draw(st.sampled_from([0, 1]))
    heap = array(b"#".join(texts))
    sizes = np.array([*map(len, texts)], np.int32)
    starts = np.array([0, *np.cumsum(sizes[:-1] + 1)], np.int64)
    out, left = lines_of(len(rows), 3 + target.size + 2), np.full(len(rows), -1, np.int32)
    count = gather_numbers(
        heap,
        starts,
        sizes,
        step,
        0,
        np.array(rows, np.int32),
        1,
        int(read_as),
        int(target),
        out,
        3,
        SCRATCH,
        left,
    )
    assert 0 <= count <= len(rows)
    undecided = left[:count].tolist()
    edge = bytes([CANARY])
    for position, (row, line) in enumerate(zip(rows, out, strict=True)):
        number = numbers.parse([texts[row * step]], read_as)
        wanted = edge * target.size
        if position not in undecided:
            wanted = numbers.convert(number, read_as, target).tobytes()
        assert line.tobytes() == 3 * edge + wanted + 2 * edge


def number_vectors(count: int) -> st.SearchStrategy[bytes]:
    """Texts of mostly so many numbers with colons between them."""
    element = st.sampled_from([b"1", b"-2.5", b"0.25", b"7"]) | number_texts()
    usual = st.lists(element, min_size=count, max_size=count)
    return (usual | usual | st.lists(element, max_size=count + 2)).map(b":".join)


@given(st.data(), st.integers(1, 4), st.sampled_from(READ_AS), st.integers(1, 3))
def test_texts_are_read_as_vectors(data: st.DataObject, count: int, kind: DataType, columns: int) -> None:
    """Texts of a block: lines × columns of them, of which one column is read; line −1 has none."""
    lines = data.draw(st.integers(1, 4))
    vectors = number_vectors(count)
    texts = data.draw(st.lists(vectors, min_size=lines * columns, max_size=lines * columns))
    column = data.draw(st.integers(0, columns - 1))
    rows = data.draw(st.lists(st.integers(-1, lines - 1), max_size=5))
    sizes = np.array([*map(len, texts)], np.int32)
    starts = np.array([0, *np.cumsum(sizes[:-1] + 1)], np.int64)
    width = count * kind.size
    out, left = lines_of(len(rows), 3 + width + 2), np.full(len(rows), -1, np.int32)
    places = starts, sizes, columns, column, np.array(rows, np.int32)
    kinds = int(kind), int(kind)
    missed = gather_numbers(array(b"#".join(texts)), *places, count, *kinds, out, 3, SCRATCH, left)
    if count > 1 and kind is DataType.BOOL:
        assert missed == UNUSUAL
        return
    undecided = left[:missed].tolist()
    for position, (row, line) in enumerate(zip(rows, out, strict=True)):
        assert (line[:3] == CANARY).all()
        assert (line[-2:] == CANARY).all()
        if position in undecided:
            continue
        text = texts[row * columns + column] if row >= 0 else b""
        wanted = bytes(width)
        if text and count == 1:
            wanted = numbers.parse([text], kind).tobytes()
        elif text:
            vector = numbers.parse_vector(text, kind)
            assert vector is not None
            wanted = vector.tobytes()
        assert line[3:-2].tobytes() == wanted


@pytest.mark.parametrize(
    ("text", "missed"),
    [(b"1:2.5:-3", 0), (b"1:2", 1), (b"1:2:3:4", 1), (b"1:2:", 1), (b"::", 1), (b"1:x:2", 1)],
)
def test_vectors_of_three(text: bytes, missed: int) -> None:
    rows, out, left = np.zeros(1, np.int32), lines_of(1, 12), np.zeros(1, np.int32)
    starts, sizes, fp32 = np.zeros(1, np.int64), np.array([len(text)], np.int32), int(DataType.FP32)
    places = array(text), starts, sizes, 1, 0, rows
    assert gather_numbers(*places, 3, fp32, fp32, out, 0, SCRATCH, left) == missed
    assert missed or out.view(np.float32).tolist() == [[1, 2.5, -3]]


@pytest.mark.parametrize("kind", [DataType.INT8, DataType.UINT8, DataType.FP32])
def test_a_number_out_of_range_is_for_the_reference(kind: DataType) -> None:
    """Alone it is zero, in a vector it spoils the whole."""
    rows, out, left = np.zeros(1, np.int32), lines_of(1, 2 * kind.size), np.zeros(1, np.int32)
    large = b"1e39" if kind is DataType.FP32 else b"300"
    starts, kinds = np.array([2], np.int64), (int(kind), int(kind))
    for first, count, size in ((2, 1, 0), (0, 2, 2)):
        places = array(b"1:" + large), starts - 2 + first, np.array([len(large) + size], np.int32), 1, 0, rows
        assert gather_numbers(*places, count, *kinds, out, 0, SCRATCH, left) == 1


@pytest.mark.parametrize("count", [0, -1])
def test_vectors_of_nothing(count: int) -> None:
    rows, out, left = np.zeros(1, np.int32), lines_of(1, 4), np.zeros(1, np.int32)
    starts, sizes, fp32 = np.zeros(1, np.int64), np.ones(1, np.int32), int(DataType.FP32)
    places = array(b"1"), starts, sizes, 1, 0, rows
    assert gather_numbers(*places, count, fp32, fp32, out, 0, SCRATCH, left) == UNUSUAL


@pytest.mark.parametrize(
    "text", ["0", "7", "-12.5", "+0.1", "1e-05", "123456.789", "3.4028235e+38", ".5", "2."]
)
def test_usual_numbers_are_read_by_the_kernel(text: str) -> None:
    rows, out, left = np.zeros(1, np.int32), lines_of(1, 8), np.zeros(1, np.int32)
    heap, fp64 = array(text.encode()), int(DataType.FP64)
    starts, sizes = np.zeros(1, np.int64), np.array([len(text)], np.int32)
    # 3.4028235e+38 has too large a power of ten for one exact product.
    hard = text.endswith("+38")
    assert gather_numbers(heap, starts, sizes, 1, 0, rows, 1, fp64, fp64, out, 0, SCRATCH, left) == hard
    assert hard or out.view(np.float64)[0, 0] == float(text)


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, -1), (8, 1), (1 << 40, 1)])
def test_texts_outside_of_their_heap_are_not_read(start: int, size: int) -> None:
    starts, sizes, rows = np.array([start]), np.array([size], np.int32), np.zeros(1, np.int32)
    out, left, fp32 = canaries(4).reshape(1, 4), np.zeros(1, np.int32), int(DataType.FP32)
    heap = array(b"12345678")
    assert gather_numbers(heap, starts, sizes, 1, 0, rows, 1, fp32, fp32, out, 0, SCRATCH, left) == UNUSUAL
    assert (out == CANARY).all()


@pytest.mark.parametrize(
    ("kind", "carriers", "left", "code"),
    [
        (DataType.FP16, CARRIERS, 1, UNUSUAL),
        (DataType.STRING, CARRIERS, 1, UNUSUAL),
        (DataType.FP32, CARRIERS - 1, 1, NO_ROOM),
        (DataType.FP32, CARRIERS, 0, NO_ROOM),
    ],
)
def test_texts_that_cannot_be_read_here(kind: DataType, carriers: int, left: int, code: int) -> None:
    starts, sizes, rows = np.zeros(1, np.int64), np.ones(1, np.int32), np.zeros(1, np.int32)
    out, kinds = canaries(4).reshape(1, 4), (int(kind), int(DataType.FP32))
    scratch = SCRATCH[:carriers], np.zeros(left, np.int32)
    assert gather_numbers(array(b"1"), starts, sizes, 1, 0, rows, 1, *kinds, out, 0, *scratch) == code
    assert (out == CANARY).all()
