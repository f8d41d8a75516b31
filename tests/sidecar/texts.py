"""Small configs for the tests of this room, as their source holds them."""

from __future__ import annotations

import json
from typing import Any

ROOT = "feature_initializer"


def config(
    price: str = "price", *, compute_id: str = "", variable: str = "x", endpoint: str = "models"
) -> bytes:
    """A good config that fetches one feature and asks one model; with a compute_id, it computes too."""
    column = f"catalog:real:{price}"
    dependency = {"fetch": [ROOT], "rank": ["fetch"]}
    numerix: list[dict[str, Any]] = []
    if compute_id:
        dependency["mix"] = ["rank"]
        numerix = [
            {
                "component": "mix",
                "score_col": "final",
                "compute_id": compute_id,
                "score_mapping": {f"{variable}@DataTypeFP32": "score"},
            }
        ]
    return json.dumps(
        {
            "dag_execution_config": {"component_dependency": dependency},
            "component_config": {
                "feature_components": [
                    {
                        "component": "fetch",
                        "fs_keys": [{"schema": "catalog_id", "col": "catalog_id"}],
                        "fs_request": {
                            "label": "catalog",
                            "featureGroups": [{"label": "real", "data_type": "FP32", "features": [price]}],
                        },
                    }
                ],
                "predator_components": [
                    {
                        "component": "rank",
                        "model_name": "ranker",
                        "model_end_point": endpoint,
                        "inputs": [{"name": "in", "features": [column], "shape": [1], "data_type": "FP32"}],
                        "outputs": [
                            {
                                "name": "out",
                                "model_scores": ["score"],
                                "model_scores_dims": [[1]],
                                "data_type": "FP32",
                            }
                        ],
                    }
                ],
                "numerix_components": numerix,
            },
            "response_config": {"features": ["catalog_id", "score"]},
        },
        indent=1,
    ).encode()


def expression(text: str) -> bytes:
    """An expression as its source holds it."""
    return json.dumps({"expression": text}).encode()


BROKEN = b'{"component_config": {'
REFUSED = json.dumps({"component_config": {}}).encode()
