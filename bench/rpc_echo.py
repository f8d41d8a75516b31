"""What a gRPC echo costs: CPU of the server's process per call, and of a client of ours.

    python -m bench.rpc_echo [--calls 60000] [--bytes 100] [--connections 4] [--streams 50]

The load comes from h2load (apt: nghttp2-client) if it is there, and then from rpc.client. CPU time is what
counts: it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import shutil
import subprocess
import sys
import tempfile
import time

import uvloop

from rpc.client import Channel, ChannelSettings, Reply
from rpc.server import HttpRequest, HttpResponse, Server, ServerCall
from rpc.status import Status

PATH = "/bench.Echo/Echo"


def echo(call: ServerCall) -> None:
    call.respond(call.body)


def cpu(_: HttpRequest) -> HttpResponse:
    return HttpResponse(repr(time.process_time()).encode())


async def serve() -> None:
    """Serves until the parent closes standard input; says its port on standard output."""
    server = Server({PATH.encode(): echo}, http1={"/cpu": cpu})
    print(await server.listen_tcp("127.0.0.1", 0), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.close()


async def server_cpu(port: int) -> float:
    """CPU seconds that the server has used so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /cpu HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return float(answer.rpartition(b"\r\n")[2])


async def by_h2load(port: int, options: argparse.Namespace) -> None:
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + options.bytes.to_bytes(4, "big") + b"x" * options.bytes)
        body.flush()
        process = await asyncio.create_subprocess_exec(
            "h2load", "-n", str(options.calls), "-c", str(options.connections), "-m", str(options.streams),
            "-d", body.name, "-H", "content-type: application/grpc", "-H", "te: trailers",
            "-H", "grpc-timeout: 30S", f"http://127.0.0.1:{port}{PATH}",
            stdout=subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
    for line in out.decode().splitlines():
        if line.startswith(("finished", "requests:", "time for request:")):
            print("   ", line)


async def by_channel(port: int, options: argparse.Namespace) -> float:
    """Returns the CPU seconds that the client used."""
    settings = ChannelSettings(connections_per_address=options.connections)
    channel = Channel(f"127.0.0.1:{port}", settings=settings)
    await channel.connect(10.0)
    method, body = channel.method(PATH), b"x" * options.bytes
    finished = asyncio.Event()
    left = to_start = options.calls

    def done(reply: Reply) -> None:
        nonlocal left, to_start
        assert reply.status is Status.OK, reply
        left -= 1
        if to_start:
            to_start -= 1
            channel.start(method, body, 30.0, done)
        elif not left:
            finished.set()

    start = time.process_time()
    for _ in range(min(options.calls, options.connections * options.streams)):
        to_start -= 1
        channel.start(method, body, 30.0, done)
    await finished.wait()
    used = time.process_time() - start
    await channel.close()
    return used


async def measure(port: int, options: argparse.Namespace) -> None:
    def per_call(seconds: float) -> str:
        return f"{seconds / options.calls * 1e6:6.2f} µs CPU a call"

    await by_channel(port, argparse.Namespace(**vars(options) | {"calls": 2000}))  # warm up
    if shutil.which("h2load"):
        before = await server_cpu(port)
        await by_h2load(port, options)
        print("server, asked by h2load:     ", per_call(await server_cpu(port) - before))
    else:
        print("h2load is not installed (apt: nghttp2-client)")
    before = await server_cpu(port)
    used = await by_channel(port, options)
    print("server, asked by rpc.client: ", per_call(await server_cpu(port) - before))
    print("rpc.client:                  ", per_call(used))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=60_000)
    parser.add_argument("--bytes", type=int, default=100)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    gc.freeze()
    if options.serve:
        uvloop.run(serve())
        return
    command = [sys.executable, "-m", "bench.rpc_echo", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        uvloop.run(measure(port, options))
        server.stdin.close()


if __name__ == "__main__":
    main()
