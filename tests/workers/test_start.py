"""What a worker does before it is ready."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

MODULES = ("workers.main", "inferlog.kernels")

COUNT = f"""
import importlib, json
from numba.core import event
with event.install_recorder("numba:compile") as compiled:
    for module in {MODULES!r}:
        importlib.import_module(module)
print(json.dumps([repr(one.data["dispatcher"]) for _, one in compiled.buffer if one.is_start]))
"""


def test_no_kernel_is_compiled_twice() -> None:
    """Kernels come from numba's cache: compiling a single one takes a worker longer than all else of its start."""
    for module in MODULES:
        importlib.import_module(module)  # fills the cache
    told = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == []
