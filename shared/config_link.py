"""A worker's link to the config sidecar: snapshots in, activations in, what was prepared out.

The link connects whenever the sidecar is there and keeps what it has while it is not: a worker serves its
active version however long the sidecar is away. Belongs to the thread of its event loop.

Lifecycle of a version here: announced → prepared → active. A version is prepared once, even when a new sidecar
announces it again; one that could not be prepared is never activated here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from shared.cache_memory import NotACacheError
from shared.fd_stream import FdStream
from shared.feature_cache import FeatureCache
from shared.frames import (
    Activate,
    Cache,
    Connected,
    FrameReader,
    Notice,
    Prepared,
    Retiring,
    Snapshot,
    Subscribe,
)
from shared.sealed import SealError, read_sealed

__all__ = ["ConfigFollower", "ConfigLink", "Outcome"]

log = logging.getLogger(__name__)

FIRST_WAIT = 0.05  # seconds before the second attempt to connect; doubled at each one that comes to nothing
LONGEST_WAIT = 1.0
ALONE = 0.5
"""Seconds without a sidecar after which a worker that has nothing yet looks for what was saved."""
_MAX_FRAME = 64 << 10

_FromSidecar: TypeAlias = Snapshot | Activate | Notice | Cache
_FROM_SIDECAR = (Snapshot, Activate, Notice, Cache)


class Outcome(NamedTuple):
    """What a worker says of a version that it has prepared."""

    refused: dict[str, str]
    """Configs that it cannot serve: why."""
    waiting: dict[str, str]
    """Configs with a new endpoint that does not answer: which, and why."""


class ConfigFollower(Protocol):
    """The worker, as the link sees it. All calls are made on the loop's thread."""

    async def prepare(self, version: int, document: bytes | memoryview) -> Outcome:
        """Prepares a version. When it raises, the link is closed and made anew, later each time.

        One at a time; it is cancelled when the connection is lost over which the version came, and when a sidecar
        announces another.
        """
        ...

    def activate(self, version: int) -> None:
        """Puts a prepared version into service."""
        ...

    def notice(self, text: str) -> None:
        """The sidecar says something about the configs as a whole; "" takes it back."""
        ...

    def saved(self) -> tuple[int, bytes] | None:
        """The version that was saved last, and its document.

        Asked while no version is active, each time that no sidecar has been there for a while.
        """
        ...


class ConfigLink:
    """Follows the config sidecar for one worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        *,
        worker: int,
        follower: ConfigFollower,
        cache: FeatureCache | None = None,
    ) -> None:
        """`path` is the sidecar's socket, `worker` the index that the sidecar logs. Nothing happens yet.

        `cache` gets the memory that the sidecar hands out, or its own while there is no sidecar.
        """
        self.version = 0
        """The active version; 0 while there is none."""
        self._loop = loop
        self._path = path
        self._subscribe = Subscribe(worker, os.getpid()).encode()
        self._follower = follower
        self._cache = cache
        self._prepared: dict[int, Outcome] = {}
        self._stream: FdStream[_FromSidecar] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._preparing_saved = False  # of the last preparation: whether it was not announced but saved
        self._retry: asyncio.TimerHandle | None = None
        self._alone: asyncio.TimerHandle | None = None
        self._wait = FIRST_WAIT
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._stream else "not connected"
        return f"<ConfigLink {self._path} {state}, version {self.version}, prepared {[*self._prepared]}>"

    def start(self) -> None:
        """Connects, now or as soon as the sidecar is there, and again whenever the connection is lost."""
        self._start_alone_later()
        self._connect()

    async def close(self) -> None:
        """Lets the sidecar go. The active version stays what it is."""
        self._closed = True
        for timer in (self._retry, self._alone):
            if timer is not None:
                timer.cancel()
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        preparing = self._stop_preparing()
        if preparing is not None:
            await asyncio.wait([preparing])

    def connected(self, configs: Sequence[str]) -> None:
        """Tells the sidecar that the endpoints which these configs waited for answer now."""
        if self._stream is not None:
            self._stream.send(Connected(tuple(configs)).encode())

    def retiring(self, plans: int) -> None:
        """Tells the sidecar how many plans of older versions still have requests in flight."""
        if self._stream is not None:
            self._stream.send(Retiring(plans).encode())

    # --- connection

    def _connect(self) -> None:
        self._retry = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(
                os.fspath(self._path)
            )  # at once or not at all: a Unix socket never stays "connecting"
        except OSError as error:
            sock.close()
            log.debug("config sidecar cannot be reached", extra={"reason": str(error)})
            self._try_again()
            return
        reader: FrameReader[_FromSidecar] = FrameReader(_FROM_SIDECAR, _MAX_FRAME)
        self._stream = FdStream(self._loop, sock, reader, self._on_frame, self._lost)
        if self._cache is not None and (memory := self._cache.segment) is not None:
            self._stream.send(Cache(memory.size).encode(), memory.fd)
        self._stream.send(self._subscribe)

    def _try_again(self) -> None:
        # Jitter: the workers of a pod lose the sidecar in the same instant.
        self._retry = self._loop.call_later(self._wait * random.uniform(0.5, 1.0), self._connect)
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _lost(self, reason: str) -> None:
        self._stream = None
        if not self._preparing_saved:
            self._stop_preparing()
        if not self._closed:
            log.warning("config sidecar lost", extra={"reason": reason, "version": self.version})
            if not self.version:
                self._start_alone_later()
            self._try_again()

    def _on_frame(self, frame: _FromSidecar) -> None:
        match frame:
            case Snapshot():
                self._announced(frame)
            case Activate():
                self._activate(frame.version)
            case Notice():
                self._follower.notice(frame.text)
            case Cache():
                self._adopt_cache(frame)

    def _adopt_cache(self, frame: Cache) -> None:
        assert self._stream is not None  # frames come from an open stream only
        fd = self._stream.take_fd()
        try:
            if self._cache is not None and self._cache.adopt(fd, frame.size):
                log.info("feature cache of the pod", extra={"bytes": frame.size})
        except (NotACacheError, OSError) as error:
            log.error("feature cache cannot be used", extra={"reason": str(error)})
        finally:
            os.close(fd)

    # --- versions

    def _announced(self, frame: Snapshot) -> None:
        assert self._stream is not None  # frames come from an open stream only
        fd = self._stream.take_fd()
        try:
            known = frame.version in self._prepared
            document = memoryview(b"") if known else read_sealed(fd, frame.length)
        except SealError as error:
            self._stream.fail(f"SNAPSHOT {frame.version}: {error}")
            return
        finally:
            os.close(fd)
        self._stop_preparing()  # what was saved, if anything: this is newer, or the same
        self._preparing = self._loop.create_task(self._prepare(self._stream, frame.version, document))
        self._preparing_saved = False

    async def _prepare(self, stream: FdStream[_FromSidecar], version: int, document: memoryview) -> None:
        try:
            if version not in self._prepared:
                self._prepared[version] = await self._follower.prepare(version, document)
        except Exception:
            log.exception("version could not be prepared", extra={"version": version})
            # The sidecar sends nothing new while it waits for an answer: a new connection ends that.
            stream.fail(f"SNAPSHOT {version} could not be prepared")
            return
        self._wait = FIRST_WAIT
        self._preparing = None
        outcome = self._prepared[version]
        stream.send(Prepared(version, outcome.refused, outcome.waiting).encode())

    def _stop_preparing(self) -> asyncio.Task[None] | None:
        task, self._preparing = self._preparing, None
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()
            return task
        return None

    def _activate(self, version: int) -> None:
        if version == self.version:
            return
        if version not in self._prepared:
            log.error("version to activate was never prepared", extra={"version": version})
            return
        self._follower.activate(version)
        self.version = version
        # Older versions are gone for good, newer ones may be on their way.
        self._prepared = {at: outcome for at, outcome in self._prepared.items() if at >= version}

    # --- without a sidecar

    def _start_alone_later(self) -> None:
        if self._alone is not None:
            self._alone.cancel()
        self._alone = self._loop.call_later(ALONE, self._start_alone)

    def _start_alone(self) -> None:
        self._alone = None
        if self._stream is not None or self.version or self._preparing is not None:
            return
        self._begin_cache()
        saved = self._follower.saved()
        if saved is not None:
            self._preparing = self._loop.create_task(self._serve_saved(*saved))
            self._preparing_saved = True

    def _begin_cache(self) -> None:
        if self._cache is None:
            return
        try:
            self._cache.begin()
        except OSError as error:
            log.error("no memory for the feature cache", extra={"reason": str(error)})

    async def _serve_saved(self, version: int, document: bytes) -> None:
        try:
            if version not in self._prepared:
                self._prepared[version] = await self._follower.prepare(version, document)
        except Exception:
            log.exception("saved version could not be prepared", extra={"version": version})
            self._preparing = None
            return
        self._preparing = None
        log.warning("serving what was saved: the config sidecar is away", extra={"version": version})
        self._activate(version)
