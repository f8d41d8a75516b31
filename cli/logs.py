"""`inferflow logs`: a table of what can be done with inference logs."""

from __future__ import annotations

import argparse

from cli.commands import Command, add_commands

__all__ = ["add_arguments"]

_COMMANDS = (
    Command("cat", "Show the rows of inference logs, typed, from files or from Kafka.", "cli.log_cat"),
    Command(
        "status",
        "What became of the rows that were to be logged: acknowledged, dropped and why, still held.",
        "cli.log_status",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands."""
    add_commands(parser, _COMMANDS)
