"""Which processes of the pod end by themselves, and how often: `crashes.json` in the run directory.

supervisord alone sees a process that ends before it has told anybody of itself. It writes (cli.supervision);
front doors (readiness) and the admin port (metrics) read. One small JSON document, replaced whole:
{"worker_1": {"total": 5, "times": [1234.5, …], "last": "exit status 1"}, …}; times are seconds of
CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["LOOP_ENDS", "LOOP_SECONDS", "Crashes", "Ends", "looping", "read"]

FILE = "crashes.json"
LOOP_ENDS = 3
LOOP_SECONDS = 60.0
"""A process that ended LOOP_ENDS times in LOOP_SECONDS is in a crash loop, until it has not for as long."""


@dataclass(frozen=True)
class Ends:
    """How often one process has ended though nobody had asked it to."""

    total: int
    times: tuple[float, ...]
    """The last LOOP_ENDS of them."""
    last: str
    """How the last one was: `exit status 1`, `a signal`, `an exit soon after its start`."""

    def is_loop(self, now: float) -> bool:
        return len(self.times) == LOOP_ENDS and now - self.times[0] <= LOOP_SECONDS


class Crashes:
    """The books, and their file. Belongs to the process of supervisord."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE
        self._ends: dict[str, Ends] = {}
        self.remove()  # of a pod before

    def __repr__(self) -> str:
        return f"<Crashes {self._path}: {sum(ends.total for ends in self._ends.values())}>"

    def ended(self, name: str, how: str, now: float | None = None) -> None:
        """A process has ended. Raises OSError when that cannot be written down."""
        before = self._ends.get(name, Ends(0, (), ""))
        times = (*before.times, time.monotonic() if now is None else now)[-LOOP_ENDS:]
        self._ends[name] = Ends(before.total + 1, times, how)
        self._write()

    def forget(self, name: str) -> None:
        """A process is no part of the pod any more. Raises OSError when that cannot be written down."""
        if self._ends.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({name: asdict(ends) for name, ends in self._ends.items()}))
        os.replace(new, self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def read(run_dir: Path) -> dict[str, Ends]:
    """The books of this pod by process (`worker_0`, `config`); empty when none has ended by itself."""
    try:
        text = (run_dir / FILE).read_text()
    except FileNotFoundError:
        return {}
    return {
        name: Ends(ends["total"], tuple(ends["times"]), ends["last"])
        for name, ends in json.loads(text).items()
    }


def looping(ends: Mapping[str, Ends], now: float | None = None) -> list[str]:
    """One sentence for each process that is in a crash loop."""
    now = time.monotonic() if now is None else now
    return [
        f"{name} ended {LOOP_ENDS} times in {now - each.times[0]:.0f} s, the last time by {each.last}"
        for name, each in sorted(ends.items())
        if each.is_loop(now)
    ]
