"""A pod with narrow limits: what is too much is refused with size and limit, and costs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest

from tests.e2e.asking import POINT, config, errors, failing, score, write_models
from tests.e2e.pod import Pod, UpstreamProcess

pytestmark = pytest.mark.slow

CONFIGS = {"shop": config()}
REQUEST_BYTES = 256 << 10
MATRIX_BYTES = 320 << 10


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    with (
        UpstreamProcess(write_models(tmp_path_factory.mktemp("models"), CONFIGS)) as upstreams,
        Pod(
            CONFIGS,
            upstreams=upstreams.port,
            INFERFLOW_MAX_REQUEST_BYTES=str(REQUEST_BYTES),
            INFERFLOW_MAX_MATRIX_BYTES=str(MATRIX_BYTES),
        ) as pod,
    ):
        yield pod


def refusal(pod: Pod, body: bytes) -> str:
    """The message of RESOURCE_EXHAUSTED; the next request is served as if nothing had been."""
    with failing() as caught:
        pod.call(POINT, body)
    assert caught.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert errors(pod.call(POINT, score("shop", ["a"]))) == [""]
    return caught.message


@pytest.mark.parametrize("more", [1, 1 << 20], ids=["by a byte", "by far"])
def test_a_body_over_the_limit(pod: Pod, more: int) -> None:
    message = refusal(pod, bytes(REQUEST_BYTES + more))
    assert str(REQUEST_BYTES + more) in message
    assert str(REQUEST_BYTES) in message


def test_a_body_at_the_limit_is_looked_at(pod: Pod) -> None:
    with failing() as caught:
        pod.call(POINT, bytes(REQUEST_BYTES))
    assert caught.code is grpc.StatusCode.INVALID_ARGUMENT, caught.message
    assert f"the body of {REQUEST_BYTES} bytes is no PointWiseRequest" in caught.message


def test_a_small_body_that_unpacks_to_a_large_one(pod: Pod) -> None:
    with failing() as caught:
        pod.method(POINT)(bytes(16 << 20), timeout=60, compression=grpc.Compression.Gzip)
    assert caught.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(REQUEST_BYTES) in caught.message


def test_a_matrix_over_the_limit(pod: Pod) -> None:
    message = refusal(pod, score("shop", map(str, range(25_000))))
    said = re.search(r"needs (\d+) bytes, the limit is (\d+) \(INFERFLOW_MAX_MATRIX_BYTES\)", message)
    assert said, message
    assert int(said[1]) > int(said[2]) == MATRIX_BYTES
