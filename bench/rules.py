"""What the stand-in upstreams know: every value is a pure function of what is asked.

So two servers that ask the same questions give the same answers, on any machine, and what they should answer can
be reckoned without them (bench.expected).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["dimension", "evaluate", "feature_value", "is_text", "model_scores", "text_number"]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_MISSING = 11  # one value in eleven is missing: 9 %
_REMARKABLE = (
    1e6,
    1234567.0,
    1e-5,
    0.1,
    100000.0,
    1e21,
    3.0,
    -0.0,
)  # their text forms and sums are not round


def dimension(group: str) -> int:
    """Elements of one value of a feature group: 128 for `fp32v128_main`, 1 for `fp32_main`."""
    return int(group.split("_")[0].partition("v")[2] or 1)


def is_text(group: str) -> bool:
    """Whether the values of a feature group are texts."""
    return group.startswith("string")


def feature_value(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
    """The value of a feature: little-endian numbers or text, as the group's name says; b"" when missing.

    Keys of others are never missing: one of 40 texts in `string40_main`, one of 100 numbers in `int64_main`.
    """
    code = zlib.crc32("|".join((entity, *key, group, feature)).encode())
    if group == "string40_main":
        return b"kind %d" % (code % 40)
    if group == "int64_main":
        return np.int64(code % 100 * 7919).tobytes()
    if code % _MISSING == 0:
        return b""
    if is_text(group):
        return b"s%d" % (code % 1000)
    return np.array([_number(code, place) for place in range(dimension(group))], "<f4").tobytes()


def _number(code: int, place: int) -> float:
    if code % 7 == 0:
        return _REMARKABLE[(code // 7 + place) % len(_REMARKABLE)]
    return ((code >> 8) + place * 7) % 2000 / 8 - 100


def text_number(text: bytes) -> float:
    """What a string counts for in a model."""
    return float(zlib.crc32(text) % 1000)


def model_scores(inputs: Doubles, count: int) -> Floats:
    """`count` scores for each row of `inputs` [rows, elements]; float32 [rows, count]."""
    # cumsum adds from left to right; sum would add pairwise, and round otherwise.
    base = np.cumsum(inputs, axis=1)[:, -1:]
    scores: Floats = (base * np.arange(1, count + 1) / 16 % 1000).astype(np.float32)
    return scores


def evaluate(expression: str, columns: Mapping[str, Floats], rows: int) -> Floats:
    """The value of a postfix expression in + and * for each row, in float32."""
    stack: list[Floats] = []
    for token in expression.split():
        if token in ("+", "*"):
            right, left = stack.pop(), stack.pop()
            stack.append(left + right if token == "+" else left * right)
        elif token in columns:
            stack.append(columns[token])
        else:
            stack.append(np.full(rows, float(token), np.float32))
    return stack.pop()
