"""The demo's processes: feature server, model server and the service, beside whatever else runs here.

Everything has a free port and lives in one temporary directory, so a service that runs on this machine is
not disturbed and nothing stays behind.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.prepare import CONFIGS, Prepared

__all__ = ["Child", "DemoError", "Pod", "service_environment"]

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "demo-token"
CALLER = "inferflow-demo"
PREFERRED_PORT = 18085
DRAIN_SECONDS = 2
STOP_SECONDS = 20.0
START_SECONDS = 60.0
READY_SECONDS = 300.0  # on a first start the worker compiles its kernels
CRASHES = 5  # of processes of the service, before it is given up
_CRASH = b"; not expected)"  # how supervisord writes of one
_LOG_LINES = 15
_OURS = (
    *("APP_", "DAG_", "ETCD_", "EXTERNAL_SERVICE_", "IN_MEMORY_", "INFERFLOW_", "KAFKA_", "METRIC_"),
    *("NUMERIX_", "TELEGRAF_"),
)


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why and what to do."""


class Child:
    """A process of the demo, in a session of its own: Ctrl-C reaches the demo, which stops it in order.

    What it writes goes to a log in the directory; with `announces` the first line of its stdout is for us.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str | Path],
        env: Mapping[str, str],
        directory: Path,
        *,
        announces: bool = False,
    ) -> None:
        self.name = name
        self.log = directory / f"{name.replace(' ', '-')}.log"
        command = [sys.executable, "-m", "demo.child", str(os.getpid()), *arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if announces else log,
                stderr=log,
                env=env,
                cwd=ROOT,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        state = "running" if self.running else f"ended with {self._process.returncode}"
        return f"<Child {self.name}, process {self._process.pid}, {state}>"

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def announcement(self, seconds: float) -> str:
        """The first line that the process prints. Raises DemoError when none comes in time."""
        out = self._process.stdout
        if out is None:
            raise ValueError(f"{self!r} announces nothing")
        if not select.select([out], [], [], seconds)[0]:
            raise self.failure(f"said nothing in {seconds:g} s")
        line = out.readline()
        if not line:
            raise self.failure(f"ended with {self._process.wait()}")
        return line.decode().strip()

    def failure(self, what: str) -> DemoError:
        """An error with the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        said = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
        return DemoError(f"The {self.name} {what}. The end of its log:\n{said}")

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL when it takes longer; what it has started ends with it."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Pod:
    """Feature server, model server and service, started by `with` and stopped at its end.

    `port` serves gRPC, `admin_port` HTTP for operators.
    """

    def __init__(self, prepared: Prepared, port: int = PREFERRED_PORT) -> None:
        self._prepared = prepared
        self._children: list[Child] = []
        self.port = _free_port(port)
        self.admin_port = _free_port(port + 1)
        self.directory = Path(tempfile.mkdtemp(prefix="inferflow-demo-"))

    def __repr__(self) -> str:
        return f"<Pod on port {self.port}: {', '.join(map(repr, self._children)) or 'nothing started'}>"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log_dir(self) -> Path:
        """Where inference logs are written."""
        return self.directory / "inference-logs"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C shall not leave processes
        try:
            for child in reversed(self._children):
                child.stop(STOP_SECONDS)
            shutil.rmtree(self.directory, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def start(self, report: Callable[[str], None]) -> None:
        """Start everything and wait until the service is ready; `report` is told what is waited for.

        Raises DemoError when something ends or takes too long.
        """
        report("starting feature server and model server")
        features = self._upstream(
            "feature server", "demo.feature_server", self._prepared.tables, "--token", TOKEN
        )
        models = self._upstream("model server", "demo.model_server", self._prepared.models)
        ports = [int(child.announcement(START_SECONDS)) for child in (features, models)]
        report("starting the service")
        env = service_environment(os.environ, self, *ports)
        self._children.append(Child("service", ["cli.up"], env, self.directory))
        self._wait_ready(self._children[-1], report)

    def failure(self, what: str) -> DemoError:
        """An error of the service, with the end of its log. It must have been started."""
        return self._children[-1].failure(what)

    def _upstream(self, name: str, module: str, *arguments: str | Path) -> Child:
        child = Child(name, [module, *arguments], os.environ, self.directory, announces=True)
        self._children.append(child)
        return child

    def _wait_ready(self, service: Child, report: Callable[[str], None]) -> None:
        end = time.monotonic() + READY_SECONDS
        reason = ""
        while (told := self._not_ready()) is not None:
            if not service.running:
                raise service.failure("ended")
            if service.log.read_bytes().count(_CRASH) > CRASHES:
                raise service.failure(f"does not get up: its processes have ended {CRASHES} times")
            if time.monotonic() > end:
                raise service.failure(f"was not ready in {READY_SECONDS:g} s ({told})")
            if told != reason:
                reason = told
                report(f"starting the service: {told}")
            time.sleep(0.1)

    def _not_ready(self) -> str | None:
        """None when the service is ready, else what it says of it."""
        url = f"http://{self.address}/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return None
        except urllib.error.HTTPError as answer:
            with answer:
                return _reason(answer.read(1000))
        except OSError:
            return "its port is not open yet"

    def logged(self, arguments: Sequence[str], seconds: float) -> str:
        """What `inferflow logs cat` shows of the inference logs, as soon as there are some within these seconds.

        Empty when there are none: the log sidecar starts after the service is ready, and may take a while.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(self.log_dir.glob("*.parquet")):
                command = [sys.executable, "-m", "cli.main", "logs", "cat", str(self.log_dir), *arguments]
                env = {**os.environ, "INFERFLOW_STATE_DIR": str(self.directory / "state")}
                run = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
                if run.returncode:
                    raise DemoError(f"inferflow logs cat ended with {run.returncode}: {run.stderr[-1000:]}")
                return run.stdout
            time.sleep(0.2)
        return ""

    def wait(self) -> None:
        """Return when a process has ended by itself, with a DemoError raised that names it."""
        while True:
            for child in self._children:
                if not child.running:
                    raise child.failure("ended")
            time.sleep(0.5)


def _reason(body: bytes) -> str:
    """The reason in what /health/ready answers, or all of it when it has none."""
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()


def service_environment(
    environ: Mapping[str, str], pod: Pod, feature_port: int, model_port: int
) -> dict[str, str]:
    """The environment of the service: nothing of the caller's settings of Inferflow, only the demo's."""
    rest = {name: value for name, value in environ.items() if not name.startswith(_OURS)}
    return rest | {
        "APP_NAME": "demo",
        "APP_PORT": str(pod.port),
        "APP_LOG_LEVEL": "info",
        "INFERFLOW_HOST": "127.0.0.1",
        "INFERFLOW_ADMIN_PORT": str(pod.admin_port),
        "INFERFLOW_CONFIG_DIR": str(CONFIGS),
        "INFERFLOW_RUN_DIR": str(pod.directory / "run"),
        "INFERFLOW_STATE_DIR": str(pod.directory / "state"),
        "INFERFLOW_LOG_DIR": str(pod.log_dir),
        "INFERFLOW_LOG_FILE_SECONDS": "1",
        "INFERFLOW_DRAIN_SECONDS": str(DRAIN_SECONDS),
        "EXTERNAL_SERVICE_ONFS_FS_HOST": "127.0.0.1",
        "EXTERNAL_SERVICE_ONFS_FS_PORT": str(feature_port),
        "EXTERNAL_SERVICE_ONFS_FS_CALLER_ID": CALLER,
        "EXTERNAL_SERVICE_ONFS_FS_CALLER_TOKEN": TOKEN,
        "EXTERNAL_SERVICE_ONFS_FS_DEAD_LINE": "2000",
        "EXTERNAL_SERVICE_PREDATOR_PORT": str(model_port),
        "EXTERNAL_SERVICE_PREDATOR_CALLER_ID": CALLER,
        "EXTERNAL_SERVICE_PREDATOR_CALLER_TOKEN": TOKEN,
    }


def _free_port(preferred: int) -> int:
    """The preferred port if nothing listens there, else one that the system finds."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            bound: int = probe.getsockname()[1]
            return bound
    raise DemoError("This machine has no free port on 127.0.0.1.")
