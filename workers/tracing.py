"""Traces of requests: spans of the request, its components and their upstream calls, sent by OTLP.

Off unless INFERFLOW_OTLP_ENDPOINT is set; nothing of OpenTelemetry is imported then. A request is traced when its
caller's `traceparent` says so, or, without one, at random. One that is not traced costs the look at that header; if
there is one, it is handed on to the upstreams as it came: not sampled. What is traced costs some 100 µs (spans are
objects); a thread of the SDK exports them, and when its queue is full spans are dropped: those `ended` and neither
`exported` nor `failed`.

W3C Trace Context: https://www.w3.org/TR/trace-context/#traceparent-header. Belongs to the I/O thread.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from dag.component import Endpoint, Pending, Reply
from dag.plan import Plan
from rpc.status import Metadata, Status
from shared.board import Board
from shared.metrics import MODES, SPANS
from shared.settings import Settings
from workers.coalescing import Coalescing
from workers.upstreams import ChannelEndpoint

__all__ = ["PassedOn", "RequestTrace", "Tracing", "parent_of"]

EXPORT_SECONDS: Final = 5.0
"""For one export, and for the last one at the end of the process."""
QUEUE_SPANS: Final = 4096
_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


class Parent(NamedTuple):
    """The caller's span, in hexadecimal as it came."""

    trace_id: bytes
    span_id: bytes
    flags: bytes

    @property
    def sampled(self) -> bool:
        return bool(int(self.flags, 16) & TraceFlags.SAMPLED)

    @property
    def context(self) -> SpanContext:
        """The same as OpenTelemetry has it."""
        flags = TraceFlags(int(self.flags, 16))
        return SpanContext(int(self.trace_id, 16), int(self.span_id, 16), is_remote=True, trace_flags=flags)


def parent_of(metadata: Mapping[bytes, bytes]) -> Parent | None:
    """The caller's span, from its `traceparent`; None without one, or with one that is not to be understood."""
    header = metadata.get(b"traceparent")
    found = None if header is None else _TRACEPARENT.fullmatch(header)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]):
        return None
    parent = Parent(found[2], found[3], found[4])
    return None if parent.trace_id == _NO_TRACE or parent.span_id == _NO_SPAN else parent


class _Counted(SpanExporter):
    """An exporter whose outcomes are on the board. On the SDK's thread."""

    def __init__(self, exporter: SpanExporter, board: Board) -> None:
        self._exporter = exporter
        self._exported = board.counter(SPANS, "exported")
        self._failed = board.counter(SPANS, "failed")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        count = self._exported if result is SpanExportResult.SUCCESS else self._failed
        count.value += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Tracing:
    """The traces of one worker."""

    def __init__(self, settings: Settings, board: Board) -> None:
        tracing = settings.tracing
        resource = Resource.create(
            {"service.name": settings.name, "deployment.environment.name": settings.environment}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        plaintext = not tracing.endpoint.startswith("https://")
        exporter = OTLPSpanExporter(tracing.endpoint, insecure=plaintext, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(_Counted(exporter, board), max_queue_size=QUEUE_SPANS)
        )
        self._tracer = self._provider.get_tracer("inferflow")
        self._ratio = tracing.ratio
        self._ended = board.counter(SPANS, "ended")

    def begin(self, method: int, metadata: Mapping[bytes, bytes]) -> RequestTrace | PassedOn | None:
        """The trace of a request that is just being taken.

        PassedOn: its caller's, which is not sampled. None: there is none.
        """
        parent = parent_of(metadata)
        if parent is None:
            if random.random() >= self._ratio:
                return None
            context = None
        else:
            if not parent.sampled:
                return PassedOn(parent, metadata)
            context = set_span_in_context(NonRecordingSpan(parent.context))
        name = MODES[method] if method < len(MODES) else "unknown method"
        return RequestTrace(self, self.start(name, context, SpanKind.SERVER), _state(metadata))

    def start(self, name: str, context: object, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        """A span that begins now."""
        return self._tracer.start_span(name, context, kind)  # type: ignore[arg-type]

    def end(self, span: Span, status: int = 0, message: str = "") -> None:
        """Ends a span, with a gRPC status."""
        if status:
            span.set_attribute("rpc.grpc.status_code", status)
            span.set_status(StatusCode.ERROR, f"{Status(status).name}: {message}" if message else None)
        span.end()
        self._ended.value += 1

    def close(self) -> None:
        """Exports what is left, for EXPORT_SECONDS at most."""
        self._provider.force_flush(int(EXPORT_SECONDS * 1000))
        self._provider.shutdown()

    def __repr__(self) -> str:
        return f"<Tracing {self._ratio:g} of the requests, {self._ended.value:.0f} spans ended>"


def _state(metadata: Mapping[bytes, bytes]) -> Metadata:
    """The caller's `tracestate`, as a header for upstreams: it goes wherever the trace goes."""
    state = metadata.get(b"tracestate")
    return ((b"tracestate", state),) if state else ()


class PassedOn:
    """The trace of a request that its caller does not want to be recorded. See `dag.meters.Trace`."""

    __slots__ = ("_headers",)

    trace_id: Final = ""
    """There is nothing to be found under it."""

    def __init__(self, caller: Parent, metadata: Mapping[bytes, bytes]) -> None:
        header = b"00-%b-%b-%b" % caller
        self._headers: Metadata = ((b"traceparent", header), *_state(metadata))

    def planned(self, plan: Plan, tracking_id: str, rows: int) -> None:
        """Nobody wants to know."""

    def began(self, number: int) -> None:
        """Nobody wants to know."""

    def ended(self, number: int) -> None:
        """Nobody wants to know."""

    def endpoint(self, number: int, endpoint: Endpoint) -> Endpoint:
        """The endpoint as this request is to call it: each call tells the upstream of the caller's trace.

        Calls are shared all the same: the upstream is told of the trace of the request that began the call.
        """
        if isinstance(endpoint, ChannelEndpoint):
            return endpoint.with_headers(self._headers)
        if isinstance(endpoint, Coalescing) and isinstance(endpoint.endpoint, ChannelEndpoint):
            return endpoint.through(endpoint.endpoint.with_headers(self._headers))
        return endpoint  # it leads nowhere that could be told

    def finish(self, status: Status, message: str = "") -> None:
        """Nobody wants to know."""

    def __repr__(self) -> str:
        return f"<PassedOn {self._headers!r}>"


class RequestTrace:
    """The spans of one request. See `dag.meters.Trace`."""

    __slots__ = ("_components", "_names", "_request", "_state", "_tracing", "trace_id")

    def __init__(self, tracing: Tracing, request: Span, state: Metadata = ()) -> None:
        """`state`: headers that upstreams get besides."""
        self._state = state
        self._tracing = tracing
        self._request = request
        self._names: Sequence[str] = ()
        self._components: dict[int, Span] = {}
        self.trace_id = f"{request.get_span_context().trace_id:032x}"

    def planned(self, plan: Plan, tracking_id: str, rows: int) -> None:
        """The request has been read."""
        self._names = [component.name for component in plan.components]
        self._request.set_attributes(
            {"inferflow.model_config_id": plan.model_config_id, "inferflow.rows": rows}
        )
        if tracking_id:
            self._request.set_attribute("inferflow.tracking_id", tracking_id)

    def began(self, number: int) -> None:
        """A component starts."""
        context = set_span_in_context(self._request)
        self._components[number] = self._tracing.start(self._names[number], context)

    def ended(self, number: int) -> None:
        """A component has ended."""
        self._tracing.end(self._components.pop(number))

    def endpoint(self, number: int, endpoint: Endpoint) -> Endpoint:
        """The endpoint as this component is to call it: each call has a span, and tells it to the upstream.

        A traced request shares no calls: the upstream is told of one span.
        """
        direct = endpoint.endpoint if isinstance(endpoint, Coalescing) else endpoint
        if not isinstance(direct, ChannelEndpoint):
            return endpoint  # it leads nowhere that could be told
        return _TracedEndpoint(self._tracing, self._components[number], direct, self._state)

    def finish(self, status: Status, message: str = "") -> None:
        """The request is answered. Components that were given up end with it."""
        for span in self._components.values():
            self._tracing.end(span, Status.CANCELLED)
        self._components.clear()
        self._tracing.end(self._request, status, message)

    def __repr__(self) -> str:
        return f"<RequestTrace {self.trace_id}, {len(self._components)} components open>"


class _TracedEndpoint:
    """One endpoint, for the calls of one component of one request."""

    __slots__ = ("_endpoint", "_parent", "_state", "_tracing")

    def __init__(self, tracing: Tracing, parent: Span, endpoint: ChannelEndpoint, state: Metadata) -> None:
        self._state = state
        self._tracing = tracing
        self._parent = parent
        self._endpoint = endpoint

    def start(
        self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None], rows: int
    ) -> Pending:
        context = set_span_in_context(self._parent)
        span = self._tracing.start(self._endpoint.path, context, SpanKind.CLIENT)
        span.set_attribute("inferflow.rows", rows)
        own = span.get_span_context()
        header = b"00-%032x-%016x-01" % (own.trace_id, own.span_id)

        def ended(reply: Reply) -> None:
            self._tracing.end(span, reply.status, reply.message)
            on_done(reply)

        told = self._endpoint.with_headers(((b"traceparent", header), *self._state))
        return told.start(body, timeout, ended, rows)

    def __repr__(self) -> str:
        return f"<_TracedEndpoint {self._endpoint!r}>"
