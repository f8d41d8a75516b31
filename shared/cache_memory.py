"""The memory of the feature cache: how it is made, and how it is laid out. See `shared.cache_kernels`.

Apart from what reads and writes it, so that the process that makes it needs no kernels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.segments import Segment

__all__ = [
    "HEADER_WORDS",
    "HEAD_AT",
    "SET_WORDS",
    "SMALLEST",
    "WAYS",
    "NotACacheError",
    "Words",
    "cache_segment",
    "received_cache",
    "sets_of",
    "words_of",
]

Words = npt.NDArray[np.uint64]

HEADER_WORDS = 16
HEAD_AT = 8  # the counter of words written; alone on its cache line, since every insertion writes it
WAYS = 8
SET_WORDS = 3 * WAYS
MAGIC = int.from_bytes(b"inferfc2", "little")  # ends with the version of the layout
SMALLEST = 4096  # bytes that hold a head, a set and a small record
NAME = "inferflow-features"


class NotACacheError(ValueError):
    """Memory that is no feature cache of this version."""


def sets_of(words: int) -> int:
    """How many sets a cache of so many words has: 3/16 of it are sets, a way for every 128 bytes."""
    return max(words * 3 // 16 // SET_WORDS, 1)


def cache_segment(size: int) -> Segment:
    """New memory for a feature cache of `size` bytes (at least 4096). Raises OSError when it is not to be had."""
    segment = Segment(NAME, max(size, SMALLEST))
    words = segment.bytes[: segment.size & -8].view(np.uint64)
    # As if the log had gone round once: place 0 is that of no record.
    words[HEAD_AT] = len(words) - HEADER_WORDS - SET_WORDS * sets_of(len(words))
    words[0] = MAGIC
    return segment


def received_cache(fd: int, size: int) -> Segment:
    """The feature cache that another process made. Raises NotACacheError, or OSError when it cannot be mapped."""
    try:
        segment = Segment.received(NAME, fd, size)
    except ValueError as error:
        raise NotACacheError(str(error)) from error
    try:
        words_of(segment)
    except NotACacheError:
        segment.close()
        raise
    return segment


def words_of(segment: Segment) -> Words:
    """A feature cache as words. Raises NotACacheError."""
    words = segment.bytes[: segment.size & -8].view(np.uint64)
    if segment.size < SMALLEST or words[0] != MAGIC:
        raise NotACacheError(f"{segment!r} is no feature cache of this version")
    return words
