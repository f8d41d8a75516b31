from __future__ import annotations

import io
import math

import pytest
from rich.console import Console, RenderableType

from demo import display
from demo.client import Row, Value
from demo.prepare import config


def printed(what: RenderableType, width: int = 110) -> str:
    out = io.StringIO()
    Console(width=width, file=out).print(what)
    return out.getvalue()


def departure(flight: str, risk: float) -> Row:
    values: dict[str, Value] = {
        "flight_id": f"20131127-{flight}-LGA",
        "departure_risk": risk,
        "late_probability": risk,
        "expected_delay": 12.4,
        "flight:schedule:minute_of_day": 605,
        "plane:type:model": "737-824",
    }
    return Row(values, "")


DELAYS = {"20131127-AA1-LGA": -4.0, "20131127-UA22-LGA": 61.0, "20131127-B63-LGA": math.nan}
ROWS = [departure("AA1", 0.1), departure("UA22", 0.7), departure("B63", 0.4)]


def test_departures_are_ranked_and_say_what_happened() -> None:
    lines = [
        line
        for line in printed(display.departure_table(ROWS, DELAYS, 9, False)).splitlines()
        if "10:05" in line
    ]
    assert [line.split()[2] for line in lines] == ["UA22", "B63", "AA1"]
    assert "61 min late" in lines[0]
    assert "cancelled" in lines[1]
    assert "on time (-4)" in lines[2]
    assert "…" not in "".join(lines)


def test_what_is_not_shown_is_summed_up() -> None:
    text = printed(display.departure_table(ROWS, DELAYS, 1, False))
    assert "… and 2 less risky ones: 0 late, 1 cancelled" in text


def test_a_narrow_table_fits_80_columns_uncut() -> None:
    text = printed(display.departure_table(ROWS, DELAYS, 9, True), 78)
    assert "…" not in text
    assert "737-824" not in text


def test_levels_are_longest_ways_from_the_root() -> None:
    parents = {"a": ["feature_initializer"], "c": ["a", "b"], "b": ["a"], "d": ["feature_initializer"]}
    assert display.levels(parents) == [["a", "d"], ["b"], ["c"]]


def test_the_dag_shows_every_component_score_and_expression() -> None:
    text = printed(display.dag_view(config(), {"departure_risk": "p minutes 60 /"}))
    for word in ("origin_hour", "by origin + hour", "late_model", "→ late_probability", "p minutes 60 /"):
        assert word in text
    assert text.index(" flight ") < text.index(" plane ") < text.index(" late_model ") < text.index(" risk ")


@pytest.mark.parametrize(
    ("chance", "delay", "mark"),
    [(0.9, 30.0, "right"), (0.9, 3.0, "wrong"), (0.2, 3.0, "right"), (0.2, 30.0, "wrong")],
)
def test_pairs_are_marked(chance: float, delay: float, mark: str) -> None:
    assert mark in printed(display.pair_table([("a", "b", chance, delay, 33.0 - delay)], False))


@pytest.mark.parametrize(
    ("share", "value"), [(0.5, 2), (0.9, 4), (0.99, 4), (1.0, 4), (0.25, 1), (0.26, 2), (0.0, 1)]
)
def test_quantiles(share: float, value: float) -> None:
    assert display.quantile([1, 2, 3, 4], share) == value


def test_quantiles_need_enough_calls() -> None:
    text = printed(display.timing_table({"many": [float(n) for n in range(1, 101)], "one": [7.0]}))
    many, one = (line.split() for line in text.splitlines() if "many" in line or "one" in line)
    assert many == ["many", "100", "50.0", "90.0", "99.0", "100.0"]
    assert one == ["one", "1", "–", "–", "–", "7.0"]


def test_banks() -> None:
    text = printed(display.bank_table([(9, 20, 0.08, 0.39), (10, 21, 0.5, 0.3)]))
    assert "09:00" in text
    assert text.index("disrupted", text.index("09:00")) < text.index("10:00") < text.index("fine")
