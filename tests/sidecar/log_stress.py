"""The processes of `log_chaos`: workers that lend as fast as they can, a log sidecar that looks at each row.

    python -m tests.sidecar.log_stress sidecar RUN_DIR TALLY
    python -m tests.sidecar.log_stress worker RUN_DIR INDEX

TALLY is a file of u64 words that outlives the sidecar: rows that were whole, rows that were not, messages.
"""

from __future__ import annotations

import asyncio
import json
import logging
import mmap
import random
import signal
import sys
from pathlib import Path

import uvloop

from shared.log_link import LogLink
from shared.log_record import Notes
from shared.rundir import UnixListener
from shared.settings import LogSettings, Settings
from shared.shm_matrix import MatrixPool
from sidecar.log_queue import ACCEPTED, Message, Settle
from sidecar.log_sidecar import SOCKET, LogSidecar
from tests.sidecar.lending import document, expected, matrix_of, rows_of, version

MIB = 1 << 20
REFUSED_SECONDS = 0.01
"""Before a worker offers again what was refused: else it takes the processor from the log sidecar."""


class LookingSink:
    """Acknowledges everything, and tells whole rows from torn ones."""

    state = "looking"

    def __init__(self, tally: Path) -> None:
        with tally.open("r+b") as file:
            self._tally = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")

    async def open(self) -> None:
        """It is ready."""

    async def send(self, message: Message, settle: Settle) -> None:
        rows = rows_of(message.value)
        mark, _, first = rows[0][0].partition("-")
        whole = rows == expected(int(first) + len(rows), int(mark))[int(first) :]
        self._tally[0 if whole else 1] += len(rows)
        self._tally[2] += 1
        settle(message, ACCEPTED)

    async def close(self) -> None:
        pass


async def sidecar(run_dir: Path, tally: Path) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings(run_dir=run_dir, log=LogSettings(flush_s=5))
    await LogSidecar(loop, UnixListener(run_dir / SOCKET), LookingSink(tally), settings).run(stop)


async def worker(run_dir: Path, index: int) -> None:
    """Lends until SIGTERM; then waits until all is settled and prints its books."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    pool = MatrixPool(16 * MIB, 4 * MIB)
    link = LogLink(loop, run_dir / SOCKET, pool, worker=index, limit=8 * MIB)
    link.start()
    introduction, mark = document(), 0
    chance = random.Random(index)
    while not stop.is_set():
        for _ in range(chance.randint(1, 20)):
            mark = (mark + 1) % 1_000_000
            matrix = matrix_of(pool, chance.randint(1, 5), mark)
            notes = Notes(1, b"%d" % mark, "t", "u", "", 7, {}, [])
            if not link.lend(matrix, None, lambda notes=notes: notes, version(), lambda: introduction):  # type: ignore[misc]
                pool.release(matrix.slot)
                await asyncio.sleep(REFUSED_SECONDS)
        await asyncio.sleep(0.001)
    while link.ledger.books().held:  # noqa: ASYNC110 - the books tell nobody
        await asyncio.sleep(0.01)
    books = link.ledger.books()
    print(json.dumps({**books._asdict(), "held": books.held, "busy": pool.busy}), flush=True)
    await link.close()


def main() -> None:
    logging.disable(logging.WARNING)
    role, run_dir, *rest = sys.argv[1:]
    if role == "sidecar":
        uvloop.run(sidecar(Path(run_dir), Path(rest[0])))
    else:
        uvloop.run(worker(Path(run_dir), int(rest[0])))


if __name__ == "__main__":
    main()
