"""The admin port: HTTP/1.1 with JSON, for the `inferflow config` commands, for curl and for dashboards.

| request | does |
|---|---|
| GET /metrics | what all processes of the pod have counted, for Prometheus |
| GET /status | versions of the pod and of each worker |
| GET /config | every key: state, version, since when, what is wrong with the newest |
| GET /config/show, /config/history ?key= | one key |
| GET /config/diff ?key= &old= &new= | what changes between two versions |
| POST /config/check ?key=, text as body | what a put would do |
| POST /config/put ?key= &revision=, text as body | writes to the source by compare-and-swap |
| POST /config/rollback ?key= &to= &write=1 | puts an older version back |
| POST /config/pin, /config/unpin ?key= | keeps what is served; ends that, or a rollback |

It has no authentication, so it is bound to this machine unless it is told otherwise, and even then it takes POSTs
from this machine only: whoever may read the metrics must not be able to change configs. A browser can be made to
send a POST there by any web page: requests with an Origin are refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import h11
import orjson

from sidecar.exposition import Page, page
from sidecar.source import MAX_DOCUMENT_BYTES
from sidecar.steering import Steering, SteeringError

__all__ = ["ROUTES", "Admin", "is_this_machine"]

log = logging.getLogger(__name__)

IDLE: Final = 30.0
"""Seconds that a client may take for a request, or for reading an answer."""
MAX_CONNECTIONS: Final = 32
_READ_BYTES: Final = 64 << 10


class _Request(NamedTuple):
    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    accept: str


class _Refused(Exception):
    """A request that gets no further than this port."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


_Action = Callable[[Steering, _Request], Awaitable[dict[str, Any]]]


class Admin:
    """The listener. Belongs to the loop's thread."""

    def __init__(self, steering: Steering, run_dir: Path) -> None:
        """`run_dir`: where the processes of the pod publish what they count."""
        self.port = 0
        """Where it listens; 0: it does not."""
        self._steering = steering
        self._run_dir = run_dir
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Admin port {self.port}, {len(self._clients)} connections>"

    async def listen(self, host: str, port: int) -> None:
        """Listens, if the port is to be had: serving requests does not depend on it."""
        try:
            self._server = await asyncio.start_server(self._connected, host, port)
        except OSError as error:
            log.warning("no admin port", extra={"host": host, "port": port, "reason": str(error)})
            return
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("admin port", extra={"host": host, "port": self.port})

    async def close(self) -> None:
        """Ends listening and all connections."""
        if self._server is not None:
            self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self.port = 0

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        assert client is not None  # start_server runs this as a task
        if len(self._clients) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._clients.add(client)
        try:
            await self._converse(reader, writer)
        except (TimeoutError, ConnectionError):
            pass  # the client has gone, or does not go on
        except asyncio.CancelledError:
            if not self._clients:  # pragma: no cover - only `close` cancels
                raise
        finally:
            self._clients.discard(client)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers requests until the connection ends."""
        machine = h11.Connection(h11.SERVER, max_incomplete_event_size=16 << 10)
        while True:
            try:
                async with asyncio.timeout(IDLE):
                    request = await _read(machine, reader)
                if request is None:
                    return
                if request.method == "POST" and not is_this_machine(writer.get_extra_info("peername")[0]):
                    raise _Refused(
                        403, "changes are taken from the pod itself only: `kubectl exec`, `port-forward`"
                    )
                status, answer = await self._answer(request)
            except h11.RemoteProtocolError as error:
                status, answer = error.error_status_hint, {"error": str(error)}
            except _Refused as error:
                status, answer = error.status, {"error": str(error)}
            if machine.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                return
            writer.write(_response(machine, status, answer))
            async with asyncio.timeout(IDLE):
                await writer.drain()
            if not _may_go_on(machine):
                return
            machine.start_next_cycle()

    async def _answer(self, request: _Request) -> tuple[int, dict[str, Any] | Page]:
        if (request.method, request.path) == ("GET", "/metrics"):
            # On a thread: thousands of series are some 100 ms of work.
            return 200, await asyncio.to_thread(page, self._run_dir, request.accept)
        action = ROUTES.get((request.method, request.path))
        if action is None:
            known = [method for method, path in ROUTES if path == request.path]
            reason = f"{request.path}: only {known[0]}" if known else f"no such path: {request.path}"
            return (405 if known else 404), {"error": reason}
        try:
            return 200, await action(self._steering, request)
        except SteeringError as error:
            return error.status, {"error": str(error), **error.details}
        except _Refused as error:
            return error.status, {"error": str(error)}
        except Exception as error:
            log.exception("admin request failed", extra={"path": request.path})
            return 500, {"error": f"{type(error).__name__}: {error}"}


def _may_go_on(machine: h11.Connection) -> bool:
    """Whether another request can follow on this connection."""
    return machine.our_state is h11.DONE and machine.their_state is h11.DONE


def is_this_machine(address: str) -> bool:
    """Whether a peer's address is a loopback one. A pod that is reached by `port-forward` sees those, too."""
    peer = ipaddress.ip_address(address.partition("%")[0])
    mapped = peer.ipv4_mapped if isinstance(peer, ipaddress.IPv6Address) else None
    return (mapped or peer).is_loopback


async def _read(machine: h11.Connection, reader: asyncio.StreamReader) -> _Request | None:
    """The next request; None at the end of the connection. Raises h11.RemoteProtocolError, _Refused."""
    head: h11.Request | None = None
    body: list[bytes] = []
    size = 0
    while True:
        match machine.next_event():
            case h11.NEED_DATA:
                if machine.they_are_waiting_for_100_continue:
                    raise _Refused(417, "send the body at once, without Expect")
                machine.receive_data(await reader.read(_READ_BYTES))
            case h11.Request() as event:
                head = event
                if any(name == b"origin" for name, _ in event.headers):
                    raise _Refused(403, "not for web pages")
            case h11.Data() as event:
                body.append(bytes(event.data))
                size += len(event.data)
                if size > MAX_DOCUMENT_BYTES:
                    raise _Refused(413, f"the body is longer than {MAX_DOCUMENT_BYTES} bytes")
            case h11.EndOfMessage():
                assert head is not None  # h11 gives events in their order
                path, _, query = head.target.decode("latin-1").partition("?")
                pairs = dict(parse_qsl(query, keep_blank_values=True))
                accept = next((value for name, value in head.headers if name == b"accept"), b"").decode(
                    "latin-1"
                )
                return _Request(head.method.decode("latin-1"), path, pairs, b"".join(body), accept)
            case _:
                return None


def _response(machine: h11.Connection, status: int, answer: dict[str, Any] | Page) -> bytes:
    if isinstance(answer, Page):
        body, kind = answer
    else:
        body, kind = orjson.dumps(answer, option=orjson.OPT_INDENT_2) + b"\n", "application/json"
    headers = [("content-type", kind), ("content-length", str(len(body)))]
    parts = [
        machine.send(h11.Response(status_code=status, headers=headers)),
        machine.send(h11.Data(data=body)),
        machine.send(h11.EndOfMessage()),
    ]
    return b"".join(part for part in parts if part)


# ---------------------------------------------------------------- routes


def _key(request: _Request) -> str:
    key = request.query.get("key", "")
    if not key:
        raise _Refused(400, "which one? ?key=<model_config_id, or key of the config tree>")
    return key


async def _status(steering: Steering, _request: _Request) -> dict[str, Any]:
    return steering.status()


async def _overview(steering: Steering, _request: _Request) -> dict[str, Any]:
    return steering.overview()


async def _show(steering: Steering, request: _Request) -> dict[str, Any]:
    return steering.show(_key(request))


async def _history(steering: Steering, request: _Request) -> dict[str, Any]:
    return steering.history(_key(request))


async def _diff(steering: Steering, request: _Request) -> dict[str, Any]:
    return steering.diff(_key(request), request.query.get("old", ""), request.query.get("new", ""))


async def _check(steering: Steering, request: _Request) -> dict[str, Any]:
    return steering.check(_key(request), request.body)


async def _put(steering: Steering, request: _Request) -> dict[str, Any]:
    revision = request.query.get("revision", "")
    if not revision.isdecimal():
        raise _Refused(400, f"revision {revision!r}: must be the number that /config/check gave")
    return await steering.put(_key(request), request.body, int(revision))


async def _rollback(steering: Steering, request: _Request) -> dict[str, Any]:
    write = request.query.get("write", "") == "1"
    return await steering.rollback(_key(request), request.query.get("to", ""), write=write)


async def _pin(steering: Steering, request: _Request) -> dict[str, Any]:
    return steering.pin(_key(request))


async def _unpin(steering: Steering, request: _Request) -> dict[str, Any]:
    return steering.unpin(_key(request))


ROUTES: Mapping[tuple[str, str], _Action] = {
    ("GET", "/status"): _status,
    ("GET", "/config"): _overview,
    ("GET", "/config/show"): _show,
    ("GET", "/config/history"): _history,
    ("GET", "/config/diff"): _diff,
    ("POST", "/config/check"): _check,
    ("POST", "/config/put"): _put,
    ("POST", "/config/rollback"): _rollback,
    ("POST", "/config/pin"): _pin,
    ("POST", "/config/unpin"): _unpin,
}
