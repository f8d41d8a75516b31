"""Inference logs into a Kafka topic, by aiokafka.

Acknowledged means: by all replicas in sync. The client tries again until the delivery time of a message is over,
and may then have written it all the same: consumers can see a message twice, or one that was counted as dropped.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, KafkaTimeoutError

from shared.settings import KafkaSettings, LogSettings
from sidecar.log_queue import ACCEPTED, Message, Settle

__all__ = ["OVERHEAD", "KafkaSink", "connection", "topics"]

log = logging.getLogger(__name__)

OVERHEAD: Final = 1024
"""Bytes that a message may take besides its value: key, headers of its batch."""
FIRST_WAIT: Final = (
    0.1  # seconds until the second attempt to find a broker; doubled at each that comes to nothing
)
LONGEST_WAIT: Final = 5.0
LINGER_MS: Final = 5


class _ClientLog(logging.Handler):
    """What the Kafka client said last. Its exceptions do not tell why it cannot get to a broker; its log does.

    The client logs each attempt, ten times a second: none of it gets any further.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last = ""
        logger = logging.getLogger("aiokafka")
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        self._last = record.getMessage()

    def take(self, otherwise: str) -> str:
        """The last message since this was asked; `otherwise` when there is none."""
        last, self._last = self._last, ""
        return last or otherwise


class KafkaSink:
    """One producer. Looks for its brokers at once, and waits for them as long as it takes."""

    def __init__(self, kafka: KafkaSettings, settings: LogSettings) -> None:
        self._kafka = kafka
        self._settings = settings
        self._said = _ClientLog()
        self._producer: AIOKafkaProducer | None = None
        self._trouble = ""

    def __repr__(self) -> str:
        return f"<KafkaSink {self._kafka.topic} at {','.join(self._kafka.bootstrap_servers)}: {self.state}>"

    @property
    def state(self) -> str:
        if self._trouble:
            return self._trouble
        return "connected" if self._producer is not None else "not connected yet"

    async def open(self) -> None:
        """Returns as soon as a broker answers."""
        wait = FIRST_WAIT
        while self._producer is None:
            producer = AIOKafkaProducer(**self._options())
            try:
                await producer.start()
            except KafkaError as error:
                await producer.stop()
                self._note(f"no broker answers: {self._said.take(str(error))}")
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_WAIT)
            except asyncio.CancelledError:
                await producer.stop()
                raise
            else:
                log.info("brokers found", extra={"topic": self._kafka.topic})
                self._trouble = ""
                self._producer = producer

    async def send(self, message: Message, settle: Settle) -> None:
        assert self._producer is not None, "open comes first"
        try:
            delivery = await self._producer.send(self._kafka.topic, message.value, key=message.key)
        except KafkaError as error:
            self._failed(message, error, settle)
            return
        delivery.add_done_callback(lambda done: self._done(message, done, settle))

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    def _done(self, message: Message, done: asyncio.Future[Any], settle: Settle) -> None:
        if done.cancelled():
            settle(message, "stopped")
        elif (error := done.exception()) is None:
            self._trouble = ""
            settle(message, ACCEPTED)
        else:
            self._failed(message, error, settle)

    def _failed(self, message: Message, error: BaseException, settle: Settle) -> None:
        self._note(f"{type(error).__name__}: {error}")
        # When the time is over, the client raises what the last attempt came to.
        late = isinstance(error, KafkaError) and (error.retriable or isinstance(error, KafkaTimeoutError))
        settle(message, "not delivered in time" if late else "refused by the sink")

    def _note(self, trouble: str) -> None:
        """Logs what is wrong when it begins, and when it changes."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.error("inference log is not delivered", extra={"topic": self._kafka.topic, "reason": trouble})

    def _options(self) -> dict[str, Any]:
        return connection(self._kafka) | {
            "client_id": "inferflow-logs",
            "acks": "all",
            "linger_ms": LINGER_MS,
            "max_batch_size": self._settings.message_bytes + OVERHEAD,
            "max_request_size": self._settings.message_bytes + OVERHEAD,
            "request_timeout_ms": int(self._settings.delivery_s * 1000),
        }


async def topics(kafka: KafkaSettings) -> set[str]:
    """The topics that the brokers tell this user of. Raises OSError with what is wrong."""
    said = _ClientLog()
    client = AIOKafkaClient(client_id="inferflow-doctor", **connection(kafka))
    try:
        await client.bootstrap()
        known = await client.fetch_all_metadata()
        return set(known.topics())
    except KafkaError as error:
        raise OSError(said.take(str(error))) from error
    finally:
        await client.close()


def connection(kafka: KafkaSettings) -> dict[str, Any]:
    """How aiokafka gets to these brokers: arguments of all its clients."""
    layers = ("SASL" if kafka.sasl_mechanism else "", "SSL" if kafka.tls else "PLAINTEXT")
    options: dict[str, Any] = {
        "bootstrap_servers": list(kafka.bootstrap_servers),
        "security_protocol": "_".join(layer for layer in layers if layer),
    }
    if kafka.tls:
        options["ssl_context"] = _tls(kafka)
    if kafka.sasl_mechanism:
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.username
        options["sasl_plain_password"] = kafka.password
    return options


def _tls(kafka: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=kafka.ca)
    if kafka.cert is not None:
        context.load_cert_chain(kafka.cert, kafka.key)
    return context
