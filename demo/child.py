"""Runs a module that ends with the demo, however the demo ends: `python -m demo.child PID MODULE [ARGUMENT…]`."""

from __future__ import annotations

import runpy
import sys

from shared.process import die_with_parent


def main() -> None:
    parent, module = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    die_with_parent(int(parent))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
