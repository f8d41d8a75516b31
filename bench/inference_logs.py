"""What encoding inference logs costs: rows a second on one core and bytes a row, beside the straightforward way.

    python -m bench.inference_logs [--rounds N] [--docs docs/performance.md]

One request of 500 rows with 60 columns: 48 fetched numbers and 4 integers, a string and a vector of 16 numbers a
row, 9 % of them missing, and 6 scores. Both encoders write the whole Kafka message from the same matrix, in turns;
before that, what both have written is read back and compared. Times are CPU times of this thread. Uncompressed
messages are compared; what zstd makes of them stands beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from bench import naive_logs
from bench.report import Table, figure, machine, replace_section
from dag.columns import Layouts, layouts
from dag.config import ModelConfig, decode
from inferlog import reader
from inferlog.encode import encode
from inferlog.event import Event
from inferlog.schema import LogSchema
from shared.datatypes import DataType
from shared.shm_matrix import ABSENT, VALUE, CellBlock, MatrixPool, ShmMatrix, TextColumn, VarBlock

__all__ = ["main"]

ROWS = 500
MISSING = 0.09
CONFIG_ID = "bench"
SECTION = "inference logs"
MESSAGE_BYTES = 1_000_000
TIMES = 5  # encodings a round

EVENT = Event(
    method=1,
    model_config_id=CONFIG_ID,
    digest="ab" * 32,
    request_id=b"0123456789abcdef",
    tracking_id="tracking-0123456789",
    user_id="user-1",
    request_ns=1_700_000_000_000_000_000,
    endpoints={"model": "10.0.0.1:8090"},
)


class Subject(NamedTuple):
    """A scored request: 60 columns."""

    config: ModelConfig
    layouts: Layouts
    matrix: ShmMatrix


def _subject() -> Subject:
    config = _config()
    placed = layouts(CONFIG_ID, config)
    rng = np.random.default_rng(1)
    slot = MatrixPool(64 << 20, 64 << 20).acquire()
    matrix = ShmMatrix(slot, ROWS, len(placed.targets.blocks), len(placed.targets.external))
    for number, spec in enumerate(placed.targets.blocks):
        if spec.width:
            block = CellBlock.empty(slot, ROWS, len(spec.columns), spec.width)
            block.cells[...] = np.frombuffer(_numbers(rng, block.cells.size), np.uint8).reshape(
                block.cells.shape
            )
            block.states[...] = np.where(rng.random(block.states.shape) < MISSING, ABSENT, VALUE)
            matrix.blocks[number] = block
            continue
        variable = VarBlock.empty(slot, ROWS, len(spec.columns))
        texts = {DataType.STRING: lambda: b"category-%d" % rng.integers(100)}
        variable.fill(
            slot,
            [
                (row, column.column, texts.get(column.data_type, lambda: _numbers(rng, 64))())
                for row in range(ROWS)
                for column in spec.columns
                if rng.random() >= MISSING
            ],
        )
        matrix.blocks[number] = variable
    ids = [b"item-%06d" % number for number in range(ROWS)]
    matrix.texts[placed.targets.external["id"]] = TextColumn.of(slot, ids)
    return Subject(config, placed, matrix)


def _numbers(rng: np.random.Generator, size: int) -> bytes:
    """Prices, counts and shares as features have them: two decimals, so that compression has something to do."""
    return np.round(rng.gamma(2.0, 30.0, size // 4), 2).astype("<f4").tobytes()


def _config() -> ModelConfig:
    groups = [
        {"label": "numbers", "data_type": "DataTypeFP32", "features": [f"f{at}" for at in range(48)]},
        {"label": "counts", "data_type": "DataTypeInt64", "features": [f"c{at}" for at in range(4)]},
        {"label": "words", "data_type": "DataTypeString", "features": ["category"]},
        {"label": "vectors", "data_type": "DataTypeFP32Vector", "features": ["embedding"]},
    ]
    scores = [f"score{at}" for at in range(6)]
    output = {"name": "o", "model_scores": scores, "model_scores_dims": [[1]] * 6, "data_type": "FP32"}
    fetch = {
        "component": "fetch",
        "component_id": "id",
        "fs_keys": [{"schema": "id", "col": "id"}],
        "fs_request": {"label": "item", "featureGroups": groups},
    }
    model = {"component": "model", "model_name": "m", "outputs": [output]}
    document = {
        "component_config": {"feature_components": [fetch], "predator_components": [model]},
        "response_config": {"features": ["id", *scores]},
    }
    return decode(json.dumps(document))


def _schema(subject: Subject, written: str, *, compress: bool = False) -> LogSchema:
    service = {"v2-logging-type": written, "compression-enabled": compress}
    return LogSchema.of(CONFIG_ID, subject.config, service)


def _ours(schema: LogSchema, subject: Subject) -> list[bytes]:
    encoding = encode(schema, subject.matrix, None, EVENT, max_message_bytes=MESSAGE_BYTES)
    return [message.value for message in encoding.messages]


def _check(schema: LogSchema, ours: Sequence[bytes], naive: Sequence[bytes]) -> None:
    """Both have written the same values. The naive rows do not say which zeros are missing values."""
    for mine, theirs in zip(ours, naive, strict=True):
        pairs = zip(
            reader.values(reader.read(mine), schema.columns),
            reader.values(reader.read(theirs), schema.columns),
            strict=True,
        )
        for left, right in pairs:
            present = left.is_valid()
            assert left.filter(present).equals(right.filter(present)), schema


def _cpu(work: Callable[[], object]) -> float:
    """Seconds of CPU that one call takes: the least of a few, which the neighbours disturb least."""
    taken = []
    for _ in range(TIMES):
        begun = time.thread_time()
        work()
        taken.append(time.thread_time() - begun)
    return min(taken)


def _measure(subject: Subject, written: str, rounds: int) -> list[str]:
    schema, packed = _schema(subject, written), _schema(subject, written, compress=True)
    naive = naive_logs.encode(schema, subject.layouts.targets, subject.matrix, EVENT)
    ours = _ours(schema, subject)
    _check(schema, ours, naive)
    turns: tuple[Callable[[], object], ...] = (
        lambda: _ours(schema, subject),
        lambda: _ours(packed, subject),
        lambda: naive_logs.encode(schema, subject.layouts.targets, subject.matrix, EVENT),
    )
    measured = [[_cpu(turn) for turn in turns] for _ in range(rounds)]
    plain, zstd, slow = (statistics.median(column) for column in zip(*measured, strict=True))
    ratios = sorted(taken[2] / taken[0] for taken in measured)
    return [
        written,
        figure(ROWS / plain),
        figure(ROWS / slow),
        f"{figure(statistics.median(ratios))} ({figure(ratios[0])} to {figure(ratios[-1])})",
        figure(sum(map(len, ours)) / ROWS),
        figure(sum(map(len, naive)) / ROWS),
        figure(ROWS / zstd),
        figure(sum(map(len, _ours(packed, subject))) / ROWS),
    ]


def main() -> None:
    """Prints the table, and puts it into the page that `--docs` names."""
    parser = argparse.ArgumentParser(description="CPU and bytes of inference logs.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="replace the table in this page")
    arguments = parser.parse_args()
    subject = _subject()
    header = (
        "format", "rows/s", "rows/s, objects", "times faster", "bytes/row", "bytes/row, objects", "rows/s, zstd",
        "bytes/row, zstd",
    )  # fmt: skip
    formats = ("proto", "arrow", "parquet")
    table = Table("inference logs", header, [_measure(subject, one, arguments.rounds) for one in formats])
    table.show(Console())
    if arguments.docs:
        made = f"{machine()}. Made by `python -m bench.inference_logs --docs docs/performance.md`."
        replace_section(arguments.docs, SECTION, f"{table.markdown()}\n\n{made}")


if __name__ == "__main__":
    main()
