"""Which rules configs were judged by: a digest of the code that judges them."""

from __future__ import annotations

import functools
import inspect
import pkgutil

import components.expression
import dag
from shared.snapshot import digest_of

__all__ = ["rules"]


@functools.cache
def rules() -> str:
    """SHA-256 of the sources that decide what a good config is. Texts that passed need not be judged again
    by a process with the same rules: with many long configs that is seconds at its start.
    """
    modules = sorted(found.name for found in pkgutil.iter_modules(dag.__path__, "dag."))
    sources = [inspect.getsource(__import__(name, fromlist=["*"])) for name in modules]
    return digest_of("".join([*sources, inspect.getsource(components.expression)]).encode())
