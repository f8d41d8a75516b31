"""A real Apache Kafka that is killed under load and comes back: the sink's books agree with the topic."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.ledger import NOW, RECEIVED, Ledger
from shared.settings import KafkaSettings, LogSettings
from sidecar.log_kafka import KafkaSink
from sidecar.log_queue import ACCEPTED, Message, Sender, Settle
from tests.frontdoor.process import PATIENCE, ROOT, eventually, free_port
from tests.kafka import Topic

pytestmark = pytest.mark.full

JARS = ROOT / ".tools" / "kafka" / "lib" / "*"
CLUSTER = "AAAAAAAAAAAAAAAAAAAAAA"
MESSAGES = 3_000


class Kafka:
    """One node, broker and controller, in a directory of its own. Can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        controller = free_port()
        self._home = home
        self._properties = home / "server.properties"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": home / "data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "num.partitions": 3,
            "group.initial.rebalance.delay.ms": 0,
            "broker.session.timeout.ms": 1500,
            "broker.heartbeat.interval.ms": 300,
        }
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        format_command = self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c")
        subprocess.run(format_command, check=True, capture_output=True, timeout=PATIENCE)
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
