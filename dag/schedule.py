"""The order of a plan's components, by their numbers."""

from __future__ import annotations

from dag.topology import Topology

__all__ = ["Schedule", "schedule"]


class Schedule:
    """Which components start at once, how many each one waits for, whom each one releases.

    Numbers are indices into `Plan.components`. Immutable.
    """

    __slots__ = ("first", "releases", "waits")

    def __init__(
        self, first: tuple[int, ...], waits: tuple[int, ...], releases: tuple[tuple[int, ...], ...]
    ) -> None:
        self.first = first
        self.waits = waits
        self.releases = releases

    def __repr__(self) -> str:
        return f"<Schedule of {len(self.waits)} components, {len(self.first)} of them start at once>"


def schedule(topology: Topology) -> Schedule:
    """The schedule of components that stand in the topology's order."""
    number = {name: place for place, name in enumerate(topology.order)}
    return Schedule(
        tuple(number[name] for name in topology.first),
        tuple(len(topology.parents[name]) for name in topology.order),
        tuple(tuple(number[child] for child in topology.children[name]) for name in topology.order),
    )
