"""The pod under supervisord: what `python -m cli.up` checks and sets, and that nothing is left behind."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.up import CONF, environment
from shared.settings import Settings
from tests.frontdoor.process import PATIENCE, ROOT, eventually, free_port

KERNELS = 300.0
"""Seconds for a first start: a worker may find its kernels not compiled yet."""

NEEDED = ("INFERFLOW_WORKERS", "INFERFLOW_FRONTDOORS", "INFERFLOW_RUN_DIR", "INFERFLOW_STOP_SECONDS")


def test_what_supervisord_reads_is_set() -> None:
    environ = environment(Settings.from_env({"INFERFLOW_WORKERS": "3"}), {"INFERFLOW_WORKERS": "3", "A": "b"})
    assert environ["INFERFLOW_WORKERS"] == "3"
    assert environ["INFERFLOW_FRONTDOORS"] == "1"
    assert environ["INFERFLOW_STOP_SECONDS"] == "40"
    assert environ["INFERFLOW_SUPERVISOR_PID"] == str(os.getpid())
    assert Path(environ["INFERFLOW_RUN_DIR"]).is_absolute()
    assert environ["PATH"].startswith(str(Path(sys.executable).parent))
    assert environ["A"] == "b"


def test_the_conf_names_what_it_needs_and_needs_nothing_else() -> None:
    text = CONF.read_text()
    conf = configparser.RawConfigParser()
    conf.read_string(text)
    used = {name for name in NEEDED if f"%(ENV_{name})s" in text}
    assert used == set(NEEDED)
    assert text.count("%(ENV_") == sum(text.count(f"%(ENV_{name})s") for name in NEEDED)
    programs = [section for section in conf.sections() if section.startswith("program:")]
    assert programs == ["program:config", "program:logs", "program:worker", "program:frontdoor"]
    priorities = [conf.getint(program, "priority") for program in programs]
    assert priorities == sorted(priorities)
    for program in programs:
        assert conf.get(program, "stopwaitsecs") == "%(ENV_INFERFLOW_STOP_SECONDS)s"
        assert conf.get(program, "stopsignal") == "TERM"
        assert conf.get(program, "killasgroup") == "true"


def test_supervisord_by_itself_says_what_is_missing() -> None:
    environ = {name: text for name, text in os.environ.items() if name not in NEEDED}
    run = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(CONF)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert run.returncode == 2
    assert "ENV_INFERFLOW_RUN_DIR" in run.stderr


@pytest.mark.parametrize(
    ("environ", "mode", "text"),
    [
        ({"APP_PORT": "x", "INFERFLOW_PIN": "x"}, 0o700, "APP_PORT='x'"),
        ({}, 0o755, "has mode 0755, must be 0700"),
    ],
)
def test_what_must_be_set_right_first_is_told(
    tmp_path: Path, environ: dict[str, str], mode: int, text: str
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run_dir.chmod(mode)
    run = subprocess.run(
        [sys.executable, "-m", "cli.up"],
        cwd=ROOT,
        env={**os.environ, "INFERFLOW_RUN_DIR": str(run_dir), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert run.returncode == 2
    assert text in run.stderr


class Up:
    """A pod as `python -m cli.up` makes it, with an empty config directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        (home / "configs" / "config-map").mkdir(parents=True)
        self.output = (home / "out").open("w+")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "cli.up"],
            cwd=home,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "APP_PORT": str(self.port),
                "INFERFLOW_HOST": "127.0.0.1",
                "INFERFLOW_ADMIN_PORT": str(free_port()),
                "INFERFLOW_DRAIN_SECONDS": "5",
                "INFERFLOW_WORKERS": "1",
            },
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def ready(self) -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready") as answer:
                document: dict[str, Any] = json.loads(answer.read())
                return document
        except (urllib.error.URLError, ConnectionError):
            return None

    def children(self) -> dict[str, int]:
        """Titles and ids of the processes of the pod."""
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
                title = (directory / "cmdline").read_text().rstrip("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            if parent == str(self.popen.pid):
                found[title] = int(directory.name)
        return found

    def text(self) -> str:
        return (self.home / "out").read_text()


@pytest.fixture
def up() -> Iterator[Up]:
    home = Path(tempfile.mkdtemp(prefix="inferflow-"))
    pod = Up(home)
    try:
        eventually(pod.ready, "the pod is ready", pod.text, KERNELS)
        yield pod
    finally:
        if pod.popen.poll() is None:
            pod.popen.terminate()
            pod.popen.wait(PATIENCE)
        pod.output.close()
        shutil.rmtree(home)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_a_pod_starts_heals_and_stops_without_a_trace(up: Up) -> None:
    children = up.children()
    assert set(children) == {
        *("inferflow: config sidecar", "inferflow: log sidecar"),
        *("inferflow: worker 0", "inferflow: frontdoor 0"),
    }
    threads = len(os.listdir(f"/proc/{children['inferflow: worker 0']}/task"))
    assert threads <= 3, "the loop's, the publisher's, the executor's: none for linear algebra"
    behind = {title for title, pid in children.items() if os.getpriority(os.PRIO_PROCESS, pid) > 0}
    assert behind == {"inferflow: config sidecar", "inferflow: log sidecar"}
    os.kill(children["inferflow: worker 0"], signal.SIGKILL)
    eventually(lambda: gone(children["inferflow: worker 0"]), "the worker has ended")
    eventually(lambda: not up.ready(), "its loss shows")
    eventually(up.ready, "it is back", up.text)
    children = up.children()
    up.popen.terminate()
    assert up.popen.wait(PATIENCE) == 0
    assert all(gone(pid) for pid in children.values())
    assert list((up.home / "run").iterdir()) == []
    stopped = [
        line.split("stopped: ")[1].split()[0] for line in up.text().splitlines() if "stopped: " in line
    ]
    assert stopped == ["frontdoor_0", "worker_0", "logs", "config"]


@pytest.mark.slow
def test_a_killed_supervisor_takes_all_along(up: Up) -> None:
    children = up.children()
    assert len(children) == 4
    up.popen.kill()
    up.popen.wait(PATIENCE)
    for title, pid in children.items():
        eventually(lambda pid=pid: gone(pid), f"{title} has ended")
