"""Damaged requests: kernels and protobuf say the same of each, and no request leaves anything behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontdoor.services import METHODS
from tests.golden.cases import CASES, CONFIG_DIR, CONFIGS, EXPRESSIONS, Case
from tests.inprocess import InProcess
from tests.upstreams import Upstreams

RECORDED = [case for case in CASES.values() if case.rpc.encode() in METHODS and 10 < len(case.request) < 500]


@pytest.fixture(scope="module")
def services() -> Iterator[list[InProcess]]:
    upstreams = Upstreams.load(CONFIG_DIR)
    with (
        InProcess(CONFIGS, upstreams, expressions=EXPRESSIONS) as kernels,
        InProcess(CONFIGS, upstreams, expressions=EXPRESSIONS, reference=True) as reference,
    ):
        yield [kernels, reference]


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[Case, bytes]:
    """A recorded request, with some of its bytes replaced, removed or added."""
    case = draw(st.sampled_from(RECORDED))
    body = case.request
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        removed = draw(st.sampled_from([0, 0, 1, 1, 2, 8, len(body)]))
        body = body[:at] + draw(st.binary(max_size=6)) + body[at + removed :]
    return case, body


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoilt())
def test_kernels_and_reference_say_the_same(services: list[InProcess], damaged: tuple[Case, bytes]) -> None:
    case, body = damaged
    outcomes = []
    for service in services:
        service.take_calls()
        answered = service.ask(case.rpc, body, metadata=case.metadata)
        outcomes.append((answered.status, answered.message, answered.body, service.take_calls()))
        assert (service.service.in_flight, service.pool.busy) == (0, 0)
    kernels, reference = outcomes
    assert kernels == reference
