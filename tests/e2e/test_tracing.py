"""Traces of a pod, as a collector receives them and as upstreams are told of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.e2e.asking import POINT, config, score, write_models
from tests.e2e.pod import Pod, UpstreamProcess
from tests.frontdoor.process import eventually

pytestmark = pytest.mark.slow

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]  # grpcio has no types
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Any] = []
        self.services: set[str] = set()

    def Export(self, request: Any, _context: Any) -> Any:
        with self._lock:
            for resource in request.resource_spans:
                named = {one.key: one.value.string_value for one in resource.resource.attributes}
                self.services.add(named["service.name"])
                self._spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, Any]:
        """By name."""
        with self._lock:
            return {span.name: span for span in self._spans}


@contextmanager
def collecting() -> Iterator[tuple[Collector, int]]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, port
    finally:
        server.stop(None).wait()


def test_a_traced_request(tmp_path_factory: pytest.TempPathFactory) -> None:
    configs = {"shop": config(), "down": config("fail_ranker")}
    models = write_models(tmp_path_factory.mktemp("models"), configs)
    with (
        collecting() as (collector, port),
        UpstreamProcess(models) as upstreams,
        Pod(
            configs,
            upstreams=upstreams.port,
            INFERFLOW_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            INFERFLOW_TRACE_RATIO="0",
            OTEL_BSP_SCHEDULE_DELAY="200",  # ms between two exports; 5 s if nobody says
        ) as pod,
    ):
        body = score("shop", ["a", "b"])
        pod.call(POINT, body)  # nobody asked for a trace
        calls = upstreams.take_calls()
        assert calls
        assert not [call for call in calls if "traceparent" in call.metadata]
        state = {"tracestate": "vendor=1"}
        # Nor here; but upstreams are told of it.
        pod.call(POINT, body, metadata={"traceparent": f"00-{TRACE}-{CALLER}-00", **state})
        told = [
            (call.metadata["traceparent"], call.metadata["tracestate"]) for call in upstreams.take_calls()
        ]
        assert told == [(f"00-{TRACE}-{CALLER}-00", "vendor=1")] * len(calls)
        pod.call(POINT, body, metadata={"traceparent": f"00-{TRACE}-{CALLER}-01", **state})
        calls = upstreams.take_calls()
        assert {call.metadata["tracestate"] for call in calls} == {"vendor=1"}
        eventually(
            lambda: len(collector.spans()) == 5, "all spans are there", lambda: repr(collector.spans())
        )
        spans = collector.spans()
        request = spans["pointwise"]
        assert all(span.trace_id.hex() == TRACE for span in spans.values())
        assert request.parent_span_id.hex() == CALLER
        attributes = {one.key: one.value for one in request.attributes}
        assert attributes["inferflow.model_config_id"].string_value == "shop"
        assert attributes["inferflow.rows"].int_value == 2
        assert collector.services == {"golden"}
        for component, path in (
            ("fetch", "/retrieve.FeatureService/RetrieveFeatures"),
            ("rank", "/inference.GRPCInferenceService/ModelInfer"),
        ):
            assert spans[component].parent_span_id == request.span_id
            assert spans[path].parent_span_id == spans[component].span_id
            (call,) = [call for call in calls if call.path == path]
            assert call.metadata["traceparent"] == f"00-{TRACE}-{spans[path].span_id.hex()}-01"
        eventually(
            lambda: f'trace_id="{TRACE}"' in pod.admin("/metrics", accept="application/openmetrics-text"),
            "the trace is an exemplar",
        )

        pod.call(POINT, score("down", ["a"]), metadata={"traceparent": f"00-{'1' * 32}-{CALLER}-01"})
        failed = "/inference.GRPCInferenceService/ModelInfer"
        eventually(lambda: collector.spans()[failed].status.code == 2, "the failed call is an error")
