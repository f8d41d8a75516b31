"""Rows in groups: the rows of a component's upstream calls, and the answers to them, side by side for kernels."""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy import frombuffer, int64

from dag.component import Reply

__all__ = ["Groups", "Places", "batches", "joined", "places"]

Places = npt.NDArray[np.int64]


def places(numbers: Sequence[int]) -> Places:
    """These numbers as an array, int64, not to be written to: a tenth of what numpy takes for a list."""
    return frombuffer(array("q", numbers), int64)


class Groups:
    """Group i is rows bounds[i] … bounds[i + 1] − 1. `limits` are the bounds once more, for kernels: int64."""

    __slots__ = ("bounds", "limits")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self.limits: Places = places(bounds)

    def __repr__(self) -> str:
        return f"<Groups {len(self.bounds) - 1} of {self.bounds[-1] - self.bounds[0]} rows>"


_WHOLE: Final = [Groups((0, rows)) for rows in range(513)]


def batches(rows: int, size: int) -> Groups:
    """So many rows, one at least, in groups of at most `size`; 0: all in one."""
    if (not size or rows <= size) and rows < len(_WHOLE):
        return _WHOLE[rows]
    return _batches(rows, size)


@functools.lru_cache(maxsize=1024)
def _batches(rows: int, size: int) -> Groups:
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
    return places([*groups.bounds, *ends, *lines])
