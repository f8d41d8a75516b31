"""What inference logs cost requests: `python -m bench.logged`.

Pods answer the same load in turns: one that logs nothing, one that logs every request to files, and one that logs
every request to a Kafka broker that is not there. What counts is the ratio of their p99 and of their CPU to that of
the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.cases import CASES, Case
from bench.load import Loader, LoadError, Pattern
from bench.measure import SINGLE, Job, Measured, Plan, job, ratio, take_turns
from bench.subjects import Sitting, StartError
from proto import predict_pb2

OFF = "not logged"
_NOBODY = "127.0.0.1:1"  # an address at which no broker listens


def logged(own: Job) -> Job:
    """The same job with a tracking id, without which nothing is logged."""
    request = predict_pb2.PointWiseRequest.FromString(own.message)
    request.tracking_id = "bench"
    return own._replace(message=request.SerializeToString())


def jobs_of(sitting: Sitting, case: Case, targets: int) -> dict[str, Job]:
    """One job a pod. Raises StartError, and as `bench.measure.job`."""
    files = sitting.directory / "logs"
    pods = {
        OFF: sitting.service(run="off"),
        "logged to files": sitting.service(run="files", INFERFLOW_LOG_DIR=str(files)),
        "logged, no broker": sitting.service(
            run="dead", KAFKA_BOOTSTRAP_SERVERS=_NOBODY, KAFKA_LOGGING_TOPIC="bench"
        ),
    }
    return {name: logged(job(pod, case, targets)) for name, pod in pods.items()}


def p99_ratios(one: Measured, other: Measured) -> Sequence[float]:
    """p99 of `one` over that of `other`, round by round, sorted."""
    return sorted(a.p99 / b.p99 for a, b in zip(one.samples, other.samples, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.logged", description=__doc__)
    parser.add_argument("--targets", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    chosen = parser.parse_args(argv)
    case = CASES["perf60"]
    cores = sorted(os.sched_getaffinity(0))
    table = Table(title="Requests that are logged, by a pod", box=None)
    for column in ("in flight", "pod", "CPU µs", "worker µs", "CPU ratio", "p99 ms", "p99 ratio"):
        table.add_column(column, justify="right")
    try:
        loader = Loader()
        # The pods on all cores: the log sidecar gives way to workers, but not on a core that has nothing else.
        with Sitting(cores, cores[-1:]) as sitting:
            jobs = jobs_of(sitting, case, chosen.targets)
            for pattern in (SINGLE, Pattern(2, 2)):
                measured = take_turns(loader, jobs, pattern, Plan(chosen.rounds, chosen.seconds))
                for name, one in measured.items():
                    cpu, late = ratio(one, measured[OFF]), p99_ratios(one, measured[OFF])
                    table.add_row(
                        str(pattern),
                        name,
                        f"{one.median(lambda sample: sample.total):.0f}",
                        f"{one.part('worker'):.0f}",
                        f"{statistics.median(cpu):.2f}",
                        f"{one.median(lambda sample: sample.p99):.2f}",
                        f"{statistics.median(late):.2f} ({late[0]:.2f} – {late[-1]:.2f})",
                    )
    except (LoadError, StartError) as error:
        raise SystemExit(f"bench.logged: {error}") from error
    Console().print(table)


if __name__ == "__main__":
    main()
