"""Configs from etcd: a mirror of the keys of one service, kept by watching.

What holds, whatever happens to etcd and to the network:

- **The mirror is what etcd held at one revision** (each watched prefix at one of its own): it is read at one
  revision, and events are applied a whole revision at a time.
- **No event is missed.** Watching begins at the revision after the one that was read, and is resumed at the one
  after the last *event*: the revision in the header of a response may be ahead of events still to come.
- **History is proven, not assumed.** Whenever a watch begins, the keys with their revisions as of where it
  begins are compared with the mirror's. A store that was wiped, restored or exchanged, or whose history is
  compacted, does not stand the comparison, and everything is read again. (One that was filled again with the
  very same keys in the same order while nobody could watch it does: there revisions are all the same.) The watch
  is there before the comparison: if the process at the other end changes in between, the watch breaks.
- **Silence is noticed within 6 s**: a watch on which nothing came for 3 s is asked for a sign of life, and given
  up 3 s later. Then each endpoint is tried in turn, at most 5 s each, after a pause that grows from 0.1 to 5 s
  with every round. When a whole round has failed, `read` says so.

Everything runs inside `changed`: nothing happens in the background, so nobody sees a mirror half changed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple

import orjson

from proto import etcd_pb2 as pb
from sidecar.etcd import EtcdClient, EtcdError, Snapshot, WatchStream, to_text
from sidecar.etcd_keys import EtcdKeys
from sidecar.source import MAX_DOCUMENT_BYTES, SERVICE, NotReadYetError, SourceError, Text, Unreadable

__all__ = ["EtcdSource", "Mirror"]

QUIET: Final = 3.0
"""Seconds without a word after which a watch is asked for a sign of life."""
ANSWER: Final = 3.0
"""Seconds in which a live etcd answers that."""
FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 5.0
"""Seconds between two tries; a random half of it is left out, so that pods do not come back all at once."""
GATHER: Final = 0.01
"""Seconds for which a change waits for another one: a burst of writes is one change."""
MAX_GATHER: Final = 0.1
"""Seconds that a change waits at most."""

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """What one place in etcd holds."""

    key: str  # of the config tree
    place: str
    text: Text
    revision: int


class Mirror:
    """What some prefixes of etcd hold. Pure: snapshots and events go in, texts come out."""

    def __init__(self, keys: EtcdKeys) -> None:
        self.current = False
        """Whether `following` says where to go on; otherwise a snapshot is needed."""
        self.following: dict[str, int] = {}
        """By prefix: the revision from which events are still to come."""
        self.generation = 0
        """Grows with every change of what is held. 0: nothing has been read."""
        self._keys = keys
        self._entries: dict[str, Entry] = {}  # by place
        self._partial: dict[str, list[pb.Event]] = {}  # by prefix: events of a response that is not complete
        self._resolved: tuple[int, dict[str, Entry]] = (0, {})

    def __repr__(self) -> str:
        state = "current" if self.current else "outdated"
        return f"<Mirror of {len(self._entries)} places, {state}, generation {self.generation}>"

    # --- what is held

    def replace(self, snapshot: Snapshot) -> None:
        """Holds this from now on, and nothing else."""
        found = ((place, self._entry(place, *one)) for place, one in snapshot.entries.items())
        entries = {place: entry for place, entry in found if entry is not None}
        if self.generation == 0 or entries != self._entries:
            self.generation += 1
            self._entries = entries
        self.following = dict.fromkeys(self._keys.prefixes, snapshot.revision + 1)
        self.begin()
        self.current = True

    def begin(self) -> None:
        """A new watch: what an old one did not finish will come again."""
        self._partial = {}

    def apply(self, prefix: str, events: Iterable[pb.Event], *, fragment: bool = False) -> None:
        """Events of one watched prefix, in their order. A `fragment` waits for the rest of its response: it may
        end in the middle of a revision."""
        waiting = self._partial.setdefault(prefix, [])
        waiting.extend(events)
        if fragment or not waiting:
            return
        for event in waiting:
            self._apply(event)
        self.following[prefix] = max(self.following[prefix], waiting[-1].kv.mod_revision + 1)
        waiting.clear()

    def _apply(self, event: pb.Event) -> None:
        place = to_text(event.kv.key)
        if event.type == pb.Event.DELETE:
            if self._entries.pop(place, None) is not None:
                self.generation += 1
            return
        entry = self._entry(place, event.kv.value, event.kv.mod_revision)
        if entry is not None:
            self._entries[place] = entry
            self.generation += 1

    def _entry(self, place: str, value: bytes, revision: int) -> Entry | None:
        key = self._keys.key(place)
        if key is None:
            return None
        text: Text = value
        if len(value) > MAX_DOCUMENT_BYTES:
            text = Unreadable(f"is longer than {MAX_DOCUMENT_BYTES} bytes")
        return Entry(key, place, text, revision)

    def agrees(self, prefix: str, revisions: dict[str, int]) -> bool:
        """Whether these mod_revisions by place, as of where the prefix is followed from, are the mirror's."""
        theirs = {place: one for place, one in revisions.items() if self._keys.key(place) is not None}
        ours = {place: one.revision for place, one in self._entries.items() if place.startswith(prefix)}
        return theirs == ours

    # --- what it means

    def texts(self) -> dict[str, Text]:
        """The text of every key of the config tree, in the order of the keys."""
        found = self._by_key()
        fields = {key.removeprefix(f"{SERVICE}/"): one for key, one in found.items() if _is_field(key)}
        texts = {key: one.text for key, one in found.items() if not _is_field(key)}
        if fields:
            texts[SERVICE] = _composed(
                texts.get(SERVICE, b"{}"), {name: one.text for name, one in fields.items()}
            )
        return dict(sorted(texts.items()))

    @property
    def has_fields(self) -> bool:
        """Whether fields of the service config have keys of their own."""
        return any(_is_field(key) for key in self._by_key())

    def find(self, key: str) -> Entry | None:
        """Where the text of a key is from; the newest place when it is from several."""
        found = self._by_key()
        if key != SERVICE:
            return found.get(key)
        own = [one for name, one in found.items() if name == SERVICE or _is_field(name)]
        return max(own, key=lambda one: one.revision, default=None)

    def _by_key(self) -> dict[str, Entry]:
        """Of places that are spelt differently and mean the same key, the one that was written last counts."""
        generation, resolved = self._resolved
        if generation != self.generation:
            resolved = {}
            for one in self._entries.values():
                other = resolved.get(one.key)
                if other is None or one.revision > other.revision:
                    resolved[one.key] = one
            self._resolved = self.generation, resolved
        return resolved


def _is_field(key: str) -> bool:
    return key.startswith(f"{SERVICE}/")


_FIELDS: Final = {
    "v2loggingtype": "v2-logging-type",
    "compressionenabled": "compression-enabled",
    "predatorhosts": "predator-hosts",
}


def _composed(whole: Text, fields: dict[str, Text]) -> Text:
    """The service config whose fields have keys of their own; they count more than the `whole` value.

    A `whole` that cannot be read, or a field, is what is given then: its verdict says what is wrong.
    """
    unreadable = next((text for text in (whole, *fields.values()) if isinstance(text, Unreadable)), None)
    if unreadable is not None or isinstance(whole, Unreadable):
        return unreadable or whole
    try:
        value = orjson.loads(whole)
    except orjson.JSONDecodeError:
        return whole
    if not isinstance(value, dict):
        return whole
    kept = {name: item for name, item in value.items() if name.replace("-", "").lower() not in fields}
    own = {_FIELDS.get(name, name): _field(bytes(text)) for name, text in sorted(fields.items())}  # type: ignore[arg-type]
    return orjson.dumps({**kept, **own})


def _field(text: bytes) -> Any:
    """The value of a field: JSON, or else the text itself (`proto` is written without quotes)."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text.decode("utf-8", "replace")


class EtcdSource:
    """The keys of one service in etcd, as a Source. Belongs to one event loop; `close` it at the end."""

    def __init__(
        self,
        client: EtcdClient,
        keys: EtcdKeys,
        *,
        watch: bool = True,
        quiet: float = QUIET,
        answer: float = ANSWER,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """The client is the source's own from now on. Without `watch`, what is read first holds for ever.

        `quiet`, `answer`: the seconds of QUIET and ANSWER. `sleep` and `jitter` make the pauses between tries.
        """
        self._client = client
        self._keys = keys
        self._watch = watch
        self._quiet, self._answer = quiet, answer
        self._sleep, self._jitter = sleep, jitter
        self._mirror = Mirror(keys)
        self._stream: WatchStream | None = None
        self._live = False  # the stream stands, and its history is proven
        self._failed = 0  # tries since it last did
        self._away: EtcdError | None = None  # why a whole round of endpoints failed
        self._told: tuple[int, EtcdError | None] = (0, None)

    def __repr__(self) -> str:
        state = f"away ({self._away})" if self._away else "live" if self._live else "connecting"
        return f"<EtcdSource {self._client.endpoint} {state}, {self._failed} tries failed, {self._mirror!r}>"

    def read(self) -> dict[str, Text]:
        """The mirror. Raises SourceError while etcd cannot be reached, NotReadYetError before the first try."""
        self._told = self._state()
        if self._away is not None:
            raise SourceError(str(self._away)) from self._away
        if not self._mirror.generation:
            raise NotReadYetError(f"etcd {self._client.endpoint}: not asked yet")
        return self._mirror.texts()

    async def changed(self) -> None:
        """Returns when the mirror has changed since the last `read`, when etcd went away or when it came back."""
        while self._told == self._state():
            try:
                if self._live:
                    await self._follow()
                else:
                    await self._begin()
            except EtcdError as error:
                await self._lost(error)

    def place(self, key: str) -> str:
        """The key in etcd: where it is, or where it would be written."""
        found = self._mirror.find(key)
        return found.place if found else self._keys.place(key)

    def revision(self, key: str) -> int:
        """The mod_revision of the key's text; 0: it is not there."""
        found = self._mirror.find(key)
        return found.revision if found else 0

    async def put(self, key: str, text: bytes, revision: int) -> bool:
        """Writes a text if the key still has this revision (0: is not there). Returns whether it was written.

        Raises SourceError when it is not known whether etcd has it, and for a service config that is kept field
        by field.
        """
        place = self.place(key)
        if key == SERVICE and self._mirror.has_fields:
            raise SourceError(f"{place}: the service config is kept in one key per field; write those")
        try:
            return await self._client.put_if(place, text, revision)
        except EtcdError as error:
            raise SourceError(str(error)) from error

    async def close(self) -> None:
        """Ends the connection to etcd."""
        self._drop()
        await self._client.close()

    def _state(self) -> tuple[int, EtcdError | None]:
        return self._mirror.generation, self._away

    # --- beginning

    async def _begin(self) -> None:
        """Gets the mirror current, and a watch that keeps it so. Raises EtcdError."""
        if self._failed or self._mirror.generation:
            await self._pause()
        if not self._mirror.current:
            self._mirror.replace(await self._client.snapshot(self._keys.prefixes))
        if self._watch:
            await self._open()
        self._live, self._failed, self._away = True, 0, None
        log.info("etcd is read" + (" and followed" if self._watch else ""), extra={"source": repr(self)})

    async def _open(self) -> None:
        self._mirror.begin()
        self._stream = stream = await self._client.watch()
        for prefix, revision in self._mirror.following.items():
            await stream.add(prefix, revision)
        responses = []
        while not stream.settled:
            responses.append(await self._prompt(stream))
        await self._prove()
        for response in responses:
            self._apply(stream, response)

    async def _prove(self) -> None:
        """Compares the mirror with what etcd says it held then. Raises EtcdError, with `lost_history` when that
        is something else."""
        for prefix, following in self._mirror.following.items():
            if not self._mirror.agrees(prefix, await self._client.revisions(prefix, following - 1)):
                reason = f"{prefix} had other keys at revision {following - 1} than were read there: another store?"
                raise EtcdError(self._client.endpoint, "OUT_OF_RANGE", reason)

    async def _prompt(self, stream: WatchStream) -> pb.WatchResponse:
        """What etcd says next, which must be soon. Raises EtcdError."""
        response = await stream.receive(self._answer)
        if response is None:
            reason = f"no word from etcd for {self._answer:g} s"
            raise EtcdError(self._client.endpoint, "DEADLINE_EXCEEDED", reason)
        return response

    async def _pause(self) -> None:
        rounds = self._failed // len(self._client.endpoints)
        longest = min(LAST_PAUSE, FIRST_PAUSE * 2 ** min(rounds, 10))
        await self._sleep(self._jitter(longest / 2, longest))

    # --- following

    async def _follow(self) -> None:
        """Applies what etcd says next, with whatever follows close behind. Raises EtcdError."""
        if self._stream is None:  # read once, as the settings want it
            await asyncio.get_running_loop().create_future()
            return
        stream = self._stream
        response = await stream.receive(self._quiet)
        if response is None:
            await stream.probe()
            response = await self._prompt(stream)
        self._apply(stream, response)
        clock = asyncio.get_running_loop().time
        end = clock() + MAX_GATHER
        while self._told != self._state() and clock() < end:
            response = await stream.receive(GATHER)
            if response is None:
                return
            self._apply(stream, response)

    def _apply(self, stream: WatchStream, response: pb.WatchResponse) -> None:
        if response.events:
            self._mirror.apply(stream.prefix(response), response.events, fragment=response.fragment)

    # --- losing

    async def _lost(self, error: EtcdError) -> None:
        """Decides what the next try is. Whoever was cut off from a live watch is not away yet."""
        was_live = self._live
        self._drop()
        if error.lost_history:
            self._mirror.current = False
            self._failed += not was_live
            log.warning("everything is read again from etcd", extra={"reason": str(error)})
            return
        await self._client.rotate()
        if was_live:
            log.warning("etcd is lost; trying again", extra={"reason": str(error)})
            return
        self._failed += 1
        # While it is away for one reason, how that is put may differ by endpoint: it is told once.
        if self._failed >= len(self._client.endpoints) and (
            self._away is None or self._away.code != error.code
        ):
            self._away = error

    def _drop(self) -> None:
        stream, self._stream, self._live = self._stream, None, False
        if stream is not None:
            stream.cancel()
