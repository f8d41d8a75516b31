"""How gRPC writes things inside HTTP/2: messages, timeouts, metadata, status messages.

Pure functions over bytes; both sides use them. The format is that of "gRPC over HTTP2" (PROTOCOL-HTTP2.md of
the gRPC project).
"""

from __future__ import annotations

import binascii
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from rpc.hpack import never_indexed
from rpc.http2 import Header
from rpc.status import Metadata, RpcError, Status

__all__ = [
    "ACCEPT_ENCODING",
    "ENCODINGS",
    "PREFIX",
    "Body",
    "MessageReader",
    "custom_metadata",
    "decode_message",
    "decode_timeout",
    "decompress",
    "encode_message",
    "encode_metadata",
    "message_parts",
    "message_prefix",
    "read_prefix",
    "split_headers",
    "timeout_field",
    "unknown_encoding",
    "whole_message",
]

Body = bytes | tuple[bytes, ...]
"""A message, whole or in parts that are sent one after the other."""

PREFIX: Final = 5  # bytes before a message: compressed flag, u32 length (big-endian)
ACCEPT_ENCODING: Final = b"identity,deflate,gzip"

# -- messages ----------------------------------------------------------------------------------------------

# Up to this size parts are joined: copying is cheaper than one more call into the codec for each part.
_JOIN_BELOW: Final = 32 * 1024
_MAX_MESSAGE: Final = 2**32 - 1


def message_parts(body: Body) -> tuple[bytes, ...]:
    """Returns `body` with its length prefix, as few pieces as is cheap, in the order of the wire.

    Large parts are passed through and not copied. Raises ValueError over 4 GiB - 1 bytes.
    """
    if isinstance(body, bytes):
        size = len(body)
        if size < _JOIN_BELOW:
            return (size.to_bytes(PREFIX, "big") + body,)
        return (message_prefix(size), body)
    size = 0
    for part in body:
        size += len(part)
    if size < _JOIN_BELOW:
        return (b"".join((size.to_bytes(PREFIX, "big"), *body)),)
    return (message_prefix(size), *body)


def message_prefix(size: int) -> bytes:
    """Returns what stands before a message of `size` bytes. Raises ValueError over 4 GiB - 1 bytes."""
    if size > _MAX_MESSAGE:
        raise ValueError(f"a message of {size} bytes does not fit its u32 length prefix")
    # The compressed flag is the byte above the u32, so the five bytes are one number: 0 and the length.
    return size.to_bytes(PREFIX, "big")


class MessageReader:
    """Puts messages together from the pieces of a body.

    A length prefix is checked against `limit` as soon as its five bytes are there, before anything of the
    message is kept.
    """

    __slots__ = ("_compressed", "_encoding", "_have", "_limit", "_need", "_parts", "count")

    def __init__(self, limit: int, encoding: bytes) -> None:
        self.count = 0
        """Messages that were complete so far."""
        self._limit = limit
        self._encoding = encoding
        self._parts: list[bytes | memoryview] = []
        self._have = 0
        self._need = -1  # bytes of the message; -1 while its prefix is not complete
        self._compressed = False

    @property
    def held(self) -> int:
        """Bytes kept of a message that is not complete."""
        return self._have

    @property
    def partial(self) -> str:
        """What is missing, as text; empty between two messages."""
        if self._need >= 0:
            return f"message ends after {self._have} of {self._need} bytes"
        return f"message ends within its {PREFIX}-byte prefix" if self._have else ""

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Returns the messages that `data` completes, decompressed. Raises RpcError as `read_prefix` does.

        What is given as a view is copied once, when its message is complete.
        """
        messages: list[bytes] = []
        while data:
            self._parts.append(data)
            self._have += len(data)
            if self._need < 0 and not self._take_prefix():
                break
            if self._have < self._need:
                break
            whole = b"".join(self._parts)
            data = b""
            if self._have > self._need:
                data, whole = whole[self._need :], whole[: self._need]
            messages.append(self._decoded(whole))
            self.count += 1
            self._parts, self._have, self._need = [], 0, -1
        return messages

    def _take_prefix(self) -> bool:
        if self._have < PREFIX:
            return False
        parts = self._parts
        head = parts[0] if len(parts) == 1 else b"".join(parts)
        self._compressed, self._need = read_prefix(bytes(head[:PREFIX]), self._limit, self._encoding)
        self._parts = [head[PREFIX:]]
        self._have -= PREFIX
        return True

    def _decoded(self, message: bytes) -> bytes:
        return decompress(message, self._encoding, self._limit) if self._compressed else message


def read_prefix(data: bytes, limit: int, encoding: bytes) -> tuple[bool, int]:
    """Returns whether the message that `data` starts with is compressed, and its length in bytes.

    Raises RpcError: RESOURCE_EXHAUSTED when it is longer than `limit`, INTERNAL for a flag that is neither
    0 nor 1, or one that says compressed although `encoding` is identity.
    """
    flag = data[0]
    size = int.from_bytes(data[1:PREFIX], "big")
    if flag > 1:
        raise RpcError(Status.INTERNAL, f"message has the compressed flag {flag}, which is neither 0 nor 1")
    if flag and encoding == b"identity":
        raise RpcError(Status.INTERNAL, "message is marked compressed but grpc-encoding names no encoding")
    if size > limit:
        raise RpcError(
            Status.RESOURCE_EXHAUSTED, f"message of {size} bytes is larger than the limit of {limit} bytes"
        )
    return flag == 1, size


def whole_message(data: bytes, limit: int, encoding: bytes) -> bytes:
    """Returns the one message of a complete body `data`, decompressed.

    Raises RpcError as `read_prefix` does, UNIMPLEMENTED when there is not exactly one message, and INTERNAL
    when it is cut off.
    """
    if len(data) < PREFIX:
        if data:
            raise RpcError(Status.INTERNAL, f"message ends within its {PREFIX}-byte prefix")
        raise RpcError(Status.UNIMPLEMENTED, "the call has no message, expected one")
    compressed, size = read_prefix(data, limit, encoding)
    message = data[PREFIX:]
    if len(message) != size:
        if len(message) < size:
            raise RpcError(Status.INTERNAL, f"message ends after {len(message)} of {size} bytes")
        raise RpcError(Status.UNIMPLEMENTED, f"{len(message) - size} bytes follow the one expected message")
    return decompress(message, encoding, limit) if compressed else message


_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}  # zlib's codes for the gzip and the zlib container
ENCODINGS: Final = frozenset({b"identity", *_WINDOW_BITS})


def unknown_encoding(encoding: bytes) -> RpcError:
    """The answer to a message encoding that is not one of ENCODINGS."""
    return RpcError(
        Status.UNIMPLEMENTED,
        f"grpc-encoding {encoding[:32].decode('latin-1')!r} is not one of {ACCEPT_ENCODING.decode()}",
    )


def decompress(data: bytes, encoding: bytes, limit: int) -> bytes:
    """Returns the message that `data` holds compressed with `encoding` (gzip or deflate).

    Raises RpcError: UNIMPLEMENTED for another encoding, RESOURCE_EXHAUSTED when the message has more than
    `limit` bytes (no more than that is ever allocated), INTERNAL when `data` is damaged.
    """
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise unknown_encoding(encoding)
    inflater = zlib.decompressobj(wbits=bits)
    try:
        message = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise RpcError(Status.INTERNAL, f"{encoding.decode()} message is damaged: {error}") from error
    if len(message) > limit:
        raise RpcError(
            Status.RESOURCE_EXHAUSTED, f"decompressed message is larger than the limit of {limit} bytes"
        )
    if not inflater.eof:
        raise RpcError(Status.INTERNAL, f"{encoding.decode()} message is truncated")
    return message


# -- timeouts ----------------------------------------------------------------------------------------------

_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_DIGITS = 8


@lru_cache(maxsize=4096)
def decode_timeout(value: bytes) -> float:
    """Returns the seconds of a `grpc-timeout` value: at most 8 digits and a unit (H M S m u n).

    Raises RpcError INVALID_ARGUMENT for anything else.
    """
    unit = _UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise RpcError(
            Status.INVALID_ARGUMENT,
            f"grpc-timeout {value[:32].decode('latin-1')!r} is not 1 to {_MAX_DIGITS} digits and a unit of HMSmun",
        )
    return int(digits) * unit


_TIMEOUTS: Final[dict[int, bytes]] = {}
_CACHED_TIMEOUTS: Final = 4096


def timeout_field(seconds: float) -> bytes:
    """Returns `grpc-timeout` for `seconds`, rounded down to 0.1 ms (and up to 0.1 ms at least), as it ends a block.

    Rounding keeps the number of different values small, so that the fields are made once. Never indexed: a
    value that differs in every call would push the useful fields out of the HPACK table.
    """
    ticks = int(seconds * 10_000)
    field = _TIMEOUTS.get(ticks)
    if field is None:
        if len(_TIMEOUTS) >= _CACHED_TIMEOUTS:
            _TIMEOUTS.clear()
        field = _TIMEOUTS[ticks] = never_indexed(b"grpc-timeout", _encode_ticks(ticks))
    return field


def _encode_ticks(ticks: int) -> bytes:
    if ticks <= 0:
        return b"100u"
    for amount, unit in ((ticks * 100, b"u"), (ticks // 10, b"m"), (ticks // 10_000, b"S")):
        if amount < 10**_MAX_DIGITS:
            return b"%d%s" % (amount, unit)
    return b"%dH" % min(ticks // 36_000_000, 10**_MAX_DIGITS - 1)


# -- status messages ---------------------------------------------------------------------------------------

# All but printable ASCII without the percent sign; and blanks at the ends, which HTTP/2 allows in no field.
_NOT_PLAIN = re.compile(rb"[^ -$&-~]|^ | $")


def encode_message(text: str) -> bytes:
    """Returns `text` as a `grpc-message` value: UTF-8, percent-encoded."""
    data = text.encode("utf-8", "replace")
    return _NOT_PLAIN.sub(lambda match: b"%%%02X" % match.group()[0], data)


def decode_message(value: bytes) -> str:
    """Returns the text of a `grpc-message` value; never fails, as the text may come from any proxy."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


# -- metadata ----------------------------------------------------------------------------------------------

# Fields that belong to the protocol and are no metadata, besides everything else that starts with grpc-.
_PROTOCOL_FIELDS = frozenset(
    b":method :scheme :path :authority :status content-type te user-agent content-length host "
    b"grpc-timeout grpc-encoding grpc-accept-encoding grpc-status grpc-message".split()
)
_NAME = re.compile(rb"[0-9a-z_.-]+")
_PRINTABLE: Final = bytes(range(0x20, 0x7F))


def split_headers(headers: Iterable[Header]) -> tuple[dict[bytes, bytes], list[Header]]:
    """Returns the fields of the protocol by name, the last one of each, and all others as they came."""
    fields: dict[bytes, bytes] = {}
    others: list[Header] = []
    known = _PROTOCOL_FIELDS
    for header in headers:
        name = header[0]
        if name in known:
            fields[name] = header[1]
        else:
            others.append(header)
    return fields, others


def custom_metadata(others: list[Header]) -> tuple[tuple[bytes, bytes], ...]:
    """Returns the custom metadata among the `others` of `split_headers`: no `grpc-` fields; `-bin` decoded.

    A `-bin` field may carry several values joined by commas; each becomes its own entry. Raises RpcError
    INVALID_ARGUMENT when one is no base64.
    """
    if not others:
        return ()
    found: list[tuple[bytes, bytes]] = []
    for header in others:
        name = header[0]
        if name[-4:] == b"-bin":
            found += [(name, _decode_binary(name, part)) for part in header[1].split(b",")]
        elif name[:5] != b"grpc-" and name[:1] != b":":
            found.append(header)
    return tuple(found)


def _decode_binary(name: bytes, text: bytes) -> bytes:
    text = text.strip()
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)  # padding is optional on the wire
    except binascii.Error as error:
        raise RpcError(
            Status.INVALID_ARGUMENT, f"metadata {name.decode('latin-1')!r} is not base64: {error}"
        ) from error


def encode_metadata(metadata: Metadata) -> tuple[tuple[bytes, bytes], ...]:
    """Returns `metadata` as header fields, without blanks around values, which HTTP/2 does not allow.

    Raises ValueError for a name or value that gRPC does not allow.
    """
    return tuple([_encode_field(name, value) for name, value in metadata])


_BINARY_NAMES: dict[bytes, bool] = {}  # names that were checked: whether their values are base64
_CACHED_NAMES = 1024


def _encode_field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    is_binary = _BINARY_NAMES.get(name)
    if is_binary is None:
        is_binary = _check_name(name)
    if is_binary:
        return name, b64encode(value).rstrip(b"=")
    if value.translate(None, _PRINTABLE):
        raise ValueError(f"value of metadata {name!r} is not printable ASCII; use a name that ends in -bin")
    return name, value.strip(b" ")


def _check_name(name: bytes) -> bool:
    """Returns whether the values of a name are base64, and keeps that. Raises ValueError for a bad name."""
    if not _NAME.fullmatch(name) or name in _PROTOCOL_FIELDS or name.startswith(b"grpc-"):
        raise ValueError(f"{name!r} is not a name for custom metadata")
    if len(_BINARY_NAMES) >= _CACHED_NAMES:
        _BINARY_NAMES.clear()
    is_binary = _BINARY_NAMES[name] = name.endswith(b"-bin")
    return is_binary
