"""Numbers as the service reads, writes and converts them."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np

__all__ = ["nearest_float32"]

_HALF_PAST_FLOAT32 = float.fromhex("0x1.ffffffp+127")  # from here on a number rounds to infinity


def nearest_float32(decimal: str) -> float:
    """The float32 nearest to a decimal number, ties to even, infinity when out of range, as a Python float.

    `decimal` is anything that both float() and Decimal() read. Going through float64 alone would round
    twice, which goes wrong when the first rounding lands halfway between two float32 numbers.
    Raises ValueError when the text is not a number.
    """
    wide = float(decimal)
    if not math.isfinite(wide):
        return wide
    if abs(wide) == _HALF_PAST_FLOAT32:
        inside = abs(Decimal(decimal)) < Decimal(_HALF_PAST_FLOAT32)
        return math.copysign(float(np.finfo(np.float32).max) if inside else math.inf, wide)
    with np.errstate(over="ignore", under="ignore"):
        near = np.float32(wide)
        other = np.nextafter(near, np.float32(math.copysign(math.inf, wide - float(near))))
    exact = (float(near) + float(other)) / 2 == wide and Decimal(decimal) != Decimal(wide)
    if not exact:
        return float(near)
    low, high = sorted((float(near), float(other)))
    return low if Decimal(decimal) < Decimal(wide) else high
