"""Where the time goes: samples of the service's processes by py-spy while they are under load."""

from __future__ import annotations

import collections
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench.load import Loader
from bench.measure import BUSY, Job
from bench.report import Table

__all__ = ["ProfileError", "Profiler", "hottest"]

SECONDS = 6
SAMPLES_A_SECOND = 500
REQUESTS = 500  # a load; one after the other until the samples are taken
SHOWN = 25


class ProfileError(RuntimeError):
    """py-spy is not there or cannot look into the processes."""


class Hot(NamedTuple):
    """A function, and the shares of the samples in which it was at work itself, and in which it was entered."""

    function: str
    own: float
    inclusive: float


class Profiler:
    """Runs py-spy; leaves its raw samples (collapsed stacks, as flame graph tools read them) in a directory."""

    def __init__(self, directory: Path) -> None:
        """Raises ProfileError when there is no py-spy."""
        beside_python = Path(sys.executable).parent
        found = shutil.which("py-spy", path=str(beside_python)) or shutil.which("py-spy")
        if found is None:
            raise ProfileError("py-spy is not installed: pip install py-spy")
        self._program = found
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"<Profiler {self._program} into {self._directory}>"

    def run(self, loader: Loader, job: Job, name: str) -> list[Table]:
        """The hottest functions of front door and worker while they do this job."""
        files = {
            pid: self._directory / f"{name}-{part.replace(' ', '-')}.txt"
            for pid, part in job.subject.processes.items()
            if part in ("front door", "worker")
        }
        samplers = [self._start(pid, file) for pid, file in files.items()]
        while any(sampler.poll() is None for sampler in samplers):
            loader.run(job.subject.port, job.case.method, job.message, BUSY, REQUESTS, job.answer_bytes)
        for sampler in samplers:
            _, said = sampler.communicate()
            if sampler.returncode:
                raise ProfileError(f"py-spy ended with {sampler.returncode}: {said}")
        return [_table(name, file) for file in files.values()]

    def _start(self, pid: int, file: Path) -> subprocess.Popen[str]:
        command = [self._program, "record", f"--pid={pid}", f"--duration={SECONDS}", "--format=raw"]
        command += [f"--rate={SAMPLES_A_SECOND}", "--function", f"--output={file}"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def hottest(stacks: Iterable[str]) -> list[Hot]:
    """Functions of collapsed stacks (`outer;…;inner COUNT` a line), those with the most own time first."""
    own: collections.Counter[str] = collections.Counter()
    inclusive: collections.Counter[str] = collections.Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        functions = stack.split(";")
        own[functions[-1]] += int(count)
        for function in set(functions):
            inclusive[function] += int(count)
    total = own.total() or 1
    return [
        Hot(function, own[function] / total, inclusive[function] / total) for function, _ in own.most_common()
    ]


def _table(name: str, file: Path) -> Table:
    rows = [
        (hot.function, f"{hot.own:.1%}", f"{hot.inclusive:.1%}")
        for hot in hottest(file.read_text().splitlines())[:SHOWN]
    ]
    return Table(f"{name}: {file.name}", ("function", "own", "with what it calls"), rows)
