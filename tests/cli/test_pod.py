"""`inferflow restart`: what it makes of lines of a log, and what it leaves when it gives up.

What supervisord's plugin keeps, and when it is woken. What they do otherwise is in tests/e2e/test_restarts.py.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli import main as cli
from cli.pod import Pod, PodError, readable
from cli.supervision import TAIL, Supervision, Waker
from shared.logs import JsonFormatter
from shared.settings import Settings


def line(message: str, error: Exception | None = None, **fields: object) -> str:
    """A line as a worker writes it."""
    record = logging.LogRecord("workers.main", logging.ERROR, "", 0, message, (), None)
    record.__dict__.update(fields)
    if error is not None:
        try:
            raise error
        except type(error):
            record.exc_info = sys.exc_info()
    return JsonFormatter("worker-0").format(record)


def test_a_line_is_what_was_said_and_its_fields() -> None:
    assert (
        readable(line("endpoint does not answer", target="m:1"))
        == "error: endpoint does not answer target=m:1"
    )


def test_of_a_traceback_the_last_line_is_shown_once() -> None:
    assert readable(line("cannot start", OSError("no room"))) == "error: cannot start OSError: no room"
    assert (
        readable(line("uncaught: OSError: no room", OSError("no room")))
        == "error: uncaught: OSError: no room"
    )


@pytest.mark.parametrize("text", ["Illegal instruction", "[1, 2]", "7", '{"half a line'])
def test_a_line_of_somebody_else_is_shown_as_it_is(text: str) -> None:
    assert readable(text) == text


@pytest.fixture
def plugin(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Supervision:
    monkeypatch.setattr("supervisor.events.callbacks", [])
    return Supervision(None, tmp_path)


def wrote(plugin: Supervision, pid: int, data: bytes) -> None:
    """As supervisord tells of it."""
    process = SimpleNamespace(config=SimpleNamespace(name="worker_0"))
    plugin._wrote(SimpleNamespace(process=process, pid=pid, data=data))


def test_the_last_line_is_put_together_from_pieces(plugin: Supervision) -> None:
    assert plugin.lastLine("worker_0") == {"pid": 0, "line": ""}
    wrote(plugin, 7, b"first\nsec")
    wrote(plugin, 7, b"ond\n\n")
    assert plugin.lastLine("worker_0") == {"pid": 7, "line": "second"}
    wrote(plugin, 8, b"third")
    assert plugin.lastLine("worker_0") == {"pid": 8, "line": "third"}


def test_the_last_line_is_bounded_and_fits_into_xml(plugin: Supervision) -> None:
    wrote(plugin, 7, b"x" * (2 * TAIL) + b"\xff\x00y")
    found = plugin.lastLine("worker_0")["line"]
    assert len(found) <= TAIL
    assert found.isprintable()
    assert found.endswith("y")


class Workers:
    """A pod of one worker, as supervisord has it; of those started later, number `fail` never serves."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, fail: int) -> None:
        self.running = {"worker_0": 0}
        self.starts = 0
        self.said: list[str] = []
        self.pod = Pod(
            Settings.from_env({"INFERFLOW_RUN_DIR": str(run_dir)}), self.said.append, patience=1e-9
        )
        monkeypatch.setattr(self.pod, "_call", self.call)
        monkeypatch.setattr(self.pod, "_serves", lambda process: process.pid != fail)

    def start(self, name: str) -> None:
        self.starts += 1
        self.running[name] = self.starts

    def call(self, method: str, *arguments: Any, ignored: int | None = None) -> Any:
        match method.partition(".")[2], *arguments:
            case ("getAllProcessInfo",):
                return [
                    {"group": "worker", "name": name, "statename": "RUNNING", "pid": pid, "start": 0}
                    for name, pid in sorted(self.running.items())
                ]
            case "setCount", "worker", count:
                for name in [f"worker_{index}" for index in range(count)]:
                    if name not in self.running:
                        self.start(name)
                return [f"worker:{name}" for name in self.running if int(name[7:]) >= count]
            case "stopProcess", name:
                del self.running[name.partition(":")[2]]
            case "startProcess", name, False:
                self.start(name.partition(":")[2])
            case "lastLine", _:
                return {"pid": 0, "line": ""}
        return None


BESIDE = "worker_1: starts, because no worker but worker_0 serves"


def test_a_second_worker_stays_when_the_only_one_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(tmp_path, monkeypatch, fail=2)
    with pytest.raises(PodError, match=r"worker_0 does not serve after .*\n.* worker_1 served all the time"):
        workers.pod.restart(["worker"])
    assert workers.running == {"worker_0": 2, "worker_1": 1}
    how = "worker_1: stays; once worker_0 serves: inferflow scale --workers 1"
    assert workers.said == [BESIDE, "worker_1: serves", "worker_0: stopping", how]


def test_a_second_worker_that_does_not_come_up_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(tmp_path, monkeypatch, fail=1)
    with pytest.raises(PodError, match=r"worker_1 does not serve after .*\n.* worker_0 served all the time"):
        workers.pod.restart(["worker"])
    assert workers.running == {"worker_0": 0}
    assert workers.said == [BESIDE, "worker_1: stopping"]


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "soon"])
def test_patience_is_a_time(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["restart", "worker", "--patience", text])
    assert ended.value.code == 2
    assert "is not a number of seconds above 0" in capsys.readouterr().err


def test_a_signal_is_followed_by_turns_that_wait_for_nothing() -> None:
    waker = Waker()
    poll = select.poll()
    poll.register(waker, select.POLLIN)

    def turns() -> int:
        """How often a loop turns before it waits."""
        count = 0
        while poll.poll(0):
            waker.handle_read_event()
            count += 1
        return count

    before = signal.set_wakeup_fd(waker.write_end)
    handler = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert turns() == 0
        os.kill(os.getpid(), signal.SIGUSR2)
        assert turns() == 1 + Waker.TURNS
        waker.wake()
        waker.wake()
        assert turns() == 1 + Waker.TURNS
    finally:
        signal.signal(signal.SIGUSR2, handler)
        signal.set_wakeup_fd(before)
        waker.close()
