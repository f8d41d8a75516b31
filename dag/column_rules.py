"""Who writes which column, who reads it, and what of that cannot work.

Byte columns of the targets and of the slates are two namespaces; text columns (entities, request features,
composite keys, calibration columns) are a third. A request may bring any name as text, so a column that no
component writes is a warning and never an error.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dag.config import FeatureComponent, ModelConfig, ModelInput, NumerixComponent, PredatorComponent
from dag.field_rules import PARTS, Problems, column_type, known_type
from dag.problems import Problem, at_index, did_you_mean, join
from dag.topology import Topology
from shared.datatypes import DataType

__all__ = ["Columns", "column_problems", "column_warnings"]

RESERVED = "slate_target_indices"
METADATA = ("user_id", "app_version_code")  # entities that come from request metadata when they are not sent
HINTS = 5
"""Unwritten columns for which a near name is looked up: among 1,500 columns that takes 70 ms each, and when a
label changes hundreds are unwritten at once, all for the same reason."""
CONFIG_ID = "inferflow_config_id"  # text column of the model_config_id, there when a model has a calibration


class Write(NamedTuple):
    """A column and the component that fills it. `elements`: values a cell, 0 when not known."""

    name: str
    component: str
    path: str
    kind: DataType | None = None
    elements: int = 0
    fetched: bool = False


class Read(NamedTuple):
    """A column that a component needs, and where the config says so."""

    name: str
    component: str
    path: str
    of_slates: bool = False
    as_key: bool = False


@dataclass(frozen=True)
class Columns:
    """Everything that a config writes and reads, in config order."""

    targets: tuple[Write, ...]
    """Byte columns of the target matrix."""
    slates: tuple[Write, ...]
    """Byte columns of the slate matrix."""
    texts: tuple[Write, ...]
    """Text columns that the service itself fills; calibration columns have their predator as component."""
    reads: tuple[Read, ...]

    @classmethod
    def of(cls, config: ModelConfig) -> Columns:
        parts = config.component_config
        targets: list[Write] = []
        slates: list[Write] = []
        texts: list[Write] = []
        reads: list[Read] = []
        for at, fetch in enumerate(parts.feature_components):
            path = join(PARTS, "feature_components", at)
            targets += _fetched(path, fetch)
            texts += _composite(path, fetch)
            reads += _keys(path, fetch)
        for at, model in enumerate(parts.predator_components):
            path = join(PARTS, "predator_components", at)
            (slates if model.slate_component else targets).extend(_scores(path, model))
            texts += _calibration(path, model)
            reads += _inputs(path, model)
        for at, compute in enumerate(parts.numerix_components):
            path = join(PARTS, "numerix_components", at)
            (slates if compute.slate_component else targets).append(_computed(path, compute))
            reads += _mapped(path, compute)
        return cls(tuple(targets), tuple(slates), tuple(texts), tuple(reads))


def column_problems(config: ModelConfig, columns: Columns, topology: Topology | None) -> Problems:
    """All errors about columns. Without a topology (it is refused itself), none about order."""
    for writes in (columns.targets, columns.slates, columns.texts):
        yield from _two_writers(writes)
    yield from _reserved(columns)
    yield from _slate_scores_read_by_others(columns)
    if topology is not None:
        yield from _races(columns, topology.ancestors())
    targets = {write.name: write for write in columns.targets}
    for at, model in enumerate(config.component_config.predator_components):
        for number, tensor in enumerate(model.inputs):
            yield from _shape(join(PARTS, "predator_components", at, "inputs", number), tensor, targets)


def column_warnings(config: ModelConfig, columns: Columns, given: Collection[str]) -> Problems:
    """What works, but hardly as meant. `given`: names that requests are known to bring."""
    features = config.response_config.features
    written = {write.name for write in columns.targets + columns.texts}
    of_slates = {write.name for write in columns.slates}
    expected = {*given, *METADATA, *_id_column(features, of_slates)}
    expected.update(read.name for read in columns.reads if read.as_key)
    for read in columns.reads:
        if read.of_slates and read.name in of_slates and read.name not in written:
            yield Problem(read.path, f"{read.name!r} is a slate score: models of slates read target columns")
    mentions = [(read.name, read.path) for read in columns.reads if not read.as_key]
    mentions += [(name, at_index("response_config.features", at)) for at, name in enumerate(features)]
    places: dict[str, str] = {}
    for name, path in mentions:
        if name not in written and name not in of_slates and name not in expected:
            places.setdefault(name, path)  # once is enough
    for count, (name, path) in enumerate(places.items()):
        hint = did_you_mean(name, written | of_slates, cutoff=0.85) if count < HINTS else ""
        cause = "it has a value only when the request brings it as an entity or a feature"
        yield Problem(path, f"no component writes {name!r}: {cause}{hint}")
    yield from _scores_as_keys(columns)
    yield from _written_id(features, columns)
    yield from _same_name_twice(columns)


# ---------------------------------------------------------------- who writes what


def _fetched(path: str, fetch: FeatureComponent) -> Iterator[Write]:
    for at, group in enumerate(fetch.fs_request.feature_groups):
        prefix = f"{fetch.col_name_prefix}{fetch.fs_request.label}:{group.label}:"
        place = join(path, "fs_request", "featureGroups", at, "features")
        types = {group.data_type: _cell(group.data_type)}  # there are thousands of features, of few types
        for number, feature in enumerate(group.features):
            name, type_name = column_type(feature, group.data_type)
            if type_name not in types:
                types[type_name] = _cell(type_name)
            kind, elements = types[type_name]
            yield Write(prefix + name, fetch.component, at_index(place, number), kind, elements, fetched=True)


def _cell(type_name: str) -> tuple[DataType | None, int]:
    """The type of a fetched feature, and how many values are in a cell; 0 when not known."""
    kind = known_type(type_name)
    return kind, 1 if kind is not None and not kind.is_vector else 0


def _composite(path: str, fetch: FeatureComponent) -> Iterator[Write]:
    if fetch.composite_id:
        yield Write(fetch.component_id, fetch.component, join(path, "component_id"))


def _scores(path: str, model: PredatorComponent) -> Iterator[Write]:
    for at, output in enumerate(model.outputs):
        kind = known_type(output.data_type)
        for number, score in enumerate(output.model_scores):
            dims = output.model_scores_dims[number] if number < len(output.model_scores_dims) else [0]
            place = join(path, "outputs", at, "model_scores", number)
            whole = kind if dims == [1] or kind is None else kind.vector
            yield Write(score, model.component, place, whole, max(0, math.prod(dims)))


def _calibration(path: str, model: PredatorComponent) -> Iterator[Write]:
    if model.calibration:
        yield Write(f"{model.calibration}_model", model.component, join(path, "calibration"))


def _computed(path: str, compute: NumerixComponent) -> Write:
    kind = known_type(compute.data_type or "FP32")
    return Write(compute.score_col, compute.component, join(path, "score_col"), kind, 1)


# ---------------------------------------------------------------- who reads what


def _keys(path: str, fetch: FeatureComponent) -> Iterator[Read]:
    for at, key in enumerate(fetch.fs_keys):
        yield Read(key.col, fetch.component, join(path, "fs_keys", at, "col"), as_key=True)


def _inputs(path: str, model: PredatorComponent) -> Iterator[Read]:
    for at, tensor in enumerate(model.inputs):
        place = join(path, "inputs", at, "features")
        for number, name in enumerate(tensor.features):
            yield Read(name, model.component, at_index(place, number), model.slate_component)


def _mapped(path: str, compute: NumerixComponent) -> Iterator[Read]:
    for key, name in compute.score_mapping.items():
        place = join(path, "score_mapping", key)
        yield Read(name, compute.component, place, compute.slate_component)


# ---------------------------------------------------------------- errors


def _two_writers(writes: Collection[Write]) -> Problems:
    first: dict[str, Write] = {}
    for write in writes:
        other = first.setdefault(write.name, write)
        if write.name and other is not write:
            yield Problem(
                write.path,
                f"column {write.name!r} has two writers: {other.component!r} writes it at {other.path}",
            )


def _reserved(columns: Columns) -> Problems:
    for write in columns.targets + columns.slates + columns.texts:
        if write.name == RESERVED:
            yield Problem(write.path, f"{RESERVED!r} is the service's own column: choose another name")
    calibrated = any(write.path.endswith(".calibration") for write in columns.texts)
    for write in columns.texts:
        if calibrated and write.name == CONFIG_ID:
            yield Problem(write.path, f"{CONFIG_ID!r} holds the model_config_id: choose another name")


def _slate_scores_read_by_others(columns: Columns) -> Problems:
    elsewhere = {write.name for write in columns.targets + columns.texts}
    slates = {write.name: write for write in columns.slates if write.name not in elsewhere}
    for read in columns.reads:
        if read.name in slates and not read.of_slates:
            yield Problem(
                read.path,
                f"{read.name!r} is a score of slates, written by {slates[read.name].component!r}: "
                f"{read.component!r} works on targets and cannot see it",
            )


def _races(columns: Columns, ancestors: Mapping[str, Collection[str]]) -> Problems:
    """Reads of columns that may not be written yet. The existing service then scores zeros, now and then.

    Calibration columns are written before any component starts.
    """
    written = {write.name: write for write in columns.targets}
    keys = {write.name: write for write in columns.texts if not write.path.endswith(".calibration")}
    for read in columns.reads:
        writer = written.get(read.name) or keys.get(read.name)
        if writer is None or writer.component in ancestors.get(read.component, ()):
            continue
        if writer.component == read.component:
            if writer is keys.get(read.name):
                continue  # a composite key made of itself: an error of its own
            cause = f"{read.component!r} reads the column {read.name!r} that it writes itself"
        else:
            cause = (
                f"{read.component!r} reads {read.name!r}, which {writer.component!r} writes, and does not "
                f"wait for it: make {read.component!r} depend on {writer.component!r}"
            )
        yield Problem(read.path, cause)


def _shape(path: str, tensor: ModelInput, targets: Mapping[str, Write]) -> Problems:
    """The features of a row must fill the shape, where their number is known from the config alone."""
    kind = known_type(tensor.data_type)
    shape = tensor.shape
    if kind is None or not shape or not tensor.features:
        return
    if any(size < -1 or size == 0 for size in shape) or shape.count(-1) > 1:
        return  # an error of its own
    counts = [_values(targets.get(name), kind, tensor) for name in tensor.features]
    if not all(counts):
        return
    values, places = sum(counts), math.prod(size for size in shape if size > 0)
    if values % places if -1 in shape else values != places:
        needs = f"a multiple of {places}" if -1 in shape else f"{places}"
        yield Problem(join(path, "shape"), f"{shape} takes {needs} values a row, the features give {values}")


def _values(column: Write | None, into: DataType, tensor: ModelInput) -> int:
    """Elements that a column puts into a tensor of this type; 0 when the config cannot tell."""
    if column is None or column.kind is None:
        return 0
    text = column.kind.element is DataType.STRING
    if into.element is DataType.STRING and not text:
        return 1  # the text form of the whole cell
    if text and len(tensor.features) == 1 and tensor.shape[0] > 1:
        return 0  # one text may hold a whole vector, split at colons
    return 0 if text and column.kind.is_vector else column.elements


# ---------------------------------------------------------------- warnings


def _id_column(features: Collection[str], of_slates: Collection[str]) -> list[str]:
    return [name for name in features if name not in of_slates][:1]


def _scores_as_keys(columns: Columns) -> Problems:
    scores = {write.name: write for write in columns.targets if not write.fetched}
    for read in columns.reads:
        if read.as_key and read.name in scores:
            writer = scores[read.name].component
            yield Problem(
                read.path, f"{read.name!r} is a score of {writer!r}: only fetched features become keys"
            )


def _written_id(features: Collection[str], columns: Columns) -> Problems:
    of_slates = {write.name for write in columns.slates}
    writers = {write.name: write.component for write in columns.targets + columns.texts}
    for name in _id_column(features, of_slates):
        if name in writers:
            yield Problem(
                join("response_config.features", list(features).index(name)),
                f"the first response feature names the id column of Predict requests, yet "
                f"{writers[name]!r} writes {name!r}",
            )


def _same_name_twice(columns: Columns) -> Problems:
    targets = {write.name: write for write in columns.targets}
    for write in columns.slates:
        if write.name in targets:
            yield Problem(
                write.path,
                f"{write.name!r} is a column of targets too ({targets[write.name].path}): "
                f"responses show the slate score only",
            )
