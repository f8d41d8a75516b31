"""What is measured of a plan's components, and of one request on its way through them.

The series of a plan are looked up when it is compiled; a request bumps them. Belongs to the I/O thread. Costs per
component of a request well under 1 µs, and nothing per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from dag.component import Endpoint, Failure
from shared.board import Board
from shared.metrics import (
    COMPONENT_ERROR_ROWS,
    COMPONENT_ERRORS,
    COMPONENT_FEATURES,
    COMPONENT_LATENCY,
    CRITICAL_PATH,
    DEADLINE_LEFT,
)

__all__ = ["ComponentMeters", "PlanMeters", "Trace", "Watch"]


class ComponentMeters:
    """The series of one component of a plan."""

    __slots__ = ("critical_path", "deadline_left", "feature_count", "features", "latency")

    def __init__(self, board: Board, model: str, component: str, feature_count: int) -> None:
        self.latency = board.histogram(COMPONENT_LATENCY, model, component)
        self.deadline_left = board.histogram(DEADLINE_LEFT, model, component)
        self.critical_path = board.counter(CRITICAL_PATH, model, component)
        self.features = board.counter(COMPONENT_FEATURES, model, component) if feature_count else None
        self.feature_count = feature_count

    def __repr__(self) -> str:
        return f"<ComponentMeters {self.latency!r}>"


class PlanMeters:
    """The series of a plan."""

    __slots__ = ("_board", "_model", "components")

    def __init__(
        self, board: Board, model: str, components: Sequence[str], features: Mapping[str, int]
    ) -> None:
        """`components` by their numbers; `features`: how many features each of them asks for, if any."""
        self._board = board
        self._model = model
        self.components = tuple(
            ComponentMeters(board, model, name, features.get(name, 0)) for name in components
        )

    def failed(self, failures: Sequence[Failure], rows: int) -> None:
        """Counts what went wrong in a request of `rows` rows: each component and cause once, and their rows."""
        counted: set[tuple[str, str]] = set()
        for failure in failures:
            labels = self._model, failure.component, failure.kind
            lost = rows if failure.rows is None else len(failure.rows)
            self._board.counter(COMPONENT_ERROR_ROWS, *labels).value += lost
            if labels[1:] not in counted:
                counted.add(labels[1:])
                self._board.counter(COMPONENT_ERRORS, *labels).value += 1

    def __repr__(self) -> str:
        return f"<PlanMeters of {self._model}, {len(self.components)} components>"


class Trace(Protocol):
    """The spans of a request that is traced."""

    def began(self, number: int) -> None: ...
    def ended(self, number: int) -> None: ...
    def endpoint(self, number: int, endpoint: Endpoint) -> Endpoint:
        """The endpoint as this component is to call it."""
        ...


class Watch:
    """When one component of one request began and ended. Times in seconds, on the monotonic clock."""

    __slots__ = ("_after", "_began", "_meters", "_took")

    def __init__(self, meters: ComponentMeters) -> None:
        self._meters = meters
        self._after: Watch | None = None
        self._began = 0.0
        self._took = 0.0  # ms

    def begin(self, now: float, after: Watch | None, deadline: float | None) -> None:
        """The component starts, since `after` has ended (None: with the request, which has this deadline)."""
        self._began = now
        self._after = after
        if deadline is not None:
            left = deadline - now
            self._meters.deadline_left.observe(left * 1e3 if left > 0 else 0.0)

    def end(self, now: float) -> None:
        """The component has done its part, or failed."""
        took = (now - self._began) * 1e3
        self._took = took
        meters = self._meters
        meters.latency.observe(took)
        if meters.features is not None:
            meters.features.value += meters.feature_count

    def ended_last(self) -> None:
        """All components have ended: those that this one waited for, one after the other, made the time."""
        part: Watch | None = self
        while part is not None:
            part._meters.critical_path.value += part._took
            part = part._after

    def __repr__(self) -> str:
        return f"<Watch of {self._meters!r}>"
