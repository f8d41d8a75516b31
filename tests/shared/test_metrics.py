"""The list of metrics, and the page made from it."""

from __future__ import annotations

import re
from pathlib import Path

from shared.metrics import METRICS, TAGS, Kind, Part
from shared.metrics_page import page

KNOWN = """
inferflow.retrievemodelscore.request.total inferflow.retrievemodelscore.latency
inferflow.retrievemodelscore.request.latency inferflow.retrievemodelscore.batch.size
inferflow.retrievemodelscore.request.batch.size
predict.infer.request.total predict.infer.latency predict.infer.request.latency predict.infer.request.batch.size
inferflow.component.execution.total inferflow.component.execution.latency inferflow.component.execution.error
inferflow.component.feature.count
inferflow.external.api.request.total inferflow.external.api.request.latency inferflow.external.api.request.batch
inferflow.external.api.latency
inferflow.component.inmemorycache.request.total inferflow.component.inmemorycache.miss
inferflow.component.inmemorycache.request.miss.total
inferflow.logging.kafka_sent inferflow.logging.error
inferflow.router.api.request.total inferflow.router.api.request.latency
""".split()
"""What dashboards use."""


def tags(name: str) -> set[str]:
    """The tags of a DogStatsD name."""
    (found,) = [one for metric in METRICS.values() for one in metric.spellings if one.name == name]
    return {TAGS.get(label, label) for label in found.labels}


def test_every_name_that_dashboards_use_is_there() -> None:
    names = [spelling.name for metric in METRICS.values() for spelling in metric.spellings]
    assert len(names) == len(set(names))
    assert set(KNOWN) <= set(names)


def test_tags_are_those_that_dashboards_use() -> None:
    assert tags("predict.infer.request.total") == {"model-id", "inference-mode"}
    assert tags("inferflow.component.execution.error") == {"model-id", "component-name", "error-type"}
    assert tags("inferflow.external.api.request.batch") == {"ext-service", "endpoint"}
    assert tags("inferflow.router.api.request.latency") == {"api", "status"}


def test_metrics_are_named_by_the_rules_of_prometheus() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch("inferflow_[a-z0-9_]+", name)
        assert name.endswith("_total") == (metric.kind is Kind.COUNTER), name
        assert ("_milliseconds" in name) == (metric.unit == "ms"), name
        assert metric.help.endswith("."), name
        assert "process" not in metric.labels


def test_spellings_have_labels_of_their_metric() -> None:
    for metric in METRICS.values():
        for spelling in metric.spellings:
            assert set(spelling.labels) <= set(metric.labels), spelling
            assert spelling.only is None or spelling.only[0] in metric.labels
            assert spelling.part is Part.VALUE or metric.kind is Kind.HISTOGRAM


def test_bounds_ascend() -> None:
    for metric in METRICS.values():
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)


def test_the_page_is_that_of_the_code() -> None:
    path = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert path.read_text() == page(), "run `python -m shared.metrics_page > docs/metrics.md`"
