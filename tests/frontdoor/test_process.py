"""The front door as a process: real clients (grpcio, curl), fake workers that can hang and be killed."""

from __future__ import annotations

import concurrent.futures
import datetime
import ipaddress
import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from frontdoor.services import FILES, METHODS
from shared.board import Board
from shared.board_file import BoardFile, encode
from shared.metrics import LOG_DROPPED, LOG_ROWS
from tests.frontdoor.process import PATIENCE, Pod, Process, eventually, failing, free_port

pytestmark = pytest.mark.slow  # each takes a second; together half a minute

Code = grpc.StatusCode


@pytest.fixture
def pod() -> Iterator[Pod]:
    with Pod() as pod:
        yield pod


def cancelled_at(pod: Pod) -> list[int]:
    cancelled: list[int] = pod.tell()["cancelled"]
    return cancelled


def test_the_methods_are_those_of_the_services() -> None:
    """The only place where a method's number could get out of step with the messages."""
    described = [
        f"/{service.full_name}/{method.name}".encode()
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    assert list(METHODS) == described


class TestRequests:
    def test_each_method_reaches_the_worker_under_its_number(self, pod: Pod) -> None:
        pod.add_worker()
        for index, path in enumerate(METHODS):
            assert json.loads(pod.call(b"tell", path=path.decode()))["method"] == index

    def test_metadata_and_deadline_go_along(self, pod: Pod) -> None:
        pod.add_worker()
        known = json.loads(
            pod.channel.unary_unary("/Predict/InferPointWise")(
                b"tell",
                timeout=PATIENCE,
                metadata=[("user-id", "u1"), ("blob-bin", b"\x00\xff"), ("user-id", "u2")],
            )
        )
        sent = [tuple(pair) for pair in known["metadata"]]
        assert [pair for pair in sent if pair[0] == "user-id"] == [
            ("user-id", b"u1".hex()),
            ("user-id", b"u2".hex()),
        ]
        assert ("blob-bin", "00ff") in sent
        assert 0 < known["deadline_us"] <= (PATIENCE + 1) * 1e6

    def test_without_a_deadline_the_default_goes_along(self, pod: Pod) -> None:
        pod.add_worker()
        known = json.loads(pod.call(b"tell", timeout=None))
        assert 50e6 < known["deadline_us"] <= 60e6

    def test_the_workers_error_and_trailing_metadata_reach_the_client(self, pod: Pod) -> None:
        pod.add_worker(3)
        with failing() as caught:
            pod.call("fail 3 targets[2]: no id – really".encode())
        assert caught.error.code() is Code.INVALID_ARGUMENT
        assert caught.error.details() == "targets[2]: no id – really"
        assert ("worker", "3") in [tuple(pair) for pair in caught.error.trailing_metadata()]

    def test_a_status_that_is_none_becomes_internal(self) -> None:
        with Pod() as pod:
            pod.add_worker()
            with failing() as caught:
                pod.call(b"fail 99 what")
            assert caught.error.code() is Code.INTERNAL
            assert "99 is not a valid Status" in caught.error.details()
            assert pod.call(b"next") == b"next"
            line = eventually(lambda: pod.door.logged("a worker's answer cannot be sent"), "it is logged")
            pod.door.lines.remove(json_line(pod, line))  # it is an error, and expected

    def test_large_bodies_both_ways(self, pod: Pod) -> None:
        pod.add_worker()
        body = random.Random(1).randbytes(3 << 20)
        assert pod.call(b"echo " + body) == b"echo " + body
        with grpc.insecure_channel(
            f"127.0.0.1:{pod.port}", options=[("grpc.max_receive_message_length", 64 << 20)]
        ) as channel:
            answer = channel.unary_unary("/Predict/InferPointWise")(b"big %d" % (20 << 20), timeout=PATIENCE)
        assert len(answer) == 20 << 20

    def test_a_body_over_the_limit_is_refused(self) -> None:
        with Pod(INFERFLOW_MAX_REQUEST_BYTES="10 KiB") as pod:
            pod.add_worker()
            assert len(pod.call(bytes(10 << 10))) == 10 << 10
            with failing() as caught:
                pod.call(bytes((10 << 10) + 1))
            assert caught.error.code() is Code.RESOURCE_EXHAUSTED
            assert "10240" in caught.error.details()
            assert pod.tell()["seen"] == 2

    def test_an_unknown_method_is_unimplemented(self, pod: Pod) -> None:
        with failing() as caught:
            pod.call(b"", path="/Predict/InferListWise")
        assert caught.error.code() is Code.UNIMPLEMENTED


def json_line(pod: Pod, logged: dict[str, Any]) -> str:
    return next(line for line in pod.door.lines if json.loads(line) == logged)


class TestBounds:
    def test_a_deadline_is_kept_when_the_worker_hangs(self, pod: Pod) -> None:
        pod.add_worker()
        with failing() as caught:
            pod.call(b"hang", timeout=0.2)
        assert caught.error.code() is Code.DEADLINE_EXCEEDED
        assert len(cancelled_at(pod)) == 1

    def test_and_when_its_whole_process_hangs(self, pod: Pod) -> None:
        pod.add_worker()
        blocking = pod.start(b"block")
        eventually(lambda: code_of(pod, timeout=0.3) is Code.DEADLINE_EXCEEDED, "the worker hangs")
        for _ in range(3):
            assert code_of(pod, timeout=0.3) is Code.DEADLINE_EXCEEDED
        blocking.cancel()
        pod.add_worker(1)
        assert [pod.call(b"%d" % number) for number in range(5)] == [b"%d" % number for number in range(5)]

    def test_the_server_answers_the_deadline_even_to_a_client_that_would_wait(self, pod: Pod) -> None:
        """grpcio gives up by itself, so this client states a deadline that it does not keep."""
        pod.add_worker()
        with failing() as caught:
            pod.channel.unary_unary("/Predict/InferPointWise")(
                b"hang", timeout=None, metadata=[("grpc-timeout", "200m")]
            )
        assert caught.error.code() is Code.DEADLINE_EXCEEDED

    def test_without_a_deadline_the_default_bound_is_kept(self) -> None:
        with Pod(INFERFLOW_DEFAULT_TIMEOUT_MS="200") as pod:
            pod.add_worker()
            with failing() as caught:
                pod.call(b"hang", timeout=None)
            assert caught.error.code() is Code.DEADLINE_EXCEEDED
            assert "without a deadline" in caught.error.details()
            assert len(cancelled_at(pod)) == 1

    def test_a_cancel_reaches_the_worker(self, pod: Pod) -> None:
        pod.add_worker()
        hanging = pod.start(b"hang")
        eventually(lambda: pod.tell()["in_flight"] == 1, "the request is at the worker")
        hanging.cancel()
        eventually(lambda: cancelled_at(pod), "the worker knows")
        assert pod.tell()["in_flight"] == 0

    def test_when_all_workers_are_full_requests_are_refused_at_once(self, pod: Pod) -> None:
        pod.add_worker(max_in_flight=2)
        held = [pod.start(b"hang")]
        eventually(lambda: pod.tell()["in_flight"] == 1, "the first place is taken")
        held.append(pod.start(b"hang"))
        eventually(lambda: code_of(pod) is Code.RESOURCE_EXHAUSTED, "the places are taken")
        with failing() as caught:
            pod.call(b"next")
        assert caught.error.details() == "overloaded: all 1 ready workers are full (2 requests in flight)"
        for future in held:
            future.cancel()
        eventually(lambda: code_of(pod) is None, "the places are free again")


def code_of(pod: Pod, timeout: float = PATIENCE) -> grpc.StatusCode | None:
    """The error of a call that the worker would answer at once; None when it did."""
    try:
        pod.call(b"next", timeout=timeout)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


class TestDeath:
    def test_a_killed_worker_costs_no_request(self, pod: Pod) -> None:
        first = pod.add_worker(0)
        slow = [pod.start(b"sleep 300 %d" % number) for number in range(5)]
        eventually(lambda: pod.tell()["in_flight"] == 5, "the requests are at the worker")
        pod.add_worker(1)
        first.stop(signal.SIGKILL)
        assert [future.result() for future in slow] == [b"sleep 300 %d" % number for number in range(5)]

    def test_the_only_worker_is_waited_for(self, pod: Pod) -> None:
        first = pod.add_worker(0)
        slow = pod.start(b"sleep 300")
        eventually(lambda: pod.tell()["in_flight"] == 1, "the request is at the worker")
        first.stop(signal.SIGKILL)
        pod.add_worker(0)
        assert slow.result() == b"sleep 300"

    def test_a_request_that_ends_two_workers_is_answered_and_the_others_are_served(self, pod: Pod) -> None:
        for index in range(3):
            pod.add_worker(index)
        others = [pod.start(b"sleep 200 %d" % number) for number in range(9)]
        poison = pod.start(b"die")
        error = poison.exception()
        assert error.code() is Code.INTERNAL
        assert error.details() == "the request ended 2 workers and is not sent to another"
        assert [future.result() for future in others] == [b"sleep 200 %d" % number for number in range(9)]
        alive = [worker.alive for worker in pod.workers]
        eventually(lambda: sum(is_alive() for is_alive in alive) == 1, "two workers have ended, and no more")

    def test_a_worker_that_sends_garbage_is_cut_off(self, pod: Pod) -> None:
        pod.add_worker(0)
        poison = pod.start(b"garbage")
        pod.add_worker(1)
        assert poison.exception().code() is Code.INTERNAL
        gone = eventually(lambda: pod.door.logged("has gone"), "it is logged")
        assert "sent a bad frame: frame of 4294967295 bytes" in gone["message"]

    def test_kills_under_load_cost_no_client_an_error(self, pod: Pod) -> None:
        workers = [pod.add_worker(index) for index in range(2)]
        stop = threading.Event()
        outcomes: Counter[str] = Counter()

        def client(number: int) -> None:
            generator = random.Random(number)
            with grpc.insecure_channel(
                f"127.0.0.1:{pod.port}", options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                call = channel.unary_unary("/Predict/InferPointWise")
                while not stop.is_set():
                    body = b"sleep %d %s" % (generator.randrange(20), generator.randbytes(4).hex().encode())
                    try:
                        assert call(body, timeout=PATIENCE) == body
                        outcomes["ok"] += 1
                    except grpc.RpcError as error:
                        outcomes[f"{error.code()}: {error.details()}"] += 1

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, number) for number in range(8)]
            for round_ in range(6):
                time.sleep(0.2)
                victim = round_ % 2
                workers[victim].stop(signal.SIGKILL)
                workers[victim] = pod.add_worker(victim)
            stop.set()
            for done in clients:
                done.result()
        assert set(outcomes) == {"ok"}, outcomes
        assert outcomes["ok"] > 100


class TestReadiness:
    def test_without_a_worker_requests_wait_and_then_the_client_is_told_why(self) -> None:
        with Pod(INFERFLOW_WAIT_MS="200") as pod:
            with failing() as caught:
                pod.call(b"x")
            assert caught.error.code() is Code.UNAVAILABLE
            assert caught.error.details() == "no worker is connected; waited 0.2 s"
            worker = pod.add_worker(4, ready=False)
            with failing() as caught:
                pod.call(b"x")
            name = f"worker 4 (process {worker.popen.pid})"
            assert caught.error.details() == (
                f"no worker is ready: {name}: not ready (told to be so); waited 0.2 s"
            )

    def test_a_worker_that_arrives_takes_what_waits(self, pod: Pod) -> None:
        waiting = pod.start(b"early")
        pod.add_worker()
        assert waiting.result() == b"early"

    def test_alive_is_not_ready(self, pod: Pod) -> None:
        assert pod.get("/health/self") == (200, "true")
        status, body = pod.get("/health/ready")
        assert (status, json.loads(body)) == (503, {"ready": False, "reason": "no worker is connected"})
        worker = pod.add_worker()
        status, body = pod.get("/health/ready")
        assert (status, json.loads(body)) == (200, {"ready": True, "version": 7})
        worker.stop(signal.SIGKILL)
        eventually(lambda: pod.get("/health/ready")[0] == 503, "the loss of the worker shows")
        assert pod.get("/health/self") == (200, "true")

    def test_readiness_tells_what_became_of_log_rows(self, pod: Pod) -> None:
        pod.add_worker()
        board = Board("log")
        file = BoardFile(pod.run_dir, board.process)

        def logs() -> object:
            return json.loads(pod.get("/health/ready")[1]).get("logs")

        file.write(encode(board, 0.0))
        assert logs() is None, "nothing is logged"
        board.counter(LOG_ROWS, "offered").value = 12
        board.counter(LOG_ROWS, "acknowledged").value = 5
        board.counter(LOG_DROPPED, "queue full").value = 4
        board.counter(LOG_DROPPED, "torn").value = 3
        file.write(encode(board, 0.0))
        told = {"offered": 12, "acknowledged": 5, "dropped": {"queue full": 4, "torn": 3}}
        assert logs() == told
        file.path.write_bytes(file.path.read_bytes()[:-1])  # as if it were being written
        assert logs() == told
        file.remove()

    def test_grpc_health_follows_the_workers(self, pod: Pod) -> None:
        health = health_pb2_grpc.HealthStub(pod.channel)  # type: ignore[no-untyped-call]
        response = health_pb2.HealthCheckResponse

        def states() -> list[int]:
            return [
                health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE).status
                for service in ("", "Inferflow", "Predict")
            ]

        assert states() == [response.NOT_SERVING] * 3
        pod.add_worker()
        assert states() == [response.SERVING] * 3
        pod.call(b"state 0 no config")
        eventually(lambda: states() == [response.NOT_SERVING] * 3, "the state of the worker shows")
        with failing() as caught:
            health.Check(health_pb2.HealthCheckRequest(service="Nobody"), timeout=PATIENCE)
        assert caught.error.code() is Code.NOT_FOUND

    def test_reflection_shows_the_services(self, pod: Pod) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(pod.channel)  # type: ignore[no-untyped-call]
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE)
        assert {"Inferflow", "Predict"} <= {service.name for service in answer.list_services_response.service}

    def test_a_draining_worker_finishes_and_gets_nothing_new(self, pod: Pod) -> None:
        pod.add_worker(0)
        slow = pod.start(b"sleep 300")
        pod.call(b"state 2 the worker is shutting down")
        other = pod.add_worker(1)
        assert {pod.tell()["pid"] for _ in range(4)} == {other.popen.pid}
        assert slow.result() == b"sleep 300"


class TestLife:
    def test_sigterm_answers_what_is_in_flight_and_exits_with_0(self) -> None:
        pod = Pod()
        with pod:
            pod.add_worker()
            slow = pod.start(b"sleep 500")
            eventually(lambda: pod.tell()["in_flight"] == 1, "the request is at the worker")
            pod.door.popen.send_signal(signal.SIGTERM)
            eventually(lambda: pod.door.logged("draining"), "it drains")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", pod.port)).close()
            assert slow.result() == b"sleep 500"
            assert (
                pod.door.wait() == 0
            )  # by that one signal: a second could meet an interpreter that is ending
            assert not pod.socket.exists()

    def test_a_health_watch_is_told_and_does_not_hold_up_the_end(self) -> None:
        with Pod(INFERFLOW_DRAIN_SECONDS="600") as pod:
            pod.add_worker()
            health = health_pb2_grpc.HealthStub(pod.channel)  # type: ignore[no-untyped-call]
            watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            assert pod.door.stop() == 0
            assert [update.status for update in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]

    def test_what_takes_longer_than_the_drain_time_is_cancelled(self) -> None:
        with Pod(INFERFLOW_DRAIN_SECONDS="0.3") as pod:
            pod.add_worker()
            hanging = pod.start(b"hang")
            eventually(lambda: pod.tell()["in_flight"] == 1, "the request is at the worker")
            assert pod.door.stop() == 0
            assert hanging.exception().code() is Code.UNAVAILABLE

    def test_a_killed_door_leaves_a_socket_that_the_next_one_takes_over(self) -> None:
        with Pod() as pod:
            assert pod.door.stop(signal.SIGKILL) == -signal.SIGKILL
            assert pod.socket.exists()
            pod.door = Process("frontdoor.main", **pod.environ)
            pod.add_worker()
            assert pod.call(b"x") == b"x"

    def test_a_taken_port_is_a_clear_error(self, pod: Pod, tmp_path: Path) -> None:
        second = Process("frontdoor.main", **{**pod.environ, "INFERFLOW_RUN_DIR": str(tmp_path / "run")})
        assert second.stop(signal.SIGCONT) == 1
        assert second.logs[-1]["message"] == (
            f"cannot start: another process listens on 127.0.0.1:{pod.port}: stop it, or set APP_PORT"
        )

    def test_the_run_directory_of_another_pod_is_a_clear_error(self, pod: Pod) -> None:
        second = Process("frontdoor.main", **{**pod.environ, "APP_PORT": str(free_port())})
        assert second.stop(signal.SIGCONT) == 1
        assert second.logs[-1]["message"].startswith(
            f"cannot start: {pod.socket}: another process listens there"
        )

    def test_several_doors_share_the_port_and_no_other_pod_does(self, tmp_path: Path) -> None:
        with Pod(INFERFLOW_FRONTDOORS="2") as pod:
            second = Process("frontdoor.main", **{**pod.environ, "INFERFLOW_INDEX": "1"})
            eventually(lambda: second.logged("serving"), "the second door serves")
            run_dir = tmp_path / "run"
            stranger = Process("frontdoor.main", **{**pod.environ, "INFERFLOW_RUN_DIR": str(run_dir)})
            assert stranger.stop(signal.SIGCONT) == 1
            assert stranger.logs[-1]["message"] == (
                f"cannot start: front door 0 of another pod serves 127.0.0.1:{pod.port}: "
                "stop it, or set APP_PORT"
            )
            pod.add_worker()
            assert pod.get("/health/self") == (200, "true")
            assert second.stop() == 0

    def test_with_tls_it_speaks_nothing_else(self, tmp_path: Path) -> None:
        cert, key = self_signed(tmp_path)
        with Pod(INFERFLOW_TLS_CERT=str(cert), INFERFLOW_TLS_KEY=str(key)) as pod:
            pod.add_worker()
            with grpc.secure_channel(
                f"127.0.0.1:{pod.port}", grpc.ssl_channel_credentials(cert.read_bytes())
            ) as channel:
                assert channel.unary_unary("/Predict/InferPointWise")(b"x", timeout=PATIENCE) == b"x"
            with failing() as caught:
                pod.call(b"x", timeout=1)
            assert caught.error.code() in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)

    @pytest.mark.parametrize(
        ("environ", "text"),
        [
            ({"INFERFLOW_TLS_CERT": "/nowhere", "INFERFLOW_TLS_KEY": "/nowhere"}, "/nowhere"),
            ({"INFERFLOW_HOST": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
            ({"INFERFLOW_SUPERVISOR_PID": "1"}, "the parent, process 1, has gone"),
        ],
    )
    def test_what_prevents_a_start_is_said(self, tmp_path: Path, environ: dict[str, str], text: str) -> None:
        run_dir = str(tmp_path / "run")
        port = str(free_port())
        door = Process("frontdoor.main", **{"INFERFLOW_RUN_DIR": run_dir, "APP_PORT": port, **environ})
        assert door.stop(signal.SIGCONT) == 1
        assert door.logs[-1]["level"] == "critical"
        assert text in door.logs[-1]["message"]

    def test_bad_settings_are_all_said(self) -> None:
        door = Process("frontdoor.main", APP_PORT="x", INFERFLOW_WAIT_MS="-1")
        assert door.stop(signal.SIGCONT) == 1
        assert [line.split(":")[0].strip() for line in door.lines] == [
            "bad settings",
            "APP_PORT='x'",
            "INFERFLOW_WAIT_MS='-1'",
        ]


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "front door")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def test_random_bytes_do_not_end_the_process(pod: Pod) -> None:
    pod.add_worker()
    generator = random.Random(20)
    for number in range(150):
        start = (b"", PREFACE, b"GET / HTTP/1.1\r\n", PREFACE + bytes(9))[number % 4]
        with socket.create_connection(("127.0.0.1", pod.port)) as connection:
            try:
                connection.sendall(start + generator.randbytes(generator.randrange(2000)))
            except ConnectionError:
                continue  # it has had enough already
    assert pod.call(b"alive") == b"alive"
    assert pod.tell()["in_flight"] == 0
