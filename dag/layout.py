"""Where the columns of a config stand: computed once per config version.

*Byte columns* (fetched features, scores) live in blocks, one block per component and cell width. *External*
columns are all names that the config mentions and a request may bring (entities, request features) or the
service itself puts in as text (composite keys, calibration columns). A name can be in both namespaces.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from shared.datatypes import DataType

__all__ = ["BlockSpec", "ByteColumn", "ColumnRun", "Layout", "LayoutBuilder", "Source", "column_runs"]


_SIZES = {kind: kind.size for kind in DataType}


@dataclasses.dataclass(frozen=True, slots=True)
class ByteColumn:
    """One byte column: its place and its type. `count` elements a cell, 0 where that varies."""

    name: str
    block: int
    column: int
    data_type: DataType
    count: int

    @property
    def width(self) -> int:
        """Bytes a cell; 0 where that varies."""
        return self.count * self.data_type.size


@dataclasses.dataclass(frozen=True, slots=True)
class BlockSpec:
    """One block: who writes it, bytes a cell (0: variable), its columns in order."""

    component: str
    width: int
    columns: tuple[ByteColumn, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a reader finds a column: in a block, and (or else) among what the request brought."""

    name: str
    byte: ByteColumn | None
    external: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ColumnRun:
    """Neighbours in a list of sources that are columns of one block, so that a kernel reads them in one go.

    `block` is −1 for a source that is no byte column; it is a run of its own. `columns`, `kinds` and `raw` are
    int32 [sources]: their columns in the block, their types, and zeros.
    """

    first: int  # place of the first source in the list
    stop: int
    block: int
    width: int  # bytes a cell; 0 where that varies
    columns: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int32]
    raw: npt.NDArray[np.int32]
    externals: tuple[int, ...]


def column_runs(sources: Sequence[Source]) -> tuple[ColumnRun, ...]:
    """The sources as runs, in order."""
    runs = []
    for block, group in itertools.groupby(enumerate(sources), key=_block_or_self):
        places, members = zip(*group, strict=True)
        columns = [source.byte for source in members if source.byte is not None]
        runs.append(
            ColumnRun(
                first=places[0],
                stop=places[-1] + 1,
                block=max(block, -1),
                width=columns[0].width if columns else 0,
                columns=np.array([column.column for column in columns], np.int32),
                kinds=np.array([column.data_type for column in columns], np.int32),
                raw=np.zeros(len(columns), np.int32),
                externals=tuple(source.external for source in members),
            )
        )
    return tuple(runs)


def _block_or_self(placed: tuple[int, Source]) -> int:
    """The number of the source's block; a negative number of its own when it is in none."""
    place, source = placed
    return -1 - place if source.byte is None else source.byte.block


@dataclasses.dataclass(frozen=True)
class Layout:
    """All columns of one namespace pair: of the targets' matrix or of the slates'."""

    blocks: tuple[BlockSpec, ...]
    byte: dict[str, ByteColumn]
    external: dict[str, int]

    def source(self, name: str) -> Source:
        """Raises KeyError for a name that the config never mentioned while the layout was built."""
        return Source(name, self.byte.get(name), self.external[name])


class LayoutBuilder:
    """Collects columns in config order; `build` freezes them."""

    def __init__(self, mentioned: Iterable[str]) -> None:
        """`mentioned`: names that the config mentions, in order, perhaps again and again."""
        self._blocks: list[BlockSpec] = []
        self._byte: dict[str, ByteColumn] = {}
        self._external = {name: at for at, name in enumerate(dict.fromkeys(mentioned))}
        self._owner: dict[str, str] = {}

    def write(self, component: str, columns: Iterable[tuple[str, DataType, int]]) -> None:
        """Declares the byte columns that `component` writes: (name, type, elements a cell; 0: varies).

        Raises ValueError for a column that has a writer already.
        """
        by_width: dict[int, list[tuple[str, DataType, int]]] = {}
        for one in columns:
            by_width.setdefault(one[2] * _SIZES[one[1]], []).append(one)
        for width, members in by_width.items():
            block = len(self._blocks)
            placed = []
            for at, (name, kind, count) in enumerate(members):
                if name in self._owner:
                    raise ValueError(
                        f"column {name!r} is written by both {self._owner[name]!r} and {component!r}"
                    )
                self._owner[name] = component
                column = ByteColumn(name, block, at, kind, count)
                self._byte[name] = column
                placed.append(column)
            self._blocks.append(BlockSpec(component, width, tuple(placed)))

    def build(self) -> Layout:
        return Layout(tuple(self._blocks), dict(self._byte), dict(self._external))
