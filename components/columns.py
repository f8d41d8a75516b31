"""Reading the columns of a matrix: the one place that knows in which order a value is looked for.

A byte column comes first; where it was never written for a row (its fetch failed, its key was empty), a typed
request feature of that name, then a text one. A value that the upstream answered as empty is missing: it is not
replaced by what the request brought.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from components import numbers
from dag.layout import ByteColumn, Source
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, VALUE, Block, CellBlock, Rows, ShmMatrix

__all__ = ["Cells", "byte_values", "cells", "elements", "fallback", "once_each", "text_of", "texts"]

T = TypeVar("T")


class Cells(NamedTuple):
    """Fixed-width cells of some rows: `values` [n, count] of the column's dtype, `states` uint8 [n]."""

    values: npt.NDArray[np.generic]
    states: npt.NDArray[np.uint8]


def lines_of(block: Block, rows: Rows) -> Rows:
    """The block lines that `rows` show; -1 for none."""
    return rows if block.index is None else block.index[rows]


def states_of(block: Block, column: int, lines: Rows) -> npt.NDArray[np.uint8]:
    if not len(block.states):
        return np.zeros(len(lines), np.uint8)
    states: npt.NDArray[np.uint8] = block.states[lines, column]
    if block.index is not None:
        states = np.where(lines >= 0, states, ABSENT).astype(np.uint8)
    return states


def cells(matrix: ShmMatrix, column: ByteColumn, rows: Rows) -> Cells:
    """The cells of a fixed-width numeric column. What has no value reads as zero."""
    block = matrix.blocks[column.block]
    count = column.count
    if block is None or not len(block.states):
        return Cells(np.zeros((len(rows), count), column.data_type.dtype), np.zeros(len(rows), np.uint8))
    assert isinstance(block, CellBlock)
    lines = lines_of(block, rows)
    states = states_of(block, column.column, lines)
    values = np.ascontiguousarray(block.cells[lines, column.column]).view(column.data_type.dtype)
    bad = states != VALUE
    if bad.any():
        values[bad] = 0
    return Cells(values, states)


def byte_values(matrix: ShmMatrix, column: ByteColumn, rows: Rows) -> list[bytes]:
    """Raw bytes of a byte column: b"" where there is no value, the bytes as they came where they are odd."""
    block = matrix.blocks[column.block]
    if block is None:
        return [b""] * len(rows)
    return block.values(column.column, rows)


def byte_states(matrix: ShmMatrix, column: ByteColumn, rows: Rows) -> npt.NDArray[np.uint8]:
    """The states of a byte column, uint8 [n]."""
    block = matrix.blocks[column.block]
    if block is None:
        return np.zeros(len(rows), np.uint8)
    return states_of(block, column.column, lines_of(block, rows))


def fallback(matrix: ShmMatrix, source: Source, rows: Rows) -> tuple[DataType, list[bytes]] | None:
    """What the request brought under this name: (type, raw values); String for texts, None for nothing."""
    typed = matrix.typed[source.external]
    if typed is not None:
        return typed.data_type, typed.values(rows)
    text = matrix.texts[source.external]
    return None if text is None else (DataType.STRING, text.texts(rows))


def elements(raw: bytes, kind: DataType) -> npt.NDArray[np.generic] | None:
    """The elements of a raw value of a numeric type; None when its length does not fit."""
    if len(raw) % kind.size or (not kind.is_vector and len(raw) != kind.size):
        return None
    return np.frombuffer(raw, kind.dtype)


def text_of(values: Sequence[bytes], kind: DataType) -> list[bytes]:
    """Text form of raw values: "" for no value and for one whose length does not fit its type."""
    if kind.element is DataType.STRING:
        return list(values)
    if kind.is_vector:
        return once_each(lambda raw: _vector_form(raw, kind), values)
    size = kind.size
    if all(len(raw) == size for raw in values):
        return numbers.text(np.frombuffer(b"".join(values), kind.dtype), kind)
    fits = [raw for raw in values if len(raw) == size]
    forms = iter(numbers.text(np.frombuffer(b"".join(fits), kind.dtype), kind))
    return [next(forms) if len(raw) == size else b"" for raw in values]


def once_each(convert: Callable[[bytes], T], values: Sequence[bytes]) -> list[T]:
    """What each value becomes. One that many rows share is converted once: it may be long."""
    converted = {value: convert(value) for value in set(values)}
    return [converted[value] for value in values]


def _vector_form(raw: bytes, kind: DataType) -> bytes:
    found = elements(raw, kind) if raw else None
    return b"" if found is None else numbers.vector_text(found, kind.element)


def texts(matrix: ShmMatrix, source: Source, rows: Rows) -> list[bytes]:
    """Text form of a column for answers: of its byte column if it has one, else of what the request brought."""
    if source.byte is not None:
        return text_of(byte_values(matrix, source.byte, rows), source.byte.data_type)
    brought = fallback(matrix, source, rows)
    return [b""] * len(rows) if brought is None else text_of(brought[1], brought[0])
