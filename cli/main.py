"""The `inferflow` command: a table of sub-commands."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from cli.commands import Command, add_commands

__all__ = ["COMMANDS", "main"]


COMMANDS = (
    Command(
        "up",
        "Start a pod in the foreground: front doors, workers, config sidecar.",
        "cli.up",
        add_arguments="",
    ),
    Command(
        "restart",
        "Restart processes of a running pod one after another, without losing a request.",
        "cli.pod",
        "add_restart",
        "restart",
    ),
    Command("scale", "Change the number of workers of a running pod.", "cli.pod", "add_scale", "scale"),
    Command(
        "probe", "Ask the pod whether it is alive or ready: for health checks of containers.", "cli.probe"
    ),
    Command(
        "status",
        "What the processes of the pod do: requests, times, in flight, per model and per upstream.",
        "cli.status",
    ),
    Command("top", "The same, live.", "cli.status", "add_top_arguments", "top"),
    Command(
        "doctor",
        "Check the environment, the machine, the configs and every upstream, and say what to do.",
        "cli.doctor",
    ),
    Command("config", "Show what the pod serves; put, compare, roll back and pin versions.", "cli.config"),
    Command(
        "logs",
        "Inference logs: show their rows; say what became of the rows that were to be logged.",
        "cli.logs",
        run="",
    ),
    Command(
        "validate",
        "Check model configs and say everything that is wrong with them, and where.",
        "cli.validate",
    ),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="inferflow", description="Scores rows for online ranking.")
    version = importlib.metadata.version("inferflow")
    parser.add_argument("--version", action="version", version=f"inferflow {version}")
    add_commands(parser, COMMANDS)
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
