"""The front-door process: `python -m frontdoor.main`.

Serves clients on APP_PORT and workers on `door-<index>.sock` in the run directory. SIGTERM drains: health says
NOT_SERVING, nothing new is accepted, what is in flight is answered, and the process exits with 0.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from dataclasses import asdict

import uvloop

from frontdoor.door import FrontDoor
from frontdoor.meters import gather
from frontdoor.readiness import Readiness
from frontdoor.services import FILES, METHODS, SERVICES
from frontdoor.streams import Streams
from rpc.health import FILE as HEALTH_FILE
from rpc.health import Health
from rpc.reflection import Reflection
from rpc.server import Limits, Server
from rpc.tls import server_context
from shared import logs, process
from shared.board import Board
from shared.publishing import Publisher
from shared.rundir import RunDirError, UnixListener, private_directory
from shared.settings import Settings, SettingsError

__all__ = ["StartError", "main", "serve"]

log = logging.getLogger("frontdoor.main")  # not __main__

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StartError(RuntimeError):
    """The process cannot start. The text says what to do."""


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain. Raises StartError or RunDirError when it cannot start."""
    loop = asyncio.get_running_loop()
    board = Board(f"frontdoor-{settings.index}")
    door = FrontDoor(loop, settings, board)
    health = Health()
    readiness = Readiness(door, health, SERVICES, settings.run_dir)
    streams = Streams({**health.stream_handlers, **Reflection((*FILES, HEALTH_FILE)).stream_handlers})
    server = Server(
        {**door.handlers(METHODS), **health.handlers},
        stream_handlers=streams.handlers,
        http1=readiness.http_handlers(),
        limits=Limits(message_bytes=settings.max_request_bytes),
        tls=_tls(settings),
    )
    board.before_publishing(lambda: gather(board, door.dispatcher, server))
    claim = _claim_port(settings)
    listener = UnixListener(private_directory(settings.run_dir) / f"door-{settings.index}.sock")
    try:
        workers = await loop.create_unix_server(door.link, sock=listener.socket)
        await _listen(server, settings)
        publisher = Publisher(loop, board, settings)
        publisher.start()
        process.settle()
        process.keep_freed_memory()
        log.info("serving", extra={"host": settings.host, "port": settings.port})
        await stop.wait()
        log.info("draining", extra={"in_flight": door.dispatcher.in_flight, "seconds": settings.drain_s})
        readiness.drain()
        streams.end()
        await server.drain(settings.drain_s)
        workers.close()
        door.close()
        publisher.close()
    finally:
        listener.socket.close()
        listener.remove()
        if claim is not None:
            claim.close()
    log.info("stopped", extra=_counts(door, server))


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls.cert is None or settings.tls.key is None:
        return None
    try:
        return server_context(settings.tls.cert, settings.tls.key, client_ca=settings.tls.client_ca)
    except OSError as error:  # includes ssl.SSLError; names the file
        raise StartError(f"INFERFLOW_TLS_…: {error}") from error


def _claim_port(settings: Settings) -> socket.socket | None:
    """With several front doors, make sure that they are all of one pod. Returns what to keep open, if anything.

    They share the port with SO_REUSEPORT, and so would a second pod that was started by mistake, or one that
    was left behind: clients would get answers of either, by chance. A name in the abstract namespace is like
    the port (one for all pods of the network namespace, freed by the kernel when the process ends), but
    belongs to one process only. With one front door the port itself tells.
    """
    if settings.frontdoors == 1:
        return None
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0inferflow front door {settings.index} at {settings.host}:{settings.port}")
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise StartError(
            f"front door {settings.index} of another pod serves {settings.host}:{settings.port}: "
            "stop it, or set APP_PORT"
        ) from error
    return claim


async def _listen(server: Server, settings: Settings) -> None:
    try:
        await server.listen_tcp(settings.host, settings.port, reuse_port=settings.frontdoors > 1)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"another process listens on {place}: stop it, or set APP_PORT") from error
        raise StartError(f"cannot listen on {place}: {error}") from error


def _counts(door: FrontDoor, server: Server) -> dict[str, object]:
    """What a process that ends can tell of its life; the first three are 0 when all is well."""
    return {
        "in_flight": door.dispatcher.in_flight,
        "held_bytes": door.dispatcher.held_bytes,
        "streams": server.stats.streams,
        "requests": asdict(door.dispatcher.counts),
        "limits": dict(server.stats.limits),
        "connections_total": server.stats.connections_total,
    }


def _allow_many_connections() -> None:
    """Raise the soft limit on open files to the hard one: every client connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    logs.log_loop_errors(loop)
    stop = asyncio.Event()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)
    process.ignore_stops(loop, _STOP_SIGNALS)


def main() -> None:
    """Run the process. Exits with 0 after SIGTERM or SIGINT, 1 when it cannot start."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        sys.exit(str(error))
    process.name(f"frontdoor {settings.index}")
    logs.configure(f"frontdoor-{settings.index}", settings.log_level)
    try:
        process.die_with_parent(settings.supervisor_pid)
        _allow_many_connections()
        uvloop.run(_run(settings))
    except (StartError, RunDirError, process.ParentGoneError) as error:
        log.critical("cannot start: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
