"""Where `inferflow logs cat` reads messages: files of the log directory, or a Kafka topic as far as it goes now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from shared.settings import KafkaSettings
from sidecar.log_kafka import connection

__all__ = ["SourceError", "from_files", "from_kafka"]

VALUE: Final = "value"  # the column of a log file that has the messages
BATCH: Final = 64  # messages of a file at a time
POLL_MS: Final = 500
PATIENCE: Final = 30.0
"""Seconds without a message, where there is one to come, after which the brokers are given up."""


class SourceError(Exception):
    """Messages that cannot be got at; the text says where and why."""


def from_files(paths: Iterable[Path]) -> Iterator[bytes]:
    """The messages of Parquet files with a `value` column, and of files that are one message each.

    A directory stands for the Parquet files in it, in the order of their names. Raises SourceError.
    """
    for path in paths:
        if path.is_dir():
            # Hidden ones are being written; one that goes meanwhile is one that is no longer kept.
            for one in sorted(path.rglob("*.parquet")):
                if one.name[0] != "." and one.exists():
                    yield from _from_file(one)
        else:
            yield from _from_file(path)


def _from_file(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if not is_parquet:
            yield path.read_bytes()
            return
        with pq.ParquetFile(path) as found:
            if VALUE not in found.schema_arrow.names:
                raise SourceError(f"{path}: no column {VALUE!r}: it is no file of messages")
            for batch in found.iter_batches(BATCH, columns=[VALUE]):
                yield from batch.column(0).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: {error}") from error


async def from_kafka(kafka: KafkaSettings) -> AsyncIterator[bytes]:
    """The messages of the topic, partition by partition in their order, from its beginning to what is its end now.

    Belongs to no group and commits nothing. Raises SourceError.
    """
    place = f"topic {kafka.topic!r} at {','.join(kafka.bootstrap_servers)}"
    consumer = AIOKafkaConsumer(
        kafka.topic,
        client_id="inferflow-logs-cat",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
        **connection(kafka),
    )
    try:
        async with asyncio.timeout(PATIENCE):
            await consumer.start()
        async for value in _to_the_end(consumer):
            yield value
    except (KafkaError, TimeoutError, SourceError) as error:
        raise SourceError(f"{place}: {error or f'no answer within {PATIENCE:g} s'}") from error
    finally:
        await consumer.stop()


async def _to_the_end(consumer: AIOKafkaConsumer) -> AsyncIterator[bytes]:
    if not consumer.assignment():
        raise SourceError("there is no such topic")
    ends = await consumer.end_offsets(consumer.assignment())
    begins = await consumer.beginning_offsets(consumer.assignment())
    left = {partition for partition, end in ends.items() if begins[partition] < end}
    consumer.pause(*(set(ends) - left))
    waited = 0.0
    while left:
        batches = await consumer.getmany(timeout_ms=POLL_MS)
        waited = 0.0 if batches else waited + POLL_MS / 1000
        if waited > PATIENCE:
            raise TimeoutError(f"no message within {PATIENCE:g} s, where {len(left)} partitions have more")
        for partition, records in batches.items():
            for record in records:
                if record.offset < ends[partition] and record.value is not None:
                    yield record.value
        for partition in list(left):
            if await consumer.position(partition) >= ends[partition]:
                left.discard(partition)
                consumer.pause(partition)
