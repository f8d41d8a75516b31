"""`inferflow probe`: asks the pod for its health as a container platform does, where that cannot ask by itself."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import sys

from shared.settings import Settings, SettingsError

__all__ = ["PATHS", "add_arguments", "probe", "run"]

DETAILS = """\
Asks the serving port, or, when clients of that need a certificate (INFERFLOW_TLS_CLIENT_CA), the admin port:
there, alive is that it answers, and ready that a worker serves a config version.
Exit code: 0 yes, 1 no, 2 wrong arguments or settings."""

PATHS = ("/health/self", "/health/ready")
TIMEOUT = 4.0
"""Seconds: less than a platform waits for the command."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DETAILS
    parser.add_argument(
        "path", nargs="?", choices=PATHS, default=PATHS[1], metavar="PATH", help=" or ".join(PATHS)
    )


def run(arguments: argparse.Namespace) -> int:
    """Asks, and prints the answer; returns the exit code."""
    try:
        answered, text = probe(Settings.from_env(os.environ), arguments.path)
    except SettingsError as error:
        print(f"inferflow probe: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if answered else 1


def probe(settings: Settings, path: str) -> tuple[bool, str]:
    """Whether the pod is what `path` asks for, and what it said.

    It may listen on 0.0.0.0 or `::`; connecting to those reaches this machine.
    """
    try:
        if settings.tls.client_ca is not None:
            return _ask_admin(settings, path)
        status, text = _get(_serving(settings), path)
        return status == 200, text
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        return False, f"no answer: {error!r}"


def _ask_admin(settings: Settings, path: str) -> tuple[bool, str]:
    connection = http.client.HTTPConnection(settings.admin_host, settings.admin_port, timeout=TIMEOUT)
    _, text = _get(connection, "/status")
    ready = any(worker["version"] for worker in json.loads(text)["workers"])
    return path != "/health/ready" or ready, text


def _serving(settings: Settings) -> http.client.HTTPConnection:
    if settings.tls.cert is None:
        return http.client.HTTPConnection(settings.host, settings.port, timeout=TIMEOUT)
    # The pod asks itself: whether its certificate names an address that it can be asked on does not matter.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(settings.host, settings.port, timeout=TIMEOUT, context=context)


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()
    finally:
        connection.close()
