"""Dashboards and alerts name metrics that exist, every metric is somewhere, every alert has its runbook."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from shared.metrics import METRICS, Kind
from sidecar.exposition import families
from tests.frontdoor.process import ROOT
from tests.interop.tools import run, tool

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "alerts" / "prometheus-rules.yaml"
OPERATING = (ROOT / "docs" / "operating.md").read_text()
NAME = re.compile(r"\b(inferflow_[a-z0-9_]+)\b")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


BUILD = load(DEPLOY / "dashboards" / "build.py")


def exposed() -> dict[str, str]:
    """Every name on the Prometheus page → its metric."""
    names = {}
    for metric in METRICS.values():
        suffixes = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        names.update({metric.name + suffix: metric.name for suffix in suffixes})
    return names


def about_processes() -> set[str]:
    """What the page tells of the boards themselves."""
    return {family.name for family in families([])}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def grafana() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DEPLOY / "dashboards" / "grafana.json").read_text())
    return document


def expressions() -> list[str]:
    """Every PromQL expression of the Grafana dashboard."""
    panels = [panel for panel in grafana()["panels"] if panel["type"] != "row"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def datadog_queries() -> list[str]:
    document = json.loads((DEPLOY / "dashboards" / "datadog.json").read_text())
    widgets = [widget for group in document["widgets"] for widget in group["definition"]["widgets"]]
    return [request["q"] for widget in widgets for request in widget["definition"]["requests"]]


@pytest.mark.parametrize("name", ["grafana.json", "datadog.json"])
def test_the_files_are_made_from_the_list_of_panels(name: str) -> None:
    text = (DEPLOY / "dashboards" / name).read_text()
    assert text == BUILD.build()[name], "run `python deploy/dashboards/build.py`"


@pytest.mark.parametrize("where", ["grafana", "alerts"])
def test_every_name_is_a_metric(where: str) -> None:
    texts = expressions() if where == "grafana" else [rule["expr"] for rule in alerts()]
    named = {name for text in texts for name in NAME.findall(text)}
    assert len(named) > 15
    assert named <= exposed().keys() | about_processes()


def test_every_label_is_one_of_its_metric() -> None:
    added = {"le", "process", "namespace", "pod", "instance"}  # by the page, and by the scrape
    for text in [*expressions(), *(rule["expr"] for rule in alerts())]:
        metrics = {exposed()[name] for name in NAME.findall(text) if name not in about_processes()}
        known = added.union(*(METRICS[name].labels for name in metrics))
        for labels in re.findall(r"\bby \(([^)]*)\)|\bon \(([^)]*)\)", text):
            assert {label.strip() for label in "".join(labels).split(",")} <= known, text
        for label in re.findall(r"[{,](\w+)(?:=~|!~|!=|=)\"", text):
            assert label in known, text


def test_every_metric_is_shown_or_left_out_on_purpose() -> None:
    shown = {exposed()[name] for text in expressions() for name in NAME.findall(text)}
    assert shown | BUILD.NOT_SHOWN.keys() == METRICS.keys()
    assert not shown & BUILD.NOT_SHOWN.keys()


def test_every_datadog_name_is_sent() -> None:
    sent = {spelling.name for metric in METRICS.values() for spelling in metric.spellings}
    asked = {
        re.sub(r"\.(median|95percentile|max|avg)$", "", name)
        for query in datadog_queries()
        for name in re.findall(r"(?:sum|avg|max):([A-Za-z0-9._]+)\{", query)
    }
    assert asked <= sent
    shown = {metric.name for metric in METRICS.values() if asked & {one.name for one in metric.spellings}}
    assert shown | BUILD.NOT_SHOWN.keys() == METRICS.keys()


def test_every_alert_has_a_runbook() -> None:
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-")
               for line in re.findall(r"^#+ (.*)$", OPERATING, re.MULTILINE)}  # fmt: skip
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/operating.md"
        assert anchor == rule["alert"].lower()
        assert anchor in anchors, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]


def test_every_runbook_has_an_alert() -> None:
    assert set(re.findall(r"^#+ (Inferflow[A-Z]\w+)$", OPERATING, re.MULTILINE)) == {
        rule["alert"] for rule in alerts()
    }


@pytest.mark.full
def test_promtool_reads_the_rules() -> None:
    assert f"{len(alerts())} rules found" in run(tool("promtool"), "check", "rules", RULES)


@pytest.mark.full
def test_alerts_fire_when_they_should_and_not_before() -> None:
    run(tool("promtool"), "test", "rules", ROOT / "tests" / "data" / "alerts.test.yaml")
