from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demo.tables import Column, Table, load_tables, save_tables
from shared.datatypes import DataType
from tests.demo.samples import flights, planes, tables


@pytest.mark.parametrize(
    ("kind", "value", "wire"),
    [
        (DataType.INT16, 1400, b"\x78\x05"),
        (DataType.INT8, -1, b"\xff"),
        (DataType.FP32, 1.0, b"\x00\x00\x80\x3f"),
        (DataType.FP64, 1.0, b"\x00\x00\x00\x00\x00\x00\xf0\x3f"),
        (DataType.STRING, "Zürich", "Zürich".encode()),
        (DataType.FP32_VECTOR, [1.0, 2.0], b"\x00\x00\x80\x3f\x00\x00\x00\x40"),
    ],
)
def test_cells_are_little_endian_and_nothing_is_no_bytes(kind: DataType, value: object, wire: bytes) -> None:
    column = Column.of(kind, [None, value])
    assert column.cell(0) == b""
    assert column.cell(1) == wire


def test_a_column_refuses_values_of_another_type() -> None:
    with pytest.raises(ValueError, match="FP32 column needs dtype float32, got int64"):
        Column(DataType.FP32, np.array([1]), np.array([True]))
    with pytest.raises(ValueError, match="STRING column needs dtype S"):
        Column(DataType.STRING, np.array(["text"]), np.array([True]))
    with pytest.raises(ValueError, match="2 values with 1 presence flags"):
        Column(DataType.INT8, np.zeros(2, dtype=np.int8), np.array([True]))


def test_rows_by_key() -> None:
    table = flights()
    assert table.row(("f2",)) == 1
    assert table.row(("f3",)) is None
    assert table.rows([("f2",), ("f3",), ("f1",)]).tolist() == [1, -1, 0]
    assert repr(table) == "<Table flight by flight_id: 2 rows × 5>"


def test_a_table_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"key \('a',\) twice, in rows 0 and 1"):
        Table("e", ["k"], [("a",), ("a",)], {})
    with pytest.raises(ValueError, match=r"key \('a', 'b'\) has not the 1 parts"):
        Table("e", ["k"], [("a", "b")], {})
    with pytest.raises(ValueError, match=r"\('g', 'f'\) has 2 values for 1 keys"):
        Table("e", ["k"], [("a",)], {("g", "f"): Column.of(DataType.INT8, [1, 2])})


def test_a_part_of_a_table() -> None:
    part = flights().take(np.array([1]))
    assert part.keys == (("f2",),)
    assert part.columns["schedule", "distance"].cell(0) == b"\xfe\xff"
    assert part.columns["keys", "tailnum"].cell(0) == b""


def test_saved_tables_come_back_as_they_were(tmp_path: Path) -> None:
    save_tables(tables().values(), tmp_path)
    loaded = load_tables(tmp_path)
    assert loaded.keys() == tables().keys()
    for entity, table in tables().items():
        back = loaded[entity]
        assert (back.key_names, back.keys) == (table.key_names, table.keys)
        assert list(back.columns) == list(table.columns)
        for name, column in table.columns.items():
            assert back.columns[name].kind is column.kind
            assert [back.columns[name].cell(row) for row in range(len(table))] == [
                column.cell(row) for row in range(len(table))
            ]


def test_a_directory_without_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_tables(tmp_path)


def test_a_vector_column_keeps_its_dimension() -> None:
    assert planes().columns["history", "record"].values.shape == (1, 3)
