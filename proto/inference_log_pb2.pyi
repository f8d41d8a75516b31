from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Rpc(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RETRIEVE_MODEL_SCORE: _ClassVar[Rpc]
    INFER_POINT_WISE: _ClassVar[Rpc]
    INFER_PAIR_WISE: _ClassVar[Rpc]
    INFER_SLATE_WISE: _ClassVar[Rpc]

class RowKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGETS: _ClassVar[RowKind]
    SLATES: _ClassVar[RowKind]
RETRIEVE_MODEL_SCORE: Rpc
INFER_POINT_WISE: Rpc
INFER_PAIR_WISE: Rpc
INFER_SLATE_WISE: Rpc
TARGETS: RowKind
SLATES: RowKind

class KafkaRequest(_message.Message):
    __slots__ = ("value", "headers")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    value: KafkaEventValue
    headers: _any_pb2.Any
    def __init__(self, value: _Optional[_Union[KafkaEventValue, _Mapping]] = ..., headers: _Optional[_Union[_any_pb2.Any, _Mapping]] = ...) -> None: ...

class KafkaEventValue(_message.Message):
    __slots__ = ("event_name", "event_id", "created_at", "properties", "user_id")
    EVENT_NAME_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    event_name: str
    event_id: str
    created_at: int
    properties: _any_pb2.Any
    user_id: str
    def __init__(self, event_name: _Optional[str] = ..., event_id: _Optional[str] = ..., created_at: _Optional[int] = ..., properties: _Optional[_Union[_any_pb2.Any, _Mapping]] = ..., user_id: _Optional[str] = ...) -> None: ...

class PerEntityFeatures(_message.Message):
    __slots__ = ("encoded_features",)
    ENCODED_FEATURES_FIELD_NUMBER: _ClassVar[int]
    encoded_features: bytes
    def __init__(self, encoded_features: _Optional[bytes] = ...) -> None: ...

class InferflowLog(_message.Message):
    __slots__ = ("user_id", "tracking_id", "model_config_id", "entities", "features", "metadata", "parent_entity", "config_digest", "request_ns", "request_id", "rpc", "row_kind", "positions", "endpoints", "errors", "slate_targets", "unfit", "missing")
    class EndpointsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TRACKING_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_CONFIG_ID_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PARENT_ENTITY_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_NS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RPC_FIELD_NUMBER: _ClassVar[int]
    ROW_KIND_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    SLATE_TARGETS_FIELD_NUMBER: _ClassVar[int]
    UNFIT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    tracking_id: str
    model_config_id: str
    entities: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedCompositeFieldContainer[PerEntityFeatures]
    metadata: bytes
    parent_entity: _containers.RepeatedScalarFieldContainer[str]
    config_digest: str
    request_ns: int
    request_id: bytes
    rpc: Rpc
    row_kind: RowKind
    positions: _containers.RepeatedScalarFieldContainer[int]
    endpoints: _containers.ScalarMap[str, str]
    errors: _containers.RepeatedCompositeFieldContainer[RowErrors]
    slate_targets: _containers.RepeatedCompositeFieldContainer[SlateTargets]
    unfit: _containers.RepeatedCompositeFieldContainer[Unfit]
    missing: bytes
    def __init__(self, user_id: _Optional[str] = ..., tracking_id: _Optional[str] = ..., model_config_id: _Optional[str] = ..., entities: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[_Union[PerEntityFeatures, _Mapping]]] = ..., metadata: _Optional[bytes] = ..., parent_entity: _Optional[_Iterable[str]] = ..., config_digest: _Optional[str] = ..., request_ns: _Optional[int] = ..., request_id: _Optional[bytes] = ..., rpc: _Optional[_Union[Rpc, str]] = ..., row_kind: _Optional[_Union[RowKind, str]] = ..., positions: _Optional[_Iterable[int]] = ..., endpoints: _Optional[_Mapping[str, str]] = ..., errors: _Optional[_Iterable[_Union[RowErrors, _Mapping]]] = ..., slate_targets: _Optional[_Iterable[_Union[SlateTargets, _Mapping]]] = ..., unfit: _Optional[_Iterable[_Union[Unfit, _Mapping]]] = ..., missing: _Optional[bytes] = ...) -> None: ...

class RowErrors(_message.Message):
    __slots__ = ("component", "cause", "rows", "all_rows")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ALL_ROWS_FIELD_NUMBER: _ClassVar[int]
    component: str
    cause: str
    rows: _containers.RepeatedScalarFieldContainer[int]
    all_rows: bool
    def __init__(self, component: _Optional[str] = ..., cause: _Optional[str] = ..., rows: _Optional[_Iterable[int]] = ..., all_rows: _Optional[bool] = ...) -> None: ...

class SlateTargets(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, positions: _Optional[_Iterable[int]] = ...) -> None: ...

class Unfit(_message.Message):
    __slots__ = ("row", "column", "bytes")
    ROW_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    row: int
    column: int
    bytes: int
    def __init__(self, row: _Optional[int] = ..., column: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
