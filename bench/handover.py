"""What logging a request costs its worker: `python -m bench.handover`.

A worker's I/O thread hands over matrices of 60 fetched columns, one score and an id to a process that gives every
slot back at once. Compared is the CPU time of the whole thread, with all that belongs to it (records, frames,
releases read), against the same loop in which the slots are just freed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import uvloop
from rich.console import Console

from bench.report import Table, figure
from shared.fd_stream import FdStream
from shared.frames import FrameReader, HandOver, Lend, LogConfig, LogSegment, Release
from shared.ledger import ACCEPTING, NOW, RECEIVED, ROOM, Ledger
from shared.log_link import ConfigVersion, LogLink
from shared.log_record import Notes
from shared.rundir import UnixListener
from shared.shm_matrix import CellBlock, MatrixPool, ShmMatrix, TextColumn

MIB = 1 << 20
COLUMNS = 60
ROWS = (10, 100, 500)
REQUESTS = 5_000
PER_TURN = (1, 8)
"""Requests that are answered in one turn of the loop: some under light load, several under full load."""
VERSION = ConfigVersion("bench", "digest", b"{}")


def matrix_of(pool: MatrixPool, rows: int) -> ShmMatrix:
    """A matrix of a usual shape; what is in it does not matter."""
    slot = pool.acquire()
    matrix = ShmMatrix(slot, rows, 2, 4)
    fetched = CellBlock.empty(slot, rows, COLUMNS, 4)
    fetched.index = np.arange(rows, dtype=np.int32)
    matrix.blocks[0] = fetched
    matrix.blocks[1] = CellBlock.empty(slot, rows, 1, 4)
    heap, _ = slot.place(rows * 8)
    starts, sizes = np.arange(rows, dtype=np.int64) * 8, np.full(rows, 8, np.int32)
    matrix.texts[0] = TextColumn(heap, starts, sizes, constant=False)
    matrix.texts[1] = TextColumn.same(slot, b"user")
    return matrix


NOTES = Notes(1, b"0123456789abcdef", "tracking", "user", "", 1, {"rank": "host"}, [])


async def peer(run_dir: Path) -> None:
    """Gives every slot back, with others of the same read."""
    loop = asyncio.get_running_loop()
    listener = UnixListener(run_dir / "logs.sock")
    listener.socket.setblocking(True)
    sock, _ = await asyncio.to_thread(listener.socket.accept)
    sock.setblocking(False)
    released: list[tuple[int, int]] = []
    over = loop.create_future()
    ledger: list[Ledger] = []

    def give_back() -> None:
        stream.send(Release(tuple(released)).encode())
        released.clear()

    def heard(frame: Lend | LogSegment | LogConfig | HandOver) -> None:
        if isinstance(frame, HandOver):
            if not released:
                loop.call_soon(give_back)
            released.append((frame.slot, frame.generation))
            ledger[0].words[NOW + RECEIVED] += frame.rows
        elif isinstance(frame, Lend):
            ledger.append(Ledger(stream.take_fd()))
            ledger[0].words[ACCEPTING] = ROOM
        elif isinstance(frame, LogSegment):
            os.close(stream.take_fd())

    reader = FrameReader[Lend | LogSegment | LogConfig | HandOver](
        (Lend, LogSegment, LogConfig, HandOver), MIB
    )
    stream = FdStream(loop, sock, reader, heard, over.set_result)
    await over


async def measure(run_dir: Path) -> Table:
    """CPU microseconds of the worker's thread for each logged request."""
    loop = asyncio.get_running_loop()
    pool = MatrixPool(512 * MIB, 16 * MIB)
    link = LogLink(loop, run_dir / "logs.sock", pool, worker=0, limit=256 * MIB)
    link.start()
    while not link.ledger.words[ACCEPTING]:  # noqa: ASYNC110 - a word of memory tells nobody
        await asyncio.sleep(0.01)

    async def run(rows: int, per_turn: int, *, logged: bool) -> float:
        began = time.thread_time()
        done = 0
        while done < REQUESTS:
            for _ in range(per_turn):
                matrix = matrix_of(pool, rows)
                if not (logged and link.lend(matrix, None, lambda: NOTES, VERSION, lambda: b"{}")):
                    pool.release(matrix.slot)
                done += 1
            # Answers of a worker under load come a few times a millisecond.
            await asyncio.sleep(0.0005)
        while link.lent:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
        return (time.thread_time() - began) / REQUESTS * 1e6

    rows_of_table = []
    for rows in ROWS:
        for per_turn in PER_TURN:
            await run(rows, per_turn, logged=True)
            costs = [
                await run(rows, per_turn, logged=True) - await run(rows, per_turn, logged=False)
                for _ in range(3)
            ]
            rows_of_table.append((str(rows), str(per_turn), figure(min(costs))))
    await link.close()
    return Table("worker CPU for each logged request", ("rows", "answers a turn", "µs"), rows_of_table)


def main() -> None:
    if len(sys.argv) > 1:
        uvloop.run(peer(Path(sys.argv[1])))
        return
    with tempfile.TemporaryDirectory(prefix="handover-", dir="/tmp") as home:
        other = subprocess.Popen([sys.executable, "-m", "bench.handover", home])
        try:
            while not (Path(home) / "logs.sock").exists():
                time.sleep(0.05)
            uvloop.run(measure(Path(home))).show(Console())
        finally:
            other.terminate()
            other.wait()


if __name__ == "__main__":
    main()
