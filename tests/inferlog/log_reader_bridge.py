"""Runs in the environment of the reference reader (tests/get_log_reader.sh): a JSON line in, a JSON line out.

In: {"log": an InferflowLog as it stands in a message, base64; "schema": [[name, type], …]}. Out: {"metadata": …,
"entities": […], "rows": [{name: value}, …]}; numbers that are not finite are texts.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from typing import Any

import inference_logging_client as reader  # type: ignore[import-not-found]


class Rows:
    """Stands in for a SparkSession, of which `decode_mplog` wants one thing only."""

    def createDataFrame(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows


def plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return [plain(item) for item in value] if isinstance(value, list) else value


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    log = base64.b64decode(asked["log"])
    schema = [reader.FeatureInfo(name, kind, number) for number, (name, kind) in enumerate(asked["schema"])]
    rows = reader.decode_mplog(log, "any", 1, Rows(), schema=schema)
    return {
        "metadata": reader.get_mplog_metadata(log).metadata_byte,
        "entities": [row.pop("entity_id") for row in rows],
        "rows": [{name: plain(value) for name, value in row.items()} for row in rows],
    }


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
