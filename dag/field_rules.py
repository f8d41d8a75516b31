"""What one field or one component of a config may say, whatever the rest of the config says."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from dag.config import (
    ROOT,
    FeatureComponent,
    FeatureGroup,
    ModelConfig,
    ModelInput,
    ModelOutput,
    NumerixComponent,
    PredatorComponent,
)
from dag.problems import Problem, at_index, did_you_mean, join
from shared.datatypes import DataType, data_type

__all__ = ["column_type", "components", "field_problems", "field_warnings", "known_type", "variable"]

Problems = Iterable[Problem]

PARTS = "component_config"
MOST = 2**31 - 1  # what every reader of these configs holds in an int, with room to multiply by element sizes
_TYPE_NAMES = sorted(
    {name for kind in DataType if kind for name in (kind.label, kind.label.removeprefix("DataType").upper())}
    | {"BYTES"}
)


def field_problems(config: ModelConfig) -> Problems:
    """All errors that can be seen in one component or one field."""
    parts = config.component_config
    if not parts.feature_components and not parts.predator_components:
        yield Problem(PARTS, "has neither a feature nor a predator component: at least one is needed")
    yield from _within(join(PARTS, "cache_version"), parts.cache_version, 0, 15)
    yield from _within(join(PARTS, "cache_ttl"), parts.cache_ttl, 0, MOST, " s")
    yield from _within(join(PARTS, "error_logging_percent"), parts.error_logging_percent, 0, 100, " %")
    yield from _component_names(config)
    for at, fetch in enumerate(parts.feature_components):
        yield from _feature(join(PARTS, "feature_components", at), fetch)
    for at, model in enumerate(parts.predator_components):
        yield from _predator(join(PARTS, "predator_components", at), model)
    for at, compute in enumerate(parts.numerix_components):
        yield from _numerix(join(PARTS, "numerix_components", at), compute)
    yield from _response(config)


def field_warnings(config: ModelConfig) -> Problems:
    """What works, but hardly as it was meant."""
    for at, model in enumerate(config.component_config.predator_components):
        path = join(PARTS, "predator_components", at)
        if any(to.percentage for to in model.model_end_points) and model.route_config:
            yield Problem(join(path, "route_config"), "is ignored: model_end_points has percentages already")
    for at, fetch in enumerate(config.component_config.feature_components):
        path = join(PARTS, "feature_components", at, "fs_keys")
        for twice, first in _repeats(key.schema for key in fetch.fs_keys):
            yield Problem(join(path, twice, "schema"), f"repeats {join(path, first, 'schema')}")
    for name, listed in config.dag_execution_config.component_dependency.items():
        path = join("dag_execution_config.component_dependency", name)
        for twice, first in _repeats(listed):
            yield Problem(join(path, twice), f"repeats {join(path, first)}")


def components(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(name, JSON path) of every component, in config order."""
    parts = config.component_config
    for key, names in (
        ("feature_components", [one.component for one in parts.feature_components]),
        ("predator_components", [one.component for one in parts.predator_components]),
        ("numerix_components", [one.component for one in parts.numerix_components]),
    ):
        for at, name in enumerate(names):
            yield name, join(PARTS, key, at)


def known_type(name: str) -> DataType | None:
    """The data type of this name, None when there is no such type."""
    try:
        return data_type(name)
    except ValueError:
        return None


def column_type(feature: str, group_type: str) -> tuple[str, str]:
    """(name, type name) of a fetched feature: `name@Type` overrides the type of its group."""
    name, at, own_type = feature.partition("@")
    return (name, own_type if at else group_type)


def variable(key: str) -> tuple[str, str]:
    """(variable, type name) of a score_mapping key; the type is "" when there is no `@`."""
    name, _, type_name = key.partition("@")
    return name, type_name


# ---------------------------------------------------------------- single values


def _within(path: str, value: int, low: int, high: int, unit: str = "") -> Problems:
    if not low <= value <= high:
        yield Problem(path, f"{value} is outside {low}…{high}{unit}")


def _named(path: str, value: str) -> Problems:
    if not value.strip():
        yield Problem(path, "is empty: a name is needed")


def _listed_name(path: str, at: int, value: str) -> Problems:
    """`_named` for one of a long list: its path is made only when it is needed."""
    return () if value and not value.isspace() else _named(at_index(path, at), value)


def _typed(path: str, name: str) -> Problems:
    if not name:
        yield Problem(path, "is empty: name a data type, such as DataTypeFP32")
    elif known_type(name) is None:
        hint = did_you_mean(name, _TYPE_NAMES) or "; types are FP32, INT64, BYTES, DataTypeFP32Vector, …"
        yield Problem(path, f"unknown data type {name!r}{hint}")


def _repeats(values: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(index, index of the first) of every value that has stood before."""
    seen: dict[str, int] = {}
    for at, value in enumerate(values):
        if seen.setdefault(value, at) != at:
            yield at, seen[value]


_ENDPOINT = re.compile(r"(\[[^\[\]]*\]|[A-Za-z0-9_][A-Za-z0-9._-]*)(?::([0-9]+))?")


def _endpoint(path: str, endpoint: str) -> Problems:
    match = _ENDPOINT.fullmatch(endpoint)
    if not endpoint:
        yield Problem(path, "is empty: write host or host:port")
    elif match is None or not _is_host(match[1]):
        yield Problem(path, f"{endpoint!r} is no endpoint: write host, host:port or [IPv6]:port, no scheme")
    elif match[2] and not (len(match[2]) <= 5 and 1 <= int(match[2]) <= 65535):
        yield Problem(path, f"port {match[2]} of {endpoint!r} is outside 1…65535")


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- components


def _component_names(config: ModelConfig) -> Problems:
    taken: dict[str, str] = {}
    for name, path in components(config):
        path = join(path, "component")
        yield from _named(path, name)
        if name == ROOT:
            yield Problem(path, f"{ROOT!r} is the name of the root, which is always there")
        elif name and taken.setdefault(name, path) != path:
            yield Problem(path, f"the name {name!r} is taken by {taken[name]}")


def _feature(path: str, fetch: FeatureComponent) -> Problems:
    groups = fetch.fs_request.feature_groups
    keys = join(path, "fs_keys")
    if groups and not fetch.fs_keys:
        yield Problem(keys, "is empty, yet fs_request asks for features: name the key columns")
    elif fetch.composite_id and not fetch.fs_keys:
        yield Problem(keys, "is empty, yet composite_id is true: name the columns to join")
    for at, key in enumerate(fetch.fs_keys):
        yield from _named(join(keys, at, "schema"), key.schema)
        yield from _named(join(keys, at, "col"), key.col)
    if fetch.composite_id:
        yield from _composite_id(path, fetch)
    if groups:
        yield from _named(join(path, "fs_request", "label"), fetch.fs_request.label)
    for at, group in enumerate(groups):
        yield from _group(join(path, "fs_request", "featureGroups", at), group)
    yield from _within(join(path, "comp_cache_ttl"), fetch.comp_cache_ttl, 0, MOST, " s")


def _composite_id(path: str, fetch: FeatureComponent) -> Problems:
    path = join(path, "component_id")
    yield from _named(path, fetch.component_id)
    if fetch.component_id in [key.col for key in fetch.fs_keys]:
        yield Problem(
            path, f"the composite key {fetch.component_id!r} is one of the columns it is made of: rename it"
        )


def _group(path: str, group: FeatureGroup) -> Problems:
    yield from _named(join(path, "label"), group.label)
    yield from _typed(join(path, "data_type"), group.data_type)
    if not group.features:
        yield Problem(join(path, "features"), "is empty: list features, or leave the group out")
    place = join(path, "features")
    for at, feature in enumerate(group.features):
        name, type_name = column_type(feature, group.data_type)
        yield from _listed_name(place, at, name)
        if "@" in feature:
            yield from _typed(at_index(place, at), type_name)


def _predator(path: str, model: PredatorComponent) -> Problems:
    yield from _named(join(path, "model_name"), model.model_name)
    yield from _routing(path, model)
    yield from _within(join(path, "deadline"), model.deadline, 0, MOST, " ms")
    yield from _within(join(path, "batch_size"), model.batch_size, 0, MOST, " rows")
    for key, names in (
        ("inputs", [one.name for one in model.inputs]),
        ("outputs", [one.name for one in model.outputs]),
    ):
        if not names:
            yield Problem(join(path, key), f"is empty: a model has at least one of its {key}")
        for twice, first in _repeats(names):
            place = join(path, key, twice, "name")
            yield Problem(place, f"the name {names[twice]!r} is taken by {join(path, key, first)}")
    for at, tensor in enumerate(model.inputs):
        yield from _input(join(path, "inputs", at), tensor)
    for at, output in enumerate(model.outputs):
        yield from _output(join(path, "outputs", at), output)


def _routing(path: str, model: PredatorComponent) -> Problems:
    routed = False
    points = [(to.endpoint, to.percentage) for to in model.model_end_points]
    routes = [(to.model_endpoint, to.routing_percentage) for to in model.route_config]
    for key, endpoint_key, share_key, listed in (
        ("model_end_points", "endpoint", "percentage", points),
        ("route_config", "model_endpoint", "routing_percentage", routes),
    ):
        for at, (endpoint, share) in enumerate(listed):
            yield from _endpoint(join(path, key, at, endpoint_key), endpoint)
            yield from _within(join(path, key, at, share_key), share, 0, 100, " %")
        total = sum(share for _, share in listed)
        if total != 100 and any(share for _, share in listed):
            yield Problem(
                join(path, key), f"the percentages sum to {total}: they must sum to 100, or all be 0"
            )
        routed |= total == 100
    if model.model_end_point or not (routed or points or routes):
        yield from _endpoint(join(path, "model_end_point"), model.model_end_point)
    elif not any(share for _, share in points + routes):
        cause = "is empty, and all percentages are 0: no endpoint would ever be asked"
        yield Problem(join(path, "model_end_point"), cause)


def _input(path: str, tensor: ModelInput) -> Problems:
    yield from _named(join(path, "name"), tensor.name)
    if not tensor.features:
        yield Problem(join(path, "features"), "is empty: list the columns of this input")
    place = join(path, "features")
    for at, feature in enumerate(tensor.features):
        yield from _listed_name(place, at, feature)
    yield from _typed(join(path, "data_type"), tensor.data_type)
    place = join(path, "shape")
    if not tensor.shape:
        yield Problem(place, "is empty: [1] for one value a row, [n] for n of them, [-1] for any number")
    for at, size in enumerate(tensor.shape):
        if size != -1:
            yield from _size(join(place, at), size, " (or -1, once: any number)")
    if tensor.shape.count(-1) > 1:
        yield Problem(place, f"{tensor.shape} has {tensor.shape.count(-1)} dimensions of -1: one can be free")
    yield from _volume(place, tensor.shape)


def _output(path: str, output: ModelOutput) -> Problems:
    yield from _named(join(path, "name"), output.name)
    yield from _typed(join(path, "data_type"), output.data_type)
    if not output.model_scores:
        yield Problem(join(path, "model_scores"), "is empty: name the scores of this output")
    for at, score in enumerate(output.model_scores):
        yield from _named(join(path, "model_scores", at), score)
    place = join(path, "model_scores_dims")
    scores, listed = len(output.model_scores), len(output.model_scores_dims)
    if scores != listed:
        yield Problem(place, f"{listed} dims for {scores} scores: write one list for each, [1] for one value")
    for at, dims in enumerate(output.model_scores_dims):
        if not dims:
            yield Problem(join(place, at), "is empty: [1] for one value a row, [n] for n of them")
        for axis, size in enumerate(dims):
            free = " (a score has a fixed size: -1 is for inputs)" if size == -1 else ""
            yield from _size(join(place, at, axis), size, free)
        yield from _volume(join(place, at), dims)


def _size(path: str, size: int, remark: str) -> Problems:
    for problem in _within(path, size, 1, MOST):
        yield Problem(path, problem.message + remark)


def _volume(path: str, sizes: Sequence[int]) -> Problems:
    """A product that no matrix could hold, of sizes that could each be meant."""
    volume = 1
    for size in sizes:
        if not 1 <= abs(size) <= MOST:
            return
        volume *= abs(size)
    if volume > MOST:
        yield Problem(path, f"{volume} values a row are too many: at most {MOST}")


def _numerix(path: str, compute: NumerixComponent) -> Problems:
    yield from _named(join(path, "score_col"), compute.score_col)
    yield from _named(join(path, "compute_id"), compute.compute_id)
    if compute.data_type:  # empty: FP32
        place = join(path, "data_type")
        yield from _typed(place, compute.data_type)
        kind = known_type(compute.data_type)
        if kind is not None and (kind.is_vector or kind is DataType.STRING):
            yield Problem(place, f"{compute.data_type} is no number: a score is one number a row")
    yield from _mapping(join(path, "score_mapping"), compute)


def _mapping(path: str, compute: NumerixComponent) -> Problems:
    taken: dict[str, str] = {}
    for key, column in compute.score_mapping.items():
        place = join(path, key)
        yield from _variable(place, key, compute.component_id)
        yield from _named(place, column)
        name, _ = variable(key)
        if taken.setdefault(name, key) != key:
            yield Problem(place, f"the variable {name!r} is mapped by {taken[name]!r} already")


def _variable(path: str, key: str, id_column: str) -> Problems:
    name, type_name = variable(key)
    if "@" not in key:
        yield Problem(path, f'a variable needs its type: write "{key}@DataTypeFP32"')
        return
    yield from _named(path, name)
    yield from _typed(path, type_name)
    if name and name == id_column:
        yield Problem(path, f"the variable {name!r} is also the component_id: one name, two values")


def _response(config: ModelConfig) -> Problems:
    response = config.response_config
    path = "response_config"
    for at, feature in enumerate(response.features):
        yield from _named(join(path, "features", at), feature)
    for twice, first in _repeats(response.features):
        place = join(path, "features", twice)
        yield Problem(place, f"{response.features[twice]!r} repeats {join(path, 'features', first)}")
    for key, share in (
        ("model_schema_features_perc", response.model_schema_features_perc),
        ("logging_perc", response.logging_perc),
    ):
        yield from _within(join(path, key), share, 0, 100, " %")
    yield from _within(join(path, "log_batch_size"), response.log_batch_size, 0, MOST, " rows")
