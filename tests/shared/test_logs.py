"""Logs are JSON lines, whatever is logged."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from shared.logs import BURST, WINDOW, JsonFormatter, Repeats, configure, log_loop_errors


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Configures logging for the test and returns a function that reads what was logged."""
    out = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook
    monkeypatch.setattr(sys, "stdout", out)
    configure("test 0", "info")
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    root.handlers[:], root.level, sys.excepthook = before
    logging.captureWarnings(False)


def test_a_line_has_time_level_process_message_and_fields(lines: Any) -> None:
    logging.getLogger("room.module").warning("worker %d joined", 3, extra={"worker": 3, "why": b"x"})
    (line,) = lines()
    assert line["level"] == "warning"
    assert line["process"] == "test 0"
    assert line["logger"] == "room.module"
    assert line["message"] == "worker 3 joined"
    assert line["worker"] == 3
    assert line["why"] == "b'x'"
    assert line["time"].endswith("+00:00")


def test_errors_carry_their_traceback_in_one_line(lines: Any) -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = lines()
    assert "ValueError: no\nway" in line["error"]


def test_less_severe_levels_are_left_out(lines: Any) -> None:
    logging.getLogger("x").debug("quiet")
    assert lines() == []


def test_text_that_json_cannot_hold_does_not_raise() -> None:
    record = logging.makeLogRecord({"msg": "bad \ud800", "levelname": "INFO"})
    assert "ud800" in json.loads(JsonFormatter("p").format(record))["message"]


def test_what_raises_in_a_callback_is_logged_and_the_loop_goes_on(lines: Any) -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        log_loop_errors(loop)
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        return "alive"

    assert asyncio.run(main()) == "alive"
    (line,) = lines()
    assert line["level"] == "error"
    assert "ZeroDivisionError" in line["error"]


def test_an_uncaught_error_is_the_last_line_of_a_process() -> None:
    code = "from shared.logs import configure; configure('p', 'info'); raise RuntimeError('the end')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == ""
    line = json.loads(run.stdout)
    assert line["level"] == "critical"
    assert line["message"] == "uncaught: RuntimeError: the end"


class TestRepeats:
    """A message that comes again and again."""

    def logger(self, now: list[float]) -> tuple[Repeats, list[str]]:
        told: list[str] = []
        return Repeats(lambda record: told.append(record.getMessage()), lambda: now[0]), told

    def test_a_burst_is_written_and_the_rest_is_counted(self) -> None:
        now = [0.0]
        repeats, told = self.logger(now)
        record = logging.makeLogRecord({"name": "x", "levelno": 30, "msg": "down %d", "args": (7,)})
        written = sum(repeats.filter(record) for _ in range(BURST + 1234))
        assert (written, repeats.suppressed, told) == (BURST, 1234, [])
        now[0] = WINDOW
        other = logging.makeLogRecord({"name": "x", "levelno": 30, "msg": "other"})
        assert repeats.filter(other)
        assert told == ["down 7: and 1,234 more"]
        assert repeats.filter(record)

    def test_different_messages_do_not_count_together(self) -> None:
        repeats, told = self.logger([0.0])
        for number in range(100):
            assert repeats.filter(logging.makeLogRecord({"name": "x", "levelno": 30, "msg": f"m{number}"}))
        repeats.flush()
        assert told == []

    def test_the_end_of_a_process_tells_of_what_was_left_out(self) -> None:
        code = (
            "import logging; from shared.logs import configure, counts; configure('p', 'info'); "
            "[logging.getLogger('x').info('again') for _ in range(100)]; "
            "print(counts()['info'], counts()['suppressed'])"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        lines = run.stdout.splitlines()
        assert lines[BURST] == f"{BURST} {100 - BURST}"
        last = json.loads(lines[-1])
        assert (last["message"], last["repeats"]) == (f"again: and {100 - BURST} more", 100 - BURST)
