"""Certificates, names and ALPN."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from rpc.client import Channel, ChannelSettings
from rpc.server import HttpResponse, Limits, Server
from rpc.status import RpcError
from rpc.tls import client_context, server_context
from tests.rpc.support import PATIENCE, Certificates, echo, make_certificates, run

ECHO = "/test.Echo/Echo"


def exchange(
    server_tls: ssl.SSLContext | None,
    client_tls: ssl.SSLContext | None,
    *,
    host: str = "localhost",
    authority: str | None = None,
) -> None:
    """One call from a client to a server with those contexts. Raises RpcError when it fails."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        # asyncio reports handshakes that fail on the server's side; that is what some of these tests want.
        loop.set_exception_handler(lambda loop, context: None)
        server = Server({b"/test.Echo/Echo": echo}, tls=server_tls, limits=Limits(preface_seconds=2.0))
        port = await server.listen_tcp("localhost", 0)
        settings = ChannelSettings(connect_seconds=5.0)
        channel = Channel(f"{host}:{port}", tls=client_tls, authority=authority, settings=settings)
        try:
            assert await channel.unary(ECHO, b"x", timeout=PATIENCE) == b"x"
        finally:
            await channel.close()
            await server.close()
            assert server.stats.connections == 0

    run(main, virtual=False)


@pytest.fixture
def serving(certificates: Certificates) -> ssl.SSLContext:
    return server_context(certificates.server, certificates.server_key)


def test_a_trusted_server(certificates: Certificates, serving: ssl.SSLContext) -> None:
    exchange(serving, client_context(ca=certificates.ca))
    exchange(serving, client_context(ca=certificates.ca), host="127.0.0.1")
    exchange(serving, client_context(ca=certificates.ca), host="127.0.0.1", authority="localhost")


def test_a_server_with_another_name(certificates: Certificates, serving: ssl.SSLContext) -> None:
    with pytest.raises(RpcError, match=r"UNAVAILABLE: .*(Hostname mismatch|not valid for)"):
        exchange(serving, client_context(ca=certificates.ca), authority="other.example")


def test_a_server_that_nobody_vouches_for(
    certificates: Certificates, serving: ssl.SSLContext, tmp_path: Path
) -> None:
    others = make_certificates(tmp_path)
    with pytest.raises(RpcError, match=r"UNAVAILABLE: .*certificate verify failed"):
        exchange(serving, client_context(ca=others.ca))
    with pytest.raises(RpcError, match=r"UNAVAILABLE: .*certificate verify failed"):
        exchange(serving, client_context())  # the authorities of the system


def test_clients_with_certificates(certificates: Certificates, tmp_path: Path) -> None:
    strict = server_context(certificates.server, certificates.server_key, client_ca=certificates.ca)
    known = client_context(ca=certificates.ca, cert=certificates.client, key=certificates.client_key)
    exchange(strict, known)
    with pytest.raises(RpcError, match="UNAVAILABLE"):
        exchange(strict, client_context(ca=certificates.ca))
    others = make_certificates(tmp_path)
    stranger = client_context(ca=certificates.ca, cert=others.client, key=others.client_key)
    with pytest.raises(RpcError, match="UNAVAILABLE"):
        exchange(strict, stranger)


def test_a_peer_that_does_not_negotiate_h2(certificates: Certificates) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(certificates.server, certificates.server_key)
    with pytest.raises(RpcError, match="does not speak HTTP/2"):
        exchange(old, client_context(ca=certificates.ca))


def test_plaintext_meets_tls(certificates: Certificates, serving: ssl.SSLContext) -> None:
    with pytest.raises(RpcError, match="UNAVAILABLE"):
        exchange(serving, None)
    with pytest.raises(RpcError, match="UNAVAILABLE"):
        exchange(None, client_context(ca=certificates.ca))


def test_old_versions_are_refused(certificates: Certificates, serving: ssl.SSLContext) -> None:
    old = client_context(ca=certificates.ca)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    exchange(serving, old)
    assert serving.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"cert": "none.pem", "key": "none.key"}, FileNotFoundError, "none.pem or none.key"),
        ({"ca": "none.pem"}, FileNotFoundError, "none.pem"),
        ({"cert": "none.pem"}, ValueError, "must be given together"),
        ({"ca": "EMPTY"}, ssl.SSLError, "certificates .*empty.pem"),
        ({"cert": "EMPTY", "key": "EMPTY"}, ssl.SSLError, "certificate .*empty.pem with key"),
    ],
)
def test_files_that_are_wrong(
    arguments: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    given = {name: str(empty) if value == "EMPTY" else value for name, value in arguments.items()}
    with pytest.raises(error, match=text):
        client_context(**given)


def test_a_drain_serves_a_connection_that_nobody_has_accepted(
    certificates: Certificates, serving: ssl.SSLContext
) -> None:
    async def main() -> None:
        server = Server({}, http1={"/health": lambda request: HttpResponse(b"true")}, tls=serving)
        port = await server.listen_tcp("127.0.0.1", 0)
        raw = socket.create_connection(("127.0.0.1", port))
        draining = asyncio.ensure_future(server.drain(30))  # the loop has not turned yet
        context = client_context(ca=certificates.ca)
        context.set_alpn_protocols(["http/1.1"])
        raw.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=raw, ssl=context, server_hostname="localhost")
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.read()).endswith(b"true")
        writer.close()
        assert await draining == 0

    run(main, virtual=False)
