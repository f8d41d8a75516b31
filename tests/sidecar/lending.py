"""A worker's link and a log sidecar, joined by a real socket in one loop, with a sink that the test reads."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from dag.columns import layouts
from dag.config import decode
from proto import inference_log_pb2
from shared.log_link import ConfigVersion, LogLink
from shared.log_record import LoggedConfig, Notes
from shared.rundir import UnixListener
from shared.settings import LogSettings, Settings
from shared.shm_matrix import CellBlock, MatrixPool, ShmMatrix, TextColumn
from shared.snapshot import digest_of
from sidecar.log_queue import ACCEPTED, Message, Settle
from sidecar.log_sidecar import SOCKET, LogSidecar
from tests.e2e.asking import config

__all__ = ["PATIENCE", "CollectingSink", "Lending", "document", "log_of", "matrix_of", "rows_of", "version"]

PATIENCE = 60.0
MIB = 1 << 20
DOCUMENT = config()
_LAYOUT = layouts("shop", decode(DOCUMENT)).targets


def version(service: bytes = b"{}") -> ConfigVersion:
    return ConfigVersion("shop", digest_of(DOCUMENT), service)


def document(service: bytes = b"{}") -> bytes:
    """What a worker introduces `version` with."""
    parts = LoggedConfig("shop", digest_of(DOCUMENT), msgspec.Raw(service), msgspec.Raw(DOCUMENT))
    return msgspec.json.encode(parts)


def matrix_of(pool: MatrixPool, rows: int, mark: int, ballast: int = 0) -> ShmMatrix:
    """A scored matrix of `shop`: ids are `mark`-row, price, stock and score are mark, row, mark + row.

    `ballast`: bytes of the slot that nothing is in.
    """
    slot = pool.acquire()
    slot.allocate(ballast)
    matrix = ShmMatrix(slot, rows, len(_LAYOUT.blocks), len(_LAYOUT.external))
    ids = [b"%d-%d" % (mark, row) for row in range(rows)]
    matrix.texts[_LAYOUT.external["item_id"]] = TextColumn.of(slot, ids)
    numbers = np.arange(rows, dtype=np.float32)
    values = {
        "item:fp32_shop:price": numbers * 0 + mark,
        "item:fp32_shop:stock": numbers,
        "score": numbers + mark,
    }
    for number, spec in enumerate(_LAYOUT.blocks):
        block = CellBlock.empty(slot, rows, len(spec.columns), spec.width)
        for column in spec.columns:
            cells = values[column.name].astype(np.float32).view(np.uint8).reshape(rows, 4)
            block.cells[:, column.column] = cells
            block.states[:, column.column] = 1
        matrix.blocks[number] = block
    return matrix


def log_of(value: bytes) -> inference_log_pb2.InferflowLog:
    """The log in a message."""
    request = inference_log_pb2.KafkaRequest.FromString(value)
    return inference_log_pb2.InferflowLog.FromString(request.value.properties.value)


def rows_of(value: bytes) -> list[tuple[str, float, float, float]]:
    """(id, price, stock, score) of the rows of a message in the proto format."""
    log = log_of(value)
    assert log.metadata[0] >> 6 == 0
    return [
        (name, *np.frombuffer(one.encoded_features[1:13], np.float32).tolist())
        for name, one in zip(log.entities, log.features, strict=True)
    ]


class CollectingSink:
    """Keeps messages; acknowledges them at once unless `holding`."""

    state = "collecting"

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.held: list[tuple[Message, Settle]] = []
        self.holding = False
        self.closed = False

    async def open(self) -> None:
        """It is ready."""

    async def send(self, message: Message, settle: Settle) -> None:
        self.messages.append(message)
        if self.holding:
            self.held.append((message, settle))
        else:
            settle(message, ACCEPTED)

    async def close(self) -> None:
        self.closed = True

    def settle_all(self) -> None:
        held, self.held = self.held, []
        for message, settle in held:
            settle(message, ACCEPTED)

    @property
    def rows(self) -> list[tuple[str, float, float, float]]:
        return [row for message in self.messages for row in rows_of(message.value)]


class Lending:
    """Both sides. The sidecar can be ended and started again; `link` goes on."""

    def __init__(self, *, limit: int = 8 * MIB, log: LogSettings | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="lend-", dir="/tmp"))
        os.chmod(self.home, 0o700)
        self.pool = MatrixPool(16 * MIB, 8 * MIB)
        self.sink = CollectingSink()
        self.settings = Settings(run_dir=self.home, log=log or LogSettings(flush_s=1))
        self.loop = asyncio.get_running_loop()
        self.link = LogLink(self.loop, self.home / SOCKET, self.pool, worker=0, limit=limit)
        self.introduced = 0
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.start_sidecar()
        self.link.start()
        await self.until(lambda: self.link.connected and self.accepting, "the link is there")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.link.close()
        await self.stop_sidecar()
        shutil.rmtree(self.home)

    def start_sidecar(self) -> None:
        self._stop = asyncio.Event()
        self.sidecar = LogSidecar(self.loop, UnixListener(self.home / SOCKET), self.sink, self.settings)
        self._task = self.loop.create_task(self.sidecar.run(self._stop))

    async def stop_sidecar(self) -> None:
        if self._task is not None:
            self._stop.set()
            await self._task
            self._task = None

    @property
    def accepting(self) -> bool:
        return bool(self.link.ledger.words[63])

    @property
    def books(self) -> dict[str, int]:
        """What became of the rows: without what is nothing."""
        books = self.link.ledger.books()
        found = {"offered": books.offered, "lost": books.lost, "acknowledged": books.acknowledged}
        found |= {"held": books.held, **books.dropped}
        return {name: rows for name, rows in found.items() if rows}

    def lend(
        self,
        rows: int,
        mark: int = 1,
        *,
        service: bytes = b"{}",
        notes: Notes | None = None,
        ballast: int = 0,
    ) -> bool:
        """Offers a matrix, and frees it when it was refused."""
        matrix = matrix_of(self.pool, rows, mark, ballast)

        def introduce() -> bytes:
            self.introduced += 1
            return document(service)

        noted = notes or Notes(1, b"id-%d" % mark, f"t-{mark}", "u", "", 7, {"rank": "host"}, [])
        lent = self.link.lend(matrix, None, lambda: noted, version(service), introduce)
        if not lent:
            self.pool.release(matrix.slot)
        return lent

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():  # noqa: ASYNC110 - what it waits for tells nobody
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(f"{what}: {self.link!r}, {self.sidecar!r}, {self.books}") from None

    async def settled(self) -> None:
        """Returns when nothing is lent and nothing held."""
        await self.until(
            lambda: not self.link.lent and not self.link.ledger.books().held, "everything is settled"
        )


def expected(rows: int, mark: int) -> list[tuple[str, float, float, float]]:
    """The rows of `matrix_of` as they are to be in the log."""
    return [(f"{mark}-{row}", mark, row, mark + row) for row in range(rows)]


def json_of(status: object) -> str:
    return json.dumps(status)
