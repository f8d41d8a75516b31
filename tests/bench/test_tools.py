"""What the benchmark measures with, and how it reports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.cases import CASES
from bench.load import Load, LoadError, Summary, parse_summary
from bench.measure import Measured, Sample, ask, ratio
from bench.report import Table, TableError, figure, replace_section
from bench.sampling import hottest
from bench.subjects import Sitting, Subject

SUMMARY = """\
finished in 812.56ms, 1230.71 req/s, 300.12KB/s
requests: 1000 total, 1000 started, 1000 done, 998 succeeded, 2 failed, 0 errored, 0 timeout
status codes: 998 2xx, 0 3xx, 2 4xx, 0 5xx
traffic: 243.85KB (249702) total, 9.81KB (10042) headers (space savings 88.20%), 175.78KB (180000) data
"""


def test_summary_of_h2load() -> None:
    assert parse_summary(SUMMARY) == Summary(seconds=0.81256, succeeded=998, answer_bytes=180000)


def test_no_summary_is_an_error() -> None:
    with pytest.raises(LoadError, match="nothing that is understood"):
        parse_summary("connect failed")


def test_load_tells_rate_and_percentiles() -> None:
    load = Load(0.5, np.arange(101.0))
    assert load.per_second == 202
    assert (load.percentile(50), load.percentile(99)) == (50, 99)


def test_ratios_are_of_the_same_round() -> None:
    def measured(*totals: float) -> Measured:
        return Measured([Sample({"worker": total - 1, "front door": 1}, 1, 1, 1) for total in totals])

    one, other = measured(10, 30, 20), measured(100, 100, 400)
    assert ratio(one, other) == pytest.approx([0.05, 0.1, 0.3])
    assert one.part("worker") == 19
    assert one.part("peer") == 0


def test_cpu_of_a_process_is_counted() -> None:
    pid = os.getpid()
    subject = Subject("this", 0, {pid: "test"})
    before, own = subject.cpu(), time.process_time()
    while time.process_time() - own < 0.02:
        pass
    assert subject.cpu()["test"] - before["test"] >= 0.02


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.6, "12,350"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (0.0, "0.000"),
    ],
)
def test_figures_have_about_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_section_of_a_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    table = Table("t", ("case", "µs"), [("one", "1")])
    replace_section(page, "x", table.markdown())
    assert page.read_text() == "a\n<!-- x -->\n| case | µs |\n| --- | ---: |\n| one | 1 |\n<!-- /x -->\nb\n"
    with pytest.raises(TableError, match="0 sections <!-- y -->"):
        replace_section(page, "y", "")


def test_the_page_has_the_sections() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
    text = page.read_text()
    for section in ("cases", "stages", "executor threads"):
        assert text.count(f"<!-- {section} -->") == text.count(f"<!-- /{section} -->") == 1


def test_hottest_functions_of_samples() -> None:
    hot = hottest(["main;serve;read 3", "main;serve 1", "main;serve;read;read 4"])
    assert hot == [("read", 0.875, 0.875), ("serve", 0.125, 1.0)]


@pytest.mark.slow
def test_peer_and_floor_answer_as_expected() -> None:
    cores = sorted(os.sched_getaffinity(0))
    case = CASES["perf60"]
    with Sitting(cores, cores) as sitting:
        answer = ask(sitting.peer("perf60"), case, 10)
        assert ask(sitting.floor({case.message(10): answer}), case, 10) == answer
        directory = sitting.directory
    assert not directory.exists()
    assert sorted(os.sched_getaffinity(0)) == cores


@pytest.mark.full
def test_a_quick_run(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench.run", "--quick", "--targets=10", f"--json={results}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "perf60c" in done.stdout
    assert results.stat().st_size
