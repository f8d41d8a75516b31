"""What supervisord does for Inferflow besides starting and stopping: a plugin of it, loaded by supervisord.conf.

It keeps the books of processes that end by themselves (`shared.crashes`), and changes the number of processes of
a program while the others go on, which supervisord by itself cannot. Its methods are XML-RPC calls `inferflow.…`
on supervisor.sock. Everything here runs in supervisord's one thread: nothing may block, and what raises would
end the pod, so a file that cannot be written is told to the log.
"""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

from supervisor import events
from supervisor.states import STOPPED_STATES
from supervisor.xmlrpc import Faults, RPCError

from shared.board_file import remove_boards
from shared.crashes import Crashes

__all__ = ["COUNTS", "Supervision", "make"]

COUNTS = {"worker": "INFERFLOW_WORKERS"}
"""Programs whose number can change, and the variable that supervisord.conf takes it from."""


def make(supervisord: Any) -> Supervision:
    """The plugin's factory, called once by supervisord."""
    run_dir = Path(os.environ["INFERFLOW_RUN_DIR"])
    atexit.register(remove_boards, run_dir)  # those of processes that were killed and never came back
    return Supervision(supervisord, run_dir)


class Supervision:
    """The XML-RPC methods `inferflow.…`, and the listener to supervisord's events."""

    def __init__(self, supervisord: Any, run_dir: Path) -> None:
        self._supervisord = supervisord
        self._crashes = Crashes(run_dir)
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

    # --- the books

    def _exited(self, event: Any) -> None:
        status = event.process.exitstatus
        self._note(event.process, "a signal" if status == -1 else f"exit status {status}")

    def _failed(self, event: Any) -> None:
        self._note(event.process, "an exit soon after its start")

    def _note(self, process: Any, how: str) -> None:
        try:
            self._crashes.ended(process.config.name, how)
        except OSError as error:
            self._supervisord.options.logger.warn(f"{self._crashes!r}: {error}")

    def _stopping(self, _event: Any) -> None:
        """Nothing is worth a note any more, and no file stays behind."""
        events.unsubscribe(events.ProcessStateExitedEvent, self._exited)
        events.unsubscribe(events.ProcessStateBackoffEvent, self._failed)
        self._crashes.remove()
