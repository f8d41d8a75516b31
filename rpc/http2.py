"""The names and numbers of HTTP/2 (RFC 9113, whose section numbers these are), and what can go wrong with it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "MAX_STREAM_ID",
    "PREFACE",
    "ConnectionClosingError",
    "ConnectionProtocolError",
    "DenialOfServiceError",
    "ErrorCode",
    "Header",
    "Http2Error",
    "NoAvailableStreamIDError",
    "Setting",
    "error_name",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # section 3.4
MAX_STREAM_ID: Final = 2**31 - 1

Header = tuple[bytes, bytes]
"""The name and the value of a header field."""


class ErrorCode(IntEnum):
    """Why a stream was reset or a connection ended (section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """What SETTINGS set (section 6.5.2; RFC 8441 section 3; RFC 9218 section 2.1)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    ENABLE_CONNECT_PROTOCOL = 0x8
    NO_RFC7540_PRIORITIES = 0x9


class Http2Error(Exception):
    """What a codec cannot do, or go on with."""


class ConnectionProtocolError(Http2Error):
    """The peer has broken the rules in a way that makes the rest of the connection doubtful: it must be closed."""

    def __init__(self, message: str, code: int = ErrorCode.PROTOCOL_ERROR, limit: str = "protocol") -> None:
        super().__init__(message)
        self.code = code
        """For the GOAWAY."""
        self.limit = limit
        """Under which name of `Limits` it counts."""


class DenialOfServiceError(ConnectionProtocolError):
    """The peer wants more of something than is good, although each single thing may be right."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message, ErrorCode.ENHANCE_YOUR_CALM, limit)


class ConnectionClosingError(Http2Error):
    """There are no new streams after a GOAWAY."""


class NoAvailableStreamIDError(Http2Error):
    """All streams of the connection have been used."""


def error_name(code: int) -> str:
    """The name of an error code, or its number in hexadecimal."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"{code:#x}"
