"""Hand-overs while log sidecars and workers are killed: `python -m tests.sidecar.log_chaos --minutes 10`.

Real processes: workers that lend as fast as they can, and a log sidecar that looks at every row that comes out (see
`log_stress`). Three kinds of rounds; each ends with what must hold, and raises AssertionError when it does not:

- log sidecars are killed: no row is torn, and the books of every worker balance to the row;
- workers are killed: no row is torn, and the books of the log sidecar balance to the row;
- either is killed, by chance: no row is torn, and the books of those that are left balance.

`test_log_chaos.py` runs a few of them; the command runs them in turns for as long as it is told, and prints how
many hand-overs and kills there were.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from cli.log_status import StatusError, ask
from tests.frontdoor.process import PATIENCE, ROOT, eventually

__all__ = ["Outcome", "either_killed", "sidecars_killed", "workers_killed"]

WORKERS = 2
FIRST_START = 300.0  # seconds; a log sidecar may have to compile its kernels
READ = 5_000
"""Rows that a log sidecar has read before it is killed."""


class Outcome(NamedTuple):
    """What came of a round, or of several."""

    hand_overs: int
    """Matrices that came out as messages."""
    rows: int
    """Rows of those."""
    dropped: int
    lost: int
    kills: int

    def __add__(self, other: object) -> Outcome:
        assert isinstance(other, Outcome)
        return Outcome(*(one + two for one, two in zip(self, other, strict=True)))


class _Chaos:
    """A run directory with a log sidecar and workers in it."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        os.chmod(self.home, 0o700)
        self.kills = 0
        self._tally = self.home / "tally"
        self._tally.write_bytes(bytes(4096))
        self._processes: list[subprocess.Popen[str]] = []

    def __repr__(self) -> str:
        return f"<_Chaos {self.home}: {self.kills} kills, rows {self.rows}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate(timeout=PATIENCE)
        shutil.rmtree(self.home)

    def sidecar(self) -> subprocess.Popen[str]:
        return self._start("sidecar", str(self.home), str(self._tally))

    def worker(self, index: int) -> subprocess.Popen[str]:
        return self._start("worker", str(self.home), str(index))

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate(timeout=PATIENCE)
        self._processes.remove(process)
        self.kills += 1

    def outcome(self, books: Sequence[dict[str, Any]]) -> Outcome:
        """Asserts that no row was torn and that each of these books balances."""
        _, torn, messages = self._words()
        assert torn == 0, f"{torn} torn rows came out"
        for one in books:
            ends = one["acknowledged"] + one["lost"] + sum(one["dropped"].values())
            assert one["held"] == 0, one
            assert one["offered"] == ends, one
        dropped = sum(sum(one["dropped"].values()) for one in books)
        return Outcome(messages, self.rows, dropped, sum(one["lost"] for one in books), self.kills)

    @property
    def rows(self) -> int:
        """Rows that came out whole."""
        return self._words()[0]

    def received(self) -> int:
        """Rows that the present log sidecar has read; 0 while there is none."""
        try:
            return int(ask(self.home)["total"]["received"])
        except StatusError:
            return 0

    def settled(self) -> dict[str, Any]:
        """The books of the log sidecar, as soon as it holds nothing."""
        eventually(lambda: ask(self.home)["total"]["held"] == 0, "everything is settled")
        return dict(ask(self.home)["total"])

    def wait_until_read(self, rows: int) -> None:
        what = f"a log sidecar has read {rows} rows"
        eventually(lambda: self.received() >= rows, what, self.__repr__, FIRST_START)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo.child", str(os.getpid()), "tests.sidecar.log_stress", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def _words(self) -> tuple[int, int, int]:
        """Rows that came out whole, rows that came out torn, messages."""
        whole, torn, messages = struct.unpack_from("<QQQ", self._tally.read_bytes())
        return whole, torn, messages


def _ended(workers: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """The books of workers that are told to end, which they do when all is settled."""
    for worker in workers:
        worker.terminate()
    return [json.loads(worker.communicate(timeout=FIRST_START)[0]) for worker in workers]


def sidecars_killed(chance: random.Random, kills: int, longest: float = 1.0) -> Outcome:
    """Log sidecars are killed; the workers live."""
    with _Chaos() as chaos:
        sidecar = chaos.sidecar()
        workers = [chaos.worker(index) for index in range(WORKERS)]
        for _ in range(kills):
            chaos.wait_until_read(READ)
            time.sleep(chance.random() * longest)
            chaos.kill(sidecar)
            sidecar = chaos.sidecar()
        chaos.wait_until_read(READ)
        books = _ended(workers)
        acknowledged, lost = (sum(one[name] for one in books) for name in ("acknowledged", "lost"))
        assert all(one["busy"] == 0 for one in books), "every slot is back"
        assert {reason for one in books for reason in one["dropped"]} <= {
            "log sidecar away",
            "log sidecar behind",
            "queue full",
        }
        # A row can come out and its log sidecar be killed before it counts it: then it is counted as lost.
        assert acknowledged <= chaos.rows <= acknowledged + lost
        assert acknowledged >= READ
        return chaos.outcome(books)


def workers_killed(chance: random.Random, kills: int, longest: float = 1.0) -> Outcome:
    """Workers are killed; the log sidecar lives."""
    with _Chaos() as chaos:
        sidecar = chaos.sidecar()
        eventually(lambda: (chaos.home / "logs.sock").exists(), "it listens", patience=FIRST_START)
        while chaos.kills < kills:
            before = chaos.received()
            workers = [chaos.worker(index) for index in range(WORKERS)]
            chaos.wait_until_read(before + READ // 5)
            for worker in workers:
                time.sleep(chance.random() * longest / 5)
                chaos.kill(worker)
        books = chaos.settled()
        assert books["acknowledged"] == chaos.rows
        assert books["lost"] == 0
        assert set(books["dropped"]) <= {"log sidecar behind", "log sidecar away", "lost with the worker"}
        outcome = chaos.outcome([books])
        sidecar.terminate()
        assert sidecar.wait(PATIENCE) == 0
        return outcome


def either_killed(chance: random.Random, kills: int, longest: float = 1.0) -> Outcome:
    """Log sidecars and workers are killed, also several at once. Books of the killed go with them."""
    with _Chaos() as chaos:
        sidecar = chaos.sidecar()
        workers = [chaos.worker(index) for index in range(WORKERS)]
        while chaos.kills < kills:
            chaos.wait_until_read(READ // 5)
            time.sleep(chance.random() * longest / 2)
            if chance.random() < 0.6:
                chaos.kill(sidecar)
                sidecar = chaos.sidecar()
            for index in range(WORKERS):
                if chance.random() < 0.4:
                    chaos.kill(workers[index])
                    workers[index] = chaos.worker(index)
        chaos.wait_until_read(READ)
        return chaos.outcome(_ended(workers))


ROUNDS: Sequence[tuple[Callable[[random.Random, int, float], Outcome], int]] = (
    (sidecars_killed, 5),
    (workers_killed, 6),
    (either_killed, 6),
)
"""Of one turn of the command, with the kills of each."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sidecar.log_chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--longest", type=float, default=10.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    chance, total = random.Random(chosen.seed), Outcome(0, 0, 0, 0, 0)
    end = time.monotonic() + chosen.minutes * 60
    while time.monotonic() < end:
        for play, kills in ROUNDS:
            total += play(chance, kills, chosen.longest)
            print(
                f"{total.hand_overs:,} hand-overs came out, {total.rows:,} rows, 0 torn; {total.kills:,} kills; "
                f"{total.dropped:,} rows dropped, {total.lost:,} lost with a log sidecar, all counted",
                flush=True,
            )


if __name__ == "__main__":
    main()
