"""A real Apache Kafka that is killed under load and comes back: the sink's books agree with the topic."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cli.log_sources
from shared.ledger import NOW, RECEIVED, Ledger
from shared.settings import KafkaSettings, LogSettings
from sidecar.log_kafka import KafkaSink
from sidecar.log_queue import ACCEPTED, Message, Sender, Settle
from tests.frontdoor.process import PATIENCE, ROOT, eventually, free_port
from tests.kafka import Topic
from tests.rpc.support import Certificates, make_certificates

pytestmark = pytest.mark.full

JARS = ROOT / ".tools" / "kafka" / "lib" / "*"
CLUSTER = "AAAAAAAAAAAAAAAAAAAAAA"
MESSAGES = 3_000


class Kafka:
    """One node, broker and controller, in a directory of its own. Can be killed and started again."""

    def __init__(
        self,
        home: Path,
        doors: Mapping[str, int] | None = None,
        settings: Mapping[str, object] | None = None,
        *format: str,
    ) -> None:
        """`doors`: more listeners, name → port; the protocol is the name. `format`: arguments of the first step."""
        self.port = free_port()
        listeners = {"PLAINTEXT": self.port, **(doors or {})}
        addresses = ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items())
        controller = free_port()
        self._home = home
        self._properties = home / "server.properties"
        own = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{addresses},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": addresses,
            "listener.security.protocol.map": ",".join(
                ["CONTROLLER:PLAINTEXT", *(f"{name}:{name}" for name in listeners)]
            ),
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": home / "data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "num.partitions": 3,
            "group.initial.rebalance.delay.ms": 0,
            "broker.session.timeout.ms": 1500,
            "broker.heartbeat.interval.ms": 300,
            **(settings or {}),
        }
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in own.items()))
        command = self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER, *format, "-c")
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        self._output = (home / "kafka.log").open("ab")
        self.start()

    def _java(self, *arguments: str) -> list[str]:
        options = ["-Xmx256m", "-XX:+UseSerialGC"]
        return ["java", *options, "-cp", str(JARS), *arguments, str(self._properties)]

    def start(self) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen(
            self._java("kafka.Kafka"), stdout=self._output, stderr=subprocess.STDOUT, cwd=self._home
        )
        eventually(self._listens, "Kafka listens", (self._home / "kafka.log").read_text)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)

    def close(self) -> None:
        self.kill()
        self._output.close()


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Kafka]:
    server = Kafka(tmp_path)
    yield server
    server.close()


class RecordingSink(KafkaSink):
    """Notes what was acknowledged."""

    acknowledged: set[bytes]

    async def send(self, message: Message, settle: Settle) -> None:
        def noted(settled: Message, outcome: str) -> None:
            if outcome == ACCEPTED:
                self.acknowledged.add(settled.value)
            settle(settled, outcome)

        await super().send(message, noted)


def test_a_broker_killed_under_load(kafka: Kafka) -> None:
    address = f"127.0.0.1:{kafka.port}"
    ledger, full = Ledger.create(), []
    settings = LogSettings(delivery_s=60)

    async def run() -> tuple[Counter[str], set[bytes]]:
        sink = RecordingSink(KafkaSettings(bootstrap_servers=(address,), topic="logs"), settings)
        sink.acknowledged = set()
        sender = Sender(sink, max_bytes=1 << 20, max_messages=1_000, on_room=full.append)
        sending = asyncio.create_task(sender.run())
        for number in range(MESSAGES):
            if number == MESSAGES // 3:
                await asyncio.to_thread(kafka.kill)
            if number == 2 * MESSAGES // 3:
                await asyncio.to_thread(kafka.start)
            ledger.words[NOW + RECEIVED] += 1
            sender.put(Message(b"message %d" % number, b"key %d" % (number % 9), 1, ledger))
            await asyncio.sleep(0.002)
        end = time.monotonic() + 2 * settings.delivery_s
        while sender.messages:
            assert time.monotonic() < end, repr(sender)
            await asyncio.sleep(0.05)
        sending.cancel()
        await asyncio.wait([sending])
        await sink.close()
        return sender.outcomes, sink.acknowledged

    topic = Topic(address, "logs")
    outcomes, acknowledged = asyncio.run(run())
    books = ledger.books()
    assert outcomes.total() == MESSAGES
    assert books.acknowledged == outcomes[ACCEPTED]
    assert books.received == books.acknowledged + sum(books.dropped.values())
    assert outcomes[ACCEPTED] > MESSAGES // 2
    assert len(acknowledged) == outcomes[ACCEPTED]
    # A message can be there twice, or although it was given up; what was acknowledged is there.
    assert acknowledged <= {value for _, _, value in topic.all()}
    topic.close()


class Secured(NamedTuple):
    """A Kafka whose every door but one asks who is there."""

    server: Kafka
    doors: Mapping[str, int]
    certificates: Certificates

    def settings(self, door: str, **changes: Any) -> KafkaSettings:
        """Those with which a sink gets in by this door, but for the changes."""
        certificates = self.certificates
        own: dict[str, Any] = {"bootstrap_servers": (f"127.0.0.1:{self.doors[door]}",), "topic": "secured"}
        if door.endswith("SSL"):
            own |= {"tls": True, "ca": certificates.ca}
        if door.startswith("SASL"):
            mechanism = "PLAIN" if door.endswith("SSL") else "SCRAM-SHA-512"
            own |= {"sasl_mechanism": mechanism, "username": "inferflow", "password": PASSWORD}
        else:
            own |= {"cert": certificates.client, "key": certificates.client_key}
        return KafkaSettings(**(own | changes))


PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """SSL wants a certificate, SASL_SSL a password (PLAIN), SASL_PLAINTEXT one that is not sent (SCRAM)."""
    home = tmp_path_factory.mktemp("secured")
    certificates = make_certificates(home)
    pair = home / "server.both"
    pair.write_bytes(certificates.server_key.read_bytes() + certificates.server.read_bytes())
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule"
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": pair,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": certificates.ca,
        "listener.name.ssl.ssl.client.auth": "required",
        "listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{plain} required user_inferflow="{PASSWORD}";',
        "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": f"{scram} required;",
    }
    doors = {"SSL": free_port(), "SASL_SSL": free_port(), "SASL_PLAINTEXT": free_port()}
    user = f"SCRAM-SHA-512=[name=inferflow,password={PASSWORD}]"
    server = Kafka(home, doors, settings, "--add-scram", user)
    yield Secured(server, doors, certificates)
    server.close()


@pytest.mark.parametrize("door", ["SSL", "SASL_SSL", "SASL_PLAINTEXT"])
def test_who_has_the_key_gets_in(secured: Secured, door: str) -> None:
    settings, value, ledger = secured.settings(door), f"by {door}".encode(), Ledger.create()
    outcomes: list[str] = []

    async def run() -> list[bytes]:
        sink = KafkaSink(settings, LogSettings())
        async with asyncio.timeout(PATIENCE):
            await sink.open()
            await sink.send(Message(value, None, 1, ledger), lambda _, outcome: outcomes.append(outcome))
            while not outcomes:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
            await sink.close()
            return [one async for one in cli.log_sources.from_kafka(settings)]

    assert value in asyncio.run(run()), "`inferflow logs cat` gets in as well"
    assert outcomes == [ACCEPTED]


@pytest.mark.parametrize(
    ("door", "changes", "reason"),
    [
        ("SASL_SSL", {"password": "wrong"}, "Authentication failed: Invalid username or password"),
        ("SASL_PLAINTEXT", {"password": "wrong"}, "invalid credentials"),
        ("SASL_PLAINTEXT", {"sasl_mechanism": "PLAIN"}, "UnsupportedSaslMechanismError"),
        ("SASL_SSL", {"ca": None}, "CERTIFICATE_VERIFY_FAILED"),
        ("SSL", {"cert": None, "key": None}, "closed"),  # TLS 1.3 refuses after the handshake
    ],
)
def test_who_has_not_is_told_why(
    secured: Secured, door: str, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "sidecar.log_kafka")

    async def run() -> str:
        sink = KafkaSink(secured.settings(door, **changes), LogSettings())
        opening = asyncio.create_task(sink.open())
        async with asyncio.timeout(PATIENCE):
            while "no broker answers" not in sink.state:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        opening.cancel()
        await asyncio.wait([opening])
        return sink.state

    assert reason in asyncio.run(run())
    assert PASSWORD not in caplog.text
