"""What a component is to the executor, and what a request is to a component.

A component's `run` is a generator: it yields the upstream calls it needs, gets their replies in the same order,
and yields None when its columns are written. It never blocks and never sees a socket:

    def run(self, scoring):
        replies = yield [Call(self.endpoint, self.query(keys), self.timeout) for keys in self.batches(scoring)]
        self.write(scoring, replies)
        yield None

One that returns is done, too: that is what an early return does. The usual way yields, because a generator's return
is an exception to whoever steps it, which costs more than the rest of a step's bookkeeping.

Endpoints are opaque here: whoever compiles the plan hands them to the components, and the executor only starts
calls on them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shared.shm_matrix import ShmMatrix

__all__ = ["Call", "Component", "Endpoint", "Failure", "Pending", "Reply", "Scoring", "Slates", "Steps"]

OK = 0


class Reply(Protocol):
    """The end of one upstream call: a gRPC status code, its message, and the body when it is OK (0)."""

    @property
    def status(self) -> int: ...
    @property
    def message(self) -> str: ...
    @property
    def body(self) -> bytes: ...


class Pending(Protocol):
    """A call under way."""

    def cancel(self) -> None: ...


class Endpoint(Protocol):
    """One method of one upstream, headers and connections included."""

    def start(
        self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None], rows: int
    ) -> Pending:
        """Starts a call about `rows` rows or keys; `on_done` is called once, later, on the I/O thread.

        `timeout` in seconds.
        """
        ...


class Call:
    """An upstream call that a component asks for, about `rows` rows or keys.

    `timeout` is its own bound in seconds.
    """

    __slots__ = ("body", "endpoint", "rows", "timeout")

    def __init__(self, endpoint: Endpoint, body: tuple[bytes, ...], timeout: float, rows: int = 0) -> None:
        self.endpoint = endpoint
        self.body = body
        self.timeout = timeout
        self.rows = rows

    def __repr__(self) -> str:
        return f"<Call to {self.endpoint!r}, {sum(map(len, self.body))} bytes about {self.rows} rows>"


class Failure(NamedTuple):
    """Why some rows of a matrix are not whole: the component, the cause, the rows (None: all of them).

    `kind` is the cause as one of few words: the name of a gRPC status, EMPTY_KEY, BAD_VALUE (the request's, or
    an expression's), BAD_ANSWER (an upstream's), INTERNAL.
    """

    component: str
    cause: str
    rows: npt.NDArray[np.int32] | None
    kind: str = "BAD_VALUE"


@dataclasses.dataclass(slots=True)
class Slates:
    """The pairs or slates of a request: a matrix with one row each, and the target rows that each names.

    `rows` (int32) has the row numbers of the target matrix, slate after slate: those of slate i are
    rows[bounds[i] : bounds[i + 1]]. `bounds` is int64 [slates + 1].
    """

    matrix: ShmMatrix
    rows: npt.NDArray[np.int32]
    bounds: npt.NDArray[np.int64]
    failures: list[Failure] = dataclasses.field(default_factory=list)

    def asked(self) -> tuple[list[int], list[int]]:
        """The numbers of the slates that name any rows, and the bounds of these alone."""
        every: list[int] = self.bounds.tolist()
        asked: list[int] = []
        bounds: list[int] = []
        for number in range(len(every) - 1):
            start = every[number]
            if start < every[number + 1]:
                asked.append(number)
                bounds.append(start)
        bounds.append(every[-1])
        return asked, bounds

    @property
    def targets(self) -> list[npt.NDArray[np.int32]]:
        """The rows of each slate."""
        return [self.rows[start:stop] for start, stop in itertools.pairwise(self.bounds.tolist())]


class Scoring:
    """One request's data while its DAG runs: the matrix, the slates if it has any, and what went wrong.

    `routes`: model component → the endpoint that this request's calls go to. `shared`: what one component has found
    out and others need as well, by what it depends on; two that run at once may both find it out.
    """

    __slots__ = ("failures", "matrix", "routes", "shared", "slates")

    def __init__(self, matrix: ShmMatrix, slates: Slates | None = None) -> None:
        self.matrix = matrix
        self.slates = slates
        self.failures: list[Failure] = []
        self.routes: dict[str, str] = {}
        self.shared: dict[object, object] = {}

    def fail(
        self,
        component: str,
        cause: str,
        rows: npt.NDArray[np.int32] | None = None,
        kind: str = "BAD_VALUE",
    ) -> None:
        """Notes that `component` could not do its part for these target rows (None: all). See `Failure`."""
        self.failures.append(Failure(component, cause, rows, kind))

    def fail_slates(
        self,
        component: str,
        cause: str,
        rows: npt.NDArray[np.int32] | None = None,
        kind: str = "BAD_VALUE",
    ) -> None:
        """Notes that `component` could not do its part for these slates (None: all)."""
        assert self.slates is not None
        self.slates.failures.append(Failure(component, cause, rows, kind))


Steps = Generator[list[Call] | None, Sequence[Reply], None]
"""What a component asks for, step by step; None: its part is done, and it is not stepped again."""


class Component(Protocol):
    """The compiled part of a plan that one component of the config became. Immutable."""

    @property
    def name(self) -> str: ...
    def run(self, scoring: Scoring) -> Steps: ...
    def fail(self, scoring: Scoring, cause: str) -> None:
        """Notes that nothing of this component was done (it raised, or its time ran out)."""
        ...
