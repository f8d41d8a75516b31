"""Every recorded case against the service of one worker, in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from frontdoor.services import METHODS
from tests.golden.cases import CASES, CONFIG_DIR, CONFIGS, EXPRESSIONS, Case, stories
from tests.golden.compare import Outcome, problems
from tests.inprocess import InProcess
from tests.upstreams import Upstreams

CODECS = ("kernels", "reference")
THREADS = (0, 3)
UPSTREAMS = Upstreams.load(CONFIG_DIR)

# These never reach a worker: `test_pod.py` has them.
AT_THE_DOOR = [name for name, case in CASES.items() if case.rpc.encode() not in METHODS]
STORIES = [(name, cases) for name, cases in stories() if name not in AT_THE_DOOR]


def outcome(service: InProcess, case: Case) -> Outcome:
    """What the service does with a case."""
    service.take_calls()
    answered = service.ask(case.rpc, case.request, metadata=case.metadata, timeout=case.timeout_ms / 1000)
    return Outcome(int(answered.status), answered.message, answered.body, service.take_calls())


def test_only_unknown_methods_stay_at_the_door() -> None:
    assert AT_THE_DOOR == ["unknown_method_a", "unknown_service_a"]


@pytest.fixture(
    scope="module",
    params=list(itertools.product(CODECS, THREADS)),
    ids=lambda param: f"{param[0]}-{param[1]}-threads",
)
def service(request: pytest.FixtureRequest) -> Iterator[InProcess]:
    codec, threads = request.param
    with InProcess(
        CONFIGS, UPSTREAMS, expressions=EXPRESSIONS, reference=codec == "reference", threads=threads
    ) as service:
        yield service


@pytest.mark.parametrize("cases", [cases for _, cases in STORIES], ids=[name for name, _ in STORIES])
def test_answers_and_upstream_calls_are_as_recorded(service: InProcess, cases: list[Case]) -> None:
    for case in cases:
        found = problems(case, outcome(service, case))
        assert not found, "\n".join([case.name, case.deviation or case.request_readable, *found])
    assert (service.service.in_flight, service.pool.busy) == (0, 0)


@pytest.fixture(scope="module")
def compatible() -> Iterator[InProcess]:
    with InProcess(CONFIGS, UPSTREAMS, expressions=EXPRESSIONS, string_scores=True) as service:
        yield service


@pytest.mark.parametrize("cases", [cases for _, cases in STORIES], ids=[name for name, _ in STORIES])
def test_with_string_scores_schemas_are_as_recorded(compatible: InProcess, cases: list[Case]) -> None:
    for case in cases:
        found = problems(case, outcome(compatible, case), string_scores=True)
        assert not found, "\n".join([case.name, case.deviation or case.request_readable, *found])
