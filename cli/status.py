"""`inferflow status` and `inferflow top`: what the processes of a pod do, on its machine."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli import terminal
from cli.overview import Look, configs, overview
from shared import crashes
from shared.settings import Settings, SettingsError

__all__ = ["add_arguments", "add_top_arguments", "render", "run", "top"]

NOT_WELL: Final = 1
NO_POD: Final = 3
_STYLES = {"up": "green", "hangs": "yellow", "gone": "red"}
_TOP_MODELS: Final = 15
_BEHIND: Final = ("waiting", "late", "kept", "refused")
"""States of configs whose newest version is not served."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `status`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_top_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `top`."""
    parser.add_argument("--seconds", type=float, default=1.0, help="between two looks (1)")
    parser.add_argument("--looks", type=int, default=0, help="end after so many looks; 0: at Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    """Prints the state of the pod. Exit code: 0, 1 something is not well, 2 wrong settings, 3 there is no pod."""
    settings = _settings()
    if settings is None:
        return 2
    look = Look.now(settings.run_dir)
    if not look.boards:
        return _no_pod(settings.run_dir)
    state = _state(settings, look)
    if arguments.json:
        sys.stdout.buffer.write(orjson.dumps(state, option=orjson.OPT_INDENT_2) + b"\n")
    else:
        terminal.console().print(render(state))
    return 0 if _is_well(state) else NOT_WELL


def top(arguments: argparse.Namespace) -> int:
    """Shows the state again and again. Exit codes as `run`."""
    settings = _settings()
    if settings is None:
        return 2
    look = Look.now(settings.run_dir)
    if not look.boards:
        return _no_pod(settings.run_dir)
    looks = 0
    try:
        screen = sys.stdout.isatty()
        with Live(
            render(overview(look)), console=terminal.console(), screen=screen, auto_refresh=False
        ) as live:
            while not arguments.looks or looks < arguments.looks:
                time.sleep(max(arguments.seconds, 0.1))
                before, look = look, Look.now(settings.run_dir)
                live.update(render(_state(settings, look, before)), refresh=True)
                looks += 1
    except KeyboardInterrupt:
        return 0
    return 0


def _state(settings: Settings, look: Look, before: Look | None = None) -> dict[str, Any]:
    """What is printed with `--json`: the overview, the state of the configs, and what ends again and again."""
    return {
        **overview(look, before),
        "configs": configs(settings),
        "crashes": crashes.looping(crashes.read(settings.run_dir)),
    }


def _settings() -> Settings | None:
    try:
        return Settings.from_env(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return None


def _no_pod(run_dir: Path) -> int:
    print(f"no process of a pod has published anything in {run_dir} (INFERFLOW_RUN_DIR)", file=sys.stderr)
    return NO_POD


def _is_well(state: dict[str, Any]) -> bool:
    up = all(process["state"] == "up" for process in state["processes"])
    return up and not state["crash_loops"] and not state["configs"].get("error")


# ---------------------------------------------------------------- for the terminal


def render(state: dict[str, Any]) -> RenderableType:
    """An overview as tables."""
    parts: list[RenderableType] = [_headline(state), _processes(state["processes"])]
    if state["models"]:
        parts.append(_models(state["models"]))
    if any(one["executions"] for one in state["components"]):
        parts.append(_components(state["components"]))
    if state["upstreams"]:
        parts.append(_upstreams(state["upstreams"]))
    return Group(*parts)


def _headline(state: dict[str, Any]) -> Text:
    requests, cache = state["requests"], state["cache"]
    words = [
        f"{requests['total']:,} requests, {requests['failed']:,} failed",
        f"{_number(requests['per_second'])}/s" if requests["per_second"] is not None else "",
        f"p50 {_number(requests['p50_ms'])} ms, p99 {_number(requests['p99_ms'])} ms"
        if requests["p50_ms"] is not None
        else "",
        f"{requests['in_flight']} in flight, {requests['waiting']} waiting",
        f"{requests['connections']} connections",
        f"cache {cache['hits'] / cache['requests']:.0%} of {cache['requests']:,}"
        if cache["requests"]
        else "",
        f"{state['logs']['dropped_rows']:,} rows of the log dropped" if state["logs"]["dropped_rows"] else "",
    ]
    found = state.get("configs", {})
    if "active" in found:
        words.append(f"config version {found['active']}")
    line = Text(" · ".join(word for word in words if word))
    for problem in (found.get("error"), found.get("notice")):
        if problem:
            line.append(f"\n{problem}", style="yellow")
    behind = [f"{count} {name}" for name, count in state["config_keys"].items() if name in _BEHIND and count]
    if behind:
        line.append(f"\nconfigs: {', '.join(behind)}; `inferflow config list` says why", style="yellow")
    for sentence in state.get("crashes", ()):
        line.append(f"\n{sentence}; its last lines in the log of the pod say why", style="red")
    return line


def _processes(processes: Sequence[dict[str, Any]]) -> Table:
    table = _table(
        "process", "pid", "state", "up", "CPU s", "MiB", "in flight", "lag p99 ms", "config version"
    )
    for one in processes:
        table.add_row(
            one["process"],
            str(one["pid"]),
            Text(one["state"], style=_STYLES[one["state"]]),
            _duration(one["uptime_seconds"]),
            _number(one["cpu_seconds"]),
            f"{one['resident_bytes'] / (1 << 20):.0f}",
            str(one["in_flight"]),
            _number(one["loop_lag_p99_ms"]),
            str(one["config_version"] or ""),
        )
    return table


def _models(models: Sequence[dict[str, Any]]) -> Table:
    table = _table(
        "model", "requests", "failed", "/s", "p50 ms", "p99 ms", "rows", "row errors", "cache hits"
    )
    busy = sorted(models, key=lambda one: (-(one["per_second"] or 0), -one["total"]))
    for one in busy[:_TOP_MODELS]:
        cache = one["cache"]
        table.add_row(
            one["model"] or "(unknown)",
            f"{one['total']:,}",
            f"{one['failed']:,}",
            _number(one["per_second"]),
            _number(one["p50_ms"]),
            _number(one["p99_ms"]),
            f"{one['rows']:,}",
            f"{one['error_rows']:,}",
            f"{cache['hits'] / cache['requests']:.0%}" if cache["requests"] else "",
        )
    return table


def _components(components: Sequence[dict[str, Any]]) -> Table:
    table = _table("component", "of", "executions", "p50 ms", "p99 ms", "critical path ms", "row errors")
    asked = [one for one in components if one["executions"]]
    dear = sorted(asked, key=lambda one: (-one["critical_path_ms"], -one["executions"]))
    for one in dear[:_TOP_MODELS]:
        table.add_row(
            one["component"],
            one["model"],
            f"{one['executions']:,}",
            _number(one["p50_ms"]),
            _number(one["p99_ms"]),
            _number(one["critical_path_ms"]),
            f"{one['error_rows']:,}",
        )
    return table


def _upstreams(upstreams: Sequence[dict[str, Any]]) -> Table:
    table = _table(
        "upstream", "endpoint", "calls", "failed", "/s", "p50 ms", "p99 ms", "waiting", "connections"
    )
    for one in upstreams:
        connections = ", ".join(f"{count} {state}" for state, count in one["connections"].items() if count)
        table.add_row(
            one["service"],
            one["endpoint"],
            f"{one['calls']:,}",
            f"{one['failed']:,}",
            _number(one["per_second"]),
            _number(one["p50_ms"]),
            _number(one["p99_ms"]),
            str(one["waiting"]),
            connections or "none",
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 1 else "right")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
