"""Kernels that were compiled when an image was built, in a tree that cannot be written to.

numba looks for a cache only where it could write one, and would compile everything again at each start. With
`NUMBA_CACHE_LOCATOR_CLASSES=shared.kernel_cache.Shipped` it takes what lies beside the sources. That must have been
compiled for the same NUMBA_CPU_NAME and NUMBA_CPU_FEATURES; a kernel that is missing fails the start, with the
place where it could not be written.
"""

from __future__ import annotations

from numba.core.caching import InTreeCacheLocator

__all__ = ["Shipped"]


class Shipped(InTreeCacheLocator):
    """The `__pycache__` beside a source file, as it is."""

    def ensure_cache_path(self) -> None:
        """Nothing is made, and nothing is tried."""
