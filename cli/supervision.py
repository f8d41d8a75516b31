"""What supervisord does for Inferflow besides starting and stopping: a plugin of it, loaded by supervisord.conf.

It keeps the books of processes that end by themselves (`shared.crashes`), remembers the last lines of all of
them, has supervisord see signals at once, and changes the number of processes of a program while the others go
on, which supervisord by itself cannot. Its methods are XML-RPC calls `inferflow.…` on supervisor.sock. Everything
here runs in the one thread of supervisord: nothing may block, and what raises would end the pod, so a file that
cannot be written is told to the log.
"""

from __future__ import annotations

import atexit
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor import events
from supervisor.states import STOPPED_STATES
from supervisor.xmlrpc import Faults, RPCError

from shared.board_file import remove_boards
from shared.crashes import Crashes

__all__ = ["COUNTS", "Supervision", "Waker", "make"]

COUNTS = {"worker": "INFERFLOW_WORKERS"}
"""Programs whose number can change, and the variable that supervisord.conf takes it from."""

TAIL = 8 << 10
"""Bytes that are kept of what each process wrote: enough for a line with a traceback."""


def make(supervisord: Any) -> Supervision:
    """The plugin's factory, called once by supervisord."""
    run_dir = Path(os.environ["INFERFLOW_RUN_DIR"])
    waker = Waker()
    supervisord.options.get_socket_map()[waker.fileno()] = waker
    signal.set_wakeup_fd(waker.write_end, warn_on_full_buffer=False)
    waker.wake()  # the first look starts the processes
    atexit.register(remove_boards, run_dir)  # those of processes that were killed and never came back
    return Supervision(supervisord, run_dir)


class Waker:
    """Ends the wait of supervisord's loop when a signal comes: one more readable file among its others.

    By itself supervisord looks at signals, at what has ended and at what is to be started once a second. What the
    loop does about one thing shows up in its next turns (a process has ended; it is started again), so a signal
    is followed by TURNS of them that wait for nothing.
    """

    TURNS = 3

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        for end in (self._read_end, self.write_end):
            os.set_blocking(end, False)
        self._turns = 0

    def __repr__(self) -> str:
        return f"<Waker {self._turns} more turns>"

    def fileno(self) -> int:
        return self._read_end

    def wake(self) -> None:
        """Has the loop turn at once, as a signal would."""
        os.write(self.write_end, bytes([signal.SIGCHLD]))

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self.write_end)

    # What supervisord's loop asks of a file.

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        if any(os.read(self._read_end, 4096)):  # the number of a signal, as Python writes it
            self._turns = self.TURNS
        if self._turns:
            self._turns -= 1
            os.write(self.write_end, b"\0")

    def handle_error(self) -> None:
        traceback.print_exc()


class Supervision:
    """The XML-RPC methods `inferflow.…`, and the listener to supervisord's events."""

    def __init__(self, supervisord: Any, run_dir: Path) -> None:
        self._supervisord = supervisord
        self._crashes = Crashes(run_dir)
        self._tails: dict[str, tuple[int, bytes]] = {}  # by name: process id, its last bytes
        events.subscribe(events.ProcessLogStdoutEvent, self._wrote)
        events.subscribe(events.ProcessStateExitedEvent, self._exited)
        events.subscribe(events.ProcessStateBackoffEvent, self._failed)
        events.subscribe(events.SupervisorStoppingEvent, self._stopping)

    def __repr__(self) -> str:
        return f"<Supervision {self._crashes!r}>"

    # --- the number of processes

    def setCount(self, program: str, count: int) -> list[str]:
        """Have `count` processes of a program: starts what is missing, forgets what is too many and has ended.

        Returns the names (`worker:worker_2`) of those that are too many and still run: stop them, and call
        again. The variable changes for every process that starts from now on.
        """
        if program not in COUNTS or not isinstance(count, int) or count < 1:
            raise RPCError(Faults.BAD_ARGUMENTS, f"{program!r}, {count!r}: {', '.join(COUNTS)}, at least 1")
        group = self._supervisord.process_groups[program]
        wanted = self._configured(program, count)
        for config in wanted.process_configs:
            if config.name not in group.processes:
                config.create_autochildlogs()
                group.processes[config.name] = config.make_process(group)
        names = {config.name for config in wanted.process_configs}
        running = []
        for name, process in sorted(group.processes.items()):
            if name in names:
                continue
            if process.get_state() in STOPPED_STATES:
                del group.processes[name]
                self._forget(name)
            else:
                running.append(f"{program}:{name}")
        group.config = wanted
        return running

    def _configured(self, program: str, count: int) -> Any:
        """supervisord's own reading of its configuration, with another number."""
        variable, options = COUNTS[program], self._supervisord.options
        os.environ[variable] = options.environ_expansions[f"ENV_{variable}"] = str(count)
        options.process_config(do_usage=False)
        return next(config for config in options.process_group_configs if config.name == program)

    # --- last lines

    def lastLine(self, name: str) -> dict[str, Any]:
        """The last line that a process (`worker_0`) wrote, and the id of the process that wrote it.

        `{"pid": 0, "line": ""}` when nothing was written. What XML cannot hold is left out.
        """
        pid, tail = self._tails.get(name, (0, b""))
        text = "".join(each if each.isprintable() else "\n" for each in tail.decode(errors="replace"))
        lines = [line for line in text.split("\n") if line.strip()]
        return {"pid": pid, "line": lines[-1] if lines else ""}

    def _wrote(self, event: Any) -> None:
        """A process wrote something, in pieces as the pipe gave them."""
        name = event.process.config.name
        pid, tail = self._tails.get(name, (0, b""))
        before = tail if pid == event.pid else b""
        self._tails[name] = event.pid, (before + event.data)[-TAIL:]

    # --- the books

    def _forget(self, name: str) -> None:
        """It is no part of the pod any more, so that nobody is told of how it ended."""
        self._tails.pop(name, None)
        self._keep(lambda: self._crashes.forget(name))

    def _exited(self, event: Any) -> None:
        status = event.process.exitstatus
        self._note(event.process, "a signal" if status == -1 else f"exit status {status}")

    def _failed(self, event: Any) -> None:
        self._note(event.process, "an exit soon after its start")

    def _note(self, process: Any, how: str) -> None:
        self._keep(lambda: self._crashes.ended(process.config.name, how))

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._supervisord.options.logger.warn(f"{self._crashes!r}: {error}")

    def _stopping(self, _event: Any) -> None:
        """Nothing is worth a note any more, and no file stays behind."""
        events.unsubscribe(events.ProcessLogStdoutEvent, self._wrote)
        events.unsubscribe(events.ProcessStateExitedEvent, self._exited)
        events.unsubscribe(events.ProcessStateBackoffEvent, self._failed)
        self._crashes.remove()
