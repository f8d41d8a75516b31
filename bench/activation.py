"""How long a changed config takes to be active in every worker, and how long many configs take at the start.

`python -m bench.activation` starts a config sidecar and workers, without front doors and upstreams, puts changed
configs through the admin port, and prints what passed until every worker served them. With `--etcd host:port` the
configs are in that etcd (under an APP_NAME of their own, and they stay there), otherwise in a directory.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from rich.console import Console
from rich.table import Table

PATIENCE = 120.0  # seconds


def document(number: int, size: int) -> bytes:
    """A config of at least `size` bytes that fetches many features. `number` shows in it."""
    features = [f"feature_of_a_catalog_{one:06d}" for one in range(max(1, size // 33))]
    config = {
        "dag_execution_config": {
            "component_dependency": {"fetch": ["feature_initializer"], "rank": ["fetch"]}
        },
        "component_config": {
            "feature_components": [
                {
                    "component": "fetch",
                    "fs_keys": [{"schema": "catalog_id", "col": "catalog_id"}],
                    "fs_request": {
                        "label": "catalog",
                        "featureGroups": [{"label": "real", "data_type": "FP32", "features": features}],
                    },
                }
            ],
            "predator_components": [
                {
                    "component": "rank",
                    "model_name": f"ranker_{number}",
                    "model_end_point": "127.0.0.1",
                    "inputs": [
                        {
                            "name": "in",
                            "features": [f"catalog:real:{features[0]}"],
                            "shape": [1],
                            "data_type": "FP32",
                        }
                    ],
                    "outputs": [
                        {
                            "name": "out",
                            "model_scores": ["score"],
                            "model_scores_dims": [[1]],
                            "data_type": "FP32",
                        }
                    ],
                }
            ],
        },
        "response_config": {"features": ["catalog_id", "score"]},
    }
    return json.dumps(config).encode()


class Pod:
    """A sidecar and workers, and nothing else."""

    def __init__(self, home: Path, workers: int, etcd: str) -> None:
        self.configs = home / "configs" / "config-map"
        self.configs.mkdir(parents=True)
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self.port = probe.getsockname()[1]
        self._workers = workers
        self._environ = {
            **os.environ,
            "APP_NAME": f"bench-{os.getpid()}",
            "APP_LOG_LEVEL": "error",
            "ETCD_SERVER": etcd,
            "EXTERNAL_SERVICE_ONFS_FS_HOST": "127.0.0.1",
            "EXTERNAL_SERVICE_ONFS_FS_PORT": "9",
            "EXTERNAL_SERVICE_PREDATOR_PORT": "9",
            "INFERFLOW_ADMIN_PORT": str(self.port),
            "INFERFLOW_CONFIG_DIR": str(home / "configs"),
            "INFERFLOW_PIN": "false",
            "INFERFLOW_RUN_DIR": str(home / "run"),
            "INFERFLOW_STATE_DIR": str(home / "state"),
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def __repr__(self) -> str:
        return f"<Pod with {self._workers} workers, admin port {self.port}>"

    def __enter__(self) -> Pod:
        self._start("sidecar.config")
        return self

    def start_workers(self) -> None:
        """The workers; not waited for."""
        for index in range(self._workers):
            self._start("workers", INFERFLOW_INDEX=str(index))

    def __exit__(self, *_: object) -> None:
        for one in reversed(self._processes):
            one.terminate()
        for one in self._processes:
            one.wait(PATIENCE)

    def _start(self, module: str, **environ: str) -> None:
        command = [sys.executable, "-m", module]
        self._processes.append(subprocess.Popen(command, env={**self._environ, **environ}))

    def ask(self, method: str, path: str, body: bytes = b"", **query: str) -> dict[str, Any]:
        """The answer of the admin port, which may not be there yet."""
        until = time.monotonic() + PATIENCE
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            try:
                connection.request(method, f"{path}?{urlencode(query)}", body)
                response = connection.getresponse()
                answer: dict[str, Any] = json.loads(response.read())
                if response.status != 200:
                    raise SystemExit(f"{path}: {answer}")
                return answer
            except ConnectionRefusedError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
            finally:
                connection.close()

    def wait_for_all(self, after: int) -> int:
        """Waits until every worker serves one version above `after`; returns it."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            status = self.ask("GET", "/status")
            versions = {one["version"] for one in status["workers"]}
            active = status["active"] or 0
            if active > after and versions == {active} and len(status["workers"]) == self._workers:
                return int(active)
            time.sleep(0.01)  # each look costs the sidecar CPU, too
        raise SystemExit(f"not active in {PATIENCE:g} s: {status}")

    def put(self, name: str, text: bytes) -> None:
        """Writes a config to the source, as `inferflow config put` does."""
        revision = self.ask("POST", "/config/check", text, key=name)["revision"]
        self.ask("POST", "/config/put", text, key=name, revision=str(revision))


@contextlib.contextmanager
def pod(workers: int, etcd: str, configs: int, size: int) -> Iterator[Pod]:
    """A pod on a directory with these configs, its workers not started."""
    with tempfile.TemporaryDirectory(prefix="activation-", dir="/tmp") as home:
        made = Pod(Path(home), workers, etcd)
        if not etcd:
            for number in range(configs):
                (made.configs / f"config_{number}.json").write_bytes(document(number, size))
        with made:
            if etcd:
                for number in range(configs):
                    made.put(f"config_{number}", document(number, size))
            yield made


def measure_changes(workers: int, etcd: str, configs: int, size: int, changes: int) -> list[float]:
    """Seconds from each put to the moment when every worker served it."""
    took = []
    with pod(workers, etcd, configs, size) as one:
        one.start_workers()
        active = one.wait_for_all(0)
        for number in range(changes):
            name, text = f"config_{number % configs}", document(1000 + number, size)
            revision = one.ask("POST", "/config/check", text, key=name)["revision"]
            began = time.perf_counter()
            one.ask("POST", "/config/put", text, key=name, revision=str(revision))
            active = one.wait_for_all(active)
            took.append(time.perf_counter() - began)
    return took


def measure_start(configs: int, size: int) -> tuple[float, float]:
    """Seconds until the sidecar has everything ready, and until a worker serves it too, each from its own start."""
    began = time.perf_counter()
    with pod(1, "", configs, size) as one:
        written = time.perf_counter()
        one.ask("GET", "/status")
        while one.ask("GET", "/status")["pending"] is None:
            time.sleep(0.005)
        loaded = time.perf_counter() - written
        began = time.perf_counter()
        one.start_workers()
        one.wait_for_all(0)
        return loaded, time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.activation", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--configs", type=int, default=50)
    parser.add_argument("--kb", type=int, default=200, help="size of a config")
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument(
        "--start", type=int, default=2000, help="configs of 4 kB at the start; 0: not measured"
    )
    parser.add_argument("--etcd", default="", metavar="HOST:PORT")
    chosen = parser.parse_args(argv)
    table = Table(title="Activation", box=None)
    for column in ("what", "median", "p99", "worst"):
        table.add_column(column, justify="left" if column == "what" else "right")
    took = measure_changes(chosen.workers, chosen.etcd, chosen.configs, chosen.kb << 10, chosen.changes)
    median, p99 = np.percentile(took, [50, 99])
    where = "etcd" if chosen.etcd else "a directory"
    what = f"put to {where}, active in {chosen.workers} workers, {chosen.configs} configs of {chosen.kb} kB"
    table.add_row(what, *(f"{1000 * seconds:.0f} ms" for seconds in (median, p99, max(took))))
    if chosen.start:
        loaded, served = measure_start(chosen.start, 4 << 10)
        table.add_row(
            f"{chosen.start} configs of 4 kB, from the sidecar's start to all read", f"{loaded:.1f} s"
        )
        table.add_row("the same, from a worker's start to all served", f"{served:.1f} s")
    Console().print(table)


if __name__ == "__main__":
    main()
