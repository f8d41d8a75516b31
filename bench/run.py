"""The benchmark: `make bench`, or `python -m bench.run`.

Alternates the service, the naive peer and the floor in one sitting, on one core, with upstreams and load on
another, and reports CPU a request, throughput and latency of each case. docs/performance.md says how to read it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from bench.cases import CASES, TARGETS, WIDTHS, Case
from bench.expected import WrongAnswerError
from bench.load import Loader, LoadError
from bench.measure import BUSY, SINGLE, Measured, Plan, ask, job, ratio, take_turns
from bench.report import Table, TableError, figure, machine, replace_section
from bench.sampling import ProfileError, Profiler
from bench.subjects import Sitting, StartError

__all__ = ["main"]

QUICK = Plan(rounds=2, seconds=0.3)
QUICK_CASES, QUICK_TARGETS = ("perf60", "perf60c"), (10, 100)

HEADER = (
    *("case", "targets", "service µs", "front door", "worker", "floor µs", "peer µs", "ratio", "(from – to)"),
    *("requests/s", "p50 ms", "p99 ms", "alone p50", "alone p99"),
)
THREADS_HEADER = ("width", "targets", "threads", "CPU µs", "ratio", "requests/s", "p50 ms", "alone p50")


class Result(NamedTuple):
    """All that was measured of one case with so many targets, by server."""

    case: Case
    targets: int
    busy: dict[str, Measured]
    single: dict[str, Measured]


class Options(NamedTuple):
    """What is measured, and what with."""

    loader: Loader
    console: Console
    cases: Sequence[Case]
    targets: Sequence[int]
    plan: Plan
    settings: Mapping[str, str]
    """Of the service, beside its defaults."""


# ---------------------------------------------------------------- the cases


def compare(sitting: Sitting, options: Options) -> list[Result]:
    """Measures service, peer and floor in every case. Raises as what it calls."""
    service = sitting.service(threads=0, **options.settings)
    sizes = [(case, targets) for case in options.cases for targets in options.targets]
    answers = {case.message(targets): ask(service, case, targets) for case, targets in sizes}
    floor = sitting.floor(answers)
    peers = {name: sitting.peer(name) for name in sorted({case.peer for case in options.cases})}
    results = []
    for case, targets in sizes:
        jobs = {
            "service": job(service, case, targets),
            "peer": job(peers[case.peer], CASES[case.peer], targets),
            "floor": job(floor, case, targets),
        }
        busy = take_turns(options.loader, jobs, BUSY, options.plan)
        del jobs["floor"]
        single = take_turns(options.loader, jobs, SINGLE, dataclasses.replace(options.plan, seconds=0.3))
        results.append(Result(case, targets, busy, single))
        options.console.print(" ".join(_row(results[-1])), highlight=False)
    return results


def _row(result: Result) -> list[str]:
    service, peer = result.busy["service"], result.busy["peer"]
    ratios = ratio(service, peer)
    alone = result.single["service"]
    return [
        result.case.name,
        str(result.targets),
        figure(service.median(lambda sample: sample.total)),
        figure(service.part("front door")),
        figure(service.part("worker")),
        figure(result.busy["floor"].median(lambda sample: sample.total)),
        figure(peer.median(lambda sample: sample.total)),
        f"{statistics.median(ratios):.3f}{'' if result.case.same_job else ' *'}",
        f"{ratios[0]:.3f} – {ratios[-1]:.3f}",
        figure(service.median(lambda sample: sample.per_second)),
        figure(service.median(lambda sample: sample.p50)),
        figure(service.median(lambda sample: sample.p99)),
        figure(alone.median(lambda sample: sample.p50)),
        figure(alone.median(lambda sample: sample.p99)),
    ]


# ---------------------------------------------------------------- executor threads


def compare_threads(sitting: Sitting, options: Options, counts: Sequence[int]) -> list[Result]:
    """Measures DAGs of several widths with several numbers of executor threads. Raises as what it calls."""
    pods = {count: sitting.service(threads=count, **options.settings) for count in counts}
    results = []
    for width in WIDTHS:
        case = Case(f"width{width}", f"{width} fetches and {width} models side by side", f"width{width}")
        for targets in options.targets:
            jobs = {str(count): job(pod, case, targets) for count, pod in pods.items()}
            busy = take_turns(options.loader, jobs, BUSY, options.plan)
            single = take_turns(options.loader, jobs, SINGLE, options.plan)
            results.append(Result(case, targets, busy, single))
            for row in _thread_rows(results[-1]):
                options.console.print(" ".join(row), highlight=False)
    return results


def _thread_rows(result: Result) -> list[list[str]]:
    """One row for each number of threads; ratios are to the first number."""
    first = next(iter(result.busy.values()))
    return [
        [
            result.case.name.removeprefix("width"),
            str(result.targets),
            threads,
            figure(busy.median(lambda sample: sample.total)),
            f"{statistics.median(ratio(busy, first)):.2f}",
            figure(busy.median(lambda sample: sample.per_second)),
            figure(busy.median(lambda sample: sample.p50)),
            figure(result.single[threads].median(lambda sample: sample.p50)),
        ]
        for threads, busy in result.busy.items()
    ]


# ---------------------------------------------------------------- the command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two cases, short: whether it works, in a minute"
    )
    parser.add_argument("--cases", type=_names, metavar="NAMES", help=f"of {', '.join(CASES)}")
    parser.add_argument("--targets", type=_numbers, metavar="NUMBERS", help="sizes of the requests")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each server (5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one load (1)")
    parser.add_argument(
        "--threads", type=_numbers, metavar="NUMBERS", help="compare numbers of executor threads instead"
    )
    parser.add_argument("--profile", type=Path, metavar="DIR", help="sample the service with py-spy instead")
    parser.add_argument("--server-cores", type=_numbers, metavar="NUMBERS", help="the first one allowed")
    parser.add_argument("--load-cores", type=_numbers, metavar="NUMBERS", help="the second one allowed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--setting", type=_setting, action="append", metavar="NAME=VALUE", help="of the service; any number"
    )
    parser.add_argument("--section", default="cases", help="of the page, for the table of cases")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="replace the table in this page")
    return parser


def _names(text: str) -> list[Case]:
    try:
        return [CASES[name] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"no case {error}: there are {', '.join(CASES)}") from error


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _numbers(text: str) -> list[int]:
    numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{min(numbers)} is negative")
    return numbers


def _options(arguments: argparse.Namespace) -> Options:
    quick = arguments.quick
    return Options(
        Loader(),
        Console(width=None if sys.stdout.isatty() else 160),
        arguments.cases or ([CASES[name] for name in QUICK_CASES] if quick else list(CASES.values())),
        arguments.targets or (QUICK_TARGETS if quick else TARGETS),
        QUICK if quick else Plan(arguments.rounds, arguments.seconds),
        dict(arguments.setting or ()),
    )


def _cores(arguments: argparse.Namespace) -> tuple[list[int], list[int]]:
    """Cores of the servers, cores of everything else."""
    allowed = sorted(os.sched_getaffinity(0))
    return arguments.server_cores or allowed[:1], arguments.load_cores or allowed[1:2] or allowed[:1]


def _run(arguments: argparse.Namespace) -> None:
    options = _options(arguments)
    cores = _cores(arguments)
    profiler = None if arguments.profile is None else Profiler(arguments.profile)
    with Sitting(*cores) as sitting:
        if profiler is not None:
            _profile(sitting, options, profiler)
            return
        if arguments.threads:
            section = "executor threads"
            results = compare_threads(sitting, options, arguments.threads)
            rows = [row for result in results for row in _thread_rows(result)]
            table = Table("Executor threads", THREADS_HEADER, rows)
        else:
            section = arguments.section
            results = compare(sitting, options)
            table = Table("CPU a request, throughput, latency", HEADER, map(_row, results))
    told = f"{machine()}, h2load of {options.loader.version()}. Servers on core {_list(cores[0])}, load and "
    told += (
        f"upstreams on core {_list(cores[1])}; {options.plan.rounds} rounds of {options.plan.seconds:g} s."
    )
    table.show(options.console)
    options.console.print(told, highlight=False)
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"told": told, "results": list(map(_as_json, results))}, indent=1)
        )
    if arguments.docs is not None:
        command = f"`python -m bench.run {' '.join(sys.argv[1:])}`"
        replace_section(arguments.docs, section, f"{table.markdown()}\n\n{told} Made by {command}.")


def _profile(sitting: Sitting, options: Options, profiler: Profiler) -> None:
    service = sitting.service(threads=0, **options.settings)
    for case in options.cases:
        for targets in options.targets:
            for table in profiler.run(options.loader, job(service, case, targets), f"{case.name}-{targets}"):
                table.show(options.console)


def _list(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores))


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "case": result.case.name,
        "targets": result.targets,
        **{
            str(pattern): {
                name: [dataclasses.asdict(sample) for sample in own.samples] for name, own in taken.items()
            }
            for pattern, taken in ((BUSY, result.busy), (SINGLE, result.single))
        },
    }


def main() -> None:
    """Exits with 1 when something cannot be measured, or is answered wrong."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end the sitting in order
    try:
        _run(_parser().parse_args())
    except (LoadError, ProfileError, StartError, TableError, WrongAnswerError) as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
