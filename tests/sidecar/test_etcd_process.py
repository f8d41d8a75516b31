"""The config sidecar as a process, with its configs in etcd."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from sidecar.etcd_keys import EtcdKeys
from tests.sidecar.etcd_server import EtcdServer, free_port
from tests.sidecar.test_config import Process, Worker, lines, run, run_dir
from tests.sidecar.texts import BROKEN, config, expression

__all__ = ["run_dir"]  # a fixture

KEYS = EtcdKeys("shop")


def sidecar(root: Path, etcd: EtcdServer, **environment: str) -> Process:
    where = {"APP_NAME": "shop", "ETCD_SERVER": f"http://{etcd.address}"}
    return Process(root, **where, INFERFLOW_ADMIN_PORT=str(free_port()), **environment)


@pytest.mark.slow
def test_configs_live_in_etcd_and_survive_its_absence(run_dir: Path) -> None:
    async def story() -> None:
        with EtcdServer() as etcd:
            etcd.start()
            etcd.put(KEYS.place("config-map/a"), config())
            one = sidecar(run_dir, etcd)
            worker = await Worker(one.socket).until_serving(a="configs")
            etcd.put(KEYS.place("config-map/b"), BROKEN)
            etcd.put(KEYS.place("expression-config/mix"), expression("x 2 *"))
            etcd.put(KEYS.place("config-map/c"), config(compute_id="mix"))
            await worker.until_serving(a="configs", b="refused", c="configs")
            etcd.kill()
            one.end(signal.SIGKILL)

            again = sidecar(run_dir, etcd)
            newcomer = await Worker(again.socket, index=1).until_serving(a="configs", c="configs")
            await asyncio.to_thread(etcd.start)
            etcd.delete(KEYS.place("config-map/a"))
            etcd.put(KEYS.place("config-map/d"), config("cost"))
            await newcomer.until_serving(c="configs", d="configs")
            await newcomer.until(lambda one: "a" not in one.active["configs"])
            await newcomer.link.close()
            await worker.link.close()
            code, output = again.end(signal.SIGTERM)
            assert code == 0
            found = lines(output)
            assert not [line for line in found if "error" in line], "an exception was logged"
            assert any("etcd" in line.get("reason", "") for line in found)

    run(story())
