"""A real etcd for tests: one node on loopback that can be killed, wiped and compacted."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
"""Seconds after which starting is given up; it takes less than one."""


def binary() -> str:
    """The path of etcd: installed, or unpacked by `make tools`."""
    found = shutil.which("etcd") or shutil.which(ROOT / ".tools" / "etcd" / "usr" / "bin" / "etcd")
    if found is None:
        raise FileNotFoundError("no etcd here: `make tools` gets one")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EtcdServer:
    """A running etcd with its own data directory. `extra` are more of its command-line flags."""

    def __init__(self, *extra: str, scheme: str = "http") -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="etcd-")
        self.data = Path(self._directory.name) / "data"
        self.port = free_port()
        self._peer_port = free_port()
        self.scheme = scheme
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        self.tls: ssl.SSLContext | None = None
        """The ssl.SSLContext for the calls of this class, when etcd wants TLS."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._directory.cleanup()

    @property
    def address(self) -> str:
        """`127.0.0.1:port`; the same after a restart."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> Self:
        """Starts it, and returns when it answers."""
        client = f"{self.scheme}://{self.address}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._process = subprocess.Popen(
            [
                binary(),
                "--data-dir",
                str(self.data),
                "--listen-client-urls",
                client,
                "--advertise-client-urls",
                client,
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                f"default={peer}",
                *self._extra,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()
        return self

    def kill(self) -> None:
        """kill -9; the data stay."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def wipe(self) -> None:
        """Deletes the data of the killed server: the next start is an empty store of the same cluster id."""
        assert self._process is None
        shutil.rmtree(self.data)

    # --- etcd's JSON gateway, so that nothing here depends on the client under test

    def call(self, path: str, token: str = "", **body: Any) -> dict[str, Any]:
        """POSTs to /v3/`path`. Raises urllib.error.URLError, with etcd's reason in `.read()` of an HTTPError."""
        request = urllib.request.Request(
            f"{self.scheme}://{self.address}/v3/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **({"Authorization": token} if token else {})},
        )
        with self._opener().open(request, timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def put(self, key: str, value: str | bytes) -> int:
        """Returns the revision."""
        answer = self.call("kv/put", key=_coded(key), value=_coded(value))
        return int(answer["header"]["revision"])

    def delete(self, key: str) -> None:
        self.call("kv/deleterange", key=_coded(key))

    def put_all(self, entries: dict[str, str]) -> None:
        """All in one transaction: at one revision."""
        puts = [{"requestPut": {"key": _coded(key), "value": _coded(entries[key])}} for key in entries]
        self.call("kv/txn", success=puts)

    def clear(self) -> None:
        """Deletes every key; revisions go on."""
        self.call("kv/deleterange", key=_coded("\0"), range_end=_coded("\0"))

    def revision(self) -> int:
        return int(self.call("kv/range", key=_coded("x"))["header"]["revision"])

    def compact(self) -> None:
        """Forgets all history before the current revision. Nothing when that has been done already."""
        with contextlib.suppress(urllib.error.HTTPError):
            self.call("kv/compaction", revision=str(self.revision()), physical=True)

    def state(self) -> dict[str, bytes]:
        """Everything there is."""
        found = self.call("kv/range", key=_coded("\0"), range_end=_coded("\0"))
        return {
            base64.b64decode(one["key"]).decode(): base64.b64decode(one.get("value", ""))
            for one in found.get("kvs", [])
        }

    def _opener(self) -> urllib.request.OpenerDirector:
        https = urllib.request.HTTPSHandler(context=self.tls)
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), https)

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self._process is not None and self._process.poll() is None, "etcd has ended"
            with contextlib.suppress(OSError):
                self._opener().open(f"{self.scheme}://{self.address}/health", timeout=10).close()
                return
            time.sleep(0.05)
        raise AssertionError(f"etcd does not answer at {self.address}")


def _coded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
