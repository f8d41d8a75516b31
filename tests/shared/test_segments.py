"""Shared memory by file descriptor."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import pytest

from shared.segments import Segment


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_segment_is_zeroed_writable_memory_behind_a_descriptor() -> None:
    segment = Segment("test", 10_000)
    assert segment.bytes.shape == (10_000,)
    assert segment.bytes.dtype == np.uint8
    assert not segment.bytes.any()
    segment.bytes[7] = 42
    with mmap.mmap(segment.fd, 10_000, prot=mmap.PROT_READ) as other:  # as another process maps it
        assert other[7] == 42
        segment.bytes[9_999] = 1
        assert other[9_999] == 1
    segment.close()


def test_its_pages_are_there_before_it_is_used() -> None:
    segment = Segment("test", 1 << 20)
    assert os.fstat(segment.fd).st_blocks * 512 >= 1 << 20
    segment.close()


def test_closing_keeps_the_memory_as_long_as_somebody_looks_at_it() -> None:
    before = open_descriptors()
    segment = Segment("test", 4096)
    memory = segment.bytes
    assert not os.get_inheritable(segment.fd)
    segment.close()
    del segment
    memory[0] = 1
    assert memory[0] == 1
    del memory
    assert open_descriptors() == before


def test_memory_that_is_not_to_be_had_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = open_descriptors()
    with pytest.raises(OSError, match="No space left"):
        Segment("test", 4096)
    assert open_descriptors() == before


def test_a_segment_says_what_it_is() -> None:
    segment = Segment("matrix-3", 4096)
    assert repr(segment) == f"<Segment matrix-3 fd={segment.fd} 4096 bytes>"
    segment.close()
