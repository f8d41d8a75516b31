"""Where the commands print their tables."""

from __future__ import annotations

import sys
from typing import Final, TextIO

from rich.console import Console

__all__ = ["console"]

WIDTH: Final = 200
"""Characters where there is no terminal: nothing is cut in a pipe, or under `kubectl exec` without -t."""


def console(out: TextIO | None = None) -> Console:
    """For tables on `out`, else on standard output; numbers and paths in them are not coloured."""
    out = out or sys.stdout
    return Console(file=out, width=None if out.isatty() else WIDTH, highlight=False)
