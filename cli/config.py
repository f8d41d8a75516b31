"""`inferflow config`: what the pod serves, since when and why, and how to go back. Over the pod's admin port."""

from __future__ import annotations

import argparse
import datetime
import http.client
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli import terminal
from shared.settings import Settings, SettingsError

__all__ = ["add_arguments", "run"]

DETAILS = """\
A NAME is a model_config_id, or a key: expression-config/<compute_id>, service-config. A VERSION is a digest or its
beginning, as `history` shows it. The pod is asked on INFERFLOW_ADMIN_HOST:INFERFLOW_ADMIN_PORT.
Exit code: 0 done, 1 refused or in conflict (with `list`: something is not served in its newest version),
2 wrong arguments, 3 the pod cannot be asked."""

TIMEOUTS = {"GET": 10.0, "POST": 30.0}
"""Seconds for one answer; a write may take several of the source's own."""

_STYLES = {
    "active": "green",
    "preparing": "cyan",
    "waiting": "yellow",
    "late": "yellow",
    "kept": "red",
    "refused": "red",
    "deleted": "dim",
}
_WORDS = {"kept": "newest refused", "late": "not prepared"}


class AdminError(Exception):
    """The pod refused something, or cannot be asked."""

    def __init__(self, reason: str, *, code: int, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.details = dict(details or {})


class Pod:
    """The admin port of a pod."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    def __repr__(self) -> str:
        return f"<Pod {self._host}:{self._port}>"

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """The answer to a GET. Raises AdminError."""
        return self._ask("GET", path, query)

    def post(self, path: str, body: bytes = b"", **query: str) -> dict[str, Any]:
        """The answer to a POST. Raises AdminError."""
        return self._ask("POST", path, query, body)

    def _ask(self, method: str, path: str, query: Mapping[str, str], body: bytes = b"") -> dict[str, Any]:
        target = f"{path}?{urlencode({key: text for key, text in query.items() if text})}"
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUTS[method])
        try:
            connection.request(method, target, body or None)
            response = connection.getresponse()
            answer = orjson.loads(response.read())
        except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
            reason = f"no pod answers on {self._host}:{self._port} (INFERFLOW_ADMIN_PORT): {error}"
            raise AdminError(reason, code=3) from error
        finally:
            connection.close()
        if response.status != 200:
            raise AdminError(str(answer.pop("error", response.status)), code=1, details=answer)
        return dict(answer)


# ---------------------------------------------------------------- arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands and their arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DETAILS
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help_text: str, act: Callable[[Pod, argparse.Namespace, Console], int]) -> Any:
        own = commands.add_parser(name, help=help_text, description=help_text)
        own.add_argument("--json", action="store_true", help="print one JSON object")
        own.set_defaults(act=act)
        return own

    def named(name: str, help_text: str, act: Callable[[Pod, argparse.Namespace, Console], int]) -> Any:
        own = command(name, help_text, act)
        own.add_argument("name", metavar="NAME")
        return own

    command("list", "Everything that is served, and the versions of the workers.", _list)
    own = named("show", "One config: its version, the verdict on its newest one, the workers.", _show)
    own.add_argument("--text", action="store_true", help="print the text that is served, and nothing else")
    own = named("diff", "What changes from what is served to what the source holds.", _diff)
    own.add_argument("--old", metavar="VERSION", default="", help="compare this one, not what is served")
    own.add_argument("--new", metavar="VERSION", default="", help="with this one, not what the source holds")
    named("history", "The versions that were active, the newest first.", _history)
    own = named("rollback", "Put the version before back, until the source has a newer one.", _rollback)
    own.add_argument("--to", metavar="VERSION", default="", help="this version, not the one before")
    own.add_argument("--write", action="store_true", help="write it to the source instead, for all pods")
    named("pin", "Keep what is served, whatever the source gets.", _pin)
    named("unpin", "Serve what the source holds: ends a pin or a rollback.", _unpin)
    own = command("put", "Check a config, show what changes, and write it to the source.", _put)
    own.add_argument("file", metavar="FILE", type=Path)
    own.add_argument("--name", metavar="NAME", default="", help="not the file's name without .json")
    own.add_argument("--dry-run", action="store_true", help="write nothing")


def run(arguments: argparse.Namespace) -> int:
    """Asks the pod and prints the answer; returns the exit code."""
    console = terminal.console()
    try:
        settings = Settings.from_env(os.environ)
        code: int = arguments.act(Pod(settings.admin_host, settings.admin_port), arguments, console)
        return code
    except SettingsError as error:
        print(f"inferflow config: {error}", file=sys.stderr)
        return 2
    except AdminError as error:
        if arguments.json:
            _print_json({"error": str(error), **error.details})
        print(f"inferflow config: {error}", file=sys.stderr)
        return error.code


# ---------------------------------------------------------------- commands


def _list(pod: Pod, arguments: argparse.Namespace, console: Console) -> int:
    answer = pod.get("/config")
    behind = any(item["state"] in ("kept", "refused", "waiting", "late") for item in answer["items"])
    if arguments.json:
        _print_json(answer)
        return int(behind)
    table = _table("config", "state", "version", "since", "source revision")
    for item in answer["items"]:
        table.add_row(
            escape(_name(item["key"])),
            _state(item),
            _short(item["digest"]),
            _when(item["since"]),
            _revisions(item),
        )
    console.print(table)
    for item in answer["items"]:  # below the table: a cell of it would be a few characters wide
        for reason in item["reasons"]:
            console.print(f"[bold]{escape(_name(item['key']))}[/bold]: [dim]{escape(reason)}[/dim]")
    _print_workers(console, answer)
    return int(behind)


def _show(pod: Pod, arguments: argparse.Namespace, console: Console) -> int:
    answer = pod.get("/config/show", key=arguments.name)
    if arguments.json:
        _print_json(answer)
        return 0
    if arguments.text:
        print(answer["text"] or "")
        return 0
    table = Table.grid(padding=(0, 2))
    table.add_row("config", f"[bold]{escape(_name(answer['key']))}[/bold]")
    table.add_row("state", _state(answer))
    table.add_row("version", _short(answer["digest"]))
    table.add_row("since", _when(answer["since"]))
    table.add_row("source revision", _revisions(answer))
    for reason in answer["reasons"]:
        table.add_row("reason", escape(reason))
    console.print(table)
    _print_verdict(console, answer["verdict"])
    _print_workers(console, answer)
    return 0


def _diff(pod: Pod, arguments: argparse.Namespace, console: Console) -> int:
    answer = pod.get("/config/diff", key=arguments.name, old=arguments.old, new=arguments.new)
    if arguments.json:
        _print_json(answer)
    else:
        _print_diff(console, answer)
    return 0


def _history(pod: Pod, arguments: argparse.Namespace, console: Console) -> int:
    answer = pod.get("/config/history", key=arguments.name)
    if arguments.json:
        _print_json(answer)
        return 0
    table = _table("version", "since", "source revision")
    for version in answer["versions"]:
        table.add_row(_short(version["digest"]), _when(version["since"]), str(version["revision"] or "–"))
    console.print(table)
    return 0


def _rollback(pod: Pod, arguments: argparse.Namespace, console: Console) -> int:
    write = "1" if arguments.write else ""
    answer = pod.post("/config/rollback", key=arguments.name, to=arguments.to, write=write)
    if arguments.json:
        _print_json(answer)
        return 0
    name, version = escape(_name(answer["key"])), _short(answer["to"]["digest"])
    if arguments.write:
        console.print(f"{name}: version {version} is written to the source")
    else:
        console.print(
            f"{name}: back to version {version}, until the source has a newer one (`unpin` ends it)"
        )
    return 0


def _pin(pod: Pod, arguments: argparse.Namespace, console: Console) -> int:
    answer = pod.post("/config/pin", key=arguments.name)
    if arguments.json:
        _print_json(answer)
    else:
        digest = answer["override"]["digest"]
        console.print(f"{escape(_name(answer['key']))}: stays at version {_short(digest)} until `unpin`")
    return 0


def _unpin(pod: Pod, arguments: argparse.Namespace, console: Console) -> int:
    answer = pod.post("/config/unpin", key=arguments.name)
    if arguments.json:
        _print_json(answer)
    else:
        console.print(f"{escape(_name(answer['key']))}: follows the source again")
    return 0


def _put(pod: Pod, arguments: argparse.Namespace, console: Console) -> int:
    name = arguments.name or _name_of(arguments.file)
    try:
        text = arguments.file.read_bytes()
    except OSError as error:
        raise AdminError(f"{arguments.file}: {error.strerror}", code=2) from error
    found = pod.post("/config/check", text, key=name)
    good = found["verdict"]["ok"]
    written = good and not arguments.dry_run
    if not arguments.json:
        _print_diff(console, found["diff"])
        _print_verdict(console, found["verdict"])
    if written:
        pod.post("/config/put", text, key=name, revision=str(found["revision"]))
    if arguments.json:
        _print_json({**found, "written": written})
    elif good:
        console.print(f"{'written to' if written else 'would be written to'} {escape(found['place'])}")
    return 0 if good else 1


def _name_of(file: Path) -> str:
    """The key that a file stands for: its place in the tree if it is in one, else a model config."""
    if file.absolute().parent.name == "expression-config":
        return f"expression-config/{file.stem}"
    return file.stem


# ---------------------------------------------------------------- printing


def _print_json(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode() + "\n")


def _print_workers(console: Console, answer: Mapping[str, Any]) -> None:
    versions = [_worker(one) for one in answer["workers"]]
    console.print("versions of the pod: " + ("; ".join(versions) or "no worker is connected"), style="dim")
    if answer.get("notice"):
        console.print(escape(answer["notice"]), style="yellow")


def _worker(one: Mapping[str, Any]) -> str:
    shown = f"worker {one['worker']} (pid {one['pid']}): {one['version'] or 'none'}"
    if one["is_late"]:
        shown += ", late"
    if one["retiring"]:
        shown += f", {one['retiring']} plans of older versions still in use"
    return shown


def _print_verdict(console: Console, verdict: Mapping[str, Any]) -> None:
    console.print(f"newest version: {'[green]good[/green]' if verdict['ok'] else '[red]refused[/red]'}")
    for problem in verdict["errors"]:
        console.print(f"  {escape(problem)}")
    for problem in verdict["warnings"]:
        console.print(f"  warning: {escape(problem)}", style="yellow")


def _print_diff(console: Console, found: Mapping[str, Any]) -> None:
    if not found["count"]:
        console.print("no difference")
        return
    for change in found["changes"]:
        path = escape(change["path"] or "the whole text")
        if "old" in change:
            console.print(f"[red]- {path}: {escape(_value(change['old']))}[/red]")
        if "new" in change:
            console.print(f"[green]+ {path}: {escape(_value(change['new']))}[/green]")
    if found["count"] > len(found["changes"]):
        console.print(f"… and {found['count'] - len(found['changes'])} more")
    plan, endpoints = found.get("plan"), found.get("endpoints")
    if plan and plan["old"] != plan["new"]:
        console.print(f"plan: {escape(_chain(plan['old']))} becomes {escape(_chain(plan['new']))}")
    if endpoints and (endpoints["added"] or endpoints["removed"]):
        changes = [f"+ {one}" for one in endpoints["added"]] + [f"- {one}" for one in endpoints["removed"]]
        console.print("endpoints: " + escape(", ".join(changes)))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _chain(names: Sequence[str]) -> str:
    return " → ".join(names) or "nothing"


def _value(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 200 else text[:199] + "…"


def _name(key: str) -> str:
    return key.removeprefix("config-map/")


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "–"


def _state(item: Mapping[str, Any]) -> str:
    state = item["state"]
    text = f"[{_STYLES[state]}]{_WORDS.get(state, state)}[/]"
    return f"{text}, {item['override']['kind']}" if item["override"] else text


def _revisions(item: Mapping[str, Any]) -> str:
    served, newest = item["revision"], item["source_revision"]
    return str(served or "–") if served == newest else f"{served or '–'} (newest {newest or '–'})"


def _when(since: float | None) -> str:
    if since is None:
        return "–"
    return datetime.datetime.fromtimestamp(since).astimezone().isoformat(sep=" ", timespec="seconds")
