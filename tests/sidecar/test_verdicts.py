"""Verdicts in a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.settings import Settings, SettingsError
from sidecar.etcd import EtcdClient, EtcdError
from sidecar.etcd_keys import EtcdKeys
from sidecar.verdicts import LEASE, Verdicts
from tests.sidecar.etcd_server import EtcdServer, free_port
from tests.sidecar.etcd_support import run
from tests.sidecar.test_config import Process, Worker, run_dir
from tests.sidecar.texts import BROKEN, config

__all__ = ["run_dir"]  # a fixture

FOLDER = "/status/shop/pod-1"


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server.start()


def told(etcd: EtcdServer) -> dict[str, Any]:
    """What stands below FOLDER, by key of the config tree."""
    return {
        place.removeprefix(f"{FOLDER}/"): json.loads(value)
        for place, value in etcd.state().items()
        if place.startswith(FOLDER)
    }


def item(key: str, state: str) -> dict[str, Any]:
    return {"key": key, "state": state}


@pytest.mark.slow
def test_only_what_has_changed_is_written(etcd: EtcdServer) -> None:
    async def story() -> None:
        items = [item("config-map/a", "active"), item("config-map/b", "kept")]
        verdicts = Verdicts(EtcdClient([etcd.address]), FOLDER, lambda: items)
        await verdicts.write()
        assert told(etcd) == {one["key"]: one for one in items}
        before = etcd.revision()
        await verdicts.write()
        assert etcd.revision() == before
        items[:] = [item("config-map/a", "waiting")]
        await verdicts.write()
        assert told(etcd) == {"config-map/a": item("config-map/a", "waiting")}
        assert etcd.revision() == before + 2
        assert repr(verdicts) == f"<Verdicts {FOLDER}: 1 written, 0 tries failed>"
        await verdicts.close()

    run(story())


@pytest.mark.slow
def test_they_hang_on_a_lease_and_come_back_when_it_is_lost(etcd: EtcdServer) -> None:
    async def story() -> None:
        client = EtcdClient([etcd.address])
        verdicts = Verdicts(client, FOLDER, lambda: [item("config-map/a", "active")])
        await verdicts.write()
        (lease,) = [one["ID"] for one in etcd.call("lease/leases")["leases"]]
        granted = etcd.call("lease/timetolive", ID=lease, keys=True)
        assert int(granted["grantedTTL"]) == LEASE
        assert len(granted["keys"]) == 1
        assert await client.keep_lease(int(lease))
        etcd.call("lease/revoke", ID=lease)
        assert told(etcd) == {}
        assert not await client.keep_lease(int(lease))
        verdicts._renew_at = 0  # a third of LEASE later
        await verdicts.write()
        assert told(etcd).keys() == {"config-map/a"}
        await verdicts.close()

    run(story())


@pytest.mark.slow
def test_an_etcd_that_is_away_is_tried_again(etcd: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        pauses: asyncio.Queue[float] = asyncio.Queue()

        async def sleep(seconds: float) -> None:
            pauses.put_nowait(seconds)
            await asyncio.sleep(0.05)

        etcd.kill()
        client = EtcdClient([etcd.address], timeout=0.2)
        with pytest.raises(EtcdError):
            await client.keep_lease(1)
        verdicts = Verdicts(client, FOLDER, lambda: [item("config-map/a", "active")], sleep=sleep)
        writing = asyncio.create_task(verdicts.run())
        assert [await pauses.get() for _ in range(3)] == [2, 4, 8]
        await asyncio.to_thread(etcd.start)
        while await pauses.get() != 1:
            pass
        assert told(etcd).keys() == {"config-map/a"}
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await verdicts.close()

    run(story())
    assert [record.message for record in caplog.records].count("verdicts cannot be written") == 1


@pytest.mark.slow
def test_a_pod_tells_what_becomes_of_its_configs(run_dir: Path, etcd: EtcdServer) -> None:
    folder = f"/status/shop/{socket.gethostname()}"

    async def story() -> None:
        keys = EtcdKeys("shop")
        etcd.put(keys.place("config-map/a"), config())
        etcd.put(keys.place("config-map/b"), BROKEN)
        one = Process(
            run_dir,
            APP_NAME="shop",
            ETCD_SERVER=etcd.address,
            INFERFLOW_ETCD_STATUS_KEY="/status/shop/",
            INFERFLOW_ADMIN_PORT=str(free_port()),
        )
        try:
            worker = await Worker(one.socket).until_serving(a="configs", b="refused")
            wanted = {"a": "active", "b": "refused"}
            found: dict[str, str] = {}
            while found != wanted:
                state = await asyncio.to_thread(etcd.state)
                verdicts = {
                    place: json.loads(text) for place, text in state.items() if place.startswith(folder)
                }
                found = {
                    place.removeprefix(f"{folder}/config-map/"): verdict["state"]
                    for place, verdict in verdicts.items()
                }
            assert "is no JSON" in verdicts[f"{folder}/config-map/b"]["reasons"][0]
            await worker.link.close()
        finally:
            code, output = one.end(signal.SIGTERM)
        assert code == 0, output

    run(story())


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        (
            {"ETCD_SERVER": "x", "INFERFLOW_ETCD_STATUS_KEY": "/config/status"},
            "is where configs are read from",
        ),
        ({"ETCD_SERVER": "x", "INFERFLOW_ETCD_STATUS_KEY": "/config"}, "is where configs are read from"),
        ({"INFERFLOW_ETCD_STATUS_KEY": "/status"}, "is set, but ETCD_SERVER is empty"),
    ],
)
def test_a_status_key_that_cannot_be(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        Settings.from_env(environ)
