"""Tiny feature tables: two flights, one of them with next to nothing known about it."""

from __future__ import annotations

from demo.tables import Column, Table
from shared.datatypes import DataType


def flights() -> Table:
    return Table(
        "flight",
        ["flight_id"],
        [("f1",), ("f2",)],
        {
            ("keys", "tailnum"): Column.of(DataType.STRING, ["N1", None]),
            ("keys", "origin"): Column.of(DataType.STRING, ["JFK", "LGA"]),
            ("keys", "hour"): Column.of(DataType.STRING, ["T17", "T18"]),
            ("schedule", "distance"): Column.of(DataType.INT16, [1400, -2]),
            ("schedule", "minute"): Column.of(DataType.INT16, [None, 300]),
        },
    )


def planes() -> Table:
    return Table(
        "plane",
        ["tailnum"],
        [("N1",)],
        {
            ("body", "seats"): Column.of(DataType.INT16, [149]),
            ("history", "record"): Column.of(DataType.FP32_VECTOR, [[1.0, 2.0, 3.0]]),
        },
    )


def origin_hours() -> Table:
    return Table(
        "origin_hour",
        ["origin", "hour"],
        [("JFK", "T17"), ("LGA", "T17")],
        {("weather", "temp"): Column.of(DataType.FP32, [4.5, None])},
    )


def tables() -> dict[str, Table]:
    return {table.entity: table for table in (flights(), planes(), origin_hours())}
