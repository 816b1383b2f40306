"""Opens the transactional producer of a partition: who had it before can write no more."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Producer

from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.options import transactional_producer


def open_producer(kafka: Mapping[str, Any], transactional_id: str) -> Producer:
    """Return a producer that has fenced all others of this id. Blocks until it has.

    Raises AccessError without the right on the id, UnreachableError where Kafka doesn't answer.
    """
    producer = Producer(transactional_producer(kafka, transactional_id))
    patiently(
        producer.init_transactions,
        f"the coordinator of the transactional id {transactional_id}",
        kafka,
        Right("Write", "transactional id", transactional_id),
    )
    return producer
