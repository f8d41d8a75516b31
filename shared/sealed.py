"""Bytes that no process can change any more, handed over by file descriptor.

The publisher writes them once into a memfd and seals it; a reader that sees the seals needs no copy made in
haste, no checksum and no lock. The kernel frees the memory when the last process has let go.
"""

from __future__ import annotations

import fcntl
import mmap
import os

__all__ = ["SealError", "read_sealed", "seal"]

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class SealError(ValueError):
    """A descriptor that does not hold what its sender said it does."""


def seal(name: str, data: bytes) -> int:
    """A new descriptor of a sealed memfd with these bytes; the caller closes it.

    Raises OSError when the memory is not to be had.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_sealed(fd: int, length: int) -> memoryview:
    """The `length` bytes behind a descriptor that `seal` made, in this process or another. Nothing is copied: the
    memory is mapped for as long as the view is used, whatever becomes of the descriptor.

    Raises SealError when it is not sealed or has another length; OSError when it cannot be mapped.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise SealError(f"descriptor {fd} is no memfd: {error.strerror}") from error
    size = os.fstat(fd).st_size
    if seals & _SEALS != _SEALS:
        raise SealError(f"memfd of {size} bytes is not sealed (seals {seals:#x}, must be {_SEALS:#x})")
    if size != length:
        raise SealError(f"memfd has {size} bytes, announced were {length}")
    if not length:
        return memoryview(b"")
    # Private: kernels before 6.7 take any shared mapping of a sealed memfd for a wish to write to it.
    return memoryview(mmap.mmap(fd, length, mmap.MAP_PRIVATE, mmap.PROT_READ))
