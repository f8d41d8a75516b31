from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from demo.pod import DemoError
from demo.prepare import Departures
from demo.story import Story, auc, banks_of, on_route, one_late


def departures(*routes: str) -> Departures:
    count = len(routes)
    return Departures(
        id=np.array(
            [f"20131127-AA{number}-{route[:3]}" for number, route in enumerate(routes)], dtype=np.str_
        ),
        day=np.array(["2013-11-27"] * count, dtype=np.str_),
        origin=np.array([route[:3] for route in routes], dtype=np.str_),
        dest=np.array([route[4:] for route in routes], dtype=np.str_),
        minute=np.arange(count, dtype=np.int64),
        delay=np.zeros(count),
        scores=np.zeros((count, 2), dtype=np.float32),
    )


@pytest.mark.parametrize(
    ("late", "chance", "expected"),
    [
        ([True, False], [0.9, 0.1], 1.0),
        ([True, False], [0.1, 0.9], 0.0),
        ([True, False], [0.5, 0.5], 0.5),
        ([True, False, True, False], [0.8, 0.7, 0.3, 0.2], 0.75),
    ],
)
def test_auc(late: list[bool], chance: list[float], expected: float) -> None:
    assert auc(np.array(late), np.array(chance)) == expected


def test_auc_of_departures_that_are_all_alike_is_none() -> None:
    assert math.isnan(auc(np.array([True, True]), np.array([0.1, 0.2])))


def test_pairs_with_just_one_late() -> None:
    assert one_late(np.array([16.0, 15.0, math.nan, 40.0])) == [(0, 1), (1, 3)]
    assert one_late(np.array([0.0, 1.0])) == []


def test_banks_are_hours_with_enough_departures() -> None:
    assert banks_of(np.array([59, 60, 61, 62, 70, 119, 120])) == {1: [1, 2, 3, 4, 5]}


def test_the_route_is_found() -> None:
    day = departures("LGA-ORD", "JFK-LAX", "LGA-ORD")
    assert on_route(day, "2013-11-27", "LGA-ORD").minute.tolist() == [0, 2]


def test_an_unknown_route_lists_those_of_its_origin() -> None:
    with pytest.raises(DemoError, match="choose of LGA-ATL, LGA-ORD"):
        on_route(departures("LGA-ORD", "JFK-LAX", "LGA-ATL"), "2013-11-27", "LGA-XXX")
    with pytest.raises(DemoError, match="EWR-…, JFK-… or LGA-…"):
        on_route(departures("LGA-ORD"), "2013-11-27", "SFO-LAX")


def test_an_unknown_day_says_which_there_are() -> None:
    with pytest.raises(DemoError, match="from 2013-11-01 to 2013-12-31"):
        on_route(departures(), "2014-01-01", "LGA-ORD")


def test_work_without_a_terminal_is_plain_lines() -> None:
    out = io.StringIO()
    story = Story(Console(file=out, width=80), "2013-11-27", "LGA-ORD", 5, 18085)
    with story.working("Did it", 2) as report:
        report("one thing")
    with story.working("Did that", 2, quick=True) as report:
        report("not worth a line")
    lines = out.getvalue().splitlines()
    assert lines[0] == "  one thing …"
    assert lines[1].startswith("✓ Did it  ")
    assert lines[2].startswith("✓ Did that  ")
    assert "\x1b" not in out.getvalue()
