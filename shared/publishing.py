"""How a process makes its board known: a record in the run directory, packets to the DogStatsD agent.

The loop's thread only gathers gauges and measures how late its timers fire; a thread of its own writes and sends.
A disk or an agent that hangs holds up that thread, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared import logs
from shared.board import Board
from shared.board_file import BoardFile, encode
from shared.metrics import (
    CONFIG_AGE,
    CONFIG_VERSION,
    LOG_LINES,
    LOOP_LAG,
    PROCESS_CPU,
    PROCESS_FDS,
    PROCESS_MEMORY,
    PROCESS_START,
)
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.statsd import StatsdSender

__all__ = ["Publisher", "VersionMeter"]

log = logging.getLogger(__name__)

LAG_SECONDS: Final = 0.25
"""Between two looks at how late a timer fires."""
TICKS: Final = 4
"""Looks between two publications."""
CLOSE_SECONDS: Final = 2.0
"""For the last publication; after that the process ends without it."""
_PAGE: Final = resource.getpagesize()


class VersionMeter:
    """Shows which version of the configs is active in a process, and since when."""

    def __init__(self, board: Board) -> None:
        self._version = board.gauge(CONFIG_VERSION)
        self._age = board.gauge(CONFIG_AGE)
        self._since = time.monotonic()

    def show(self, number: int) -> None:
        """`number` is active; 0: none is. Called before each publication."""
        if number != self._version.value:
            self._version.value = number
            self._since = time.monotonic()
        self._age.value = time.monotonic() - self._since

    def __repr__(self) -> str:
        return f"<VersionMeter {self._version!r}>"


class Publisher:
    """Publishes a board about once a second from `start` to `close`. Belongs to the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, board: Board, settings: Settings) -> None:
        """Raises OSError when the record cannot be made."""
        self._loop = loop
        self._board = board
        self._started = time.time()
        self._file = BoardFile(Path(settings.run_dir).absolute(), board.process)
        self._statsd = _statsd_sender(settings, board)
        self._lag = board.histogram(LOOP_LAG)
        self._due = 0.0
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wake = threading.Event()
        self._over = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        board.gauge(PROCESS_START).value = self._started
        board.before_publishing(self._gather_process)

    def __repr__(self) -> str:
        return f"<Publisher of {self._board!r}, {self._file!r}, {self._statsd!r}>"

    def start(self) -> None:
        """Publishes for the first time, and goes on."""
        self._thread.start()
        self.publish()
        self._again()

    def close(self) -> None:
        """Publishes for the last time, and removes the record."""
        if self._timer is not None:
            self._timer.cancel()
        self._over = True
        self.publish()
        self._thread.join(CLOSE_SECONDS)
        self._file.remove()

    def publish(self) -> None:
        """Publishes now, besides."""
        self._board.gather()
        self._wake.set()

    # --- on the loop's thread

    def _again(self) -> None:
        self._due = time.monotonic() + LAG_SECONDS
        self._timer = self._loop.call_later(LAG_SECONDS, self._tick)

    def _tick(self) -> None:
        self._lag.observe(max(time.monotonic() - self._due, 0.0) * 1e3)
        self._ticks += 1
        if self._ticks >= TICKS:
            self._ticks = 0
            self.publish()
        self._again()

    def _gather_process(self) -> None:
        board = self._board
        board.counter(PROCESS_CPU).value = time.process_time()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        board.gauge(PROCESS_MEMORY).value = pages * _PAGE
        board.gauge(PROCESS_FDS, "open").value = len(os.listdir("/proc/self/fd"))
        for level, lines in logs.counts().items():
            board.counter(LOG_LINES, level).value = lines
        board.gauge(PROCESS_FDS, "limit").value = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    # --- on the thread

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            over = self._over  # before the last look: what is set after it wakes once more
            self._write()
            if self._statsd is not None:
                self._statsd.send()
            if over:
                break
        if self._statsd is not None:
            self._statsd.close()

    def _write(self) -> None:
        try:
            self._file.write(encode(self._board, self._started))
        except OSError as error:
            if not self._failed:
                log.error(
                    "metrics cannot be published", extra={"file": repr(self._file), "reason": str(error)}
                )
            self._failed = True
        else:
            self._failed = False


def _statsd_sender(settings: Settings, board: Board) -> StatsdSender | None:
    """None when no agent is configured: then a process is spared the time that its client takes to import."""
    if not (settings.statsd.host or settings.statsd.socket):
        return None
    from shared.statsd import StatsdSender

    return StatsdSender(settings, board)
