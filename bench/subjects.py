"""The processes of a sitting: upstreams, and the servers that are measured beside each other.

All of them live in one temporary directory and end with the sitting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import shutil
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

from bench.cases import write_configs

__all__ = ["Sitting", "StartError", "Subject"]

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
READY_SECONDS = 300.0  # on a first start the workers compile their kernels
STOP_SECONDS = 20.0
_LOG_LINES, _LOG_WIDTH = 15, 300
_CPUCLOCK_SCHED = 2  # of the kernel's clock ids: nanoseconds that all threads of a process ran
_OURS = (
    *("APP_", "DAG_", "ETCD_", "EXTERNAL_SERVICE_", "IN_MEMORY_", "INFERFLOW_", "KAFKA_", "METRIC_"),
    *("NUMERIX_", "TELEGRAF_"),
)


class StartError(RuntimeError):
    """A process did not start; the text has the end of its log."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A server under load: its port, and its processes with the part that each plays."""

    name: str
    port: int
    processes: Mapping[int, str]
    admin_port: int = 0  # 0: it has none
    run_dir: Path | None = None  # a pod's

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU, user and system, that its processes have used so far, by part.

        Raises OSError when one of them has ended.
        """
        spent = dict.fromkeys(self.processes.values(), 0.0)
        for pid, part in self.processes.items():
            # The sum of user and system time in /proc/PID/stat, in nanoseconds instead of ticks of 10 ms.
            spent[part] += time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
        return spent


class _Child:
    """One process that was started here; what it says goes to a log."""

    def __init__(
        self,
        directory: Path,
        cores: Sequence[int],
        module: str,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        announces: bool = False,
    ) -> None:
        self._name = f"{module} {' '.join(map(str, arguments))}".strip()
        launcher = ["-m", "bench.child", str(os.getpid()), ",".join(map(str, cores))]
        self._log = directory / f"{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *launcher, module, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if announces else log,
                stderr=log,
                env=env,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C reaches the benchmark, which stops the others in order
            )
        self.pid = self._process.pid

    def __repr__(self) -> str:
        code = self._process.poll()
        return f"<_Child {self._name}: {'running' if code is None else f'ended with {code}'}>"

    def announced_port(self) -> int:
        """The port that the process prints when it listens."""
        out = self._process.stdout
        assert out is not None, "started with announces=True"
        if not select.select([out], [], [], START_SECONDS)[0]:
            raise self._failure(f"said nothing in {START_SECONDS:g} s")
        line = out.readline()
        if not line:
            raise self._failure(f"ended with {self._process.wait()}")
        return int(line)

    def wait(self, ready: Callable[[], str | None], seconds: float) -> None:
        """Returns when `ready` returns None; otherwise it says what is missing."""
        end = time.monotonic() + seconds
        while (missing := ready()) is not None:
            if self._process.poll() is not None:
                raise self._failure(f"ended with {self._process.returncode}")
            if time.monotonic() > end:
                raise self._failure(f"was not ready in {seconds:g} s: {missing}")
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _failure(self, what: str) -> StartError:
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return StartError("\n".join([f"{self._name} {what}", *(line[:_LOG_WIDTH] for line in lines)]))


class Sitting:
    """Everything that runs for one series of measurements: `with Sitting(…) as sitting`.

    What is measured runs on `server_cores`; the upstreams, and the caller meanwhile, on `load_cores`.
    """

    def __init__(self, server_cores: Sequence[int], load_cores: Sequence[int]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="inferflow-bench-"))
        self._server_cores = server_cores
        self._load_cores = load_cores
        self._stack = contextlib.ExitStack()
        self._upstream_port = 0

    def __repr__(self) -> str:
        return f"<Sitting in {self.directory}: servers on {self._server_cores}, load on {self._load_cores}>"

    def __enter__(self) -> Self:
        self._stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, self._load_cores)
        self._stack.callback(shutil.rmtree, self.directory)
        try:
            write_configs(self._subdirectory("configs"))
            upstreams = self._start("bench.upstreams", cores=self._load_cores, announces=True)
            self._upstream_port = upstreams.announced_port()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def service(self, *, threads: int = 0, run: str = "", **settings: str) -> Subject:
        """A pod with one front door and one worker with so many executor threads, and these settings.

        `run` tells apart pods with as many threads. Raises StartError.
        """
        name = f"service with {threads} threads{f', {run}' if run else ''}"
        port = _free_port()
        env = self._service_environment(
            f"s{threads}{run}", port, INFERFLOW_EXECUTOR_THREADS=str(threads), **settings
        )
        supervisor = self._start("cli.up", env=env)
        supervisor.wait(lambda: _not_ready(port), READY_SECONDS)
        processes = {supervisor.pid: "rest"} | _parts_of_pod(supervisor.pid)
        return Subject(
            name, port, processes, int(env["INFERFLOW_ADMIN_PORT"]), Path(env["INFERFLOW_RUN_DIR"])
        )

    def peer(self, config: str) -> Subject:
        """The naive peer with one of the perf configs. Raises StartError."""
        peer = self._start("bench.naive", config, str(self._upstream_port), announces=True)
        return Subject(f"peer with {config}", peer.announced_port(), {peer.pid: "peer"})

    def floor(self, answers: Mapping[bytes, bytes]) -> Subject:
        """A front door, and a worker that does nothing but give these answers to these requests.

        Raises StartError.
        """
        directory = self._subdirectory("answers")
        for number, (request, answer) in enumerate(answers.items()):
            (directory / f"{number}.request").write_bytes(request)
            (directory / f"{number}.answer").write_bytes(answer)
        port = _free_port()
        env = self._service_environment("f", port)
        door_socket = self._subdirectory("f") / "door-0.sock"
        door = self._start("frontdoor.main", env=env)
        door.wait(lambda: None if door_socket.exists() else f"no {door_socket}", START_SECONDS)
        worker = self._start("bench.idle_worker", door_socket, directory)
        worker.wait(lambda: _not_ready(port), START_SECONDS)
        return Subject("floor", port, {door.pid: "front door", worker.pid: "worker"})

    def _start(
        self,
        module: str,
        *arguments: str | Path,
        cores: Sequence[int] | None = None,
        env: Mapping[str, str] | None = None,
        announces: bool = False,
    ) -> _Child:
        child = _Child(
            self.directory, cores or self._server_cores, module, *arguments, env=env, announces=announces
        )
        self._stack.callback(child.stop)
        return child

    def _subdirectory(self, name: str) -> Path:
        directory = self.directory / name
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def _service_environment(self, name: str, port: int, **settings: str) -> dict[str, str]:
        """The environment of a pod: nothing of the caller's settings, so that figures can be compared."""
        rest = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        upstream = str(self._upstream_port)
        return rest | {
            "APP_NAME": "bench",
            "APP_PORT": str(port),
            "APP_LOG_LEVEL": "warn",
            "INFERFLOW_HOST": "127.0.0.1",
            "INFERFLOW_ADMIN_PORT": str(_free_port()),
            "INFERFLOW_CONFIG_DIR": str(self.directory / "configs"),
            "INFERFLOW_RUN_DIR": str(self._subdirectory(name)),
            "INFERFLOW_STATE_DIR": str(self._subdirectory(f"{name}-state")),
            "INFERFLOW_WORKERS": "1",
            "INFERFLOW_FRONTDOORS": "1",
            "INFERFLOW_PIN": "false",  # bench.child has pinned the whole pod
            "INFERFLOW_DRAIN_SECONDS": "2",
            "EXTERNAL_SERVICE_ONFS_FS_HOST": "127.0.0.1",
            "EXTERNAL_SERVICE_ONFS_FS_PORT": upstream,
            "EXTERNAL_SERVICE_ONFS_FS_CALLER_ID": "bench",
            "EXTERNAL_SERVICE_ONFS_FS_CALLER_TOKEN": "bench",
            "EXTERNAL_SERVICE_ONFS_FS_DEAD_LINE": "5000",
            "EXTERNAL_SERVICE_PREDATOR_PORT": upstream,
            "EXTERNAL_SERVICE_PREDATOR_CALLER_ID": "bench",
            "EXTERNAL_SERVICE_PREDATOR_CALLER_TOKEN": "bench",
            "NUMERIX_CLIENT_V1_HOST": "127.0.0.1",
            "NUMERIX_CLIENT_V1_PORT": upstream,
            **settings,
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _not_ready(port: int) -> str | None:
    """None when the pod at this port can serve, else what it says of itself."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
            return None
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.read(1000).decode(errors="replace").strip()
    except OSError as error:
        return str(error)


def _parts_of_pod(supervisor: int) -> dict[int, str]:
    """The processes that a supervisord has started, with the part that each plays."""
    pids = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return {int(pid): _part(Path(f"/proc/{pid}/cmdline").read_text()) for pid in pids}


def _part(title: str) -> str:
    if "frontdoor" in title:
        return "front door"
    if "log sidecar" in title or "sidecar.logs" in title:  # it may not have its title yet
        return "log sidecar"
    return "worker" if "worker" in title else "rest"
