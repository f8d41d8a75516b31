"""Start a pod: `python -m cli.up`.

Checks the settings once, for all processes, so that a bad one is told on the terminal and not by a service
that never becomes ready. Then makes the directories and becomes supervisord.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from shared import native
from shared.board_file import remove_boards
from shared.rundir import RunDirError, private_directory
from shared.settings import Settings, SettingsError, misspelt

__all__ = ["CONF", "environment", "main", "run"]

CONF = Path(__file__).resolve().parent.parent / "supervisord.conf"

_STOP_MARGIN = 10
"""Seconds between the end of the drain time, or of the log sidecar's flush, and the kill."""


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of supervisord: the caller's, and what supervisord.conf reads from it.

    The process id in it is this one: exec keeps it.
    """
    return {
        **environ,
        "INFERFLOW_WORKERS": str(settings.workers),
        "INFERFLOW_FRONTDOORS": str(settings.frontdoors),
        "INFERFLOW_RUN_DIR": str(settings.run_dir.absolute()),
        "INFERFLOW_STATE_DIR": str(settings.state_dir.absolute()),
        "INFERFLOW_STOP_SECONDS": str(math.ceil(max(settings.drain_s, settings.log.flush_s)) + _STOP_MARGIN),
        "INFERFLOW_SUPERVISOR_PID": str(os.getpid()),
        # `python` in supervisord.conf is this interpreter, whether or not its environment is active.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]),
    }


def _append_to_stdout() -> None:
    """Have all writes to standard output go to its end.

    supervisord opens it once more for each process; with a file (`> out`) each would have a place of its own
    and overwrite what the others wrote.
    """
    flags = fcntl.fcntl(1, fcntl.F_GETFL)
    fcntl.fcntl(1, fcntl.F_SETFL, flags | os.O_APPEND)


def main() -> NoReturn:
    """Run the pod in the foreground, as supervisord. Exits with 2 for what must be set right first."""
    try:
        native.check()
        settings = Settings.from_env(os.environ)
        remove_boards(private_directory(settings.run_dir))
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    except (native.StaleError, SettingsError, RunDirError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for warning in misspelt(os.environ):
        print(f"warning: {warning}", file=sys.stderr)
    sys.stderr.flush()
    _append_to_stdout()
    command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(CONF)]
    os.execve(sys.executable, command, environment(settings, os.environ))


def run(_arguments: argparse.Namespace) -> NoReturn:
    """`inferflow up`."""
    main()


if __name__ == "__main__":
    main()
