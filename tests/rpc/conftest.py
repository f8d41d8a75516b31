from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rpc.support import KINDS, Certificates, World, make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose name is short enough for Unix sockets, whatever pytest's is."""
    with tempfile.TemporaryDirectory(prefix="rpc") as directory:
        yield Path(directory)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, short_dir: Path, certificates: Certificates) -> World:
    return World(request.param, short_dir, certificates)


@pytest.fixture
def memory(short_dir: Path) -> World:
    return World("memory", short_dir, None)
