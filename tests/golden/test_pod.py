"""Every recorded case against a real pod: front door, worker and config sidecar as processes, upstreams too."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.e2e.pod import Pod, UpstreamProcess
from tests.golden.cases import CONFIG_DIR, CONFIGS, EXPRESSIONS, Case, stories
from tests.golden.compare import Outcome, problems

pytestmark = pytest.mark.slow

STORIES = stories()
RECORDED_PORT = b"127.0.0.1:9100"
"""One config names the port of its model server."""


@pytest.fixture(scope="module")
def upstreams() -> Iterator[UpstreamProcess]:
    with UpstreamProcess(CONFIG_DIR) as upstreams:
        yield upstreams


@pytest.fixture(scope="module")
def pod(upstreams: UpstreamProcess) -> Iterator[Pod]:
    here = b"127.0.0.1:%d" % upstreams.port
    configs = {name: text.replace(RECORDED_PORT, here) for name, text in CONFIGS.items()}
    refused = ["refused; the last good version is served if there is one"]
    with Pod(configs, expressions=EXPRESSIONS, upstreams=upstreams.port, expected_errors=refused) as pod:
        yield pod


def outcome(pod: Pod, upstreams: UpstreamProcess, case: Case) -> Outcome:
    upstreams.take_calls()
    try:
        body = pod.call(case.rpc, case.request, metadata=case.metadata, timeout=case.timeout_ms / 1000)
        status, message = 0, ""
    except grpc.RpcError as error:
        body, status, message = b"", error.code().value[0], error.details()
    return Outcome(status, message, body, upstreams.take_calls())


def test_configs_name_the_recorded_port_once() -> None:
    assert sum(text.count(RECORDED_PORT) for text in CONFIGS.values()) == 1


@pytest.mark.parametrize("cases", [cases for _, cases in STORIES], ids=[name for name, _ in STORIES])
def test_answers_and_upstream_calls_are_as_recorded(
    pod: Pod, upstreams: UpstreamProcess, cases: list[Case]
) -> None:
    for case in cases:
        found = problems(case, outcome(pod, upstreams, case))
        assert not found, "\n".join([case.name, case.deviation or case.request_readable, *found])
