"""The dashboards, made from one list of panels: `python deploy/dashboards/build.py` writes both files.

A panel names metrics of the code's registry, and Grafana and Datadog are asked for the same. Datadog knows a metric
by the name that existing dashboards use, where it has one; its agent turns timings into `.median`, `.95percentile`
and `.max`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from shared.metrics import METRICS, TAGS, Kind, Metric, Part, Statsd  # noqa: E402

__all__ = ["NOT_SHOWN", "SECTIONS", "Panel", "Section", "build"]

NOT_SHOWN: Mapping[str, str] = {
    "inferflow_process_start_time_seconds": "for alerts and for uptime in tables; restarts are shown",
    "inferflow_config_age_seconds": "the versions are shown",
    "inferflow_client_calls_total": "requests are shown by method; these also count health checks",
}
"""Metrics that are on no dashboard, and why."""


@dataclass(frozen=True)
class Panel:
    """One graph. Counters are shown as rates, histograms as quantiles.

    `by`: labels with a line each; `over`: a counter to divide by; `of`: `rate` or `sum` of a histogram
    instead; `max` of a gauge that several processes tell of the same thing.
    """

    title: str
    metric: str
    by: tuple[str, ...] = ()
    unit: str = "short"
    over: str = ""
    of: str = ""


@dataclass(frozen=True)
class Section:
    """A row of panels, under a question that they answer."""

    title: str
    panels: tuple[Panel, ...]


MS, BYTES, PER_SECOND, SHARE = "ms", "bytes", "reqps", "percentunit"

SECTIONS = (
    Section(
        "Are clients served?",
        (
            Panel("Requests by model", "inferflow_requests_total", ("model", "mode"), PER_SECOND),
            Panel("Answers by status", "inferflow_router_latency_milliseconds", ("api", "status"), PER_SECOND,
                  of="rate"),
            Panel("Latency at the front door", "inferflow_router_latency_milliseconds", ("api",), MS),
            Panel("Latency at the worker, by model", "inferflow_request_latency_milliseconds", ("model",), MS),
            Panel("Rows", "inferflow_request_rows", ("model",), of="sum"),
            Panel("Rows with errors, by component and cause", "inferflow_component_error_rows_total",
                  ("model", "component", "error")),
        ),
    ),
    Section(
        "Which upstream is slow?",
        (
            Panel("Upstream latency", "inferflow_upstream_latency_milliseconds", ("service", "endpoint"), MS),
            Panel("Upstream calls by status", "inferflow_upstream_calls_total", ("service", "status"), PER_SECOND),
            Panel("Keys and rows asked for", "inferflow_upstream_rows_total", ("service", "endpoint")),
            Panel("Connections", "inferflow_upstream_connections", ("endpoint", "state")),
            Panel("Calls that wait for a stream", "inferflow_upstream_waiting", ("endpoint",)),
            Panel("Component errors", "inferflow_component_errors_total", ("model", "component", "error")),
        ),
    ),
    Section(
        "Where does the time go?",
        (
            Panel("Time on the critical path, a second", "inferflow_critical_path_milliseconds_total",
                  ("model", "component"), MS),
            Panel("Component latency", "inferflow_component_latency_milliseconds", ("model", "component"), MS),
            Panel("Deadline left when a component starts", "inferflow_component_deadline_left_milliseconds",
                  ("model", "component"), MS),
            Panel("Features asked for", "inferflow_component_features_total", ("model", "component")),
            Panel("Front door to worker", "inferflow_handover_latency_milliseconds", (), MS),
            Panel("Event loop lag", "inferflow_loop_lag_milliseconds", ("process",), MS),
        ),
    ),
    Section(
        "Is there room?",
        (
            Panel("CPU, cores", "inferflow_process_cpu_seconds_total", ("process",)),
            Panel("In flight, of each worker", "inferflow_worker_in_flight", ("process",)),
            Panel("In flight as front doors see it", "inferflow_frontdoor_worker_in_flight", ("worker",)),
            Panel("In flight at front doors", "inferflow_frontdoor_in_flight", ("process",)),
            Panel("Waiting for a worker", "inferflow_frontdoor_waiting", ("process",)),
            Panel("What happened to requests", "inferflow_frontdoor_events_total", ("event",), PER_SECOND),
            Panel("Request bodies held", "inferflow_frontdoor_held_bytes", ("process",), BYTES),
            Panel("Matrix slots busy", "inferflow_slots_busy", ("process",)),
            Panel("Matrix memory", "inferflow_matrix_bytes", ("process", "state"), BYTES),
            Panel("Resident memory", "inferflow_process_resident_bytes", ("process",), BYTES),
            Panel("File descriptors", "inferflow_process_fds", ("process", "state")),
            Panel("Client connections", "inferflow_client_connections", ("process",)),
            Panel("New client connections", "inferflow_client_connections_accepted_total", (), PER_SECOND),
            Panel("Limits that clients hit", "inferflow_http2_limits_total", ("limit",), PER_SECOND),
        ),
    ),
    Section(
        "Feature cache",
        (
            Panel("Keys looked up", "inferflow_cache_requests_total", ("model", "component")),
            Panel("Keys missed", "inferflow_cache_misses_total", ("model", "component")),
            Panel("Share missed", "inferflow_cache_misses_total", ("model",), SHARE,
                  over="inferflow_cache_requests_total"),
            Panel("Keys that another request fetched", "inferflow_cache_coalesced_total", ("service", "endpoint")),
            Panel("Memory", "inferflow_cache_bytes", ("state",), BYTES, of="max"),
            Panel("Entries put in", "inferflow_cache_inserts_total"),
            Panel("Evictions", "inferflow_cache_evictions_total"),
            Panel("Entries of no use", "inferflow_cache_unused_total", ("reason",)),
        ),
    ),
    Section(
        "Configs and processes",
        (
            Panel("Workers, as front doors see them", "inferflow_frontdoor_workers", ("process", "state")),
            Panel("Config version", "inferflow_config_version", ("process",)),
            Panel("Configs by state", "inferflow_config_keys", ("state",)),
            Panel("Config source away", "inferflow_config_source_away_seconds", (), "s"),
            Panel("Workers at the config sidecar", "inferflow_config_workers"),
            Panel("Processes that ended by themselves", "inferflow_process_restarts_total", ("program",)),
            Panel("Crash loops", "inferflow_crash_loops"),
            Panel("Log lines", "inferflow_log_lines_total", ("process", "level")),
        ),
    ),
    Section(
        "Inference logs, metrics, traces",
        (
            Panel("Messages acknowledged", "inferflow_log_sent_total"),
            Panel("Rows offered, and acknowledged", "inferflow_log_rows_total", ("state",)),
            Panel("Rows dropped", "inferflow_log_dropped_total", ("reason",)),
            Panel("Errors", "inferflow_log_errors_total", ("error",)),
            Panel("Files deleted", "inferflow_log_files_deleted_total", ("reason",)),
            Panel("Messages queued", "inferflow_log_queued"),
            Panel("Bytes queued", "inferflow_log_queued_bytes", (), BYTES),
            Panel("Series refused", "inferflow_series_refused_total", ("process",)),
            Panel("DogStatsD failures", "inferflow_statsd_failures_total", ("process",)),
            Panel("Spans", "inferflow_spans_total", ("outcome",)),
        ),
    ),
)  # fmt: skip

# ---------------------------------------------------------------- Prometheus, Grafana

SCOPE = 'namespace=~"$namespace",pod=~"$pod"'
_QUANTILES = (0.5, 0.95, 0.99)


def _promql(panel: Panel) -> Iterator[tuple[str, str]]:
    """(legend, expression) of each line of a panel."""
    metric = METRICS[panel.metric]
    legend = " ".join(f"{{{{{label}}}}}" for label in panel.by)
    if metric.kind is Kind.GAUGE:
        yield legend, f"{panel.of or 'sum'}{_by(panel.by)} ({metric.name}{{{SCOPE}}})"
    elif metric.kind is Kind.COUNTER:
        divisor = f" / {_rate(panel.over, panel.by)}" if panel.over else ""
        yield legend, _rate(metric.name, panel.by) + divisor
    elif panel.of:
        yield legend, _rate(f"{metric.name}_{'sum' if panel.of == 'sum' else 'count'}", panel.by)
    else:
        for quantile in _QUANTILES:
            rate = _rate(f"{metric.name}_bucket", ("le", *panel.by))
            yield f"p{quantile * 100:.0f} {legend}".strip(), f"histogram_quantile({quantile}, {rate})"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _rate(name: str, by: tuple[str, ...]) -> str:
    return f"sum{_by(by)} (rate({name}{{{SCOPE}}}[$__rate_interval]))"


def _grafana() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for section in SECTIONS:
        panels.append(_grafana_row(section.title, len(panels) + 1, top))
        top += 1
        for place, panel in enumerate(section.panels):
            across, down = place % 3, place // 3
            at = {"h": 8, "w": 8, "x": 8 * across, "y": top + 8 * down}
            panels.append(_grafana_panel(panel, len(panels) + 1, at))
        top += 8 * -(-len(section.panels) // 3)
    return {
        "title": "Inferflow",
        "uid": "inferflow",
        "tags": ["inferflow"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "templating": {
            "list": [_source(), _choice("namespace", ""), _choice("pod", 'namespace=~"$namespace"')]
        },
        "annotations": {"list": [_restarts()]},
        "panels": panels,
    }


def _grafana_row(title: str, number: int, top: int) -> dict[str, Any]:
    return {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": top}}  # fmt: skip


def _grafana_panel(panel: Panel, number: int, at: Mapping[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": METRICS[panel.metric].help,
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "gridPos": dict(at),
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}
        },
        "targets": [
            {"refId": chr(ord("A") + line), "expr": expression, "legendFormat": legend or panel.title}
            for line, (legend, expression) in enumerate(_promql(panel))
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choice(name: str, within: str) -> dict[str, Any]:
    query = f"label_values(inferflow_process_start_time_seconds{{{within}}}, {name})"
    return {"name": name, "type": "query", "query": query, "refresh": 2, "multi": True, "includeAll": True,
            "allValue": ".*", "current": {"text": "All", "value": "$__all"},
            "datasource": {"type": "prometheus", "uid": "${source}"}}  # fmt: skip


def _restarts() -> dict[str, Any]:
    return {"name": "Processes that ended by themselves", "enable": True, "iconColor": "red",
            "datasource": {"type": "prometheus", "uid": "${source}"},
            "expr": f"changes(inferflow_process_restarts_total{{{SCOPE}}}[1m]) > 0",
            "titleFormat": "{{program}} of {{pod}}"}  # fmt: skip


# ---------------------------------------------------------------- Datadog


def _datadog_queries(panel: Panel) -> Iterator[str]:
    metric = METRICS[panel.metric]
    for spelling in _spellings(metric, panel):
        yield from _readings(metric, spelling, panel)


def _spellings(metric: Metric, panel: Panel) -> Iterator[Statsd]:
    """The names of what the panel shows: one for each that does not mean the same as one before."""
    wanted = {"rate": Part.COUNT, "sum": Part.SUM}.get(panel.of, Part.VALUE)
    seen = set()
    for spelling in metric.spellings:
        if spelling.part is wanted and (spelling.only, spelling.labels) not in seen:
            seen.add((spelling.only, spelling.labels))
            yield spelling


def _readings(metric: Metric, spelling: Statsd, panel: Panel) -> Iterator[str]:
    tags = ",".join(TAGS.get(label, label) for label in panel.by if label in (*spelling.labels, "process"))
    by = f"{{$scope}} by {{{tags}}}" if tags else "{$scope}"
    if metric.kind is Kind.GAUGE:
        yield f"{panel.of or 'sum'}:{spelling.name}{by}"
    elif metric.kind is Kind.COUNTER or spelling.part is not Part.VALUE:
        divisor = f" / sum:{METRICS[panel.over].spellings[0].name}{by}.as_count()" if panel.over else ""
        yield f"sum:{spelling.name}{by}.{'as_count' if panel.over else 'as_rate'}()" + divisor
    else:
        yield f"avg:{spelling.name}.median{by}"
        yield f"max:{spelling.name}.95percentile{by}"
        yield f"max:{spelling.name}.max{by}"


def _datadog() -> dict[str, Any]:
    return {
        "title": "Inferflow",
        "description": "Made by deploy/dashboards/build.py",
        "layout_type": "ordered",
        "template_variables": [
            {"name": "scope", "prefix": "service", "available_values": [], "default": "*"},
        ],
        "widgets": [_datadog_group(section) for section in SECTIONS],
    }


def _datadog_group(section: Section) -> dict[str, Any]:
    widgets = [_datadog_widget(panel) for panel in section.panels]
    return {
        "definition": {"type": "group", "layout_type": "ordered", "title": section.title, "widgets": widgets}
    }


def _datadog_widget(panel: Panel) -> dict[str, Any]:
    requests = [{"q": query, "display_type": "line"} for query in _datadog_queries(panel)]
    return {
        "definition": {"type": "timeseries", "title": panel.title, "show_legend": True, "requests": requests}
    }


# ---------------------------------------------------------------- files


def build() -> dict[str, str]:
    """The text of each file."""
    made = {"grafana.json": _grafana(), "datadog.json": _datadog()}
    return {name: json.dumps(document, indent=1) + "\n" for name, document in made.items()}


if __name__ == "__main__":
    for name, text in build().items():
        (HERE / name).write_text(text)
