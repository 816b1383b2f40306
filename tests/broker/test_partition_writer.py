"""A writer that is told to close is closed, also where another owner has fenced it meanwhile."""

import asyncio
import threading
import uuid

import pytest
from confluent_kafka import KafkaException, Producer

from durabill.schemas.errors import FencedError
from durabill.stream_processors.kafka.appending import Appender, NewRecord
from durabill.stream_processors.kafka.fencing import open_producer
from durabill.stream_processors.worker.output_topic import OutputTopic
from durabill.stream_processors.worker.partition_writer import KafkaPartitionWriter
from tests.conftest import Topics
from tests.waiting import HANG_S


def fence_in_a_transaction(kafka: dict[str, str], name: str, topic: str) -> Producer:
    """Return a producer that another has fenced while its transaction was open."""
    producer = open_producer(kafka, name)
    producer.begin_transaction()
    producer.produce(topic, b"total", b"order", partition=0)
    producer.flush(HANG_S)
    open_producer(kafka, name).close()
    with pytest.raises(KafkaException):
        producer.commit_transaction(HANG_S)
    return producer


def test_a_writer_that_was_fenced_closes_without_a_fault(
    bootstrap_servers: str, topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    producer = fence_in_a_transaction(kafka, f"writer-{uuid.uuid4()}", topics.totals)
    fatal: list[BaseException] = []
    uncaught: list[threading.ExceptHookArgs] = []

    async def close_a_writer() -> None:
        writer = KafkaPartitionWriter(
            producer,
            partition=0,
            totals=OutputTopic(topics.totals, lambda start, end: []),
            orders=OutputTopic(topics.orders, lambda start, end: []),
            checkpoint_topic=topics.checkpoint,
            on_fatal=fatal.append,
        )
        writer.close()
        async with asyncio.timeout(HANG_S):
            await writer.closed()

    before, threading.excepthook = threading.excepthook, uncaught.append
    try:
        with caplog.at_level("INFO", "durabill.worker"):
            asyncio.run(close_a_writer())
    finally:
        threading.excepthook = before
    assert (uncaught, fatal) == ([], [])
    assert "its producer ended with" in caplog.text, "the producer did not object: test is void"


def test_an_appender_that_was_fenced_says_so_and_closes(
    bootstrap_servers: str, topics: Topics
) -> None:
    kafka = {"bootstrap.servers": bootstrap_servers}
    name = f"appender-{uuid.uuid4()}"
    first = Appender(kafka, name)
    second = Appender(kafka, name)
    record = NewRecord(topics.totals, 0, b"order", b"total")
    with pytest.raises(FencedError):
        first.append([record])
    first.close()
    second.append([record])
    second.close()
