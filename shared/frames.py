"""The frames on the Unix sockets between front doors, workers and the sidecars.

Layouts are those of docs/architecture.md: little-endian, `u32 length` (of what follows) · `u8 kind` ·
payload. This module turns bytes into typed frames and back; it owns no socket and passes no descriptors.

Both ends are ours, and still nothing is trusted: a length is checked before anything is kept for it, and a
frame that contradicts itself raises FrameError, after which the connection is of no more use.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

import orjson

__all__ = [
    "JOIN_BELOW",
    "MAX_TEXT_BYTES",
    "NO_METADATA",
    "Activate",
    "Answer",
    "Cache",
    "Cancel",
    "Connected",
    "Frame",
    "FrameError",
    "FrameReader",
    "FrameWriter",
    "HandOver",
    "Hello",
    "Kind",
    "Lend",
    "LogConfig",
    "LogQuery",
    "LogSegment",
    "LogStatus",
    "Metadata",
    "Notice",
    "OneField",
    "Prepared",
    "Readiness",
    "Release",
    "Request",
    "Retiring",
    "Snapshot",
    "State",
    "Subscribe",
    "answer_head",
    "encode_metadata",
    "request_head",
]

Metadata: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Pairs of an ASCII name and a value, in wire order; names may repeat."""

MAX_TEXT_BYTES = 4096
"""Reasons and messages are for people: longer ones are cut here when they are encoded."""

_U16_MAX: Final = 0xFFFF
_U32_MAX: Final = 0xFFFF_FFFF


class FrameError(ValueError):
    """A frame that cannot be read or written. The text names kind, place and bound."""


class Kind(enum.IntEnum):
    """The byte that tells frames apart."""

    HELLO = 1
    STATE = 2
    REQUEST = 3
    CANCEL = 4
    ANSWER = 5
    SUBSCRIBE = 16
    SNAPSHOT = 17
    PREPARED = 18
    ACTIVATE = 19
    CONNECTED = 20
    NOTICE = 21
    RETIRING = 22
    CACHE = 23
    LEND = 32
    LOG_SEGMENT = 33
    LOG_CONFIG = 34
    HAND_OVER = 35
    RELEASE = 36
    LOG_QUERY = 37
    LOG_STATUS = 38


class Readiness(enum.IntEnum):
    """What a worker can take."""

    NOT_READY = 0
    READY = 1
    DRAINING = 2
    """Send nothing new; what is in flight will be answered."""


_HEADER: Final = Struct("<IB")
_HELLO: Final = Struct("<III")
_STATE: Final = Struct("<BQH")
_REQUEST_HEAD: Final = Struct("<IBQQQB")
_CANCEL: Final = Struct("<Q")
_ANSWER_HEAD: Final = Struct("<IBQBH")
_SUBSCRIBE: Final = Struct("<II")
_SNAPSHOT: Final = Struct("<QQ")
_VERSION: Final = Struct("<Q")
_RETIRING: Final = Struct("<I")
_LOG_SEGMENT: Final = Struct("<QQ")
_LOG_CONFIG: Final = Struct("<II")
_HAND_OVER: Final = Struct("<IIQQQIII")
_WHOLE_HAND_OVER: Final = Struct("<IBIIQQQIII")
_RELEASE: Final = Struct("<IQ")
_LENGTH_BYTES: Final = 4
JOIN_BELOW: Final = 256 << 10  # bytes that are cheaper to copy into one piece than to write in several
_REQUEST_BYTES: Final = 27  # before metadata: three u64, u8, u16
_ANSWER_BYTES: Final = 11  # before the message: u64, u8, u16


# ---------------------------------------------------------------- the frames


class Hello(NamedTuple):
    """Worker → door, first on a connection."""

    worker: int
    pid: int
    max_in_flight: int
    """Requests that this door may have at the worker at a time."""

    def encode(self) -> bytes:
        return _whole(Kind.HELLO, _HELLO.pack(*self))


class State(NamedTuple):
    """Worker → door, after HELLO and at every change."""

    readiness: Readiness
    version: int
    """The active config version; 0 while there is none."""
    reason: str
    """Why it is not ready; when it is, what an operator should know all the same, which is mostly nothing."""

    def encode(self) -> bytes:
        reason = _text(self.reason)
        return _whole(Kind.STATE, _STATE.pack(self.readiness, self.version, len(reason)) + reason)


class Request:
    """Door → worker: one call."""

    # A plain class, as Answer: made for every request, and compiled it costs a fifth of a tuple with names.
    __slots__ = ("body", "deadline_us", "id", "metadata", "method", "sent_us")

    def __init__(
        self, id: int, deadline_us: int, method: int, metadata: Metadata, body: bytes, sent_us: int = 0
    ) -> None:
        self.id = id
        """Chosen by the door, never used twice on a connection."""
        self.deadline_us = deadline_us
        """Microseconds left when the frame was written; 0 = none."""
        self.method = method
        """Index into frontdoor.services.METHODS."""
        self.metadata = metadata
        self.body = body
        self.sent_us = sent_us
        """When the door wrote it, in microseconds of the machine's monotonic clock; 0 = not told."""

    def encode(self) -> bytes:
        metadata = encode_metadata(self.metadata)
        head = request_head(self.id, self.deadline_us, self.sent_us, self.method, metadata, len(self.body))
        return head + self.body

    def _parts(self) -> tuple[object, ...]:
        return self.id, self.deadline_us, self.method, self.metadata, self.body, self.sent_us

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def __repr__(self) -> str:
        return f"Request{self._parts()!r}"


class Cancel(NamedTuple):
    """Door → worker: nobody waits for this request any more. It may cross its answer."""

    id: int

    def encode(self) -> bytes:
        return _whole(Kind.CANCEL, _CANCEL.pack(self.id))


class Answer:
    """Worker → door: the one answer of a request."""

    __slots__ = ("body", "id", "message", "metadata", "status")

    def __init__(self, id: int, status: int, message: str, metadata: Metadata, body: bytes) -> None:
        self.id = id
        self.status = status
        """A gRPC status code."""
        self.message = message
        self.metadata = metadata
        """Trailing metadata."""
        self.body = body

    def encode(self) -> bytes:
        metadata = encode_metadata(self.metadata)
        return answer_head(self.id, self.status, self.message, metadata, len(self.body)) + self.body

    def _parts(self) -> tuple[object, ...]:
        return self.id, self.status, self.message, self.metadata, self.body

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def __repr__(self) -> str:
        return f"Answer{self._parts()!r}"


class Subscribe(NamedTuple):
    """Worker → sidecar, first on a connection but for a CACHE."""

    worker: int
    pid: int

    def encode(self) -> bytes:
        return _whole(Kind.SUBSCRIBE, _SUBSCRIBE.pack(*self))


class Snapshot(NamedTuple):
    """Sidecar → worker: prepare this version. Its memfd rides along with the frame."""

    version: int
    length: int
    """Bytes of the document in the memfd."""

    def encode(self) -> bytes:
        return _whole(Kind.SNAPSHOT, _SNAPSHOT.pack(*self))


class Prepared(NamedTuple):
    """Worker → sidecar: this version can be activated, but for these configs."""

    version: int
    refused: dict[str, str]
    """model_config_id → why this worker cannot serve it."""
    waiting: dict[str, str] = {}  # noqa: RUF012 - nobody changes it
    """model_config_id → which endpoint, new in this version of it, did not answer."""

    def encode(self) -> bytes:
        parts = {"refused": self.refused, "waiting": self.waiting}
        return _whole(Kind.PREPARED, _VERSION.pack(self.version) + orjson.dumps(parts))


class Activate(NamedTuple):
    """Sidecar → worker: serve with this version from now on."""

    version: int

    def encode(self) -> bytes:
        return _whole(Kind.ACTIVATE, _VERSION.pack(self.version))


class Connected(NamedTuple):
    """Worker → sidecar: the endpoints that these configs waited for answer now."""

    configs: tuple[str, ...]
    """model_config_ids."""

    def encode(self) -> bytes:
        return _whole(Kind.CONNECTED, orjson.dumps(self.configs))


class Retiring(NamedTuple):
    """Worker → sidecar: so many plans of older versions still have requests in flight."""

    plans: int

    def encode(self) -> bytes:
        return _whole(Kind.RETIRING, _RETIRING.pack(self.plans))


class Notice(NamedTuple):
    """Sidecar → worker: what an operator should know of the configs as a whole."""

    text: str
    """Empty when there is nothing to say."""

    def encode(self) -> bytes:
        return _whole(Kind.NOTICE, _text(self.text))


class Cache(NamedTuple):
    """Worker → sidecar, before SUBSCRIBE: the feature cache that this worker has. Sidecar → worker: the pod's.

    Its memfd rides along with the frame.
    """

    size: int
    """Bytes."""

    def encode(self) -> bytes:
        return _whole(Kind.CACHE, _VERSION.pack(self.size))


class Lend(NamedTuple):
    """Worker → log sidecar, first on a connection. Its ledger rides along with the frame."""

    worker: int
    pid: int

    def encode(self) -> bytes:
        return _whole(Kind.LEND, _SUBSCRIBE.pack(*self))


class LogSegment(NamedTuple):
    """Worker → log sidecar, before the first slot that has memory there. Its memfd rides along."""

    base: int
    """Where the worker has mapped it: places are told as the worker's addresses."""
    size: int

    def encode(self) -> bytes:
        return _whole(Kind.LOG_SEGMENT, _LOG_SEGMENT.pack(*self))


class LogConfig(NamedTuple):
    """Worker → log sidecar, before the first slot that was scored by this version of a config."""

    number: int
    """The worker's, for the slots to come."""
    forget: int
    """An older one that no slot will name any more; the same number when there is none."""
    document: bytes
    """JSON; see `shared.log_record.LoggedConfig`."""

    def encode(self) -> bytes:
        return _whole(Kind.LOG_CONFIG, _LOG_CONFIG.pack(self.number, self.forget) + self.document)


class HandOver(NamedTuple):
    """Worker → log sidecar: this slot is yours to read until you release it."""

    slot: int
    config: int
    """The number of a LOG_CONFIG."""
    generation: int
    check: int
    """The word that stands at `address` as long as the slot is lent."""
    address: int
    """Of the record; see `shared.log_record`."""
    head: int
    """Where the record's head begins, in bytes from its start."""
    length: int
    """Bytes of the record."""
    rows: int
    """Of the targets and the slates."""

    def encode(self) -> bytes:
        return _WHOLE_HAND_OVER.pack(1 + _HAND_OVER.size, Kind.HAND_OVER, *self)


class Release(NamedTuple):
    """Log sidecar → worker: these slots are the worker's again."""

    slots: tuple[tuple[int, int], ...]
    """(slot, generation)"""

    def encode(self) -> bytes:
        return _whole(Kind.RELEASE, b"".join(_RELEASE.pack(*one) for one in self.slots))


class LogQuery(NamedTuple):
    """Anybody → log sidecar: what do the books say?"""

    def encode(self) -> bytes:
        return _whole(Kind.LOG_QUERY, b"")


class LogStatus(NamedTuple):
    """Log sidecar → whoever asked: a JSON object."""

    document: bytes

    def encode(self) -> bytes:
        return _whole(Kind.LOG_STATUS, self.document)


Frame: TypeAlias = (
    Hello
    | State
    | Request
    | Cancel
    | Answer
    | Subscribe
    | Snapshot
    | Prepared
    | Activate
    | Connected
    | Notice
    | Retiring
    | Cache
    | Lend
    | LogSegment
    | LogConfig
    | HandOver
    | Release
    | LogQuery
    | LogStatus
)
F = TypeVar("F", bound=Frame)


# ---------------------------------------------------------------- writing


def request_head(
    request_id: int, deadline_us: int, sent_us: int, method: int, metadata: bytes, body_bytes: int
) -> bytes:
    """All of a REQUEST frame but its body, which the caller writes behind it without copying it.

    `metadata` is encoded (`encode_metadata`), since a door may send the same request twice.
    Raises FrameError when the frame would not fit a u32 length.
    """
    length = 26 + len(metadata) + body_bytes
    if length > _U32_MAX:
        raise FrameError(f"REQUEST {request_id}: body of {body_bytes} bytes does not fit a frame")
    return _REQUEST_HEAD.pack(length, Kind.REQUEST, request_id, deadline_us, sent_us, method) + metadata


def answer_head(request_id: int, status: int, message: str, metadata: bytes, body_bytes: int) -> bytes:
    """All of an ANSWER frame but its body, which the caller writes behind it (in pieces, if it likes).

    `metadata` is encoded. Raises FrameError when the frame would not fit a u32 length.
    """
    behind = _text(message) + metadata if message else metadata
    length = 12 + len(behind) + body_bytes
    if length > _U32_MAX:
        raise FrameError(f"ANSWER {request_id}: body of {body_bytes} bytes does not fit a frame")
    return _ANSWER_HEAD.pack(length, Kind.ANSWER, request_id, status, len(behind) - len(metadata)) + behind


def encode_metadata(metadata: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Metadata as it stands in REQUEST and ANSWER frames.

    Raises FrameError for a name that is not ASCII and for whatever does not fit a u16.
    """
    parts = [b""]
    for name, value in metadata:
        if not name.isascii() or len(name) > _U16_MAX or len(value) > _U16_MAX:
            raise FrameError(
                f"metadata {name[:64]!r}: the name must be ASCII, name ({len(name)} bytes) and value "
                f"({len(value)} bytes) at most {_U16_MAX} bytes"
            )
        parts.append(_u16_and(name) + _u16_and(value))
    count = len(parts) - 1
    if count > _U16_MAX:
        raise FrameError(f"metadata: {count} entries, at most {_U16_MAX}")
    parts[0] = count.to_bytes(2, "little")
    return b"".join(parts)


class OneField:
    """Metadata of one entry whose name is always the same, and the length of its value nearly always."""

    __slots__ = ("_head", "_size", "name")

    def __init__(self, name: bytes) -> None:
        """Raises FrameError as `encode_metadata` does."""
        self.name = name
        self._head = encode_metadata(((name, b""),))
        self._size = 0  # of the value that the head is for

    def encode(self, value: bytes) -> bytes:
        """What `encode_metadata` makes of the name and `value`. Raises FrameError for a value over 65,535 bytes."""
        size = len(value)
        if size != self._size:
            if size > _U16_MAX:
                raise FrameError(
                    f"metadata {self.name!r}: the value has {size} bytes, must be at most {_U16_MAX}"
                )
            self._head = self._head[:-2] + size.to_bytes(2, "little")
            self._size = size
        return self._head + value

    def __repr__(self) -> str:
        return f"<OneField {self.name!r}>"


def _u16_and(data: bytes) -> bytes:
    return len(data).to_bytes(2, "little") + data


def _whole(kind: Kind, payload: bytes) -> bytes:
    return _HEADER.pack(1 + len(payload), kind) + payload


def _text(text: str) -> bytes:
    """UTF-8, cut at a character's end. A lone surrogate is written as an escape: a reason must get through."""
    raw = text.encode("utf-8", "backslashreplace")
    return raw if len(raw) <= MAX_TEXT_BYTES else raw[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()


NO_METADATA = encode_metadata(())


class FrameWriter:
    """Collects what one turn of the loop sends over a connection: it leaves together. Belongs to the loop's thread.

    uvloop's transports collect nothing: each of their writes is a system call, which also wakes the peer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport) -> None:
        self._call_soon = loop.call_soon
        self._transport: asyncio.WriteTransport | None = transport
        self._parts: list[bytes] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"<FrameWriter: {self.unsent} bytes unsent>"

    @property
    def unsent(self) -> int:
        """Bytes that the peer has not taken."""
        transport = self._transport
        return self._size + (transport.get_write_buffer_size() if transport is not None else 0)

    def write(self, head: bytes, body: bytes = b"") -> None:
        """Sends these bytes at the end of the turn; none after `drop`."""
        if self._transport is None:
            return
        if not self._parts:
            self._call_soon(self.flush)
        self._parts.append(head)
        self._size += len(head)
        if body:
            self._parts.append(body)
            self._size += len(body)

    def flush(self) -> None:
        """Sends what has been collected, now."""
        parts, size = self._parts, self._size
        if not parts or self._transport is None:
            return
        self._parts, self._size = [], 0
        if size < JOIN_BELOW:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)

    def drop(self) -> None:
        """Forgets the transport and what has been collected: the connection is over."""
        self._transport = None
        self._parts = []
        self._size = 0


# ---------------------------------------------------------------- reading


class FrameReader(Generic[F]):
    """Turns the bytes of one connection into frames. Belongs to one thread.

    `accepted` are the frames that the peer may send: `FrameReader[Hello | State]((Hello, State), limit)`.
    A frame inside one chunk is decoded where it stands, so that its body is copied once. What is split over
    chunks is kept as a list and joined once, when its last byte is there: the work is linear in the bytes
    however they are fragmented.
    """

    def __init__(self, accepted: tuple[type[F], ...], max_frame_bytes: int) -> None:
        self._decoders: dict[int, Callable[[bytes, int, int], F]] = {
            _KINDS[frame]: _DECODERS[_KINDS[frame]] for frame in accepted
        }
        self._accepted = accepted
        self._max = max_frame_bytes
        self._pending: list[bytes] = []
        self._size = 0
        self._need = _LENGTH_BYTES

    def __repr__(self) -> str:
        names = ", ".join(frame.__name__ for frame in self._accepted)
        return f"<FrameReader of {names}: {self._size} of {self._need} bytes pending>"

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete; not 0 at the end of a connection means it was cut."""
        return self._size

    def feed(self, data: bytes) -> list[F]:
        """The frames that these bytes complete, in order.

        Raises FrameError for a frame that is longer than the limit, of a kind that the peer may not send,
        or malformed. Frames of the same chunk before it are lost with it: the caller closes the connection.
        """
        if self._pending:
            self._pending.append(data)
            self._size += len(data)
            if self._size < self._need:
                return []
            data = b"".join(self._pending)
            self._pending = []
        return self._decode(data)

    def _decode(self, data: bytes) -> list[F]:
        frames: list[F] = []
        position, size = 0, len(data)
        need = _LENGTH_BYTES
        while size - position >= need:
            # Byte by byte: compiled, that is a fraction of a call into struct.
            length = (
                data[position] | data[position + 1] << 8 | data[position + 2] << 16 | data[position + 3] << 24
            )
            if not 1 <= length <= self._max:
                raise FrameError(f"frame of {length} bytes: must be 1 to {self._max}")
            end = position + 4 + length
            if end > size:
                need = 4 + length
                break
            kind = data[position + 4]
            decoder = self._decoders.get(kind)
            if decoder is None:
                raise FrameError(f"frame of kind {kind} ({_kind_name(kind)}): must be {self._expected()}")
            frames.append(decoder(data, position + 5, end))
            position = end
        self._need = need
        self._size = size - position
        if self._size:
            self._pending = [data[position:] if position else data]
        return frames

    def _expected(self) -> str:
        return " or ".join(_KINDS[frame].name for frame in self._accepted)


def _kind_name(kind: int) -> str:
    return Kind(kind).name if kind in _DECODERS else "unknown"


def _fixed(layout: Struct, kind: Kind, data: bytes, start: int, end: int) -> tuple[Any, ...]:
    """The numbers of a frame that has nothing else."""
    if end - start != layout.size:
        raise FrameError(f"{kind.name}: payload of {end - start} bytes, must be {layout.size}")
    return layout.unpack_from(data, start)


def _head(layout: Struct, kind: Kind, data: bytes, start: int, end: int) -> tuple[Any, ...]:
    """The numbers at the start of a frame that goes on behind them."""
    if end - start < layout.size:
        raise _too_short(kind, layout.size, start, end)
    return layout.unpack_from(data, start)


def _too_short(kind: Kind, least: int, start: int, end: int) -> FrameError:
    return FrameError(f"{kind.name}: payload of {end - start} bytes, must be at least {least}")


def _u64_at(data: bytes, at: int) -> int:
    """The u64 that begins there."""
    low = data[at] | data[at + 1] << 8 | data[at + 2] << 16 | data[at + 3] << 24
    return low | data[at + 4] << 32 | data[at + 5] << 40 | data[at + 6] << 48 | data[at + 7] << 56


def _slice(data: bytes, start: int, length: int, end: int, kind: Kind, place: str) -> bytes:
    if length > end - start:
        raise FrameError(f"{kind.name}: {place} of {length} bytes, only {end - start} are left in the frame")
    return data[start : start + length]


def _read_text(data: bytes, start: int, length: int, end: int, kind: Kind, place: str) -> str:
    try:
        return _slice(data, start, length, end, kind, place).decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"{kind.name}: {place} is not UTF-8 at its byte {error.start}") from error


def _read_count(data: bytes, start: int, end: int, kind: Kind, place: str) -> int:
    if end - start < 2:
        raise FrameError(f"{kind.name}: {place} needs 2 bytes, {end - start} are left in the frame")
    return data[start] | data[start + 1] << 8


def _read_metadata(count: int, data: bytes, start: int, end: int, kind: Kind) -> tuple[Metadata, int]:
    """The entries, and where they end."""
    entries: list[tuple[bytes, bytes]] = []
    for index in range(count):
        name = _read_sized(data, start, end, kind, index, "name")
        start += 2 + len(name)
        value = _read_sized(data, start, end, kind, index, "value")
        start += 2 + len(value)
        if not name.isascii():
            raise FrameError(f"{kind.name}: metadata[{index}] name {name[:64]!r} is not ASCII")
        entries.append((name, value))
    return tuple(entries), start


def _read_sized(data: bytes, start: int, end: int, kind: Kind, index: int, part: str) -> bytes:
    """One part of the metadata's entry `index`: u16 length, and as many bytes."""
    if end - start >= 2:
        length = data[start] | data[start + 1] << 8
        if length <= end - start - 2:
            return data[start + 2 : start + 2 + length]
    place = f"metadata[{index}] {part}"
    length = _read_count(data, start, end, kind, f"length of {place}")
    return _slice(data, start + 2, length, end, kind, place)


def _decode_hello(data: bytes, start: int, end: int) -> Hello:
    return Hello(*_fixed(_HELLO, Kind.HELLO, data, start, end))


def _decode_state(data: bytes, start: int, end: int) -> State:
    readiness, version, length = _head(_STATE, Kind.STATE, data, start, end)
    if readiness > Readiness.DRAINING:
        raise FrameError(f"STATE: readiness {readiness}, must be 0 to {int(Readiness.DRAINING)}")
    start += _STATE.size
    if length != end - start:
        raise FrameError(f"STATE: reason of {length} bytes in {end - start} bytes")
    return State(Readiness(readiness), version, _read_text(data, start, length, end, Kind.STATE, "reason"))


def _decode_request(data: bytes, start: int, end: int) -> Request:
    if end - start < _REQUEST_BYTES:
        raise _too_short(Kind.REQUEST, _REQUEST_BYTES, start, end)
    request_id = _u64_at(data, start)
    deadline_us = _u64_at(data, start + 8)
    sent_us = _u64_at(data, start + 16)
    method = data[start + 24]
    count = data[start + 25] | data[start + 26] << 8
    start += _REQUEST_BYTES
    metadata: Metadata = ()
    if count:
        metadata, start = _read_metadata(count, data, start, end, Kind.REQUEST)
    return Request(request_id, deadline_us, method, metadata, data[start:end], sent_us)


def _decode_cancel(data: bytes, start: int, end: int) -> Cancel:
    return Cancel(*_fixed(_CANCEL, Kind.CANCEL, data, start, end))


def _decode_answer(data: bytes, start: int, end: int) -> Answer:
    if end - start < _ANSWER_BYTES:
        raise _too_short(Kind.ANSWER, _ANSWER_BYTES, start, end)
    request_id = _u64_at(data, start)
    status = data[start + 8]
    length = data[start + 9] | data[start + 10] << 8
    start += _ANSWER_BYTES
    message = ""
    if length:
        message = _read_text(data, start, length, end, Kind.ANSWER, "message")
        start += length
    count = _read_count(data, start, end, Kind.ANSWER, "count of metadata")
    start += 2
    metadata: Metadata = ()
    if count:
        metadata, start = _read_metadata(count, data, start, end, Kind.ANSWER)
    return Answer(request_id, status, message, metadata, data[start:end])


def _decode_subscribe(data: bytes, start: int, end: int) -> Subscribe:
    return Subscribe(*_fixed(_SUBSCRIBE, Kind.SUBSCRIBE, data, start, end))


def _decode_snapshot(data: bytes, start: int, end: int) -> Snapshot:
    return Snapshot(*_fixed(_SNAPSHOT, Kind.SNAPSHOT, data, start, end))


def _decode_prepared(data: bytes, start: int, end: int) -> Prepared:
    (version,) = _head(_VERSION, Kind.PREPARED, data, start, end)
    found = _read_json(data[start + _VERSION.size : end], f"PREPARED {version}")
    if not isinstance(found, dict) or found.keys() != {"refused", "waiting"}:
        raise FrameError(f"PREPARED {version}: must be a JSON object of refused and waiting")
    for place, reasons in found.items():
        if not isinstance(reasons, dict) or not all(isinstance(reason, str) for reason in reasons.values()):
            raise FrameError(f"PREPARED {version}: {place} must be a JSON object of texts")
    return Prepared(version, found["refused"], found["waiting"])


def _decode_connected(data: bytes, start: int, end: int) -> Connected:
    names = _read_json(data[start:end], "CONNECTED")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FrameError("CONNECTED: must be a JSON list of texts")
    return Connected(tuple(names))


def _decode_cache(data: bytes, start: int, end: int) -> Cache:
    return Cache(*_fixed(_VERSION, Kind.CACHE, data, start, end))


def _decode_notice(data: bytes, start: int, end: int) -> Notice:
    return Notice(_read_text(data, start, end - start, end, Kind.NOTICE, "text"))


def _decode_retiring(data: bytes, start: int, end: int) -> Retiring:
    return Retiring(*_fixed(_RETIRING, Kind.RETIRING, data, start, end))


def _read_json(text: bytes, place: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise FrameError(f"{place}: not JSON: {error}") from error


def _decode_activate(data: bytes, start: int, end: int) -> Activate:
    return Activate(*_fixed(_VERSION, Kind.ACTIVATE, data, start, end))


def _decode_lend(data: bytes, start: int, end: int) -> Lend:
    return Lend(*_fixed(_SUBSCRIBE, Kind.LEND, data, start, end))


def _decode_log_segment(data: bytes, start: int, end: int) -> LogSegment:
    return LogSegment(*_fixed(_LOG_SEGMENT, Kind.LOG_SEGMENT, data, start, end))


def _decode_log_config(data: bytes, start: int, end: int) -> LogConfig:
    number, forget = _head(_LOG_CONFIG, Kind.LOG_CONFIG, data, start, end)
    return LogConfig(number, forget, data[start + _LOG_CONFIG.size : end])


def _decode_hand_over(data: bytes, start: int, end: int) -> HandOver:
    return HandOver(*_fixed(_HAND_OVER, Kind.HAND_OVER, data, start, end))


def _decode_release(data: bytes, start: int, end: int) -> Release:
    if (end - start) % _RELEASE.size:
        raise FrameError(f"RELEASE: payload of {end - start} bytes, must be a multiple of {_RELEASE.size}")
    return Release(tuple(_RELEASE.iter_unpack(data[start:end])))


def _decode_log_query(data: bytes, start: int, end: int) -> LogQuery:
    if end != start:
        raise FrameError(f"LOG_QUERY: payload of {end - start} bytes, must be empty")
    return LogQuery()


def _decode_log_status(data: bytes, start: int, end: int) -> LogStatus:
    return LogStatus(data[start:end])


_KINDS: dict[type[Any], Kind] = {
    Hello: Kind.HELLO,
    State: Kind.STATE,
    Request: Kind.REQUEST,
    Cancel: Kind.CANCEL,
    Answer: Kind.ANSWER,
    Subscribe: Kind.SUBSCRIBE,
    Snapshot: Kind.SNAPSHOT,
    Prepared: Kind.PREPARED,
    Activate: Kind.ACTIVATE,
    Connected: Kind.CONNECTED,
    Notice: Kind.NOTICE,
    Retiring: Kind.RETIRING,
    Cache: Kind.CACHE,
    Lend: Kind.LEND,
    LogSegment: Kind.LOG_SEGMENT,
    LogConfig: Kind.LOG_CONFIG,
    HandOver: Kind.HAND_OVER,
    Release: Kind.RELEASE,
    LogQuery: Kind.LOG_QUERY,
    LogStatus: Kind.LOG_STATUS,
}
_DECODERS: dict[int, Callable[[bytes, int, int], Any]] = {
    Kind.HELLO: _decode_hello,
    Kind.STATE: _decode_state,
    Kind.REQUEST: _decode_request,
    Kind.CANCEL: _decode_cancel,
    Kind.ANSWER: _decode_answer,
    Kind.SUBSCRIBE: _decode_subscribe,
    Kind.SNAPSHOT: _decode_snapshot,
    Kind.PREPARED: _decode_prepared,
    Kind.ACTIVATE: _decode_activate,
    Kind.CONNECTED: _decode_connected,
    Kind.NOTICE: _decode_notice,
    Kind.RETIRING: _decode_retiring,
    Kind.CACHE: _decode_cache,
    Kind.LEND: _decode_lend,
    Kind.LOG_SEGMENT: _decode_log_segment,
    Kind.LOG_CONFIG: _decode_log_config,
    Kind.HAND_OVER: _decode_hand_over,
    Kind.RELEASE: _decode_release,
    Kind.LOG_QUERY: _decode_log_query,
    Kind.LOG_STATUS: _decode_log_status,
}
