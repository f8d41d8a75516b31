"""Bytes that are sealed are the ones that were published."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from shared.sealed import SealError, read_sealed, seal


@pytest.fixture
def sealed() -> Iterator[int]:
    fd = seal("test", b"document")
    yield fd
    os.close(fd)


def test_reading_gives_the_bytes_back_every_time(sealed: int) -> None:
    assert read_sealed(sealed, 8) == b"document"
    assert read_sealed(sealed, 8) == b"document"


def test_nothing_at_all_can_be_sealed() -> None:
    fd = seal("test", b"")
    assert read_sealed(fd, 0) == b""
    os.close(fd)


def test_large_documents_come_back_whole() -> None:
    data = os.urandom(3 << 20)
    fd = seal("test", data)
    assert read_sealed(fd, len(data)) == data
    os.close(fd)


def test_nobody_can_change_it(sealed: int) -> None:
    with pytest.raises(PermissionError):
        os.pwrite(sealed, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(sealed, 1)
    with pytest.raises(PermissionError):
        mmap.mmap(sealed, 8)


def test_it_is_not_inherited(sealed: int) -> None:
    assert not os.get_inheritable(sealed)


def test_another_length_is_refused(sealed: int) -> None:
    with pytest.raises(SealError, match="has 8 bytes, announced were 9"):
        read_sealed(sealed, 9)


def test_a_memfd_without_seals_is_refused() -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x")
    with pytest.raises(SealError, match="is not sealed"):
        read_sealed(fd, 1)
    os.close(fd)


def test_what_is_no_memfd_is_refused() -> None:
    reading, writing = os.pipe()
    with pytest.raises(SealError, match="is no memfd"):
        read_sealed(reading, 1)
    os.close(reading)
    os.close(writing)
