"""Our partitioner against librdkafka's, on a real broker."""

import uuid
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from durabill.schemas import PARTITIONER, partition_for
from tests.waiting import HANG_S


def test_keys_land_where_we_say(bootstrap_servers: str, topics: Any) -> None:
    producer = Producer(
        {"bootstrap.servers": bootstrap_servers, "partitioner": PARTITIONER, "acks": "all"}
    )
    keys = [b"k" * size for size in range(65)] + [uuid.uuid4().hex.encode() for _ in range(100)]
    landed: dict[bytes, int | None] = {}

    def note(error: Any, message: Message) -> None:
        assert error is None
        landed[message.key() or b""] = message.partition()

    for key in keys:
        producer.produce(topics.segments, key=key, value=b"x", on_delivery=note)
    assert producer.flush(HANG_S) == 0
    assert landed == {key: partition_for(key, topics.partitions) for key in keys}


def test_broker_stamps_the_time(bootstrap_servers: str, topics: Any) -> None:
    """The partitioner's topic is one of ours: what is read back carries the append time."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "partitioner": PARTITIONER})
    producer.produce(topics.segments, key=b"SO1", value=b"x", timestamp=1_000)
    assert producer.flush(HANG_S) == 0
    partition = partition_for(b"SO1", topics.partitions)
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": uuid.uuid4().hex})
    try:
        consumer.assign([TopicPartition(topics.segments, partition, 0)])
        message = consumer.poll(HANG_S)
        assert message is not None
        assert message.key() == b"SO1"
        kind, append_ms = message.timestamp()
        assert kind == 2  # TIMESTAMP_LOG_APPEND_TIME
        assert append_ms > 1_000
    finally:
        consumer.close()
