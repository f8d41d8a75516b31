"""Request adapters: from the four messages of the wire to what a request brings, whatever message it came in.

Everything a client can get wrong is found here, before a component runs: each error names field, index and bound.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from components.feature_init import Brought, BroughtSlates, Column
from dag.plan import Plan
from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType

__all__ = ["ADAPTERS", "Adapter", "BadRequest", "Inquiry", "read"]

SLATE_INDICES = "slate_target_indices"  # the column of the slates' matrix that the service writes itself
METADATA_ENTITIES = ((b"user-id", "user_id"), (b"app-version-code", "app_version_code"))

Metadata = Mapping[bytes, bytes]
TargetRows = list[npt.NDArray[np.int32]]
M = TypeVar("M", bound=Message)


class BadRequest(ValueError):
    """The client's mistake; the message names field, index and bound."""


@dataclasses.dataclass(frozen=True, slots=True)
class Inquiry:
    """A request as far as it can be read without its plan."""

    model_config_id: str
    tracking_id: str
    bring: Callable[[Plan], Brought]  # raises BadRequest


Adapter = Callable[[bytes, Metadata, bool], Inquiry]


def read(adapter: Adapter, body: bytes, metadata: Metadata, *, text_features: bool) -> Inquiry:
    """A request read by its adapter. `text_features`: feature values are texts whatever their declared type.

    Raises BadRequest for a body that is no such message.
    """
    return adapter(body, metadata, text_features)


def _point_wise(body: bytes, _: Metadata, text_features: bool) -> Inquiry:
    request = _parsed(predict_pb2.PointWiseRequest, body)

    def bring(plan: Plan) -> Brought:
        return Brought(len(request.targets), _predict_columns(plan, request, text_features))

    return Inquiry(request.model_config_id, request.tracking_id, bring)


def _pair_wise(body: bytes, _: Metadata, text_features: bool) -> Inquiry:
    request = _parsed(predict_pb2.PairWiseRequest, body)

    def bring(plan: Plan) -> Brought:
        columns = _predict_columns(plan, request, text_features)
        if not request.pairs:
            raise BadRequest("pairs is empty: at least one pair is needed")
        targets = len(request.targets)
        rows: TargetRows = []
        for number, pair in enumerate(request.pairs):
            first, second = pair.first_target_index, pair.second_target_index
            _check_index(f"pairs[{number}].first_target_index", first, targets)
            _check_index(f"pairs[{number}].second_target_index", second, targets)
            rows.append(np.array((first, second), np.int32))
        own = _slate_columns(request, request.pair_input_schema, request.pairs, "pair", text_features)
        return Brought(targets, columns, BroughtSlates(rows, own))

    return Inquiry(request.model_config_id, request.tracking_id, bring)


def _slate_wise(body: bytes, _: Metadata, text_features: bool) -> Inquiry:
    request = _parsed(predict_pb2.SlateWiseRequest, body)

    def bring(plan: Plan) -> Brought:
        columns = _predict_columns(plan, request, text_features)
        if not request.slates:
            raise BadRequest("slates is empty: at least one slate is needed")
        targets = len(request.targets)
        rows: TargetRows = []
        for number, slate in enumerate(request.slates):
            indices = np.array(slate.target_indices, np.int32)
            for place in np.flatnonzero((indices < 0) | (indices >= targets)).tolist():
                _check_index(f"slates[{number}].target_indices[{place}]", int(indices[place]), targets)
            rows.append(indices)
        own = _slate_columns(request, request.slate_input_schema, request.slates, "slate", text_features)
        return Brought(targets, columns, BroughtSlates(rows, own))

    return Inquiry(request.model_config_id, request.tracking_id, bring)


def _retrieve(body: bytes, metadata: Metadata, _: bool) -> Inquiry:
    request = _parsed(inferflow_pb2.InferflowRequestProto, body)

    def bring(plan: Plan) -> Brought:
        columns = list(_entity_columns(request.entities))
        present = {column.name for column in columns}
        for key, name in METADATA_ENTITIES:
            if key in metadata and name not in present:
                columns.append(Column(name, DataType.STRING, [metadata[key]]))
        _check_names(plan, ((column.name, f"column {column.name!r}") for column in columns))
        return Brought(len(request.entities[0].ids), columns)

    return Inquiry(request.model_config_id, request.tracking_id, bring)


ADAPTERS: tuple[Adapter, ...] = (_retrieve, _point_wise, _pair_wise, _slate_wise)
"""By method: RetrieveModelScore, InferPointWise, InferPairWise, InferSlateWise."""


def _parsed(kind: type[M], body: bytes) -> M:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise BadRequest(f"the body of {len(body)} bytes is no {kind.DESCRIPTOR.name}") from error


def _check_index(field: str, index: int, targets: int) -> None:
    if not 0 <= index < targets:
        raise BadRequest(f"{field} is {index}, but there are {targets} targets (0 to {targets - 1})")


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


def _encoded(texts: Iterable[str]) -> list[bytes]:
    return [text.encode() for text in texts]


# --- Predict

PredictRequest = predict_pb2.PointWiseRequest | predict_pb2.PairWiseRequest | predict_pb2.SlateWiseRequest


def _predict_columns(plan: Plan, request: PredictRequest, text_features: bool) -> list[Column]:
    if not request.targets:
        raise BadRequest("targets is empty: at least one target is needed")
    context = _context_columns(request.context_features, text_features)
    schema = request.target_input_schema
    places = [(plan.id_column, "the id column")]
    places += [(column.name, f"context_features[{at}]") for at, column in enumerate(context)]
    places += [(part.name, f"target_input_schema[{at}]") for at, part in enumerate(schema)]
    _check_names(plan, places)
    ids = Column(plan.id_column, DataType.STRING, [target.id.encode() for target in request.targets])
    return [
        ids,
        *context,
        *_row_columns(schema, request.targets, "target_input_schema", "targets", text_features),
    ]


def _slate_columns(
    request: PredictRequest,
    schema: Sequence[predict_pb2.FeatureSchema],
    rows: Sequence[predict_pb2.TargetPair] | Sequence[predict_pb2.TargetSlate],
    unit: str,
    text_features: bool,
) -> list[Column]:
    """The columns of the slates' matrix: their own features, and the context features."""
    names: set[str] = set()
    for at, part in enumerate(schema):
        if part.name == SLATE_INDICES or part.name in names or not part.name:
            raise BadRequest(
                f"{unit}_input_schema[{at}].name is {part.name!r}: it must be neither empty, nor named twice, "
                f"nor {SLATE_INDICES!r}, which the service writes itself"
            )
        names.add(part.name)
    context = [
        column
        for column in _context_columns(request.context_features, text_features)
        if column.name not in names
    ]
    return [*_row_columns(schema, rows, f"{unit}_input_schema", f"{unit}s", text_features), *context]


def _context_columns(features: Sequence[predict_pb2.ContextFeature], text_features: bool) -> list[Column]:
    columns = []
    for at, feature in enumerate(features):
        place = f"context_features[{at}]"
        kind = _data_type(feature.data_type, place, text_features)
        _check_value(feature.value, kind, feature.vector_dim, f"{place}.value", feature.name)
        columns.append(Column(feature.name, kind, [feature.value], feature.vector_dim))
    return columns


def _row_columns(
    schema: Sequence[predict_pb2.FeatureSchema],
    rows: Sequence[predict_pb2.Target] | Sequence[predict_pb2.TargetPair] | Sequence[predict_pb2.TargetSlate],
    schema_field: str,
    rows_field: str,
    text_features: bool,
) -> list[Column]:
    """The features of targets, pairs or slates, as columns."""
    values = [row.feature_values for row in rows]
    longest = max(map(len, values))
    if longest > len(schema):
        number = next(at for at, row in enumerate(values) if len(row) > len(schema))
        raise BadRequest(
            f"{rows_field}[{number}].feature_values has {len(values[number])} values, "
            f"{schema_field} names {len(schema)}"
        )
    columns = []
    by_column = itertools.islice(itertools.zip_longest(*values, fillvalue=b""), len(schema))
    filled = itertools.chain(by_column, itertools.repeat(()))
    for at, (part, column) in enumerate(zip(schema, filled, strict=False)):
        kind = _data_type(part.data_type, f"{schema_field}[{at}]", text_features)
        if not column:
            continue
        if kind.element is not DataType.STRING:
            for number, value in enumerate(column):
                _check_value(
                    value, kind, part.vector_dim, f"{rows_field}[{number}].feature_values[{at}]", part.name
                )
        columns.append(Column(part.name, kind, column, part.vector_dim))
    return columns


def _data_type(number: int, place: str, text_features: bool) -> DataType:
    if text_features:
        return DataType.STRING
    if not 1 <= number <= DataType.BOOL_VECTOR:
        raise BadRequest(
            f"{place}.data_type is {number}: it must be one of DataType "
            f"(1 to {int(DataType.BOOL_VECTOR)}; texts are {int(DataType.STRING)}, DataTypeString)"
        )
    return DataType(number)


def _check_value(value: bytes, kind: DataType, dim: int, place: str, name: str) -> None:
    """Refuses a value whose length does not fit its type; an empty one is no value."""
    size = kind.size
    if not value or not size:
        return
    if not kind.is_vector:
        if len(value) != size:
            raise BadRequest(f"{place} ({name!r}) has {len(value)} bytes, a {kind.label} has {size}")
    elif len(value) % size or (dim > 0 and len(value) != dim * size):
        wanted = f"{dim} × {size}" if dim > 0 else f"a multiple of {size}"
        raise BadRequest(f"{place} ({name!r}) has {len(value)} bytes, a {kind.label} has {wanted}")
