"""Who may change configs over the admin port."""

from __future__ import annotations

import asyncio
import http.client
from pathlib import Path

import pytest

from sidecar import admin
from sidecar.admin import is_this_machine
from tests.sidecar.steered import steered
from tests.sidecar.test_config import Shelf, run, run_dir
from tests.sidecar.texts import config

__all__ = ["run_dir"]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine(address: str) -> None:
    assert is_this_machine(address)


@pytest.mark.parametrize("address", ["10.0.0.7", "0.0.0.0", "fe80::1%eth0", "::ffff:10.0.0.7", "2001:db8::1"])
def test_others(address: str) -> None:
    assert not is_this_machine(address)


@pytest.mark.parametrize(("local", "posted"), [(True, 200), (False, 403)])
def test_others_read_and_do_not_change(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, local: bool, posted: int
) -> None:
    # All addresses of a test are this machine's.
    monkeypatch.setattr(admin, "is_this_machine", lambda address: address == "127.0.0.1" and local)

    def ask(port: int, method: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path)
        status = connection.getresponse().status
        connection.close()
        return status

    async def main() -> None:
        async with steered(run_dir, Shelf({"config-map/a": config("v1")})) as pod:
            await pod.until_served("v1")
            assert await asyncio.to_thread(ask, pod.port, "GET", "/status") == 200
            assert await asyncio.to_thread(ask, pod.port, "POST", "/config/pin?key=a") == posted

    run(main())
