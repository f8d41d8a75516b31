"""A worker that does as the request says: `python -m tests.frontdoor.fake_worker SOCKET INDEX [MAX] [READY]`.

It speaks the frames for real and is a process of its own, so that it can hang and be killed. What the body of
a request asks for is in `_Worker._serve`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

from shared.frames import Answer, Cancel, FrameReader, Hello, Readiness, Request, State


class _Worker:
    def __init__(self, index: int, writer: asyncio.StreamWriter) -> None:
        self.index = index
        self.writer = writer
        self.cancelled: list[int] = []
        self.seen = 0
        self.in_flight: dict[int, asyncio.TimerHandle | None] = {}

    def answer(self, request: int, body: bytes, status: int = 0, message: str = "") -> None:
        if self.in_flight.pop(request, self) is not self:
            self.writer.write(
                Answer(request, status, message, ((b"worker", b"%d" % self.index),), body).encode()
            )

    def receive(self, frame: Request | Cancel) -> None:
        if isinstance(frame, Cancel):
            self.cancelled.append(frame.id)
            self.in_flight.pop(frame.id, None)
        else:
            self.seen += 1
            self.in_flight[frame.id] = None
            self._serve(frame)

    def _serve(self, request: Request) -> None:
        verb, _, rest = request.body.partition(b" ")
        if verb == b"sleep":  # milliseconds, then the answer
            milliseconds = int(rest.split()[0])
            asyncio.get_running_loop().call_later(milliseconds / 1000, self.answer, request.id, request.body)
        elif verb == b"fail":  # status and message
            status, message = rest.decode().split(" ", 1)
            self.answer(request.id, b"", int(status), message)
        elif verb == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif verb == b"hang":  # this request only
            pass
        elif verb == b"block":  # the whole process
            time.sleep(600)
        elif verb == b"garbage":
            self.writer.write(b"\xff" * 64)
        elif verb == b"state":  # readiness and reason
            readiness, reason = rest.decode().split(" ", 1)
            self.writer.write(State(Readiness(int(readiness)), 7, reason).encode())
            self.answer(request.id, b"")
        elif verb == b"big":  # bytes
            self.answer(request.id, bytes(int(rest)))
        elif verb == b"tell":  # what it knows
            known = {
                "pid": os.getpid(),
                "cancelled": self.cancelled,
                "seen": self.seen,
                "in_flight": len(self.in_flight) - 1,
                "method": request.method,
                "deadline_us": request.deadline_us,
                "metadata": [[name.decode(), value.hex()] for name, value in request.metadata],
            }
            self.answer(request.id, json.dumps(known).encode())
        else:
            self.answer(request.id, request.body)


async def _main(path: str, index: int, max_in_flight: int, ready: bool) -> None:
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(path)
            break
        except OSError:
            await asyncio.sleep(0.02)
    worker = _Worker(index, writer)
    writer.write(Hello(index, os.getpid(), max_in_flight).encode())
    readiness = Readiness.READY if ready else Readiness.NOT_READY
    writer.write(State(readiness, 7, "" if ready else "told to be so").encode())
    frames = FrameReader[Request | Cancel]((Request, Cancel), 64 << 20)
    while data := await reader.read(1 << 18):
        for frame in frames.feed(data):
            worker.receive(frame)


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(
        _main(
            given[0],
            int(given[1]),
            int(given[2]) if len(given) > 2 else 64,
            given[3] != "unready" if len(given) > 3 else True,
        )
    )
