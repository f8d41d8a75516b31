"""What one kind of request does to another's time: `python -m bench.beside [--docs docs/performance.md]`.

A pod on one core, everything else on the other. One request at a time, a pause before each, is asked and its time
taken: with nothing beside it, and beside a load of others, in turns.

- A health check (`grpc.health.v1.Health/Check`), beside as many requests of 500 targets as the worker can do.
- A request of 10 targets, beside the same, and beside requests of 10,000 targets, two at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop
from rich.console import Console

from bench.cases import CASES
from bench.load import Loader, LoadError, Pattern
from bench.measure import BUSY, Job, ask, job, requests_in, sample
from bench.report import Table, figure, machine, replace_section
from bench.subjects import Sitting, StartError, Subject
from rpc.client import Channel

HEALTH = "/grpc.health.v1.Health/Check"
SMALL, FULL, LARGE = 10, 500, 10_000
FEW = Pattern(2, 1)
_PAUSE = 0.003  # seconds between an answer and the next request
_PATIENCE = 10.0


class Asked(NamedTuple):
    """What is asked, one at a time, and the bytes of its answer."""

    name: str
    path: str
    message: bytes
    answer_bytes: int


class Beside(NamedTuple):
    """What goes on at the same time: nothing, or the load of a job."""

    name: str
    own: Job | None
    pattern: Pattern


async def _ask(subject: Subject, asked: Asked, over: asyncio.Event) -> list[float]:
    """Milliseconds to each answer. Raises RpcError, and LoadError for an answer of another length."""
    channel = Channel(f"127.0.0.1:{subject.port}")
    times: list[float] = []
    await channel.connect(_PATIENCE)
    while not over.is_set():
        await asyncio.sleep(_PAUSE)
        began = time.perf_counter()
        answer = await channel.unary(asked.path, asked.message, timeout=_PATIENCE)
        times.append((time.perf_counter() - began) * 1e3)
        if len(answer) != asked.answer_bytes:
            raise LoadError(f"{asked.name}: an answer of {len(answer)} bytes, must be {asked.answer_bytes}")
    await channel.close()
    return times


async def _turn(
    loader: Loader, subject: Subject, asked: Asked, beside: Beside, requests: int, seconds: float
) -> list[float]:
    """One turn: milliseconds to each answer, as long as the load goes on (without one, for so many seconds)."""
    over = asyncio.Event()
    asking = asyncio.create_task(_ask(subject, asked, over))
    if beside.own is None:
        await asyncio.sleep(seconds)
    else:
        await asyncio.to_thread(sample, loader, beside.own, beside.pattern, requests)
    over.set()
    return await asking


def measure(
    subject: Subject, asked: Asked, besides: Sequence[Beside], rounds: int, seconds: float
) -> list[list[str]]:
    """Rows for the table. Raises LoadError, RpcError."""
    loader = Loader()
    requests = [
        0 if one.own is None else requests_in(loader, one.own, one.pattern, seconds) for one in besides
    ]
    times: list[list[float]] = [[] for _ in besides]
    for _ in range(rounds):
        for number, one in enumerate(besides):
            times[number] += uvloop.run(_turn(loader, subject, asked, one, requests[number], seconds))
    return [
        [asked.name, one.name, str(len(taken)), *(figure(float(np.percentile(taken, p))) for p in (50, 99))]
        for one, taken in zip(besides, times, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--docs", type=Path, help="page to put the table into")
    chosen = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    case = CASES["perf60"]
    rows: list[list[str]] = []
    try:
        with Sitting(cores[:1], cores[-1:]) as sitting:
            os.sched_setaffinity(0, cores[-1:])
            subject = sitting.service()
            small = job(subject, case, SMALL)
            alone = Beside("nothing", None, BUSY)
            full = Beside(f"{FULL} targets, {BUSY}", job(subject, case, FULL), BUSY)
            for targets in range(LARGE // 4, LARGE, LARGE // 4):
                ask(subject, case, targets)  # the upstreams make an answer once, which takes its time
            large = Beside(f"{LARGE:,} targets, {FEW}", job(subject, case, LARGE), FEW)
            health = Asked("health check", HEALTH, b"", 2)
            asked = Asked(f"{SMALL} targets", case.method, small.message, small.answer_bytes)
            rows += measure(subject, health, [alone, full], chosen.rounds, chosen.seconds)
            rows += measure(subject, asked, [alone, full, large], chosen.rounds, chosen.seconds)
    except (LoadError, StartError) as error:
        raise SystemExit(f"bench.beside: {error}") from error
    table = Table(
        "One kind of request beside another", ["asked", "beside", "times", "p50 ms", "p99 ms"], rows
    )
    table.show(Console())
    if chosen.docs is not None:
        options = f"--rounds {chosen.rounds} --seconds {chosen.seconds:g}"
        made = f"{machine()}. Made by `python -m bench.beside {options} --docs {chosen.docs}`."
        replace_section(chosen.docs, "beside", f"{table.markdown()}\n\n{made}")


if __name__ == "__main__":
    main()
