"""What both upstream servers of the demo share: a gRPC service of plain functions, run until SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

__all__ = ["Failure", "Method", "run", "start"]

Metadata = Mapping[str, str]
_DRAIN_SECONDS = 1.0


class Failure(Exception):
    """A call that ends with a gRPC status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Method:
    """A unary method: the request's class and a function of request and metadata.

    The function returns the answer or raises `Failure`.
    """

    request: type[Message]
    answer: Callable[[Any, Metadata], Message]


def start(services: Mapping[str, Mapping[str, Method]], port: int = 0, threads: int = 4) -> tuple[Any, int]:
    """A started grpc.Server on loopback and its port (`port` 0: a free one).

    `services` is service name → method name → method. Raises RuntimeError when the port is taken.
    """
    options = [("grpc.so_reuseport", 0)]  # a second server on a taken port shall fail, not share it
    server = grpc.server(ThreadPoolExecutor(threads), options=options)
    for service, methods in services.items():
        handlers = {name: _handler(method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


def _handler(method: Method) -> Any:
    def call(request: Message, context: Any) -> Message:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        try:
            return method.answer(request, metadata)
        except Failure as failure:
            context.abort(failure.code, failure.message)
            raise  # abort() has raised; this tells the type checker so

    return grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=method.request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def run(services: Mapping[str, Mapping[str, Method]], port: int) -> None:
    """Serve until SIGTERM or SIGINT; the first line on stdout is the port, printed once calls are answered."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server, bound = start(services, port)
    print(bound, flush=True)
    stop.wait()
    server.stop(_DRAIN_SECONDS).wait()
