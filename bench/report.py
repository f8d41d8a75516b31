"""Tables of the results: on the terminal, and in a page between two markers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

__all__ = ["Table", "TableError", "figure", "machine", "replace_section"]

_LIBRARIES = ("uvloop", "numba", "numpy", "protobuf", "grpcio")


class TableError(Exception):
    """A page that has no place for the table."""


class Table:
    """Rows of texts below a header; the first column is text, the others are figures."""

    def __init__(self, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.title = title
        self.header = header
        self.rows = list(rows)

    def __repr__(self) -> str:
        return f"<Table {self.title!r}, {len(self.rows)} rows>"

    def show(self, console: Console) -> None:
        """Prints it for people."""
        table = RichTable(title=self.title, box=box.SIMPLE)
        for number, name in enumerate(self.header):
            table.add_column(name, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """The table for a page, without its title."""
        rules = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [self.header, rules, *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float) -> str:
    """A number with about three digits: 1,230, 123, 12.3, 1.23, 0.123."""
    if value >= 1000:
        return f"{round(value, -1):,.0f}"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def machine() -> str:
    """What the figures were measured on, and with: one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    return (
        f"{os.cpu_count()} cores of {_processor()}, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def replace_section(page: Path, name: str, text: str) -> None:
    """Puts `text` between `<!-- name -->` and `<!-- /name -->`. Raises TableError when the page has none."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    new, found = pattern.subn(lambda _: f"{begin}\n{text}\n{end}", old)
    if found != 1:
        raise TableError(f"{page}: has {found} sections {begin} … {end}, must have one")
    page.write_text(new)
