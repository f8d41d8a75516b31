"""docs/metrics.md, made from the metrics themselves: `python -m shared.metrics_page > docs/metrics.md`."""

from __future__ import annotations

from shared.metrics import METRICS, TAGS, Kind, Metric, Part, Statsd

__all__ = ["page"]

HEAD = """# Metrics

Every process of a pod counts on a board of its own and publishes it about once a second. They are to be had in
three ways:

- **Prometheus**: `GET /metrics` on the admin port, for the whole pod. Every series also has the label `process`
  (`worker-0`, `frontdoor-0`, `config`, `log`). A process that was restarted begins at 0, as `rate()` expects; so
  sum *after* `rate()`: `sum by (model) (rate(inferflow_requests_total[1m]))`. With
  `Accept: application/openmetrics-text` the histograms have exemplars with the ids of traces.
- **DogStatsD**: each process sends to `TELEGRAF_HOST`:`TELEGRAF_PORT` (or `INFERFLOW_STATSD_SOCKET`), with the
  tags `env` and `service`. Counters are exact: what was added since the last time is sent about once a second. Of
  timings at most 8 a second and series are sent, of those the share METRIC_SAMPLING_RATE, each with the rate that
  makes the agent's counts right. Gauges also have the tag `process`.
- **On the pod**: `inferflow status`, `inferflow top`.

Times are in ms. This page is made from the code: `python -m shared.metrics_page > docs/metrics.md`.

| metric | kind | labels | recorded by | meaning |
|---|---|---|---|---|
"""

STATSD = """
## DogStatsD names

| name | type | tags | of |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{metric.name}` | {metric.kind.value}{f', {metric.unit}' if metric.unit else ''} "
        f"| {', '.join(metric.labels)} | {', '.join(metric.processes)} | {metric.help} |"
        for metric in METRICS.values()
    ]
    names = [_name(metric, spelling) for metric in METRICS.values() for spelling in metric.spellings]
    return HEAD + "\n".join(rows) + "\n" + STATSD + "\n".join(names) + "\n"


def _name(metric: Metric, spelling: Statsd) -> str:
    if metric.kind is Kind.GAUGE:
        kind = "gauge"
    elif metric.kind is Kind.HISTOGRAM and spelling.part is Part.VALUE:
        kind = "timing"
    else:
        kind = "count"
    tags = [TAGS.get(label, label) for label in spelling.labels]
    if metric.kind is Kind.GAUGE:
        tags.append("process")
    part = "" if spelling.part is Part.VALUE else f"{spelling.part.value} of "
    only = "" if spelling.only is None else f", {spelling.only[0]} {' or '.join(spelling.only[1])}"
    return f"| `{spelling.name}` | {kind} | {', '.join(tags)} | {part}`{metric.name}`{only} |"


if __name__ == "__main__":
    print(page(), end="")
