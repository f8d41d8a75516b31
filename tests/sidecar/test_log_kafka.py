"""The Kafka sink against the broker of librdkafka: acknowledged messages are in the topic; others have a reason."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.ledger import Ledger
from shared.settings import KafkaSettings, LogSettings
from sidecar.log_kafka import KafkaSink
from sidecar.log_queue import ACCEPTED, Message
from tests.frontdoor.process import free_port
from tests.kafka import PATIENCE, Topic, mock_broker


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with mock_broker() as address:
        yield address


class Deliveries:
    """Outcomes by value."""

    def __init__(self, sink: KafkaSink) -> None:
        self.sink = sink
        self.outcomes: dict[bytes, str] = {}
        self._ledger = Ledger.create()

    async def send(self, value: bytes, key: bytes | None = None) -> None:
        await self.sink.send(Message(value, key, 1, self._ledger), self._settle)

    def _settle(self, message: Message, outcome: str) -> None:
        assert message.value not in self.outcomes, "settled twice"
        self.outcomes[message.value] = outcome

    async def settled(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.outcomes) < count:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)


def kafka(broker: str, topic: str = "logs") -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=(broker,), topic=topic)


def test_acknowledged_messages_are_in_the_topic_and_a_key_has_one_partition(broker: str) -> None:
    topic = Topic(broker, "delivered")
    values = [b"message %d" % number for number in range(200)]

    async def run() -> None:
        deliveries = Deliveries(KafkaSink(kafka(broker, "delivered"), LogSettings()))
        await deliveries.sink.open()
        for number, value in enumerate(values):
            await deliveries.send(value, b"key %d" % (number % 7))
        await deliveries.settled(len(values))
        assert set(deliveries.outcomes.values()) == {ACCEPTED}
        assert deliveries.sink.state == "connected"
        await deliveries.sink.close()

    asyncio.run(run())
    taken = topic.take(len(values))
    topic.close()
    assert sorted(value for _, _, value in taken) == sorted(values)
    by_key: dict[bytes | None, set[int]] = {}
    for partition, key, _ in taken:
        by_key.setdefault(key, set()).add(partition)
    assert [len(partitions) for partitions in by_key.values()] == [1] * 7
    assert len(set().union(*by_key.values())) > 1


def test_a_large_message_gets_through_and_a_larger_one_is_refused(broker: str) -> None:
    topic = Topic(broker, "large")

    async def run() -> None:
        deliveries = Deliveries(KafkaSink(kafka(broker, "large"), LogSettings(message_bytes=100_000)))
        await deliveries.sink.open()
        await deliveries.send(bytes(100_000), b"k" * 40)
        await deliveries.send(bytes(102_000))
        await deliveries.settled(2)
        assert deliveries.outcomes[bytes(100_000)] == ACCEPTED
        assert deliveries.outcomes[bytes(102_000)] == "refused by the sink"
        await deliveries.sink.close()

    asyncio.run(run())
    assert len(topic.take(1)[0][2]) == 100_000
    topic.close()


def test_it_waits_for_a_broker(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        sink = KafkaSink(kafka(f"127.0.0.1:{free_port()}"), LogSettings(delivery_s=1))
        opening = asyncio.create_task(sink.open())
        async with asyncio.timeout(PATIENCE):
            while "no broker answers" not in sink.state:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        opening.cancel()
        await asyncio.wait([opening])
        await sink.close()

    asyncio.run(run())
    assert [record.message for record in caplog.records if record.name.startswith("sidecar")] == [
        "inference log is not delivered"
    ]


def test_a_broker_that_goes_away_costs_messages_after_the_delivery_time() -> None:
    async def run() -> None:
        with mock_broker() as address:
            deliveries = Deliveries(KafkaSink(kafka(address), LogSettings(delivery_s=1)))
            await deliveries.sink.open()
            await deliveries.send(b"first")
            await deliveries.settled(1)
        await deliveries.send(b"second")
        await deliveries.settled(2)
        assert deliveries.outcomes == {b"first": ACCEPTED, b"second": "not delivered in time"}
        assert deliveries.sink.state != "connected"
        await deliveries.sink.close()

    asyncio.run(run())


def test_tls_and_sasl_settings_reach_the_client(tmp_path: Path) -> None:
    settings = KafkaSettings(
        bootstrap_servers=("broker:9093",),
        topic="t",
        tls=True,
        sasl_mechanism="SCRAM-SHA-512",
        username="user",
        password="secret",
    )
    sink = KafkaSink(settings, LogSettings(message_bytes=1000, delivery_s=7))
    options = sink._options()
    context = options.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert options == {
        "bootstrap_servers": ["broker:9093"],
        "client_id": "inferflow-logs",
        "acks": "all",
        "linger_ms": 5,
        "max_batch_size": 2024,
        "max_request_size": 2024,
        "request_timeout_ms": 7000,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "user",
        "sasl_plain_password": "secret",
    }
    assert "secret" not in repr(sink)
    assert "secret" not in repr(settings)
    with pytest.raises(FileNotFoundError):
        KafkaSink(KafkaSettings(tls=True, ca=tmp_path / "none.pem"), LogSettings())._options()
