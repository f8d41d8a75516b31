"""A model server that was not written here, MLServer, is scored through the pod."""

from __future__ import annotations

import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.asking import POINT, config, errors, score, scores, write_models
from tests.e2e.pod import Pod, UpstreamProcess
from tests.frontdoor.process import PATIENCE, eventually, free_port
from tests.interop.tools import tool
from tests.upstreams import feature_value

pytestmark = [pytest.mark.full, pytest.mark.slow]

MODEL = Path(__file__).parent / "summing"


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The gRPC port of a running MLServer."""
    port, http, metrics = free_port(), free_port(), free_port()
    log = tmp_path_factory.mktemp("mlserver") / "log"
    environ = {
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_GRPC_PORT": str(port),
        "MLSERVER_HTTP_PORT": str(http),
        "MLSERVER_METRICS_PORT": str(metrics),
        "MLSERVER_METRICS_DIR": str(log.parent),
        "MLSERVER_PARALLEL_WORKERS": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [tool("mlserver"), "start", str(MODEL)],
            cwd=log.parent,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: is_ready(http), "MLServer is ready", log.read_text)
        yield port
    finally:
        server.terminate()
        server.wait(PATIENCE)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=PATIENCE):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def test_its_scores_are_answered(mlserver: int, tmp_path: Path) -> None:
    text = config("summing").replace(b'"127.0.0.1"', b'"127.0.0.1:%d"' % mlserver)
    ids = [f"item-{number}" for number in range(50)]
    with (
        UpstreamProcess(write_models(tmp_path, {})) as upstreams,
        Pod({"shop": text}, upstreams=upstreams.port) as pod,
    ):
        answer = pod.call(POINT, score("shop", ids))
        assert set(errors(answer)) == {""}
        assert [one.output_values[2] for one in scores(answer).target_scores] == [
            struct.pack("<f", price(one, "price") + price(one, "stock")) for one in ids
        ]
        assert len({one.output_values[2] for one in scores(answer).target_scores}) > 10


def price(item: str, feature: str) -> float:
    """What the stand-in of the feature store has; 0 when it has nothing."""
    value = feature_value(("item", item, "fp32_shop", feature))
    number: float = struct.unpack("<f", value or bytes(4))[0]
    return number


def test_a_model_it_does_not_have_is_told(mlserver: int, tmp_path: Path) -> None:
    text = config("nobody").replace(b'"127.0.0.1"', b'"127.0.0.1:%d"' % mlserver)
    with (
        UpstreamProcess(write_models(tmp_path, {})) as upstreams,
        Pod({"shop": text}, upstreams=upstreams.port) as pod,
    ):
        (error,) = errors(pod.call(POINT, score("shop", ["a"])))
    assert error.startswith("rank: NOT_FOUND: ")
    assert "nobody" in error
