"""A DogStatsD agent for tests: it takes packets and adds up what they say, by the rules of the protocol."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Agent", "Tags"]

Tags = frozenset[str]


class Agent:
    """Listens on loopback (or on a Unix socket) while it is entered.

    `counts` and `gauges` by (name, tags); `timings`: the values, and how many observations they stand for.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.counts: dict[tuple[str, Tags], float] = defaultdict(float)
        self.gauges: dict[tuple[str, Tags], float] = {}
        self.timings: dict[tuple[str, Tags], list[float]] = defaultdict(list)
        self.stand_for: dict[tuple[str, Tags], float] = defaultdict(float)
        self.bad: list[str] = []
        self._lock = threading.Lock()
        if path is None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self._socket.bind(("127.0.0.1", 0))
            self.port: int = self._socket.getsockname()[1]
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._over = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()

    def count(self, name: str, *tags: str) -> float:
        """What was counted under a name, over all series that have these tags."""
        with self._lock:
            return sum(value for (own, has), value in self.counts.items() if own == name and has >= set(tags))

    def observed(self, name: str, *tags: str) -> float:
        """How many observations the timings of a name stand for."""
        with self._lock:
            found = self.stand_for.items()
            return sum(value for (own, has), value in found if own == name and has >= set(tags))

    def names(self) -> set[str]:
        """Every name that has come."""
        with self._lock:
            return {name for name, _ in [*self.counts, *self.gauges, *self.timings]}

    def _run(self) -> None:
        while not self._over:
            try:
                packet = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            with self._lock:
                for line in packet.decode().splitlines():
                    self._read(line)

    def _read(self, line: str) -> None:
        name, _, rest = line.partition(":")
        value, kind, *extras = rest.split("|")
        tags = next((Tags(extra[1:].split(",")) for extra in extras if extra.startswith("#")), Tags())
        rate = next((float(extra[1:]) for extra in extras if extra.startswith("@")), 1.0)
        if not all(":" in tag for tag in tags) or any(extra[0] not in "#@" for extra in extras):
            self.bad.append(line)
        key = name, tags
        if kind == "c":
            self.counts[key] += float(value) / rate
        elif kind == "g":
            self.gauges[key] = float(value)
        elif kind == "ms":
            self.timings[key].append(float(value))
            self.stand_for[key] += 1 / rate
        else:
            self.bad.append(line)

    def __repr__(self) -> str:
        return f"<Agent {len(self.counts)} counts, {len(self.gauges)} gauges, {len(self.timings)} timings>"
