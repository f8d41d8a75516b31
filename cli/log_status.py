"""`inferflow logs status`: what became of the rows that were to be logged. Asks the log sidecar over its socket."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from rich.table import Table

from cli import terminal
from shared.frames import FrameError, FrameReader, LogQuery, LogStatus
from shared.settings import Settings, SettingsError

__all__ = ["StatusError", "add_arguments", "ask", "run"]

TIMEOUT: Final = 5.0
"""Seconds for an answer."""
MAX_ANSWER: Final = 16 << 20
SOCKET: Final = "logs.sock"


class StatusError(Exception):
    """The log sidecar cannot be asked."""


def ask(run_dir: Path) -> dict[str, Any]:
    """What the log sidecar of this run directory says. Raises StatusError."""
    path = run_dir / SOCKET
    reader: FrameReader[LogStatus] = FrameReader((LogStatus,), MAX_ANSWER)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(os.fspath(path))
            sock.sendall(LogQuery().encode())
            while data := sock.recv(64 << 10):
                for frame in reader.feed(data):
                    return dict(orjson.loads(frame.document))
    except (OSError, FrameError, orjson.JSONDecodeError) as error:
        raise StatusError(f"no log sidecar answers on {path} (INFERFLOW_RUN_DIR): {error}") from error
    raise StatusError(f"the log sidecar on {path} has closed the connection")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints the books. Exit code: 0, also when rows were dropped; 2 wrong settings, 3 nobody can be asked."""
    try:
        settings = Settings.from_env(os.environ)
        if not settings.logs_to:
            print("nothing is logged: neither a Kafka topic nor INFERFLOW_LOG_DIR is set", file=sys.stderr)
            return 3
        status = ask(settings.run_dir)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except StatusError as error:
        print(error, file=sys.stderr)
        return 3
    if arguments.json:
        print(orjson.dumps(status, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(status, terminal.console())
    return 0


def _show(status: Mapping[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("rows")
    columns = [("total", status["total"])]
    columns += [
        (f"worker {one['worker']}" + ("" if one["linked"] else f" (left, pid {one['pid']})"), one)
        for one in status["workers"]
    ]
    for name, _ in columns:
        table.add_column(name, justify="right")
    for name, key in (
        ("served and sampled", "offered"),
        ("acknowledged", "acknowledged"),
        ("held", "held"),
        ("lost with a log sidecar", "lost"),
    ):
        table.add_row(name, *(f"{books[key]:,}" for _, books in columns))
    for reason in sorted({reason for _, books in columns for reason in books["dropped"]}):
        counts = (books["dropped"].get(reason, 0) for _, books in columns)
        table.add_row(f"dropped: {reason}", *(f"{rows:,}" for rows in counts))
    console.print(table)
    console.print(
        f"\nqueue: {status['queued_messages']:,} messages, {status['queued_bytes']:,} bytes"
        f"{', full' if status['full'] else ''}"
    )
    console.print(f"messages: {status['messages_acknowledged']:,} acknowledged", end="")
    for reason, count in sorted(status["messages_dropped"].items()):
        console.print(f", {count:,} {reason}", end="")
    console.print(f"\nvalues that their format cannot hold: {status['values_unfit']:,}")
    console.print(f"{status['to']}: {status['sink']}", markup=False)
