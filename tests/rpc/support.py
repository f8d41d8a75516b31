"""Worlds to run the same test in: memory, Unix socket, TCP, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rpc.calls import Handler, ServerCall
from rpc.client import Channel, ChannelSettings
from rpc.server import HttpHandler, Limits, Server, StreamHandler
from rpc.status import Status
from rpc.testing import MemoryListener, VirtualLoop
from rpc.tls import client_context, server_context

PATIENCE = 30.0  # seconds for anything that should happen soon, on a slow machine too


def run(main: Callable[[], Coroutine[Any, Any, None]], *, virtual: bool = True) -> None:
    """Runs `main()` on a virtual loop or on uvloop. Fails when the loop was told of an unhandled error."""
    errors: list[dict[str, Any]] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # grpc.aio has one poller for all loops of a process, and its wake-ups reach loops of earlier tests too.
        if "PollerCompletionQueue" not in context["message"]:
            errors.append(context)

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(note)
        await main()

    factory = VirtualLoop if virtual else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(guarded())
    assert not errors, errors


async def until(condition: Callable[[], bool]) -> None:
    """Returns when `condition()` holds. Fails after PATIENCE seconds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the conditions are plain state of either side
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def listening(server: Server) -> AsyncIterator[str]:
    """Has `server` listen on TCP and yields the target; closes it also when the test fails.

    (What a failed test leaves open is warned of when uvloop closes; as warnings are errors, that would hang.)
    """
    port = await server.listen_tcp("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.close()


# -- handlers ----------------------------------------------------------------------------------------------


def echo(call: ServerCall) -> None:
    call.respond(call.body)


@dataclass
class Holder:
    """A handler that keeps its calls."""

    calls: list[ServerCall] = field(default_factory=list)
    cancelled: list[ServerCall] = field(default_factory=list)

    def __call__(self, call: ServerCall) -> None:
        self.calls.append(call)
        call.on_cancel = lambda: self.cancelled.append(call)


# -- certificates ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, a server's pair for localhost and 127.0.0.1, a client's pair."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_certificates(directory: Path) -> Certificates:
    """Writes fresh certificates, valid for a day."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
    ca = _sign(ca_name, ca_name, ca_key, ca_key, authority=True)
    files = {"ca.pem": ca.public_bytes(serialization.Encoding.PEM)}
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        signed = _sign(subject, ca_name, key, ca_key, authority=False)
        files[f"{name}.pem"] = signed.public_bytes(serialization.Encoding.PEM)
        files[f"{name}.key"] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    for file, contents in files.items():
        (directory / file).write_bytes(contents)
    return Certificates(
        directory / "ca.pem",
        directory / "server.pem",
        directory / "server.key",
        directory / "client.pem",
        directory / "client.key",
    )


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


# -- worlds ------------------------------------------------------------------------------------------------


class Served:
    """A server and how to reach it."""

    def __init__(self, server: Server, target: str, **channel: Any) -> None:
        self.server = server
        self.target = target
        self._channel = channel
        self._channels: list[Channel] = []

    def channel(self, settings: ChannelSettings | None = None, **more: Any) -> Channel:
        """A new channel to the server, closed with it."""
        channel = Channel(self.target, settings=settings, **(self._channel | more))
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.close()


class World:
    """One way to join clients and servers."""

    def __init__(self, kind: str, directory: Path, certificates: Certificates | None) -> None:
        self.kind = kind
        self._directory = directory
        self._certificates = certificates

    @property
    def virtual(self) -> bool:
        return self.kind == "memory"

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        run(main, virtual=self.virtual)

    @contextlib.asynccontextmanager
    async def serve(
        self,
        handlers: Mapping[bytes, Handler],
        *,
        stream_handlers: Mapping[bytes, StreamHandler] | None = None,
        http1: Mapping[str, HttpHandler] | None = None,
        limits: Limits | None = None,
    ) -> AsyncIterator[Served]:
        """Serves until the end of the block; then nothing may be left open on the server."""
        tls: ssl.SSLContext | None = None
        if self.kind == "tls":
            assert self._certificates is not None
            tls = server_context(self._certificates.server, self._certificates.server_key)
        server = Server(handlers, stream_handlers=stream_handlers, http1=http1, limits=limits, tls=tls)
        served = await self._listen(server)
        try:
            yield served
        finally:
            await served.close()
        assert server.stats.connections == 0
        assert server.stats.streams == 0

    async def _listen(self, server: Server) -> Served:
        if self.kind == "memory":
            listener = MemoryListener(server.connection)
            return Served(server, "127.0.0.1:1", connector=listener.connect)
        if self.kind == "unix":
            path = self._directory / "s.sock"
            await server.listen_unix(path)
            return Served(server, f"unix:{path}")
        port = await server.listen_tcp("127.0.0.1", 0)
        if self.kind == "tls":
            assert self._certificates is not None
            return Served(server, f"localhost:{port}", tls=client_context(ca=self._certificates.ca))
        return Served(server, f"127.0.0.1:{port}")


KINDS = ("memory", "unix", "tcp", "tls")
OK = Status.OK
