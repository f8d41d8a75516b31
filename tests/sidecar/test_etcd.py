"""The etcd client against a real etcd: reads, writes, log-ins, TLS, endpoints that fail."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings import EtcdSettings
from sidecar.etcd import Endpoint, EtcdClient, EtcdError, EtcdTls, Found, prefix_end, to_bytes, to_text
from tests.rpc.support import Certificates, make_certificates
from tests.sidecar.etcd_server import EtcdServer, free_port
from tests.sidecar.etcd_support import run
from tests.sidecar.fault_proxy import proxy

KEY = "/config/a"


# ---------------------------------------------------------------- without etcd


@pytest.mark.parametrize(
    ("text", "tls", "expected"),
    [
        ("a", False, ("a:2379", False)),
        ("a:1", True, ("a:1", True)),
        ("http://a:1/", True, ("a:1", False)),
        ("HTTPS://a", False, ("a:2379", True)),
        ("[::1]", False, ("[::1]:2379", False)),
        ("https://[::1]:1", False, ("[::1]:1", True)),
    ],
)
def test_endpoints(text: str, tls: bool, expected: tuple[str, bool]) -> None:
    assert Endpoint.parse(text, tls=tls) == expected


@pytest.mark.parametrize("text", ["", "ftp://a", "http://", "a/b", "http://a b", "http://user@a"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        Endpoint.parse(text, tls=False)


def test_a_client_needs_an_endpoint() -> None:
    with pytest.raises(ValueError, match="no endpoint"):
        EtcdClient([])


def test_a_client_is_made_from_settings() -> None:
    settings = EtcdSettings(servers=("a", "http://b:1"), username="u", ca=Path("ca.pem"))
    one = EtcdClient.from_settings(settings)
    assert one.endpoints == ("a:2379", "b:1")
    assert repr(one) == "<EtcdClient a:2379 not connected, 1 of 2 endpoints>"


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"/a/", b"/a0"), (b"a\xff", b"b"), (b"a\xfe\xff\xff", b"a\xff")]
)
def test_a_prefix_ends_before_the_next_key(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


def test_keys_that_are_no_text_survive() -> None:
    assert to_bytes(to_text(b"/a\xff\xc3\xa4")) == b"/a\xff\xc3\xa4"


def test_an_etcd_that_is_not_there() -> None:
    async def story() -> None:
        address = f"127.0.0.1:{free_port()}"
        one = EtcdClient([address])
        for attempt in (one.get(KEY), one.range("/"), one.put_if(KEY, b"1", 0)):
            with pytest.raises(EtcdError, match=f"^etcd {address}: UNAVAILABLE: ") as caught:
                await attempt
            assert caught.value.retriable
        await one.close()

    run(story())


def test_a_certificate_file_that_is_missing(tmp_path: Path) -> None:
    async def story() -> None:
        one = EtcdClient(["https://127.0.0.1"], tls=EtcdTls(ca=tmp_path / "ca.pem"))
        with pytest.raises(EtcdError, match=r"ca\.pem: No such file"):
            await one.get(KEY)

    run(story())


# ---------------------------------------------------------------- reads and writes


def test_a_value_is_written_only_over_the_revision_that_was_read(etcd: EtcdServer) -> None:
    async def story() -> None:
        one = EtcdClient([etcd.address])
        assert await one.get(KEY) is None
        assert await one.put_if(KEY, b"1", 0)
        assert not await one.put_if(KEY, b"2", 0)
        found = await one.get(KEY)
        assert found is not None
        assert found.value == b"1"
        assert await one.put_if(KEY, b"3", found.mod_revision)
        assert not await one.put_if(KEY, b"3", found.mod_revision)
        revision = await one.put(KEY, b"4")
        assert await one.get(KEY) == Found(b"4", revision)
        assert await one.delete(KEY)
        assert not await one.delete(KEY)
        assert not await one.put_if(KEY, b"5", revision)
        await one.close()
        assert await one.range("/") == {}  # a closed client connects again
        await one.close()

    run(story())


def test_a_range_is_what_starts_with_the_prefix(etcd: EtcdServer) -> None:
    async def story() -> None:
        for key in ("/a", "/a/1", "/a/2", "/a0", "/b/1"):
            etcd.put(key, key)
        one = EtcdClient([etcd.address])
        assert [(key, found.value) for key, found in (await one.range("/a/")).items()] == [
            ("/a/1", b"/a/1"),
            ("/a/2", b"/a/2"),
        ]
        snapshot = await one.snapshot(["/b/", "/a/"])
        assert list(snapshot.entries) == ["/b/1", "/a/1", "/a/2"]
        assert snapshot.revision == etcd.revision()
        before = snapshot.revision - 1
        assert await one.revisions("/", before) == {
            key: found.mod_revision for key, found in (await one.range("/a")).items()
        }
        with pytest.raises(EtcdError) as caught:
            await one.revisions("/", snapshot.revision + 100)
        assert caught.value.lost_history
        await one.close()

    run(story())


@pytest.mark.parametrize("max_message", [1 << 20, 64 << 20])
def test_long_ranges_come_in_pages_of_one_revision(etcd: EtcdServer, max_message: int) -> None:
    """20 MB of values of most different lengths, through messages of 1 MB too, while others write."""

    async def story() -> None:
        writer = EtcdClient([etcd.address])
        for number in range(120):
            await writer.put(f"/k/{number:04}", bytes(340_000 if number % 2 else number))
        reader = EtcdClient([etcd.address], max_message=max_message)

        async def write() -> None:
            for number in range(120, 400):
                await writer.put("/k/0119", b"late")
                await writer.put(f"/k/{number:04}", b"late")

        writing = asyncio.create_task(write())
        for _ in range(3):
            snapshot = await reader.snapshot(["/k/"])
            assert snapshot.revision == max(found.mod_revision for found in snapshot.entries.values())
            assert len(snapshot.entries) >= 120
        await writing
        assert len(await reader.range("/k/")) == 400
        await reader.close()
        await writer.close()

    run(story())


def test_a_value_that_is_too_long_for_a_message_is_an_error(etcd: EtcdServer) -> None:
    async def story() -> None:
        etcd.put("/k/1", bytes(200_000))
        one = EtcdClient([etcd.address], max_message=100_000)
        with pytest.raises(EtcdError, match="RESOURCE_EXHAUSTED"):
            await one.range("/k/")
        await one.close()

    run(story())


# ---------------------------------------------------------------- endpoints that fail


def test_a_call_goes_on_to_the_next_endpoint_and_stays_there(etcd: EtcdServer) -> None:
    async def story() -> None:
        dead = f"127.0.0.1:{free_port()}"
        one = EtcdClient([dead, etcd.address, dead])
        etcd.put(KEY, "1")
        assert await one.get(KEY) is not None
        assert one.endpoint == etcd.address
        single = EtcdClient([dead, etcd.address], failover=False)
        with pytest.raises(EtcdError, match=dead):
            await single.get(KEY)
        await single.rotate()
        assert await single.get(KEY) is not None
        await one.close()
        await single.close()

    run(story())


def test_a_write_whose_answer_was_lost_is_recognised_as_our_own(etcd: EtcdServer) -> None:
    async def story() -> None:
        async with proxy(etcd.port) as network:
            one = EtcdClient([network.address, etcd.address], timeout=0.5)
            network.muted = True
            # The first endpoint never gets as far as a call: nothing is written there.
            assert await one.put_if(KEY, b"1", 0)
            await one.close()
            network.muted = False
            one = EtcdClient([network.address, etcd.address], timeout=0.5)
            found = await one.get(KEY)
            assert found is not None
            network.muted = True
            assert await one.put_if(KEY, b"2", found.mod_revision)
            assert one.endpoint == etcd.address
            assert etcd.state()[KEY] == b"2"
            assert etcd.revision() == found.mod_revision + 1, "it was written twice"
            await one.close()

    run(story())


def test_another_ones_write_is_not_taken_for_our_own(etcd: EtcdServer) -> None:
    async def story() -> None:
        revision = etcd.put(KEY, "1")
        etcd.put(KEY, "theirs")
        one = EtcdClient([f"127.0.0.1:{free_port()}", etcd.address])
        assert not await one.put_if(KEY, b"ours", revision)
        await one.close()

    run(story())


def test_a_call_that_another_one_cuts_short_is_an_error_not_a_cancellation(etcd: EtcdServer) -> None:
    async def story() -> None:
        async with proxy(etcd.port) as network:
            network.muted = True
            one = EtcdClient([network.address])
            asking = asyncio.create_task(one.get(KEY))
            await network.until_accepted(1)
            await one.rotate()
            with pytest.raises(EtcdError, match="given up"):
                await asking
            asking = asyncio.create_task(one.get(KEY))
            await network.until_accepted(2)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await one.close()

    run(story())


# ---------------------------------------------------------------- watches


def test_a_watch_tells_events_from_a_revision_on(etcd: EtcdServer) -> None:
    async def story() -> None:
        first = etcd.put("/a/1", "1")
        etcd.delete("/a/1")
        one = EtcdClient([etcd.address])
        stream = await one.watch()
        await stream.add("/a/", first)
        await stream.add("/b/", first)
        responses = []
        while not (stream.settled and any(response.events for response in responses)):
            response = await stream.receive(5)
            assert response is not None
            responses.append(response)
        events = [event for response in responses for event in response.events]
        assert [(event.kv.key, event.type) for event in events] == [(b"/a/1", 0), (b"/a/1", 1)]
        assert await stream.receive(0.01) is None
        await stream.probe()
        assert await stream.receive(5) is not None
        etcd.put("/b/1", "1")
        response = await stream.receive(5)
        assert response is not None
        assert stream.prefix(response) == "/b/"
        assert repr(stream) == f"<WatchStream {etcd.address}: 2 watched, 0 asked>"
        stream.cancel()
        await one.close()

    run(story())


def test_a_watch_from_a_compacted_revision_is_an_error(etcd: EtcdServer) -> None:
    async def story() -> None:
        first = etcd.put("/a/1", "1")
        etcd.put("/a/1", "2")
        etcd.compact()
        one = EtcdClient([etcd.address])
        stream = await one.watch()
        await stream.add("/a/", first)
        with pytest.raises(EtcdError, match="compacted") as caught:
            while True:
                await stream.receive(5)
        assert caught.value.lost_history
        stream.cancel()
        await one.close()

    run(story())


def test_a_watch_that_was_cut_is_an_error_for_reader_and_writer(etcd: EtcdServer) -> None:
    async def story() -> None:
        async with proxy(etcd.port) as network:
            one = EtcdClient([network.address])
            stream = await one.watch()
            await stream.add("/a/", 1)
            assert await stream.receive(5) is not None
            network.cut()
            with pytest.raises(EtcdError) as caught:
                await stream.receive(5)
            assert caught.value.retriable
            with pytest.raises(EtcdError):
                await stream.probe()
            stream.cancel()
            await one.close()

    run(story())


# ---------------------------------------------------------------- users


def code(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(params=["simple", "jwt"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd with a user `pod` who may read and write /a/ only, with both kinds of tokens that it knows."""
    (tmp_path / "key").write_text("a key that is long enough for tests")
    kinds = {"simple": "simple", "jwt": f"jwt,sign-method=HS256,priv-key={tmp_path}/key"}
    with EtcdServer("--auth-token", kinds[request.param]) as server:
        server.start()
        for role in ("root", "reader"):
            server.call("auth/role/add", name=role)
        server.call(
            "auth/role/grant",
            name="reader",
            perm={"permType": "READWRITE", "key": code("/a/"), "range_end": code("/a0")},
        )
        for user, role in (("root", "root"), ("pod", "reader")):
            server.call("auth/user/add", name=user, password="secret")
            server.call("auth/user/grant", user=user, role=role)
        server.call("auth/enable")
        yield server


def outdate(one: EtcdClient) -> None:
    """Its next call shows a token that etcd does not know, as after five minutes without a call."""
    one._token = "expired.1"


def test_users_log_in_and_again_when_their_token_is_gone(guarded: EtcdServer) -> None:
    async def story() -> None:
        one = EtcdClient([guarded.address], "pod", "secret")
        assert await one.put_if("/a/1", b"1", 0)
        outdate(one)
        assert await one.range("/a/") == {"/a/1": Found(b"1", 2)}
        with pytest.raises(EtcdError, match="PERMISSION_DENIED"):
            await one.get("/b/1")
        await one.close()

    run(story())


def test_a_watch_with_a_token_that_is_gone_fails_once(guarded: EtcdServer) -> None:
    async def story() -> None:
        one = EtcdClient([guarded.address], "pod", "secret")
        outdate(one)
        outdated = await one.watch()
        await outdated.add("/a/", 1)
        with pytest.raises(EtcdError):
            await outdated.receive(5)
        outdated.cancel()
        fresh = await one.watch()
        await fresh.add("/a/", 1)
        assert await fresh.receive(5) is not None
        assert fresh.settled
        fresh.cancel()
        await one.close()

    run(story())


def test_a_change_of_users_makes_old_tokens_useless_and_is_survived(guarded: EtcdServer) -> None:
    async def story() -> None:
        one = EtcdClient([guarded.address], "pod", "secret")
        await one.put("/a/1", b"1")
        root = guarded.call("auth/authenticate", name="root", password="secret")["token"]
        guarded.call("auth/user/add", token=root, name="more", password="secret")
        assert await one.get("/a/1") is not None
        stream = await one.watch()
        await stream.add("/a/", 1)
        assert await stream.receive(5) is not None
        stream.cancel()
        await one.close()

    run(story())


@pytest.mark.parametrize(
    ("user", "password", "reason"),
    [
        ("pod", "hush", "authentication failed"),
        ("nobody", "hush", "authentication failed"),
        ("", "", "user name is empty"),
    ],
)
def test_who_cannot_log_in_is_told_why(guarded: EtcdServer, user: str, password: str, reason: str) -> None:
    async def story() -> None:
        one = EtcdClient([guarded.address], user, password)
        with pytest.raises(EtcdError, match=reason) as caught:
            await one.get("/a/1")
        assert "hush" not in str(caught.value)
        await one.close()

    run(story())


def test_a_user_name_does_no_harm_where_nobody_asks(etcd: EtcdServer) -> None:
    async def story() -> None:
        one = EtcdClient([etcd.address], "pod", "secret")
        assert await one.get(KEY) is None
        await one.close()

    run(story())


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[EtcdServer]:
    """An etcd that wants certificates from its clients."""
    flags = ["--cert-file", certificates.server, "--key-file", certificates.server_key]
    flags += ["--client-cert-auth", "--trusted-ca-file", certificates.ca]
    with EtcdServer(*map(str, flags), scheme="https") as server:
        server.tls = ssl.create_default_context(cafile=str(certificates.ca))
        server.tls.load_cert_chain(certificates.client, certificates.client_key)
        yield server.start()


def test_tls_both_ways(secure: EtcdServer, certificates: Certificates) -> None:
    async def story() -> None:
        both = EtcdTls(ca=certificates.ca, cert=certificates.client, key=certificates.client_key)
        for address in (secure.address, f"https://{secure.address}"):
            one = EtcdClient([address], tls=both)
            await one.put(KEY, b"1")
            assert await one.get(KEY) is not None
            await one.close()
        strangers = {
            "no certificate is shown": EtcdClient([secure.address], tls=EtcdTls(ca=certificates.ca)),
            "authority unknown": EtcdClient([f"https://{secure.address}"]),
            "plaintext": EtcdClient([secure.address]),
        }
        for why, stranger in strangers.items():
            with pytest.raises(EtcdError):
                await stranger.get(KEY)
                pytest.fail(why)
            await stranger.close()

    run(story())
