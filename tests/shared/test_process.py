"""A process ends with its parent, knows its cores, and can be pinned to one."""

import ctypes
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.process import ParentGoneError, cores, die_with_parent, keep_freed_memory, pin

CHILD = """
import signal
from shared.process import die_with_parent
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
die_with_parent()
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
print("told", flush=True)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_parent_takes_its_children_along() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == "told\n"  # the end of the file: the child, which holds the pipe, ended


def test_a_parent_that_has_gone_before_is_noticed() -> None:
    code = "from shared.process import die_with_parent; die_with_parent(1)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"ParentGoneError: the parent, process 1, has gone: now it is {os.getpid()}" in run.stderr


def test_the_expected_parent_is_accepted() -> None:
    code = f"from shared.process import die_with_parent; die_with_parent({os.getpid()})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_parent_gone_error_is_the_only_answer_to_a_wrong_parent() -> None:
    with pytest.raises(ParentGoneError):
        die_with_parent(os.getpid())


def test_cores_follow_the_limit_of_the_container(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    allowed = len(os.sched_getaffinity(0))
    assert cores(quota) == allowed
    for text, expected in [("max 100000", allowed), ("50000 100000", 1), ("100000000 100000", allowed)]:
        quota.write_text(text + "\n")
        assert cores(quota) == expected


def test_pinning_goes_round_the_allowed_cores() -> None:
    before = os.sched_getaffinity(0)
    try:
        for index in (0, len(before), 2 * len(before) - 1):
            os.sched_setaffinity(0, before)
            core = pin(index)
            assert core == sorted(before)[index % len(before)]
            assert os.sched_getaffinity(0) == {core}
    finally:
        os.sched_setaffinity(0, before)


FAULTS = """
import resource
from shared.process import keep_freed_memory
assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def turn():
    return len([bytes(1 << 20) for _ in range(5)])
for _ in range(5):
    turn()
before = faults()
for _ in range(20):
    turn()
print(faults() - before)
"""


@pytest.mark.skipif(not platform.libc_ver()[0], reason="a habit of glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """Otherwise each turn costs a hundred."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not keep_freed_memory()
