"""A model config, typed: the JSON document of one model_config_id.

Field names are those of the document. Unknown keys are ignored (other tools write them), and `null` means
absent. Decoding checks JSON types only; what the values mean together is checked by `dag.validate`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from dag.fit import fit

__all__ = [
    "ROOT",
    "ComponentConfig",
    "FeatureComponent",
    "FeatureGroup",
    "FsKey",
    "FsRequest",
    "ModelConfig",
    "ModelEndpoint",
    "ModelInput",
    "ModelOutput",
    "NumerixComponent",
    "PredatorComponent",
    "ResponseConfig",
    "Route",
    "RouteConfig",
    "decode",
]

ROOT = "feature_initializer"
"""Name of the component that builds the matrix: the root of every DAG."""


class FsKey(msgspec.Struct, frozen=True, kw_only=True):
    schema: str
    col: str


class FeatureGroup(msgspec.Struct, frozen=True, kw_only=True):
    label: str
    data_type: str
    features: list[str] = []


class FsRequest(msgspec.Struct, frozen=True, kw_only=True):
    label: str = ""
    feature_groups: list[FeatureGroup] = msgspec.field(name="featureGroups", default_factory=list)


class FeatureComponent(msgspec.Struct, frozen=True, kw_only=True):
    component: str
    component_id: str = ""
    composite_id: bool = False
    fs_keys: list[FsKey] = []
    fs_request: FsRequest = FsRequest()
    fs_flatten_resp_keys: list[str] = []
    comp_cache_enabled: bool = False
    comp_cache_ttl: int = 0  # seconds; 0: that of the config
    col_name_prefix: str = ""


class ModelEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    endpoint: str
    percentage: int = 0


class RouteConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Routing as the config console writes it."""

    model_endpoint: str
    model_name: str = ""
    routing_percentage: int = 0


class Route(NamedTuple):
    """One place that calls of a model may go to, and its share of them."""

    endpoint: str  # host or host:port
    model_name: str
    percentage: int


class ModelInput(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    features: list[str]
    shape: list[int]
    data_type: str


class ModelOutput(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    model_scores: list[str]
    model_scores_dims: list[list[int]] = []
    data_type: str


class PredatorComponent(msgspec.Struct, frozen=True, kw_only=True):
    component: str
    component_id: str = ""
    model_name: str
    model_end_point: str = ""
    model_end_points: list[ModelEndpoint] = []
    route_config: list[RouteConfig] = []
    deadline: int = 0  # ms; 0: EXTERNAL_SERVICE_PREDATOR_DEADLINE
    batch_size: int = 0  # rows a call; 0: all rows in one
    calibration: str = ""
    inputs: list[ModelInput] = []
    outputs: list[ModelOutput] = []
    slate_component: bool = False

    def routes(self) -> tuple[Route, ...]:
        """Where calls go, in the config's order; the percentages of a valid config sum to 100.

        Of the two ways to write routing, `model_end_points` comes first; without either, or when all
        percentages are 0, everything goes to `model_end_point`.
        """
        for routes in self._routings():
            if any(route.percentage for route in routes):
                return tuple(route for route in routes if route.percentage)
        return (Route(self.model_end_point, self.model_name, 100),)

    def _routings(self) -> tuple[list[Route], list[Route]]:
        return (
            [Route(to.endpoint, self.model_name, to.percentage) for to in self.model_end_points],
            [
                Route(to.model_endpoint, to.model_name or self.model_name, to.routing_percentage)
                for to in self.route_config
            ],
        )


class NumerixComponent(msgspec.Struct, frozen=True, kw_only=True):
    component: str
    component_id: str = ""
    score_col: str
    data_type: str = ""
    score_mapping: dict[str, str] = {}
    compute_id: str
    slate_component: bool = False


class ComponentConfig(msgspec.Struct, frozen=True, kw_only=True):
    cache_enabled: bool = False
    cache_version: int = 0  # 0 means 1
    cache_ttl: int = 0  # seconds; 0 means 100
    error_logging_percent: int = 0
    feature_components: list[FeatureComponent] = []
    predator_components: list[PredatorComponent] = []
    numerix_components: list[NumerixComponent] = []


class ResponseConfig(msgspec.Struct, frozen=True, kw_only=True):
    features: list[str] = []
    model_schema_features_perc: int = 0
    logging_perc: int = 0
    log_features: bool = False
    log_batch_size: int = 500


class DagExecutionConfig(msgspec.Struct, frozen=True, kw_only=True):
    component_dependency: dict[str, list[str]] = {}


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    dag_execution_config: DagExecutionConfig = DagExecutionConfig()
    component_config: ComponentConfig = ComponentConfig()
    response_config: ResponseConfig = ResponseConfig()


def decode(document: bytes | str) -> ModelConfig:
    """The typed config of a JSON document, checked for its JSON types only.

    Raises msgspec.DecodeError when it is no JSON, msgspec.ValidationError (with JSON paths) when values have
    the wrong JSON type or needed keys are missing, RecursionError when it is nested hundreds deep.
    """
    try:
        return msgspec.json.decode(document, type=ModelConfig)  # a tenth of the time of what follows
    except msgspec.ValidationError:
        pass  # perhaps for a null only, which stands for a key that is left out
    fitted = fit(msgspec.json.decode(document), ModelConfig)
    if fitted.errors:
        raise msgspec.ValidationError("; ".join(map(str, fitted.errors)))
    return msgspec.convert(fitted.value, ModelConfig)
