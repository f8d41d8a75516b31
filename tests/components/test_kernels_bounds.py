"""The tests of the kernels and of their callers once more, with every index and every argument checked.

Compiled code does not look where it reads and writes; with NUMBA_BOUNDSCHECK it does and raises IndexError, and
numba looks at the types, shapes and layouts of what kernels are called with. That takes a compilation of its own,
so it happens in another process, with a cache of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = [
    HERE / name
    for name in (
        "test_kernels.py",
        "test_key_kernels.py",
        "test_model_kernels.py",
        "test_numerix_kernels.py",
        "test_request_kernels.py",
        "test_tensor_kernels.py",
        "test_value_kernels.py",
        "test_feature.py",
        "test_predator.py",
        "test_numerix.py",
        "test_tensors.py",
        "../shared/test_feature_cache.py",
        "../workers/test_requests.py",
        "../workers/test_responses.py",
    )
]
ROOT = HERE.parents[1]

CHECKED = """
import sys

import numpy as np
import pytest

from components.tensor_kernels import cell_recipe, gather_cells

rows, recipe, none = np.zeros(1, np.int32), cell_recipe(4, 4, 4, [1]), np.zeros(0, np.int64)
try:
    gather_cells(np.ones(4, np.uint8), 0, 4, 1, rows[:0], rows, recipe, np.zeros((1, 4), np.uint8), 0, none)
except IndexError:
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
sys.exit("indices are not checked")
"""


@pytest.mark.full  # minutes, nearly all of them the compiler's
def test_kernels_stay_within_their_arrays(tmp_path: Path) -> None:
    environ = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis"),
        "PYTEST_ADDOPTS": "",  # which may select other tests
    }
    run = subprocess.run(
        [sys.executable, "-c", CHECKED, "--hypothesis-profile=thorough", *map(str, TESTS)],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout
