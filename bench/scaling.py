"""How throughput grows with the workers: `python -m bench.scaling`.

The cores of one machine are too few to give each of several workers its own and to have room for front door,
upstreams and load beside them. So each worker gets the same small share of a core, by a control group of its own,
and everybody else has what is left: then a worker more is a share more, as it would be a core more elsewhere.
Needs the right to make control groups (root, mostly).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench.cases import CASES
from bench.load import Loader, LoadError, Pattern
from bench.measure import Plan, Sample, job, take_turns
from bench.report import Table, TableError, figure, machine, replace_section
from bench.subjects import Sitting, StartError, Subject

HEADER = (
    "workers",
    "targets",
    "requests/s",
    "of one worker's",
    "worker µs",
    "front door µs",
    "p50 ms",
    "p99 ms",
)
PERIOD = 10_000  # µs: short, so that a worker that has used its share waits for milliseconds only
_GROUPS = Path("/sys/fs/cgroup")


class ShareError(Exception):
    """The machine does not let us give a process a share of a core."""


@contextlib.contextmanager
def shares(subject: Subject, share: float) -> Iterator[None]:
    """Keeps each worker of a pod at `share` of a core. Raises ShareError."""
    # https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and sched-bwc.html for the older files
    unified = (_GROUPS / "cgroup.controllers").exists()
    parent = _GROUPS if unified else _GROUPS / "cpu"
    quota = round(share * PERIOD)
    limits = {"cpu.max": f"{quota} {PERIOD}"}
    if not unified:
        limits = {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(quota)}
    with contextlib.ExitStack() as stack:
        for pid in (pid for pid, part in subject.processes.items() if part == "worker"):
            group = parent / f"inferflow-bench-{pid}"
            try:
                group.mkdir()
                stack.callback(_give_back, group, parent, pid)
                for name, value in limits.items():
                    (group / name).write_text(value)
                (group / "cgroup.procs").write_text(str(pid))
            except OSError as error:
                raise ShareError(f"no control group for a share of a core: {error}") from error
        yield


def _give_back(group: Path, parent: Path, pid: int) -> None:
    (parent / "cgroup.procs").write_text(str(pid))
    group.rmdir()


def compare(
    sitting: Sitting, counts: Sequence[int], targets: Sequence[int], plan: Plan, share: float
) -> Table:
    """Measures pods with so many workers. Raises as what it calls."""
    loader = Loader()
    case = CASES["perf60"]
    pods = {count: sitting.service(run=f"{count} workers", INFERFLOW_WORKERS=str(count)) for count in counts}
    rows = []
    with contextlib.ExitStack() as stack:
        for pod in pods.values():
            stack.enter_context(shares(pod, share))
        # Enough in flight to keep the workers of the largest pod busy, and the same for all.
        pattern = Pattern(4, 2 * max(counts))
        for size in targets:
            jobs = {str(count): job(pod, case, size) for count, pod in pods.items()}
            taken = take_turns(loader, jobs, pattern, plan)
            first = taken[str(counts[0])]
            for count, measured in taken.items():
                pairs = zip(measured.samples, first.samples, strict=True)
                grown = sorted(own.per_second / one.per_second * counts[0] for own, one in pairs)
                rows.append(
                    [
                        *(count, str(size), figure(measured.median(_per_second))),
                        f"{statistics.median(grown):.2f} ({grown[0]:.2f} – {grown[-1]:.2f})",
                        *(figure(measured.part("worker")), figure(measured.part("front door"))),
                        figure(measured.median(lambda sample: sample.p50)),
                        figure(measured.median(lambda sample: sample.p99)),
                    ]
                )
    return Table(f"Workers with {share:.0%} of a core each", HEADER, rows)


def _per_second(sample: Sample) -> float:
    return sample.per_second


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--workers", type=_numbers, default=[1, 2, 4], metavar="NUMBERS")
    parser.add_argument("--targets", type=_numbers, default=[10, 100], metavar="NUMBERS")
    parser.add_argument("--share", type=float, default=0.15, help="of a core, for each worker (0.15)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one load (2)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="replace the table in this page")
    chosen = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    try:
        with Sitting(cores, cores) as sitting:
            plan = Plan(chosen.rounds, chosen.seconds)
            table = compare(sitting, chosen.workers, chosen.targets, plan, chosen.share)
        table.show(Console())
        if chosen.docs is not None:
            told = f"{machine()}; {chosen.rounds} rounds of {chosen.seconds:g} s. Made by "
            told += "`python -m bench.scaling`."
            replace_section(chosen.docs, "scaling", f"{table.markdown()}\n\n{told}")
    except (LoadError, ShareError, StartError, TableError) as error:
        raise SystemExit(f"bench.scaling: {error}") from error


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
