"""The config sidecar process: `python -m sidecar.config`.

The only process that knows where configs come from. The decisions are the catalog's (what is to be served) and
the activation's (when, and who is told what); here are the socket, the clock, the memory and the disk. One
thread, one uvloop.

The order at an activation: disk, workers, history. What a worker serves is what a new process of the pod starts
from, at whatever moment this one is killed: workers never go back to an older version because of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import uvloop

from shared import logs, process
from shared.board import Board
from shared.cache_memory import SMALLEST, NotACacheError, cache_segment, received_cache
from shared.fd_stream import FdStream
from shared.frames import (
    Activate,
    Cache,
    Connected,
    FrameReader,
    Notice,
    Prepared,
    Retiring,
    Snapshot,
    Subscribe,
)
from shared.publishing import Publisher
from shared.rundir import RunDirError, UnixListener, private_directory
from shared.saved import Documents, SavedError
from shared.sealed import seal
from shared.segments import Segment
from shared.settings import Settings, SettingsError
from sidecar import state
from sidecar.activation import (
    LIMIT,
    Action,
    Activated,
    Activation,
    Announce,
    Forget,
    ImpossibleEventError,
    Overdue,
    Rejected,
    Released,
    Tell,
    Version,
    Waits,
)
from sidecar.admin import Admin
from sidecar.catalog import Catalog, Content
from sidecar.history import History
from sidecar.meters import ConfigMeters
from sidecar.source import CONFIGS, DirectorySource, NotReadYetError, Source, SourceError, Text
from sidecar.steering import Steering

__all__ = ["ConfigSidecar", "main"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)

SOCKET = "config.sock"
MAX_FRAME = 16 << 20  # bytes; PREPARED carries a reason for each config that a worker cannot serve
SHOWN_ERRORS = 20  # of one text, in one log line


_FromWorker: TypeAlias = Subscribe | Prepared | Connected | Retiring | Cache
_FROM_WORKER = (Subscribe, Prepared, Connected, Retiring, Cache)


@dataclass
class _Peer:
    """One connection; a worker from its SUBSCRIBE on."""

    stream: FdStream[_FromWorker]
    worker: int | None = None  # index, as it says itself: for people
    pid: int = 0
    retiring: int = 0  # plans of older versions that its requests still run on


class ConfigSidecar:
    """Everything that the process owns. Belongs to the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: UnixListener,
        source: Source,
        state_dir: Path,
        *,
        check_expressions: bool,
        limit: float = LIMIT,
        cache_bytes: int = 0,
    ) -> None:
        """`limit` is that of Activation; `check_expressions` that of Catalog; `cache_bytes` the size of the
        feature cache that workers are given, 0 for none.

        Raises OSError when the state directory cannot be read.
        """
        self.source = source
        self.source_error = ""
        """Why the source cannot be read now; empty when it can."""
        self.texts: Mapping[str, Text] = {}
        """What the source held when it could be read last."""
        self.revisions: Mapping[str, int] = {}
        self.overdue: Mapping[str, str] = {}
        """Keys whose newest version was not prepared in time: by which workers."""
        self._loop = loop
        self._listener = listener
        self._state_dir = state_dir
        self._documents = Documents(state_dir / "documents")
        self.history = self._remembered()
        restored = self._restore()
        self._tidy(restored.version.content if restored else None)
        self.catalog = Catalog(
            restored.version.content if restored else None,
            judged=restored is not None and restored.judged,
            check_expressions=check_expressions,
        )
        self.activation = Activation(self._still_good(restored.version if restored else None), limit=limit)
        self._peers: dict[int, _Peer] = {}
        self._numbers = itertools.count(1)
        self._memory: dict[int, tuple[int, int]] = {}  # version → (sealed memfd, bytes)
        self._cache_bytes = cache_bytes
        self._cache: Segment | None = None
        self._problems: dict[str, tuple[str, ...]] = {}
        self._is_empty = False  # the source has been read, and has no model config
        self._told = ""  # the notice that workers were told
        self._timers: list[asyncio.TimerHandle] = []

    def __repr__(self) -> str:
        return f"<ConfigSidecar {self.activation!r}, {self.catalog!r}, source {self.source!r}>"

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; then leaves no socket behind."""
        self._loop.add_reader(self._listener.socket, self._accept)
        self.look()
        watching = self._loop.create_task(self._watch())
        stopping = self._loop.create_task(stop.wait())
        try:
            # Watching never ends by itself: if it does, that is an error that must not pass in silence.
            await asyncio.wait([watching, stopping], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            stopping.cancel()
            self._close()

    # --- source

    async def _watch(self) -> None:
        while True:
            await self.source.changed()
            self.look()

    def look(self) -> None:
        """Reads the source and publishes what it holds. A source that is away changes nothing.

        With nothing saved that means nothing to serve, and workers that are not ready: a pod that knows no
        config must not take requests from pods that do.

        A source that has lost all its configs changes nothing either: a store that was wiped and a volume that was
        not mounted look like this, and hardly ever somebody who wants a pod that serves nothing.
        """
        try:
            texts = self.source.read()
        except NotReadYetError:
            return  # not to be taken for a source without configs: word of it is on the way
        except SourceError as error:
            self._source_is_away(str(error))
            return
        active = self.activation.active
        self._is_empty = not any(key.startswith(CONFIGS) for key in texts)
        if active and active.content.configs and self._is_empty:
            place = self.source.place(CONFIGS + "…")
            self._source_is_away(
                f"{place}: there is no model config any more; taken for lost, not for deleted"
            )
            return
        self.texts = texts
        self.revisions = {key: self.source.revision(key) for key in self.texts}
        if self.source_error:
            self.source_error = ""
            log.info("configs can be read again")
        self._tell_notice()
        self.judge()

    def _source_is_away(self, reason: str) -> None:
        if reason != self.source_error:
            self.source_error = reason
            log.error("configs cannot be read; the last good ones are served", extra={"reason": reason})
            self._tell_notice()

    @property
    def notice(self) -> str:
        """What an operator should know of the configs as a whole; usually nothing."""
        if not self.source_error:
            if not self._is_empty:
                return ""
            return (
                f"there is no model config, so every request is refused: {self.source.place(CONFIGS + '…')}"
            )
        what = "there are none yet" if self.activation.active is None else "the last good ones are served"
        return f"configs cannot be read, {what}: {self.source_error}"

    def _tell_notice(self) -> None:
        """Tells the workers, if it is another one than they were told last."""
        if self.notice == self._told:
            return
        self._told = self.notice
        for peer in self._peers.values():
            if peer.worker is not None:
                peer.stream.send(Notice(self.notice).encode())

    def judge(self) -> None:
        """Publishes what the source holds, or what an operator put in its place."""
        texts, revisions = self.history.apply(self.texts, self.revisions)
        content = self.catalog.update(texts, self._loop.time(), revisions)
        self._log_problems()
        self._publish(content)

    def _publish(self, content: Content) -> None:
        self._perform(self.activation.publish(content, time.time_ns() // 1_000_000, self._loop.time()))

    def _log_problems(self) -> None:
        for key, errors in self.catalog.problems.items():
            if self._problems.get(key) != errors:
                fields = {
                    "place": self.source.place(key),
                    "errors": errors[:SHOWN_ERRORS],
                    "count": len(errors),
                }
                log.error("refused; the last good version is served if there is one", extra=fields)
        for key in self._problems.keys() - self.catalog.problems.keys():
            log.info("no longer refused", extra={"place": self.source.place(key)})
        self._problems = dict(self.catalog.problems)

    # --- workers

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.socket.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        self._connect(sock)

    def _connect(self, sock: socket.socket) -> None:
        number = next(self._numbers)
        reader: FrameReader[_FromWorker] = FrameReader(_FROM_WORKER, MAX_FRAME)
        stream = FdStream(
            self._loop,
            sock,
            reader,
            lambda frame: self._heard(number, frame),
            lambda reason: self._lost(number, reason),
        )
        self._peers[number] = _Peer(stream)

    def _heard(self, number: int, frame: _FromWorker) -> None:
        peer = self._peers[number]
        try:
            match frame:
                case Subscribe():
                    actions = self.activation.joined(number, self._loop.time())
                    peer.worker, peer.pid = frame.worker, frame.pid
                    log.info("worker joined", extra=self.who(number))
                    peer.stream.send(Notice(self.notice).encode())
                    self._hand_out_cache(peer)
                case Prepared():
                    self._log_unserved(number, frame)
                    actions = self.activation.prepared(
                        number, frame.version, frame.refused, self._loop.time(), frame.waiting
                    )
                case Connected():
                    actions = self.activation.connected(number, frame.configs)
                case Retiring():
                    peer.retiring = frame.plans
                    return
                case Cache():
                    self._take_cache(peer, frame.size)
                    return
        except ImpossibleEventError as error:
            peer.stream.fail(str(error))
            return
        self._perform(actions)

    def _lost(self, number: int, reason: str) -> None:
        fields = self.who(number)
        peer = self._peers.pop(number)
        if peer.worker is not None:
            log.info("worker left", extra={**fields, "reason": reason})
            self._perform(self.activation.left(number, self._loop.time()))

    @property
    def workers(self) -> tuple[int, ...]:
        """The connections of the workers."""
        return tuple(number for number, peer in self._peers.items() if peer.worker is not None)

    def who(self, number: int) -> dict[str, int | None]:
        """The worker of a connection, for people. Raises KeyError."""
        peer = self._peers[number]
        return {"worker": peer.worker, "worker_pid": peer.pid, "connection": number}

    def retiring(self, number: int) -> int:
        """How many plans of older versions the requests of this connection's worker still run on, as of the last
        second. Raises KeyError."""
        return self._peers[number].retiring

    def _log_unserved(self, number: int, frame: Prepared) -> None:
        for version in (self.activation.active, self.activation.pending):
            if version is not None and version.number == frame.version:
                for name in frame.refused.keys() & version.content.configs.keys():
                    fields = {"version": frame.version, "config": name, "reason": frame.refused[name]}
                    log.error("worker cannot serve a config", extra={**self.who(number), **fields})

    # --- the feature cache: one for the pod, which this process makes or is told of, and never looks into

    def _hand_out_cache(self, peer: _Peer) -> None:
        if not self._cache_bytes:
            return
        if self._cache is None:
            try:
                self._cache = cache_segment(self._cache_bytes)
            except OSError as error:
                log.error("no memory for the feature cache", extra={"reason": str(error)})
                return
        peer.stream.send(Cache(self._cache.size).encode(), self._cache.fd)

    def _take_cache(self, peer: _Peer, size: int) -> None:
        """A worker has one already: from a sidecar before this one, or its own. The first becomes the pod's."""
        fd = peer.stream.take_fd()
        try:
            if self._cache is None and size == max(self._cache_bytes, SMALLEST):
                self._cache = received_cache(fd, size)
        except (NotACacheError, OSError) as error:
            log.error("a worker's feature cache cannot be used", extra={"reason": str(error)})
        finally:
            os.close(fd)

    # --- actions

    def _perform(self, actions: Iterable[Action]) -> None:
        judge_again = False
        activated: list[Activated] = []
        for action in actions:
            match action:
                case Announce(worker, version):
                    fd, length = self._sealed(version)
                    self._peers[worker].stream.send(Snapshot(version.number, length).encode(), fd)
                case Tell(worker, number):
                    self._peers[worker].stream.send(Activate(number).encode())
                case Activated():
                    self._save(action.version)
                    activated.append(action)
                case Rejected(version, reasons):
                    self._reject(version, reasons)
                    judge_again = True
                case Waits(version, reasons):
                    self._hold(version, reasons)
                    judge_again = True
                case Released(names):
                    self._release(names)
                    judge_again = True
                case Overdue(version, workers):
                    self._blame(version, workers)
                case Forget(number):
                    if number in self._memory:
                        os.close(self._memory.pop(number)[0])
        for done in activated:
            self._activated(done.version, done.late)
        if judge_again:
            self.judge()
        if not self.activation.is_overdue:
            self.overdue = {}
        self._set_timers()

    def _sealed(self, version: Version) -> tuple[int, int]:
        """The memfd of a version and its length; made at the first announcement."""
        if version.number not in self._memory:
            document = version.content.encode(version.number)
            fd = seal(f"inferflow-configs-{version.number}", document)
            self._memory[version.number] = fd, len(document)
        return self._memory[version.number]

    def _save(self, version: Version) -> None:
        try:
            state.save(self._state_dir, self._documents, version)
        except OSError as error:
            # Serving goes on; only a restart would not find this version.
            log.error("state cannot be saved", extra={"path": str(self._state_dir), "reason": str(error)})

    def _activated(self, version: Version, late: tuple[int, ...]) -> None:
        content = version.content
        fields = {
            "version": version.number,
            "configs": len(content.configs),
            "kept": sorted(content.kept),
            "waiting": dict(content.waiting),
            "refused": sorted(content.refused),
            "late": [self.who(worker) for worker in late],
        }
        log.info("version active", extra=fields)
        try:
            self.history.record(content, time.time())
            self._documents.keep_only(self.history.digests.union(content.digests.values()))
        except OSError as error:
            log.error("history cannot be saved", extra={"reason": str(error)})

    def _reject(self, version: Version, reasons: Mapping[str, str]) -> None:
        active = self.activation.active
        assert active is not None  # only what is served now can be lost
        log.error(
            "version dropped: workers cannot serve it",
            extra={"version": version.number, "why": dict(reasons)},
        )
        for name, reason in reasons.items():
            self.catalog.reject(name, version.content.fingerprint(name), reason, active.content)

    def _hold(self, version: Version, reasons: Mapping[str, str]) -> None:
        active = self.activation.active
        assert active is not None  # only what is served now can keep its old version
        log.warning(
            "configs keep their old versions until new endpoints answer",
            extra={"version": version.number, "why": dict(reasons)},
        )
        for name, reason in reasons.items():
            self.catalog.hold(name, version.content.fingerprint(name), reason, active.content)

    def _release(self, names: Iterable[str]) -> None:
        for name in names:
            log.info("endpoints of a config answer now", extra={"config": name})
            self.catalog.release(name)

    def _blame(self, version: Version, workers: tuple[int, ...]) -> None:
        """A version was not prepared in time: notes by whom, with everything that is new in it."""
        names = ", ".join(
            f"worker {one['worker']} (pid {one['worker_pid']})" for one in map(self.who, workers)
        )
        why = f"not prepared in {self.activation.limit:g} s by {names}"
        log.error("version is not activated", extra={"version": version.number, "why": why})
        active = self.activation.active
        old = active.content.versions if active else {}
        self.overdue = {key: why for key, one in version.content.versions.items() if old.get(key) != one}

    def _set_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers = []
        if self.activation.due is not None:
            self._timers.append(self._loop.call_at(self.activation.due, self._tick))
        if self.catalog.settles_at is not None:
            self._timers.append(self._loop.call_at(self.catalog.settles_at, self.judge))

    def _tick(self) -> None:
        self._perform(self.activation.tick(self._loop.time()))

    # --- begin and end

    def _restore(self) -> state.Saved | None:
        try:
            return state.load(self._state_dir, self._documents)
        except (SavedError, OSError) as error:
            log.error("saved state is not used", extra={"reason": str(error)})
            return None

    def _remembered(self) -> History:
        try:
            return History(self._state_dir, self._documents)
        except (SavedError, OSError) as error:
            log.error("history is not used", extra={"reason": str(error)})
            return History(self._state_dir, self._documents, fresh=True)

    def _tidy(self, restored: Content | None) -> None:
        """Removes texts that nobody remembers. After this, those of the versions that are forgotten go at once."""
        try:
            self._documents.tidy()
            served = restored.digests.values() if restored else ()
            self._documents.keep_only(self.history.digests.union(served))
        except OSError as error:
            log.error("old texts are not removed", extra={"reason": str(error)})

    def _still_good(self, restored: Version | None) -> Version | None:
        """What was served last, without what is refused by now. Another content gets another number."""
        if restored is None:
            return None
        configs = self.catalog.last.configs
        if configs == restored.content.configs:
            return restored
        return Version(restored.number + 1, replace(restored.content, configs=configs))

    def _close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._loop.remove_reader(self._listener.socket)
        self._listener.socket.close()
        self._listener.remove()
        for peer in self._peers.values():
            peer.stream.close()
        for fd, _ in self._memory.values():
            os.close(fd)


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    logs.log_loop_errors(loop)
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    async with opened(settings) as source:
        sidecar = ConfigSidecar(
            loop,
            UnixListener(private_directory(settings.run_dir) / SOCKET),
            source,
            settings.state_dir,
            check_expressions=not settings.numerix.host,
            cache_bytes=settings.feature_cache_bytes,
        )
        board = Board("config")
        ConfigMeters(board, sidecar, settings.run_dir)
        publisher = Publisher(loop, board, settings)
        publisher.start()
        steering = Steering(sidecar)
        admin = Admin(steering, settings.run_dir)
        await admin.listen(settings.admin_host, settings.admin_port)
        log.info("config sidecar started", extra={"source": repr(source)})
        try:
            async with telling(settings, steering):
                await sidecar.run(stop)
        finally:
            await admin.close()
            publisher.close()
    process.ignore_stops(loop, STOP_SIGNALS)
    log.info("config sidecar stopped")


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Source]:
    """The source that the settings name, while it is used."""
    if not settings.etcd.servers:
        yield DirectorySource(settings.config_dir)
        return
    # Not at the top: gRPC costs 0.2 s and 20 MB, which a pod that reads a directory need not pay.
    from sidecar.etcd import EtcdClient
    from sidecar.etcd_keys import EtcdKeys
    from sidecar.etcd_source import EtcdSource

    client = EtcdClient.from_settings(settings.etcd, failover=False)
    source = EtcdSource(client, EtcdKeys(settings.name), watch=settings.etcd.watch)
    try:
        yield source
    finally:
        await source.close()


@contextlib.asynccontextmanager
async def telling(settings: Settings, steering: Steering) -> AsyncIterator[None]:
    """Writes verdicts to etcd meanwhile, if the settings want it."""
    if not settings.etcd.status_key:
        yield
        return
    from sidecar.etcd import EtcdClient  # not at the top: see `opened`
    from sidecar.verdicts import Verdicts

    folder = f"{settings.etcd.status_key.rstrip('/')}/{socket.gethostname()}"
    verdicts = Verdicts(EtcdClient.from_settings(settings.etcd), folder, steering.items)
    writing = asyncio.get_running_loop().create_task(verdicts.run())
    try:
        yield
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await verdicts.close()


def main() -> None:
    """Runs the process until SIGTERM. Exits with a message when it cannot start."""
    try:
        settings = Settings.from_env(os.environ)
        process.die_with_parent(settings.supervisor_pid)
        process.name("config sidecar")
        process.behind_requests()
        logs.configure("config", settings.log_level)
        uvloop.run(_serve(settings))
    except (SettingsError, RunDirError) as error:
        raise SystemExit(f"config sidecar: {error}") from error


if __name__ == "__main__":
    main()
