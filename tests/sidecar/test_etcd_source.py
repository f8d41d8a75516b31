"""The etcd source when things go wrong: silence, compaction, other stores, endpoints that fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sidecar.etcd import EtcdClient, WatchStream
from sidecar.etcd_keys import EtcdKeys
from sidecar.etcd_source import FIRST_PAUSE, LAST_PAUSE, EtcdSource
from sidecar.source import NotReadYetError, SourceError
from tests.sidecar.etcd_server import EtcdServer, free_port
from tests.sidecar.etcd_support import held, run, until_away, until_held
from tests.sidecar.fault_proxy import proxy

KEYS = EtcdKeys("app")
A, B = KEYS.place("config-map/a"), KEYS.place("config-map/b")


@contextlib.asynccontextmanager
async def source(*addresses: str, user: str = "", **more: Any) -> AsyncIterator[EtcdSource]:
    """A source of these endpoints, closed at the end. It notices silence by itself: pings are far too rare."""
    password = "secret" if user else ""
    client = EtcdClient(addresses, user, password, failover=False, timeout=1, keepalive=1000)
    one = EtcdSource(client, KEYS, **{"quiet": 0.2, "answer": 0.2, **more})
    try:
        yield one
    finally:
        await one.close()


def test_before_the_first_try_it_says_so(etcd: EtcdServer) -> None:
    async def story() -> None:
        async with source(etcd.address) as one:
            with pytest.raises(NotReadYetError):
                one.read()
            await one.changed()
            assert one.read() == {}

    run(story())


def test_places_and_revisions_are_etcds(etcd: EtcdServer) -> None:
    async def story() -> None:
        revision = etcd.put(A, "1")
        other = A.replace("config-map", "configMap")
        async with source(etcd.address) as one:
            await until_held(one, {"config-map/a": b"1"})
            assert (one.place("config-map/a"), one.revision("config-map/a")) == (A, revision)
            assert (one.place("config-map/b"), one.revision("config-map/b")) == (B, 0)
            newer = etcd.put(other, "2")
            await until_held(one, {"config-map/a": b"2"})
            assert (one.place("config-map/a"), one.revision("config-map/a")) == (other, newer)

    run(story())


def test_read_once_is_read_once(etcd: EtcdServer) -> None:
    async def story() -> None:
        etcd.put(A, "1")
        async with source(etcd.address, watch=False) as one:
            await until_held(one, {"config-map/a": b"1"})
            etcd.put(A, "2")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(one.changed(), 0.5)
            assert one.read() == {"config-map/a": b"1"}

    run(story())


def test_read_once_is_tried_until_it_is_read() -> None:
    async def story() -> None:
        with EtcdServer() as server:
            async with source(server.address, watch=False) as one:
                await until_away(one, "UNAVAILABLE")
                await asyncio.to_thread(server.start)
                await until_held(one, {})

    run(story())


def test_one_transaction_is_one_change(etcd: EtcdServer) -> None:
    async def story() -> None:
        etcd.put_all({A: "1", B: "1"})
        async with source(etcd.address) as one:
            await until_held(one, {"config-map/a": b"1", "config-map/b": b"1"})
            for text in ("2", "3", "4"):
                etcd.put_all({A: text, B: text})
                await one.changed()
                found = one.read()
                assert found["config-map/a"] == found["config-map/b"]

    run(story())


def test_a_cancelled_wait_loses_nothing(etcd: EtcdServer) -> None:
    """Whoever waits may give up at any moment, and ask again."""

    async def story() -> None:
        async with source(etcd.address, quiet=0.05) as one:
            expected = {}
            for number in range(60):
                etcd.put(f"{A}{number}", "1")
                expected[f"config-map/a{number}"] = b"1"
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(one.changed(), number / 1000)
            await until_held(one, expected)

    run(story())


# ---------------------------------------------------------------- the network


def test_a_connection_that_is_cut_is_made_again_and_nobody_hears_of_it(etcd: EtcdServer) -> None:
    async def story() -> None:
        async with proxy(etcd.port) as network, source(network.address) as one:
            await until_held(one, {})
            network.cut()
            etcd.put(A, "1")
            await one.changed()
            assert one.read() == {"config-map/a": b"1"}, "the first that was heard is the change"
            assert network.accepted == 2

    run(story())


def test_silence_is_noticed(etcd: EtcdServer) -> None:
    """The connections stay as they are, but nothing comes through; a new one is fine."""

    async def story() -> None:
        async with proxy(etcd.port) as network, source(network.address) as one:
            await until_held(one, {})
            network.drop()
            etcd.put(A, "1")
            await until_held(one, {"config-map/a": b"1"})
            assert network.accepted == 2

    run(story())


def test_silence_that_stays_is_said(etcd: EtcdServer) -> None:
    async def story() -> None:
        async with proxy(etcd.port) as network, source(network.address) as one:
            await until_held(one, {})
            network.drop(new_ones_too=True)
            await until_away(one, network.address)
            etcd.put(A, "1")
            network.heal()
            await until_held(one, {"config-map/a": b"1"})

    run(story())


def test_a_quiet_watch_is_asked_for_signs_of_life_and_kept(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing happens for many times as long as silence is put up with: the connection is still the first."""
    asked = 0
    probe = WatchStream.probe

    async def counted(stream: WatchStream) -> None:
        nonlocal asked
        asked += 1
        await probe(stream)

    async def story() -> None:
        monkeypatch.setattr(WatchStream, "probe", counted)
        async with proxy(etcd.port) as network, source(network.address, quiet=0.02) as one:
            await until_held(one, {})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(one.changed(), 1)
            assert network.accepted == 1
            assert asked > 1
            assert "live" in repr(one)

    run(story())


def test_other_endpoints_are_tried_before_etcd_counts_as_away(etcd: EtcdServer) -> None:
    async def story() -> None:
        async with proxy(etcd.port) as network:
            dead = f"127.0.0.1:{free_port()}"
            async with source(dead, network.address, etcd.address) as one:
                await one.changed()
                assert one.read() == {}
                await network.refuse()
                etcd.put(A, "1")
                await one.changed()
                assert one.read() == {"config-map/a": b"1"}

    run(story())


def test_pauses_grow_to_five_seconds_and_are_told_once() -> None:
    async def story() -> None:
        pauses: list[float] = []
        enough = asyncio.Event()

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) >= 20:
                enough.set()
                await asyncio.get_running_loop().create_future()

        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        async with source(*addresses, sleep=sleep, jitter=lambda low, high: high) as one:
            await one.changed()
            assert "UNAVAILABLE" in str(held(one))
            trying = asyncio.create_task(one.changed())
            await enough.wait()
            assert not trying.done(), "the same reason was told again"
            trying.cancel()
        assert pauses[:5] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 4 * FIRST_PAUSE]
        assert pauses[-1] == max(pauses) == LAST_PAUSE

    run(story())


def test_who_may_not_read_is_told_so_and_tried_again() -> None:
    async def story() -> None:
        with EtcdServer() as server:
            server.start()
            server.put(A, "1")
            server.call("auth/role/add", name="root")
            for user in ("root", "pod"):
                server.call("auth/user/add", name=user, password="secret")
            server.call("auth/user/grant", user="root", role="root")
            server.call("auth/enable")
            async with source(server.address, user="pod") as one:
                await until_away(one, "PERMISSION_DENIED")
                token = server.call("auth/authenticate", name="root", password="secret")["token"]
                server.call("auth/role/add", token=token, name="reader")
                ends = [(prefix, prefix[:-1] + "0") for prefix in KEYS.prefixes]
                for key, end in ends:
                    coded = [base64.b64encode(text.encode()).decode() for text in (key, end)]
                    perm = {"permType": "READ", "key": coded[0], "range_end": coded[1]}
                    server.call("auth/role/grant", token=token, name="reader", perm=perm)
                server.call("auth/user/grant", token=token, user="pod", role="reader")
                await until_held(one, {"config-map/a": b"1"})
                with pytest.raises(SourceError, match="PERMISSION_DENIED"):
                    await one.put("config-map/a", b"2", one.revision("config-map/a"))

    run(story())


# ---------------------------------------------------------------- history


def test_history_that_was_compacted_meanwhile_is_not_needed(etcd: EtcdServer) -> None:
    async def story() -> None:
        etcd.put(A, "1")
        etcd.put(B, "1")
        async with proxy(etcd.port) as network, source(network.address) as one:
            await until_held(one, {"config-map/a": b"1", "config-map/b": b"1"})
            await network.refuse()
            etcd.delete(A)
            etcd.put(B, "2")
            etcd.compact()
            await network.open()
            await until_held(one, {"config-map/b": b"2"})

    run(story())


def test_a_store_that_was_wiped_replaces_everything() -> None:
    async def story() -> None:
        with EtcdServer() as server:
            server.start()
            server.put_all({A: "1", B: "1"})
            async with source(server.address) as one:
                await until_held(one, {"config-map/a": b"1", "config-map/b": b"1"})
                server.kill()
                server.wipe()
                await asyncio.to_thread(server.start)
                await until_held(one, {})
                server.put(B, "2")
                await until_held(one, {"config-map/b": b"2"})

    run(story())


def test_another_store_that_has_come_further_is_not_taken_for_the_same() -> None:
    """It has the same cluster id, and the revision that the watch would go on from: only its keys differ."""

    async def story() -> None:
        with EtcdServer() as server:
            server.start()
            async with proxy(server.port) as network, source(network.address) as one:
                server.put(A, "1")
                await until_held(one, {"config-map/a": b"1"})
                await network.refuse()
                server.kill()
                server.wipe()
                await asyncio.to_thread(server.start)
                for _ in range(5):
                    server.put(B, "2")
                await network.open()
                await until_held(one, {"config-map/b": b"2"})

    run(story())


# ---------------------------------------------------------------- service config


def test_a_service_config_in_fields_is_read_but_not_written_as_one(etcd: EtcdServer) -> None:
    async def story() -> None:
        place = KEYS.place("service-config")
        etcd.put(f"{place}/v2-logging-type", "proto")
        async with source(etcd.address) as one:
            await until_held(one, {"service-config": b'{"v2-logging-type":"proto"}'})
            with pytest.raises(SourceError, match="one key per field"):
                await one.put("service-config", b"{}", one.revision("service-config"))

    run(story())
