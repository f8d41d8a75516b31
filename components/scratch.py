"""Memory that a kernel needs during one call, kept between calls.

Each thread has its own, so nothing here may be held over a yield of a component: what is to last is copied out.
"""

from __future__ import annotations

from threading import get_ident
from typing import Final

import numpy as np
import numpy.typing as npt

from shared.shm_matrix import Bytes

__all__ = ["KEPT", "Scratch", "scratch"]

KEPT: Final = 8 << 20
"""Bytes of `out`, and of `heap`, that are kept: one large request need not stay in memory."""


class Scratch:
    """`out` for what a kernel writes, `heap` for what it collects first; both grow when a kernel has no room.

    With `written`, a kernel's work is done, and what is larger than KEPT is given back.
    """

    __slots__ = ("_carriers", "_large", "_written", "heap", "out")

    def __init__(self) -> None:
        self.out: Bytes = np.empty(1 << 16, np.uint8)
        self._written = self.out.data  # what it is copied out through, at half the cost
        self.heap: Bytes = np.empty(1 << 16, np.uint8)
        self._large = False  # one of them is larger than is kept
        self._carriers: npt.NDArray[np.int64] = np.empty(1 << 10, np.int64)

    def carriers(self, count: int) -> npt.NDArray[np.int64]:
        """Room for so many numbers at least, on their way from one type into another."""
        if count > len(self._carriers):
            self._carriers = np.empty(2 * count, np.int64)
        return self._carriers

    def written(self, size: int) -> bytes:
        """The first bytes of `out`. What stands in `heap` may be gone then."""
        found = self._written[:size].tobytes()
        if self._large:
            self.trim()
        return found

    def trim(self) -> None:
        """Gives back what is larger than is kept."""
        if len(self.out) > KEPT:
            self.out = np.empty(KEPT, np.uint8)
            self._written = self.out.data
        if len(self.heap) > KEPT:
            self.heap = np.empty(KEPT, np.uint8)
        self._large = False

    def grow_out(self) -> Bytes:
        """An `out` of twice the size, which is returned."""
        self.out = np.empty(2 * len(self.out), np.uint8)
        self._written = self.out.data
        self._large |= len(self.out) > KEPT
        return self.out

    def grow_heap(self) -> Bytes:
        """The same of `heap`."""
        self.heap = np.empty(2 * len(self.heap), np.uint8)
        self._large |= len(self.heap) > KEPT
        return self.heap

    def append(self, at: int, data: bytes) -> int:
        """Writes `data` behind the first `at` bytes of the heap, which stay; returns where it ends."""
        end = at + len(data)
        while end > len(self.heap):
            kept = self.heap[:at]
            self.grow_heap()
            self.heap[:at] = kept
        self.heap[at:end] = np.frombuffer(data, np.uint8)
        return end

    def __repr__(self) -> str:
        return f"<Scratch {len(self.out)} bytes out, {len(self.heap)} bytes of heap>"


_of_threads: Final[dict[int, Scratch]] = {}
"""By the thread's number. The threads of a process are few, and live as long as it."""

_number_of_thread: Final = get_ident


def scratch() -> Scratch:
    """The scratch of the calling thread."""
    number = _number_of_thread()
    found = _of_threads.get(number)
    if found is None:
        found = _of_threads[number] = Scratch()
    return found
