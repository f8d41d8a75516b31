"""Processes restarted on purpose, and their number changed, while clients go on asking: nobody sees an error."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest

from cli.pod import Pod as Running
from shared.settings import Settings
from tests.e2e.asking import POINT, config, errors, score, write_models
from tests.e2e.pod import FIRST_START, Load, Pod, UpstreamProcess
from tests.frontdoor.process import PATIENCE, ROOT, eventually

pytestmark = pytest.mark.slow

CONFIGS = {"shop": config()}


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamProcess]:
    with UpstreamProcess(write_models(tmp_path_factory.mktemp("models"), CONFIGS)) as upstreams:
        yield upstreams


def inferflow(pod: Pod, *arguments: str, code: int = 0) -> str:
    """What the command prints, in the environment of the pod."""
    run = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=pod.home,
        env={**pod.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=FIRST_START,
    )
    assert run.returncode == code, run.stdout + pod.text()
    return run.stdout


def asking(pod: Pod, clients: int) -> Load:
    """Clients that ask without end, over new connections all the time. A wrong answer counts as an error.

    They leave the processor to those that start, most of the time.
    """
    body = score("shop", ["a", "b", "c"])
    expected = pod.call(POINT, body)
    assert errors(expected) == ["", "", ""]

    def ask() -> None:
        with grpc.insecure_channel(
            f"127.0.0.1:{pod.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            method = channel.unary_unary(POINT)
            for _ in range(20):
                assert method(body, timeout=PATIENCE) == expected
                time.sleep(0.005)

    return Load(ask, clients)


def told(said: str) -> list[str]:
    """The steps of a restart, without what it waited for on a slow machine."""
    return [line for line in said.splitlines() if "waits: " not in line]


def titles(pod: Pod, kind: str) -> dict[str, int]:
    return {title: pid for title, pid in pod.processes().items() if kind in title}


def test_everything_restarted_one_after_another(upstreams: UpstreamProcess) -> None:
    with Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_WORKERS="2", INFERFLOW_FRONTDOORS="2") as pod:
        eventually(lambda: len(titles(pod, "inferflow: ")) == 6, "all run")
        before = pod.processes()
        load = asking(pod, clients=4)
        try:
            said = inferflow(pod, "restart", "all")
            goal = load.answers + 2
            eventually(lambda: load.answers >= goal or load.errors, "the clients get answers")
        finally:
            load.stop()
        assert load.errors == []
        after = pod.processes()
        assert after.keys() == before.keys()
        assert not set(after.values()) & set(before.values()), "every process is another one"
        in_turn = ["config", "frontdoor_0", "frontdoor_1", "logs", "worker_0", "worker_1"]
        steps = [f"{name}: {step}" for name in in_turn for step in ("stopping", "serves")]
        assert told(said) == steps
        assert "ended" not in pod.get("/health/ready")[1], "what was asked for is no crash"


def test_one_worker_three_workers_one_worker(upstreams: UpstreamProcess) -> None:
    with Pod(CONFIGS, upstreams=upstreams.port) as pod:
        (first,) = titles(pod, "worker").values()
        load = asking(pod, clients=3)
        try:
            inferflow(pod, "scale", "--workers", "3")
            assert titles(pod, "worker").keys() == {f"inferflow: worker {index}" for index in range(3)}
            inferflow(pod, "scale", "--workers", "1")
            assert titles(pod, "worker") == {"inferflow: worker 0": first}, "it was left alone"
        finally:
            load.stop()
        assert load.errors == []
        assert load.answers


def test_an_only_worker_is_restarted_beside_another(upstreams: UpstreamProcess) -> None:
    """Requests do not wait for it: with INFERFLOW_WAIT_MS=0 each that found no worker would fail."""
    with Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_WAIT_MS="0") as pod:
        (before,) = titles(pod, "worker").values()
        load = asking(pod, clients=2)
        try:
            said = inferflow(pod, "restart", "worker")
        finally:
            load.stop()
        assert load.errors == []
        (after,) = titles(pod, "worker").values()
        assert after != before
        assert told(said) == [
            "worker_1: starts, because no worker but worker_0 serves",
            "worker_1: serves",
            "worker_0: stopping",
            "worker_0: serves",
            "worker_1: stopping",
        ]


def test_a_worker_that_does_not_come_up_is_told_of_and_the_pod_serves_on(upstreams: UpstreamProcess) -> None:
    expected = ["uncaught"]  # the beginning of what a worker says that cannot use its run directory
    with Pod(CONFIGS, upstreams=upstreams.port, expected_errors=expected) as pod:
        (before,) = titles(pod, "worker").values()
        pod.run_dir.chmod(0o755)
        said = inferflow(pod, "restart", "worker", code=4)
        pod.run_dir.chmod(0o700)
        assert "worker_1 does not serve after" in said
        # within supervisord's startsecs there is no exit status, and a fast start fails just about then
        how = "(exit status 1|an exit soon after its start)"
        assert re.search(
            f"it ends by itself, with {how}; its last line: critical: uncaught: RunDirError", said
        )
        assert "worker_0 served all the time" in said
        assert titles(pod, "worker") == {"inferflow: worker 0": before}
        status, document = pod.ready()
        assert status == 200
        assert "notice" not in document, "what is no part of the pod any more is no crash loop of it"


def test_what_cannot_be_done_is_refused(upstreams: UpstreamProcess) -> None:
    with Pod(CONFIGS, upstreams=upstreams.port) as pod:
        assert "there is one front door" in inferflow(pod, "restart", "all", code=1)
        assert "here run config, frontdoor, logs, worker" in inferflow(pod, "restart", "wroker", code=2)
        assert "an integer from 1 to 1024" in inferflow(pod, "scale", "--workers", "0", code=2)
        inferflow(pod, "restart", "config")
        pod.check_nothing_left(pod.stop())
        assert "no pod runs in" in inferflow(pod, "restart", "worker", code=3)


def test_a_crash_loop_is_named_by_readiness(upstreams: UpstreamProcess) -> None:
    """Of a process that nobody else misses: requests are served without it."""
    with (
        Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_WORKERS="2") as pod,
        contextlib.closing(Running(Settings.from_env({"INFERFLOW_RUN_DIR": str(pod.run_dir)}))) as running,
    ):
        killed: list[int] = []

        def started() -> int:
            """The process of worker 1, as soon as there is another one than before."""
            (worker,) = [one for one in running.processes() if one.name == "worker_1"]
            return worker.pid if worker.pid not in killed else 0

        for _ in range(3):
            assert "worker_1 ended" not in pod.get("/health/ready")[1]
            killed.append(eventually(started, "it is back"))
            os.kill(killed[-1], signal.SIGKILL)
        status, document = eventually(
            lambda: "worker_1 ended" in (found := pod.ready())[1].get("notice", "") and found,
            "readiness tells of it",
            pod.text,
        )
        assert status == 200
        assert "worker_1 ended 3 times in " in document["notice"]
        assert os.path.exists(pod.run_dir / "crashes.json")
