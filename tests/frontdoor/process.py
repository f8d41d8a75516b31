"""Front doors and fake workers as processes, for the tests of the whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

ROOT = Path(__file__).resolve().parents[2]
POINT_WISE = "/Predict/InferPointWise"
PATIENCE = 60.0
"""Seconds after which a test gives up; nothing is expected to take nearly as long."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(
    check: Callable[[], Any], what: str, story: Callable[[], str] = str, patience: float = PATIENCE
) -> Any:
    """The first true value of `check`. Fails with the `story` when there is none for long."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"never: {what}\n{story()}")


class Process:
    """A Python module that runs, its log lines kept."""

    def __init__(self, module: str, *arguments: str, **environ: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as stdout:
            self.lines.extend(iter(stdout.readline, ""))

    @property
    def logs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def logged(self, message: str) -> dict[str, Any] | None:
        return next((line for line in self.logs if message in line["message"]), None)

    def alive(self) -> bool:
        return self.popen.poll() is None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code."""
        if self.alive():
            self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Returns the exit code, once it has ended by itself."""
        code = self.popen.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


class Pod:
    """One front door on a free port with a private run directory, and the fake workers that a test adds."""

    def __init__(self, **environ: str) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix="inferflow-"))
        self.port = free_port()
        self.environ = {
            "APP_PORT": str(self.port),
            "INFERFLOW_HOST": "127.0.0.1",
            "INFERFLOW_ADMIN_PORT": "1" if self.port != 1 else "2",
            "INFERFLOW_RUN_DIR": str(self.run_dir),
            "INFERFLOW_DRAIN_SECONDS": "10",
            **environ,
        }
        self.door = Process("frontdoor.main", **self.environ)
        self.workers: list[Process] = []
        self.socket = self.run_dir / "door-0.sock"
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def __enter__(self) -> Self:
        eventually(lambda: self.door.logged("serving") or not self.door.alive(), "the front door serves")
        assert self.door.alive(), self.door.lines
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()
        for process in self.workers:
            process.stop(signal.SIGKILL)
        code = self.door.stop()
        shutil.rmtree(self.run_dir)
        if error is None:
            assert code == 0, self.door.lines
            self.check_nothing_left()

    def check_nothing_left(self) -> None:
        """The books of the front door at its end."""
        books = self.door.logged("stopped")
        assert books is not None, self.door.lines
        assert (books["in_flight"], books["held_bytes"], books["streams"]) == (0, 0, 0)
        errors = [line for line in self.door.logs if line["level"] in ("error", "critical")]
        assert not errors, errors

    def add_worker(self, index: int = 0, max_in_flight: int = 64, *, ready: bool = True) -> Process:
        """Starts a worker and waits until the door knows its state."""
        seen = len(self.door.lines)
        worker = Process(
            "tests.frontdoor.fake_worker",
            str(self.socket),
            str(index),
            str(max_in_flight),
            "ready" if ready else "unready",
        )
        self.workers.append(worker)
        state = f"worker {index} (process {worker.popen.pid}) is "
        eventually(lambda: any(state in line for line in self.door.lines[seen:]), "the worker joins")
        return worker

    def call(self, body: bytes, *, path: str = POINT_WISE, timeout: float | None = PATIENCE) -> bytes:
        """Raises grpc.RpcError."""
        answer: bytes = self.channel.unary_unary(path)(body, timeout=timeout)
        return answer

    def start(self, body: bytes, *, timeout: float | None = PATIENCE) -> Any:
        """A grpc future."""
        return self.channel.unary_unary(POINT_WISE).future(body, timeout=timeout)

    def tell(self) -> dict[str, Any]:
        """What a worker knows."""
        known: dict[str, Any] = json.loads(self.call(b"tell"))
        return known

    def get(self, path: str) -> tuple[int, str]:
        """HTTP status and body, by curl."""
        run = subprocess.run(
            ["curl", "-s", "-w", "\n%{http_code}", f"http://127.0.0.1:{self.port}{path}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        body, _, status = run.stdout.rpartition("\n")
        return int(status), body


@contextlib.contextmanager
def failing() -> Any:
    """The RpcError that the body raises, in `.error`."""

    class Caught:
        error: Any = None

    caught = Caught()
    try:
        yield caught
    except grpc.RpcError as error:
        caught.error = error
    assert caught.error is not None, "the call succeeded"
