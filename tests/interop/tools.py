"""Where the foreign programs are that `make test-full` gets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.frontdoor.process import PATIENCE, ROOT

__all__ = ["TOOLS", "run", "tool"]

TOOLS = ROOT / ".tools"


def tool(name: str) -> Path:
    """The path of a program: one of `.tools`, else an installed one. Raises FileNotFoundError."""
    for place in (TOOLS / "bin" / name, TOOLS / name / "bin" / name):
        if place.exists():
            return place
    installed = shutil.which(name)
    if installed is None:
        raise FileNotFoundError(f"{name} is neither installed nor in {TOOLS}: `make test-full` gets it")
    return Path(installed)


def run(*command: str | Path, stdin: str = "") -> str:
    """What a program prints. Raises AssertionError with all of it when it fails."""
    done = subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
