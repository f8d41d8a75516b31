"""What the demo prints: rich renderables of plain values. Knows nothing of processes and calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.align import Align
from rich.columns import Columns
from rich.console import Group, JustifyMethod, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dag.config import FeatureComponent, ModelConfig, NumerixComponent, PredatorComponent
from demo.client import Row

__all__ = [
    "bank_table",
    "dag_view",
    "departure_table",
    "model_quality",
    "pair_table",
    "text_table",
    "timing_table",
]

LATE_MINUTES = 15
ROOT = "feature_initializer"
BAR = 10  # cells of a full bar
_DEPARTURE_COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    *(("", "right"), ("time", "right"), ("flight", "left"), ("plane", "left")),
    *(("wind\nmph", "right"), ("sight\nmiles", "right"), ("board\nlate", "right")),
    *(("P(late)", "right"), (" ", "left"), ("expect\nmin", "right"), ("risk", "right")),
    ("what happened", "right"),
)
_WIDE_COLUMNS = ("plane", " ")
Component = FeatureComponent | PredatorComponent | NumerixComponent


# ---------------------------------------------------------------- the DAG


def dag_view(config: ModelConfig, expressions: Mapping[str, str]) -> RenderableType:
    """The config's DAG, a row of boxes for each step; a box of a row needs boxes of the rows above it only."""
    parts = config.component_config
    components: list[Component] = [*parts.feature_components, *parts.predator_components]
    components += parts.numerix_components
    by_name = {component.component: component for component in components}
    rows: list[RenderableType] = [
        Align.center(Text(f"rows: one for each {config.response_config.features[0]}"))
    ]
    for level in levels(config.dag_execution_config.component_dependency):
        boxes = [_box(by_name[name], expressions) for name in level]
        rows += [Align.center(Text("↓", style="dim")), Align.center(Columns(boxes, padding=(0, 1)))]
    rows += [Align.center(Text("↓", style="dim")), Align.center(Text("columns of the answer"))]
    return Group(*rows)


def levels(parents: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Components by the length of their longest way from the root, in the order of the config.

    `parents` is component → the components it depends on, without cycles.
    """
    depth = {ROOT: 0}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(measure(parent) for parent in parents[name])
        return depth[name]

    for name in parents:
        measure(name)
    return [[name for name in parents if depth[name] == step] for step in range(1, max(depth.values()) + 1)]


def _box(component: Component, expressions: Mapping[str, str]) -> Panel:
    if isinstance(component, FeatureComponent):
        keys = " + ".join(key.schema for key in component.fs_keys)
        names = [name for group in component.fs_request.feature_groups for name in group.features]
        lines, style = [f"by {keys}", *_wrapped(names, 20)], "cyan"
    elif isinstance(component, PredatorComponent):
        features = sum(len(spec.features) for spec in component.inputs)
        scores = [score for output in component.outputs for score in output.model_scores]
        lines = [f"model “{component.model_name}”, {features} features", *(f"→ {score}" for score in scores)]
        style = "magenta"
    else:
        lines = [expressions.get(component.compute_id, component.compute_id), f"→ {component.score_col}"]
        style = "yellow"
    title = Text(component.component, style=f"bold {style}")
    return Panel(Text("\n".join(lines)), title=title, border_style=style, box=box.ROUNDED, expand=False)


def _wrapped(names: Iterable[str], width: int) -> list[str]:
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + 1 + len(name) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}".strip()
    return lines


# ---------------------------------------------------------------- scores


def departure_table(
    rows: Sequence[Row], delays: Mapping[str, float], shown: int, narrow: bool
) -> RenderableType:
    """The departures, the riskiest first, with the features that matter and what really happened.

    `delays` is flight → minutes, NaN for cancelled. Of more than `shown` rows the rest is summed up. A narrow
    table leaves out plane and bar and has 80 columns.
    """
    ranked = sorted(rows, key=lambda row: -row.number("departure_risk"))
    table = _table()
    for name, justify in _DEPARTURE_COLUMNS:
        if not (narrow and name in _WIDE_COLUMNS):
            table.add_column(name, justify=justify, no_wrap=True, max_width=13, vertical="bottom")
    for place, row in enumerate(ranked[:shown], start=1):
        cells = _departure_cells(row, delays[str(row["flight_id"])])
        names = [name for name, _ in _DEPARTURE_COLUMNS[1:]]
        kept = [
            cell for name, cell in zip(names, cells, strict=True) if not (narrow and name in _WIDE_COLUMNS)
        ]
        table.add_row(Text(str(place), style="dim"), *kept)
    rest = [delays[str(row["flight_id"])] for row in ranked[shown:]]
    if not rest:
        return table
    late = sum(delay > LATE_MINUTES for delay in rest)
    gone = sum(math.isnan(delay) for delay in rest)
    told = f"… and {len(rest)} less risky ones: {late} late, {gone} cancelled"
    return Group(table, Text(told, style="dim"))


def _departure_cells(row: Row, delay: float) -> list[RenderableType]:
    chance = row.number("late_probability")
    return [
        clock(row.number("flight:schedule:minute_of_day")),
        str(row["flight_id"]).split("-")[1],
        str(row["plane:type:model"] or "–"),
        _number(row.number("origin_hour:weather:wind_speed")),
        _number(row.number("origin_hour:weather:visib")),
        _percent(row.number("origin_hour:board:late_share")),
        _percent(chance),
        _bar(chance),
        _number(row.number("expected_delay")),
        _number(row.number("departure_risk"), 2),
        outcome(delay),
    ]


def pair_table(pairs: Iterable[tuple[str, str, float, float, float]], narrow: bool) -> Table:
    """Pairs of (first, second, chance that the first is the late one, delay of the first, of the second)."""
    table = _table()
    bar = () if narrow else ("",)
    for name in ("first", "second", "P(first)", *bar, "the first", "the second", ""):
        table.add_column(name, no_wrap=True)
    for first, second, chance, one, other in pairs:
        right = (chance > 0.5) == (one > LATE_MINUTES)
        mark = Text("✓ right", style="green") if right else Text("✗ wrong", style="red")
        bars = () if narrow else (_bar(chance),)
        table.add_row(first, second, _percent(chance), *bars, outcome(one), outcome(other), mark)
    return table


def bank_table(banks: Iterable[tuple[int, int, float, float]]) -> Table:
    """Banks of (hour, departures, chance of disruption, share that was late or cancelled)."""
    table = _table()
    for name in ("hour", "departures", "P(disrupted)", "", "late or cancelled", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for hour, departures, chance, share in banks:
        table.add_row(
            clock(hour * 60),
            str(departures),
            _percent(chance),
            _bar(chance),
            _percent(share),
            Text("disrupted", style="red") if share >= 1 / 3 else Text("fine", style="green"),
        )
    return table


def text_table(rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts whose first row has the column names."""
    table = _table()
    for name in rows[0]:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def timing_table(took: Mapping[str, Sequence[float]]) -> Table:
    """Calls by name: how many, and their milliseconds at the median and beyond."""
    table = _table()
    for name in ("call", "calls", "median ms", "90 %", "99 %", "slowest"):
        table.add_column(name, justify="left" if name == "call" else "right", no_wrap=True)
    for name, times in took.items():
        ordered = sorted(times)
        marks = [quantile(ordered, share) if len(ordered) >= 10 else math.nan for share in (0.5, 0.9, 0.99)]
        table.add_row(name, str(len(ordered)), *(_number(mark, 1) for mark in (*marks, ordered[-1])))
    return table


def model_quality(metrics: Mapping[str, float]) -> Text:
    """How good the models are on the held-out months, in words."""
    return Text.assemble(
        f"On all {metrics['departures']:,.0f} departures of November and December, which no model saw: ",
        (f"AUC {metrics['auc']:.3f}", "bold"),
        f". {metrics['late_share']:.0%} were late, of the riskiest tenth ",
        (f"{metrics['late_share_of_riskiest_tenth']:.0%}", "bold"),
        f". Expected minutes are off by {metrics['minutes_error']:.1f} on average "
        f"(always saying the mean: {metrics['minutes_error_of_mean']:.1f}). ",
        f"Pairs: {metrics['pairs_right']:.0%} right. Banks: AUC {metrics['bank_auc']:.3f}.",
    )


# ---------------------------------------------------------------- cells


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the sorted values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def clock(minute: float) -> str:
    """A minute of the day as 17:05."""
    return f"{int(minute) // 60:02}:{int(minute) % 60:02}"


def outcome(delay: float) -> Text:
    """What happened to a departure; NaN minutes is cancelled."""
    if math.isnan(delay):
        return Text("cancelled", style="bold red")
    if delay > LATE_MINUTES:
        return Text(f"{delay:.0f} min late", style="red")
    return Text(f"on time ({delay:+.0f})", style="green")


def _table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold"
    )


def _number(value: float, digits: int = 0) -> Text:
    return Text("–", style="dim") if math.isnan(value) else Text(f"{value:.{digits}f}")


def _percent(share: float) -> Text:
    return Text("–", style="dim") if math.isnan(share) else Text(f"{share:.0%}")


def _bar(share: float) -> Text:
    if math.isnan(share):
        return Text("")
    full = round(share * BAR)
    style = "red" if share >= 0.5 else "yellow" if share >= 0.25 else "green"
    return Text.assemble(("━" * full, style), ("─" * (BAR - full), "dim"))
