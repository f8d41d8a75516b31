"""Request adapters: from the four messages of the wire to what a request brings, whatever message it came in.

Everything a client can get wrong is found here, before a component runs: each error names field, index and bound.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from components import kernels
from components.feature_init import Brought, BroughtSlates, Column, Places
from dag.plan import Plan
from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType

__all__ = ["ADAPTERS", "Adapter", "BadRequest", "Inquiry", "Reading"]

SLATE_INDICES = "slate_target_indices"  # the column of the slates' matrix that the service writes itself
METADATA_ENTITIES = ((b"user-id", "user_id"), (b"app-version-code", "app_version_code"))

Metadata = Mapping[bytes, bytes]
POINT_WISE_TARGETS = 0x2A  # tag of field 5, length-delimited
SLATE_TARGETS = 0x3A  # field 7, in pair and slate requests
SLATES = 0x32  # field 6, in the same: pairs or slates

# Cells that any request may have. Values take two bytes each at least, so that a table without gaps has always
# fewer cells than its body has bytes; one with gaps may be as large as that of a usual body.
CELLS_FOR_ALL = 4 << 20

Rows = npt.NDArray[np.int32]
Bounds = npt.NDArray[np.int64]
M = TypeVar("M", bound=Message)


class BadRequest(ValueError):
    """The client's mistake; the message names field, index and bound."""


class Inquiry(NamedTuple):
    """A request as far as it can be read without its plan."""

    model_config_id: str
    tracking_id: str
    bring: Callable[[Plan], Brought]  # raises BadRequest


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """How requests are read. `text_features`: feature values are texts whatever their declared type."""

    text_features: bool = False
    reference_codecs: bool = False


Adapter = Callable[[bytes, Metadata, Reading], Inquiry]
"""Reads a body; raises BadRequest for one that is no such message."""


def _point_wise(body: bytes, _: Metadata, reading: Reading) -> Inquiry:
    placed, rest = _placed(body, POINT_WISE_TARGETS, reading)
    request = _parsed(predict_pb2.PointWiseRequest, body, rest)
    targets = placed.targets if placed else _MessageTargets(request.targets)
    bring = functools.partial(_bring_targets, request, targets, reading)
    return Inquiry(request.model_config_id, request.tracking_id, bring)


def _bring_targets(
    request: predict_pb2.PointWiseRequest,
    targets: _MessageTargets | _PlacedTargets,
    reading: Reading,
    plan: Plan,
) -> Brought:
    return Brought(targets.rows, _predict_columns(plan, request, targets, reading), body=targets.body)


def _pair_wise(body: bytes, _: Metadata, reading: Reading) -> Inquiry:
    placed, rest = _placed(body, SLATE_TARGETS, reading, slates=SLATES, pairs=True)
    request = _parsed(predict_pb2.PairWiseRequest, body, rest)
    targets = placed.targets if placed else _MessageTargets(request.targets)
    pairs = placed.slates if placed else _MessagePairs(request.pairs)
    return _in_slates(request, targets, pairs, request.pair_input_schema, reading)


def _slate_wise(body: bytes, _: Metadata, reading: Reading) -> Inquiry:
    placed, rest = _placed(body, SLATE_TARGETS, reading, slates=SLATES)
    request = _parsed(predict_pb2.SlateWiseRequest, body, rest)
    targets = placed.targets if placed else _MessageTargets(request.targets)
    slates = placed.slates if placed else _MessageSlates(request.slates)
    return _in_slates(request, targets, slates, request.slate_input_schema, reading)


def _in_slates(
    request: predict_pb2.PairWiseRequest | predict_pb2.SlateWiseRequest,
    targets: _MessageTargets | _PlacedTargets,
    slates: _MessageSlates | _MessagePairs | _PlacedSlates,
    schema: Schema,
    reading: Reading,
) -> Inquiry:
    bring = functools.partial(_bring_slates, request, targets, slates, schema, reading)
    return Inquiry(request.model_config_id, request.tracking_id, bring)


def _bring_slates(
    request: predict_pb2.PairWiseRequest | predict_pb2.SlateWiseRequest,
    targets: _MessageTargets | _PlacedTargets,
    slates: _MessageSlates | _MessagePairs | _PlacedSlates,
    schema: Schema,
    reading: Reading,
    plan: Plan,
) -> Brought:
    columns = _predict_columns(plan, request, targets, reading)
    rows, bounds = slates.named()
    if len(bounds) == 1:
        raise BadRequest(f"{slates.unit}s is empty: at least one {slates.unit} is needed")
    outside = np.flatnonzero((rows < 0) | (rows >= targets.rows))
    if len(outside):
        place = int(outside[0])
        raise _wrong_index(slates.unit, bounds, place, int(rows[place]), targets.rows)
    own = _slate_columns(request, schema, slates, reading)
    return Brought(targets.rows, columns, BroughtSlates(rows, bounds, own), targets.body)


def _retrieve(body: bytes, metadata: Metadata, _: Reading) -> Inquiry:
    request = _parsed(inferflow_pb2.InferflowRequestProto, body)
    bring = functools.partial(_bring_entities, request, metadata)
    return Inquiry(request.model_config_id, request.tracking_id, bring)


def _bring_entities(request: inferflow_pb2.InferflowRequestProto, metadata: Metadata, plan: Plan) -> Brought:
    columns = list(_entity_columns(request.entities))
    present = {column.name for column in columns}
    added = [(key, name) for key, name in METADATA_ENTITIES if key in metadata and name not in present]
    columns += [Column(name, DataType.STRING, [metadata[key]]) for key, name in added]
    if not _good_names(plan, [column.name for column in columns]):
        places = [(name, f"metadata {key.decode()!r}") for key, name in added]
        _check_names(plan, [*_entity_places(request.entities), *places])
    return Brought(len(request.entities[0].ids), columns)


ADAPTERS: tuple[Adapter, ...] = (_retrieve, _point_wise, _pair_wise, _slate_wise)
"""By method: RetrieveModelScore, InferPointWise, InferPairWise, InferSlateWise."""


def _parsed(kind: type[M], body: bytes, rest: bytes | None = None) -> M:
    """The message of a body; of its `rest` when the targets were taken out of it."""
    try:
        return kind.FromString(body if rest is None else rest)
    except DecodeError as error:
        raise BadRequest(f"the body of {len(body)} bytes is no {kind.DESCRIPTOR.name}") from error


def _wrong_index(unit: str, bounds: Bounds, place: int, index: int, targets: int) -> BadRequest:
    """The error for the target index at this place of all."""
    number = int(np.searchsorted(bounds, place, "right")) - 1
    within = place - int(bounds[number])
    field = f"target_indices[{within}]"
    if unit == "pair":
        field = ("first_target_index", "second_target_index")[within]
    return BadRequest(
        f"{unit}s[{number}].{field} is {index}, but there are {targets} targets (0 to {targets - 1})"
    )


def _good_names(plan: Plan, names: Sequence[str]) -> bool:
    """Whether `_check_names` would find nothing: the common case, without a text for each place."""
    distinct = set(names)
    return (
        len(distinct) == len(names)
        and "" not in distinct
        and SLATE_INDICES not in distinct
        and plan.composites.isdisjoint(distinct)
    )


def _check_names(plan: Plan, names: Iterable[tuple[str, str]]) -> None:
    """Refuses (name, place) pairs that name a column twice, or one that the service writes."""
    seen: dict[str, str] = {}
    for name, place in names:
        if not name:
            raise BadRequest(f"{place} has an empty name")
        if name in seen:
            raise BadRequest(f"{place} names column {name!r}, which {seen[name]} names already")
        if name == SLATE_INDICES:
            raise BadRequest(f"{place} names column {name!r}, which the service writes itself")
        if name in plan.composites:
            raise BadRequest(
                f"{place} names column {name!r}, which {plan.model_config_id} writes as a composite key"
            )
        seen[name] = place


# --- RetrieveModelScore


def _entity_columns(entities: Sequence[inferflow_pb2.InferflowRequestProto.Entity]) -> Iterable[Column]:
    if not entities:
        raise BadRequest("entities is empty: at least one entity is needed")
    rows = len(entities[0].ids)
    for number, entity in enumerate(entities):
        place = f"entities[{number}]"
        if not entity.ids:
            raise BadRequest(f"{place}.ids ({entity.entity!r}) is empty: at least one id is needed")
        if len(entity.ids) not in (1, rows):
            raise BadRequest(
                f"{place}.ids ({entity.entity!r}) has {len(entity.ids)} ids, entities[0].ids has {rows}: "
                f"1 or {rows} are needed"
            )
        yield Column(entity.entity, DataType.STRING, _encoded(entity.ids))
        for at, feature in enumerate(entity.features):
            values = feature.ids_feature_value
            if not values:
                continue
            if len(values) not in (1, rows):
                raise BadRequest(
                    f"{place}.features[{at}].ids_feature_value ({feature.name!r}) has {len(values)} values "
                    f"for {rows} rows: 1 or {rows} are needed"
                )
            yield Column(feature.name, DataType.STRING, _encoded(values))


def _entity_places(
    entities: Sequence[inferflow_pb2.InferflowRequestProto.Entity],
) -> Iterable[tuple[str, str]]:
    """The name of each of `_entity_columns`, and where it stands."""
    for number, entity in enumerate(entities):
        yield entity.entity, f"entities[{number}].entity"
        for at, feature in enumerate(entity.features):
            if feature.ids_feature_value:
                yield feature.name, f"entities[{number}].features[{at}].name"


def _encoded(texts: Iterable[str]) -> list[bytes]:
    return [text.encode() for text in texts]


# --- Predict

Schema = Sequence[predict_pb2.FeatureSchema]
PredictRequest = predict_pb2.PointWiseRequest | predict_pb2.PairWiseRequest | predict_pb2.SlateWiseRequest


class _MessageTargets:
    """The targets of a request as protobuf messages: the reference of `_PlacedTargets`."""

    body = b""

    def __init__(self, targets: Sequence[predict_pb2.Target]) -> None:
        self.rows = len(targets)
        self._targets = targets

    def ids(self) -> list[bytes]:
        return [target.id.encode() for target in self._targets]

    def features(self, schema: Schema, reading: Reading) -> list[Column]:
        return _row_columns(schema, self._targets, "target_input_schema", "targets", reading)


class _PlacedTargets:
    """The targets of a request by where their fields stand in its body."""

    def __init__(self, body: bytes, ids: Places, values: _PlacedValues) -> None:
        self.body = body
        self.rows = len(ids.starts)
        self._ids = ids
        self._values = values

    def ids(self) -> Places:
        return self._ids

    def features(self, schema: Schema, reading: Reading) -> list[Column]:
        return self._values.columns(schema, "target_input_schema", "targets", reading)


class _PlacedValues(NamedTuple):
    """Feature values by where they stand in a body: starts, sizes [values, rows].

    Where a row has fewer, start and size are 0.
    """

    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, values: int, rows: int) -> _PlacedValues:
        return cls(np.empty((values, rows), np.int64), np.empty((values, rows), np.int32))

    def columns(self, schema: Schema, schema_field: str, rows_field: str, reading: Reading) -> list[Column]:
        """The values as columns, the reference of which is `_row_columns`."""
        if len(self.starts) > len(schema):
            number = int(np.flatnonzero(self.starts[len(schema)])[0])  # no value stands at byte 0
            count = int(np.count_nonzero(self.starts[:, number]))
            raise _too_many_values(rows_field, number, count, schema_field, len(schema))
        columns = []
        for at, part in enumerate(schema):
            kind = _data_type(part.data_type, f"{schema_field}[{at}]", reading)
            if at >= len(self.starts):
                continue
            sizes = self.sizes[at]
            for number in _misfits(sizes, kind, part.vector_dim).tolist():
                place = f"{rows_field}[{number}].feature_values[{at}]"
                raise _wrong_length(place, part.name, int(sizes[number]), kind, part.vector_dim)
            columns.append(Column(part.name, kind, Places(self.starts[at], sizes), part.vector_dim))
        return columns


class _MessagePairs:
    """The pairs of a request as protobuf messages: a reference of `_PlacedSlates`."""

    unit = "pair"

    def __init__(self, pairs: Sequence[predict_pb2.TargetPair]) -> None:
        self._pairs = pairs

    def named(self) -> tuple[Rows, Bounds]:
        indices = [(pair.first_target_index, pair.second_target_index) for pair in self._pairs]
        return np.array(indices, np.int32).reshape(-1), np.arange(0, 2 * len(indices) + 1, 2)

    def features(self, schema: Schema, reading: Reading) -> list[Column]:
        return _row_columns(schema, self._pairs, "pair_input_schema", "pairs", reading)


class _MessageSlates:
    """The slates of a request as protobuf messages: a reference of `_PlacedSlates`."""

    unit = "slate"

    def __init__(self, slates: Sequence[predict_pb2.TargetSlate]) -> None:
        self._slates = slates

    def named(self) -> tuple[Rows, Bounds]:
        """The target rows of each slate, as in dag.component.Slates."""
        indices = [slate.target_indices for slate in self._slates]
        rows = np.array([*itertools.chain.from_iterable(indices)], np.int32)
        return rows, np.array([*itertools.accumulate(map(len, indices), initial=0)], np.int64)

    def features(self, schema: Schema, reading: Reading) -> list[Column]:
        return _row_columns(schema, self._slates, "slate_input_schema", "slates", reading)


class _PlacedSlates:
    """The pairs or slates of a request: the rows they name, and where their values stand in its body."""

    def __init__(self, unit: str, rows: Rows, bounds: Bounds, values: _PlacedValues) -> None:
        self.unit = unit
        self._rows = rows
        self._bounds = bounds
        self._values = values

    def named(self) -> tuple[Rows, Bounds]:
        return self._rows, self._bounds

    def features(self, schema: Schema, reading: Reading) -> list[Column]:
        return self._values.columns(schema, f"{self.unit}_input_schema", f"{self.unit}s", reading)


class _Placed(NamedTuple):
    """What kernels find in a body."""

    targets: _PlacedTargets
    slates: _PlacedSlates


NO_SLATES = _PlacedSlates("slate", np.empty(0, np.int32), np.zeros(1, np.int64), _PlacedValues.empty(0, 0))


def _placed(
    body: bytes, tag: int, reading: Reading, *, slates: int = 0, pairs: bool = False
) -> tuple[_Placed | None, bytes]:
    """Targets (messages of field `tag`), pairs or slates (of field `slates`), and the bytes of all other fields.

    None and the whole body when the reference is to read it: on demand, and whenever the kernels cannot.
    Raises BadRequest for a table that would be out of all proportion to the body.
    """
    if reading.reference_codecs:
        return None, body
    data = np.frombuffer(body, np.uint8)
    counts = np.empty(7, np.int64)
    if kernels.scan_request(data, tag, slates, int(pairs), counts) < 0:
        return None, body
    rows, most, other, groups, indices, most_of_groups, group_bytes = counts.tolist()
    _check_cells("targets", rows, most, len(body))
    ids = Places(np.empty(rows, np.int64), np.empty(rows, np.int32))
    values = _PlacedValues.empty(most, rows)
    rest = np.empty(other, np.uint8)
    if kernels.read_targets(data, tag, slates, *ids, *values, rest) != rows:
        return None, body
    targets = _PlacedTargets(body, ids, values)
    if not slates:
        return _Placed(targets, NO_SLATES), rest.tobytes()
    unit = "pair" if pairs else "slate"
    _check_cells(f"{unit}s", groups, most_of_groups, group_bytes)
    named = np.empty(indices, np.int32), np.empty(groups + 1, np.int64)
    values = _PlacedValues.empty(most_of_groups, groups)
    if kernels.read_slates(data, slates, int(pairs), *named, *values) != groups:
        return None, body
    return _Placed(targets, _PlacedSlates(unit, *named, values)), rest.tobytes()


def _predict_columns(
    plan: Plan, request: PredictRequest, targets: _MessageTargets | _PlacedTargets, reading: Reading
) -> list[Column]:
    if not targets.rows:
        raise BadRequest("targets is empty: at least one target is needed")
    context = _context_columns(request.context_features, reading)
    schema = request.target_input_schema
    names = [plan.id_column, *(column.name for column in context), *(part.name for part in schema)]
    if not _good_names(plan, names):
        places = [(plan.id_column, "the id column")]
        places += [(column.name, f"context_features[{at}]") for at, column in enumerate(context)]
        places += [(part.name, f"target_input_schema[{at}]") for at, part in enumerate(schema)]
        _check_names(plan, places)
    return [
        Column(plan.id_column, DataType.STRING, targets.ids()),
        *context,
        *targets.features(schema, reading),
    ]


def _slate_columns(
    request: predict_pb2.PairWiseRequest | predict_pb2.SlateWiseRequest,
    schema: Schema,
    slates: _MessageSlates | _MessagePairs | _PlacedSlates,
    reading: Reading,
) -> list[Column]:
    """The columns of the slates' matrix: their own features, and the context features."""
    names: set[str] = set()
    for at, part in enumerate(schema):
        if part.name == SLATE_INDICES or part.name in names or not part.name:
            raise BadRequest(
                f"{slates.unit}_input_schema[{at}].name is {part.name!r}: it must be neither empty, nor named "
                f"twice, nor {SLATE_INDICES!r}, which the service writes itself"
            )
        names.add(part.name)
    context = [
        column for column in _context_columns(request.context_features, reading) if column.name not in names
    ]
    return [*slates.features(schema, reading), *context]


def _context_columns(features: Sequence[predict_pb2.ContextFeature], reading: Reading) -> list[Column]:
    columns = []
    for at, feature in enumerate(features):
        place = f"context_features[{at}]"
        kind = _data_type(feature.data_type, place, reading)
        _check_value(feature.value, kind, feature.vector_dim, f"{place}.value", feature.name)
        columns.append(Column(feature.name, kind, [feature.value], feature.vector_dim))
    return columns


def _row_columns(
    schema: Schema,
    rows: Sequence[predict_pb2.Target] | Sequence[predict_pb2.TargetPair] | Sequence[predict_pb2.TargetSlate],
    schema_field: str,
    rows_field: str,
    reading: Reading,
) -> list[Column]:
    """The features of targets, pairs or slates, as columns."""
    values = [row.feature_values for row in rows]
    longest = max(map(len, values))
    if len(values) * longest > CELLS_FOR_ALL:
        _check_cells(rows_field, len(values), longest, sum(row.ByteSize() for row in rows))
    if longest > len(schema):
        number = next(at for at, row in enumerate(values) if len(row) > len(schema))
        raise _too_many_values(rows_field, number, len(values[number]), schema_field, len(schema))
    columns = []
    by_column = itertools.islice(itertools.zip_longest(*values, fillvalue=b""), len(schema))
    filled = itertools.chain(by_column, itertools.repeat(()))
    for at, (part, column) in enumerate(zip(schema, filled, strict=False)):
        kind = _data_type(part.data_type, f"{schema_field}[{at}]", reading)
        if not column:
            continue
        if kind.element is not DataType.STRING:
            for number, value in enumerate(column):
                _check_value(
                    value, kind, part.vector_dim, f"{rows_field}[{number}].feature_values[{at}]", part.name
                )
        columns.append(Column(part.name, kind, column, part.vector_dim))
    return columns


def _check_cells(rows_field: str, rows: int, values: int, size: int) -> None:
    """Refuses a few long rows among many short ones, `size` bytes together: all are padded to the longest."""
    limit = max(size, CELLS_FOR_ALL)
    if rows * values > limit:
        raise BadRequest(
            f"{rows_field} has {rows} entries with up to {values} feature_values, which makes a table of "
            f"{rows * values} cells: the limit is {limit}"
        )


def _data_type(number: int, place: str, reading: Reading) -> DataType:
    if reading.text_features:
        return DataType.STRING
    if not 1 <= number <= DataType.BOOL_VECTOR:
        raise BadRequest(
            f"{place}.data_type is {number}: it must be one of DataType "
            f"(1 to {int(DataType.BOOL_VECTOR)}; texts are {int(DataType.STRING)}, DataTypeString)"
        )
    return DataType(number)


def _check_value(value: bytes, kind: DataType, dim: int, place: str, name: str) -> None:
    """Refuses a value whose length does not fit its type; an empty one is no value."""
    if value and kind.element is not DataType.STRING and len(_misfits(np.array([len(value)]), kind, dim)):
        raise _wrong_length(place, name, len(value), kind, dim)


def _misfits(sizes: npt.NDArray[np.integer[Any]], kind: DataType, dim: int) -> npt.NDArray[np.intp]:
    """Which of these lengths do not fit the type; 0 is no value and fits."""
    size = kind.size
    if not size:
        return np.empty(0, np.intp)
    if not kind.is_vector:
        return np.flatnonzero((sizes != size) & (sizes != 0))
    if dim > 0:
        return np.flatnonzero((sizes != size * dim) & (sizes != 0))
    return np.flatnonzero(sizes % size)


def _wrong_length(place: str, name: str, length: int, kind: DataType, dim: int) -> BadRequest:
    wanted = str(kind.size)
    if kind.is_vector:
        wanted = f"{dim} × {kind.size}" if dim > 0 else f"a multiple of {kind.size}"
    return BadRequest(f"{place} ({name!r}) has {length} bytes, a {kind.label} has {wanted}")


def _too_many_values(rows_field: str, row: int, values: int, schema_field: str, named: int) -> BadRequest:
    return BadRequest(f"{rows_field}[{row}].feature_values has {values} values, {schema_field} names {named}")
