"""Which requests are traced, and what the upstreams of the others are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.board import Board
from shared.settings import Settings, TraceSettings
from workers.tracing import PassedOn, RequestTrace, Tracing, parent_of

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"


@pytest.fixture
def tracing() -> Iterator[Tracing]:
    """Of no request without a traceparent. Nothing is exported."""
    made = Tracing(Settings(tracing=TraceSettings(endpoint="http://127.0.0.1:1", ratio=0)), Board("worker-0"))
    yield made
    made._provider.shutdown()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"00-" + TRACE + b"-" + SPAN,
        b"00-" + TRACE + b"-" + SPAN + b"-01-more",
        b"ff-" + TRACE + b"-" + SPAN + b"-01",
        b"00-" + b"0" * 32 + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE.upper() + b"-" + SPAN + b"-01",
    ],
)
def test_what_is_no_traceparent_is_none(tracing: Tracing, header: bytes) -> None:
    metadata = {b"traceparent": header} if header else {}
    assert parent_of(metadata) is None
    assert tracing.begin(1, metadata) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert parent_of({b"traceparent": b"01-" + TRACE + b"-" + SPAN + b"-03-more"}) == (TRACE, SPAN, b"03")


@pytest.mark.parametrize("flags", [b"00", b"02"])
def test_what_is_not_sampled_is_passed_on(tracing: Tracing, flags: bytes) -> None:
    header = b"00-" + TRACE + b"-" + SPAN + b"-" + flags
    trace = tracing.begin(1, {b"traceparent": header, b"tracestate": b"vendor=1"})
    assert isinstance(trace, PassedOn)
    assert repr(trace) == f"<PassedOn {((b'traceparent', header), (b'tracestate', b'vendor=1'))!r}>"
    assert trace.trace_id == "", "nothing is to be found under it"


def test_what_is_sampled_is_traced(tracing: Tracing) -> None:
    trace = tracing.begin(1, {b"traceparent": b"00-" + TRACE + b"-" + SPAN + b"-01"})
    assert isinstance(trace, RequestTrace)
    assert trace.trace_id == TRACE.decode()
