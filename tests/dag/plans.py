"""Plans of components that a test makes up."""

from __future__ import annotations

from collections.abc import Sequence

from dag.component import Component
from dag.config import ModelConfig
from dag.layout import Layout
from dag.meters import PlanMeters
from dag.plan import Answer, OutputColumns, Plan
from dag.schedule import Schedule
from shared.board import Board

__all__ = ["EMPTY_LAYOUT", "plan_of"]

EMPTY_LAYOUT = Layout((), {}, {})


def plan_of(components: Sequence[Component], parents: Sequence[Sequence[int]]) -> Plan:
    """A plan of these components; parents[i]: the (earlier) components that component i waits for."""
    numbers = range(len(components))
    return Plan(
        model_config_id="made_up",
        digest="0123456789abcdef",
        config=ModelConfig(),
        components=tuple(components),
        schedule=Schedule(
            first=tuple(number for number in numbers if not parents[number]),
            waits=tuple(len(set(parents[number])) for number in numbers),
            releases=tuple(
                tuple(child for child in numbers if number in parents[child]) for number in numbers
            ),
        ),
        layout=EMPTY_LAYOUT,
        slate_layout=EMPTY_LAYOUT,
        answer=Answer(OutputColumns(), OutputColumns(), OutputColumns(), OutputColumns()),
        id_column="id",
        constants=(),
        composites=frozenset(),
        meters=PlanMeters(Board("worker-0"), "made_up", [str(number) for number in numbers], {}),
    )
