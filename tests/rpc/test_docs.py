"""docs/rpc.md says what is so."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

from rpc.limits import Limits, Rate

PAGE = Path(__file__).parents[2] / "docs" / "rpc.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


def test_the_example_prints_what_the_page_shows() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block("python")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=PAGE.parents[1],
    )
    assert (done.stderr, done.stdout) == ("", block("text"))


def shown(name: str, value: object) -> str:
    """A default as the page writes it."""
    if isinstance(value, Rate):
        return f"{value.burst:,}, {value.per_second:,}/s"
    assert isinstance(value, int | float)
    if name.endswith("_seconds"):
        return f"{value:g} s" if value else "off"
    for unit, size in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if value >= size and value % size == 0:
            return f"{value // size} {unit}"
    return f"{value:,}"


def test_the_table_of_limits_is_complete_and_right() -> None:
    section = PAGE.read_text().partition("## Limits")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE)
    limits = Limits()
    expected = [
        (field.name, shown(field.name, getattr(limits, field.name))) for field in dataclasses.fields(limits)
    ]
    assert rows == expected


def test_every_module_is_listed() -> None:
    listed = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)))
    )
    modules = {path.stem for path in (PAGE.parents[1] / "rpc").glob("*.py")} - {"__init__"}
    assert modules <= listed
