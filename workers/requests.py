"""Request adapters: from the four messages of the wire to what a request brings, whatever message it came in.

Everything a client can get wrong is found here, before a component runs: each error names field, index and bound.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message
from numpy import empty, int32, int64

from components import request_kernels
from components.feature_init import Brought, BroughtSlates, Column
from components.kernels import NO_ROOM
from components.request_kernels import COLUMN_PARTS
from components.scratch import scratch
from dag.plan import Plan
from proto import inferflow_pb2, predict_pb2
from shared.datatypes import DataType
from shared.shm_matrix import Bytes, Slot, TextColumn, TextTable

__all__ = ["ADAPTERS", "Adapter", "BadRequest", "Inquiry", "Reading"]

SLATE_INDICES = "slate_target_indices"  # the column of the slates' matrix that the service writes itself
METADATA_ENTITIES = ((b"user-id", "user_id"), (b"app-version-code", "app_version_code"))

Metadata = Mapping[bytes, bytes]
NEITHER: Final = 0  # what a request has besides targets; as in components.request_kernels
PAIRS: Final = 1
SLATES: Final = 2

MAX_SHAPES = 32  # that are kept for a plan
MAX_SHAPE = 16 << 10  # bytes of one that is kept: some 400 features

# Cells that any request may have. Values take two bytes each at least, so that a table without gaps has always
# fewer cells than its body has bytes; one with gaps may be as large as that of a usual body.
CELLS_FOR_ALL = 4 << 20

Rows = npt.NDArray[np.int32]
Bounds = npt.NDArray[np.int64]
M = TypeVar("M", bound=Message)


class BadRequest(ValueError):
    """The client's mistake; the message names field, index and bound."""


class Inquiry:
    """A request as far as it can be read without its plan."""

    def __init__(self, model_config_id: str, tracking_id: str) -> None:
        self.model_config_id = model_config_id
        self.tracking_id = tracking_id

    def bring(self, plan: Plan) -> Brought:
        """What the request brings to its plan. Raises BadRequest."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """How requests are read. `text_features`: feature values are texts whatever their declared type."""

    text_features: bool = False
    reference_codecs: bool = False


Adapter = Callable[[bytes, Metadata, Reading, Slot], Inquiry]
"""Reads a body; the slot is that of its matrix. Raises BadRequest if it is no such message, and MatrixFull."""


def _retrieve(body: bytes, metadata: Metadata, reading: Reading, slot: Slot) -> Inquiry:
    return _placed_entities(body, metadata, reading, slot) or _entities(body, metadata)


def _point_wise(body: bytes, _: Metadata, reading: Reading, slot: Slot) -> Inquiry:
    return _placed(body, NEITHER, reading, slot) or _messages(body, NEITHER, reading)


def _pair_wise(body: bytes, _: Metadata, reading: Reading, slot: Slot) -> Inquiry:
    return _placed(body, PAIRS, reading, slot) or _messages(body, PAIRS, reading)


def _slate_wise(body: bytes, _: Metadata, reading: Reading, slot: Slot) -> Inquiry:
    return _placed(body, SLATES, reading, slot) or _messages(body, SLATES, reading)


ADAPTERS: tuple[Adapter, ...] = (_retrieve, _point_wise, _pair_wise, _slate_wise)
"""By method: RetrieveModelScore, InferPointWise, InferPairWise, InferSlateWise."""


def _parsed(kind: type[M], body: bytes) -> M:
    """The message of a body."""
    try:
        return kind.FromString(body)
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


def _entities(body: bytes, metadata: Metadata) -> _Entities:
    """A RetrieveModelScore request, read by protobuf. Raises BadRequest."""
    return _Entities(_parsed(inferflow_pb2.InferflowRequestProto, body), metadata)


class _Entities(Inquiry):
    """A RetrieveModelScore request as a message: the reference of `_PlacedEntities`, and who says what is wrong."""

    def __init__(self, request: inferflow_pb2.InferflowRequestProto, metadata: Metadata) -> None:
        super().__init__(request.model_config_id, request.tracking_id)
        self._request = request
        self._metadata = metadata

    def bring(self, plan: Plan) -> Brought:
        entities, metadata = self._request.entities, self._metadata
        columns = list(_entity_columns(entities))
        added = _add_metadata(columns, metadata)
        if not _good_names(plan, [column.name for column in columns]):
            places = [(name, f"metadata {key.decode()!r}") for key, name in added]
            _check_names(plan, [*_entity_places(entities), *places])
        return Brought(len(entities[0].ids), columns)


def _add_metadata(columns: list[Column], metadata: Metadata) -> list[tuple[bytes, str]]:
    """Adds the entities that only the metadata have; returns their keys there, and their names."""
    present = {column.name for column in columns}
    added = [(key, name) for key, name in METADATA_ENTITIES if key in metadata and name not in present]
    columns += [Column(name, DataType.STRING, [metadata[key]]) for key, name in added]
    return added


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


class _PlacedEntities(Inquiry):
    """A RetrieveModelScore request by where its parts stand in the slot of its matrix."""

    def __init__(
        self,
        model_config_id: str,
        tracking_id: str,
        body: bytes,
        metadata: Metadata,
        rows: int,
        columns: list[Column],
    ) -> None:
        super().__init__(model_config_id, tracking_id)
        self._body = body
        self._metadata = metadata
        self._rows = rows
        self._columns = columns

    def bring(self, plan: Plan) -> Brought:
        columns = self._columns
        _add_metadata(columns, self._metadata)
        if not _good_names(plan, [column.name for column in columns]):
            return _entities(self._body, self._metadata).bring(plan)
        return Brought(self._rows, columns)


def _placed_entities(body: bytes, metadata: Metadata, reading: Reading, slot: Slot) -> Inquiry | None:
    """A RetrieveModelScore request by a kernel. Raises MatrixFull.

    None when the reference is to read it: on demand, and when something is wrong with it.
    """
    if reading.reference_codecs:
        return None
    size = len(body)
    heap, at = slot.copy(body)
    # Texts take more than four bytes each in most requests, and two at least in all.
    for room in (32 + size // 4, 32 + size // 2):
        table, places = scratch().carriers(COLUMN_PARTS * room), slot.texts(room)
        read = request_kernels.read_entities(heap, at, size, table, places.starts, places.sizes)
        if read[0] != NO_ROOM:
            break
    code, count, model, model_end, tracking, tracking_end = read
    if code < 0 or not count:
        return None
    found: list[int] = table[: COLUMN_PARTS * count].tolist()
    rows = found[request_kernels.COUNT]
    columns: list[Column] = []
    for begin in range(0, COLUMN_PARTS * count, COLUMN_PARTS):
        name, name_end, first, texts, feature = found[begin : begin + COLUMN_PARTS]
        if not texts and feature:
            continue  # a feature without values
        if not texts or texts not in (1, rows):
            return None
        values = _values(heap, places, first, texts, body, at)
        columns.append(Column(body[name - at : name_end - at].decode(), DataType.STRING, values))
    return _PlacedEntities(
        body[model:model_end].decode(), body[tracking:tracking_end].decode(), body, metadata, rows, columns
    )


def _values(heap: Bytes, table: TextTable, first: int, count: int, body: bytes, at: int) -> TextColumn:
    """So many values of a column: a single one is that of all rows. `body` stands in the heap from `at` on."""
    if count == 1:
        return table.constant(heap, first, body, at)
    return table.column(heap, first, count)


# --- Predict

Schema = Sequence[predict_pb2.FeatureSchema]
PredictRequest = predict_pb2.PointWiseRequest | predict_pb2.PairWiseRequest | predict_pb2.SlateWiseRequest


KINDS: tuple[type[PredictRequest], ...] = (
    predict_pb2.PointWiseRequest,
    predict_pb2.PairWiseRequest,
    predict_pb2.SlateWiseRequest,
)
"""By what they have besides targets."""


def _messages(body: bytes, groups: int, reading: Reading) -> Inquiry:
    """A Predict request, read by protobuf. Raises BadRequest."""
    return _Messages(_parsed(KINDS[groups], body), reading)


class _Messages(Inquiry):
    """A Predict request as protobuf messages: the reference of `_Placed`, and who says what is wrong with one."""

    def __init__(self, request: PredictRequest, reading: Reading) -> None:
        super().__init__(request.model_config_id, request.tracking_id)
        self._request = request
        self._reading = reading

    def bring(self, plan: Plan) -> Brought:
        request, reading = self._request, self._reading
        columns = _predict_columns(plan, request, reading)
        targets = len(request.targets)
        if isinstance(request, predict_pb2.PointWiseRequest):
            return Brought(targets, columns)
        slates: _MessagePairs | _MessageSlates
        if isinstance(request, predict_pb2.PairWiseRequest):
            slates, schema = _MessagePairs(request.pairs), request.pair_input_schema
        else:
            slates, schema = _MessageSlates(request.slates), request.slate_input_schema
        rows, bounds = slates.named()
        if len(bounds) == 1:
            raise BadRequest(f"{slates.unit}s is empty: at least one {slates.unit} is needed")
        outside = np.flatnonzero((rows < 0) | (rows >= targets))
        if len(outside):
            place = int(outside[0])
            raise _wrong_index(slates.unit, bounds, place, int(rows[place]), targets)
        own = _slate_columns(request, schema, slates, reading)
        return Brought(targets, columns, BroughtSlates(rows, bounds, own))


class _MessagePairs:
    """The pairs of a request as protobuf messages."""

    unit = "pair"

    def __init__(self, pairs: Sequence[predict_pb2.TargetPair]) -> None:
        self._pairs = pairs

    def named(self) -> tuple[Rows, Bounds]:
        indices = [(pair.first_target_index, pair.second_target_index) for pair in self._pairs]
        return np.array(indices, np.int32).reshape(-1), np.arange(0, 2 * len(indices) + 1, 2)

    def features(self, schema: Schema, reading: Reading) -> list[Column]:
        return _row_columns(schema, self._pairs, "pair_input_schema", "pairs", reading)


class _MessageSlates:
    """The slates of a request as protobuf messages."""

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


def _predict_columns(plan: Plan, request: PredictRequest, reading: Reading) -> list[Column]:
    targets, schema = request.targets, request.target_input_schema
    if not targets:
        raise BadRequest("targets is empty: at least one target is needed")
    context = _context_columns(request.context_features, reading)
    names = [plan.id_column, *(column.name for column in context), *(part.name for part in schema)]
    if not _good_names(plan, names):
        places = [(plan.id_column, "the id column")]
        places += [(column.name, f"context_features[{at}]") for at, column in enumerate(context)]
        places += [(part.name, f"target_input_schema[{at}]") for at, part in enumerate(schema)]
        _check_names(plan, places)
    return [
        Column(plan.id_column, DataType.STRING, [target.id.encode() for target in targets]),
        *context,
        *_row_columns(schema, targets, "target_input_schema", "targets", reading),
    ]


def _slate_columns(
    request: predict_pb2.PairWiseRequest | predict_pb2.SlateWiseRequest,
    schema: Schema,
    slates: _MessageSlates | _MessagePairs,
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


# --- Predict, by kernels


class _Part:
    """A column of a request, and the line where its values stand among those of its kind."""

    __slots__ = ("data_type", "line", "name", "vector_dim")

    def __init__(self, line: int, name: str, data_type: DataType, vector_dim: int) -> None:
        self.line = line
        self.name = name
        self.data_type = data_type
        self.vector_dim = vector_dim

    def column(self, values: TextColumn) -> Column:
        return Column(self.name, self.data_type, values, self.vector_dim)


class _Rows:
    """What the rows of a request bring: context features (one value for all), and features with a value a row.

    `context` and `features` are those that the plan reads. `wanted` (int64, as for `first_misfit`) is of all,
    None when no length matters. `named`: how many features the schema names.
    """

    __slots__ = ("context", "features", "named", "wanted")

    def __init__(
        self, context: list[_Part], features: list[_Part], named: int, wanted: npt.NDArray[np.int64] | None
    ) -> None:
        self.context = context
        self.features = features
        self.named = named
        self.wanted = wanted


class _Shape:
    """What requests with the same schema and the same context features have in common for a plan."""

    __slots__ = ("slates", "targets")

    def __init__(self, targets: _Rows, slates: _Rows | None) -> None:
        self.targets = targets
        self.slates = slates


def _shape(plan: Plan, groups: int, rest: bytes, reading: Reading) -> _Shape | None:
    """The shape of a request without its values; None when something is wrong with it."""
    try:
        request = KINDS[groups].FromString(rest)
    except DecodeError:
        return None
    context, schema = request.context_features, request.target_input_schema
    names = [plan.id_column, *(part.name for part in context), *(part.name for part in schema)]
    if not _good_names(plan, names):
        return None
    targets = _rows(context, schema, plan.layout.external, set(), reading)
    if targets is None or isinstance(request, predict_pb2.PointWiseRequest):
        return None if targets is None else _Shape(targets, None)
    if isinstance(request, predict_pb2.PairWiseRequest):
        schema = request.pair_input_schema
    else:
        schema = request.slate_input_schema
    own = {part.name for part in schema}
    if len(own) < len(schema) or "" in own or SLATE_INDICES in own:
        return None
    slates = _rows(context, schema, plan.slate_layout.external, own, reading)
    return None if slates is None else _Shape(targets, slates)


def _rows(
    context: Sequence[predict_pb2.ContextFeature],
    schema: Schema,
    external: Mapping[str, int],
    hidden: set[str],
    reading: Reading,
) -> _Rows | None:
    """What rows bring of these; context features that are `hidden` are left out. None for a wrong type."""
    kinds: list[DataType] = []
    wanted: list[int] = []
    declared = [(part.data_type, part.vector_dim) for part in context]
    declared += [(part.data_type, part.vector_dim) for part in schema]
    for number, dim in declared:
        if not reading.text_features and not 1 <= number <= DataType.BOOL_VECTOR:
            return None
        kind = DataType.STRING if reading.text_features else DataType(number)
        kinds.append(kind)
        wanted.append(
            -kind.size if kind.is_vector and dim <= 0 else kind.size * (dim if kind.is_vector else 1)
        )
    shared = [
        _Part(line, part.name, kinds[line], part.vector_dim)
        for line, part in enumerate(context)
        if part.name in external and part.name not in hidden
    ]
    features = [
        _Part(line, part.name, kinds[len(context) + line], part.vector_dim)
        for line, part in enumerate(schema)
        if part.name in external
    ]
    return _Rows(shared, features, len(schema), np.array(wanted, int64) if any(wanted) else None)


class _Values:
    """Values by where they stand in a heap: of `context` features, of ids (if any), of `values` features a row."""

    __slots__ = ("_at", "_body", "_heap", "_table", "context", "first", "rows", "values")

    def __init__(
        self,
        heap: Bytes,
        at: int,
        body: bytes,
        table: TextTable,
        context: int,
        rows: int,
        first: int,
        values: int,
    ) -> None:
        """`body` stands in the heap from `at` on; `first`: the place of the first feature of the first row."""
        self._heap = heap
        self._at = at
        self._body = body
        self._table = table
        self.context = context
        self.rows = rows
        self.first = first
        self.values = values

    def fit(self, shape: _Rows) -> bool:
        """Whether there are no more values than the schema names, and all lengths fit their types."""
        if self.values > shape.named:
            return False
        if shape.wanted is None:
            return True
        return (
            request_kernels.first_misfit(
                self._table.sizes, self.context, self.rows, self.values, self.first, shape.wanted
            )
            < 0
        )

    def shared(self, line: int) -> TextColumn:
        """The value of a context feature, for all rows."""
        return self._table.constant(self._heap, line, self._body, self._at)

    def each(self, start: int) -> TextColumn:
        """One value a row, from this place on."""
        return _values(self._heap, self._table, start, self.rows, self._body, self._at)

    def features(self, shape: _Rows, columns: list[Column]) -> None:
        """Adds the features that the plan reads, and that any row has."""
        for part in shape.features:
            if part.line < self.values:
                columns.append(part.column(self.each(self.first + part.line * self.rows)))


class _Groups:
    """The pairs or slates of a request: the target rows that they name, as in dag.component.Slates."""

    __slots__ = ("bounds", "rows", "values")

    def __init__(self, rows: npt.NDArray[np.int32], bounds: npt.NDArray[np.int64], values: _Values) -> None:
        self.rows = rows
        self.bounds = bounds
        self.values = values

    def fit(self, targets: int, shape: _Rows) -> bool:
        """Whether there are any, all rows are targets, and all values are what the schema says."""
        rows = self.rows
        if not self.values.rows or (len(rows) and (rows.min() < 0 or rows.max() >= targets)):
            return False
        return self.values.fit(shape)


class _Placed(Inquiry):
    """A Predict request by where its parts stand in the slot of its matrix."""

    def __init__(
        self,
        model_config_id: str,
        tracking_id: str,
        body: bytes,
        groups: int,
        reading: Reading,
        rest: bytes,
        targets: _Values,
        slates: _Groups | None,
    ) -> None:
        super().__init__(model_config_id, tracking_id)
        self._body = body
        self._groups = groups
        self._reading = reading
        self._rest = rest
        self._targets = targets
        self._slates = slates

    def bring(self, plan: Plan) -> Brought:
        shape = self._shape(plan)
        targets, slates = self._targets, self._slates
        if shape is None or not targets.rows or not targets.fit(shape.targets):
            return self._by_messages(plan)
        columns = [Column(plan.id_column, DataType.STRING, targets.each(targets.context))]
        for part in shape.targets.context:
            columns.append(part.column(targets.shared(part.line)))
        targets.features(shape.targets, columns)
        if slates is None or shape.slates is None:
            return Brought(targets.rows, columns)
        if not slates.fit(targets.rows, shape.slates):
            return self._by_messages(plan)
        own: list[Column] = []
        slates.values.features(shape.slates, own)
        for part in shape.slates.context:
            own.append(part.column(targets.shared(part.line)))
        return Brought(targets.rows, columns, BroughtSlates(slates.rows, slates.bounds, own))

    def _shape(self, plan: Plan) -> _Shape | None:
        key = (self._groups, self._reading.text_features, self._rest)
        found = plan.shapes.get(key)
        if isinstance(found, _Shape):
            return found
        shape = _shape(plan, self._groups, self._rest, self._reading)
        if shape is not None and len(self._rest) <= MAX_SHAPE:
            if len(plan.shapes) >= MAX_SHAPES:
                plan.shapes.clear()
            plan.shapes[key] = shape
        return shape

    def _by_messages(self, plan: Plan) -> Brought:
        """The reference's way: something is wrong with the request, and it says what."""
        return _messages(self._body, self._groups, self._reading).bring(plan)


def _placed(body: bytes, groups: int, reading: Reading, slot: Slot) -> Inquiry | None:
    """A Predict request by kernels. None when the reference is to read it: on demand, and when they cannot.

    Raises MatrixFull, and BadRequest for a table that would be out of all proportion to the body.
    """
    if reading.reference_codecs:
        return None
    size = len(body)
    memory = scratch()
    rest = memory.out
    while size > len(rest):
        rest = memory.grow_out()
    heap, at = slot.copy(body)
    table = slot.texts(32 + size // 4)  # values take more than four bytes each in most requests
    read = request_kernels.read_request(heap, at, size, groups, table.starts, table.sizes, rest)
    if read[0] == NO_ROOM:
        _, rows, values, context, *_ = read
        _check_cells("targets", rows, values, size)
        table = TextTable(context + rows * (1 + values))
        read = request_kernels.read_request(heap, at, size, groups, table.starts, table.sizes, rest)
    code, rows, values, context, kept, model, model_end, tracking, tracking_end = read
    if code < 0:
        return None
    slates = None
    if groups:
        slates = _placed_groups(heap, at, body, groups)
        if slates is None:
            return None
    return _Placed(
        body[model:model_end].decode(),
        body[tracking:tracking_end].decode(),
        body,
        groups,
        reading,
        memory.written(kept),
        _Values(heap, at, body, table, context, rows, context + rows, values),
        slates,
    )


def _placed_groups(heap: Bytes, at: int, body: bytes, groups: int) -> _Groups | None:
    """The pairs or slates of a request by kernels; None when they cannot. Raises BadRequest as `_placed` does."""
    size = len(body)
    code, count, indices, values, group_bytes = request_kernels.scan_slates(heap, at, size, groups)
    if code < 0:
        return None
    _check_cells("pairs" if groups == PAIRS else "slates", count, values, group_bytes)
    rows, bounds = empty(indices, int32), empty(count + 1, int64)
    table = TextTable(values * count)
    if request_kernels.read_slates(heap, at, size, groups, rows, bounds, table.starts, table.sizes) != count:
        return None
    return _Groups(rows, bounds, _Values(heap, at, body, table, 0, count, 0, values))
