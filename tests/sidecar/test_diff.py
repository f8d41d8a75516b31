"""What `inferflow config put` and `diff` say of two texts."""

from __future__ import annotations

import pytest

from sidecar.diff import difference
from tests.sidecar.texts import config

KEY = "config-map/a"


def test_plan_and_endpoints_of_two_configs() -> None:
    found = difference(KEY, config("v1"), config("v1", endpoint="other:9000"))
    assert found["endpoints"] == {"added": ["other:9000"], "removed": ["models"]}
    assert found["plan"]["old"] == found["plan"]["new"]


def test_a_config_that_comes_has_all_of_its_plan() -> None:
    found = difference(KEY, None, config("v1"))
    assert found["plan"] == {"old": [], "new": ["fetch", "rank"]}
    assert found["endpoints"]["removed"] == []


@pytest.mark.parametrize("text", [b"{", b'{"component_config": 5}', b"\xff"])
def test_a_text_that_is_no_config_takes_no_plan_and_no_endpoint_away(text: bytes) -> None:
    found = difference(KEY, config("v1"), text)
    assert found["count"] > 0
    assert "plan" not in found
    assert "endpoints" not in found
