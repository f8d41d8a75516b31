"""Reading the columns of a matrix: where a value is looked for, and its text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import numbers
from components.columns import byte_states, byte_values, cells, elements, fallback, text_of, texts
from dag.layout import LayoutBuilder
from shared.datatypes import DataType
from shared.shm_matrix import (
    ABSENT,
    EMPTY,
    ODD,
    VALUE,
    CellBlock,
    ShmMatrix,
    Slot,
    TextColumn,
    TypedColumn,
    VarBlock,
)
from tests.components.running import matrix_pool

FP32, INT16, STRING = DataType.FP32, DataType.INT16, DataType.STRING


def le(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def matrix_of(slot: Slot) -> tuple[ShmMatrix, dict[str, object]]:
    """Three rows; `cell` and `var` with a value, an empty one and none; `pair` of two elements; brought columns."""
    builder = LayoutBuilder(["cell", "var", "pair", "text", "typed", "both", "nowhere"])
    builder.write("c", [("cell", FP32, 1), ("var", STRING, 1), ("pair", DataType.FP32_VECTOR, 2)])
    layout = builder.build()
    matrix = ShmMatrix(slot, 4, len(layout.blocks), len(layout.external))
    cell = CellBlock.empty(slot, 3, 1, 4)
    cell.put(0, 0, le(1.5))
    cell.put(1, 0, b"")
    cell.put(2, 0, b"odd")
    cell.index = np.array([0, 1, 2, -1], np.int32)
    var = VarBlock.empty(slot, 4, 1)
    var.fill(slot, [(0, 0, b"word"), (1, 0, b"")])
    pair = CellBlock.empty(slot, 4, 1, 8)
    pair.put(0, 0, le(1, 2))
    matrix.blocks[:] = [cell, var, pair]
    matrix.texts[layout.external["text"]] = TextColumn.same(slot, b"t")
    matrix.texts[layout.external["both"]] = TextColumn.of(slot, [b"a", b"b", b"c", b"d"])
    for name in ("typed", "both"):
        column = TextColumn.of(slot, [np.int16(n).tobytes() for n in range(3)] + [b""])
        matrix.typed[layout.external[name]] = TypedColumn(INT16, 0, column)
    return matrix, {name: layout.source(name) for name in layout.external}


def test_byte_columns_by_row() -> None:
    with matrix_pool() as slot:
        matrix, sources = matrix_of(slot)
        rows = np.array([3, 2, 1, 0], np.int32)
        cell, var, pair = (sources[name].byte for name in ("cell", "var", "pair"))  # type: ignore[attr-defined]
        assert byte_values(matrix, cell, rows) == [b"", b"odd", b"", le(1.5)]
        assert byte_states(matrix, cell, rows).tolist() == [ABSENT, ODD, EMPTY, VALUE]
        assert byte_values(matrix, var, rows) == [b"", b"", b"", b"word"]
        assert byte_states(matrix, var, rows).tolist() == [ABSENT, ABSENT, EMPTY, VALUE]
        found = cells(matrix, cell, rows)
        assert found.values.tolist() == [[0], [0], [0], [1.5]]
        assert found.states.tolist() == [ABSENT, ODD, EMPTY, VALUE]
        assert cells(matrix, pair, rows).values.tolist() == [[0, 0], [0, 0], [0, 0], [1, 2]]


def test_a_block_that_was_never_written_has_no_values() -> None:
    with matrix_pool() as slot:
        matrix, sources = matrix_of(slot)
        cell, var = (sources[name].byte for name in ("cell", "var"))  # type: ignore[attr-defined]
        matrix.blocks[:] = [None] * 3
        assert byte_values(matrix, var, matrix.all_rows) == [b""] * 4
        assert byte_states(matrix, cell, matrix.all_rows).tolist() == [ABSENT] * 4
        assert cells(matrix, cell, matrix.all_rows).values.tolist() == [[0]] * 4


def test_a_block_without_lines_has_no_values() -> None:
    with matrix_pool() as slot:
        matrix, sources = matrix_of(slot)
        cell = sources["cell"].byte  # type: ignore[attr-defined]
        matrix.blocks[0] = block = CellBlock.empty(slot, 0, 1, 4)
        block.index = np.full(4, -1, np.int32)
        assert byte_values(matrix, cell, matrix.all_rows) == [b""] * 4
        assert byte_states(matrix, cell, matrix.all_rows).tolist() == [ABSENT] * 4
        assert cells(matrix, cell, matrix.all_rows).values.tolist() == [[0]] * 4


def test_what_the_request_brought() -> None:
    with matrix_pool() as slot:
        matrix, sources = matrix_of(slot)
        rows = np.array([0, 3], np.int32)
        assert fallback(matrix, sources["text"], rows) == (STRING, [b"t", b"t"])  # type: ignore[arg-type]
        assert fallback(matrix, sources["typed"], rows) == (INT16, [b"\0\0", b""])  # type: ignore[arg-type]
        assert fallback(matrix, sources["both"], rows) == (INT16, [b"\0\0", b""])  # type: ignore[arg-type]
        assert fallback(matrix, sources["nowhere"], rows) is None  # type: ignore[arg-type]


def test_texts_of_all_kinds_of_columns() -> None:
    with matrix_pool() as slot:
        matrix, sources = matrix_of(slot)
        shown = {name: texts(matrix, source, matrix.all_rows) for name, source in sources.items()}  # type: ignore[arg-type]
        assert shown == {
            "cell": [b"1.5", b"", b"", b""],
            "var": [b"word", b"", b"", b""],
            "pair": [b"1,2", b"", b"", b""],
            "text": [b"t"] * 4,
            "typed": [b"0", b"1", b"2", b""],
            "both": [b"0", b"1", b"2", b""],
            "nowhere": [b""] * 4,
        }


@given(st.lists(st.sampled_from([b"", b"1234", b"123", b"12345678"])))
def test_text_of_whatever_length(values: list[bytes]) -> None:
    whole = [numbers.text(np.frombuffer(v, "<f4"), FP32)[0] if len(v) == 4 else b"" for v in values]
    assert text_of(values, FP32) == whole
    vectors = [
        b",".join(numbers.text(np.frombuffer(v, "<f4"), FP32)) if v and len(v) % 4 == 0 else b""
        for v in values
    ]
    assert text_of(values, DataType.FP32_VECTOR) == vectors
    assert text_of(values, STRING) == text_of(values, DataType.STRING_VECTOR) == values


@pytest.mark.parametrize(
    ("raw", "kind", "wanted"),
    [
        (le(1, 2), DataType.FP32_VECTOR, [1, 2]),
        (b"12345", DataType.FP32_VECTOR, None),
        (le(1), FP32, [1]),
        (le(1, 2), FP32, None),
        (b"", DataType.FP32_VECTOR, []),
    ],
)
def test_elements_of_raw_values(raw: bytes, kind: DataType, wanted: list[float] | None) -> None:
    found = elements(raw, kind)
    assert (None if found is None else found.tolist()) == wanted
