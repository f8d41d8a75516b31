"""A small client of etcd v3: reads, compare-and-swap writes and watches, over grpc.aio.

Only what the config sidecar and the `inferflow config` commands need. A client talks to one endpoint at a time
and goes on to the next when that one fails; each connection is a new channel, because gRPC itself would go on
using a TCP connection that has silently died until its own pings miss it.

Belongs to one event loop. All calls of a client share its connection: when one gives it up, the others fail too.
Every failure is an EtcdError; nothing of gRPC gets out of here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Self, TypeAlias, cast

import grpc
import grpc.aio

from proto import etcd_pb2 as pb
from shared.settings import EtcdSettings

__all__ = ["Endpoint", "EtcdClient", "EtcdError", "EtcdTls", "Found", "Snapshot", "WatchStream"]

DEFAULT_PORT: Final = 2379
TIMEOUT: Final = 5.0
"""Seconds for one call, connecting included; also for what a live server says at once in a watch."""
KEEPALIVE: Final = 10.0
"""Seconds between pings while a call is on: with the 5 s for the answer, the second line of defence against a
connection that has silently died. etcd ends connections that ping more often than every 5 s."""

_MAX_MESSAGE: Final = 64 << 20  # bytes; etcd takes values of 1.5 MB unless it is told otherwise
_PAGE_BYTES: Final = (
    1 << 20
)  # what a page of a long range should have; with 4 MB, 200 MB took a quarter longer
_FIRST_PAGE: Final = 16  # keys; how long values are is not known yet
_MAX_PAGE: Final = 5000  # keys; also of a page without values

_OPTIONS: Final = (
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The window of a stream: with the default, a long range takes twice as long.
    ("grpc.http2.lookahead_bytes", 8 << 20),
    # A new channel must be a new connection, not one that another channel has.
    ("grpc.use_local_subchannel_pool", 1),
    # Trying again is decided here, where it is known what may be sent twice.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # A proxy that is meant for the outside must not see the configs.
    ("grpc.enable_http_proxy", 0),
)

Metadata: TypeAlias = tuple[tuple[str, str], ...]


class EtcdError(Exception):
    """A call or a watch that failed; the text names the endpoint, the status and etcd's reason.

    `code` is the name of the gRPC status. `retriable`: another try, perhaps at another endpoint, may succeed.
    `outdated_login`: the token was not taken. `lost_history`: the revision asked for is compacted, or has not
    been reached in this store: what was read before no longer connects to what is there now.
    """

    def __init__(self, endpoint: str, code: str, reason: str) -> None:
        super().__init__(f"etcd {endpoint}: {code}: {reason}")
        self.code = code
        self.reason = reason

    @property
    def retriable(self) -> bool:
        return self.code in _RETRIABLE

    @property
    def outdated_login(self) -> bool:
        # Users and roles changed since the log-in: etcd has no status of its own for it.
        return self.code == "UNAUTHENTICATED" or "revision of auth store is old" in self.reason

    @property
    def lost_history(self) -> bool:
        return self.code == "OUT_OF_RANGE"


_RETRIABLE: Final = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL", "ABORTED"}
)


class Found(NamedTuple):
    """The value of a key, and the store's revision at which it was written."""

    value: bytes
    mod_revision: int


class Snapshot(NamedTuple):
    """What some ranges held at one revision. Keys in the order of the ranges, then of their bytes."""

    revision: int
    entries: dict[str, Found]


@dataclass(frozen=True, kw_only=True)
class EtcdTls:
    """PEM files for the connection to etcd. They are read at every connection, so that they may be renewed."""

    ca: Path | None = None
    """Authorities that etcd's certificate is verified with; None: those that gRPC ships."""
    cert: Path | None = None
    key: Path | None = None
    """Both or neither: the certificate that etcd is shown (mTLS)."""


class Endpoint(NamedTuple):
    """One address of etcd."""

    target: str
    """`host:port`"""
    tls: bool

    @classmethod
    def parse(cls, text: str, *, tls: bool) -> Endpoint:
        """`host`, `host:port`, `http://…` or `https://…`; `tls` holds where no scheme is written.

        Raises ValueError for anything else.
        """
        scheme, found, rest = text.rpartition("://")
        target = rest.rstrip("/")
        if scheme.lower() not in ("", "http", "https") or not target or set(target) & set("/?#@ "):
            raise ValueError(f"{text!r}: expected host:port, http://host:port or https://host:port")
        last = target.rpartition("]")[2] if target.startswith("[") else target
        if ":" not in last:
            target = f"{target}:{DEFAULT_PORT}"
        return cls(target, scheme.lower() == "https" if found else tls)


def to_bytes(key: str) -> bytes:
    """A key as etcd has it. Keys that are no UTF-8 come and go as surrogates."""
    return key.encode("utf-8", "surrogateescape")


def to_text(key: bytes) -> str:
    """The reverse of `to_bytes`."""
    return key.decode("utf-8", "surrogateescape")


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that start with a prefix, which must not be all 0xff; etcd's way to name a range."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,))


class EtcdClient:
    """One caller's way to an etcd cluster. Nothing is connected before the first call."""

    def __init__(
        self,
        endpoints: Sequence[str],
        username: str = "",
        password: str = "",
        tls: EtcdTls | None = None,
        *,
        failover: bool = True,
        timeout: float = TIMEOUT,
        keepalive: float = KEEPALIVE,
        max_message: int = _MAX_MESSAGE,
    ) -> None:
        """`endpoints` as Endpoint.parse reads them, tried in their order. An empty `username`: no log-in.

        With `tls`, endpoints without a scheme use it too. With `failover`, a call that fails goes on to the
        next endpoint by itself; otherwise it is the caller who decides, and calls `rotate`. `timeout` in
        seconds for one call, `keepalive` in seconds between pings; `max_message` in bytes, the longest answer
        that is taken. Raises ValueError for endpoints that cannot be used.
        """
        if not endpoints:
            raise ValueError("etcd: no endpoint is given")
        self._endpoints = tuple(Endpoint.parse(text, tls=tls is not None) for text in endpoints)
        self._at = 0
        self._tries = len(self._endpoints) if failover else 1
        self._username, self._password = username, password
        self._token: str | None = None
        self._tls = tls or EtcdTls()
        self._timeout = timeout
        self._options = (
            *_OPTIONS,
            ("grpc.keepalive_time_ms", int(1000 * keepalive)),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.max_receive_message_length", max_message),
        )
        self._channel: grpc.aio.Channel | None = None

    @classmethod
    def from_settings(cls, settings: EtcdSettings, *, failover: bool = True) -> Self:
        """A client of the etcd that the settings name. Raises ValueError when they name none."""
        tls = None
        if settings.ca is not None or settings.cert is not None:
            tls = EtcdTls(ca=settings.ca, cert=settings.cert, key=settings.key)
        return cls(settings.servers, settings.username, settings.password, tls, failover=failover)

    def __repr__(self) -> str:
        state = "open" if self._channel else "not connected"
        return f"<EtcdClient {self.endpoint} {state}, {self._at + 1} of {len(self._endpoints)} endpoints>"

    @property
    def endpoint(self) -> str:
        """`host:port` of the endpoint in use."""
        return self._endpoints[self._at].target

    @property
    def endpoints(self) -> tuple[str, ...]:
        """All endpoints, `host:port`."""
        return tuple(endpoint.target for endpoint in self._endpoints)

    async def close(self) -> None:
        """Ends the connection. The next call would open another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def rotate(self) -> None:
        """Ends the connection; the next call goes to the next endpoint, over a new one."""
        self._at = (self._at + 1) % len(self._endpoints)
        await self.close()

    # --- reading

    async def get(self, key: str) -> Found | None:
        """The value of a key now; None when there is none. Raises EtcdError."""
        answer = await self._call("KV/Range", pb.RangeRequest(key=to_bytes(key)), pb.RangeResponse)
        return _found(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str) -> dict[str, Found]:
        """Every key that starts with `prefix`, at one revision, in the order of the keys. Raises EtcdError."""
        return (await self.snapshot([prefix])).entries

    async def snapshot(self, prefixes: Sequence[str]) -> Snapshot:
        """Every key that starts with one of `prefixes` (at least one), at one revision. Raises EtcdError.

        Long ranges come in pages of about a megabyte. `lost_history` when the revision was compacted meanwhile.
        """
        revision = 0
        entries: dict[str, Found] = {}
        for prefix in prefixes:
            async for page in self._pages(prefix, revision):
                revision = revision or page.header.revision
                entries.update((to_text(one.key), _found(one)) for one in page.kvs)
        return Snapshot(revision, entries)

    async def revisions(self, prefix: str, revision: int) -> dict[str, int]:
        """The mod_revision of every key that starts with `prefix`, as of `revision` (1 or more).

        Raises EtcdError, with `lost_history` when the store does not know that revision.
        """
        pages = self._pages(prefix, revision, keys_only=True)
        return {to_text(one.key): one.mod_revision async for page in pages for one in page.kvs}

    async def _pages(
        self, prefix: str, revision: int, *, keys_only: bool = False
    ) -> AsyncIterator[pb.RangeResponse]:
        """A range in pages, all at one revision (0: the newest when the first page is read)."""
        key, end = to_bytes(prefix), prefix_end(to_bytes(prefix))
        limit = _MAX_PAGE if keys_only else _FIRST_PAGE
        while True:
            request = pb.RangeRequest(
                key=key, range_end=end, limit=limit, revision=revision, keys_only=keys_only
            )
            try:
                page = await self._call("KV/Range", request, pb.RangeResponse)
            except EtcdError as error:
                if error.code != "RESOURCE_EXHAUSTED" or limit == 1:
                    raise
                limit = max(1, limit // 4)  # longer than a message may be: fewer keys
                continue
            yield page
            if not page.more:
                return
            revision = revision or page.header.revision
            key = page.kvs[-1].key + b"\0"
            fitting = limit * _PAGE_BYTES // max(1, page.ByteSize())
            limit = min(max(1, fitting), 4 * limit, _MAX_PAGE)

    # --- writing

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Writes a value, whatever was there; it goes with its `lease` (0: it stays). Returns the revision of the
        write. Raises EtcdError."""
        request = pb.PutRequest(key=to_bytes(key), value=value, lease=lease)
        return int((await self._call("KV/Put", request, pb.PutResponse)).header.revision)

    async def delete(self, key: str) -> bool:
        """Deletes a key; whether there was one. Raises EtcdError."""
        request = pb.DeleteRangeRequest(key=to_bytes(key))
        return bool((await self._call("KV/DeleteRange", request, pb.DeleteRangeResponse)).deleted)

    async def put_if(self, key: str, value: bytes, mod_revision: int) -> bool:
        """Writes a value if the key was last written at `mod_revision` (0: if there is no such key).

        Returns whether it did; when not, somebody else wrote in between. Raises EtcdError: then the value
        may have been written or not.
        """
        raw = to_bytes(key)
        request = pb.TxnRequest(
            compare=[
                pb.Compare(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=raw, mod_revision=mod_revision)
            ],
            success=[pb.RequestOp(request_put=pb.PutRequest(key=raw, value=value))],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=raw))],
        )
        tries = 0

        def counted() -> None:
            nonlocal tries
            tries += 1

        answer = await self._call("KV/Txn", request, pb.TxnResponse, before=counted)
        if answer.succeeded or tries == 1:
            return bool(answer.succeeded)
        # An earlier try may have written although its answer was lost: then this is our own value.
        current = answer.responses[0].response_range.kvs
        return bool(current) and current[0].value == value and current[0].mod_revision > mod_revision

    # --- leases

    async def grant_lease(self, seconds: int) -> int:
        """A new lease. Keys written with it go when it is not kept for so long. Raises EtcdError."""
        answer = await self._call(
            "Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=seconds), pb.LeaseGrantResponse
        )
        return int(answer.ID)

    async def keep_lease(self, lease: int) -> bool:
        """Lets a lease live on from now; False when it is over. Raises EtcdError."""
        endpoint = self.endpoint
        metadata = await self._metadata()
        call = self._connected().stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )(_only(pb.LeaseKeepAliveRequest(ID=lease)), timeout=self._timeout, metadata=metadata)
        try:
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            translated = _translated(endpoint, error)
            if translated.outdated_login:
                self._forget_login()
            raise translated from error
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise EtcdError(endpoint, "UNAVAILABLE", "etcd did not say whether the lease lives on")
        return bool(answer.TTL > 0)

    # --- watching

    async def watch(self) -> WatchStream:
        """A new stream of events from the endpoint in use. Raises EtcdError."""
        metadata = await self._metadata()
        channel = self._connected()
        call = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )(metadata=metadata)
        return WatchStream(call, self.endpoint, self._timeout, self._forget_login)

    # --- calls

    async def _call(
        self, method: str, request: Any, response: Any, *, before: Callable[[], None] = lambda: None
    ) -> Any:
        """The answer of the first endpoint that gives one; each is tried once, with failover. Raises EtcdError."""
        for _ in range(self._tries - 1):
            try:
                before()
                return await self._logged_in(method, request, response)
            except EtcdError as error:
                if not error.retriable:
                    raise
                await self.rotate()
        before()
        return await self._logged_in(method, request, response)

    async def _logged_in(self, method: str, request: Any, response: Any) -> Any:
        """One call; when the token is not taken any more, one more after another log-in."""
        try:
            return await self._ask(method, request, response, await self._metadata())
        except EtcdError as error:
            if not (self._username and error.outdated_login):
                raise
        self._forget_login()
        return await self._ask(method, request, response, await self._metadata())

    async def _metadata(self) -> Metadata:
        # A member that has lost the others says so instead of answering from the past.
        leader = ("hasleader", "true")
        if not self._username:
            return (leader,)
        if self._token is None:
            self._token = await self._log_in(leader)
        return (leader, ("token", self._token)) if self._token else (leader,)

    async def _log_in(self, leader: tuple[str, str]) -> str:
        """The token for the next calls; empty when etcd does not ask who is calling."""
        request = pb.AuthenticateRequest(name=self._username, password=self._password)
        try:
            answer = await self._ask("Auth/Authenticate", request, pb.AuthenticateResponse, (leader,))
        except EtcdError as error:
            if error.code == "FAILED_PRECONDITION" and "authentication is not enabled" in error.reason:
                return ""
            raise
        return cast(str, answer.token)

    def _forget_login(self) -> None:
        self._token = None

    async def _ask(self, method: str, request: Any, response: Any, metadata: Metadata) -> Any:
        endpoint = self.endpoint
        call = self._connected().unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            return await call(request, timeout=self._timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(endpoint, error) from error
        except asyncio.CancelledError:
            # gRPC says the same when the channel is closed under a call and when the caller is cancelled.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise EtcdError(endpoint, "CANCELLED", "the connection was given up meanwhile") from None

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            endpoint = self._endpoints[self._at]
            if endpoint.tls:
                credentials = self._credentials()
                self._channel = grpc.aio.secure_channel(endpoint.target, credentials, options=self._options)
            else:
                self._channel = grpc.aio.insecure_channel(endpoint.target, options=self._options)
        return self._channel

    def _credentials(self) -> grpc.ChannelCredentials:
        def pem(path: Path | None) -> bytes | None:
            try:
                return path.read_bytes() if path else None
            except OSError as error:
                # Not retriable at another endpoint, but a later try may find the file.
                raise EtcdError(self.endpoint, "FAILED_PRECONDITION", f"{path}: {error.strerror}") from error

        return grpc.ssl_channel_credentials(pem(self._tls.ca), pem(self._tls.key), pem(self._tls.cert))


class WatchStream:
    """One watch stream and its ranges. After any EtcdError it is over: `cancel` it and open another."""

    def __init__(self, call: Any, endpoint: str, timeout: float, forget_login: Callable[[], None]) -> None:
        """Made by EtcdClient.watch; `timeout` in seconds for a request to go out."""
        self._call = call
        self._endpoint = endpoint
        self._timeout = timeout
        self._forget_login = forget_login
        self._reading: asyncio.Task[Any] | None = None
        self._asked: deque[str] = (
            deque()
        )  # prefixes whose watch is not confirmed; etcd does so in their order
        self._prefixes: dict[int, str] = {}  # by watch id

    def __repr__(self) -> str:
        return f"<WatchStream {self._endpoint}: {len(self._prefixes)} watched, {len(self._asked)} asked>"

    @property
    def settled(self) -> bool:
        """Whether every range that was asked for is being watched."""
        return not self._asked

    async def add(self, prefix: str, revision: int) -> None:
        """Asks for every event of the keys that start with `prefix`, from `revision` on. Raises EtcdError."""
        key = to_bytes(prefix)
        self._asked.append(prefix)
        request = pb.WatchCreateRequest(
            key=key, range_end=prefix_end(key), start_revision=revision, progress_notify=True, fragment=True
        )
        await self._send(pb.WatchRequest(create_request=request))

    async def probe(self) -> None:
        """Asks for any answer at all. Raises EtcdError."""
        await self._send(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    async def receive(self, within: float) -> pb.WatchResponse | None:
        """What etcd says next; None when it says nothing for `within` seconds.

        A confirmed range, a progress report and the answer to a probe have no events. Raises EtcdError, with
        `lost_history` when events are missing for ever because they were compacted.
        """
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        # Neither the end of the wait nor a cancelled caller may cancel the reading: gRPC would end the stream.
        done, _ = await asyncio.wait({self._reading}, timeout=within)
        if not done:
            return None
        reading, self._reading = self._reading, None
        return self._checked(self._read(reading))

    def prefix(self, response: pb.WatchResponse) -> str:
        """The range that a response with events is about."""
        return self._prefixes[response.watch_id]

    def cancel(self) -> None:
        """Ends the stream, if it has not ended."""
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()

    async def _send(self, request: pb.WatchRequest) -> None:
        try:
            await asyncio.wait_for(self._call.write(request), self._timeout)
        except TimeoutError:
            self._fail("DEADLINE_EXCEEDED", f"the request could not be sent within {self._timeout:g} s")
        except asyncio.InvalidStateError as error:
            self._fail("UNAVAILABLE", f"the watch has ended: {error}")
        except grpc.aio.AioRpcError as error:
            raise self._broken(error) from error

    def _read(self, reading: asyncio.Task[Any]) -> pb.WatchResponse:
        if reading.cancelled():
            self._fail("CANCELLED", "the watch was cancelled")
        try:
            response = reading.result()
        except grpc.aio.AioRpcError as error:
            raise self._broken(error) from error
        if response is grpc.aio.EOF:
            self._fail("UNAVAILABLE", "etcd ended the watch")
        return cast(pb.WatchResponse, response)

    def _checked(self, response: pb.WatchResponse) -> pb.WatchResponse:
        if response.canceled:
            if response.compact_revision:
                self._fail("OUT_OF_RANGE", f"history is compacted up to revision {response.compact_revision}")
            # An outdated token is said to lack permission: the next stream shows which it is.
            self._forget_login()
            self._fail("CANCELLED", response.cancel_reason or "etcd cancelled the watch")
        if response.created:
            self._prefixes[response.watch_id] = self._asked.popleft()
        return response

    def _broken(self, error: grpc.aio.AioRpcError) -> EtcdError:
        translated = _translated(self._endpoint, error)
        if translated.outdated_login:
            self._forget_login()
        return translated

    def _fail(self, code: str, reason: str) -> NoReturn:
        raise EtcdError(self._endpoint, code, reason)


async def _only(request: Any) -> AsyncIterator[Any]:
    yield request


def _found(one: pb.KeyValue) -> Found:
    return Found(one.value, one.mod_revision)


def _translated(endpoint: str, error: grpc.aio.AioRpcError) -> EtcdError:
    return EtcdError(endpoint, error.code().name, error.details() or "no reason given")
