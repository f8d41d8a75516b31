"""A Kafka broker for tests: that of librdkafka, in this process. It keeps what is written and knows consumers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import Consumer, Producer, TopicPartition

__all__ = ["PATIENCE", "Topic", "mock_broker"]

PATIENCE = 60.0


@contextmanager
def mock_broker() -> Iterator[str]:
    """host:port of a broker that lives as long as the body."""
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    broker = next(iter(owner.list_topics(timeout=PATIENCE).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    owner.flush(0)
    del owner


class Topic:
    """A topic, made now, and what is written to it."""

    def __init__(self, broker: str, name: str) -> None:
        self.name = name
        self._consumer = Consumer(
            {
                "bootstrap.servers": broker,
                "group.id": "tests",
                "enable.auto.commit": False,
                "allow.auto.create.topics": True,
                "log_level": 0,
            }
        )
        end = time.monotonic() + PATIENCE
        while not (partitions := self._consumer.list_topics(name, PATIENCE).topics[name].partitions):
            assert time.monotonic() < end, f"{name} is not made"
            time.sleep(0.05)
        self._consumer.assign([TopicPartition(name, number, 0) for number in partitions])

    def take(self, wanted: int) -> list[tuple[int, bytes | None, bytes]]:
        """(partition, key, value) of so many messages, as they come. Fails when they do not come."""
        found: list[tuple[int, bytes | None, bytes]] = []
        end = time.monotonic() + PATIENCE
        while len(found) < wanted:
            assert time.monotonic() < end, f"{len(found)} of {wanted} messages in {self.name}"
            message = self._consumer.poll(0.1)
            if message is not None and not message.error():
                found.append((message.partition() or 0, message.key(), message.value() or b""))  # type: ignore[arg-type]
        return found

    def all(self) -> list[tuple[int, bytes | None, bytes]]:
        """All messages that are there now, from the beginning; for a topic that nothing was taken from."""
        ends = [
            self._consumer.get_watermark_offsets(place, timeout=PATIENCE)[1]
            for place in self._consumer.assignment()
        ]
        return self.take(sum(ends))

    def close(self) -> None:
        self._consumer.close()
