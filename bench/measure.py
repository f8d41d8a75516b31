"""Measurements: servers take turns in rounds, so that what disturbs the machine meets all of them alike."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import grpc

from bench.cases import Case
from bench.expected import check
from bench.load import Load, Loader, Pattern
from bench.subjects import Subject

__all__ = [
    "BUSY",
    "SINGLE",
    "Job",
    "Measured",
    "Plan",
    "Sample",
    "ask",
    "job",
    "ratio",
    "requests_in",
    "sample",
    "take_turns",
]

BUSY = Pattern(4, 4)
SINGLE = Pattern(1, 1)

_WARM_UP = 48  # requests: they fill caches, pools and the upstreams' memory
_LEAST = 24  # requests of one load
_ASK_SECONDS = 60.0


class Job(NamedTuple):
    """What one server has to do: a case with so many targets. `answer_bytes` of its right answer."""

    subject: Subject
    case: Case
    message: bytes
    answer_bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, and seconds of each load."""

    rounds: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """One load: µs of CPU a request by part of the server, requests a second, milliseconds to the answers."""

    cpu: Mapping[str, float]
    per_second: float
    p50: float
    p99: float

    @property
    def total(self) -> float:
        """µs of CPU a request, of all processes of the server."""
        return sum(self.cpu.values())


@dataclasses.dataclass(frozen=True)
class Measured:
    """The samples of one job, one a round."""

    samples: Sequence[Sample]

    def median(self, of: Callable[[Sample], float]) -> float:
        return statistics.median(map(of, self.samples))

    def part(self, name: str) -> float:
        """Median µs of CPU a request of one part; 0 when the server has no such part."""
        return self.median(lambda sample: sample.cpu.get(name, 0.0))


def ratio(one: Measured, other: Measured) -> Sequence[float]:
    """CPU of `one` over that of `other`, round by round, sorted."""
    return sorted(a.total / b.total for a, b in zip(one.samples, other.samples, strict=True))


def ask(subject: Subject, case: Case, targets: int) -> bytes:
    """The answer of a server to the case's request, by grpcio.

    Raises WrongAnswerError when it is not the right one, grpc.RpcError when there is none.
    """
    with grpc.insecure_channel(f"127.0.0.1:{subject.port}") as channel:
        answer: bytes = channel.unary_unary(case.method)(case.message(targets), timeout=_ASK_SECONDS)
    check(case, targets, answer)
    return answer


def job(subject: Subject, case: Case, targets: int) -> Job:
    """A job whose server has been seen to do it right. Raises as `ask`."""
    return Job(subject, case, case.message(targets), len(ask(subject, case, targets)))


def take_turns(loader: Loader, jobs: Mapping[str, Job], pattern: Pattern, plan: Plan) -> dict[str, Measured]:
    """Measures these jobs in rounds, each time in another order. Raises LoadError."""
    requests = {name: requests_in(loader, own, pattern, plan.seconds) for name, own in jobs.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in jobs}
    order = list(jobs)
    for _ in range(plan.rounds):
        for name in order:
            samples[name].append(sample(loader, jobs[name], pattern, requests[name]))
        order.append(order.pop(0))
    return {name: Measured(taken) for name, taken in samples.items()}


def requests_in(loader: Loader, own: Job, pattern: Pattern, seconds: float) -> int:
    """How many requests take about so many seconds. Raises LoadError."""
    _load(loader, own, pattern, _WARM_UP)
    rate = _load(loader, own, pattern, _WARM_UP).per_second
    return max(int(rate * seconds), _LEAST)


def _load(loader: Loader, own: Job, pattern: Pattern, requests: int) -> Load:
    return loader.run(own.subject.port, own.case.method, own.message, pattern, requests, own.answer_bytes)


def sample(loader: Loader, own: Job, pattern: Pattern, requests: int) -> Sample:
    """One load of a server. Raises LoadError."""
    before = own.subject.cpu()
    load = _load(loader, own, pattern, requests)
    after = own.subject.cpu()
    cpu = {part: (after[part] - before[part]) / requests * 1e6 for part in before}
    return Sample(cpu, load.per_second, load.percentile(50), load.percentile(99))
