from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sidecar.etcd_server import EtcdServer


@pytest.fixture(scope="session")
def one_etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server.start()


@pytest.fixture
def etcd(one_etcd: EtcdServer) -> EtcdServer:
    """A running etcd without keys. A test may kill it, but must start it again."""
    one_etcd.clear()
    return one_etcd
