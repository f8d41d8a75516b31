"""Which rules configs were judged by: a digest of the code that judges them."""

from __future__ import annotations

import functools
from pathlib import Path

import components
import dag
from shared.snapshot import digest_of

__all__ = ["rules"]


@functools.cache
def rules() -> str:
    """SHA-256 of the sources that decide what a good config is. Texts that passed need not be judged again
    by a process with the same rules: with many long configs that is seconds at its start.

    The files are read, not asked of their modules: compiled ones do not know their sources. Raises OSError.
    """
    (judging,), (computing,) = dag.__path__, components.__path__
    sources = [*sorted(Path(judging).glob("*.py")), Path(computing) / "expression.py"]
    return digest_of(b"".join(source.read_bytes() for source in sources))
