"""The recorded cases, and what is expected of a service that is asked the same."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.message import Message

from proto import inferflow_pb2, predict_pb2
from tests.inprocess import RecordedCall

__all__ = ["CASES", "CONFIGS", "CONFIG_DIR", "EXPRESSIONS", "RESPONSES", "Case", "Expectation", "stories"]

DATA = Path(__file__).resolve().parent.parent / "data" / "golden"
CONFIG_DIR = DATA / "configs"
EXPRESSIONS: Mapping[str, str] = json.loads((CONFIG_DIR / "expressions.json").read_text())
CONFIGS: Mapping[str, bytes] = {
    path.stem: path.read_bytes() for path in sorted(CONFIG_DIR.glob("*.json")) if path.stem != "expressions"
}
"""Model configs by id."""

RESPONSES: Mapping[str, type[Message]] = {
    "/Inferflow/RetrieveModelScore": inferflow_pb2.InferflowResponseProto,
    "/Predict/InferPointWise": predict_pb2.PointWiseResponse,
    "/Predict/InferPairWise": predict_pb2.PairWiseResponse,
    "/Predict/InferSlateWise": predict_pb2.SlateWiseResponse,
}


class _Call(msgspec.Struct, frozen=True):
    path: str
    status: int
    metadata: dict[str, str]
    request: bytes  # base64 in the file, as all bytes here

    def recorded(self) -> RecordedCall:
        return RecordedCall(self.path, self.status, self.metadata, self.request)


class Expectation(msgspec.Struct, frozen=True):
    """What is compared instead of the recorded answer; what is None is not compared."""

    status: int | list[int] = 0
    response: bytes | None = None
    errors: dict[str, Any] | None = (
        None  # score list → rows with an error; request_error → whether there is one
    )
    upstream: list[_Call] | None = None

    @property
    def statuses(self) -> Sequence[int]:
        return [self.status] if isinstance(self.status, int) else self.status

    @property
    def calls(self) -> list[RecordedCall] | None:
        return None if self.upstream is None else [call.recorded() for call in self.upstream]


class Case(msgspec.Struct, frozen=True):
    """One recorded request: what was asked, what the existing service answered and asked its upstreams."""

    name: str
    rpc: str
    model_config_id: str
    metadata: dict[str, str]
    request_readable: str
    request: bytes
    status: int
    message: str
    response: bytes | None
    upstream: list[_Call]
    deviation: str | None = None  # why the existing service is to be bettered here
    expect: Expectation | None = None
    timeout_ms: int = 5000
    wait_ms: int | None = None

    @property
    def is_open(self) -> bool:
        """The recorded answer is for information only: `test_settled.py` says what is right instead."""
        return self.deviation is not None and self.expect is None

    @property
    def expectation(self) -> Expectation:
        return self.expect or Expectation(status=self.status, response=self.response, upstream=self.upstream)

    def message_of(self, body: bytes) -> Any:
        """A response to this case."""
        return RESPONSES[self.rpc].FromString(body)


def _load() -> Mapping[str, Case]:
    lines = (DATA / "cases.jsonl").read_bytes().splitlines()
    return {case.name: case for case in (msgspec.json.decode(line, type=Case) for line in lines)}


CASES = _load()
"""By name, in the order in which they were recorded."""


def stories() -> list[tuple[str, list[Case]]]:
    """What is replayed together: the cases that find in the cache what others left there, all others alone."""
    caching = [case for case in CASES.values() if case.wait_ms is not None]
    alone = [(case.name, [case]) for case in CASES.values() if case.wait_ms is None and not case.is_open]
    return [("cache", caching), *alone]


def encoded(body: bytes) -> str:
    """Bytes as the data files hold them."""
    return base64.b64encode(body).decode()
