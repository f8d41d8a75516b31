"""Kernels are called as what they were compiled to, and still refuse what they could not read."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numba import types

from shared.kernel_calls import direct


def added(numbers: Any, more: Any) -> int:
    """The sum of all numbers, and one more."""
    total = more
    for number in numbers:
        total += number
    return int(total)


KERNEL = numba.njit(types.int64(types.int64[::1], types.int64), nogil=True)(added)


def test_a_kernel_says_the_same_when_it_is_called_directly() -> None:
    called = direct(KERNEL)
    assert not hasattr(called, "overloads")  # numba's dispatcher is not in between
    assert called(np.arange(5), 7) == KERNEL(np.arange(5), 7) == 17


@pytest.mark.parametrize("wrong", [None, [1, 2], 3, np.arange(5, dtype=np.int32)], ids=str)
def test_what_is_no_array_of_such_items_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="can't unbox array"):
        direct(KERNEL)(wrong, 0)


def test_the_number_of_arguments_is_looked_at() -> None:
    with pytest.raises(TypeError, match="expected 2 arguments, got 1"):
        direct(KERNEL)(np.arange(5))


def test_with_boundary_checking_numba_looks_at_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1)
    with pytest.raises(TypeError, match="No matching definition"):
        direct(KERNEL)(np.arange(6).reshape(2, 3), 0)


def test_a_kernel_has_one_signature() -> None:
    lazy = numba.njit(added)
    with pytest.raises(ValueError, match="not enough values"):
        direct(lazy)
