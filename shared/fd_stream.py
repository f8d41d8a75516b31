"""Frames on a Unix socket, some of them with a file descriptor.

asyncio's transports pass no descriptors, so this drives a non-blocking socket itself. Belongs to the thread of
its event loop. It knows frames and descriptors, not what they mean.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic

from shared.frames import F, FrameError, FrameReader

__all__ = ["FdStream"]

_READ_BYTES = 64 << 10
_MAX_FDS = 16  # in one read; the kernel ends a read at the first message with descriptors anyway
_MAX_UNSENT = 16 << 20  # bytes; frames here are few, so a peer behind by more has stopped reading


class FdStream(Generic[F]):
    """One connection. `on_frame` gets each frame in a turn of its own, so that one that raises (the loop's
    exception handler hears of it) takes no other with it. `on_lost` is called once, with the reason, when the
    connection ends otherwise than by `close`; never from inside `send`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        reader: FrameReader[F],
        on_frame: Callable[[F], None],
        on_lost: Callable[[str], None],
        max_unsent: int = _MAX_UNSENT,
    ) -> None:
        """Takes over the socket, which must be connected and non-blocking. A peer that is behind by more than
        `max_unsent` bytes is given up.
        """
        self._loop = loop
        self._sock = sock
        self._reader = reader
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._max_unsent = max_unsent
        self._received: deque[int] = deque()  # descriptors that no frame has claimed yet
        self._unsent: deque[tuple[bytes, int | None]] = deque()
        self._unsent_bytes = 0
        self._open = True
        self._gone = False  # the peer is, and what it sent is being read
        loop.add_reader(sock, self._readable)

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<FdStream {state}, {self._unsent_bytes} bytes unsent, {len(self._received)} descriptors>"

    @property
    def unsent(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self._unsent_bytes

    def send(self, frame: bytes, fd: int | None = None) -> None:
        """Sends a frame, and with it a descriptor, which stays the caller's. Nothing once it is closed."""
        if not self._open or self._gone:
            return
        self._unsent.append((frame, None if fd is None else os.dup(fd)))
        self._unsent_bytes += len(frame)
        if self._unsent_bytes > self._max_unsent:
            self._loop.call_soon(self._lose, f"it does not read: {self._unsent_bytes} bytes unsent")
        elif len(self._unsent) == 1:
            self._writable()

    def take_fd(self) -> int:
        """The descriptor that came with the frame at hand; the caller closes it.

        Frames that carry one must each take it, in their order. Raises FrameError when none came.
        """
        if not self._received:
            raise FrameError("the frame came without its descriptor")
        return self._received.popleft()

    def close(self) -> None:
        """Closes the socket and every descriptor that nobody took. Frames not yet handed over are dropped."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for fd in self._received:
            os.close(fd)
        self._received.clear()
        self._drop_unsent()

    def _drop_unsent(self) -> None:
        for _, fd in self._unsent:
            if fd is not None:
                os.close(fd)
        self._unsent.clear()
        self._unsent_bytes = 0

    def fail(self, reason: str) -> None:
        """Ends the connection because of what the peer sent: closes it and calls `on_lost`."""
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if self._open:
            self.close()
            self._on_lost(reason)

    def _readable(self) -> None:
        if not self._open:
            return
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, _READ_BYTES, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self._peer_is_gone()
            return
        except OSError as error:
            self._lose(f"read: {error.strerror}")
            return
        self._received.extend(fds)
        if flags & socket.MSG_CTRUNC:
            self._lose(f"more than {_MAX_FDS} descriptors at once, or none left in this process")
        elif not data:
            cut = self._reader.pending
            self._lose(f"closed by its peer inside a frame ({cut} bytes)" if cut else "closed by its peer")
        else:
            self._feed(data)
            if self._gone:
                self._loop.call_soon(self._readable)

    def _peer_is_gone(self) -> None:
        """The peer has left with something of ours unread. What it sent itself can be read all the same.

        The loop is not asked when: one built on libuv never calls again after such an error.
        """
        self._drop_unsent()
        self._loop.remove_writer(self._sock)
        self._loop.remove_reader(self._sock)
        if self._gone:
            self._loop.call_soon(self._lose, "reset by its peer")
        else:
            self._gone = True
            self._loop.call_soon(self._readable)

    def _feed(self, data: bytes) -> None:
        try:
            frames = self._reader.feed(data)
        except FrameError as error:
            self._lose(str(error))
            return
        for frame in frames:
            self._loop.call_soon(self._deliver, frame)

    def _deliver(self, frame: F) -> None:
        if not self._open:
            return
        try:
            self._on_frame(frame)
        except FrameError as error:
            self._lose(str(error))

    def _writable(self) -> None:
        while self._unsent:
            frame, fd = self._unsent[0]
            try:
                sent = self._write(frame, fd)
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._writable)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._peer_is_gone()
                return
            except OSError as error:
                self._loop.call_soon(self._lose, f"write: {error.strerror}")
                return
            if fd is not None:  # it has left with the first byte, however many bytes went
                os.close(fd)
            self._unsent_bytes -= sent
            if sent < len(frame):
                self._unsent[0] = (frame[sent:], None)
            else:
                self._unsent.popleft()
        self._loop.remove_writer(self._sock)

    def _write(self, frame: bytes, fd: int | None) -> int:
        if fd is None:
            return self._sock.send(frame, socket.MSG_NOSIGNAL)
        return socket.send_fds(self._sock, [frame], [fd], socket.MSG_NOSIGNAL)
