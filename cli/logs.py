"""`inferflow logs`: a table of what can be done with inference logs, one module each."""

from __future__ import annotations

import argparse

from cli import log_cat, log_status

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Inference logs: show their rows; say what became of the rows that were to be logged."

_COMMANDS = (("cat", log_cat), ("status", log_status))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands and their arguments."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in _COMMANDS:
        own = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(own)
        own.set_defaults(act=module.run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    code: int = arguments.act(arguments)
    return code
