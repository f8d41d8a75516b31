"""Tables of sub-commands whose modules are imported when they are asked for.

Some of them import libraries that take a second; nobody who asks for another one waits for that.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["Command", "add_commands"]


class Command(NamedTuple):
    """One sub-command, and the functions of its module.

    `add_arguments(parser)` declares what it is given, `run(arguments)` does it and returns the exit code. A name
    that is empty: it takes no arguments, or has sub-commands of its own that run.
    """

    name: str
    help: str
    module: str
    add_arguments: str = "add_arguments"
    run: str = "run"


class _Parser(argparse.ArgumentParser):
    """The parser of one sub-command, which declares its arguments when it is about to parse them."""

    def __init__(self, *, command: Command | None = None, **options: Any) -> None:
        """None: one that a module declares for itself; argparse makes it of its parent's class."""
        super().__init__(**options)
        self._command = command

    def parse_known_args(  # type: ignore[override]  # the stubs tell of two overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        command, self._command = self._command, None
        if command is not None:
            module = importlib.import_module(command.module)
            if command.run:
                self.set_defaults(run=getattr(module, command.run))
            if command.add_arguments:
                getattr(module, command.add_arguments)(self)
        return super().parse_known_args(args, namespace)


def add_commands(parser: argparse.ArgumentParser, commands: Iterable[Command]) -> None:
    """Declares sub-commands, one of which must be given; the parsed arguments have its `run`."""
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for command in commands:
        parsers.add_parser(command.name, help=command.help, description=command.help, command=command)
