"""How kernels are called: as what numba compiled, without the look that numba takes at their arguments first.

A kernel has one signature, so there is nothing to choose; the look costs as much as all else of a call, some 2,000
instructions. What is left are checks that an array is one and that its items have the right size: callers are
typed, and hand on one-dimensional arrays without gaps where a kernel says so. With NUMBA_BOUNDSCHECK, under which
the kernels' tests and those of their callers run once more (tests/components/test_kernels_bounds.py), numba does
look, and an argument of another type, shape or layout is a TypeError.
"""

from __future__ import annotations

from typing import Any

from numba.core import config

__all__ = ["direct"]

_config: Any = config  # its types do not tell of BOUNDSCHECK


def direct(kernel: Any) -> Any:
    """What a kernel with one signature was compiled to. Other compiled code cannot call it."""
    if _config.BOUNDSCHECK:
        return kernel
    (compiled,) = kernel.overloads.values()
    return compiled.entry_point
