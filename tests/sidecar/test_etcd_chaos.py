"""Everything that can happen to etcd and the network, at random and at once: the mirror is right in the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias

import pytest

from sidecar.etcd import EtcdClient, EtcdError
from sidecar.etcd_keys import EtcdKeys
from sidecar.etcd_source import EtcdSource
from sidecar.source import Text
from tests.sidecar.etcd_server import EtcdServer
from tests.sidecar.etcd_support import held, run
from tests.sidecar.fault_proxy import FaultProxy, proxy

KEYS = EtcdKeys("app")
PLACES = [KEYS.place(f"config-map/{number}") for number in range(30)]
PLACES += [KEYS.place(f"expression-config/{number}") for number in range(5)]
PLACES += ["/config/inferflow/services/app/else", "/config/other"]
ROUNDS = 14
FAULTS_IN_A_ROUND = 3


class Writer:
    """Puts and deletes at full speed, straight to etcd; goes on while etcd is away."""

    def __init__(self, server: EtcdServer, dice: random.Random) -> None:
        self._client = EtcdClient([server.address], timeout=2)
        self._dice = dice
        self.acknowledged = 0
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while True:
            number += 1
            place = self._dice.choice(PLACES)
            try:
                if self._dice.random() < 0.2:
                    await self._client.delete(place)
                else:
                    # Long enough now and then for a response to come in fragments.
                    size = 200_000 if self._dice.random() < 0.02 else 20
                    await self._client.put(place, b"%d " % number + bytes(size))
                self.acknowledged += 1
            except EtcdError:
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await self._client.close()


class Sidecar:
    """Follows a source as the config sidecar does, and keeps what it was given last."""

    def __init__(self, source: EtcdSource) -> None:
        self.found: Mapping[str, Text] | str = ""
        self._source = source
        self._looked = asyncio.Event()
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.found = held(self._source)
            self._looked.set()
            await self._source.changed()

    async def until(self, texts: Mapping[str, Text]) -> None:
        """Returns when exactly this is held."""
        while self.found != texts:
            self._looked.clear()
            waiting = asyncio.create_task(self._looked.wait())
            await asyncio.wait({waiting, self._running}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if self._running.done():
                self._running.result()

    async def stop(self) -> None:
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await self._source.close()


Fault: TypeAlias = Callable[[EtcdServer, FaultProxy], Coroutine[Any, Any, None]]


async def cut(_: EtcdServer, network: FaultProxy) -> None:
    network.cut()


async def drop(_: EtcdServer, network: FaultProxy) -> None:
    network.drop()


async def drop_for_a_while(_: EtcdServer, network: FaultProxy) -> None:
    network.drop(new_ones_too=True)
    await asyncio.sleep(0.3)
    network.heal()


async def refuse_for_a_while(_: EtcdServer, network: FaultProxy) -> None:
    await network.refuse()
    await asyncio.sleep(0.2)
    await network.open()


async def compact(server: EtcdServer, _: FaultProxy) -> None:
    await asyncio.to_thread(server.compact)


async def compact_behind_its_back(server: EtcdServer, network: FaultProxy) -> None:
    await network.refuse()
    await asyncio.sleep(0.1)
    await asyncio.to_thread(server.compact)
    await network.open()


async def kill(server: EtcdServer, _: FaultProxy) -> None:
    server.kill()
    await asyncio.to_thread(server.start)


async def wipe(server: EtcdServer, _: FaultProxy) -> None:
    server.kill()
    server.wipe()
    await asyncio.to_thread(server.start)


async def wipe_behind_its_back(server: EtcdServer, network: FaultProxy) -> None:
    """The new store has the old one's cluster id; its revisions may have come further when it is seen."""
    await network.refuse()
    await wipe(server, network)
    await asyncio.sleep(0.5)
    await network.open()


FAULTS: tuple[Fault, ...] = (
    cut,
    drop,
    drop_for_a_while,
    refuse_for_a_while,
    compact,
    compact_behind_its_back,
    kill,
    wipe,
    wipe_behind_its_back,
)


def mirrored(state: Mapping[str, bytes]) -> dict[str, bytes]:
    """What etcd's state is as configs."""
    keys = {place: KEYS.key(place) for place in state}
    return dict(sorted((key, state[place]) for place, key in keys.items() if key is not None))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.full)])
def test_whatever_happens_the_mirror_is_what_etcd_holds(seed: int) -> None:
    """Each fault comes at least once. After each round writing stops, and the states are compared."""

    async def story() -> None:
        dice = random.Random(seed)
        faults = [*FAULTS, *dice.choices(FAULTS, k=ROUNDS * FAULTS_IN_A_ROUND - len(FAULTS))]
        dice.shuffle(faults)
        with EtcdServer() as server:
            server.start()
            async with proxy(server.port) as network:
                client = EtcdClient([network.address, network.address], failover=False, timeout=1)
                sidecar = Sidecar(EtcdSource(client, KEYS, quiet=0.3, answer=0.3))
                acknowledged = 0
                for number in range(ROUNDS):
                    happened = faults[number::ROUNDS]
                    writer = Writer(server, dice)
                    for fault in happened:
                        await asyncio.sleep(dice.uniform(0, 0.2))
                        await fault(server, network)
                    await asyncio.sleep(dice.uniform(0, 0.2))
                    await writer.stop()
                    acknowledged += writer.acknowledged
                    expected = mirrored(await asyncio.to_thread(server.state))
                    names = [fault.__name__ for fault in happened]
                    try:
                        await asyncio.wait_for(sidecar.until(expected), 30)
                    except TimeoutError:
                        pytest.fail(f"after {names}: {different(sidecar.found, expected)}")
                await sidecar.stop()
        assert acknowledged > 500

    run(story(), patience=240)


def different(found: Mapping[str, Text] | str, expected: Mapping[str, Text]) -> str:
    """What differs, in a few words."""
    if isinstance(found, str):
        return found
    keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    return f"{len(keys)} keys differ: {keys[:5]}"
