"""What a request pays for transport: steps of the three ways of its bytes, each alone and without sockets.

    python -m bench.transport [--calls 5000] [--bytes 600] [--instructions] [client|door|link …]

- client: an upstream call, from its start to its reply (channel, HTTP/2, deadline, counters; coalesced);
- door: a request through a front door (HTTP/2 of the client, dispatcher, frames to a worker and back);
- link: a worker's end of that, with a scorer that answers at once.

The other ends are tapes: bytes that real codecs have written before, played back one exchange a turn of the
loop. So what is measured is ours and the codec's, and no system call. With --instructions (needs valgrind) each
part runs in a process of its own under callgrind: instructions repeat to a fraction of a percent whatever else the
machine does; the profile is kept, and `callgrind_annotate` prints it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import uvloop
from ngh2 import Configuration, Connection, DataReceived, Role, Setting

from frontdoor.door import FrontDoor
from frontdoor.services import METHODS
from rpc.client import Channel
from rpc.http2 import Header
from rpc.limits import Limits, Stats
from rpc.server_connection import Routes, ServerConnection
from rpc.status import Status
from shared.board import Board
from shared.frames import NO_METADATA, Answer, Hello, Readiness, State, request_head
from shared.metrics import CACHE_COALESCED
from shared.settings import Settings

__all__ = ["PARTS", "Tape", "client", "door", "link"]

WARM_UP = 300
_WINDOW = 1 << 30
_REQUEST: tuple[Header, ...] = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", METHODS[1]),
    (b":authority", b"ranking:8090"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"bench"),
    (b"grpc-timeout", b"1S"),
)
_RESPONSE: tuple[Header, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))


class Tape(asyncio.Transport):
    """A transport whose other end says the next thing of its tape in the turn after a message was written.

    What is shorter than a message (SETTINGS, window updates) is not answered.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tape: Iterable[bytes], message_bytes: int) -> None:
        super().__init__(extra={"peername": "tape"})
        self._loop = loop
        self._tape = iter(tape)
        self._least = message_bytes
        self._protocol: asyncio.Protocol | None = None

    def begin(self, protocol: asyncio.Protocol) -> None:
        """Connects `protocol` and says the first thing."""
        self._protocol = protocol
        protocol.connection_made(self)
        protocol.data_received(next(self._tape))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) >= self._least:
            self.say()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        if any(len(data) >= self._least for data in list_of_data):
            self.say()

    def say(self) -> None:
        """Says the next thing, if there is any."""
        data = next(self._tape, b"")
        if data and self._protocol is not None:
            self._loop.call_soon(self._protocol.data_received, data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


# -- recording ---------------------------------------------------------------------------------------------


def record(calls: int, body: bytes) -> tuple[list[bytes], list[bytes]]:
    """What a client's codec writes for so many calls, one after the other, and what a server's answers.

    The first of each are the opening words; `body` goes both ways.
    """
    client = Connection(Role.CLIENT, Configuration())
    server = Connection(Role.SERVER, Configuration())
    client.initiate_connection({Setting.INITIAL_WINDOW_SIZE: _WINDOW})
    server.initiate_connection({Setting.INITIAL_WINDOW_SIZE: _WINDOW})
    for side in (client, server):
        side.set_local_window_size(_WINDOW)
    asked, answered = [client.data_to_send()], [server.data_to_send()]
    server.receive_data(asked[0])
    client.receive_data(answered[0])
    message = b"\0" + len(body).to_bytes(4, "big") + body
    for _ in range(calls):
        stream = client.send_request(_REQUEST)
        client.send_data(stream, message, end_stream=True)
        asked.append(client.data_to_send())
        server.receive_data(asked[-1])
        if not any(type(event) is DataReceived for event in server.events()):
            raise RuntimeError(f"the recorded request {stream} did not arrive")
        server.send_response(stream, _RESPONSE)
        server.send_data(stream, message)
        server.send_trailers(stream, ((b"grpc-status", b"0"),))
        answered.append(server.data_to_send())
        client.receive_data(answered[-1])
        client.events()
    return asked, answered


# -- the parts ---------------------------------------------------------------------------------------------


Meter = Callable[[bool], None]
"""Called with True when the calls that count begin, with False at their end."""


class _Calls:
    """Starts a call when the last one has ended; counts those after the warm-up."""

    def __init__(self, calls: int, meter: Meter, start: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._calls = calls
        self._meter = meter
        self._start = start
        self._seen = 0

    def next(self) -> None:
        """One more has ended."""
        self._seen += 1
        if self._seen == WARM_UP:
            self._meter(True)
        elif self._seen == WARM_UP + self._calls:
            self._meter(False)
            self.done.set_result(None)
            return
        self._loop.call_soon(self._start)


async def client(calls: int, body: bytes, meter: Meter) -> None:
    """Upstream calls of a worker, on one connection."""
    from dag.component import Reply
    from workers.call_meters import CallMeters
    from workers.coalescing import Coalescing
    from workers.upstreams import ChannelEndpoint

    loop = asyncio.get_running_loop()
    _, answers = record(calls + WARM_UP, body)
    tape = Tape(loop, answers, len(body))

    async def connect(_address: object, factory: Callable[[], asyncio.Protocol], *_tls: object) -> object:
        protocol = factory()
        loop.call_soon(tape.begin, protocol)
        return tape, protocol

    board = Board("worker-0")
    channel = Channel("127.0.0.1:1", connector=connect)
    meters = CallMeters(board, "onfs", "bench")
    method = channel.method("/retrieve.FeatureService/RetrieveFeatures", ((b"caller-id", b"bench"),))
    endpoint = Coalescing(
        loop, ChannelEndpoint(channel, method, meters), board.counter(CACHE_COALESCED, "onfs", "bench")
    )

    def start() -> None:
        endpoint.start((body, b"tail"), 1.0, ended, 50)

    def ended(reply: Reply) -> None:
        if reply.status != Status.OK:
            raise RuntimeError(f"a call of the bench failed: {reply.message}")
        run.next()

    run = _Calls(calls, meter, start)
    await channel.connect()
    start()
    await run.done


async def door(calls: int, body: bytes, meter: Meter) -> None:
    """Requests of one client through a front door with one worker."""
    loop = asyncio.get_running_loop()
    requests, _ = record(calls + WARM_UP, body)
    front = FrontDoor(loop, Settings.from_env({}), Board("frontdoor-0"))
    worker = front.link()
    hello = Hello(0, 1, 100).encode() + State(Readiness.READY, 1, "").encode()
    trailing = ((b"inferflow-request-id", b"00000000000000-0000000000000001"),)
    answers = (Answer(number, 0, "", trailing, body).encode() for number in range(1, calls + WARM_UP + 1))
    Tape(loop, (hello, *answers), len(body)).begin(worker)
    connection = ServerConnection(
        loop, Routes(front.handlers(METHODS), {}, {}), Limits(), Stats(), on_lost=lambda: None
    )
    run = _Calls(calls, meter, lambda: None)
    tape = _Ended(loop, requests, len(body), run)
    tape.begin(connection)
    tape.say()
    await run.done
    front.close()


class _Ended(Tape):
    """Counts each answer that is written to it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tape: Iterable[bytes], message_bytes: int, run: _Calls
    ) -> None:
        super().__init__(loop, tape, message_bytes)
        self._run = run

    def say(self) -> None:
        self._run.next()
        super().say()


async def link(calls: int, body: bytes, meter: Meter) -> None:
    """A worker's end of requests that are answered at once."""
    from workers.doors import DoorLink, Doors
    from workers.service import Answered

    class Ticket:
        def cancel(self) -> None:
            pass

    class Scorer:
        def handle(self, *request: object) -> Ticket:
            answer = request[-1]
            assert callable(answer)
            loop.call_soon(answer, Answered(Status.OK, "", body, b"00000000000000-0000000000000001"))
            return ticket

    ticket = Ticket()
    loop = asyncio.get_running_loop()
    doors = Doors(loop, Path("/"), Scorer(), Hello(0, 1, 100), 1 << 20, Board("worker-0"))
    frames = [
        request_head(number, 1_000_000, int(time.monotonic() * 1e6), 1, NO_METADATA, len(body)) + body
        for number in range(1, calls + WARM_UP + 2)
    ]
    run = _Calls(calls, meter, lambda: None)
    _Ended(loop, frames, len(body), run).begin(DoorLink(doors, Path("door-0.sock")))
    await run.done


PARTS = {part.__name__: part for part in (client, door, link)}


# -- measuring ---------------------------------------------------------------------------------------------


def microseconds(part: str, calls: int, body: bytes) -> float:
    """CPU of one exchange; the best of several runs."""
    times: list[float] = []

    def meter(_is_begin: bool) -> None:
        times.append(time.process_time())

    for _ in range(5):
        uvloop.run(PARTS[part](calls, body, meter))
        gc.collect()
    return min(end - begin for begin, end in zip(times[::2], times[1::2], strict=True)) / calls * 1e6


def play_for_callgrind(part: str, calls: int, body: bytes) -> None:
    """One run, in which callgrind counts what is between the meter's two calls."""

    def meter(is_begin: bool) -> None:
        if is_begin:
            gc.collect()
            gc.freeze()
            gc.disable()
        switch = ["callgrind_control", "-i", "on" if is_begin else "off", str(os.getpid())]
        subprocess.run(switch, check=True, stdout=subprocess.DEVNULL)

    uvloop.run(PARTS[part](calls, body, meter))


def instructions(part: str, calls: int, size: int) -> tuple[float, Path]:
    """Thousands of instructions of one exchange, and where callgrind's profile is."""
    out = Path(tempfile.gettempdir()) / f"inferflow-callgrind.{part}"
    tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
    play = [sys.executable, "-m", "bench.transport", part, "--calls", str(calls), "--bytes", str(size)]
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}  # valgrind does not know every CPU
    done = subprocess.run(
        [*tool, *play, "--play"], env=os.environ | generic, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"valgrind failed:\n{done.stderr[-2000:]}")
    found = re.search(r"^totals: (\d+)", out.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{out} has no totals")
    return int(found[1]) / calls / 1e3, out


def main() -> None:
    """Prints a line a part."""
    parser = argparse.ArgumentParser(prog="bench.transport", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="client, door, link; default: all")
    parser.add_argument(
        "--calls", type=int, default=0, help="exchanges that count (5000; 200 of instructions)"
    )
    parser.add_argument("--bytes", type=int, default=600, help="size of bodies, both ways")
    parser.add_argument("--instructions", action="store_true", help="count instructions, with valgrind")
    parser.add_argument("--play", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for part in options.parts or PARTS:
        if options.play:
            play_for_callgrind(part, options.calls, bytes(options.bytes))
        elif options.instructions:
            thousands, profile = instructions(part, options.calls or 200, options.bytes)
            print(f"{part:8} {thousands:8.1f} k instructions; callgrind_annotate {profile}", flush=True)
        else:
            spent = microseconds(part, options.calls or 5000, bytes(options.bytes))
            print(f"{part:8} {spent:8.2f} µs", flush=True)


if __name__ == "__main__":
    main()
