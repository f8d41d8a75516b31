"""Load by h2load, and the check that every request was answered as it must be."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.cases import framed

__all__ = ["Load", "LoadError", "Loader", "Pattern", "Summary", "parse_summary"]

_TOOLS = Path(__file__).resolve().parents[1] / ".tools"
_SECONDS = 120.0  # after which a load is given up
PREFIX_BYTES = 5  # before a message in gRPC


class LoadError(RuntimeError):
    """A load that cannot be run, or requests that were not answered right."""


class Pattern(NamedTuple):
    """How many connections there are, and requests in flight on each."""

    connections: int
    streams: int

    def __str__(self) -> str:
        return f"{self.connections} × {self.streams}"


@dataclasses.dataclass(frozen=True)
class Load:
    """What a load saw: the time it took, and of each request the milliseconds until its answer."""

    seconds: float
    latencies: npt.NDArray[np.float64]

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds in which so many percent of the requests were answered."""
        return float(np.percentile(self.latencies, percent))


class Summary(NamedTuple):
    """What h2load prints at its end, as far as it is used: seconds, requests, bytes of all answers."""

    seconds: float
    succeeded: int
    answer_bytes: int


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_summary(text: str) -> Summary:
    """The numbers in the output of h2load. Raises LoadError when they are not there."""
    finished = re.search(r"finished in ([0-9.]+)(us|ms|s),", text)
    succeeded = re.search(r"(\d+) succeeded", text)
    data = re.search(r"\((\d+)\) data", text)
    if finished is None or succeeded is None or data is None:
        raise LoadError(f"h2load says nothing that is understood:\n{text}")
    return Summary(float(finished[1]) * _UNITS[finished[2]], int(succeeded[1]), int(data[1]))


class Loader:
    """Runs h2load on the cores of this process."""

    def __init__(self) -> None:
        """Raises LoadError when there is no h2load."""
        found = shutil.which("h2load", path=f"{_TOOLS / 'bin'}") or shutil.which("h2load")
        if found is None:
            raise LoadError("h2load is not installed: run bench/get_h2load.sh")
        self._program = found

    def __repr__(self) -> str:
        return f"<Loader {self._program}>"

    def version(self) -> str:
        out = subprocess.run([self._program, "--version"], check=True, capture_output=True, text=True)
        return out.stdout.strip().removeprefix("h2load ")

    def run(
        self, port: int, path: str, message: bytes, pattern: Pattern, requests: int, answer_bytes: int
    ) -> Load:
        """Sends the message `requests` times.

        Raises LoadError when not all answers are OK and have `answer_bytes` bytes. h2load does not look at
        gRPC statuses, but an answer with a bad one has no body, and one with errors in it is longer.
        """
        with tempfile.TemporaryDirectory() as directory:
            body, log = Path(directory, "body"), Path(directory, "log")
            body.write_bytes(framed(message))
            out = self._h2load(f"http://127.0.0.1:{port}{path}", body, log, pattern, requests)
            summary = parse_summary(out)
            wanted = Summary(summary.seconds, requests, requests * (answer_bytes + PREFIX_BYTES))
            if summary != wanted:
                raise LoadError(f"{path}: wanted {wanted}, got {summary}:\n{out}")
            return Load(summary.seconds, np.loadtxt(log, usecols=2, ndmin=1) / 1000)

    def _h2load(self, url: str, body: Path, log: Path, pattern: Pattern, requests: int) -> str:
        command = [self._program, f"--requests={requests}", f"--clients={pattern.connections}"]
        command += [f"--max-concurrent-streams={pattern.streams}", "--window-bits=24"]
        command += ["--connection-window-bits=24", f"--data={body}", f"--log-file={log}"]
        command += ["--header=content-type: application/grpc", "--header=te: trailers", url]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        except subprocess.TimeoutExpired as error:
            raise LoadError(f"{url}: {requests} requests took over {_SECONDS:g} s") from error
        except subprocess.CalledProcessError as error:
            raise LoadError(f"{url}: h2load ended with {error.returncode}:\n{error.stderr}") from error
        return done.stdout
