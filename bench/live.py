"""What changing configs costs requests: `python -m bench.live`.

A pod answers the same load in turns, with and without ten changes a second of the very config that is asked for.
Every fifth change is a bad one, of another config. The changed value is one that no answer shows, so every answer
must be right, and as long as ever; what versions show is looked at by tests/e2e/test_live.py.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.console import Console
from rich.table import Table

from bench.cases import CASES
from bench.load import Loader, LoadError, Pattern
from bench.measure import SINGLE, Job, Sample, job, requests_in, sample
from bench.subjects import Sitting, StartError, Subject

BAD_EVERY = 5
_PATIENCE = 30.0  # seconds


class Changes:
    """Puts a version of a config into a pod again and again, from a thread of its own."""

    def __init__(self, subject: Subject, name: str, text: bytes, rate: float) -> None:
        """`rate`: changes a second."""
        self.count = 0
        self._port = subject.admin_port
        self._name = name
        self._document = json.loads(text)
        self._pause = 1 / rate
        self._failed: OSError | RuntimeError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __repr__(self) -> str:
        return f"<Changes of {self._name!r}: {self.count} so far>"

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Raises what ended it before its time."""
        self._over.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                began = time.monotonic()
                self.count += 1
                if self.count % BAD_EVERY:
                    self._change()
                else:
                    self._put("bad", b"{} " + str(time.monotonic_ns()).encode(), refused=True)
                self._over.wait(max(0.0, began + self._pause - time.monotonic()))
        except (OSError, RuntimeError) as error:
            self._failed = error

    def _change(self) -> None:
        # Longer and longer deadlines of the models: no answer shows them.
        for model in self._document["component_config"]["predator_components"]:
            model["deadline"] = 5000 + time.monotonic_ns() // 1000 % 1_000_000
        self._put(self._name, json.dumps(self._document).encode())

    def _put(self, name: str, text: bytes, *, refused: bool = False) -> None:
        revision = self._ask("/config/check", text, key=name)["revision"]
        answer = self._ask("/config/put", text, key=name, revision=str(revision))
        if refused != ("error" in answer):
            raise RuntimeError(f"put of {name!r}: {answer}")

    def _ask(self, path: str, text: bytes, **query: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
        try:
            connection.request("POST", f"{path}?{urlencode(query)}", text)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()


class Turns:
    """The samples of one load, with and without changes."""

    def __init__(self) -> None:
        self.still: list[Sample] = []
        self.changing: list[Sample] = []
        self.changes = 0

    def __repr__(self) -> str:
        return f"<Turns {len(self.still)} still, {len(self.changing)} with {self.changes} changes>"

    @property
    def ratios(self) -> list[float]:
        """p99 with changes over p99 without, turn by turn, sorted."""
        return sorted(a.p99 / b.p99 for a, b in zip(self.changing, self.still, strict=True))


def take_turns(
    loader: Loader, own: Job, text: bytes, pattern: Pattern, rounds: int, seconds: float, rate: float
) -> Turns:
    """Measures a job in turns, the still one first and last by turns. Raises LoadError."""
    turns = Turns()
    requests = requests_in(loader, own, pattern, seconds)
    for number in range(2 * rounds):
        if number % 4 in (0, 3):
            turns.still.append(sample(loader, own, pattern, requests))
        else:
            with Changes(own.subject, own.case.config, text, rate) as changes:
                turns.changing.append(sample(loader, own, pattern, requests))
            turns.changes += changes.count
    return turns


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.live", description=__doc__)
    parser.add_argument("--case", choices=CASES, default="perf60")
    parser.add_argument("--targets", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--rate", type=float, default=10.0, help="changes a second")
    chosen = parser.parse_args(argv)
    case = CASES[chosen.case]
    cores = sorted(os.sched_getaffinity(0))
    table = Table(title="Requests while configs change", box=None)
    for column in ("in flight", "changes", "p50 still", "changing", "p99 still", "changing", "p99 ratio"):
        table.add_column(column, justify="right")
    try:
        loader = Loader()
        # The pod on all cores: its sidecar is no part of a worker, and must not be measured as if it were.
        with Sitting(cores, cores[-1:]) as sitting:
            text = Path(sitting.directory, "configs", "config-map", f"{case.config}.json").read_bytes()
            own = job(sitting.service(), case, chosen.targets)
            for pattern in (SINGLE, Pattern(2, 2)):
                turns = take_turns(loader, own, text, pattern, chosen.rounds, chosen.seconds, chosen.rate)
                ratios = turns.ratios
                table.add_row(
                    str(pattern),
                    str(turns.changes),
                    *_milliseconds([one.p50 for one in turns.still], [one.p50 for one in turns.changing]),
                    *_milliseconds([one.p99 for one in turns.still], [one.p99 for one in turns.changing]),
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})",
                )
    except (LoadError, StartError) as error:
        raise SystemExit(f"bench.live: {error}") from error
    Console().print(table)


def _milliseconds(*series: Sequence[float]) -> list[str]:
    return [f"{statistics.median(one):.2f} ms" for one in series]


if __name__ == "__main__":
    main()
