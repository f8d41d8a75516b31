"""The tests of the encoders and of the reader once more, with every index into an array checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("test_encode.py")
ROOT = TESTS.parents[2]

CHECKED = """
import sys

import numpy as np
import pytest

from inferlog import kernels

sizes, columns = np.zeros((1, 1), np.int32), np.ones(1, np.int32)
try:
    kernels.size_cells(np.ones((1, 1), np.uint8), np.empty(0, np.int32), 4, 0, columns, columns, sizes)
except IndexError:
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
sys.exit("indices are not checked")
"""


@pytest.mark.slow
def test_kernels_stay_within_their_arrays(tmp_path: Path) -> None:
    environ = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis"),
    }
    run = subprocess.run(
        [sys.executable, "-c", CHECKED, "-k", "torn or split", str(TESTS)],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout
