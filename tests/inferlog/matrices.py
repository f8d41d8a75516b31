"""Matrices with anything in them: all types, missing and odd values, shared lines, texts, slates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dag.columns import Layouts, id_column, layouts
from dag.component import Failure, Slates
from dag.config import ModelConfig, decode
from dag.layout import Layout
from inferlog.event import Event
from inferlog.schema import LogSchema
from shared.datatypes import DataType
from shared.shm_matrix import CellBlock, MatrixPool, ShmMatrix, TextColumn, TypedColumn, VarBlock

__all__ = ["CONFIG_ID", "TYPES", "Made", "make"]

CONFIG_ID = "anything"
TYPES = [*(kind.label for kind in DataType if kind), "BYTES", "FP32", "INT64"]
SCORE_TYPES = ["FP32", "FP16", "INT32", "BOOL", "UINT64", "BYTES", "STRING"]
WORDS = [b"a", b"user", b"\xc3\xa9t\xc3\xa9", b"x" * 200, b"\xff\xfe", b"0.0"]

_POOL = MatrixPool(64 << 20, 64 << 20, name="inferlog-tests")


class Made(NamedTuple):
    """A scored request that nobody asked."""

    config: ModelConfig
    layouts: Layouts
    matrix: ShmMatrix
    slates: Slates | None
    event: Event

    def schema(self, written: str, *, compress: bool = False) -> LogSchema:
        service = {"v2-logging-type": written, "compression-enabled": compress}
        return LogSchema.of(CONFIG_ID, self.config, service)

    def release(self) -> None:
        _POOL.release(self.matrix.slot)


def make(seed: int, types: Sequence[str], *, rows: int, slates: int = 0, odd: bool = False) -> Made:
    """`types` are those of the fetched columns. `odd`: some values do not have the length of their type."""
    rng = np.random.default_rng(seed)
    config = _config(rng, types)
    placed = layouts(CONFIG_ID, config)
    slot = _POOL.acquire()
    matrix = _matrix(rng, slot, placed.targets, rows, odd=odd)
    ids = [b"id%d" % number for number in range(rows)]
    matrix.texts[placed.targets.external[id_column(config)]] = TextColumn.of(slot, ids)
    of_slates = None
    if slates:
        named = [rng.integers(0, rows, rng.integers(1, 4)).astype(np.int32) for _ in range(slates)]
        bounds = np.cumsum([0, *map(len, named)])
        of_slates = Slates(_matrix(rng, slot, placed.slates, slates, odd=odd), np.concatenate(named), bounds)
        of_slates.failures.append(Failure("slate model", "late", np.array([slates - 1], np.int32)))
    event = Event(
        method=3 if slates else 1,
        model_config_id=CONFIG_ID,
        digest="ab" * 32,
        request_id=rng.bytes(8).hex().encode(),
        tracking_id="t-1",
        user_id="u-1",
        parent_entity=("parent",),
        request_ns=1_700_000_000_000_000_001,
        endpoints={"model": "10.0.0.1:8090"},
        failures=[
            Failure("fetch", "one row", np.array([rows - 1], np.int32)),
            Failure("model", "all rows", None),
        ],
    )
    return Made(config, placed, matrix, of_slates, event)


def _config(rng: np.random.Generator, types: Sequence[str]) -> ModelConfig:
    groups = [
        {"label": f"g{number}", "data_type": kind, "features": ["f"]} for number, kind in enumerate(types)
    ]
    score = str(rng.choice(SCORE_TYPES))
    outputs = [
        {
            "name": "o",
            "model_scores": ["score", "vector"],
            "model_scores_dims": [[1], [3]],
            "data_type": score,
        }
    ]
    of_slates = [{"name": "o", "model_scores": ["slate"], "model_scores_dims": [[1]], "data_type": score}]
    inputs = [{"name": "i", "features": ["text", "typed", "same"], "shape": [3], "data_type": "BYTES"}]
    document = {
        "component_config": {
            "cache_version": int(rng.integers(0, 16)),
            "feature_components": [
                {
                    "component": "fetch",
                    "component_id": "id",
                    "fs_keys": [{"schema": "id", "col": "id"}],
                    "fs_request": {"label": "e", "featureGroups": groups},
                }
            ],
            "predator_components": [
                {"component": "model", "model_name": "m", "inputs": inputs, "outputs": outputs},
                {"component": "slates", "model_name": "s", "outputs": of_slates, "slate_component": True},
            ],
            "numerix_components": [
                {"component": "compute", "score_col": "final", "data_type": "FP64", "compute_id": "c"}
            ],
        },
        "response_config": {"features": ["id", "final"], "log_batch_size": int(rng.choice([0, 1, 3, 500]))},
    }
    return decode(json.dumps(document))


def _matrix(rng: np.random.Generator, slot: Any, layout: Layout, rows: int, *, odd: bool) -> ShmMatrix:
    matrix = ShmMatrix(slot, rows, len(layout.blocks), len(layout.external))
    for number, spec in enumerate(layout.blocks):
        if rng.random() < 0.1:
            continue  # its component never wrote it
        shared = rng.random() < 0.5
        lines = int(rng.integers(1, rows + 1)) if shared else rows
        cells = [
            (line, column.column, _value(rng, column.data_type, column.count, odd=odd))
            for line in range(lines)
            for column in spec.columns
            if rng.random() < 0.85
        ]
        block: CellBlock | VarBlock
        if spec.width:
            block = CellBlock.empty(slot, lines, len(spec.columns), spec.width)
            for line, column, value in cells:
                block.put(line, column, value)
        else:
            block = VarBlock.empty(slot, lines, len(spec.columns))
            block.fill(slot, cells)
        if shared:
            block.index = rng.integers(-1, lines, rows).astype(np.int32)
        matrix.blocks[number] = block
    words = [WORDS[at] if at < len(WORDS) else b"" for at in rng.integers(0, len(WORDS) + 1, rows)]
    numbers = [
        rng.standard_normal(1).astype("<f4").tobytes() if rng.random() < 0.8 else b"" for _ in range(rows)
    ]
    matrix.texts[layout.external["text"]] = TextColumn.of(slot, words)
    matrix.texts[layout.external["same"]] = TextColumn.same(slot, words[0])
    matrix.typed[layout.external["typed"]] = TypedColumn(DataType.FP32, 0, TextColumn.of(slot, numbers))
    return matrix


def _value(rng: np.random.Generator, kind: DataType, count: int, *, odd: bool) -> bytes:
    if rng.random() < 0.1:
        return b""
    if kind.element is DataType.STRING:
        return WORDS[rng.integers(0, len(WORDS))]
    elements = count or int(rng.integers(1, 5))
    return rng.bytes(kind.size * elements + int(odd and rng.random() < 0.1))
