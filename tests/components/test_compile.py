"""From configs to plans: columns, answers, endpoints, and what cannot be served."""

from __future__ import annotations

import json
from typing import Any

import pytest

from components.compile import CompileError
from components.feature import Feature
from components.numerix import Numerix
from components.predator import Predator
from dag.component import Endpoint
from shared.datatypes import DataType
from sidecar.catalog import judge
from tests.components.running import Nowhere, Upstreams, compiled, config_of
from tests.dag.configs import CONFIGS, EXPRESSIONS, good

KNOWN = {**EXPRESSIONS, "weighted": "p q *"}


def fetch(name: str = "catalog", **changes: Any) -> dict[str, Any]:
    return {
        "component": name,
        "fs_keys": [{"schema": "id", "col": f"{name}_id"}],
        "fs_request": {
            "label": name,
            "featureGroups": [{"label": "g", "data_type": "FP32", "features": ["price", "title@String"]}],
        },
        **changes,
    }


def model(name: str = "rank", *scores: str, slate: bool = False, **changes: Any) -> dict[str, Any]:
    names = list(scores) or [f"{name}_score"]
    return {
        "component": name,
        "component_id": f"{name}_entity",
        "model_name": f"{name}_model",
        "model_end_point": "models",
        "inputs": [
            {"name": "in", "features": ["catalog:g:price", "position"], "shape": [2], "data_type": "FP32"}
        ],
        "outputs": [
            {
                "name": "out",
                "model_scores": names,
                "model_scores_dims": [[1] for _ in names],
                "data_type": "FP32",
            }
        ],
        "slate_component": slate,
        **changes,
    }


def mix(**changes: Any) -> dict[str, Any]:
    return {
        "component": "mix",
        "component_id": "catalog_id",
        "score_col": "final",
        "score_mapping": {"p@FP32": "rank_score"},
        "compute_id": "weighted",
        **changes,
    }


# ---------------------------------------------------------------- what a plan knows


def test_components_stand_in_the_order_of_the_dag() -> None:
    dag = {
        "rank": ["catalog", "user"],
        "user": ["feature_initializer"],
        "catalog": ["feature_initializer"],
        "mix": ["rank"],
    }
    plan = compiled(
        config_of(features=[fetch(), fetch("user")], predators=[model()], numerix=[mix()], dag=dag),
        expressions=KNOWN,
    )
    names = [component.name for component in plan.components]
    assert names[2:] == ["rank", "mix"]
    assert set(names[:2]) == {"catalog", "user"}
    assert set(plan.schedule.first) == {0, 1}
    assert [type(component) for component in plan.components] == [Feature, Feature, Predator, Numerix]
    assert (plan.model_config_id, plan.digest) == ("cfg", "digest")


def test_every_name_of_the_config_can_be_brought() -> None:
    plan = compiled(
        config_of(features=[fetch()], predators=[model()], numerix=[mix()], response=["catalog_id", "note"]),
        expressions=KNOWN,
    )
    assert set(plan.layout.external) == {
        "catalog_id", "catalog:g:price", "catalog:g:title", "position", "rank_score", "final", "note",
    }  # fmt: skip
    assert plan.layout.external == plan.slate_layout.external


def test_columns_have_their_types_and_writers() -> None:
    plan = compiled(
        config_of(features=[fetch()], predators=[model("rank", "a", "b")], numerix=[mix(data_type="INT64")]),
        expressions=KNOWN,
    )
    written = {
        column.name: (spec.component, column.data_type)
        for spec in plan.layout.blocks
        for column in spec.columns
    }
    assert written == {
        "catalog:g:price": ("catalog", DataType.FP32),
        "catalog:g:title": ("catalog", DataType.STRING),
        "a": ("rank", DataType.FP32),
        "b": ("rank", DataType.FP32),
        "final": ("mix", DataType.INT64),
    }


def test_slate_components_write_to_the_matrix_of_the_slates() -> None:
    plan = compiled(
        config_of(
            features=[fetch()], predators=[model(), model("bundle", slate=True)], response=["catalog_id"]
        )
    )
    assert {spec.component for spec in plan.layout.blocks} == {"catalog", "rank"}
    assert {spec.component for spec in plan.slate_layout.blocks} == {"bundle"}


@pytest.mark.parametrize(
    ("response", "slate", "wanted"),
    [
        (["catalog_id", "rank_score"], False, "catalog_id"),
        ([], False, "id"),
        (["rank_score", "catalog_id"], False, "rank_score"),
        (["rank_score", "catalog_id"], True, "catalog_id"),
        (["rank_score"], True, "rank_entity"),
    ],
)
def test_the_id_column(response: list[str], slate: bool, wanted: str) -> None:
    assert compiled(config_of(predators=[model(slate=slate)], response=response)).id_column == wanted


def test_composite_keys_are_no_columns_that_a_request_may_bring() -> None:
    part = fetch(component_id="user_catalog", composite_id=True)
    plan = compiled(config_of(features=[part, fetch("user", component_id="u")]))
    assert plan.composites == {"user_catalog"}
    assert "user_catalog" in plan.layout.external


def test_calibrated_models_put_their_name_in() -> None:
    plan = compiled(
        config_of(predators=[model(calibration="pctr"), model("other"), model("third", calibration="pcvr")])
    )
    named = {
        name: text
        for name, number in plan.layout.external.items()
        for at, text in plan.constants
        if at == number
    }
    assert named == {"pctr_model": b"rank_model", "pcvr_model": b"third_model", "inferflow_config_id": b"cfg"}


# ---------------------------------------------------------------- answers


def answer_of(**bounds: Any) -> dict[str, list[tuple[str, DataType, int]]]:
    """Name, type and dim of the columns of each kind of answer."""
    rank = model("rank", "s", "v")
    rank["outputs"][0]["model_scores_dims"] = [[1], [3]]
    plan = compiled(
        config_of(
            features=[fetch()],
            predators=[rank, model("bundle", "b", slate=True), model("unasked", "u", slate=True)],
            numerix=[mix()],
            response=["catalog_id", "b", "v", "s", "final", "catalog:g:title", "note"],
        ),
        expressions=KNOWN,
        **bounds,
    )
    answer = plan.answer
    return {
        part: [(column.name, column.data_type, column.vector_dim) for column in columns]
        for part, columns in (
            ("features", answer.features),
            ("targets", answer.targets),
            ("slates", answer.slates),
            ("model_schema", answer.model_schema),
        )
    }


FP32, STRING = DataType.FP32, DataType.STRING


def test_what_is_answered() -> None:
    features = [
        ("catalog_id", STRING, 0),
        ("b", FP32, 0),
        ("v", DataType.FP32_VECTOR, 3),
        ("s", FP32, 0),
        ("final", FP32, 0),
        ("catalog:g:title", STRING, 0),
        ("note", STRING, 0),
    ]
    assert answer_of() == {
        "features": features,
        "targets": [column for column in features if column[0] != "b"],
        "slates": [("b", FP32, 0)],
        "model_schema": [("catalog:g:price", FP32, 0), ("position", STRING, 0), *features],
    }


def test_string_scores_name_scalar_scores_as_the_existing_service_does() -> None:
    answer = answer_of(string_scores=True)
    kinds = {name: kind for name, kind, _ in answer["features"]}
    assert (kinds["s"], kinds["b"], kinds["v"], kinds["final"]) == (
        STRING,
        STRING,
        DataType.FP32_VECTOR,
        FP32,
    )
    assert answer["slates"] == [("b", STRING, 0)]


def test_inputs_that_are_answered_anyway_are_shown_once() -> None:
    plan = compiled(config_of(predators=[model(), model("other")], response=["position", "rank_score"]))
    assert [column.name for column in plan.answer.model_schema] == [
        "catalog:g:price",
        "position",
        "rank_score",
    ]


def test_nothing_is_answered_without_response_features() -> None:
    answer = compiled(config_of(predators=[model(), model("bundle", slate=True)])).answer
    assert [*answer.features, *answer.targets, *answer.slates] == []


# ---------------------------------------------------------------- what cannot be served


class Unconfigured(Upstreams):
    def onfs(self) -> Endpoint:
        raise CompileError("features are fetched, but there is no host")


def test_a_host_that_is_missing_is_an_error_only_when_it_is_needed() -> None:
    with pytest.raises(CompileError, match="there is no host"):
        compiled(config_of(features=[fetch()]), upstreams=Unconfigured())
    keys_only = fetch(fs_request={}, component_id="user_catalog", composite_id=True)
    plan = compiled(config_of(features=[keys_only]), upstreams=Unconfigured())
    component = plan.components[0]
    assert isinstance(component, Feature)
    assert component.endpoint is None


def test_two_writers_of_a_column_are_an_error() -> None:
    with pytest.raises(ValueError, match="column 's' is written by both 'rank' and 'other'"):
        compiled(config_of(predators=[model("rank", "s"), model("other", "s")]))


def test_models_of_one_host_share_an_endpoint() -> None:
    plan = compiled(config_of(predators=[model(), model("other")]))
    first, second = plan.components
    assert isinstance(first, Predator)
    assert isinstance(second, Predator)
    assert first.routes[0].endpoint is second.routes[0].endpoint
    assert isinstance(first.routes[0].endpoint, Nowhere)


@pytest.mark.parametrize("name", [*CONFIGS, "good"])
@pytest.mark.parametrize("reference", [False, True])
def test_recorded_configs_compile_with_either_codec(name: str, reference: bool) -> None:
    document = CONFIGS.get(name) or json.dumps(good()).encode()
    verdict = judge(name, document, KNOWN)
    if verdict.config is not None:
        plan = compiled(json.loads(document), expressions=KNOWN, reference_codecs=reference)
        assert len(plan.components) == len(plan.schedule.waits)
