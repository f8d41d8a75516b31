"""The books of processes that end by themselves."""

from __future__ import annotations

from pathlib import Path

from shared.crashes import LOOP_ENDS, LOOP_SECONDS, Crashes, Ends, looping, read


def test_nobody_has_ended(tmp_path: Path) -> None:
    assert read(tmp_path) == {}
    assert looping({}) == []


def test_what_was_written_is_read(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path)
    crashes.ended("worker_0", "a signal", 1.0)
    crashes.ended("config", "exit status 1", 2.0)
    crashes.ended("worker_0", "exit status 2", 3.5)
    assert read(tmp_path) == {
        "worker_0": Ends(2, (1.0, 3.5), "exit status 2"),
        "config": Ends(1, (2.0,), "exit status 1"),
    }


def test_a_pod_begins_with_empty_books(tmp_path: Path) -> None:
    Crashes(tmp_path).ended("worker_0", "a signal")
    Crashes(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_loop_is_many_ends_in_a_short_time(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path)
    for end in range(LOOP_ENDS - 1):
        crashes.ended("worker_0", "a signal", 100.0 + end)
    assert looping(read(tmp_path), 110.0) == []
    crashes.ended("worker_0", "exit status 1", 105.0)
    (sentence,) = looping(read(tmp_path), 110.0)
    assert sentence == "worker_0 ended 3 times in 10 s, the last time by exit status 1"


def test_a_loop_is_over_when_the_process_has_run_long_enough(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path)
    for _ in range(LOOP_ENDS):
        crashes.ended("worker_0", "a signal", 100.0)
    assert looping(read(tmp_path), 100.0 + LOOP_SECONDS)
    assert looping(read(tmp_path), 100.1 + LOOP_SECONDS) == []


def test_rare_ends_are_no_loop(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path)
    for end in range(10):
        crashes.ended("worker_0", "a signal", LOOP_SECONDS * end)
    assert looping(read(tmp_path), LOOP_SECONDS * 9) == []
    assert read(tmp_path)["worker_0"].total == 10


def test_what_is_no_part_of_the_pod_any_more_is_forgotten(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path)
    crashes.ended("worker_0", "a signal", 1.0)
    crashes.ended("worker_1", "a signal", 2.0)
    crashes.forget("worker_1")
    crashes.forget("worker_2")
    assert read(tmp_path).keys() == {"worker_0"}
