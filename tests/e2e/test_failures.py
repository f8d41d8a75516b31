"""Processes that die, are told to stop, or are started over: what clients see of it, and what is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.asking import POINT, config, errors, failing, score, write_models
from tests.e2e.pod import FIRST_START, Load, Pod, UpstreamProcess
from tests.frontdoor.process import PATIENCE, eventually
from tests.upstreams import INFER

pytestmark = pytest.mark.slow

Code = grpc.StatusCode
CONFIGS = {"shop": config(), "patient": config("slow_ranker")}
WORKERS = ("inferflow: worker 0", "inferflow: worker 1")
DOORS = ("inferflow: frontdoor 0", "inferflow: frontdoor 1")


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamProcess]:
    with UpstreamProcess(write_models(tmp_path_factory.mktemp("models"), CONFIGS)) as upstreams:
        yield upstreams


def asking(pod: Pod, clients: int = 6) -> Load:
    """Clients that ask for scores without end. A wrong answer counts as an error, as a failed call does."""
    body = score("shop", ["a", "b", "c"])
    expected = pod.call(POINT, body)
    assert errors(expected) == ["", "", ""]

    def ask() -> None:
        with grpc.insecure_channel(
            f"127.0.0.1:{pod.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            method = channel.unary_unary(POINT)
            for _ in range(20):
                assert method(body, timeout=PATIENCE) == expected

    return Load(ask, clients)


def answered(load: Load, more: int) -> None:
    """Waits until so many more rounds were answered."""
    goal = load.answers + more
    eventually(lambda: load.answers >= goal or load.errors, "the clients get answers")


def test_killed_workers_cost_no_client_an_error(upstreams: UpstreamProcess) -> None:
    """Two workers, two front doors, clients that never pause, kill -9 in turn."""
    with Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_WORKERS="2", INFERFLOW_FRONTDOORS="2") as pod:
        eventually(lambda: set(pod.processes()) >= {*WORKERS, *DOORS}, "all processes run")
        eventually(lambda: len(ready_workers(pod)) == 4, "both front doors know both workers", pod.text)
        load = asking(pod)
        try:
            for worker in WORKERS:
                answered(load, 3)
                before = len(ready_workers(pod))
                pod.kill(worker)
                eventually(lambda: len(ready_workers(pod)) == before + 2, f"{worker} is back", pod.text)  # noqa: B023
            answered(load, 3)
        finally:
            load.stop()
        assert load.errors == []
        pod.check_nothing_left(pod.stop())
        delivered = [books["requests"]["delivered"] for books in pod.logged("stopped")]
    assert len(delivered) == 2
    assert all(delivered), "both front doors had clients"
    assert sum(delivered) >= 20 * load.answers


def test_the_only_worker_is_waited_for(upstreams: UpstreamProcess) -> None:
    with Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_WAIT_MS="30000") as pod:
        load = asking(pod, clients=3)
        try:
            answered(load, 2)
            pod.kill("inferflow: worker 0")
            answered(load, 6)
        finally:
            load.stop()
        assert load.errors == []


def ready_workers(pod: Pod) -> list[str]:
    """One line for each time that a front door heard of a ready worker."""
    return [line["message"] for line in pod.logs() if line["message"].endswith(" is READY")]


def test_sigterm_loses_no_accepted_request(upstreams: UpstreamProcess) -> None:
    """Requests that are at the slow model when SIGTERM comes are answered, and so are those of busy clients.

    What comes later is refused by the closed port: the one thing that a client may see.
    """
    with Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_WORKERS="2") as pod:
        load = asking(pod, clients=3)
        answered(load, 3)
        upstreams.take_calls()
        method = pod.method(POINT)
        patient = [method.future(score("patient", [str(number)]), timeout=PATIENCE) for number in range(20)]

        def at_the_model() -> bool:
            seen.extend(call for call in upstreams.take_calls() if b"slow_ranker" in call.request)
            return len(seen) == 20

        seen: list[object] = []
        eventually(at_the_model, "all are at the model")
        os.kill(pod.pid, signal.SIGTERM)
        assert [errors(future.result()) for future in patient] == [[""]] * 20
        eventually(lambda: load.errors, "the port is closed", pod.text)
        load.stop()
        code = pod.wait_stopped()
        pod.check_nothing_left(code)
    assert {error.code() for error in load.errors if isinstance(error, grpc.RpcError)} == {Code.UNAVAILABLE}
    # Refused, or reset before anybody accepted it: either way the service never had the request.
    assert not [error for error in load.errors if "failed to connect" not in str(error)]


def test_readiness_is_503_then_200_then_503(upstreams: UpstreamProcess) -> None:
    pod = Pod(CONFIGS, upstreams=upstreams.port)
    seen: list[tuple[int, str]] = []

    def look() -> int:
        status, document = pod.ready()
        if status and (not seen or seen[-1][0] != status):
            seen.append((status, document.get("reason", "")))
        return status

    pod.start()
    try:
        eventually(lambda: look() == 200, "the pod is ready", pod.text, FIRST_START)
        pod.kill("inferflow: worker 0")
        eventually(lambda: look() == 503, "its only worker is missed", pod.text)
        eventually(lambda: look() == 200, "the worker is back", pod.text)
        assert [status for status, _ in seen] == [503, 200, 503, 200]
        assert {reason for status, reason in seen if status == 503} == {"no worker is connected"}
        pod.check_nothing_left(pod.stop())
    finally:
        pod.discard()


def test_those_who_watch_are_told_of_a_drain(upstreams: UpstreamProcess) -> None:
    with Pod(CONFIGS, upstreams=upstreams.port) as pod:
        watch = health_pb2_grpc.HealthStub(pod.channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        os.kill(pod.pid, signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        pod.check_nothing_left(pod.wait_stopped())


def test_a_killed_supervisor_leaves_nothing_that_matters(upstreams: UpstreamProcess) -> None:
    """Its processes end by themselves, after what they have in flight; the next pod starts in the same place."""
    pod = Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_WORKERS="2", INFERFLOW_FRONTDOORS="2")
    try:
        pod.start()
        pod.wait_ready()
        eventually(lambda: set(pod.processes()) >= {*WORKERS, *DOORS}, "all processes run")
        upstreams.take_calls()
        slow = pod.method(POINT).future(score("patient", ["a"]), timeout=PATIENCE)
        eventually(lambda: any(call.path == INFER for call in upstreams.take_calls()), "it is at the model")
        os.kill(pod.pid, signal.SIGKILL)
        assert errors(slow.result()) == [""]
        assert pod.wait_stopped() == -signal.SIGKILL
        left = {path.name for path in pod.run_dir.iterdir()}
        assert left <= {"supervisord.pid", "supervisor.sock"}, "only what supervisord itself made"
        pod.start()
        pod.wait_ready()
        pod.check_nothing_left(pod.stop())
    finally:
        pod.discard()


def test_a_client_that_goes_away_frees_its_place(upstreams: UpstreamProcess) -> None:
    """One request at a time: the next one finds room only when the cancelled one has left all processes."""
    with Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_MAX_IN_FLIGHT="1") as pod:
        for _ in range(5):
            upstreams.take_calls()
            slow = pod.method(POINT).future(score("patient", ["a"]), timeout=PATIENCE)
            eventually(
                lambda: any(call.path == INFER for call in upstreams.take_calls()), "it is at the model"
            )
            with failing() as caught:
                pod.call(POINT, score("shop", ["a"]))
            assert caught.code is Code.RESOURCE_EXHAUSTED
            slow.cancel()
            eventually(lambda: served(pod), "there is room again", pod.text)
        pod.check_nothing_left(pod.stop())
        (books,) = pod.logged("stopped")
    assert books["requests"]["cancelled"] == 5


def served(pod: Pod) -> bool:
    """Whether a request is not turned away."""
    try:
        return errors(pod.call(POINT, score("shop", ["a"]))) == [""]
    except grpc.RpcError as error:
        assert error.code() is Code.RESOURCE_EXHAUSTED
        return False


def test_a_killed_front_door_or_sidecar_is_back(upstreams: UpstreamProcess) -> None:
    with Pod(CONFIGS, upstreams=upstreams.port) as pod:
        body = score("shop", ["a"])
        expected = pod.call(POINT, body)
        first = pod.kill("inferflow: config sidecar")
        assert pod.call(POINT, body) == expected
        eventually(lambda: pod.processes().get("inferflow: config sidecar", first) != first, "it is back")
        pod.write_config("new", config())
        eventually(lambda: known(pod, "new"), "the new sidecar reaches the worker", pod.text)
        pod.kill("inferflow: frontdoor 0")
        pod.wait_ready()
        assert pod.call(POINT, body) == expected


def known(pod: Pod, model_config_id: str) -> bool:
    try:
        pod.call(POINT, score(model_config_id, ["a"]))
    except grpc.RpcError as error:
        assert error.code() is Code.INVALID_ARGUMENT
        return False
    return True
