"""Whatever clients send, no process ends, everybody else is served, and nothing stays in the books."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import grpc
import pytest

from tests.e2e.pod import Pod, UpstreamProcess
from tests.e2e.wire import WireClient, message
from tests.golden.cases import CASES, CONFIG_DIR, CONFIGS, EXPRESSIONS

pytestmark = pytest.mark.slow

GOOD = CASES["plain_a"]
DATA = message(GOOD.request)
SAMPLES = [CASES[name] for name in ("plain_a", "slates_a", "pairs_a", "typed_features_a", "composite_text_a")]
REFUSED = "refused; the last good version is served if there is one"
ROUNDS = 150


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with (
        UpstreamProcess(CONFIG_DIR) as upstreams,
        Pod(CONFIGS, expressions=EXPRESSIONS, upstreams=upstreams.port, expected_errors=[REFUSED]) as pod,
    ):
        yield pod


@pytest.fixture(autouse=True)
def unharmed(pod: Pod) -> Iterator[None]:
    """After each test the same processes serve the same answer. That the books are empty, the pod checks itself."""
    before, answer = pod.processes(), pod.call(GOOD.rpc, GOOD.request)
    yield
    assert pod.call(GOOD.rpc, GOOD.request) == answer
    assert pod.processes() == before


def spoilt(body: bytes, chance: random.Random) -> bytes:
    """The body cut, or with some bytes changed, removed or added."""
    data = bytearray(body)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                del data[at:]
            case 1:
                data[at : at + chance.randrange(8)] = b""
            case 2:
                data[at:at] = chance.randbytes(chance.randrange(1, 8))
            case _:
                data[at : at + 1] = chance.randbytes(1)
    return bytes(data)


def test_spoilt_messages(pod: Pod) -> None:
    chance = random.Random(1)
    codes = set()
    for _ in range(ROUNDS):
        case = chance.choice(SAMPLES)
        try:
            pod.call(case.rpc, spoilt(case.request, chance))
            codes.add(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.add(error.code())
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


def test_random_messages_of_all_sizes(pod: Pod) -> None:
    chance = random.Random(2)
    codes = set()
    for size in (0, 1, 5, 100, 10_000, 1 << 20, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 6 << 20):
        for case in SAMPLES[:3]:
            with pytest.raises(grpc.RpcError) as caught:
                pod.call(case.rpc, chance.randbytes(size))
            codes.add((size > 4 << 20, caught.value.code()))
    assert codes == {(False, grpc.StatusCode.INVALID_ARGUMENT), (True, grpc.StatusCode.RESOURCE_EXHAUSTED)}


OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED = "0", "3", "4", "8", "12"
RESET = None  # no answer: the stream is reset, as HTTP/2 wants it
NO_GRPC = "HTTP status 415"


@pytest.mark.parametrize(
    ("replace", "status"),
    [
        ({":path": "/"}, UNIMPLEMENTED),
        ({":path": "/Predict"}, UNIMPLEMENTED),
        ({":path": "/Predict/"}, UNIMPLEMENTED),
        ({":path": "//InferPointWise"}, UNIMPLEMENTED),
        ({":path": "/Predict/InferPointWise/"}, UNIMPLEMENTED),
        ({":path": "/predict/inferpointwise"}, UNIMPLEMENTED),
        ({":path": "/Predict/InferPointWise?x=1"}, UNIMPLEMENTED),
        ({":path": "/" + 8000 * "x"}, UNIMPLEMENTED),
        ({"te": None}, OK),
        ({"te": "gzip"}, RESET),
        ({"grpc-timeout": "soon"}, INVALID_ARGUMENT),
        ({"grpc-timeout": "1"}, INVALID_ARGUMENT),
        ({"grpc-timeout": "-1S"}, INVALID_ARGUMENT),
        ({"grpc-timeout": "999999999S"}, INVALID_ARGUMENT),
        ({"grpc-timeout": "0n"}, DEADLINE_EXCEEDED),
        ({"grpc-timeout": "1n"}, DEADLINE_EXCEEDED),
        ({"grpc-timeout": "99999999H"}, OK),
        ({"grpc-encoding": "br"}, UNIMPLEMENTED),
        ({"content-type": "text/html"}, NO_GRPC),
        ({"content-type": None}, NO_GRPC),
        ({":method": "GET"}, NO_GRPC),
        ({"x-many": 20_000 * "x"}, RESOURCE_EXHAUSTED),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_headers(pod: Pod, replace: dict[str, str | None], status: str | None) -> None:
    with WireClient(pod.port) as client:
        answer = client.ask(GOOD.rpc, DATA, replace=replace)
    if status is NO_GRPC:
        assert answer[":status"] == "415"
    else:
        assert answer.get("grpc-status") == status, answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        DATA[:4],
        DATA[:-1],
        DATA + b"\0",
        DATA + DATA,
        b"\1" + DATA[1:],
        b"\7" + DATA[1:],
        b"\0\xff\xff\xff\xff" + DATA[5:],
        b"\0\0\x50\0\0" + DATA[5:],
    ],
    ids=lambda data: f"{len(data)} bytes from {data[:5].hex()}",
)
def test_wrong_framing(pod: Pod, data: bytes) -> None:
    with WireClient(pod.port) as client:
        answer = client.ask(GOOD.rpc, data)
    assert answer.get("grpc-status", OK) != OK


def test_streams_that_are_left_half_sent(pod: Pod) -> None:
    """They go with their connection."""
    for end in range(0, len(DATA), 3):
        with WireClient(pod.port) as client:
            client.ask(GOOD.rpc, DATA[:end], end=False)


def test_connections_that_are_cut_after_their_request(pod: Pod) -> None:
    slow = CASES["model_slow_in_time_a"]
    for _ in range(20):
        with WireClient(pod.port) as client:
            client.ask(slow.rpc, message(slow.request)[:-1], end=False)
            client.send(random.Random(3).randbytes(9))


STARTS = (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /health/ready HTTP/1.1\r\n", b"\x16\x03\x01")


def test_bytes_that_are_no_http(pod: Pod) -> None:
    chance = random.Random(4)
    for number in range(ROUNDS):
        with socket.create_connection(("127.0.0.1", pod.port)) as connection:
            try:
                connection.sendall(STARTS[number % len(STARTS)] + chance.randbytes(chance.randrange(3000)))
            except ConnectionError:
                continue  # it has had enough already


def test_spoilt_conversations(pod: Pod) -> None:
    """A good client's frames, with some bytes changed."""
    chance = random.Random(5)
    for _ in range(ROUNDS // 3):
        with WireClient(pod.port) as client:
            client.ask(GOOD.rpc, DATA, end=False)
            client.send(spoilt(DATA + bytes(9), chance))
            client.drain()


def test_http1_requests_that_are_none(pod: Pod) -> None:
    for text in (
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /Predict/InferPointWise HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
        b"GET /health/self HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
        b"POST /health/self HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with socket.create_connection(("127.0.0.1", pod.port), timeout=30) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        assert not answer.startswith(b"HTTP/1.1 200"), answer
