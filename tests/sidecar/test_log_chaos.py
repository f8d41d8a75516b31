"""Hand-overs by the hundred thousand while log sidecars and workers are killed: no torn row, books that balance."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.log_status import StatusError, ask
from tests.frontdoor.process import PATIENCE, ROOT, eventually

pytestmark = pytest.mark.slow


class Chaos:
    """A run directory with a log sidecar and workers in it."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        os.chmod(self.home, 0o700)
        self.tally = self.home / "tally"
        self.tally.write_bytes(bytes(4096))
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo.child", str(os.getpid()), "tests.sidecar.log_stress", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def sidecar(self) -> subprocess.Popen[str]:
        return self.start("sidecar", str(self.home), str(self.tally))

    def worker(self, index: int) -> subprocess.Popen[str]:
        return self.start("worker", str(self.home), str(index))

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that came out whole, and torn."""
        whole, torn = struct.unpack_from("<QQ", self.tally.read_bytes())
        return whole, torn

    def received(self) -> int:
        """Rows that the present log sidecar has read; 0 while there is none."""
        try:
            return int(ask(self.home)["total"]["received"])
        except StatusError:
            return 0

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate(timeout=PATIENCE)
        shutil.rmtree(self.home)


@pytest.fixture
def chaos() -> Iterator[Chaos]:
    world = Chaos()
    yield world
    world.close()


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.full)])
def test_killed_log_sidecars(chaos: Chaos, kills: int) -> None:
    sidecar = chaos.sidecar()
    workers = [chaos.worker(index) for index in range(2)]
    chance = random.Random(1)
    for _ in range(kills):
        eventually(lambda: chaos.received() > 5_000, "it reads")
        time.sleep(chance.random())
        sidecar.kill()
        sidecar.communicate()
        sidecar = chaos.sidecar()
    eventually(lambda: chaos.received() > 5_000, "it reads")
    for worker in workers:
        worker.terminate()
    books = [json.loads(worker.communicate(timeout=PATIENCE)[0]) for worker in workers]
    whole, torn = chaos.rows
    assert torn == 0
    for one in books:
        assert one["held"] == one["busy"] == 0
        assert one["offered"] == one["acknowledged"] + one["lost"] + sum(one["dropped"].values())
        assert set(one["dropped"]) <= {"log sidecar away", "log sidecar behind", "queue full"}
    acknowledged = sum(one["acknowledged"] for one in books)
    # A row can come out and its log sidecar be killed before it counts it: then it is counted as lost.
    assert acknowledged <= whole <= acknowledged + sum(one["lost"] for one in books)
    assert acknowledged > 5_000 * kills


@pytest.mark.parametrize("rounds", [1, pytest.param(30, marks=pytest.mark.full)])
def test_killed_workers(chaos: Chaos, rounds: int) -> None:
    sidecar = chaos.sidecar()
    eventually(lambda: (chaos.home / "logs.sock").exists(), "it listens")
    chance = random.Random(2)
    for _ in range(rounds):
        before = chaos.received()
        workers = [chaos.worker(index) for index in range(2)]
        eventually(lambda before=before: chaos.received() > before + 1000, "they lend")  # type: ignore[misc]
        for worker in workers:
            time.sleep(chance.random() / 5)
            worker.kill()
            worker.communicate()
    eventually(lambda: ask(chaos.home)["total"]["held"] == 0, "everything is settled")
    books = ask(chaos.home)["total"]
    whole, torn = chaos.rows
    assert torn == 0
    assert books["acknowledged"] == whole
    dropped = sum(books["dropped"].values())
    assert books["offered"] == books["acknowledged"] + books["lost"] + dropped
    assert books["lost"] == 0
    assert set(books["dropped"]) <= {"log sidecar behind", "log sidecar away", "lost with the worker"}
    sidecar.terminate()
    assert sidecar.wait(PATIENCE) == 0
