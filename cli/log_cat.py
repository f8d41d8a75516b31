"""`inferflow logs cat`: the rows of inference logs, typed, as a table, as JSON or as Parquet."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, TextIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from cli import terminal
from cli.log_sources import SourceError, from_files, from_kafka
from inferlog.configs import ConfigFiles
from inferlog.reader import BadLog, LogMessage, read, table
from shared.settings import Settings, SettingsError

__all__ = ["add_arguments", "run"]

DETAILS = """\
A PATH is a file of INFERFLOW_LOG_DIR, a directory of such files, or a file that is one Kafka message. Without one,
the place that the settings log to is read: the topic (from its beginning to its end of now) or the log directory.
The columns come from the configs: by the digest that a message names from INFERFLOW_STATE_DIR/documents, else by
its model_config_id from --configs (INFERFLOW_CONFIG_DIR when there is none). Columns that begin with `_` say what
the row belongs to; docs/inference-logs.md explains them.
Exit code: 0 done, 1 some messages could not be read, 2 wrong arguments, 3 the messages cannot be got at."""

TABLE_ROWS: Final = 20
"""Rows that a table shows when --limit does not say."""
TABLE_VALUES: Final = 8
"""Logged columns that a table shows when --columns does not say."""
TABLE_COLUMNS: Final = ("_tracking_id", "_kind", "_entity", "_errors")
"""What a table shows of what stands beside the values: the others would fill the screen."""


class Sink(Protocol):
    """Takes the rows of one message after the other."""

    def add(self, rows: pa.Table) -> None: ...


class UsageError(Exception):
    """Arguments that cannot be used together, or rows that the output cannot take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DETAILS
    parser.add_argument("paths", nargs="*", metavar="PATH", type=Path, help="files, directories")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="read from these brokers, comma-separated")
    parser.add_argument("--topic", help="the topic (KAFKA_LOGGING_TOPIC)")
    parser.add_argument(
        "--configs", metavar="DIR", type=Path, action="append", default=[], help="where configs are"
    )
    parser.add_argument("--format", choices=("table", "json", "parquet"), default="table")
    parser.add_argument("--output", metavar="FILE", type=Path, help="instead of standard output")
    parser.add_argument(
        "--limit", metavar="ROWS", type=int, help=f"most rows (a table: {TABLE_ROWS}; 0: all)"
    )
    parser.add_argument(
        "--columns", metavar="NAMES", help="only these columns: comma-separated, * stands for anything"
    )
    parser.add_argument("--model-config-id", metavar="ID", help="only rows of this config")
    parser.add_argument("--tracking-id", metavar="ID", help="only rows of this request")


def run(arguments: argparse.Namespace) -> int:
    """Prints or writes the rows; returns the exit code."""
    try:
        settings = Settings.from_env(os.environ)
        return asyncio.run(_cat(arguments, settings))
    except (SettingsError, UsageError) as error:
        print(f"inferflow logs cat: {error}", file=sys.stderr)
        return 2
    except SourceError as error:
        print(f"inferflow logs cat: {error}", file=sys.stderr)
        return 3


async def _cat(arguments: argparse.Namespace, settings: Settings) -> int:
    configs = ConfigFiles(settings.state_dir / "documents", arguments.configs or [settings.config_dir])
    left = arguments.limit if arguments.limit is not None else TABLE_ROWS * (arguments.format == "table")
    left = left or sys.maxsize
    unread: dict[str, int] = {}
    with _sink(arguments) as sink:
        async for value in _messages(arguments, settings):
            try:
                message = read(value)
                rows = table(message, configs.columns(message)) if _wanted(message, arguments) else None
            except BadLog as error:
                unread[str(error)] = unread.get(str(error), 0) + 1
                continue
            if rows is not None:
                sink.add(_chosen(rows.slice(0, left), arguments.columns))
                left -= rows.num_rows
            if left <= 0:
                break
    for model_config_id in sorted(configs.guessed):
        print(f"{model_config_id}: read by a config with the same cache_version", file=sys.stderr)
    for reason, count in unread.items():
        print(f"{count} messages not read: {reason}", file=sys.stderr)
    return 1 if unread else 0


def _chosen(rows: pa.Table, patterns: str | None) -> pa.Table:
    """The columns that match, in the table's order. Raises UsageError when there are none."""
    if patterns is None:
        return rows
    names = [
        name
        for name in rows.column_names
        if any(fnmatchcase(name, pattern.strip()) for pattern in patterns.split(","))
    ]
    if not names:
        raise UsageError(f"no column matches {patterns!r}; there are: {', '.join(rows.column_names)}")
    return rows.select(names)


def _wanted(message: LogMessage, arguments: argparse.Namespace) -> bool:
    """Whether the filters let this message through."""
    return arguments.model_config_id in (None, message.model_config_id) and arguments.tracking_id in (
        None,
        message.log.tracking_id,
    )


async def _messages(arguments: argparse.Namespace, settings: Settings) -> AsyncIterator[bytes]:
    """The messages of what the arguments name, else of where the settings log to."""
    if arguments.paths and (arguments.kafka or arguments.topic):
        raise UsageError("paths and --kafka or --topic: one of them")
    kafka = settings.kafka
    if arguments.kafka:
        kafka = dataclasses.replace(kafka, bootstrap_servers=tuple(arguments.kafka.split(",")))
    if arguments.topic:
        kafka = dataclasses.replace(kafka, topic=arguments.topic)
    if not arguments.paths and kafka.bootstrap_servers:
        if not kafka.topic:
            raise UsageError("no topic: --topic, or KAFKA_LOGGING_TOPIC")
        async for value in from_kafka(kafka):
            yield value
        return
    if not arguments.paths and settings.log.directory is None:
        raise UsageError("nothing to read: a path, --kafka, KAFKA_BOOTSTRAP_SERVERS or INFERFLOW_LOG_DIR")
    for value in from_files(arguments.paths or [settings.log.directory]):
        yield value


# ---------------------------------------------------------------- outputs


@contextmanager
def _sink(arguments: argparse.Namespace) -> Iterator[Sink]:
    """Where rows go. A file gets its name when all of them are in it."""
    if arguments.format == "parquet":
        if arguments.output is None:
            raise UsageError("--format parquet needs --output")
        with _scratch(arguments.output) as path, _ParquetFile(path) as sink:
            yield sink
        return
    with _text(arguments.output) as out:
        if arguments.format == "json":
            yield _JsonLines(out)
            return
        tables = _Tables(chosen=arguments.columns is not None)
        yield tables
        tables.print(out)


@contextmanager
def _text(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    with _scratch(path) as scratch, scratch.open("w", encoding="utf-8") as out:
        yield out


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A path beside this one, which is renamed when nothing went wrong. Raises UsageError."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)


class _JsonLines:
    """One JSON object a row."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def add(self, rows: pa.Table) -> None:
        for row in _readable(rows).to_pylist():
            self._out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE).decode())


class _Tables:
    """Tables to look at: one for all rows of one config with the same columns."""

    def __init__(self, *, chosen: bool) -> None:
        """`chosen`: the columns are those that somebody asked for, so none is left out."""
        self._chosen = chosen
        self._rows: dict[tuple[str, tuple[str, ...]], list[pa.Table]] = {}

    def add(self, rows: pa.Table) -> None:
        if rows.num_rows:
            names = rows.column_names
            config = rows.column("_model_config_id")[0].as_py() if "_model_config_id" in names else ""
            self._rows.setdefault((config, tuple(names)), []).append(rows)

    def print(self, out: TextIO) -> None:
        console = terminal.console(out)
        for (model_config_id, names), parts in self._rows.items():
            shown, hidden = (names, 0) if self._chosen else _shown(names)
            printed = Table(*shown, title=model_config_id, title_justify="left", header_style="bold")
            for row in _readable(pa.concat_tables(parts).select(shown)).to_pylist():
                printed.add_row(*(_cell(value) for value in row.values()))
            console.print(printed, markup=False)
            if hidden:
                console.print(f"… and {hidden} more columns: see --columns, --format json", markup=False)


def _shown(names: Sequence[str]) -> tuple[list[str], int]:
    """What of these columns a table shows that nobody chose any for, and how many values it leaves out."""
    values = [name for name in names if not name.startswith("_")]
    beside = [name for name in names if name in TABLE_COLUMNS]
    return beside + values[:TABLE_VALUES], max(0, len(values) - TABLE_VALUES)


def _readable(rows: pa.Table) -> pa.Table:
    """The same with times as text: Python has no type for nanoseconds."""
    at = rows.schema.get_field_index("_time")
    if at < 0:
        return rows
    return rows.set_column(at, "_time", rows.column(at).cast(pa.string()))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_cell, value)) if isinstance(value, list) else str(value)


class _ParquetFile:
    """One Parquet file with a column a logged column; all rows have the same columns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        elif error is None:
            raise UsageError("no rows: there is nothing to write")

    def add(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, rows.schema, compression="zstd")
        if rows.schema != self._writer.schema:
            raise UsageError(
                "rows of several configs have different columns, and a file has one kind of rows: choose them by "
                "--model-config-id or --columns, or read them as JSON"
            )
        self._writer.write_table(rows)
