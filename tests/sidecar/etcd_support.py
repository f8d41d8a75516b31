"""What the tests with a real etcd share: a loop with a bound, and waiting for a source to hold something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import uvloop

from sidecar.source import Source, SourceError, Text

PATIENCE = 60.0
"""Seconds after which a test gives up; nothing is expected to take nearly as long."""


def run(main: Coroutine[Any, Any, None], patience: float = PATIENCE) -> None:
    """Runs to the end, on the loop that the sidecar has."""

    async def bounded() -> None:
        async with asyncio.timeout(patience):
            await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def held(source: Source) -> Mapping[str, Text] | str:
    """What a source holds, or why it cannot be read."""
    try:
        return source.read()
    except SourceError as error:
        return str(error)


async def until(source: Source, condition: Callable[[Mapping[str, Text] | str], bool]) -> None:
    """Goes on as the sidecar does, until what is held meets a condition."""
    while not condition(held(source)):
        await source.changed()


async def until_held(source: Source, texts: Mapping[str, Text]) -> None:
    """Goes on until exactly this is held."""
    await until(source, lambda found: found == texts)


async def until_away(source: Source, *words: str) -> None:
    """Goes on until the source says that it cannot be read, in these words among others."""
    await until(source, lambda found: isinstance(found, str) and all(word in found for word in words))
