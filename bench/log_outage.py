"""A broker that goes away under load: `python -m bench.log_outage --minutes 10`.

A pod logs every request. For the first tenth of the time a Kafka broker (librdkafka's mock) takes the messages,
then it is gone for good. What must hold all the time: every request is answered; the books balance to the row, with
as many rows offered as were served; the log sidecar's memory stays within what its queue's setting allows. The
command fails when one of them does not.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from confluent_kafka import Producer
from rich.console import Console

from bench.cases import CASES
from bench.load import Loader, LoadError, Pattern
from bench.logged import logged
from bench.measure import job, requests_in
from bench.report import Table
from bench.subjects import Sitting, StartError, Subject
from cli.log_status import StatusError, ask

MIB: Final = 1 << 20
CASE: Final = "perf60"
CHUNK_SECONDS: Final = 5.0
"""Of load between two looks."""
BROKER_SHARE: Final = 0.1
"""Of the time in which there is a broker."""
PATIENCE: Final = 60.0
SLACK_BYTES: Final = 64 * MIB
"""Of memory, beside the queue and what the Kafka client holds of it: buffers of the encoder and the allocator."""


class OutageError(RuntimeError):
    """Something that must hold does not."""


class Seen(NamedTuple):
    """One look, while no request is under way."""

    minute: float
    requests: int
    """Answered until now."""
    books: Mapping[str, Any]
    resident: int
    """Bytes of the log sidecar's own memory."""


@contextmanager
def broker() -> Iterator[str]:
    """host:port of a broker in this process, which is gone after the body."""
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    found = next(iter(owner.list_topics(timeout=PATIENCE).brokers.values()))
    yield f"{found.host}:{found.port}"
    del owner


def lending(pod: Subject) -> dict[str, Any]:
    """What the log sidecar says, as soon as the worker lends to it. Raises OutageError."""
    assert pod.run_dir is not None
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            status = ask(pod.run_dir)
        except StatusError:
            status = {"workers": []}
        if any(worker["linked"] for worker in status["workers"]):
            return status
        time.sleep(0.1)
    raise OutageError(f"no worker lends to the log sidecar in {pod.run_dir} after {PATIENCE:g} s")


def own_memory(pid: int) -> int:
    """Bytes of memory of a process that it shares with nobody."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, "Linux says so since 4.5"
    return int(found[1]) << 10


def look(pod: Subject, began: float, requests: int) -> Seen:
    (pid,) = (pid for pid, part in pod.processes.items() if part == "log sidecar")
    books = lending(pod)["total"]
    return Seen((time.monotonic() - began) / 60, requests, books, own_memory(pid))


def check(seen: Seen, targets: int, most_memory: int) -> None:
    """Raises OutageError when the books do not balance, or memory is above the bound."""
    books = seen.books
    settled = books["acknowledged"] + books["lost"] + sum(books["dropped"].values()) + books["held"]
    if not books["offered"] == seen.requests * targets == settled:
        raise OutageError(f"{seen.requests * targets} rows were served, of them in the books: {books}")
    if seen.resident > most_memory:
        raise OutageError(f"the log sidecar has {seen.resident} bytes of memory, over {most_memory}")


class Outage:
    """The load on one pod, and what was seen of it."""

    def __init__(self, loader: Loader, pod: Subject, chosen: argparse.Namespace) -> None:
        """Raises OutageError, LoadError, and as `bench.measure.job`."""
        lending(pod)
        self.looks: list[Seen] = []
        self._loader = loader
        self._pod = pod
        self._targets: int = chosen.targets
        self._pattern = Pattern(chosen.in_flight, 1)
        without_log = job(pod, CASES[CASE], chosen.targets)
        self._chunk = requests_in(loader, without_log, self._pattern, CHUNK_SECONDS)
        self._job = logged(without_log)
        self._requests = 0
        self._began = time.monotonic()
        self._look()
        self._most_memory = self.looks[0].resident + 2 * chosen.queue_mib * MIB + SLACK_BYTES

    def __repr__(self) -> str:
        return f"<Outage {self._requests} requests, {len(self.looks)} looks>"

    def load(self, minutes: float) -> None:
        """Loads the pod for so long, looking all the time. Raises OutageError, LoadError."""
        end = time.monotonic() + minutes * 60
        own = self._job
        while time.monotonic() < end:
            self._loader.run(
                self._pod.port, own.case.method, own.message, self._pattern, self._chunk, own.answer_bytes
            )
            self._requests += self._chunk
            self._look()
            check(self.looks[-1], self._targets, self._most_memory)

    def _look(self) -> None:
        (pid,) = (pid for pid, part in self._pod.processes.items() if part == "log sidecar")
        minute = (time.monotonic() - self._began) / 60
        self.looks.append(Seen(minute, self._requests, lending(self._pod)["total"], own_memory(pid)))


def run(loader: Loader, sitting: Sitting, chosen: argparse.Namespace) -> list[Seen]:
    """One look every few seconds. Raises OutageError, LoadError, StartError."""
    with broker() as address:
        pod = sitting.service(
            run="outage",
            KAFKA_BOOTSTRAP_SERVERS=address,
            KAFKA_LOGGING_TOPIC="bench",
            INFERFLOW_LOG_QUEUE_BYTES=f"{chosen.queue_mib}MiB",
            INFERFLOW_LOG_DELIVERY_SECONDS="30",
        )
        outage = Outage(loader, pod, chosen)
        outage.load(chosen.minutes * BROKER_SHARE)
    outage.load(chosen.minutes * (1 - BROKER_SHARE))
    return outage.looks


def table_of(looks: Sequence[Seen]) -> Table:
    """About ten of the looks, the first and the last among them."""
    step = max(1, len(looks) // 10)
    shown = [*looks[:-1:step], looks[-1]]
    rows = [
        (
            f"{one.minute:.1f}",
            f"{one.requests:,}",
            f"{one.books['offered']:,}",
            f"{one.books['acknowledged']:,}",
            f"{sum(one.books['dropped'].values()):,}",
            f"{one.books['held']:,}",
            f"{one.resident / MIB:.0f}",
        )
        for one in shown
    ]
    header = ("minute", "requests", "rows served", "acknowledged", "dropped", "held", "log sidecar MiB")
    return Table("a broker that goes away", header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.log_outage", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--targets", type=int, default=100)
    parser.add_argument("--in-flight", type=int, default=4, help="requests at a time")
    parser.add_argument("--queue-mib", type=int, default=64, help="INFERFLOW_LOG_QUEUE_BYTES")
    chosen = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    console = Console()
    try:
        with Sitting(cores, cores) as sitting:
            looks = run(Loader(), sitting, chosen)
    except (LoadError, StartError, OutageError) as error:
        raise SystemExit(f"bench.log_outage: {error}") from error
    table_of(looks).show(console)
    console.print(f"dropped: {looks[-1].books['dropped']}")
    most = max(one.resident for one in looks)
    console.print(f"the books balanced {len(looks)} times; most memory: {most / MIB:.0f} MiB")


if __name__ == "__main__":
    main()
