"""What number conversion and score expressions cost: µs for 500 values, the best of a few runs.

    .venv/bin/python bench/conversions.py

(Not named numbers.py: the directory of a script comes first in the import path, and the standard library has
a module of that name.)
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator

import numpy as np

from components import expression, numbers
from shared.datatypes import DataType

ROWS = 500
VECTOR = 16


def microseconds(work: Callable[[], object]) -> float:
    """The best time of one call, over five runs of at least a few milliseconds each."""
    calls = 50
    return min(timeit.repeat(work, number=calls, repeat=5)) / calls * 1e6


def conversions() -> Iterator[tuple[str, Callable[[], object]]]:
    random = np.random.default_rng(7)
    doubles = random.normal(0, 100, ROWS)
    arrays: dict[DataType, numbers.Array] = {
        DataType.FP64: doubles,
        DataType.FP32: doubles.astype(np.float32),
        DataType.FP16: doubles.astype(np.float16),
        DataType.INT64: random.integers(-1000, 1000, ROWS),
    }
    targets = (DataType.FP16, DataType.FP32, DataType.INT8, DataType.UINT8, DataType.UINT64, DataType.BOOL)
    for source, values in arrays.items():
        for target in targets:
            if source is not target:
                yield (
                    f"convert {source.name} to {target.name}",
                    lambda v=values, s=source, t=target: numbers.convert(v, s, t),  # type: ignore[misc]
                )
        yield f"text of {source.name}", lambda v=values, s=source: numbers.text(v, s)  # type: ignore[misc]
    single = doubles.astype(np.float32)
    large = single * np.float32(1e7)
    yield "text of FP32, all with exponents", lambda: numbers.text(large, DataType.FP32)
    vectors = single[: ROWS // VECTOR * VECTOR].reshape(-1, VECTOR)
    yield (
        f"vector_text of FP32, {len(vectors)} vectors of {VECTOR}",
        lambda: [numbers.vector_text(vector, DataType.FP32) for vector in vectors],
    )
    yield "vector_texts of the same", lambda: numbers.vector_texts(list(vectors), DataType.FP32)


def parsing() -> Iterator[tuple[str, Callable[[], object]]]:
    random = np.random.default_rng(7)
    decimals = numbers.text(random.normal(0, 100, ROWS).astype(np.float32), DataType.FP32)
    integers = numbers.text(random.integers(-1000, 1000, ROWS), DataType.INT64)
    yield "parse into FP32", lambda: numbers.parse(decimals, DataType.FP32)
    yield "parse into FP64", lambda: numbers.parse(decimals, DataType.FP64)
    yield "parse into INT64", lambda: numbers.parse(integers, DataType.INT64)
    yield "parse into FP32, one empty", lambda: numbers.parse([*decimals[1:], b""], DataType.FP32)
    yield "parse into FP32, one no number", lambda: numbers.parse([*decimals[1:], b"x"], DataType.FP32)
    vectors = [b":".join(decimals[at : at + VECTOR]) for at in range(0, ROWS - VECTOR, VECTOR)]
    yield (
        f"parse_vector into FP32, {len(vectors)} vectors of {VECTOR}",
        lambda: [numbers.parse_vector(vector, DataType.FP32) for vector in vectors],
    )
    yield "parse_vectors into FP32 of the same", lambda: numbers.parse_vectors(vectors, DataType.FP32)


def expressions() -> Iterator[tuple[str, Callable[[], object]]]:
    random = np.random.default_rng(7)
    columns = {name: random.uniform(0.1, 10, ROWS).astype(np.float32) for name in "abc"}
    for text in ("a b c * *", "a b + c * a log -", "a norm_min_max 0.7 * b norm_percentile_5_95 0.3 * +"):
        compiled = expression.parse(text)
        yield (
            f"evaluate {text!r}",
            lambda e=compiled: e.evaluate(columns, ROWS, np.float32),  # type: ignore[misc]
        )
    yield "parse an expression", lambda: expression.parse("a b + c * a log -")


def main() -> None:
    for benchmarks in (conversions, parsing, expressions):
        for name, work in benchmarks():
            print(f"{name:66} {microseconds(work):8.1f} µs")


if __name__ == "__main__":
    main()
