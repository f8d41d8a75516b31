"""Which etcd keys are read, and as what."""

from __future__ import annotations

import pytest

from sidecar.etcd_keys import EtcdKeys

APP = "/config/inferflow/services/shop-a/"
KEYS = EtcdKeys("shop-a")


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (f"{APP}model-config/config-map/rank-Me_2", "config-map/rank-Me_2"),
        (f"{APP}modelConfig/configMap/rank-Me_2", "config-map/rank-Me_2"),
        (f"{APP}MODEL-CONFIG/ConfigMap/x", "config-map/x"),
        (f"{APP}model-config/service-config", "service-config"),
        (f"{APP}modelconfig/serviceConfig", "service-config"),
        (f"{APP}model-config/service-config/v2-logging-type", "service-config/v2loggingtype"),
        (f"{APP}model-config/service-config/V2LoggingType", "service-config/v2loggingtype"),
        ("/config/numerix/expression-config/Mix-1", "expression-config/Mix-1"),
    ],
)
def test_places_that_are_read(place: str, key: str) -> None:
    assert KEYS.key(place) == key
    assert place.startswith(KEYS.prefixes)


@pytest.mark.parametrize(
    "place",
    [
        f"{APP}model-config/config-map/",
        f"{APP}model-config/config-map",
        f"{APP}model-config/config-map/a/b",
        f"{APP}model-config/config-map/a\nb",
        f"{APP}model-config/config-map/.a",
        f"{APP}model-config/config-map/\udcff",
        f"{APP}model-config/else/a",
        f"{APP}model-config",
        f"{APP}else/config-map/a",
        "/config/inferflow/services/shop-b/model-config/config-map/a",
        "/config/inferflow/services/shop-a2/model-config/config-map/a",
        "/config/numerix/expression-config/",
        "/config/numerix/expression-config/a/b",
        "/config/numerix/else/a",
        "",
        "/",
    ],
)
def test_places_that_belong_to_others(place: str) -> None:
    assert KEYS.key(place) is None


@pytest.mark.parametrize("key", ["config-map/rank-Me_2", "service-config", "expression-config/Mix-1"])
def test_what_is_written_is_read(key: str) -> None:
    assert KEYS.key(KEYS.place(key)) == key


def test_no_prefix_is_in_another() -> None:
    one, other = KEYS.prefixes
    assert not one.startswith(other)
    assert not other.startswith(one)
    assert repr(KEYS) == f"<EtcdKeys {APP}>"
