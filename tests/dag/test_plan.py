"""Plans: the schedule of a topology."""

from __future__ import annotations

from dag.config import ROOT
from dag.layout import Source
from dag.plan import OutputColumn
from dag.schedule import schedule
from dag.topology import topology
from shared.datatypes import DataType
from tests.dag.plans import plan_of


def test_a_schedule_numbers_components_by_their_order() -> None:
    made = topology(
        {"rank": ["fetch", "pair"], "fetch": [ROOT], "pair": [ROOT], "mix": ["rank", "fetch"]},
        ["fetch", "pair", "rank", "mix"],
    )
    order = made.order
    assert set(order) == {"fetch", "pair", "rank", "mix"}
    number = {name: order.index(name) for name in order}
    made_schedule = schedule(made)
    assert {order[at] for at in made_schedule.first} == {"fetch", "pair"}
    assert [made_schedule.waits[number[name]] for name in ("fetch", "pair", "rank", "mix")] == [0, 0, 2, 2]
    assert {order[at] for at in made_schedule.releases[number["fetch"]]} == {"rank", "mix"}
    assert made_schedule.releases[number["mix"]] == ()


def test_a_chain() -> None:
    made = schedule(topology({"a": [ROOT], "b": ["a"], "c": ["b"]}, ["a", "b", "c"]))
    assert (made.first, made.waits, made.releases) == ((0,), (0, 1, 1), ((1,), (2,), ()))
    assert repr(made) == "<Schedule of 3 components, 1 of them start at once>"


def test_plans_and_columns_say_what_they_are() -> None:
    assert repr(plan_of([], [])) == "<Plan made_up 0123456789ab 0 components>"
    assert OutputColumn(Source("score", None, 3), DataType.FP32, 0).name == "score"
