from __future__ import annotations

import msgspec
import pytest

from dag.config import ModelConfig, ModelInput, decode
from demo.offline import join, model, tensor
from shared.datatypes import DataType
from tests.demo.samples import tables


def fetch(
    name: str, label: str, keys: dict[str, str], groups: dict[str, list[str]], prefix: str = ""
) -> object:
    return {
        "component": name,
        "composite_id": len(keys) > 1,
        "fs_keys": [{"schema": schema, "col": col} for schema, col in keys.items()],
        "fs_request": {
            "label": label,
            "featureGroups": [
                {"label": group, "data_type": "", "features": features} for group, features in groups.items()
            ],
        },
        "col_name_prefix": prefix,
    }


def config() -> ModelConfig:
    origin, hour = "flight:keys:origin", "flight:keys:hour"
    flight = {"keys": ["tailnum", "origin", "hour"], "schedule": ["distance", "minute"]}
    features = [
        fetch("flight", "flight", {"flight_id": "flight_id"}, flight),
        fetch(
            "plane", "plane", {"tailnum": "flight:keys:tailnum"}, {"body": ["seats"], "history": ["record"]}
        ),
        fetch("hour", "origin_hour", {"origin": origin, "hour": hour}, {"weather": ["temp"]}, "at_"),
    ]
    document = {
        "component_config": {"feature_components": features},
        "response_config": {"features": ["flight_id"]},
    }
    return decode(msgspec.json.encode(document))


def test_keys_are_followed_from_entity_to_entity() -> None:
    columns = join(config(), tables(), ["f2", "f1", "f1"])
    assert [columns["plane:body:seats"].cell(row) for row in range(3)] == [b"", b"\x95\x00", b"\x95\x00"]
    assert columns["at_origin_hour:weather:temp"].values.tolist() == [0.0, 4.5, 4.5]
    assert columns["at_origin_hour:weather:temp"].present.tolist() == [False, True, True]
    assert columns["flight:schedule:distance"].values.tolist() == [-2, 1400, 1400]


def test_an_unknown_flight_has_nothing() -> None:
    columns = join(config(), tables(), ["nobody"])
    assert not any(column.present.any() for column in columns.values())


def test_tensors_are_features_side_by_side_with_zeros_for_what_is_missing() -> None:
    columns = join(config(), tables(), ["f1", "f2"])
    names = ["flight:schedule:distance", "flight:schedule:minute", "at_origin_hour:weather:temp"]
    numbers = tensor(ModelInput(name="n", features=names, shape=[3], data_type="FP32"), columns)
    assert numbers.dtype == DataType.FP32.dtype
    assert numbers.tolist() == [[1400, 0, 4.5], [-2, 300, 0]]
    vector = ModelInput(name="v", features=["plane:history:record"], shape=[3], data_type="FP32")
    assert tensor(vector, columns).tolist() == [[1, 2, 3], [0, 0, 0]]


def test_text_tensors_have_the_text_of_zero_for_what_is_missing() -> None:
    columns = join(config(), tables(), ["f1", "f2"])
    names = ["flight:keys:tailnum", "flight:keys:origin"]
    texts = tensor(ModelInput(name="t", features=names, shape=[2], data_type="BYTES"), columns)
    assert texts.tolist() == [[b"N1", b"JFK"], [b"0.0", b"LGA"]]


def test_a_model_that_nothing_calls_is_named() -> None:
    with pytest.raises(KeyError, match="'nothing'"):
        model(config(), "nothing")
