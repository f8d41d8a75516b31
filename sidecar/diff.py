"""What a change of one text means: which values change, which endpoints come and go, in which order it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import orjson

from dag.config import ModelConfig, decode
from dag.field_rules import components
from dag.problems import join
from dag.topology import TopologyError, topology
from sidecar.source import CONFIGS

__all__ = ["MAX_CHANGES", "difference"]

MAX_CHANGES = 500
"""Changed values that are listed; a config that is replaced by another differs everywhere."""


def difference(key: str, old: bytes | None, new: bytes | None) -> dict[str, Any]:
    """What changes when the text of a key becomes another; None: it is not there.

    `changes`: a list of {path, old, new}, at most MAX_CHANGES of the `count`; a value that is missing has no
    `old` or no `new`. For a model config also `plan` ({old, new}: its components in the order they are
    started) and `endpoints` ({added, removed}), unless one of the texts cannot be read as one. Texts that are no
    JSON count as text.
    """
    changes = list(_changes("", _value(old), _value(new)))
    found: dict[str, Any] = {"key": key, "changes": changes[:MAX_CHANGES], "count": len(changes)}
    before, after = _config(old), _config(new)
    readable = (before is None) == (old is None) and (after is None) == (new is None)
    if key.startswith(CONFIGS) and readable:
        found["plan"] = {"old": _plan(before), "new": _plan(after)}
        gone, come = _endpoints(before), _endpoints(after)
        found["endpoints"] = {"added": sorted(come - gone), "removed": sorted(gone - come)}
    return found


class _Missing:
    """Stands for a value that is not there."""


_MISSING = _Missing()


def _value(text: bytes | None) -> Any:
    if text is None:
        return _MISSING
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text.decode("utf-8", "replace")


def _changes(path: str, old: Any, new: Any) -> Iterator[dict[str, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _changes(join(path, name), old.get(name, _MISSING), new.get(name, _MISSING))
    elif isinstance(old, list) and isinstance(new, list):
        for at in range(max(len(old), len(new))):
            before = old[at] if at < len(old) else _MISSING
            after = new[at] if at < len(new) else _MISSING
            yield from _changes(join(path, at), before, after)
    elif old is not new and (type(old) is not type(new) or old != new):
        sides = {"old": old, "new": new}
        yield {"path": path, **{side: value for side, value in sides.items() if value is not _MISSING}}


def _config(text: bytes | None) -> ModelConfig | None:
    """The config of a text, as far as it can be read."""
    try:
        return None if text is None else decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _plan(config: ModelConfig | None) -> list[str]:
    if config is None:
        return []
    dependency = config.dag_execution_config.component_dependency
    try:
        return list(topology(dependency, [name for name, _ in components(config)]).order)
    except TopologyError:
        return []


def _endpoints(config: ModelConfig | None) -> set[str]:
    if config is None:
        return set()
    return {
        route.endpoint for model in config.component_config.predator_components for route in model.routes()
    }
