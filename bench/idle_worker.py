"""A worker that does no work: `python -m bench.idle_worker SOCKET DIRECTORY`.

It answers each request at once with the bytes that the real service answered: DIRECTORY holds NAME.request and
NAME.answer. Behind a real front door it shows what the way of the bytes alone costs: the floor of the service.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import uvloop

from rpc.status import Status
from shared import process
from shared.frames import NO_METADATA, Cancel, FrameReader, Hello, Readiness, Request, State, answer_head

__all__ = ["IdleLink", "read_answers"]

MAX_IN_FLIGHT = 4096
MAX_FRAME_BYTES = 64 << 20


class IdleLink(asyncio.Protocol):
    """The connection to the front door; all answers of one turn of the loop leave in one write."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answers: Mapping[bytes, bytes]) -> None:
        self.lost: asyncio.Future[None] = loop.create_future()
        """Done when the connection is over."""
        self._loop = loop
        self._answers = answers
        self._reader = FrameReader[Request | Cancel]((Request, Cancel), MAX_FRAME_BYTES)
        self._out: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are none by inheritance
        self._write(Hello(0, os.getpid(), MAX_IN_FLIGHT).encode())
        self._write(State(Readiness.READY, 1, "").encode())

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            if isinstance(frame, Request):
                self._answer(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost.set_result(None)

    def _answer(self, request: Request) -> None:
        body = self._answers.get(request.body)
        if body is None:
            self._write(
                answer_head(request.id, Status.NOT_FOUND, "no answer to this request", NO_METADATA, 0)
            )
            return
        self._write(answer_head(request.id, Status.OK, "", NO_METADATA, len(body)))
        self._write(body)

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None:
            self._transport.write(b"".join(out))

    def __repr__(self) -> str:
        return f"<IdleLink with {len(self._answers)} answers, {'over' if self.lost.done() else 'open'}>"


def read_answers(directory: Path) -> dict[bytes, bytes]:
    """The answers in a directory, by request."""
    return {
        file.read_bytes(): file.with_suffix(".answer").read_bytes() for file in directory.glob("*.request")
    }


async def _serve(socket: Path, answers: Mapping[bytes, bytes]) -> None:
    loop = asyncio.get_running_loop()
    _, link = await loop.create_unix_connection(lambda: IdleLink(loop, answers), str(socket))
    await link.lost


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.idle_worker")
    parser.add_argument("socket", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    process.name("bench idle worker")
    uvloop.run(_serve(arguments.socket, read_answers(arguments.directory)))


if __name__ == "__main__":
    main()
