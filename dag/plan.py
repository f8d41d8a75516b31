"""A config version, compiled: everything about a request that does not depend on the request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from dag.component import Component
from dag.config import ModelConfig
from dag.layout import ColumnRun, Layout, Source, column_runs
from dag.meters import PlanMeters
from dag.schedule import Schedule
from shared.datatypes import DataType

__all__ = ["Answer", "OutputColumn", "OutputColumns", "Plan"]


@dataclasses.dataclass(frozen=True, slots=True)
class OutputColumn:
    """A column of an answer: its declared type, and elements a value (0: a scalar, or not known)."""

    source: Source
    data_type: DataType
    vector_dim: int

    @property
    def name(self) -> str:
        return self.source.name


class OutputColumns:
    """Columns of an answer in order, and what every answer needs to know of them."""

    __slots__ = ("columns", "external", "heads", "runs", "text_and_cells")

    def __init__(self, columns: Iterable[OutputColumn] = ()) -> None:
        self.columns = tuple(columns)
        self.runs = column_runs([column.source for column in self.columns])
        self.text_and_cells = _text_and_cells(self.runs)
        """The usual answer: (external id, run) of what the request brought, then columns of one block of cells."""
        self.external = tuple(column.source.external for column in self.columns if column.source.byte is None)
        """The external ids of those that are no byte columns: a request may bring them with a type."""
        self.heads: dict[int, bytes] = {}
        """What an answer begins with, by its first tag: kept here by whoever encodes it."""

    def __len__(self) -> int:
        return len(self.columns)

    def __iter__(self) -> Iterator[OutputColumn]:
        return iter(self.columns)

    def __repr__(self) -> str:
        return f"<OutputColumns {[column.name for column in self.columns]}>"


def _text_and_cells(runs: tuple[ColumnRun, ...]) -> tuple[int, ColumnRun] | None:
    """See `OutputColumns.text_and_cells`."""
    if len(runs) != 2 or runs[0].block >= 0 or not runs[1].width:
        return None
    return runs[0].externals[0], runs[1]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an answer shows, in order."""

    features: OutputColumns  # response_config.features, in an answer without slates
    targets: OutputColumns  # the same without the slate scores, in an answer with slates
    slates: OutputColumns  # the slate scores among them, in component order
    model_schema: OutputColumns  # the models' inputs, then the other features


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a worker needs to serve one version of one model config. Immutable."""

    model_config_id: str
    digest: str
    config: ModelConfig
    components: tuple[Component, ...]
    schedule: Schedule
    layout: Layout
    slate_layout: Layout
    answer: Answer
    id_column: str  # holds the target ids of a Predict request
    constants: tuple[tuple[int, bytes], ...]  # external id → text in all rows (calibration columns)
    composites: frozenset[str]  # text columns that components write: no request may bring them
    meters: PlanMeters
    shapes: dict[tuple[int, bool, bytes], object] = dataclasses.field(
        default_factory=dict, init=False, compare=False
    )
    """What `workers.requests` has worked out about requests for this plan, by what they have in common."""

    def __repr__(self) -> str:
        return f"<Plan {self.model_config_id} {self.digest[:12]} {len(self.components)} components>"
