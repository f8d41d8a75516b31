"""Verdicts in etcd: what becomes of every key in this pod, for other tools to show. Written, and never read here.

| key in etcd | value |
|---|---|
| `<INFERFLOW_ETCD_STATUS_KEY>/<pod>/<key of the config tree>` | JSON: an item of `inferflow config list --json` |

The keys hang on a lease that is kept alive: those of a pod that has gone are gone, too, a minute later. Only what
has changed is written, at most once a second. Nothing depends on it: when etcd does not take it, that is logged,
and tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import orjson

from sidecar.etcd import EtcdClient, EtcdError

__all__ = ["INTERVAL", "LEASE", "Verdicts"]

INTERVAL: Final = 1.0
"""Seconds between two looks at what has changed."""
LEASE: Final = 60
"""Seconds after which the keys of a pod that is gone are removed. It is renewed three times in that time."""
LONGEST_PAUSE: Final = 30.0
"""Seconds between two tries while etcd does not take what is written."""

log = logging.getLogger(__name__)


class Verdicts:
    """Writes the state of every key under a key of its own. Belongs to one event loop."""

    def __init__(
        self,
        client: EtcdClient,
        folder: str,
        items: Callable[[], Iterable[Mapping[str, Any]]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`folder` is where this pod writes; `items` gives what is to stand there, each with its `key`.

        The client is its own from now on: `close` ends it. `sleep` takes seconds.
        """
        self._client = client
        self._folder = folder
        self._items = items
        self._sleep = sleep
        self._lease = 0
        self._renew_at = 0.0
        self._written: dict[str, bytes] = {}  # under the lease, by key of the config tree
        self._failed = 0

    def __repr__(self) -> str:
        return f"<Verdicts {self._folder}: {len(self._written)} written, {self._failed} tries failed>"

    async def run(self) -> None:
        """Writes until it is cancelled."""
        while True:
            try:
                await self.write()
                self._failed = 0
            except EtcdError as error:
                if not self._failed:
                    log.warning(
                        "verdicts cannot be written", extra={"folder": self._folder, "reason": str(error)}
                    )
                self._failed += 1
            await self._sleep(min(INTERVAL * 2 ** min(self._failed, 10), LONGEST_PAUSE))

    async def write(self) -> None:
        """Writes what has changed. Raises EtcdError."""
        await self._keep_lease()
        wanted = {item["key"]: orjson.dumps(item) for item in self._items()}
        for key, value in wanted.items():
            if self._written.get(key) != value:
                await self._client.put(f"{self._folder}/{key}", value, lease=self._lease)
                self._written[key] = value
        for key in self._written.keys() - wanted.keys():
            await self._client.delete(f"{self._folder}/{key}")
            del self._written[key]

    async def close(self) -> None:
        """Ends the connection. What was written goes with its lease."""
        await self._client.close()

    async def _keep_lease(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._lease and now < self._renew_at:
            return
        if not self._lease or not await self._client.keep_lease(self._lease):
            self._written = {}  # it went with the lease
            self._lease = await self._client.grant_lease(LEASE)
        self._renew_at = now + LEASE / 3
