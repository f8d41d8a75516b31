"""docs/rpc.md: its example runs, and its limits are those of the code."""

import re
from pathlib import Path
from typing import Any

from rpc.limits import Limits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rpc.md").read_text()


def test_the_example_runs() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code[1], "docs/rpc.md", "exec"), names)
    assert names["said"] == ["hello you", "INVALID_ARGUMENT: whom?"]


def test_the_limits_are_those_of_the_code() -> None:
    limits = Limits()
    assert f"| connections | {limits.connections:,} |" in PAGE
    assert f"| streams a connection | {limits.streams} |" in PAGE
    assert f"| {limits.header_fields}, {limits.header_bytes >> 10} KiB |" in PAGE
    assert f"| message bytes | {limits.message_bytes >> 20} MiB |" in PAGE
    assert f"| a body that stalls | {limits.body_stall_seconds:g} s |" in PAGE
    assert f"| idle, age | {limits.idle_seconds:g} s, off |" in PAGE
