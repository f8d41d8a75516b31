"""The HTTP/2 codec: the only module of the project that imports ngh2.

ngh2 is alpha, so everything that depends on its surface goes through here: the names the other modules
use, the two ways a connection is opened, and the GOAWAY that ngh2 cannot send any more once it has failed.
"""

from __future__ import annotations

import struct
from typing import Final

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    ConnectionClosingError,
    ConnectionProtocolError,
    DataReceived,
    DenialOfServiceError,
    ErrorCode,
    Event,
    GoAwayReceived,
    Header,
    NGH2Error,
    NoAvailableStreamIDError,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    ResponseReceived,
    Role,
    Setting,
    SettingsAcknowledged,
    SettingsReceived,
    StreamClosed,
    StreamProtocolError,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

__all__ = [
    "MAX_STREAM_ID",
    "PREFACE",
    "Configuration",
    "Connection",
    "ConnectionClosed",
    "ConnectionClosingError",
    "ConnectionProtocolError",
    "DataReceived",
    "DenialOfServiceError",
    "ErrorCode",
    "Event",
    "GoAwayReceived",
    "Header",
    "NGH2Error",
    "NoAvailableStreamIDError",
    "PingAcknowledged",
    "PingReceived",
    "RequestReceived",
    "ResponseReceived",
    "Role",
    "Setting",
    "SettingsAcknowledged",
    "SettingsReceived",
    "StreamClosed",
    "StreamProtocolError",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
    "error_name",
    "goaway_frame",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4
MAX_STREAM_ID: Final = 2**31 - 1
_GOAWAY: Final = 7


def goaway_frame(last_stream_id: int, code: int, reason: bytes) -> bytes:
    """Returns a whole GOAWAY frame (RFC 9113 section 6.8).

    For connections whose codec has already failed: ngh2 then drops its session and sends nothing, and a
    peer that is cut off without a word would try again at once.
    """
    payload = struct.pack(">II", last_stream_id, code) + reason
    return struct.pack(">IBI", len(payload) << 8 | _GOAWAY, 0, 0) + payload


def error_name(code: int) -> str:
    """The name of an HTTP/2 error code (RFC 9113 section 7), or its number in hexadecimal."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"{code:#x}"
