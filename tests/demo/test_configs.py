"""The demo's configs: valid, and of one piece."""

from __future__ import annotations

import json

import pytest

from dag.config import decode
from dag.validate import validate
from demo.prepare import CONFIGS, config

IDS = ("departures", "departure_pairs", "departure_banks")
EXPRESSIONS = {
    path.stem: json.loads(path.read_text())["expression"]
    for path in (CONFIGS / "expression-config").glob("*.json")
}


def test_these_are_all_configs() -> None:
    assert {path.stem for path in (CONFIGS / "config-map").glob("*.json")} == set(IDS)


@pytest.mark.parametrize("name", IDS)
def test_a_config_is_valid_without_a_warning(name: str) -> None:
    verdict = validate(
        (CONFIGS / "config-map" / f"{name}.json").read_bytes(), name=name, expressions=EXPRESSIONS
    )
    assert (verdict.errors, verdict.warnings) == ((), ())


@pytest.mark.parametrize("name", IDS[1:])
def test_pairs_and_banks_score_departures_as_the_first_config_does(name: str) -> None:
    first, other = config().component_config, config(name).component_config
    assert other.feature_components == first.feature_components
    assert other.predator_components[:2] == first.predator_components
    assert [part.slate_component for part in other.predator_components] == [False, False, True]


@pytest.mark.parametrize("name", IDS)
def test_components_stand_after_those_whose_columns_are_their_keys(name: str) -> None:
    """Offline joins go through the components in the order of the config."""
    known = {config(name).response_config.features[0]}
    for component in config(name).component_config.feature_components:
        assert {key.col for key in component.fs_keys} <= known
        known |= {
            f"{component.col_name_prefix}{component.fs_request.label}:{group.label}:{feature}"
            for group in component.fs_request.feature_groups
            for feature in group.features
        }


def test_the_service_config_is_json() -> None:
    assert json.loads((CONFIGS / "service-config.json").read_text())["v2-logging-type"] == "proto"


def test_the_expression_reads_what_the_config_maps() -> None:
    (numerix,) = decode(
        (CONFIGS / "config-map" / "departures.json").read_bytes()
    ).component_config.numerix_components
    names = {name.partition("@")[0] for name in numerix.score_mapping}
    assert names <= set(EXPRESSIONS[numerix.compute_id].split())
