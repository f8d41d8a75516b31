"""Where columns stand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dag.layout import BlockSpec, ByteColumn, LayoutBuilder, Source
from shared.datatypes import DataType

KINDS = st.sampled_from([kind for kind in DataType if kind])


@st.composite
def writers(draw: st.DrawFn) -> dict[str, list[tuple[str, DataType, int]]]:
    """Components and the columns that each writes: (name, type, elements a cell)."""
    numbers = itertools.count()
    return {
        component: [
            (f"column{next(numbers)}", draw(KINDS), draw(st.integers(0, 4)))
            for _ in range(draw(st.integers(0, 6)))
        ]
        for component in draw(st.lists(st.sampled_from("abcde"), unique=True))
    }


@given(writers())
def test_every_column_has_a_place_of_its_own(written: dict[str, list[tuple[str, DataType, int]]]) -> None:
    builder = LayoutBuilder([])
    for component, columns in written.items():
        builder.write(component, columns)
    layout = builder.build()

    declared = {
        name: (component, kind, count)
        for component, columns in written.items()
        for name, kind, count in columns
    }
    assert layout.byte.keys() == declared.keys()
    places = set()
    for name, column in layout.byte.items():
        component, kind, count = declared[name]
        spec = layout.blocks[column.block]
        assert (column.name, column.data_type, column.count) == (name, kind, count)
        assert column.width == spec.width == count * kind.size
        assert spec.component == component
        assert spec.columns[column.column] is column
        places.add((column.block, column.column))
    assert len(places) == len(declared)
    # One block for each component and width, and columns in the order they were declared.
    assert len({(spec.component, spec.width) for spec in layout.blocks}) == len(layout.blocks)
    for spec in layout.blocks:
        names = [name for name, _, _ in written[spec.component]]
        order = [names.index(column.name) for column in spec.columns]
        assert order == sorted(order)


def test_a_column_has_one_writer() -> None:
    builder = LayoutBuilder([])
    builder.write("fetch", [("price", DataType.FP32, 1)])
    with pytest.raises(ValueError, match="column 'price' is written by both 'fetch' and 'rank'"):
        builder.write("rank", [("score", DataType.FP32, 1), ("price", DataType.FP64, 1)])


def test_a_component_does_not_write_a_column_twice() -> None:
    with pytest.raises(ValueError, match="column 'price' is written by both 'fetch' and 'fetch'"):
        LayoutBuilder([]).write("fetch", [("price", DataType.FP32, 1), ("price", DataType.FP32, 1)])


def test_types_of_one_width_share_a_block() -> None:
    builder = LayoutBuilder([])
    builder.write("c", [("a", DataType.FP32_VECTOR, 2), ("b", DataType.STRING, 1), ("c", DataType.INT64, 1)])
    layout = builder.build()
    a, b, c = (
        ByteColumn("a", 0, 0, DataType.FP32_VECTOR, 2),
        ByteColumn("b", 1, 0, DataType.STRING, 1),
        ByteColumn("c", 0, 1, DataType.INT64, 1),
    )
    assert layout.blocks == (BlockSpec("c", 8, (a, c)), BlockSpec("c", 0, (b,)))


def test_a_name_can_be_fetched_and_brought() -> None:
    builder = LayoutBuilder(["user", "price", "user"])
    builder.write("fetch", [("price", DataType.FP32, 1)])
    layout = builder.build()
    assert layout.source("user") == Source("user", None, 0)
    assert layout.source("price") == Source("price", layout.byte["price"], 1)
    with pytest.raises(KeyError):
        layout.source("nobody mentioned it")


def test_a_layout_does_not_change_with_its_builder() -> None:
    builder = LayoutBuilder([])
    layout = builder.build()
    builder.write("late", [("late", DataType.FP32, 1)])
    assert (layout.blocks, layout.byte, layout.external) == ((), {}, {})
