"""The whole pod and its upstreams as processes, for tests of the whole. Nothing of them may stay behind."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from tests.frontdoor.process import PATIENCE, ROOT, eventually, free_port
from tests.inprocess import RecordedCall

__all__ = ["FIRST_START", "Load", "Pod", "UpstreamProcess", "gone"]

FIRST_START = 300.0
"""Seconds for a pod to become ready: a worker may have to compile its kernels first."""
OURS = re.compile("(APP|DAG|ETCD|EXTERNAL_SERVICE|IN_MEMORY|INFERFLOW|KAFKA|METRIC|NUMERIX|TELEGRAF)_")


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _spawn(
    module: str, *arguments: str, environ: Mapping[str, str], cwd: Path, output: Any
) -> subprocess.Popen[str]:
    """Runs a module as a process that ends when this one does, however that is."""
    return subprocess.Popen(
        [sys.executable, "-m", "demo.child", str(os.getpid()), module, *arguments],
        cwd=cwd,
        env={**environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the tests, which stop it in order
    )


class UpstreamProcess:
    """`tests.upstreams` as a process. It can be killed and started again on its port."""

    def __init__(self, config_dir: Path) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="upstreams-", dir="/tmp"))
        self._config_dir = config_dir
        self._record = self._home / "calls.jsonl"
        self._seen = 0
        self.port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._home)

    def start(self) -> None:
        """Serves on the same port as before; the first time on any free one."""
        self._popen = _spawn(
            "tests.upstreams",
            str(self.port),
            str(self._config_dir),
            "--record",
            str(self._record),
            environ=os.environ,
            cwd=ROOT,
            output=subprocess.PIPE,
        )
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        announced = re.search(r"on port (\d+)", line)
        assert announced, line + self._popen.stdout.read()
        self.port = int(announced[1])

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate(timeout=PATIENCE)

    def take_calls(self) -> list[RecordedCall]:
        """The calls since the last time. A call is recorded before it is answered."""
        lines = self._record.read_bytes().splitlines()
        new, self._seen = lines[self._seen :], len(lines)
        return [_recorded(json.loads(line)) for line in new]

    def __repr__(self) -> str:
        return f"<UpstreamProcess {self._popen.pid} on port {self.port}>"


def _recorded(line: Mapping[str, Any]) -> RecordedCall:
    return RecordedCall(line["path"], line["status"], line["metadata"], base64.b64decode(line["request"]))


class Pod:
    """What `python -m cli.up` starts, on free ports, in a directory of its own.

    As a context manager it is ready when the body begins. At the end it is stopped by SIGTERM, and whatever it
    leaves behind is an error: a process, a socket, shared memory, requests in the books, errors in the log
    (but those whose message is among `expected_errors`).
    """

    def __init__(
        self,
        configs: Mapping[str, bytes],
        *,
        expressions: Mapping[str, str] | None = None,
        upstreams: int = 1,
        expected_errors: Sequence[str] = (),
        **environ: str,
    ) -> None:
        """`upstreams`: port of all three. Further settings are environment variables."""
        # Short: the path of a Unix socket has 107 bytes at most.
        self.home = Path(tempfile.mkdtemp(prefix="pod-", dir="/tmp"))
        self.run_dir = self.home / "run"
        self.port = free_port()
        self.expected_errors = list(expected_errors)
        for part in ("config-map", "expression-config"):
            (self.home / "configs" / part).mkdir(parents=True)
        for name, text in configs.items():
            self.write_config(name, text)
        for name, expression in (expressions or {}).items():
            path = self.home / "configs" / "expression-config" / f"{name}.json"
            path.write_text(json.dumps({"expression": expression}))
        clean = {name: text for name, text in os.environ.items() if not OURS.match(name)}
        self.environ = {**clean, **self._settings(upstreams), **environ}
        self._output = (self.home / "log").open("ab")
        self._popen: subprocess.Popen[str] | None = None
        self._seen: dict[int, str] = {}  # every process of it, and its title
        self._named_memory: set[Path] = set()  # all that its processes have ever mapped
        self._stopped = False
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )

    def _settings(self, upstreams: int) -> dict[str, str]:
        port = str(upstreams)
        return {
            "APP_NAME": "golden",
            "APP_PORT": str(self.port),
            "INFERFLOW_HOST": "127.0.0.1",
            "INFERFLOW_ADMIN_PORT": str(free_port()),
            "INFERFLOW_CONFIG_DIR": "configs",
            "INFERFLOW_DRAIN_SECONDS": "10",
            "INFERFLOW_PIN": "false",  # the machine is shared with the tests themselves
            "INFERFLOW_WORKERS": "1",
            "EXTERNAL_SERVICE_ONFS_FS_HOST": "127.0.0.1",
            "EXTERNAL_SERVICE_ONFS_FS_PORT": port,
            "EXTERNAL_SERVICE_ONFS_FS_BATCH_SIZE": "5",
            "EXTERNAL_SERVICE_ONFS_FS_CALLER_ID": "caller",
            "EXTERNAL_SERVICE_ONFS_FS_CALLER_TOKEN": "token",
            "EXTERNAL_SERVICE_ONFS_FS_DEAD_LINE": "2000",
            "EXTERNAL_SERVICE_PREDATOR_PORT": port,
            "EXTERNAL_SERVICE_PREDATOR_CALLER_ID": "caller",
            "EXTERNAL_SERVICE_PREDATOR_CALLER_TOKEN": "token",
            "NUMERIX_CLIENT_V1_HOST": "127.0.0.1",
            "NUMERIX_CLIENT_V1_PORT": port,
            "NUMERIX_CLIENT_V1_BATCHSIZE": "5",
        }

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._stopped:
                code = self.stop()
                if error is None:
                    self.check_nothing_left(code)
        finally:
            if error is not None:
                print(self.text())
            self.discard()

    # --- its life

    @property
    def pid(self) -> int:
        """Of supervisord."""
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        self._popen = _spawn("cli.up", environ=self.environ, cwd=self.home, output=self._output)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self._popen is not None and self._popen.poll() is None, self.text()
            return self.ready()[0] == 200

        eventually(ready, "the pod is ready", self.text, FIRST_START)
        self.processes()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal to supervisord; returns its exit code when it and all its processes have ended."""
        assert self._popen is not None
        self.processes()
        self._popen.send_signal(number)
        return self.wait_stopped()

    def wait_stopped(self) -> int:
        """The exit code of supervisord, when all processes have ended."""
        assert self._popen is not None
        self.channel.close()
        code = self._popen.wait(PATIENCE)
        for pid, title in self._seen.items():
            eventually(lambda pid=pid: gone(pid), f"{title} has ended", self.text)  # type: ignore[misc]
        self._stopped = True
        return code

    def check_nothing_left(self, code: int = 0) -> None:
        """After a stop by SIGTERM."""
        assert code == 0, self.text()
        left = [path.name for path in self.run_dir.iterdir()]
        assert left == [], left
        assert f":{self.port}" not in Path("/proc/net/unix").read_text()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            try:
                connection.connect()
            except ConnectionRefusedError:
                pass
            else:
                raise AssertionError(f"port {self.port} is still served")
        assert not [path for path in self._named_memory if path.exists()]
        for books in self.logged("stopped"):
            assert (books["in_flight"], books["held_bytes"], books["streams"]) == (0, 0, 0)
        assert self.errors() == []

    def discard(self) -> None:
        """Ends and removes everything, whatever state it is in."""
        self.channel.close()
        if self._popen is not None and self._popen.poll() is None:
            self.stop(signal.SIGKILL)  # its processes end with it
        self._output.close()
        shutil.rmtree(self.home)

    # --- its processes

    def processes(self) -> dict[str, int]:
        """Title → id of every process of the pod but supervisord. What is in named shared memory is noted."""
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
                if parent != str(self.pid):
                    continue
                found[(directory / "cmdline").read_text().rstrip("\0")] = int(directory.name)
                named = re.findall(r"/dev/shm/.*", (directory / "maps").read_text())
                self._named_memory.update(map(Path, named))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
        self._seen.update({pid: title for title, pid in found.items()})
        return found

    def kill(self, title: str) -> int:
        """Kills the process with this title (`inferflow: worker 0`); returns its id when it has ended."""
        pid = self.processes()[title]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: gone(pid), f"{title} has ended")
        return pid

    # --- its configs

    def write_config(self, name: str, text: bytes) -> None:
        """Writes a config as deployment tools do: whole, by renaming."""
        path = self.home / "configs" / "config-map" / f"{name}.json"
        path.with_suffix(".new").write_bytes(text)
        path.with_suffix(".new").rename(path)

    # --- its clients

    def method(self, rpc: str) -> Any:
        """The callable of one unary method; requests and responses are bytes."""
        return self.channel.unary_unary(rpc)

    def call(
        self,
        rpc: str,
        body: bytes,
        *,
        timeout: float | None = PATIENCE,
        metadata: Mapping[str, str] | None = None,
    ) -> bytes:
        """The response. Raises grpc.RpcError."""
        answer: bytes = self.method(rpc)(body, timeout=timeout, metadata=list((metadata or {}).items()))
        return answer

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET, by curl."""
        run = subprocess.run(
            ["curl", "-s", "-w", "\n%{http_code}", f"http://127.0.0.1:{self.port}{path}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        body, _, status = run.stdout.rpartition("\n")
        return int(status), body

    def admin(self, path: str, *, accept: str = "*/*") -> str:
        """The body of a GET from the admin port."""
        port = int(self.environ["INFERFLOW_ADMIN_PORT"])
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as client:
            client.request("GET", path, headers={"Accept": accept})
            response = client.getresponse()
            body = response.read().decode()
            assert response.status == 200, body
            return body

    def ready(self) -> tuple[int, dict[str, Any]]:
        """Status and document of /health/ready; (0, {}) while nobody listens."""
        status, body = self.get("/health/ready")
        return status, json.loads(body) if status else {}

    # --- its log

    def text(self) -> str:
        return (self.home / "log").read_text()

    def logs(self) -> list[dict[str, Any]]:
        """The lines that its processes wrote; those of supervisord are no JSON."""
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def logged(self, message: str) -> list[dict[str, Any]]:
        """The lines with this message."""
        return [line for line in self.logs() if line["message"] == message]

    def errors(self) -> list[dict[str, Any]]:
        """The lines that tell of errors, but for expected ones."""
        bad = [line for line in self.logs() if line["level"] in ("error", "critical")]
        return [line for line in bad if not any(text in line["message"] for text in self.expected_errors)]

    def __repr__(self) -> str:
        return f"<Pod on port {self.port} in {self.home}, processes {self._seen}>"


class Load:
    """Clients that ask one question again and again, until `stop`."""

    def __init__(self, ask: Callable[[], object], clients: int) -> None:
        self.answers = 0
        self.errors: list[BaseException] = []
        self._ask = ask
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._ask()
            except (grpc.RpcError, AssertionError) as error:
                with self._lock:
                    self.errors.append(error)
            else:
                with self._lock:
                    self.answers += 1

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def __repr__(self) -> str:
        return f"<Load {len(self._threads)} clients, {self.answers} answers, {len(self.errors)} errors>"
