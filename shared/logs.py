"""Logs: one JSON object a line on standard output, through the standard library's `logging`.

A module logs with `logging.getLogger(__name__)`; fields go into `extra`:
`log.info("worker joined", extra={"worker": 3})`. A process calls `configure` once, at its start.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import sys
from types import TracebackType
from typing import Any

import orjson

__all__ = ["JsonFormatter", "configure", "log_loop_errors"]

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


def configure(process: str, level: str) -> None:
    """Send all logs of this process to standard output, from `level` on (a value of APP_LOG_LEVEL).

    Uncaught exceptions are logged too. Raises KeyError for a level that is none.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(process))
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
