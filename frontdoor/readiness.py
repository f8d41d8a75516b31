"""What this front door says of itself: over HTTP/1.1 to probes, over grpc.health.v1 to clients.

Alive (`GET /health/self`) is not ready (`GET /health/ready`, and SERVING): ready needs a worker that is, with
an active config version, and ends with the first moment of a drain. The detail also tells what became of the rows
of the inference log, as the log sidecar has published it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from frontdoor.door import FrontDoor
from rpc.health import Health
from rpc.server import HttpHandler, HttpRequest, HttpResponse
from shared import crashes
from shared.board_file import Published, read_board
from shared.metrics import LOG_DROPPED, LOG_ROWS

__all__ = ["Readiness"]

_LOG_SIDECAR: Final = "log"  # the name of its board
_JSON = "application/json"


class Readiness:
    """Follows the workers of `door` and keeps `health` in step, for the whole server and for `services`.

    `run_dir`: where supervisord keeps the books of crashes, and the log sidecar its board.
    """

    def __init__(self, door: FrontDoor, health: Health, services: tuple[str, ...], run_dir: Path) -> None:
        self._door = door
        self._health = health
        self._services = ("", *services)
        self._draining = False
        self._run_dir = run_dir
        self._logs: dict[str, object] = {}
        door.on_readiness = self.update
        self.update()

    def __repr__(self) -> str:
        return f"<Readiness: {self.reason() or 'ready'}>"

    def reason(self) -> str:
        """Why this door is not ready; empty when it is."""
        if self._draining:
            return "the front door is shutting down"
        dispatcher = self._door.dispatcher
        return "" if dispatcher.serving_version is not None else dispatcher.unready_reason()

    def update(self) -> None:
        """Something may have changed."""
        serving = not self.reason()
        for service in self._services:
            self._health.set(service, serving)

    def drain(self) -> None:
        """From now on and for ever not ready."""
        self._draining = True
        self.update()

    def http_handlers(self) -> Mapping[str, HttpHandler]:
        """The handlers of the paths for probes."""
        return {"/health/self": _alive, "/health/ready": self._ready}

    def _ready(self, _request: HttpRequest) -> HttpResponse:
        reason = self.reason()
        loops = crashes.looping(crashes.read(self._run_dir))
        if reason:
            return _json({"ready": False, "reason": "; ".join([reason, *loops])}, 503)
        dispatcher = self._door.dispatcher
        detail: dict[str, object] = {"ready": True, "version": dispatcher.serving_version}
        notices = [*dispatcher.notices(), *loops]
        if notices:
            detail["notice"] = "; ".join(notices)
        board = read_board(self._run_dir, _LOG_SIDECAR)
        if board is not None:  # else it is being written: what was told last is a second old
            self._logs = _logs(board)
        if self._logs:
            detail["logs"] = self._logs
        return _json(detail, 200)


def _logs(board: Published) -> dict[str, object]:
    """Rows of the inference log by what became of them; empty when nothing is logged."""
    rows = {record.labels[0]: int(record.value) for record in board.records if record.metric is LOG_ROWS}
    if not rows:
        return {}
    dropped = {
        record.labels[0]: int(record.value) for record in board.records if record.metric is LOG_DROPPED
    }
    return {**rows, "dropped": dropped}


def _alive(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"true", content_type=_JSON)


def _json(document: object, status: int) -> HttpResponse:
    return HttpResponse(orjson.dumps(document) + b"\n", status, _JSON)
