"""The standard health service, grpc.health.v1: Check, List and Watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from rpc.calls import Handler, ServerCall, StreamCall, StreamHandler
from rpc.status import Status

__all__ = ["FILE", "SERVICE", "Health"]

SERVICE: Final = "grpc.health.v1.Health"
FILE: Final = health_pb2.DESCRIPTOR
"""What defines the service, for reflection: tools can then ask for health by name."""
_CHECK: Final = b"/grpc.health.v1.Health/Check"
_LIST: Final = b"/grpc.health.v1.Health/List"
_WATCH: Final = b"/grpc.health.v1.Health/Watch"

_Response = health_pb2.HealthCheckResponse
_SERVING: Final = _Response(status=_Response.SERVING).SerializeToString()
_NOT_SERVING: Final = _Response(status=_Response.NOT_SERVING).SerializeToString()
_SERVICE_UNKNOWN: Final = _Response(status=_Response.SERVICE_UNKNOWN).SerializeToString()


class Health:
    """What a server says about its services. The service "" stands for the whole server.

    Give `handlers` and `stream_handlers` to the server. On the loop's thread only.
    """

    def __init__(self) -> None:
        self._answers: dict[str, bytes] = {"": _NOT_SERVING}
        self._watchers: dict[str, set[StreamCall]] = {}

    def set(self, service: str, serving: bool) -> None:
        """Sets the state of a service and tells those who watch it, if it has changed."""
        answer = _SERVING if serving else _NOT_SERVING
        if self._answers.get(service) != answer:
            self._answers[service] = answer
            for call in list(self._watchers.get(service, ())):
                call.send(answer)

    @property
    def handlers(self) -> Mapping[bytes, Handler]:
        """Unary methods by path."""
        return {_CHECK: self._check, _LIST: self._list}

    @property
    def stream_handlers(self) -> Mapping[bytes, StreamHandler]:
        """Streaming methods by path."""
        return {_WATCH: self._watch}

    def _check(self, call: ServerCall) -> None:
        try:
            service = health_pb2.HealthCheckRequest.FromString(call.body).service
        except DecodeError as error:
            call.fail(Status.INVALID_ARGUMENT, f"HealthCheckRequest: {error}")
            return
        answer = self._answers.get(service)
        if answer is None:
            call.fail(Status.NOT_FOUND, f"unknown service {service!r}")
        else:
            call.respond(answer)

    def _list(self, call: ServerCall) -> None:
        states = {service: _Response.FromString(answer) for service, answer in self._answers.items()}
        call.respond(health_pb2.HealthListResponse(statuses=states).SerializeToString())

    def _watch(self, call: StreamCall) -> None:
        call.on_message = lambda body: self._subscribe(call, body)

    def _subscribe(self, call: StreamCall, body: bytes) -> None:
        call.on_message = None  # one service per call
        try:
            service = health_pb2.HealthCheckRequest.FromString(body).service
        except DecodeError as error:
            call.fail(Status.INVALID_ARGUMENT, f"HealthCheckRequest: {error}")
            return
        call.on_cancel = lambda: self._unsubscribe(service, call)
        self._watchers.setdefault(service, set()).add(call)
        call.send(self._answers.get(service, _SERVICE_UNKNOWN))

    def _unsubscribe(self, service: str, call: StreamCall) -> None:
        watchers = self._watchers.get(service)
        if watchers is not None:
            watchers.discard(call)
            if not watchers:
                del self._watchers[service]

    def __repr__(self) -> str:
        states = {
            service: "serving" if answer == _SERVING else "not" for service, answer in self._answers.items()
        }
        return f"<Health {states}, {sum(map(len, self._watchers.values()))} watchers>"
