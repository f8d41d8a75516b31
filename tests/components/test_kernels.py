"""Each kernel against the protobuf code that defines it.

Where a kernel accepts, the reference accepts too and says the same; where it does not, it says so by a negative
code and the reference is asked. That it accepts what is usual, so that nobody waits for the reference, is tested
besides. `test_kernels_bounds.py` runs all of this with every index checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import kernels
from components.onfs_wire import decode_rows, encode_keys
from proto import onfs_pb2
from shared.shm_matrix import EMPTY, VALUE
from tests.components.memory import CANARY, array, canaries
from tests.components.messages import (
    LENGTH,
    PADS,
    WORDS,
    broken,
    cut_anywhere,
    field,
    strange_fields,
    string_fields,
    unknown_fields,
    written,
)
from tests.effort import tries

# ---------------------------------------------------------------- read_result

WIDTHS = st.lists(st.sampled_from([0, 1, 2, 4, 8, 12]), min_size=1, max_size=4)


class Target:
    """Memory that a Result is read into: the columns of these widths, side by side, for so many lines."""

    def __init__(self, widths: Sequence[int], lines: int, values: int, base: int = 64) -> None:
        self.widths = widths
        self.lines = lines
        runs = [(width, len(list(group))) for width, group in itertools.groupby(widths)]
        stride = sum(-(-count * (width + 1 if width else 13) // 8) * 8 for width, count in runs)
        self.base = base
        self.heap = canaries(base + stride * lines)
        self.table = np.zeros((len(runs), kernels.RUN_COLUMNS), np.int64)
        self.places: list[tuple[int, int, int, int]] = []  # by column: width, cell, state, size
        self.stride = stride
        at = 0
        for run, (width, count) in enumerate(runs):
            sizes = at + 8 * count
            states = at + count * (width or 12)
            self.table[run] = (count, width, at, stride, states, stride, sizes, stride)
            for column in range(count):
                self.places.append((width, at + column * (width or 8), states + column, sizes + 4 * column))
            at += -(-count * (width + 1 if width else 13) // 8) * 8
        self.values = canaries(values)

    def read(
        self, body: bytes, lines: npt.NDArray[np.int32], values_at: int = 0, begin: int = 0
    ) -> tuple[int, int]:
        return kernels.read_result(
            body, begin, lines, self.table, self.heap, self.base, self.values, values_at
        )

    def cell(self, line: int, column: int) -> tuple[int, bytes]:
        """(state, value) of a cell."""
        width, *offsets = self.places[column]
        cell, state, size = (self.base + offset + line * self.stride for offset in offsets)
        if not width:
            start = int(self.heap[cell : cell + 8].view(np.int64)[0])
            length = int(self.heap[size : size + 4].view(np.int32)[0])
            return int(self.heap[state]), self.values[start : start + length].tobytes()
        value = self.heap[cell : cell + width].tobytes()
        return int(self.heap[state]), value if self.heap[state] == VALUE else b""


def expected_cells(rows: Sequence[Sequence[bytes]]) -> list[list[tuple[int, bytes]]]:
    return [[(VALUE if value else EMPTY, value) for value in row] for row in rows]


def hold_result(body: bytes, widths: Sequence[int], rows: int, lines: Sequence[int]) -> int:
    """Reads `body` both ways; returns what the kernel did."""
    spare = 3
    target = Target(widths, len(lines) + spare, len(body) + spare)
    code, first_values = target.read(body, np.array(lines[:rows], np.int32), spare)
    assert (target.values[:spare] == CANARY).all()
    assert (target.heap[: target.base] == CANARY).all()
    if code < 0:
        assert first_values == 0
        return code
    wanted = decode_rows(body, rows, len(widths))  # a WireError here: the kernel accepted too much
    assert first_values == sum(len(row[0]) > 0 for row in wanted)
    for row, cells in enumerate(expected_cells(wanted)):
        assert [target.cell(lines[row], column) for column in range(len(widths))] == cells
    untouched = set(range(len(lines) + spare)).difference(lines[:rows])
    for line in untouched:
        begin = target.base + line * target.stride
        assert (target.heap[begin : begin + target.stride] == CANARY).all()
    assert code == spare + sum(
        len(value) for row in wanted for value, width in zip(row, widths, strict=True) if not width
    )
    assert (target.values[code:] == CANARY).all()
    begin = kernels.rows_begin(body)
    assert onfs_pb2.Result.FromString(body[:begin]).rows == []
    again = Target(widths, len(lines) + spare, len(body) + spare)
    assert again.read(body, np.array(lines[:rows], np.int32), spare, begin) == (code, first_values)
    assert (again.heap == target.heap).all()
    return code


@st.composite
def result_bodies(draw: st.DrawFn, widths: Sequence[int]) -> tuple[bytes, int]:
    """A Result on the wire and how many rows it has; most fit the widths, few are written as usual."""
    lengths = [st.just(width) | st.integers(0, 13) if width else st.integers(0, 20) for width in widths]
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        values = [
            draw(st.sampled_from([0, 1, 1, 1])) * draw(st.binary(min_size=n, max_size=n))
            for n in (
                draw(st.one_of(st.just(width), length)) for width, length in zip(widths, lengths, strict=True)
            )
        ]
        if draw(st.integers(0, 9)) == 0:
            values = values[: draw(st.integers(0, len(values)))]
        columns = [field(2, LENGTH, value, draw(PADS), draw(PADS)) for value in values]
        others = draw(st.lists(string_fields(1, WORDS.map(str.encode)) | string_fields(1), max_size=1))
        row = draw(written(columns, others + draw(unknown_fields(1, 2)) + draw(strange_fields((1, 2)))))
        rows.append(field(4, LENGTH, row, draw(PADS), draw(PADS)))
    extra = draw(st.lists(string_fields(1) | string_fields(2) | feature_schemas(), max_size=2))
    extra += draw(unknown_fields(1, 2, 3, 4)) + draw(strange_fields((1, 2, 3, 4)))
    return draw(written(rows, extra)), len(rows)


@st.composite
def feature_schemas(draw: st.DrawFn) -> bytes:
    """A FeatureSchema field of a Result: mostly as a store writes it."""
    features = [
        field(
            2,
            LENGTH,
            onfs_pb2.Feature(label=draw(WORDS), column_idx=draw(st.integers(-1, 300))).SerializeToString(),
        )
        for _ in range(draw(st.integers(0, 3)))
    ]
    odd = draw(st.lists(string_fields(1) | string_fields(2), max_size=1)) + draw(unknown_fields(1, 2, most=1))
    return field(
        3, LENGTH, draw(written([field(1, LENGTH, b"group"), *features], odd)), draw(PADS), draw(PADS)
    )


@given(st.data(), WIDTHS)
@tries(0.4)
def test_read_result_is_as_protobuf_says(data: st.DataObject, widths: list[int]) -> None:
    body, rows = data.draw(result_bodies(widths))
    asked = data.draw(st.sampled_from([rows, rows, rows, rows + 1, max(rows - 1, 0)]))
    hold_result(body, widths, asked, data.draw(st.permutations(range(asked + 2))))


@given(st.data(), WIDTHS)
@tries(0.4)
def test_read_result_of_broken_bytes(data: st.DataObject, widths: list[int]) -> None:
    body, rows = data.draw(result_bodies(widths))
    hold_result(data.draw(broken(body)), widths, rows, range(rows))


LIKELY = st.lists(st.sampled_from([b"\x22", b"\x02", b"\x12", b"\x00", b"\x80"])).map(b"".join)


@given(st.binary(max_size=40) | LIKELY, st.integers(0, 3))
def test_read_result_of_random_bytes(body: bytes, rows: int) -> None:
    hold_result(body, [0, 4], rows, range(rows))


def usual_result(widths: Sequence[int], rows: int) -> bytes:
    """A Result as the feature store writes it."""
    result = onfs_pb2.Result(entity_label="catalog", keys_schema=["id"])
    schema = result.feature_schemas.add(feature_group_label="g")
    for column in range(len(widths)):
        schema.features.add(label=f"feature_{column}", column_idx=column)
    for row in range(rows):
        values = [bytes([row + 1]) * (width or row % 7) for width in widths]
        values[row % len(values)] = b""
        result.rows.add(keys=[f"key_{row}"], columns=values)
    return result.SerializeToString()


@pytest.mark.parametrize("columns", [1, 6, 200])
def test_read_result_takes_what_is_usual(columns: int) -> None:
    widths = [(4, 0, 1, 8, 2, 12)[at % 6] for at in range(columns)]
    assert hold_result(usual_result(widths, 10), widths, 10, range(10)) >= 0


def test_read_result_cut_anywhere() -> None:
    for body in cut_anywhere(usual_result([4, 0, 12], 3)):
        hold_result(body, [4, 0, 12], 3, range(3))


def test_read_result_stops_at_the_end_of_the_heap() -> None:
    body = usual_result([0], 5)
    needed = sum(len(row[0]) for row in decode_rows(body, 5, 1))
    for room in range(needed + 1):
        target = Target([0], 5, needed)
        target.values = target.values[:room]
        code, _ = target.read(body, np.arange(5, dtype=np.int32))
        assert code == (kernels.NO_ROOM if room < needed else needed)


def test_read_result_leaves_odd_lengths_to_the_reference() -> None:
    body = onfs_pb2.Result(rows=[onfs_pb2.Row(columns=[b"12345"])]).SerializeToString()
    assert Target([4], 1, 9).read(body, np.zeros(1, np.int32)) == (kernels.UNUSUAL, 0)


# ---------------------------------------------------------------- distinct_keys, encode_batches, ask_keys

PARTS = st.sampled_from([b"", b"a", b"b", b"ab", b"key", b"x" * 127, b"x" * 128]) | st.binary(max_size=3)


class KeyColumns:
    """The parts of each row's key, part after part, scattered over a heap."""

    def __init__(self, keys: Sequence[Sequence[bytes]], parts: int) -> None:
        self.keys = [tuple(key) for key in keys]
        self.parts = parts
        self.rows = len(keys)
        self.starts = np.zeros(parts * self.rows, np.int64)
        self.sizes = np.zeros(parts * self.rows, np.int32)
        heap = bytearray(b"pad")
        for number, key in enumerate(keys):
            for part, text in enumerate(key):
                self.starts[part * self.rows + number] = len(heap)
                self.sizes[part * self.rows + number] = len(text)
                heap += text
        self.heap = array(bytes(heap))
        self.work = np.full(kernels.key_work(self.rows), -9, np.int32)

    def distinct(self) -> int:
        return kernels.distinct_keys(self.heap, self.starts, self.sizes, self.parts, self.rows, self.work)

    def encode(self, wanted: Sequence[int], batch: int, out: npt.NDArray[np.uint8]) -> int:
        return kernels.encode_batches(
            *(self.heap, self.starts, self.sizes, self.parts, self.rows, self.work),
            *(np.array(wanted, np.int32), batch, out),
        )

    def ask(self, batch: int, out: npt.NDArray[np.uint8]) -> int:
        return kernels.ask_keys(
            self.heap, self.starts, self.sizes, self.parts, self.rows, self.work, batch, out
        )

    @property
    def index(self) -> list[int]:
        return self.work[self.rows : 2 * self.rows].tolist()

    @property
    def gaps(self) -> int:
        return int(self.work[2 * self.rows])

    def ends(self, batches: int) -> list[int]:
        begin = 2 * self.rows + 1
        return self.work[begin : begin + batches].tolist()

    def numbered(self) -> tuple[list[int], list[tuple[bytes, ...]]]:
        """The reference: the key number of each row (−1: none), and the keys in order of their first row."""
        numbers: dict[tuple[bytes, ...], int] = {}
        index = [numbers.setdefault(key, len(numbers)) if all(key) else -1 for key in self.keys]
        return index, list(numbers)


KEY_ROWS = st.integers(1, 3).flatmap(
    lambda parts: st.builds(
        lambda rows: KeyColumns(rows, parts),
        st.lists(st.lists(PARTS, min_size=parts, max_size=parts), max_size=30),
    )
)


def room_for(keys: Sequence[tuple[bytes, ...]]) -> int:
    """What the kernels ask for before they write: a few bytes more than are written."""
    return sum(11 + sum(6 + len(part) for part in key) for key in keys) + 5


def hold_batches(
    columns: KeyColumns, keys: Sequence[tuple[bytes, ...]], batch: int, out: npt.NDArray[np.uint8]
) -> None:
    """What was written are these keys, as protobuf says."""
    begins = range(0, len(keys), batch)
    at = 0
    for begin, end in zip(begins, columns.ends(len(begins)), strict=True):
        assert out[at:end].tobytes() == encode_keys(keys[begin : begin + batch])
        at = end
    assert (out[at:] == CANARY).all()


@given(KEY_ROWS)
def test_distinct_keys(columns: KeyColumns) -> None:
    index, keys = columns.numbered()
    assert columns.distinct() == len(keys)
    assert columns.index == index
    assert columns.gaps == index.count(-1)
    assert columns.work[: len(keys)].tolist() == [index.index(key) for key in range(len(keys))]
    assert (columns.work[len(keys) : columns.rows] == -9).all()


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    columns = KeyColumns([(b"ab", b"c"), (b"a", b"bc"), (b"ab", b"c")], 2)
    assert columns.distinct() == 2
    assert columns.index == [0, 1, 0]


def test_distinct_keys_of_many_rows() -> None:
    columns = KeyColumns([(f"key{number % 700}".encode(),) for number in range(5000)], 1)
    assert columns.distinct() == 700
    assert columns.index == [number % 700 for number in range(5000)]


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, -1), (0, 99), (99, 1), (2, 2)])
def test_distinct_keys_looks_at_its_bounds(start: int, size: int) -> None:
    columns = KeyColumns([(b"",)], 1)
    columns.starts[0] = start
    columns.sizes[0] = size
    assert columns.distinct() == kernels.MALFORMED
    assert columns.ask(1, canaries(99)) == kernels.MALFORMED


@pytest.mark.parametrize("size", [0, 4, 5, 7])
def test_distinct_keys_needs_room(size: int) -> None:
    columns = KeyColumns([(b"a",), (b"b",)], 1)
    columns.work = columns.work[:size]
    assert columns.distinct() == kernels.NO_ROOM


def test_distinct_keys_needs_places_of_all_parts() -> None:
    columns = KeyColumns([(b"a",), (b"b",)], 1)
    columns.parts = 2
    assert columns.distinct() == kernels.NO_ROOM


@given(KEY_ROWS, st.integers(1, 6), st.data())
@tries(0.4)
def test_encode_batches_is_as_protobuf_says(columns: KeyColumns, batch: int, data: st.DataObject) -> None:
    count = columns.distinct()
    _, keys = columns.numbered()
    wanted = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True)) if count else []
    asked = [keys[key] for key in wanted] if wanted else keys
    out = canaries(room_for(asked))
    code = columns.encode(wanted, batch, out)
    if not all(part.isascii() for key in asked for part in key):
        assert code == kernels.UNUSUAL
    elif wanted:
        hold_batches(columns, asked, batch, out)
        assert code == columns.ends(-(-len(asked) // batch))[-1]
    else:
        assert code == 0


def test_encode_batches_needs_room() -> None:
    columns = KeyColumns([(b"a" * 200,), (b"b",)], 1)
    columns.distinct()
    wanted = encode_keys([(b"a" * 200,), (b"b",)])
    for room in range(len(wanted) + 20):
        code = columns.encode([0, 1], 2, canaries(room))
        assert code in (kernels.NO_ROOM, len(wanted))
    assert code == len(wanted)


@given(KEY_ROWS, st.integers(1, 6))
@tries(0.4)
def test_ask_keys_is_both_in_one(columns: KeyColumns, batch: int) -> None:
    index, keys = columns.numbered()
    out = canaries(room_for(keys))
    code = columns.ask(batch, out)
    if not all(part.isascii() for key in keys for part in key):
        assert code == kernels.UNUSUAL
        return
    assert code == len(keys)
    assert columns.index == index
    assert columns.gaps == index.count(-1)
    hold_batches(columns, keys, batch, out)
