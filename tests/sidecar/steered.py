"""A sidecar with its admin port in this process, and a worker that does whatever it is told."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sidecar.admin import Admin
from sidecar.steering import Steering
from tests.sidecar.test_config import Shelf, Worker, on_shelf

__all__ = ["Steered", "steered"]


class Steered:
    """A running sidecar, its worker, and requests to its admin port."""

    def __init__(self, shelf: Shelf, worker: Worker, port: int) -> None:
        self.shelf = shelf
        self.worker = worker
        self.port = port

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        return (await self.ask("GET", path, **query))[1]

    async def post(self, path: str, body: bytes = b"", **query: str) -> dict[str, Any]:
        status, answer = await self.ask("POST", path, body, **query)
        assert status == 200, answer
        return answer

    async def ask(
        self, method: str, path: str, body: bytes = b"", **query: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and answer of one request."""

        def request() -> tuple[int, dict[str, Any]]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            with contextlib.closing(connection):
                connection.request(method, f"{path}?{urlencode(query)}", body)
                response = connection.getresponse()
                return response.status, json.loads(response.read())

        return await asyncio.to_thread(request)

    async def until_served(self, piece: str, name: str = "a") -> None:
        """Waits until the worker serves a config with this piece of text."""
        await self.worker.until(lambda worker: piece in worker.active["configs"].get(name, ""))


@contextlib.asynccontextmanager
async def steered(run_dir: Path, shelf: Shelf, limit: float = 30) -> AsyncIterator[Steered]:
    """A sidecar on a shelf, steered over HTTP on a port of its own."""
    one = on_shelf(run_dir, shelf, limit)
    admin = Admin(Steering(one), run_dir)
    await admin.listen("127.0.0.1", 0)
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    worker = Worker(run_dir / "config.sock")
    await worker.until(lambda worker: True)
    try:
        yield Steered(shelf, worker, admin.port)
    finally:
        await worker.link.close()
        await admin.close()
        stop.set()
        await running
