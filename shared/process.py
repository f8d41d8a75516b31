"""What every process of the pod does for itself: a name, a core, and an end when its supervisor ends."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import math
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import setproctitle

__all__ = [
    "ParentGoneError",
    "behind_requests",
    "cores",
    "die_with_parent",
    "ignore_stops",
    "keep_freed_memory",
    "name",
    "pin",
    "settle",
]

_PR_SET_PDEATHSIG = 1
# Parameters of mallopt(3) and what they are set to, in bytes.
_M_TRIM_THRESHOLD, _KEPT = -1, 32 << 20
_M_MMAP_THRESHOLD, _OWN_MAPPING = -3, 8 << 20
_NICE = 5
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class ParentGoneError(RuntimeError):
    """The supervisor ended before this process could ask to be told."""


def name(title: str) -> None:
    """Show this process as `inferflow: <title>` in ps and top."""
    setproctitle.setproctitle(f"inferflow: {title}")


def die_with_parent(expected: int = 0) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, however it ends.

    Call it first thing. The kernel tells only of ends after this call, so a parent that has gone before it
    is looked for: `expected` is the process id that the parent must have (0: whatever it is now).
    Raises ParentGoneError when it has gone, OSError when the system refuses.
    """
    parent = expected or os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    if os.getppid() != parent:
        raise ParentGoneError(f"the parent, process {parent}, has gone: now it is {os.getppid()}")


def cores(quota: Path = _CGROUP_QUOTA) -> int:
    """Cores that this process may use: those of its affinity, or fewer under a container's CPU limit.

    A limit of 1.5 cores counts as 2. Without control groups there is no limit.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text().split()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return allowed
        raise
    return allowed if limit == "max" else max(1, min(allowed, math.ceil(int(limit) / int(period))))


def pin(index: int) -> int:
    """Keep this process (all its threads to come) on one core: the index-th of those allowed, round again.

    Returns the number of the core. Raises OSError when the system refuses.
    """
    allowed = sorted(os.sched_getaffinity(0))
    core = allowed[index % len(allowed)]
    os.sched_setaffinity(0, {core})
    return core


def behind_requests() -> None:
    """Give this process a third of the weight of front doors and workers: on a full machine requests go first."""
    os.nice(_NICE)


def settle() -> None:
    """Take everything that is alive now out of the garbage collector's rounds, and have fewer of them.

    Called once, when a process has loaded what it lives on. Requests make few reference cycles but
    many objects: with the defaults the collector walks over all modules again and again to find nothing, which
    cost 5 to 10 % of a worker's time and pauses of tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    gc.enable()  # workers import without it


def keep_freed_memory() -> bool:
    """Have freed memory stay with this process, up to 32 MiB of it, for the next request.

    glibc gives the end of its heap back to the system whenever some hundred kB of it are free. Each tensor of a
    large request then costs a page fault every 4 KiB, which is several times what its bytes cost. Blocks from 8 MiB
    on are mapped and given back each by itself, as before.
    Returns False where the C library is another and has no such habit (or no way to say so).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEPT) and mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING))


def ignore_stops(loop: asyncio.AbstractEventLoop, signals: Iterable[signal.Signals]) -> None:
    """Make this process deaf to further stop signals, for the rest of its way out.

    Closing a loop gives its signals back their default action, and one more signal (of a supervisor that ends
    too, or of an impatient caller) would then turn a clean exit into a killed process. Blocking them is not
    enough: a signal for the process goes to any thread that does not block it.
    """
    for number in signals:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
