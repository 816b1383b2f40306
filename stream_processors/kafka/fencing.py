"""Opens the transactional producer of a partition: who had it before can write no more."""

import warnings
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from durabill.stream_processors.kafka.errors import Right, patiently
from durabill.stream_processors.kafka.options import transactional_producer

FENCED = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
)
"""The codes by which a producer learns that another one of its id has been opened."""


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


def close_producer(producer: Producer) -> KafkaException | None:
    """Close a transactional producer; its open transaction is aborted.

    Returns what the producer has to say to that. One that another has fenced says so once more:
    as KafkaException, or as the cause of a SystemError where a callback raised it.
    """
    with warnings.catch_warnings():
        # It can't abort what another owner's coming has ended; the broker has aborted it.
        warnings.filterwarnings("ignore", "Producer abort_transaction failed", RuntimeWarning)
        try:
            producer.close()
        except KafkaException as error:
            return error
        except SystemError as error:
            if isinstance(error.__cause__, KafkaException):
                return error.__cause__
            raise
    return None
