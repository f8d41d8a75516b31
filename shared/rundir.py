"""The run directory, and the Unix sockets in it.

Whoever can open these sockets can answer requests, so the directory belongs to one user and one pod. A
socket file outlives a process that was killed: the next one takes it over, but never from a living process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["RunDirError", "UnixListener", "private_directory"]

_PATH_LIMIT = 107
"""Bytes of a Unix socket's path on Linux."""


class RunDirError(RuntimeError):
    """The run directory or a socket in it cannot be used. The text says what to do."""


def private_directory(path: Path) -> Path:
    """Make `path` (and its parents) if it is missing, with mode 0700. Returns it, absolute.

    A directory that is there is checked, never changed: its owner may have other plans for it. Raises
    RunDirError when it is no directory, belongs to another user, or others may enter it.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"{path}: cannot be made: {error.strerror}") from error
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise RunDirError(f"{path}: belongs to user {found.st_uid}, this process runs as {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise RunDirError(
            f"{path}: has mode {stat.S_IMODE(found.st_mode):04o}, must be 0700: "
            f"run `chmod 700 {path}`, or name a directory below it"
        )
    return path


class UnixListener:
    """A listening Unix socket and its file.

    `socket` is non-blocking and listens; the caller serves it and closes it. `remove()` takes the file away,
    if it is still the one made here.
    """

    def __init__(self, path: Path, backlog: int = 128) -> None:
        """Raises RunDirError when the path is too long, taken by a living process, or no socket."""
        if len(os.fsencode(path)) > _PATH_LIMIT:
            raise RunDirError(
                f"{path}: {len(os.fsencode(path))} bytes, a socket's path has at most {_PATH_LIMIT}: "
                "set INFERFLOW_RUN_DIR to a shorter one"
            )
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        try:
            with _locked(path.parent):
                _remove_stale(path)
                self.socket.bind(os.fspath(path))
                self.socket.listen(backlog)
                self._identity = _identity(path)
        except BaseException:
            self.socket.close()
            raise

    def __repr__(self) -> str:
        return f"<UnixListener {self.path}>"

    def remove(self) -> None:
        """Remove the socket's file, unless another process has put its own in its place."""
        with _locked(self.path.parent):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Tells this file from a later one of the same name; the time does where the inode is used again."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time: between the look at a stale file and its removal another could bind there."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise RunDirError(f"{path}: is there and is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Not blocking: a living process that accepts nothing has a full backlog, and says EAGAIN.
        probe.setblocking(False)
        refusal = probe.connect_ex(os.fspath(path))
    if refusal != errno.ECONNREFUSED:
        raise RunDirError(f"{path}: another process listens there; stop it or set INFERFLOW_RUN_DIR")
    path.unlink()
