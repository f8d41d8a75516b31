"""Configs for tests: the recorded ones, a good one to spoil, and a strategy of spoilt ones."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dag.config import ROOT

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CONFIGS = {path.stem: path.read_bytes() for path in sorted((GOLDEN / "configs").glob("*.json"))}
EXPRESSIONS: dict[str, str] = json.loads(CONFIGS.pop("expressions"))


def good() -> dict[str, Any]:
    """A config with one of everything, without errors or warnings."""
    return {
        "dag_execution_config": {
            "component_dependency": {
                "catalog": [ROOT],
                "pair": [ROOT],
                "rank": ["catalog", "pair"],
                "mix": ["rank"],
                "bundle": ["mix"],
            }
        },
        "component_config": {
            "cache_enabled": True,
            "cache_version": 1,
            "cache_ttl": 60,
            "feature_components": [
                {
                    "component": "catalog",
                    "component_id": "catalog_id",
                    "fs_keys": [{"schema": "catalog_id", "col": "catalog_id"}],
                    "fs_request": {
                        "label": "catalog",
                        "featureGroups": [
                            {"label": "real", "data_type": "DataTypeFP32", "features": ["price", "mrp"]},
                            {"label": "text", "data_type": "DataTypeString", "features": ["title"]},
                        ],
                    },
                    "comp_cache_enabled": True,
                    "comp_cache_ttl": 30,
                },
                {
                    "component": "pair",
                    "component_id": "user_catalog",
                    "composite_id": True,
                    "fs_keys": [
                        {"schema": "user_id", "col": "user_id"},
                        {"schema": "catalog_id", "col": "catalog_id"},
                    ],
                    "fs_request": {
                        "label": "uc",
                        "featureGroups": [
                            {"label": "vec", "data_type": "FP32Vector", "features": ["taste", "n@Int32"]}
                        ],
                    },
                },
            ],
            "predator_components": [
                {
                    "component": "rank",
                    "model_name": "ranker",
                    "model_end_point": "models.local:8090",
                    "model_end_points": [
                        {"endpoint": "models-a", "percentage": 60},
                        {"endpoint": "10.0.0.1:9000", "percentage": 40},
                    ],
                    "deadline": 100,
                    "batch_size": 50,
                    "calibration": "pctr",
                    "inputs": [
                        {
                            "name": "numbers",
                            "features": ["catalog:real:price", "catalog:real:mrp", "uc:vec:n"],
                            "shape": [3],
                            "data_type": "FP32",
                        },
                        {
                            "name": "words",
                            "features": ["catalog:text:title", "user_catalog"],
                            "shape": [2],
                            "data_type": "BYTES",
                        },
                    ],
                    "outputs": [
                        {
                            "name": "out",
                            "model_scores": ["pctr", "embedding"],
                            "model_scores_dims": [[1], [4]],
                            "data_type": "FP32",
                        }
                    ],
                },
                {
                    "component": "bundle",
                    "model_name": "bundler",
                    "model_end_point": "models.local",
                    "inputs": [
                        {"name": "in", "features": ["final", "pctr"], "shape": [2], "data_type": "FP32"}
                    ],
                    "outputs": [
                        {
                            "name": "out",
                            "model_scores": ["bundle_score"],
                            "model_scores_dims": [[1]],
                            "data_type": "FP32",
                        }
                    ],
                    "slate_component": True,
                },
            ],
            "numerix_components": [
                {
                    "component": "mix",
                    "component_id": "catalog_id",
                    "score_col": "final",
                    "data_type": "DataTypeFP32",
                    "score_mapping": {"p@DataTypeFP32": "pctr", "q@DataTypeFP32": "catalog:real:price"},
                    "compute_id": "weighted",
                }
            ],
        },
        "response_config": {
            "features": ["catalog_id", "final", "bundle_score"],
            "model_schema_features_perc": 0,
            "logging_perc": 5,
            "log_batch_size": 500,
        },
    }


DELETE = object()


def spoil(config: dict[str, Any], path: str, value: Any) -> None:
    """Sets, or with DELETE removes, what stands at a path such as `a.b[0].c`; `[+]` appends to a list."""
    steps: list[Any] = [
        int(index) if index.isdigit() else index or key
        for key, index in re.findall(r"([^.\[\]]+)|\[([0-9+]+)\]", path)
    ]
    at: Any = config
    for step in steps[:-1]:
        at = at[step]
    last = steps[-1]
    if last == "+":
        at.append(value)
    elif value is DELETE:
        del at[last]
    else:
        at[last] = value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


LIKELY = st.sampled_from(
    [None, "", " ", 0, -1, 1, 2, 2**31, 2**63, 1e9, True, [], {}, [[]], [0], [-1, -1], "catalog", "rank",
     "pctr", "final", "final@", "@", "FP32", "a:0", ROOT, [ROOT], "bundle_score", "user_catalog"]
).map(copy.deepcopy)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from places(value[key])
    elif isinstance(value, list):
        for index in range(len(value)):
            yield value, index
            yield from places(value[index])


@st.composite
def spoilt(draw: st.DrawFn, most: int = 4) -> dict[str, Any]:
    """A recorded config, or the good one, after one to `most` changes anywhere in it."""
    name = draw(st.sampled_from(sorted(CONFIGS)) | st.none())
    config: dict[str, Any] = good() if name is None else json.loads(CONFIGS[name])
    for _ in range(draw(st.integers(1, most))):
        if not config:
            break  # a change took everything
        container, key = draw(st.sampled_from(list(places(config))))
        match draw(st.sampled_from(["set", "set", "delete", "duplicate"])):
            case "set":
                container[key] = draw(LIKELY | JSON)
            case "delete":
                del container[key]
            case _ if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case _:
                container[f"{key}2"] = copy.deepcopy(container[key])
    return config
