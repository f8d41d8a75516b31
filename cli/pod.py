"""`inferflow restart` and `inferflow scale`: change what runs in a pod while it serves.

Over supervisord's socket in the run directory, so on the machine, or in the container, of the pod.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import stat
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from supervisor.xmlrpc import Faults, SupervisorTransport

from cli.overview import configs
from shared import crashes
from shared.board_file import Published, read_board
from shared.metrics import CONFIG_VERSION
from shared.settings import Settings, SettingsError

__all__ = [
    "Pod",
    "PodError",
    "add_restart",
    "add_scale",
    "readable",
    "restart",
    "scale",
]

RESTART_DETAILS = """\
A PROGRAM is one of supervisord.conf (worker, frontdoor, config, …), or `all`. Each process finishes what it has
(at most INFERFLOW_DRAIN_SECONDS) before it ends, and is waited for before the next one goes; what it waits for is
told. When one does not serve, the others are left alone. An only worker is restarted beside a second one, which
takes the memory of one more worker for as long, and stays when the first one does not come back: `inferflow scale`
takes it away. With --in-place requests wait for the worker at the front door instead, for up to INFERFLOW_WAIT_MS.
Exit code: 0 done, 1 refused, 2 wrong arguments, 3 no pod runs here, 4 a process did not come up."""

SCALE_DETAILS = """\
Those that run already go on; one that is too many finishes what it has first. The number holds until the pod
itself is started again: change INFERFLOW_WORKERS where the pod gets its environment from, too.
Exit code: 0 done, 1 refused, 2 wrong arguments, 3 no pod runs here, 4 a process did not come up."""

PATIENCE: Final = 120.0
"""Seconds for one process to come up: a worker may have to compile kernels."""
NO_POD: Final = 3
NOT_UP: Final = 4
_LOOK: Final = 0.1
_QUIET: Final = 5.0
"""Seconds before it is told what a process waits for: most serve by then."""
_LINE: Final = 400
"""Characters of a last line that are shown."""
_WHO_AND_WHEN: Final = frozenset({"time", "process", "pid", "logger"})


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

    def __init__(
        self, settings: Settings, say: Callable[[str], None] = print, patience: float = PATIENCE
    ) -> None:
        """`say` is told each step; `patience`: seconds for one process to come up."""
        self._settings = settings
        self._run_dir = settings.run_dir.absolute()
        self._say = say
        self._patience = patience
        url = f"unix://{self._run_dir}/supervisor.sock"
        # The address is never looked up: the transport knows the socket.
        self._rpc = xmlrpc.client.ServerProxy("http://localhost", SupervisorTransport(None, None, url))

    def __repr__(self) -> str:
        return f"<Pod in {self._run_dir}>"

    def close(self) -> None:
        """Ends the connection to supervisord."""
        self._rpc("close")()

    def restart(self, programs: Sequence[str], *, force: bool = False, in_place: bool = False) -> None:
        """Restarts all processes of these programs, in the order of their names.

        `force`: an only front door, too. `in_place`: an only worker without a second one beside it.
        """
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
                with contextlib.nullcontext() if in_place else self._covered(process):
                    self._restart(process)

    def scale(self, count: int) -> None:
        """Has so many workers."""
        self._set_count(count)
        for process in self._workers():
            self._wait_serving(process.name)
        self._say("1 worker serves" if count == 1 else f"{count} workers serve")

    def processes(self) -> list[Process]:
        """What runs, in the order of names."""
        infos: list[dict[str, Any]] = self._call("supervisor.getAllProcessInfo")
        return [
            Process(one["group"], one["name"], one["statename"], one["pid"], one["start"]) for one in infos
        ]

    # --- the number of workers

    def _workers(self) -> list[Process]:
        return [process for process in self.processes() if process.group == "worker"]

    def _set_count(self, count: int) -> None:
        """Starts workers that are missing, and stops those that are too many."""
        surplus = self._call("inferflow.setCount", "worker", count)
        for name in surplus:
            self._say(f"{name.partition(':')[2]}: stopping")
            self._stop(name)
        if surplus:
            self._call("inferflow.setCount", "worker", count)

    @contextlib.contextmanager
    def _covered(self, process: Process) -> Iterator[None]:
        """While it lasts another worker serves, if `process` is the only one that does.

        That one is taken away again when the body is done; when the body raises, it stays.
        """
        workers = self._workers()
        if [one.name for one in workers if self._serves(one)] != [process.name]:
            yield
            return
        count = len(workers)
        self._say(f"worker_{count}: starts, because no worker but {process.name} serves")
        try:
            self._set_count(count + 1)
            self._wait_serving(f"worker_{count}")
        except BaseException:
            self._set_count(count)
            raise
        try:
            yield
        except BaseException:
            self._say(f"worker_{count}: stays; once {process.name} serves: inferflow scale --workers {count}")
            raise
        self._set_count(count)

    # --- one process

    def _restart(self, process: Process) -> None:
        self._say(f"{process.name}: stopping")
        name = f"{process.group}:{process.name}"
        self._stop(name)
        self._call("supervisor.startProcess", name, False)
        self._wait_serving(process.name, process.pid)

    def _stop(self, name: str) -> None:
        """Waits until it has ended. It may have, by itself."""
        self._call("supervisor.stopProcess", name, ignored=Faults.NOT_RUNNING)

    def _wait_serving(self, name: str, before: int = 0) -> None:
        """`before`: the id of the process that it takes the place of, whose last line does not count."""
        began, told = time.monotonic(), ""
        ends = self._ends(name)
        while not self._serves(now := self._now(name)):
            waited, ended = time.monotonic() - began, self._ends(name) - ends
            if waited > self._patience or ended >= crashes.LOOP_ENDS:
                why = self._why(now, ended) + self._last_line(name, before)
                raise PodError(
                    self._given_up(now, f"{name} does not serve after {waited:.0f} s: {why}"), NOT_UP
                )
            why = self._why(now, ended) if waited > _QUIET else ""
            if why != told:
                self._say(f"{name}: waits: {why}{self._last_line(name, before)}")
                told = why
            time.sleep(_LOOK)
        self._say(f"{name}: serves")

    def _now(self, name: str) -> Process:
        return next(one for one in self.processes() if one.name == name)

    def _serves(self, process: Process) -> bool:
        if process.group == "worker":  # it says so itself, perhaps within supervisord's startsecs
            return process.state in ("STARTING", "RUNNING") and self._version(process) > 0
        if process.state != "RUNNING":
            return False
        if process.group == "config":
            return self._board(process, "config") is not None
        path = self._socket(process)
        return path is None or _is_socket_since(path, process.start)

    def _socket(self, process: Process) -> Path | None:
        """What shows that a process is there; None: nothing but that it runs."""
        if process.group == "logs" and self._settings.logs_to:
            return self._run_dir / "logs.sock"
        if process.group == "frontdoor":
            return self._run_dir / f"door-{process.number}.sock"
        return None

    def _board(self, process: Process, name: str) -> Published | None:
        """What this very process has published; None: nothing yet."""
        board = read_board(self._run_dir, name)
        return board if board is not None and board.pid == process.pid else None

    def _version(self, worker: Process) -> int:
        """The config version that a worker serves; 0: none."""
        board = self._board(worker, f"worker-{worker.number}")
        records = board.records if board else ()
        return int(sum(record.value for record in records if record.metric is CONFIG_VERSION))

    # --- why one does not come up

    def _ends(self, name: str) -> int:
        """How often it has ended by itself since the pod was started."""
        ends = crashes.read(self._run_dir).get(name)
        return ends.total if ends else 0

    def _why(self, process: Process, ended: int) -> str:
        """Why it does not serve, having ended so often since it was started; the same text as long as it is so."""
        if ended:
            return f"it ends by itself, with {crashes.read(self._run_dir)[process.name].last}"
        if process.state != "RUNNING":
            return f"supervisord says {process.state}"
        if process.group == "worker":
            return self._why_without_config(process)
        if process.group == "config":
            return "it has not published anything yet"
        return f"{self._socket(process)} is not there yet"

    def _why_without_config(self, worker: Process) -> str:
        found = configs(self._settings)
        if "workers" not in found:
            return (
                f"it has no config version, and the config sidecar cannot be asked why: {found.get('error')}"
            )
        notice = found["notice"] or found["source"]["error"]
        if not found["active"]:
            return "no config version is active" + (
                f": {notice}" if notice else "; see `inferflow config list`"
            )
        if worker.pid not in {one["pid"] for one in found["workers"]}:
            return "it has not asked the config sidecar for its version yet (it loads its kernels first)"
        return f"it has not yet said that it serves config version {found['active']}"

    def _last_line(self, name: str, before: int) -> str:
        """What it wrote last, to be put behind a reason; empty if that was the process `before` it."""
        told = self._call("inferflow.lastLine", name)
        if not told["line"] or told["pid"] == before:
            return ""
        return f"; its last line: {readable(told['line'])}"

    def _given_up(self, process: Process, why: str) -> str:
        others = [one.name for one in self._workers() if one.name != process.name and self._serves(one)]
        others_serve = f"{', '.join(others)} served all the time" if others else "no worker serves"
        return f"{why}\nNothing else was restarted; {others_serve}. More is in the pod's log."

    def _call(self, method: str, *arguments: object, ignored: int | None = None) -> Any:
        try:
            return getattr(self._rpc, method)(*arguments)
        except xmlrpc.client.Fault as error:
            if error.faultCode == ignored:
                return None
            raise PodError(f"supervisord refused {method}{arguments}: {error.faultString}") from error
        except (OSError, http.client.HTTPException) as error:
            raise PodError(f"no pod runs in {self._run_dir} (INFERFLOW_RUN_DIR): {error}", NO_POD) from error


def _is_socket_since(path: Path, start: int) -> bool:
    """Whether the socket is there, and not one that a killed process left behind before `start`."""
    try:
        made = path.stat()
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(made.st_mode) and made.st_mtime >= start


def readable(line: str) -> str:
    """A line of a log for a terminal: what was said and its fields, without who and when."""
    try:
        fields = dict(json.loads(line))
    except (ValueError, TypeError):  # not one of ours: an interpreter's last words
        return line[-_LINE:]
    level, message = fields.pop("level", ""), str(fields.pop("message", ""))
    raised = str(fields.pop("error", "")).rpartition("\n")[2]  # the last line of a traceback
    rest = [f"{name}={value}" for name, value in fields.items() if name not in _WHO_AND_WHEN]
    if message.rpartition(": ")[2] not in raised:
        rest.append(raised)
    return " ".join([f"{level}: {message}", *rest]).rstrip()[:_LINE]


# ---------------------------------------------------------------- commands


def add_restart(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `inferflow restart`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = RESTART_DETAILS
    parser.add_argument("programs", nargs="+", metavar="PROGRAM")
    parser.add_argument("--force", action="store_true", help="also an only front door")
    parser.add_argument(
        "--in-place", action="store_true", help="an only worker without a second one beside it"
    )
    _add_patience(parser)


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `inferflow scale`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = SCALE_DETAILS
    parser.add_argument("--workers", type=_count, required=True, metavar="N", help="from 1 to 1024")
    _add_patience(parser)


def _add_patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patience",
        type=_seconds,
        default=PATIENCE,
        metavar="SECONDS",
        help="for each process to come up (default %(default)g)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to 1024")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def restart(arguments: argparse.Namespace) -> int:
    """Restarts and tells of it; returns the exit code."""

    def act(pod: Pod) -> None:
        pod.restart(arguments.programs, force=arguments.force, in_place=arguments.in_place)

    return _run(act, arguments.patience)


def scale(arguments: argparse.Namespace) -> int:
    """Changes the number and tells of it; returns the exit code."""
    return _run(lambda pod: pod.scale(arguments.workers), arguments.patience)


def _run(act: Callable[[Pod], None], patience: float) -> int:
    try:
        with contextlib.closing(Pod(Settings.from_env(os.environ), _say, patience)) as pod:
            act(pod)
    except SettingsError as error:
        print(f"inferflow: {error}", file=sys.stderr)
        return 2
    except PodError as error:
        print(f"inferflow: {error}", file=sys.stderr)
        return error.code
    return 0


def _say(text: str) -> None:
    """At once, also into a pipe: what is waited for is of no use afterwards."""
    print(text, flush=True)
