from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.pod import ROOT, Child, DemoError, Pod, service_environment
from demo.prepare import CONFIGS, Prepared
from shared.settings import Settings


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "not in 20 s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def module(directory: Path, text: str) -> dict[str, str]:
    """An environment in which `script` is a module with this text."""
    (directory / "script.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(directory)}


def test_the_service_gets_settings_of_the_demo_only(tmp_path: Path) -> None:
    pod = Pod(Prepared(tmp_path))
    with pod:
        caller = {"PATH": "/bin", "APP_PORT": "8085", "ETCD_SERVER": "etcd:2379", "INFERFLOW_WORKERS": "64"}
        environment = service_environment(caller, pod, 1111, 2222)
        assert "ETCD_SERVER" not in environment
        assert "INFERFLOW_WORKERS" not in environment
        assert environment["PATH"] == "/bin"
        settings = Settings.from_env(environment)
        assert (settings.port, settings.admin_port) == (pod.port, pod.admin_port)
        assert (settings.onfs.port, settings.predator.port) == (1111, 2222)
        assert settings.config_dir == CONFIGS
        assert settings.run_dir.is_relative_to(pod.directory)
        assert settings.numerix.host == ""
    assert not pod.directory.exists()


def test_a_taken_port_is_left_alone(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Pod(Prepared(tmp_path), port) as pod:
            assert pod.port != port


def test_a_child_announces_itself_and_is_stopped(tmp_path: Path) -> None:
    env = module(tmp_path, "import time\nprint(4711, flush=True)\ntime.sleep(60)\n")
    child = Child("helper", ["script"], env, tmp_path, announces=True)
    assert child.announcement(20) == "4711"
    assert child.running
    child.stop(20)
    assert not child.running


def test_a_child_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    env = module(tmp_path, "import sys\nsys.exit('no such luck')\n")
    child = Child("helper", ["script"], env, tmp_path, announces=True)
    with pytest.raises(DemoError, match=r"(?s)The helper ended with 1\. The end of its log:.*no such luck"):
        child.announcement(20)
    child.stop(20)


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    text = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    text += "print(1, flush=True)\ntime.sleep(60)\n"
    child = Child("helper", ["script"], module(tmp_path, text), tmp_path, announces=True)
    child.announcement(20)
    child.stop(0.1)
    assert not child.running


def test_children_end_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    env = module(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    parent = (
        "import os, pathlib, time; from demo.pod import Child;"
        f"child = Child('helper', ['script'], os.environ, pathlib.Path({str(tmp_path)!r}), announces=True);"
        "print(child.announcement(20), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        pid = int(process.stdout.readline())
    assert alive(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not alive(pid))


def test_an_upstream_that_cannot_start_stops_the_demo(tmp_path: Path) -> None:
    with Pod(Prepared(tmp_path)) as pod, pytest.raises(DemoError, match=r"(?s)no feature tables"):
        pod.start(lambda _: None)
