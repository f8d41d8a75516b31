"""From a target to addresses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Address", "DnsResolver", "Resolver", "Target", "parse_target"]

Address = tuple[str, int] | str
"""(IP address, port), or the path of a Unix socket."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a channel talks to: a host and port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """The `:authority` of requests. A Unix socket has no name, so it is `localhost`."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(text: str) -> Target:
    """Returns the target of `host:port`, `[v6 address]:port` or `unix:/path`. Raises ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise ValueError(f"target {text!r} has no path")
        return Target("", 0, path)
    host, colon, port = text.rpartition(":")
    is_v6 = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_v6 else host
    if not colon or not host or (":" in host and not is_v6):
        raise ValueError(f"target {text!r} is not host:port, [address]:port or unix:/path")
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"target {text!r}: port {port!r} is not 1 to 65535")
    return Target(host, int(port))


class Resolver(Protocol):
    """Finds the addresses of a name."""

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """Returns every address of `host`, at least one. Raises OSError when it has none."""


class DnsResolver:
    """The resolver of the system, asked in a thread of the loop."""

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Sorted, so that an answer in another order is no change.
        return sorted({(str(entry[4][0]), int(entry[4][1])) for entry in found})
