"""The log sidecar's end of one worker's link: lent matrices in, messages out, slots back.

Knows frames, records and the encoder, and neither sockets nor where messages go. Every row that is read from the
link is counted once: here when it comes to no message, in the queue when it does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from dag.component import Failure, Slates
from dag.config import decode
from inferlog.encode import DROPPED_TOO_LARGE, Encoding, TornMatrix, encode
from inferlog.event import Event
from inferlog.schema import LogSchema
from shared.frames import FrameError, HandOver, Lend, LogConfig
from shared.ledger import ACCEPTING, ACKNOWLEDGED, DROPPED, FULL, NOW, RECEIVED, ROOM, Ledger
from shared.log_record import CHECK, LoggedConfig, Notes, Record, RecordError, SegmentMap, read_record
from sidecar.log_queue import Message, Sender

__all__ = ["Lender"]

log = logging.getLogger(__name__)

_BAD: Final = "not understood"
_TOO_LARGE: Final = "row too large"


class _Version:
    """One version of a config, introduced by the worker."""

    def __init__(self, document: bytes) -> None:
        """Raises ValueError when nothing can be logged by it."""
        self.config = msgspec.json.decode(document, type=LoggedConfig)
        service = msgspec.json.decode(self.config.service, type=dict)
        self.schema = LogSchema.of(self.config.model_config_id, decode(bytes(self.config.document)), service)


class Lender:
    """One worker that lends its slots. `release` gives one back: (slot, generation)."""

    def __init__(
        self,
        hello: Lend,
        ledger: Ledger,
        sender: Sender,
        release: Callable[[int, int], None],
        *,
        message_bytes: int,
        key: str,
    ) -> None:
        """`key` is what decides on partitions: see `shared.settings.LOG_KEYS`."""
        self.worker = hello.worker
        self.pid = hello.pid
        self.ledger = ledger
        self.segments = SegmentMap()
        self.unfit = 0
        """Values that were logged as missing, because the format cannot hold them."""
        self._sender = sender
        self._release = release
        self._message_bytes = message_bytes
        self._key = key
        self._versions: dict[int, _Version | str] = {}  # by number; or why there is none
        self.set_accepting(not sender.full)

    def __repr__(self) -> str:
        return (
            f"<Lender worker {self.worker} pid={self.pid} {self.segments!r}, {len(self._versions)} versions>"
        )

    @property
    def alive(self) -> bool:
        """Whether the worker's process is there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def unsettled(self) -> int:
        """Rows that were received and whose end is not known."""
        words = self.ledger.words
        settled = words[NOW + ACKNOWLEDGED] + sum(words[NOW + word] for word in DROPPED.values())
        return words[NOW + RECEIVED] - settled

    def set_accepting(self, accepting: bool) -> None:
        """Tells the worker whether it may hand over."""
        self.ledger.words[ACCEPTING] = ROOM if accepting else FULL

    def introduce(self, frame: LogConfig) -> None:
        """A version of a config, for the slots to come."""
        if frame.forget != frame.number:
            self._versions.pop(frame.forget, None)
        try:
            self._versions[frame.number] = _Version(frame.document)
        except ValueError as error:
            log.error("config cannot be logged", extra={"worker": self.worker, "reason": str(error)})
            self._versions[frame.number] = str(error)

    def take(self, frame: HandOver) -> None:
        """Encodes a lent matrix and gives its slot back.

        Raises FrameError for one of an unknown version: then the link is of no more use.
        """
        version = self._versions.get(frame.config)
        if version is None:
            raise FrameError(f"HAND_OVER: config {frame.config} was never introduced")
        self.ledger.words[NOW + RECEIVED] += frame.rows
        try:
            left = frame.rows - self._log(version, frame)
            if left:
                log.error("rows went missing in the encoder", extra={"rows": left, "of": frame.rows})
                self._drop(_BAD, left)
        finally:
            self._release(frame.slot, frame.generation)

    def end(self) -> None:
        """The link is over. What the worker has handed over and never sent is lost with it."""
        lost = self.ledger.books().held - self.unsettled
        if lost > 0:
            self._drop("lost with the worker", lost)

    def _log(self, version: _Version | str, frame: HandOver) -> int:
        """How many rows were counted: in messages, or as dropped."""
        if isinstance(version, str):
            return self._drop(_BAD, frame.rows)
        if self._sender.full:
            return self._drop("queue full", frame.rows)
        try:
            record = read_record(self.segments, frame.address, frame.length, frame.head, rows=frame.rows)
            encoding = self._encode(version, record)
        except Exception as error:
            if not self._still_lent(frame):
                return self._drop("torn", frame.rows)
            if isinstance(error, RecordError | TornMatrix):
                log.error("matrix is not understood", extra={"worker": self.worker, "reason": str(error)})
            else:
                log.exception("matrix could not be encoded", extra={"worker": self.worker})
            return self._drop(_BAD, frame.rows)
        if not self._still_lent(frame):
            return self._drop("torn", frame.rows)
        return self._put(encoding, self._partition_key(record.notes))

    def _encode(self, version: _Version, record: Record) -> Encoding:
        notes, config = record.notes, version.config
        event = Event(
            method=notes.method,
            model_config_id=config.model_config_id,
            digest=config.digest,
            request_id=notes.request_id,
            tracking_id=notes.tracking_id,
            user_id=notes.user_id,
            parent_entity=(notes.parent_entity,) if notes.parent_entity else (),
            request_ns=notes.request_ns,
            endpoints=notes.routes,
            failures=_failures(notes.failures),
        )
        return encode(
            version.schema, record.matrix, _slates(record), event, max_message_bytes=self._message_bytes
        )

    def _put(self, encoding: Encoding, key: bytes | None) -> int:
        rows = 0
        for message in encoding.messages:
            rows += message.rows
            self.unfit += message.unfit
            self._sender.put(Message(message.value, key, message.rows, self.ledger))
        for dropped in encoding.dropped:
            rows += self._drop(_TOO_LARGE if dropped.reason == DROPPED_TOO_LARGE else _BAD, dropped.rows)
        return rows

    def _partition_key(self, notes: Notes) -> bytes | None:
        if self._key == "none":
            return None
        return (notes.user_id if self._key == "user-id" else notes.tracking_id).encode()

    def _still_lent(self, frame: HandOver) -> bool:
        """Whether the check word stands where the worker wrote it: it takes it away before it reuses a slot."""
        word = self.segments.find(frame.address, CHECK.size)
        return bool(CHECK.unpack(word.tobytes())[0] == frame.check)

    def _drop(self, reason: str, rows: int) -> int:
        self.ledger.words[NOW + DROPPED[reason]] += rows
        return rows


def _failures(noted: list[tuple[str, str, bytes | None]]) -> list[Failure]:
    return [
        Failure(component, cause, None if rows is None else np.frombuffer(rows, np.int32))
        for component, cause, rows in noted
    ]


def _slates(record: Record) -> Slates | None:
    if record.slates is None:
        return None
    notes = record.notes
    sizes = np.frombuffer(notes.slate_sizes, np.int32)
    targets = np.frombuffer(notes.slate_targets, np.int32)
    if len(sizes) != record.slates.rows or sizes.sum() != len(targets):
        raise RecordError(f"{len(sizes)} slates with {len(targets)} targets, {record.slates.rows} rows")
    bounds = np.cumsum([0, *sizes.tolist()], dtype=np.int64)
    return Slates(record.slates, targets, bounds, _failures(notes.slate_failures))
