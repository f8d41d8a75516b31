"""The columns of a config's log, in the order in which every format writes them.

Targets and slates have one schema: readers know a single one per config. What a row of one kind cannot have (a
fetched feature of a slate, a slate score of a target) is missing there.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dag.columns import computed_type, fetched, id_column, layouts, scores
from dag.config import ModelConfig
from dag.layout import Layout, Source
from shared.datatypes import DataType, data_type

__all__ = ["Format", "LogColumn", "LogSchema", "Places"]

FORMAT_KEY: Final = "v2loggingtype"  # as `_key` has it: v2-logging-type, v2LoggingType
COMPRESSION_KEY: Final = "compressionenabled"
FILLER: Final = len("0.0")
LONGEST: Final = 65_535  # bytes of a value whose length takes two bytes
TEXT: Final = ("String", DataType.STRING)
DEFAULT_BATCH: Final = 500  # rows a message when the config says 0

Numbers = npt.NDArray[np.int32]


class Format(enum.IntEnum):
    """How the rows of a message are written: bits 6 and 7 of the metadata byte."""

    PROTO = 0
    ARROW = 1
    PARQUET = 2


@dataclasses.dataclass(frozen=True, slots=True)
class LogColumn:
    """One logged column. `written_type` is its type as the config spells it: that is how readers get it."""

    name: str
    written_type: str
    data_type: DataType

    @property
    def width(self) -> int:
        """Bytes of a value; 0 where that varies."""
        kind = self.data_type
        return 0 if kind.is_vector else kind.size

    @property
    def is_text(self) -> bool:
        """A scalar string, also when it is called BYTES."""
        return self.data_type is DataType.STRING

    @property
    def has_inner_length(self) -> bool:
        """Its values begin with their own length, u16: readers take it off those that are called BYTES."""
        return self.written_type.upper().replace("_", "").removeprefix("DATATYPE") == "BYTES"


@dataclasses.dataclass(frozen=True, slots=True)
class BlockPlaces:
    """Of one block: which of its columns are logged, and as which. Both int32 [n], in the same order."""

    block: int
    columns: Numbers
    logged: Numbers
    width: int  # bytes a cell; 0: variable


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Where the logged columns stand in one kind of matrix."""

    blocks: tuple[BlockPlaces, ...]
    externals: tuple[tuple[int, int], ...]  # (external id, logged column) of what requests bring as text

    @classmethod
    def of(cls, layout: Layout, columns: Sequence[LogColumn]) -> Places:
        by_block: dict[int, list[tuple[int, int]]] = {}
        externals: list[tuple[int, int]] = []
        for logged, column in enumerate(columns):
            byte = layout.byte.get(column.name)
            if byte is not None:
                by_block.setdefault(byte.block, []).append((byte.column, logged))
            elif column.is_text and column.name in layout.external:
                externals.append((layout.external[column.name], logged))
        blocks = []
        for block, pairs in by_block.items():
            of_block, logged_as = np.array(pairs, np.int32).T.copy()
            blocks.append(BlockPlaces(block, of_block, logged_as, layout.blocks[block].width))
        return cls(tuple(blocks), tuple(externals))


@dataclasses.dataclass(frozen=True, eq=False)
class LogSchema:
    """Everything about the log of one config version that does not depend on the request. Immutable."""

    model_config_id: str
    columns: tuple[LogColumn, ...]
    targets: Places
    slates: Places
    id_source: Source  # of the targets' ids
    format: Format
    compress: bool
    batch_rows: int  # rows a message
    version: int  # of the schema, 0 to 15: the config's cache_version

    @classmethod
    def of(cls, model_config_id: str, config: ModelConfig, service: Mapping[str, Any]) -> LogSchema:
        """The schema of a valid config under this service config ({} for none).

        Raises ValueError for a format that there is not.
        """
        columns = tuple(_columns(config))
        options = {_key(name): value for name, value in service.items()}
        placed = layouts(model_config_id, config)
        return cls(
            model_config_id=model_config_id,
            columns=columns,
            targets=Places.of(placed.targets, columns),
            slates=Places.of(placed.slates, columns),
            id_source=placed.targets.source(id_column(config)),
            format=_format(options.get(FORMAT_KEY)),
            compress=options.get(COMPRESSION_KEY) is True,
            batch_rows=config.response_config.log_batch_size or DEFAULT_BATCH,
            version=config.component_config.cache_version or 1,
        )

    @functools.cached_property
    def widths(self) -> Numbers:
        """Bytes a value of each column, int32 [columns]; 0 where that varies."""
        return np.array([column.width for column in self.columns], np.int32)

    @functools.cached_property
    def inner(self) -> Numbers:
        """Bytes of the length within a value, int32 [columns]: 2 for BYTES, else 0."""
        return np.array([2 if column.has_inner_length else 0 for column in self.columns], np.int32)

    @functools.cached_property
    def fillers(self) -> Numbers:
        """Bytes that the row format writes for a missing value, int32 [columns]; 0 where its length says it."""
        return np.array([FILLER if column.is_text else 0 for column in self.columns], np.int32)

    @functools.cached_property
    def units(self) -> Numbers:
        """Bytes an element of each vector column, int32 [columns]; 0 where any length is right."""
        return np.array([0 if column.width else column.data_type.size for column in self.columns], np.int32)

    @functools.cached_property
    def limits(self) -> Numbers:
        """The longest value of each column that the format can hold, int32 [columns]."""
        by_rows = self.format is Format.PROTO
        longest = np.where((self.widths == 0) & by_rows, LONGEST - self.inner, np.iinfo(np.int32).max)
        return np.where(self.inner > 0, np.minimum(longest, LONGEST), longest).astype(np.int32)

    @property
    def metadata(self) -> int:
        """The metadata byte: bit 0 compression, bits 2 to 5 version, bits 6 and 7 format."""
        return int(self.compress) | (self.version & 0x0F) << 2 | int(self.format) << 6

    def __repr__(self) -> str:
        packed = ", compressed" if self.compress else ""
        return f"<LogSchema {self.model_config_id} {len(self.columns)} columns, {self.format.name.lower()}{packed}>"


def _key(name: str) -> str:
    return name.replace("-", "").lower()


def _format(written: object) -> Format:
    name = str(written or "proto").lower()
    for one in Format:
        if name == one.name.lower():
            return one
    names = ", ".join(one.name.lower() for one in Format)
    raise ValueError(f"service config: v2-logging-type is {written!r}, not one of {names}")


def _columns(config: ModelConfig) -> Iterator[LogColumn]:
    """The logged columns in order; with `log_features` exactly those of the answer."""
    types = _types(config)
    names = config.response_config.features if config.response_config.log_features else types
    for name in names:
        yield types.get(name) or LogColumn(name, *TEXT)


def _types(config: ModelConfig) -> dict[str, LogColumn]:
    """The columns by name, in log order: fetched, computed, scored, then what else computes and models read."""
    parts = config.component_config
    columns: dict[str, LogColumn] = {}

    def add(name: str, written: str, kind: DataType) -> None:
        columns.setdefault(name, LogColumn(name, written, kind))

    for fetch in parts.feature_components:
        for one in fetched(fetch):
            add(one.name, one.written_type, one.data_type)
    for compute in parts.numerix_components:
        add(compute.score_col, compute.data_type or "FP32", computed_type(compute))
    for model in parts.predator_components:
        for output, typed in zip(model.outputs, scores(model), strict=True):
            for name, kind, _ in typed:
                add(name, _score_type(output.data_type, kind), kind)
    for compute in parts.numerix_components:
        for name in compute.score_mapping.values():
            add(name, *TEXT)
    for name in itertools.chain.from_iterable(
        part.features for model in parts.predator_components for part in model.inputs
    ):
        add(name, *TEXT)
    return columns


def _score_type(written: str, kind: DataType) -> str:
    """The type of a score as readers are told it, of an output whose elements the config calls `written`."""
    if not kind.is_vector:
        return written
    return written if data_type(written).is_vector else f"{written}Vector"
