"""The recorded inference logs of the existing service, and how a request gets logged by this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dag.config import decode
from frontdoor.services import METHODS
from inferlog.encode import Encoding, encode
from inferlog.event import Event
from inferlog.schema import LogSchema
from tests.golden.cases import CONFIGS, DATA
from tests.inprocess import InProcess

__all__ = ["LOGS", "MAX_BYTES", "PARENTS", "Log", "log", "schema_of"]

MAX_BYTES = 1 << 20
PARENTS = ("parent_catalog_id", "search_query", "clp_id", "collection_id")


class Log(msgspec.Struct, frozen=True):
    """One logged request: what the service config was, the messages, and what the reference reader reads."""

    name: str
    rpc: str
    model_config_id: str
    metadata: dict[str, str]
    request: bytes  # base64 in the file, as the messages
    format: str
    compression: bool
    schema: list[tuple[str, str]]
    messages: list[bytes]
    decoded: list[dict[str, Any]]
    deviation: str | None = None
    expect: list[dict[str, Any]] | None = None

    @property
    def service(self) -> Mapping[str, Any]:
        return {"v2-logging-type": self.format, "compression-enabled": self.compression}

    @property
    def expected(self) -> list[dict[str, Any]] | None:
        """What our messages are to be read as; None where the recording does not say."""
        return self.expect if self.deviation else self.decoded

    @property
    def id(self) -> str:
        return f"{self.name}-{self.format}{'-compressed' if self.compression else ''}"


LOGS: Sequence[Log] = [
    msgspec.json.decode(line, type=Log) for line in (DATA / "logs.jsonl").read_bytes().splitlines()
]


def schema_of(log: Log) -> LogSchema:
    return LogSchema.of(log.model_config_id, decode(CONFIGS[log.model_config_id]), log.service)


def log(service: InProcess, case: Log, **changed: Any) -> Encoding:
    """The log of a recorded request that is scored here. `changed`: other values of its event."""
    scored = service.scored(case.rpc, case.request, case.metadata)
    expected = (case.expected or case.decoded or [{}])[0]
    event = Event(
        method=METHODS.index(case.rpc.encode()),
        model_config_id=case.model_config_id,
        digest=scored.plan.digest,
        request_id=b"0123456789abcdef",
        tracking_id=expected.get("tracking_id", ""),
        user_id=expected.get("user_id", ""),
        parent_entity=tuple(expected.get("parent_entity", ())),
        request_ns=1_700_000_000_123_456_789,
        failures=scored.scoring.failures,
    )
    try:
        return encode(
            schema_of(case),
            scored.scoring.matrix,
            scored.scoring.slates,
            dataclasses.replace(event, **changed),
            max_message_bytes=MAX_BYTES,
        )
    finally:
        scored.release()
