"""Every recorded case against the service of one worker, in this process."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator

import msgspec
import pytest

from frontdoor.services import METHODS
from proto import inferflow_pb2
from tests.golden.cases import CASES, CONFIG_DIR, CONFIGS, EXPRESSIONS, Case, stories
from tests.golden.compare import Outcome, problems
from tests.inprocess import InProcess
from tests.upstreams import COMPUTE, Upstreams

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


# --- expressions computed in the worker


def computed(case: Case) -> dict[str, str]:
    """The expression components of a case's config: compute_id → its column."""
    if case.model_config_id not in CONFIGS:
        return {}
    components = json.loads(CONFIGS[case.model_config_id])["component_config"].get("numerix_components") or []
    return {component["compute_id"]: component["score_col"] for component in components}


RANKING = "op6_a"
"""The stand-in ranks values, as nobody else does: the expression service ranks positions."""
FAILING = "err_a"
"""The stand-in fails it by its name."""
COMPUTING = [
    (name, case)
    for name, case in CASES.items()
    if computed(case) and not case.is_open and FAILING not in computed(case)
]


@pytest.fixture(scope="module")
def computing() -> Iterator[InProcess]:
    with InProcess(CONFIGS, UPSTREAMS, expressions=EXPRESSIONS, numerix=False) as service:
        yield service


def test_nearly_all_expressions_are_computed_here() -> None:
    recorded = {compute_id for _, case in COMPUTING for compute_id in computed(case)}
    assert set(EXPRESSIONS) - recorded == {"addxy_a", "half2_a", FAILING}


@pytest.mark.parametrize("case", [case for _, case in COMPUTING], ids=[name for name, _ in COMPUTING])
def test_expressions_computed_in_the_worker_give_the_recorded_scores(
    computing: InProcess, case: Case
) -> None:
    """Without an expression service: the same answers, and the same calls but those to it."""
    wanted, got = case.expectation, outcome(computing, case)
    others = None if wanted.upstream is None else [call for call in wanted.upstream if call.path != COMPUTE]
    ranked = computed(case).get(RANKING)
    if ranked is not None and wanted.response is not None:
        wanted = msgspec.structs.replace(wanted, response=without(case, wanted.response, ranked))
        got = dataclasses.replace(got, body=without(case, got.body, ranked))
    alone = msgspec.structs.replace(case, expect=msgspec.structs.replace(wanted, upstream=others))
    found = problems(alone, got)
    assert not found, "\n".join([case.name, case.request_readable, *found])


def without(case: Case, body: bytes, column: str) -> bytes:
    """The response with the values of one column empty."""
    response = case.message_of(body)
    if isinstance(response, inferflow_pb2.InferflowResponseProto):
        place = list(response.component_data[0].data).index(column)
        for row in response.component_data[1:]:
            row.data[place] = ""
    else:
        place = [one.name for one in response.target_output_schema].index(column)
        for row in response.target_scores:
            row.output_values[place] = b""
    emptied: bytes = response.SerializeToString()
    return emptied
