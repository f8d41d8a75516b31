"""From a validated model config to a Plan: every decision that does not depend on a request is taken here."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from components.derived import DerivedKey
from components.expression import Expression, ExpressionError, parse
from components.feature import CacheRule, Feature
from components.fetched import FetchedBlock, FetchedLayout
from components.numerix import Numerix
from components.numerix_wire import ComputeCodec
from components.onfs_wire import query_head
from components.predator import ModelRoute, Output, Predator, RequestHeads, Score, ScoreBlock
from components.tensors import TensorInput
from dag.columns import Fetched, calibration_columns, fetched, id_column, layouts, score_sizes, slate_scores
from dag.component import Component, Endpoint
from dag.config import FeatureComponent, ModelConfig, NumerixComponent, PredatorComponent
from dag.layout import Layout
from dag.meters import PlanMeters
from dag.plan import Answer, OutputColumn, OutputColumns, Plan
from dag.schedule import schedule
from dag.topology import Topology
from shared.board import Board
from shared.datatypes import DataType, data_type
from shared.feature_cache import CacheKey, FeatureCache
from shared.metrics import CACHE_MISSES, CACHE_REQUESTS

__all__ = ["Bounds", "CompileError", "Upstreams", "compile_plan"]

DEFAULT_CACHE_TTL = 100.0  # seconds


class CompileError(ValueError):
    """A config that this service cannot serve; the message names the place and the reason."""


class Upstreams(Protocol):
    """Where a plan's calls go. Each method raises CompileError when its host is not configured."""

    def onfs(self) -> Endpoint: ...
    def predator(self, endpoint: str) -> Endpoint: ...
    def numerix(self) -> Endpoint | None:
        """None: expressions are computed in the worker."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Deadlines (seconds) and batch sizes that configs do not carry themselves."""

    onfs_timeout: float
    onfs_batch: int  # keys a call
    predator_timeout: float
    numerix_timeout: float
    numerix_batch: int  # rows a call
    string_scores: bool = False  # name predator scores in schemas as the existing service does
    reference_codecs: bool = False  # use the protobuf codecs that the kernels are held to


def compile_plan(
    model_config_id: str,
    digest: str,
    config: ModelConfig,
    topology: Topology,
    *,
    upstreams: Upstreams,
    expressions: Mapping[str, str],
    cache: FeatureCache | None,
    bounds: Bounds,
    board: Board,
) -> Plan:
    """The plan of a config that `dag.validate` found good; what it does is counted on `board`.

    Raises CompileError.
    """
    compiler = _Compiler(model_config_id, config, topology, upstreams, expressions, cache, bounds, board)
    return compiler.plan(digest)


class _Compiler:
    def __init__(
        self,
        model_config_id: str,
        config: ModelConfig,
        topology: Topology,
        upstreams: Upstreams,
        expressions: Mapping[str, str],
        cache: FeatureCache | None,
        bounds: Bounds,
        board: Board,
    ) -> None:
        self.board = board
        self.model_config_id = model_config_id
        self.config = config
        self.topology = topology
        self.upstreams = upstreams
        self.expressions = expressions
        self.cache = cache
        self.bounds = bounds
        parts = config.component_config
        self.fetches = parts.feature_components
        self.models = parts.predator_components
        self.computes = parts.numerix_components
        self.fetched = {fetch.component: tuple(fetched(fetch)) for fetch in self.fetches}
        self.layout, self.slate_layout = layouts(model_config_id, config)

    def plan(self, digest: str) -> Plan:
        named: dict[str, Component] = {}
        for fetch in self.fetches:
            named[fetch.component] = self._feature(fetch)
        for model in self.models:
            named[model.component] = self._predator(model)
        for compute in self.computes:
            named[compute.component] = self._numerix(compute)
        components = tuple(named[name] for name in self.topology.order)
        return Plan(
            model_config_id=self.model_config_id,
            digest=digest,
            config=self.config,
            components=components,
            schedule=schedule(self.topology),
            layout=self.layout,
            slate_layout=self.slate_layout,
            answer=self._answer(),
            id_column=id_column(self.config),
            constants=tuple(
                (self.layout.external[name], text.encode())
                for name, text in calibration_columns(self.model_config_id, self.config)
            ),
            composites=frozenset(fetch.component_id for fetch in self.fetches if fetch.composite_id),
            meters=PlanMeters(
                self.board,
                self.model_config_id,
                self.topology.order,
                {fetch.component: sum(1 for _ in fetched(fetch)) for fetch in self.fetches},
            ),
        )

    # --- answers

    def _answer(self) -> Answer:
        features = list(dict.fromkeys(self.config.response_config.features))
        of_slates = slate_scores(self.config)
        inputs = itertools.chain.from_iterable(
            part.features for model in self.models for part in model.inputs
        )
        return Answer(
            features=OutputColumns(self._feature_output(name) for name in features),
            targets=OutputColumns(
                self._output(self.layout, name) for name in features if name not in of_slates
            ),
            slates=OutputColumns(
                self._output(self.slate_layout, name) for name in of_slates if name in features
            ),
            model_schema=OutputColumns(
                self._feature_output(name) for name in dict.fromkeys([*inputs, *features])
            ),
        )

    def _feature_output(self, name: str) -> OutputColumn:
        """A column of an answer without slates: a slate model's score has no value there, but its type."""
        models = [model for model in self.models if model.slate_component]
        if any(name in part.model_scores for model in models for part in model.outputs):
            if self.bounds.string_scores:
                return OutputColumn(self.layout.source(name), DataType.STRING, 0)
            typed = self._output(self.slate_layout, name)
            return OutputColumn(self.layout.source(name), typed.data_type, typed.vector_dim)
        return self._output(self.layout, name)

    def _output(self, layout: Layout, name: str) -> OutputColumn:
        source = layout.source(name)
        if source.byte is None:
            return OutputColumn(source, DataType.STRING, 0)
        kind = source.byte.data_type
        if self.bounds.string_scores and any(
            name in part.model_scores for model in self.models for part in model.outputs
        ):
            return OutputColumn(source, _string_scores_type(kind), 0)
        return OutputColumn(source, kind, source.byte.count if kind.is_vector else 0)

    # --- components

    def _feature(self, fetch: FeatureComponent) -> Feature:
        asked = self.fetched[fetch.component]
        groups = _merged_groups(asked)
        place = _places(asked, groups)
        blocks = tuple(
            FetchedBlock(number, spec, tuple(place[column.name] for column in spec.columns))
            for number, spec in enumerate(self.layout.blocks)
            if spec.component == fetch.component
        )
        key_columns = {key.col for other in self.fetches for key in other.fs_keys}
        head = query_head(fetch.fs_request.label, groups.items(), [key.schema for key in fetch.fs_keys])
        return Feature(
            name=fetch.component,
            endpoint=self.upstreams.onfs() if place else None,
            timeout=self.bounds.onfs_timeout,
            batch_size=self.bounds.onfs_batch,
            head=head,
            key_columns=tuple(key.col for key in fetch.fs_keys),
            keys=tuple(self.layout.external[key.col] for key in fetch.fs_keys),
            composite=self.layout.external[fetch.component_id] if fetch.composite_id else None,
            layout=FetchedLayout(blocks, len(place)),
            derived=tuple(
                DerivedKey(self.layout.byte[name], self.layout.external[name])
                for name in place
                if name in key_columns
            ),
            caching=self._caching(fetch, head),
            shares_keys=self._shares_keys(fetch),
            reference=self.bounds.reference_codecs,
        )

    def _shares_keys(self, fetch: FeatureComponent) -> bool:
        """Whether other components have the same keys, in columns that are the same for all of them.

        A column that a component writes is another one before that than after it.
        """
        columns = [key.col for key in fetch.fs_keys]
        written = {other.component_id for other in self.fetches if other.composite_id}
        written.update(feature.name for asked in self.fetched.values() for feature in asked)
        alike = sum([key.col for key in other.fs_keys] == columns for other in self.fetches)
        return alike > 1 and written.isdisjoint(columns)

    def _caching(self, fetch: FeatureComponent, head: bytes) -> CacheRule | None:
        parts = self.config.component_config
        if self.cache is None or not (parts.cache_enabled and fetch.comp_cache_enabled):
            return None
        # What is asked, and as what types, is part of the name: a line is laid out by it, and a config can change
        # without a new cache_version.
        columns = [(one.name, int(one.data_type)) for one in self.fetched[fetch.component]]
        told_apart_by = (self.model_config_id, parts.cache_version or 1, fetch.component, head, columns)
        prefix = hashlib.blake2b(repr(told_apart_by).encode(), digest_size=16).digest()
        ttl = fetch.comp_cache_ttl or parts.cache_ttl or DEFAULT_CACHE_TTL
        labels = self.model_config_id, fetch.component
        return CacheRule(
            self.cache,
            CacheKey(prefix, float(ttl)),
            requests=self.board.counter(CACHE_REQUESTS, *labels),
            misses=self.board.counter(CACHE_MISSES, *labels),
        )

    def _predator(self, model: PredatorComponent) -> Predator:
        layout = self.slate_layout if model.slate_component else self.layout
        blocks = tuple(
            ScoreBlock(number, spec)
            for number, spec in enumerate(layout.blocks)
            if spec.component == model.component
        )
        place = {
            column.name: (position, column.column)
            for position, block in enumerate(blocks)
            for column in block.spec.columns
        }
        outputs = []
        for part, sizes in zip(model.outputs, score_sizes(model), strict=True):
            ends = list(itertools.accumulate(sizes, initial=0))
            scores = tuple(
                Score(*place[name], first, count)
                for name, first, count in zip(part.model_scores, ends, sizes, strict=False)
            )
            outputs.append(Output(part.name, data_type(part.data_type).element, ends[-1], scores))
        inputs = tuple(
            TensorInput(
                part.name,
                data_type(part.data_type).element,
                tuple(part.shape),
                tuple(self.layout.source(name) for name in part.features),
                reference=self.bounds.reference_codecs,
            )
            for part in model.inputs
        )
        return Predator(
            name=model.component,
            routes=self._routes(model, inputs, outputs),
            timeout=model.deadline / 1000 if model.deadline else self.bounds.predator_timeout,
            batch_size=model.batch_size,
            inputs=inputs,
            outputs=tuple(outputs),
            blocks=blocks,
            for_slates=model.slate_component,
            reference=self.bounds.reference_codecs,
        )

    def _routes(
        self, model: PredatorComponent, inputs: Sequence[TensorInput], outputs: Sequence[Output]
    ) -> tuple[ModelRoute, ...]:
        routes = []
        upto = 0
        for route in model.routes():
            upto += route.percentage
            heads = RequestHeads(route.model_name, inputs, outputs)
            routes.append(ModelRoute(upto, route.endpoint, self.upstreams.predator(route.endpoint), heads))
        return tuple(routes)

    def _numerix(self, compute: NumerixComponent) -> Numerix:
        endpoint = self.upstreams.numerix()
        variables = tuple(variable.split("@")[0] for variable in compute.score_mapping)
        layout = self.slate_layout if compute.slate_component else self.layout
        return Numerix(
            name=compute.component,
            id_source=self.layout.source(compute.component_id),
            variables=variables,
            inputs=TensorInput(
                compute.score_col,
                DataType.FP32,
                (len(variables),),
                tuple(self.layout.source(column) for column in compute.score_mapping.values()),
                text_types=tuple(data_type(key.partition("@")[2]) for key in compute.score_mapping),
                reference=self.bounds.reference_codecs,
            ),
            codec=ComputeCodec(
                (compute.component_id, *variables), compute.compute_id, self.bounds.reference_codecs
            ),
            score=layout.byte[compute.score_col],
            endpoint=endpoint,
            expression=self._expression(compute, needed=endpoint is None),
            timeout=self.bounds.numerix_timeout,
            batch_size=self.bounds.numerix_batch,
            for_slates=compute.slate_component,
        )

    def _expression(self, compute: NumerixComponent, *, needed: bool) -> Expression | None:
        text = self.expressions.get(compute.compute_id)
        if text is None:
            if needed:
                raise CompileError(
                    f"numerix component {compute.component!r}: there is no expression {compute.compute_id!r}, and "
                    "no numerix service to ask (NUMERIX_CLIENT_V1_HOST is empty)"
                )
            return None
        try:
            return parse(text)
        except ExpressionError as error:
            raise CompileError(f"numerix component {compute.component!r}: {error}") from error


def _merged_groups(asked: Iterable[Fetched]) -> dict[str, list[str]]:
    """Group label → features asked for. A label that stands twice is asked once, with the features of both:
    the feature store answers only the last of two groups of one label."""
    groups: dict[str, list[str]] = {}
    for one in asked:
        groups.setdefault(one.group, []).append(one.feature)
    return groups


def _places(asked: Iterable[Fetched], groups: Mapping[str, list[str]]) -> dict[str, int]:
    """Column name → place of its value in an answered row."""
    starts = itertools.accumulate((len(features) for features in groups.values()), initial=0)
    following = {label: itertools.count(start) for label, start in zip(groups, starts, strict=False)}
    return {one.name: next(following[one.group]) for one in asked}


_NEW_SCORES = frozenset((DataType.FP64, DataType.UINT8, DataType.UINT16, DataType.UINT32, DataType.UINT64))
"""Types of scores that the existing service cannot answer: no client has adapted to a name of theirs."""


def _string_scores_type(kind: DataType) -> DataType:
    """What the existing service names a model score: scalars and vectors of integers are String to it."""
    if kind.element in _NEW_SCORES or (kind.is_vector and "INT" not in kind.name):
        return kind
    return DataType.STRING
