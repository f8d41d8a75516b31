"""`inferflow restart`: what it makes of lines of a log; what supervisord's plugin keeps, and when it is woken.

What they do is in tests/e2e/test_restarts.py.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from cli import main as cli
from cli.pod import readable
from cli.supervision import TAIL, Supervision, Waker
from shared.logs import JsonFormatter


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
