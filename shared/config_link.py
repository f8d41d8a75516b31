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
from collections.abc import Callable
from pathlib import Path

from shared.fd_stream import FdStream
from shared.frames import Activate, FrameReader, Prepared, Snapshot, Subscribe
from shared.sealed import SealError, read_sealed

__all__ = ["ConfigLink"]

log = logging.getLogger(__name__)

FIRST_WAIT = 0.05  # seconds before the second attempt to connect; doubled at each one that comes to nothing
LONGEST_WAIT = 1.0
_MAX_FRAME = 64 << 10


class ConfigLink:
    """Follows the config sidecar for one worker.

    `on_snapshot(version, document)` prepares a version and returns the configs it cannot serve, each with the
    reason; when it raises, the link is closed and made anew, later each time. `on_activate(version)` puts a
    prepared version into service. Both are called on the loop's thread, one at a time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        *,
        worker: int,
        on_snapshot: Callable[[int, bytes], dict[str, str]],
        on_activate: Callable[[int], None],
    ) -> None:
        """`path` is the sidecar's socket, `worker` the index that the sidecar logs. Nothing happens yet."""
        self.version = 0
        """The active version; 0 while there is none."""
        self._loop = loop
        self._path = path
        self._subscribe = Subscribe(worker, os.getpid()).encode()
        self._on_snapshot = on_snapshot
        self._on_activate = on_activate
        self._prepared: dict[int, dict[str, str]] = {}  # version → what it cannot serve
        self._stream: FdStream[Snapshot | Activate] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._wait = FIRST_WAIT
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._stream else "not connected"
        return f"<ConfigLink {self._path} {state}, version {self.version}, prepared {[*self._prepared]}>"

    def start(self) -> None:
        """Connects, now or as soon as the sidecar is there, and again whenever the connection is lost."""
        self._connect()

    async def close(self) -> None:
        """Lets the sidecar go. The active version stays what it is."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

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
        reader: FrameReader[Snapshot | Activate] = FrameReader((Snapshot, Activate), _MAX_FRAME)
        self._stream = FdStream(self._loop, sock, reader, self._on_frame, self._lost)
        self._stream.send(self._subscribe)

    def _try_again(self) -> None:
        # Jitter: the workers of a pod lose the sidecar in the same instant.
        self._retry = self._loop.call_later(self._wait * random.uniform(0.5, 1.0), self._connect)
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _lost(self, reason: str) -> None:
        self._stream = None
        if not self._closed:
            log.warning("config sidecar lost", extra={"reason": reason, "version": self.version})
            self._try_again()

    def _on_frame(self, frame: Snapshot | Activate) -> None:
        if isinstance(frame, Snapshot):
            self._prepare(frame)
        else:
            self._activate(frame.version)

    def _prepare(self, frame: Snapshot) -> None:
        assert self._stream is not None  # frames come from an open stream only
        stream = self._stream
        fd = stream.take_fd()
        try:
            if frame.version not in self._prepared:
                document = read_sealed(fd, frame.length)
                self._prepared[frame.version] = self._on_snapshot(frame.version, document)
        except SealError as error:
            stream.fail(f"SNAPSHOT {frame.version}: {error}")
            return
        except BaseException:
            # The sidecar sends nothing new while it waits for an answer: a new connection ends that.
            stream.fail(f"SNAPSHOT {frame.version} could not be prepared")
            raise
        finally:
            os.close(fd)
        self._wait = FIRST_WAIT
        stream.send(Prepared(frame.version, self._prepared[frame.version]).encode())

    def _activate(self, version: int) -> None:
        if version == self.version:
            return
        if version not in self._prepared:
            log.error("version to activate was never prepared", extra={"version": version})
            return
        self._on_activate(version)
        self.version = version
        # Older versions are gone for good, newer ones may be on their way.
        self._prepared = {at: refused for at, refused in self._prepared.items() if at >= version}
