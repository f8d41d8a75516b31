"""`inferflow probe` against listeners that answer as a pod does."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.main import main
from tests.frontdoor.process import free_port
from tests.rpc.support import Certificates, make_certificates

READY = {"/health/self": (200, "true"), "/health/ready": (200, '{"ready":true}')}
UNREADY = {"/health/self": (200, "true"), "/health/ready": (503, '{"ready":false,"reason":"no worker"}')}


@contextmanager
def listening(pages: Mapping[str, tuple[int, str]], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answers GETs; the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = pages[self.path.rstrip("?")]
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path)


@pytest.mark.parametrize(
    ("pages", "path", "code"),
    [
        (READY, "/health/ready", 0),
        (READY, "/health/self", 0),
        (UNREADY, "/health/self", 0),
        (UNREADY, "/health/ready", 1),
    ],
)
def test_what_the_front_door_answers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pages: Mapping[str, tuple[int, str]],
    path: str,
    code: int,
) -> None:
    with listening(pages) as port:
        monkeypatch.setenv("APP_PORT", str(port))
        assert main(["probe", path]) == code
    assert capsys.readouterr().out.strip() == pages[path][1]


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("APP_PORT", str(free_port()))
    assert main(["probe"]) == 1
    assert "no answer: ConnectionRefusedError" in capsys.readouterr().out


def test_over_tls(monkeypatch: pytest.MonkeyPatch, certificates: Certificates) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    monkeypatch.setenv("INFERFLOW_TLS_CERT", str(certificates.server))
    monkeypatch.setenv("INFERFLOW_TLS_KEY", str(certificates.server_key))
    with listening(READY, tls) as port:
        monkeypatch.setenv("APP_PORT", str(port))
        assert main(["probe"]) == 0


@pytest.mark.parametrize(
    ("version", "path", "code"),
    [(7, "/health/ready", 0), (0, "/health/ready", 1), (None, "/health/ready", 1), (0, "/health/self", 0)],
)
def test_where_clients_need_a_certificate_the_admin_port_is_asked(
    monkeypatch: pytest.MonkeyPatch, version: int | None, path: str, code: int
) -> None:
    for variable in ("INFERFLOW_TLS_CERT", "INFERFLOW_TLS_KEY", "INFERFLOW_TLS_CLIENT_CA"):
        monkeypatch.setenv(variable, "/not/read")
    with listening({"/status": (200, json.dumps({"workers": [{"version": version}]}))}) as port:
        monkeypatch.setenv("INFERFLOW_ADMIN_PORT", str(port))
        assert main(["probe", path]) == code
