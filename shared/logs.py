"""Logs: one JSON object a line on standard output, through the standard library's `logging`.

The same message of the same logger is written BURST times in WINDOW seconds; what comes more often is counted, and
the count is told when the window is over ("and 1,234 more"). A message is its text before its fields are put in.

A module logs with `logging.getLogger(__name__)`; fields go into `extra`:
`log.info("worker joined", extra={"worker": 3})`. A process calls `configure` once, at its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

import orjson

__all__ = ["JsonFormatter", "Repeats", "configure", "counts", "log_loop_errors"]

BURST: Final = 20
WINDOW: Final = 10.0
_MAX_MESSAGES: Final = 1000
"""Messages that are followed at a time; they are texts of the code, so that there are never nearly as many."""

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "disabled": logging.CRITICAL + 1,
}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, process, logger, message, its fields, its error."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end. Fields that JSON does not know are written as their repr."""
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _dumps(line)


def _dumps(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # lone surrogates (a file name, a header): a log line must never raise
        escaped = {key: ascii(value) for key, value in line.items()}
        return orjson.dumps(escaped).decode()


class Repeats(logging.Filter):
    """Lets each message through BURST times in WINDOW seconds. Used under the lock of its handler."""

    def __init__(
        self, tell: Callable[[logging.LogRecord], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`tell` writes a record that says how many were left out."""
        super().__init__()
        self.suppressed = 0
        """Lines that were left out so far."""
        self._tell = tell
        self._clock = clock
        self._windows: dict[tuple[str, int, str], tuple[float, int, logging.LogRecord]] = {}
        self._next_end = float("inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        now = self._clock()
        if now >= self._next_end:
            self.flush(now)
        key = record.name, record.levelno, str(record.msg)
        found = self._windows.get(key)
        if found is None:
            if len(self._windows) >= _MAX_MESSAGES:
                return True
            self._windows[key] = now + WINDOW, 1, record
            self._next_end = min(self._next_end, now + WINDOW)
            return True
        end, count, first = found
        self._windows[key] = end, count + 1, first
        if count < BURST:
            return True
        self.suppressed += 1
        return False

    def flush(self, now: float | None = None) -> None:
        """Tells of what was left out in windows that are over; of all of them without `now`."""
        over = [key for key, (end, _, _) in self._windows.items() if now is None or end <= now]
        for key in over:
            _, count, first = self._windows.pop(key)
            if count > BURST:
                self._tell(_more(first, count - BURST))
        self._next_end = min((end for end, _, _ in self._windows.values()), default=float("inf"))


def _more(first: logging.LogRecord, count: int) -> logging.LogRecord:
    record = logging.LogRecord(first.name, first.levelno, "", 0, first.msg, first.args, None)
    record.msg = f"{first.getMessage()}: and {count:,} more"
    record.args = ()
    record.repeats = count
    return record


class _Handler(logging.StreamHandler[Any]):
    """Writes lines to standard output, counts them by level, and leaves out repeats."""

    def __init__(self, process: str) -> None:
        super().__init__(sys.stdout)
        self.lines: Counter[str] = Counter()
        self.repeats = Repeats(self.emit)
        self.setFormatter(JsonFormatter(process))

    def handle(self, record: logging.LogRecord) -> bool:
        """Under the lock, which the filter needs as well as the stream: threads log, too."""
        with self.lock or contextlib.nullcontext():
            if not self.repeats.filter(record):
                return False
            self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        self.lines[record.levelname.lower()] += 1
        super().emit(record)

    def close(self) -> None:
        """At the end of the process: what was left out is told."""
        self.repeats.flush()
        super().close()


def counts() -> Mapping[str, int]:
    """Lines that this process has written, by level; and those that it left out as repeats, as `suppressed`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            return {**handler.lines, "suppressed": handler.repeats.suppressed}
    return {}


def configure(process: str, level: str) -> None:
    """Send all logs of this process to standard output, from `level` on (a value of APP_LOG_LEVEL).

    Uncaught exceptions are logged too. Raises KeyError for a level that is none.
    """
    handler = _Handler(process)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("uncaught: %s: %s", kind.__name__, error, exc_info=(kind, error, traceback))


def log_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log what raises inside callbacks of this loop; the loop goes on."""
    loop.set_exception_handler(_log_loop_error)


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.error("in the event loop: %s", context.get("message", ""), exc_info=error)
