"""Shared memory by file descriptor: nameless, fully backed, freed by the kernel with its last user.

A segment is a `memfd`: nobody can attach to it by guessing a name, and nothing has to be unlinked when a
process is killed. Its pages are allocated before it is used (`posix_fallocate`): a full memory file system is
an OSError at this line, not a SIGBUS in the middle of a request.
"""

from __future__ import annotations

import mmap
import os
from typing import Self

import numpy as np
import numpy.typing as npt

__all__ = ["Bytes", "Segment"]

Bytes = npt.NDArray[np.uint8]


class Segment:
    """`size` bytes of shared memory, mapped readable and writable into this process."""

    def __init__(self, name: str, size: int) -> None:
        """Raises OSError (ENOSPC, ENOMEM) when the memory is not to be had."""
        self.name = name
        self.size = size
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(self.fd, 0, size)
            self._map = mmap.mmap(self.fd, size)
        except OSError:
            os.close(self.fd)
            raise
        self.bytes: Bytes = np.frombuffer(self._map, np.uint8)

    @classmethod
    def received(cls, name: str, fd: int, size: int) -> Self:
        """The segment that another process made, behind a descriptor that stays the caller's.

        Raises ValueError when it has another size: what lies beyond its end must not be touched. Raises OSError.
        """
        found = os.fstat(fd).st_size
        if found != size or not size:
            raise ValueError(f"segment {name} has {found} bytes, announced were {size}")
        segment = cls.__new__(cls)
        segment.name = name
        segment.size = size
        segment.fd = os.dup(fd)
        try:
            segment._map = mmap.mmap(segment.fd, size)
        except OSError:
            os.close(segment.fd)
            raise
        segment.bytes = np.frombuffer(segment._map, np.uint8)
        return segment

    def is_behind(self, fd: int) -> bool:
        """Whether a descriptor is of this very memory."""
        return os.path.sameopenfile(self.fd, fd)

    def close(self) -> None:
        """Gives the descriptor back; the mapping goes with the last array that looks into it."""
        os.close(self.fd)

    def __repr__(self) -> str:
        return f"<Segment {self.name} fd={self.fd} {self.size} bytes>"
