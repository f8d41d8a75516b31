"""The `inferflow` command: a table of sub-commands, one module each."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cli import config, doctor, logs, pod, probe, status, up, validate

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """One sub-command. `run` gets the parsed arguments and returns the exit code."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    """For commands that read only the environment."""


def _up(_arguments: argparse.Namespace) -> int:
    up.main()


COMMANDS = (
    Command("up", "Start a pod in the foreground: front doors, workers, config sidecar.", _no_arguments, _up),
    Command("restart", pod.RESTART_HELP, pod.add_restart, pod.restart),
    Command("scale", pod.SCALE_HELP, pod.add_scale, pod.scale),
    Command("probe", probe.HELP, probe.add_arguments, probe.run),
    Command("status", status.HELP, status.add_arguments, status.run),
    Command("top", status.TOP_HELP, status.add_top_arguments, status.top),
    Command("doctor", doctor.HELP, doctor.add_arguments, doctor.run),
    Command("config", config.HELP, config.add_arguments, config.run),
    Command("logs", logs.HELP, logs.add_arguments, logs.run),
    Command("validate", validate.HELP, validate.add_arguments, validate.run),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="inferflow", description="Scores rows for online ranking.")
    version = importlib.metadata.version("inferflow")
    parser.add_argument("--version", action="version", version=f"inferflow {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        own = commands.add_parser(command.name, help=command.help, description=command.help)
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns its exit code; 2 for arguments that cannot be used, 130 after Ctrl-C.

    `argv` are the arguments without the program's name; None: those of this process.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `inferflow … | head`: the reader has enough. Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
