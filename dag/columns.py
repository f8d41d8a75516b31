"""The columns of a config: their names, their types, and the layouts that follow from them.

Whoever reads a matrix without running it (the inference logs) finds everything where the plan put it, because
both ask here. Everything takes a config that `dag.validate` found good.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dag.config import FeatureComponent, ModelConfig, NumerixComponent, PredatorComponent
from dag.layout import Layout, LayoutBuilder
from shared.datatypes import DataType, data_type

__all__ = [
    "Fetched",
    "Layouts",
    "calibration_columns",
    "computed_type",
    "fetched",
    "id_column",
    "layouts",
    "score_sizes",
    "scores",
    "slate_scores",
]

CONFIG_ID_COLUMN = "inferflow_config_id"


class Fetched(NamedTuple):
    """A fetched column: its name and type, what is asked for, and its type as the config writes it."""

    name: str
    data_type: DataType
    group: str
    feature: str
    written_type: str


class Layouts(NamedTuple):
    """Where the columns stand: in the targets' matrix, and in that of the slates."""

    targets: Layout
    slates: Layout


def layouts(model_config_id: str, config: ModelConfig) -> Layouts:
    """The layouts of a config. Raises ValueError for a column with two writers."""
    parts = config.component_config
    asked = [(fetch, tuple(fetched(fetch))) for fetch in parts.feature_components]
    names = tuple(_mentioned(model_config_id, config, asked))
    targets, slates = LayoutBuilder(names), LayoutBuilder(names)
    for fetch, columns in asked:
        targets.write(
            fetch.component,
            [(one.name, one.data_type, 0 if one.data_type.is_vector else 1) for one in columns],
        )
    for model in parts.predator_components:
        builder = slates if model.slate_component else targets
        builder.write(model.component, itertools.chain.from_iterable(scores(model)))
    for compute in parts.numerix_components:
        builder = slates if compute.slate_component else targets
        builder.write(compute.component, [(compute.score_col, computed_type(compute), 1)])
    return Layouts(targets.build(), slates.build())


def fetched(fetch: FeatureComponent) -> Iterator[Fetched]:
    """Every feature asked for, in config order."""
    kinds: dict[str, DataType] = {}  # there are thousands of features, of few types
    for group in fetch.fs_request.feature_groups:
        prefix = f"{fetch.col_name_prefix}{fetch.fs_request.label}:{group.label}:"
        for written in group.features:
            feature, _, override = written.partition("@")
            kind = override or group.data_type
            if kind not in kinds:
                kinds[kind] = data_type(kind)
            yield Fetched(prefix + feature, kinds[kind], group.label, feature, kind)


def score_sizes(model: PredatorComponent) -> list[list[int]]:
    """Elements of each score, per output."""
    return [[math.prod(dims) for dims in part.model_scores_dims] for part in model.outputs]


def scores(model: PredatorComponent) -> Iterator[list[tuple[str, DataType, int]]]:
    """(column, type, elements) of every score, per output."""
    for part, counts in zip(model.outputs, score_sizes(model), strict=True):
        element = data_type(part.data_type).element
        yield [
            (name, element if dims == [1] else element.vector, count)
            for name, dims, count in zip(part.model_scores, part.model_scores_dims, counts, strict=True)
        ]


def computed_type(compute: NumerixComponent) -> DataType:
    """The type of a computed score; FP32 when the config names none."""
    return data_type(compute.data_type) if compute.data_type else DataType.FP32


def slate_scores(config: ModelConfig) -> list[str]:
    """The columns of the slates' matrix, in component order."""
    parts = config.component_config
    names = [
        name
        for model in parts.predator_components
        if model.slate_component
        for part in model.outputs
        for name in part.model_scores
    ]
    return names + [compute.score_col for compute in parts.numerix_components if compute.slate_component]


def id_column(config: ModelConfig) -> str:
    """The first response feature that is a column of the targets.

    Without response features it is `id`; when all of them are slate scores, the id that the models name.
    """
    features = config.response_config.features
    of_slates = set(slate_scores(config))
    models = config.component_config.predator_components
    named = (model.component_id for model in models if features and model.component_id)
    return next((name for name in features if name not in of_slates), next(named, "id"))


def calibration_columns(model_config_id: str, config: ModelConfig) -> list[tuple[str, str]]:
    """(name, text) of the text columns that are the same in all rows of all requests."""
    models = [model for model in config.component_config.predator_components if model.calibration]
    if not models:
        return []
    columns = [(f"{model.calibration}_model", model.model_name) for model in models]
    return [*columns, (CONFIG_ID_COLUMN, model_config_id)]


def _mentioned(
    model_config_id: str,
    config: ModelConfig,
    asked: Iterable[tuple[FeatureComponent, Iterable[Fetched]]],
) -> Iterator[str]:
    """Every column name of the config: what a request may bring that anybody reads."""
    parts = config.component_config
    yield id_column(config)
    for fetch, columns in asked:
        yield from (key.col for key in fetch.fs_keys)
        if fetch.composite_id:
            yield fetch.component_id
        yield from (one.name for one in columns)
    for model in parts.predator_components:
        yield from itertools.chain.from_iterable(part.features for part in model.inputs)
        yield from itertools.chain.from_iterable(part.model_scores for part in model.outputs)
    for compute in parts.numerix_components:
        yield compute.component_id
        yield compute.score_col
        yield from compute.score_mapping.values()
    for name, _ in calibration_columns(model_config_id, config):
        yield name
    yield from config.response_config.features
