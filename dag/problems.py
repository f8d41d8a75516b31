"""What is wrong with a config, and where: one finding, and the JSON path that leads to it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Problem", "at_index", "did_you_mean", "join"]

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


class Problem(NamedTuple):
    """One finding. `path` leads from the document's root to the value, "" being the document itself."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def join(path: str, *steps: str | int) -> str:
    """The JSON path of something below `path`: keys with dots, indices and odd keys in brackets."""
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _PLAIN_KEY.match(step):
            path += f".{step}" if path else step
        else:
            path += f"[{json.dumps(step, ensure_ascii=False)}]"
    return path


def at_index(path: str, index: int) -> str:
    """`join` of one index: a list of thousands is walked through, item by item."""
    return f"{path}[{index}]"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """The end of a message: `; did you mean 'x'?`, or "" when nothing known is at least `cutoff` (0–1) alike."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
