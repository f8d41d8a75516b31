"""The DAG of one model config: who waits for whom.

`topology` turns `dag_execution_config.component_dependency` into a `Topology`, or raises TopologyError with
everything that is wrong with it. The map can be written in two ways, told apart by where the root stands:

- component → the components it depends on: the root stands in some list;
- parent → its children: the root stands only as a key, with a list that is not empty.

Pure, but for `TopologyCache`, which any thread may use.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import cachetools
import mmh3
import msgspec

from dag.config import ROOT
from dag.problems import Problem, did_you_mean, join

__all__ = ["Topology", "TopologyCache", "TopologyError", "topology"]

PATH = "dag_execution_config.component_dependency"


@dataclass(frozen=True)
class Topology:
    """Who waits for whom. The root is left out everywhere: it has run before anything here starts."""

    order: tuple[str, ...]
    """Every component, parents before children; ties in the order of the config's component lists."""
    parents: Mapping[str, tuple[str, ...]]
    """By component: those it waits for; empty when it waits for the root only."""
    children: Mapping[str, tuple[str, ...]]
    """By component: those that wait for it."""

    @property
    def first(self) -> tuple[str, ...]:
        """The components that can start as soon as the matrix is built."""
        return tuple(name for name in self.order if not self.parents[name])

    def ancestors(self) -> dict[str, frozenset[str]]:
        """By component: everything that is done for certain when it starts (not the root, not itself)."""
        found: dict[str, frozenset[str]] = {}
        for name in self.order:
            above = self.parents[name]
            found[name] = frozenset(above).union(*(found[parent] for parent in above))
        return found


class TopologyError(ValueError):
    """The dependency map is no DAG from the root; `problems` says all that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


class _Edge(NamedTuple):
    """`child` waits for `parent`, as written at `path`."""

    child: str
    parent: str
    path: str


@dataclass
class _Draft:
    """The map as written: its edges, and where each name stands first."""

    by_children: bool
    edges: list[_Edge] = field(default_factory=list)
    mentions: dict[str, str] = field(default_factory=dict)


def topology(component_dependency: Mapping[str, Sequence[str]], components: Iterable[str]) -> Topology:
    """The topology of a dependency map over `components` (the names the config defines, in its order).

    Raises TopologyError when the map is empty, names a component that is not defined, holds a cycle, has a
    second root or a component that nothing connects to the root, or leaves a defined component out.
    """
    known = tuple(dict.fromkeys(components))
    if not component_dependency:
        raise TopologyError([Problem(PATH, "is empty: no component would ever run")])
    draft = _read(component_dependency)
    parents = _parents(draft, known)
    order = _kahn(parents)
    problems = [
        *_undefined(draft, known),
        *_root_with_parents(draft),
        *_unrooted(draft, known),
        *_cycles(draft, parents, order),
        *_left_out(draft, known),
    ]
    if problems:
        raise TopologyError(problems)
    children: dict[str, list[str]] = {name: [] for name in order}
    for name in order:
        for parent in parents[name]:
            children[parent].append(name)
    return Topology(
        order,
        MappingProxyType({name: parents[name] for name in order}),
        MappingProxyType({name: tuple(below) for name, below in children.items()}),
    )


def _read(dependency: Mapping[str, Sequence[str]]) -> _Draft:
    in_a_list = any(ROOT in names for names in dependency.values())
    draft = _Draft(by_children=not in_a_list and bool(dependency.get(ROOT)))
    for key, names in dependency.items():
        draft.mentions.setdefault(key, join(PATH, key))
        for index, name in enumerate(names):
            path = join(PATH, key, index)
            draft.mentions.setdefault(name, path)
            child, parent = (name, key) if draft.by_children else (key, name)
            draft.edges.append(_Edge(child, parent, path))
    return draft


def _parents(draft: _Draft, known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parents by component, without the root and without names that are not defined, in config order."""
    position = {name: index for index, name in enumerate(known)}
    parents: dict[str, set[str]] = {name: set() for name in known if name in draft.mentions}
    for edge in draft.edges:
        if edge.child in parents and edge.parent in parents:
            parents[edge.child].add(edge.parent)
    return {name: tuple(sorted(above, key=position.__getitem__)) for name, above in parents.items()}


def _kahn(parents: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Parents before children, ties in the order of `parents`; what lies on or behind a cycle is missing."""
    children: dict[str, list[str]] = {name: [] for name in parents}
    for name, above in parents.items():
        for parent in above:
            children[parent].append(name)
    waiting = {name: len(above) for name, above in parents.items()}
    ready = deque(name for name, count in waiting.items() if not count)
    order = []
    while ready:
        order.append(name := ready.popleft())
        for child in children[name]:
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    return tuple(order)


def _undefined(draft: _Draft, known: Sequence[str]) -> Iterator[Problem]:
    for name, path in draft.mentions.items():
        if name != ROOT and name not in known:
            hint = did_you_mean(name, [*known, ROOT])
            yield Problem(path, f"no component named {name!r} is defined in component_config{hint}")


def _root_with_parents(draft: _Draft) -> Iterator[Problem]:
    for edge in draft.edges:
        if edge.child == ROOT:
            yield Problem(edge.path, f"{ROOT} is the root: it cannot depend on {edge.parent!r}")


def _unrooted(draft: _Draft, known: Sequence[str]) -> Iterator[Problem]:
    """Components without any parent. Whatever else is not below the root hangs on one of them, on a cycle
    or on an undefined name, and is not reported a second time."""
    have_parents = {edge.child for edge in draft.edges}
    have_children = {edge.parent for edge in draft.edges}
    for name in known:
        path = draft.mentions.get(name)
        if path is None or name in have_parents or name == ROOT:
            continue
        is_what = "a second root: others wait for it, yet" if name in have_children else "not connected:"
        cure = (
            f"list it under {ROOT!r} or another parent"
            if draft.by_children
            else f'write "{name}": ["{ROOT}"], or what else it depends on'
        )
        yield Problem(path, f"{name!r} is {is_what} nothing leads from {ROOT} to it; {cure}")


def _cycles(draft: _Draft, parents: Mapping[str, Sequence[str]], order: Sequence[str]) -> Iterator[Problem]:
    """A cycle of every knot: cycles that share a component show one after the other, as each is undone."""
    knotted = [name for name in parents if name not in set(order)]
    while knotted:
        cycle = _cycle_above(knotted[0], parents, knotted)
        path = draft.mentions[cycle[0]]
        yield Problem(path, f"cycle: {' → '.join([*cycle, cycle[0]])} (each depends on the next)")
        rest = {name for name in knotted if name not in cycle}
        inside = {
            name: [parent for parent in parents[name] if parent in rest] for name in knotted if name in rest
        }
        loose = set(_kahn(inside))
        knotted = [name for name in inside if name not in loose]


def _cycle_above(name: str, parents: Mapping[str, Sequence[str]], knotted: Sequence[str]) -> list[str]:
    """The cycle that a walk from parent to parent ends in; everything in `knotted` has a parent in it."""
    walk: list[str] = []
    while name not in walk:
        walk.append(name)
        name = next(parent for parent in parents[name] if parent in knotted)
    return walk[walk.index(name) :]


def _left_out(draft: _Draft, known: Sequence[str]) -> Iterator[Problem]:
    for name in known:
        if name not in draft.mentions:
            yield Problem(PATH, f"component {name!r} is defined but not in the DAG, so it would never run")


class TopologyCache:
    """Topologies by the murmur3 hash of what they are made of; any thread may use it.

    Many configs share one DAG shape, and a new config version seldom changes it. A refused map is not kept:
    it is looked at again every time.
    """

    def __init__(self, size: int, ttl_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`size` in topologies (0: keep none), `ttl_seconds` after which one is made anew."""
        self._lock = threading.Lock()  # an unlocked TTLCache breaks for good when two threads expire entries
        self._kept: cachetools.TTLCache[bytes, Topology] = cachetools.TTLCache(size, ttl_seconds, clock)

    def get(self, component_dependency: Mapping[str, Sequence[str]], components: Iterable[str]) -> Topology:
        """As `topology`, from the cache when it is there. Raises TopologyError."""
        names = list(components)
        key = mmh3.mmh3_x64_128_digest(msgspec.msgpack.encode((component_dependency, names)))
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            kept = topology(component_dependency, names)
            if self._kept.maxsize:
                with self._lock:
                    self._kept[key] = kept
        return kept

    def __repr__(self) -> str:
        return f"TopologyCache({len(self._kept)} of {self._kept.maxsize:g}, ttl {self._kept.ttl:g} s)"
