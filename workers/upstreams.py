"""The upstreams of a worker: one channel per address, shared by all plans; one endpoint per method of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from components.compile import CompileError
from dag.component import Endpoint, Pending, Reply
from rpc.client import Channel, Method
from rpc.status import Metadata
from rpc.tls import client_context
from shared.settings import Settings

__all__ = ["ChannelEndpoint", "WorkerUpstreams"]

FETCH = "/retrieve.FeatureService/RetrieveFeatures"
INFER = "/inference.GRPCInferenceService/ModelInfer"
COMPUTE = "/numerix.Numerix/Compute"


class ChannelEndpoint:
    """One method on one channel, its headers encoded once."""

    __slots__ = ("_channel", "_method")

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def start(self, body: tuple[bytes, ...], timeout: float, on_done: Callable[[Reply], None]) -> Pending:
        return self._channel.start(self._method, body, timeout, on_done)

    def __repr__(self) -> str:
        return f"<ChannelEndpoint {self._method!r} on {self._channel!r}>"


class WorkerUpstreams:
    """Hands endpoints to plans; belongs to the I/O thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channels: dict[tuple[str, bool], Channel] = {}
        self._endpoints: dict[tuple[str, str], ChannelEndpoint] = {}

    def onfs(self) -> Endpoint:
        onfs = self._settings.onfs
        if not onfs.host:
            raise CompileError("features are fetched, but EXTERNAL_SERVICE_ONFS_FS_HOST is empty")
        metadata = (
            (b"online-feature-store-caller-id", onfs.caller_id.encode()),
            (b"online-feature-store-auth-token", onfs.caller_token.encode()),
        )
        return self._endpoint(f"{onfs.host}:{onfs.port}", onfs.plaintext, FETCH, metadata)

    def predator(self, endpoint: str) -> Endpoint:
        predator = self._settings.predator
        metadata = (
            (b"predator-caller-id", predator.caller_id.encode()),
            (b"predator-auth-token", predator.caller_token.encode()),
        )
        return self._endpoint(with_port(endpoint, predator.port), predator.plaintext, INFER, metadata)

    def numerix(self) -> Endpoint | None:
        numerix = self._settings.numerix
        if not numerix.host:
            return None
        # The existing clients of the expression service name their caller by the service's own setting.
        metadata = ((b"numerix-caller-id", self._settings.name.encode()),)
        return self._endpoint(f"{numerix.host}:{numerix.port}", numerix.plaintext, COMPUTE, metadata)

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    def _endpoint(self, target: str, plaintext: bool, path: str, metadata: Metadata) -> ChannelEndpoint:
        endpoint = self._endpoints.get((target, path))
        if endpoint is None:
            channel = self._channels.get((target, plaintext))
            if channel is None:
                channel = Channel(target, tls=None if plaintext else client_context())
                self._channels[target, plaintext] = channel
            endpoint = ChannelEndpoint(channel, channel.method(path, metadata))
            self._endpoints[target, path] = endpoint
        return endpoint

    def __repr__(self) -> str:
        return f"<WorkerUpstreams {len(self._channels)} channels>"


def with_port(endpoint: str, port: int) -> str:
    """`host` with the default port, `host:port` as it is; an IPv6 address stands in brackets."""
    _, colon, tail = endpoint.rpartition(":")
    return endpoint if colon and tail.isdigit() and not endpoint.endswith("]") else f"{endpoint}:{port}"
