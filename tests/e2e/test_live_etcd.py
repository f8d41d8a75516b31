"""Configs in etcd, and everything that can happen to it, while clients ask: no request may fail."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from sidecar.etcd_keys import EtcdKeys
from tests.e2e.asking import write_models
from tests.e2e.pod import Load, UpstreamProcess
from tests.e2e.test_live import CONSTANTS, LivePod, Versions, admin, state, versioned
from tests.frontdoor.process import PATIENCE, eventually
from tests.sidecar.etcd_server import EtcdServer
from tests.sidecar.fault_proxy import FaultProxy
from tests.sidecar.texts import BROKEN, expression

pytestmark = pytest.mark.slow

KEYS = EtcdKeys("golden")  # the APP_NAME of a Pod
SHOP = KEYS.place("config-map/shop")
AWAY = "configs cannot be read; the last good ones are served"
REFUSED = "refused; the last good version is served if there is one"


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamProcess]:
    with UpstreamProcess(write_models(tmp_path_factory.mktemp("models"), {})) as process:
        yield process


class Network:
    """A FaultProxy on a loop in a thread of its own."""

    def __init__(self, target: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._proxy = FaultProxy(target)
        self._do(self._proxy.open)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._proxy.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def __repr__(self) -> str:
        return f"<Network {self._proxy!r}>"

    @property
    def address(self) -> str:
        return self._proxy.address

    def cut(self) -> None:
        """Resets every connection."""
        self._loop.call_soon_threadsafe(self._proxy.cut)

    def drop(self) -> None:
        """Loses, from now on and in silence, whatever the connections there are should carry."""
        self._loop.call_soon_threadsafe(self._proxy.drop)

    def _do(self, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(act(), self._loop).result(PATIENCE)


def fill(etcd: EtcdServer, number: int) -> None:
    """Everything that the pod needs, at one revision."""
    marks = {
        KEYS.place(f"expression-config/constant_{one}"): expression(f"x 0 * {one} +").decode()
        for one in range(CONSTANTS)
    }
    etcd.put_all({SHOP: versioned(number).decode(), **marks})


@contextlib.contextmanager
def pod_on(etcd: EtcdServer, address: str, upstreams: UpstreamProcess) -> Iterator[LivePod]:
    pod = LivePod(
        {},
        upstreams=upstreams.port,
        expected_errors=[AWAY, REFUSED],
        ETCD_SERVER=f"http://{address}",
        INFERFLOW_WORKERS="2",
        NUMERIX_CLIENT_V1_HOST="",
    )
    with pod:
        yield pod


def test_whatever_happens_to_etcd_no_request_fails(upstreams: UpstreamProcess) -> None:
    with EtcdServer() as etcd, Network(etcd.start().port) as network:

        def dies_and_comes_back() -> None:
            etcd.kill()
            time.sleep(0.3)
            etcd.start()

        def forgets_behind_a_cut_connection() -> None:
            network.cut()
            etcd.put(SHOP, versioned(1))
            etcd.put(SHOP, versioned(2))
            etcd.compact()

        def loses_everything() -> None:
            etcd.kill()
            etcd.wipe()
            etcd.start()
            eventually(lambda: "notice" in pod.ready()[1], "the pod says that its configs are lost", pod.text)
            assert "taken for lost, not for deleted" in pod.ready()[1]["notice"]
            fill(etcd, 3)

        fill(etcd, 1)
        faults = (
            dies_and_comes_back,
            network.cut,
            network.drop,
            forgets_behind_a_cut_connection,
            loses_everything,
        )
        with pod_on(etcd, network.address, upstreams) as pod:
            ask = Versions(pod)
            load = Load(ask, 2)
            for number, fault in enumerate(faults, 10):
                fault()
                etcd.put(SHOP, versioned(number))
                eventually(lambda number=number: number in ask.seen, f"after {fault.__name__}", pod.text)  # type: ignore[misc]
            load.stop()
            assert load.errors == []
            eventually(lambda: "notice" not in pod.ready()[1], "all is well", pod.text)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.full)])
def test_activations_from_etcd_under_load_fail_no_request(upstreams: UpstreamProcess, count: int) -> None:
    """Ten a second; every fifth is a bad one, of the very config that is asked for."""
    with EtcdServer() as etcd:
        fill(etcd.start(), 1)
        with pod_on(etcd, etcd.address, upstreams) as pod:
            ask = Versions(pod)
            load = Load(ask, 2)
            for number in range(2, count + 2):
                began = time.monotonic()
                etcd.put(SHOP, BROKEN if number % 5 == 0 else versioned(number))
                time.sleep(max(0.0, began + 0.1 - time.monotonic()))
            etcd.put(SHOP, versioned(count + 2))
            eventually(lambda: count + 2 in ask.seen, "the last version is served", pod.text)
            load.stop()
            assert load.errors == []
            assert len(ask.seen) > count / 2
            assert state(pod, "shop") == "active"
            history = admin(pod, "GET", "/config/history", key="shop")[1]["versions"]
            assert history[0]["revision"] == etcd.revision()


def test_a_config_is_steered_in_etcd(upstreams: UpstreamProcess) -> None:
    with EtcdServer() as etcd:
        fill(etcd.start(), 1)
        with pod_on(etcd, etcd.address, upstreams) as pod:
            ask = Versions(pod)
            etcd.put(SHOP, versioned(2))
            eventually(lambda: state(pod, "shop") == "active" and _asked(ask) == 2, "2 is served", pod.text)
            assert admin(pod, "POST", "/config/rollback", key="shop", write="1")[0] == 200
            eventually(lambda: _asked(ask) == 1, "1 is served", pod.text)
            assert b"version_1" in etcd.state()[SHOP], "it is written back"
            check = admin(pod, "POST", "/config/check", versioned(3), key="shop")[1]
            etcd.put(SHOP, versioned(4))
            status, answer = admin(
                pod, "POST", "/config/put", versioned(3), key="shop", revision=str(check["revision"])
            )
            assert status == 409
            assert "was changed meanwhile" in answer["error"]
            eventually(lambda: _asked(ask) == 4, "whoever was first is served", pod.text)


def _asked(ask: Versions) -> int:
    """The version that is served now."""
    ask.seen.clear()
    ask()
    (number,) = ask.seen
    return number
