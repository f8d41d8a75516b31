"""Joined, gathered and derived key columns, against the same in Python, text by text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import numbers
from components.kernels import MALFORMED, NO_ROOM, UNUSUAL
from components.key_kernels import gather_part, join_keys, merge_texts, show_values
from components.value_kernels import NUMBER_ROOM, show_cells
from shared.datatypes import DataType
from shared.shm_matrix import ODD, VALUE, Bytes, Rows
from tests.components.memory import CANARY, Cells, Values, array, canaries, cells_of, values_of

TEXTS = st.sampled_from([b"", b"a", b"bb", b"|", b"x" * 40]) | st.binary(max_size=6)
BEFORE = 3  # bytes of an output that belong to others


def column(texts: Sequence[bytes]) -> tuple[Bytes, Rows, Rows]:
    """The texts with gaps between them: heap, starts, sizes."""
    heap = b"".join(b"_" + text for text in texts)
    sizes = np.array([len(text) for text in texts], np.int32)
    return array(heap), (np.cumsum(sizes + 1) - sizes).astype(np.int64), sizes


def shown(heap: Bytes, starts: Rows, sizes: Rows) -> list[bytes]:
    return [heap[a : a + n].tobytes() for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]


def places(count: int) -> tuple[Any, Rows]:
    """Room for so many places: starts, sizes."""
    return np.full(count, -9, np.int64), np.full(count, -9, np.int32)


def numbered(keys: Sequence[Any]) -> tuple[Rows, Rows]:
    """The number of each row's key in order of first rows, −1 for None, and the first row of each."""
    firsts: dict[Any, int] = {}
    for row, key in enumerate(keys):
        if key is not None:
            firsts.setdefault(key, row)
    order = {key: number for number, key in enumerate(firsts)}
    index = [-1 if key is None else order[key] for key in keys]
    return np.array(index, np.int32), np.array([*firsts.values()], np.int32)


# ---------------------------------------------------------------- gather_part


@given(st.data(), st.integers(1, 5), st.booleans())
def test_parts_stand_one_after_the_other(data: st.DataObject, rows: int, copies: bool) -> None:
    whole = st.lists(TEXTS, min_size=rows, max_size=rows)
    parts = data.draw(st.lists(whole | st.lists(TEXTS, max_size=1), min_size=1, max_size=3))
    starts, sizes = places(len(parts) * rows)
    at = BEFORE
    out = canaries(BEFORE + sum(len(text) for texts in parts for text in texts) + BEFORE)
    for number, texts in enumerate(parts):
        heap, own_starts, own_sizes = column(texts)
        at = gather_part(heap, own_starts, own_sizes, number, rows, copies, out, at, starts, sizes)
        cut = slice(number * rows, (number + 1) * rows)
        wanted = texts * rows if len(texts) == 1 else texts or [b""] * rows
        assert shown(out if copies else heap, starts[cut], sizes[cut]) == wanted
    assert at == (len(out) - BEFORE if copies else BEFORE)
    assert (out[:BEFORE] == CANARY).all()
    assert (out[at:] == CANARY).all()


GATHER: list[tuple[dict[str, Any], int]] = [
    ({"starts": [0, 4]}, MALFORMED),
    ({"starts": [-1, 0]}, MALFORMED),
    ({"sizes": [-1, 0]}, MALFORMED),
    ({"part": 2}, NO_ROOM),
    ({"part": -1}, NO_ROOM),
    ({"rows": -1}, NO_ROOM),
    ({"rows": 3, "part": 0}, NO_ROOM),  # texts of two
    ({"starts": [0]}, NO_ROOM),
    ({"room": 3}, NO_ROOM),
    ({"at": -1}, NO_ROOM),
]


@pytest.mark.parametrize(("change", "code"), GATHER, ids=[str(change) for change, _ in GATHER])
def test_parts_that_do_not_fit(change: dict[str, Any], code: int) -> None:
    made = {"starts": [0, 2], "sizes": [2, 2], "part": 1, "rows": 2, "room": 4, "at": 0} | change
    starts, sizes = places(4)
    out = canaries(made["room"])
    own = np.array(made["starts"], np.int64), np.array(made["sizes"], np.int32)
    where = made["part"], made["rows"], 1, out, made["at"], starts, sizes
    assert gather_part(array(b"abcd"), *own, *where) == code


# ---------------------------------------------------------------- join_keys


@given(st.data(), st.integers(1, 3), st.integers(1, 6))
def test_keys_are_joined(data: st.DataObject, parts: int, rows: int) -> None:
    keys = data.draw(st.lists(st.tuples(*[TEXTS] * parts), min_size=rows, max_size=rows))
    heap, starts, sizes = column([key[part] for part in range(parts) for key in keys])
    index, firsts = numbered([key if all(key) else None for key in keys])
    wanted = [b"|".join(key) if all(key) else b"" for key in keys]
    needed = sum(len(wanted[row]) for row in firsts)
    for room in {needed + parts, needed + 20}:
        out = canaries(room)
        joined = places(rows)
        assert join_keys(heap, starts, sizes, parts, rows, index, firsts, out, *joined) == needed
        assert shown(out, *joined) == wanted
        assert (out[needed:] == CANARY).all()
    if needed:
        out = canaries(needed - 1)
        assert join_keys(heap, starts, sizes, parts, rows, index, firsts, out, *joined) == NO_ROOM


JOIN: list[tuple[dict[str, Any], int]] = [
    ({"index": [0, 2]}, MALFORMED),
    ({"firsts": [0, 2]}, MALFORMED),
    ({"firsts": [-1, 1]}, MALFORMED),
    ({"starts": [0, 9, 2, 3]}, MALFORMED),
    ({"starts": [0, -1, 2, 3]}, MALFORMED),
    ({"sizes": [1, 1, -1, 1]}, MALFORMED),
    ({"index": [0]}, NO_ROOM),
    ({"parts": 3}, NO_ROOM),
    ({"joined": 1}, NO_ROOM),
]


@pytest.mark.parametrize(("change", "code"), JOIN, ids=[str(change) for change, _ in JOIN])
def test_keys_that_do_not_fit(change: dict[str, Any], code: int) -> None:
    made = {"starts": [0, 1, 2, 3], "sizes": [1] * 4, "index": [0, 1], "firsts": [0, 1], "parts": 2} | change
    keys = np.array(made["starts"], np.int64), np.array(made["sizes"], np.int32), made["parts"], 2
    shown_by = np.array(made["index"], np.int32), np.array(made["firsts"], np.int32)
    assert join_keys(array(b"abcd"), *keys, *shown_by, canaries(20), *places(made.get("joined", 2))) == code


# ---------------------------------------------------------------- show_values, show_cells


@given(values_of(TEXTS), st.data())
def test_values_are_shown_where_they_are(block: Values, data: st.DataObject) -> None:
    lines, columns = block.sizes.shape
    place = data.draw(st.integers(0, columns - 1))
    index = data.draw(st.lists(st.integers(-1, lines - 1), max_size=6))
    found = places(len(index))
    assert show_values(block.starts, block.sizes, place, np.array(index, np.int32), *found) == 0
    own = block._replace(index=np.array([], np.int32))
    assert shown(block.heap, *found) == [own.value(line, place) if line >= 0 else b"" for line in index]


@pytest.mark.parametrize(
    ("place", "index", "room", "code"),
    [(2, [0], 1, MALFORMED), (-1, [0], 1, MALFORMED), (0, [3], 1, MALFORMED), (0, [0, 1], 1, NO_ROOM)],
)
def test_values_that_are_not_there(place: int, index: list[int], room: int, code: int) -> None:
    starts, sizes = np.zeros((3, 2), np.int64), np.zeros((3, 2), np.int32)
    assert show_values(starts, sizes, place, np.array(index, np.int32), *places(room)) == code
    assert show_values(starts[:2], sizes, 0, np.array([0], np.int32), *places(1)) == MALFORMED


NUMERIC = [kind for kind in DataType if kind.size and not kind.is_vector]


@given(cells_of([1, 2, 4, 8]), st.data())
def test_texts_of_cells(block: Cells, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([kind for kind in NUMERIC if kind.size == block.width]))
    lines, columns = block.states.shape
    place = data.draw(st.integers(0, columns - 1))
    keys = data.draw(st.lists(st.none() | st.integers(0, lines - 1), max_size=6))
    numbers_of, firsts = numbered(keys)
    order = {int(number): key for number, key in zip(numbers_of, keys, strict=True) if key is not None}
    kept = [order[number] for number in range(len(firsts))]  # a line for each key, in their order
    states = block.states[kept]
    flat = block.flat.reshape(lines, -1)[kept].ravel()
    heap = np.concatenate((canaries(BEFORE), flat, states.ravel()))
    out, found = canaries(len(kept) * NUMBER_ROOM + BEFORE), places(len(keys))
    cells_at, states_at = BEFORE, BEFORE + len(flat)
    end = show_cells(
        heap,
        cells_at,
        states_at,
        len(kept),
        columns,
        place,
        int(kind),
        numbers_of,
        firsts,
        out,
        BEFORE,
        *found,
    )
    own = block._replace(index=np.array([], np.int32))
    cells = [(0, b"") if key is None else own.cell(key, place) for key in keys]
    if any(state == ODD for state, _ in cells):
        assert end == UNUSUAL
        return
    assert shown(out, *found) == [
        numbers.text(np.frombuffer(raw, kind.dtype), kind)[0] if state == VALUE else b""
        for state, raw in cells
    ]
    assert (out[:BEFORE] == CANARY).all()
    assert (out[end:] == CANARY).all()


SHOW: list[tuple[dict[str, Any], int]] = [
    ({"kind": 0}, UNUSUAL),
    ({"kind": -1}, UNUSUAL),
    ({"kind": int(DataType.STRING)}, UNUSUAL),
    ({"kind": int(DataType.FP32_VECTOR)}, UNUSUAL),
    ({"kind": 99}, UNUSUAL),
    ({"lines": -1}, MALFORMED),
    ({"lines": 3}, MALFORMED),
    ({"columns": 2}, MALFORMED),
    ({"column": 1}, MALFORMED),
    ({"column": -1}, MALFORMED),
    ({"cells_at": -1}, MALFORMED),
    ({"states_at": -1}, MALFORMED),
    ({"states_at": 9}, MALFORMED),
    ({"at": -1}, MALFORMED),
    ({"index": [0, 2]}, MALFORMED),
    ({"firsts": [0]}, MALFORMED),
    ({"firsts": [0, 2]}, MALFORMED),
    ({"firsts": [-1, 1]}, MALFORMED),
    ({"room": 1}, NO_ROOM),
    ({"out": 2 * NUMBER_ROOM - 25}, NO_ROOM),
]


@pytest.mark.parametrize(("change", "code"), SHOW, ids=[str(change) for change, _ in SHOW])
def test_cells_that_are_not_there(change: dict[str, Any], code: int) -> None:
    made: dict[str, Any] = {
        "kind": int(DataType.INT32),
        "lines": 2,
        "columns": 1,
        "column": 0,
        "cells_at": 0,
        "states_at": 8,
        "at": 0,
        "index": [0, 1],
        "firsts": [0, 1],
        "room": 2,
        "out": 2 * NUMBER_ROOM,
    } | change
    heap = np.concatenate((np.full(8, 1, np.uint8), np.full(2, VALUE, np.uint8)))
    block = [made[name] for name in ("cells_at", "states_at", "lines", "columns", "column", "kind")]
    rows = np.array(made["index"], np.int32), np.array(made["firsts"], np.int32)
    assert show_cells(heap, *block, *rows, canaries(made["out"]), made["at"], *places(made["room"])) == code


# ---------------------------------------------------------------- merge_texts


@given(st.data(), st.integers(1, 5))
def test_texts_are_merged(data: st.DataObject, rows: int) -> None:
    columns = st.lists(TEXTS, min_size=rows, max_size=rows) | st.lists(TEXTS, min_size=1, max_size=1)
    first, second = data.draw(columns), data.draw(columns)
    wanted = [
        (first[row] if len(first) > 1 else first[0]) or (second[row] if len(second) > 1 else second[0])
        for row in range(rows)
    ]
    end = BEFORE + sum(map(len, wanted))
    out, found = canaries(end + BEFORE), places(rows)
    assert merge_texts(*column(first), *column(second), rows, out, BEFORE, *found) == end
    assert shown(out, *found) == wanted
    assert (out[:BEFORE] == CANARY).all()
    assert (out[end:] == CANARY).all()
    if end > BEFORE:
        assert merge_texts(*column(first), *column(second), rows, out[: end - 1], BEFORE, *found) == NO_ROOM


MERGE: list[tuple[str, Any, int]] = [
    ("starts", [9, 0], MALFORMED),
    ("starts", [-1, 0], MALFORMED),
    ("sizes", [-1, 0], MALFORMED),
    ("other_starts", [0, 9], MALFORMED),
    ("other_sizes", [0, -1], MALFORMED),
    ("starts", [], MALFORMED),
    ("other_starts", [], MALFORMED),
    ("sizes", [1], MALFORMED),
    ("other_sizes", [1], MALFORMED),
    ("rows", 3, NO_ROOM),
    ("at", -1, NO_ROOM),
]


@pytest.mark.parametrize(("name", "value", "code"), MERGE)
def test_texts_that_are_not_there(name: str, value: Any, code: int) -> None:
    made: dict[str, Any] = {
        "starts": [0, 1],
        "sizes": [1, 0],
        "other_starts": [0, 1],
        "other_sizes": [1, 1],
        "rows": 2,
        "at": 0,
        name: value,
    }
    heap = array(b"ab")
    first = heap, np.array(made["starts"], np.int64), np.array(made["sizes"], np.int32)
    second = heap, np.array(made["other_starts"], np.int64), np.array(made["other_sizes"], np.int32)
    assert merge_texts(*first, *second, made["rows"], canaries(9), made["at"], *places(2)) == code
