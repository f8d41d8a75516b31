"""Becomes a module of this project: `python -m bench.child PARENT CORES MODULE [ARGUMENT…]`.

On these cores (a comma list), and only as long as the process PARENT lives, however that ends.
"""

from __future__ import annotations

import os
import sys

from shared.process import die_with_parent


def main() -> None:
    parent, cores, module, *arguments = sys.argv[1:]
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    die_with_parent(int(parent))  # kept by exec
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    main()
