"""`python -m demo`: prepare, start, ask, show, stop. `--keep` leaves it running until Ctrl-C."""

from __future__ import annotations

import argparse
import importlib.metadata
import signal
import sys

from rich.console import Console
from rich.text import Text

from demo.pod import PREFERRED_PORT, DemoError
from demo.story import Story

DAY, ROUTE = "2013-11-27", "LGA-ORD"  # the Wednesday before Thanksgiving
WIDTH = 110  # where there is no terminal to ask


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # "?" for what it cannot show
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    try:
        Story(console, arguments.day, arguments.route, arguments.rows, arguments.port).tell(arguments.keep)
    except KeyboardInterrupt:
        console.print("Stopped.")
        sys.exit(0 if arguments.keep else 130)
    except importlib.metadata.PackageNotFoundError as error:
        _fail(console, f"{error.name} is not installed. `make demo` installs what the demo needs.")
    except DemoError as error:
        _fail(console, str(error))


def _fail(console: Console, message: str) -> None:
    console.print(Text(message, style="bold red"))
    sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Which departures will be late?")
    parser.add_argument("--keep", action="store_true", help="leave the service running until Ctrl-C")
    parser.add_argument("--day", default=DAY, help="a day of November or December 2013 (default %(default)s)")
    parser.add_argument("--route", default=ROUTE, help="origin and destination (default %(default)s)")
    parser.add_argument("--rows", type=int, default=14, help="departures to show (default %(default)s)")
    parser.add_argument(
        "--port",
        type=int,
        default=PREFERRED_PORT,
        help="of the service; another one if it is taken (default %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
