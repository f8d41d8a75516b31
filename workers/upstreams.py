"""The upstreams of a worker: one channel per address, shared by all plans; one endpoint per method of it.

What plans call is kept as long as some plan lives that calls it; after that its channel can be closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from components.compile import CompileError
from components.feature import Feature
from components.numerix import Numerix
from components.predator import Predator
from dag.component import Endpoint, Pending, Reply
from dag.plan import Plan
from rpc.client import Channel, Method
from rpc.status import Metadata
from rpc.tls import client_context
from shared.board import Board
from shared.metrics import CACHE_COALESCED
from shared.settings import Settings
from workers.call_meters import CallMeters
from workers.coalescing import Coalescing

__all__ = ["ChannelEndpoint", "WorkerUpstreams", "targets_of"]

ONFS, PREDATOR, NUMERIX = "onfs", "predator", "numerix"
FETCH = "/retrieve.FeatureService/RetrieveFeatures"
INFER = "/inference.GRPCInferenceService/ModelInfer"
COMPUTE = "/numerix.Numerix/Compute"


class ChannelEndpoint:
    """One method on one channel, its headers encoded once."""

    __slots__ = ("_channel", "_meters", "_method")

    def __init__(self, channel: Channel, method: Method, meters: CallMeters) -> None:
        self._channel = channel
        self._method = method
        self._meters = meters

    def start(
        self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None], rows: int
    ) -> Pending:
        meters = self._meters
        meters.rows.value += rows
        return self._channel.start(self._method, body, timeout, on_done, meters)

    def with_headers(self, headers: Metadata) -> ChannelEndpoint:
        """The same, with these headers in each call, too."""
        method = Method(self._method.path, (*self._method.headers, *headers))
        return ChannelEndpoint(self._channel, method, self._meters)

    @property
    def path(self) -> str:
        """/service/method."""
        return self._method.path

    @property
    def channel(self) -> Channel:
        """Where the calls go."""
        return self._channel

    def __repr__(self) -> str:
        return f"<ChannelEndpoint {self._method!r} on {self._channel!r}>"


def targets_of(plan: Plan) -> dict[str, Channel]:
    """The channels that a plan's calls go to, by target (host:port)."""
    found: dict[str, Channel] = {}
    for endpoint in _endpoints(plan):
        direct = endpoint.endpoint if isinstance(endpoint, Coalescing) else endpoint
        if isinstance(direct, ChannelEndpoint):
            found[direct.channel.target] = direct.channel
    return found


def _endpoints(plan: Plan) -> Iterator[Endpoint | None]:
    for component in plan.components:
        match component:
            case Feature() | Numerix():
                yield component.endpoint
            case Predator():
                yield from (route.endpoint for route in component.routes)


class WorkerUpstreams:
    """Hands endpoints to plans; belongs to the I/O thread."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self._settings = settings
        self._board = board
        self._channels: dict[tuple[str, bool], Channel] = {}
        self._endpoints: dict[tuple[str, bool, str], ChannelEndpoint] = {}
        self._coalescing: dict[ChannelEndpoint, Coalescing] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def onfs(self) -> Endpoint:
        onfs = self._settings.onfs
        if not onfs.host:
            raise CompileError("features are fetched, but EXTERNAL_SERVICE_ONFS_FS_HOST is empty")
        metadata = (
            (b"online-feature-store-caller-id", onfs.caller_id.encode()),
            (b"online-feature-store-auth-token", onfs.caller_token.encode()),
        )
        target = f"{onfs.host}:{onfs.port}"
        endpoint = self._endpoint(target, onfs.plaintext, ONFS, FETCH, metadata)
        if not self._settings.coalesce:
            return endpoint
        coalescing = self._coalescing.get(endpoint)
        if coalescing is None:
            saved = self._board.counter(CACHE_COALESCED, ONFS, target)
            coalescing = Coalescing(asyncio.get_running_loop(), endpoint, saved)
            self._coalescing[endpoint] = coalescing
        return coalescing

    def predator(self, endpoint: str) -> Endpoint:
        predator = self._settings.predator
        metadata = (
            (b"predator-caller-id", predator.caller_id.encode()),
            (b"predator-auth-token", predator.caller_token.encode()),
        )
        return self._endpoint(
            with_port(endpoint, predator.port), predator.plaintext, PREDATOR, INFER, metadata
        )

    def numerix(self) -> Endpoint | None:
        numerix = self._settings.numerix
        if not numerix.host:
            return None
        # The existing clients of the expression service name their caller by the service's own setting.
        metadata = ((b"numerix-caller-id", self._settings.name.encode()),)
        return self._endpoint(f"{numerix.host}:{numerix.port}", numerix.plaintext, NUMERIX, COMPUTE, metadata)

    def channels(self) -> list[Channel]:
        """All that are open."""
        return list(self._channels.values())

    def close_unused(self, plans: Iterable[Plan]) -> list[str]:
        """Closes the channels that none of these plans, all that are left, uses; returns their targets."""
        used = [channel for plan in plans for channel in targets_of(plan).values()]
        unused = [key for key, channel in self._channels.items() if channel not in used]
        for key in unused:
            channel = self._channels.pop(key)
            for place, endpoint in list(self._endpoints.items()):
                if endpoint.channel is channel:
                    del self._endpoints[place]
                    self._coalescing.pop(endpoint, None)
            closing = asyncio.ensure_future(channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return [target for target, _ in unused]

    async def close(self) -> None:
        """Closes all channels."""
        await asyncio.gather(*self._closing, *(channel.close() for channel in self._channels.values()))

    def _endpoint(
        self, target: str, plaintext: bool, service: str, path: str, metadata: Metadata
    ) -> ChannelEndpoint:
        key = target, plaintext, path
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            channel = self._channels.get((target, plaintext))
            if channel is None:
                channel = Channel(target, tls=None if plaintext else client_context())
                self._channels[target, plaintext] = channel
            meters = CallMeters(self._board, service, target)
            endpoint = self._endpoints[key] = ChannelEndpoint(channel, channel.method(path, metadata), meters)
        return endpoint

    def __repr__(self) -> str:
        return f"<WorkerUpstreams {len(self._channels)} channels>"


def with_port(endpoint: str, port: int) -> str:
    """`host` with the default port, `host:port` as it is; an IPv6 address stands in brackets."""
    _, colon, tail = endpoint.rpartition(":")
    return endpoint if colon and tail.isdigit() and not endpoint.endswith("]") else f"{endpoint}:{port}"
