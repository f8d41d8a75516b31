"""The compiled request path: whether it is there, and whether it was made of the sources beside it.

`make build` compiles some modules to C (`setup.py` lists them). Python imports an extension module before the
source of the same name, so one that was made of an older source would be run without a word.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
from pathlib import Path

__all__ = ["MANIFEST", "StaleError", "check", "is_compiled"]

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = "shared/native.json"
"""Written by the build: source (a path below the root) → its SHA-256, in hexadecimal."""


class StaleError(RuntimeError):
    """Compiled modules that were made of other sources than those beside them."""


def is_compiled(root: Path = ROOT) -> bool:
    """Whether any module of the request path is compiled."""
    return any(_extension(root, name) for name in _digests(root))


def check(root: Path = ROOT) -> None:
    """Raises StaleError, which names them, when a compiled module is not made of its source."""
    stale = [
        name
        for name, digest in _digests(root).items()
        if _extension(root, name) and hashlib.sha256((root / name).read_bytes()).hexdigest() != digest
    ]
    if stale:
        raise StaleError(
            f"compiled modules are older than their sources: {', '.join(stale)}; "
            "`make build` compiles them anew, `make plain` goes without"
        )


def _digests(root: Path) -> dict[str, str]:
    try:
        digests: dict[str, str] = json.loads((root / MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}
    return digests


def _extension(root: Path, name: str) -> Path | None:
    """The extension module that is imported instead of the source `name`."""
    stem = root / name.removesuffix(".py")
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if path.exists():
            return path
    return None
