"""Rows in groups: the rows of a component's upstream calls, and the answers to them, side by side for kernels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dag.component import Reply

__all__ = ["Groups", "Places", "batches", "joined"]

Places = npt.NDArray[np.int64]


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


def joined(
    replies: Sequence[Reply], groups: Groups, lines: Sequence[int] | None = None
) -> tuple[bytes, Places]:
    """The bodies of replies one after the other, and the table that tells kernels about them.

    Reply i is about group i; the body of a failed call is empty. The table (int64): the bounds of the groups; where
    each body ends; and with `lines`, the line of the matrix that each is about. A single body ends at the end:
    without a line, the bounds are its table.
    """
    if len(replies) == 1:
        body = b"" if replies[0].status else replies[0].body
        return body, groups.limits if lines is None else _table(groups, [len(body)], lines)
    bodies = [b"" if reply.status else reply.body for reply in replies]
    return b"".join(bodies), _table(groups, itertools.accumulate(map(len, bodies)), lines or ())


def _table(groups: Groups, ends: Iterable[int], lines: Iterable[int]) -> Places:
    return np.array([*groups.bounds, *ends, *lines], np.int64)
