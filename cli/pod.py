"""`inferflow restart` and `inferflow scale`: change what runs in a pod while it serves.

Over supervisord's socket in the run directory, so on the machine, or in the container, of the pod.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import stat
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from supervisor.xmlrpc import SupervisorTransport

from cli.config import AdminError
from cli.config import Pod as AdminPort
from shared.settings import Settings, SettingsError

__all__ = ["RESTART_HELP", "SCALE_HELP", "Pod", "PodError", "add_restart", "add_scale", "restart", "scale"]

RESTART_HELP = "Restart processes of a running pod one after another, without losing a request."
SCALE_HELP = "Change the number of workers of a running pod."

RESTART_DETAILS = """\
A PROGRAM is one of supervisord.conf (worker, frontdoor, config, …), or `all`. Each process finishes what it has
(at most INFERFLOW_DRAIN_SECONDS) before it ends, and is waited for before the next one goes. While an only worker
restarts, requests wait at the front door for up to INFERFLOW_WAIT_MS.
Exit code: 0 done, 1 refused, or a process did not come back in time, 2 wrong arguments, 3 no pod runs here."""

SCALE_DETAILS = """\
Those that run already go on; one that is too many finishes what it has first. The number holds until the pod
itself is started again: change INFERFLOW_WORKERS where the pod gets its environment from, too.
Exit code: 0 done, 1 refused, or a process did not come up in time, 2 wrong arguments, 3 no pod runs here."""

PATIENCE = 120.0
"""Seconds for one process to come up: a worker may have to compile kernels."""
_LOOK = 0.1


class PodError(Exception):
    """The pod refused something, or is not there. The text says what to do."""

    def __init__(self, reason: str, code: int = 1) -> None:
        super().__init__(reason)
        self.code = code


class Process(NamedTuple):
    """One process, as supervisord sees it."""

    group: str
    name: str
    state: str
    pid: int
    start: int
    """When it was started, in seconds of the clock of files."""

    @property
    def number(self) -> int:
        return int(self.name.rpartition("_")[2])


class Pod:
    """The running pod of these settings. Its methods raise PodError."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = print) -> None:
        self._admin = AdminPort(settings.admin_host, settings.admin_port)
        self._run_dir = settings.run_dir.absolute()
        self._logs = bool(settings.logs_to)
        self._say = say
        url = f"unix://{self._run_dir}/supervisor.sock"
        # The address is never looked up: the transport knows the socket.
        self._rpc = xmlrpc.client.ServerProxy("http://localhost", SupervisorTransport(None, None, url))

    def __repr__(self) -> str:
        return f"<Pod in {self._run_dir}>"

    def close(self) -> None:
        """Ends the connection to supervisord."""
        self._rpc("close")()

    def restart(self, programs: Sequence[str], *, force: bool = False) -> None:
        """Restarts all processes of these programs, in the order of their names."""
        known = self.processes()
        groups = list(dict.fromkeys(process.group for process in known))
        wanted = groups if "all" in programs else [group for group in groups if group in programs]
        unknown = sorted({*programs} - {*groups, "all"})
        if unknown:
            raise PodError(f"no such program: {', '.join(unknown)}; here run {', '.join(groups)}", 2)
        if "frontdoor" in wanted and not force and [one.group for one in known].count("frontdoor") == 1:
            raise PodError(
                "there is one front door: clients would be refused until it is back. Run two "
                "(INFERFLOW_FRONTDOORS=2), or say --force"
            )
        for process in known:
            if process.group in wanted:
                self._restart(process)

    def scale(self, count: int) -> None:
        """Has so many workers."""
        surplus = self._call("inferflow.setCount", "worker", count)
        for name in surplus:
            self._say(f"{name.partition(':')[2]}: stopping")
            self._call("supervisor.stopProcess", name)
        if surplus:
            self._call("inferflow.setCount", "worker", count)
        for process in self.processes():
            if process.group == "worker":
                self._wait_serving(process)
        self._say(f"{count} workers serve")

    def processes(self) -> list[Process]:
        """What runs, in the order of names."""
        infos: list[dict[str, Any]] = self._call("supervisor.getAllProcessInfo")
        return [
            Process(one["group"], one["name"], one["statename"], one["pid"], one["start"]) for one in infos
        ]

    # --- one process

    def _restart(self, process: Process) -> None:
        self._say(f"{process.name}: stopping")
        name = f"{process.group}:{process.name}"
        if process.state in ("STARTING", "RUNNING", "BACKOFF"):
            self._call("supervisor.stopProcess", name)
        self._call("supervisor.startProcess", name, False)
        self._wait_serving(process)

    def _wait_serving(self, process: Process) -> None:
        started = time.monotonic()
        while not self._serves(self._now(process)):
            if time.monotonic() - started > PATIENCE:
                raise PodError(f"{process.name} does not serve after {PATIENCE:.0f} s: look at its log")
            time.sleep(_LOOK)
        self._say(f"{process.name}: serves")

    def _now(self, process: Process) -> Process:
        return next(one for one in self.processes() if one.name == process.name)

    def _serves(self, process: Process) -> bool:
        if process.state != "RUNNING":  # for a second at least: see startsecs
            return False
        if process.group == "worker":
            return self._has_config(process)
        if process.group == "logs" and self._logs:
            return _is_socket_since(self._run_dir / "logs.sock", process.start)
        if process.group == "frontdoor":
            return _is_socket_since(self._run_dir / f"door-{process.number}.sock", process.start)
        return True

    def _has_config(self, worker: Process) -> bool:
        """Whether this worker serves a config version, as the config sidecar knows."""
        try:
            workers = self._admin.get("/status")["workers"]
        except AdminError:
            return False  # the sidecar is just starting, or away: it will answer, or patience ends
        return any(one["pid"] == worker.pid and one["version"] for one in workers)

    def _call(self, method: str, *arguments: object) -> Any:
        try:
            return getattr(self._rpc, method)(*arguments)
        except xmlrpc.client.Fault as error:
            raise PodError(f"supervisord refused {method}{arguments}: {error.faultString}") from error
        except (OSError, http.client.HTTPException) as error:
            raise PodError(f"no pod runs in {self._run_dir} (INFERFLOW_RUN_DIR): {error}", 3) from error


def _is_socket_since(path: Path, start: int) -> bool:
    """Whether the socket is there, and not one that a killed process left behind before `start`."""
    try:
        made = path.stat()
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(made.st_mode) and made.st_mtime >= start


# ---------------------------------------------------------------- commands


def add_restart(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `inferflow restart`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = RESTART_DETAILS
    parser.add_argument("programs", nargs="+", metavar="PROGRAM")
    parser.add_argument("--force", action="store_true", help="also an only front door")


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `inferflow scale`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = SCALE_DETAILS
    parser.add_argument("--workers", type=_count, required=True, metavar="N", help="from 1 to 1024")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to 1024")
    return int(text)


def restart(arguments: argparse.Namespace) -> int:
    """Restarts and tells of it; returns the exit code."""
    return _run(lambda pod: pod.restart(arguments.programs, force=arguments.force))


def scale(arguments: argparse.Namespace) -> int:
    """Changes the number and tells of it; returns the exit code."""
    return _run(lambda pod: pod.scale(arguments.workers))


def _run(act: Callable[[Pod], None]) -> int:
    try:
        with contextlib.closing(Pod(Settings.from_env(os.environ))) as pod:
            act(pod)
    except SettingsError as error:
        print(f"inferflow: {error}", file=sys.stderr)
        return 2
    except PodError as error:
        print(f"inferflow: {error}", file=sys.stderr)
        return error.code
    return 0
