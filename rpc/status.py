"""Status codes of gRPC and the one exception that carries them."""

from __future__ import annotations

import enum
from collections.abc import Sequence

__all__ = ["Metadata", "RpcError", "Status", "status_of_http", "status_of_reset"]

Metadata = Sequence[tuple[bytes, bytes]]
"""Custom metadata: (lower-case name, value) pairs. Values of names that end in `-bin` are raw bytes."""


class Status(enum.IntEnum):
    """The outcome of a call (numbers of the `grpc-status` trailer)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that did not end in OK.

    `retriable` is True when the request was surely not processed (never sent, or refused by the peer before
    any work), so that it is safe to send it again whatever the method does.
    """

    def __init__(
        self, status: Status, message: str, *, trailing: Metadata = (), retriable: bool = False
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.trailing = tuple(trailing)
        self.retriable = retriable

    def __str__(self) -> str:
        return f"{self.status.name}: {self.message}"


# What an answer without grpc-status means, by its HTTP status ("HTTP to gRPC Status Code Mapping" of gRPC).
_OF_HTTP = {
    b"400": Status.INTERNAL,
    b"401": Status.UNAUTHENTICATED,
    b"403": Status.PERMISSION_DENIED,
    b"404": Status.UNIMPLEMENTED,
    b"429": Status.UNAVAILABLE,
    b"502": Status.UNAVAILABLE,
    b"503": Status.UNAVAILABLE,
    b"504": Status.UNAVAILABLE,
}

# What a stream reset means, by its HTTP/2 error code ("Errors" of gRPC over HTTP/2).
_OF_RESET = {
    0x7: Status.UNAVAILABLE,  # REFUSED_STREAM
    0x8: Status.CANCELLED,  # CANCEL
    0xB: Status.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    0xC: Status.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}


def status_of_http(code: bytes) -> Status:
    """The status of an answer that has HTTP status `code` and no grpc-status."""
    return _OF_HTTP.get(code, Status.UNKNOWN)


def status_of_reset(code: int) -> Status:
    """The status of a call whose stream the peer reset with HTTP/2 error `code`."""
    return _OF_RESET.get(code, Status.INTERNAL)
