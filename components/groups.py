"""Rows in groups: the rows of a component's upstream calls, and the answers to them, side by side for kernels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.shm_matrix import Bytes

__all__ = ["Groups", "batches", "joined"]

Places = npt.NDArray[np.int64]
NO_PLACES: Places = np.empty(0, np.int64)


class Groups(NamedTuple):
    """Group i is rows bounds[i] … bounds[i + 1] − 1. `limits` are the bounds once more, for kernels: int64."""

    bounds: Sequence[int]
    limits: Places

    @classmethod
    def of(cls, bounds: Sequence[int]) -> Groups:
        return cls(bounds, np.array(bounds, np.int64))


@functools.lru_cache(maxsize=1024)
def batches(rows: int, size: int) -> Groups:
    """So many rows in groups of at most `size`; 0: all in one."""
    return Groups.of((*range(0, rows, size or rows), rows))


def joined(bodies: Sequence[bytes]) -> tuple[Bytes, Places]:
    """Answers one after the other, and where each one ends; a single one needs no ends."""
    if len(bodies) == 1:
        return np.frombuffer(bodies[0], np.uint8), NO_PLACES
    ends = np.array([*itertools.accumulate(map(len, bodies))], np.int64)
    return np.frombuffer(b"".join(bodies), np.uint8), ends
