"""The log sidecar process: `python -m sidecar.logs`.

Reads finished matrices straight from the workers' shared memory, encodes them, and ships the messages. Requests
never wait for it: it runs at a lower priority than the workers, and when it is behind, rows of the log are dropped
and counted. In a pod that logs nothing it only waits for its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import uvloop

from shared import logs, process
from shared.board import Board
from shared.publishing import Publisher
from shared.rundir import RunDirError, UnixListener, private_directory
from shared.settings import Settings, SettingsError

__all__ = ["main"]

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    logs.log_loop_errors(loop)
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    board = Board("log")
    publisher = Publisher(loop, board, settings)
    publisher.start()
    if settings.logs_to:
        # Not at the top: encoders and clients cost a second and 100 MB, which a pod without logs need not pay.
        from sidecar.log_sidecar import SOCKET, LogSidecar, open_sink

        sink = open_sink(settings, board)  # before anybody can connect: it takes a while
        listener = UnixListener(private_directory(settings.run_dir) / SOCKET)
        sidecar = LogSidecar(loop, listener, sink, settings)
        board.before_publishing(lambda: sidecar.show(board))
        process.settle()
        log.info("log sidecar started", extra={"to": settings.logs_to})
        await sidecar.run(stop)
    else:
        log.info("nothing is logged: neither a Kafka topic nor INFERFLOW_LOG_DIR is set")
        await stop.wait()
    publisher.close()
    process.ignore_stops(loop, STOP_SIGNALS)


def main() -> None:
    """Runs the process until SIGTERM. Exits with a message when it cannot start."""
    try:
        settings = Settings.from_env(os.environ)
        process.die_with_parent(settings.supervisor_pid)
        process.name("log sidecar")
        process.behind_requests()
        logs.configure("logs", settings.log_level)
        uvloop.run(_serve(settings))
    except (SettingsError, RunDirError) as error:
        raise SystemExit(f"log sidecar: {error}") from error


if __name__ == "__main__":
    main()
