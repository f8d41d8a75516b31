"""Rows in groups: the rows of a component's upstream calls, and the answers to them, side by side for kernels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy import frombuffer, uint8

from dag.component import Reply
from shared.shm_matrix import Bytes

__all__ = ["Groups", "Places", "batches", "joined"]

Places = npt.NDArray[np.int64]
NO_PLACES: Final[Places] = np.empty(0, np.int64)


class Groups:
    """Group i is rows bounds[i] … bounds[i + 1] − 1. `limits` are the bounds once more, for kernels: int64."""

    __slots__ = ("bounds", "limits")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self.limits: Places = np.array(bounds, np.int64)

    def __repr__(self) -> str:
        return f"<Groups {len(self.bounds) - 1} of {self.bounds[-1] - self.bounds[0]} rows>"


@functools.lru_cache(maxsize=1024)
def batches(rows: int, size: int) -> Groups:
    """So many rows in groups of at most `size`; 0: all in one."""
    return Groups((*range(0, rows, size or rows), rows))


def joined(replies: Sequence[Reply]) -> tuple[Bytes, Places]:
    """The bodies of replies one after the other, and where each one ends; a single one needs no ends.

    That of a failed call is empty.
    """
    if len(replies) == 1:
        reply = replies[0]
        return frombuffer(b"" if reply.status else reply.body, uint8), NO_PLACES
    bodies = [b"" if reply.status else reply.body for reply in replies]
    ends = np.array([*itertools.accumulate(map(len, bodies))], np.int64)
    return frombuffer(b"".join(bodies), uint8), ends
